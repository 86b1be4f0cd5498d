// Hours of mixed load over one sandbox: honest and hostile scripts, several at once. npm run soak -- --minutes 60 | --runs 10000
// Fails (exit code 1) when a run's outcome is not of its class, when anything grows by more than its bound, and when
// something is left at the end. Ctrl-C ends it in order, with what it has. --chaos kills the zygote from time to time.
import fs from "node:fs";
import { parseArgs } from "node:util";
import { Sandbox } from "doublehull";
import { capability, kv, method } from "doublehull/hostapi";
import { answer } from "./doublehull.mjs";
import { cgroupTrees, descriptors, family, memoryOf } from "./processes.mjs";

const { values: args } = parseArgs({
  options: {
    minutes: { type: "string" },
    runs: { type: "string" },
    concurrent: { type: "string", default: "6" },
    engine: { type: "string", default: "quickjs" },
    seed: { type: "string", default: "1" },
    chaos: { type: "boolean", default: false },
    json: { type: "string" },
  },
});
const MAX_RUNS = args.runs === undefined ? Infinity : Number(args.runs);
const UNTIL = performance.now() + 60_000 * Number(args.minutes ?? (args.runs === undefined ? 60 : 1e6));
const CONCURRENT = Number(args.concurrent);
const CHAOS_EVERY_MS = 15_000;
const SAMPLE_EVERY_MS = 4000;

/**
 * Growth per 1000 runs that is still none, and what it is of. A line over the samples varies with the host; a leak of one
 * object of 1 KiB a run, or of a descriptor in a hundred, is over it.
 */
const BOUNDS = {
  heapKib: { bound: 300, what: "JavaScript heap of the supervisor after a collection" },
  externalKib: { bound: 300, what: "buffers of the supervisor" },
  supervisorKib: { bound: 2000, what: "private memory of the supervisor" },
  zygoteKib: { bound: 500, what: "private memory of zygotes" },
  keeperKib: { bound: 500, what: "private memory of keepers" },
  descriptors: { bound: 3, what: "descriptors of the supervisor" },
  zygoteDescriptors: { bound: 3, what: "descriptors of zygotes" },
  processes: { bound: 1, what: "processes" },
  cgroups: { bound: 1, what: "trees of cgroups" },
};

// -- the load ----------------------------------------------------------------------------------------------------------

const echo = capability("echo", {
  back: answer,
  fail: method({
    doc: "Throws.",
    params: {},
    effect: "read",
    run: () => {
      throw new Error("as asked");
    },
  }),
  never: method({ doc: "No answer.", params: {}, effect: "read", run: () => new Promise(() => {}) }),
});
const short = { wallMs: 150, cpuMs: 150 };
const grants = { echo };

/**
 * [weight, source, options, accepted outcomes]. An outcome is a status, or for a stop its reason. Deadlines are accepted
 * wherever a busy host may meet them before the other limit.
 */
