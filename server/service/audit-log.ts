/**
 * The audit log: what was allowed, done, refused and changed, written by the trusted side alone, outside every jail. The
 * format of a line and its hash stand in audit-line.ts; audit-verify.ts reads what is written here.
 *
 * A directory of its own (mode 0700) holds segments (mode 0600) audit-00000001.jsonl, audit-00000002.jsonl, ...; one is
 * written until it is full, and the chain of hashes goes on from each to the next. Segments only ever grow: nothing here
 * shortens, renames or removes one. A line that a kill, a power cut or a full disk has left unfinished stays where it
 * is, at the end of its segment; the log goes on in the next one, and its first line is a `recovered` that names the
 * segment, the number of bytes and their hash. So whoever verifies can tell a crash from a cut.
 *
 * `append` writes with one write(2) and O_APPEND before it returns: the line outlives this process at once. It outlives
 * a power cut after the next fdatasync(2), a second later at most. Whoever can write to the directory can make a whole
 * new chain: note `head` elsewhere, and hand it to verification.
 *
 * One process writes: it holds flock(2) on the directory, which the kernel releases when the process ends, however that
 * happens. No lock is ever stale, and no process id can be mistaken for another.
 */
import fs from "node:fs";
import path from "node:path";
import { asAuditError, AuditError, lockDirectory, readTail, unlockDirectory } from "./audit-directory.js";
import { MAX_CUTS, type AuditEvent, type Cut, type Recovered, type Redact } from "./audit-events.js";
import { LAST_ORDINAL, segmentName, sha256, writeLine, type Head } from "./audit-line.js";

export interface AuditOptions {
  /** Made if it is not there; its parent must be. */
  dir: string;
  /** Which machine or process writes: 1 to 64 letters, digits, dots, colons, hyphens or underscores. */
  node: string;
  /** Bytes at which a segment is full; 64 MiB if absent. A line is never divided. */
  segmentBytes?: number;
  /** Milliseconds since 1970. */
  now: () => number;
  /** Takes values of secrets out of texts that capabilities note and throw. */
  redact?: Redact;
  /** The calls that write; the file system's own if absent. */
  calls?: WriteCalls;
}

export type WriteCalls = Pick<typeof fs, "writeSync" | "fdatasyncSync" | "fdatasync">;

const SEGMENT_BYTES = 64 * 1024 * 1024;
const SYNC_MS = 1000;

interface Segment {
  readonly ordinal: number;
  readonly file: string;
  readonly fd: number;
  bytes: number;
}

export class AuditLog {
  readonly #dir: string;
  readonly #node: string;
  readonly #segmentBytes: number;
  readonly #now: () => number;
  readonly #redact: Redact;
  readonly #calls: WriteCalls;
  readonly #lock: number;
  #segment: Segment;
  #head: Head;
  #cuts: Cut[];
  /** What makes every further line impossible. */
  #broken: AuditError | undefined;
  #unsynced = false;
  #timer: NodeJS.Timeout | undefined;
  /** The descriptor that a sync in the background works on, and whether it is to be closed after. */
  #syncing: { fd: number; close: boolean } | undefined;

  /**
   * Opens the log of a directory, or begins one, and goes on with its chain. Throws AuditError: audit-in-use while
   * another holds it, audit-unsafe for a directory or a file that others may write or that is none of the log's,
   * audit-broken where its end is not what was written, audit-unwritable where the kernel refuses. The caller closes it.
   */
  static open(options: AuditOptions): AuditLog {
    const { node, segmentBytes = SEGMENT_BYTES } = options;
    const dir = path.resolve(options.dir);
    if (!/^[\w.:-]{1,64}$/.test(node))
      throw new TypeError(
        "audit: node must be 1 to 64 letters, digits, dots, colons, hyphens or underscores",
      );
    if (!Number.isSafeInteger(segmentBytes) || segmentBytes < 1)
      throw new TypeError("audit: segmentBytes must be a whole number, at least 1");
    const lock = lockDirectory(dir);
    try {
      return new AuditLog({ ...options, dir, segmentBytes }, lock);
    } catch (error) {
      unlockDirectory(lock);
      throw asAuditError(error, `cannot open the audit log ${dir}`);
    }
  }

