/**
 * Files beneath a directory, by descriptors: the mechanism under every grant of files. What is beneath is decided by
 * the kernel while it walks the path (openat2(2) with RESOLVE_BENEATH), never by comparing texts before: between a
 * realpath and an open a directory can be exchanged for a symbolic link, and that race has broken most file sandboxes.
 *
 * The rule: a path of more than one component is only ever given to openat2, relative to a directory's descriptor; the
 * calls that openat2 cannot stand for (mkdirat, unlinkat, renameat2, statx) get such a descriptor and one name, which is
 * checked here to be a name, and none of them follows a symbolic link at the last component. After an open only the
 * descriptor is used. Directories are read by getdents64 rather than by opening /proc/self/fd/N anew: no path, no need
 * of /proc, and the caller's bound on entries holds before they are in memory.
 *
 * What is refused on the way: `..` out of the directory and absolute paths (EXDEV), any symbolic link (ELOOP), magic
 * links (ELOOP), and other mounts (EXDEV): a file system mounted inside, bind mounts and /proc included, is another
 * tree that nobody granted. A hard link is no link but the file itself, and is opened as such.
 *
 * Descriptors are plain numbers, close-on-exec, owned by the caller and given back with `close`. Everything but read,
 * write and sync is synchronous (some 10 us a call) and reuses the same memory. Failures are KernelErrors or Node's
 * own, with the errno's name in `code`.
 */
import fs from "node:fs";
import { promisify } from "node:util";
import {
  AT,
  DIRENT64,
  ERRNO,
  O,
  O_ARCH,
  OPEN_HOW,
  RENAME,
  RESOLVE,
  S_IF,
  STATX,
  STATX_BASIC_STATS,
} from "./abi/linux.js";
import { JailError } from "./errors.js";
import { hostArch, KernelError, Memory, sys, trySys } from "./libc.ffi.js";

export interface FileFacts {
  readonly type: "file" | "directory" | "other";
  /** Bytes. */
  readonly size: number;
  /** Milliseconds since 1970. */
  readonly modifiedMs: number;
  /** How many names it has. */
  readonly links: number;
}

const CONFINED = RESOLVE.BENEATH | RESOLVE.NO_MAGICLINKS | RESOLVE.NO_SYMLINKS | RESOLVE.NO_XDEV;
/** PATH_MAX counts the terminating NUL; NAME_MAX does not. linux/limits.h */
const PATH_MAX = 4096;
const NAME_MAX = 255;
/** EAGAIN: a rename somewhere made the kernel unsure of a `..`; man 2 openat2 leaves it to the caller to try again. */
const ATTEMPTS = 64;
const DIRENTS_BYTES = 32 * 1024;

const readAsync = promisify(fs.read);
const writeAsync = promisify(fs.write);
const fsyncAsync = promisify(fs.fsync);

/**
 * The power to open files beneath directories. Throws JailError `confined-files` where the kernel or a filter of the
 * container does not have the call: there is no weaker way to fall back to.
 */
export function beneath(): Beneath {
  if (process.platform !== "linux") {
    const remedy = "Grant no files on this system: confining them needs openat2(2) of Linux.";
    throw new JailError("not-linux", "files can be confined to a directory on Linux only", { remedy });
  }
  const power = new Beneath();
  const slash = power.openRoot("/");
  try {
    power.close(power.openDirectory(slash, "."));
  } catch (error) {
    throw new JailError(
      "confined-files",
      `files cannot be confined to a directory: ${(error as Error).message}`,
      {
        cause: error,
      },
    );
  } finally {
    power.close(slash);
  }
  return power;
}

export class Beneath {
  readonly #arch = O_ARCH[hostArch()];
  readonly #how = new Memory(OPEN_HOW.size);
  readonly #path = new Memory(PATH_MAX);
  readonly #otherName = new Memory(NAME_MAX + 1);
  readonly #statx = new Memory(STATX.bytes);
  readonly #dirents = new Memory(DIRENTS_BYTES);

