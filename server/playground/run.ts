/**
 * One run as the page sees it: lines as they come, bounded, and how it ended. All texts are a stranger's: they are made
 * plain here, and are only ever text nodes. Pure but for the client that it is given.
 */
import {
  ServiceError,
  type ApprovalQuestion,
  type Client,
  type Outcome,
  type RunEvent,
  type RunRequest,
} from "../client.js";
import type { Limits } from "../limits.js";
import { neutral, placeOf, REASONS, stopFacts, type Place } from "../outcome-words.js";
import type { Stop } from "../outcome.js";
import { cut, valueText } from "./value-text.js";

/** Kept of the log, the newest; a page with more of them is slow. */
export const MAX_LINES = 500;
const MAX_LINE = 2000;

export interface Line {
  /** Counts up from 1 within a run. */
  seq: number;
  kind: "debug" | "log" | "info" | "warn" | "error" | "event" | "asks" | "gap";
  text: string;
}

/** Why a run did not take place: the service's words. */
export interface Refusal {
  title: string;
  detail: string;
  fields: { field: string; message: string }[];
  /** The key is of no use (any more). */
  unauthorized: boolean;
}

/** What a script asks, and of which run it is. */
export interface Asked extends ApprovalQuestion {
  run: string;
}
/** What became of a question: "void" if no answer counts any more. */
export type AskedEnd = Extract<RunEvent, { type: "approval-end" }>["result"];

interface Told {
  lines: readonly Line[];
  left: number;
  /** Of the latest question; undefined while it is open, too. */
  over: AskedEnd | undefined;
}
export type RunState =
  | { phase: "idle" }
  | (Told & { phase: "running"; question: Asked | undefined })
  | (Told & { phase: "ended"; outcome: Outcome; limits: Limits })
  | (Told & { phase: "refused"; refusal: Refusal });

/** Reads a stream to its end and tells of each change, at most once in `everyMs`. Never rejects. */
export async function follow(
  client: Client,
  request: RunRequest,
  {
    limits,
    signal,
    everyMs,
    tell,
  }: { limits: Limits; signal: AbortSignal; everyMs: number; tell: (state: RunState) => void },
): Promise<void> {
  let lines: Line[] = [];
  let count = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let question: Asked | undefined;
  let over: AskedEnd | undefined;
  const seen = () => {
    lines = lines.slice(-MAX_LINES);
    return { lines, left: count - lines.length, over };
  };
  const draw = () => {
    clearTimeout(timer);
    timer = undefined;
    tell({ phase: "running", ...seen(), question });
  };
  const add = (kind: Line["kind"], text: string) => {
    lines.push({ seq: ++count, kind, text });
    if (lines.length > 2 * MAX_LINES) lines = lines.slice(-MAX_LINES);
    timer ??= setTimeout(draw, everyMs);
  };
  draw();
  try {
    let outcome: Outcome | undefined;
    for await (const event of client.stream(request, { signal })) {
      if (event.type === "outcome") ({ outcome } = event);
      else add(...lineOf(event));
      if (event.type === "approval") [question, over] = [{ ...event.question, run: event.run }, undefined];
      else if (event.type === "approval-end" && event.id === question?.id)
        [question, over] = [undefined, event.result];
      else continue;
      draw(); // a person waits for it, or is not to wait any more
    }
    clearTimeout(timer);
    if (outcome === undefined) throw new ServiceError("no-answer", "the stream ended without an outcome");
    tell({ phase: "ended", ...seen(), outcome, limits });
  } catch (error) {
    clearTimeout(timer);
    if (question !== undefined) over = "void";
    tell({ phase: "refused", ...seen(), refusal: refusalOf(error) });
  }
}

/** What became of a question, in a sentence. */
export const ASKED_END: Readonly<Record<AskedEnd, string>> = {
  approved: "The question is over: it was approved.",
  refused: "The question is over: it was refused.",
  void: "The question is over: nobody answered in time, or the run has ended.",
};

function lineOf(event: Exclude<RunEvent, { type: "outcome" }>): [Line["kind"], string] {
  switch (event.type) {
    case "log":
      return [event.entry.level, plain(event.entry.args.join(" "))];
    case "event":
      return ["event", plain(`${event.name} ${valueText(event.data)}`)];
    case "gap":
      return ["gap", `${event.missed} lines are lost: the service keeps no more for a slow reader`];
    case "approval":
      return ["asks", plain(event.question.text)];
    case "approval-end":
      return ["asks", ASKED_END[event.result]];
  }
}

/** Cut before it is made plain, which makes it longer. */
const plain = (text: string): string => neutral(cut(text, MAX_LINE));

export function refusalOf(error: unknown): Refusal {
  if (!(error instanceof ServiceError))
    return { title: "The run was given up", detail: neutral(String(error)), fields: [], unauthorized: false };
  const { problem, message, code, status } = error;
  if (problem === undefined)
    return { title: "The service did not answer", detail: neutral(message), fields: [], unauthorized: status === 401 }; // prettier-ignore
  return {
    title: problem.title,
    detail: neutral(`${problem.detail}. ${problem.remedy}`),
    fields: (problem.errors ?? []).map(({ field, message }) => ({ field: neutral(field), message: neutral(message) })), // prettier-ignore
    unauthorized: code === "unauthorized",
  };
}

/** An outcome in a headline and in what explains it; all of it is plain text. */
export function words(outcome: Outcome, limits: Limits): { headline: string; more: string[]; hint: string } {
  switch (outcome.status) {
    case "ok":
      return { headline: "It finished", more: [], hint: "" };
    case "cancelled":
      return { headline: "It was cancelled", more: [], hint: "" };
    case "threw": {
      const { name, message } = outcome.error;
      return { headline: "It threw an error", more: [plain(`${name}: ${message}`)], hint: "" };
    }
    case "stopped": {
      const stop = outcome.stop as Stop;
      const row = Object.hasOwn(REASONS, stop.reason) ? REASONS[stop.reason] : undefined;
      if (row === undefined)
        return { headline: `It was stopped (${neutral(stop.reason)})`, more: [], hint: "" };
      // The table's hints are for the command line: here limits are fields of the page.
      const hint =
        row.limit === undefined
          ? row.hint
          : `If the script is meant to need that much, raise ${row.limit} under Limits, as far as the policy goes.`;
      return { headline: `It was stopped: ${row.what}`, more: stopFacts(stop, limits), hint };
    }
  }
}

/** Where the script itself went wrong; frames of what is around it are passed over. */
export function placeIn(outcome: Outcome): Place | undefined {
  if (outcome.status !== "threw") return undefined;
  const { stack, ...error } = outcome.error;
  const own = stack.split("\n").filter((line) => /\bscript\.[jt]s:\d+:\d+/.test(line));
  return placeOf({ ...error, stack: own.join("\n") });
}
