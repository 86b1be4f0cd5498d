/**
 * What must not outlive a thread. A thread (worker_threads) can be terminated at any moment and no JavaScript of it
 * runs then: Node closes its handles and the descriptors that `fs.open` gave out, and nothing else. A raw descriptor
 * would stay open for the life of the process, and a keeper whose sockets stay open waits for ever.
 * So every descriptor that the supervisor keeps is one that Node counts (worker_threads `trackUnmanagedFds`), and a
 * keeper whose thread is gone ends by EOF and is waited for at the next start in this process.
 */
import fs from "node:fs";
import { O, PR, WAIT } from "./abi/linux.js";
import { Memory, onMainThread, sys, trySys } from "./libc.ffi.js";

/**
 * Takes a raw descriptor over and answers one that is closed with the thread; whoever gets it closes it by `release`
 * and by nothing else. Throws KernelError or Node's own error (EMFILE); then the raw one is closed.
 */
export function hold(raw: number): number {
  if (onMainThread) return raw; // it ends with the process
  try {
    const held = fs.openSync("/", fs.constants.O_RDONLY);
    sys("dup3", raw, held, O.CLOEXEC);
    return held;
  } finally {
    sys("close", raw);
  }
}

/** Closes what `hold` answered. */
export function release(held: number): void {
  fs.closeSync(held);
}

/** The keeper's name as the kernel knows it; a zombie has kept nothing else of itself. At most 15 bytes. */
const KEEPER_NAME = "doublehull-keep";

/** The calling process is a keeper from now on. man 2 PR_SET_NAME */
export function nameKeeper(): void {
  sys("prctl", PR.SET_NAME, new Memory(KEEPER_NAME), 0, 0, 0);
}

/**
 * Waits for keepers that have ended and whose thread is not there to do it: they are children of the process, not of a
 * thread. One that is another thread's to bury is gone all the same, and that is what it looks for. Only processes of
 * our own making are waited for: the exit of any other child is the embedder's to learn.
 */
export function buryForgottenKeepers(): void {
  for (const task of fs.readdirSync("/proc/self/task")) {
    let children: string;
    try {
      children = fs.readFileSync(`/proc/self/task/${task}/children`, "latin1");
    } catch {
      continue; // the thread has ended, or the kernel has no such list (CONFIG_PROC_CHILDREN)
    }
    for (const pid of children.split(" ").filter((text) => text !== "")) {
      if (isZombieKeeper(pid)) trySys("wait4", Number(pid), 0, WAIT.WNOHANG, 0);
    }
  }
}

/** man 5 proc_pid_stat: `pid (name) state`. */
function isZombieKeeper(pid: string): boolean {
  try {
    return fs.readFileSync(`/proc/${pid}/stat`, "latin1").startsWith(`${pid} (${KEEPER_NAME}) Z `);
  } catch {
    return false; // somebody has waited for it meanwhile
  }
}
