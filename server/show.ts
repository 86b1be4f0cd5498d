/**
 * Outcomes for people and for programs, as text. Everything that a guest chose (values, messages, logs, names) is
 * hostile here: a terminal obeys escape sequences, and a reader believes a line that looks like ours. So nothing
 * leaves this file with a control character in it but line breaks, and a guest's lines are told apart by their margin.
 * Pure: knows no stream and no process.
 */
import { inspect } from "node:util";
import type { ScriptEngine } from "./engines.js";
import type { Limits } from "./limits.js";
import type { LogEntry, Outcome, ScriptError, Stop } from "./outcome.js";
import {
  code,
  inOneLine,
  neutral,
  placeOf,
  REASONS,
  stopFacts,
  UNSAFE,
  type Place,
} from "./outcome-words.js";
import type { Divergence, Replay } from "./recording.js";

export { neutral, placeOf, type Place } from "./outcome-words.js";

type Style = "red" | "yellow" | "green" | "dim" | "bold";
const SGR: Readonly<Record<Style, number>> = { red: 31, yellow: 33, green: 32, dim: 2, bold: 1 };

/** Colours text of ours, or does nothing. */
export type Paint = (style: Style, text: string) => string;
export const painter =
  (colours: boolean): Paint =>
  (style, text) =>
    colours ? `\x1b[${SGR[style]}m${text}\x1b[0m` : text;

// ---- JSON -----------------------------------------------------------------------------------------------------------

/**
 * A value as JSON. What JSON has, is itself; the rest is an object with the key `$type`:
 *
 *     undefined       {"$type":"undefined"}
 *     NaN, -0, ...    {"$type":"number","value":"NaN"}        also "Infinity", "-Infinity", "-0"
 *     bigint          {"$type":"bigint","value":"123"}
 *     Date            {"$type":"Date","value":"2020-01-01T00:00:00.000Z"}      null: an invalid date
 *     Map             {"$type":"Map","entries":[[key,value],...]}
 *     Set             {"$type":"Set","values":[...]}
 *     typed array     {"$type":"Uint8Array","base64":"..."}   any view by its name; "ArrayBuffer", "DataView"
 *     Error           {"$type":"Error","name":...,"message":...,"stack":...}
 *     an object that has a key "$type" itself   {"$type":"Object","entries":[[key,value],...]}
 */
export function jsonable(value: unknown): unknown {
  if (value === undefined) return { $type: "undefined" };
  if (typeof value === "bigint") return { $type: "bigint", value: String(value) };
  if (typeof value === "number" && (!Number.isFinite(value) || Object.is(value, -0))) {
    return { $type: "number", value: Object.is(value, -0) ? "-0" : String(value) };
  }
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(jsonable);
  if (value instanceof Date) {
    return { $type: "Date", value: Number.isNaN(value.getTime()) ? null : value.toISOString() };
  }
  if (value instanceof Map) return { $type: "Map", entries: [...value].map((pair) => pair.map(jsonable)) };
  if (value instanceof Set) return { $type: "Set", values: [...value].map(jsonable) };
  if (value instanceof Error) {
    return { $type: "Error", name: value.name, message: value.message, stack: value.stack ?? "" };
  }
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) {
    const bytes = ArrayBuffer.isView(value)
      ? Buffer.from(value.buffer, value.byteOffset, value.byteLength)
      : Buffer.from(value);
    const type = Object.prototype.toString.call(value).slice(8, -1);
    return { $type: type, base64: bytes.toString("base64") };
  }
  const entries = Object.entries(value).map(([key, item]): [string, unknown] => [key, jsonable(item)]);
  return Object.hasOwn(value, "$type") ? { $type: "Object", entries } : Object.fromEntries(entries);
}

/** The outcome as one line of JSON, safe to show on a terminal too: control characters are written as escapes. */
export const outcomeJson = (outcome: Outcome): string => jsonText(plainOutcome(outcome));

/** The same as an object. */
export function plainOutcome(outcome: Outcome): object {
  const plain = outcome.status === "ok" ? { ...outcome, value: jsonable(outcome.value) } : outcome;
  const { status, ...rest } = plain; // the status first, for readers
  return { status, ...rest };
}

/** A replay in the same way; the divergence is null where there is none. */
export const replayJson = ({ outcome, identical, divergence }: Replay): string =>
  jsonText({ outcome: plainOutcome(outcome), identical, divergence: divergence ?? null });

/** One run again on another engine, and how it went there beside the first. */
export interface Comparison extends Replay {
  engine: ScriptEngine;
  /** Messages of the first run that were answered. */
  calls: number;
}

export const comparisonsJson = (engine: ScriptEngine, outcome: Outcome, all: readonly Comparison[]): string =>
  jsonText({
    engine,
    outcome: plainOutcome(outcome),
    others: all.map((it) => ({
      engine: it.engine,
      identical: it.identical,
      divergence: it.divergence ?? null,
      outcome: plainOutcome(it.outcome),
    })),
  });

/** One line of JSON in which nothing stands that a terminal would obey. */
export const jsonText = (value: unknown): string => safeJson(JSON.stringify(value));

/** The same of a text that is JSON already. */
export const safeJson = (text: string): string =>
  text.replace(UNSAFE, (char) => `\\u${code(char).toString(16).padStart(4, "0")}`);