const LOAD = {
  trivial: [30, "export default () => 1 + 1", {}, ["ok"]],
  input: [6, "export default ({ list }) => list.map((n) => n * 2)", { input: { list: [1, 2, 3] } }, ["ok"]],
  logging: [4, "export default () => { for (let i = 0; i < 50; i++) console.log('line', i); }", {}, ["ok"]],
  timers: [
    4,
    "export default async () => { await new Promise((go) => setTimeout(go, 5)); return 1; }",
    {},
    ["ok"],
  ],
  typescript: [
    3,
    "export default (n: number): number => (n satisfies number) + 1",
    { language: "typescript" },
    ["ok", "threw"],
  ],
  kv: [
    4,
    "export default async (_, env) => { await env.kv.set('a', 1); return env.kv.increment('n'); }",
    { grants: () => ({ kv: kv({ namespace: "soak" }) }) },
    ["ok"],
  ],
  calls: [
    6,
    "export default async (_, env) => { let n = 0; for (let i = 0; i < 20; i++) n += await env.echo.back(i); return n; }",
    { grants },
    ["ok"],
  ],
  parallel: [
    3,
    "export default async (_, env) => (await Promise.all(Array.from({ length: 64 }, (_, i) => env.echo.back(i)))).length",
    { grants },
    ["ok"],
  ],
  failing: [3, "export default async (_, env) => env.echo.fail()", { grants }, ["threw"]],
  throwing: [4, "export default () => { throw new TypeError('x'); }", {}, ["threw"]],
  syntax: [2, "export default (", {}, ["threw"]],
  loop: [3, "export default () => { for (;;); }", { limits: short }, ["wall-time", "cpu-time"]],
  microtasks: [
    2,
    "const again = () => Promise.resolve().then(again); export default again",
    { limits: short },
    ["wall-time", "cpu-time"],
  ],
  native: [
    2,
    "export default () => Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)",
    { limits: short },
    ["wall-time", "cpu-time"],
  ],
  memory: [
    2,
    "const all = []; export default () => { for (;;) all.push(new Uint8Array(1e6).fill(7)); }",
    { limits: { wallMs: 1000 } },
    ["memory", "threw", "wall-time", "cpu-time"],
  ],
  strings: [
    2,
    "export default () => { let s = 'x'; for (;;) s += s; }",
    { limits: { wallMs: 1000 } },
    ["memory", "threw", "wall-time", "cpu-time"],
  ],
  recursion: [3, "const f = () => f() + 1; export default f", {}, ["stack", "threw"]],
  nested: [2, `export default () => ${"[".repeat(20_000)}`, {}, ["stack", "threw", "crash"]],
  logs: [
    2,
    "export default () => { for (;;) console.log('x'.repeat(1000)); }",
    { limits: short },
    ["wall-time", "cpu-time"],
  ],
  callFlood: [
    2,
    "export default async (_, env) => { for (;;) await Promise.all(Array.from({ length: 64 }, () => env.echo.back('x'.repeat(1000)))); }",
    { grants },
    ["host-calls", "wall-time", "cpu-time", "threw"],
  ],
  callBomb: [
    2,
    "export default (_, env) => { for (;;) env.echo.back('x'); }",
    { grants, limits: short },
    ["host-calls", "wall-time", "cpu-time", "memory", "threw"],
  ],
  hugeResult: [2, "export default () => 'x'.repeat(3e6)", {}, ["output", "threw"]],
  promises: [
    2,
    "export default async () => (await Promise.all(Array.from({ length: 20_000 }, async (_, i) => i))).length",
    {},
    ["ok", "wall-time"],
  ],
  deadlock: [2, "export default () => new Promise(() => {})", {}, ["deadlock"]],
  unanswered: [
    2,
    "export default async (_, env) => env.echo.never()",
    { grants, limits: short },
    ["wall-time"],
  ],
  cancelled: [4, "export default () => { for (;;); }", { abort: true }, ["cancelled"]],
  cancelledWaiting: [
    2,
    "export default async (_, env) => env.echo.never()",
    { grants, abort: true },
    ["cancelled"],
  ],
  recorded: [
    2,
    "export default async (_, env) => env.echo.back(Math.random())",
    { grants, record: true },
    ["ok"],
  ],
};

