/**
 * Control groups: one small tree per keeper, one leaf ("slot") per worker that may run at once, on v2 or on v1.
 * The failure behind it: rlimits count per process or per user, so only a cgroup bounds what one worker takes, and
 * only its files tell from outside (peak, OOM kills) how a worker ended. Slots are made before any worker and reused,
 * because making and removing a cgroup, above all in three v1 hierarchies, costs more than a whole run.
 *
 * Three parties: the keeper makes, joins and removes the tree (`CgroupTree`), any start removes what a dead keeper
 * left (`sweepCgroups`), the supervisor arms limits and reads results (`Slot`). Everything is synchronous: the keeper
 * and the zygote may have no event loop. Nothing here ever signals a process outside the cgroups made here.
 *
 * Sources: man 7 cgroups, man 5 proc_pid_stat, man 5 proc_pid_mountinfo, Linux Documentation/admin-guide/cgroup-v2.rst
 * ("v2.rst" below) and cgroup-v1/memory.rst, cgroup-v1/pids.rst, scheduler/sched-bwc.rst.
 */
import * as fs from "node:fs";

// ---------------------------------------------------------------------------------------------------- errors

const DELEGATE =
  "start inside a delegated scope: systemd-run --user --scope -p Delegate=yes COMMAND " +
  "(or as root; or accept runs without the cgroup layer)";
const CONTAINER =
  "give the container a writable cgroup file system and a cgroup namespace of its own " +
  "(docker: --cgroupns=private with a writable /sys/fs/cgroup; Kubernetes: a runtime class that delegates cgroups)";

/** Every way in which this file fails, with the next thing to do. */
export const CGROUP_ERRORS = {
  "cgroup-unavailable": DELEGATE,
  "cgroup-bad-limit": "pass a whole number in the range that the message names",
  "cgroup-exists": "remove this process's earlier tree before making another: one keeper holds one tree",
  "cgroup-create":
    "check that the directory is writable and that the limit on cgroups (cgroup.max.*) is not reached",
  "cgroup-open": "check that the tree still exists and that this process runs as the user who made it",
  "cgroup-read": "check that the tree still exists: its keeper may have ended",
  "cgroup-write":
    "check that the tree still exists, that this user owns it and that an ancestor allows the value",
  "cgroup-not-armed": "do not run the worker: the kernel did not take the limit; run `doublehull doctor`",
  "cgroup-busy":
    "call again later: a process inside has not ended yet (uninterruptible sleep, or another user's)",
  "cgroup-no-process": "pass the id of a process that exists",
} as const;
export type CgroupErrorCode = keyof typeof CGROUP_ERRORS;

