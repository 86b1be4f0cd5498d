// Speed, CPU and memory beside the peers, in one run. What is compared takes turns, medians are quoted, raw figures are
// kept with the host and the date, and where the host was too busy meanwhile there is no verdict. npm run bench [-- --help]
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { spawn, spawnSync } from "node:child_process";
import { parseArgs } from "node:util";
import { callCount } from "#osjail/plan";
import { ENGINES, startDoublehull } from "./doublehull.mjs";
import { layerCosts, printLayers } from "./layers.mjs";
import {
  adoptOrphans,
  describeHost,
  HostWatch,
  median,
  memAvailableKb,
  now,
  pause,
  shuffled,
  startEcho,
  takeTurns,
  treeCpuMs,
  treeMemoryKb,
} from "./measures.mjs";
import { installPeers, PEERS } from "./peers.mjs";
import { judge, printTables } from "./report.mjs";
import { scriptSpeed } from "./speed.mjs";
import { HOST_CALLS, hostCallWorkloads, runRight, TRIVIAL, WORKLOADS } from "./workloads.mjs";

const AT_ONCE = 50;

// -- what is measured --------------------------------------------------------------------------------------------------

/** The sections, in order. Each is given everything and returns its raw figures. */
const SECTIONS = {
  /** One trivial script at a time, request to answer; then doublehull and the echo alone, for their tails. */
  async latency({ ours, all, echo, rounds, watch }) {
    const act = (contender) => (contender === echo ? echo.run() : runRight(contender, TRIVIAL));
    return {
      ms: await takeTurns([echo, ...all], rounds, act, watch.sample),
      tailMs: await takeTurns([echo, ...ours], 2 * rounds, act),
    };
  },

  async workloads({ all, rounds, watch }) {
    const figures = {};
    for (const workload of WORKLOADS) {
      const wanted = Math.max(3, Math.round(rounds * workload.share));
      const act = (contender) => runRight(contender, workload);
      figures[workload.name] = await takeTurns(all, wanted, act, watch.sample);
    }
    return figures;
  },

  /** 50 requests in one go, until the last has its answer. */
  async "at-once"({ all, rounds, watch }) {
    const act = (contender) =>
      Promise.all(Array.from({ length: AT_ONCE }, () => runRight(contender, TRIVIAL)));
    const slower = all.map((contender) => ({ ...contender, every: contender.every && 3 }));
    return takeTurns(slower, Math.max(3, Math.round(rounds * 0.03)), act, watch.sample);
  },

  /** Microseconds a call, less what the run costs without one; and 4 MB there and back in one call. */
  async "host-calls"({ ours, all, echo, rounds, watch }) {
    const wanted = Math.max(5, Math.round(rounds / 20));
    const figures = {};
    for (const kind of ["none", "oneByOne", "parallel"]) {
      const taking = all.filter(({ hostCalls }) => hostCalls && hostCallWorkloads(hostCalls)[kind]);
      const act = (contender) => runRight(contender, hostCallWorkloads(contender.hostCalls)[kind]);
      figures[kind] = await takeTurns(taking, wanted, act, watch.sample);
    }
    const usPerCall = (kind) =>
      Object.fromEntries(
        Object.entries(figures[kind]).map(([name, list]) => [
          name,
          ((median(list) - median(figures.none[name])) * 1000) / HOST_CALLS,
        ]),
      );
    const large = {
      name: "host calls of 4 MB",
      body: "const bytes = new Uint8Array(4e6); return (await env.back.answer(bytes)).length",
      right: (value) => value === 4e6,
    };
    const echoes = [];
    for (let i = 0; i < wanted; i++) {
      const start = now();
      for (let call = 0; call < HOST_CALLS; call++) await echo.run();
      echoes.push(((now() - start) * 1000) / HOST_CALLS);
    }
    return {
      ms: figures,
      us: { oneByOne: usPerCall("oneByOne"), parallel: usPerCall("parallel") },
      echoUs: echoes,
      largeMs: await takeTurns(ours, wanted, (contender) => runRight(contender, large), watch.sample),
    };
  },

  /** As many as go, in windows of a second; with the CPU that the whole process tree used for them. */
  async saturated({ all, watch }) {
    const windows = Object.fromEntries(all.map(({ name }) => [name, []]));
    for (let round = 0; round < 3; round++) {
      await watch.sample();
      for (const contender of shuffled(all)) {
        const { name, run, settle, atOnce = 1 } = contender;
        const cpu = treeCpuMs();
        const start = now();
        let done = 0;
        const lane = async () => {
          for (; now() < start + 1000; done++) await run(TRIVIAL);
        };
        await Promise.all(Array.from({ length: atOnce }, lane));
        const seconds = (now() - start) / 1000;
        await settle?.();
        await pause(20); // the last ones are buried: their CPU counts then
        windows[name].push({ done, seconds, cpuMs: treeCpuMs() - cpu });
      }
    }
    return windows;
  },

  /**
   * What each further idle sandbox costs beyond the first: KiB of the process tree, and of what the host can still give.
   * In processes of their own, where no earlier run has left memory to be used again. With one, with many, and with one
   * again: what the second difference is off tells what others did to the host's memory meanwhile.
   */
  async memory({ all, watch }) {
    const figures = {};
    for (const { name, key, idle } of all.filter((contender) => contender.idle)) {
      const seen = [];
      for (const count of [1, idle.many, 1]) {
        seen.push(await withIdle(key, count));
        await watch.sample();
      }
      const [one, many, again] = seen;
      const each = (what) => (many[what] - (one[what] + again[what]) / 2) / (idle.many - 1);
      figures[name] = {
        count: idle.many,
        privateKb: each("privateKb"),
        pssKb: each("pssKb"),
        medianPrivateKb: many.medianPrivateKb,
        totalKb: -each("availableKb"),
        totalOffKb: Math.abs(one.availableKb - again.availableKb) / (idle.many - 1),
      };
    }
    return figures;
  },

  /** Nothing is running, and then there is a first result. */
  async cold({ all, watch }) {
    const starting = all.filter(({ cold }) => cold).map(({ name, cold }) => ({ name, cold }));
    const act = ({ name, cold: [command, ...args] }) => {
      const { status, stderr } = spawnSync(command, args, {
        stdio: ["ignore", "ignore", "pipe"],
        encoding: "utf8",
      });
      if (status !== 0) throw new Error(`cold start of ${name}: ${stderr}`);
    };
    return takeTurns(starting, 8, act, watch.sample);
  },

  /** In the jail and out of it, the same engine with the same flags. */
  async speed({ ours, watch }) {
    const figures = {};
    for (const { name, engine } of ours) figures[name] = await scriptSpeed(engine, { between: watch.sample });
    return figures;
  },

  async layers({ ours, rounds, watch }) {
    const engine = ours[0]?.engine ?? "quickjs";
    return layerCosts({ engine, rounds: Math.max(60, Math.ceil(rounds * 0.3)), betweenRounds: watch.sample });
  },
};

