import { describe, expect, test } from "vitest";
import { DEFAULT_LIMITS } from "#server/limits";
import { verdict, type Death } from "#server/verdict";

const MiB = 1024 * 1024;
const SIGNAL = { SEGV: 11, ABRT: 6, KILL: 9, SYS: 31, XCPU: 24 } as const;
const exitCode = (code: number) => code << 8; // man 2 wait
// Numbers of the x86-64 table: asm/unistd_64.h.
const NR = { openat: 257, clone: 56, getpid: 39, rt_sigprocmask: 14, tgkill: 234 } as const;

/** A worker that ended with exit code 1 for no reason that anybody can see. */
function death(given: Partial<Omit<Death, "exit">> & { exit?: Partial<Death["exit"]> } = {}): Death {
  return {
    oomKilled: false,
    cpuMs: 10,
    cpuSeconds: 2,
    peakMemoryBytes: 3 * MiB,
    arch: "x86_64",
    engine: "quickjs",
    ...given,
    exit: { status: exitCode(1), cpuMs: 10, maxRssBytes: 40 * MiB, refusedCall: undefined, ...given.exit },
  };
}
const judge = (given: Parameters<typeof death>[0]) => verdict(death(given), DEFAULT_LIMITS);

describe("one cause", () => {
  test("an unknown exit status means that the zygote was lost", () => {
    expect(judge({ exit: { status: undefined } })).toMatchObject({ reason: "lost", layer: "supervisor" });
  });

  test("a kill by the cgroup is memory, with the limit and the peak", () => {
    expect(judge({ oomKilled: true, exit: { status: SIGNAL.KILL }, peakMemoryBytes: 70 * MiB })).toEqual({
      reason: "memory",
      layer: "cgroup",
      limit: 64 * MiB,
      measured: 70 * MiB,
    });
  });

  test.each([["SIGKILL", SIGNAL.KILL] as const, ["SIGXCPU", SIGNAL.XCPU] as const])(
    "%s with the CPU seconds used up is the CPU limit of the kernel",
    (_name, status) => {
      expect(judge({ exit: { status, cpuMs: 2000 } })).toEqual({
        reason: "cpu-time",
        layer: "rlimit",
        limit: 1000,
        measured: 2000,
      });
    },
  );

  test("the kernel's ticks and the time run may differ: a kill past half of the seconds is the CPU limit still", () => {
    expect(judge({ exit: { status: SIGNAL.KILL, cpuMs: 1001 } }).reason).toBe("cpu-time");
  });

  test("a death at the memory limit without a cgroup is memory, by the rlimit", () => {
    expect(judge({ peakMemoryBytes: 62 * MiB, exit: { status: SIGNAL.ABRT } })).toMatchObject({
      reason: "memory",
      layer: "rlimit",
      measured: 62 * MiB,
    });
  });

  test.each(["openat", "clone", "getpid"] as const)("a refused %s is named", (name) => {
    expect(judge({ exit: { status: SIGNAL.KILL, refusedCall: NR[name] } })).toEqual({
      reason: "syscall",
      layer: "seccomp",
      syscall: name,
    });
  });

  test("a refused number that no table knows is shown as a number", () => {
    expect(judge({ exit: { status: SIGNAL.KILL, refusedCall: 9999 } })).toMatchObject({
      reason: "syscall",
      syscall: "#9999",
    });
  });

  test("the same number is another call on another architecture", () => {
    expect(judge({ arch: "aarch64", exit: { status: SIGNAL.KILL, refusedCall: 56 } })).toMatchObject({
      syscall: "openat", // include/uapi/asm-generic/unistd.h
    });
  });

  test("SIGSYS without a tracer is a refused call without a name", () => {
    const stop = judge({ exit: { status: SIGNAL.SYS } });
    expect(stop).toEqual({ reason: "syscall", layer: "seccomp" });
  });

  test("a segmentation fault is a crash, told with its signal", () => {
    const stop = judge({ exit: { status: SIGNAL.SEGV } });
    expect(stop).toEqual({ reason: "crash", layer: "kernel", detail: "signal 11" });
  });

  test("a plain exit is a crash, told with its code", () => {
    expect(judge({ exit: { status: exitCode(7) } })).toMatchObject({
      reason: "crash",
      detail: "exit code 7",
    });
  });
});

