/**
 * What the capability "files" does to a directory: each act from the opening of its descriptors to their closing, and
 * the count of what was added. Paths come here as `files-path` lets them pass; where they lead is the kernel's matter.
 *
 * The rule for descriptors: a number is used in the same turn of the event loop in which it was opened or asked for, or
 * it is the act's own; an act closes its own when the last thing that it waits for has settled, however. A number used
 * after its closing is another file's, perhaps another tenant's.
 */
import { randomBytes } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { type Call, CapabilityError, type CapabilityErrorCode } from "./capability.js";
import { type Account, type Count, goOn } from "./files-account.js";
import { nameFault, split, TEMPORARY_PREFIX } from "./files-path.js";

/** What has a name in a directory. `other`: symbolic link, fifo, socket, device. */
export interface FileFacts {
  readonly type: "file" | "directory" | "other";
  /** Bytes. */
  readonly size: number;
  /** Milliseconds since 1970. */
  readonly modifiedMs: number;
  /** How many names it has. */
  readonly links: number;
}

/**
 * The power to open files beneath a directory. A `dir` is a descriptor from `openRoot` or `openDirectory`; a `path` is
 * relative and must be refused if it leaves `dir` in any way; a `name` is a single component. Descriptors are the
 * caller's, who gives them back by `close`. Failures carry the errno's name in `code`.
 */
export interface Beneath {
  openRoot(path: string): number;
  openDirectory(dir: number, path: string): number;
  /** Anything, symbolic links themselves, without using it. */
  openPath(dir: number, path: string): number;
  /** Regular files only: EISDIR, or EOPNOTSUPP for anything else. */
  openFile(dir: number, path: string, access: "read" | "append"): number;
  /** Empty, written at its end. EEXIST if the name is taken by anything. */
  createFile(dir: number, name: string): number;
  makeDirectory(dir: number, name: string): void;
  removeFile(dir: number, name: string): void;
  removeDirectory(dir: number, name: string): void;
  /** EEXIST if not `replace` and the name is taken by anything. */
  rename(fromDir: number, from: string, toDir: number, to: string, replace: boolean): void;
  stat(fd: number): FileFacts;
  statName(dir: number, name: string): FileFacts;
  /** Undefined if there are more than `most`. */
  names(dir: number, most: number): string[] | undefined;
  read(fd: number, into: Uint8Array): Promise<number>;
  write(fd: number, bytes: Uint8Array): Promise<number>;
  sync(fd: number): Promise<void>;
  close(fd: number): void;
}

/** Read and written at a time: between two chunks a call can be ended. */
const CHUNK_BYTES = 256 * 1024;
/** Beyond it `list` fails rather than to hold it all in the host's memory. */
const MAX_ENTRIES = 10_000;
/** Entries looked at before others get their turn: about 1 ms. */
const ENTRIES_AT_A_TIME = 100;

// ---- errors ---------------------------------------------------------------------------------------------------------

/** What the file system says, in the guest's words; what is not here is the host's trouble and arrives as `failed`. */
const FAILURES: ReadonlyMap<string, readonly [CapabilityErrorCode, string]> = new Map([
  ["ENOENT", ["not-found", "does not exist"]],
  ["ENOTDIR", ["not-found", "is no directory, or leads through something that is none"]],
  ["EISDIR", ["bad-argument", "is a directory"]],
  ["EOPNOTSUPP", ["denied", "is not a regular file"]],
  ["ENXIO", ["denied", "is not a regular file"]],
  ["ELOOP", ["denied", "leads through a symbolic link"]],
  ["EXDEV", ["denied", "leads out of the directory"]],
  ["EACCES", ["denied", "is closed to the host too"]],
  ["EPERM", ["denied", "is closed to the host too"]],
  ["EROFS", ["denied", "cannot be written by the host either"]],
  ["EEXIST", ["conflict", "exists already"]],
  ["ENOTEMPTY", ["conflict", "is not empty"]],
  ["EBUSY", ["conflict", "is in use"]],
  ["ETXTBSY", ["conflict", "is in use"]],
  ["EAGAIN", ["conflict", "is in use"]],
  ["ENOSPC", ["quota", "does not fit: the disk is full"]],
  ["EDQUOT", ["quota", "does not fit: the disk is full"]],
  ["EFBIG", ["too-large", "would be too large"]],
  ["ENAMETOOLONG", ["bad-argument", "is too long a name here"]],
] satisfies [string, [CapabilityErrorCode, string]][]);

