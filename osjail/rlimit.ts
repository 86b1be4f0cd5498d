/** Resource limits, soft and hard alike: struct rlimit64 is two 64-bit words, and prlimit64 takes any process. man 2 prlimit */
import { Memory, sys, type SystemCall } from "./libc.ffi.js";

const limit = new Memory(16);

/** Sets the soft and the hard limit. `pid` 0 is the caller. Throws KernelError; a hard limit is not raised again. */
export function setLimit(pid: number, resource: number, value: number, call: SystemCall = sys): void {
  limit.bytes.writeBigUInt64LE(BigInt(value), 0);
  limit.bytes.writeBigUInt64LE(BigInt(value), 8);
  call("prlimit64", pid, resource, limit, 0);
}

/** The caller's own; no limit is 2^64 - 1, as a number that is not exact. */
export function getLimit(resource: number): { soft: number; hard: number } {
  sys("prlimit64", 0, resource, 0, limit);
  return { soft: Number(limit.bytes.readBigUInt64LE(0)), hard: Number(limit.bytes.readBigUInt64LE(8)) };
}
