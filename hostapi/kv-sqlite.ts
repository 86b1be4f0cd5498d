/**
 * The store in one SQLite file, through better-sqlite3: survives the process, and may be shared by several of one host.
 *
 * The rule: every write is one IMMEDIATE transaction, and the namespace's usage is kept by triggers inside it, so no
 * writer, in no process, can see or leave a count that is not that of the rows. (The failure behind it: a read that
 * turns into a write inside a transaction fails as busy whatever the timeout, sqlite.org/lang_transaction.html 2.2; and
 * a sum over all rows at every write would be a script's lever.) The journal is a WAL with `synchronous=NORMAL`: what
 * was written survives the end of the process, kill -9 included; a power cut may cost the last writes, never the file
 * (sqlite.org/wal.html 2.3). Calls are short and block the process that makes them.
 *
 * better-sqlite3 is an optional dependency, because it is native code: nothing here loads it before it is asked
 * for, and who does without needs no compiler.
 */
import { closeSync, openSync, statSync } from "node:fs";
import { createRequire } from "node:module";
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
  type KvStore,
  type KvUsage,
} from "./kv-store.js";

/** Why a store could not be opened: for the embedder. */
export const STORE_ERRORS = {
  "driver-missing":
    "Install it beside doublehull: `npm install better-sqlite3@13` for Node 22 and later, `better-sqlite3@12.11.1` for Node 20; or use memoryStore().",
  "driver-unusable":
    "Run `npm rebuild better-sqlite3` with the Node that loads it; Node 20 needs `npm install better-sqlite3@12.11.1`.",
  "store-unusable":
    "Check that the directory exists on a local file system, that the file is this store's and its user's alone (chmod 600), and that no other program holds it.",
} as const;

export type StoreErrorCode = keyof typeof STORE_ERRORS;

export class StoreError extends Error {
  override readonly name = "StoreError";
  readonly remedy: string;
  constructor(
    readonly code: StoreErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(`${message}. ${STORE_ERRORS[code]}`, options);
    this.remedy = STORE_ERRORS[code];
  }
}

// What we use of better-sqlite3 (docs/api.md there); its types are not a dependency of ours.
interface Statement {
  run(...values: unknown[]): { changes: number };
  get(...values: unknown[]): unknown;
  all(...values: unknown[]): unknown[];
  pluck(): Statement;
}
interface Database {
  pragma(source: string, options?: { simple: true }): unknown;
  exec(source: string): void;
  prepare(source: string): Statement;
  transaction<A extends unknown[], R>(
    act: (...args: A) => R,
  ): ((...args: A) => R) & { immediate(...args: A): R };
  close(): void;
}
type Driver = new (file: string, options: { timeout: number }) => Database;

function loadDriver(): Driver {
  const require = createRequire(import.meta.url);
  let version: string;
  try {
    ({ version } = require("better-sqlite3/package.json") as { version: string });
  } catch (cause) {
    throw new StoreError("driver-missing", "sqliteStore needs better-sqlite3, which is not installed", {
      cause,
    });
  }
  // Opening a database with 13.2.0 on Node 20.20.2 is a segmentation fault, which nobody could catch.
  const node = Number(process.versions.node.split(".")[0]);
  if (node < 22 && Number(version.split(".")[0]) >= 13) {
    throw new StoreError("driver-unusable", `better-sqlite3 ${version} does not run on Node ${node}`);
  }
  try {
    return require("better-sqlite3") as Driver;
  } catch (cause) {
    throw new StoreError("driver-unusable", `better-sqlite3 ${version} cannot be loaded`, { cause });
  }
}

const SCHEMA_VERSION = 1;
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
  PRAGMA user_version = ${SCHEMA_VERSION};
`;

export interface SqliteStore extends KvStore {
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
  const Driver = loadDriver();
  return overDatabase(openDatabase(Driver, path.resolve(file), busyTimeoutMs));
}

function openDatabase(Driver: Driver, file: string, busyTimeoutMs: number): Database {
  const deadline = performance.now() + busyTimeoutMs;
  for (;;) {
    try {
      claim(file);
      return openOnce(Driver, file, busyTimeoutMs);
    } catch (cause) {
      const { code = "", message } = cause as NodeJS.ErrnoException;
      // While another process makes the file or, as the last one, closes it, SQLite answers busy without waiting
      // (sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode"): the first access has to try again.
      if (code.startsWith("SQLITE_BUSY") && performance.now() < deadline) {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
        continue;
      }
      if (code === "ERR_DLOPEN_FAILED" || /could not locate the bindings/i.test(message)) {
        throw new StoreError("driver-unusable", "better-sqlite3 is not built for this Node", { cause });
      }
      throw new StoreError("store-unusable", `the store ${file} cannot be opened (${message})`, { cause });
    }
  }
}

function openOnce(Driver: Driver, file: string, busyTimeoutMs: number): Database {
  const db = new Driver(file, { timeout: busyTimeoutMs });
  try {
    db.transaction(isOurs)(db); // before anything is changed, and all of it at one moment
    if (db.pragma("journal_mode = WAL", { simple: true }) !== "wal") throw new Error("it can have no WAL");
    db.pragma("synchronous = NORMAL");
    db.pragma("trusted_schema = OFF"); // sqlite.org/security.html: a stranger may have written to it
    db.transaction((opened: Database) => {
      if (!isOurs(opened)) opened.exec(SCHEMA);
    }).immediate(db);
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

/**
 * Makes the file if it is not there, for its owner alone; SQLite gives its WAL and shared memory the same mode. One
 * that others can open is refused and not mended, for it may be another file than was meant. It is not opened here:
 * closing it would drop the locks that this process may hold on it (sqlite.org/howtocorrupt.html 2.2).
 */
function claim(file: string): void {
  try {
    closeSync(openSync(file, "wx", 0o600));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    if ((statSync(file).mode & 0o077) !== 0) throw new Error("other users can open it", { cause: error });
  }
}

/** False if it is new. Throws if it holds something else. */
function isOurs(db: Database): boolean {
  const version = db.pragma("user_version", { simple: true });
  if (version === SCHEMA_VERSION) return true;
  if (version !== 0) throw new Error("it is of another version of the store");
  if (db.prepare("SELECT 1 FROM sqlite_schema").get() !== undefined)
    throw new Error("it holds something else");
  return false;
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
    close: () => db.close(),
  });
}
