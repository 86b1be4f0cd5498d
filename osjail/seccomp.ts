/**
 * What a locked-down worker may ask of the kernel: profiles as data, a reason for every call, compiled to BPF.
 * The list is the kernel surface that hostile code meets after an escape from its language, so a call that is not
 * here does not exist for it, and an argument that is not described here is refused like an unknown call.
 *
 * The program first looks at the architecture word and at x32's number bit, since numbers mean nothing before that.
 * Arguments are compared as all 64 bits that the kernel gets: a call whose parameter is an int ignores the high half,
 * and to demand that it is 0 costs nothing and leaves no second spelling of an argument. man 2 seccomp "Caveats"
 */
import { CLOCK, ERRNO, FUTEX, MADV, MAP, PROT, SECCOMP, SECCOMP_DATA, type ErrnoName } from "./abi/linux.js";
import { AUDIT_ARCH, SYSCALLS, X32_SYSCALL_BIT, type Arch, type SyscallName } from "./abi/syscalls.js";
import {
  and,
  answer,
  argumentWords,
  assemble,
  label,
  load,
  test,
  type Instruction,
  type Line,
} from "./bpf.js";

/** The one descriptor that a worker has: its socket. read and write take no other. */
export const WORKER_SOCKET_FD = 3;

interface Argument {
  /** Position of the argument. */
  readonly arg: 0 | 1 | 2 | 3 | 4 | 5;
  /** The parameter's name in the call's man page. */
  readonly name: string;
  /** Names of its values, for people. */
  readonly symbols?: Readonly<Record<string, number>>;
}

/**
 * What must hold for one argument, over all 64 bits: `(arg & mask) === equals`, or `(arg & mask)` is one of several
 * values below 2^32. A negative mask is its two's complement, so `~3` means "all 64 bits but the lowest two"; without
 * a mask all bits count, and so the high half must be 0.
 */
export type Condition =
  | (Argument & { readonly mask: number | bigint; readonly equals: number | bigint })
  | (Argument & { readonly mask?: number | bigint; readonly oneOf: readonly number[] });

/** One call that is allowed. Every condition must hold. */
export interface Rule {
  readonly call: SyscallName;
  readonly reason: string;
  readonly when?: readonly Condition[];
  /** With other arguments the call is not made and answers this error, instead of ending the worker. */
  readonly otherwise?: ErrnoName;
}

/** The calls of one kind of worker; one rule for each call, in the order in which the filter tries them. */
export interface Profile {
  readonly name: string;
  readonly rules: readonly Rule[];
}

/** No right but read and write, so no page becomes executable: the kernel's half of W^X. */
const readWriteOnly: Condition = {
  arg: 2,
  name: "prot",
  symbols: PROT,
  mask: ~(PROT.READ | PROT.WRITE),
  equals: 0,
};

/** Code too, for a compiler at run time; nothing else that a mapping can be. */
const readWriteExecute: Condition = {
  arg: 2,
  name: "prot",
  symbols: PROT,
  mask: ~(PROT.READ | PROT.WRITE | PROT.EXEC),
  equals: 0,
};

