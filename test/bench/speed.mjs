// Script speed in the jail against the same engine outside it: the same image, booted and rehearsed in the same way by a
// child with the flags of that engine's keeper, and the same script, which takes its own time. As a program it is
// that child: node FLAGS speed.mjs ENGINE MEMORY_MB
import { spawn } from "node:child_process";
import fs from "node:fs";
import { fileURLToPath } from "node:url";
import { clock } from "doublehull/hostapi";
import { nodeFlags } from "#server/engines";
import { createSandbox, valueOf } from "./doublehull.mjs";
import { median, pause, quantile } from "./measures.mjs";
import { SPEED_N, speedSource } from "./workloads.mjs";

const self = fileURLToPath(import.meta.url);

/** One run, one process, as in the jail. Boots, says so, and runs at the first byte of its standard input. */
async function outside(engineName, memoryMb) {
  const { loadEngine } = await import("#server/engines");
  const { GUEST } = await import("#server/worker");
  const { prepare } = await import("#server/prepare");
  const { WARM_JOB } = await import("#engine/job");
  const engine = await loadEngine(engineName);
  const image = await engine.boot({ memoryMb, stackKb: 256, guest: GUEST });
  prepare(image, "fast-run");
  fs.writeSync(1, "\n");
  fs.readSync(0, Buffer.alloc(1));
  const job = {
    ...WARM_JOB,
    name: "script.js",
    source: speedSource(SPEED_N[engineName]),
    wallMs: 60_000,
    maxStackBytes: 256 * 1024,
    clock: { mode: "real", stepMs: 0 },
  };
  let result = "";
  const guest = image.load(job, ({ kind, text }) => {
    if (kind === "result") result = Buffer.from(text).toString();
  });
  guest.step();
  fs.writeSync(1, `${result}\n`);
  process.exit(0);
}

async function startOutside(flags, engine, memoryMb) {
  const child = spawn(process.execPath, [...flags, self, engine, String(memoryMb)], {
    stdio: ["pipe", "pipe", "inherit"],
    env: { TZ: "UTC" },
  });
  const next = () =>
    new Promise((resolve, reject) => {
      child.once("exit", () => reject(new Error(`${engine} outside the jail ended without a result`)));
      child.stdout.once("data", (chunk) => resolve(String(chunk)));
    });
  await next();
  return {
    async run() {
      const said = next();
      child.stdin.write("\n");
      const [status, value] = JSON.parse(await said);
      if (status !== "ok") throw new Error(`${engine} outside the jail: ${status} ${value}`);
      return value;
    },
  };
}

/** Milliseconds of the guest's own clock, and by how much the jail is slower, pair by pair. */
export async function scriptSpeed(engine, { pairs = 30, between }) {
  const sandbox = await createSandbox(engine);
  try {
    // By name: in a whole bench the keepers of all engines stand beside each other.
    const flags = nodeFlags(engine, "fast-run");
    const { memoryMb } = sandbox.limits;
    const source = speedSource(SPEED_N[engine]);
    const inside = { run: () => valueOf(sandbox.run(source, { grants: { clock: clock() } })) };
    const figures = { jail: [], outside: [] };
    for (let pair = -1; pair < pairs; pair++) {
      const contenders = [
        ["jail", inside],
        ["outside", await startOutside(flags, engine, memoryMb)],
      ];
      if (pair % 2 === 0) contenders.reverse();
      for (const [where, contender] of contenders) {
        const ms = await contender.run();
        if (pair >= 0) figures[where].push(ms);
        await pause(5); // what ended is buried, and the next worker parked
      }
      await between?.();
    }
    const ratios = figures.jail.map((ms, i) => ms / figures.outside[i]);
    const reach = 0.98 / Math.sqrt(pairs);
    return {
      flags,
      ...figures,
      ratio: median(ratios),
      low: quantile(ratios, 0.5 - reach),
      high: quantile(ratios, 0.5 + reach),
    };
  } finally {
    await sandbox.close();
  }
}

if (process.argv[1] === self) await outside(process.argv[2], Number(process.argv[3]));
