/**
 * What a streamed run says, kept so that a client that lost its connection goes on where it was: numbered from 1, bounded,
 * for a minute after the end. A run that nobody listens to any more is cancelled after a moment's grace.
 */
import { Problem } from "./problems.js";

export interface StreamEvent {
  id: string;
  event: "log" | "event" | "outcome" | "problem" | "gap";
  data: unknown;
}

/** How long a run goes on without a listener, and how long its events are kept after the end, ms. */
const GRACE_MS = 10_000;
const KEEP_MS = 60_000;
/** Events kept of one run; a listener that is further behind is told of the gap. A log is bounded by its bytes before. */
const MAX_EVENTS = 10_000;
const MAX_STREAMS = 1000;

class RunStream {
  readonly abort = new AbortController();
  #events: StreamEvent[] = [];
  #count = 0;
  #ended = false;
  #listeners = 0;
  #timer: NodeJS.Timeout | undefined;
  /** Those who wait for the next event. */
  #waiting: (() => void)[] = [];
  readonly #forget: () => void;

  constructor(
    readonly tenant: string,
    forget: () => void,
  ) {
    this.#forget = forget;
  }

  push(event: Exclude<StreamEvent["event"], "gap">, data: unknown): void {
    this.#events.push({ id: String(++this.#count), event, data });
    if (this.#events.length > MAX_EVENTS) this.#events.shift();
    if (event === "outcome" || event === "problem") {
      this.#ended = true;
      clearTimeout(this.#timer);
      this.#timer = setTimeout(this.#forget, KEEP_MS).unref();
    }
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** Events after the one of that number, to the end. */
  async *listen(after: number, gone: AbortSignal): AsyncGenerator<StreamEvent> {
    this.#listeners++;
    if (!this.#ended) clearTimeout(this.#timer);
    const left = new Promise<void>((resolve) =>
      gone.addEventListener("abort", () => resolve(), { once: true }),
    );
    try {
      let next = after + 1;
      for (;;) {
        const oldest = this.#count - this.#events.length + 1;
        if (next < oldest) {
          yield { id: String(oldest - 1), event: "gap", data: { missed: oldest - next } };
          next = oldest;
        }
        for (; next <= this.#count && !gone.aborted; next++) {
          const event = this.#events[next - (this.#count - this.#events.length + 1)];
          if (event === undefined) break; // shifted out while the client was slow
          yield event;
        }
        if (gone.aborted || (this.#ended && next > this.#count)) return;
        if (next > this.#count)
          await Promise.race([new Promise<void>((wake) => this.#waiting.push(wake)), left]);
      }
    } finally {
      this.#listeners--;
      if (this.#listeners === 0 && !this.#ended)
        this.#timer = setTimeout(() => this.abort.abort(), GRACE_MS).unref();
    }
  }
}

export class Streams {
  readonly #streams = new Map<string, RunStream>();

  open(id: string, tenant: string): RunStream {
    if (this.#streams.size >= MAX_STREAMS)
      throw new Problem("overloaded", "as many runs are streamed as this service keeps", { retryAfterS: 5 });
    const stream = new RunStream(tenant, () => this.#streams.delete(id));
    this.#streams.set(id, stream);
    return stream;
  }

  /** Throws Problem `not-found`, for another tenant's too. */
  get(id: string, tenant: string): RunStream {
    const stream = this.#streams.get(id);
    if (stream?.tenant !== tenant)
      throw new Problem(
        "not-found",
        "there is no such run: none that is streamed, or it ended more than a minute ago",
      );
    return stream;
  }
}