/** The most used first. The numbers of the clocks and futexes are spelled out, not "all but": new ones are refused. */
const quickjs: readonly Rule[] = [
  {
    call: "read",
    reason: "receives the job and the answers to host calls",
    when: [{ arg: 0, name: "fd", oneOf: [WORKER_SOCKET_FD] }],
  },
  {
    call: "write",
    reason: "sends host calls and the result",
    when: [{ arg: 0, name: "fd", oneOf: [WORKER_SOCKET_FD] }],
    // A task that V8 posts makes libuv write to its wake-up eventfd, which is closed here. libuv aborts on any answer
    // but this one, "somebody has woken the loop already". libuv src/unix/async.c
    otherwise: "EAGAIN",
  },
  {
    call: "futex",
    reason:
      "locks and wake-ups of V8 and libc. The priority-inheritance operations are left out: the kernel bugs were there",
    when: [
      {
        arg: 1,
        name: "futex_op",
        symbols: FUTEX,
        mask: ~(FUTEX.PRIVATE_FLAG | FUTEX.CLOCK_REALTIME),
        oneOf: [
          FUTEX.WAIT,
          FUTEX.WAKE,
          FUTEX.REQUEUE,
          FUTEX.CMP_REQUEUE,
          FUTEX.WAIT_BITSET,
          FUTEX.WAKE_BITSET,
        ],
      },
    ],
  },
  {
    call: "clock_gettime",
    reason:
      "V8 reads the time; a real call only where the vDSO cannot. No dynamic clock: that is a descriptor or a pid",
    when: [
      {
        arg: 0,
        name: "clockid",
        symbols: CLOCK,
        oneOf: [
          CLOCK.REALTIME,
          CLOCK.MONOTONIC,
          CLOCK.PROCESS_CPUTIME_ID,
          CLOCK.THREAD_CPUTIME_ID,
          CLOCK.MONOTONIC_RAW,
          CLOCK.REALTIME_COARSE,
          CLOCK.MONOTONIC_COARSE,
          CLOCK.BOOTTIME,
          CLOCK.TAI,
        ],
      },
    ],
  },
  { call: "gettimeofday", reason: "the same, for libc's older callers" },
  {
    call: "madvise",
    reason: "V8 gives pages back and marks new ones; a DONTFORK is answered by the filter of forkFilter()",
    when: [{ arg: 2, name: "advice", symbols: MADV, oneOf: [MADV.DONTNEED, MADV.FREE, MADV.DONTFORK] }],
  },
  {
    call: "mmap",
    // RLIMIT_DATA counts private writable mappings that do not grow downward and nothing else: man 2 getrlimit,
    // is_data_mapping in the kernel's mm/. A shared or MAP_GROWSDOWN mapping would be memory beyond the limit.
    reason:
      "grows the heaps of V8 and libc, only by memory that RLIMIT_DATA counts and that is not executable",
    when: [
      readWriteOnly,
      {
        arg: 3,
        name: "flags",
        symbols: MAP,
        mask: ~(MAP.FIXED | MAP.NORESERVE),
        equals: MAP.PRIVATE | MAP.ANONYMOUS,
      },
    ],
  },
  { call: "munmap", reason: "shrinks the heaps of V8 and libc" },
  { call: "mprotect", reason: "V8 commits and decommits what it reserved", when: [readWriteOnly] },
  { call: "pkey_mprotect", reason: "the same, where V8 uses protection keys", when: [readWriteOnly] },
  { call: "brk", reason: "grows libc's heap; counted by RLIMIT_DATA" },
  { call: "getpid", reason: "libc and V8 ask for it; inside the pid namespace" },
  { call: "rt_sigreturn", reason: "the end of every signal handler. man 2 sigreturn" },
  { call: "exit_group", reason: "the end of the worker" },
];

/** V8 without a compiler asks for what QuickJS in its WebAssembly asks for. */
const v8Jitless = quickjs;

/** V8's compiler writes code, so pages may be executable: of the two halves of W^X this one is not held. */
const v8: readonly Rule[] = v8Jitless.map((rule) => ({
  ...rule,
  reason: rule.when?.includes(readWriteOnly) === true ? `${rule.reason}; for compiled code too` : rule.reason,
  ...(rule.when && { when: rule.when.map((it) => (it === readWriteOnly ? readWriteExecute : it)) }),
}));

export type ProfileName = "quickjs" | "typescript" | "owned" | "v8-jitless" | "v8";

/** Profiles of workers that make machine code at run time: for them no layer can refuse it. */
export const COMPILES: ReadonlySet<ProfileName> = new Set<ProfileName>(["v8"]);

/**
 * The profiles by engine kind. The TypeScript stripper and the owned engine (the probe that attempts what a guest
 * would, with no language in the way) run behind the very filter of quickjs: a probe of another filter proves nothing.
 */
export const PROFILES: Readonly<Record<ProfileName, Profile>> = {
  quickjs: { name: "quickjs", rules: quickjs },
  typescript: { name: "typescript", rules: quickjs },
  owned: { name: "owned", rules: quickjs },
  "v8-jitless": { name: "v8-jitless", rules: v8Jitless },
  v8: { name: "v8", rules: v8 },
};

/** What becomes of a refused call: a stop in the tracer, which must be there already, or the end of the process. */
export type Refusal = "trace" | "kill";

