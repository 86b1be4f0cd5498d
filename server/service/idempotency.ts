/**
 * The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a request that is sent again because its answer
 * was lost is not run again.
 *
 * The rule: the key is taken before the run begins, by an insert that only one can win, in whatever process. What was
 * refused has not run and gives the key back. What may have run and whose answer is not there (the process died, or the
 * tenant's storage has no room for it) is told as just that, never run a second time.
 */
import { randomUUID } from "node:crypto";
import { sha256 } from "./audit-line.js";
import { first, type Database } from "./database.js";
import { badField, Problem } from "./problems.js";
import { storedBytes, type Tenant } from "./tenants.js";

/** How long a key is remembered, and how often old ones are removed, ms. */
const KEEP_MS = 86_400_000;
const SWEEP_MS = 60_000;

interface Taken {
  fingerprint: string;
  node: string;
  ended: number;
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
  /** This process: what another left under way is lost if that one is gone. */
  readonly #node = randomUUID();
  readonly #timer: NodeJS.Timeout;

  constructor(db: Database, { now, onFailure }: { now: () => number; onFailure: (error: unknown) => void }) {
    this.#db = db;
    this.#now = now;
    const sweep = () => this.#db.run("DELETE FROM idempotency WHERE started_ms <= ?", this.#now() - KEEP_MS);
    this.#timer = setInterval(() => void sweep().catch(onFailure), SWEEP_MS).unref();
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
    const fingerprint = sha256(JSON.stringify([tenant.incarnation, request]));
    const now = this.#now();
    await this.#db.run("DELETE FROM idempotency WHERE tenant = ? AND key = ? AND started_ms <= ?", tenant.id, key, now - KEEP_MS); // prettier-ignore
    const taken = await this.#db.run(
      `INSERT INTO idempotency (tenant, key, fingerprint, node, started_ms, ended, answer_json, bytes)
        VALUES (?, ?, ?, ?, ?, 0, NULL, 0) ON CONFLICT (tenant, key) DO NOTHING`,
      tenant.id,
      key,
      fingerprint,
      this.#node,
      now,
    );
    if (taken === 0) return { answer: await this.#before(tenant, key, fingerprint), again: true };
    let answer: string;
    try {
      answer = await run();
    } catch (error) {
      // A refusal: nothing has run. Whatever else it was, it is not known what has.
      if (error instanceof Problem && error.code !== "internal") await this.#forget(tenant, key, fingerprint);
      else await this.#keep(tenant, key, fingerprint, undefined);
      throw error;
    }
    await this.#keep(tenant, key, fingerprint, answer);
    return { answer, again: false };
  }

  async #before(tenant: Tenant, key: string, fingerprint: string): Promise<string> {
    const row = await first<Taken>(this.#db, "SELECT fingerprint, node, ended, answer_json FROM idempotency WHERE tenant = ? AND key = ?", tenant.id, key); // prettier-ignore
    const retry = { retryAfterS: 1 };
    if (row === undefined) throw new Problem("idempotency-busy", "it was refused just now", retry);
    if (row.fingerprint !== fingerprint)
      throw new Problem("idempotency-reused", "the key was first sent with another body");
    if (row.answer_json !== null) return row.answer_json;
    if (row.ended === 0 && row.node === this.#node)
      throw new Problem("idempotency-busy", "it has not ended yet", retry);
    throw new Problem("idempotency-lost", "it began, and its answer was not kept");
  }

  // The fingerprint is the tenant's incarnation's: what ends late writes nothing for one that was made anew.

  /** As far as the tenant's storage has room. */
  async #keep(tenant: Tenant, key: string, fingerprint: string, answer: string | undefined): Promise<void> {
    const bytes = answer === undefined ? 0 : Buffer.byteLength(answer);
    await this.#db.transaction(async (queries) => {
      const fits = (await storedBytes(queries, tenant.id)) + bytes <= tenant.settings.quotas.storageBytes;
      await queries.run(
        "UPDATE idempotency SET ended = 1, answer_json = ?, bytes = ? WHERE tenant = ? AND key = ? AND fingerprint = ?",
        fits ? (answer ?? null) : null,
        fits ? bytes : 0,
        tenant.id,
        key,
        fingerprint,
      );
    });
  }

  async #forget(tenant: Tenant, key: string, fingerprint: string): Promise<void> {
    await this.#db.run("DELETE FROM idempotency WHERE tenant = ? AND key = ? AND fingerprint = ?", tenant.id, key, fingerprint); // prettier-ignore
  }

  close(): void {
    clearInterval(this.#timer);
  }
}