// ---- for people -----------------------------------------------------------------------------------------------------

/** A result: a string as it is, `undefined` as nothing, the rest as Node would print it, whole. */
export function valueText(value: unknown, colours: boolean): string {
  if (value === undefined) return "";
  if (typeof value === "string") return `${neutral(value)}\n`;
  calmErrors(value);
  const all = { depth: Infinity, maxArrayLength: Infinity, maxStringLength: Infinity, breakLength: 100 };
  const text = inspect(value, { ...all, colors: colours });
  // With colours the escape sequences are inspect's own: it escapes those of strings, and errors have been calmed.
  return `${colours ? text : neutral(text)}\n`;
}

/** inspect prints the texts of errors as they are, so they are made harmless where they stand. */
function calmErrors(value: unknown): void {
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return;
  if (value instanceof Error) {
    value.name = inOneLine(value.name);
    value.message = neutral(value.message);
    const head = value.message === "" ? value.name : `${value.name}: ${value.message}`;
    value.stack = `${head}\n${neutral(value.stack ?? "")}`.trimEnd(); // a guest's stack has no headline
    return;
  }
  if (value instanceof Map) for (const pair of value) pair.forEach(calmErrors);
  else if (value instanceof Set) for (const item of value) calmErrors(item);
  else for (const item of Object.values(value)) calmErrors(item);
}

/** One line a log entry, more where its text has line breaks; the margin says that the guest wrote it. */
export function logText(entry: LogEntry, paint: Paint): string {
  const margin = `[${entry.level}] `;
  const lines = neutral(entry.args.join(" ")).split("\n");
  const body = lines.map((line, i) => (i === 0 ? "" : " ".repeat(margin.length)) + line).join("\n");
  const style = entry.level === "error" ? "red" : entry.level === "warn" ? "yellow" : "dim";
  return `${paint(style, margin)}${body}\n`;
}

const WINDOW = 100;

/** The line that is meant and a caret below the column; a long line is cut around it. */
export function excerpt(source: string, place: Place): string | undefined {
  const line = source.split(/\r?\n/)[place.line - 1];
  if (line === undefined || place.column < 1 || place.column > line.length + 1) return undefined;
  const from = Math.max(0, place.column - 1 - (WINDOW >> 1));
  // One character for one: the caret must stay below its own.
  const shown = line
    .slice(from, from + WINDOW)
    .replaceAll("\t", " ")
    .replace(UNSAFE, "\ufffd");
  const number = String(place.line);
  return `${number} | ${shown}\n${" ".repeat(number.length)} | ${" ".repeat(place.column - 1 - from)}^\n`;
}

/** What the script threw. `sources` are the texts by the names that the stack shows. */
export function errorText(error: ScriptError, sources: ReadonlyMap<string, string>, paint: Paint): string {
  const name = inOneLine(error.name) || "Error";
  const place = placeOf(error);
  const source = place && sources.get(place.file);
  const shown = error.name === "SyntaxError" && place && source ? excerpt(source, place) : undefined;
  if (place !== undefined && shown !== undefined) {
    const where = inOneLine(`${place.file}:${place.line}:${place.column}`);
    // A message may bring an excerpt of its own: ours is enough.
    const message = inOneLine(error.message.replace(/\n {2}[^\n]*\n *\^$/, ""));
    return `${where}: ${paint("red", `${name}: ${message}`)}\n\n${shown}`;
  }
  const message = neutral(error.message).replaceAll("\n", "\n    ");
  const head = paint("red", message === "" ? name : `${name}: ${message}`);
  const stack = neutral(error.stack)
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => `    ${line.trim()}\n`);
  return `${head}\n${paint("dim", stack.join(""))}`;
}

/** `hint`: what its reader can do, where that is not the command line's. */
export function stopText(
  stop: Stop,
  limits: Readonly<Limits>,
  paint: Paint,
  hint = REASONS[stop.reason].hint,
): string {
  const row = REASONS[stop.reason];
  return `${paint("yellow", `stopped (${stop.reason}):`)} ${row.what}\n    ${stopFacts(stop, limits).join(", ")}\n    ${hint}\n`;
}

export function comparisonText(first: ScriptEngine, it: Comparison, paint: Paint): string {
  if (it.identical) return `${it.engine}: ${paint("green", "as on")} ${first}\n`;
  return `${it.engine}: ${divergenceText(it.divergence, it.calls, paint, [first, it.engine])}`;
}

/** Where a replay left its recording, which has so many calls. No divergence: it did not even begin. */
export function divergenceText(
  divergence: Divergence | undefined,
  calls: number,
  paint: Paint,
  [first, second]: readonly [string, string] = ["expected", "got"],
): string {
  if (divergence === undefined) return `${paint("yellow", "diverged:")} the script never began\n`;
  const { at, expected, got } = divergence;
  const width = Math.max(first.length, second.length) + 1;
  const where = at <= calls ? `at call ${at} of ${calls}` : `after all ${calls} recorded calls`;
  return `${paint("yellow", "diverged")} ${where}:\n    ${`${first}:`.padEnd(width)} ${inOneLine(expected)}\n    ${`${second}:`.padEnd(width)} ${inOneLine(got)}\n`;
}
