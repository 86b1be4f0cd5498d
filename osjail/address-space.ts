/**
 * Keeps a process's memory together while it boots. V8 places each of its 256 KiB pages at a random address of 46 bits,
 * far from all others, and such a page then needs up to three pages of page tables of its own: 12 KiB that every fork
 * allocates, copies and frees, half a megabyte a worker in all. While those addresses are taken the kernel answers with
 * the next free place below the libraries instead, which is as random as they are. V8 base/platform
 * `OS::GetRandomMmapAddr`; man 2 mmap "If another mapping already exists there, the kernel picks a new address".
 */
import fs from "node:fs";
import { MAP, PROT } from "./abi/linux.js";
import { sys, trySys } from "./libc.ffi.js";

/** Above the program and its heap (brk), which must have room to grow. */
const LOWEST = 0x10_0000_0000;
/** End of the addresses that V8 asks for. */
const HIGHEST = 0x4000_0000_0000;

/**
 * Takes whatever is free of the addresses that V8 asks for; answers what gives it back. No memory is used, and it must
 * be given back before anything hostile runs: there no limit would see page tables for so many addresses. Where the
 * kernel refuses (a limit on address space, a smaller one than x86-64's) memory is scattered as before.
 */
export function keepTogether(): () => void {
  const taken: [start: number, bytes: number][] = [];
  // Another thread may map something between the look and the act: what is refused is looked at again.
  for (let passes = 4; passes > 0; passes--) {
    let refused = false;
    const take = (start: number, end: number) => {
      const flags = MAP.PRIVATE | MAP.ANONYMOUS | MAP.NORESERVE | MAP.FIXED_NOREPLACE;
      if (end <= start) return;
      if (trySys("mmap", start, end - start, PROT.NONE, flags, -1, 0) === start)
        taken.push([start, end - start]);
      else refused = true;
    };
    let free = LOWEST;
    for (const line of fs.readFileSync("/proc/self/maps", "latin1").split("\n")) {
      const [start = NaN, end = NaN] = (line.split(" ")[0] ?? "").split("-").map((hex) => parseInt(hex, 16));
      if (!(end > free)) continue;
      take(free, Math.min(start, HIGHEST));
      free = end;
    }
    take(free, HIGHEST);
    if (!refused) break;
  }
  return () => {
    for (const [start, bytes] of taken) sys("munmap", start, bytes);
  };
}
