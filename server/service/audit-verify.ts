/**
 * Whether an audit log is what was written: every line's bytes, their order, and the segments. Reads as a stream; what
 * is in memory is bounded by the longest line, whatever the files hold, and every byte of them counts as hostile. The
 * format stands in audit-line.ts, what a crash may leave in audit-log.ts.
 *
 * A chain says that nothing was changed, removed, inserted or moved *before* a line that is known. It says nothing of
 * lines that once stood behind the last one: for that the caller hands over a head, or a seq, that was noted elsewhere.
 */
import fs from "node:fs";
import path from "node:path";
import type { Cut } from "./audit-events.js";
import {
  GENESIS,
  MAX_LINE_BYTES,
  ordinalOf,
  readLine,
  segmentName,
  sha256,
  type Head,
  type ReadLine,
} from "./audit-line.js";

export interface VerifyOptions {
  /** What was noted of a line: it must be there. With both, the line of that seq must have that hash. */
  head?: { seq?: number; hash?: string };
  /** The hash before the first line, where earlier segments are kept elsewhere. Absent: the log must begin at its first. */
  from?: string;
}

export interface Problem {
  /** File name. */
  segment: string;
  /** In the segment, from 1; 0 for all of it. */
  line: number;
  what: string;
}

export interface Verification {
  ok: boolean;
  /** Whole and right ones, up to the problem. */
  lines: number;
  segments: number;
  first: Head | undefined;
  /** The last right line. */
  head: Head | undefined;
  /** The line that `options.head` names. */
  named: Head | undefined;
  problem?: Problem;
}

/** Lines that one look at the file gives; `rest` is what stands behind the last line feed, at the end only. */
interface Batch {
  lines: Uint8Array[];
  rest: Uint8Array | undefined;
}

const CHUNK_BYTES = 256 * 1024;

/** The lines of a file, without their line feeds. One that grows over its bound comes cut there, and is the last. */
export async function* linesOf(file: string): AsyncGenerator<Batch> {
  const { O_RDONLY, O_NONBLOCK } = fs.constants;
  const handle = await fs.promises.open(file, O_RDONLY | O_NONBLOCK); // a FIFO must not keep us waiting
  try {
    if (!(await handle.stat()).isFile()) throw new Error("it is no regular file");
    let kept: Buffer = Buffer.alloc(0);
    for (;;) {
      const { bytesRead, buffer } = await handle.read(Buffer.allocUnsafe(CHUNK_BYTES), 0, CHUNK_BYTES, null);
      if (bytesRead === 0) return yield { lines: [], rest: kept };
      const all = Buffer.concat([kept, buffer.subarray(0, bytesRead)]);
      const lines: Uint8Array[] = [];
      let from = 0;
      for (let to = all.indexOf(0x0a); to >= 0; to = all.indexOf(0x0a, from)) {
        lines.push(all.subarray(from, to));
        from = to + 1;
      }
      kept = all.subarray(from);
      if (kept.length > MAX_LINE_BYTES) return yield { lines: [...lines, kept], rest: undefined };
      yield { lines, rest: undefined };
    }
  } finally {
    await handle.close();
  }
}

/** The segments of a directory in their order, and the first name that is none. Rejects as readdir does. */
export async function segmentsOf(dir: string): Promise<{ ordinals: number[]; foreign: string | undefined }> {
  const ordinals: number[] = [];
  let foreign: string | undefined;
  for await (const { name } of await fs.promises.opendir(dir)) {
    const ordinal = ordinalOf(name);
    if (ordinal === undefined) foreign ??= name;
    else ordinals.push(ordinal);
  }
  return { ordinals: ordinals.sort((a, b) => a - b), foreign };
}

/** What the lines so far lead to. */
class Chain {
  lines = 0;
  first: Head | undefined;
  head: Head | undefined;
  named: Head | undefined;
  /** Ends of segments that the next line must tell of. */
  readonly cuts: Cut[] = [];

  constructor(
    readonly sought: { seq?: number; hash?: string } | undefined,
    /** The hash before the first line; undefined: whatever it says. */
    readonly before: string | undefined,
  ) {}

  /** What is wrong with the next line, if anything. */
  add(line: ReadLine): string | undefined {
    const { seq, hash } = line;
    const problem = this.#link(line) ?? this.#tell(line);
    if (problem !== undefined) return problem;
    this.lines++;
    this.head = { seq, hash };
    this.first ??= this.head;
    if (this.sought?.seq === seq || this.sought?.hash === hash) {
      const differs = (this.sought.seq ?? seq) !== seq || (this.sought.hash ?? hash) !== hash;
      if (differs) return `line ${seq} has the hash ${hash}, which is not what was noted of it`;
      this.named = this.head;
    }
    return undefined;
  }

