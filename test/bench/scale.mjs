// A thousand parked workers: what they cost, that they work, that nothing is left of them. npm run scale [-- --workers 1000]
// The bar: under 1.5 GB for 1000, page tables and kernel memory included. MemAvailable knows all of that and every other
// process of the host, too: so the sum over the workers is told beside it, and how far the host moved by itself.
import fs from "node:fs";
import { parseArgs } from "node:util";
import { Sandbox } from "doublehull";
import { availableKib, cgroupTrees, descriptors, family, memoryOf, quantile } from "./processes.mjs";

const { values: args } = parseArgs({
  options: {
    workers: { type: "string", default: "1000" },
    engine: { type: "string", default: "quickjs" },
    json: { type: "string" },
  },
});
const WORKERS = Number(args.workers);
const BAR_MB_PER_THOUSAND = 1500;

const wait = (ms) => new Promise((go) => setTimeout(go, ms));
const mb = (kib) => kib / 1024;

/** The median of a second: other processes come and go. */
async function steadyAvailable() {
  const seen = [];
  for (let i = 0; i < 10; i++, await wait(100)) seen.push(availableKib());
  return quantile(seen, 0.5);
}

const engine = args.engine;
// Code, caches and the first zygote's image are there before anything is counted.
const first = await Sandbox.create({ engine, image: "fast-run", parked: 1 });
await first.run("export default () => 1");
await first.close();
globalThis.gc?.();
const fdsBefore = descriptors();
const before = await steadyAvailable();

let start = performance.now();
const sandbox = await Sandbox.create({ engine, image: "fast-run", parked: WORKERS });
const createdMs = performance.now() - start;
const parked = async () => (await sandbox.state())[0].parked;
for (let seen = -1, at = performance.now(); (await parked()) < WORKERS; await wait(50)) {
  const now = await parked();
  if (now !== seen) [seen, at] = [now, performance.now()];
  if (performance.now() - at > 20_000) throw new Error(`only ${now} of ${WORKERS} workers park`);
}
const parkedMs = performance.now() - start - createdMs;
const { keepers, zygotes, workers } = family();
const during = await steadyAvailable();
const sizes = workers.map(memoryOf);
const of = (name) => sizes.map((size) => size[name]);
const sum = (list) => list.reduce((total, one) => total + one, 0);
const fds = { supervisor: descriptors(), keeper: descriptors(keepers[0]), zygote: descriptors(zygotes[0]) };
const trees = cgroupTrees(keepers);

start = performance.now();
const outcome = await sandbox.run("export default () => 6 * 7");
const runMs = performance.now() - start;
const burst = await Promise.all(Array.from({ length: 200 }, () => sandbox.run("export default () => 6 * 7")));
start = performance.now();
await sandbox.close();
const closedMs = performance.now() - start;
const after = await steadyAvailable();
const left = {
  processes: [...keepers, ...zygotes, ...workers].filter((pid) => fs.existsSync(`/proc/${pid}/ns`)).length,
  cgroups: trees.filter((tree) => fs.existsSync(tree)).length,
  descriptors: descriptors() - fdsBefore,
};

const report = {
  engine,
  workers: workers.length,
  user: process.getuid(),
  createdMs,
  parkedMs,
  runMs,
  closedMs,
  privateKib: { p50: quantile(of("private"), 0.5), max: quantile(of("private"), 1), sum: sum(of("private")) },
  pssKib: { p50: quantile(of("pss"), 0.5), sum: sum(of("pss")) },
  pageTablesKib: { p50: quantile(of("pageTables"), 0.5), sum: sum(of("pageTables")) },
  availableMb: mb(before - during),
  hostMovedMb: mb(before - after),
  fds,
  cgroupTrees: trees.length,
  left,
};
console.log(`${workers.length} workers of ${engine}, as user ${report.user}`);
console.log(`first zygote ${createdMs.toFixed(0)} ms, then all parked in ${parkedMs.toFixed(0)} ms`);
console.log(
  `a worker: private ${report.privateKib.p50} KiB (max ${report.privateKib.max}), PSS ${report.pssKib.p50} KiB, page tables ${report.pageTablesKib.p50} KiB`,
);
console.log(
  `all: PSS ${mb(report.pssKib.sum).toFixed(0)} MB + page tables ${mb(report.pageTablesKib.sum).toFixed(0)} MB; ` +
    `MemAvailable fell by ${report.availableMb.toFixed(0)} MB (${report.hostMovedMb.toFixed(0)} MB of it still gone after the end: not ours)`,
);
console.log(
  `descriptors: ${JSON.stringify(fds)}; a run: ${runMs.toFixed(1)} ms; closed in ${closedMs.toFixed(0)} ms`,
);
console.log(`left behind: ${JSON.stringify(left)}`);
if (args.json) fs.writeFileSync(args.json, `${JSON.stringify(report, null, 1)}\n`);

const failures = [];
if (workers.length < WORKERS) failures.push(`only ${workers.length} of ${WORKERS} workers are there`);
if (outcome.value !== 42 || burst.some(({ value }) => value !== 42))
  failures.push("a run did not give its result");
if (Object.values(left).some((count) => count > 0)) failures.push("something was left behind");
// What moved by itself may have moved either way while we looked.
const costMb = Math.min(report.availableMb, report.availableMb - report.hostMovedMb);
const busy = Math.abs(report.hostMovedMb) > 0.1 * report.availableMb;
if (busy)
  console.log("MemAvailable moved by more than a tenth by itself: too busy a host for a verdict on memory");
else if (costMb > (BAR_MB_PER_THOUSAND * WORKERS) / 1000)
  failures.push(`memory: ${costMb.toFixed(0)} MB are over the bar`);
for (const failure of failures) console.log(`NOT MET: ${failure}`);
process.exitCode = failures.length > 0 ? 1 : 0;
