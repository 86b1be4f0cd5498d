/**
 * A guest's value in words, for a person who decides: like a JavaScript literal, on one line.
 *
 * The rule: everything that the guest wrote stands in quotes, and what stands outside of them is ours, so no text can
 * pass for a structure; and what does not fit is counted, never dropped in silence. (The failure behind it: a field that
 * was padded until the one after it, which mattered, had left the screen.) The cost is bounded by what is shown, not by
 * what was given.
 */
import { Capability } from "./capability.js";

/** Of one text within a value: padding must not push its neighbours off the line. */
const MAX_TEXT = 100;
const MAX_ITEMS = 20;
const MAX_DEPTH = 5;
/** Bytes shown in hexadecimal. */
const MAX_BYTES = 16;

/** About `most` characters at most, less what a last text and the notes take: some 150. Escape the result for a screen. */
export function readable(value: unknown, most: number): string {
  if (typeof value === "string") return quoted(value, most);
  let left = most;
  const spend = (shown: string): string => {
    left -= shown.length;
    return shown;
  };
  const write = (item: unknown, depth: number): string => {
    if (!isContainer(item)) return spend(single(item));
    left -= 2;
    if (depth === MAX_DEPTH) return "<more inside>";
    const inner = (each: unknown) => write(each, depth + 1);
    if (Array.isArray(item)) return `[${some(item, item.length, inner)}]`;
    if (item instanceof Set) return `Set {${some(item as Set<unknown>, item.size, inner)}}`;
    if (item instanceof Map) {
      const pair = ([key, of]: [unknown, unknown]) => `${inner(key)} => ${inner(of)}`;
      return `Map {${some(item as Map<unknown, unknown>, item.size, pair)}}`;
    }
    const keys = Object.keys(item);
    const field = (key: string) =>
      `${spend(quoted(key, MAX_TEXT))}: ${inner((item as Record<string, unknown>)[key])}`;
    return `{${some(keys, keys.length, field)}}`;
  };
  /** Items until they are many or the line is full. */
  const some = <T>(items: Iterable<T>, count: number, show: (item: T) => string): string => {
    const parts: string[] = [];
    for (const item of items) {
      if (parts.length === MAX_ITEMS || left <= 0) break;
      parts.push(show(item));
    }
    if (parts.length < count) parts.push(`... (${count - parts.length} more)`);
    return parts.join(", ");
  };
  return write(value, 0);
}

const isContainer = (value: unknown): value is object =>
  typeof value === "object" &&
  value !== null &&
  !(value instanceof Date || value instanceof RegExp || value instanceof Error) &&
  !(value instanceof Capability || value instanceof ArrayBuffer || ArrayBuffer.isView(value));

function single(value: unknown): string {
  if (typeof value === "string") return quoted(value, MAX_TEXT);
  if (typeof value === "bigint") return bigint(value);
  if (typeof value === "function") return "<function>";
  if (value instanceof Capability) return `<capability ${value.name}>`;
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? "<no date>" : `<${value.toISOString()}>`;
  if (value instanceof RegExp) return `<pattern ${quoted(value.source, MAX_TEXT)} ${value.flags}>`;
  if (value instanceof Error) return `<error ${quoted(value.message, MAX_TEXT)}>`;
  if (value instanceof ArrayBuffer) return bytes(new Uint8Array(value));
  if (ArrayBuffer.isView(value)) {
    return bytes(new Uint8Array(value.buffer, value.byteOffset, value.byteLength));
  }
  return Object.is(value, -0) ? "-0" : String(value);
}

/** As JSON spells it, in at most `most` characters. */
function quoted(text: string, most: number): string {
  const length = (end: number) => JSON.stringify(text.slice(0, end)).length;
  let end = Math.min(text.length, most);
  while (length(end) > most) end = Math.floor(end * 0.8);
  const note = end < text.length ? `... (${text.length - end} characters more)` : "";
  return JSON.stringify(text.slice(0, end)) + note;
}

/** Its decimal digits take time that grows with their square: a long one is told by its size. */
function bigint(value: bigint): string {
  const short = BigInt.asIntN(512, value) === value;
  return short ? `${value}n` : "<a whole number of over 150 digits>";
}

function bytes(all: Uint8Array): string {
  const hex = Buffer.from(all.subarray(0, MAX_BYTES)).toString("hex");
  return `<${all.byteLength} bytes${hex === "" ? "" : ` ${hex}`}${all.byteLength > MAX_BYTES ? "..." : ""}>`;
}
