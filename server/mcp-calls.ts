/**
 * Calls of a tool that may take several requests: one that asks for input is answered with the question, and goes on
 * when the client calls again with its answer. Between two rounds the run waits in its worker, under its own limits.
 * Nothing of a call travels through the client but a random name of the question, which is good for once.
 */
import { randomUUID } from "node:crypto";
import type { ElicitRequestFormParams, ServerContext } from "@modelcontextprotocol/server";
import type { CodeAnswer } from "./tools.js";

/** A question, and the name by which its answer finds the call. */
export interface Asked {
  question: ElicitRequestFormParams;
  state: string;
}

/** Calls that wait for a client's next round; the oldest gives way to one more. */
const MAX_WAITING = 100;

export class Call {
  readonly #ending = new AbortController();
  /** The request of the client's that waits for news; undefined between two of them. */
  round: ServerContext | undefined;
  /** Lines that the client heard of it. */
  told = 0;
  /** A person should have been asked, and could not be. */
  unasked = false;
  #asked: (Asked & { settle(answer: unknown): void }) | undefined;
  #hear: ((news: Asked) => void) | undefined;
  #answer!: Promise<CodeAnswer>;

  constructor(readonly calls: Calls) {}

  /** Aborts when nobody wants the answer any more. */
  get signal(): AbortSignal {
    return this.#ending.signal;
  }

  start(run: (call: Call) => Promise<CodeAnswer>): void {
    // Not before somebody listens: the run's first question is a round's news, too.
    this.#answer = Promise.resolve().then(() => run(this));
    this.#answer.catch(() => {}); // heard by the round
  }

  end(): void {
    this.#ending.abort();
  }

  /** The answer, or the next question. A round that the client cancels ends the call. */
  async next(round: ServerContext): Promise<{ answer: CodeAnswer } | Asked> {
    const { signal } = round.mcpReq;
    const end = () => this.end();
    this.round = round;
    signal.addEventListener("abort", end, { once: true });
    if (signal.aborted) end();
    try {
      const asked = new Promise<Asked>((resolve) => (this.#hear = resolve));
      return await Promise.race([this.#answer.then((answer) => ({ answer })), asked]);
    } finally {
      signal.removeEventListener("abort", end);
      this.round = undefined;
      this.#hear = undefined;
    }
  }

  /** Puts a question to the client as its round's answer; undefined when the question is void. */
  ask(question: ElicitRequestFormParams, signal: AbortSignal): Promise<unknown> {
    return new Promise((settle) => {
      const state = randomUUID();
      signal.addEventListener("abort", () => settle(undefined), { once: true });
      this.#asked = { question, state, settle };
      this.calls.wait(state, this);
      this.#hear?.({ question, state });
    });
  }

  settle(answer: unknown): void {
    this.#asked?.settle(answer);
    this.#asked = undefined;
  }
}

export class Calls {
  readonly #open = new Set<Call>();
  readonly #waiting = new Map<string, Call>();

  begin(run: (call: Call) => Promise<CodeAnswer>): Call {
    const call = new Call(this);
    this.#open.add(call);
    call.start((begun) => run(begun).finally(() => this.#open.delete(begun)));
    return call;
  }

  /** The call that asked so, with the client's answer to it. A name is good for once; undefined if it is no longer. */
  resume(state: string, responses: Readonly<Record<string, unknown>> | undefined): Call | undefined {
    const call = this.#waiting.get(state);
    this.#waiting.delete(state);
    call?.settle(responses?.["answer"]);
    return call;
  }

  wait(state: string, call: Call): void {
    const [oldest] = this.#waiting;
    if (oldest !== undefined && this.#waiting.size >= MAX_WAITING) {
      this.#waiting.delete(oldest[0]);
      oldest[1].end();
    }
    this.#waiting.set(state, call);
  }

  /** Ends all of them: the client is gone. */
  close(): void {
    for (const call of this.#open) call.end();
  }
}
