/**
 * The keeper's side of the cgroups: making the tree before any worker exists, joining it, removing it, and sweeping what
 * a dead keeper left. Nothing here ever signals a process outside the cgroups made here.
 *
 * A sweep must never take a living sandbox for a dead one. Ids and start times mean nothing across pid and time
 * namespaces, which may share the cgroups (containers), so a keeper also holds a lock on its tree, which all of them
 * see and which ends with it: only an unlocked tree is swept, and one of another pid namespace only if it is empty.
 */
import * as fs from "node:fs";
import { LOCK } from "./abi/linux.js";
import {
  CgroupError,
  descendsFrom,
  errno,
  failed,
  isAlive,
  KEEPER_LEAF,
  ownerName,
  ownPidNamespace,
  parseOwnerName,
  REAL_FILES,
  type AvailableCgroups,
  type CgroupSupport,
} from "./cgroup.js";
import {
  dirsOf,
  keyedValue,
  killAll,
  listPids,
  requireInteger,
  Slot,
  writeRaw,
  type SlotLimits,
  type SlotPaths,
} from "./cgroup-slot.js";
import { sys } from "./libc.ffi.js";

export interface TreeOptions {
  /** Leaves to make: workers that may exist at once. */
  slots: number;
  /** Bytes that each slot is limited to until a job asks for less. */
  maxMemoryBytes: number;
  /** Processes and threads per slot (default 1: a worker that forks is refused). */
  maxPids?: number;
  /** Share of CPU of the whole tree against its siblings, 1 to 10000, the kernel's default being 100. v2.rst cpu.weight */
  cpuWeight?: number;
}

/** A keeper's cgroups. The one who creates it owns it: call `remove` when the last worker is gone. */
export class CgroupTree {
  readonly name: string;
  readonly slots: SlotPaths[] = [];
  /** Open descriptors whose lock tells every sweep that this tree is in use. A fork that outlives us closes its own. */
  readonly locks: number[] = [];
  readonly #support: AvailableCgroups;
  #removed = false;

  private constructor(support: AvailableCgroups, name: string) {
    this.#support = support;
    this.name = name;
  }

  /**
   * Makes the tree of this process, every slot limited. When it throws (cgroup-unavailable, cgroup-bad-limit,
   * cgroup-exists, cgroup-create, cgroup-write, cgroup-not-armed) nothing is left behind.
   */
  static create(support: CgroupSupport, options: TreeOptions): CgroupTree {
    if (!support.available) {
      throw new CgroupError("cgroup-unavailable", support.reason, { remedy: support.remedy });
    }
    const { slots, maxMemoryBytes, maxPids = 1, cpuWeight } = options;
    requireInteger("slots", slots, 1, 100_000);
    if (cpuWeight !== undefined) requireInteger("cpuWeight", cpuWeight, 1, 10_000);
    const tree = new CgroupTree(support, ownerName());
    // Refused before anything is made, so that the clean-up below never meets a tree that is not this one.
    for (const base of basesOf(support)) {
      if (fs.existsSync(`${base}/${tree.name}`)) {
        throw new CgroupError("cgroup-exists", `${base}/${tree.name} exists already`);
      }
    }
    try {
      tree.#make(slots, cpuWeight);
      for (const paths of tree.slots) armNewSlot(paths, { memoryBytes: maxMemoryBytes, pids: maxPids });
      return tree;
    } catch (error) {
      try {
        tree.remove();
      } catch {
        // the first failure is the one to report; a later sweep removes the rest
      }
      throw error;
    }
  }