  #link({ seq, prev }: ReadLine): string | undefined {
    const { head, before } = this;
    if (head === undefined) {
      if (before !== undefined && prev !== before)
        return before === GENESIS
          ? `it is no first line: it follows another, and has seq ${seq}`
          : "it does not follow the line that the log is to begin behind";
      return (prev === GENESIS) !== (seq === 1)
        ? "only the first line has seq 1 and follows none"
        : undefined;
    }
    const next = head.seq + 1;
    if (seq > next)
      return `${seq - next === 1 ? `line ${next} is` : `lines ${next} to ${seq - 1} are`} missing before it`;
    if (seq < next) return `it is line ${seq}, which stands before: lines were doubled or moved`;
    return prev === head.hash
      ? undefined
      : "it does not follow the line before it: one of them was exchanged";
  }

  /** A line that was cut short is told of by the very next one, and nothing else is told. */
  #tell({ kind, cuts }: ReadLine): string | undefined {
    if (this.head === undefined && this.before !== GENESIS && this.cuts.length === 0) return undefined; // of what is elsewhere
    if (this.cuts.length === 0)
      return kind === "recovered" ? "it tells of a cut that is not there" : undefined;
    const same = (cut: Cut, at: number) =>
      cuts[at]?.segment === cut.segment && cuts[at].bytes === cut.bytes && cuts[at].sha256 === cut.sha256;
    if (cuts.length !== this.cuts.length || !this.cuts.every(same))
      return "it does not tell of the bytes that end the segment before";
    this.cuts.length = 0;
    return undefined;
  }
}

/**
 * Verifies a directory, or one segment by itself. Resolves whatever is in the files; rejects as the file system does
 * where they cannot be read.
 */
export async function verifyAudit(where: string, options: VerifyOptions = {}): Promise<Verification> {
  const isDirectory = (await fs.promises.stat(where)).isDirectory();
  const dir = isDirectory ? where : path.dirname(where);
  const only = isDirectory ? undefined : path.basename(where);
  const { ordinals, foreign } = isDirectory
    ? await segmentsOf(where)
    : { ordinals: [ordinalOf(only ?? "") ?? 0], foreign: undefined };
  const startsAnywhere = only !== undefined && ordinals[0] !== 1;
  const chain = new Chain(options.head, options.from ?? (startsAnywhere ? undefined : GENESIS));

  const end = (problem?: Problem): Verification => {
    const { lines, first, head, named } = chain;
    const base = { ok: problem === undefined, lines, segments: ordinals.length, first, head, named };
    return problem === undefined ? base : { ...base, problem };
  };
  const whole = (segment: string, what: string) => end({ segment, line: 0, what });

  if (foreign !== undefined && ordinals.length > 0) return whole(foreign, "it is no segment of the log");
  if (ordinals.length === 0) return whole("", "there is no audit log here");
  let expected = options.from === undefined && only === undefined ? 1 : (ordinals[0] ?? 1);
  for (const ordinal of ordinals) {
    if (ordinal !== expected) return whole(segmentName(expected), "it is missing");
    expected++;
    const isLast = ordinal === ordinals.at(-1);
    const name = only ?? segmentName(ordinal);
    const found = await verifySegment(path.join(dir, name), name, chain, isLast);
    if (found !== undefined) return end(found);
  }
  const { head, named } = chain;
  const [cut] = chain.cuts; // behind it stands an empty segment
  if (cut !== undefined) return whole(cut.segment, unfinished(cut.bytes));
  const { seq, hash } = options.head ?? {};
  if (named === undefined && (seq !== undefined || hash !== undefined)) {
    const what = seq === undefined ? `no line has the hash ${hash}` : `line ${seq} is not there`;
    return whole(
      segmentName(ordinals.at(-1) ?? 1),
      `${what}: the log ends with ${head === undefined ? "nothing" : `line ${head.seq}`}`,
    );
  }
  return end();
}

async function verifySegment(
  file: string,
  segment: string,
  chain: Chain,
  isLast: boolean,
): Promise<Problem | undefined> {
  let line = 0;
  for await (const { lines, rest } of linesOf(file)) {
    for (const bytes of lines) {
      line++;
      const read = readLine(bytes);
      const what = typeof read === "string" ? read : chain.add(read);
      if (what !== undefined) return { segment, line, what };
    }
    if (rest === undefined) continue;
    if (rest.length > 0) {
      if (isLast) return { segment, line: line + 1, what: unfinished(rest.length) };
      chain.cuts.push({ segment, bytes: rest.length, sha256: sha256(rest) });
    } else if (line === 0 && !isLast) return { segment, line: 0, what: "it is empty, and not the last" };
  }
  return undefined;
}

const unfinished = (bytes: number): string =>
  `it is unfinished (${bytes} bytes): after a crash the log says so when it is opened again`;
