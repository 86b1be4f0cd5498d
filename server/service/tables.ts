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
    // Processes that take jobs. One that has not been seen for a while is taken for dead, and its jobs for lost.
    `CREATE TABLE nodes (
      id TEXT PRIMARY KEY,
      name TEXT NOT NULL,
      seen_ms INTEGER NOT NULL
    ) STRICT`,
    // state: queued, running, done, failed, cancelled. `turn` is the place in line that is fair between tenants, `offered_ms`
    // when a queue was last told of it, `node` whose it is while it runs, `bytes` what counts against the storage.
    `CREATE TABLE jobs (
      id TEXT PRIMARY KEY,
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      key TEXT NOT NULL,
      batch TEXT,
      schedule TEXT,
      request_json TEXT NOT NULL,
      state TEXT NOT NULL,
      turn INTEGER NOT NULL,
      due_ms INTEGER NOT NULL,
      offered_ms INTEGER NOT NULL,
      attempt INTEGER NOT NULL,
      max_attempts INTEGER NOT NULL,
      node TEXT,
      cancelled INTEGER NOT NULL,
      outcome_json TEXT,
      problem_json TEXT,
      bytes INTEGER NOT NULL,
      created_ms INTEGER NOT NULL,
      started_ms INTEGER,
      ended_ms INTEGER,
      expires_ms INTEGER
    ) STRICT`,
    `CREATE INDEX jobs_line ON jobs (turn) WHERE state = 'queued'`,
    `CREATE INDEX jobs_waiting ON jobs (tenant, turn) WHERE state = 'queued'`,
    `CREATE INDEX jobs_offers ON jobs (offered_ms, due_ms) WHERE state = 'queued'`,
    `CREATE INDEX jobs_running ON jobs (node) WHERE state = 'running'`,
    `CREATE INDEX jobs_tenant ON jobs (tenant, created_ms, id, bytes)`,
    `CREATE INDEX jobs_states ON jobs (tenant, state, created_ms, id)`,
    `CREATE INDEX jobs_batch ON jobs (batch) WHERE batch IS NOT NULL`,
    `CREATE INDEX jobs_expires ON jobs (expires_ms) WHERE expires_ms IS NOT NULL`,
    // What a job's runs logged and told, from 1.
    `CREATE TABLE job_events (
      job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
      seq INTEGER NOT NULL,
      event TEXT NOT NULL,
      data TEXT NOT NULL,
      PRIMARY KEY (job, seq)
    ) STRICT`,
    // A job's callback: pending, delivered or failed. Whoever sends moves `due_ms` on first: that is the lease.
    `CREATE TABLE deliveries (
      job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
      tenant TEXT NOT NULL,
      state TEXT NOT NULL,
      attempt INTEGER NOT NULL,
      due_ms INTEGER NOT NULL,
      detail TEXT
    ) STRICT`,
    `CREATE INDEX deliveries_due ON deliveries (due_ms) WHERE state = 'pending'`,
    `CREATE TABLE schedules (
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      name TEXT NOT NULL,
      key TEXT NOT NULL,
      settings_json TEXT NOT NULL,
      job_json TEXT NOT NULL,
      bytes INTEGER NOT NULL,
      next_ms INTEGER,
      last_ms INTEGER,
      last_job TEXT,
      last_problem TEXT,
      PRIMARY KEY (tenant, name)
    ) STRICT`,
    `CREATE INDEX schedules_next ON schedules (next_ms) WHERE next_ms IS NOT NULL`,
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
  [
    // A tenant that is made anew with the id of one that is gone is another one: this tells them apart, in all that is
    // kept in memory or ends late.
    `ALTER TABLE tenants ADD COLUMN incarnation TEXT NOT NULL DEFAULT ''`,
    `UPDATE tenants SET incarnation = id || '/' || created_ms`,
  ],
  [
    // In line are those that are due: what is to begin later holds up no turn.
    `DROP INDEX jobs_line`,
    `CREATE INDEX jobs_line ON jobs (turn) WHERE state = 'queued' AND offered_ms > 0`,
    `CREATE INDEX jobs_own_line ON jobs (tenant, turn) WHERE state = 'queued' AND offered_ms > 0`,
    // What any tenant may ask for as often as it likes is found, or added up, without reading all its jobs.
    `CREATE INDEX jobs_schedule ON jobs (tenant, schedule, created_ms, id) WHERE schedule IS NOT NULL`,
    `CREATE INDEX jobs_bytes ON jobs (tenant, bytes)`,
    // From when on it counts as one that cannot begin.
    `ALTER TABLE jobs ADD COLUMN give_up_ms INTEGER NOT NULL DEFAULT 0`,
    `UPDATE jobs SET give_up_ms = due_ms + 604800000`,
  ],
];
