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

export function errno(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}

export function failed(code: CgroupErrorCode, act: string, path: string, cause: unknown): CgroupError {
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
export function parseOwnCgroups(text: string): { controllers: string[]; path: string }[] {
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
 * `ours` are the processes that may be moved aside when they and what they started are alone in a delegated v2 cgroup:
 * the keeper, and whoever started it in the same scope; other keepers of theirs may be on their way. Pure over `files`.
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
    const others = inside.filter((pid) => !descendsFrom(pid, ours, files)).length;
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

/**
 * A process, told apart from a later one with the same id by its start time (clock ticks since boot, as text). The id
 * means something in its own pid namespace alone: containers may share one tree of cgroups.
 */
export interface Owner {
  pid: number;
  startTime: string;
  /** Inode of the pid namespace; no two that exist at once have the same. man 7 namespaces "/proc/pid/ns" */
  pidNamespace: string;
}

/** Whether a process is one of `ours` or was started by one, directly or not, as far as its ancestors still live. */
export function descendsFrom(pid: number, ours: readonly number[], files: FileView): boolean {
  for (let at: number | undefined = pid; at !== undefined && at > 0;) {
    if (ours.includes(at)) return true;
    at = parseStat(files.readFile(`/proc/${at}/stat`) ?? "")?.parent;
  }
  return false;
}

/**
 * State (field 3), parent (field 4) and start time (field 22) of /proc/PID/stat. man 5 proc_pid_stat. Field 2, the command's name in
 * parentheses, is chosen by the process and may hold spaces and parentheses: only the *last* ")" ends it.
 */
export function parseStat(text: string): { state: string; parent: number; startTime: string } | undefined {
  const end = text.lastIndexOf(")");
  const fields = text
    .slice(end + 1)
    .trim()
    .split(/\s+/);
  const [state, parent, startTime] = [fields[0], Number(fields[1]), fields[19]];
  if (end < 0 || state === undefined || startTime === undefined || !/^\d+$/.test(startTime)) return undefined;
  return { state, parent, startTime };
}

/** Inode of the pid namespace that this process is in. Throws cgroup-no-process where /proc does not tell. */
export function ownPidNamespace(): string {
  try {
    const inode = /^pid:\[(\d+)\]$/.exec(fs.readlinkSync("/proc/self/ns/pid"))?.[1];
    if (inode !== undefined) return inode;
  } catch (error) {
    throw failed("cgroup-no-process", "read", "/proc/self/ns/pid", error);
  }
  throw new CgroupError("cgroup-no-process", "/proc/self/ns/pid is no pid namespace");
}

/** The name of the tree of a living process of this pid namespace. Throws cgroup-no-process. */
export function ownerName(
  pid: number = process.pid,
  files: FileView = REAL_FILES,
  pidNamespace: string = ownPidNamespace(),
): string {
  const stat = parseStat(files.readFile(`/proc/${pid}/stat`) ?? "");
  if (stat === undefined) throw new CgroupError("cgroup-no-process", `cannot read /proc/${pid}/stat`);
  return `doublehull-${pid}-${stat.startTime}-${pidNamespace}`;
}

/** The owner whom a cgroup's name tells; undefined for every name that `ownerName` would not give. */
export function parseOwnerName(name: string): Owner | undefined {
  const match = /^doublehull-([1-9]\d{0,9})-(0|[1-9]\d{0,19})-([1-9]\d{0,19})$/.exec(name);
  return match
    ? { pid: Number(match[1]), startTime: match[2] ?? "", pidNamespace: match[3] ?? "" }
    : undefined;
}

/**
 * Whether the owner still runs. A zombie does not. In doubt (another pid namespace, a /proc that hides processes) the
 * answer is yes.
 */
export function isAlive(owner: Owner): boolean {
  if (owner.pidNamespace !== ownPidNamespace()) return true;
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

export function parsePids(text: string): number[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map(Number);
}
