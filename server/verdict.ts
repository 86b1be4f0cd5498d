/**
 * Why a worker died that gave no result: decided from what the kernel and our own clocks say, in an order in which the
 * surer cause comes first. Pure. Crashes must not look like attacks: V8's way to die makes refused calls of its own.
 */
import { exited, SIG, termSignal } from "../osjail/abi/linux.js";
import { syscallName, type Arch, type SyscallName } from "../osjail/abi/syscalls.js";
import type { WorkerExit } from "../osjail/zygote-client.js";
import { isV8, type EngineKind } from "./engines.js";
import type { Limits } from "./limits.js";
import type { Stop } from "./outcome.js";

export interface Death {
  exit: WorkerExit;
  oomKilled: boolean;
  cpuMs: number;
  /** RLIMIT_CPU that was armed, seconds. */
  cpuSeconds: number;
  peakMemoryBytes: number;
  arch: Arch;
  engine: EngineKind;
}

/** What glibc's abort() and V8's fatal-error path call on their way out, and nothing that leads anywhere. */
const ABORT_PATH: ReadonlySet<SyscallName> = new Set<SyscallName>([
  "write",
  "writev",
  "rt_sigaction",
  "rt_sigprocmask",
  "sigaltstack",
  "gettid",
  "tgkill",
  "fstat",
  "newfstatat",
]);

export function verdict(death: Death, limits: Limits): Stop {
  const { exit } = death;
  if (exit.status === undefined) {
    return { reason: "lost", layer: "supervisor", detail: "the zygote ended in mid-run" };
  }
  const memory = { limit: limits.memoryMb * 1024 * 1024, measured: death.peakMemoryBytes };
  if (death.oomKilled) return { reason: "memory", layer: "cgroup", ...memory };
  const refused = exit.refusedCall;
  const name =
    refused === undefined ? undefined : (syscallName(death.arch, refused) as SyscallName | undefined);
  const ofAbort = name !== undefined && ABORT_PATH.has(name);
  // An attack must not hide behind a limit that is nearly used up; only V8's own way to die may be such a limit's doing.
  if (refused !== undefined && !ofAbort) {
    return { reason: "syscall", layer: "seccomp", syscall: name ?? `#${refused}` };
  }
  const signal = termSignal(exit.status);
  const killed = refused === undefined && (signal === SIG.KILL || signal === SIG.XCPU);
  // The kernel charges the limit by whole ticks, whoever runs when one comes, and tells the usage in run time: on a busy
  // machine a worker is killed with a fourth of its seconds unused, and more. kernel/sched/cputime.c
  if (killed && exit.cpuMs >= death.cpuSeconds * 500) {
    return { reason: "cpu-time", layer: "rlimit", limit: limits.cpuMs, measured: exit.cpuMs };
  }
  if (death.peakMemoryBytes >= memory.limit * 0.95) return { reason: "memory", layer: "rlimit", ...memory };
  // An isolate aborts when one thing is too large for it, however little it holds; V8's own failed checks end in a trap.
  if (ofAbort && isV8(death.engine)) return { reason: "memory", layer: "language", ...memory };
  if (ofAbort) return { reason: "crash", layer: "seccomp", syscall: name };
  if (signal === SIG.SYS) return { reason: "syscall", layer: "seccomp" };
  const code = exited(exit.status);
  const detail = signal === undefined ? `exit code ${code}` : `signal ${signal}`;
  return { reason: "crash", layer: "kernel", detail };
}
