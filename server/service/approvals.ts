/**
 * The questions that one run puts to a person, over HTTP: told to who listens to its stream, answered by a request of its
 * own. A question is numbered from 1 in its run, is open until it is answered or void, and is answered once.
 *
 * Its texts are the script's, escaped and bounded by hostapi/approve.ts, which also lets one be open at a time. The audit's
 * line stands before each act: before a question is told, and before its answer counts.
 */
import type { Approval } from "../../hostapi/approve.js";
import { Problem } from "./problems.js";

/** What a person is to see of it. */
export interface Asked {
  /** The name in `env`, and the method of it. */
  capability: string;
  method: string;
  /** One line. */
  text: string;
  /** More lines. */
  details: readonly string[];
  /** How long an answer is waited for, ms. */
  leftMs: number;
}

/** As its event tells it. */
export type ApprovalEvent = { id: string } & Omit<Asked, "leftMs"> & {
    /** Milliseconds since 1970: no answer counts from then on. */
    expiresMs: number;
  };
export interface ApprovalEnd {
  id: string;
  result: "approved" | "refused" | "void";
}

export interface Answer {
  approved: boolean;
  note?: string | undefined;
}

interface Open {
  event: ApprovalEvent;
  /** The number of its event in the stream. */
  at: number;
  end(result: ApprovalEnd["result"], answer: Approval): void;
}

/** Puts an event into the run's stream; its number there. */
type Tell = (kind: "approval" | "approval-end", event: ApprovalEvent | ApprovalEnd) => number;

export class Questions {
  readonly #tell: Tell;
  readonly #now: () => number;
  readonly #open = new Map<string, Open>();
  #count = 0;

  constructor(tell: Tell, now: () => number) {
    this.#tell = tell;
    this.#now = now;
  }

  /** Resolves to the answer, or to a no when `signal` aborts. `before` is called with its id before anybody is told. */
  ask({ leftMs, ...asked }: Asked, signal: AbortSignal, before: (id: string) => void): Promise<Approval> {
    const id = String(this.#count + 1);
    before(id);
    this.#count++;
    if (signal.aborted) return Promise.resolve(false);
    const event: ApprovalEvent = { id, ...asked, expiresMs: this.#now() + Math.floor(leftMs) };
    const at = this.#tell("approval", event);
    return new Promise((resolve) => {
      const end: Open["end"] = (result, answer) => {
        signal.removeEventListener("abort", stop);
        this.#open.delete(id);
        this.#tell("approval-end", { id, result });
        resolve(answer);
      };
      const stop = () => end("void", false);
      signal.addEventListener("abort", stop, { once: true });
      this.#open.set(id, { event, at, end });
    });
  }

  /**
   * Throws Problem: `not-found` for one that was never asked, `approval-over` for one that is not open any more. `before` is
   * called before the answer counts; if it throws, the question stays open.
   */
  answer(id: string, { approved, note }: Answer, before: () => void): void {
    const open = this.#open.get(id);
    if (open === undefined) {
      const known = /^[1-9]\d{0,8}$/.test(id) && Number(id) <= this.#count;
      if (!known) throw new Problem("not-found", "the run has asked no such question");
      throw new Problem("approval-over", "an answer was given, or is not waited for any more");
    }
    before();
    open.end(approved ? "approved" : "refused", note === undefined ? approved : { approved, note });
  }

  /** Those that are open and were told by the event of that number or an earlier one. */
  openUpTo(at: number): ApprovalEvent[] {
    return [...this.#open.values()].filter((open) => open.at <= at).map(({ event }) => event);
  }
}
