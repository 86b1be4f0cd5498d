/** The stores of the kv capability, for the suites that every one of them passes. */
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll } from "vitest";
import { memoryStore, type KvStore, type SpacesStore } from "#hostapi/kv-store";
import { StoreError, sqliteStore, type SqliteStore } from "#hostapi/kv-sqlite";
import { openDatabase, type Database } from "#server/service/database";
import { postgresStore } from "#server/service/kv-postgres";
import { startPostgres, withoutServer, type Postgres } from "./service/servers.js";

/** A directory that goes when the calling file's tests are over. */
export function temporaryDirectory(): string {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-kv-"));
  afterAll(() => fs.rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** Why there is no SQLite here; undefined if there is. */
export const noSqlite: string | undefined = (() => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-kv-"));
  try {
    sqliteStore(path.join(dir, "probe.db")).close();
    return undefined;
  } catch (error) {
    if (error instanceof StoreError && error.code.startsWith("driver-")) return error.message;
    throw error;
  } finally {
    fs.rmSync(dir, { recursive: true, force: true });
  }
})();

/** .ci/run installs the driver: there, a suite that finds none has failed. */
export const sqliteIsOwed = process.env["DOUBLEHULL_CI"] === "1";

/** Makers of empty stores; they are closed when the calling file's tests are over. */
export function storeMakers(): { name: string; skip: boolean; make: () => KvStore }[] {
  const dir = temporaryDirectory();
  const opened: SqliteStore[] = [];
  afterAll(() => {
    for (const store of opened) store.close();
  });
  const sqlite = () => {
    const store = sqliteStore(path.join(dir, `${opened.length}.db`));
    opened.push(store);
    return store;
  };
  const why = noSqlite === undefined ? "" : ` (skipped: ${noSqlite})`;
  const noPostgres = withoutServer("PostgreSQL");
  return [
    { name: "in memory", skip: false, make: memoryStore },
    { name: `in SQLite${why}`, skip: noSqlite !== undefined, make: sqlite },
    { name: `in PostgreSQL${noPostgres ?? ""}`, skip: noPostgres !== undefined, make: postgresMaker() },
  ];
}

function postgresMaker(): () => KvStore {
  let server: Postgres | undefined;
  let db: Database | undefined;
  let store: SpacesStore | undefined;
  beforeAll(async () => {
    if (withoutServer("PostgreSQL") !== undefined) return;
    server = await startPostgres();
    db = await openDatabase(await server.database());
    store = postgresStore(db);
  });
  afterAll(async () => {
    await db?.close();
    await server?.stop();
  });
  let made = 0;
  return () => {
    if (store === undefined) throw new Error("a store is made within a test");
    return within(store, `${made++}/`);
  };
}

/** A part of a store, which is empty as long as nobody else has its prefix. */
function within(store: KvStore, prefix: string): KvStore {
  return {
    get: (namespace, ...rest) => store.get(prefix + namespace, ...rest),
    set: (namespace, ...rest) => store.set(prefix + namespace, ...rest),
    delete: (namespace, ...rest) => store.delete(prefix + namespace, ...rest),
    list: (namespace, ...rest) => store.list(prefix + namespace, ...rest),
    usage: (namespace, ...rest) => store.usage(prefix + namespace, ...rest),
  };
}
