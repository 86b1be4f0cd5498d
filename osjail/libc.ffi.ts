/**
 * The one file that loads the FFI library: raw system calls, and memory whose address the kernel may be told.
 * Whatever can hand the kernel a pointer lives behind this file, so a reader knows where memory safety ends.
 * Everything here is synchronous and works in a forked child that has no event loop.
 */
import fs from "node:fs";
import { createRequire } from "node:module";
import type ffi from "ffi-rs";
import { SYSCALLS, type Arch, type SyscallName } from "./abi/syscalls.js";
import { errnoName } from "./abi/linux.js";
import { JailError } from "./errors.js";

/** Why it does not load, if so: its builds are optional packages, which an install may have left out. */
let unloaded: JailError | undefined;
const { load, open, DataType } = library();

/** Where it does not load, whoever imports this file may go on; the first call throws. */
function library(): Pick<typeof ffi, "load" | "open" | "DataType"> {
  const require = createRequire(import.meta.url);
  try {
    return require("ffi-rs") as typeof ffi;
  } catch (cause) {
    const why = cause instanceof Error ? (cause.message.split("\n")[0] ?? "") : String(cause);
    const error = (unloaded = new JailError("ffi", `the system-call library does not load: ${why}`, { cause })); // prettier-ignore
    const fail = (): never => {
      throw error;
    };
    return { load: fail, open: fail, DataType: {} as typeof DataType };
  }
}

const { I64, U8Array } = DataType;
/** By the number of words that a call passes: describing one takes ffi-rs half a microsecond. */
const WORD_TYPES = Array.from({ length: 8 }, (_, words) => Array.from({ length: words }, () => I64));

let opened = false;
function libc(): "libc" {
  // An empty path is dlopen(NULL): the process itself, where libc is mapped already. man 3 dlopen
  if (!opened) open({ library: "libc", path: "" });
  opened = true;
  return "libc";
}

/** The machine's system-call table. Throws on an architecture that has none here. */
export function hostArch(): Arch {
  if (process.arch === "x64") return "x86_64";
  if (process.arch === "arm64") return "aarch64";
  throw new Error(`no system-call table for ${process.arch}: x86-64 and arm64 are supported`);
}

/**
 * Bytes at a fixed address. The backing store of an ArrayBuffer never moves; it lives as long as this object is
 * reachable, so whoever passes an address to the kernel keeps the Memory until the call has returned.
 */
export class Memory {
  readonly bytes: Buffer;
  readonly address: number;
  constructor(content: number | string | Uint8Array) {
    this.bytes =
      typeof content === "number"
        ? Buffer.from(new ArrayBuffer(Math.max(content, 1)))
        : typeof content === "string"
          ? copyOf(Buffer.from(`${content}\0`))
          : copyOf(content);
    // ffi-rs has no "address of this Buffer"; memmove(p, p, 0) returns its first argument. man 3 memmove
    this.address = load({
      library: libc(),
      funcName: "memmove",
      retType: I64,
      paramsType: [U8Array, U8Array, I64],
      paramsValue: [this.bytes, this.bytes, 0],
    });
  }
  /** A NULL-terminated vector of pointers to C strings, as execve(2) wants. `kept` holds what it points to. */
  static vector(strings: readonly string[]): { vector: Memory; kept: Memory[] } {
    const kept = strings.map((s) => new Memory(s));
    const vector = new Memory(8 * (strings.length + 1));
    kept.forEach((s, i) => vector.bytes.writeBigUInt64LE(BigInt(s.address), 8 * i));
    return { vector, kept };
  }
}

function copyOf(bytes: Uint8Array): Buffer {
  const own = Buffer.from(new ArrayBuffer(Math.max(bytes.length, 1)));
  own.set(bytes);
  return own;
}

/** A system call that the kernel refused. `errno` is the number, `code` its name ("EPERM"). */
export class KernelError extends Error {
  override name = "KernelError";
  readonly code: string;
  constructor(
    readonly call: string,
    readonly errno: number,
  ) {
    super(`${call}: ${errnoName(errno)}`);
    this.code = errnoName(errno);
  }
}

type Word = number | Memory;

/**
 * One raw system call by number; the result, or the negative errno as the kernel itself returns it. Arguments that are
 * not given are 0. man 2 syscall
 */
export function rawSyscall(nr: number, ...args: Word[]): number {
  const words = wordsOf(nr, args);
  while (words.length < 7) words.push(0);
  return makeCall(words);
}

