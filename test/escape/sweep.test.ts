/**
 * Every system-call number against a worker of its own: what answers after lock-down is the profile and nothing else.
 * The arguments are all zero, so a call whose arguments are checked counts as answered only if zeros are right.
 */
import { describe, expect, it } from "vitest";
import { interpret } from "#osjail/bpf";
import { SECCOMP } from "#osjail/abi/linux";
import {
  AUDIT_ARCH,
  HIGHEST_SYSCALL,
  syscallName,
  SYSCALLS,
  UNFILTERED_SYSCALLS,
  X32_SYSCALL_BIT,
} from "#osjail/abi/syscalls";
import { callCount } from "#osjail/plan";
import { compile, PROFILES } from "#osjail/seccomp";
import type { Outcome } from "#server/outcome";
import { attack, control, host, inParallel, ownedHull, stopOf, valueOf, answerOf } from "./harness.js";

const { arch } = host.facts;
const BEYOND = 64;
const LANES = 12;
const numbers = Array.from({ length: HIGHEST_SYSCALL[arch] + BEYOND + 1 }, (_, nr) => nr);
const nameOf = (nr: number): string => syscallName(arch, nr) ?? `#${nr}`;

/** How one number ended, in few words. A crash that the abort path explains names its call all the same. */
function told(outcome: Outcome): string {
  if (outcome.status === "ok") return "answered";
  if (outcome.status !== "stopped") return outcome.status;
  const { reason, syscall, detail } = outcome.stop;
  return syscall === undefined ? `${reason}: ${detail}` : `refused ${syscall}`;
}

/** Written out by hand: the whole surface under zero arguments. Everything else must be refused by its name. */
const ANSWERED = {
  // A write to another descriptor than the socket is not made and answers EAGAIN.
  write: 11,
  mprotect: 0,
  munmap: 22,
  brk: 0,
  getpid: 0,
  gettimeofday: 0,
  futex: 14,
  clock_gettime: 14,
} as const;

describe("a sweep of all system-call numbers", () => {
  // v8-jitless has the very rules of quickjs, which the owned engine's own profile has, too: see the unit tests.
  it.each(["owned", "v8"] as const)(
    "finds that only calls of the profile (%s) answer, and that each of the others is stopped by its name",
    async (profile) => {
      const hull = await ownedHull({ slots: LANES + 4, profile });
      const outcomes = await inParallel(numbers, LANES, (nr) => attack(hull, `return syscall(${nr})`));
      const got = Object.fromEntries(numbers.map((nr) => [nameOf(nr), told(outcomes[nr])]));

      const expected = Object.fromEntries(numbers.map((nr) => [nameOf(nr), `refused ${nameOf(nr)}`]));
      for (const name of Object.keys(ANSWERED)) expected[name] = "answered";
      expected["pkey_mprotect"] = "answered";
      expected["rt_sigreturn"] = "crash: signal 11"; // there is no signal frame to return to
      expected["exit_group"] = "crash: exit code 0";
      for (const name of UNFILTERED_SYSCALLS[arch]) {
        // The kernel asks no filter here; refused, SIGILL, or an error that changes nothing, by the kernel's version.
        expect(["answered", "crash: signal 4", `refused ${name}`]).toContain(got[name]);
        expected[name] = got[name];
      }
      expect(got).toEqual(expected);

      for (const [name, errno] of Object.entries(ANSWERED)) {
        const nr = (SYSCALLS[arch] as Record<string, number>)[name];
        expect(valueOf(outcomes[nr]), name).toMatchObject({ errno });
      }
      for (const name of UNFILTERED_SYSCALLS[arch]) {
        const outcome = outcomes[(SYSCALLS[arch] as Record<string, number>)[name]];
        if (outcome.status === "ok") expect(outcome.value).toMatchObject({ ret: -1 });
      }
      const surface = Object.keys(got).filter((name) => !got[name]?.startsWith("refused"));
      const allowed = new Set<string>([
        ...PROFILES[profile].rules.map(({ call }) => call),
        ...UNFILTERED_SYSCALLS[arch],
      ]);
      expect(surface.filter((name) => !allowed.has(name))).toEqual([]);
      expect(callCount(profile)).toBeLessThanOrEqual(15);
    },
    60_000,
  );

  it("begins with numbers that do answer in a plain process", async () => {
    const harmless = ["getppid", "getuid", "gettid", "sched_yield", "getpgid"] as const;
    const code = `return ${JSON.stringify(harmless)}.map((name) => syscall(name).errno)`;
    expect(await control(code)).toEqual({ status: "ok", value: harmless.map(() => 0) });
    const hull = await ownedHull({ slots: LANES + 4 });
    const stops = await inParallel(harmless, 4, async (name) =>
      stopOf(await attack(hull, `return syscall("${name}")`)),
    );
    expect(stops.map((stop) => stop.syscall)).toEqual(harmless);
  });

  it("is not fooled by bits above the 32 of the number that the kernel reads", async () => {
    const hull = await ownedHull({ slots: LANES + 4 });
    const [getppid, getpid] = [SYSCALLS[arch].getppid + 2 ** 32, SYSCALLS[arch].getpid + 2 ** 32];
    expect(valueOf(await control(`return syscall(${getppid})`))).toMatchObject({ errno: 0 });
    expect(stopOf(await attack(hull, `return syscall(${getppid})`))).toMatchObject({
      syscall: "getppid",
    });
    expect(valueOf(await attack(hull, `return syscall(${getpid})`))).toEqual({ ret: 1, errno: 0 });
  });

  it("names the refused call of a worker among many", async () => {
    const hull = await ownedHull({ slots: LANES + 4 });
    const calls = ["openat", "socket", "getpid", "execve", "getpid", "unshare", "ptrace", "bpf"] as const;
    const outcomes = await inParallel(calls, calls.length, (call) =>
      attack(hull, `return syscall("${call}")`),
    );
    expect(outcomes.map(told)).toEqual(
      calls.map((call) => (call === "getpid" ? "answered" : `refused ${call}`)),
    );
  });
});

