// The engine with nothing of ours around it: a plain context of quickjs-emscripten in a process of its own. What fails
// here as well is the engine's; what fails only in the jail is ours. Started as a child of the runner it takes one
// program a message; a program that hangs or breaks the engine costs the process, not the runner.
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { getQuickJS } from "quickjs-emscripten";
import { besideOf } from "./suite.mjs";

const file = fileURLToPath(import.meta.url);

/** Engines whose bare form is known here; of others a failure is told without whose it is. */
export const hasBare = (engine) => engine === "quickjs";

/** What a program leaves in the engine is never given back: a new process after so many. */
const RENEW = 100;

/** Runs programs on the bare engine, as many processes as `jobs`. */
export async function runBare(programs, { jobs, wallMs }, onSeen) {
  const queue = programs.entries();
  await Promise.all(
    Array.from({ length: Math.min(jobs, programs.length) }, async () => {
      let child;
      let served = 0;
      for (const [at, program] of queue) {
        if (++served % RENEW === 0) {
          child?.kill("SIGKILL");
          child = undefined;
        }
        child ??= fork(file, ["serve"], { stdio: ["ignore", "ignore", "ignore", "ipc"] });
        const seen = await answerOf(child, program, wallMs);
        if (seen.status === "stopped") {
          child.kill("SIGKILL");
          child = undefined;
        }
        onSeen(programs[at], seen);
      }
      child?.kill("SIGKILL");
    }),
  );
}

function answerOf(child, program, wallMs) {
  return new Promise((resolve) => {
    const settle = (seen) => {
      clearTimeout(timer);
      child.removeAllListeners();
      resolve(seen);
    };
    const timer = setTimeout(() => settle({ status: "stopped", reason: "wall-time" }), 2 * wallMs);
    child.once("message", settle);
    child.once("exit", () => settle({ status: "stopped", reason: "crash" }));
    child.send({ program, wallMs });
  });
}

/** One program in a fresh runtime. Exceptions that are no guest values leave: the instance is broken then. */
function observe(quickjs, { type, name, source, modules }, wallMs) {
  const runtime = quickjs.newRuntime();
  const until = performance.now() + wallMs;
  let late = false;
  runtime.setInterruptHandler(() => (late = performance.now() > until));
  runtime.setModuleLoader(
    (wanted) =>
      Object.hasOwn(modules, wanted) ? modules[wanted] : { error: new Error(`no module ${wanted}`) },
    (base, wanted) => (/^\.\.?\//.test(wanted) ? besideOf(base, wanted) : wanted),
  );
  const context = runtime.newContext();
  const threw = (error) => {
    if (late) return { status: "stopped", reason: "wall-time" };
    const seen = context.dump(error);
    const { name = "Error", message = String(seen) } = seen !== null && typeof seen === "object" ? seen : {};
    return { status: "threw", name: String(name), message: String(message) };
  };
  const drain = () => {
    while (runtime.hasPendingJob()) {
      const ran = runtime.executePendingJobs();
      if (ran.error) return threw(ran.error);
    }
    return late ? { status: "stopped", reason: "wall-time" } : undefined;
  };
  const evaluated = context.evalCode(source, name, { type: type === "module" ? "module" : "global" });
  if (evaluated.error) return threw(evaluated.error);
  let value = evaluated.value;
  let failed = drain();
  if (failed) return failed;
  if (type === "module") {
    const state = context.getPromiseState(value);
    if (state.type === "rejected") return threw(state.error);
    if (state.type === "pending") return { status: "stopped", reason: "deadlock" };
    const called = context.callFunction(context.getProp(state.value, "default"), context.undefined);
    if (called.error) return threw(called.error);
    value = called.value;
  }
  if (context.typeof(value) !== "object") return { status: "ok" };
  const then = context.getProp(value, "then");
  if (context.typeof(then) !== "function") return { status: "ok" };
  let heard;
  const settle = context.newFunction("settle", (text) => void (heard = context.dump(text)));
  const called = context.callFunction(then, value, settle);
  if (called.error) return threw(called.error);
  failed = drain();
  if (failed) return failed;
  return heard === undefined ? { status: "stopped", reason: "deadlock" } : { status: "ok", value: heard };
}

if (process.argv[2] === "serve" && process.send !== undefined) {
  const quickjs = await getQuickJS();
  process.on("message", ({ program, wallMs }) => {
    const seen = observe(quickjs, program, wallMs);
    process.send(seen);
  });
}
