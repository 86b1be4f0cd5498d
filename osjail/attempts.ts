/**
 * The program that `doctor` starts: it tries every layer by itself, each in a fork of its own, and writes one line of
 * JSON for each to its standard output. An attempt shows the effect, after a control that shows that there was
 * something to stop. It is a process of its own because forks of Node need the filter under which a keeper starts, and
 * because what locks a process down must not lock the doctor.
 */
import fs from "node:fs";
import { CAPABILITY_VERSION_3, CLONE, CLONE_ARGS, ERRNO, KEYCTL, KEY_SPEC, MAP, O, PR, PROT, PTRACE, RLIMIT, SIG, WAIT, errnoName, exited, stopSignal, termSignal } from "./abi/linux.js"; // prettier-ignore
import { detectCgroups, REAL_FILES } from "./cgroup.js";
import { CgroupTree } from "./cgroup-tree.js";
import { allowNoNamespaces, enterEmptyRoot } from "./enter.js";
import { FilterProgram, installFilter } from "./filter.js";
import { spareIds, writeIdMaps, type JailIds } from "./ids.js";
import { landlockAbi, landlockRules, restrictSelf } from "./landlock.js";
import { hostArch, KernelError, Memory, sys, syscallNumber, trySys } from "./libc.ffi.js";
import type { LayerName } from "./plan.js";
import { setLimit } from "./rlimit.js";
import { compile, PROFILES, type Refusal } from "./seccomp.js";

export interface Attempt {
  layer: LayerName | "naming";
  ok: boolean;
  /** What was tried and seen. */
  detail: string;
  /** The step that failed and the kernel's answer: "clone EPERM", "act EACCES". Empty where none did. */
  refused: string;
}

/** What came of a fork: the effect was seen or not, the kernel refused a step, or a signal ended it. */
type Ending = { seen: boolean } | { refused: "clone" | "id-map" | "act"; errno: string } | { signal: number };

/** EPERM and the like, of the kernel's refusals and of Node's. */
const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error ? String(error.code) : String(error);

const SEEN = 0;
const NOT_SEEN = 200;

/** Closed on exec; the caller closes both ends. */
function pipe(): [reader: number, writer: number] {
  const ends = new Memory(8);
  sys("pipe2", ends, O.CLOEXEC);
  return [ends.bytes.readInt32LE(0), ends.bytes.readInt32LE(4)];
}

/** As the keeper of a real jail would choose them. */
const ids: JailIds =
  sys("geteuid") === 0 && spareIds()
    ? { kind: "high" }
    : { kind: "own", uid: sys("geteuid"), gid: sys("getegid") };

/** Runs `act` in a fork in new namespaces; true means that the effect was seen, a KernelError that it was refused. */
function inChild(flags: number, act: () => boolean): Ending {
  const [wait, go] = pipe();
  try {
    const pid = fork(flags);
    if (pid < 0) return { refused: "clone", errno: errnoName(-pid) };
    if (pid === 0) {
      sys("close", go);
      exitWith(() => sys("read", wait, new Memory(1), 1) === 1 && act());
    }
    let refusal: Ending | undefined;
    try {
      if ((flags & CLONE.NEWUSER) !== 0) writeIdMaps(ids, pid);
      sys("write", go, new Memory("+"), 1);
    } catch (error) {
      refusal = { refused: "id-map", errno: codeOf(error) };
      trySys("kill", pid, SIG.KILL);
    }
    const status = waitFor(pid);
    return refusal ?? endingOf(status);
  } finally {
    sys("close", wait);
    sys("close", go);
  }
}

function fork(flags: number): number {
  const args = new Memory(CLONE_ARGS.size);
  args.bytes.writeBigUInt64LE(BigInt(flags), CLONE_ARGS.flags);
  args.bytes.writeBigUInt64LE(BigInt(SIG.CHLD), CLONE_ARGS.exit_signal);
  return trySys("clone3", args, CLONE_ARGS.size);
}

/** The child's whole life: it must never come back to the event loop. */
function exitWith(act: () => boolean): never {
  let code = NOT_SEEN;
  try {
    if (act()) code = SEEN;
  } catch (error) {
    if (error instanceof KernelError) code = error.errno;
  }
  for (;;) trySys("exit_group", code);
}

function waitFor(pid: number): number {
  const status = new Memory(8);
  sys("wait4", pid, status, WAIT.__WALL, 0);
  return status.bytes.readInt32LE(0);
}

