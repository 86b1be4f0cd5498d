/**
 * Jobs in the database: what is true of them, and every step from one state to the next.
 *
 * The rule: a step is one statement with the state that it expects as a condition, so of any number of nodes one makes it
 * (or one transaction around such). A job's attempt belongs to the node that claimed it, until that node ends it or has
 * not been seen for so long that it counts as dead; what it does after that counts for nothing. The attempt is counted
 * before it begins: a job that kills its node cannot do so more often than it was given attempts.
 *
 *   queued --claim--> running --finish--> done | failed | cancelled --expire--> (gone)
 *     ^  \--cancel-->            |                        |
 *     \----- put back, retry ----/<------- again ---------/
 *
 * Fair: a tenant's next job has the turn after its last one in line, but never one before the front of the line. A tenant
 * with ten thousand jobs and one with a single job then take turns. A job comes into line when it is due, not before: one
 * that is to begin in a month would hold the front where it was, and all who come would be put before those who wait.
 */
import { first, type Database, type Queries, type Value } from "../database.js";
import type { ProblemDocument } from "../problems.js";
import { lockTenant } from "../tenants.js";
import { JOB_STATES, type Job, type JobRequest, type JobState } from "./schemas.js";
import type { Ticket } from "./queue.js";

export interface JobRow {
  id: string;
  tenant: string;
  key: string;
  batch: string | null;
  schedule: string | null;
  request_json: string;
  state: JobState;
  turn: number;
  due_ms: number;
  attempt: number;
  max_attempts: number;
  node: string | null;
  cancelled: number;
  outcome_json: string | null;
  problem_json: string | null;
  created_ms: number;
  started_ms: number | null;
  ended_ms: number | null;
  expires_ms: number | null;
  /** When it has failed if it could not begin by then. */
  give_up_ms: number;
}
type OfferedRow = Pick<JobRow, "id" | "attempt" | "tenant" | "turn">;
/** As they are looked at: a list leaves outcomes out. */
type LookedAt = Omit<JobRow, "outcome_json" | "request_json" | "node" | "cancelled" | "give_up_ms"> & {
  outcome_json?: string | null;
} & DeliveryRow;
interface DeliveryRow {
  callback_state: "pending" | "delivered" | "failed" | null;
  callback_attempt: number;
  callback_detail: string | null;
}

export interface NewJob {
  id: string;
  tenant: string;
  /** The API key or the schedule's that it is for. */
  key: string;
  request: JobRequest;
  /** The same, as JSON. */
  text: string;
  batch?: string;
  schedule?: string;
}

/** How a job's attempt ended for good. */
export interface End {
  state: "done" | "failed" | "cancelled";
  /** JSON. */
  outcome?: string;
  problem?: ProblemDocument;
  /** Of the kept events. */
  eventBytes: number;
}

/** A node that has not been seen for so long is dead, ms. Clocks of nodes must agree far better than that. */
export const DEAD_MS = 20_000;
/** A job that could not begin for so long, for whatever is full or used up, has failed, ms. */
const GIVE_UP_MS = 7 * 86_400_000;
/** A queue that was told of a job is told again after so long, ms. */
const OFFER_AGAIN_MS = 30_000;
const OFFERS = 500;
/** Those that are due, and of which a queue was told. Just so in the indices, or they are not used. */
const IN_LINE = "state = 'queued' AND offered_ms > 0";
/** Results that are forgotten in one step, and how long those are kept on whose callback is pending, ms. */
const FORGOTTEN = 200;
const KEPT_ON_MS = 5000;

const LIST = `j.id, j.tenant, j.key, j.batch, j.schedule, j.state, j.turn, j.due_ms, j.attempt, j.max_attempts, j.problem_json,
  j.created_ms, j.started_ms, j.ended_ms, j.expires_ms,
  d.state AS callback_state, d.attempt AS callback_attempt, d.detail AS callback_detail`;
