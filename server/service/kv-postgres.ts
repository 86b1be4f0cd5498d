/**
 * The tenants' key-value store on PostgreSQL, shared by all nodes.
 *
 * The rule: whoever writes to a namespace holds the lock on its row, which has the count of its keys and bytes. So writers of
 * one namespace come one after another, from whatever node; each sees what the one before has written, and none can see
 * or leave a count that is not that of the entries. Readers wait for nobody.
 *
 * Within a node writers wait in memory, not in the database: a script that writes a thousand things at once would take
 * all the connections, and everybody else's requests would wait for them.
 */
import { createHash } from "node:crypto";
import {
  compareKeys,
  entryBytes,
  overQuota,
  type KvEntry,
  type KvUsage,
  type SpacesStore,
} from "../../hostapi/kv-store.js";
import { first, type Database, type Queries } from "./database.js";

interface Space extends KvUsage {
  id: number;
}
interface EntryRow {
  text: string;
  blob: Uint8Array;
  version: string;
  expires_ms: number | null;
}
/** Of the entry that is to be overwritten, if it is there and has not expired; and of those that have. */
interface Before {
  version: string | null;
  bytes: number | null;
  gone_keys: number;
  gone_bytes: number;
}

const hashOf = (key: string): Uint8Array => createHash("sha256").update(key, "utf8").digest();

/** Over the tables of a database that is PostgreSQL, which stays its owner's to close. */
export function postgresStore(db: Database): SpacesStore {
  const turns = new Map<string, Promise<unknown>>();
  /** One after another, by namespace. */
  const inTurn = async <T>(namespace: string, act: (queries: Queries) => Promise<T>): Promise<T> => {
    const begin = () => db.transaction(act);
    const mine = (turns.get(namespace) ?? Promise.resolve()).then(begin, begin);
    turns.set(namespace, mine);
    try {
      return await mine;
    } finally {
      if (turns.get(namespace) === mine) turns.delete(namespace);
    }
  };

  return Object.freeze<SpacesStore>({
    async get(namespace, key, nowMs) {
      const row = await first<EntryRow>(
        db,
        `SELECT text, blob, version, expires_ms FROM kv_entries JOIN kv_spaces ON kv_spaces.id = space
          WHERE namespace = ? AND hash = ? AND (expires_ms IS NULL OR expires_ms > ?)`,
        namespace,
        hashOf(key),
        nowMs,
      );
      if (row === undefined) return undefined;
      const { text, blob, version, expires_ms: expiresMs } = row;
      return { text, blob, version, expiresMs: expiresMs ?? undefined };
    },

    set: (namespace, key, entry, conditions) =>
      inTurn(namespace, async (queries) => {
        const { nowMs, ifVersion } = conditions;
        const space = await locked(queries, namespace);
        const hash = hashOf(key);
        const [old] = (await queries.all<Before>(
          `SELECT version, old.bytes AS bytes, gone.keys AS gone_keys, gone.bytes AS gone_bytes FROM
            (SELECT count(*) AS keys, coalesce(sum(bytes), 0) AS bytes FROM kv_entries WHERE space = ? AND expires_ms <= ?) AS gone
            LEFT JOIN kv_entries AS old ON space = ? AND hash = ? AND (expires_ms IS NULL OR expires_ms > ?)`,
          space.id,
          nowMs,
          space.id,
          hash,
          nowMs,
        )) as [Before]; // the row of what is gone is there, whatever else is not
        if (ifVersion !== undefined && ifVersion !== old.version) return "conflict";
        const bytes = entryBytes(key, entry);
        const before = { keys: space.keys - old.gone_keys, bytes: space.bytes - old.gone_bytes };
        const after = {
          keys: before.keys + (old.version === null ? 1 : 0),
          bytes: before.bytes + bytes - (old.bytes ?? 0),
        };
        const full = overQuota(before, after, conditions);
        if (full !== undefined) return full;
        await put(queries, { space: space.id, hash, key, bytes, nowMs, after }, entry);
        return "stored";
      }),

    delete: (namespace, key, nowMs) =>
      inTurn(namespace, async (queries) => {
        const space = await first<Space>(
          queries,
          "SELECT id, keys, bytes FROM kv_spaces WHERE namespace = ? FOR UPDATE",
          namespace,
        );
        if (space === undefined) return false;
        const gone = await first<{ bytes: number }>(
          queries,
          "DELETE FROM kv_entries WHERE space = ? AND hash = ? AND (expires_ms IS NULL OR expires_ms > ?) RETURNING bytes",
          space.id,
          hashOf(key),
          nowMs,
        );
        if (gone === undefined) return false;
        if (space.keys === 1) await queries.run("DELETE FROM kv_spaces WHERE id = ?", space.id);
        else await queries.run("UPDATE kv_spaces SET keys = keys - 1, bytes = bytes - ? WHERE id = ?", gone.bytes, space.id); // prettier-ignore
        return true;
      }),

    async list(namespace, { prefix, after = "", limit }, nowMs) {
      const start = compareKeys(after, prefix) < 0 ? prefix : after;
      const rows = await db.all<{ key: string }>(
        `SELECT key FROM kv_entries JOIN kv_spaces ON kv_spaces.id = space
          WHERE namespace = ? AND left(key, 256) >= left(?, 256) AND key >= ? AND key <> ? AND (expires_ms IS NULL OR expires_ms > ?)
          ORDER BY left(key, 256), key LIMIT ?`,
        namespace,
        start,
        start,
        after,
        nowMs,
        limit,
      );
      const keys = rows.map(({ key }) => key);
      const end = keys.findIndex((key) => !key.startsWith(prefix));
      return end < 0 ? keys : keys.slice(0, end);
    },

    async usage(namespace, nowMs) {
      const row = await first<KvUsage>(
        db,
        `SELECT keys - (SELECT count(*) FROM kv_entries WHERE space = kv_spaces.id AND expires_ms <= ?) AS keys,
          bytes - (SELECT coalesce(sum(bytes), 0) FROM kv_entries WHERE space = kv_spaces.id AND expires_ms <= ?) AS bytes
          FROM kv_spaces WHERE namespace = ?`,
        nowMs,
        nowMs,
        namespace,
      );
      return { keys: row?.keys ?? 0, bytes: row?.bytes ?? 0 };
    },

    async removeSpaces(prefix) {
      await db.run("DELETE FROM kv_spaces WHERE starts_with(namespace, ?)", prefix);
    },
  });
}

