import { existsSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { interpret } from "#osjail/bpf";
import { compile, explainProfile, forkFilter, PROFILES, type Condition, type Profile } from "#osjail/seccomp";
import { ERRNO, MADV, MAP, PROT, SECCOMP } from "#osjail/abi/linux";
import {
  AUDIT_ARCH,
  HIGHEST_SYSCALL,
  syscallName,
  SYSCALLS,
  UNFILTERED_SYSCALLS,
  X32_SYSCALL_BIT,
  type Arch,
  type SyscallName,
} from "#osjail/abi/syscalls";

const ARCHES: readonly Arch[] = ["x86_64", "aarch64"];
const ALLOW = SECCOMP.RET_ALLOW;
const KILL = SECCOMP.RET_KILL_PROCESS;
const REFUSALS = [
  ["trace", SECCOMP.RET_TRACE],
  ["kill", KILL],
] as const;

function numberOf(arch: Arch, call: SyscallName): number {
  const table: Readonly<Record<string, number>> = SYSCALLS[arch];
  const nr = table[call];
  if (nr === undefined) throw new Error(`${call} does not exist on ${arch}`);
  return nr;
}

const none = [0n, 0n, 0n, 0n, 0n, 0n];
const set = (arg: number, value: bigint, base: readonly bigint[] = none): bigint[] =>
  base.map((old, i) => (i === arg ? value : old));

const PRIVATE_ANONYMOUS = BigInt(MAP.PRIVATE | MAP.ANONYMOUS);
const mmapArgs = (prot: bigint, flags: bigint): bigint[] => set(3, flags, set(2, prot));

/** Written out by hand, not derived from the profile: what each rule must let through and what it must stop. */
const EXPECTED: readonly { call: SyscallName; right: bigint[][]; wrong: bigint[][] }[] = [
  {
    call: "read",
    right: [set(0, 3n)],
    wrong: [0n, 1n, 2n, 4n, -1n, 3n | (1n << 32n)].map((fd) => set(0, fd)),
  },
  {
    call: "write",
    right: [set(0, 3n)],
    wrong: [0n, 1n, 2n, 4n, -1n, 3n | (1n << 63n)].map((fd) => set(0, fd)),
  },
  {
    call: "futex",
    right: [0n, 1n, 3n, 4n, 9n, 10n, 128n, 129n, 131n, 132n, 137n, 138n, 265n, 393n].map((op) => set(1, op)),
    // FD, WAKE_OP, the PI operations bare and private, a flag that does not exist, an operation of the future.
    wrong: [2n, 5n, 6n, 7n, 8n, 11n, 12n, 13n, 133n, 134n, 135n, 139n, 140n, 141n, 512n, 14n, 1n << 32n].map(
      (op) => set(1, op),
    ),
  },
  {
    call: "clock_gettime",
    right: [0n, 1n, 2n, 3n, 4n, 5n, 6n, 7n, 11n].map((clock) => set(0, clock)),
    // Alarm clocks, a process's CPU clock (negative), a descriptor's clock as an int and as a long.
    wrong: [8n, 9n, 10n, 12n, -1n, -6n, 0xfffffffan, 1n << 32n].map((clock) => set(0, clock)),
  },
  { call: "gettimeofday", right: [none], wrong: [] },
  {
    call: "madvise",
    right: [4n, 8n, 10n].map((advice) => set(2, advice)),
    wrong: [0n, 3n, 9n, 11n, 12n, 14n, 18n, 21n, 23n, 100n, 4n | (1n << 32n)].map((advice) => set(2, advice)),
  },
  {
    call: "mmap",
    right: [0n, 1n, 2n, 3n].flatMap((prot) =>
      [0, MAP.FIXED, MAP.NORESERVE, MAP.FIXED | MAP.NORESERVE].map((extra) =>
        mmapArgs(prot, PRIVATE_ANONYMOUS | BigInt(extra)),
      ),
    ),
    wrong: [
      ...[4n, 5n, 7n, 8n, 0x10n, 0x01000000n, 1n << 32n].map((prot) => mmapArgs(prot, PRIVATE_ANONYMOUS)),
      ...[
        MAP.PRIVATE,
        MAP.ANONYMOUS,
        MAP.SHARED | MAP.ANONYMOUS,
        MAP.SHARED,
        MAP.SHARED_VALIDATE | MAP.ANONYMOUS,
        MAP.PRIVATE | MAP.ANONYMOUS | MAP.GROWSDOWN,
        MAP.PRIVATE | MAP.ANONYMOUS | MAP.LOCKED,
        MAP.PRIVATE | MAP.ANONYMOUS | MAP.HUGETLB,
        MAP.PRIVATE | MAP.ANONYMOUS | MAP.POPULATE,
      ].map((flags) => mmapArgs(3n, BigInt(flags))),
      mmapArgs(3n, PRIVATE_ANONYMOUS | (1n << 40n)),
    ],
  },
  { call: "munmap", right: [none], wrong: [] },
  {
    call: "mprotect",
    right: [0n, 1n, 2n, 3n].map((prot) => set(2, prot)),
    wrong: [4n, 5n, 7n, 8n, 0x10n, 0x01000000n, 0x80000000n, 3n | (1n << 32n)].map((prot) => set(2, prot)),
  },
  {
    call: "pkey_mprotect",
    right: [0n, 1n, 2n, 3n].map((prot) => set(2, prot)),
    wrong: [4n, 5n, 7n, 8n, 0x10n, 0x01000000n, 0x80000000n, 3n | (1n << 32n)].map((prot) => set(2, prot)),
  },
  { call: "brk", right: [none], wrong: [] },
  { call: "getpid", right: [none], wrong: [] },
  { call: "rt_sigreturn", right: [none], wrong: [] },
  { call: "exit_group", right: [none, set(0, 139n)], wrong: [] },
];

describe("the system-call tables", () => {
  it("hold every number once", () => {
    for (const arch of ARCHES) {
      const numbers = Object.values(SYSCALLS[arch]);
      expect(new Set(numbers).size).toBe(numbers.length);
      for (const [name, nr] of Object.entries(SYSCALLS[arch])) expect(syscallName(arch, nr)).toBe(name);
      expect(HIGHEST_SYSCALL[arch]).toBe(numberOf(arch, "file_setattr"));
    }
  });

  it("agree between the architectures from 424 on, as new calls do since Linux 5.1", () => {
    for (let nr = 424; nr <= 469; nr++) expect(syscallName("aarch64", nr)).toBe(syscallName("x86_64", nr));
  });

  it("name no x32 number and no number beyond the table", () => {
    expect(syscallName("x86_64", X32_SYSCALL_BIT)).toBeUndefined();
    expect(syscallName("aarch64", 244)).toBeUndefined();
    expect(syscallName("x86_64", 470)).toBeUndefined();
  });

  const headers: readonly [Arch, string][] = [
    ["x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"],
    ["aarch64", "/usr/include/aarch64-linux-gnu/asm/unistd_64.h"],
  ];
  for (const [arch, header] of headers) {
    it.skipIf(!existsSync(header))(`agree with ${header}, where this machine has it`, () => {
      const lines = [...readFileSync(header, "utf8").matchAll(/^#define __NR_(\w+)\s+(\d+)$/gm)];
      const listed = lines.map(([, name, nr]): [string, number] => [name, Number(nr)]);
      expect(listed.length).toBeGreaterThan(300);
      // A header newer than the table may know more; what both know must agree.
      const known = listed.filter(([, nr]) => nr <= HIGHEST_SYSCALL[arch]);
      expect(SYSCALLS[arch]).toMatchObject(Object.fromEntries(known));
    });
  }
});

describe("the profiles", () => {
  for (const profile of Object.values(PROFILES)) {
    it(`${profile.name}: has at most fifteen calls, each once, each with a reason, all on both architectures`, () => {
      const calls = profile.rules.map((rule) => rule.call);
      expect(calls.length).toBeGreaterThan(0);
      expect(calls.length).toBeLessThanOrEqual(15);
      expect(new Set(calls).size).toBe(calls.length);
      for (const rule of profile.rules) {
        expect(rule.reason.trim()).not.toBe("");
        for (const arch of ARCHES) expect(numberOf(arch, rule.call)).toBeGreaterThanOrEqual(0);
      }
    });

    it(`${profile.name}: allows the calls that this test expects and no other`, () => {
      expect(profile.rules.map((rule) => rule.call).sort()).toEqual(EXPECTED.map(({ call }) => call).sort());
    });
  }

  it("take no call that the kernel would not show to a filter", () => {
    for (const profile of Object.values(PROFILES)) {
      for (const { call } of profile.rules) expect(UNFILTERED_SYSCALLS.x86_64).not.toContain(call);
    }
  });
});

describe.each(ARCHES)("the quickjs filter on %s", (arch) => {
  const foreign = ARCHES.filter((other) => other !== arch).map((other) => AUDIT_ARCH[other]);

  describe.each(REFUSALS)("with the refusal %j", (refusal, refused) => {
    const program = compile(PROFILES.quickjs, { arch, refusal });
    const ask = (nr: number, args: readonly bigint[] = none, word = AUDIT_ARCH[arch]): number =>
      interpret(program, { nr, arch: word, args });

    /** A write to another descriptor is not made either, but answers EAGAIN: libuv's wake-up has to survive. */
    const wrongArgument = (call: string) => (call === "write" ? SECCOMP.RET_ERRNO + ERRNO.EAGAIN : refused);

    it("refuses every number from 0 to 1023 that no rule names, whatever its arguments", () => {
      const named = new Set(EXPECTED.map(({ call }) => numberOf(arch, call)));
      let swept = 0;
      for (let nr = 0; nr < 1024; nr++) {
        if (named.has(nr)) continue;
        for (const args of [none, none.map(() => 3n), none.map(() => -1n)])
          expect(ask(nr, args)).toBe(refused);
        swept++;
      }
      expect(swept).toBe(1024 - EXPECTED.length);
    });

    it.each(EXPECTED)("lets $call through with the right arguments only", ({ call, right, wrong }) => {
      const nr = numberOf(arch, call);
      for (const args of right) expect(ask(nr, args), `${call}(${args.join()})`).toBe(ALLOW);
      for (const args of wrong) expect(ask(nr, args), `${call}(${args.join()})`).toBe(wrongArgument(call));
    });

    it("looks at all 64 bits of every argument that it looks at", () => {
      for (const rule of PROFILES.quickjs.rules) {
        const right = EXPECTED.find(({ call }) => call === rule.call)?.right[0] ?? none;
        for (const { arg } of rule.when ?? []) {
          for (let bit = 32n; bit < 64n; bit++) {
            const args = set(arg, (right[arg] ?? 0n) | (1n << bit), right);
            expect(ask(numberOf(arch, rule.call), args), `${rule.call} bit ${bit}`).toBe(
              wrongArgument(rule.call),
            );
          }
        }
      }
    });

    it("kills a call of any other architecture, also one that is allowed here", () => {
      const right = EXPECTED.map(({ call, right: [args = none] }) => [numberOf(arch, call), args] as const);
      for (const word of [...foreign, 0x40000003, 0x40000028, 0, 0xffffffff]) {
        for (const [nr, args] of right) {
          expect(ask(nr, args)).toBe(ALLOW);
          expect(ask(nr, args, word)).toBe(KILL);
        }
      }
    });

    it("lets no number with x32's bit through: death on x86-64, refusal on arm64", () => {
      for (let nr = 0; nr < 1024; nr++) {
        expect(ask(X32_SYSCALL_BIT + nr, set(0, 3n))).toBe(arch === "x86_64" ? KILL : refused);
      }
      expect(ask(-1)).toBe(arch === "x86_64" ? KILL : refused);
    });
  });

  it("is that of v8 but for code: where quickjs refuses PROT_EXEC, v8 does not, and nothing else differs", () => {
    const executable = ["mmap", "mprotect", "pkey_mprotect"];
    for (const [refusal, refused] of REFUSALS) {
      const programs = [PROFILES.quickjs, PROFILES.v8].map((it) => compile(it, { arch, refusal }));
      for (const call of Object.keys(SYSCALLS[arch]) as SyscallName[]) {
        for (const prot of [0n, 1n, 3n, 5n, 7n, 8n, 0x1000007n, 1n << 32n]) {
          const args = [3n, 0n, prot, 0x22n, 0xffffffffn, 0n] as const;
          const data = { nr: numberOf(arch, call), arch: AUDIT_ARCH[arch], args: [...args] };
          const [quickjs, v8] = programs.map((program) => interpret(program, data));
          const code = executable.includes(call) && (prot === 5n || prot === 7n);
          expect([call, prot, quickjs, v8]).toEqual([call, prot, code ? refused : v8, code ? SECCOMP.RET_ALLOW : quickjs]); // prettier-ignore
        }
      }
    }
  });

  it("is the same for every other kind of worker", () => {
    for (const profile of Object.values(PROFILES).filter(({ name }) => name !== "v8")) {
      for (const [refusal] of REFUSALS) {
        expect(compile(profile, { arch, refusal })).toEqual(compile(PROFILES.quickjs, { arch, refusal }));
      }
    }
  });

  it("is explained row by row in the filter's order", () => {
    const rows = explainProfile(PROFILES.quickjs, arch);
    expect(rows.map((row) => row.nr)).toEqual(
      PROFILES.quickjs.rules.map((rule) => numberOf(arch, rule.call)),
    );
    const words = Object.fromEntries(rows.map((row) => [row.call, row.conditions]));
    expect(words).toMatchObject({
      read: ["fd is 3"],
      mmap: ["prot has no bit but READ|WRITE", "flags is PRIVATE|ANONYMOUS, with or without FIXED|NORESERVE"],
      madvise: ["advice is one of DONTNEED, FREE, DONTFORK"],
      getpid: [],
    });
    expect(words["futex"]?.[0]).toMatch(
      /^futex_op is one of WAIT, .*, with or without PRIVATE_FLAG\|CLOCK_REALTIME$/,
    );
  });
});

/** Which of these values a profile lets through whose one rule has this one condition. */
function passes(condition: Condition, ...values: bigint[]): boolean[] {
  const profile: Profile = { name: "one", rules: [{ call: "kill", reason: "a test", when: [condition] }] };
  const program = compile(profile, { arch: "x86_64", refusal: "kill" });
  const { nr, arch } = { nr: SYSCALLS.x86_64.kill, arch: AUDIT_ARCH.x86_64 };
  return values.map((value) => interpret(program, { nr, arch, args: set(condition.arg, value) }) === ALLOW);
}

describe("a condition", () => {
  it("compares values above 2^32 word by word", () => {
    const equals = 0x1234_5678_9abc_def0n;
    const condition: Condition = { arg: 5, name: "value", mask: -1n, equals };
    expect(passes(condition, equals, equals ^ 1n, equals ^ (1n << 63n))).toEqual([true, false, false]);
  });

  it("ignores the bits outside its mask, in either half", () => {
    expect(
      passes({ arg: 0, name: "low", mask: 0xff, equals: 7 }, 7n, 0xf00n | 7n, 7n | (1n << 40n), 8n),
    ).toEqual([true, true, true, false]);
    expect(passes({ arg: 0, name: "high", mask: 1n << 40n, equals: 1n << 40n }, 1n << 40n, -1n, 0n)).toEqual([
      true,
      true,
      false,
    ]);
  });

  it("may stand beside another for the same argument", () => {
    const when: Condition[] = [
      { arg: 0, name: "a", mask: 1, equals: 1 },
      { arg: 0, name: "a", mask: 1, equals: 1 },
      { arg: 0, name: "a", mask: 2, equals: 0 },
    ];
    const program = compile(
      { name: "two", rules: [{ call: "kill", reason: "a test", when }] },
      { arch: "x86_64", refusal: "kill" },
    );
    const data = { nr: SYSCALLS.x86_64.kill, arch: AUDIT_ARCH.x86_64 };
    expect([0n, 1n, 2n, 3n].map((a) => interpret(program, { ...data, args: [a] }) === ALLOW)).toEqual([
      false,
      true,
      false,
      false,
    ]);
  });

  it.each<[string, Condition]>([
    ["value can never be 4", { arg: 0, name: "value", mask: 3, equals: 4 }],
    ["value can never be -1", { arg: 0, name: "value", oneOf: [-1] }],
    ["value may be nothing at all", { arg: 0, name: "value", oneOf: [] }],
    ["value: 4294967296 does not fit in 32 bits", { arg: 0, name: "value", oneOf: [2 ** 32] }],
  ])("is refused with %j when it cannot mean what it says", (message, condition) => {
    expect(() => passes(condition, 0n)).toThrow(message);
  });
});

const rule = (call: SyscallName) => ({ call, reason: "a test" });

describe("compile", () => {
  it("refuses two rules for one call, and a call that the architecture does not have", () => {
    const twice: Profile = { name: "twice", rules: [rule("read"), rule("read")] };
    const old: Profile = { name: "old", rules: [rule("open")] };
    expect(() => compile(twice, { arch: "x86_64", refusal: "kill" })).toThrow(
      "profile twice has two rules for read",
    );
    expect(compile(old, { arch: "x86_64", refusal: "kill" }).length).toBeGreaterThan(0);
    expect(() => compile(old, { arch: "aarch64", refusal: "kill" })).toThrow(
      "open does not exist on aarch64",
    );
  });
});

describe.each(ARCHES)("the fork filter on %s", (arch) => {
  const ask = (nr: number, args: readonly bigint[], word = AUDIT_ARCH[arch]): number =>
    interpret(forkFilter(arch), { nr, arch: word, args });
  const dontFork = set(2, BigInt(MADV.DONTFORK));

  it("answers MADV_DONTFORK with success", () => {
    expect(ask(SYSCALLS[arch].madvise, dontFork)).toBe(SECCOMP.RET_ERRNO);
  });

  it("stays out of the way of everything else", () => {
    for (let nr = 0; nr < 1024; nr++) {
      if (nr !== SYSCALLS[arch].madvise) expect(ask(nr, dontFork)).toBe(ALLOW);
    }
    for (let advice = 0n; advice < 64n; advice++) {
      if (advice !== BigInt(MADV.DONTFORK)) expect(ask(SYSCALLS[arch].madvise, set(2, advice))).toBe(ALLOW);
    }
    expect(ask(SYSCALLS[arch].madvise, dontFork, 0x40000003)).toBe(ALLOW);
    expect(ask(SYSCALLS[arch].mmap, set(2, BigInt(PROT.READ)))).toBe(ALLOW);
  });
});
