/**
 * Where the service keeps its state: one small port over SQL, with a driver for a file (SQLite) and one for a server
 * (PostgreSQL). Statements are written once, in what both understand: `?` for a value, texts and whole numbers and nothing
 * else in columns, `ON CONFLICT` and `RETURNING`.
 *
 * The rule: what must be true together is written in one transaction, and what several nodes may do at once is decided by
 * a condition in the statement, never by having read before. (The failure behind it: two nodes that both saw a free job.)
 */
import {
  openSqlite,
  StoreError,
  type Database as SqliteDatabase,
  type Statement,
} from "../../hostapi/sqlite.js";
import { SandboxError } from "../errors.js";
import { MIGRATIONS } from "./tables.js";

export type Value = string | number | null;
/** A row as it comes: columns by name. Written by us, so its shape is the statement's. */
export type Row = Record<string, Value>;

export interface Queries {
  /** Rows, in the order that the statement says. */
  all<R = Row>(sql: string, ...values: readonly Value[]): Promise<R[]>;
  /** How many rows were changed. */
  run(sql: string, ...values: readonly Value[]): Promise<number>;
}

export interface Database extends Queries {
  /**
   * What `act` does through its argument happens as a whole or not at all; it may be called again where the server asks to
   * repeat. Nothing but queries may be awaited in it.
   */
  transaction<T>(act: (queries: Queries) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

/** The first row, if there is one. */
export const first = async <R = Row>(queries: Queries, sql: string, ...values: readonly Value[]) =>
  (await queries.all<R>(sql, ...values)).at(0);

/**
 * Opens `sqlite:FILE` or `postgres://...` and brings its tables to this version. The caller closes it. Rejects with
 * SandboxError `host-cannot` and a remedy if the driver is missing or the place cannot be used; no password is in it.
 */
export async function openDatabase(url: string): Promise<Database> {
  if (/^postgres(?:ql)?:\/\//.test(url)) return openPostgres(url);
  const file = /^sqlite:(?!\/\/)(.+)$/s.exec(url)?.[1];
  if (file !== undefined) return openFile(file);
  const message = `the store must be "sqlite:FILE" or "postgres://...", not "${withoutPassword(url)}"`;
  throw new SandboxError("bad-option", message, { field: "store" });
}

/** A URL as it may be shown. */
export const withoutPassword = (url: string): string =>
  // A password may have an @ or a slash that should have been written as an escape; parameters may hold one, too.
  url
    .replace(/\/\/.*@/s, "//***@")
    .replace(/\?.*/s, "?***")
    .slice(0, 200);

// ---- SQLite -----------------------------------------------------------------------------------------------------------

async function openFile(file: string): Promise<Database> {
  let db: SqliteDatabase;
  try {
    db = openSqlite(file, {
      busyTimeoutMs: 5000,
      synchronous: "full", // an accepted job is a promise
      migrations: MIGRATIONS.map((statements) => statements.join(";\n")),
    });
    db.pragma("foreign_keys = ON");
  } catch (cause) {
    if (!(cause instanceof StoreError)) throw cause;
    throw new SandboxError("host-cannot", `store: ${cause.message}`, { cause, remedy: cause.remedy });
  }
  const statements = new Map<string, Statement>();
  const prepared = (sql: string): Statement => {
    let statement = statements.get(sql);
    if (statement === undefined) {
      statement = db.prepare(sql);
      statements.set(sql, statement);
    }
    return statement;
  };
  /** There is one connection: whoever is in a transaction has it alone. */
  let turn: Promise<unknown> = Promise.resolve();
  const alone = <T>(act: () => T | Promise<T>): Promise<T> => {
    const mine = turn.then(act);
    turn = mine.catch(() => {}); // its own caller hears of it
    return mine;
  };
  const queries: Queries = {
    // oxlint-disable-next-line typescript/require-await -- the port's methods answer later, this driver at once
    all: async <R>(sql: string, ...values: readonly Value[]) => prepared(sql).all(...values) as R[],
    // oxlint-disable-next-line typescript/require-await -- as above
    run: async (sql, ...values) => prepared(sql).run(...values).changes,
  };
  return {
    all: (sql, ...values) => alone(() => queries.all(sql, ...values)),
    run: (sql, ...values) => alone(() => queries.run(sql, ...values)),
    transaction: (act) =>
      alone(async () => {
        prepared("BEGIN IMMEDIATE").run();
        try {
          const result = await act(queries);
          prepared("COMMIT").run();
          return result;
        } catch (error) {
          prepared("ROLLBACK").run();
          throw error;
        }
      }),
    close: () => alone(() => db.close()),
  };
}

// ---- PostgreSQL -------------------------------------------------------------------------------------------------------

/** Any number that nobody else takes for a lock of this kind. */
const MIGRATION_LOCK = 0x646f_75626c;
/** SQLSTATE of what may be tried again: serialization_failure, deadlock_detected (postgresql.org/docs, appendix A). */
const AGAIN = new Set(["40001", "40P01"]);

/** For a connection, or for a turn with one: a server that is silent is as good as none, ms. */
const CONNECT_MS = 10_000;

async function openPostgres(url: string): Promise<Database> {
  let pg: typeof import("pg");
  try {
    pg = await import("pg");
  } catch (cause) {
    const remedy = "Install it beside doublehull: `npm install pg`; or use sqlite:FILE.";
    throw new SandboxError("host-cannot", "store: PostgreSQL needs the package pg", { cause, remedy });
  }
  const { Pool, types } = pg.default;
  types.setTypeParser(types.builtins.INT8, Number); // ours are milliseconds and counts, within 2^53
  types.setTypeParser(types.builtins.NUMERIC, Number); // what sum() makes of them
  const pool = new Pool({
    connectionString: url,
    max: 10,
    application_name: "doublehull",
    connectionTimeoutMillis: CONNECT_MS,
  });
  const heard = () => {};
  pool.on("error", heard); // an idle connection broke: the next query opens another or tells why not
  const queriesOf = (client: Pick<import("pg").ClientBase, "query">): Queries => ({
    all: async <R>(sql: string, ...values: readonly Value[]) =>
      (await client.query(numbered(sql), [...values])).rows as R[],
    run: async (sql, ...values) => (await client.query(numbered(sql), [...values])).rowCount ?? 0,
  });
  const transaction: Database["transaction"] = async (act) => {
    for (let left = 5; ; left--) {
      const client = await pool.connect();
      // The pool hears only of idle connections: without this one that breaks here would end the process. The query that
      // is under way, or the next one, rejects with it.
      client.on("error", heard);
      try {
        await client.query("BEGIN");
        const result = await act(queriesOf(client));
        await client.query("COMMIT");
        client.release();
        return result;
      } catch (error) {
        await client.query("ROLLBACK").then(
          () => client.release(),
          (broken: Error) => client.release(broken),
        );
        if (left > 0 && AGAIN.has(String((error as { code?: unknown }).code))) continue;
        throw error;
      } finally {
        client.off("error", heard);
      }
    }
  };
  try {
    await transaction(async (queries) => {
      await queries.run("SELECT pg_advisory_xact_lock(?)", MIGRATION_LOCK);
      await queries.run("CREATE TABLE IF NOT EXISTS doublehull_version (version BIGINT NOT NULL)");
      const has =
        (await first<{ version: number }>(queries, "SELECT version FROM doublehull_version"))?.version ?? 0;
      if (has > MIGRATIONS.length) throw new Error("its tables are of a later version of doublehull");
      for (const statement of MIGRATIONS.slice(has).flat()) {
        await queries.run(statement.replaceAll(" INTEGER", " BIGINT").replaceAll(/ STRICT$/g, ""));
      }
      if (has === MIGRATIONS.length) return;
      await queries.run("DELETE FROM doublehull_version");
      await queries.run("INSERT INTO doublehull_version VALUES (?)", MIGRATIONS.length);
    });
  } catch (cause) {
    await pool.end();
    const message = `store: ${withoutPassword(url)} cannot be used (${(cause as Error).message})`;
    const remedy = "Check that the server runs, and that the user may create tables in the database.";
    throw new SandboxError("host-cannot", message, { cause, remedy });
  }
  return { ...queriesOf(pool), transaction, close: () => pool.end() };
}

const numberedStatements = new Map<string, string>();
/** `?` as PostgreSQL wants them: $1, $2, ... No statement of ours has a question mark for anything else. */
function numbered(sql: string): string {
  let text = numberedStatements.get(sql);
  if (text === undefined) {
    let count = 0;
    text = sql.replaceAll("?", () => `$${++count}`);
    if (numberedStatements.size < 1000) numberedStatements.set(sql, text);
  }
  return text;
}