  #make(slots: number, cpuWeight: number | undefined): void {
    const support = this.#support;
    if (support.version === "v2") {
      const { dir } = support.base;
      const enable = `+memory +pids${support.cpu ? " +cpu" : ""}`;
      if (support.move.length > 0) moveAside(dir, support.move, enable);
      else if (support.enable) writeOnce(`${dir}/cgroup.subtree_control`, enable);
      this.#makeTop(dir);
      writeOnce(`${dir}/${this.name}/cgroup.subtree_control`, enable);
      if (cpuWeight !== undefined && support.cpu)
        writeOnce(`${dir}/${this.name}/cpu.weight`, String(cpuWeight));
    } else {
      for (const base of basesOf(support)) this.#makeTop(base);
      // v1 counts shares around 1024 where v2 counts weight around 100.
      const shares = cpuWeight === undefined ? undefined : Math.max(2, Math.round((cpuWeight * 1024) / 100));
      const { cpu } = support.base;
      if (shares !== undefined && cpu !== undefined)
        writeOnce(`${cpu}/${this.name}/cpu.shares`, String(shares));
    }
    const memory = support.version === "v2" ? support.base.dir : support.base.memory;
    const pids = support.version === "v2" ? support.base.dir : support.base.pids;
    const cpu = support.version === "v1" ? support.base.cpu : support.cpu ? support.base.dir : undefined;
    for (let i = 0; i < slots; i++) {
      const leaf = `${this.name}/slot-${i}`;
      const paths: SlotPaths = {
        version: support.version,
        memory: `${memory}/${leaf}`,
        pids: `${pids}/${leaf}`,
        ...(cpu !== undefined && { cpu: `${cpu}/${leaf}` }),
      };
      for (const dir of dirsOf(paths)) mkdir(dir);
      this.slots.push(paths);
    }
  }

  #makeTop(base: string): void {
    const top = `${base}/${this.name}`;
    mkdir(top);
    try {
      this.locks.push(lock(top, LOCK.EX));
    } catch (error) {
      throw failed("cgroup-create", "lock", top, error);
    }
  }

  /**
   * Descriptors by which a later fork joins each slot; the caller owns and closes them. All are close-on-exec.
   *
   * `"write"`: the opened cgroup.procs of each hierarchy, into which the worker writes "0". The kernel judges by the
   * credentials and, on v2, by the cgroup namespace of the *opener* (since 5.17, backported), so a worker of another
   * user in other namespaces may join what the keeper opened; the descriptors allow nothing else.
   *
   * `"clone"` (v2): the leaf's directory for clone3(CLONE_INTO_CGROUP), man 2 clone, Linux 5.7. No move, so no wait
   * for the kernel's thread-group lock. But the kernel judges by the *caller*: with the mount option nsdelegate, which
   * systemd sets, it answers ENOENT to a zygote in a cgroup namespace of its own, and EACCES to one whose user may not
   * write the leaf's and the common ancestor's cgroup.procs. And a directory is a way into the host's file system.
   */
  openJoin(by: "write" | "clone" = "write"): number[][] {
    if (by === "clone" && this.#support.version === "v1") {
      throw new CgroupError("cgroup-open", "cgroup v1 has no CLONE_INTO_CGROUP", {
        remedy: 'join by "write"',
      });
    }
    const { O_WRONLY, O_RDONLY, O_DIRECTORY } = fs.constants;
    const all: number[][] = [];
    try {
      for (const paths of this.slots) {
        const fds: number[] = [];
        all.push(fds);
        for (const dir of dirsOf(paths)) {
          const path = by === "clone" ? dir : `${dir}/cgroup.procs`;
          try {
            fds.push(fs.openSync(path, by === "clone" ? O_RDONLY | O_DIRECTORY : O_WRONLY));
          } catch (error) {
            throw failed("cgroup-open", "open", path, error);
          }
        }
      }
      return all;
    } catch (error) {
      for (const fd of all.flat()) fs.closeSync(fd);
      throw error;
    }
  }

  /**
   * Kills whatever is left in the slots, waits for its end (about 2 s at most) and removes the tree. Harmless when
   * called again. Throws cgroup-busy when something inside does not end, cgroup-write when it may not be removed.
   */
  remove(): void {
    if (this.#removed) return;
    const support = this.#support;
    for (const base of basesOf(support)) removeTop(`${base}/${this.name}`);
    for (const fd of this.locks.splice(0)) fs.closeSync(fd);
    if (support.version === "v2" && support.move.length > 0) leaveDelegated(support.base.dir);
    this.#removed = true;
  }
}

function basesOf(support: AvailableCgroups): Set<string> {
  if (support.version === "v2") return new Set([support.base.dir]);
  const { memory, pids, cpu } = support.base;
  return new Set(cpu === undefined ? [memory, pids] : [memory, pids, cpu]);
}

const MOVES = 20;

/**
 * Processes move into the leaf until the kernel takes the base for empty and enables the controllers. What they start
 * while they move is still in the base: EBUSY, and another round. v2.rst, "No Internal Process Constraint"
 */
function moveAside(base: string, pids: readonly number[], enable: string): void {
  mkdir(`${base}/${KEEPER_LEAF}`, "may exist");
  let left = pids;
  for (let rounds = 1; ; rounds++) {
    for (const pid of left) writeOnce(`${base}/${KEEPER_LEAF}/cgroup.procs`, String(pid), "ESRCH");
    try {
      return writeRaw(`${base}/cgroup.subtree_control`, enable);
    } catch (error) {
      left = listPids(base).filter((pid) => descendsFrom(pid, pids, REAL_FILES));
      if (errno(error) === "EBUSY" && rounds < MOVES) continue;
      throw failed("cgroup-write", `write "${enable}" to`, `${base}/cgroup.subtree_control`, error);
    }
  }
}

/** Undoes what a delegated base needed, if no other keeper lives in it. Failing is harmless: the scope ends with us. */
function leaveDelegated(base: string): void {
  const owned = REAL_FILES.list(base).some((name) => parseOwnerName(name) !== undefined);
  if (owned) return;
  try {
    const enabled = fs.readFileSync(`${base}/cgroup.subtree_control`, "utf8").split(/\s+/);
    const off = enabled.filter((c) => c !== "").map((c) => `-${c}`);
    if (off.length > 0) writeOnce(`${base}/cgroup.subtree_control`, off.join(" "));
    for (const pid of listPids(`${base}/${KEEPER_LEAF}`))
      writeOnce(`${base}/cgroup.procs`, String(pid), "ESRCH");
    fs.rmdirSync(`${base}/${KEEPER_LEAF}`);
  } catch {
    // as the comment above says
  }
}

