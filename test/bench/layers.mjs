// What each layer of the kernel hull costs a worker, by leaving it out: `without` of the jail's plan, which is for the
// lab and for measuring alone. One zygote for each layer that is off and two with all on, of which the second shows what
// chance does; they fork in turns, and each is compared with the first within the same round. A layer that is entered
// once, in the zygote, costs a worker what inheriting it costs.
// npm run bench -- --only layers
import { readHost } from "#osjail/host";
import { planJail } from "#osjail/plan";
import { Zygote } from "#osjail/zygote-client";
import { launchEngine } from "#server/hull";
import { childrenOf, median, quantile, shuffled, takeTurns, threadCpuMs } from "./measures.mjs";

const ALL_ON = "all layers";
const CONTROL = "all layers, a second time";
const MEMORY_MB = 64;

/**
 * Not among them: the user and mount namespaces and the other uid, without which no zygote stands; core scheduling and
 * speculation, which are off unless asked for and so are switched on instead.
 */
const OFF = [
  "pid-namespace",
  "net-namespace",
  "ipc-namespace",
  "uts-namespace",
  "cgroup-namespace",
  "time-namespace",
  "namespace-limits",
  "session-keyring",
  "empty-root",
  "capabilities",
  "no-new-privs",
  "landlock",
  "sealed-code",
  "mdwe",
  "not-dumpable",
  "rlimits",
  "cgroup",
  "seccomp",
];

const VARIANTS = [
  { name: ALL_ON },
  { name: CONTROL },
  ...OFF.map((layer) => ({ name: layer, sign: -1, without: [layer] })),
  { name: "all of these", sign: -1, without: OFF },
  { name: "core-scheduling", sign: 1, asked: { coreScheduling: true } },
  { name: "speculation", sign: 1, asked: { speculation: true } },
];

function planOf({ without = [], asked = {} }, engine, host) {
  return planJail(host.facts, {
    profile: engine,
    requireCgroup: false,
    slots: 2,
    maxMemoryBytes: 2 * MEMORY_MB * 2 ** 20,
    coreScheduling: false,
    speculation: false,
    ...asked,
    without,
  });
}

async function start(variant, engine, host) {
  const plan = planOf(variant, engine, host);
  const keeper = await launchEngine(engine, "fast-start", "thread", host);
  const zygote = await Zygote.start(plan, { plan, memoryMb: MEMORY_MB, stackKb: 256 }, keeper);
  const [pid] = childrenOf(zygote.pid); // its keeper's one child
  return { name: variant.name, zygote, pid, cpuMs: [] };
}

/** From the order to fork until the worker says that it is parked. */
async function forkAndPark(variant) {
  variant.zygoteCpuMs = threadCpuMs(variant.pid);
  const worker = variant.zygote.fork();
  if (worker === undefined) throw new Error(`${variant.name}: no slot is free`);
  variant.worker = worker;
  await new Promise((resolve, reject) => {
    worker.socket.once("data", resolve);
    worker.socket.once("close", () =>
      reject(new Error(`${variant.name}: the worker ended before it parked`)),
    );
  });
}

/** And its end, which is not timed but costs CPU: the worker's own, and the zygote's for clone, tracing and burial. */
async function bury(variant) {
  const { worker } = variant;
  const bytes = 2 * MEMORY_MB * 2 ** 20;
  variant.zygote.attest(worker, { dataBytes: bytes, cgroupBytes: bytes, cpuSeconds: 10 }); // takes its pidfd
  worker.kill();
  const { cpuMs } = await worker.exited;
  worker.socket.destroy();
  variant.cpuMs.push(cpuMs + threadCpuMs(variant.pid) - variant.zygoteCpuMs);
}

/** The median of paired differences, and between which of them it lies with a probability of 95 % (order statistics). */
function difference(list, base, sign) {
  const pairs = list.map((value, i) => sign * (value - base[i]));
  const reach = 0.98 / Math.sqrt(pairs.length);
  return { median: median(pairs), low: quantile(pairs, 0.5 - reach), high: quantile(pairs, 0.5 + reach) };
}

