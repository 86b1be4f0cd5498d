// The engine with nothing of ours around it, in a process of its own: a plain context of quickjs-emscripten, or for V8 one
// of node:vm, which is the V8 that an isolate runs on. What fails here as well is the engine's; what fails only in the
// jail is ours. Started as a child of the runner it takes one program a message; a program that hangs or breaks the
// engine costs the process, not the runner.
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import vm from "node:vm";
import { getQuickJS } from "quickjs-emscripten";
import { besideOf } from "./suite.mjs";

const file = fileURLToPath(import.meta.url);

/** What a program leaves in the engine is never given back: a new process after so many. */
const RENEW = 100;

/**
 * Runs programs on the bare form of `engine`, in as many processes as `jobs`. With `alone` each in a process of its own
 * and, on V8, in that one's own realm: in one of node:vm strict code may assign to what was never declared.
 */
export async function runBare(programs, { engine, jobs, wallMs, alone = false }, onSeen) {
  const queue = programs.entries();
  const start = () =>
    fork(file, [alone ? "alone" : "serve", engine], {
      execArgv: ["--experimental-vm-modules", "--no-warnings"],
      stdio: ["ignore", "ignore", "ignore", "ipc"],
    });
  await Promise.all(
    Array.from({ length: Math.min(jobs, programs.length) }, async () => {
      let [child, served] = [undefined, 0];
      const end = () => {
        child?.kill("SIGKILL");
        [child, served] = [undefined, 0];
      };
      for (const [at, program] of queue) {
        child ??= start();
        const seen = await answerOf(child, program, wallMs);
        if (++served === (alone ? 1 : RENEW) || seen.status === "stopped") end();
        onSeen(programs[at], seen);
      }
      end();
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

const DEADLOCK = { status: "stopped", reason: "deadlock" };
const LATE = { status: "stopped", reason: "wall-time" };

/** One program in a fresh runtime. Exceptions that are no guest values leave: the instance is broken then. */
function observeQuickJS(quickjs, { type, name, source, modules }, wallMs) {
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
    if (late) return LATE;
    const seen = context.dump(error);
    const { name = "Error", message = String(seen) } = seen !== null && typeof seen === "object" ? seen : {};
    return { status: "threw", name: String(name), message: String(message) };
  };
  const drain = () => {
    while (runtime.hasPendingJob()) {
      const ran = runtime.executePendingJobs();
      if (ran.error) return threw(ran.error);
    }
    return late ? LATE : undefined;
  };
  const evaluated = context.evalCode(source, name, { type: type === "module" ? "module" : "global" });
  if (evaluated.error) return threw(evaluated.error);
  let value = evaluated.value;
  let failed = drain();
  if (failed) return failed;
  if (type === "module") {
    const state = context.getPromiseState(value);
    if (state.type === "rejected") return threw(state.error);
    if (state.type === "pending") return DEADLOCK;
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
  return heard === undefined ? DEADLOCK : { status: "ok", value: heard };
}

/** One program in a fresh context, or in this process's own; like an isolate of isolated-vm it has no dynamic import. */
async function observeV8({ type, name, source, modules }, alone) {
  const context = alone ? undefined : vm.createContext();
  const made = new Map();
  const load = (wanted, from) => {
    const path = /^\.\.?\//.test(wanted) ? besideOf(from.identifier, wanted) : wanted;
    if (!Object.hasOwn(modules, path)) throw new Error(`no module ${path}`);
    if (!made.has(path))
      made.set(path, new vm.SourceTextModule(modules[path], { context, identifier: path }));
    return made.get(path);
  };
  /** All that could still happen has happened by then: a realm without timers lives by its microtasks. */
  const quiet = () => new Promise((resolve) => setImmediate(resolve, DEADLOCK));
  try {
    let value;
    if (type === "module") {
      const main = new vm.SourceTextModule(source, { context, identifier: name });
      await main.link(load);
      if ((await Promise.race([main.evaluate(), quiet()])) === DEADLOCK) return DEADLOCK;
      value = main.namespace.default();
    } else if (alone) value = vm.runInThisContext(source, { filename: name });
    else value = vm.runInContext(source, context, { filename: name });
    if (typeof value?.then !== "function") return { status: "ok" };
    return await Promise.race([
      new Promise((resolve) => value.then((text) => resolve({ status: "ok", value: text }))),
      quiet(),
    ]);
  } catch (error) {
    const { name = "Error", message = String(error) } = Object(error) === error ? error : {};
    return { status: "threw", name: String(name), message: String(message) };
  }
}

const [, , mode] = process.argv;
if ((mode === "serve" || mode === "alone") && process.send !== undefined) {
  const quickjs = process.argv[3] === "quickjs" ? await getQuickJS() : undefined;
  process.on("unhandledRejection", () => {}); // a test may leave one
  const observe = async ({ program, wallMs }) =>
    quickjs === undefined ? observeV8(program, mode === "alone") : observeQuickJS(quickjs, program, wallMs);
  const answer = async (job) => {
    try {
      process.send(await observe(job));
    } catch {
      process.exit(1); // the engine broke: the parent sees the exit
    }
  };
  process.on("message", (job) => void answer(job));
}
