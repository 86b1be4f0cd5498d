/**
 * The zygote's jailed half: a process that sees no script, no secret and no environment, and only forks. Forks continue
 * in JavaScript right after the clone and must never come back to libuv's event loop, so this file is one synchronous
 * loop over two descriptors: the supervisor's commands and the deaths of children. It is also its workers' tracer,
 * which is how a refused system call gets a name.
 */
import fs from "node:fs";
import { CLONE, CLONE_ARGS, F, O, POLL, POLLFD, PROT, MAP, PTRACE, RUSAGE, SIG, SIG_BLOCK, SIGSET_SIZE, WAIT, stopSignal, termSignal } from "./abi/linux.js"; // prettier-ignore
import { COMMAND, DescriptorSocket } from "./descriptors.js";
import { enterZygote, lockDown, rehearseLockDown, type LockDownKit } from "./enter.js";
import { JailError } from "./errors.js";
import { workerFilter } from "./filter.js";
import { Memory, sys, syscallNumber, trySys } from "./libc.ffi.js";
import type { JailPlan } from "./plan.js";
import { WORKER_SOCKET_FD, type Refusal } from "./seccomp.js";

/** A worker's one way to the world, usable after lock-down: read(2), write(2) and exit_group(2) on raw numbers. */
export interface Port {
  fd: number;
  /** What the supervisor said with the fork. */
  note: number;
  exit(code: number): never;
}

export type WorkerMain = (port: Port) => never;

/** What the zygote tells the supervisor, one JSON text a line. Times in microseconds, memory in KiB. */
export type ZygoteEvent =
  | { event: "tree"; cgroups: unknown }
  | { event: "ready"; refusal: Refusal; probes: Probes; filters: number }
  | {
      event: "exit";
      id: number;
      status: number;
      userUs: number;
      systemUs: number;
      maxRssKb: number;
      nr?: number;
    }
  | { event: "failed"; code: string; message: string };

/**
 * What a probe worker got when it tried the acts that Landlock, MDWE, the limits on namespaces and the filter refuse.
 * -errno, or a signal.
 */
export interface Probes {
  openBeforeLandlock: number;
  openAfterLandlock: number;
  executableBeforeMdwe: number;
  executableAfterMdwe: number;
  userNamespaceAfterLimits: number;
  refusedCallSignal: number;
  refusedCallNr: number;
}

export interface ZygoteLinks {
  /** Records with descriptors from the supervisor, and pidfds to it. */
  commands: number;
  /** Lines to the supervisor. */
  tell(event: ZygoteEvent): void;
  /** By slot: descriptors that take "0" and move the writer into the slot's cgroups. */
  join: readonly (readonly number[])[];
}

interface Child {
  id: number;
  /** Number of the system call that the filter refused. */
  refused?: number;
  /** The fault that it died of: the wait status says SIGKILL, for we had to help. */
  crashed?: number;
}

const CRASH_SIGNALS: ReadonlySet<number> = new Set([
  SIG.SEGV,
  SIG.BUS,
  SIG.ILL,
  SIG.FPE,
  SIG.TRAP,
  SIG.ABRT,
  SIG.SYS,
]);

/** Runs in the freshly cloned process; leaves only by exit_group. */
export function runZygote(plan: JailPlan, links: ZygoteLinks, main: WorkerMain): never {
  try {
    const zygote = new Zygote(plan, links, main);
    zygote.serve();
    return exitGroup(0);
  } catch (error) {
    const failed = error instanceof JailError ? error : undefined;
    links.tell({
      event: "failed",
      code: failed?.code ?? "zygote-start",
      message: error instanceof Error ? error.message : String(error),
    });
    return exitGroup(1);
  }
}

export function exitGroup(code: number): never {
  for (;;) trySys("exit_group", code);
}

class Zygote {
  readonly #children = new Map<number, Child>(); // by pid inside our namespace
  readonly #commands: DescriptorSocket;
  readonly #signals: number;
  readonly #cloneArgs = new Memory(CLONE_ARGS.size);
  readonly #pidfd = new Memory(8);
  readonly #pipe = new Memory(8);
  readonly #status = new Memory(8);
  readonly #usage = new Memory(RUSAGE.size);
  readonly #syscallInfo = new Memory(PTRACE.SYSCALL_INFO.size);
  readonly #kit: LockDownKit;
  readonly #refusal: Refusal;