function wordsOf(nr: number, args: readonly Word[]): number[] {
  const words = [nr];
  for (const word of args) words.push(typeof word === "number" ? word : word.address);
  return words;
}

function makeCall(words: number[]): number {
  const answer = load({
    library: libc(),
    funcName: "syscall",
    retType: I64,
    paramsType: WORD_TYPES[words.length] as (typeof I64)[],
    paramsValue: words,
    errno: true,
  }) as unknown as { value: number; errnoCode: number };
  return answer.value === -1 ? -answer.errnoCode : answer.value;
}

/**
 * Takes the small holes of the C heap out of use for good, so that later allocations lie side by side. glibc hands holes
 * of one size out in turn, and moves up to seven of them to its cache at once: each fork of this process would write to
 * a hundred pages for a handful of objects. Every size is asked for until the answers stand in a row.
 */
export function settleHeap(): void {
  const malloc = (bytes: number) =>
    load({ library: libc(), funcName: "malloc", retType: I64, paramsType: [I64], paramsValue: [bytes] });
  for (let bytes = LARGEST_CACHED; bytes > 0; bytes -= 16) {
    let [last, stride, inARow] = [0, 0, 0];
    for (let tries = 0; inARow < 4 && tries < 1000; tries++) {
      const at = malloc(bytes);
      inARow = at - last === stride ? inARow + 1 : 0;
      stride = at - last;
      last = at;
    }
  }
}

/** What glibc keeps in its cache at most, bytes. man 3 mallopt, glibc malloc/malloc.c MAX_TCACHE_SIZE */
const LARGEST_CACHED = 1032;

/**
 * Gives the C heap's free pages back to the kernel: what a process that forks does not hold, its children need not
 * copy. Where libc has no malloc_trim (musl), nothing happens. man 3 malloc_trim
 */
export function trimHeap(): void {
  try {
    load({ library: libc(), funcName: "malloc_trim", retType: I64, paramsType: [I64], paramsValue: [0] });
  } catch {
    // not glibc
  }
}

let table: Readonly<Record<string, number>> | undefined;

/** The number of a call on this machine; throws for a call that the architecture does not have. */
export function syscallNumber(name: SyscallName): number {
  table ??= SYSCALLS[hostArch()];
  const nr = table[name];
  if (nr === undefined) throw new Error(`${name} does not exist on ${hostArch()}`);
  return nr;
}

/**
 * Like `sys`, but answers -errno instead of throwing: for calls whose failure is an expected answer. All arguments that
 * the call has must be given: the kernel finds anything in the others' registers.
 */
export function trySys(name: SyscallName, ...args: Word[]): number {
  return makeCall(wordsOf(syscallNumber(name), args));
}

export type SystemCall = (name: SyscallName, ...args: Word[]) => number;

/** One system call by name. Throws KernelError with the errno; returns the kernel's non-negative answer. */
export function sys(name: SyscallName, ...args: Word[]): number {
  const ret = trySys(name, ...args);
  if (ret < 0) throw new KernelError(name, -ret);
  return ret;
}

const supported = process.platform === "linux" && (process.arch === "x64" || process.arch === "arm64");

/**
 * Whether this copy of the module belongs to the process's first thread, which ends with the process; by the kernel's
 * word, since what runs in the jail loads no threads. Where there is no kernel hull it does not matter. man 2 gettid
 */
export const onMainThread: boolean = !supported || unloaded !== undefined || sys("gettid") === process.pid;

/** RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE, the same in glibc and musl. man 3 dlopen, <dlfcn.h> */
const STAY_LOADED = 0x1 | 0x4 | 0x1000;

/**
 * Keeps the FFI library mapped for good. With the last thread that loaded it Node unmaps an addon, but this one has
 * left destructors of thread-local storage behind, and the thread's own end then jumps to where they were: SIGSEGV in
 * the embedder's process. A main thread never unmaps it. Nothing may run between the import and this.
 */
function stayLoaded(): void {
  const maps = fs.readFileSync("/proc/self/maps", "utf8");
  const path = /^\S+ \S+ \S+ \S+ \S+ +(\/.*\/ffi-rs\.[^/]*\.node)$/m.exec(maps)?.[1];
  const handle = load({
    library: libc(),
    funcName: "dlopen",
    retType: I64,
    paramsType: [DataType.String, DataType.I32],
    paramsValue: [path ?? "", STAY_LOADED],
  });
  if (path === undefined || handle === 0) {
    throw new Error(
      "ffi-rs cannot be kept loaded in this thread: import doublehull in the main thread first",
    );
  }
}
if (!onMainThread) stayLoaded();
