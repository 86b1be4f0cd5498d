/**
 * What the tests of a whole sandbox share: making one, finding its processes and cgroups from outside, and waiting for
 * a state of the host that nobody announces. Other suites run at the same time, so nothing here looks at the whole
 * machine: a sandbox's processes are found from their supervisor downwards, its cgroups by its keeper's name.
 */
import fs from "node:fs";
import { Sandbox, type Outcome, type SandboxOptions } from "doublehull";

/** A sandbox that starts fast and keeps few workers; the caller closes it. */
export function makeSandbox(options: SandboxOptions = {}): Promise<Sandbox> {
  return Sandbox.create({ image: "fast-start", parked: 1, ...options });
}

/** The value of a run that must have succeeded; the whole outcome is in the message if it did not. */
export function valueOf(outcome: Outcome): unknown {
  if (outcome.status === "ok") return outcome.value;
  throw new Error(`the run was to succeed: ${describeOutcome(outcome)}`);
}

export function stopOf(outcome: Outcome) {
  if (outcome.status === "stopped") return outcome.stop;
  throw new Error(`the run was to be stopped: ${describeOutcome(outcome)}`);
}

export function errorOf(outcome: Outcome) {
  if (outcome.status === "threw") return outcome.error;
  throw new Error(`the script was to throw: ${describeOutcome(outcome)}`);
}

function describeOutcome({ layers: _layers, logs, ...rest }: Outcome): string {
  const asText = (_key: string, value: unknown) => (typeof value === "bigint" ? `${value}n` : value);
  return JSON.stringify({ ...rest, logLines: logs.length }, asText).slice(0, 2000);
}

// ---- processes ------------------------------------------------------------------------------------------------------

export interface Process {
  pid: number;
  /** Clock ticks after boot: tells a process from a later one of the same number. man 5 proc_pid_stat (22) */
  startTime: string;
}

interface Stat extends Process {
  state: string;
  parent: number;
}

function statOf(pid: number): Stat | undefined {
  let text: string;
  try {
    text = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch {
    return undefined; // no such process
  }
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return { pid, state: fields[0] ?? "", parent: Number(fields[1]), startTime: fields[19] ?? "" };
}

/** Zombies do not count as alive: they hold nothing but their number. */
export function isAlive(process: Process): boolean {
  const stat = statOf(process.pid);
  return stat !== undefined && stat.startTime === process.startTime && !"ZX".includes(stat.state);
}

export function processOf(pid: number): Process {
  const stat = statOf(pid);
  if (stat === undefined) throw new Error(`there is no process ${pid}`);
  return { pid, startTime: stat.startTime };
}

function childrenOf(pid: number): Stat[] {
  const all = fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return all.flatMap((name) => {
    const stat = statOf(Number(name));
    return stat?.parent === pid ? [stat] : [];
  });
}

function commandOf(pid: number): string {
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, "latin1");
  } catch {
    return ""; // it ended meanwhile
  }
}

/** One generation of a sandbox as the host sees it. */
export interface Family {
  keeper: Process;
  zygote: Process | undefined;
  workers: Process[];
}

/** Keepers that `supervisor` started and what descends from them. */
export function families(supervisor: number = process.pid): Family[] {
  return childrenOf(supervisor)
    .filter(({ pid, state }) => state !== "Z" && commandOf(pid).includes("keeper-main.js"))
    .map((keeper) => {
      const [zygote] = childrenOf(keeper.pid);
      return { keeper, zygote, workers: zygote === undefined ? [] : childrenOf(zygote.pid).filter(notDead) };
    });
}

const notDead = ({ state }: Stat) => state !== "Z" && state !== "X";

export function members(family: Family): Process[] {
  return [family.keeper, ...(family.zygote === undefined ? [] : [family.zygote]), ...family.workers];
}

/** The one family that a supervisor has. */
export function onlyFamily(supervisor: number = process.pid): Family & { zygote: Process } {
  const found = families(supervisor);
  const [family] = found;
  if (found.length !== 1 || family?.zygote === undefined) {
    throw new Error(`one keeper with its zygote was expected, found ${JSON.stringify(found)}`);
  }
  return { ...family, zygote: family.zygote };
}

