/**
 * Schedules: jobs that begin by the clock (cron, in a time zone of the IANA database).
 *
 * The rule: the next time and the job of this time are written in one transaction, by a condition that one node meets, so
 * a time makes one job, whatever dies. Times that passed while nobody was there are made up for by one job, not by all.
 */
import { Cron } from "croner";
import type { FastifyBaseLogger } from "fastify";
import type { AuditLog } from "../audit-log.js";
import { first, type Database } from "../database.js";
import { badField, Problem } from "../problems.js";
import { lockTenant, storedBytes, type Tenant, type Tenants } from "../tenants.js";
import type { Jobs } from "./jobs.js";
import { Repeating } from "./repeating.js";
import type { Schedule, ScheduleEntry, ScheduleSettings } from "./schemas.js";
import type { JobTable } from "./table.js";

export interface SchedulesParts {
  db: Database;
  tenants: Tenants;
  table: JobTable;
  jobs: Jobs;
  audit: AuditLog;
  logger: FastifyBaseLogger;
  now: () => number;
}

interface ScheduleRow {
  tenant: string;
  name: string;
  key: string;
  /** All but the job. */
  settings_json: string;
  job_json: string;
  next_ms: number | null;
  last_ms: number | null;
  last_job: string | null;
  last_problem: string | null;
}

const TICK_MS = 500;
const AT_ONCE = 100;

export class Schedules {
  readonly #parts: SchedulesParts;
  readonly #look: Repeating;

  constructor(parts: SchedulesParts) {
    this.#parts = parts;
    this.#look = new Repeating(TICK_MS, () => this.#tick());
  }

  start(): void {
    this.#look.wake();
  }

  stop(): Promise<void> {
    return this.#look.stop();
  }

  /** Makes or changes one. Throws Problem naming the field. */
  async put(tenant: Tenant, name: string, settings: ScheduleSettings, key: string): Promise<Schedule> {
    const { db, jobs, audit, now } = this.#parts;
    const next = nextTime(settings, now());
    await jobs.check(tenant, [settings.job], () => "job.");
    const { job, ...rest } = settings;
    const [json, jobJson] = [JSON.stringify(rest), JSON.stringify(job)];
    const bytes = Buffer.byteLength(json) + Buffer.byteLength(jobJson);
    await db.transaction(async (queries) => {
      await lockTenant(queries, tenant.id);
      const own = await first<{ count: number; bytes: number | null }>(queries, "SELECT count(*) AS count, (SELECT bytes FROM schedules WHERE tenant = ? AND name = ?) AS bytes FROM schedules WHERE tenant = ?", tenant.id, name, tenant.id); // prettier-ignore
      const { schedules, storageBytes } = tenant.settings.quotas;
      if (own?.bytes === null && own.count >= schedules)
        throw new Problem("tenant-busy", `the tenant may have ${schedules} schedules`, { retryAfterS: 3600 });
      if ((await storedBytes(queries, tenant.id)) - (own?.bytes ?? 0) + bytes > storageBytes)
        throw new Problem("storage-full", `the tenant may store ${storageBytes} bytes`);
      audit.append({ kind: "schedule", act: own?.bytes === null ? "created" : "changed", by: key, tenant: tenant.id, schedule: name }); // prettier-ignore
      await queries.run(
        `INSERT INTO schedules (tenant, name, key, settings_json, job_json, bytes, next_ms) VALUES (?, ?, ?, ?, ?, ?, ?)
          ON CONFLICT (tenant, name) DO UPDATE SET key = excluded.key, settings_json = excluded.settings_json,
            job_json = excluded.job_json, bytes = excluded.bytes, next_ms = excluded.next_ms`,
        tenant.id,
        name,
        key,
        json,
        jobJson,
        bytes,
        settings.enabled ? next : null,
      );
    });
    return this.get(tenant.id, name);
  }

  /** Throws Problem `not-found`. */
  async get(tenant: string, name: string): Promise<Schedule> {
    const row = await first<ScheduleRow>(this.#parts.db, "SELECT * FROM schedules WHERE tenant = ? AND name = ?", tenant, name); // prettier-ignore
    if (row === undefined) throw new Problem("not-found", `there is no schedule ${name}`);
    return scheduleOf(row);
  }

  /** By name, without their jobs: a tenant's sources may be more than one answer should have. */
  async list(tenant: string): Promise<ScheduleEntry[]> {
    const rows = await this.#parts.db.all<Omit<ScheduleRow, "job_json">>("SELECT name, settings_json, next_ms, last_ms, last_job, last_problem FROM schedules WHERE tenant = ? ORDER BY name", tenant); // prettier-ignore
    return rows.map(entryOf);
  }

  async remove(tenant: string, name: string, by: string): Promise<void> {
    await this.get(tenant, name);
    this.#parts.audit.append({ kind: "schedule", act: "removed", by, tenant, schedule: name });
    await this.#parts.db.run("DELETE FROM schedules WHERE tenant = ? AND name = ?", tenant, name);
  }

  async #tick(): Promise<void> {
    const { db, logger, now } = this.#parts;
    try {
      // Each is read when it is its turn: what tenants keep of them all together is more than fits in memory.
      const due = await db.all<Pick<ScheduleRow, "tenant" | "name">>(
        `SELECT tenant, name FROM schedules WHERE next_ms <= ? ORDER BY next_ms LIMIT ${AT_ONCE}`,
        now(),
      );
      for (const { tenant, name } of due) await this.#fire(tenant, name);
      if (due.length === AT_ONCE) this.#look.wake(); // there may be more
    } catch (err) {
      logger.error({ err }, "schedules could not be looked after");
    }
  }

