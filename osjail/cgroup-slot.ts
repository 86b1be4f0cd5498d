/**
 * The supervisor's side of one worker's cgroup: arming limits, and reading from outside how much the worker took and
 * whether the kernel killed it for that. The control files that every run needs are opened once and kept; a thousand
 * slots would be ten thousand descriptors if the others were.
 */
import * as fs from "node:fs";
import { CgroupError, errno, failed, parsePids } from "./cgroup.js";

/** The directories of one slot: plain data for another process. On v2 they are one and the same. */
export interface SlotPaths {
  version: "v1" | "v2";
  memory: string;
  pids: string;
  cpu?: string;
}

export interface SlotLimits {
  /** Bytes of memory, swap included (none is allowed): at the limit the kernel kills the worker. */
  memoryBytes: number;
  /** Processes and threads: a fork beyond it fails with EAGAIN. */
  pids: number;
  /** CPU time per period of wall time, both in microseconds; a hard ceiling. Absent: none. */
  cpuQuota?: { quotaUs: number; periodUs: number };
}

/** The kernel counts memory in pages and rounds a limit down; 64 KiB is the largest page of a supported machine. */
const LARGEST_PAGE = 65_536;

/**
 * A control file, kept open or opened for each access. pread and pwrite at 0: the file is made anew by every read and
 * takes every write whole.
 */
class ControlFile {
  static readonly #buffer = Buffer.alloc(4096);
  private constructor(
    readonly path: string,
    readonly flags: number,
    readonly fd: number | undefined,
  ) {}

  static open(path: string, kept: boolean): ControlFile {
    const file = ControlFile.openIfPresent(path, kept);
    if (file === undefined) throw new CgroupError("cgroup-open", `cannot open ${path}: ENOENT`);
    return file;
  }

  static openIfPresent(path: string, kept: boolean): ControlFile | undefined {
    for (const flags of [fs.constants.O_RDWR, fs.constants.O_RDONLY]) {
      try {
        const fd = fs.openSync(path, flags);
        if (!kept) fs.closeSync(fd);
        return new ControlFile(path, flags, kept ? fd : undefined);
      } catch (error) {
        if (errno(error) === "ENOENT") return undefined;
        if (errno(error) !== "EACCES" || flags === fs.constants.O_RDONLY) {
          throw failed("cgroup-open", "open", path, error);
        }
      }
    }
    return undefined;
  }

  read(): string {
    try {
      const length = this.#with((fd) => fs.readSync(fd, ControlFile.#buffer, 0, 4096, 0));
      return ControlFile.#buffer.toString("latin1", 0, length).trimEnd();
    } catch (error) {
      throw failed("cgroup-read", "read", this.path, error);
    }
  }

  write(text: string): void {
    try {
      this.#with((fd) => fs.writeSync(fd, text, 0, "latin1"));
    } catch (error) {
      throw failed("cgroup-write", `write "${text}" to`, this.path, error);
    }
  }

  /** Writes, then reads back: a limit counts only when the kernel says that it holds. */
  arm(text: string): void {
    this.write(text);
    const got = this.read();
    if (got !== text) throw this.#notArmed(text, got);
  }

  armBytes(bytes: number): void {
    this.write(String(bytes));
    const got = Number(this.read());
    if (!(got <= bytes && bytes - got < LARGEST_PAGE)) throw this.#notArmed(String(bytes), String(got));
  }

  #with<T>(act: (fd: number) => T): T {
    if (this.fd !== undefined) return act(this.fd);
    const fd = fs.openSync(this.path, this.flags);
    try {
      return act(fd);
    } finally {
      fs.closeSync(fd);
    }
  }

  close(): void {
    if (this.fd !== undefined) fs.closeSync(this.fd);
  }

  #notArmed(want: string, got: string): CgroupError {
    return new CgroupError("cgroup-not-armed", `${this.path} holds "${got}" after "${want}" was written`);
  }
}