/** Numbers that a seed repeats. Marsaglia, "Xorshift RNGs", 2003 */
function random(seed) {
  let state = seed | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
const next = random(Number(args.seed) * 2654435761);
const total = Object.values(LOAD).reduce((sum, [weight]) => sum + weight, 0);
function draw() {
  let at = next() * total;
  for (const [name, [weight]] of Object.entries(LOAD)) if ((at -= weight) < 0) return name;
  return "trivial";
}

const wordOf = (outcome) => (outcome.status === "stopped" ? outcome.stop.reason : outcome.status);

/** One signal for many runs, as a service has that drains: listeners must not pile up on it. */
const neverAborted = new AbortController().signal;

async function once(sandbox, name, chaos) {
  const [, source, { abort, grants: wanted, ...options }, accepted] = LOAD[name];
  const controller = abort ? new AbortController() : undefined;
  const timer = abort ? setTimeout(() => controller.abort(new Error("enough")), 5 + 40 * next()) : undefined;
  const outcome = await sandbox.run(source, {
    ...options,
    tenant: `tenant-${Math.floor(4 * next())}`,
    grants: typeof wanted === "function" ? wanted() : (wanted ?? {}),
    signal: controller?.signal ?? neverAborted,
    ...(name === "logging" && { onLog: () => {} }),
  });
  clearTimeout(timer);
  const word = wordOf(outcome);
  if (accepted.includes(word) || (chaos && word === "lost")) return { word };
  return {
    word,
    unexpected: `${name} ended as ${word}: ${JSON.stringify(outcome.stop ?? outcome.error ?? outcome.value)}`,
  };
}

// -- what is watched ---------------------------------------------------------------------------------------------------

const everyTree = new Set();

function sample(runs) {
  globalThis.gc?.();
  globalThis.gc?.();
  const { heapUsed, external, arrayBuffers } = process.memoryUsage();
  const { keepers, zygotes, workers } = family();
  const privateOf = (pids) => pids.reduce((sum, pid) => sum + memoryOf(pid).private, 0);
  const trees = cgroupTrees(keepers);
  for (const tree of trees) everyTree.add(tree);
  return {
    runs,
    heapKib: heapUsed / 1024,
    externalKib: (external + arrayBuffers) / 1024,
    supervisorKib: memoryOf(process.pid).private,
    zygoteKib: privateOf(zygotes),
    keeperKib: privateOf(keepers),
    descriptors: descriptors(),
    zygoteDescriptors: zygotes.reduce((sum, pid) => sum + descriptors(pid), 0),
    processes: keepers.length + zygotes.length + workers.length,
    cgroups: trees.length,
  };
}

/** Least squares: growth per 1000 runs. */
function slope(points) {
  const mean = (of) => points.reduce((sum, point) => sum + of(point), 0) / points.length;
  const [meanX, meanY] = [mean(([x]) => x), mean(([, y]) => y)];
  let [over, under] = [0, 0];
  for (const [x, y] of points) {
    over += (x - meanX) * (y - meanY);
    under += (x - meanX) ** 2;
  }
  return under === 0 ? 0 : (1000 * over) / under;
}

// -- the run -----------------------------------------------------------------------------------------------------------

const interrupted = new AbortController();
process.on("SIGINT", () => {
  if (interrupted.signal.aborted) process.exit(130);
  interrupted.abort();
  console.log("interrupted: ending in order");
});

const before = descriptors();
const sandbox = await Sandbox.create({
  engine: args.engine,
  image: "fast-run",
  parked: 4,
  maxConcurrent: CONCURRENT,
  typescript: true,
  limits: { wallMs: 10_000, cpuMs: 10_000 }, // a busy host must not meet it for an honest script
  recycleForks: 1_000_000_000, // a zygote's own growth is to be seen
});
await sandbox.run(LOAD.typescript[1], { language: "typescript" });

const counts = {};
const unexpected = [];
const samples = [];
const started = performance.now();
let [runs, lastSample, lastLine, lastLineRuns, lastKill, kills] = [0, 0, started, 0, started, 0];
let going = new Set();
const wait = (ms) => new Promise((go) => setTimeout(go, ms));

while (!interrupted.signal.aborted && runs < MAX_RUNS && performance.now() < UNTIL) {
  while (going.size < CONCURRENT + 4 && runs < MAX_RUNS) {
    runs++;
    const name = draw();
    const run = once(sandbox, name, args.chaos)
      .then(({ word, unexpected: words }) => {
        counts[`${name}: ${word}`] = (counts[`${name}: ${word}`] ?? 0) + 1;
        if (words !== undefined) unexpected.push(words);
      })
      .catch((error) => unexpected.push(`${name} rejected: ${error.message}`))
      .finally(() => going.delete(run));
    going.add(run);
  }
  await Promise.race(going);
  const now = performance.now();
  if (args.chaos && now - lastKill > CHAOS_EVERY_MS) {
    lastKill = now;
    kills++;
    const { zygotes } = family();
    process.kill(zygotes[Math.floor(zygotes.length * next())], "SIGKILL");
  }
  if (now - lastSample > SAMPLE_EVERY_MS) {
    // Between two bursts: what is measured then is what stays.
    await Promise.all(going);
    while ((await sandbox.state()).some(({ parked }) => parked < 4)) await wait(5);
    await wait(200);
    samples.push(sample(runs));
    lastSample = performance.now();
  }
  if (now - lastLine > 60_000) {
    const last = samples.at(-1);
    const rate = ((runs - lastLineRuns) / (now - lastLine)) * 1000;
    console.log(
      `${((now - started) / 60_000).toFixed(0)} min, ${runs} runs (${rate.toFixed(0)}/s), ${unexpected.length} unexpected, ` +
        `heap ${(last.heapKib / 1024).toFixed(1)} MB, supervisor ${(last.supervisorKib / 1024).toFixed(0)} MB, ` +
        `zygotes ${(last.zygoteKib / 1024).toFixed(1)} MB, ${last.descriptors} descriptors, ${last.processes} processes`,
    );
    [lastLine, lastLineRuns] = [now, runs];
  }
}
await Promise.all(going);
const { keepers, zygotes, workers } = family();
await sandbox.close();
const left = {
  processes: [...keepers, ...zygotes, ...workers].filter((pid) => fs.existsSync(`/proc/${pid}/ns`)).length,
  cgroups: [...everyTree].filter((tree) => fs.existsSync(tree)).length,
  descriptors: Math.max(0, descriptors() - before),
};

// -- the verdict -------------------------------------------------------------------------------------------------------

// Caches, compiled code and the heap's size settle within the first runs; a line needs a length.
const [WARM_UP_RUNS, LEAST_RUNS] = [2000, 3000];
const steady = samples.filter((one) => one.runs > Math.max(WARM_UP_RUNS, runs / 4));
const length = steady.length === 0 ? 0 : steady.at(-1).runs - steady[0].runs;
const growth = {};
const failures = [];
if (steady.length < 5 || length < LEAST_RUNS)
  console.log(
    `${steady.length} samples over ${length} runs after the warm-up: too few for a verdict on growth`,
  );
else {
  for (const [name, { bound, what }] of Object.entries(BOUNDS)) {
    // A zygote that was killed takes its memory along: between two kills there is no line to be seen.
    if (args.chaos && name.startsWith("zygote")) continue;
    growth[name] = slope(steady.map((one) => [one.runs, one[name]]));
    const over = growth[name] > bound;
    console.log(
      `${what}: ${growth[name].toFixed(1)} per 1000 runs (bound ${bound})${over ? " NOT MET" : ""}`,
    );
    if (over) failures.push(`growth: ${what}`);
  }
}
const leftovers = Object.entries(left).filter(([, count]) => count > 0);
// The libraries that the first run loads keep a few descriptors of the process.
for (const [name, count] of leftovers)
  if (name !== "descriptors" || count > 8) failures.push(`left behind: ${count} ${name}`);
for (const words of unexpected.slice(0, 20)) console.log(`UNEXPECTED: ${words}`);
if (unexpected.length > 0) failures.push(`${unexpected.length} runs ended otherwise than they should`);
const minutes = (performance.now() - started) / 60_000;
console.log(
  `${runs} runs in ${minutes.toFixed(1)} min, ${kills} zygotes killed, left behind ${JSON.stringify(left)}`,
);
console.log(failures.length === 0 ? "steady" : `FAILED: ${failures.join("; ")}`);
const report = {
  engine: args.engine,
  node: process.version,
  minutes,
  runs,
  kills,
  counts,
  unexpected,
  growth,
  left,
  samples,
};
if (args.json) fs.writeFileSync(args.json, `${JSON.stringify(report, null, 1)}\n`);
process.exitCode = failures.length === 0 ? 0 : 1;
