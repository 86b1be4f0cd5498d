/** For both, in SQLite's words, which the other driver translates; or for PostgreSQL alone. */
export type Statement = string | { readonly postgres: string };

/**
 * The service's tables, as data. A change of them is one more entry at the end, never an edit: an entry that has been
 * released has run somewhere. Times are milliseconds since 1970; columns named `_json` hold JSON of ours.
 */
export const MIGRATIONS: readonly (readonly Statement[])[] = [
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
    // What all nodes of a service agree on.
    `CREATE TABLE service_facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT`,
    // Until when the node that has a request under way is taken for alive.
    `ALTER TABLE idempotency ADD COLUMN lease_ms INTEGER NOT NULL DEFAULT 0`,
    `CREATE INDEX idempotency_under_way ON idempotency (node) WHERE ended = 0`,
    // The tenants' key-value store; in SQLite it is a file of its own. Bytes order keys ("C"), as the store's port asks.
    {
      postgres: `CREATE TABLE kv_spaces (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        namespace TEXT COLLATE "C" NOT NULL UNIQUE,
        keys BIGINT NOT NULL,
        bytes BIGINT NOT NULL
      )`,
    },
    // Found by the SHA-256 of its key: an index takes no more than 2704 bytes of one, and a key may have 4096.
    {
      postgres: `CREATE TABLE kv_entries (
        space BIGINT NOT NULL REFERENCES kv_spaces (id) ON DELETE CASCADE,
        hash BYTEA NOT NULL,
        key TEXT COLLATE "C" NOT NULL,
        text TEXT NOT NULL,
        blob BYTEA NOT NULL,
        version TEXT NOT NULL,
        expires_ms BIGINT,
        bytes BIGINT NOT NULL,
        PRIMARY KEY (space, hash)
      )`,
    },
    { postgres: `CREATE INDEX kv_in_order ON kv_entries (space, left(key, 256))` },
    {
      postgres: `CREATE INDEX kv_expiring ON kv_entries (space, expires_ms, bytes) WHERE expires_ms IS NOT NULL`,
    },
  ],
];
