/**
 * Who may do what: tenants with their policies, API keys, stored scripts and secrets.
 *
 * The rule: everything is looked up by the tenant's id, which comes from the key and from nowhere else in a request, so
 * one tenant's names mean nothing in another's request. Of a key only a hash is kept, of a secret only what the service's
 * own key has sealed (AES-256-GCM, NIST SP 800-38D), bound to its tenant and name.
 */
import { createCipheriv, createDecipheriv, randomBytes, timingSafeEqual } from "node:crypto";
import type { SpacesStore } from "../../hostapi/kv-store.js";
import { SandboxError } from "../errors.js";
import { completeLimits, LIMITS, type LimitName, type Limits } from "../limits.js";
import { policyOf, PolicyError, type Problem as PolicyProblem } from "../policy.js";
import type { GrantPolicy, Policy } from "../policy-schema.js";
import { sha256 } from "./audit-line.js";
import { callbackRulesProblem } from "./jobs/callback-rules.js";
import { first, type Database, type Queries, type Value } from "./database.js";
import { badFields, Problem } from "./problems.js";
import type { ScriptContent, TenantSettings } from "./schemas.js";

export interface Tenant {
  readonly id: string;
  /** Begins with the id, and is no other tenant's, of one that is made anew with the same id neither. */
  readonly incarnation: string;
  readonly settings: TenantSettings;
  readonly policy: Policy;
  /** The most that a run may have, and what it has when it does not ask. */
  readonly limits: Limits;
}

export type Holder = { readonly key: string } & (
  { readonly admin: true } | { readonly admin: false; readonly tenant: Tenant }
);
/** A script as it is stored, or was: for the line of the audit log. */
export interface ScriptFacts {
  version: number;
  /** SHA-256 of all that is stored, hex. */
  hash: string;
  content: ScriptContent;
}
/** Why a key opens nothing. */
export interface Refusal {
  readonly refused: "missing" | "unknown" | "expired";
  readonly key: string | undefined;
}

interface TenantRow {
  id: string;
  incarnation: string;
  policy_json: string;
  revision: number;
}
/** A key with its tenant; an administrator's has none, and the tenant's columns hold nothing then. */
interface HolderRow extends Omit<TenantRow, "id"> {
  tenant: string | null;
  hash: string;
  expires_ms: number | null;
}
interface ScriptRow {
  version: number;
  hash: string;
  content_json: string;
  bytes: number;
  created_ms: number;
}

export class Tenants {
  readonly #db: Database;
  readonly #store: Pick<SpacesStore, "removeSpaces">;
  readonly #limits: Limits;
  readonly #sealing: Buffer;
  readonly #now: () => number;
  /** Parsed settings by tenant; a row says with its revision whether they still hold. */
  readonly #parsed = new Map<string, { revision: number; tenant: Tenant }>();

  /** `store`: where namespaces begin with the tenant's id and a slash. `limits`: what this service has at most. `sealing`: 32 bytes that secrets are sealed with. */
  constructor(
    db: Database,
    {
      store,
      limits,
      sealing,
      now,
    }: { store: Pick<SpacesStore, "removeSpaces">; limits: Limits; sealing: Buffer; now: () => number },
  ) {
    this.#db = db;
    this.#store = store;
    this.#limits = limits;
    this.#sealing = sealing;
    this.#now = now;
  }

  // -- tenants ----------------------------------------------------------------------------------------------------------

  /** What `put` would do. Throws Problem as it does. */
  async check(id: string, settings: TenantSettings): Promise<"created" | "changed"> {
    this.#parse(id, "", settings);
    const known = await first(this.#db, "SELECT id FROM tenants WHERE id = ?", id);
    return known === undefined ? "created" : "changed";
  }

  /** Makes or changes a tenant. Throws Problem naming each field of the policy that is wrong. */
  async put(id: string, settings: TenantSettings): Promise<"created" | "changed"> {
    this.#parse(id, "", settings);
    return this.#upsert(this.#db, id, settings);
  }

  async #upsert(queries: Queries, id: string, settings: TenantSettings): Promise<"created" | "changed"> {
    const json = JSON.stringify(settings);
    const revision = await first<{ revision: number }>(
      queries,
      `INSERT INTO tenants (id, incarnation, name, policy_json, revision, created_ms) VALUES (?, ?, ?, ?, 1, ?)
        ON CONFLICT (id) DO UPDATE SET name = excluded.name, policy_json = excluded.policy_json, revision = tenants.revision + 1
        RETURNING revision`,
      id,
      `${id}/${randomBytes(9).toString("base64url")}`,
      settings.name,
      json,
      this.#now(),
    );
    return revision?.revision === 1 ? "created" : "changed";
  }

