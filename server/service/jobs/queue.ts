/**
 * The queue's port, and the queue within this process. A queue says which node does a job and when; that a job is done
 * once is decided by the table alone (table.ts), so a queue may hand out too often, lose all it knows, or be gone for a
 * while: what waits is offered to it again.
 */

/** One attempt of a job that may begin. */
export interface Ticket {
  readonly job: string;
  /** How many attempts there were. */
  readonly attempt: number;
  readonly tenant: string;
  /** Place in line: lower is first. Fair between tenants (see table.ts). */
  readonly turn: number;
}

/** `busy`: it did not begin, for its tenant has as much under way as it may have here; hand it out again in a moment. */
export type Work = (ticket: Ticket) => Promise<"over" | "busy">;

export interface JobQueue {
  /** More than once for the same attempt is as once. Rejects where the queue cannot be reached. */
  add(tickets: readonly Ticket[]): Promise<void>;
  /** From now on hands out so many at a time. `work` does not reject. */
  start(concurrency: number, work: Work): void;
  /** Hands out nothing more. Resolves when what was handed out is over. Idempotent. */
  stop(): Promise<void>;
}

/** How long a tenant that was busy is passed over, unless a job of its own ends before, ms. */
export const BUSY_MS = 250;

const keyOf = ({ job, attempt }: Ticket): string => `${job}.${attempt}`;

export class LocalQueue implements JobQueue {
  /** By turn. */
  readonly #waiting: Ticket[] = [];
  /** Those that wait or were handed out. */
  readonly #known = new Set<string>();
  readonly #busy = new Set<string>();
  #free = 0;
  #out = 0;
  #work: Work | undefined;
  #idle: (() => void) | undefined;

  add(tickets: readonly Ticket[]): Promise<void> {
    for (const ticket of tickets) {
      if (this.#known.has(keyOf(ticket))) continue;
      this.#known.add(keyOf(ticket));
      this.#insert(ticket);
    }
    this.#handOut();
    return Promise.resolve();
  }

  start(concurrency: number, work: Work): void {
    this.#work = work;
    this.#free = concurrency;
    this.#handOut();
  }

  async stop(): Promise<void> {
    this.#work = undefined;
    if (this.#out > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
  }

  /** Behind those of the same turn. */
  #insert(ticket: Ticket): void {
    let [low, high] = [0, this.#waiting.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#waiting[middle] as Ticket).turn <= ticket.turn) low = middle + 1;
      else high = middle;
    }
    this.#waiting.splice(low, 0, ticket);
  }

  #handOut(): void {
    while (this.#work !== undefined && this.#free > 0) {
      const at = this.#waiting.findIndex(({ tenant }) => !this.#busy.has(tenant));
      const [ticket] = at < 0 ? [] : this.#waiting.splice(at, 1);
      if (ticket === undefined) return;
      this.#free--;
      this.#out++;
      void this.#work(ticket).then((result) => this.#over(ticket, result));
    }
  }

  #over(ticket: Ticket, result: Awaited<ReturnType<Work>>): void {
    this.#free++;
    this.#out--;
    const { tenant } = ticket;
    if (result === "busy") {
      this.#insert(ticket);
      this.#busy.add(tenant);
      setTimeout(() => (this.#busy.delete(tenant), this.#handOut()), BUSY_MS).unref();
    } else {
      this.#known.delete(keyOf(ticket));
      this.#busy.delete(tenant);
    }
    this.#handOut();
    if (this.#work === undefined && this.#out === 0) this.#idle?.();
  }
}
