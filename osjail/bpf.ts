/**
 * Classic BPF, as much of it as a seccomp filter needs: an assembler with named labels, the kernel's own rules for a
 * valid program, the wire form, a disassembler for people and an interpreter for tests. A filter that is one jump
 * off still loads and allows the wrong call, so programs are written with names, checked here and run on paper first.
 * What a filter says stands in seccomp.ts; no policy lives here.
 *
 * Sources: linux/bpf_common.h, linux/filter.h, linux/seccomp.h, man 2 seccomp; the rules of validity are those of
 * net/core/filter.c bpf_check_classic and kernel/seccomp.c seccomp_check_filter.
 */
import { errnoName, SECCOMP, SECCOMP_DATA } from "./abi/linux.js";
import { AUDIT_ARCH, syscallName, type Arch } from "./abi/syscalls.js";

/** Opcodes: class, size or operation, and source, already combined. linux/bpf_common.h */
export const OPCODE = {
  /** A = 32-bit word at byte k of struct seccomp_data. BPF_LD|BPF_W|BPF_ABS */
  LOAD: 0x20,
  /** A &= k. BPF_ALU|BPF_AND|BPF_K */
  AND: 0x54,
  /** Skip k instructions. BPF_JMP|BPF_JA */
  GOTO: 0x05,
  /** A == k. BPF_JMP|BPF_JEQ|BPF_K */
  EQUAL: 0x15,
  /** A > k, unsigned. BPF_JMP|BPF_JGT|BPF_K */
  GREATER: 0x25,
  /** A >= k, unsigned. BPF_JMP|BPF_JGE|BPF_K */
  AT_LEAST: 0x35,
  /** A & k is not 0. BPF_JMP|BPF_JSET|BPF_K */
  ANY_BIT: 0x45,
  /** The filter's answer is k. BPF_RET|BPF_K */
  RETURN: 0x06,
} as const;

/** The most instructions that the kernel takes: BPF_MAXINSNS. linux/bpf_common.h */
export const MAX_INSTRUCTIONS = 4096;

/** The farthest a conditional jump reaches: jt and jf are one byte each. linux/filter.h */
const MAX_JUMP = 255;

/** Bytes of one `struct sock_filter`. */
export const INSTRUCTION_SIZE = 8;

/** `struct sock_filter`: jt and jf count instructions to skip, k is unsigned 32-bit. linux/filter.h */
export interface Instruction {
  readonly code: number;
  readonly jt: number;
  readonly jf: number;
  readonly k: number;
}

/** A program that cannot be assembled, or that the kernel would refuse (EINVAL): a mistake in the program's author. */
export class BpfError extends Error {
  override name = "BpfError";
}

type Test = "EQUAL" | "GREATER" | "AT_LEAST" | "ANY_BIT";

/** One line of a program before its labels are resolved. A label names the instruction that follows it. */
export type Line =
  | { readonly line: "label"; readonly name: string }
  | { readonly line: "load"; readonly offset: number }
  | { readonly line: "and"; readonly mask: number }
  | { readonly line: "goto"; readonly to: string }
  | {
      readonly line: "test";
      readonly test: Test;
      readonly k: number;
      readonly yes?: string;
      readonly no?: string;
    }
  | { readonly line: "return"; readonly action: number };

/** Names the instruction that follows. Jumps only lead forward, so a label stands after every jump to it. */
export const label = (name: string): Line => ({ line: "label", name });
/** A = the 32-bit word at `offset` (bytes, a multiple of 4) of struct seccomp_data. */
export const load = (offset: number): Line => ({ line: "load", offset });
/** A &= mask (unsigned 32-bit). */
export const and = (mask: number): Line => ({ line: "and", mask });
/** Jumps without a condition; reaches any distance. */
export const goto = (to: string): Line => ({ line: "goto", to });
/** Compares A with k and goes to the label for its truth; without one for the case at hand, to the next instruction. */
export const test = (test: Test, k: number, where: { yes?: string; no?: string }): Line => ({
  line: "test",
  test,
  k,
  ...where,
});
/** Ends the filter with this 32-bit answer: a SECCOMP.RET_* action, or'ed with 16 bits of data. */
export const answer = (action: number): Line => ({ line: "return", action });

