/** The stores of the kv capability, for the suites that every one of them passes. */
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll } from "vitest";
import { memoryStore, type KvStore } from "#hostapi/kv-store";
import { StoreError, sqliteStore, type SqliteStore } from "#hostapi/kv-sqlite";

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
  return [
    { name: "in memory", skip: false, make: memoryStore },
    { name: `in SQLite${why}`, skip: noSqlite !== undefined, make: sqlite },
  ];
}
