/**
 * Callbacks: a job's end is posted to where its tenant wishes, signed (Standard Webhooks, standardwebhooks.com), through
 * the same gates as a script's requests: addresses checked after resolution, connection to those alone, bounded answers,
 * no redirect followed.
 *
 * The rule: told at least once, or given up after the last try, and the job says which. Whoever sends has moved the
 * delivery's due time on before, so that of several nodes one sends; where that one dies, another sends later.
 */
import { createHmac } from "node:crypto";
import type { FastifyBaseLogger } from "fastify";
import { CapabilityError, type Call } from "../../../hostapi/capability.js";
import type { HttpAnswer } from "../../../hostapi/http.js";
import { Shares } from "../../shares.js";
import { jsonText } from "../../show.js";
import type { AuditLog } from "../audit-log.js";
import { first, type Database } from "../database.js";
import type { Metrics } from "../metrics.js";
import type { Tenant, Tenants } from "../tenants.js";
import { capabilityFor, MAX_ANSWER, permitted } from "./callback-rules.js";
import { Repeating } from "./repeating.js";
import { hasEnded, type JobRequest } from "./schemas.js";
import type { JobTable } from "./table.js";

export interface CallbacksParts {
  db: Database;
  table: JobTable;
  tenants: Tenants;
  audit: AuditLog;
  metrics: Metrics;
  logger: FastifyBaseLogger;
  now: () => number;
}

type Callback = NonNullable<JobRequest["callback"]>;

const TICK_MS = 1000;
/** For a server to answer, and for whoever sends to say so, ms. */
const LEASE_MS = 60_000;
/** Before the second try and each after it, s. A day in all, as the standard advises. */
const WAITS_S = [5, 30, 120, 600, 3600, 10_800, 21_600, 43_200] as const;
/** Under way at once, of all tenants and of one: a server that is silent holds a place until the timeout. */
const AT_ONCE = 16;
const AT_ONCE_OF_TENANT = 4;
/** An outcome that has more is left out: receivers refuse large bodies; it can be asked for. UTF-16 units. */
const MAX_OUTCOME = 256 * 1024;
/** How long a node whose audit log took no line leaves callbacks to others, ms. */
const UNWRITABLE_MS = 5000;

interface Due {
  job: string;
  tenant: string;
  attempt: number;
}

/** Names of the stored secrets that sign it. */
export const secretsOf = ({ secret }: Callback): readonly string[] =>
  typeof secret === "string" ? [secret] : secret;

export class Callbacks {
  readonly #parts: CallbacksParts;
  readonly #sending = new Map<string, Promise<void>>();
  readonly #ofTenant = new Shares();
  #unwritableUntil = 0;
  readonly #ending = new AbortController();
  readonly #look: Repeating;

  constructor(parts: CallbacksParts) {
    this.#parts = parts;
    this.#look = new Repeating(TICK_MS, () => this.#tick());
  }

  start(): void {
    this.#look.wake();
  }

  /** There may be something to send. */
  wake(): void {
    this.#look.wake();
  }