const FROM = "FROM jobs AS j LEFT JOIN deliveries AS d ON d.job = j.id";

export class JobTable {
  readonly #db: Database;
  readonly #now: () => number;

  constructor(db: Database, now: () => number) {
    this.#db = db;
    this.#now = now;
  }

  // -- nodes ------------------------------------------------------------------------------------------------------------

  /** False: it had been taken for dead, and is there anew. */
  async seen(node: string, name: string): Promise<boolean> {
    const known = await this.#db.run("UPDATE nodes SET seen_ms = ? WHERE id = ?", this.#now(), node);
    if (known === 0)
      await this.#db.run("INSERT INTO nodes (id, name, seen_ms) VALUES (?, ?, ?)", node, name, this.#now());
    return known > 0;
  }

  async leave(node: string): Promise<void> {
    await this.#db.run("DELETE FROM nodes WHERE id = ?", node);
  }

  /** Where no other node can be: whoever is in the table is of an earlier process. */
  async alone(node: string): Promise<void> {
    await this.#db.run("DELETE FROM nodes WHERE id <> ?", node);
    await this.#db.run("UPDATE jobs SET offered_ms = 0 WHERE state = 'queued'");
  }

  /** Jobs that run on no living node, or on this one, as the table says, and not among those that it has under way. */
  async lost(node: string, underWay: ReadonlyMap<string, unknown>): Promise<JobRow[]> {
    // Never itself, though it may have slept since it was seen: what it has under way is under way.
    await this.#db.run("DELETE FROM nodes WHERE seen_ms < ? AND id <> ?", this.#now() - DEAD_MS, node);
    const own = await this.#db.all<{ id: string }>("SELECT id FROM jobs WHERE state = 'running' AND node = ?", node); // prettier-ignore
    const dropped = own.filter(({ id }) => !underWay.has(id)).slice(0, 100);
    const rows = await this.#db.all<JobRow>("SELECT * FROM jobs WHERE state = 'running' AND node NOT IN (SELECT id FROM nodes) LIMIT 100"); // prettier-ignore
    for (const { id } of dropped)
      rows.push(...(await this.#db.all<JobRow>("SELECT * FROM jobs WHERE id = ? AND state = 'running' AND node = ?", id, node))); // prettier-ignore
    return rows;
  }

  // -- to begin ---------------------------------------------------------------------------------------------------------

  /** How many of the tenant's jobs wait. */
  async waiting(queries: Queries, tenant: string): Promise<number> {
    const row = await first<{ count: number }>(queries, "SELECT count(*) AS count FROM jobs WHERE tenant = ? AND state = 'queued'", tenant); // prettier-ignore
    return row?.count ?? 0;
  }

  async insert(queries: Queries, jobs: readonly NewJob[]): Promise<Ticket[]> {
    const now = this.#now();
    const tickets: Ticket[] = [];
    const turns = new Map<string, number>();
    for (const { id, tenant, key, request, text, batch, schedule } of jobs) {
      const due = now + request.delayMs;
      const line = `${tenant} ${due <= now}`; // of those that are due later it is their order among themselves
      const turn = turns.get(line) ?? (due <= now ? await this.#turn(queries, tenant) : 0);
      turns.set(line, turn + 1);
      await queries.run(
        `INSERT INTO jobs (id, tenant, key, batch, schedule, request_json, state, turn, due_ms, offered_ms, attempt,
            max_attempts, cancelled, bytes, created_ms, give_up_ms)
          VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?, 0, ?, 0, ?, ?, ?)`,
        id,
        tenant,
        key,
        batch ?? null,
        schedule ?? null,
        text,
        turn,
        due,
        due <= now ? now : 0,
        request.retry.attempts,
        Buffer.byteLength(text),
        now,
        due + GIVE_UP_MS,
      );
      if (due <= now) tickets.push({ job: id, attempt: 0, tenant, turn });
    }
    return tickets;
  }

  async #turn(queries: Queries, tenant: string): Promise<number> {
    const row = await first<{ own: number | null; front: number | null }>(
      queries,
      `SELECT (SELECT max(turn) FROM jobs WHERE tenant = ? AND ${IN_LINE}) AS own,
        (SELECT min(turn) FROM jobs WHERE ${IN_LINE}) AS front`,
      tenant,
    );
    return Math.max((row?.own ?? -1) + 1, row?.front ?? 0);
  }

  /** Those that are due and not in line, now in line; `again`: also those of which a queue was told a while ago. */
  async offer(again: boolean): Promise<Ticket[]> {
    const now = this.#now();
    const rows = await this.#db.all<OfferedRow>(
      `WITH due AS (SELECT id, tenant, due_ms, turn FROM jobs
          WHERE state = 'queued' AND offered_ms = 0 AND due_ms <= ? ORDER BY due_ms LIMIT ${OFFERS}),
        placed AS (SELECT id, row_number() OVER (PARTITION BY tenant ORDER BY due_ms, turn) - 1 AS place,
          coalesce((SELECT max(turn) + 1 FROM jobs WHERE tenant = due.tenant AND ${IN_LINE}), 0) AS own,
          coalesce((SELECT min(turn) FROM jobs WHERE ${IN_LINE}), 0) AS front FROM due)
        UPDATE jobs SET offered_ms = ?, turn = place + CASE WHEN own > front THEN own ELSE front END
          FROM placed WHERE jobs.id = placed.id AND state = 'queued' AND offered_ms = 0
        RETURNING jobs.id, attempt, tenant, turn`,
      now,
      now,
    );
    if (again)
      rows.push(
        ...(await this.#db.all<OfferedRow>(
          `UPDATE jobs SET offered_ms = ? WHERE ${IN_LINE} AND id IN (
            SELECT id FROM jobs WHERE ${IN_LINE} AND offered_ms <= ? ORDER BY offered_ms LIMIT ${OFFERS})
          RETURNING id, attempt, tenant, turn`,
          now,
          now - OFFER_AGAIN_MS,
        )),
      );
    return rows.map(({ id, attempt, tenant, turn }) => ({ job: id, attempt, tenant, turn }));
  }