  async get(id: string): Promise<Tenant> {
    const row = await first<TenantRow>(
      this.#db,
      "SELECT id, incarnation, policy_json, revision FROM tenants WHERE id = ?",
      id,
    );
    if (row === undefined) throw new Problem("not-found", `there is no tenant ${id}`);
    return this.#tenant(row);
  }

  list(): Promise<{ id: string; name: string; createdMs: number }[]> {
    return this.#db.all(`SELECT id, name, created_ms AS "createdMs" FROM tenants ORDER BY id`);
  }

  /**
   * With everything that is the tenant's in the service's database and in its key-value store. `before` as in `addKey`.
   * `gone` is told its incarnation once nothing can begin for it any more, and resolves when what is under way has ended:
   * until then that might write to the store.
   */
  async remove(id: string, before: () => void, gone: (incarnation: string) => Promise<void>): Promise<void> {
    const row = await first<{ incarnation: string }>(this.#db, "SELECT incarnation FROM tenants WHERE id = ?", id); // prettier-ignore
    const incarnation = row?.incarnation ?? "";
    await this.#remove("tenants WHERE id = ? AND incarnation = ?", [id, incarnation], `tenant ${id}`, before);
    this.#parsed.delete(id);
    await gone(incarnation);
    await this.#store.removeSpaces(`${id}/`);
  }

  /** Looks, calls `before`, removes. Throws Problem `not-found`, and what `before` throws: nothing is removed then. */
  async #remove(rows: string, values: readonly Value[], what: string, before: () => void): Promise<void> {
    const missing = () => new Problem("not-found", `there is no ${what}`);
    if ((await first(this.#db, `SELECT 1 AS there FROM ${rows}`, ...values)) === undefined) throw missing();
    before();
    if ((await this.#db.run(`DELETE FROM ${rows}`, ...values)) === 0) throw missing(); // by another in the same moment
  }

  #tenant({ id, incarnation, policy_json, revision }: TenantRow): Tenant {
    const known = this.#parsed.get(id);
    if (known?.revision === revision && known.tenant.incarnation === incarnation) return known.tenant;
    const tenant = this.#stored(id, incarnation, JSON.parse(policy_json) as TenantSettings);
    this.#parsed.set(id, { revision, tenant });
    return tenant;
  }

  /** What was right when it was stored: this service may have started with less since. */
  #stored(id: string, incarnation: string, settings: TenantSettings): Tenant {
    try {
      return this.#parse(id, incarnation, settings);
    } catch (cause) {
      const detail = `the policy of tenant ${id} is more than this service has now`;
      throw new Problem("host-cannot", detail, { retryAfterS: 60, cause });
    }
  }

  #parse(id: string, incarnation: string, settings: TenantSettings): Tenant {
    let policy: Policy;
    try {
      policy = policyOf(settings.policy, "/");
    } catch (error) {
      if (!(error instanceof PolicyError)) throw error;
      throw policyProblem(error.problems);
    }
    const problems = Object.entries(policy.grants).flatMap(([name, grant]) => unfit(name, grant));
    const limits = completeLimits(policy.limits, this.#defaults());
    const { limits: said = {} } = settings.policy;
    for (const name of Object.keys(LIMITS) as LimitName[]) {
      if (limits[name] <= this.#limits[name] || name === "fuel") continue;
      if (!Object.hasOwn(said as object, name)) {
        limits[name] = this.#limits[name]; // what a grant would like to have: a person takes long to answer
        continue;
      }
      problems.push({ field: `limits.${name}`, message: `is more than the service's ${this.#limits[name]}` });
    }
    if (!settings.engines.includes(policy.engine))
      problems.push({ field: "engine", message: "is none of the tenant's engines" });
    if (problems.length > 0) throw policyProblem(problems);
    const callbacks = callbackRulesProblem(settings.callbacks);
    if (callbacks !== undefined) throw badFields([callbacks]);
    return { id, incarnation, settings, policy, limits };
  }

  /** What a policy that says nothing gets: the library's defaults, where the service has as much. */
  #defaults(): Limits {
    const limits = completeLimits({});
    for (const name of Object.keys(LIMITS) as LimitName[])
      limits[name] = Math.min(limits[name], this.#limits[name]);
    return limits;
  }

  // -- keys -------------------------------------------------------------------------------------------------------------

  /**
   * A new key, which is told here and never again; without a tenant an administrator's. `before` is called with its id
   * before it is kept; if it throws, there is no key.
   */
  async addKey(
    tenant: string | null,
    { name, expiresMs }: { name: string; expiresMs?: number | undefined },
    before: (id: string) => void,
  ) {
    if (tenant !== null) await this.get(tenant);
    return this.#insertKey(this.#db, tenant, { name, expiresMs }, before);
  }

  async #insertKey(
    queries: Queries,
    tenant: string | null,
    { name, expiresMs }: { name: string; expiresMs?: number | undefined },
    before: (id: string) => void,
  ) {
    const id = randomBytes(6).toString("hex");
    before(id);
    const secret = randomBytes(32).toString("base64url");
    await queries.run(
      "INSERT INTO api_keys (id, tenant, name, hash, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?)",
      id,
      tenant,
      name,
      sha256(secret),
      this.#now(),
      expiresMs ?? null,
    );
    return { id, key: `dh_${id}_${secret}` };
  }

  keys(tenant: string): Promise<{ id: string; name: string; createdMs: number; expiresMs: number | null }[]> {
    return this.#db.all(
      `SELECT id, name, created_ms AS "createdMs", expires_ms AS "expiresMs" FROM api_keys WHERE tenant = ? ORDER BY created_ms, id`,
      tenant,
    );
  }

  removeKey(tenant: string, id: string, before: () => void): Promise<void> {
    return this.#remove(
      "api_keys WHERE tenant = ? AND id = ?",
      [tenant, id],
      `key ${id} of ${tenant}`,
      before,
    );
  }

  /**
   * The first tenant with a key, and an administrator's key, unless there is an administrator; all or nothing. Of nodes that
   * start at the same moment one makes them. `before` are called before the things they name are made.
   */
  makeFirst(
    { id, settings }: { id: string; settings: TenantSettings },
    before: { tenant: () => void; key: (id: string, tenant: string | null) => void },
  ): Promise<{ key: string; adminKey: string } | undefined> {
    this.#parse(id, "", settings);
    return this.#db.transaction(async (queries) => {
      // Whoever comes second waits here, and then finds the administrator.
      await queries.run("INSERT INTO service_facts (name, value) VALUES ('first-start', '') ON CONFLICT (name) DO UPDATE SET value = ''"); // prettier-ignore
      const admin = await first(queries, "SELECT id FROM api_keys WHERE tenant IS NULL LIMIT 1");
      if (admin !== undefined) return undefined;
      before.tenant();
      await this.#upsert(queries, id, settings);
      const { key } = await this.#insertKey(queries, id, { name: "first key" }, (key) => before.key(key, id));
      const { key: adminKey } = await this.#insertKey(queries, null, { name: "first administrator" }, (key) => before.key(key, null)); // prettier-ignore
      return { key, adminKey };
    });
  }

  /** Whose key the header Authorization shows. */
  async holder(authorization: string | undefined): Promise<Holder | Refusal> {
    const [, id, secret] = /^Bearer dh_([0-9a-f]{12})_([\w-]{43})$/i.exec(authorization ?? "") ?? [];
    if (id === undefined || secret === undefined)
      return { refused: authorization === undefined ? "missing" : "unknown", key: undefined };
    const row = await first<HolderRow>(
      this.#db,
      `SELECT k.tenant, k.hash, k.expires_ms, t.incarnation, t.policy_json, t.revision
        FROM api_keys AS k LEFT JOIN tenants AS t ON t.id = k.tenant WHERE k.id = ?`,
      id,
    );
    // As long for a key that is not there as for a wrong one.
    const right = timingSafeEqual(Buffer.from(sha256(secret)), Buffer.from(row?.hash ?? sha256("")));
    if (row === undefined || !right) return { refused: "unknown", key: id };
    if (row.expires_ms !== null && row.expires_ms <= this.#now()) return { refused: "expired", key: id };
    if (row.tenant === null) return { key: id, admin: true };
    return { key: id, admin: false, tenant: this.#tenant({ ...row, id: row.tenant }) };
  }

  // -- scripts ----------------------------------------------------------------------------------------------------------

  /**
   * A new version, or the latest one if it is the same. `before` is called before a new one is kept, again if the database
   * asks to repeat; if it throws, there is none. Throws Problem `storage-full`.
   */
  putScript(
    tenant: Tenant,
    name: string,
    content: ScriptContent,
    before: (facts: ScriptFacts) => void,
  ): Promise<{ created: boolean; version: number; hash: string }> {
    const json = JSON.stringify(content);
    const [bytes, hash] = [Buffer.byteLength(json), sha256(json)];
    return this.#db.transaction(async (queries) => {
      await lockTenant(queries, tenant.id);
      const latest = await this.#script(queries, tenant, name, undefined);
      if (latest?.hash === hash) return { created: false, version: latest.version, hash };
      const used = await storedBytes(queries, tenant.id);
      const most = tenant.settings.quotas.storageBytes;
      if (used + bytes > most)
        throw new Problem("storage-full", `${bytes} bytes more would be over the tenant's ${most}`);
      const version = (latest?.version ?? 0) + 1;
      before({ version, hash, content });
      await queries.run(
        "INSERT INTO scripts (tenant, name, version, hash, content_json, bytes, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
        tenant.id,
        name,
        version,
        hash,
        json,
        bytes,
        this.#now(),
      );
      return { created: true, version, hash };
    });
  }

  #script(queries: Queries, tenant: Tenant, name: string, version: number | undefined) {
    const which = version === undefined ? "ORDER BY version DESC LIMIT 1" : "AND version = ?";
    const values = version === undefined ? [] : [version];
    return first<ScriptRow>(queries, `SELECT * FROM scripts WHERE tenant = ? AND name = ? ${which}`, tenant.id, name, ...values); // prettier-ignore
  }

  /** "name" or "name@version". Throws Problem `not-found`. */
  async script(tenant: Tenant, reference: string) {
    const [name = "", version] = reference.split("@");
    const row = await this.#script(
      this.#db,
      tenant,
      name,
      version === undefined ? undefined : Number(version),
    );
    if (row === undefined) throw new Problem("not-found", `there is no script ${reference}`, { errors: [{ field: "script", message: "is not stored" }] }); // prettier-ignore
    const { hash, bytes, created_ms: createdMs, content_json } = row;
    return {
      name,
      version: row.version,
      hash,
      bytes,
      createdMs,
      content: JSON.parse(content_json) as ScriptContent,
    };
  }

  /** The latest version of each, by name after `after`. */
  scripts(tenant: Tenant, after: string, limit: number) {
    return this.#db.all<{ name: string; version: number; hash: string; bytes: number; createdMs: number }>(
      `SELECT name, version, hash, bytes, created_ms AS "createdMs" FROM scripts AS s WHERE tenant = ? AND name > ?
        AND version = (SELECT max(version) FROM scripts WHERE tenant = s.tenant AND name = s.name) ORDER BY name LIMIT ?`,
      tenant.id,
      after,
      limit,
    );
  }

  /** With all versions. `before` is told of the latest. */
  async removeScript(tenant: Tenant, name: string, before: (latest: ScriptFacts) => void): Promise<void> {
    const latest = await this.script(tenant, name);
    const rows = "scripts WHERE tenant = ? AND name = ?";
    await this.#remove(rows, [tenant.id, name], `script ${name}`, () => before(latest));
  }

  // -- secrets ----------------------------------------------------------------------------------------------------------

  async putSecret(tenant: string, name: string, value: string): Promise<void> {
    const nonce = randomBytes(12);
    const cipher = createCipheriv("aes-256-gcm", this.#sealing, nonce).setAAD(
      Buffer.from(`${tenant}/${name}`),
    );
    const sealed = Buffer.concat([nonce, cipher.update(value, "utf8"), cipher.final(), cipher.getAuthTag()]);
    await this.#db.run(
      `INSERT INTO secrets (tenant, name, sealed, updated_ms) VALUES (?, ?, ?, ?)
        ON CONFLICT (tenant, name) DO UPDATE SET sealed = excluded.sealed, updated_ms = excluded.updated_ms`,
      tenant,
      name,
      sealed.toString("base64"),
      this.#now(),
    );
  }

  secretNames(tenant: string): Promise<{ name: string; updatedMs: number }[]> {
    return this.#db.all(
      `SELECT name, updated_ms AS "updatedMs" FROM secrets WHERE tenant = ? ORDER BY name`,
      tenant,
    );
  }

  removeSecret(tenant: string, name: string, before: () => void): Promise<void> {
    return this.#remove("secrets WHERE tenant = ? AND name = ?", [tenant, name], `secret ${name}`, before);
  }

  /** By name, without a prototype. Throws SandboxError `host-cannot` where the sealing key is not the one they were sealed with. */
  async secrets(tenant: string): Promise<Record<string, string>> {
    const values = Object.create(null) as Record<string, string>;
    const rows = await this.#db.all<{ name: string; sealed: string }>("SELECT name, sealed FROM secrets WHERE tenant = ?", tenant); // prettier-ignore
    for (const { name, sealed } of rows) {
      const bytes = Buffer.from(sealed, "base64");
      try {
        const decipher = createDecipheriv("aes-256-gcm", this.#sealing, bytes.subarray(0, 12))
          .setAAD(Buffer.from(`${tenant}/${name}`))
          .setAuthTag(bytes.subarray(-16));
        values[name] = Buffer.concat([decipher.update(bytes.subarray(12, -16)), decipher.final()]).toString(
          "utf8",
        );
      } catch (cause) {
        const remedy = "Start with the sealing key that the secrets were stored with, or store them again.";
        throw new SandboxError("host-cannot", `the secret ${name} cannot be unsealed`, { cause, remedy });
      }
    }
    return values;
  }
}

