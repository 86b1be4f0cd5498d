// Programs of the suite in real workers: each in a process of its own behind both hulls, through the same door as any
// user's script.
import { Sandbox } from "doublehull";

/** Beyond what the suite's largest tests take, the stack excepted: that one is what every run has. */
const LIMITS = { memoryMb: 256, sourceBytes: 4 * 1024 * 1024 };

/** What `outOfScope` may ask for; besides `import()`, which is no global. */
const GLOBALS = ["SharedArrayBuffer", "Atomics", "Intl"];

/** `maxWallMs` is the most that `run` may be asked to allow. The caller closes it. */
export async function openJail({ engine = "quickjs", jobs, maxWallMs, image = "fast-run" }) {
  const sandbox = await Sandbox.create({
    engine,
    image,
    parked: jobs + 1,
    maxConcurrent: jobs,
    limits: { ...LIMITS, wallMs: maxWallMs, cpuMs: maxWallMs },
  });
  /** A program's end as `verdict` (suite.mjs) wants it. Rejects where the sandbox does: that is no test's failure. */
  const run = async ({ type, name, source, modules }, wallMs) => {
    const outcome = await sandbox.run(source, { type, name, modules, limits: { wallMs, cpuMs: wallMs } });
    switch (outcome.status) {
      case "ok":
        return { status: "ok", value: outcome.value };
      case "threw":
        return { status: "threw", name: outcome.error.name, message: outcome.error.message };
      default:
        return { status: "stopped", reason: outcome.stop?.reason ?? outcome.status };
    }
  };
  return {
    /** Which of the globals that decide about scope this guest has. */
    globals: async () => {
      const source = `${JSON.stringify(GLOBALS)}.filter((name) => name in globalThis)`;
      const seen = await run({ type: "script", name: "probe.js", source, modules: {} }, maxWallMs);
      if (seen.status !== "ok") throw new Error(`the guest does not answer: ${JSON.stringify(seen)}`);
      return engine === "quickjs" ? [...seen.value, "import()"] : seen.value;
    },
    run,
    close: () => sandbox.close(),
  };
}
