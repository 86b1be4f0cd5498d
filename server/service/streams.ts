/**
 * What a streamed run says, kept so that a client that lost its connection goes on where it was: numbered from 1, bounded,
 * for a minute after the end. A run that nobody listens to any more is cancelled after a moment's grace.
 */
import { jsonText } from "../show.js";
import { Questions } from "./approvals.js";
import { Problem } from "./problems.js";

export interface StreamEvent {
  id: string;
  event: "log" | "event" | "approval" | "approval-end" | "outcome" | "problem" | "gap";
  /** JSON: written once, for its size is counted. */
  data: string;
}

/** How long a run goes on without a listener, and how long its events are kept after the end, ms. */
const GRACE_MS = 10_000;
const KEEP_MS = 60_000;
/**
 * Kept of one run, in events and in UTF-16 units of their JSON; a listener that is further behind is told of the gap. It
 * stops a script that fills the service's memory with events for a client that does not read.
 */
const MAX_EVENTS = 10_000;
const MAX_UNITS = 16 * 1024 * 1024;
/** Of all tenants. Those that have ended make room for others, the oldest first. */
const MAX_STREAMS = 1000;
/**
 * What one tenant's ended streams may take, so that it cannot have all the room. Beyond it the oldest is forgotten before
 * its time; runs under way are bounded by the tenant's quota.
 */
const MAX_ENDED = 100;
const MAX_ENDED_UNITS = 64 * 1024 * 1024;

class RunStream {
  readonly abort = new AbortController();
  #events: StreamEvent[] = [];
  #count = 0;
  #units = 0;
  #ended = false;
  #listeners = 0;
  #timer: NodeJS.Timeout | undefined;
  /** Those who wait for the next event. */
  #waiting: (() => void)[] = [];
  readonly #forget: () => void;
  readonly questions: Questions;

  constructor(
    /** Its incarnation: one that is made anew does not find what was another's. */
    readonly tenant: string,
    forget: () => void,
    now: () => number,
  ) {
    this.#forget = forget;
    this.questions = new Questions((kind, event) => this.push(kind, event), now);
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** UTF-16 units that are kept. */
  get units(): number {
    return this.#units;
  }

  /** The number that it has. What comes after the end is not told: nobody waits for it. */
  push(event: Exclude<StreamEvent["event"], "gap">, value: unknown): number {
    if (this.#ended) return this.#count;
    const data = jsonText(value);
    this.#events.push({ id: String(++this.#count), event, data });
    this.#units += data.length;
    while (this.#events.length > MAX_EVENTS || (this.#units > MAX_UNITS && this.#events.length > 1))
      this.#units -= this.#events.shift()?.data.length ?? 0;
    if (event === "outcome" || event === "problem") {
      this.#ended = true;
      clearTimeout(this.#timer);
      this.#timer = setTimeout(this.#forget, KEEP_MS).unref();
    }
    for (const wake of this.#waiting.splice(0)) wake();
    return this.#count;
  }

  /**
   * Events after the one of that number, to the end; before them questions of earlier ones that are still open, under that
   * same number. It counts as a listener until `gone`, whether or not it is read: of a
   * client that stopped reading and then went away, nobody fetches the next event.
   */
  listen(after: number, gone: AbortSignal): AsyncGenerator<StreamEvent> {
    this.#listeners++;
    if (!this.#ended) clearTimeout(this.#timer);
    let listens = true;
    const leave = () => {
      if (!listens) return;
      listens = false;
      this.#listeners--;
      if (this.#listeners === 0 && !this.#ended)
        this.#timer = setTimeout(() => this.abort.abort(), GRACE_MS).unref();
    };
    const left = new Promise<void>((resolve) =>
      gone.addEventListener("abort", () => (leave(), resolve()), { once: true }),
    );
    if (gone.aborted) leave();
    return this.#after(after, gone, left, leave);
  }

  *#stillOpen(at: number): Generator<StreamEvent> {
    for (const question of this.questions.openUpTo(at))
      yield { id: String(at), event: "approval", data: jsonText(question) };
  }

  async *#after(
    after: number,
    gone: AbortSignal,
    left: Promise<void>,
    leave: () => void,
  ): AsyncGenerator<StreamEvent> {
    try {
      let next = after + 1;
      yield* this.#stillOpen(after);
      for (;;) {
        const oldest = this.#count - this.#events.length + 1;
        if (next < oldest) {
          yield { id: String(oldest - 1), event: "gap", data: jsonText({ missed: oldest - next }) };
          next = oldest;
          yield* this.#stillOpen(oldest - 1);
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
      leave();
    }
  }
}

export class Streams {
  readonly #streams = new Map<string, RunStream>();
  readonly #now: () => number;

  constructor({ now }: { now: () => number }) {
    this.#now = now;
  }

  /** `tenant`: its incarnation. */
  open(id: string, tenant: string): RunStream {
    this.#makeRoom(tenant);
    if (this.#streams.size >= MAX_STREAMS)
      throw new Problem("overloaded", "as many runs are streamed as this service keeps", { retryAfterS: 5 });
    const stream = new RunStream(tenant, () => this.#streams.delete(id), this.#now);
    this.#streams.set(id, stream);
    return stream;
  }

  #makeRoom(tenant: string): void {
    const ended = [...this.#streams].filter(([, stream]) => stream.ended);
    const own = ended.filter(([, stream]) => stream.tenant === tenant);
    let units = own.reduce((sum, [, stream]) => sum + stream.units, 0);
    let count = own.length;
    for (const [id, stream] of own) {
      if (count < MAX_ENDED && units <= MAX_ENDED_UNITS) break;
      this.#streams.delete(id);
      count--;
      units -= stream.units;
    }
    for (const [id] of ended) {
      if (this.#streams.size < MAX_STREAMS) break;
      this.#streams.delete(id);
    }
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
