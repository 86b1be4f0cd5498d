/** Installs, on the calling thread alone, the filter under which a Node that is started next can fork. */
import { SECCOMP } from "./abi/linux.js";
import { encode } from "./bpf.js";
import { hostArch, Memory, sys } from "./libc.ffi.js";
import { forkFilter } from "./seccomp.js";

export function installForkFilter(): void {
  const rows = forkFilter(hostArch());
  const instructions = new Memory(encode(rows));
  const program = new Memory(SECCOMP.FPROG_SIZE);
  program.bytes.writeUInt16LE(rows.length, 0);
  program.bytes.writeBigUInt64LE(BigInt(instructions.address), SECCOMP.FPROG_FILTER_AT);
  sys("seccomp", SECCOMP.SET_MODE_FILTER, 0, program);
}