async function withIdle(key, count) {
  const argv = [
    "--no-node-snapshot",
    "--expose-gc",
    path.join(import.meta.dirname, "once.mjs"),
    key,
    String(count),
  ];
  const child = spawn(process.execPath, argv, { stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  await new Promise((resolve, reject) => {
    child.stdout.once("data", resolve);
    child.once("exit", () => reject(new Error(`${key} with ${count} idle sandboxes ended at once`)));
  });
  await pause(200);
  const seen = { ...treeMemoryKb(child.pid), availableKb: memAvailableKb() };
  child.stdin.end();
  await ended;
  return seen;
}

// -- what was asked ----------------------------------------------------------------------------------------------------

const HELP = `Usage: npm run bench -- [options]

Measures doublehull beside its peers, in one run of about five minutes. The first run installs the peers
in test/bench/peers. bubblewrap, socat and ripgrep are used where they are on PATH (Debian's packages of that name).

  --rounds N       rounds of the trivial script; the others follow (default 200)
  --only LIST      these sections alone: ${Object.keys(SECTIONS).join(", ")}
  --engine LIST    these engines of doublehull: ${ENGINES.join(", ")}
  --no-peers       doublehull, the socket echo and node -e alone
  --json FILE      where the raw figures go (default: a file in ${os.tmpdir()})
  --help
`;

class UsageError extends Error {}

function parseOptions(args) {
  try {
    return parseArgs({
      args,
      options: {
        rounds: { type: "string", default: "200" },
        only: { type: "string" },
        engine: { type: "string" },
        "no-peers": { type: "boolean", default: false },
        json: { type: "string" },
        help: { type: "boolean", default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError(error.message.split(". ", 1)[0], { cause: error });
  }
}

function parse(argv) {
  const values = parseOptions(argv);
  const list = (name, known) => {
    const wanted = values[name]?.split(",") ?? known;
    const wrong = wanted.find((one) => !known.includes(one));
    if (wrong !== undefined) throw new UsageError(`--${name} ${wrong}: there are ${known.join(", ")}`);
    return known.filter((one) => wanted.includes(one));
  };
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 10 || rounds > 100_000) {
    throw new UsageError(`--rounds ${values.rounds}: give a whole number from 10 to 100000`);
  }
  const day = new Date().toISOString().replaceAll(":", "").slice(0, 15);
  const json = values.json ?? path.join(os.tmpdir(), `doublehull-bench-${day}.json`);
  if (!fs.existsSync(path.dirname(path.resolve(json)))) {
    throw new UsageError(`--json ${json}: there is no such directory`);
  }
  return {
    help: values.help,
    rounds,
    sections: list("only", Object.keys(SECTIONS)),
    engines: list("engine", ENGINES),
    peers: !values["no-peers"],
    json,
  };
}

/** Starts what is there; each has to give the right answer to every workload once before it may be measured. */
async function startAll(kinds, absent) {
  const started = [];
  for (const [key, start, name = key] of kinds) {
    let contender;
    try {
      contender = { key, ...(await start()) };
      for (const workload of [TRIVIAL, ...WORKLOADS]) await runRight(contender, workload);
      started.push(contender);
    } catch (error) {
      await contender?.stop();
      absent.push({ name, why: String(error.message).split("\n", 1)[0] });
    }
  }
  return started;
}

async function main(argv) {
  const asked = parse(argv);
  if (asked.help) return void process.stdout.write(HELP);
  const alone = asked.sections.every((section) => section === "speed" || section === "layers");
  if (asked.peers && !alone) installPeers();
  const report = { host: describeHost(), rounds: asked.rounds, absent: [], noise: {}, figures: {} };
  const begun = now();
  adoptOrphans();
  const echo = await startEcho();
  const watch = new HostWatch(echo);
  const ours = await startAll(
    asked.engines.map((engine) => [engine, () => startDoublehull(engine), `doublehull ${engine}`]),
    report.absent,
  );
  const peers = await startAll(
    Object.entries(PEERS).filter(([key]) => !alone && (asked.peers || key === "plainNode")),
    report.absent,
  );
  const all = [...ours, ...peers];
  try {
    for (const section of asked.sections) {
      process.stderr.write(`${section} ... `);
      const act = () => SECTIONS[section]({ ours, all, echo, rounds: asked.rounds, watch });
      report.figures[section] = await watch.during(section, act);
      process.stderr.write(`${watch.sections[section].seconds.toFixed(0)} s\n`);
    }
  } finally {
    await Promise.all(all.map((contender) => contender.stop()));
    echo.stop();
  }
  report.noise = watch.sections;
  report.engines = Object.fromEntries(
    ours.map(({ name, engine }) => [name, { engine, calls: callCount(engine) }]),
  );
  report.seconds = (now() - begun) / 1000;
  report.bars = judge(report, watch.tooBusy);
  printTables(
    report,
    all.map(({ name }) => name),
  );
  if (report.figures.layers) printLayers(report.figures.layers);
  fs.writeFileSync(asked.json, `${JSON.stringify(report, null, 1)}\n`);
  console.log(`\n${report.seconds.toFixed(0)} s; raw figures: ${asked.json}`);
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  console.error(`bench: ${error.message}\nTry npm run bench -- --help`);
  process.exitCode = 2;
}