function endingOf(status: number): Ending {
  const code = exited(status);
  if (code === undefined) return { signal: termSignal(status) ?? 0 };
  return code === SEEN || code === NOT_SEEN
    ? { seen: code === SEEN }
    : { refused: "act", errno: errnoName(code) };
}

function tell(layer: Attempt["layer"], ending: Ending, good: string): void {
  const attempt = (ok: boolean, detail: string, refused: string): Attempt => ({ layer, ok, detail, refused });
  let answer: Attempt;
  if ("seen" in ending)
    answer = attempt(ending.seen, ending.seen ? good : "allowed, but without its effect", "");
  else if ("signal" in ending) answer = attempt(false, `the attempt died of signal ${ending.signal}`, "");
  else {
    const { refused, errno } = ending;
    const step = { clone: "clone3", "id-map": "writing the id map", act: "the act" }[refused];
    answer = attempt(false, `${step} was refused: ${errno}`, `${refused} ${errno}`);
  }
  fs.writeSync(1, `${JSON.stringify(answer)}\n`);
}

// ---- the attempts ---------------------------------------------------------------------------------------------------

const spaceOf = (name: string): string => fs.readlinkSync(`/proc/self/ns/${name}`);

/** Root inside, as the id map says. */
function becomeRoot(): boolean {
  sys("setresgid", 0, 0, 0);
  sys("setresuid", 0, 0, 0);
  return sys("geteuid") === 0;
}

function namespaces(): void {
  tell("user-namespace", inChild(CLONE.NEWUSER, becomeRoot), "an own one, with its id map");
  const others = [
    ["pid-namespace", "pid", CLONE.NEWPID],
    ["mount-namespace", "mnt", CLONE.NEWNS],
    ["net-namespace", "net", CLONE.NEWNET],
    ["ipc-namespace", "ipc", CLONE.NEWIPC],
    ["uts-namespace", "uts", CLONE.NEWUTS],
    ["cgroup-namespace", "cgroup", CLONE.NEWCGROUP],
    ["time-namespace", "time", CLONE.NEWTIME],
  ] as const;
  for (const [layer, name, flag] of others) {
    if (!fs.existsSync(`/proc/self/ns/${name}`)) {
      tell(layer, { refused: "act", errno: "ENOSYS" }, "");
      continue;
    }
    const before = spaceOf(name);
    tell(
      layer,
      inChild(CLONE.NEWUSER + flag, () => spaceOf(name) !== before),
      "an own one",
    );
  }
  const limited = inChild(CLONE.NEWUSER, () => {
    becomeRoot();
    sys("unshare", CLONE.NEWUSER);
    allowNoNamespaces();
    return trySys("unshare", CLONE.NEWUSER) === -ERRNO.ENOSPC;
  });
  tell(
    "namespace-limits",
    limited,
    "a further user namespace was refused after the limit, and made before it",
  );
  const session = () => sys("keyctl", KEYCTL.GET_KEYRING_ID, KEY_SPEC.SESSION_KEYRING, 0, 0, 0);
  const rekeyed = inChild(CLONE.NEWUSER, () => {
    becomeRoot();
    const before = session();
    sys("keyctl", KEYCTL.JOIN_SESSION_KEYRING, 0, 0, 0, 0);
    return session() !== before;
  });
  tell("session-keyring", rekeyed, "an own one, instead of the caller's");
  const emptied = inChild(CLONE.NEWUSER + CLONE.NEWNS, () => {
    const before = fs.readdirSync("/").length;
    becomeRoot();
    enterEmptyRoot();
    return before > 0 && fs.readdirSync("/").length === 0;
  });
  tell("empty-root", emptied, "pivot_root to an empty tmpfs; nothing of the host is left");
}

/** What only root can give, and what its supervisor must be able to see all the same. */
function otherUid(): void {
  if (ids.kind === "own") return; // not tried: there is no other id to give
  const uidOf = (pid: number) => /^Uid:\s*(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, "latin1"))?.[1];
  const grouped = trySys("setgroups", 0, 0); // ours, as a keeper does: inside the namespace they are denied
  if (grouped < 0) return tell("other-uid", { refused: "act", errno: errnoName(-grouped) }, "");
  const another = heldChild(
    CLONE.NEWUSER,
    () => {
      becomeRoot();
      sys("prctl", PR.SET_DUMPABLE, 1, 0, 0, 0); // as a zygote's workers are: /proc is then the new uid's
    },
    (pid) => uidOf(pid) !== uidOf(process.pid) && fs.readdirSync(`/proc/${pid}/fd`).length > 0,
  );
  tell(
    "other-uid",
    another,
    "a worker had an unprivileged uid of its own, and its descriptors could be seen",
  );
}