  private constructor(options: AuditOptions & { segmentBytes: number }, lock: number) {
    this.#dir = options.dir;
    this.#node = options.node;
    this.#segmentBytes = options.segmentBytes;
    this.#now = options.now;
    this.#redact = options.redact ?? ((text) => text);
    this.#calls = options.calls ?? fs;
    this.#lock = lock;
    const tail = readTail(options.dir);
    this.#head = tail.head;
    this.#cuts = tail.cuts;
    // A segment that ends in an unfinished line takes no other: whatever follows would be read as a part of it.
    const { last } = tail;
    const isWhole = last !== undefined && !tail.cuts.some((cut) => cut.segment === segmentName(last.ordinal));
    this.#segment = isWhole ? this.#reopened(last) : this.#created((last?.ordinal ?? 0) + 1);
    try {
      if (this.#cuts.length > 0) {
        this.#recover();
        this.sync();
      }
    } catch (error) {
      fs.closeSync(this.#segment.fd);
      throw error;
    }
  }

  get head(): Head {
    return this.#head;
  }

  /** Why no further line can be written, if so: a sync in the background may have failed. For readiness. */
  get failure(): AuditError | undefined {
    return this.#broken;
  }

  /**
   * Writes the event: its line is in the file when this returns. Throws AuditError (audit-unwritable, audit-closed);
   * then it is not in the log, and what it tells of must not be done. A later one may be written again.
   */
  append(event: AuditEvent): void {
    if (this.#broken !== undefined) throw this.#broken;
    if (this.#cuts.length > 0) this.#recover();
    this.#write(event);
  }

  /** Returns when the disk has every line: fdatasync(2). Throws AuditError; then the log is to be opened anew. */
  sync(): void {
    if (this.#broken !== undefined) throw this.#broken;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (!this.#unsynced && this.#syncing === undefined) return;
    this.#unsynced = false;
    try {
      this.#stillThere();
      this.#calls.fdatasyncSync(this.#segment.fd);
    } catch (error) {
      throw this.#break("cannot bring the audit log to the disk", error);
    }
  }

  /** Syncs, and gives the directory to whoever wants it next. Idempotent, also after it has thrown. */
  close(): void {
    if (this.#broken?.code === "audit-closed") return;
    try {
      if (this.#broken === undefined) this.sync();
    } finally {
      clearTimeout(this.#timer);
      this.#broken = new AuditError("audit-closed", "the audit log was closed");
      this.#closeFile(this.#segment.fd);
      unlockDirectory(this.#lock);
    }
  }

  // ---- lines --------------------------------------------------------------------------------------------------------

  #recover(): void {
    if (this.#segment.bytes > 0) this.#rotate();
    this.#write({ kind: "recovered", cuts: this.#cuts });
    this.#cuts = [];
  }

  #write(event: AuditEvent | Recovered): void {
    try {
      const seq = this.#head.seq + 1;
      const place = { seq, timeMs: this.#now(), node: this.#node, prev: this.#head.hash };
      const { bytes, hash } = writeLine(place, event, this.#redact);
      const { bytes: before } = this.#segment;
      if (before > 0 && before + bytes.length > this.#segmentBytes) this.#rotate();
      this.#put(bytes);
      this.#head = { seq, hash };
    } catch (error) {
      throw asAuditError(error, "cannot write to the audit log");
    }
    this.#unsynced = true;
    this.#armTimer();
  }

  #armTimer(): void {
    this.#timer ??= setTimeout(() => this.#syncLater(), SYNC_MS).unref();
  }

  /** All of it, or an unfinished line that is known to be one. */
  #put(bytes: Buffer): void {
    const segment = this.#segment;
    let written = 0;
    try {
      while (written < bytes.length) {
        const more = this.#calls.writeSync(segment.fd, bytes, written);
        if (more === 0) throw new Error("nothing was written");
        written += more;
      }
    } catch (error) {
      this.#leave(segment, bytes.subarray(0, written), error);
      throw error;
    } finally {
      segment.bytes += written;
    }
  }

  #leave({ ordinal, fd, bytes }: Segment, part: Uint8Array, error: unknown): void {
    if (fs.fstatSync(fd).size !== bytes + part.length)
      this.#break("the end of the audit log is not known", error); // reading it anew will tell
    if (part.length === 0) return;
    this.#cuts.push({ segment: segmentName(ordinal), bytes: part.length, sha256: sha256(part) });
    if (this.#cuts.length >= MAX_CUTS) this.#break("too many lines of the audit log were cut short", error);
  }

  // ---- segments -----------------------------------------------------------------------------------------------------

  /** The next segment. Nothing has changed when this throws. */
  #rotate(): void {
    const { fd, ordinal } = this.#segment;
    this.sync();
    this.#segment = this.#created(ordinal + 1);
    this.#closeFile(fd);
  }

  #created(ordinal: number): Segment {
    if (ordinal > LAST_ORDINAL) throw new AuditError("audit-unwritable", "the audit log is out of names");
    const file = path.join(this.#dir, segmentName(ordinal));
    const { O_WRONLY, O_APPEND, O_CREAT, O_EXCL, O_NOFOLLOW } = fs.constants;
    const fd = fs.openSync(file, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
    try {
      fs.fchmodSync(fd, 0o600); // whatever the umask took
      fs.fsyncSync(this.#lock); // its name, before what is in it
    } catch (error) {
      fs.closeSync(fd);
      fs.rmSync(file); // it is empty, and the next attempt makes it anew
      throw error;
    }
    return { ordinal, file, fd, bytes: 0 };
  }

  #reopened({ ordinal, bytes }: { ordinal: number; bytes: number }): Segment {
    const file = path.join(this.#dir, segmentName(ordinal));
    const { O_WRONLY, O_APPEND, O_NOFOLLOW } = fs.constants;
    return { ordinal, file, fd: fs.openSync(file, O_WRONLY | O_APPEND | O_NOFOLLOW), bytes };
  }

  // ---- the disk -----------------------------------------------------------------------------------------------------

  /** In the background: the disk may take its time, and runs go on meanwhile. */
  #syncLater(): void {
    this.#timer = undefined;
    if (this.#broken !== undefined || !this.#unsynced) return;
    if (this.#syncing !== undefined) return this.#armTimer(); // a slow disk
    const { fd } = this.#segment;
    const syncing = (this.#syncing = { fd, close: false });
    this.#unsynced = false;
    try {
      this.#stillThere();
    } catch (error) {
      this.#syncing = undefined;
      return void this.#break("cannot bring the audit log to the disk", error);
    }
    this.#calls.fdatasync(fd, (error) => {
      this.#syncing = undefined;
      if (syncing.close) fs.closeSync(fd);
      if (error !== null) this.#break("cannot bring the audit log to the disk", error);
    });
  }

  /** A file that lost its name, or has given it to another, is written to for nobody. */
  #stillThere(): void {
    const { fd, file } = this.#segment;
    const [ours, named] = [fs.fstatSync(fd), fs.lstatSync(file)];
    if (ours.ino !== named.ino || ours.dev !== named.dev) throw new Error(`${file} was replaced`);
  }

  #closeFile(fd: number): void {
    if (this.#syncing?.fd === fd) this.#syncing.close = true;
    else fs.closeSync(fd);
  }

  /**
   * After a failed sync the kernel has forgotten which pages did not reach the disk, and the next one would succeed: so
   * this log writes no more. man 2 fsync "EIO"
   */
  #break(what: string, cause: unknown): AuditError {
    const broken = asAuditError(cause, what);
    this.#broken ??= broken;
    return broken;
  }
}
