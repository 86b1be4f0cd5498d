/**
 * The zygote's unjailed parent. It makes the cgroups, creates the zygote in its namespaces, writes the id maps that a
 * jailed process may not write for itself, and then waits for one of two ends: the supervisor's (its sockets hang up)
 * or the zygote's. Either way it leaves nothing behind. It never reads what the supervisor or a worker sends.
 */
import fs from "node:fs";
import { CLONE, CLONE_ARGS, O, POLL, POLLFD, SIG, SIGSET_SIZE, WAIT } from "./abi/linux.js";
import { detectCgroups, REAL_FILES } from "./cgroup.js";
import { CgroupTree, sweepCgroups } from "./cgroup-tree.js";
import { JailError, type JailErrorCode } from "./errors.js";
import { writeIdMaps } from "./ids.js";
import { Memory, sys, trySys } from "./libc.ffi.js";
import type { JailPlan } from "./plan.js";
import { exitGroup, runZygote, type WorkerMain, type ZygoteEvent } from "./zygote.js";

/** Descriptors that the supervisor hands over when it starts the keeper. */
export const EVENTS_FD = 3;
export const COMMANDS_FD = 4;

const tell = (event: ZygoteEvent): void => void fs.writeSync(EVENTS_FD, `${JSON.stringify(event)}\n`);

/** Instead of `keep`, where the program cannot become what it was told to. */
export function failToStart(code: JailErrorCode, message: string): never {
  tell({ event: "failed", code, message });
  return exitGroup(1);
}

/** What else there is to do about the fork, by the program that knows what is in its memory. */
export interface AroundFork {
  /** Gives a moment (performance.now) until which the fork must have happened, and before which nothing runs in the child. */
  before?: (() => number) | undefined;
  /** In the zygote, before it enters the jail: what this leaves of memory is what every fork copies. */
  settle(): void;
}

/** Becomes keeper and zygote; returns in neither. `main` runs in every worker after its lock-down. */
export function keep(plan: JailPlan, main: WorkerMain, { before, settle }: AroundFork): never {
  let tree: CgroupTree | undefined;
  try {
    if (plan.ids.kind === "high") sys("setgroups", 0, 0);
    tree = makeCgroups(plan);
    const join = tree?.openJoin() ?? [];
    tell({ event: "tree", cgroups: tree?.slots ?? [] });
    const go = new Memory(8);
    sys("pipe2", go, O.CLOEXEC);
    const [wait, start] = [go.bytes.readInt32LE(0), go.bytes.readInt32LE(4)];
    const { pid, pidfd, until } = cloneInTime(plan, before);
    if (pid === 0) {
      // Blocks until the maps are written; a keeper that failed has closed the pipe, which reads as nothing.
      sys("close", start);
      if (trySys("read", wait, new Memory(1), 1) !== 1) exitGroup(1);
      sys("close", wait);
      while (performance.now() < until) Atomics.wait(nap, 0, 0, until - performance.now());
      for (const fd of tree?.locks ?? []) sys("close", fd); // the keeper's; and no way into the host's files
      settle();
      runZygote(plan, { commands: COMMANDS_FD, tell, join }, main);
    }
    sys("close", COMMANDS_FD);
    mapIds(plan, pid);
    sys("write", start, new Memory("+"), 1);
    waitForTheEnd(pidfd);
    tree?.remove();
    return exitGroup(0);
  } catch (error) {
    const code: JailErrorCode = error instanceof JailError ? error.code : "zygote-start";
    try {
      tree?.remove();
    } finally {
      failToStart(code, error instanceof Error ? error.message : String(error));
    }
  }
}

function makeCgroups(plan: JailPlan): CgroupTree | undefined {
  if (plan.cgroup === undefined) return undefined;
  const support = detectCgroups(REAL_FILES, [process.pid, process.ppid]);
  if (!support.available) throw new JailError("cgroup", support.reason);
  sweepCgroups(support);
  return CgroupTree.create(support, plan.cgroup);
}

const nap = new Int32Array(new SharedArrayBuffer(4));

/** On a busy host a fork may come too late: that child has done nothing yet, and is ended. */
function cloneInTime(plan: JailPlan, beforeFork: (() => number) | undefined) {
  for (let tries = 0; tries < 100; tries++) {
    const until = beforeFork?.() ?? Infinity;
    const { pid, pidfd } = cloneZygote(plan);
    if (pid === 0 || performance.now() < until)
      return { pid, pidfd, until: beforeFork === undefined ? 0 : until };
    trySys("pidfd_send_signal", pidfd, SIG.KILL, 0, 0);
    trySys("wait4", pid, 0, WAIT.__WALL, 0);
    sys("close", pidfd);
  }
  throw new JailError("zygote-start", "this host is too busy: the zygote could not be forked in time");
}

/**
 * A raw clone gives the zygote exactly one thread, so that what follows applies to all of it; unshare(2) in a
 * multi-threaded Node answers EINVAL.
 */
function cloneZygote(plan: JailPlan): { pid: number; pidfd: number } {
  const off = (layer: JailPlan["without"][number]) => plan.without.includes(layer);
  let flags: number = CLONE.PIDFD + CLONE.NEWUSER;
  if (!off("pid-namespace")) flags += CLONE.NEWPID;
  flags += CLONE.NEWNS;
  if (!off("net-namespace")) flags += CLONE.NEWNET;
  if (!off("ipc-namespace")) flags += CLONE.NEWIPC;
  if (!off("uts-namespace")) flags += CLONE.NEWUTS;
  if (!off("cgroup-namespace")) flags += CLONE.NEWCGROUP;
  if (plan.timeNamespace && !off("time-namespace")) flags += CLONE.NEWTIME;
  const args = new Memory(CLONE_ARGS.size);
  const pidfd = new Memory(8);
  args.bytes.writeBigUInt64LE(BigInt(flags), CLONE_ARGS.flags);
  args.bytes.writeBigUInt64LE(BigInt(pidfd.address), CLONE_ARGS.pidfd);
  args.bytes.writeBigUInt64LE(BigInt(SIG.CHLD), CLONE_ARGS.exit_signal);
  const pid = trySys("clone3", args, CLONE_ARGS.size);
  if (pid < 0) {
    throw new JailError("user-namespace", `clone3 with new namespaces was refused (errno ${-pid})`);
  }
  return { pid, pidfd: pidfd.bytes.readInt32LE(0) };
}

function mapIds(plan: JailPlan, pid: number): void {
  try {
    writeIdMaps(plan.ids, pid);
  } catch (error) {
    throw new JailError("user-namespace", `the id map was refused: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/** Blocks until the zygote has ended; ends it if the supervisor goes first. man 2 pidfd_open "poll" */
function waitForTheEnd(pidfd: number): void {
  const fds = new Memory(2 * POLLFD.size);
  fds.bytes.writeInt32LE(EVENTS_FD, POLLFD.fd); // no event asked for: only a hang-up is told
  fds.bytes.writeInt32LE(pidfd, POLLFD.size + POLLFD.fd);
  fds.bytes.writeInt16LE(POLL.IN, POLLFD.size + POLLFD.events);
  for (;;) {
    trySys("ppoll", fds, 2, 0, 0, SIGSET_SIZE);
    if (fds.bytes.readInt16LE(POLLFD.revents) !== 0) trySys("pidfd_send_signal", pidfd, SIG.KILL, 0, 0);
    else if (fds.bytes.readInt16LE(POLLFD.size + POLLFD.revents) === 0) continue;
    trySys("wait4", -1, 0, WAIT.__WALL, 0);
    return;
  }
}
