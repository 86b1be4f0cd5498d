/**
 * Entering the jail, in order. The order is a security property: what a later step needs must not be given away by an
 * earlier one, and the filter comes last because it refuses every other step. `enterZygote` does once, before any
 * fork, all that a fork inherits; `lockDown` does in each worker what is its own. Both run on the only thread.
 * THREATS: ids before capabilities, capabilities before no return, Landlock after the mounts that it would refuse.
 */
import fs from "node:fs";
import { CAP, CAPABILITY_VERSION_3, CLOSE_RANGE, KEYCTL, MNT_DETACH, MS, PR, PROT, RLIMIT, SECUREBITS, SIG, SIGACTION_SIZE, SIG_DFL } from "./abi/linux.js"; // prettier-ignore
import { JailError, type JailErrorCode } from "./errors.js";
import { installFilter, type FilterProgram } from "./filter.js";
import { restrictSelf } from "./landlock.js";
import { KernelError, Memory, sys, trySys, type SystemCall } from "./libc.ffi.js";
import type { JailPlan, LayerName } from "./plan.js";
import { getLimit, setLimit } from "./rlimit.js";
import { WORKER_SOCKET_FD } from "./seccomp.js";

/** Runs one step unless the lab left its layer out; a kernel's refusal becomes an error that names the layer. */
function step(plan: JailPlan, layer: LayerName, code: JailErrorCode, run: () => void): void {
  if (plan.without.includes(layer)) return;
  try {
    run();
  } catch (error) {
    throw new JailError(code, `${layer}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

/** The zygote's way in. It is pid 1 of its namespaces and root inside its user namespace, and has one thread. */
export function enterZygote(plan: JailPlan): void {
  step(plan, "user-namespace", "user-namespace", becomeRootInside);
  step(plan, "namespace-limits", "namespace", allowNoNamespaces);
  step(
    plan,
    "session-keyring",
    "keyring",
    () => plan.keyrings && sys("keyctl", KEYCTL.JOIN_SESSION_KEYRING, 0, 0, 0, 0),
  );
  step(plan, "pid-namespace", "namespace", () => sys("prctl", PR.SET_PDEATHSIG, SIG.KILL, 0, 0, 0));
  step(plan, "sealed-code", "mdwe", () => plan.compiles || sealWritableCode());
  step(plan, "empty-root", "empty-root", enterEmptyRoot);
  step(plan, "uts-namespace", "namespace", () => sys("sethostname", new Memory("jail"), 4));
  step(plan, "rlimits", "capabilities", limitForAll);
  step(plan, "capabilities", "capabilities", dropBoundingSet);
  step(plan, "speculation", "speculation", () => plan.speculation && restrictSpeculation());
  step(plan, "no-new-privs", "seccomp", () => sys("prctl", PR.SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  step(plan, "landlock", "landlock", () => restrictSelf(plan.landlock));
  step(plan, "mdwe", "mdwe", () => plan.mdwe && sys("prctl", PR.SET_MDWE, PR.MDWE_REFUSE_EXEC_GAIN, 0, 0, 0));
  defaultCrashSignals();
  // A change of ids made us undumpable: our workers must be traceable until each has said otherwise. man 2 prctl
  sys("prctl", PR.SET_DUMPABLE, 1, 0, 0, 0);
}

/** What a worker needs from the zygote, made before the fork. */
export interface LockDownKit {
  filter: FilterProgram;
  /** Opened cgroup.procs by slot: the kernel checks the opener's right to them, not ours. man 7 cgroups */
  join: readonly (readonly number[])[];
}

/** A worker's own steps. After the last one only the profile's system calls are left, for good. */
export function lockDown(
  plan: JailPlan,
  kit: LockDownKit,
  slot: number,
  socket: number,
  gate: number,
  call: SystemCall = sys,
): void {
  const on = (layer: LayerName) => !plan.without.includes(layer);
  for (const fd of kit.join[slot] ?? []) call("write", fd, SELF, 1);
  waitForTracer(gate, call);
  keepOnly(socket, call);
  if (plan.coreScheduling)
    call("prctl", PR.SCHED_CORE, PR.SCHED_CORE_CREATE, 0, PR.SCHED_CORE_SCOPE_THREAD_GROUP, 0);
  if (on("rlimits")) for (const resource of [RLIMIT.NPROC, RLIMIT.NOFILE]) setLimit(0, resource, 0, call);
  if (on("capabilities")) call("capset", CAPABILITY_HEADER, NO_CAPABILITIES);
  if (on("not-dumpable") && !plan.dumpable) call("prctl", PR.SET_DUMPABLE, 0, 0, 0, 0);
  if (on("seccomp")) installFilter(kit.filter, call);
}

/**
 * The way through `lockDown` without a call, in the zygote: V8 compiles a function when it first runs, and each worker
 * would do that anew.
 */
export function rehearseLockDown(plan: JailPlan, kit: LockDownKit): void {
  for (let i = 0; i < 12; i++) lockDown(plan, kit, 0, 0, 0, (name) => (name === "read" ? 1 : 0));
}

// ---- the steps ------------------------------------------------------------------------------------------------------

const SELF = new Memory("0"); // cgroup.procs takes "0" for the writer itself. man 7 cgroups
const NO_CAPABILITIES = new Memory(24);
const CAPABILITY_HEADER = new Memory(8);
CAPABILITY_HEADER.bytes.writeUInt32LE(CAPABILITY_VERSION_3, 0);

/** The keeper has written the maps: id 0 inside is an unprivileged one outside. man 7 user_namespaces */
function becomeRootInside(): void {
  sys("setresgid", 0, 0, 0);
  sys("setresuid", 0, 0, 0);
}

/**
 * Nobody below this user namespace makes another one, nor any namespace but pid ones: each worker needs one of those,
 * and their count falls only some time after a worker's end, so no exact limit can be set; to make one takes a
 * capability that no worker has. Where /proc/sys is read-only (containers) nothing happens: the zygote's probe tells.
 * man 7 namespaces "/proc/sys/user", Linux 4.9
 */
export function allowNoNamespaces(): void {
  for (const kind of ["user", "mnt", "net", "ipc", "uts", "cgroup", "time"]) {
    try {
      fs.writeFileSync(`/proc/sys/user/max_${kind}_namespaces`, "0");
    } catch {
      // an extra that cannot be had, as said above
    }
  }
}

/**
 * Nothing is masked because nothing is there: one empty tmpfs becomes the root, the old one is detached, and the new
 * one turns read-only. /proc serves as mount point, being the one directory that is everywhere. man 2 pivot_root
 */
export function enterEmptyRoot(): void {
  const none = new Memory("none");
  sys("mount", none, new Memory("/"), none, MS.REC | MS.PRIVATE, 0);
  const here = new Memory("/proc");
  const options = new Memory("size=4k,nr_inodes=2,mode=555");
  const flags = MS.NOSUID | MS.NODEV | MS.NOEXEC;
  sys("mount", none, here, new Memory("tmpfs"), flags, options);
  sys("chdir", here);
  const dot = new Memory(".");
  sys("pivot_root", dot, dot);
  sys("umount2", dot, MNT_DETACH);
  const root = new Memory("/");
  sys("mount", none, root, none, MS.REMOUNT | MS.RDONLY | flags, 0);
  sys("chdir", root);
}

/**
 * A warm V8 holds two or three pages that are writable and executable. They become read-execute; the flags that the
 * zygote runs with (no compiler for JavaScript) keep V8 from wanting to write them again. man 5 proc "maps"
 */
function sealWritableCode(): void {
  for (const line of fs.readFileSync("/proc/self/maps", "latin1").split("\n")) {
    const [range = "", mode = ""] = line.split(" ");
    if (!/^.wx/.test(mode)) continue;
    const [start, end] = range.split("-").map((hex) => Number.parseInt(hex, 16)) as [number, number];
    sys("mprotect", start, end - start, PROT.READ | PROT.EXEC);
  }
}

/** Limits that hold for the zygote as well and are inherited; hard ones cannot be raised again. man 2 getrlimit */
function limitForAll(): void {
  for (const name of ["CORE", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO"] as const)
    setLimit(0, RLIMIT[name], 0);
  setLimit(0, RLIMIT.STACK, Math.min(8 * 1024 * 1024, getLimit(RLIMIT.STACK).hard));
}

/**
 * Bounding and ambient sets and securebits; the permitted set keeps what forking and tracing workers need until each
 * worker empties its own. A kernel may know more capabilities than our table: drop until it answers EINVAL.
 */
function dropBoundingSet(): void {
  sys("prctl", PR.CAP_AMBIENT, PR.CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  for (let cap = 0; cap < 64; cap++) {
    const ret = trySys("prctl", PR.CAPBSET_DROP, cap, 0, 0, 0);
    if (ret === -22 && cap > CAP.length - 1) break;
    if (ret < 0 && cap < CAP.length && ret !== -22) throw new KernelError("prctl(PR_CAPBSET_DROP)", -ret);
  }
  sys("prctl", PR.SET_SECUREBITS, SECUREBITS.ALL_LOCKED, 0, 0, 0);
  const needed = new Memory(24);
  const bits =
    (1 << CAP.indexOf("SYS_ADMIN")) | (1 << CAP.indexOf("SYS_PTRACE")) | (1 << CAP.indexOf("KILL"));
  needed.bytes.writeUInt32LE(bits, 0); // effective
  needed.bytes.writeUInt32LE(bits, 4); // permitted; inheritable stays empty
  sys("capset", CAPABILITY_HEADER, needed);
}

/** Controls that the CPU does not need or the kernel has fixed answer ENXIO, ENODEV or EPERM-when-already-forced. */
function restrictSpeculation(): void {
  for (const control of [PR.SPEC_STORE_BYPASS, PR.SPEC_INDIRECT_BRANCH]) {
    const state = trySys("prctl", PR.GET_SPECULATION_CTRL, control, 0, 0, 0);
    if (state < 0) throw new KernelError("prctl(PR_GET_SPECULATION_CTRL)", -state);
    const held = state === PR.SPEC_NOT_AFFECTED || (state & (PR.SPEC_DISABLE | PR.SPEC_FORCE_DISABLE)) !== 0;
    if (!held) sys("prctl", PR.SET_SPECULATION_CTRL, control, PR.SPEC_FORCE_DISABLE, 0, 0);
  }
}

/**
 * Node's handlers would turn a crash into a refused system call. The kernel's default ends the process with the
 * signal, so that crashes do not look like attacks. man 2 rt_sigaction
 */
function defaultCrashSignals(): void {
  const action = new Memory(SIGACTION_SIZE);
  action.bytes.writeBigUInt64LE(BigInt(SIG_DFL), 0);
  for (const signal of [SIG.SEGV, SIG.BUS, SIG.ILL, SIG.FPE, SIG.TRAP, SIG.ABRT]) {
    sys("rt_sigaction", signal, action, 0, 8);
  }
}

/**
 * The filter answers refused calls by asking the tracer; without one that is a mere ENOSYS. So nobody goes on before
 * the zygote has attached: then it writes one byte.
 */
function waitForTracer(gate: number, call: SystemCall): void {
  if (call("read", gate, GATE_BYTE, 1) !== 1) throw new JailError("seccomp", "the zygote has gone");
}

const GATE_BYTE = new Memory(1);

/** One descriptor stays, at the number that the filter knows. */
function keepOnly(socket: number, call: SystemCall): void {
  if (socket !== WORKER_SOCKET_FD) call("dup3", socket, WORKER_SOCKET_FD, 0);
  call("close_range", 0, WORKER_SOCKET_FD - 1, 0);
  call("close_range", WORKER_SOCKET_FD + 1, CLOSE_RANGE.LAST, 0);
}
