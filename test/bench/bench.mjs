// Speed beside the peers, in one run, as ratios. npm run bench [-- --rounds 300] [--json FILE]
// What is compared takes turns, so that whatever else the machine does meets all of them; medians are quoted, raw
// figures kept. A run whose peers vary too much among themselves says so instead of giving a verdict.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";
import { getQuickJS } from "quickjs-emscripten";
import { z } from "zod";
import { Sandbox } from "doublehull";
import { capability, method } from "#hostapi/capability";

const here = path.dirname(fileURLToPath(import.meta.url));
const { values: args } = parseArgs({
  options: {
    rounds: { type: "string", default: "300" },
    json: { type: "string" },
    "no-peers": { type: "boolean" },
  },
});
const ROUNDS = Number(args.rounds);
const SCRIPT = "export default () => 1 + 1";

const quantile = (list, q) =>
  [...list].sort((a, b) => a - b)[Math.min(list.length - 1, Math.floor(list.length * q))];
const now = () => performance.now();

async function timed(run) {
  const start = now();
  await run();
  return now() - start;
}

// -- the peers ---------------------------------------------------------------------------------------------------------

function isolatedVm() {
  const home = path.join(here, "peers");
  if (!fs.existsSync(path.join(home, "node_modules/isolated-vm"))) {
    console.error("installing isolated-vm beside the bench (it may have to compile: a minute)");
    spawnSync("npm", ["install", "--no-audit", "--no-fund", "--no-package-lock"], {
      cwd: home,
      stdio: "ignore",
    });
  }
  try {
    return createRequire(path.join(home, "package.json"))("isolated-vm");
  } catch (error) {
    console.error(`isolated-vm is not available (${error.message.split("\n")[0]}): its rows are left out`);
    return undefined;
  }
}

function freshIsolate(ivm) {
  const isolate = new ivm.Isolate({ memoryLimit: 64 });
  const context = isolate.createContextSync();
  isolate.compileScriptSync("1 + 1").runSync(context);
  isolate.dispose();
}

// Node's event loop to a synchronous child and back, 64 bytes: the floor for anything that asks another process.
async function echoPeer() {
  const code =
    "const fs=require('fs');const b=Buffer.alloc(64);for(;;){const n=fs.readSync(3,b);if(!n)break;fs.writeSync(3,b,0,n)}";
  const child = spawn(process.execPath, ["-e", code], { stdio: ["ignore", "ignore", "inherit", "pipe"] });
  const socket = child.stdio[3];
  const message = Buffer.alloc(64);
  let answer;
  socket.on("data", () => answer());
  const echo = () => new Promise((resolve) => ((answer = resolve), socket.write(message)));
  await echo();
  return { echo, end: () => child.kill("SIGKILL") };
}

// -- what is measured --------------------------------------------------------------------------------------------------

async function latency(sandbox, quickjs, ivm, echo) {
  const contenders = {
    doublehull: () => sandbox.run(SCRIPT),
    echo: () => echo(),
    "quickjs context": () => quickjs.newContext().dispose(),
    ...(ivm && { "isolated-vm isolate": () => freshIsolate(ivm) }),
  };
  const samples = Object.fromEntries(Object.keys(contenders).map((name) => [name, []]));
  for (let i = -20; i < ROUNDS; i++) {
    for (const [name, run] of Object.entries(contenders)) {
      const ms = await timed(run);
      if (i >= 0) samples[name].push(ms);
    }
    // The pool parks the next worker meanwhile, as it does between the requests of a service.
    await parked(sandbox);
  }
  return samples;
}

