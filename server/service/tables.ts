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
    `CREATE TABLE api_keys (
      id TEXT PRIMARY KEY,
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
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
    // A row without a response belongs to a request under way: since started_ms, on that node.
    `CREATE TABLE idempotency (
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      key TEXT NOT NULL,
      fingerprint TEXT NOT NULL,
      started_ms INTEGER NOT NULL,
      status INTEGER,
      response_json TEXT,
      PRIMARY KEY (tenant, key)
    ) STRICT`,
    // state: queued, running, done, failed, cancelled. `turn` orders the queue: see jobs.ts.
    `CREATE TABLE jobs (
      id TEXT PRIMARY KEY,
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      batch TEXT,
      schedule TEXT,
      state TEXT NOT NULL,
      request_json TEXT NOT NULL,
      bytes INTEGER NOT NULL,
      attempt INTEGER NOT NULL,
      max_attempts INTEGER NOT NULL,
      turn INTEGER NOT NULL,
      created_ms INTEGER NOT NULL,
      due_ms INTEGER NOT NULL,
      started_ms INTEGER,
      finished_ms INTEGER,
      expires_ms INTEGER,
      cancel_ms INTEGER,
      node TEXT,
      lease_ms INTEGER,
      outcome_json TEXT
    ) STRICT`,
    `CREATE INDEX jobs_ready ON jobs (state, turn, due_ms)`,
    `CREATE INDEX jobs_of_tenant ON jobs (tenant, created_ms, id)`,
    `CREATE INDEX jobs_of_batch ON jobs (batch)`,
    `CREATE INDEX jobs_expiring ON jobs (expires_ms)`,
    // What a run said while it ran: kind is log, event, state or outcome.
    `CREATE TABLE job_events (
      job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
      seq INTEGER NOT NULL,
      kind TEXT NOT NULL,
      data_json TEXT NOT NULL,
      PRIMARY KEY (job, seq)
    ) STRICT`,
    // state: pending, delivered, failed.
    `CREATE TABLE deliveries (
      id TEXT PRIMARY KEY,
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
      url TEXT NOT NULL,
      state TEXT NOT NULL,
      attempt INTEGER NOT NULL,
      due_ms INTEGER NOT NULL,
      created_ms INTEGER NOT NULL,
      status INTEGER,
      problem TEXT
    ) STRICT`,
    `CREATE INDEX deliveries_due ON deliveries (state, due_ms)`,
    `CREATE TABLE schedules (
      tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
      name TEXT NOT NULL,
      cron TEXT NOT NULL,
      time_zone TEXT NOT NULL,
      request_json TEXT NOT NULL,
      paused INTEGER NOT NULL,
      next_ms INTEGER,
      last_ms INTEGER,
      last_job TEXT,
      created_ms INTEGER NOT NULL,
      PRIMARY KEY (tenant, name)
    ) STRICT`,
    `CREATE INDEX schedules_due ON schedules (paused, next_ms)`,
  ],
];