interface SlotFiles {
  limit: ControlFile;
  /** v1: memory.memsw.limit_in_bytes; v2: memory.swap.max. Absent where the kernel does not account swap. */
  swap: ControlFile | undefined;
  oomGroup: ControlFile | undefined;
  usage: ControlFile;
  peak: ControlFile | undefined;
  oom: ControlFile;
  pidsMax: ControlFile;
  pidsEvents: ControlFile;
  /** v1: cpu.cfs_quota_us; v2: cpu.max. */
  quota: ControlFile | undefined;
  period: ControlFile | undefined;
  cpuTime: ControlFile | undefined;
  /** v1: cpu.shares; v2: cpu.weight. */
  weight: ControlFile | undefined;
}

/** Control files of a slot that stay open, at most: the limit, the peak, the OOM killer's count. */
export const KEPT_FILES = 3;

/**
 * The supervisor's grip on one slot: its control files. Counters run on across the workers that
 * use the slot, so callers compare two readings. Whoever opens it closes it.
 */
export class Slot {
  #quota: string | undefined;
  #share = 100;
  #open: SlotFiles | undefined;
  private constructor(
    readonly paths: SlotPaths,
    files: SlotFiles,
  ) {
    this.#open = files;
  }

  /** Throws cgroup-open when the slot is gone or is another user's; then nothing stays open. */
  static open(paths: SlotPaths): Slot {
    const opened: ControlFile[] = [];
    const keep = <F extends ControlFile | undefined>(file: F): F => {
      if (file !== undefined) opened.push(file);
      return file;
    };
    const must = (path: string, kept: "kept" | "" = "") => keep(ControlFile.open(path, kept === "kept"));
    const may = (path: string, kept: "kept" | "" = "") =>
      keep(ControlFile.openIfPresent(path, kept === "kept"));
    const { memory, pids, cpu } = paths;
    try {
      const pidsFiles = { pidsMax: must(`${pids}/pids.max`), pidsEvents: must(`${pids}/pids.events`) };
      if (paths.version === "v2") {
        return new Slot(paths, {
          ...pidsFiles,
          limit: must(`${memory}/memory.max`, "kept"),
          swap: may(`${memory}/memory.swap.max`),
          oomGroup: must(`${memory}/memory.oom.group`), // Linux 4.19
          usage: must(`${memory}/memory.current`),
          peak: may(`${memory}/memory.peak`, "kept"), // Linux 5.19
          oom: must(`${memory}/memory.events`, "kept"),
          quota: cpu === undefined ? undefined : may(`${cpu}/cpu.max`),
          period: undefined,
          cpuTime: may(`${memory}/cpu.stat`), // there with or without the controller. v2.rst
          weight: cpu === undefined ? undefined : may(`${cpu}/cpu.weight`),
        });
      }
      return new Slot(paths, {
        ...pidsFiles,
        limit: must(`${memory}/memory.limit_in_bytes`, "kept"),
        swap: may(`${memory}/memory.memsw.limit_in_bytes`),
        oomGroup: undefined,
        usage: must(`${memory}/memory.usage_in_bytes`),
        peak: may(`${memory}/memory.max_usage_in_bytes`, "kept"),
        oom: must(`${memory}/memory.oom_control`, "kept"),
        quota: cpu === undefined ? undefined : may(`${cpu}/cpu.cfs_quota_us`),
        period: cpu === undefined ? undefined : may(`${cpu}/cpu.cfs_period_us`),
        cpuTime: cpu === undefined ? undefined : may(`${cpu}/cpuacct.usage`), // only where mounted with cpu
        weight: cpu === undefined ? undefined : may(`${cpu}/cpu.shares`),
      });
    } catch (error) {
      for (const file of opened) file.close();
      throw error;
    }
  }

  /**
   * Sets all limits of the slot and proves each by reading it back. Throws cgroup-bad-limit, cgroup-write (v1 answers
   * EBUSY for a memory limit below what is in use; v2 takes it and kills) or cgroup-not-armed; then the slot must not
   * be used.
   */
  setLimits(limits: SlotLimits): void {
    const { memoryBytes, pids, cpuQuota } = limits;
    requireInteger("memoryBytes", memoryBytes, LARGEST_PAGE, Number.MAX_SAFE_INTEGER);
    requireInteger("pids", pids, 1, 4_194_304); // PID_MAX_LIMIT, include/linux/threads.h
    const { limit, swap, oomGroup, pidsMax } = this.#files;
    if (this.paths.version === "v2") {
      swap?.arm("0");
      oomGroup?.arm("1");
      limit.armBytes(memoryBytes);
    } else {
      // memory + swap may never be below memory: cgroup-v1/memory.rst section 2.4. So the outer one is raised first.
      const raise = memoryBytes > Number(limit.read());
      const order = raise ? [swap, limit] : [limit, swap];
      for (const file of order) file?.armBytes(memoryBytes);
    }
    pidsMax.arm(String(pids));
    this.#setQuota(cpuQuota);
  }

