import { describe, expect, it } from "vitest";
import {
  actionName,
  and,
  answer,
  argumentWords,
  assemble,
  BpfError,
  decode,
  disassemble,
  encode,
  goto,
  interpret,
  label,
  load,
  MAX_INSTRUCTIONS,
  OPCODE,
  test,
  validate,
  type Line,
} from "#osjail/bpf";
import { SECCOMP, SECCOMP_DATA } from "#osjail/abi/linux";
import { AUDIT_ARCH, SYSCALLS } from "#osjail/abi/syscalls";

const call = (nr: number, ...args: bigint[]) => ({ nr, arch: AUDIT_ARCH.x86_64, args });
const repeat = (count: number, line: Line): Line[] => Array.from({ length: count }, () => line);

/** A conditional jump over so many instructions. */
const jumpOver = (count: number): Line[] => [
  load(0),
  test("EQUAL", 0, { yes: "end" }),
  ...repeat(count, and(1)),
  label("end"),
  answer(0),
];

describe("the assembler", () => {
  it("resolves names to the distances that the kernel counts", () => {
    const program = assemble([
      load(0),
      test("EQUAL", 7, { yes: "seven" }),
      test("AT_LEAST", 9, { yes: "big", no: "seven" }),
      label("big"),
      answer(1),
      label("seven"),
      answer(2),
    ]);
    expect(program).toEqual([
      { code: 0x20, jt: 0, jf: 0, k: 0 },
      { code: 0x15, jt: 2, jf: 0, k: 7 },
      { code: 0x35, jt: 0, jf: 1, k: 9 },
      { code: 0x06, jt: 0, jf: 0, k: 1 },
      { code: 0x06, jt: 0, jf: 0, k: 2 },
    ]);
  });

  it("reaches 255 instructions with a condition, and no more", () => {
    expect(assemble(jumpOver(255))[1]?.jt).toBe(255);
    expect(() => assemble(jumpOver(256))).toThrow("the jump to end is 256 long, more than 255");
  });

  it("reaches any distance without a condition", () => {
    const program = assemble([load(0), goto("end"), ...repeat(1000, and(0)), label("end"), answer(5)]);
    expect(interpret(program, call(1))).toBe(5);
  });

  it.each<[string, Line[]]>([
    ["no label nowhere", [load(0), test("EQUAL", 0, { yes: "nowhere" }), answer(0)]],
    ["label here stands twice", [label("here"), load(0), label("here"), answer(0)]],
    ["the jump to back leads backward", [label("back"), load(0), goto("back"), answer(0)]],
    ["jumps out of the program", [load(0), test("EQUAL", 0, { no: "end" }), answer(0), label("end")]],
    ["jumps out of the program", [goto("end"), answer(0), label("end")]],
    ["can fall off its end", [load(0)]],
    ["can fall off its end", [answer(0), load(0)]],
    ["not 0", []],
    ["not 4097", repeat(MAX_INSTRUCTIONS + 1, answer(0))],
    ["offset 2 is no word", [load(2), answer(0)]],
    ["offset 64 is no word", [load(SECCOMP_DATA.size), answer(0)]],
    ["k takes 32 bits", [load(0), and(-1), answer(0)]],
    ["k takes 32 bits", [load(0), and(2 ** 32), answer(0)]],
    ["k takes 32 bits", [answer(0.5)]],
  ])("says %j of a program that is wrong that way", (message, lines) => {
    expect(() => assemble(lines)).toThrow(BpfError);
    expect(() => assemble(lines)).toThrow(message);
  });

  it("takes a program of the greatest length", () => {
    expect(assemble(repeat(MAX_INSTRUCTIONS, answer(0)))).toHaveLength(4096);
  });
});

describe("the wire form", () => {
  const program = assemble([
    load(SECCOMP_DATA.arch),
    test("EQUAL", 0xc000003e, { no: "end" }),
    load(argumentWords(5).high),
    and(0x80000001),
    test("ANY_BIT", 1, { yes: "end" }),
    answer(SECCOMP.RET_ALLOW),
    label("end"),
    answer(SECCOMP.RET_KILL_PROCESS),
  ]);

  it("is sock_filter, little endian", () => {
    const bytes = encode(program);
    expect(bytes).toHaveLength(8 * program.length);
    expect([...bytes.subarray(8, 16)]).toEqual([0x15, 0, 0, 4, 0x3e, 0, 0, 0xc0]);
  });

  it("comes back as it went, also from the middle of a buffer", () => {
    const bytes = encode(program);
    const inside = new Uint8Array(bytes.length + 3);
    inside.set(bytes, 3);
    expect(decode(bytes)).toEqual(program);
    expect(decode(inside.subarray(3))).toEqual(program);
  });

  it("is refused when it is cut, or holds an opcode that no filter here uses", () => {
    expect(() => decode(encode(program).subarray(0, 12))).toThrow("12 bytes are no sock_filter array");
    const foreign = encode(program);
    foreign[0] = 0x28; // BPF_LD|BPF_H|BPF_ABS: a 16-bit load, which seccomp refuses
    expect(() => decode(foreign)).toThrow("unknown opcode 0x28");
  });
});

/** Answers 1 where the call number passes the test. */
const compare = (name: "EQUAL" | "GREATER" | "AT_LEAST" | "ANY_BIT", k: number) =>
  assemble([load(0), test(name, k, { yes: "yes" }), answer(0), label("yes"), answer(1)]);