/** Of one generation of zygotes: fork to parked and CPU, by variant. What cannot be started is told to `refuse`. */
async function generation(wanted, rounds, { engine, host, refuse, betweenRounds }) {
  const variants = [];
  try {
    for (const variant of shuffled(wanted)) {
      try {
        variants.push(await start(variant, engine, host));
      } catch (error) {
        if (variant.name === ALL_ON) throw error;
        refuse(variant, error.message);
      }
    }
    const contenders = variants.map((variant) => ({
      name: variant.name,
      settle: () => bury(variant),
      variant,
    }));
    const wall = await takeTurns(contenders, rounds, ({ variant }) => forkAndPark(variant), betweenRounds);
    return variants.map(({ name, cpuMs }) => ({ name, wallMs: wall[name], cpuMs: cpuMs.slice(-rounds) }));
  } finally {
    await Promise.all(variants.map(({ zygote }) => zygote.stop()));
  }
}

/**
 * Milliseconds; `costMs` and `costCpuMs` are what the layer adds. Zygotes that should be alike differ by where their
 * memory happens to lie: so there are several generations, started in another order each time.
 */
export async function layerCosts({ rounds = 60, generations = 3, engine = "quickjs", betweenRounds } = {}) {
  const host = readHost(process.env);
  const figures = new Map(VARIANTS.map((variant) => [variant, { wallMs: [], cpuMs: [] }]));
  const refused = [];
  const refuse = (variant, why) => {
    figures.delete(variant);
    refused.push({ layer: variant.name, why });
  };
  const awake = setInterval(() => {}, 1e6); // sockets of parked workers keep nobody's process alive
  for (let i = 0; i < generations; i++) {
    const wanted = [...figures.keys()];
    const each = Math.ceil(rounds / generations);
    for (const { name, wallMs, cpuMs } of await generation(wanted, each, {
      engine,
      host,
      refuse,
      betweenRounds,
    })) {
      const all = figures.get(VARIANTS.find((variant) => variant.name === name));
      all.wallMs.push(...wallMs);
      all.cpuMs.push(...cpuMs);
    }
  }
  clearInterval(awake);
  const base = figures.get(VARIANTS[0]);
  const states = planOf(VARIANTS[0], engine, host).layers;
  return {
    engine,
    rounds: base.wallMs.length,
    generations,
    allOn: { parkedMs: median(base.wallMs), cpuMs: median(base.cpuMs) },
    layers: [...figures].slice(1).map(([{ name, sign = 1 }, { wallMs, cpuMs }]) => ({
      layer: name,
      absent: states.some(({ layer, state }) => layer === name && state === "absent"),
      costMs: difference(wallMs, base.wallMs, sign),
      costCpuMs: difference(cpuMs, base.cpuMs, sign),
    })),
    refused,
    raw: Object.fromEntries([...figures].map(([{ name }, lists]) => [name, lists])),
  };
}

export function printLayers({ engine, rounds, generations, allOn, layers, refused }, print = console.log) {
  const ms = (value) => `${value >= 0 ? "+" : ""}${value.toFixed(3)}`;
  const cost = ({ median, low, high }) => `${ms(median).padStart(7)} (${ms(low)} .. ${ms(high)})`.padEnd(28);
  print(
    `\nWhat each kernel layer adds to one worker, ms (${engine}, ${rounds} rounds over ${generations} generations of zygotes, paired; in brackets 95 %).\n` +
      `All on: ${allOn.parkedMs.toFixed(2)} from fork to parked, ${allOn.cpuMs.toFixed(2)} of CPU in zygote and worker.\n`,
  );
  print(`${"layer".padEnd(28)} ${"fork to parked".padEnd(28)} CPU of zygote and worker`);
  for (const { layer, absent, costMs, costCpuMs } of layers) {
    const what = absent ? `${layer} (absent here)` : layer;
    print(`${what.padEnd(28)} ${cost(costMs)} ${cost(costCpuMs)}`);
  }
  for (const { layer, why } of refused) print(`${layer.padEnd(28)} cannot be switched here: ${why}`);
}
