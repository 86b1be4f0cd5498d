/**
 * The capability "kv": values under keys in one namespace of a store, with compare-and-set, expiry and a quota.
 *
 * The rule: a script names a key and nothing else. Namespace, prefix and quota are the grant's, so no key reaches
 * beyond them, whatever it holds. Values are kept as the codec writes them: that text has no JSON object in it, so
 * nothing that a script stored can come back as a key that the host trips over. (The failures behind it: prototype
 * pollution through `JSON.parse` of stored values; quotas that were checked first and charged later, which parallel
 * writers overran; counters that lost updates between a read and a write.)
 */
import { randomBytes } from "node:crypto";
import { z } from "zod";
import { codec } from "../engine/codec.js";
import { Capability, CapabilityError, capability, method, type Call } from "./capability.js";
import { aFunction, anything, checkOptions, type Checks, wholeNumber } from "./options.js";
import { entryBytes, memoryStore, type KvEntry, type KvStore } from "./kv-store.js";

export interface KvOptions {
  /** Which part of the store; "default" if absent. Any text of 1 to 512 bytes without control characters: "tenant-7". */
  namespace?: string;
  /** `memoryStore()` of its own if absent. The caller's to close. */
  store?: KvStore;
  /** Bytes of all keys and values in the namespace; 10 MiB. Stops a script that fills the host's memory or disk. */
  quotaBytes?: number;
  /** Keys in the namespace; 10000. Stops what bytes do not: each entry costs the store more than its bytes. */
  maxKeys?: number;
  /** UTF-8 bytes of one key; 512. */
  maxKeyBytes?: number;
  /** Bytes of one value as the codec writes it; 256 KiB. Stops a value that takes long to read and to write. */
  maxValueBytes?: number;
  /** Milliseconds since 1970, for expiry; the host's clock if absent. */
  now?: () => number;
}

/** What a grant reaches. */
interface View {
  readonly namespace: string;
  readonly store: KvStore;
  readonly prefix: string;
  readonly quotaBytes: number;
  readonly maxKeys: number;
  readonly maxKeyBytes: number;
  readonly maxValueBytes: number;
  readonly now: () => number;
}

const views = new WeakMap<KvCapability, View>();

export class KvCapability extends Capability {
  /** Of this file. */
  constructor(view: View) {
    const bounds = view.prefix === "" ? [] : [`keys that begin with ${JSON.stringify(view.prefix)}`];
    const base = capability("kv", methodsOf(view));
    super({
      name: base.name,
      methods: base.methods,
      bounds,
      invoke: (name, args, call) => base.invoke(name, args, call),
    });
    views.set(this, view);
  }

  /**
   * A weaker one whose keys all begin with `prefix`, which the script does not see: its "x" is this one's "a/x". The
   * quota stays the namespace's. Throws TypeError for a prefix that could not be a key.
   */
  prefix(prefix: string): KvCapability {
    const view = views.get(this) as View;
    const problem = typeof prefix === "string" ? keyProblem(prefix, view.maxKeyBytes) : "must be a string";
    if (problem !== undefined) throw new TypeError(`kv: prefix ${problem}`);
    return new KvCapability({ ...view, prefix: view.prefix + prefix });
  }
}

const OPTIONS: Checks<KvOptions> = {
  namespace: (value) => (typeof value === "string" ? keyProblem(value, 512) : "must be a string"),
  store: anything, // by its methods, below
  quotaBytes: wholeNumber(1),
  maxKeys: wholeNumber(1, 1e9),
  maxKeyBytes: wholeNumber(1, 4096),
  maxValueBytes: wholeNumber(1, 256 * 1024 * 1024),
  now: aFunction("that returns milliseconds"),
};

/**
 * Values under keys, kept in a store. Throws TypeError naming the option that is wrong.
 *
 * A guest's values are whatever can cross but functions and capabilities. Codes besides the common ones: `conflict` (it
 * is not the version that `ifVersion` names: an error and no `undefined`, for an answer can be overlooked and then an
 * update is lost), `quota`, `too-large`, `unavailable` (the store; why is for the host alone).
 */
export function kv(options: KvOptions = {}): KvCapability {
  checkOptions("kv", options, OPTIONS);
  const { namespace = "default", store = memoryStore(), now = Date.now } = options;
  const port = store as unknown as Record<string, unknown> | null;
  for (const name of ["get", "set", "delete", "list", "usage"]) {
    if (typeof port?.[name] !== "function") {
      throw new TypeError(`kv: store has no ${name}(); pass memoryStore(), sqliteStore(file) or a KvStore`);
    }
  }
  return new KvCapability({
    namespace,
    store,
    prefix: "",
    quotaBytes: options.quotaBytes ?? 10 * 1024 * 1024,
    maxKeys: options.maxKeys ?? 10_000,
    maxKeyBytes: options.maxKeyBytes ?? 512,
    maxValueBytes: options.maxValueBytes ?? 256 * 1024,
    now,
  });
}

