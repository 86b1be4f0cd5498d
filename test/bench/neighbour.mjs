// How much one tenant at all its limits shifts another's trivial runs. npm run neighbour [-- --rounds 10 --engine quickjs]
// The same measured alone and beside the noise in turns, in one sandbox. The bar: p50 beside it below twice p50 alone.
import fs from "node:fs";
import os from "node:os";
import { parseArgs } from "node:util";
import { Sandbox } from "doublehull";
import { capability } from "doublehull/hostapi";
import { answer } from "./doublehull.mjs";
import { quantile } from "./processes.mjs";

const { values: args } = parseArgs({
  options: {
    rounds: { type: "string", default: "10" },
    runs: { type: "string", default: "40" },
    concurrent: { type: "string" },
    noise: { type: "string", default: "cpu,memory,log,calls" },
    engine: { type: "string", default: "quickjs" },
    json: { type: "string" },
  },
});
const BAR = 2;
const wait = (ms) => new Promise((go) => setTimeout(go, ms));

const echo = capability("echo", { back: answer });
/** Each goes on until a limit ends it. */
const NOISES = {
  cpu: "export default () => { for (;;); }",
  memory: "const all = []; export default () => { for (;;) all.push(new Uint8Array(1e6).fill(7)); }",
  log: "export default () => { for (;;) console.log('x'.repeat(1000)); }",
  calls:
    "export default async (_, env) => { for (;;) await Promise.all(Array.from({ length: 64 }, () => env.echo.back('x'.repeat(1000)))); }",
};
const noises = args.noise.split(",").map((name) => NOISES[name]);

const maxConcurrent = Number(args.concurrent ?? Math.max(4, 2 * os.availableParallelism()));
const sandbox = await Sandbox.create({
  engine: args.engine,
  image: "fast-run",
  maxConcurrent,
  limits: { hostCalls: 1_000_000 },
});

async function quietRuns(count) {
  const times = [];
  for (let i = 0; i < count; i++) {
    const start = performance.now();
    const outcome = await sandbox.run("export default () => 1 + 1", { tenant: "quiet" });
    times.push(performance.now() - start);
    if (outcome.value !== 2)
      throw new Error(`a quiet run ended as ${JSON.stringify(outcome.stop ?? outcome.status)}`);
    await wait(5);
  }
  return times;
}

/** Keeps more runs waiting than there are slots, all the time. */
function makeNoise() {
  const over = new AbortController();
  let runs = 0;
  const loop = async (from) => {
    for (let at = from; !over.signal.aborted; at++) {
      await sandbox.run(noises[at % noises.length], {
        tenant: "noisy",
        grants: { echo },
        signal: over.signal,
      });
      runs++;
    }
  };
  const loops = Array.from({ length: 3 * maxConcurrent }, (_, at) => loop(at));
  return async () => {
    over.abort();
    await Promise.all(loops);
    return runs;
  };
}

await quietRuns(20);
const alone = [];
const beside = [];
let noisyRuns = 0;
for (let round = 0; round < Number(args.rounds); round++) {
  alone.push(...(await quietRuns(Number(args.runs))));
  const end = makeNoise();
  await wait(300);
  beside.push(...(await quietRuns(Number(args.runs))));
  noisyRuns += await end();
  await wait(200);
}
await sandbox.close();

const figures = (list) => ({ p50: quantile(list, 0.5), p99: quantile(list, 0.99), max: quantile(list, 1) });
const report = {
  engine: args.engine,
  maxConcurrent,
  noisyRuns,
  alone: figures(alone),
  beside: figures(beside),
};
const words = ({ p50, p99, max }) =>
  `p50 ${p50.toFixed(2)} ms, p99 ${p99.toFixed(2)} ms, max ${max.toFixed(1)} ms`;
console.log(`alone:  ${words(report.alone)}`);
console.log(`beside: ${words(report.beside)} (${noisyRuns} noisy runs, ${maxConcurrent} slots)`);
const shift = report.beside.p50 / report.alone.p50;
console.log(
  `p50 shift ${shift.toFixed(2)} (bar below ${BAR}: ${shift < BAR ? "met" : "NOT MET"}), p99 shift ${(report.beside.p99 / report.alone.p99).toFixed(2)}`,
);
if (args.json)
  fs.writeFileSync(args.json, `${JSON.stringify({ ...report, raw: { alone, beside } }, null, 1)}\n`);
process.exitCode = shift < BAR ? 0 : 1;
