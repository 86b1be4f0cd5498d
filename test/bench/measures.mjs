// How things are measured, and whether this host is quiet enough to judge by it: time in turns, CPU and memory of a
// whole process tree as /proc tells them, and a watch over what else the machine does. Knows no contender.
import { spawn } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import { sys } from "#osjail/libc.ffi";

export const now = () => performance.now();
export const pause = (ms) => new Promise((go) => setTimeout(go, ms));

export const quantile = (list, q) =>
  [...list].sort((a, b) => a - b)[Math.min(list.length - 1, Math.floor(list.length * q))];
export const median = (list) => quantile(list, 0.5);

export function shuffled(list) {
  const left = [...list];
  return list.map(() => left.splice(Math.floor(Math.random() * left.length), 1)[0]);
}

/**
 * Contenders take turns, in another order each round: whatever else the machine does meets all of them, and none always
 * runs in the same one's wake. `act(contender)` is timed; a contender with `every: n` takes part in each
 * n-th round, but in two at least. A third of the rounds, ten at most, come before and do not count. Resolves to
 * milliseconds by the contenders' names.
 */
export async function takeTurns(contenders, rounds, act, betweenRounds) {
  const samples = Object.fromEntries(contenders.map(({ name }) => [name, []]));
  for (let round = -Math.min(10, Math.ceil(rounds / 3)); round < rounds; round++) {
    if (round >= 0) await betweenRounds?.();
    for (const contender of shuffled(contenders)) {
      const every = Math.max(1, Math.min(contender.every ?? 1, Math.floor(rounds / 2)));
      if (round % every !== 0 || (round < 0 && every > 1)) continue;
      const start = now();
      await act(contender);
      if (round >= 0) samples[contender.name].push(now() - start);
      await contender.settle?.();
    }
  }
  return samples;
}

// -- a process tree ----------------------------------------------------------------------------------------------------

/** Clock ticks of /proc are a hundredth of a second on every Linux that runs Node. man 5 proc_pid_stat, sysconf(3) */
const TICK_MS = 10;

/** Every process by number: its parent, and the CPU ticks of itself and of those of its children that it waited for. */
function allProcesses() {
  const found = new Map();
  for (const pid of fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const stat = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      const ticks = fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
      found.set(Number(pid), { pid: Number(pid), parent: Number(fields[1]), ticks });
    } catch {
      // it ended while it was looked at
    }
  }
  return found;
}

/** man 2 PR_SET_CHILD_SUBREAPER */
const SET_CHILD_SUBREAPER = 36;

/**
 * What a command leaves behind becomes our child, and stays one as a zombie: bwrap ends without waiting for its sandbox,
 * whose CPU would be init's otherwise.
 */
export const adoptOrphans = () => sys("prctl", SET_CHILD_SUBREAPER, 1, 0, 0, 0);

/** A process and all that descends from it. */
function treeOf(root) {
  const all = allProcesses();
  const tree = new Map([[root, all.get(root)]]);
  for (let grew = true; grew;) {
    grew = false;
    for (const found of all.values()) {
      if (tree.has(found.pid) || !tree.has(found.parent)) continue;
      tree.set(found.pid, found);
      grew = true;
    }
  }
  return [...tree.values()];
}

/**
 * CPU of the whole tree so far, user and system, ms: supervisor, keepers, zygotes and workers, ended ones too, as each is
 * counted with the parent that waited for it (utime + stime + cutime + cstime).
 */
export function treeCpuMs() {
  return treeOf(process.pid).reduce((sum, { ticks }) => sum + ticks, 0) * TICK_MS;
}

/** CPU of the kernel's own threads so far, ms: work that somebody left to them, who knows for whom. Their parent is 2. */
const kernelCpuMs = () =>
  [...allProcesses().values()].reduce((sum, { parent, ticks }) => sum + (parent === 2 ? ticks : 0), 0) *
  TICK_MS;

/** CPU of one process, its main thread alone, ms; exact while it sleeps. Linux, Documentation/scheduler/sched-stats.rst */
export const threadCpuMs = (pid) =>
  Number(fs.readFileSync(`/proc/${pid}/schedstat`, "latin1").split(" ")[0]) / 1e6;

export const childrenOf = (pid) =>
  fs.readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1").trim().split(" ").map(Number);

/**
 * Memory of a whole tree, KiB: what would be free without it (private), with shares of what is shared (pss), and the
 * private memory of its median process.
 */
export function treeMemoryKb(root) {
  const seen = treeOf(root).flatMap(({ pid }) => {
    try {
      const rollup = fs.readFileSync(`/proc/${pid}/smaps_rollup`, "latin1");
      const kb = (name) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(rollup)?.[1] ?? 0);
      return [{ privateKb: kb("Private_Dirty") + kb("Private_Clean"), pssKb: kb("Pss") }];
    } catch {
      return []; // it ended while it was looked at
    }
  });
  const sum = (key) => seen.reduce((total, process) => total + process[key], 0);
  const medianPrivateKb = median(seen.map(({ privateKb }) => privateKb));
  return { privateKb: sum("privateKb"), pssKb: sum("pssKb"), medianPrivateKb };
}