/** What is wrong with a key; undefined: nothing. Its length comes first, so a huge one costs no look at it. */
function keyProblem(key: string, maxBytes: number): string | undefined {
  if (key.length < 1) return "must not be empty";
  if (key.length > maxBytes || Buffer.byteLength(key) > maxBytes) return `must be at most ${maxBytes} bytes`;
  if (/\p{Cc}/u.test(key)) return "must not hold control characters";
  // A lone surrogate has no UTF-8 (RFC 3629, 3): stores would make one and the same U+FFFD of all of them.
  if (/\p{Cs}/u.test(key)) return "must be well-formed Unicode";
  return undefined;
}

const keySchema = (maxBytes: number, orEmpty = false): z.ZodType<string> =>
  z.string().superRefine((key, context) => {
    const problem = orEmpty && key === "" ? undefined : keyProblem(key, maxBytes);
    if (problem !== undefined) context.addIssue({ code: "custom", message: problem });
  });

const MAX_TTL_MS = 100 * 366 * 86_400_000;
const MAX_LIST = 1000;

const { encode, decode, isCodecError } = codec();

/** The value as it is stored. Throws CapabilityError `too-large` or `bad-argument`, which says where in the value. */
function encoded(call: Call, value: unknown, maxBytes: number): Pick<KvEntry, "text" | "blob"> {
  const tooLarge = () =>
    new CapabilityError("too-large", `${call.label}.${call.method}: a value is at most ${maxBytes} bytes`);
  try {
    // Every value within a value takes a byte at least: the limit of bytes is one of nodes too.
    const { text, blobs } = encode(value, { maxBytes, maxNodes: maxBytes, root: "value", omitStacks: true });
    const blob = new Uint8Array(blobs.reduce((sum, { byteLength }) => sum + byteLength, 0));
    let end = 0;
    for (const part of blobs) {
      blob.set(part, end);
      end += part.byteLength;
    }
    if (entryBytes("", { text, blob }) > maxBytes) throw tooLarge(); // the codec counts UTF-16 units
    return { text, blob };
  } catch (error) {
    if (!isCodecError(error)) throw error;
    if (error.code === "too-large") throw tooLarge();
    throw new CapabilityError("bad-argument", `${call.label}.${call.method}: ${error.message}`);
  }
}

function decoded(call: Call, { text, blob }: KvEntry): unknown {
  try {
    return decode(JSON.parse(text), blob, { maxNodes: text.length + 1 });
  } catch (cause) {
    throw unavailable(call, cause); // we wrote it: somebody else has been at the store
  }
}

const unavailable = (call: Call, cause: unknown): CapabilityError =>
  new CapabilityError("unavailable", `${call.label}.${call.method}: the store cannot be reached`, { cause });

/** Whatever the store rejects with, the guest learns nothing of. */
async function ask<T>(call: Call, act: () => Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (cause) {
    throw unavailable(call, cause);
  }
}

const queues = new WeakMap<KvStore, Map<string, Promise<unknown>>>();

/**
 * One after another, by name: `act` begins when the one before it ended, however. A thousand increments at once of one
 * counter would otherwise each read, and all but one write in vain, a thousand times over.
 */
async function inTurn<T>(store: KvStore, name: string, act: () => Promise<T>): Promise<T> {
  let queue = queues.get(store);
  if (queue === undefined) queues.set(store, (queue = new Map()));
  const mine = (queue.get(name) ?? Promise.resolve()).then(act, act);
  queue.set(name, mine);
  try {
    return await mine;
  } finally {
    if (queue.get(name) === mine) queue.delete(name);
  }
}