describe("several causes at once", () => {
  // From the surest to the least sure; each stands with everything below it and must win.
  const causes = [
    { reason: "lost", with: { exit: { status: undefined } } },
    { reason: "memory/cgroup", with: { oomKilled: true } },
    { reason: "syscall/seccomp", with: { exit: { refusedCall: NR.openat } } },
    {
      reason: "cpu-time/rlimit",
      with: { exit: { status: SIGNAL.KILL, cpuMs: 2000, refusedCall: undefined } },
    },
    { reason: "memory/rlimit", with: { peakMemoryBytes: 64 * MiB } },
    { reason: "crash/kernel", with: {} },
  ] as const;

  test.each(causes.map((cause, i) => [cause.reason, i] as const))(
    "%s wins over every cause that is less sure",
    (reason, i) => {
      let all: Parameters<typeof death>[0] = {};
      for (const cause of causes.slice(i).toReversed()) {
        all = {
          ...all,
          ...cause.with,
          exit: { ...all?.exit, ...("exit" in cause.with ? cause.with.exit : {}) },
        };
      }
      const stop = judge(all);
      expect([reason, `${stop.reason}/${stop.layer}`]).toContain(reason);
      expect(`${stop.reason}/${stop.layer}`.startsWith(reason)).toBe(true);
    },
  );
});

describe("what must not be taken for something else", () => {
  test("an isolate's way to die is memory, however little it held; QuickJS's is a crash", () => {
    const exit = { status: SIGNAL.KILL, refusedCall: NR.tgkill };
    for (const engine of ["v8", "v8-jitless"] as const) {
      expect(judge({ engine, exit, peakMemoryBytes: 3 * MiB })).toMatchObject({
        reason: "memory",
        layer: "language",
      });
      const trap = { exit: { status: 5 }, engine, peakMemoryBytes: 3 * MiB };
      expect(judge(trap)).toMatchObject({ reason: "crash", layer: "kernel" });
      const attack = { exit: { status: SIGNAL.KILL, refusedCall: NR.openat }, engine };
      expect(judge(attack)).toMatchObject({ reason: "syscall", syscall: "openat" });
    }
    expect(judge({ exit, peakMemoryBytes: 3 * MiB })).toMatchObject({ reason: "crash", layer: "seccomp" });
  });

  test.each(["rt_sigprocmask", "tgkill"] as const)(
    "a refused %s on the way of abort() is a crash, not an attack",
    (name) => {
      expect(judge({ exit: { status: SIGNAL.KILL, refusedCall: NR[name] } })).toEqual({
        reason: "crash",
        layer: "seccomp",
        syscall: name,
      });
    },
  );

  test("abort() with the memory used up is what the memory limit did", () => {
    const exit = { status: SIGNAL.KILL, refusedCall: NR.tgkill };
    expect(judge({ exit, peakMemoryBytes: 64 * MiB })).toMatchObject({ reason: "memory", layer: "rlimit" });
    expect(judge({ exit, peakMemoryBytes: 32 * MiB })).toMatchObject({ reason: "crash", layer: "seccomp" });
  });

  test("an attack does not hide behind limits that it has nearly used up", () => {
    const exit = { status: SIGNAL.KILL, refusedCall: NR.openat, cpuMs: 60_000 };
    expect(judge({ exit, peakMemoryBytes: 64 * MiB, cpuMs: 60_000 })).toMatchObject({
      reason: "syscall",
      syscall: "openat",
    });
  });

  test("the SIGKILL that follows a refused call is ours, not the CPU limit's, however much was used", () => {
    const exit = { status: SIGNAL.KILL, refusedCall: NR.tgkill, cpuMs: 60_000 };
    expect(judge({ exit }).reason).toBe("crash");
    expect(judge({ exit: { ...exit, refusedCall: undefined } }).reason).toBe("cpu-time"); // the control
  });

  test("SIGKILL long before the CPU limit is no CPU stop", () => {
    expect(judge({ exit: { status: SIGNAL.KILL, cpuMs: 990 } })).toMatchObject({
      reason: "crash",
      layer: "kernel",
      detail: "signal 9",
    });
  });

  test("a segmentation fault after the CPU seconds were used is no CPU stop", () => {
    expect(judge({ exit: { status: SIGNAL.SEGV, cpuMs: 5000 } }).reason).toBe("crash");
  });

  test("a crash far below the memory limit is no memory stop", () => {
    expect(judge({ exit: { status: SIGNAL.ABRT }, peakMemoryBytes: 32 * MiB }).reason).toBe("crash");
  });
});
