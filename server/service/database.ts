/**
 * Where the service keeps its state: one small port over SQL, with a driver for a file (SQLite) and one for a server
 * (PostgreSQL). Statements are written once, in what both understand: `?` for a value, texts without NUL, whole numbers and
 * bytes and nothing else in columns, `ON CONFLICT` and `RETURNING`.
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
import { MIGRATIONS, type Statement as Definition } from "./tables.js";

export type Value = string | number | Uint8Array | null;
/** A row as it comes: columns by name. Written by us, so its shape is the statement's. */
export type Row = Record<string, Value>;

/**
 * What a query rejects with where neither the statement nor its values are to blame. `unreachable`: the server, or so
 * overloaded that it is as good as none; whether a write was done may not be known. `gone`: a row that the new one
 * belongs to is not there, or not any more.
 */
export class DatabaseError extends Error {
  override readonly name = "DatabaseError";
  constructor(
    readonly code: "unreachable" | "gone",
    options: ErrorOptions,
  ) {
    super(code === "gone" ? "what it belongs to is not there" : "the database cannot be reached", options);
  }
}

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
  /** Why it cannot be used now, as far as that is known. */
  readonly failure: Error | undefined;
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
    .replace(/^([a-z]+:\/\/)?.*@/is, "$1***@")
    .replace(/\?.*/s, "?***")
    .slice(0, 200);

// ---- SQLite -----------------------------------------------------------------------------------------------------------

/** What says nothing of the statement: another program that writes for longer than is waited, a disk that is full or broken. */
const UNUSABLE = /^SQLITE_(?:BUSY|FULL|IOERR|READONLY|CANTOPEN|NOMEM)/;
const PAUSE_AFTER_MS = 10;