  #setQuota(cpuQuota: SlotLimits["cpuQuota"]): void {
    const { quota, period } = this.#files;
    if (cpuQuota !== undefined) {
      // sched-bwc.rst: at least 1 ms each, a period of at most 1 s.
      requireInteger("cpuQuota.quotaUs", cpuQuota.quotaUs, 1000, Number.MAX_SAFE_INTEGER);
      requireInteger("cpuQuota.periodUs", cpuQuota.periodUs, 1000, 1_000_000);
      if (quota === undefined) {
        throw new CgroupError("cgroup-not-armed", `${this.paths.memory} has no cpu controller for a quota`, {
          remedy: "ask for no CPU quota on this host, or enable the cpu controller for the base cgroup",
        });
      }
    }
    const wanted = cpuQuota === undefined ? "none" : `${cpuQuota.quotaUs} ${cpuQuota.periodUs}`;
    if (quota === undefined || wanted === this.#quota) return;
    this.#quota = undefined;
    if (this.paths.version === "v2") {
      if (cpuQuota === undefined) {
        quota.write("max");
        const got = quota.read();
        if (!got.startsWith("max ")) quota.arm("max 100000");
      } else {
        quota.arm(wanted);
      }
    } else {
      quota.arm("-1"); // first, so that no mix of old quota and new period is judged
      if (cpuQuota !== undefined) {
        period?.arm(String(cpuQuota.periodUs));
        quota.arm(String(cpuQuota.quotaUs));
      }
    }
    this.#quota = wanted;
  }

