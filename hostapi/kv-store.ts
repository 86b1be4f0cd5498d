/**
 * Where the kv capability keeps things: the port that a store implements, and the store in memory.
 *
 * The rule: a namespace and a key are two things all the way down and are never joined into one text. (The failure
 * behind it: tenant "a" with the key "b:c" reads what tenant "a:b" keeps under "c".) Texts are equal if their code
 * units are: no normal form, no case folding, no trimming. Nothing may live here that knows a guest, a run or a codec.
 *
 * A port of six facts, so that a server with scripts or transactions (Redis, PostgreSQL) can stand behind it:
 *
 * - Each call is atomic against every other, also of other processes that share the store: `set` compares the version,
 *   counts the quota and writes as one act, so that of two writers with one version exactly one wins, and two that
 *   fit only one by one do not both squeeze in.
 * - An entry whose `expiresMs` is not after `nowMs` is not there: not read, not listed, not counted.
 * - `usage` and the quota count `entryBytes` of every entry of the namespace, exactly.
 * - Keys come in the order of their UTF-8 bytes.
 * - A method rejects if the store cannot be reached or is damaged; the guest learns no more than that.
 * - Entries are neither changed nor kept changeable: the store owns those it was given and those it gave are read only.
 */

export interface KvEntry {
  /** Opaque to the store: well-formed text without NUL. */
  readonly text: string;
  readonly blob: Uint8Array;
  /** A new one at every write, never used before for this key. */
  readonly version: string;
  /** Milliseconds since 1970 from which on it is gone; undefined: never. */
  readonly expiresMs: number | undefined;
}

export interface KvConditions {
  readonly nowMs: number;
  /** Write only over this version; null: only if nothing is there; undefined: in any case. */
  readonly ifVersion: string | null | undefined;
  /** Of the whole namespace. A write that leaves it no larger than it was is never refused. */
  readonly maxBytes: number;
  readonly maxKeys: number;
}

/** What became of a write. All but `stored` leave everything as it was. */
export type KvSetResult = "stored" | "conflict" | "too-many-keys" | "too-many-bytes";

export interface KvRange {
  /** Keys that begin with it; "" for all. */
  readonly prefix: string;
  /** Keys after it; undefined: from the first. */
  readonly after: string | undefined;
  readonly limit: number;
}

export interface KvUsage {
  readonly keys: number;
  readonly bytes: number;
}

export interface KvStore {
  get(namespace: string, key: string, nowMs: number): Promise<KvEntry | undefined>;
  set(namespace: string, key: string, entry: KvEntry, conditions: KvConditions): Promise<KvSetResult>;
  /** Whether something was there. */
  delete(namespace: string, key: string, nowMs: number): Promise<boolean>;
  list(namespace: string, range: KvRange, nowMs: number): Promise<string[]>;
  usage(namespace: string, nowMs: number): Promise<KvUsage>;
}

/** A store whose namespaces have an owner each, named by what they begin with. */
export interface SpacesStore extends KvStore {
  /** Removes all entries of every namespace that begins with this. */
  removeSpaces(prefix: string): Promise<void>;
}

/** What an entry counts: the UTF-8 of its key and text, and its blob. */
export const entryBytes = (key: string, { text, blob }: Pick<KvEntry, "text" | "blob">): number =>
  Buffer.byteLength(key) + Buffer.byteLength(text) + blob.byteLength;

/** The quota's rule, for every store: `undefined` if a write that makes `before` into `after` may happen. */
export function overQuota(
  before: KvUsage,
  after: KvUsage,
  { maxBytes, maxKeys }: KvConditions,
): KvSetResult | undefined {
  if (after.keys > before.keys && after.keys > maxKeys) return "too-many-keys";
  if (after.bytes > before.bytes && after.bytes > maxBytes) return "too-many-bytes";
  return undefined;
}

/** Order of UTF-8 bytes, which is that of code points: by UTF-16 units U+10000 would come before U+E000. */
export function compareKeys(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at++) {
    const x = a.charCodeAt(at);
    const y = b.charCodeAt(at);
    if (x === y) continue;
    const xIsHigh = x >= 0xd800 && x <= 0xdfff;
    const yIsHigh = y >= 0xd800 && y <= 0xdfff;
    return xIsHigh === yIsHigh ? x - y : xIsHigh ? 1 : -1;
  }
  return a.length - b.length;
}