const rename = (): number => trySys("sethostname", new Memory("doctor"), 6);

function privileges(): void {
  const header = new Memory(8);
  header.bytes.writeUInt32LE(CAPABILITY_VERSION_3, 0);
  const dropped = inChild(CLONE.NEWUSER + CLONE.NEWUTS, () => {
    sys("setresuid", 0, 0, 0);
    const before = rename();
    sys("capset", header, new Memory(24));
    return before === 0 && rename() === -1;
  });
  tell("capabilities", dropped, "dropped; what they allowed is then refused");
  const held = inChild(0, () => {
    sys("prctl", PR.SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return sys("prctl", PR.GET_NO_NEW_PRIVS, 0, 0, 0, 0) === 1;
  });
  tell("no-new-privs", held, "set, and cannot be unset");
}

const openRoot = (): number => trySys("openat", -100, new Memory("/"), O.CLOEXEC, 0);
const mapCode = (): number =>
  trySys("mmap", 0, 4096, PROT.READ | PROT.WRITE | PROT.EXEC, MAP.PRIVATE | MAP.ANONYMOUS, -1, 0);
const mapMuch = (): number =>
  trySys("mmap", 0, 1 << 26, PROT.READ | PROT.WRITE, MAP.PRIVATE | MAP.ANONYMOUS, -1, 0);
const EACCES = -13;
const ENOMEM = -12;

function walls(): void {
  const abi = landlockAbi();
  const rules = landlockRules(abi);
  const walled =
    rules === undefined
      ? ({ refused: "act", errno: "ENOSYS" } as const)
      : inChild(0, () => {
          sys("prctl", PR.SET_NO_NEW_PRIVS, 1, 0, 0, 0);
          const before = openRoot();
          restrictSelf(rules);
          return before >= 0 && openRoot() === EACCES;
        });
  tell("landlock", walled, `ABI ${abi}; a domain without rights could not open /`);

  const sealed = inChild(0, () => {
    const before = mapCode();
    sys("prctl", PR.SET_MDWE, PR.MDWE_REFUSE_EXEC_GAIN, 0, 0, 0);
    return before >= 0 && mapCode() === EACCES;
  });
  tell("mdwe", sealed, "writable code could not be mapped");

  const limited = inChild(0, () => {
    const before = mapMuch();
    setLimit(0, RLIMIT.DATA, 1 << 20);
    return before >= 0 && mapMuch() === ENOMEM;
  });
  tell("rlimits", limited, "memory beyond RLIMIT_DATA was refused");

  const hidden = heldChild(
    0,
    () => void sys("prctl", PR.SET_DUMPABLE, 0, 0, 0, 0),
    (pid) => fs.readlinkSync(`/proc/${pid}/ns/user`) !== "",
  );
  tell("not-dumpable", hidden, "a worker may be undumpable and still be attested");
}

/** A fork that does `first`, then waits until `look` has seen it from outside, and is killed. */
function heldChild(flags: number, first: () => void, look: (pid: number) => boolean): Ending {
  const [wait, go] = pipe();
  const [ready, say] = pipe();
  let pid = fork(flags);
  if (pid === 0) {
    sys("close", go);
    exitWith(() => {
      if (sys("read", wait, new Memory(1), 1) !== 1) return false;
      first();
      sys("write", say, new Memory("+"), 1);
      for (;;) sys("ppoll", 0, 0, 0, 0, 0);
    });
  }
  sys("close", say);
  let step: "id-map" | "act" = "id-map";
  try {
    if (pid < 0) return { refused: "clone", errno: errnoName(-pid) };
    if ((flags & CLONE.NEWUSER) !== 0) writeIdMaps(ids, pid);
    step = "act";
    sys("write", go, new Memory("+"), 1);
    if (sys("read", ready, new Memory(1), 1) === 1) return { seen: look(pid) };
    const status = waitFor(pid);
    pid = -1;
    return endingOf(status);
  } catch (error) {
    return { refused: step, errno: codeOf(error) };
  } finally {
    for (const fd of [wait, go, ready]) sys("close", fd);
    if (pid > 0) {
      trySys("kill", pid, SIG.KILL);
      waitFor(pid);
    }
  }
}

function filterFor(refusal: Refusal): FilterProgram {
  return new FilterProgram(compile(PROFILES.quickjs, { arch: hostArch(), refusal }));
}

/** The act: a call that is not on the list, before the filter as a control and after it. */
const callUnlisted = (filter: FilterProgram) => (): boolean => {
  sys("prctl", PR.SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (sys("getppid") <= 0) return false;
  installFilter(filter);
  sys("getppid");
  return false; // a filter that lets it live is none
};

function filters(): void {
  const killed = inChild(0, callUnlisted(filterFor("kill")));
  const seen: Ending = "signal" in killed ? { seen: killed.signal === SIG.SYS } : killed;
  tell("seccomp", seen, "a call that is not on the list ended the process");
  tell("naming", nameRefused(callUnlisted(filterFor("trace"))), "the tracer named the refused call");
}

/** Forks under a tracer: ourselves. man 2 ptrace PTRACE_SEIZE, PTRACE_GET_SYSCALL_INFO */
function nameRefused(act: () => boolean): Ending {
  const [wait, go] = pipe();
  const pid = fork(0);
  if (pid === 0) exitWith(() => sys("read", wait, new Memory(1), 1) === 1 && act());
  try {
    if (pid < 0) return { refused: "clone", errno: errnoName(-pid) };
    const seized = trySys("ptrace", PTRACE.SEIZE, pid, 0, PTRACE.O_TRACESECCOMP | PTRACE.O_EXITKILL);
    if (seized < 0) {
      trySys("kill", pid, SIG.KILL);
      waitFor(pid);
      return { refused: "act", errno: errnoName(-seized) };
    }
    sys("write", go, new Memory("+"), 1);
    let nr = -1;
    for (;;) {
      const status = waitFor(pid);
      if (stopSignal(status) === undefined) return { seen: nr === syscallNumber("getppid") };
      if (status >> 16 === PTRACE.EVENT_SECCOMP) {
        const info = new Memory(PTRACE.SYSCALL_INFO.size);
        const got = trySys("ptrace", PTRACE.GET_SYSCALL_INFO, pid, PTRACE.SYSCALL_INFO.size, info);
        if (got > 0) nr = info.bytes.readInt32LE(PTRACE.SYSCALL_INFO.nr);
        trySys("kill", pid, SIG.KILL);
      } else {
        trySys("ptrace", PTRACE.CONT, pid, 0, 0);
      }
    }
  } finally {
    sys("close", wait);
    sys("close", go);
  }
}

function extras(): void {
  const cookie = inChild(0, () => {
    sys("prctl", PR.SCHED_CORE, PR.SCHED_CORE_CREATE, 0, PR.SCHED_CORE_SCOPE_THREAD, 0);
    return true;
  });
  tell("core-scheduling", cookie, "a cookie of its own; used where asked for");
  const speculation = inChild(0, () => {
    for (const control of [PR.SPEC_STORE_BYPASS, PR.SPEC_INDIRECT_BRANCH]) {
      const state = sys("prctl", PR.GET_SPECULATION_CTRL, control, 0, 0, 0);
      const held =
        state === PR.SPEC_NOT_AFFECTED || (state & (PR.SPEC_DISABLE | PR.SPEC_FORCE_DISABLE)) !== 0;
      if (!held) sys("prctl", PR.SET_SPECULATION_CTRL, control, PR.SPEC_FORCE_DISABLE, 0, 0);
    }
    return true;
  });
  tell("speculation", speculation, "store bypass and indirect branches restricted; used where asked for");
}

function tellCgroup(ok: boolean, detail: string): void {
  fs.writeSync(1, `${JSON.stringify({ layer: "cgroup", ok, detail, refused: "" } satisfies Attempt)}\n`);
}

/** Makes a tree as a keeper would, and removes it. Last, because in a delegated v2 cgroup it moves this process. */
function cgroups(): void {
  const support = detectCgroups(REAL_FILES, [process.pid, process.ppid]);
  if (!support.available) return tellCgroup(false, support.reason);
  const where = support.version === "v2" ? support.base.dir : support.base.memory;
  try {
    CgroupTree.create(support, { slots: 1, maxMemoryBytes: 1 << 26 }).remove();
    tellCgroup(true, `${support.version}: made, limited and removed one below ${where}`);
  } catch (error) {
    tellCgroup(false, error instanceof Error ? error.message : String(error));
  }
}

namespaces();
otherUid();
privileges();
walls();
filters();
extras();
cgroups();
