/**
 * The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a request that is sent again because its answer
 * was lost is not run again.
 *
 * The rule: the key is taken before the run begins, by an insert that only one can win, in whatever process. What was
 * refused has not run and gives the key back. What may have run and whose answer is not there (the process died, or the
 * tenant's storage has no room for it) is told as just that, never run a second time. Whether another process still
 * lives is told by the lease on its rows, which it renews: clocks of nodes may differ by a few seconds, not more.
 */
import { randomUUID } from "node:crypto";
import { sha256 } from "./audit-line.js";
import { first, type Database, type Queries } from "./database.js";
import { badField, Problem } from "./problems.js";
import { lockTenant, storedBytes, type Tenant } from "./tenants.js";

/** How long a key is remembered, and how often old ones are removed, ms. */
const KEEP_MS = 86_400_000;
const SWEEP_MS = 60_000;
/** For how long a process that says nothing is taken for alive, and how often it says something, ms. */
const LEASE_MS = 30_000;
const RENEW_MS = 10_000;

interface Taken {
  fingerprint: string;
  node: string;
  ended: number;
  lease_ms: number;
  answer_json: string | null;
}

/** 1 to 255 visible ASCII characters. Throws Problem naming the header. */
export function idempotencyKey(header: string | string[] | undefined): string | undefined {
  if (header === undefined) return undefined;
  if (typeof header === "string" && /^[\x21-\x7e]{1,255}$/.test(header)) return header;
  throw badField("idempotency-key", "must be 1 to 255 visible ASCII characters");
}

export class Idempotency {
  readonly #db: Database;
  readonly #now: () => number;
  readonly #onFailure: (error: unknown) => void;
  /** Whether other processes may be at the database. */
  readonly #shared: boolean;
  /** This process: what another left under way is lost if that one is gone. */
  readonly #node = randomUUID();
  /** How many requests this process has under way. */
  #underWay = 0;
  /** What could not be written when a request ended, as tenant/key: tried again until it is. */
  readonly #owed = new Map<string, { isRefusal: boolean; act: () => Promise<void> }>();
  readonly #timers: NodeJS.Timeout[];

  /** `onFailure` hears what went wrong in the background, and why an answer could not be kept. */
  constructor(
    db: Database,
    { shared, now, onFailure }: { shared: boolean; now: () => number; onFailure: (error: unknown) => void },
  ) {
    this.#db = db;
    this.#now = now;
    this.#onFailure = onFailure;
    this.#shared = shared;
    const every = (ms: number, act: () => Promise<unknown>) =>
      setInterval(() => void act().catch(onFailure), ms).unref();
    this.#timers = [
      every(SWEEP_MS, () => db.run("DELETE FROM idempotency WHERE started_ms <= ?", now() - KEEP_MS)),
      every(RENEW_MS, () => this.#renew()),
    ];
  }