/** A cgroup operation that failed. The message names the file; the remedy says what to do next. */
export class CgroupError extends Error {
  override name = "CgroupError";
  readonly remedy: string;
  constructor(
    readonly code: CgroupErrorCode,
    message: string,
    options: { remedy?: string; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.remedy = options.remedy ?? CGROUP_ERRORS[code];
  }
}

function errno(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}

function failed(code: CgroupErrorCode, act: string, path: string, cause: unknown): CgroupError {
  return new CgroupError(code, `cannot ${act} ${path}: ${errno(cause)}`, { cause });
}

// ---------------------------------------------------------------------------------------------------- detection

/** What detection may ask of the file system. Absent and unreadable are the same answer. */
export interface FileView {
  readFile(path: string): string | undefined;
  /** Whether this process may write the file, or make entries in the directory. man 2 access, W_OK */
  isWritable(path: string): boolean;
  list(path: string): string[];
}

export const REAL_FILES: FileView = {
  readFile(path) {
    try {
      return fs.readFileSync(path, "utf8");
    } catch {
      return undefined; // absent and unreadable are one answer, as the interface says
    }
  },
  isWritable(path) {
    try {
      fs.accessSync(path, fs.constants.W_OK);
      return true;
    } catch {
      return false;
    }
  },
  list(path) {
    try {
      return fs.readdirSync(path);
    } catch {
      return [];
    }
  },
};

/** Where a tree can be made. Plain data: it may cross to another process as JSON. */
export type CgroupSupport =
  | {
      available: true;
      version: "v2";
      base: { dir: string };
      /** Whether slots will have the cpu controller (weight, quota). memory and pids they always have. */
      cpu: boolean;
      /** Controllers must be enabled in the base first: it is delegated to us, or it is the hierarchy's root. */
      enable: boolean;
      /** The processes in the base that move into its leaf `keeper` first: the no-internal-process rule. v2.rst */
      move: number[];
    }
  | { available: true; version: "v1"; base: { memory: string; pids: string; cpu?: string } }
  | { available: false; reason: string; remedy: string };
export type AvailableCgroups = Extract<CgroupSupport, { available: true }>;

/** The leaf for the keeper's own processes in a delegated v2 cgroup. */
export const KEEPER_LEAF = "keeper";

interface Mount {
  root: string;
  point: string;
  type: string;
  superOptions: string[];
}

/** Space, tab, newline and backslash come as \040, \011, \012, \134. man 5 proc_pid_mountinfo */
function unescapeMount(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
}

/** man 5 proc_pid_mountinfo: `36 35 98:0 /root /point options [optional...] - type source superoptions`. */
function parseMounts(text: string): Mount[] {
  const mounts = new Map<string, Mount>();
  for (const line of text.split("\n")) {
    const [left, right] = line.split(" - ", 2);
    const [, , , root, point] = left?.split(" ") ?? [];
    const [type, , superOptions] = right?.split(" ") ?? [];
    if (root === undefined || point === undefined || type === undefined) continue;
    // A later mount on the same point hides the earlier one.
    const mount = {
      root: unescapeMount(root),
      point: unescapeMount(point),
      type,
      superOptions: superOptions?.split(",") ?? [],
    };
    mounts.delete(mount.point);
    mounts.set(mount.point, mount);
  }
  return [...mounts.values()].toReversed();
}

/** man 7 cgroups, /proc/[pid]/cgroup: `id:controllers:path`; the controllers are empty for v2. Paths may hold colons. */
function parseOwnCgroups(text: string): { controllers: string[]; path: string }[] {
  return [...text.matchAll(/^\d+:([^:]*):(\/.*)$/gm)].map(([, controllers, path]) => ({
    controllers: (controllers ?? "").split(",").filter((c) => c !== ""),
    path: path ?? "/",
  }));
}

/**
 * Our own cgroup as seen through a mount, then its ancestors up to the mount point. A mount shows only what is below
 * its root (bind mounts of containers), so the root is stripped from our path. Where the mount shows only a part
 * *below* our cgroup, that part's top is all we can see. A path that leaves the cgroup namespace ("..") cannot be
 * placed: man 7 cgroup_namespaces says to mount anew inside the namespace.
 */
function visibleChain(mount: Mount, path: string): { dirs: string[]; own: boolean } | undefined {
  const root = mount.root === "/" ? "" : mount.root;
  const own = path === mount.root || path.startsWith(`${root}/`);
  const below = !own && (path === "/" || root.startsWith(`${path}/`));
  const rest = own ? path.slice(root.length) : "";
  if ((!own && !below) || rest.split("/").includes("..") || (below && root.split("/").includes("..")))
    return undefined;
  const steps = rest.split("/").filter((s) => s !== "");
  const dirs = steps.map((_, i) => [mount.point, ...steps.slice(0, i + 1)].join("/").replace(/^\/\//, "/"));
  return { dirs: [mount.point, ...dirs].toReversed(), own };
}

/**
 * Where this process may make cgroups with memory and pids limits, or why it cannot; never a mix of v1 and v2.
 * v2 first, and only where the tree really has the controllers (a hybrid host mounts an empty v2 tree).
 * `ours` are the processes that may be moved aside when they are alone in a delegated v2 cgroup: the keeper, and
 * whoever started it in the same scope. Pure over `files`.
 */
export function detectCgroups(
  files: FileView = REAL_FILES,
  ours: readonly number[] = [process.pid],
): CgroupSupport {
  const mounts = parseMounts(files.readFile("/proc/self/mountinfo") ?? "");
  const cgroups = parseOwnCgroups(files.readFile("/proc/self/cgroup") ?? "");
  const v2 = detectV2(files, mounts, cgroups.find((c) => c.controllers.length === 0)?.path, ours);
  if (v2?.available === true) return v2;
  const v1 = detectV1(files, mounts, cgroups);
  if (v1?.available === true) return v1;
  return (
    v2 ??
    v1 ?? {
      available: false,
      reason: "no mounted cgroup hierarchy offers the memory and pids controllers to this process",
      remedy: `mount cgroup v2 at /sys/fs/cgroup (mount -t cgroup2 none /sys/fs/cgroup); in a container, ${CONTAINER}`,
    }
  );
}

function offers(controllers: Set<string>): boolean {
  return controllers.has("memory") && controllers.has("pids");
}

function detectV2(
  files: FileView,
  mounts: Mount[],
  path: string | undefined,
  ours: readonly number[],
): CgroupSupport | undefined {
  const words = (file: string) => new Set(files.readFile(file)?.split(/\s+/) ?? []);
  const writable = (dir: string) => files.isWritable(dir) && files.isWritable(`${dir}/cgroup.procs`);
  let refusal: CgroupSupport | undefined;
  for (const mount of mounts) {
    const chain = mount.type === "cgroup2" && path !== undefined ? visibleChain(mount, path) : undefined;
    const nearest = chain?.dirs[0];
    if (chain === undefined || nearest === undefined) continue;
    if (!chain.dirs.some((dir) => offers(words(`${dir}/cgroup.controllers`)))) continue;

    // 1. Our own cgroup, delegated to us and otherwise empty. (Not the leaf that an earlier keeper made for itself.)
    const controllers = words(`${nearest}/cgroup.controllers`);
    const delegated =
      chain.own &&
      !isRootCgroup(files, nearest) &&
      !nearest.endsWith(`/${KEEPER_LEAF}`) &&
      offers(controllers) &&
      writable(nearest) &&
      files.isWritable(`${nearest}/cgroup.subtree_control`);
    const inside = delegated ? parsePids(files.readFile(`${nearest}/cgroup.procs`) ?? "") : [];
    const others = inside.filter((pid) => !ours.includes(pid)).length;
    if (delegated && others === 0) {
      const cpu = controllers.has("cpu");
      return { available: true, version: "v2", base: { dir: nearest }, cpu, enable: true, move: inside };
    }

    // 2. The nearest cgroup that already hands its controllers down. Moving a process also needs write access to the
    // common ancestor's cgroup.procs (v2.rst, "Delegation Containment"), and every candidate is an ancestor of ours.
    // The hierarchy's root is exempt from the no-internal-process rule, so there the controllers can be enabled.
    for (const dir of chain.dirs) {
      if (!writable(dir)) continue;
      const enabled = words(`${dir}/cgroup.subtree_control`);
      if (offers(enabled)) {
        return {
          available: true,
          version: "v2",
          base: { dir },
          cpu: enabled.has("cpu"),
          enable: false,
          move: [],
        };
      }
      const root = words(`${dir}/cgroup.controllers`);
      if (isRootCgroup(files, dir) && offers(root) && files.isWritable(`${dir}/cgroup.subtree_control`)) {
        return {
          available: true,
          version: "v2",
          base: { dir },
          cpu: root.has("cpu"),
          enable: true,
          move: [],
        };
      }
    }
    refusal ??= delegated
      ? {
          available: false,
          reason: `${nearest} is delegated to this process but holds ${others} other process(es), and no ancestor that hands down memory and pids is writable`,
          remedy: DELEGATE,
        }
      : {
          available: false,
          reason: `cgroup v2 at ${nearest} is not delegated to this process, and no ancestor that hands down memory and pids is writable`,
          remedy: path === "/" ? CONTAINER : DELEGATE,
        };
  }
  return refusal;
}

/** v2.rst: cgroup.events "exists on non-root cgroups"; a namespace's root is no root in this sense. */
function isRootCgroup(files: FileView, dir: string): boolean {
  return files.readFile(`${dir}/cgroup.events`) === undefined;
}

function detectV1(
  files: FileView,
  mounts: Mount[],
  cgroups: { controllers: string[]; path: string }[],
): CgroupSupport | undefined {
  let refused: string | undefined;
  const base = (controller: string): string | undefined => {
    const path = cgroups.find((c) => c.controllers.includes(controller))?.path;
    if (path === undefined) return undefined;
    for (const mount of mounts) {
      if (mount.type !== "cgroup" || !mount.superOptions.includes(controller)) continue;
      const dirs = visibleChain(mount, path)?.dirs ?? [];
      const dir = dirs.find((d) => files.isWritable(d));
      if (dir !== undefined) return dir;
      refused ??= dirs[0] ?? `${mount.point} (which does not show ${path})`;
    }
    return undefined;
  };
  const [memory, pids, cpu] = ["memory", "pids", "cpu"].map(base);
  if (memory !== undefined && pids !== undefined) {
    return { available: true, version: "v1", base: { memory, pids, ...(cpu !== undefined && { cpu }) } };
  }
  if (refused === undefined) return undefined;
  return {
    available: false,
    reason: `cgroup v1 is mounted, but neither ${refused} nor any cgroup above it is writable`,
    remedy: `cgroup v1 cannot be delegated safely: run as root, or boot with cgroup v2; in a container, ${CONTAINER}`,
  };
}

// ---------------------------------------------------------------------------------------------------- names

/** A process, told apart from a later one with the same id by its start time (clock ticks since boot, as text). */
export interface Owner {
  pid: number;
  startTime: string;
}

/**
 * State (field 3) and start time (field 22) of /proc/PID/stat. man 5 proc_pid_stat. Field 2, the command's name in
 * parentheses, is chosen by the process and may hold spaces and parentheses: only the *last* ")" ends it.
 */
export function parseStat(text: string): { state: string; startTime: string } | undefined {
  const end = text.lastIndexOf(")");
  const fields = text
    .slice(end + 1)
    .trim()
    .split(/\s+/);
  const [state, startTime] = [fields[0], fields[19]];
  if (end < 0 || state === undefined || startTime === undefined || !/^\d+$/.test(startTime)) return undefined;
  return { state, startTime };
}

/** The name of the tree of a living process. Throws cgroup-no-process. */
export function ownerName(pid: number = process.pid, files: FileView = REAL_FILES): string {
  const stat = parseStat(files.readFile(`/proc/${pid}/stat`) ?? "");
  if (stat === undefined) throw new CgroupError("cgroup-no-process", `cannot read /proc/${pid}/stat`);
  return `doublehull-${pid}-${stat.startTime}`;
}

/** The owner whom a cgroup's name tells; undefined for every name that `ownerName` would not give. */
export function parseOwnerName(name: string): Owner | undefined {
  const match = /^doublehull-([1-9]\d{0,9})-(0|[1-9]\d{0,19})$/.exec(name);
  return match ? { pid: Number(match[1]), startTime: match[2] ?? "" } : undefined;
}

/** Whether the owner still runs. A zombie does not. In doubt (a /proc that hides processes) the answer is yes. */
function isAlive(owner: Owner): boolean {
  const stat = parseStat(REAL_FILES.readFile(`/proc/${owner.pid}/stat`) ?? "");
  if (stat !== undefined)
    return stat.startTime === owner.startTime && stat.state !== "Z" && stat.state !== "X";
  try {
    process.kill(owner.pid, 0);
    return true;
  } catch (error) {
    return errno(error) !== "ESRCH";
  }
}

// ---------------------------------------------------------------------------------------------------- the tree

/** The directories of one slot: plain data for another process. On v2 they are one and the same. */
export interface SlotPaths {
  version: "v1" | "v2";
  memory: string;
  pids: string;
  cpu?: string;
}

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
      if (support.move.length > 0) {
        mkdir(`${dir}/${KEEPER_LEAF}`, "may exist");
        for (const pid of support.move) writeOnce(`${dir}/${KEEPER_LEAF}/cgroup.procs`, String(pid), "ESRCH");
      }
      if (support.enable) writeOnce(`${dir}/cgroup.subtree_control`, enable);
      mkdir(`${dir}/${this.name}`);
      writeOnce(`${dir}/${this.name}/cgroup.subtree_control`, enable);
      if (cpuWeight !== undefined && support.cpu)
        writeOnce(`${dir}/${this.name}/cpu.weight`, String(cpuWeight));
    } else {
      for (const base of basesOf(support)) mkdir(`${base}/${this.name}`);
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
    if (support.version === "v2" && support.move.length > 0) leaveDelegated(support.base.dir);
    this.#removed = true;
  }
}

function basesOf(support: AvailableCgroups): Set<string> {
  if (support.version === "v2") return new Set([support.base.dir]);
  const { memory, pids, cpu } = support.base;
  return new Set(cpu === undefined ? [memory, pids] : [memory, pids, cpu]);
}

/** The distinct directories of a slot: one on v2, and controllers that v1 mounts together share one too. */
function dirsOf(paths: SlotPaths): Set<string> {
  return new Set(
    paths.cpu === undefined ? [paths.memory, paths.pids] : [paths.memory, paths.pids, paths.cpu],
  );
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

/**
 * Removes the trees under the base whose keeper no longer exists (or whose id now belongs to a later process), killing
 * what is left inside. Every other name, and a tree that holds a process which this pid namespace cannot see, is left
 * alone. Returns the names removed; a tree that resists stays for the next sweep.
 */
export function sweepCgroups(support: CgroupSupport): string[] {
  if (!support.available) return [];
  const bases = [...basesOf(support)];
  const names = new Set(bases.flatMap((base) => REAL_FILES.list(base)));
  return [...names].filter((name) => {
    const owner = parseOwnerName(name);
    if (owner === undefined || isAlive(owner)) return false;
    try {
      const tops = bases.map((base) => `${base}/${name}`);
      // v2 lists a process of another pid namespace as 0: its owner's id means nothing to us.
      if (tops.flatMap(subtree).some((dir) => listPids(dir).includes(0))) return false;
      for (const top of tops) removeTop(top);
      return true;
    } catch {
      return false; // resists: stays for the next sweep, as said above
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

function parsePids(text: string): number[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map(Number);
}

/**
 * The processes of one cgroup. Opened anew each time: a v1 descriptor answers from a list that the kernel keeps for up
 * to a second (kernel/cgroup/cgroup-v1.c, CGROUP_PIDLIST_DESTROY_DELAY). Empty when the cgroup is gone.
 */
function listPids(dir: string): number[] {
  try {
    return parsePids(fs.readFileSync(`${dir}/cgroup.procs`, "utf8"));
  } catch (error) {
    if (errno(error) === "ENOENT" || errno(error) === "ENODEV") return [];
    throw failed("cgroup-read", "read", `${dir}/cgroup.procs`, error);
  }
}

/** SIGKILL to every process of one of our cgroups. Does not wait for their end. */
function killAll(dir: string): void {
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

function mkdir(dir: string, existing?: "may exist"): void {
  try {
    fs.mkdirSync(dir, 0o755);
  } catch (error) {
    if (errno(error) === "EEXIST" && existing !== undefined) return;
    throw failed(errno(error) === "EEXIST" ? "cgroup-exists" : "cgroup-create", "make", dir, error);
  }
}

/** One write(2) to an existing file: cgroup files take a value whole or not at all. */
function writeRaw(path: string, text: string): void {
  const fd = fs.openSync(path, fs.constants.O_WRONLY);
  try {
    fs.writeSync(fd, text);
  } finally {
    fs.closeSync(fd);
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

// ---------------------------------------------------------------------------------------------------- one slot

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

/** An open control file. pread and pwrite at 0: the file is made anew by every read and takes every write whole. */
class ControlFile {
  static readonly #buffer = Buffer.alloc(4096);
  private constructor(
    readonly path: string,
    readonly fd: number,
  ) {}

  static open(path: string): ControlFile {
    const file = ControlFile.openIfPresent(path);
    if (file === undefined) throw new CgroupError("cgroup-open", `cannot open ${path}: ENOENT`);
    return file;
  }

  static openIfPresent(path: string): ControlFile | undefined {
    for (const flags of [fs.constants.O_RDWR, fs.constants.O_RDONLY]) {
      try {
        return new ControlFile(path, fs.openSync(path, flags));
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
      const length = fs.readSync(this.fd, ControlFile.#buffer, 0, ControlFile.#buffer.length, 0);
      return ControlFile.#buffer.toString("latin1", 0, length).trimEnd();
    } catch (error) {
      throw failed("cgroup-read", "read", this.path, error);
    }
  }

  write(text: string): void {
    try {
      fs.writeSync(this.fd, text, 0, "latin1");
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
}

/**
 * The supervisor's grip on one slot: its control files, opened once and kept. Counters run on across the workers that
 * use the slot, so callers compare two readings. Whoever opens it closes it.
 */
export class Slot {
  #quota: string | undefined;
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
    const must = (path: string) => keep(ControlFile.open(path));
    const may = (path: string) => keep(ControlFile.openIfPresent(path));
    const { memory, pids, cpu } = paths;
    try {
      const pidsFiles = { pidsMax: must(`${pids}/pids.max`), pidsEvents: must(`${pids}/pids.events`) };
      if (paths.version === "v2") {
        return new Slot(paths, {
          ...pidsFiles,
          limit: must(`${memory}/memory.max`),
          swap: may(`${memory}/memory.swap.max`),
          oomGroup: must(`${memory}/memory.oom.group`), // Linux 4.19
          usage: must(`${memory}/memory.current`),
          peak: may(`${memory}/memory.peak`), // Linux 5.19
          oom: must(`${memory}/memory.events`),
          quota: cpu === undefined ? undefined : may(`${cpu}/cpu.max`),
          period: undefined,
          cpuTime: may(`${memory}/cpu.stat`), // there with or without the controller. v2.rst
        });
      }
      return new Slot(paths, {
        ...pidsFiles,
        limit: must(`${memory}/memory.limit_in_bytes`),
        swap: may(`${memory}/memory.memsw.limit_in_bytes`),
        oomGroup: undefined,
        usage: must(`${memory}/memory.usage_in_bytes`),
        peak: may(`${memory}/memory.max_usage_in_bytes`),
        oom: must(`${memory}/memory.oom_control`),
        quota: cpu === undefined ? undefined : may(`${cpu}/cpu.cfs_quota_us`),
        period: cpu === undefined ? undefined : may(`${cpu}/cpu.cfs_period_us`),
        cpuTime: cpu === undefined ? undefined : may(`${cpu}/cpuacct.usage`), // only where mounted with cpu
      });
    } catch (error) {
      for (const file of opened) fs.closeSync(file.fd);
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
    for (const file of all) if (file !== undefined) fs.closeSync(file.fd);
  }

  get #files(): SlotFiles {
    if (this.#open === undefined)
      throw new CgroupError("cgroup-read", `the slot ${this.paths.memory} is closed`);
    return this.#open;
  }
}

/** A "flat keyed" file: one `key value` per line. v2.rst "Format" */
function keyedValue(text: string, key: string): number | undefined {
  for (const line of text.split("\n")) {
    if (line.startsWith(`${key} `)) return Number(line.slice(key.length + 1));
  }
  return undefined;
}

function requireInteger(name: string, value: number, least: number, most: number): void {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return;
  throw new CgroupError(
    "cgroup-bad-limit",
    `${name} is ${value}: a whole number from ${least} to ${most} is needed`,
  );
}
