/**
 * Durable jobs: accepted, run once or as often as declared, told of, forgotten after a time.
 *
 * The rule: accepted means written to the disk. From then on a job ends in one of three ways, whatever dies meanwhile,
 * and only the table (table.ts) says in which. An attempt whose node died may have run: it is tried again where the job
 * was declared with attempts left, else the job has failed, and says so.
 */
import { randomUUID } from "node:crypto";
import type { FastifyBaseLogger } from "fastify";
import type { Outcome } from "../../outcome.js";
import { Shares } from "../../shares.js";
import { jsonable, jsonText, plainOutcome } from "../../show.js";
import { AuditError } from "../audit-directory.js";
import type { AuditLog } from "../audit-log.js";
import type { Database, Queries } from "../database.js";
import type { Metrics } from "../metrics.js";
import { badFields, Problem, type FieldError, type ProblemCode } from "../problems.js";
import { asProblem, type Runner } from "../runner.js";
import { lockTenant, storedBytes, type Tenant, type Tenants } from "../tenants.js";
import { secretsOf, signingKey, type Callbacks } from "./callbacks.js";
import { EventLog } from "./event-log.js";
import type { JobQueue, Ticket } from "./queue.js";
import { hasEnded, type Job, type JobRequest } from "./schemas.js";
import { Repeating } from "./repeating.js";
import type { End, JobRow, JobTable } from "./table.js";

export interface JobsParts {
  db: Database;
  table: JobTable;
  tenants: Tenants;
  runner: Runner;
  audit: AuditLog;
  metrics: Metrics;
  queue: JobQueue;
  callbacks: Callbacks;
  logger: FastifyBaseLogger;
  now: () => number;
  /** This process among those on the database, anew at each start; and its name for people. */
  node: string;
  nodeName: string;
  /** No other process can be on the database. */
  alone: boolean;
  /** Jobs under way at once here. */
  concurrency: number;
}

/** Jobs that wait, of all tenants. */
const MAX_QUEUED = 1_000_000;
/** Looking after what is due, lost, cancelled elsewhere or over, ms. */
const TICK_MS = 500;
const COUNT_EVERY = 20;
/** For the database or the audit log to come back when an end is to be written, ms. Other nodes take this one for dead by then. */
const WRITE_MS = 60_000;
/** How long a node whose audit log took no line leaves jobs to others, ms. */
const UNWRITABLE_MS = 5000;
/** For news of a job that may run elsewhere; where it cannot, news is told, ms. */
const LOOK_MS = 500;
const LOOK_ALONE_MS = 5000;

/** Requests of one tenant that wait for news at once: where jobs run elsewhere each asks the database again and again. */
const MAX_LISTENING = 1000;

/** What keeps a job from beginning now, and not for good: it goes back in line, and its attempt is not counted. */
const LATER: ReadonlySet<ProblemCode> = new Set<ProblemCode>([
  "tenant-busy",
  "quota-exceeded",
  "storage-full",
  "rate-limited",
  "overloaded",
  "draining",
  "host-cannot",
]);

/** Why a job under way is ended. */
const CANCELLED = "cancelled";
const LOST = "lost";

export interface JobEvent {
  id: string;
  /** log, event, attempt; full: of those that follow none is kept; job: the last one. */
  event: string;
  /** JSON. */
  data: string;
}

interface Listener {
  /** Resolves when there was news since the last time, or after so long, or when its request is over. */
  news(ms: number): Promise<void>;
  /** Idempotent. */
  leave(): void;
}

export class Jobs {
  readonly #parts: JobsParts;
  /** Those under way here. Aborted with the reason why. */
  readonly #running = new Map<string, AbortController>();
  /** How many of each tenant's. */
  readonly #held = new Shares();
  #unwritableUntil = 0;
  /** Who waits for news of a job. */
  readonly #waiting = new Map<string, Set<() => void>>();
  /** How many of each tenant's requests do. */
  readonly #listening = new Shares();
  readonly #look: Repeating;
  /** Of all tenants, when last counted. */
  #queued = 0;
  #ticks = 0;
  #closing = false;

  constructor(parts: JobsParts) {
    this.#parts = parts;
    this.#look = new Repeating(TICK_MS, () => this.#tick());
  }

