/**
 * Filters as the kernel takes them. A filter belongs to a thread: which threads it must reach is said at each place,
 * and the call's answer is checked, since a filter that reached one thread of several holds none. man 2 seccomp
 */
import { SECCOMP } from "./abi/linux.js";
import { encode, type Instruction } from "./bpf.js";
import { JailError } from "./errors.js";
import { hostArch, Memory, sys, type SystemCall } from "./libc.ffi.js";
import type { JailPlan } from "./plan.js";
import { compile, forkFilter, PROFILES, type Refusal } from "./seccomp.js";

/** A filter in memory whose address the kernel can be told: struct sock_fprog. linux/filter.h */
export class FilterProgram {
  readonly #instructions: Memory;
  readonly program = new Memory(SECCOMP.FPROG_SIZE);
  constructor(instructions: readonly Instruction[]) {
    this.#instructions = new Memory(encode(instructions));
    this.program.bytes.writeUInt16LE(instructions.length, 0);
    this.program.bytes.writeBigUInt64LE(BigInt(this.#instructions.address), SECCOMP.FPROG_FILTER_AT);
  }
}

export function workerFilter(plan: JailPlan, refusal: Refusal): FilterProgram {
  return new FilterProgram(compile(PROFILES[plan.profile], { arch: plan.arch, refusal }));
}

/** TSYNC though there is one thread: a positive answer names a thread that could not follow, and is a failure. */
export function installFilter(filter: FilterProgram, call: SystemCall = sys): void {
  const ret = call("seccomp", SECCOMP.SET_MODE_FILTER, SECCOMP.FLAG_TSYNC, filter.program);
  if (ret > 0) throw new JailError("seccomp", `thread ${ret} could not be filtered`);
}

/** Installs, on the calling thread alone, the filter under which a Node that is started next can fork. */
export function installForkFilter(): void {
  const { program } = new FilterProgram(forkFilter(hostArch()));
  sys("seccomp", SECCOMP.SET_MODE_FILTER, 0, program);
}