const codeOf = (error: unknown): string | undefined =>
  error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
const coded = (code: string): Error => Object.assign(new Error(code), { code });

export const failure = (
  call: Call,
  code: CapabilityErrorCode,
  path: string,
  what: string,
  cause?: unknown,
): CapabilityError => new CapabilityError(code, `${call.label}: ${JSON.stringify(path)} ${what}`, { cause });

function inGuestWords(call: Call, path: string, error: unknown): unknown {
  const [code, what] = FAILURES.get(codeOf(error) ?? "") ?? [];
  return code === undefined || what === undefined ? error : failure(call, code, path, what, error);
}

/** Runs an act that is about `path`, and tells its failure. */
export async function about<T>(call: Call, path: string, act: () => T | Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    throw inGuestWords(call, path, error);
  }
}

// ---- the acts -------------------------------------------------------------------------------------------------------

/** What taking a name away frees: of a file with further names, nothing but the name. */
const freedBy = ({ type, size, links }: FileFacts): Count => ({
  bytes: type === "file" && links === 1 ? size : 0,
  files: 1,
});

export interface Entry {
  name: string;
  type: FileFacts["type"];
  size: number;
}

/** Of a file; what a directory or a device measures is the file system's affair. */
export const sizeOf = ({ type, size }: FileFacts): number => (type === "file" ? size : 0);

export class Directory {
  #root: number | undefined;
  /** Owns `root` from now on. */
  constructor(
    readonly power: Beneath,
    root: number,
    readonly account: Account,
  ) {
    this.#root = root;
  }

