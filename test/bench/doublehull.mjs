// doublehull as a contender, one for each engine, by its public interface alone.
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Sandbox } from "doublehull";
import { capability, method } from "doublehull/hostapi";
import { z } from "zod";
import { HOST_CALLS } from "./workloads.mjs";
import { pause, now } from "./measures.mjs";

export const ENGINES = ["quickjs", "v8-jitless", "v8"];
export const PARKED_FOR_MEMORY = 1000;

const cli = path.join(path.dirname(fileURLToPath(import.meta.url)), "../../dist/server/cli.js");
const limits = { wallMs: 60_000, cpuMs: 60_000, hostCalls: HOST_CALLS, callBytes: 4_194_304 };

/** Does nothing: what it costs is the way there and back. */
export const answer = method({
  doc: "Its argument.",
  params: { value: z.unknown() },
  effect: "read",
  run: ({ value }) => value,
});
const back = capability("back", { answer });

export const createSandbox = (engine, options) =>
  Sandbox.create({ engine, image: "fast-run", parked: 2, limits, ...options });

/** Waits until so many workers are parked, as between the requests of a service. */
async function parked(sandbox, count) {
  const giveUp = now() + 60_000;
  while (!(await sandbox.state()).some((pool) => pool.parked >= count)) {
    if (now() > giveUp) throw new Error(`no ${count} workers were parked within a minute`);
    await pause(1);
  }
}

export async function valueOf(running) {
  const outcome = await running;
  if (outcome.status === "ok") return outcome.value;
  throw new Error(`${outcome.status}: ${JSON.stringify(outcome.stop ?? outcome.error)}`);
}

/** Rejects with SandboxError where this version or this host does not have the engine. */
export async function startDoublehull(engine) {
  const sandbox = await createSandbox(engine);
  const source = ({ body, name }) =>
    `export default ${name.startsWith("host calls") ? "async " : ""}(input, env) => { ${body} }`;
  return {
    name: `doublehull ${engine}`,
    engine,
    run: (workload) => valueOf(sandbox.run(source(workload), { input: workload.input, grants: { back } })),
    settle: () => parked(sandbox, 2),
    atOnce: 8,
    hostCalls: { oneByOne: "await env.back.answer(i)", parallel: "env.back.answer(i)" },
    idle: {
      many: PARKED_FOR_MEMORY,
      async start(count) {
        const other = await createSandbox(engine, { parked: count });
        await parked(other, count);
        return () => other.close();
      },
    },
    cold: [process.execPath, cli, "run", "--engine", engine, "-e", "1+1"],
    stop: () => sandbox.close(),
  };
}
