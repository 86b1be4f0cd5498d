/**
 * What tenants used, by day (UTC), for bills and quotas. Counted in memory and written once a second: a run does not wait
 * for a disk. What a kill -9 can lose is that second; the audit log has each run for itself.
 */
import type { Outcome } from "../outcome.js";
import { first, type Database } from "./database.js";
import type { Tenant } from "./tenants.js";

const COLUMNS = ["runs", "ok", "cpu_us", "wall_us", "host_calls", "bytes_in", "bytes_out"] as const;
type Counts = Record<(typeof COLUMNS)[number], number>;
const FLUSH_MS = 1000;

type Incarnate = Pick<Tenant, "id" | "incarnation">;
const dayOf = (ms: number): string => new Date(ms).toISOString().slice(0, 10);

export class UsageMeter {
  readonly #db: Database;
  readonly #now: () => number;
  // A tenant is its incarnation here: one that is made anew has used nothing.
  /** Not yet written, by tenant and day. */
  #pending = new Map<string, { tenant: string; day: string; counts: Counts }>();
  /** On their way to the database. */
  #writing: ReadonlyMap<string, { counts: Counts }> = new Map();
  /** What of today is in the database, by tenant: read at each writing. */
  readonly #written = new Map<string, { day: string; runs: number; cpu_us: number }>();
  readonly #timer: NodeJS.Timeout;
  #flushing: Promise<void> = Promise.resolve();
  /** Begins and ends of writings: what was read across one may or may not have its counts. */
  #turns = 0;

  /** `onFailure` hears why counts could not be written; they are kept and tried again. */
  constructor(db: Database, { now, onFailure }: { now: () => number; onFailure: (error: unknown) => void }) {
    this.#db = db;
    this.#now = now;
    this.#timer = setInterval(() => {
      this.#written.clear(); // other nodes count, too
      void this.flush().catch(onFailure);
    }, FLUSH_MS).unref();
  }

  /** Runs and CPU seconds of the tenant's today, and seconds until tomorrow. */
  async today({
    id,
    incarnation: tenant,
  }: Incarnate): Promise<{ runs: number; cpuSeconds: number; leftS: number }> {
    const day = dayOf(this.#now());
    let written = this.#written.get(tenant);
    while (written?.day !== day) {
      if (this.#writing.size > 0) await this.#flushing.catch(() => {}); // its own caller hears of it
      const turn = this.#turns;
      const row = await first<{ runs: number; cpu_us: number }>(this.#db, "SELECT runs, cpu_us FROM usage_days WHERE tenant = ? AND day = ?", id, day); // prettier-ignore
      if (turn !== this.#turns) continue;
      written = { day, runs: row?.runs ?? 0, cpu_us: row?.cpu_us ?? 0 };
      this.#written.set(tenant, written);
    }
    const key = `${tenant}/${day}`;
    const [pending, writing] = [this.#pending.get(key)?.counts, this.#writing.get(key)?.counts];
    const more = (name: "runs" | "cpu_us") => (pending?.[name] ?? 0) + (writing?.[name] ?? 0);
    const leftS = Math.ceil((Date.parse(`${day}T00:00:00Z`) + 86_400_000 - this.#now()) / 1000);
    return {
      runs: written.runs + more("runs"),
      cpuSeconds: (written.cpu_us + more("cpu_us")) / 1e6,
      leftS,
    };
  }

  add({ incarnation: tenant }: Incarnate, { status, usage }: Pick<Outcome, "status" | "usage">): void {
    const day = dayOf(this.#now());
    const key = `${tenant}/${day}`;
    const entry = this.#pending.get(key) ?? { tenant, day, counts: zero() };
    this.#pending.set(key, entry);
    const { counts } = entry;
    counts.runs++;
    if (status === "ok") counts.ok++;
    counts.cpu_us += Math.round(usage.cpuMs * 1000);
    counts.wall_us += Math.round(usage.wallMs * 1000);
    counts.host_calls += usage.hostCalls;
    counts.bytes_in += usage.bytesIn;
    counts.bytes_out += usage.bytesOut;
  }

  /** Writes what is pending. */
  flush(): Promise<void> {
    this.#flushing = this.#flushing.catch(() => {}).then(() => this.#flush()); // a failure was its own caller's to hear
    return this.#flushing;
  }

  async #flush(): Promise<void> {
    const batch = this.#pending;
    if (batch.size === 0) return;
    this.#pending = new Map();
    this.#writing = batch;
    this.#turns++;
    try {
      await this.#db.transaction(async (queries) => {
        // In order, or two nodes could each wait for a row of the other's.
        for (const { tenant, day, counts } of [...batch.values()].sort((a, b) =>
          a.tenant < b.tenant ? -1 : 1,
        )) {
          // A tenant that is gone has no bill.
          await queries.run(
            `INSERT INTO usage_days (tenant, day, ${COLUMNS.join(", ")})
              SELECT id, ?, ?, ?, ?, ?, ?, ?, ? FROM tenants WHERE incarnation = ?
              ON CONFLICT (tenant, day) DO UPDATE SET ${COLUMNS.map((name) => `${name} = usage_days.${name} + excluded.${name}`).join(", ")}`,
            day,
            ...COLUMNS.map((name) => counts[name]),
            tenant,
          );
        }
      });
    } catch (error) {
      for (const [key, entry] of batch) {
        const newer = this.#pending.get(key);
        if (newer !== undefined) for (const name of COLUMNS) entry.counts[name] += newer.counts[name];
        this.#pending.set(key, entry);
      }
      throw error;
    } finally {
      this.#writing = new Map();
      this.#turns++;
    }
    for (const { tenant } of batch.values()) this.#written.delete(tenant);
  }

  /** Days of the tenant of this id from `from` to `to`, both included, as "2030-01-31". */
  async days(tenant: string, from: string, to: string) {
    await this.flush();
    const rows = await this.#db.all<Counts & { day: string }>(
      "SELECT * FROM usage_days WHERE tenant = ? AND day >= ? AND day <= ? ORDER BY day LIMIT 1000",
      tenant,
      from,
      to,
    );
    return rows.map(({ day, runs, ok, cpu_us, wall_us, host_calls, bytes_in, bytes_out }) => ({
      day,
      runs,
      ok,
      cpuMs: cpu_us / 1000,
      wallMs: wall_us / 1000,
      hostCalls: host_calls,
      bytesIn: bytes_in,
      bytesOut: bytes_out,
    }));
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.flush();
  }
}

const zero = (): Counts => Object.fromEntries(COLUMNS.map((name) => [name, 0])) as Counts;
