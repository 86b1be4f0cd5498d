/**
 * What a streamed run asks a person, put to whoever the program names. A question comes again when a stream is gone on
 * with: it is put once. Whatever is no plain yes is a no, an error too; what is answered too late is nobody's to hear.
 */
import { isObject } from "./connection.js";
import type { ApprovalEvent } from "../service/approvals.js";

/** Texts are the script's, with what cannot be seen escaped: show them as its words, not as yours. */
export type ApprovalQuestion = ApprovalEvent;
export type ApprovalAnswer = boolean | { approved: boolean; note?: string | undefined };
/** `voided` aborts when no answer counts any more (it was given elsewhere, it took too long, the run ended). */
export type OnApproval = (question: ApprovalQuestion, voided: AbortSignal) => Promise<ApprovalAnswer>;

type Send = (id: string, answer: { approved: boolean; note?: string }) => Promise<void>;
/** What the service takes of a note, characters. */
const MAX_NOTE = 200;

/** The questions of one stream. */
export class Asker {
  readonly #onApproval: OnApproval | undefined;
  readonly #send: Send;
  readonly #asked = new Map<string, AbortController>();

  constructor(onApproval: OnApproval | undefined, send: Send) {
    this.#onApproval = onApproval;
    this.#send = send;
  }

  /** Whether it is one that was not known before. */
  put(question: ApprovalQuestion): boolean {
    if (this.#asked.has(question.id)) return false;
    const voided = new AbortController();
    this.#asked.set(question.id, voided);
    if (this.#onApproval !== undefined) void this.#answered(this.#onApproval, question, voided.signal);
    return true;
  }

  async #answered(onApproval: OnApproval, question: ApprovalQuestion, voided: AbortSignal): Promise<void> {
    let answer: unknown;
    try {
      answer = await onApproval(question, voided);
    } catch {
      answer = false; // nobody said yes
    }
    if (voided.aborted) return;
    const { approved, note } = (isObject(answer) ? answer : { approved: answer }) as Record<string, unknown>;
    const words = typeof note === "string" ? { note: note.slice(0, MAX_NOTE) } : {};
    // Not heard, it is void when its time is over, which is a no.
    await this.#send(question.id, { approved: approved === true, ...words }).catch(() => {});
  }

  end(id: string): void {
    this.#asked.get(id)?.abort();
  }

  endAll(): void {
    for (const voided of this.#asked.values()) voided.abort();
  }
}