// Calls of a capability that does nothing: what the way there and back costs, in microseconds a call.
async function hostCalls(echo) {
  const CALLS = 1000;
  const answer = method({
    doc: "Its argument.",
    params: { value: z.unknown() },
    effect: "read",
    run: ({ value }) => value,
  });
  const grants = { back: capability("back", { answer }) };
  const limits = { wallMs: 60_000, cpuMs: 60_000, hostCalls: CALLS, callBytes: 4_194_304 };
  const sandbox = await Sandbox.create({ image: "fast-run", parked: 2, limits });
  const scripts = {
    "one after another": `for (let i = 0; i < ${CALLS}; i++) await env.back.answer(i)`,
    "in parallel": `await Promise.all(Array.from({ length: ${CALLS} }, (_, i) => env.back.answer(i)))`,
    "4 MB there and back": "await env.back.answer(bytes)",
    nothing: "",
  };
  const figures = { echo: [], ...Object.fromEntries(Object.keys(scripts).map((name) => [name, []])) };
  for (let round = 0; round < Math.max(10, ROUNDS / 15); round++) {
    for (const [name, body] of Object.entries(scripts)) {
      const source = `const bytes = new Uint8Array(4e6); export default async (_, env) => { ${body} }`;
      const outcome = await sandbox.run(source, { grants });
      if (outcome.status !== "ok")
        throw new Error(`${name}: ${JSON.stringify(outcome.stop ?? outcome.error)}`);
      figures[name].push((outcome.usage.wallMs * 1000) / (name.startsWith("4 MB") ? 1 : CALLS));
    }
    figures.echo.push(
      ((await timed(async () => {
        for (let i = 0; i < CALLS; i++) await echo();
      })) *
        1000) /
        CALLS,
    );
  }
  await sandbox.close();
  return figures;
}

async function parked(sandbox) {
  while ((await sandbox.state()).every((pool) => pool.parked < 2))
    await new Promise((go) => setTimeout(go, 1));
}

async function saturated(run, seconds) {
  const end = now() + seconds * 1000;
  let done = 0;
  const loop = async () => {
    while (now() < end) {
      await run();
      done++;
    }
  };
  const start = now();
  await Promise.all(Array.from({ length: 8 }, loop));
  return (done / (now() - start)) * 1000;
}

// Private memory of the children of the zygote, from smaps_rollup: what a parked worker costs on top of the image.
function workerMemory(zygoteOf) {
  const rows = [];
  for (const pid of fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const stat = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
      const parent = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
      if (!zygoteOf.has(parent)) continue;
      const rollup = fs.readFileSync(`/proc/${pid}/smaps_rollup`, "latin1");
      const kb = (name) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(rollup)?.[1] ?? 0);
      rows.push({ privateKb: kb("Private_Dirty") + kb("Private_Clean"), pssKb: kb("Pss") });
    } catch {
      // a process that ended while it was looked at
    }
  }
  return rows;
}

function descendants(pid) {
  const found = new Set([pid]);
  for (let grew = true; grew;) {
    grew = false;
    for (const name of fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
      try {
        const stat = fs.readFileSync(`/proc/${name}/stat`, "latin1");
        const parent = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
        if (found.has(parent) && !found.has(Number(name))) {
          found.add(Number(name));
          grew = true;
        }
      } catch {
        // ended meanwhile
      }
    }
  }
  found.delete(pid);
  return found;
}

function coldStart() {
  const cli = path.join(here, "../../dist/server/cli.js");
  const samples = { "doublehull run -e": [], "node -e 1": [] };
  for (let i = 0; i < 12; i++) {
    for (const [name, argv] of [
      ["doublehull run -e", [cli, "run", "-e", "1+1"]],
      ["node -e 1", ["-e", "1"]],
    ]) {
      const start = now();
      execFileSync(process.execPath, argv, { stdio: "ignore" });
      if (i >= 2) samples[name].push(now() - start);
    }
  }
  return samples;
}

// -- the report --------------------------------------------------------------------------------------------------------

const report = {
  date: new Date().toISOString(),
  host: {
    cpus: os.cpus().length,
    model: os.cpus()[0]?.model,
    kernel: os.release(),
    node: process.version,
    load: os.loadavg(),
  },
};
const ivm = args["no-peers"] ? undefined : isolatedVm();
const quickjs = await getQuickJS();
const peer = await echoPeer();
const sandbox = await Sandbox.create({ image: "fast-run", parked: 2 });