describe.skipIf(arch !== "x86_64")(
  `numbers of the other ABIs of x86-64${arch === "x86_64" ? "" : " (skipped: this machine has none)"}`,
  () => {
    const x32 = [0, 1, 2, 9, 39, 41, 56, 57, 59, 101, 257, 321, 435, 512, 519, 520, 533, 545, 547, 600];

    it("of x32 end the process before any rule is read, even those that are allowed without the bit", async () => {
      const hull = await ownedHull({ slots: LANES + 4 });
      const wanted = [...x32.map((nr) => nr + X32_SYSCALL_BIT), -1, 0x7fff_ffff, 0xffff_ffff];
      const stops = await inParallel(wanted, 8, async (nr) =>
        stopOf(await attack(hull, `return syscall(${nr})`)),
      );
      for (const stop of stops) expect(stop).toEqual({ reason: "syscall", layer: "seccomp" });
      // The control: a kernel that has no x32 says so, and nothing dies of it.
      const outside = answerOf(await control(`return syscall(${39 + X32_SYSCALL_BIT})`));
      expect(outside.ret > 0 || outside.errno === 38).toBe(true);
    });

    const AUDIT_ARCH_I386 = 0x4000_0003;
    it.each(["trace", "kill"] as const)("all answer KILL_PROCESS on the filter program (%s)", (refusal) => {
      const program = compile(PROFILES.owned, { arch: "x86_64", refusal });
      const ask = (nr: number, word: number) =>
        interpret(program, { nr, arch: word, args: [3n, 0n, 0n, 0n, 0n, 0n] });
      for (let nr = 0; nr < 600; nr++) {
        expect(ask(nr + X32_SYSCALL_BIT, AUDIT_ARCH.x86_64)).toBe(SECCOMP.RET_KILL_PROCESS);
        // `int 0x80` cannot be spelled in JavaScript: it arrives with the 32-bit architecture word.
        expect(ask(nr, AUDIT_ARCH_I386)).toBe(SECCOMP.RET_KILL_PROCESS);
      }
      expect(ask(SYSCALLS.x86_64.getpid, AUDIT_ARCH.x86_64)).toBe(SECCOMP.RET_ALLOW);
    });
  },
);
