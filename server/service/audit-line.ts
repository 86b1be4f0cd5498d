/**
 * How the audit log writes an event: as a line, in a segment, with a hash that chains it to the line before. Pure.
 *
 * A line is one JSON object in printable ASCII (0x20 to 0x7e; everything else stands as \uXXXX), and a line feed:
 *
 *     {"seq":7,"time":"2026-01-02T03:04:05.678Z","node":"a","prev":"<64 hex>","kind":"run",...,"hash":"<64 hex>"}
 *
 * With `record` for the bytes of the line up to the comma before "hash", and the closing brace again (so that it is JSON
 * by itself): hash = SHA-256( the 64 bytes of `prev`'s text, then the bytes of `record` ), as 64 lower-case hex digits.
 * `prev` is the hash of the line before, 64 zeros in the first one; `seq` counts from 1. For a line in $LINE:
 *
 *     prev=${LINE#*\"prev\":\"} prev=${prev%%\"*}; printf '%s%s}' "$prev" "${LINE%,\"hash\":*}" | sha256sum
 *
 * The order of the keys is fixed: the four of every line, `kind`, then those of the kind as audit-events.ts has them; one
 * that an event lacks is left out.
 */
import { createHash } from "node:crypto";
import { parseStrict, StrictJsonError } from "../strict-json.js";
import { fields, type Cut, type Logged, type Redact } from "./audit-events.js";

/** Of a whole line. What events are cut to allows less, with six bytes for each character. */
export const MAX_LINE_BYTES = 128 * 1024;

export const GENESIS = "0".repeat(64);

// ---- where lines stand ---------------------------------------------------------------------------------------------

/** How the last line is known: put it where whoever can write to the log cannot. */
export interface Head {
  /** 0 in an empty log. */
  readonly seq: number;
  readonly hash: string;
}

export const LAST_ORDINAL = 99_999_999;

/** The file name of a segment; the first is 1. */
export const segmentName = (ordinal: number): string => `audit-${String(ordinal).padStart(8, "0")}.jsonl`;

/** Which segment a name is; undefined for any name that `segmentName` does not give. */
export function ordinalOf(name: string): number | undefined {
  const ordinal = Number(/^audit-(\d{8})\.jsonl$/.exec(name)?.[1]);
  return ordinal >= 1 ? ordinal : undefined;
}

// ---- an event as a line ---------------------------------------------------------------------------------------------

/** JSON in printable ASCII: a text has one form, and nothing in it turns a terminal or an editor round. */
const asciiJson = (value: unknown): string =>
  JSON.stringify(value).replace(
    /[^\x20-\x7e]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

export interface Place {
  seq: number;
  /** Milliseconds since 1970. */
  timeMs: number;
  node: string;
  /** The hash before. */
  prev: string;
}

/** The line with its line feed, and its hash. Throws RangeError for a time that is none or a line over its bound. */
export function writeLine(
  { seq, timeMs, node, prev }: Place,
  event: Logged,
  redact: Redact,
): { bytes: Buffer; hash: string } {
  const time = new Date(timeMs).toISOString();
  const record = asciiJson({ seq, time, node, prev, ...fields(event, redact) });
  const hash = hashOf(prev, record);
  const bytes = Buffer.from(`${record.slice(0, -1)},"hash":"${hash}"}\n`, "latin1");
  if (bytes.length > MAX_LINE_BYTES) throw new RangeError(`a line of more than ${MAX_LINE_BYTES} bytes`);
  return { bytes, hash };
}

const hashOf = (prev: string, record: string): string =>
  createHash("sha256").update(prev, "latin1").update(record, "latin1").digest("hex");

/** In hex; of a text, of its UTF-8. */
export const sha256 = (bytes: Uint8Array | string): string =>
  createHash("sha256").update(bytes).digest("hex");

// ---- a line read again ----------------------------------------------------------------------------------------------

/** A line whose bytes are those that were hashed. */
export interface ReadLine {
  seq: number;
  prev: string;
  hash: string;
  kind: string;
  /** Of `recovered`. */
  cuts: readonly Cut[];
  /** All of it but `hash`, as it stood. */
  record: Readonly<Record<string, unknown>>;
}

const TAIL = /,"hash":"([0-9a-f]{64})"\}$/;
const HASH = /^[0-9a-f]{64}$/;
const HEAD_KEYS = ["seq", "time", "node", "prev", "kind"];

/** Reads a line without its line feed; a text says what is wrong with it. The bytes are hostile. */
export function readLine(bytes: Uint8Array): ReadLine | string {
  if (bytes.length >= MAX_LINE_BYTES) return `it is longer than ${MAX_LINE_BYTES} bytes`;
  const line = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
  if (/[^\x20-\x7e]/.test(line)) return "it holds a byte that is no printable ASCII";
  const [tail, hash] = TAIL.exec(line) ?? [];
  if (tail === undefined || hash === undefined) return "it does not end with its hash";
  const text = `${line.slice(0, -tail.length)}}`;
  let record: unknown;
  try {
    record = parseStrict(text);
  } catch (error) {
    if (error instanceof StrictJsonError) return error.message;
    throw error;
  }
  if (!isObject(record)) return "it is no JSON object";
  const { seq, prev, kind, time, node } = record;
  if (HEAD_KEYS.some((key, at) => Object.keys(record)[at] !== key) || Object.hasOwn(record, "hash"))
    return "it lacks a key of a line of the log, or has them in another order";
  if (typeof seq !== "number" || !Number.isSafeInteger(seq) || seq < 1)
    return "its seq is no number of a line";
  if (typeof prev !== "string" || !HASH.test(prev)) return "its prev is no hash";
  if (typeof time !== "string" || typeof node !== "string" || typeof kind !== "string")
    return "its time, node or kind is no text";
  if (hashOf(prev, text) !== hash) return "its bytes are not those that its hash was made of";
  if (asciiJson(record) !== text) return "it is not written as the log writes"; // one form for one meaning
  const cuts = kind === "recovered" ? cutsOf(record["cuts"]) : [];
  if (cuts === undefined) return "it does not say what was cut";
  return { seq, prev, hash, kind, cuts, record };
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function cutsOf(value: unknown): Cut[] | undefined {
  if (!Array.isArray(value)) return undefined;
  const cuts = value.filter(isObject).flatMap(({ segment, bytes, sha256: digest }) => {
    const right = typeof segment === "string" && typeof bytes === "number" && typeof digest === "string";
    return right ? [{ segment, bytes, sha256: digest }] : [];
  });
  return cuts.length === value.length && cuts.length > 0 ? cuts : undefined;
}