  /** What is being sent is given up, and sent again later. */
  async stop(): Promise<void> {
    await this.#look.stop();
    this.#ending.abort();
    await Promise.all(this.#sending.values());
  }

  /** Why the tenant may not have callbacks there, if so. */
  refusal({ settings: { callbacks } }: Tenant, text: string): string | undefined {
    const url = new URL(text);
    if (permitted(callbacks, url)) return undefined;
    return callbacks.allow === undefined
      ? "must be https, without a user in it"
      : `is allowed by none of the tenant's rules: ${callbacks.allow.join(", ")}`;
  }

  async #tick(): Promise<void> {
    const { db, audit, now, logger } = this.#parts;
    try {
      if (audit.failure !== undefined || now() < this.#unwritableUntil) return;
      // First of those tenants of whom nothing is under way, then of those with one, and so on: whoever has a thousand that
      // nobody answers has places as long as nobody else wants them.
      let nothingBut = -1; // there is nothing to send but of so many tenants: those that are passed over
      for (let own = 0; own < AT_ONCE_OF_TENANT; own++) {
        for (;;) {
          if (this.#sending.size >= AT_ONCE) return;
          const passed = this.#ofTenant.above(own);
          if (passed.length === nothingBut) break;
          const jobs = [...this.#sending.keys()];
          const places = (values: readonly unknown[]) => values.map(() => "?").join(", ");
          const delivery = await first<Due>(
            db,
            `SELECT job, tenant, attempt FROM deliveries WHERE state = 'pending' AND due_ms <= ?
              ${passed.length > 0 ? `AND tenant NOT IN (${places(passed)})` : ""}
              ${jobs.length > 0 ? `AND job NOT IN (${places(jobs)})` : ""} ORDER BY due_ms LIMIT 1`,
            now(),
            ...passed,
            ...jobs,
          );
          nothingBut = delivery === undefined ? passed.length : -1;
          if (delivery === undefined) break;
          this.#begin(delivery);
        }
      }
    } catch (err) {
      logger.error({ err }, "callbacks could not be looked for");
    }
  }

  #begin(delivery: Due): void {
    const { tenant, job } = delivery;
    this.#ofTenant.add(tenant);
    const sending = this.#send(delivery)
      .catch((err: unknown) =>
        this.#parts.logger.error({ err, job }, "a callback could not be sent; it is tried again"),
      )
      .finally(() => {
        this.#sending.delete(job);
        this.#ofTenant.giveBack(tenant);
        this.#look.wake(); // another may have waited for the place
      });
    this.#sending.set(job, sending);
  }

  async #send({ job, tenant: id, attempt }: Due): Promise<void> {
    const { db, table, tenants, audit, metrics, now } = this.#parts;
    const lease = now() + LEASE_MS;
    const mine = await db.run(
      "UPDATE deliveries SET attempt = attempt + 1, due_ms = ?, detail = NULL WHERE job = ? AND state = 'pending' AND attempt = ?",
      lease,
      job,
      attempt,
    );
    if (mine === 0) return; // another node's
    const row = await table.row(id, job);
    const facts = await table.get(id, job);
    // Removed meanwhile, or it was asked for again: then there is no end to tell of.
    if (row === undefined || facts === undefined || !hasEnded(facts) || row.ended_ms !== facts.endedMs)
      return;
    const { callback } = JSON.parse(row.request_json) as JobRequest;
    if (callback === undefined) return;
    const tenant = await tenants.get(id);
    try {
      audit.append({ kind: "job", act: "told", job, tenant: id, attempt: attempt + 1 });
    } catch (error) {
      // Nothing was sent, and that is none of the tries.
      this.#unwritableUntil = now() + UNWRITABLE_MS;
      await db.run(
        "UPDATE deliveries SET attempt = ? WHERE job = ? AND state = 'pending' AND attempt = ? AND due_ms = ?",
        attempt,
        job,
        attempt + 1,
        lease,
      );
      throw error;
    }

    const { outcome, ...rest } = facts;
    const { callback: _, ...said } = rest;
    const large = row.outcome_json !== null && row.outcome_json.length > MAX_OUTCOME;
    const data = { ...said, ...(outcome === undefined || large ? {} : { outcome }), ...(large ? { outcomeLeftOut: true } : {}) }; // prettier-ignore
    const timestamp = new Date(row.ended_ms ?? now()).toISOString();
    const body = Buffer.from(jsonText({ type: `job.${row.state}`, timestamp, data }));
    const sent = await this.#post(tenant, callback, `${job}-${row.ended_ms}`, body);
    const wait = WAITS_S[attempt];
    const state = sent.ok ? "delivered" : sent.final || wait === undefined ? "failed" : "pending";
    // By its lease it is this delivery, and not one of a later end that has come as far.
    await db.run(
      "UPDATE deliveries SET state = ?, due_ms = ?, detail = ? WHERE job = ? AND state = 'pending' AND attempt = ? AND due_ms = ?",
      state,
      now() + (wait ?? 0) * 1000,
      sent.detail,
      job,
      attempt + 1,
      lease,
    );
    metrics.callback(state);
  }

  /** `final`: trying again is of no use. */
  async #post(
    tenant: Tenant,
    callback: Callback,
    id: string,
    body: Buffer,
  ): Promise<{ ok: boolean; final: boolean; detail: string }> {
    const { tenants, now } = this.#parts;
    const { callbacks } = tenant.settings;
    const stored = await tenants.secrets(tenant.id);
    const names = secretsOf(callback);
    const secrets = names.flatMap((name) => (Object.hasOwn(stored, name) ? [stored[name] as string] : []));
    const keys = secrets.map(signingKey).filter((key) => key !== undefined);
    if (keys.length < secrets.length)
      return { ok: false, final: true, detail: "a secret that signs it is no key" };
    if (secrets.length < names.length) return { ok: false, final: false, detail: "a secret that signs it is not stored any more" }; // prettier-ignore
    const seconds = Math.floor(now() / 1000);
    const capability = capabilityFor(callbacks);
    const call = callOf(tenant.id, id, body, this.#ending.signal);
    try {
      const wish = {
        url: callback.url,
        method: "POST",
        redirect: "manual",
        headers: [
          ["content-type", "application/json"],
          ["webhook-id", id],
          ["webhook-timestamp", String(seconds)],
          ["webhook-signature", keys.map((key) => signature(key, id, seconds, body)).join(" ")],
        ],
        body,
      };
      const answer = (await capability.invoke("request", capability.parse("callback", "request", [wish]), call)) as HttpAnswer; // prettier-ignore
      const { status } = answer;
      return { ok: status >= 200 && status < 300, final: status === 410, detail: `answered ${status}` };
    } catch (error) {
      if (!(error instanceof CapabilityError)) throw error;
      const final = error.code === "denied";
      const words = final ? "the address may not be called" : (WORDS[error.code] ?? "no answer");
      return { ok: false, final, detail: words };
    } finally {
      capability.close(call.run);
    }
  }
}

const WORDS: Readonly<Record<string, string>> = {
  timeout: "no answer in time",
  "too-large": `the answer has more than ${MAX_ANSWER} bytes`,
};

/** A call of nobody's run: bounded by the capability's own limits. */
function callOf(tenant: string, id: string, body: Buffer, signal: AbortSignal): Call {
  const nothing = () => {};
  return {
    run: { id, tenant, signal, elapsedMs: () => 0 },
    label: "callback",
    method: "request",
    argumentBytes: body.length,
    maxAnswerBytes: MAX_ANSWER,
    signal,
    charge: nothing,
    meter: nothing,
    admit: nothing,
    note: nothing,
    cancel: nothing,
    onEnd: nothing,
  };
}

const PREFIX = "whsec_";
/** Of a key, bytes: the standard asks for 24 to 64, and less than 16 can be guessed. */
const MIN_KEY = 16;

/**
 * What signs with this secret (Standard Webhooks 1.0: "whsec_" and base64; any other text is its own bytes). Undefined
 * for one that is no key, or can be guessed.
 */
export function signingKey(secret: string): Buffer | undefined {
  if (!secret.startsWith(PREFIX)) return secret.length < MIN_KEY ? undefined : Buffer.from(secret);
  const text = secret.slice(PREFIX.length);
  const key = Buffer.from(text, "base64");
  const isBase64 = key.toString("base64").replace(/=+$/, "") === text.replace(/=+$/, "");
  return isBase64 && key.length >= MIN_KEY ? key : undefined;
}

function signature(key: Buffer, id: string, seconds: number, body: Uint8Array): string {
  const mac = createHmac("sha256", key).update(`${id}.${seconds}.`).update(body).digest("base64");
  return `v1,${mac}`;
}
