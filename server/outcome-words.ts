/**
 * An outcome in words, wherever it is shown: on a terminal, to a model, on a page. Everything that a guest chose is hostile
 * there: a terminal obeys escape sequences, and a reader believes a line that looks like ours. Pure, and of Node it needs
 * nothing.
 */
import type { LimitName, Limits } from "./limits.js";
import type { ScriptError, Stop, StopLayer, StopReason } from "./outcome.js";

/**
 * C0 (but line feed and tab), DEL, C1 (which some terminals obey as ESC sequences), line and paragraph separators, and
 * the marks that turn the direction of what follows, and lone surrogates. ECMA-48; Unicode TR 9, TR 36 "Bidirectional text spoofing"
 */
// oxlint-disable-next-line no-control-regex -- finding them is the point
export const UNSAFE =
  /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\p{Surrogate}]/gu;

export const code = (char: string): number => char.codePointAt(0) ?? 0;

/** Hostile text made visible: `\x1b` instead of the escape character. Line feeds and tabs stay. */
export function neutral(text: string): string {
  return text.replace(UNSAFE, (char) => {
    const hex = code(char).toString(16);
    return hex.length > 2 ? `\\u${hex.padStart(4, "0")}` : `\\x${hex.padStart(2, "0")}`;
  });
}

/** The same in one line. */
export const inOneLine = (text: string): string =>
  neutral(text).replaceAll("\n", "\\n").replaceAll("\t", " ");

export interface Place {
  file: string;
  line: number;
  column: number;
}

/** The topmost place in a script's stack. */
export function placeOf(error: ScriptError): Place | undefined {
  const match = /^\s*at (?:.*? \()?([^()\n]+):(\d+):(\d+)\)?$/m.exec(error.stack);
  return match === null
    ? undefined
    : { file: match[1] ?? "", line: Number(match[2]), column: Number(match[3]) };
}

export interface ReasonRow {
  what: string;
  /** The limit that was met, whose unit the numbers have. */
  limit?: LimitName;
  hint: string;
}

/** Every reason in words, and what its reader can do. */
export const REASONS: Readonly<Record<StopReason, ReasonRow>> = {
  "wall-time": {
    what: "it was still running at its deadline",
    limit: "wallMs",
    hint: "Give it longer with --limit wallMs=N, or look for a wait or a loop without end.",
  },
  "cpu-time": {
    what: "it used up its CPU time",
    limit: "cpuMs",
    hint: "Give it more with --limit cpuMs=N, or look for a loop without end.",
  },
  fuel: {
    what: "it used up its steps",
    limit: "fuel",
    hint: "Look for a loop without end, or give it more with --limit fuel=N.",
  },
  memory: {
    what: "it asked for more memory than it may have",
    limit: "memoryMb",
    hint: "Give it more with --limit memoryMb=N.",
  },
  stack: {
    what: "it recursed deeper than its stack",
    limit: "stackKb",
    hint: "Look for a recursion without end, or give it more with --limit stackKb=N.",
  },
  output: {
    what: "its result is too large",
    limit: "resultBytes",
    hint: "Return less, or allow more with --limit resultBytes=N.",
  },
  source: {
    what: "its source is too large, or could not be parsed within bounds",
    limit: "sourceBytes",
    hint: "Send less, or allow more with --limit sourceBytes=N.",
  },
  "host-calls": {
    what: "it called the host too often",
    limit: "hostCalls",
    hint: "Allow more with --limit hostCalls=N.",
  },
  deadlock: {
    what: "it waits for a promise that nothing can settle",
    hint: "Look for a promise that is never resolved.",
  },
  idle: { what: "it had nothing to do for too long", hint: "Run it again." },
  syscall: {
    what: "it made a system call that it may not make: code outside the script's language ran",
    hint: "Treat the script as an attack.",
  },
  crash: {
    what: "its process crashed",
    hint: "If the script is harmless, please report this with the script.",
  },
  protocol: {
    what: "its process said something that no honest worker says",
    hint: "Treat the script as an attack.",
  },
  lost: { what: "its process was lost", hint: "Run it again; if it repeats, run `doublehull doctor`." },
};

const LAYERS: Readonly<Record<StopLayer, string>> = {
  language: "the language engine",
  broker: "the capability broker",
  supervisor: "the supervisor",
  seccomp: "the seccomp filter",
  rlimit: "a resource limit of its process",
  cgroup: "its cgroup",
  kernel: "the kernel",
};

/** A number of a limit, in its unit. Stops count memory and stack in bytes. */
function quantity(n: number, limit: LimitName | undefined): string {
  if (limit === "wallMs" || limit === "cpuMs") return `${Math.round(n)} ms`;
  if (limit === "memoryMb") return `${(n / 1024 / 1024).toFixed(1).replace(/\.0$/, "")} MiB`;
  if (limit === "fuel") return `${n} steps`;
  if (limit === "hostCalls") return `${n} calls`;
  return limit === undefined ? String(n) : `${n} bytes`;
}

/** Who ended it and what was measured, each a clause. `limits` are those that the run had. */
export function stopFacts(stop: Stop, limits: Readonly<Partial<Limits>>): string[] {
  const row = REASONS[stop.reason];
  const facts = [`${LAYERS[stop.layer]} ended it`];
  if (stop.limit !== undefined) facts.push(`limit ${quantity(stop.limit, row.limit)}`);
  else if (row.limit !== undefined && stop.detail === undefined)
    facts.push(`${row.limit}=${limits[row.limit]}`);
  if (stop.measured !== undefined) facts.push(`measured ${quantity(stop.measured, row.limit)}`);
  if (stop.syscall !== undefined) facts.push(`system call ${inOneLine(stop.syscall)}`);
  if (stop.detail !== undefined) facts.push(inOneLine(stop.detail));
  return facts;
}