  constructor(
    readonly plan: JailPlan,
    readonly links: ZygoteLinks,
    readonly main: WorkerMain,
  ) {
    this.#commands = new DescriptorSocket(links.commands);
    this.#describeClone();
    const before = tryRefusedActs();
    enterZygote(plan);
    this.#signals = childSignals();
    const after = this.#inChild(() => exitGroup(packActs(tryRefusedActs())));
    const unshared = this.#inChild(() => exitGroup(Math.min(-trySys("unshare", CLONE.NEWUSER), 255)));
    const kit = (refusal: Refusal) => ({ filter: workerFilter(plan, refusal), join: links.join });
    this.#refusal = "trace";
    this.#kit = kit(this.#refusal);
    rehearseLockDown(plan, this.#kit);
    let probe = this.#probeFilter();
    if (probe === undefined) {
      this.#refusal = "kill";
      this.#kit = kit(this.#refusal);
      probe = this.#probeFilter();
    }
    const acts = unpackActs(after);
    const probes: Probes = {
      openBeforeLandlock: before.open,
      openAfterLandlock: acts.open,
      executableBeforeMdwe: before.executable,
      executableAfterMdwe: acts.executable,
      userNamespaceAfterLimits: unshared === 0 ? 0 : -unshared,
      refusedCallSignal: probe?.signal ?? 0,
      refusedCallNr: probe?.nr ?? -1,
    };
    this.#judge(probes);
    links.tell({ event: "ready", refusal: this.#refusal, probes, filters: 1 });
  }

  serve(): void {
    const fds = new Memory(2 * POLLFD.size);
    const descriptors = [this.links.commands, this.#signals];
    descriptors.forEach((fd, i) => {
      fds.bytes.writeInt32LE(fd, i * POLLFD.size + POLLFD.fd);
      fds.bytes.writeInt16LE(POLL.IN, i * POLLFD.size + POLLFD.events);
    });
    const drain = Buffer.alloc(128 * 4); // struct signalfd_siginfo, some at once
    for (;;) {
      trySys("ppoll", fds, 2, 0, 0, SIGSET_SIZE); // EINTR and spurious wake-ups just go round again
      if (fds.bytes.readInt16LE(POLLFD.size + POLLFD.revents) !== 0) {
        fs.readSync(this.#signals, drain, 0, drain.length, null);
        this.#reap();
      }
      if (fds.bytes.readInt16LE(POLLFD.revents) !== 0 && !this.#obey()) return;
    }
  }

  /** One command. False at the end: the supervisor said stop, or is gone. */
  #obey(): boolean {
    const record = this.#commands.receive(true);
    if (record === undefined || record.command === COMMAND.STOP) return false;
    if (record.command === COMMAND.FORK && record.fd !== undefined)
      this.#fork(record.id, record.slot, record.fd, record.note ?? 0);
    if (record.command === COMMAND.KILL) {
      for (const [pid, child] of this.#children) if (child.id === record.id) trySys("kill", pid, SIG.KILL);
    }
    return true;
  }

  #fork(id: number, slot: number, socket: number, note: number): void {
    const pid = this.#spawn(slot, socket, note, this.main, (pidfd) =>
      this.#commands.send({ command: COMMAND.FORK, id, slot, fd: pidfd }, true),
    );
    this.#children.set(pid, { id });
  }

  /**
   * Clones a locked-down worker, attaches to it, hands its pidfd out and only then lets it go: whoever hears of a worker
   * can have its pidfd already. Closes the socket.
   */
  #spawn(
    slot: number,
    socket: number,
    note: number,
    main: WorkerMain,
    handOut: (pidfd: number) => void,
  ): number {
    sys("pipe2", this.#pipe, O.CLOEXEC);
    const [gate, key] = [this.#pipe.bytes.readInt32LE(0), this.#pipe.bytes.readInt32LE(4)];
    const pid = sys("clone3", this.#cloneArgs, CLONE_ARGS.size);
    if (pid === 0) {
      // The child. Whatever happens here must not come back into the zygote's loop.
      try {
        lockDown(this.plan, this.#kit, slot, socket, gate);
        main({ fd: WORKER_SOCKET_FD, note, exit: exitGroup });
      } catch {
        exitGroup(CHILD_FAILED); // before the filter: a step was refused; the supervisor sees the exit, never a job
      }
      exitGroup(CHILD_FAILED);
    }
    const traced = this.#refusal === "kill" || this.#attach(pid);
    const pidfd = this.#pidfd.bytes.readInt32LE(0);
    handOut(pidfd);
    if (traced) fs.writeSync(key, this.#pipe.bytes, 0, 1);
    else trySys("kill", pid, SIG.KILL);
    for (const fd of [gate, key, socket, pidfd]) fs.closeSync(fd);
    return pid;
  }

  /**
   * A new pid namespace for each worker. CLONE_INTO_CGROUP would spare it the move into its cgroup, but the kernel
   * refuses that to a caller in a cgroup namespace or with another uid than the cgroup's owner: both are ours.
   */
  #describeClone(): void {
    const args = this.#cloneArgs.bytes;
    const flags = CLONE.PIDFD + (this.plan.without.includes("pid-namespace") ? 0 : CLONE.NEWPID);
    args.writeBigUInt64LE(BigInt(flags), CLONE_ARGS.flags);
    args.writeBigUInt64LE(BigInt(this.#pidfd.address), CLONE_ARGS.pidfd);
    args.writeBigUInt64LE(BigInt(SIG.CHLD), CLONE_ARGS.exit_signal);
  }

  /** EXITKILL: workers die with their tracer. False where the kernel refuses (Yama's ptrace_scope 3). man 2 ptrace */
  #attach(pid: number): boolean {
    return trySys("ptrace", PTRACE.SEIZE, pid, 0, PTRACE.O_TRACESECCOMP | PTRACE.O_EXITKILL) >= 0;
  }

  #reap(): void {
    for (;;) {
      const pid = trySys("wait4", -1, this.#status, WAIT.WNOHANG | WAIT.__WALL, this.#usage);
      if (pid <= 0) return;
      const status = this.#status.bytes.readInt32LE(0);
      const child = this.#children.get(pid);
      if (stopSignal(status) !== undefined) this.#stopped(pid, status, child);
      else if (child !== undefined) this.#ended(pid, status, child);
    }
  }

  #stopped(pid: number, status: number, child: Child | undefined): void {
    if (status >> 16 === PTRACE.EVENT_SECCOMP) {
      const nr = this.#refusedCall(pid);
      if (child !== undefined) child.refused = nr;
      trySys("kill", pid, SIG.KILL);
      return;
    }
    const signal = status >> 16 === 0 ? (stopSignal(status) as number) : 0;
    // The kernel spares a traced pid 1 even a fault of its own: the signal would be ignored and the fault come back
    // for ever. kernel/signal.c force_sig_info_to_task
    if (CRASH_SIGNALS.has(signal)) {
      if (child !== undefined) child.crashed = signal;
      trySys("kill", pid, SIG.KILL);
      return;
    }
    trySys("ptrace", PTRACE.CONT, pid, 0, signal); // a group stop, or a signal that a worker may as well get
  }

  #refusedCall(pid: number): number {
    const got = trySys("ptrace", PTRACE.GET_SYSCALL_INFO, pid, PTRACE.SYSCALL_INFO.size, this.#syscallInfo);
    return got < 0 ? -1 : this.#syscallInfo.bytes.readInt32LE(PTRACE.SYSCALL_INFO.nr);
  }

  #ended(pid: number, status: number, child: Child): void {
    this.#children.delete(pid);
    const time = (at: number) =>
      Number(this.#usage.bytes.readBigInt64LE(at)) * 1_000_000 +
      Number(this.#usage.bytes.readBigInt64LE(at + 8));
    this.links.tell({
      event: "exit",
      id: child.id,
      // A fault is told as the kernel would have: as the signal that ended the process.
      status: child.crashed ?? status,
      userUs: time(RUSAGE.ru_utime),
      systemUs: time(RUSAGE.ru_stime),
      maxRssKb: Number(this.#usage.bytes.readBigInt64LE(RUSAGE.ru_maxrss)),
      ...(child.refused === undefined ? {} : { nr: child.refused }),
    });
  }

  // -- probes: the acts are attempted, not the flags read ---------------------------------------------------------

  /** Runs `act` in a plain fork of ours and waits for its exit code. */
  #inChild(act: () => never): number {
    const pid = sys("clone", SIG.CHLD, 0, 0, 0, 0);
    if (pid === 0) {
      try {
        act();
      } catch {
        exitGroup(CHILD_FAILED);
      }
    }
    sys("wait4", pid, this.#status, WAIT.__WALL, 0);
    return (this.#status.bytes.readInt32LE(0) >> 8) & 0xff;
  }

  /** A locked-down worker attempts getppid; undefined where it could not be traced. */
  #probeFilter(): { signal: number; nr: number } | undefined {
    const socket = sys("fcntl", this.links.commands, F.DUPFD_CLOEXEC, 10);
    const probe = (): never => {
      trySys("getppid");
      return exitGroup(0);
    };
    const pid = this.#spawn(0, socket, 0, probe, () => {});
    let nr = -1;
    for (;;) {
      sys("wait4", pid, this.#status, WAIT.__WALL, 0);
      const status = this.#status.bytes.readInt32LE(0);
      if (stopSignal(status) !== undefined) {
        if (status >> 16 === PTRACE.EVENT_SECCOMP) nr = this.#refusedCall(pid);
        this.#stopped(pid, status, undefined);
        continue;
      }
      const signal = termSignal(status) ?? 0;
      const named = this.#refusal === "kill" || nr >= 0;
      return signal !== 0 && named ? { signal, nr } : signal !== 0 && nr < 0 ? undefined : { signal, nr };
    }
  }

  #judge(probes: Probes): void {
    const skip = (layer: JailPlan["without"][number]) => this.plan.without.includes(layer);
    if (probes.openBeforeLandlock < 0)
      throw new JailError("landlock", "the probe's control could not open /");
    if (!skip("landlock") && probes.openAfterLandlock !== -13) {
      throw new JailError(
        "landlock",
        `a probe opened / and got ${probes.openAfterLandlock} instead of EACCES`,
      );
    }
    if (this.plan.mdwe && !skip("mdwe") && probes.executableAfterMdwe !== -13) {
      throw new JailError(
        "mdwe",
        `a probe mapped code and got ${probes.executableAfterMdwe} instead of EACCES`,
      );
    }
    if (!skip("seccomp")) {
      const expected = this.#refusal === "kill" ? SIG.SYS : SIG.KILL;
      const named = this.#refusal === "kill" || probes.refusedCallNr === syscallNumber("getppid");
      if (probes.refusedCallSignal !== expected || !named) {
        throw new JailError(
          "seccomp",
          `a probe's refused call ended with signal ${probes.refusedCallSignal}`,
        );
      }
    }
  }
}

const CHILD_FAILED = 125;

interface Acts {
  open: number;
  executable: number;
}

/** Opens the root directory for reading and maps memory that is writable and executable; -errno or 0 for each. */
function tryRefusedActs(): Acts {
  const fd = trySys("openat", -100, new Memory("/"), 0, 0);
  if (fd >= 0) sys("close", fd);
  const at = trySys("mmap", 0, 4096, PROT.READ | PROT.WRITE | PROT.EXEC, MAP.PRIVATE | MAP.ANONYMOUS, -1, 0);
  if (at >= 0) sys("munmap", at, 4096);
  return { open: Math.min(fd, 0), executable: Math.min(at, 0) };
}

/** Two small errnos in an exit code of 8 bits: EPERM 1, ENOMEM 12, EACCES 13 fit in four each. */
const packActs = (acts: Acts): number => (-acts.open & 15) | ((-acts.executable & 15) << 4);
const unpackActs = (code: number): Acts => ({ open: -(code & 15), executable: -(code >> 4) });

/** SIGCHLD as a descriptor, blocked as a signal. man 2 signalfd */
function childSignals(): number {
  const mask = new Memory(SIGSET_SIZE);
  mask.bytes.writeBigUInt64LE(1n << BigInt(SIG.CHLD - 1), 0);
  sys("rt_sigprocmask", SIG_BLOCK, mask, 0, SIGSET_SIZE);
  return sys("signalfd4", -1, mask, SIGSET_SIZE, 0x80800); // SFD_NONBLOCK | SFD_CLOEXEC
}