  /**
   * The answer of `run`, or the one that it gave when it was asked for with this key before. Rejects as `run` does, and with
   * Problem `idempotency-busy`, `idempotency-lost` or `idempotency-reused`.
   */
  async once(
    tenant: Tenant,
    key: string,
    request: unknown,
    run: () => Promise<string>,
  ): Promise<{ answer: string; again: boolean }> {
    const fingerprint = fingerprintOf(tenant, request);
    if (!(await this.#taken(this.#db, tenant, key, fingerprint)))
      return { answer: await this.#before(tenant, key, fingerprint), again: true };
    this.#underWay++;
    try {
      return { answer: await this.#run(tenant, key, fingerprint, run), again: false };
    } finally {
      this.#underWay--;
    }
  }

  /** What has run is answered, and a refusal told, even where that cannot be written down now. */
  async #run(tenant: Tenant, key: string, fingerprint: string, run: () => Promise<string>): Promise<string> {
    const owe = (isRefusal: boolean, act: () => Promise<void>) => (error: unknown) => {
      this.#owed.set(`${tenant.id}/${key}`, { isRefusal, act });
      this.#onFailure(error);
    };
    const lost = () => this.#keep(tenant, key, fingerprint, undefined);
    let answer: string;
    try {
      answer = await run();
    } catch (error) {
      // A refusal: nothing has run. Whatever else it was, it is not known what has.
      const isRefusal = error instanceof Problem && error.code !== "internal";
      const act = isRefusal ? () => this.#forget(tenant, key, fingerprint) : lost;
      await act().catch(owe(isRefusal, act));
      throw error;
    }
    await this.#keep(tenant, key, fingerprint, answer).catch(owe(false, lost)); // an answer is too large to be owed
    return answer;
  }

  async #renew(): Promise<void> {
    for (const [name, { act }] of this.#owed) {
      await act();
      this.#owed.delete(name);
    }
    if (this.#underWay === 0) return;
    await this.#db.run("UPDATE idempotency SET lease_ms = ? WHERE node = ? AND ended = 0", this.#now() + LEASE_MS, this.#node); // prettier-ignore
  }

  /**
   * The same for what is done by writing alone: `write` and its answer are one transaction with the key, so that nothing
   * can be lost between them.
   */
  async written(
    tenant: Tenant,
    key: string,
    request: unknown,
    write: (queries: Queries) => Promise<string>,
  ): Promise<{ answer: string; again: boolean }> {
    const fingerprint = fingerprintOf(tenant, request);
    const answer = await this.#db.transaction(async (queries) => {
      if (!(await this.#taken(queries, tenant, key, fingerprint))) return undefined;
      const text = await write(queries);
      await this.#answered(queries, tenant, key, fingerprint, text);
      return text;
    });
    if (answer === undefined) return { answer: await this.#before(tenant, key, fingerprint), again: true };
    return { answer, again: false };
  }

  /** Takes the key, unless it is taken. */
  async #taken(queries: Queries, tenant: Tenant, key: string, fingerprint: string): Promise<boolean> {
    const now = this.#now();
    await queries.run("DELETE FROM idempotency WHERE tenant = ? AND key = ? AND started_ms <= ?", tenant.id, key, now - KEEP_MS); // prettier-ignore
    const taken = await queries.run(
      `INSERT INTO idempotency (tenant, key, fingerprint, node, started_ms, lease_ms, ended, answer_json, bytes)
        VALUES (?, ?, ?, ?, ?, ?, 0, NULL, 0) ON CONFLICT (tenant, key) DO NOTHING`,
      tenant.id,
      key,
      fingerprint,
      this.#node,
      now,
      now + LEASE_MS,
    );
    return taken > 0;
  }

  async #before(tenant: Tenant, key: string, fingerprint: string): Promise<string> {
    const row = await first<Taken>(this.#db, "SELECT fingerprint, node, ended, lease_ms, answer_json FROM idempotency WHERE tenant = ? AND key = ?", tenant.id, key); // prettier-ignore
    const retry = { retryAfterS: 1 };
    if (row === undefined) throw new Problem("idempotency-busy", "it was refused just now", retry);
    if (row.fingerprint !== fingerprint)
      throw new Problem("idempotency-reused", "the key was first sent with another body");
    if (row.answer_json !== null) return row.answer_json;
    const lives =
      row.node === this.#node
        ? (this.#owed.get(`${tenant.id}/${key}`)?.isRefusal ?? true)
        : this.#shared && row.lease_ms > this.#now();
    if (row.ended === 0 && lives) throw new Problem("idempotency-busy", "it has not ended yet", retry);
    throw new Problem("idempotency-lost", "it began, and its answer was not kept");
  }

  // The fingerprint is the tenant's incarnation's: what ends late writes nothing for one that was made anew.

  /** As far as the tenant's storage has room. */
  async #keep(tenant: Tenant, key: string, fingerprint: string, answer: string | undefined): Promise<void> {
    const bytes = answer === undefined ? 0 : Buffer.byteLength(answer);
    await this.#db.transaction(async (queries) => {
      await lockTenant(queries, tenant.id);
      const fits = (await storedBytes(queries, tenant.id)) + bytes <= tenant.settings.quotas.storageBytes;
      await this.#answered(queries, tenant, key, fingerprint, fits ? answer : undefined);
    });
  }

  async #answered(
    queries: Queries,
    tenant: Tenant,
    key: string,
    fingerprint: string,
    answer: string | undefined,
  ): Promise<void> {
    await queries.run(
      "UPDATE idempotency SET ended = 1, answer_json = ?, bytes = ? WHERE tenant = ? AND key = ? AND fingerprint = ?",
      answer ?? null,
      Buffer.byteLength(answer ?? ""),
      tenant.id,
      key,
      fingerprint,
    );
  }

  async #forget(tenant: Tenant, key: string, fingerprint: string): Promise<void> {
    await this.#db.run(
      "DELETE FROM idempotency WHERE tenant = ? AND key = ? AND node = ? AND fingerprint = ?",
      tenant.id,
      key,
      this.#node,
      fingerprint,
    );
  }

  close(): void {
    for (const timer of this.#timers) clearInterval(timer);
  }
}

const fingerprintOf = ({ incarnation }: Tenant, request: unknown): string =>
  sha256(JSON.stringify([incarnation, request]));