  /** For use at once; see the rule for descriptors. Throws CapabilityError `revoked` once it is closed. */
  get root(): number {
    if (this.#root === undefined) throw new CapabilityError("revoked", "the directory was taken back");
    return this.#root;
  }

  close(): void {
    if (this.#root !== undefined) this.power.close(this.#root);
    this.#root = undefined;
  }

  stat(path: string): FileFacts {
    const fd = this.power.openPath(this.root, path);
    try {
      return this.power.stat(fd);
    } finally {
      this.power.close(fd);
    }
  }

  async read(path: string, call: Call): Promise<Uint8Array> {
    return this.account.open.run(call, async () => {
      const fd = this.power.openFile(this.root, path, "read");
      try {
        return await this.#readAll(fd, path, call);
      } finally {
        this.power.close(fd);
      }
    });
  }

  /** Up to the end, wherever that is by then: a file may grow, and those of /proc say that they are empty. */
  async #readAll(fd: number, path: string, call: Call): Promise<Uint8Array> {
    const most = call.maxAnswerBytes;
    const tooLarge = () => failure(call, "too-large", path, `is larger than the ${most} bytes of an answer`);
    const { size } = this.power.stat(fd);
    if (size > most) throw tooLarge();
    let content = new Uint8Array(size + 1); // and one to find the end with
    let length = 0;
    for (;;) {
      if (length > most) throw tooLarge();
      if (length === content.length) {
        const larger = new Uint8Array(Math.min(most + 1, Math.max(2 * length, CHUNK_BYTES)));
        larger.set(content);
        content = larger;
      }
      goOn(call);
      const got = await this.power.read(fd, content.subarray(length, length + CHUNK_BYTES));
      if (got === 0) return content.subarray(0, length);
      length += got;
      call.charge(got);
    }
  }

  /** Sorted by name. What the guest cannot spell is not there for it; nor are files that are being written. */
  async list(path: string, call: Call): Promise<Entry[]> {
    return this.account.open.run(call, async () => {
      const dir = this.power.openDirectory(this.root, path);
      try {
        const names = this.power.names(dir, MAX_ENTRIES);
        if (names === undefined) {
          throw failure(call, "too-large", path, `has more than ${MAX_ENTRIES} entries`);
        }
        const entries: Entry[] = [];
        const spelt = names.filter((name) => nameFault(name) === undefined).sort();
        for (const [at, name] of spelt.entries()) {
          if (at % ENTRIES_AT_A_TIME === ENTRIES_AT_A_TIME - 1) {
            await setImmediate();
            goOn(call);
          }
          const facts = this.#statOrNothing(dir, name);
          if (facts !== undefined) entries.push({ name, type: facts.type, size: sizeOf(facts) });
        }
        return entries;
      } finally {
        this.power.close(dir);
      }
    });
  }

  /** The new content stands in a file of its own, on the disk, before it takes the name. */
  async write(path: string, data: Uint8Array, ifAbsent: boolean, call: Call): Promise<void> {
    this.#checkSize(path, data.length, call);
    call.charge(data.length);
    await this.account.open.run(call, async () => {
      const { dir, name } = this.#openParent(path, call);
      try {
        await this.#replace(dir, name, data, ifAbsent, call);
      } finally {
        this.power.close(dir);
      }
    });
  }

  async #replace(dir: number, name: string, data: Uint8Array, ifAbsent: boolean, call: Call): Promise<void> {
    checkReplaceable(this.#statOrNothing(dir, name), ifAbsent);
    const added = { bytes: data.length, files: 1 };
    this.account.take(call, added);
    const temporary = TEMPORARY_PREFIX + randomBytes(16).toString("hex");
    let named = false;
    try {
      const fd = this.power.createFile(dir, temporary);
      try {
        await this.#writeAll(fd, data, call, () => {});
        await this.power.sync(fd);
      } finally {
        this.power.close(fd);
      }
      goOn(call);
      // From here on nothing waits: what is counted as replaced is what was looked at.
      const old = this.#statOrNothing(dir, name);
      checkReplaceable(old, ifAbsent);
      this.power.rename(dir, temporary, dir, name, !ifAbsent);
      named = true;
      if (old !== undefined) this.account.give(freedBy(old));
    } finally {
      if (!named) {
        this.#removeIfThere(dir, temporary);
        this.account.give(added);
      }
    }
  }

  /** In place; what was written before a failure stays. */
  async append(path: string, data: Uint8Array, call: Call): Promise<void> {
    call.charge(data.length);
    await this.account.appends.run(call, () =>
      this.account.open.run(call, async () => {
        const fd = this.#openToAppend(path, data.length, call);
        let missing = data.length;
        try {
          await this.#writeAll(fd, data, call, (count) => (missing -= count));
        } finally {
          this.account.give({ bytes: missing, files: 0 });
          this.power.close(fd);
        }
      }),
    );
  }

  /** A file that may grow by `more` bytes, which have been taken from the quota; a new one if there is none. */
  #openToAppend(path: string, more: number, call: Call): number {
    return this.#inParent(path, call, (dir, name) => {
      if (this.#statOrNothing(dir, name) === undefined) {
        this.#checkSize(path, more, call);
        return this.#adding(call, { bytes: more, files: 1 }, () => this.power.createFile(dir, name));
      }
      const fd = this.power.openFile(dir, name, "append");
      try {
        const { size, links } = this.power.stat(fd);
        if (links > 1) throw failure(call, "denied", path, "has several names (hard links)");
        this.#checkSize(path, size + more, call);
        this.account.take(call, { bytes: more, files: 0 });
        return fd;
      } catch (error) {
        this.power.close(fd);
        throw error;
      }
    });
  }

  makeDirectory(path: string, recursive: boolean, call: Call): void {
    const components = path.split("/");
    for (let depth = recursive ? 1 : components.length; depth <= components.length; depth++) {
      this.#inParent(components.slice(0, depth).join("/"), call, (dir, name) => {
        const there = recursive ? this.#statOrNothing(dir, name)?.type : undefined;
        // What is there on the way and cannot be walked through is told by the next step, in its own words.
        if (there === "directory" || (there !== undefined && depth < components.length)) return;
        this.#adding(call, { bytes: 0, files: 1 }, () => this.power.makeDirectory(dir, name));
      });
    }
  }

  remove(path: string, call: Call): void {
    this.#inParent(path, call, (dir, name) => {
      const facts = this.power.statName(dir, name);
      if (facts.type === "directory") this.power.removeDirectory(dir, name);
      else this.power.removeFile(dir, name);
      this.account.give(freedBy(facts));
    });
  }

  rename(from: string, to: string, call: Call): void {
    if (to.startsWith(`${from}/`)) throw failure(call, "bad-argument", to, "is inside of what is renamed");
    this.#inParent(from, call, (fromDir, fromName) => {
      // A symbolic link under another name could lead a program of the host's astray that follows links.
      if (this.power.statName(fromDir, fromName).type === "other") throw coded("EOPNOTSUPP");
      this.#inParent(to, call, (toDir, toName) => {
        try {
          this.power.rename(fromDir, fromName, toDir, toName, false);
        } catch (error) {
          throw inGuestWords(call, to, error);
        }
      });
    });
  }

  /** The directory that `path` names its last component in. The caller closes it. */
  #openParent(path: string, call: Call): { dir: number; name: string } {
    const { parent, name } = split(path);
    const { root } = this;
    try {
      return { dir: this.power.openDirectory(root, parent), name };
    } catch (error) {
      throw inGuestWords(call, parent, error);
    }
  }

  /** Not for acts that wait: the directory is closed when `act` returns. */
  #inParent<T>(path: string, call: Call, act: (dir: number, name: string) => T): T {
    const { dir, name } = this.#openParent(path, call);
    try {
      return act(dir, name);
    } finally {
      this.power.close(dir);
    }
  }

  #statOrNothing(dir: number, name: string): FileFacts | undefined {
    try {
      return this.power.statName(dir, name);
    } catch (error) {
      if (codeOf(error) === "ENOENT") return undefined;
      throw error;
    }
  }

  #removeIfThere(dir: number, name: string): void {
    try {
      this.power.removeFile(dir, name);
    } catch (error) {
      if (codeOf(error) !== "ENOENT") throw error;
    }
  }

  /** Takes from the quota what `act` adds, and gives it back if it fails. */
  #adding<T>(call: Call, added: Count, act: () => T): T {
    this.account.take(call, added);
    try {
      return act();
    } catch (error) {
      this.account.give(added);
      throw error;
    }
  }

  /** `wrote` hears of every chunk that is in the file. */
  async #writeAll(fd: number, data: Uint8Array, call: Call, wrote: (count: number) => void): Promise<void> {
    for (let at = 0; at < data.length;) {
      goOn(call);
      const count = await this.power.write(fd, data.subarray(at, at + CHUNK_BYTES));
      wrote(count);
      at += count;
    }
  }

  #checkSize(path: string, size: number, call: Call): void {
    const { maxFileBytes } = this.account.limits;
    if (size > maxFileBytes) {
      throw failure(call, "too-large", path, `would be larger than the ${maxFileBytes} bytes of a file`);
    }
  }
}

function checkReplaceable(old: FileFacts | undefined, ifAbsent: boolean): void {
  if (old === undefined) return;
  if (ifAbsent) throw coded("EEXIST");
  if (old.type !== "file") throw coded(old.type === "directory" ? "EISDIR" : "EOPNOTSUPP");
}