  /** A directory by the host's own path, symbolic links and all. ENOENT, ENOTDIR, EACCES. */
  openRoot(path: string): number {
    const flags = O.PATH | this.#arch.DIRECTORY | O.CLOEXEC;
    return sys("openat", AT.FDCWD, text(this.#path, "openat", path), flags, 0);
  }

  /** A directory to start from (O_PATH): it can be walked from and named in, not read. `.` is `dir` itself. */
  openDirectory(dir: number, path: string): number {
    return this.#open(dir, path, O.PATH | this.#arch.DIRECTORY);
  }

  /** Whatever has that name, without touching it (O_PATH): a symbolic link at the end is opened itself. For `stat`. */
  openPath(dir: number, path: string): number {
    return this.#open(dir, path, O.PATH | this.#arch.NOFOLLOW);
  }

  /**
   * A regular file. EISDIR for a directory, EOPNOTSUPP for a fifo, socket or device: those are looked at first, so that
   * none is opened (to open a device is to use it), and looked at again, since the name may have been exchanged between
   * the two; O_NONBLOCK keeps even that one from waiting for a fifo's other end. man 7 fifo, man 2 open
   */
  openFile(dir: number, path: string, access: "read" | "append"): number {
    const seen = this.openPath(dir, path);
    try {
      this.#expectFile(seen);
    } finally {
      this.close(seen);
    }
    const how = access === "read" ? O.RDONLY : O.WRONLY | O.APPEND;
    const fd = this.#open(dir, path, how | O.NONBLOCK | O.NOCTTY | this.#arch.NOFOLLOW);
    try {
      this.#expectFile(fd);
    } catch (error) {
      this.close(fd);
      throw error;
    }
    return fd;
  }

  #expectFile(fd: number): void {
    const { type } = this.stat(fd);
    if (type === "file") return;
    throw new KernelError("openat2", type === "directory" ? ERRNO.EISDIR : ERRNO.EOPNOTSUPP);
  }

  /** A new, empty file for writing at its end, readable by our own user only. EEXIST if anything has the name. */
  createFile(dir: number, name: string): number {
    checkName("openat2", name);
    return this.#open(dir, name, O.WRONLY | O.APPEND | O.CREAT | O.EXCL | this.#arch.NOFOLLOW, 0o600);
  }

  /** A new directory for our own user only. EEXIST if anything has the name. man 2 mkdirat */
  makeDirectory(dir: number, name: string): void {
    checkName("mkdirat", name);
    sys("mkdirat", dir, text(this.#path, "mkdirat", name), 0o700);
  }

  /** Takes a name away: of anything but a directory. EISDIR. man 2 unlinkat */
  removeFile(dir: number, name: string): void {
    checkName("unlinkat", name);
    sys("unlinkat", dir, text(this.#path, "unlinkat", name), 0);
  }

  /** ENOTEMPTY, ENOTDIR. man 2 unlinkat AT_REMOVEDIR */
  removeDirectory(dir: number, name: string): void {
    checkName("unlinkat", name);
    sys("unlinkat", dir, text(this.#path, "unlinkat", name), AT.REMOVEDIR);
  }

  /**
   * In one step; a symbolic link is renamed itself. EEXIST where `replace` is false and the name is taken; EINVAL on a
   * file system that cannot promise that (man 2 renameat2 lists those that can) or for a directory into itself.
   */
  rename(fromDir: number, from: string, toDir: number, to: string, replace: boolean): void {
    checkName("renameat2", from);
    checkName("renameat2", to);
    const [a, b] = [text(this.#path, "renameat2", from), text(this.#otherName, "renameat2", to)];
    sys("renameat2", fromDir, a, toDir, b, replace ? 0 : RENAME.NOREPLACE);
  }

  /** Of an open descriptor of any kind. man 2 statx AT_EMPTY_PATH */
  stat(fd: number): FileFacts {
    return this.#facts(fd, "", AT.EMPTY_PATH);
  }

  /** Of a name in a directory; a symbolic link is not followed. */
  statName(dir: number, name: string): FileFacts {
    checkName("statx", name);
    return this.#facts(dir, name, AT.SYMLINK_NOFOLLOW | AT.NO_AUTOMOUNT);
  }

  #facts(fd: number, name: string, flags: number): FileFacts {
    sys("statx", fd, text(this.#path, "statx", name), flags, STATX_BASIC_STATS, this.#statx);
    const { bytes } = this.#statx;
    const format = bytes.readUInt16LE(STATX.mode) & S_IF.MT;
    const seconds = Number(bytes.readBigInt64LE(STATX.mtime_sec));
    return {
      type: format === S_IF.REG ? "file" : format === S_IF.DIR ? "directory" : "other",
      size: Number(bytes.readBigUInt64LE(STATX.size)),
      modifiedMs: seconds * 1000 + Math.floor(bytes.readUInt32LE(STATX.mtime_nsec) / 1e6),
      links: bytes.readUInt32LE(STATX.nlink),
    };
  }

  /**
   * The names in a directory in no order, without `.` and `..`; undefined where there are more than `most`. A name that
   * is not UTF-8 is left out: no string would reach it again. man 2 getdents64
   */
  names(dir: number, most: number): string[] | undefined {
    const fd = this.#open(dir, ".", O.RDONLY | this.#arch.DIRECTORY);
    const found: string[] = [];
    try {
      for (;;) {
        const filled = sys("getdents64", fd, this.#dirents, DIRENTS_BYTES);
        if (filled === 0) return found;
        for (let at = 0; at < filled;) {
          const length = this.#dirents.bytes.readUInt16LE(at + DIRENT64.reclen);
          const raw = this.#dirents.bytes.subarray(at + DIRENT64.name, at + length);
          const name = decoded(raw.subarray(0, raw.indexOf(0)));
          if (name !== undefined && name !== "." && name !== "..") found.push(name);
          at += length;
        }
        if (found.length > most) return undefined;
      }
    } finally {
      this.close(fd);
    }
  }

  /** Up to `into.length` bytes from where the last read ended; 0 at the end. `into` is the kernel's until then. */
  async read(fd: number, into: Uint8Array): Promise<number> {
    const { bytesRead } = await readAsync(fd, into, 0, into.length, null);
    return bytesRead;
  }

  /** How many of the bytes were written. */
  async write(fd: number, bytes: Uint8Array): Promise<number> {
    const { bytesWritten } = await writeAsync(fd, bytes, 0, bytes.length, null);
    return bytesWritten;
  }

  /** Resolves when what was written is on the disk. man 2 fsync */
  async sync(fd: number): Promise<void> {
    await fsyncAsync(fd);
  }

  /** Only when every read, write and sync of it has settled: the number is given out anew at once. */
  close(fd: number): void {
    fs.closeSync(fd);
  }

  #open(dir: number, path: string, flags: number, mode = 0): number {
    const how = this.#how.bytes;
    how.writeBigUInt64LE(BigInt(flags | O.CLOEXEC), OPEN_HOW.flags);
    how.writeBigUInt64LE(BigInt(mode), OPEN_HOW.mode);
    how.writeBigUInt64LE(BigInt(CONFINED), OPEN_HOW.resolve);
    const where = text(this.#path, "openat2", path);
    for (let attempt = 1; ; attempt++) {
      const fd = trySys("openat2", dir, where, this.#how, OPEN_HOW.size);
      if (fd >= 0) return fd;
      if (fd !== -ERRNO.EAGAIN || attempt === ATTEMPTS) throw new KernelError("openat2", -fd);
    }
  }
}

/** The path as a C string in memory of ours. EINVAL for a NUL, which would end it early; ENAMETOOLONG. */
function text(memory: Memory, call: string, path: string): Memory {
  const { bytes } = memory;
  if (path.includes("\0")) throw new KernelError(call, ERRNO.EINVAL);
  if (Buffer.byteLength(path) >= bytes.length) throw new KernelError(call, ERRNO.ENAMETOOLONG);
  bytes[bytes.write(path, "utf8")] = 0;
  return memory;
}

/** The calls that take a name would walk a path without asking where it leads: EINVAL for what is no name. */
function checkName(call: string, name: string): void {
  if (name === "" || name === "." || name === ".." || name.includes("/")) {
    throw new KernelError(call, ERRNO.EINVAL);
  }
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
function decoded(bytes: Uint8Array): string | undefined {
  try {
    return strict.decode(bytes);
  } catch {
    return undefined; // names are bytes to the kernel
  }
}