/** Byte offsets in struct seccomp_data of the two 32-bit words of argument 0 to 5. Little endian: low word first. */
export function argumentWords(arg: number): { low: number; high: number } {
  const low = SECCOMP_DATA.args + 8 * arg;
  return { low, high: low + 4 };
}

/**
 * Resolves labels and returns a program that the kernel accepts. Throws BpfError on an unknown or repeated label, a
 * jump backward, a conditional jump over more than 255 instructions, and on all that `validate` refuses.
 */
export function assemble(lines: readonly Line[]): Instruction[] {
  const targets = new Map<string, number>();
  let next = 0;
  for (const line of lines) {
    if (line.line !== "label") next++;
    else if (targets.has(line.name)) throw new BpfError(`label ${line.name} stands twice`);
    else targets.set(line.name, next);
  }

  const program: Instruction[] = [];
  const distance = (to: string | undefined): number => {
    if (to === undefined) return 0;
    const target = targets.get(to);
    if (target === undefined) throw new BpfError(`no label ${to}`);
    const skip = target - program.length - 1;
    if (skip < 0) throw new BpfError(`the jump to ${to} leads backward`);
    return skip;
  };
  const near = (to: string | undefined): number => {
    const skip = distance(to);
    if (skip > MAX_JUMP) throw new BpfError(`the jump to ${to} is ${skip} long, more than ${MAX_JUMP}`);
    return skip;
  };
  for (const line of lines) {
    switch (line.line) {
      case "label":
        break;
      case "load":
        program.push({ code: OPCODE.LOAD, jt: 0, jf: 0, k: line.offset });
        break;
      case "and":
        program.push({ code: OPCODE.AND, jt: 0, jf: 0, k: line.mask });
        break;
      case "goto":
        program.push({ code: OPCODE.GOTO, jt: 0, jf: 0, k: distance(line.to) });
        break;
      case "test":
        program.push({ code: OPCODE[line.test], jt: near(line.yes), jf: near(line.no), k: line.k });
        break;
      case "return":
        program.push({ code: OPCODE.RETURN, jt: 0, jf: 0, k: line.action });
        break;
    }
  }
  validate(program);
  return program;
}

/**
 * Throws BpfError unless the program is one that the kernel accepts and this file understands: 1 to 4096 instructions
 * of the set above, loads inside struct seccomp_data and aligned, every jump inside the program, a return at its end
 * (so that no path falls off it). Jumps are unsigned, so every accepted program ends.
 */
export function validate(program: readonly Instruction[]): void {
  if (program.length < 1 || program.length > MAX_INSTRUCTIONS) {
    throw new BpfError(`a program has 1 to ${MAX_INSTRUCTIONS} instructions, not ${program.length}`);
  }
  program.forEach(({ code, jt, jf, k }, at) => {
    const inRange = k === k >>> 0 && jt === (jt & 0xff) && jf === (jf & 0xff);
    if (!inRange) throw new BpfError(`instruction ${at}: k takes 32 bits, jt and jf 8 each, all unsigned`);
    switch (code) {
      case OPCODE.LOAD:
        if (k % 4 !== 0 || k >= SECCOMP_DATA.size) {
          throw new BpfError(`instruction ${at}: offset ${k} is no word of struct seccomp_data`);
        }
        break;
      case OPCODE.GOTO:
        if (at + 1 + k >= program.length) throw new BpfError(`instruction ${at} jumps out of the program`);
        break;
      case OPCODE.EQUAL:
      case OPCODE.GREATER:
      case OPCODE.AT_LEAST:
      case OPCODE.ANY_BIT:
        if (at + 1 + Math.max(jt, jf) >= program.length) {
          throw new BpfError(`instruction ${at} jumps out of the program`);
        }
        break;
      case OPCODE.AND:
      case OPCODE.RETURN:
        break;
      default:
        throw new BpfError(`instruction ${at}: unknown opcode 0x${code.toString(16)}`);
    }
  });
  if (program.at(-1)?.code !== OPCODE.RETURN) throw new BpfError("the program can fall off its end");
}