async function openFile(file: string): Promise<Database> {
  let db: SqliteDatabase;
  try {
    db = openSqlite(file, {
      busyTimeoutMs: 5000,
      synchronous: "full", // an accepted job is a promise
      migrations: MIGRATIONS.map((statements) => statements.filter(isEverywhere).join(";\n")),
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
  /** It answers at once: without a pause now and then, who asks a thousand times lets nothing else of this process happen. */
  let paused = performance.now();
  const pause = async () => {
    if (performance.now() - paused < PAUSE_AFTER_MS) return;
    await new Promise((resolve) => setImmediate(resolve));
    paused = performance.now();
  };
  /** There is one connection: whoever is in a transaction has it alone. */
  let turn: Promise<unknown> = Promise.resolve();
  const alone = <T>(act: () => T | Promise<T>): Promise<T> => {
    const mine = turn.then(act);
    turn = mine.catch(() => {}); // its own caller hears of it
    return mine;
  };
  // oxlint-disable-next-line typescript/require-await -- the port's methods answer later, this driver at once
  const told = async <T>(act: () => T): Promise<T> => {
    try {
      return act();
    } catch (cause) {
      const { code = "" } = cause as { code?: string };
      if (code === "SQLITE_CONSTRAINT_FOREIGNKEY") throw new DatabaseError("gone", { cause });
      throw UNUSABLE.test(code) ? new DatabaseError("unreachable", { cause }) : cause;
    }
  };
  const queries: Queries = {
    async all<R>(sql: string, ...values: readonly Value[]) {
      await pause();
      return told(() => prepared(sql).all(...values) as R[]);
    },
    async run(sql, ...values) {
      await pause();
      return told(() => prepared(sql).run(...values).changes);
    },
  };
  return {
    all: (sql, ...values) => alone(() => queries.all(sql, ...values)),
    run: (sql, ...values) => alone(() => queries.run(sql, ...values)),
    transaction: (act) =>
      alone(async () => {
        await queries.run("BEGIN IMMEDIATE");
        try {
          const result = await act(queries);
          await queries.run("COMMIT");
          return result;
        } catch (error) {
          if (db.inTransaction) prepared("ROLLBACK").run(); // of a full disk it has ended by itself
          throw error;
        }
      }),
    failure: undefined, // a file is there, or the process has worse troubles
    close: () => alone(() => db.close()),
  };
}

const isEverywhere = (statement: Definition): statement is string => typeof statement === "string";

// ---- PostgreSQL -------------------------------------------------------------------------------------------------------

/** Any number that nobody else takes for a lock of this kind. */
const MIGRATION_LOCK = 0x646f_75626c;
/** SQLSTATE of what may be tried again: serialization_failure, deadlock_detected (postgresql.org/docs, appendix A). */
const AGAIN = new Set(["40001", "40P01"]);
const REPEATS = 5;
const FOREIGN_KEY = "23503";
/** And of what says nothing of the statement: connections, rights, resources, an operator's hand, a server's own errors. */
const UNREACHABLE = /^(?:08|28|53|57|58|XX)/;

/** For a connection, or for a turn with one: a server that is silent is as good as none, ms. */
const CONNECT_MS = 10_000;
/** For a statement, by the server's clock, and by ours where the server does not even say that, ms. */
const STATEMENT_MS = 20_000;
const ANSWER_MS = 25_000;
/** How long the server keeps the locks of a node that is silent in the middle of a transaction, ms. */
const SILENT_MS = 30_000;
/** Between looks whether the server is there, and for an answer to one, ms. */
const LOOK_MS = 1000;
const LOOK_ANSWER_MS = 5000;

async function openPostgres(url: string): Promise<Database> {
  // Else a part of the password is taken for the name of a host or database, and stands in the server's refusal.
  if (!URL.canParse(url) || /@/.test(url.replace(/^.*?:\/\/[^/?#]*/, ""))) {
    const message = `store: ${withoutPassword(url)} is no URL`;
    const remedy = "Write what a user's name or password has of @ : / ? # and % as %40 %3A %2F %3F %23 %25.";
    throw new SandboxError("bad-option", message, { field: "store", remedy });
  }
  let pg: typeof import("pg");
  try {
    pg = await import("pg");
  } catch (cause) {
    const remedy = "Install it beside doublehull: `npm install pg`; or leave --store out, for a file.";
    throw new SandboxError("host-cannot", "store: PostgreSQL needs the package pg", { cause, remedy });
  }
  const { Pool, types, DatabaseError: ServerError } = pg.default;
  types.setTypeParser(types.builtins.INT8, Number); // ours are milliseconds and counts, within 2^53
  types.setTypeParser(types.builtins.NUMERIC, Number); // what sum() makes of them
  const pool = new Pool({
    connectionString: url,
    max: 10,
    application_name: "doublehull",
    connectionTimeoutMillis: CONNECT_MS,
    statement_timeout: STATEMENT_MS,
    query_timeout: ANSWER_MS,
    idle_in_transaction_session_timeout: SILENT_MS,
  });
  let failure: Error | undefined;
  const lost = (cause: unknown): DatabaseError => {
    const error = new DatabaseError("unreachable", { cause });
    failure ??= error;
    return error;
  };
  const heard = () => {};
  pool.on("error", lost); // an idle connection broke: the next query opens another or tells why not

  /** What a query or a connection rejects with, as the port has it. */
  const told = (error: unknown): unknown => {
    if (error instanceof TypeError || error instanceof RangeError) return error; // our mistake
    if (!(error instanceof ServerError)) return lost(error);
    const { code = "" } = error;
    if (code === FOREIGN_KEY) return new DatabaseError("gone", { cause: error });
    return UNREACHABLE.test(code) ? lost(error) : error;
  };
  const mayRepeat = (error: unknown): boolean => error instanceof ServerError && AGAIN.has(error.code ?? "");
  /** `repeats`: how often a statement may be tried again. One that is a part of a transaction may not. */
  const queriesOf = (client: Pick<import("pg").ClientBase, "query">, repeats: number): Queries => {
    const query = async (sql: string, values: readonly Value[]) => {
      for (let left = repeats; ; left--) {
        try {
          return await client.query<Row>(numbered(sql), [...values]);
        } catch (error) {
          if (left === 0 || !mayRepeat(error)) throw told(error);
        }
      }
    };
    return {
      all: async <R>(sql: string, ...values: readonly Value[]) => (await query(sql, values)).rows as R[],
      run: async (sql, ...values) => (await query(sql, values)).rowCount ?? 0,
    };
  };
  const transaction: Database["transaction"] = async (act) => {
    for (let left = REPEATS; ; left--) {
      const client = await pool.connect().catch((error: unknown) => {
        throw told(error);
      });
      // The pool hears only of idle connections: without this one that breaks here would end the process. The query that
      // is under way, or the next one, rejects with it.
      client.on("error", heard);
      const queries = queriesOf(client, 0);
      try {
        await queries.run("BEGIN");
        const result = await act(queries);
        await queries.run("COMMIT");
        client.release();
        return result;
      } catch (error) {
        await client.query("ROLLBACK").then(
          () => client.release(),
          (broken: Error) => client.release(broken),
        );
        if (left === 0 || !mayRepeat(error)) throw error;
      } finally {
        client.off("error", heard);
      }
    }
  };
  try {
    await transaction(migrate);
  } catch (cause) {
    await pool.end();
    throw unusable(url, cause instanceof DatabaseError ? cause.cause : cause);
  }
  // Looked for all the time: a node that is told no requests because the server was gone would never learn that it is back.
  const look = async () => {
    try {
      await pool.query({ text: "SELECT 1", query_timeout: LOOK_ANSWER_MS } as import("pg").QueryConfig);
      failure = undefined;
    } catch (error) {
      told(error);
    }
    timer = setTimeout(() => {
      looking = look();
    }, LOOK_MS).unref();
  };
  let timer: NodeJS.Timeout | undefined;
  let looking = look();
  return {
    ...queriesOf(pool, REPEATS),
    transaction,
    get failure() {
      return failure;
    },
    async close() {
      await looking;
      clearTimeout(timer);
      await pool.end();
    },
  };
}

async function migrate(queries: Queries): Promise<void> {
  await queries.run("SELECT pg_advisory_xact_lock(?)", MIGRATION_LOCK);
  await queries.run("CREATE TABLE IF NOT EXISTS doublehull_version (version BIGINT NOT NULL)");
  const has =
    (await first<{ version: number }>(queries, "SELECT version FROM doublehull_version"))?.version ?? 0;
  if (has > MIGRATIONS.length) throw new Error("its tables are of a later version of doublehull");
  for (const statement of MIGRATIONS.slice(has).flat()) {
    if (isEverywhere(statement))
      await queries.run(statement.replaceAll(" INTEGER", " BIGINT").replaceAll(/ STRICT$/g, ""));
    else await queries.run(statement.postgres);
  }
  if (has === MIGRATIONS.length) return;
  await queries.run("DELETE FROM doublehull_version");
  await queries.run("INSERT INTO doublehull_version VALUES (?)", MIGRATIONS.length);
}

/** What to do about it, by its code: of Node, or SQLSTATE. */
const REMEDIES: Readonly<Record<string, string>> = {
  ECONNREFUSED: "Start the server, or correct its host and port.",
  ENOTFOUND: "Correct the server's host.",
  "28P01": "Correct the user's name and password.",
  "28000": "Let the user in from this host (pg_hba.conf), or correct its name.",
  "3D000": "Create the database, or correct its name.",
  "42501": "Let the user create tables in the database.",
};

/** What the driver says has names of users, hosts and databases in it, and never a password. */
function unusable(url: string, cause: unknown): SandboxError {
  const { code = "", message } = cause as { code?: string; message: string };
  // Several addresses were tried: the error of all of them has a code and no words.
  const why = message === "" ? code : message;
  const remedy =
    REMEDIES[code] ?? "Check that the server runs, and that the user may create tables in the database.";
  return new SandboxError("host-cannot", `store: ${withoutPassword(url)} cannot be used (${why})`, {
    cause,
    remedy,
    field: "store",
  });
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