  /**
   * The slot's share of CPU against its siblings, in percent of what a slot has at first; false where there is no cpu
   * controller. v2.rst cpu.weight (100 at first), sched-design-CFS.rst cpu.shares (1024)
   */
  setShare(percent: number): boolean {
    const { weight } = this.#files;
    if (weight === undefined || percent === this.#share) return weight !== undefined;
    weight.write(String(this.paths.version === "v2" ? percent : Math.round(10.24 * percent)));
    this.#share = percent;
    return true;
  }

  /** Starts the peak anew at what is in use now. False where the kernel cannot (v2 before 6.12): peaks then run on. */
  resetPeak(): boolean {
    try {
      this.#files.peak?.write("0");
      return this.#files.peak !== undefined;
    } catch {
      return false; // EINVAL or EBADF of an older kernel: said by the answer
    }
  }

  /**
   * The most bytes in use at once since the last reset; undefined where the kernel does not tell (v2 before 5.19).
   * On v2 the reset holds for this open slot only. v2.rst memory.peak
   */
  peakBytes(): number | undefined {
    const { peak } = this.#files;
    return peak === undefined ? undefined : Number(peak.read());
  }

  currentBytes(): number {
    return Number(this.#files.usage.read());
  }

  /** Processes of this slot that the OOM killer ended so far. */
  oomKills(): number {
    return this.#counter(this.#files.oom, "oom_kill");
  }

  /** How often a fork was refused by the pids limit so far. */
  pidsMaxEvents(): number {
    return this.#counter(this.#files.pidsEvents, "max");
  }

  /** CPU time of all workers of this slot so far, in microseconds; undefined where cgroup v1 does not tell. */
  cpuUsageUs(): number | undefined {
    const { cpuTime } = this.#files;
    if (cpuTime === undefined) return undefined;
    if (this.paths.version === "v2") return this.#counter(cpuTime, "usage_usec");
    return Math.floor(Number(cpuTime.read()) / 1000); // cpuacct.usage is in nanoseconds
  }

  #counter(file: ControlFile, key: string): number {
    const value = keyedValue(file.read(), key);
    if (value === undefined) throw new CgroupError("cgroup-read", `${file.path} has no line "${key}"`);
    return value;
  }

  /** Whether the slot is still there: what is open of it stays open when it is removed. */
  exists(): boolean {
    return [...dirsOf(this.paths)].every((dir) => fs.existsSync(dir));
  }

  /** Ids of the processes inside, as this pid namespace numbers them (0 on v2: one that it cannot see). */
  processes(): number[] {
    return listPids(this.paths.memory);
  }

  /** SIGKILL to all inside, in whichever hierarchy they joined. Does not wait: `processes` tells when they are gone. */
  kill(): void {
    for (const dir of dirsOf(this.paths)) killAll(dir);
  }

  /** Closes the control files; the slot itself stays. Harmless when called again; every other call then throws. */
  close(): void {
    const files = this.#open;
    this.#open = undefined;
    const all: (ControlFile | undefined)[] = files === undefined ? [] : Object.values(files);
    for (const file of all) file?.close();
  }

  get #files(): SlotFiles {
    if (this.#open === undefined)
      throw new CgroupError("cgroup-read", `the slot ${this.paths.memory} is closed`);
    return this.#open;
  }
}

/** A "flat keyed" file: one `key value` per line. v2.rst "Format" */
export function keyedValue(text: string, key: string): number | undefined {
  for (const line of text.split("\n")) {
    if (line.startsWith(`${key} `)) return Number(line.slice(key.length + 1));
  }
  return undefined;
}

export function requireInteger(name: string, value: number, least: number, most: number): void {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return;
  throw new CgroupError(
    "cgroup-bad-limit",
    `${name} is ${value}: a whole number from ${least} to ${most} is needed`,
  );
}

/** The distinct directories of a slot: one on v2, and controllers that v1 mounts together share one too. */
export function dirsOf(paths: SlotPaths): Set<string> {
  return new Set(
    paths.cpu === undefined ? [paths.memory, paths.pids] : [paths.memory, paths.pids, paths.cpu],
  );
}

/**
 * The processes of one cgroup. Opened anew each time: a v1 descriptor answers from a list that the kernel keeps for up
 * to a second (kernel/cgroup/cgroup-v1.c, CGROUP_PIDLIST_DESTROY_DELAY). Empty when the cgroup is gone.
 */
export function listPids(dir: string): number[] {
  try {
    return parsePids(fs.readFileSync(`${dir}/cgroup.procs`, "utf8"));
  } catch (error) {
    if (errno(error) === "ENOENT" || errno(error) === "ENODEV") return [];
    throw failed("cgroup-read", "read", `${dir}/cgroup.procs`, error);
  }
}

/** SIGKILL to every process of one of our cgroups. Does not wait for their end. */
export function killAll(dir: string): void {
  try {
    // Linux 5.14, v2 only: the whole subtree at once, forks in flight included. v2.rst cgroup.kill
    writeRaw(`${dir}/cgroup.kill`, "1");
    return;
  } catch (error) {
    if (errno(error) === "ENODEV") return;
    if (errno(error) !== "ENOENT") throw failed("cgroup-write", "write", `${dir}/cgroup.kill`, error);
  }
  // A fork may slip in between reading and killing: read again until nobody new is listed.
  const killed = new Set<number>();
  for (let pass = 0; pass < 16; pass++) {
    // 0 would signal our own process group, and it stands for a process that this pid namespace cannot see.
    const fresh = listPids(dir).filter((pid) => pid > 0 && pid !== process.pid && !killed.has(pid));
    if (fresh.length === 0) return;
    for (const pid of fresh) {
      killed.add(pid);
      try {
        process.kill(pid, "SIGKILL");
      } catch (error) {
        if (errno(error) !== "ESRCH") throw failed("cgroup-write", `kill ${pid} in`, dir, error);
      }
    }
  }
}

/** One write(2) to an existing file: cgroup files take a value whole or not at all. */
export function writeRaw(path: string, text: string): void {
  const fd = fs.openSync(path, fs.constants.O_WRONLY);
  try {
    fs.writeSync(fd, text);
  } finally {
    fs.closeSync(fd);
  }
}