function methodsOf(view: View) {
  const { store, namespace, prefix, maxKeyBytes, maxValueBytes } = view;
  const key = keySchema(maxKeyBytes);
  const audit = ({ key }: { key: string }) => ({ key: prefix + key });

  const read = async (call: Call, key: string): Promise<KvEntry | undefined> => {
    const entry = await ask(call, () => store.get(namespace, prefix + key, view.now()));
    const bytes = entry === undefined ? 0 : entryBytes(prefix + key, entry);
    call.charge(bytes);
    call.note({ bytes });
    return entry;
  };

  /** Whether it was written: false if the version is another. Throws CapabilityError `quota`. */
  const write = async (
    call: Call,
    key: string,
    entry: KvEntry,
    ifVersion: string | null | undefined,
  ): Promise<boolean> => {
    const bytes = entryBytes(prefix + key, entry);
    call.charge(bytes);
    const { quotaBytes: maxBytes, maxKeys } = view;
    const conditions = { nowMs: view.now(), ifVersion, maxBytes, maxKeys };
    const result = await ask(call, () => store.set(namespace, prefix + key, entry, conditions));
    const shown = `${call.label}.${call.method}`;
    switch (result) {
      case "stored":
        call.note({ bytes });
        return true;
      case "conflict":
        return false;
      case "too-many-keys":
        throw new CapabilityError("quota", `${shown}: the store is full: at most ${maxKeys} keys`);
      case "too-many-bytes":
        throw new CapabilityError("quota", `${shown}: the store is full: at most ${maxBytes} bytes`);
      default:
        result satisfies never;
        throw unavailable(call, new Error("the store answered a set with no known word"));
    }
  };

  return {
    get: method({
      doc: "The value under a key, undefined if there is none.",
      params: { key },
      returns: z.unknown(),
      effect: "read",
      audit,
      async run({ key }, call) {
        const entry = await read(call, key);
        return entry === undefined ? undefined : decoded(call, entry);
      },
    }),

    has: method({
      doc: "Whether there is a value under a key.",
      params: { key },
      returns: z.boolean(),
      effect: "read",
      audit,
      run: async ({ key }, call) =>
        (await ask(call, () => store.get(namespace, prefix + key, view.now()))) !== undefined,
    }),

    entry: method({
      doc: "The value under a key with its version and the time at which it expires, undefined if there is none.",
      params: { key },
      returns: z
        .object({ value: z.unknown(), version: z.string(), expiresMs: z.number().optional() })
        .optional(),
      effect: "read",
      audit,
      async run({ key }, call) {
        const entry = await read(call, key);
        if (entry === undefined) return undefined;
        const { version, expiresMs } = entry;
        return { value: decoded(call, entry), version, ...(expiresMs === undefined ? {} : { expiresMs }) };
      },
    }),

    set: method({
      doc: "Keeps a value under a key and returns its version. `ttlMs`: for so long (none: for good). `ifVersion`: only over that version, null only if there is none; else it throws `conflict`.",
      params: {
        key,
        value: z.unknown(),
        options: z
          .strictObject({
            ttlMs: z.int().min(1).max(MAX_TTL_MS).optional(),
            ifVersion: z.string().max(64).nullable().optional(),
          })
          .optional(),
      },
      returns: z.string(),
      effect: "write",
      audit,
      async run({ key, value, options: { ttlMs, ifVersion } = {} }, call) {
        const version = newVersion();
        const expiresMs = ttlMs === undefined ? undefined : view.now() + ttlMs;
        const entry = { ...encoded(call, value, maxValueBytes), version, expiresMs };
        if (await write(call, key, entry, ifVersion)) return version;
        const why = ifVersion === null ? "there is a value already" : "it was changed by somebody else";
        throw new CapabilityError("conflict", `${call.label}.set: ${why}`);
      },
    }),

    delete: method({
      doc: "Removes what is under a key. Returns whether there was something.",
      params: { key },
      returns: z.boolean(),
      effect: "write",
      audit,
      run: ({ key }, call) => ask(call, () => store.delete(namespace, prefix + key, view.now())),
    }),

    list: method({
      doc: `Keys in order (by code points), 100 at a time or up to ${MAX_LIST}. \`prefix\`: only those that begin with it. \`after\`: those after this key; \`next\` is what to pass there for more.`,
      params: {
        options: z
          .strictObject({
            prefix: keySchema(maxKeyBytes, true).optional(),
            after: keySchema(maxKeyBytes, true).optional(),
            limit: z.int().min(1).max(MAX_LIST).optional(),
          })
          .optional(),
      },
      returns: z.object({ keys: z.array(z.string()), next: z.string().optional() }),
      effect: "read",
      audit: ({ options }) => ({ prefix: prefix + (options?.prefix ?? "") }),
      async run({ options: { prefix: wanted = "", after, limit = 100 } = {} }, call) {
        const range = {
          prefix: prefix + wanted,
          after: after === undefined ? undefined : prefix + after,
          limit: limit + 1, // one more tells whether there are more
        };
        const found = await ask(call, () => store.list(namespace, range, view.now()));
        const keys = found.slice(0, limit).map((key) => key.slice(prefix.length));
        call.charge(found.reduce((sum, key) => sum + Buffer.byteLength(key), 0));
        call.note({ keys: keys.length });
        return found.length > limit ? { keys, next: keys.at(-1) } : { keys };
      },
    }),

    increment: method({
      doc: "Adds a whole number (1 if absent) to the whole number under a key (0 if there is none) and returns the sum, as one act. What expires goes on doing so.",
      params: { key, by: z.int().optional() },
      returns: z.number(),
      effect: "write",
      audit,
      async run({ key, by = 1 }, call) {
        const act = async (): Promise<number> => {
          // Another process may come between; each round that fails is one in which somebody else got on.
          while (!call.signal.aborted) {
            const entry = await read(call, key);
            const old = entry === undefined ? 0 : decoded(call, entry);
            const sum = Number.isSafeInteger(old) ? (old as number) + by : NaN;
            if (!Number.isSafeInteger(sum)) {
              const why = Number.isSafeInteger(old) ? "the sum is too large" : "the value is no whole number";
              throw new CapabilityError("bad-argument", `${call.label}.increment: ${why}`);
            }
            const next = {
              ...encoded(call, sum, maxValueBytes),
              version: newVersion(),
              expiresMs: entry?.expiresMs,
            };
            if (await write(call, key, next, entry?.version ?? null)) return sum;
          }
          throw new CapabilityError("timeout", `${call.label}.increment: it took too long`);
        };
        return inTurn(store, JSON.stringify([namespace, prefix + key]), act);
      },
    }),
  };
}

/** Random rather than counted: a count would tell one holder of a prefix how much another one writes. */
const newVersion = (): string => randomBytes(12).toString("base64url");