/** The program as `struct sock_filter[]`, 8 bytes an instruction, little endian. Throws BpfError if it is invalid. */
export function encode(program: readonly Instruction[]): Uint8Array {
  validate(program);
  const bytes = new Uint8Array(INSTRUCTION_SIZE * program.length);
  const view = new DataView(bytes.buffer);
  program.forEach(({ code, jt, jf, k }, i) => {
    const at = INSTRUCTION_SIZE * i;
    view.setUint16(at, code, true);
    view.setUint8(at + 2, jt);
    view.setUint8(at + 3, jf);
    view.setUint32(at + 4, k, true);
  });
  return bytes;
}

/** The reverse of `encode`. Throws BpfError on a length that is no multiple of 8 and on an invalid program. */
export function decode(bytes: Uint8Array): Instruction[] {
  if (bytes.length % INSTRUCTION_SIZE !== 0)
    throw new BpfError(`${bytes.length} bytes are no sock_filter array`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const program: Instruction[] = [];
  for (let at = 0; at < bytes.length; at += INSTRUCTION_SIZE) {
    program.push({
      code: view.getUint16(at, true),
      jt: view.getUint8(at + 2),
      jf: view.getUint8(at + 3),
      k: view.getUint32(at + 4, true),
    });
  }
  validate(program);
  return program;
}

/** `struct seccomp_data`: one system call as a filter sees it. Arguments are taken modulo 2^64. linux/seccomp.h */
export interface SeccompData {
  readonly nr: number;
  /** An AUDIT_ARCH_* word. */
  readonly arch: number;
  readonly instructionPointer?: bigint;
  /** Up to six; missing ones are 0. */
  readonly args: readonly bigint[];
}

/** The 32-bit answer (unsigned) that the kernel would get. For tests. Throws BpfError if the program is invalid. */
export function interpret(program: readonly Instruction[], data: SeccompData): number {
  validate(program);
  const view = new DataView(new ArrayBuffer(SECCOMP_DATA.size));
  view.setUint32(SECCOMP_DATA.nr, data.nr, true);
  view.setUint32(SECCOMP_DATA.arch, data.arch, true);
  view.setBigUint64(SECCOMP_DATA.instruction_pointer, data.instructionPointer ?? 0n, true);
  data.args.forEach((arg, i) => view.setBigUint64(argumentWords(i).low, BigInt.asUintN(64, arg), true));

  let a = 0;
  for (let at = 0; ; at++) {
    const instruction = program[at];
    if (instruction === undefined) throw new BpfError("a valid program ran off its end");
    const { code, jt, jf, k } = instruction;
    switch (code) {
      case OPCODE.LOAD:
        a = view.getUint32(k, true);
        break;
      case OPCODE.AND:
        a = (a & k) >>> 0;
        break;
      case OPCODE.GOTO:
        at += k;
        break;
      case OPCODE.EQUAL:
        at += a === k ? jt : jf;
        break;
      case OPCODE.GREATER:
        at += a > k ? jt : jf;
        break;
      case OPCODE.AT_LEAST:
        at += a >= k ? jt : jf;
        break;
      case OPCODE.ANY_BIT:
        at += (a & k) !== 0 ? jt : jf;
        break;
      case OPCODE.RETURN:
        return k;
    }
  }
}

const ACTIONS: ReadonlyMap<number, string> = new Map([
  [SECCOMP.RET_KILL_PROCESS, "KILL_PROCESS"],
  [SECCOMP.RET_KILL_THREAD, "KILL_THREAD"],
  [SECCOMP.RET_TRAP, "TRAP"],
  [SECCOMP.RET_ERRNO, "ERRNO"],
  [SECCOMP.RET_USER_NOTIF, "USER_NOTIF"],
  [SECCOMP.RET_TRACE, "TRACE"],
  [SECCOMP.RET_LOG, "LOG"],
  [SECCOMP.RET_ALLOW, "ALLOW"],
]);

/** A filter's answer in words: "ALLOW", "ERRNO EPERM", "TRACE 7". Unknown actions kill the process. man 2 seccomp */
export function actionName(action: number): string {
  const name = ACTIONS.get((action & SECCOMP.RET_ACTION_FULL) >>> 0) ?? "KILL_PROCESS";
  const data = action & SECCOMP.RET_DATA;
  if (name === "ERRNO") return data === 0 ? "ERRNO 0 (success)" : `ERRNO ${errnoName(data)}`;
  return data === 0 ? name : `${name} ${data}`;
}

function wordName(offset: number): string {
  if (offset === SECCOMP_DATA.nr) return "nr";
  if (offset === SECCOMP_DATA.arch) return "arch";
  const half = offset % 8 === 0 ? "low" : "high";
  if (offset < SECCOMP_DATA.args) return `ip ${half}`;
  return `args[${(offset - SECCOMP_DATA.args) >> 3}] ${half}`;
}

const hex = (k: number): string => `0x${k.toString(16)}`;

/**
 * The program for people, one instruction to a line with its index; jumps name the index they lead to. Where A holds
 * the call number or the architecture word on every path, a constant compared with it gets its name.
 * Throws BpfError if the program is invalid.
 */
export function disassemble(program: readonly Instruction[], { arch }: { arch: Arch }): string {
  validate(program);
  // What A holds on arrival: the offset of an unchanged word, or null where it was changed or paths differ.
  const holds: (number | null | undefined)[] = [];
  const arrive = (at: number, word: number | null | undefined): void => {
    if (holds[at] === undefined) holds[at] = word;
    else if (holds[at] !== word) holds[at] = null;
  };
  const constant = (at: number, k: number): string => {
    if (holds[at] === SECCOMP_DATA.nr) {
      const name = syscallName(arch, k);
      if (name !== undefined) return name;
    }
    if (holds[at] === SECCOMP_DATA.arch) {
      const known = Object.entries(AUDIT_ARCH).find(([, word]) => word === k);
      if (known !== undefined) return known[0];
    }
    return hex(k);
  };
  const conditional = (at: number, word: string, { jt, jf, k }: Instruction): string => {
    arrive(at + 1 + jt, holds[at]);
    arrive(at + 1 + jf, holds[at]);
    return `${word} ${constant(at, k)} ? ${at + 1 + jt} : ${at + 1 + jf}`;
  };
  const line = (at: number, instruction: Instruction): string => {
    const { code, k } = instruction;
    switch (code) {
      case OPCODE.LOAD:
        arrive(at + 1, k);
        return `load ${wordName(k)}`;
      case OPCODE.AND:
        arrive(at + 1, null);
        return `and ${hex(k)}`;
      case OPCODE.GOTO:
        arrive(at + 1 + k, holds[at]);
        return `goto ${at + 1 + k}`;
      case OPCODE.EQUAL:
        return conditional(at, "==", instruction);
      case OPCODE.GREATER:
        return conditional(at, ">", instruction);
      case OPCODE.AT_LEAST:
        return conditional(at, ">=", instruction);
      case OPCODE.ANY_BIT:
        return conditional(at, "has a bit of", instruction);
      default:
        return `return ${actionName(k)}`;
    }
  };
  const width = String(program.length - 1).length;
  return program
    .map((instruction, at) => `${String(at).padStart(width)}  ${line(at, instruction)}`)
    .join("\n");
}