/** What a process has open; nothing of one that has ended. man 5 proc_pid_fd */
export function descriptorsOf(pid: number | "self"): { fd: number; target: string }[] {
  const dir = `/proc/${pid}/fd`;
  const unlessGone = <T>(look: () => T): T | undefined => {
    try {
      return look();
    } catch (error) {
      if (["ENOENT", "ESRCH"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
      throw error;
    }
  };
  return (unlessGone(() => fs.readdirSync(dir)) ?? []).flatMap((name) => {
    const target = unlessGone(() => fs.readlinkSync(`${dir}/${name}`)); // one was the listing's own
    return target === undefined ? [] : [{ fd: Number(name), target }];
  });
}

export function descriptorCount(): number {
  return fs.readdirSync("/proc/self/fd").length;
}

/** Clock ticks (10 ms) of CPU that a process has used. man 5 proc_pid_stat (14) (15) */
function cpuTicks(pid: number): number {
  let text: string;
  try {
    text = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch {
    return 0; // it ended meanwhile
  }
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return Number(fields[11]) + Number(fields[12]);
}

/** Workers that run an endless loop: they alone use CPU by the tenth of a second. */
export function busyWorkers(supervisor: number = process.pid): Process[] {
  return families(supervisor).flatMap(({ workers }) => workers.filter(({ pid }) => cpuTicks(pid) >= 15));
}

export async function busyWorker(supervisor: number = process.pid): Promise<Process> {
  let found: Process | undefined;
  await until("a worker computes", () => (found = busyWorkers(supervisor)[0]) !== undefined);
  return found as Process;
}

// ---- cgroups --------------------------------------------------------------------------------------------------------

/** Directories `doublehull-PID-*` of these keepers, under every cgroup hierarchy that is mounted. */
export function cgroupsOf(keepers: readonly Process[]): string[] {
  const mounts = fs.readFileSync("/proc/self/mountinfo", "utf8").split("\n");
  const points = mounts
    .filter((line) => / - cgroup2? /.test(line))
    .map((line) => line.split(" ")[4] as string);
  const names = keepers.map(({ pid }) => `doublehull-${pid}-`);
  return points.flatMap((point) =>
    directoriesBelow(point, 6).filter((dir) => names.some((name) => dir.includes(`/${name}`))),
  );
}

function directoriesBelow(dir: string, depth: number): string[] {
  if (depth === 0) return [];
  let entries: fs.Dirent[];
  try {
    entries = fs.readdirSync(dir, { withFileTypes: true });
  } catch {
    return []; // removed meanwhile, or not ours to look at
  }
  return entries
    .filter((entry) => entry.isDirectory())
    .flatMap(({ name }) => [`${dir}/${name}`, ...directoriesBelow(`${dir}/${name}`, depth - 1)]);
}

/** Where a process stands in the hierarchy that has `controller`; undefined if none is mounted. man 7 cgroups */
export function cgroupDir(pid: number, controller: "memory" | "pids"): string | undefined {
  const lines = fs.readFileSync(`/proc/${pid}/cgroup`, "utf8").split("\n");
  const mounts = fs.readFileSync("/proc/self/mountinfo", "utf8").split("\n");
  for (const [pattern, type] of [
    [new RegExp(`^\\d+:(?:.*,)?${controller}(?:,.*)?:(.*)$`), "cgroup"],
    [/^0::(.*)$/, "cgroup2"],
  ] as const) {
    const own = lines.map((line) => pattern.exec(line)?.[1]).find((found) => found !== undefined);
    for (const mount of mounts) {
      const [left = "", right = ""] = mount.split(" - ");
      const [fsType, , options = ""] = right.split(" ");
      if (own === undefined || fsType !== type) continue;
      if (type === "cgroup" && !options.split(",").includes(controller)) continue;
      const [, , , root = "/", point = ""] = left.split(" ");
      const dir = `${point}${root !== "/" && own.startsWith(root) ? own.slice(root.length) : own}`;
      if (fs.existsSync(`${dir}/${controller}.max`) || fs.existsSync(`${dir}/cgroup.procs`)) return dir;
    }
  }
  return undefined;
}

// ---- waiting --------------------------------------------------------------------------------------------------------

/** Looks again until it is so: for what the kernel brings about and nobody announces. Gives up after 20 s. */
export async function until(what: string, isSo: () => boolean): Promise<void> {
  const giveUp = performance.now() + 20_000;
  while (!isSo()) {
    if (performance.now() > giveUp) throw new Error(`it did not come about: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
