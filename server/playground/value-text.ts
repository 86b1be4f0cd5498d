/**
 * A value of a run as text, about as a console would show it. It is a stranger's: depth, items and characters are bounded,
 * what is left out is counted, and what would turn or hide text is made visible. Pure.
 */
import { neutral } from "../outcome-words.js";

const MAX_DEPTH = 8;
const MAX_ITEMS = 200;
const MAX_STRING = 10_000;
const MAX_TEXT = 50_000;
const WIDTH = 72;

/** Text for a text node; never longer than some 50,000 characters. */
export function valueText(value: unknown): string {
  const text = typeof value === "string" ? value : shown(value, 0);
  return cut(neutral(text.length > 2 * MAX_TEXT ? cut(text, 2 * MAX_TEXT) : text), MAX_TEXT);
}

/** The beginning of a text, and how much more there is. */
export function cut(text: string, most: number): string {
  return text.length <= most ? text : `${text.slice(0, most)}… ${text.length - most} more characters`;
}

function shown(value: unknown, depth: number): string {
  switch (typeof value) {
    case "string":
      return JSON.stringify(cut(value, MAX_STRING));
    case "bigint":
      return `${value}n`;
    case "object":
      return value === null ? "null" : object(value, depth);
    case "number":
      return Object.is(value, -0) ? "-0" : String(value);
    default:
      return String(value);
  }
}

function object(value: object, depth: number): string {
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? "Invalid Date" : value.toISOString();
  if (value instanceof Error) return cut(`${value.name}: ${value.message}`, MAX_STRING);
  if (depth >= MAX_DEPTH) return Array.isArray(value) ? "[…]" : "{…}";
  if (value instanceof ArrayBuffer)
    return `ArrayBuffer ${list([...first(new Uint8Array(value))], value.byteLength, "[]", depth)}`;
  if (value instanceof DataView) return `DataView of ${value.byteLength} bytes`;
  if (ArrayBuffer.isView(value)) {
    const items = value as unknown as ArrayLike<number | bigint>;
    return `${value.constructor.name} ${list([...first(items)], items.length, "[]", depth)}`;
  }
  if (Array.isArray(value)) return list(value.slice(0, MAX_ITEMS), value.length, "[]", depth);
  if (value instanceof Set)
    return `Set(${value.size}) ${list([...value].slice(0, MAX_ITEMS), value.size, "{}", depth)}`;
  if (value instanceof Map) {
    const pairs = [...value].slice(0, MAX_ITEMS);
    const lines = pairs.map(([key, item]) => `${shown(key, depth + 1)} => ${shown(item, depth + 1)}`);
    return `Map(${value.size}) ${wrapped(lines, value.size, "{}", depth)}`;
  }
  const entries = Object.entries(value);
  const lines = entries.slice(0, MAX_ITEMS).map(([key, item]) => {
    const name = /^[A-Za-z_$][\w$]*$/.test(key) ? key : JSON.stringify(cut(key, 200));
    return `${name}: ${shown(item, depth + 1)}`;
  });
  return wrapped(lines, entries.length, "{}", depth);
}

const first = (items: ArrayLike<number | bigint>): ArrayLike<number | bigint> & Iterable<number | bigint> =>
  Array.from({ length: Math.min(items.length, MAX_ITEMS) }, (_, i) => items[i] ?? 0);

const list = (items: readonly unknown[], count: number, brackets: string, depth: number): string =>
  wrapped(items.map((item) => shown(item, depth + 1)), count, brackets, depth); // prettier-ignore

/** In one line if it is short, else a line each. */
function wrapped(
  items: readonly string[],
  count: number,
  [open = "", closed = ""]: string,
  depth: number,
): string {
  if (count === 0) return open + closed;
  const more = count - items.length;
  const all = more > 0 ? [...items, `… ${more} more`] : items;
  const space = open === "{" ? " " : "";
  const short = `${open}${space}${all.join(", ")}${space}${closed}`;
  if (short.length + 2 * depth <= WIDTH && !short.includes("\n")) return short;
  const margin = "  ".repeat(depth + 1);
  return `${open}\n${all.map((line) => margin + line).join(",\n")}\n${"  ".repeat(depth)}${closed}`;
}