const REFUSAL: Readonly<Record<Refusal, number>> = {
  trace: SECCOMP.RET_TRACE,
  kill: SECCOMP.RET_KILL_PROCESS,
};

/**
 * The profile as a program for seccomp(2). Another architecture and, on x86-64, a number with bit 30 (x32) end in
 * KILL_PROCESS; a call or an argument that no rule allows ends as `refusal` says: "trace" is RET_TRACE with data 0,
 * which without a tracer is ENOSYS and not death, so it wants PTRACE_SEIZE first. man 2 seccomp, man 2 ptrace
 *
 * Throws RangeError on a profile that cannot mean what it says: a call twice, one that the architecture does not
 * have, a condition that is always false.
 */
export function compile(
  profile: Profile,
  { arch, refusal }: { arch: Arch; refusal: Refusal },
): Instruction[] {
  const lines: Line[] = [...nativeOnly(arch)];
  const seen = new Set<SyscallName>();
  for (const rule of profile.rules) {
    if (seen.has(rule.call)) throw new RangeError(`profile ${profile.name} has two rules for ${rule.call}`);
    seen.add(rule.call);
    // A still holds the call's number at `past`: only the block that matched replaces it, and that block returns.
    const past = `past ${rule.call}`;
    const refused = `refused ${rule.call}`;
    lines.push(test("EQUAL", callNumber(arch, rule.call), { no: past }));
    (rule.when ?? []).forEach((condition, i) =>
      lines.push(...demand(condition, `${rule.call} ${i}`, refused)),
    );
    lines.push(answer(SECCOMP.RET_ALLOW), label(refused));
    if (rule.when !== undefined) {
      const { otherwise } = rule;
      lines.push(answer(otherwise === undefined ? REFUSAL[refusal] : SECCOMP.RET_ERRNO + ERRNO[otherwise]));
    }
    lines.push(label(past));
  }
  lines.push(answer(REFUSAL[refusal]));
  return assemble(lines);
}

/**
 * The filter that makes Node forkable; installed before Node starts (filters survive execve). V8 marks its heap
 * MADV_DONTFORK, so a child of a plain fork() dies of SIGSEGV at its first touch of it. Here that call answers 0,
 * "done", and does nothing; everything else is allowed, calls of other architectures too: this is no wall, and it is
 * no weaker than none. The answer outranks a later filter's ALLOW and TRACE but not its KILL_PROCESS, so profiles
 * allow the call. man 2 madvise, man 2 seccomp "SECCOMP_RET_ERRNO"
 */
export function forkFilter(arch: Arch): Instruction[] {
  const advice = argumentWords(2).low;
  return assemble([
    load(SECCOMP_DATA.arch),
    test("EQUAL", AUDIT_ARCH[arch], { no: "allow" }),
    load(SECCOMP_DATA.nr),
    test("EQUAL", callNumber(arch, "madvise"), { no: "allow" }),
    // The parameter is an int: the kernel looks at the low half alone, and so does this.
    load(advice),
    test("EQUAL", MADV.DONTFORK, { no: "allow" }),
    answer(SECCOMP.RET_ERRNO), // data 0: the call "succeeds"
    label("allow"),
    answer(SECCOMP.RET_ALLOW),
  ]);
}

/** One allowed call for people. `conditions` is empty where any argument will do. */
export interface ExplainedRule {
  readonly call: SyscallName;
  readonly nr: number;
  readonly reason: string;
  readonly conditions: readonly string[];
}

/** The profile as rows to print, in the filter's order. Throws RangeError where `compile` would for a missing call. */
export function explainProfile(profile: Profile, arch: Arch): ExplainedRule[] {
  return profile.rules.map(({ call, reason, when, otherwise }) => ({
    call,
    nr: callNumber(arch, call),
    reason,
    conditions: [
      ...(when ?? []).map(inWords),
      ...(otherwise === undefined ? [] : [`otherwise not made, and answers ${otherwise}`]),
    ],
  }));
}

function callNumber(arch: Arch, call: SyscallName): number {
  const table: Readonly<Record<string, number>> = SYSCALLS[arch];
  const nr = table[call];
  if (nr === undefined) throw new RangeError(`${call} does not exist on ${arch}`);
  return nr;
}

