/** What the script may call. Written by `doublehull types`. */
export interface Env {
  /** Bounds: read-only; only readText. */
  readonly source: {
    /** The text of a file, which must be UTF-8; a byte-order mark is part of it. */
    readText(path: string): Promise<string>;
  };
  /** Bounds: at most 100 calls a run. */
  readonly totals: {
    /** The value under a key, undefined if there is none. */
    get(key: string): Promise<unknown>;
    /** Whether there is a value under a key. */
    has(key: string): Promise<boolean>;
    /** The value under a key with its version and the time at which it expires, undefined if there is none. */
    entry(key: string): Promise<{ value: unknown; version: string; expiresMs?: number | undefined } | undefined>;
    /** Keeps a value under a key and returns its version. `ttlMs`: for so long (none: for good). `ifVersion`: only over that version, null only if there is none; else it throws `conflict`. */
    set(key: string, value: unknown, options?: { ttlMs?: number | undefined; ifVersion?: string | null | undefined }): Promise<string>;
    /** Removes what is under a key. Returns whether there was something. */
    delete(key: string): Promise<boolean>;
    /** Keys in order (by code points), 100 at a time or up to 1000. `prefix`: only those that begin with it. `after`: those after this key; `next` is what to pass there for more. */
    list(options?: { prefix?: string | undefined; after?: string | undefined; limit?: number | undefined }): Promise<{ keys: string[]; next?: string | undefined }>;
    /** Adds a whole number (1 if absent) to the whole number under a key (0 if there is none) and returns the sum, as one act. What expires goes on doing so. */
    increment(key: string, by?: number): Promise<number>;
  };
  readonly events: {
    /** Tells the host of something: a name (letters, digits and _ . : / -) and any data. */
    emit(name: string, data: unknown): Promise<unknown>;
  };
}

/** What a call of the host rejects with. */
export interface CapabilityError extends Error {
  readonly code:
    | "bad-argument"
    | "denied"
    | "revoked"
    | "expired"
    | "budget"
    | "rate"
    | "quota"
    | "not-found"
    | "conflict"
    | "timeout"
    | "too-large"
    | "unavailable"
    | "failed";
}

/** A module's default export. */
export type Script<Input = unknown, Result = unknown> = (input: Input, env: Env) => Result | Promise<Result>;