/** Answers 1 where the word at this offset is k. */
const equal = (offset: number, k: number) =>
  assemble([load(offset), test("EQUAL", k, { yes: "yes" }), answer(0), label("yes"), answer(1)]);

describe("the interpreter", () => {
  it("compares unsigned", () => {
    expect(interpret(compare("GREATER", 1), call(0x80000000))).toBe(1);
    expect(interpret(compare("GREATER", 0x80000000), call(0x80000000))).toBe(0);
    expect(interpret(compare("AT_LEAST", 0x80000000), call(0x80000000))).toBe(1);
    expect(interpret(compare("AT_LEAST", 0x80000000), call(0x7fffffff))).toBe(0);
    expect(interpret(compare("ANY_BIT", 0x80000000), call(0xc0000000))).toBe(1);
    expect(interpret(compare("ANY_BIT", 0x80000000), call(0x7fffffff))).toBe(0);
    expect(interpret(compare("EQUAL", 0xffffffff), call(-1))).toBe(1);
  });

  it("reads both words of every argument and of the instruction pointer", () => {
    const args = [1n, 2n, 3n, 4n, 5n, 6n].map((n) => (n << 32n) | (n + 10n));
    for (let i = 0; i < 6; i++) {
      expect(interpret(equal(argumentWords(i).low, i + 11), call(0, ...args))).toBe(1);
      expect(interpret(equal(argumentWords(i).high, i + 1), call(0, ...args))).toBe(1);
    }
    const data = { ...call(0), instructionPointer: 0x7fff_0000_1234n };
    expect(interpret(equal(8, 0x1234), data)).toBe(1);
    expect(interpret(equal(12, 0x7fff), data)).toBe(1);
  });

  it("takes a negative argument as the kernel does", () => {
    const high = argumentWords(0).high;
    const program = assemble([
      load(high),
      test("EQUAL", 0xffffffff, { no: "no" }),
      answer(1),
      label("no"),
      answer(0),
    ]);
    expect(interpret(program, call(0, -1n))).toBe(1);
  });

  it("keeps the answer's highest bit", () => {
    expect(interpret(assemble([load(0), and(0), answer(SECCOMP.RET_KILL_PROCESS)]), call(0))).toBe(
      0x80000000,
    );
  });

  it("runs nothing that the kernel would refuse", () => {
    const outside = [
      { code: OPCODE.EQUAL, jt: 1, jf: 0, k: 0 },
      { code: OPCODE.RETURN, jt: 0, jf: 0, k: 0 },
    ];
    expect(() => validate(outside)).toThrow(BpfError);
    expect(() => interpret(outside, call(0))).toThrow("instruction 0 jumps out of the program");
    expect(() => interpret([{ code: OPCODE.RETURN, jt: 256, jf: 0, k: 0 }], call(0))).toThrow("8 each");
  });
});

/** One line of each kind, as it is printed. */
const printedSample = (arch: "x86_64" | "aarch64"): string[] =>
  disassemble(
    assemble([
      load(SECCOMP_DATA.arch),
      test("EQUAL", AUDIT_ARCH[arch], { no: "kill" }),
      load(SECCOMP_DATA.nr),
      test("EQUAL", SYSCALLS[arch].openat, { no: "kill" }),
      load(argumentWords(2).high),
      and(SYSCALLS[arch].openat),
      test("EQUAL", SYSCALLS[arch].openat, { yes: "kill" }),
      load(8),
      answer(SECCOMP.RET_ERRNO + 13),
      label("kill"),
      answer(SECCOMP.RET_KILL_PROCESS),
    ]),
    { arch },
  ).split("\n");

describe("the disassembler", () => {
  it("names the architecture, the call, the words and the actions", () => {
    for (const arch of ["x86_64", "aarch64"] as const) {
      const nr = `0x${SYSCALLS[arch].openat.toString(16)}`;
      expect(printedSample(arch)).toEqual([
        "0  load arch",
        `1  == ${arch} ? 2 : 9`,
        "2  load nr",
        "3  == openat ? 4 : 9",
        "4  load args[2] high",
        `5  and ${nr}`,
        `6  == ${nr} ? 9 : 7`,
        "7  load ip low",
        "8  return ERRNO EACCES",
        "9  return KILL_PROCESS",
      ]);
    }
  });

  it("gives a number no call's name where only one of two paths holds a call number", () => {
    const program = assemble([
      load(SECCOMP_DATA.arch),
      test("EQUAL", 1, { yes: "meet" }),
      load(SECCOMP_DATA.nr),
      label("meet"),
      test("EQUAL", 0, { yes: "end" }),
      label("end"),
      answer(SECCOMP.RET_ALLOW),
    ]);
    expect(disassemble(program, { arch: "x86_64" })).toContain("3  == 0x0 ?");
  });

  it("calls an action that the kernel does not know what the kernel makes of it", () => {
    expect(actionName(0x12340000)).toBe("KILL_PROCESS");
    expect(actionName(SECCOMP.RET_KILL_THREAD)).toBe("KILL_THREAD");
    expect(actionName(SECCOMP.RET_TRACE + 7)).toBe("TRACE 7");
    expect(actionName(SECCOMP.RET_ERRNO)).toBe("ERRNO 0 (success)");
  });
});