/** One writer of the tenant's at a time, until the transaction ends (in SQLite there is one of the whole file). */
export async function lockTenant(queries: Queries, tenant: string): Promise<void> {
  await queries.run("UPDATE tenants SET revision = revision WHERE id = ?", tenant);
}

/** Bytes of all that counts against a tenant's storage. */
export async function storedBytes(queries: Queries, tenant: string): Promise<number> {
  const row = await first<{ bytes: number }>(
    queries,
    `SELECT (SELECT coalesce(sum(bytes), 0) FROM scripts WHERE tenant = ?)
      + (SELECT coalesce(sum(bytes), 0) FROM idempotency WHERE tenant = ?)
      + (SELECT coalesce(sum(bytes), 0) FROM jobs WHERE tenant = ?)
      + (SELECT coalesce(sum(bytes), 0) FROM schedules WHERE tenant = ?) AS bytes`,
    tenant,
    tenant,
    tenant,
    tenant,
  );
  return row?.bytes ?? 0;
}

const policyProblem = (problems: readonly PolicyProblem[]): Problem =>
  badFields(
    problems.map(({ field, message }) => ({ field: field === "" ? "policy" : `policy.${field}`, message })),
  );

/** What a policy file may have and a tenant's policy may not: things of this host that only its own user could mean. */
function unfit(name: string, grant: GrantPolicy): PolicyProblem[] {
  const field = `grants.${name}`;
  switch (grant.type) {
    case "kv":
      return grant.store === "memory"
        ? []
        : [{ field: `${field}.store`, message: "is the service's own: leave it out" }];
    case "secret":
      return grant.env === undefined
        ? [{ field: `${field}.file`, message: 'must be "env", the name of a stored secret' }]
        : [];
    case "http": {
      const at = (grant.inject ?? []).findIndex(
        ({ secret }) => typeof secret === "object" && secret.env === undefined,
      );
      return at < 0
        ? []
        : [{ field: `${field}.inject[${at}].secret`, message: 'must be "env", the name of a stored secret' }];
    }
    default:
      return [];
  }
}
