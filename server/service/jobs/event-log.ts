/** What a job's runs log and tell, on its way to the table: in batches, bounded. Whoever listens reads it there, on any node. */
import { jsonText } from "../../show.js";
import type { JobRow, JobTable } from "./table.js";

/** Kept of one job's logs and events. It stops a script that fills the disk with what nobody reads. */
const MAX_EVENTS = 2000;
const MAX_EVENT_UNITS = 1024 * 1024;
const FLUSH_MS = 200;

export class EventLog {
  readonly #job: JobRow;
  readonly #table: JobTable;
  readonly #changed: () => void;
  #kept = 0;
  #units = 0;
  #full = false;
  #pending: { event: string; data: string }[] = [];
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> = Promise.resolve();

  constructor(job: JobRow, table: JobTable, changed: () => void) {
    this.#job = job;
    this.#table = table;
    this.#changed = changed;
  }

  async open(): Promise<void> {
    const { count, units } = await this.#table.eventsKept(this.#job.id);
    [this.#kept, this.#units] = [count, units];
  }

  push(event: string, value: unknown): void {
    if (this.#full) return;
    const data = jsonText(value);
    this.#full =
      this.#kept + this.#pending.length >= MAX_EVENTS || this.#units + data.length > MAX_EVENT_UNITS;
    this.#pending.push(this.#full ? { event: "full", data: "{}" } : { event, data });
    this.#units += data.length;
    this.#timer ??= setTimeout(() => this.#flush(), FLUSH_MS).unref();
  }

  #flush(): void {
    this.#timer = undefined;
    const events = this.#pending;
    if (events.length === 0) return;
    this.#pending = [];
    const after = this.#kept;
    this.#kept += events.length;
    this.#writing = this.#writing
      .then(() => this.#table.addEvents(this.#job.id, after, events))
      .then(this.#changed)
      .catch(() => {}); // what is lost here stands in the outcome
  }

  /** Bytes that are kept, about. */
  async close(): Promise<number> {
    clearTimeout(this.#timer);
    this.#flush();
    await this.#writing;
    return Math.min(this.#units, MAX_EVENT_UNITS);
  }
}