report.latencyMs = await latency(sandbox, quickjs, ivm, peer.echo);
const zygotes = descendants(process.pid);
report.parkedMemoryKb = workerMemory(zygotes).filter(({ privateKb }) => privateKb < 8192);
report.runsPerSecond = { doublehull: await saturated(() => sandbox.run(SCRIPT), 5) };
if (ivm) report.runsPerSecond["isolated-vm isolate"] = await saturated(async () => freshIsolate(ivm), 3);
await sandbox.close();
report.hostCallUs = await hostCalls(peer.echo);
peer.end();
report.coldStartMs = coldStart();

const medians = Object.fromEntries(
  Object.entries(report.latencyMs).map(([name, list]) => [name, quantile(list, 0.5)]),
);
const spread = quantile(report.latencyMs.echo, 0.9) / medians.echo;
const row = (what, figure, bar, met) =>
  console.log(`${what.padEnd(58)} ${figure.padStart(10)}  bar ${bar.padEnd(8)} ${met ? "met" : "NOT MET"}`);
const ms = (value) => `${value.toFixed(2)} ms`;

console.log(
  "\nmedians:",
  Object.entries(medians)
    .map(([name, value]) => `${name} ${ms(value)}`)
    .join(", "),
);
console.log(
  "runs per second:",
  Object.entries(report.runsPerSecond)
    .map(([name, value]) => `${name} ${value.toFixed(0)}`)
    .join(", "),
);
const tail = (name) => quantile(report.latencyMs[name], 0.99) / medians[name];
if (ivm) {
  const ratio = medians.doublehull / medians["isolated-vm isolate"];
  row("parked latency / fresh isolate of isolated-vm", ratio.toFixed(2), "<= 0.4", ratio <= 0.4);
  const rate = report.runsPerSecond.doublehull / report.runsPerSecond["isolated-vm isolate"];
  row("saturated runs per second / the same", rate.toFixed(2), ">= 1", rate >= 1);
}
row(
  "p99/p50 of parked latency / that of a socket echo",
  (tail("doublehull") / tail("echo")).toFixed(2),
  "<= 2",
  tail("doublehull") / tail("echo") <= 2,
);
const calls = Object.fromEntries(
  Object.entries(report.hostCallUs).map(([name, list]) => [name, quantile(list, 0.5)]),
);
const oneByOne = calls["one after another"] - calls.nothing;
row(
  `host call, one after another (${oneByOne.toFixed(0)} us) / socket echo (${calls.echo.toFixed(0)} us)`,
  (oneByOne / calls.echo).toFixed(2),
  "<= 2.5",
  oneByOne / calls.echo <= 2.5,
);
const inParallel = calls["in parallel"] - calls.nothing;
row("host call, 1000 in parallel", `${inParallel.toFixed(1)} us`, "<= 30", inParallel <= 30);
console.log(`4 MB there and back in one call: ${(calls["4 MB there and back"] / 1000).toFixed(1)} ms`);
const cold = Object.fromEntries(
  Object.entries(report.coldStartMs).map(([name, list]) => [name, quantile(list, 0.5)]),
);
const coldRatio = cold["doublehull run -e"] / cold["node -e 1"];
row(
  `cold start (${ms(cold["doublehull run -e"])}) / node -e 1 (${ms(cold["node -e 1"])})`,
  coldRatio.toFixed(2),
  "<= 5",
  coldRatio <= 5,
);
row(
  "parked latency / fresh process by node -e",
  (medians.doublehull / cold["node -e 1"]).toFixed(3),
  "<= 0.025",
  medians.doublehull / cold["node -e 1"] <= 0.025,
);
const memory =
  quantile(
    report.parkedMemoryKb.map(({ privateKb }) => privateKb),
    0.5,
  ) ?? 0;
row("private memory of a parked worker", `${memory} KiB`, "<= 1024", memory <= 1024);
if (spread > 2)
  console.log(
    `\nThe socket echo itself varied by ${spread.toFixed(1)}: this host is too busy for a verdict.`,
  );
if (args.json) fs.writeFileSync(args.json, `${JSON.stringify(report, null, 1)}\n`);