/** Opens a directory and locks it; the lock ends with the last copy of the descriptor. man 2 flock */
function lock(dir: string, operation: number): number {
  const fd = fs.openSync(dir, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  try {
    sys("flock", fd, operation);
    return fd;
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

/**
 * Removes the trees under the base whose keeper no longer exists (or whose id now belongs to a later process), killing
 * what is left inside. Every other name, a tree that somebody has locked, and one that holds a process which this pid
 * namespace cannot see, is left alone. So is a tree of another pid namespace that holds any process at all; an empty
 * one that nobody has locked is removed. Returns the names removed; a tree that resists stays for the next sweep.
 */
export function sweepCgroups(support: CgroupSupport): string[] {
  if (!support.available) return [];
  const bases = [...basesOf(support)];
  const here = ownPidNamespace();
  const names = new Set(bases.flatMap((base) => REAL_FILES.list(base)));
  return [...names].filter((name) => {
    const owner = parseOwnerName(name);
    if (owner === undefined) return false;
    const ours = owner.pidNamespace === here;
    if (ours && isAlive(owner)) return false;
    const locks: number[] = [];
    try {
      const tops = bases.map((base) => `${base}/${name}`).filter((top) => fs.existsSync(top));
      for (const top of tops) locks.push(lock(top, LOCK.EX | LOCK.NB));
      const inside = tops.flatMap(subtree).flatMap(listPids);
      // v2 lists a process of another pid namespace as 0: its owner's id means nothing to us.
      if (inside.includes(0) || (!ours && inside.length > 0)) return false;
      for (const top of tops) {
        if (ours) removeTop(top);
        else for (const dir of subtree(top)) fs.rmdirSync(dir); // EBUSY where somebody has moved in meanwhile
      }
      return true;
    } catch {
      return false; // in use, or resists: stays for the next sweep, as said above
    } finally {
      for (const fd of locks) fs.closeSync(fd);
    }
  });
}

const REMOVE_WITHIN_MS = 2000;
const asleep = new Int32Array(new SharedArrayBuffer(4));

/** Sleeps without an event loop and without burning CPU. */
function sleep(ms: number): void {
  Atomics.wait(asleep, 0, 0, ms);
}

/** The cgroup and all below it, the deepest first; empty when it is gone. */
function subtree(dir: string): string[] {
  let entries: fs.Dirent[];
  try {
    entries = fs.readdirSync(dir, { withFileTypes: true });
  } catch (error) {
    if (errno(error) === "ENOENT") return [];
    throw failed("cgroup-read", "list", dir, error);
  }
  return [...entries.filter((e) => e.isDirectory()).flatMap((e) => subtree(`${dir}/${e.name}`)), dir];
}

/** Empties and removes one of our own trees. A cgroup with a living process or a child answers rmdir with EBUSY. */
function removeTop(top: string): void {
  if (parseOwnerName(top.slice(top.lastIndexOf("/") + 1)) === undefined) throw new Error(`not ours: ${top}`);
  const deadline = performance.now() + REMOVE_WITHIN_MS;
  for (;;) {
    const left = subtree(top).filter((dir) => {
      if (listPids(dir).length > 0) killAll(dir);
      try {
        fs.rmdirSync(dir);
        return false;
      } catch (error) {
        if (errno(error) === "EBUSY") return true;
        if (errno(error) === "ENOENT") return false;
        throw failed("cgroup-write", "remove", dir, error);
      }
    });
    if (left.length === 0) return;
    if (performance.now() > deadline) {
      throw new CgroupError(
        "cgroup-busy",
        `${left[0]} still holds processes (${listPids(left[0] ?? "").join(", ")})`,
      );
    }
    sleep(1);
  }
}

function mkdir(dir: string, existing?: "may exist"): void {
  try {
    fs.mkdirSync(dir, 0o755);
  } catch (error) {
    if (errno(error) === "EEXIST" && existing !== undefined) return;
    throw failed(errno(error) === "EEXIST" ? "cgroup-exists" : "cgroup-create", "make", dir, error);
  }
}

function writeOnce(path: string, text: string, harmless?: "ESRCH"): void {
  try {
    writeRaw(path, text);
  } catch (error) {
    if (errno(error) === harmless) return;
    throw failed("cgroup-write", `write "${text}" to`, path, error);
  }
}

/** The limits a slot has before any job, and on v1 a working OOM killer: without it a worker at its limit would hang. */
function armNewSlot(paths: SlotPaths, limits: SlotLimits): void {
  if (paths.version === "v1") {
    // cgroup-v1/memory.rst section 10: oom_kill_disable is inherited.
    const path = `${paths.memory}/memory.oom_control`;
    const disabled = () => keyedValue(REAL_FILES.readFile(path) ?? "", "oom_kill_disable");
    if (disabled() === 1) writeOnce(path, "0");
    if (disabled() !== 0)
      throw new CgroupError("cgroup-not-armed", `the OOM killer stays disabled in ${path}`);
  }
  const slot = Slot.open(paths);
  try {
    slot.setLimits(limits);
  } finally {
    slot.close();
  }
}
