/**
 * The person at the terminal: asked before a script may do something, and told what it says. Everything that a script
 * chose is shown with a margin of its own, so that no line of it can be taken for one of ours.
 *
 * The question goes to the terminal itself, not to the standard streams: those may be a pipe that the script's input
 * comes from, and an answer must come from a person. Where there is no terminal nobody can be asked, and that is a no.
 */
import type { Readable, Writable } from "node:stream";
import type { Approval, ApprovalQuestion } from "../hostapi/approve.js";
import type { RunEvent } from "../hostapi/events.js";
import { jsonable, jsonText, neutral, valueText } from "./show.js";

/** Both directions of a terminal; whoever asked for it gives it back. */
export interface Terminal {
  readonly input: Readable;
  readonly output: Writable;
  close(): void;
}

/** Longest line that is an answer. */
const MAX_ANSWER = 100;

/**
 * Puts the question and waits for a line; "y" and "yes" are the only yes. `open` throws where there is no terminal.
 * When `signal` aborts the question is taken back, and the answer is no.
 */
export async function askPerson(
  question: ApprovalQuestion,
  signal: AbortSignal,
  open: () => Terminal,
): Promise<Approval> {
  const terminal = open();
  try {
    const lines = [question.text, ...question.details].map(
      (line) => `    | ${neutral(line).replaceAll("\n", " ")}\n`,
    );
    const who = `${neutral(question.label)}.${neutral(question.method)}`;
    terminal.output.write(`doublehull: the script asks, by ${who}:\n${lines.join("")}Allow it? [y/N] `);
    const answer = await readLine(terminal.input, signal);
    if (answer === undefined) terminal.output.write("(no longer asked)\n");
    return { approved: /^\s*y(?:es)?\s*$/i.test(answer ?? "") };
  } finally {
    terminal.close();
  }
}

/** One line, without its end; undefined if the stream ends or the signal aborts before. */
function readLine(input: Readable, signal: AbortSignal): Promise<string | undefined> {
  return new Promise((resolve) => {
    let text = "";
    const end = (line: string | undefined) => {
      input.off("data", hear).off("end", none).off("error", none).off("close", none);
      signal.removeEventListener("abort", none);
      resolve(line);
    };
    const none = () => end(undefined);
    const hear = (chunk: Buffer) => {
      text += chunk.toString("latin1");
      const length = text.indexOf("\n");
      if (length > MAX_ANSWER || (length < 0 && text.length > MAX_ANSWER))
        none(); // cut short it could read as a yes
      else if (length >= 0) end(text.slice(0, length));
    };
    signal.addEventListener("abort", none, { once: true });
    if (signal.aborted) return none();
    input.on("data", hear).on("end", none).on("error", none).on("close", none);
  });
}

/**
 * What is told of a run while it goes on, as it comes. But nothing is told while a question is open: a script could push
 * it off the screen with its log, or put another one below it.
 */
export class Commentary {
  #questions = 0;
  #held: string[] = [];

  constructor(readonly write: (text: string) => void) {}

  say(text: string): void {
    if (this.#questions > 0) this.#held.push(text);
    else this.write(text);
  }

  /** Does what asks a person; what is said meanwhile is told after it. */
  async aside<T>(act: () => Promise<T>): Promise<T> {
    this.#questions++;
    try {
      return await act();
    } finally {
      if (--this.#questions === 0) for (const text of this.#held.splice(0)) this.write(text);
    }
  }
}

/** An event in one or more lines, each behind a margin that says what it is. */
export function eventText({ name, data }: RunEvent): string {
  const margin = `[event ${neutral(name)}] `;
  const lines = valueText(data, false).trimEnd().split("\n");
  return lines.map((line, i) => `${i === 0 ? margin : " ".repeat(margin.length)}${line}\n`).join("");
}

/** An event as one line of JSON. */
export const eventJson = ({ name, data, seq }: RunEvent): string =>
  `${jsonText({ event: name, seq, data: jsonable(data) })}\n`;