  async #fire(tenantId: string, name: string): Promise<void> {
    const { db, tenants, table, jobs, logger, now } = this.#parts;
    const row = await first<ScheduleRow>(db, "SELECT * FROM schedules WHERE tenant = ? AND name = ? AND next_ms <= ?", tenantId, name, now()); // prettier-ignore
    if (row === undefined) return; // removed or changed meanwhile, or another node's
    const { settings } = scheduleOf(row);
    let next: number | null = null;
    let never: string | null = null;
    try {
      next = nextTime(settings, now());
    } catch (error) {
      // It was right once: this node may know fewer time zones. It stops, says why, and does not hold up all others.
      if (!(error instanceof Problem)) throw error;
      logger.error(
        { err: error, tenant: tenantId, schedule: name },
        "a schedule has no next time on this node",
      );
      never = `there is no next time: ${error.message}`;
    }
    /** False: another node made this time's step, or the schedule was changed. */
    const step = async (queries: Pick<Database, "run">, job: string | null, problem: string | null) =>
      (await queries.run(
        "UPDATE schedules SET next_ms = ?, last_ms = next_ms, last_job = ?, last_problem = ? WHERE tenant = ? AND name = ? AND next_ms = ?",
        next,
        job,
        problem,
        row.tenant,
        row.name,
        row.next_ms,
      )) > 0;
    try {
      if (never !== null) return void (await step(db, row.last_job, never));
      const before = row.last_job === null ? undefined : await table.row(row.tenant, row.last_job);
      if (settings.overlap === "skip" && (before?.state === "queued" || before?.state === "running")) {
        await step(db, row.last_job, "the job of the time before has not ended");
        return;
      }
      const tenant = await tenants.get(row.tenant);
      const offer = await db.transaction(async (queries) => {
        // First the step: whoever makes it holds the row until the job is written with it.
        if (!(await step(queries, null, null))) return undefined;
        const accepted = await jobs.accept(queries, tenant, { key: row.key, requests: [settings.job], schedule: row.name }); // prettier-ignore
        await queries.run("UPDATE schedules SET last_job = ? WHERE tenant = ? AND name = ?", accepted.ids[0] ?? null, row.tenant, row.name); // prettier-ignore
        return accepted.offer;
      });
      await offer?.();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.code !== "not-found") await step(db, null, error.message); // the tenant has no room
    }
  }
}

/** Throws Problem naming `cron` or `timeZone`. */
function nextTime({ cron, timeZone }: ScheduleSettings, now: number): number {
  try {
    Intl.DateTimeFormat("en", { timeZone });
  } catch {
    throw badField("timeZone", "is no time zone: write it as in Europe/Berlin");
  }
  // A date as ISO 8601 writes it has no next time once it is over.
  if (!/^(?:@[a-z]+|\S+(?:\s+\S+){4})$/.test(cron.trim()))
    throw badField("cron", `must be five fields, as in "0 6 * * 1-5"`);
  let next: Date | null;
  try {
    next = new Cron(cron, { timezone: timeZone, mode: "5-part", paused: true }).nextRun(new Date(now));
  } catch (error) {
    const words = (error as Error).message.replace(/^CronPattern: /, "").slice(0, 200);
    throw badField("cron", `must be five fields, as in "0 6 * * 1-5": ${words}`);
  }
  if (next === null) throw badField("cron", "names a time that never comes");
  return next.getTime();
}

const entryOf = ({
  name,
  settings_json,
  next_ms,
  last_ms,
  last_job,
  last_problem,
}: Omit<ScheduleRow, "job_json">): ScheduleEntry => ({
  name,
  settings: JSON.parse(settings_json) as ScheduleEntry["settings"],
  nextMs: next_ms,
  lastMs: last_ms,
  lastJob: last_job,
  lastProblem: last_problem,
});

function scheduleOf(row: ScheduleRow): Schedule {
  const entry = entryOf(row);
  return {
    ...entry,
    settings: { ...entry.settings, job: JSON.parse(row.job_json) as ScheduleSettings["job"] },
  };
}
