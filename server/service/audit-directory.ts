/**
 * The audit log's directory, as a writer finds it: whether it is the log's alone, who holds it, and where the chain in it
 * ends. Only the end is read here, for a log can be far larger than memory; whether all of it is what was written is
 * for audit-verify.ts to say.
 */
import fs from "node:fs";
import path from "node:path";
import { LOCK } from "../../osjail/abi/linux.js";
import { JailError } from "../../osjail/errors.js";
import { sys } from "../../osjail/libc.ffi.js";
import { MAX_CUTS, type Cut } from "./audit-events.js";
import {
  GENESIS,
  MAX_LINE_BYTES,
  ordinalOf,
  readLine,
  segmentName,
  sha256,
  type Head,
} from "./audit-line.js";

export const AUDIT_ERRORS = {
  "audit-unwritable":
    "Make room on the file system of the audit log and check that it is writable. Nothing is run until a line can be written again.",
  "audit-unsafe":
    "Give the audit log a directory of its own that belongs to the service's user, with mode 0700 and files of mode 0600.",
  "audit-in-use": "Stop the other process that writes there, or give each its own directory.",
  "audit-broken":
    "Run `doublehull audit verify` on the directory, and keep it as it is for whoever looks into it; then give the service a new one.",
  "audit-closed": "Call AuditLog.open again: this one was closed.",
} as const;

export type AuditErrorCode = keyof typeof AUDIT_ERRORS;

/** For the operator: messages name paths of the host, and are not for clients. */
export class AuditError extends Error {
  override readonly name = "AuditError";
  readonly remedy: string;
  constructor(
    readonly code: AuditErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.remedy = AUDIT_ERRORS[code];
  }
}

export function asAuditError(error: unknown, what: string): AuditError {
  if (error instanceof AuditError) return error;
  const why = error instanceof Error ? error.message : String(error);
  return new AuditError("audit-unwritable", `${what}: ${why}`, { cause: error });
}

/** Where a chain goes on, as its end tells. */
export interface Tail {
  head: Head;
  /** Unfinished lines behind the head, none of which a `recovered` tells of yet. */
  cuts: Cut[];
  /** The last segment, if there is one. */
  last: { ordinal: number; bytes: number } | undefined;
}

/** The directory's descriptor, with the lock on it. The caller gives it to `unlockDirectory`. Throws AuditError. */
export function lockDirectory(dir: string): number {
  let fd: number | undefined;
  try {
    if (fs.lstatSync(dir, { throwIfNoEntry: false }) === undefined) makeDirectory(dir);
    const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = fs.constants;
    fd = fs.openSync(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    checkOurs(dir, fs.fstatSync(fd), "directory");
    sys("flock", fd, LOCK.EX | LOCK.NB);
    return fd;
  } catch (error) {
    if (fd !== undefined) fs.closeSync(fd); // without the lock
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EAGAIN")
      throw new AuditError("audit-in-use", `another process writes to ${dir}`, { cause: error });
    if (code === "ENOTDIR" || code === "ELOOP")
      throw new AuditError("audit-unsafe", `${dir} is no directory`, { cause: error });
    if (error instanceof JailError) throw error; // no system call can be made at all
    throw asAuditError(error, `cannot open the audit log ${dir}`);
  }
}

/**
 * Gives the lock back and closes the descriptor. Closing alone would not do: between its fork and its execve a child that
 * another thread is starting (a keeper) holds a copy, and the lock stays until the last copy is closed. man 2 flock
 */
export function unlockDirectory(fd: number): void {
  try {
    sys("flock", fd, LOCK.UN);
  } finally {
    fs.closeSync(fd);
  }
}

function makeDirectory(dir: string): void {
  fs.mkdirSync(dir, { mode: 0o700 });
  fs.chmodSync(dir, 0o700); // whatever the umask took
}

function checkOurs(what: string, { uid, mode, nlink }: fs.Stats, type: "directory" | "file"): void {
  const problem =
    uid !== process.geteuid?.()
      ? "belongs to another user"
      : (mode & 0o077) !== 0
        ? `may be used by others: its mode is 0${(mode & 0o777).toString(8)}`
        : type === "file" && nlink !== 1
          ? "has a second name"
          : undefined;
  if (problem !== undefined) throw new AuditError("audit-unsafe", `${what} ${problem}`);
}

/** Throws AuditError where the directory holds what is not the log's, or an end that the log did not write. */
export function readTail(dir: string): Tail {
  const names = fs.readdirSync(dir).sort();
  const foreign = names.find((name) => ordinalOf(name) === undefined);
  if (foreign !== undefined)
    throw new AuditError("audit-unsafe", `${dir} holds ${JSON.stringify(foreign)}, which is not the log's`);
  const ordinals = names.map((name) => ordinalOf(name) ?? 0);
  const tail: Tail = { head: { seq: 0, hash: GENESIS }, cuts: [], last: undefined };
  for (const ordinal of ordinals.toReversed()) {
    const name = segmentName(ordinal);
    const { bytes, line, rest } = readEnd(path.join(dir, name));
    tail.last ??= { ordinal, bytes };
    if (rest.length > 0) tail.cuts.unshift({ segment: name, bytes: rest.length, sha256: sha256(rest) });
    if (tail.cuts.length > MAX_CUTS)
      throw new AuditError("audit-broken", `${dir} ends with more than ${MAX_CUTS} unfinished lines`);
    if (line === undefined) continue; // the line before stands in an earlier segment
    const read = readLine(line);
    if (typeof read === "string") throw new AuditError("audit-broken", `the last line of ${name}: ${read}`);
    tail.head = { seq: read.seq, hash: read.hash };
    return tail;
  }
  if (ordinals.length > 0 && ordinals[0] !== 1)
    throw new AuditError("audit-broken", `${dir} holds no whole line, and its first segment is missing`);
  return tail;
}

/** The last whole line of a segment, and what stands behind it. A segment can be far larger than memory. */
function readEnd(file: string): { bytes: number; line: Buffer | undefined; rest: Buffer } {
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
  const fd = fs.openSync(file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  try {
    const stats = fs.fstatSync(fd);
    if (!stats.isFile()) throw new AuditError("audit-unsafe", `${file} is no regular file`);
    checkOurs(file, stats, "file");
    const end = Buffer.alloc(Math.min(stats.size, 2 * MAX_LINE_BYTES));
    const from = stats.size - end.length;
    for (let at = 0; at < end.length;) {
      const more = fs.readSync(fd, end, at, end.length - at, from + at);
      if (more === 0) throw new AuditError("audit-unsafe", `${file} becomes shorter while it is read`);
      at += more;
    }
    const last = end.lastIndexOf(0x0a);
    const rest = end.subarray(last + 1);
    if (rest.length >= MAX_LINE_BYTES)
      throw new AuditError("audit-broken", `${file} ends with more than a line's bytes and no line end`);
    if (last < 0) return { bytes: stats.size, line: undefined, rest };
    const start = last === 0 ? 0 : end.lastIndexOf(0x0a, last - 1) + 1;
    return { bytes: stats.size, line: end.subarray(start, last), rest };
  } finally {
    fs.closeSync(fd);
  }
}