/** An array in order. A guest can ask for a listing after every write: sorting anew each time would be its lever. */
class SortedList<T> {
  readonly items: T[] = [];
  readonly #compare: (a: T, b: T) => number;
  constructor(compare: (a: T, b: T) => number) {
    this.#compare = compare;
  }

  /** Index of the first item that is not before `item`. */
  at(item: T): number {
    let [low, high] = [0, this.items.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#compare(this.items[middle] as T, item) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }
  add(item: T): void {
    this.items.splice(this.at(item), 0, item);
  }
  /** An equal item must be in it. */
  remove(item: T): void {
    this.items.splice(this.at(item), 1);
  }
}

class Namespace {
  readonly entries = new Map<string, KvEntry>();
  readonly keys = new SortedList<string>(compareKeys);
  readonly expiries = new SortedList<{ at: number; key: string }>(
    (a, b) => a.at - b.at || compareKeys(a.key, b.key),
  );
  bytes = 0;

  put(key: string, entry: KvEntry): void {
    this.entries.set(key, entry);
    this.keys.add(key);
    if (entry.expiresMs !== undefined) this.expiries.add({ at: entry.expiresMs, key });
    this.bytes += entryBytes(key, entry);
  }

  remove(key: string): boolean {
    const entry = this.entries.get(key);
    if (entry === undefined) return false;
    this.entries.delete(key);
    this.keys.remove(key);
    if (entry.expiresMs !== undefined) this.expiries.remove({ at: entry.expiresMs, key });
    this.bytes -= entryBytes(key, entry);
    return true;
  }

  expire(nowMs: number): void {
    for (;;) {
      const first = this.expiries.items[0];
      if (first === undefined || first.at > nowMs) return;
      this.remove(first.key);
    }
  }

  get usage(): KvUsage {
    return { keys: this.entries.size, bytes: this.bytes };
  }
}

/**
 * A store in this process's memory, gone with it. Atomic because nothing in it waits. Throws TypeError if it is passed
 * anything: what bounds it is kv's.
 */
export function memoryStore(...nothing: never[]): KvStore {
  if (nothing.length > 0) {
    throw new TypeError("memoryStore: takes no options; pass namespace and quota to kv()");
  }
  const namespaces = new Map<string, Namespace>();
  /** Without what has expired; empty ones are forgotten, for names may be as many as tenants. */
  const at = (name: string, nowMs: number): Namespace => {
    const found = namespaces.get(name) ?? new Namespace();
    found.expire(nowMs);
    if (found.entries.size === 0) namespaces.delete(name);
    return found;
  };
  // oxlint-disable typescript/require-await -- the port's methods answer later; this store at once
  return Object.freeze<KvStore>({
    async get(namespace, key, nowMs) {
      return at(namespace, nowMs).entries.get(key);
    },

    async set(namespace, key, entry, conditions) {
      const space = at(namespace, conditions.nowMs);
      const old = space.entries.get(key);
      const { ifVersion } = conditions;
      if (ifVersion !== undefined && ifVersion !== (old?.version ?? null)) return "conflict";
      const before = space.usage;
      const after = {
        keys: before.keys + (old === undefined ? 1 : 0),
        bytes: before.bytes + entryBytes(key, entry) - (old === undefined ? 0 : entryBytes(key, old)),
      };
      const full = overQuota(before, after, conditions);
      if (full !== undefined) return full;
      space.remove(key);
      space.put(key, entry);
      namespaces.set(namespace, space);
      return "stored";
    },

    async delete(namespace, key, nowMs) {
      const space = at(namespace, nowMs);
      const was = space.remove(key);
      if (space.entries.size === 0) namespaces.delete(namespace);
      return was;
    },

    async list(namespace, { prefix, after, limit }, nowMs) {
      const { keys } = at(namespace, nowMs);
      const start = after === undefined || compareKeys(after, prefix) < 0 ? prefix : after;
      const found: string[] = [];
      for (let index = keys.at(start); index < keys.items.length && found.length < limit; index++) {
        const key = keys.items[index] as string;
        if (!key.startsWith(prefix)) break;
        if (key !== after) found.push(key);
      }
      return found;
    },

    async usage(namespace, nowMs) {
      return at(namespace, nowMs).usage;
    },
  });
}