/** Ends with the call's number in A. */
function nativeOnly(arch: Arch): Line[] {
  const number: Line[] = [
    load(SECCOMP_DATA.arch),
    test("EQUAL", AUDIT_ARCH[arch], { yes: "native" }),
    answer(SECCOMP.RET_KILL_PROCESS),
    label("native"),
    load(SECCOMP_DATA.nr),
  ];
  if (arch !== "x86_64") return number;
  return [
    ...number,
    test("ANY_BIT", X32_SYSCALL_BIT, { no: "not x32" }),
    answer(SECCOMP.RET_KILL_PROCESS),
    label("not x32"),
  ];
}

const ALL_BITS = 0xffff_ffff_ffff_ffffn;
const lowWord = (value: bigint): number => Number(BigInt.asUintN(32, value));
const highWord = (value: bigint): number => Number(BigInt.asUintN(32, value >> 32n));

/** A condition as unsigned 64-bit numbers. Throws RangeError where no argument, or not what is written, would pass. */
function readCondition(condition: Condition): { mask: bigint; values: readonly bigint[] } {
  const mask = condition.mask === undefined ? ALL_BITS : BigInt.asUintN(64, BigInt(condition.mask));
  const written = "equals" in condition ? [condition.equals] : condition.oneOf;
  const values = written.map((value) => BigInt(value));
  if (values.length === 0) throw new RangeError(`${condition.name} may be nothing at all`);
  for (const value of values) {
    if (value < 0n || (value & mask) !== value)
      throw new RangeError(`${condition.name} can never be ${value}`);
    if ("oneOf" in condition && highWord(value) !== 0) {
      throw new RangeError(`${condition.name}: ${value} does not fit in 32 bits`);
    }
  }
  return { mask, values };
}

/** Goes on to the next line if the condition holds, else to `refused`. Changes A; `unique` is for label names. */
function demand(condition: Condition, unique: string, refused: string): Line[] {
  const { mask, values } = readCondition(condition);
  const { low, high } = argumentWords(condition.arg);
  // The high words of all values are the same: of one there is only one, of several it is 0.
  return [
    ...demandWord(high, highWord(mask), [...new Set(values.map(highWord))], `${unique} high`, refused),
    ...demandWord(low, lowWord(mask), values.map(lowWord), `${unique} low`, refused),
  ];
}

function demandWord(
  offset: number,
  mask: number,
  values: readonly number[],
  held: string,
  refused: string,
): Line[] {
  if (mask === 0) return [];
  return [
    load(offset),
    ...(mask === 0xffffffff ? [] : [and(mask)]),
    ...values.map((value, i) =>
      test("EQUAL", value, i === values.length - 1 ? { yes: held, no: refused } : { yes: held }),
    ),
    label(held),
  ];
}

function inWords(condition: Condition): string {
  const { mask, values } = readCondition(condition);
  const { name, symbols = {} } = condition;
  const exact = (value: bigint): string =>
    Object.entries(symbols).find(([, symbol]) => BigInt(symbol) === value)?.[0] ?? bits(value, symbols);
  const is = values.length === 1 ? "is" : "is one of";
  const listed = values.map(exact).join(", ");
  const free = mask ^ ALL_BITS;
  if (free === 0n) return `${name} ${is} ${listed}`;
  // A mask with its high half set leaves a few bits free; any other picks a few bits out.
  if (highWord(mask) !== 0xffffffff) return `${name} & ${bits(mask, symbols)} ${is} ${listed}`;
  if (values.length === 1 && values[0] === 0n) return `${name} has no bit but ${bits(free, symbols)}`;
  return `${name} ${is} ${listed}, with or without ${bits(free, symbols)}`;
}

/** A value as the names of its single bits; in hex where one of them has no name. */
function bits(value: bigint, symbols: Readonly<Record<string, number>>): string {
  const names: string[] = [];
  let rest = value;
  for (const [name, symbol] of Object.entries(symbols)) {
    const bit = BigInt(symbol);
    if (bit === 0n || (bit & (bit - 1n)) !== 0n || (rest & bit) === 0n) continue;
    names.push(name);
    rest ^= bit;
  }
  if (rest === 0n && names.length > 0) return names.join("|");
  return value < 10n ? String(value) : `0x${value.toString(16)}`;
}
