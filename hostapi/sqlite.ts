/**
 * Opening an SQLite file through better-sqlite3, for the kv store and for the service's database.
 *
 * The rule: a file is its owner's alone, and one that holds anything but what it is opened as is refused before it is
 * changed. The journal is a WAL. With `synchronous: "normal"` what was written survives the end of the process, kill -9
 * included, and a power cut may cost the last writes, never the file; with `"full"` it survives that too
 * (sqlite.org/wal.html 2.3).
 *
 * better-sqlite3 is an optional dependency, because it is native code: nothing here loads it before it is asked for, and
 * who does without needs no compiler.
 */
import { closeSync, openSync, statSync } from "node:fs";
import { createRequire } from "node:module";

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
export interface Statement {
  run(...values: unknown[]): { changes: number };
  get(...values: unknown[]): unknown;
  all(...values: unknown[]): unknown[];
  pluck(): Statement;
}
export interface Database {
  readonly inTransaction: boolean;
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
    throw new StoreError("driver-missing", "SQLite needs better-sqlite3, which is not installed", {
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

export interface SqliteOptions {
  /** How long a call waits, and this process with it, for a writer in another process, ms. */
  readonly busyTimeoutMs: number;
  readonly synchronous: "normal" | "full";
  /** Scripts that make a new file into what is expected, one for each version: `PRAGMA user_version` counts them. */
  readonly migrations: readonly string[];
}

/**
 * Opens the file, which is made if it is not there. The caller closes it. Throws StoreError with its remedy if the driver
 * or the file cannot be used.
 */
export function openSqlite(file: string, options: SqliteOptions): Database {
  const Driver = loadDriver();
  const deadline = performance.now() + options.busyTimeoutMs;
  for (;;) {
    try {
      claim(file);
      return openOnce(Driver, file, options);
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

function openOnce(
  Driver: Driver,
  file: string,
  { busyTimeoutMs, synchronous, migrations }: SqliteOptions,
): Database {
  const db = new Driver(file, { timeout: busyTimeoutMs });
  try {
    db.transaction(versionOf)(db, migrations.length); // before anything is changed, and all of it at one moment
    if (db.pragma("journal_mode = WAL", { simple: true }) !== "wal") throw new Error("it can have no WAL");
    db.pragma(`synchronous = ${synchronous}`);
    db.pragma("trusted_schema = OFF"); // sqlite.org/security.html: a stranger may have written to it
    db.transaction((opened: Database) => {
      for (const script of migrations.slice(versionOf(opened, migrations.length))) opened.exec(script);
      opened.pragma(`user_version = ${migrations.length}`);
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

/** How many of the migrations it has seen; 0 if it is new. Throws if it holds something else. */
function versionOf(db: Database, latest: number): number {
  const version = Number(db.pragma("user_version", { simple: true }));
  if (version > latest || version < 0) throw new Error("it is of another version of the store");
  if (version === 0 && db.prepare("SELECT 1 FROM sqlite_schema").get() !== undefined)
    throw new Error("it holds something else");
  return version;
}
