/**
 * The store in one SQLite file, through better-sqlite3: survives the process, and may be shared by several of one host.
 *
 * The rule: every write is one IMMEDIATE transaction, and the namespace's usage is kept by triggers inside it, so no
 * writer, in no process, can see or leave a count that is not that of the rows. (The failure behind it: a read that
 * turns into a write inside a transaction fails as busy whatever the timeout, sqlite.org/lang_transaction.html 2.2; and
 * a sum over all rows at every write would be a script's lever.) What was written
 * survives the end of the process, kill -9 included; a power cut may cost the last writes, never the file. Calls are short
 * and block the process that makes them.
 */
import path from "node:path";
import { checkOptions, wholeNumber } from "./options.js";
import {
  compareKeys,
  entryBytes,
  overQuota,
  type KvConditions,
  type KvEntry,
  type KvRange,
  type KvSetResult,
  type KvUsage,
  type SpacesStore,
} from "./kv-store.js";
import { openSqlite, type Database } from "./sqlite.js";

export { STORE_ERRORS, StoreError, type StoreErrorCode } from "./sqlite.js";

const SCHEMA = `
  CREATE TABLE entries (
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    text TEXT NOT NULL,
    blob BLOB NOT NULL,
    version TEXT NOT NULL,
    expires_ms INTEGER,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
  ) STRICT;
  CREATE INDEX expiring ON entries (namespace, expires_ms, bytes) WHERE expires_ms IS NOT NULL;
  CREATE TABLE usage (
    namespace TEXT PRIMARY KEY,
    keys INTEGER NOT NULL,
    bytes INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TRIGGER counted AFTER INSERT ON entries BEGIN
    INSERT INTO usage VALUES (new.namespace, 1, new.bytes)
      ON CONFLICT DO UPDATE SET keys = keys + 1, bytes = bytes + excluded.bytes;
  END;
  CREATE TRIGGER uncounted AFTER DELETE ON entries BEGIN
    UPDATE usage SET keys = keys - 1, bytes = bytes - old.bytes WHERE namespace = old.namespace;
    DELETE FROM usage WHERE namespace = old.namespace AND keys = 0;
  END;
`;

export interface SqliteStore extends SpacesStore {
  /** Idempotent. Calls after it are rejected. */
  close(): void;
}

interface Row {
  text: string;
  blob: Uint8Array;
  version: string;
  expires_ms: number | null;
}

/**
 * A store in this file, which is made if it is not there, readable and writable by its owner alone. `busyTimeoutMs`
 * (1000 if absent): how long a call waits, and this process with it, for a writer in another process.
 * Throws TypeError for a bad option, StoreError with its remedy if the driver or the file cannot be used.
 */
export function sqliteStore(file: string, options: { busyTimeoutMs?: number } = {}): SqliteStore {
  // The driver trims the name and takes ":memory:" for something else than a file.
  if (typeof file !== "string" || file === "" || file !== file.trim() || file.includes("\0")) {
    throw new TypeError("sqliteStore: file must be a path that neither begins nor ends with a space");
  }
  if (file === ":memory:") throw new TypeError("sqliteStore: file must be a path; use memoryStore()");
  const { busyTimeoutMs = 1000 } = checkOptions("sqliteStore", options, {
    busyTimeoutMs: wholeNumber(0, 60_000),
  });
  return overDatabase(
    openSqlite(path.resolve(file), {
      busyTimeoutMs,
      synchronous: "normal",
      migrations: [SCHEMA],
    }),
  );
}

function overDatabase(db: Database): SqliteStore {
  const LIVE = "(expires_ms IS NULL OR expires_ms > @nowMs)";
  const select = db.prepare(
    `SELECT text, blob, version, expires_ms FROM entries WHERE namespace = @namespace AND key = @key AND ${LIVE}`,
  );
  const selectSize = db.prepare("SELECT version, bytes FROM entries WHERE namespace = ? AND key = ?");
  const insert = db.prepare("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)");
  const remove = db.prepare("DELETE FROM entries WHERE namespace = ? AND key = ?");
  const expire = db.prepare("DELETE FROM entries WHERE namespace = ? AND expires_ms <= ?");
  const count = db.prepare("SELECT keys, bytes FROM usage WHERE namespace = ?");
  const expired = db.prepare(
    "SELECT count(*) AS keys, total(bytes) AS bytes FROM entries WHERE namespace = ? AND expires_ms <= ?",
  );
  const range = db
    .prepare(
      `SELECT key FROM entries WHERE namespace = @namespace AND key >= @start AND key <> @after AND ${LIVE}
        ORDER BY key LIMIT @limit`,
    )
    .pluck();
  const usageOf = (namespace: string): KvUsage =>
    (count.get(namespace) as KvUsage | undefined) ?? { keys: 0, bytes: 0 };

  const set = db.transaction(
    (namespace: string, key: string, entry: KvEntry, conditions: KvConditions): KvSetResult => {
      expire.run(namespace, conditions.nowMs);
      const old = selectSize.get(namespace, key) as { version: string; bytes: number } | undefined;
      const { ifVersion } = conditions;
      if (ifVersion !== undefined && ifVersion !== (old?.version ?? null)) return "conflict";
      const bytes = entryBytes(key, entry);
      const before = usageOf(namespace);
      const after = {
        keys: before.keys + (old === undefined ? 1 : 0),
        bytes: before.bytes + bytes - (old?.bytes ?? 0),
      };
      const full = overQuota(before, after, conditions);
      if (full !== undefined) return full;
      remove.run(namespace, key);
      const { text, blob, version, expiresMs } = entry;
      insert.run(namespace, key, text, blob, version, expiresMs ?? null, bytes);
      return "stored";
    },
  );
  const removeLive = db.transaction((namespace: string, key: string, nowMs: number): boolean => {
    expire.run(namespace, nowMs);
    return remove.run(namespace, key).changes > 0;
  });
  const removeAll = db.prepare("DELETE FROM entries WHERE substr(namespace, 1, length(@prefix)) = @prefix");
  const usage = db.transaction((namespace: string, nowMs: number): KvUsage => {
    const all = usageOf(namespace);
    const gone = expired.get(namespace, nowMs) as KvUsage;
    return { keys: all.keys - gone.keys, bytes: all.bytes - gone.bytes };
  });

  // oxlint-disable typescript/require-await -- the port's methods answer later; this store at once
  return Object.freeze<SqliteStore>({
    async get(namespace, key, nowMs) {
      const row = select.get({ namespace, key, nowMs }) as Row | undefined;
      if (row === undefined) return undefined;
      const { text, blob, version, expires_ms: expiresMs } = row;
      return { text, blob, version, expiresMs: expiresMs ?? undefined };
    },
    set: async (namespace, key, entry, conditions) => set.immediate(namespace, key, entry, conditions),
    delete: async (namespace, key, nowMs) => removeLive.immediate(namespace, key, nowMs),
    async list(namespace, { prefix, after = "", limit }: KvRange, nowMs) {
      const start = compareKeys(after, prefix) < 0 ? prefix : after;
      const keys = range.all({ namespace, start, after, limit, nowMs }) as string[];
      const end = keys.findIndex((key) => !key.startsWith(prefix));
      return end < 0 ? keys : keys.slice(0, end);
    },
    usage: async (namespace, nowMs) => usage(namespace, nowMs),
    removeSpaces: async (prefix) => void removeAll.run({ prefix }),
    close: () => db.close(),
  });
}