  /** Looks for what an earlier process left, then takes jobs. */
  async start(): Promise<void> {
    const { table, node, nodeName, alone, queue, concurrency } = this.#parts;
    await table.seen(node, nodeName);
    if (alone) await table.alone(node);
    queue.start(concurrency, (ticket) => this.#work(ticket));
    this.#look.wake();
  }

  /** Takes no more. Resolves when those under way are over: the runner's drain ends them. */
  async stop(): Promise<void> {
    const { queue, table, node, logger } = this.#parts;
    await queue.stop();
    this.#closing = true;
    await this.#look.stop();
    for (const id of this.#waiting.keys()) this.#changed(id);
    // Where that cannot be written, others find out by its silence.
    await table
      .leave(node)
      .catch((err: unknown) => logger.warn({ err }, "the node could not say that it leaves"));
  }

  // -- to accept --------------------------------------------------------------------------------------------------------

  /**
   * Takes all of them or none, within a transaction of the caller's, who has checked them. `offer` is for after it: it
   * tells the queue. Throws Problem `tenant-busy`, `overloaded` or `storage-full`.
   */
  async accept(
    queries: Queries,
    tenant: Tenant,
    { key, requests, ...origin }: { key: string; requests: readonly JobRequest[]; batch?: string; schedule?: string }, // prettier-ignore
  ): Promise<{ ids: string[]; offer: () => Promise<void> }> {
    const { table, audit } = this.#parts;
    const { queuedJobs, storageBytes } = tenant.settings.quotas;
    await lockTenant(queries, tenant.id);
    const waiting = await table.waiting(queries, tenant.id);
    if (waiting + requests.length > queuedJobs)
      throw new Problem("tenant-busy", `${waiting} jobs wait, and the tenant may have ${queuedJobs}`, { retryAfterS: 5 }); // prettier-ignore
    if (this.#queued + requests.length > MAX_QUEUED)
      throw new Problem("overloaded", "as many jobs are waiting as this service lets wait", { retryAfterS: 30 }); // prettier-ignore
    const texts = requests.map((request) => JSON.stringify(request));
    const bytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
    if ((await storedBytes(queries, tenant.id)) + bytes > storageBytes)
      throw new Problem("storage-full", `the tenant may store ${storageBytes} bytes`);
    const jobs = requests.map((request, i) => ({
      id: randomUUID(),
      tenant: tenant.id,
      key,
      request,
      text: texts[i] ?? "",
      ...origin,
    }));
    for (const { id } of jobs)
      audit.append({ kind: "job", act: "submitted", job: id, tenant: tenant.id, by: origin.schedule ?? key });
    const tickets = await table.insert(queries, jobs);
    this.#queued += jobs.length;
    return { ids: jobs.map(({ id }) => id), offer: () => this.#offer(tickets) };
  }

  /**
   * What can be known to be wrong before a job is due. `fields` says what a job is called in the request: "jobs[3].".
   * Throws Problem naming the fields.
   */
  async check(
    tenant: Tenant,
    requests: readonly JobRequest[],
    fields: (index: number) => string,
  ): Promise<void> {
    const { runner, callbacks, tenants } = this.#parts;
    const errors: FieldError[] = [];
    const calls = requests.some(({ callback }) => callback !== undefined);
    const stored = calls ? await tenants.secrets(tenant.id) : {};
    for (const [i, request] of requests.entries()) {
      const wrong = (field: string, message: string) =>
        errors.push({ field: `${fields(i)}${field}`, message });
      try {
        runner.check(tenant, request);
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        for (const { field, message } of error.more.errors ?? []) wrong(field, message);
      }
      const { callback } = request;
      if (callback === undefined) continue;
      const refusal = callbacks.refusal(tenant, callback.url);
      if (refusal !== undefined) wrong("callback.url", refusal);
      for (const name of secretsOf(callback)) {
        const secret = Object.hasOwn(stored, name) ? stored[name] : undefined;
        if (secret === undefined) wrong("callback.secret", `there is no stored secret ${name}`);
        else if (signingKey(secret) === undefined)
          wrong("callback.secret", `${name} is no key: it must be whsec_ and 24 bytes or more as base64, or a text of 16 characters or more`); // prettier-ignore
      }
    }
    if (errors.length > 0) throw badFields(errors.slice(0, 100), { code: "forbidden" });
  }

  /** An accepted job waits in any case; a queue that is gone hears of it later. */
  async #offer(tickets: readonly Ticket[]): Promise<void> {
    if (tickets.length === 0) return;
    const { queue, table, logger } = this.#parts;
    try {
      await queue.add(tickets);
    } catch (err) {
      logger.warn({ err }, "the queue cannot be reached; jobs wait in the store");
      await table.unoffered(tickets.map(({ job }) => job));
    }
  }

  // -- to run -----------------------------------------------------------------------------------------------------------

  async #work(ticket: Ticket): Promise<"over" | "busy"> {
    const { tenants, runner, table, audit, node, now, logger } = this.#parts;
    const abort = new AbortController();
    let row: JobRow | undefined;
    try {
      const tenant = await tenants.get(ticket.tenant);
      const free = this.#parts.concurrency - this.#running.size;
      if (!runner.hasRoom(tenant) || !this.#held.mayHoldOneMore(tenant.id, free)) return "busy";
      if (audit.failure !== undefined || now() < this.#unwritableUntil) return "busy";
      if (this.#running.has(ticket.job)) return "over"; // a queue may hand it out twice
      this.#hold(ticket, abort); // before it is claimed: what is claimed and not here counts as lost
      row = await table.claim(ticket, node);
      if (row !== undefined) await this.#attempt(tenant, row, abort.signal);
      else await table.unoffered([ticket.job]); // if it waits all the same: by another clock it is due, say
    } catch (err) {
      // The tenant is gone with its jobs, or the database or the audit log is: what was claimed is found lost.
      if (!(err instanceof Problem)) logger.error({ err, job: ticket.job }, "a job could not be worked on");
      else if (err.code === "not-found") return "over";
      if (row === undefined) return "busy"; // it may wait still, and nobody else would come back to it
    } finally {
      if (this.#running.get(ticket.job) === abort) this.#release(ticket);
      this.#changed(ticket.job);
    }
    return "over";
  }

  #hold({ job, tenant }: Ticket, abort: AbortController): void {
    this.#running.set(job, abort);
    this.#held.add(tenant);
  }

  #release({ job, tenant }: Ticket): void {
    this.#running.delete(job);
    this.#held.giveBack(tenant);
  }

  async #attempt(tenant: Tenant, row: JobRow, signal: AbortSignal): Promise<void> {
    const { db, runner, table, audit, now } = this.#parts;
    const request = JSON.parse(row.request_json) as JobRequest;
    const run = randomUUID();
    const events = new EventLog(row, table, () => this.#changed(row.id));
    let outcome: Outcome;
    try {
      const { storageBytes } = tenant.settings.quotas;
      // What it returns is not known before. So it begins while there is room, and those that end beyond it are the last.
      if ((await storedBytes(db, tenant.id)) > storageBytes)
        throw new Problem("storage-full", `the tenant may store ${storageBytes} bytes`, { retryAfterS: 60 });
      await events.open();
      audit.append({
        kind: "job",
        act: "started",
        job: row.id,
        tenant: tenant.id,
        run,
        attempt: row.attempt,
      });
      events.push("attempt", { attempt: row.attempt, run });
      outcome = await runner.run(tenant, request, {
        id: run,
        key: row.key,
        job: row.id,
        signal,
        onLog: (entry) => events.push("log", entry),
        onEvent: ({ name, data, seq }) => events.push("event", { name, data: jsonable(data), seq }),
      });
    } catch (error) {
      const problem = asProblem(error);
      if (problem.more.cause instanceof AuditError) this.#unwritableUntil = now() + UNWRITABLE_MS;
      await this.#refused(row, problem, await events.close());
      return;
    }
    const eventBytes = await events.close();
    const json = jsonText(plainOutcome(outcome));
    const { retry } = request;
    if (outcome.status === "ok") await this.#end(row, { state: "done", outcome: json, eventBytes });
    else if (outcome.status === "cancelled") {
      if (signal.reason === CANCELLED)
        await this.#end(row, { state: "cancelled", outcome: json, eventBytes });
      else await this.#lost(row, eventBytes); // the node ends, or was taken for dead
    } else if (row.attempt < row.max_attempts && retry.on.includes(outcome.status))
      await this.#retry(row, { begun: true, dueMs: now() + backoff(row, retry.backoffMs), outcome: json }, eventBytes); // prettier-ignore
    else await this.#end(row, { state: "failed", outcome: json, eventBytes });
  }

  /** Nothing has run. */
  async #refused(row: JobRow, problem: Problem, eventBytes: number): Promise<void> {
    const { now, logger } = this.#parts;
    if (problem.status >= 500 && problem.code !== "draining" && problem.code !== "overloaded")
      logger.error({ err: problem.more.cause ?? problem, code: problem.code, job: row.id }, "refused");
    const dueMs = now() + Math.max(TICK_MS, (problem.more.retryAfterS ?? 1) * 1000);
    if (LATER.has(problem.code) && dueMs < row.give_up_ms)
      await this.#retry(row, { begun: false, dueMs, problem: problem.document() }, eventBytes);
    else await this.#end(row, { state: "failed", problem: problem.document(), eventBytes });
  }

  /** An attempt that began, and nobody knows how far it came. */
  async #lost(row: JobRow, eventBytes: number, patienceMs = WRITE_MS): Promise<void> {
    const { retry } = JSON.parse(row.request_json) as JobRequest;
    const problem = new Problem("job-lost", "its node ended while it ran: it may have done a part or all").document(); // prettier-ignore
    if (row.cancelled > 0) await this.#end(row, { state: "cancelled", eventBytes }, patienceMs);
    else if (row.attempt < row.max_attempts && retry.on.includes("lost"))
      await this.#retry(row, { begun: true, dueMs: this.#parts.now() + backoff(row, retry.backoffMs), problem }, eventBytes, patienceMs); // prettier-ignore
    else await this.#end(row, { state: "failed", problem, eventBytes }, patienceMs);
  }

  async #retry(
    row: JobRow,
    back: Omit<Parameters<JobTable["putBack"]>[1], "eventBytes">,
    eventBytes: number,
    patienceMs = WRITE_MS,
  ): Promise<void> {
    const act = back.begun ? "failed" : undefined;
    const put = () => this.#parts.table.putBack(row, { ...back, eventBytes });
    if (await this.#written(row, act, put, patienceMs)) return;
    // Somebody cancelled it, or it is another node's by now.
    await this.#end(row, { state: "cancelled", eventBytes }, patienceMs);
  }

  async #end(row: JobRow, end: End, patienceMs = WRITE_MS): Promise<void> {
    const { table, metrics, callbacks } = this.#parts;
    const act = end.state === "done" ? "finished" : end.state === "cancelled" ? "cancelled" : "given-up";
    if (!(await this.#written(row, act, () => table.finish(row, end), patienceMs))) return;
    metrics.job(end.state);
    callbacks.wake();
  }

  /**
   * Once the audit log has the line, tries until the database takes it: what a script did is not done again for a hiccup of
   * the network, or of a disk.
   */
  async #written(
    { id, tenant, attempt }: JobRow,
    act: "finished" | "cancelled" | "given-up" | "failed" | undefined,
    write: () => Promise<boolean>,
    patienceMs: number,
  ): Promise<boolean> {
    const { audit, now, logger } = this.#parts;
    const until = now() + patienceMs;
    let isTold = act === undefined;
    for (let wait = 50; ; wait = Math.min(wait * 2, 5000)) {
      try {
        if (!isTold && act !== undefined) audit.append({ kind: "job", act, job: id, tenant, attempt });
        isTold = true;
        return await write();
      } catch (error) {
        if (now() + wait > until) throw error;
        logger.warn({ err: error }, "a job's end could not be written; trying again");
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
    }
  }

  // -- to look after ----------------------------------------------------------------------------------------------------

  async #tick(): Promise<void> {
    const { table, node, nodeName, logger } = this.#parts;
    try {
      // Taken for dead: what runs here is another node's by now, or will be.
      if (!(await table.seen(node, nodeName))) for (const abort of this.#running.values()) abort.abort(LOST);
      for (const id of await table.cancelled(node)) this.#running.get(id)?.abort(CANCELLED);
      for (const row of await table.lost(node, this.#running)) {
        await this.#lost(row, (await table.eventsKept(row.id)).units, 0); // at the next look, else: this one is not to last
        this.#changed(row.id);
      }
      if (!this.#closing) await this.#offer(await table.offer(!this.#parts.alone));
      await table.removeExpired();
      if (this.#ticks++ % COUNT_EVERY === 0) this.#queued = await table.queued();
    } catch (err) {
      logger.error({ err }, "jobs could not be looked after");
    }
  }

  // -- to ask -----------------------------------------------------------------------------------------------------------

  /** Throws Problem `not-found`. */
  async get(tenant: string, id: string): Promise<Job> {
    const job = await this.#parts.table.get(tenant, id);
    if (job === undefined) throw noJob();
    return job;
  }

  /** The job when it has ended, or as it is after so long, or when `gone` aborts. Throws Problem `not-found`, `tenant-busy`. */
  async wait(tenant: string, id: string, ms: number, gone: AbortSignal): Promise<Job> {
    if (ms === 0) return this.get(tenant, id);
    const end = Date.now() + ms;
    const listener = this.#listen(tenant, id, gone);
    try {
      for (;;) {
        const job = await this.get(tenant, id);
        const left = end - Date.now();
        if (hasEnded(job) || left <= 0 || gone.aborted || this.#closing) return job;
        await listener.news(Math.min(left, this.#lookMs));
      }
    } finally {
      listener.leave();
    }
  }

  async cancel(tenant: string, id: string, by: string): Promise<Job> {
    const { table, audit, metrics, callbacks } = this.#parts;
    await this.get(tenant, id);
    audit.append({ kind: "job", act: "cancelled", job: id, tenant, by });
    const result = await table.cancel(tenant, id);
    if (result === undefined) throw noJob();
    if (result === "cancelled") {
      metrics.job("cancelled");
      callbacks.wake();
    }
    this.#running.get(id)?.abort(CANCELLED);
    this.#changed(id);
    return this.get(tenant, id);
  }

  async again({ id: tenant, settings }: Tenant, id: string, by: string): Promise<Job> {
    const { table, audit } = this.#parts;
    const { queuedJobs } = settings.quotas;
    const { state } = await this.get(tenant, id);
    audit.append({ kind: "job", act: "submitted", job: id, tenant, by });
    const result = await table.again(tenant, id, queuedJobs);
    if (result === "full")
      throw new Problem("tenant-busy", `the tenant may have ${queuedJobs} jobs that wait`, {
        retryAfterS: 5,
      });
    if (result === "no such job")
      throw new Problem(
        "conflict",
        `the job is ${state}: only one that failed or was cancelled is run again`,
      );
    await this.#offer(await table.offer(false));
    return this.get(tenant, id);
  }

  async remove(tenant: string, id: string): Promise<void> {
    const { state } = await this.get(tenant, id);
    if (!(await this.#parts.table.remove(tenant, id)))
      throw new Problem("conflict", `the job is ${state}: cancel it first`);
  }

  /** What its runs tell after the event of that number, and at the end the job itself. Throws as `wait` does, at once. */
  events(tenant: string, id: string, after: number, gone: AbortSignal): AsyncGenerator<JobEvent> {
    const listener = this.#listen(tenant, id, gone);
    // A generator that nobody begins has no end: who went away by then is not waited for.
    gone.addEventListener("abort", () => listener.leave(), { once: true });
    if (gone.aborted) listener.leave();
    return this.#events(tenant, id, { after, gone, listener });
  }

  async *#events(
    tenant: string,
    id: string,
    { after, gone, listener }: { after: number; gone: AbortSignal; listener: Listener },
  ): AsyncGenerator<JobEvent> {
    try {
      for (let seq = after; ;) {
        const job = await this.get(tenant, id); // before its events are read: the last ones are written before its end
        for (;;) {
          const page = await this.#parts.table.events(id, seq, 200);
          for (const { seq: number, event, data } of page) {
            if (gone.aborted) return;
            seq = number;
            yield { id: String(number), event, data };
          }
          if (page.length < 200) break;
        }
        if (gone.aborted || this.#closing) return;
        if (hasEnded(job)) {
          yield { id: String(seq), event: "job", data: jsonText(job) };
          return;
        }
        await listener.news(this.#lookMs);
      }
    } finally {
      listener.leave();
    }
  }

  get #lookMs(): number {
    return this.#parts.alone ? LOOK_ALONE_MS : LOOK_MS;
  }

  /** From now on listens, until it leaves. Throws Problem `tenant-busy`. */
  #listen(tenant: string, id: string, gone: AbortSignal): Listener {
    const count = this.#listening.of(tenant);
    if (count >= MAX_LISTENING)
      throw new Problem("tenant-busy", `${count} requests wait for news of jobs, as many as may`, { retryAfterS: 5 }); // prettier-ignore
    this.#listening.add(tenant);
    let heard = false;
    let wake = () => {};
    const hear = () => {
      heard = true;
      wake();
    };
    const own = this.#waiting.get(id) ?? new Set();
    this.#waiting.set(id, own.add(hear));
    gone.addEventListener("abort", hear, { once: true });
    return {
      news: async (ms) => {
        if (!heard && !gone.aborted)
          await new Promise<void>((resolve) => {
            const timer = setTimeout(resolve, ms);
            wake = () => {
              clearTimeout(timer);
              resolve();
            };
          });
        heard = false;
      },
      leave: () => {
        if (!own.delete(hear)) return;
        gone.removeEventListener("abort", hear);
        if (own.size === 0 && this.#waiting.get(id) === own) this.#waiting.delete(id);
        this.#listening.giveBack(tenant);
      },
    };
  }

  #changed(id: string): void {
    for (const wake of this.#waiting.get(id) ?? []) wake();
  }
}

const noJob = () => new Problem("not-found", "there is no such job, or its result is kept no longer");

/** Doubled for each attempt after the first, up to an hour. */
const backoff = ({ attempt }: JobRow, ms: number): number => Math.min(ms * 2 ** (attempt - 1), 3_600_000);