  /** The queue could not be told of these, or has lost them: those that wait are offered again. */
  async unoffered(jobs: readonly string[]): Promise<void> {
    for (const id of jobs)
      await this.#db.run("UPDATE jobs SET offered_ms = 0 WHERE id = ? AND state = 'queued'", id);
  }

  /** The job, now running here, unless it waits no more, is not due by this clock, or this node was taken for dead. */
  claim({ job, attempt }: Ticket, node: string): Promise<JobRow | undefined> {
    const now = this.#now();
    return first<JobRow>(
      this.#db,
      `UPDATE jobs SET state = 'running', node = ?, attempt = attempt + 1, started_ms = ?, problem_json = NULL
        WHERE id = ? AND state = 'queued' AND attempt = ? AND due_ms <= ? AND EXISTS (SELECT 1 FROM nodes WHERE id = ?)
        RETURNING *`,
      node,
      now,
      job,
      attempt,
      now,
      node,
    );
  }

  // -- to end -----------------------------------------------------------------------------------------------------------

  /**
   * Back in line, not before `dueMs`. `begun`: whether the attempt counts. False if it was not this attempt's to say any
   * more.
   */
  async putBack(
    { id, node, attempt, request_json, give_up_ms }: JobRow,
    { dueMs, begun, problem, outcome, eventBytes }: { dueMs: number; begun: boolean; problem?: ProblemDocument; outcome?: string; eventBytes: number }, // prettier-ignore
  ): Promise<boolean> {
    const changed = await this.#db.run(
      `UPDATE jobs SET state = 'queued', node = NULL, attempt = ?, due_ms = ?, offered_ms = 0, problem_json = ?, outcome_json = ?,
          bytes = ?, give_up_ms = ?
        WHERE id = ? AND state = 'running' AND node = ? AND attempt = ? AND cancelled = 0`,
      begun ? attempt : attempt - 1,
      dueMs,
      problem === undefined ? null : JSON.stringify(problem),
      outcome ?? null,
      Buffer.byteLength(request_json) + Buffer.byteLength(outcome ?? "") + eventBytes,
      begun ? dueMs + GIVE_UP_MS : give_up_ms,
      id,
      node,
      attempt,
    );
    return changed > 0;
  }

  /** The end, with its callback in the same transaction. False as above. */
  finish({ id, tenant, node, attempt, request_json }: JobRow, end: End): Promise<boolean> {
    const { keepS, callback } = JSON.parse(request_json) as JobRequest;
    return this.#db.transaction(async (queries) => {
      const changed = await queries.run(
        `UPDATE jobs SET state = ?, node = NULL, outcome_json = ?, problem_json = ?, ended_ms = ?, expires_ms = ?, bytes = ?
          WHERE id = ? AND state = 'running' AND node = ? AND attempt = ?`,
        end.state,
        end.outcome ?? null,
        end.problem === undefined ? null : JSON.stringify(end.problem),
        ...this.#times(keepS),
        Buffer.byteLength(request_json) + Buffer.byteLength(end.outcome ?? "") + end.eventBytes,
        id,
        node,
        attempt,
      );
      if (changed > 0) await this.#deliver(queries, { id, tenant }, end.state, callback);
      return changed > 0;
    });
  }

  #times(keepS: number): [number, number] {
    const now = this.#now();
    return [now, now + keepS * 1000];
  }

  async #deliver(
    queries: Queries,
    { id, tenant }: { id: string; tenant: string },
    state: End["state"],
    callback: JobRequest["callback"],
  ): Promise<void> {
    if (callback?.on.includes(state) !== true) return;
    await queries.run(
      `INSERT INTO deliveries (job, tenant, state, attempt, due_ms) VALUES (?, ?, 'pending', 0, ?)
        ON CONFLICT (job) DO UPDATE SET state = 'pending', attempt = 0, due_ms = excluded.due_ms, detail = NULL`,
      id,
      tenant,
      this.#now(),
    );
  }

  /** One that waits ends at once; of one that runs its node hears. Undefined: there is none of the tenant's. */
  async cancel(tenant: string, id: string): Promise<"cancelled" | "told" | "ended" | undefined> {
    const job = await this.row(tenant, id);
    if (job === undefined) return undefined;
    const { keepS, callback } = JSON.parse(job.request_json) as JobRequest;
    const ended = await this.#db.transaction(async (queries) => {
      const changed = await queries.run(
        "UPDATE jobs SET state = 'cancelled', ended_ms = ?, expires_ms = ? WHERE id = ? AND state = 'queued'",
        ...this.#times(keepS),
        id,
      );
      if (changed > 0) await this.#deliver(queries, job, "cancelled", callback);
      return changed > 0;
    });
    if (ended) return "cancelled";
    const told = await this.#db.run("UPDATE jobs SET cancelled = 1 WHERE id = ? AND state = 'running'", id);
    return told > 0 ? "told" : "ended";
  }

  /** Of this node's running jobs those that somebody cancelled. */
  async cancelled(node: string): Promise<string[]> {
    const rows = await this.#db.all<{ id: string }>("SELECT id FROM jobs WHERE state = 'running' AND node = ? AND cancelled = 1", node); // prettier-ignore
    return rows.map(({ id }) => id);
  }

  /**
   * A job that failed or was cancelled once more, with as many attempts as it was declared with, unless `most` of the
   * tenant's wait.
   */
  async again(tenant: string, id: string, most: number): Promise<"queued" | "full" | "no such job"> {
    const row = await this.row(tenant, id);
    if (row === undefined) return "no such job";
    const { retry } = JSON.parse(row.request_json) as JobRequest;
    const now = this.#now();
    return this.#db.transaction(async (queries) => {
      await lockTenant(queries, tenant);
      if ((await this.waiting(queries, tenant)) >= most) return "full";
      const changed = await queries.run(
        `UPDATE jobs SET state = 'queued', cancelled = 0, due_ms = ?, offered_ms = 0, ended_ms = NULL, expires_ms = NULL,
            max_attempts = attempt + ?, give_up_ms = ?
          WHERE tenant = ? AND id = ? AND state IN ('failed', 'cancelled')`,
        now,
        retry.attempts,
        now + GIVE_UP_MS,
        tenant,
        id,
      );
      // A callback that has not left yet would tell of an end that is none any more.
      if (changed > 0) await queries.run("DELETE FROM deliveries WHERE job = ?", id);
      return changed > 0 ? "queued" : "no such job";
    });
  }

  async remove(tenant: string, id: string): Promise<boolean> {
    const removed = await this.#db.run(
      "DELETE FROM jobs WHERE tenant = ? AND id = ? AND state IN ('done', 'failed', 'cancelled')",
      tenant,
      id,
    );
    return removed > 0;
  }

  async removeExpired(): Promise<void> {
    const now = this.#now();
    const expired = `SELECT id FROM jobs WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ${FORGOTTEN}`;
    const pending = "(SELECT 1 FROM deliveries WHERE job = jobs.id AND state = 'pending')";
    for (let removed = FORGOTTEN; removed === FORGOTTEN;) {
      // One whose callback is still to be sent stays until that is over, and is out of the way until then.
      await this.#db.run(`UPDATE jobs SET expires_ms = ? WHERE id IN (${expired}) AND EXISTS ${pending}`, now + KEPT_ON_MS, now); // prettier-ignore
      removed = await this.#db.run(
        `DELETE FROM jobs WHERE id IN (${expired}) AND NOT EXISTS ${pending}`,
        now,
      );
    }
  }

  // -- to look at -------------------------------------------------------------------------------------------------------

  row(tenant: string, id: string): Promise<JobRow | undefined> {
    return first<JobRow>(this.#db, "SELECT * FROM jobs WHERE tenant = ? AND id = ?", tenant, id);
  }

  async get(tenant: string, id: string): Promise<Job | undefined> {
    const row = await first<LookedAt>(this.#db, `SELECT ${LIST}, j.outcome_json ${FROM} WHERE j.tenant = ? AND j.id = ?`, tenant, id); // prettier-ignore
    return row && jobOf(row);
  }

  /**
   * By time of acceptance, the newest first, without outcomes. `before` is the `next` of the page before, which stays right
   * whatever is removed meanwhile.
   */
  async list(
    tenant: string,
    { state, batch, schedule, before, limit }: { state?: JobState | undefined; batch?: string | undefined; schedule?: string | undefined; before?: string | undefined; limit: number }, // prettier-ignore
  ): Promise<{ jobs: Job[]; next?: string }> {
    const where = ["j.tenant = ?"];
    const values: Value[] = [tenant];
    const also = (condition: string, ...more: Value[]) => (where.push(condition), values.push(...more));
    if (state !== undefined) also("j.state = ?", state);
    if (batch !== undefined) also("j.batch = ?", batch);
    if (schedule !== undefined) also("j.schedule = ?", schedule);
    const [, ms, id] = /^(\d+)_(.+)$/.exec(before ?? "") ?? [];
    if (ms !== undefined && id !== undefined)
      also("(j.created_ms < ? OR (j.created_ms = ? AND j.id < ?))", Number(ms), Number(ms), id);
    const rows = await this.#db.all<LookedAt>(
      `SELECT ${LIST} ${FROM} WHERE ${where.join(" AND ")} ORDER BY j.created_ms DESC, j.id DESC LIMIT ?`,
      ...values,
      limit + 1,
    );
    const last = rows.length > limit ? rows[limit - 1] : undefined;
    return {
      jobs: rows.slice(0, limit).map(jobOf),
      ...(last === undefined ? {} : { next: `${last.created_ms}_${last.id}` }),
    };
  }

  async queued(): Promise<number> {
    const row = await first<{ count: number }>(this.#db, "SELECT count(*) AS count FROM jobs WHERE state = 'queued'"); // prettier-ignore
    return row?.count ?? 0;
  }

  /** How many are in which state: of a batch, or of all tenants. */
  async counts(of?: { tenant: string; batch: string }): Promise<Record<JobState, number>> {
    const rows = await this.#db.all<{ state: JobState; count: number }>(
      `SELECT state, count(*) AS count FROM jobs ${of === undefined ? "" : "WHERE tenant = ? AND batch = ?"} GROUP BY state`,
      ...(of === undefined ? [] : [of.tenant, of.batch]),
    );
    const counts = Object.fromEntries(JOB_STATES.map((state) => [state, 0])) as Record<JobState, number>;
    for (const { state, count } of rows) counts[state] = count;
    return counts;
  }

  // -- events -----------------------------------------------------------------------------------------------------------

  /** Adds after those that are there; the caller is the job's node, so nobody else adds. */
  async addEvents(
    job: string,
    after: number,
    events: readonly { event: string; data: string }[],
  ): Promise<void> {
    await this.#db.transaction(async (queries) => {
      for (const [i, { event, data }] of events.entries())
        // Of a job that was removed meanwhile nothing is kept.
        await queries.run(
          "INSERT INTO job_events (job, seq, event, data) SELECT id, ?, ?, ? FROM jobs WHERE id = ? ON CONFLICT DO NOTHING",
          after + 1 + i,
          event,
          data,
          job,
        );
    });
  }

  events(job: string, after: number, limit: number): Promise<{ seq: number; event: string; data: string }[]> {
    return this.#db.all(
      "SELECT seq, event, data FROM job_events WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?",
      job,
      after,
      limit,
    );
  }

  /** What is kept of a job's events: how many, and UTF-16 units at most. */
  async eventsKept(job: string): Promise<{ count: number; units: number }> {
    const row = await first<{ count: number; units: number | null }>(this.#db, "SELECT count(*) AS count, sum(length(data)) AS units FROM job_events WHERE job = ?", job); // prettier-ignore
    return { count: row?.count ?? 0, units: row?.units ?? 0 };
  }
}

/** A row as clients see it. Outcome and problem are JSON of ours. */
function jobOf(row: LookedAt): Job {
  const { outcome_json = null, problem_json, callback_state } = row;
  return {
    id: row.id,
    state: row.state,
    ...(row.batch === null ? {} : { batch: row.batch }),
    ...(row.schedule === null ? {} : { schedule: row.schedule }),
    createdMs: row.created_ms,
    dueMs: row.due_ms,
    ...(row.started_ms === null ? {} : { startedMs: row.started_ms }),
    ...(row.ended_ms === null ? {} : { endedMs: row.ended_ms }),
    ...(row.expires_ms === null ? {} : { expiresMs: row.expires_ms }),
    attempt: row.attempt,
    attempts: row.max_attempts,
    ...(outcome_json === null ? {} : { outcome: JSON.parse(outcome_json) as NonNullable<Job["outcome"]> }),
    ...(problem_json === null ? {} : { problem: JSON.parse(problem_json) as NonNullable<Job["problem"]> }),
    ...(callback_state === null
      ? {}
      : {
          callback: {
            state: callback_state,
            attempts: row.callback_attempt,
            ...(row.callback_detail === null ? {} : { detail: row.callback_detail }),
          },
        }),
  };
}
