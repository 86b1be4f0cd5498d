/**
 * The service's tables, as data. A change of them is one more entry at the end, never an edit: an entry that has been
 * released has run somewhere. Times are milliseconds since 1970; columns named `_json` hold JSON of ours.
 */
export const MIGRATIONS: readonly (readonly string[])[] = [
  [
    `CREATE TABLE tenants (
      id TEXT PRIMARY KEY,
      name TEXT NOT NULL,
      policy_json TEXT NOT NULL,
      revision INTEGER NOT NULL,
      created_ms INTEGER NOT NULL
    ) STRICT`,
    // The secret part of a key is never here, only its SHA-256: 256 random bits need no slow hash.
    // Without a tenant it is an administrator's.
    `CREATE TABLE api_keys (
      id TEXT PRIMARY KEY,
      tenant TEXT REFERENCES tenants (id) ON DELETE CASCADE,
      name TEXT NOT NULL,
      hash TEXT NOT NULL,
      created_ms INTEGER NOT NULL,
      expires_ms INTEGER
    ) STRICT`,
    `CREATE TABLE secrets (
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      name TEXT NOT NULL,
      sealed TEXT NOT NULL,
      updated_ms INTEGER NOT NULL,
      PRIMARY KEY (tenant, name)
    ) STRICT`,
    `CREATE TABLE scripts (
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      name TEXT NOT NULL,
      version INTEGER NOT NULL,
      hash TEXT NOT NULL,
      content_json TEXT NOT NULL,
      bytes INTEGER NOT NULL,
      created_ms INTEGER NOT NULL,
      PRIMARY KEY (tenant, name, version)
    ) STRICT`,
    // One row a tenant and day (UTC): what was used, for bills and quotas.
    `CREATE TABLE usage_days (
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      day TEXT NOT NULL,
      runs INTEGER NOT NULL,
      ok INTEGER NOT NULL,
      cpu_us INTEGER NOT NULL,
      wall_us INTEGER NOT NULL,
      host_calls INTEGER NOT NULL,
      bytes_in INTEGER NOT NULL,
      bytes_out INTEGER NOT NULL,
      PRIMARY KEY (tenant, day)
    ) STRICT`,
    // Without an answer it belongs to a request under way, in the process that `node` names.
    `CREATE TABLE idempotency (
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      key TEXT NOT NULL,
      fingerprint TEXT NOT NULL,
      node TEXT NOT NULL,
      started_ms INTEGER NOT NULL,
      ended INTEGER NOT NULL,
      answer_json TEXT,
      bytes INTEGER NOT NULL,
      PRIMARY KEY (tenant, key)
    ) STRICT`,
    `CREATE INDEX idempotency_age ON idempotency (started_ms)`,
  ],
  [
    // A tenant that is made anew with the id of one that is gone is another one: this tells them apart, in all that is
    // kept in memory or ends late.
    `ALTER TABLE tenants ADD COLUMN incarnation TEXT NOT NULL DEFAULT ''`,
    `UPDATE tenants SET incarnation = id || '/' || created_ms`,
  ],
];