/** What the host could still give away, KiB: the one figure that also knows page tables and kernel memory. */
export function memAvailableKb() {
  return Number(/^MemAvailable:\s+(\d+)/m.exec(fs.readFileSync("/proc/meminfo", "latin1"))?.[1]);
}

// -- the host ----------------------------------------------------------------------------------------------------------

/**
 * Node's event loop to a synchronous child and back, 64 bytes: the floor for whatever asks another process, and so the
 * unit of what doublehull's latencies are judged by.
 */
export async function startEcho() {
  const code =
    "const fs=require('fs');const b=Buffer.alloc(64);for(;;){const n=fs.readSync(3,b);if(!n)break;fs.writeSync(3,b,0,n)}";
  const child = spawn(process.execPath, ["-e", code], { stdio: ["ignore", "ignore", "inherit", "pipe"] });
  const socket = child.stdio[3];
  const message = Buffer.alloc(64);
  let answer;
  socket.on("data", () => answer());
  const run = () => new Promise((resolve) => ((answer = resolve), socket.write(message)));
  await run();
  return { name: "socket echo", run, stop: () => child.kill("SIGKILL") };
}

/** The same arithmetic each time, about a millisecond of it. */
function spin() {
  let x = 1;
  for (let i = 0; i < 600_000; i++) x = (x * 16807) % 2147483647;
  return x;
}

/** Busy CPU time of the host, and what a hypervisor kept from it, ms of all its CPUs together. man 5 proc_stat */
function hostCpuMs() {
  const [, user, nice, system, , , irq, softirq, steal] = fs
    .readFileSync("/proc/stat", "latin1")
    .split("\n", 1)[0]
    .split(/\s+/)
    .map(Number);
  return { busy: (user + nice + system + irq + softirq) * TICK_MS, steal: steal * TICK_MS };
}

/**
 * No verdict beyond these. The first two say that somebody else used the CPUs; the third that the CPU itself was not
 * the same all the time (frequency, a neighbour on its other thread); the fourth that waking a process took turns with
 * something. Shares are of all CPUs, spreads are the ninth decile by the median, while no contender runs.
 */
const QUIET = { foreign: 0.1, stolen: 0.05, loop: 1.25, echo: 2 };

/** Watches the host section by section. */
export class HostWatch {
  sections = {};
  #echo;
  #current;

  constructor(echo) {
    this.#echo = echo;
  }

  /** Called between rounds, when all contenders rest. */
  sample = async () => {
    await this.#echo.run(); // both awake, whatever ran before
    spin();
    const start = now();
    spin();
    const spun = now();
    for (let i = 0; i < 5; i++) await this.#echo.run();
    this.#current.loopMs.push(spun - start);
    this.#current.echoMs.push((now() - spun) / 5);
  };

  /** Runs a section and judges the host meanwhile. */
  async during(section, act) {
    this.#current = { loopMs: [], echoMs: [] };
    for (let i = 0; i < 200; i++) spin(); // compiled and awake, as it will be later
    const accounted = () => treeCpuMs() + kernelCpuMs();
    const [wall, host, known] = [now(), hostCpuMs(), accounted()];
    for (let i = 0; i < 10; i++) await this.sample();
    const result = await act();
    for (let i = 0; i < 10; i++) await this.sample();
    const capacity = (now() - wall) * os.availableParallelism();
    const after = hostCpuMs();
    const { loopMs, echoMs } = this.#current;
    const spread = (list) => quantile(list, 0.9) / median(list);
    const noise = {
      foreign: Math.max(0, after.busy - host.busy - (accounted() - known)) / capacity,
      stolen: (after.steal - host.steal) / capacity,
      loop: spread(loopMs),
      echo: spread(echoMs),
    };
    const why = Object.keys(QUIET).filter((name) => noise[name] > QUIET[name]);
    this.sections[section] = {
      seconds: (now() - wall) / 1000,
      quiet: why.length === 0,
      why,
      ...noise,
      loopMs,
      echoMs,
    };
    return result;
  }

  /** Why a section's figures decide nothing; undefined on a quiet host. */
  tooBusy = (section) => (this.sections[section].quiet ? undefined : "the host was too busy");
}

export function describeHost() {
  return {
    date: new Date().toISOString(),
    cpus: os.availableParallelism(),
    model: os.cpus()[0]?.model,
    memoryMb: Math.round(os.totalmem() / 2 ** 20),
    kernel: os.release(),
    arch: process.arch,
    node: process.version,
    uid: process.getuid(),
    load: os.loadavg(),
  };
}