/** The namespace, which is made if it is not there, with the lock on it. */
async function locked(queries: Queries, namespace: string): Promise<Space> {
  const [space] = (await queries.all<Space>(
    `INSERT INTO kv_spaces (namespace, keys, bytes) VALUES (?, 0, 0)
      ON CONFLICT (namespace) DO UPDATE SET keys = kv_spaces.keys RETURNING id, keys, bytes`,
    namespace,
  )) as [Space]; // either way there is one
  return space;
}

/** One statement: what has expired goes, the entry comes, and the count is that of the entries. */
async function put(
  queries: Queries,
  at: { space: number; hash: Uint8Array; key: string; bytes: number; nowMs: number; after: KvUsage },
  { text, blob, version, expiresMs }: KvEntry,
): Promise<void> {
  await queries.run(
    `WITH gone AS (DELETE FROM kv_entries WHERE space = ? AND expires_ms <= ? AND hash <> ?),
      put AS (INSERT INTO kv_entries (space, hash, key, text, blob, version, expires_ms, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (space, hash) DO UPDATE SET text = excluded.text, blob = excluded.blob, version = excluded.version,
          expires_ms = excluded.expires_ms, bytes = excluded.bytes)
      UPDATE kv_spaces SET keys = ?, bytes = ? WHERE id = ?`,
    at.space,
    at.nowMs,
    at.hash,
    at.space,
    at.hash,
    at.key,
    text,
    blob,
    version,
    expiresMs ?? null,
    at.bytes,
    at.after.keys,
    at.after.bytes,
    at.space,
  );
}
