/**
 * What a script finds besides its language: console, a clock that stands still between the host's answers, randomness
 * from a generator seeded with the job, timers. `world` is evaluated inside the guest's realm, before the fork and
 * before any guest code, from its own source text: it may refer to nothing but its arguments and the language's
 * globals, and saves every primitive that it will need, so that a script which patches prototypes only harms itself. For
 * the same reason it has no template literal where a guest runs: QuickJS makes them with String.prototype.concat.
 */
import type { Codec } from "./codec.js";

/** What the engine's host side offers to the world. Strings and byte buffers only. */
export interface WorldHost {
  /** One protocol text of that kind and its bytes, at once. */
  call(text: string, ...buffers: ArrayBuffer[]): void;
  reply(text: string, ...buffers: ArrayBuffer[]): void;
  release(text: string): void;
  log(text: string): void;
  result(text: string, ...buffers: ArrayBuffer[]): void;
  /** Collects garbage now, where the engine would not do it by itself: else nobody learns what the guest forgot. */
  collect?(): void;
}

/** The guest's half of the protocol, as far as the world knows it. */
interface Stubs {
  begin(entries: unknown[], maxInFlight: number, maxCallBytes: number): object;
  deliver(kind: string, items: unknown[], bytes: Uint8Array): void;
  flush(): void;
  sleep(ms: number, wake: () => void): void;
  calls(): number;
  outstanding(): number;
}
export type MakeStubs = (port: {
  call: WorldHost["call"];
  reply: WorldHost["reply"];
  release: WorldHost["release"];
  codec: Codec;
  stackOf(stack: unknown): string;
  missing(hint: string): void;
  collect(): void;
}) => Stubs;

/** The web's interfaces that are written in JavaScript (engine/web). */
export type MakeWeb = (host: {
  define(name: string, value: unknown): void;
  /** Milliseconds since the run began. */
  now(): number;
  setTimeout(f: () => void, ms: number): unknown;
}) => { bindFetch(request: unknown): void };

/** What the engine's host side calls in the world. */
export interface WorldControl {
  /**
   * `job` is the JSON array [maxResultBytes, maxLogBytes, maxCallBytes, maxInFlight, maxTimers, virtual clock, least
   * level, env, input, whether it is a script]; `bytes` begins with the 32 of the seed, the input's follow. Called again, it begins anew.
   */
  begin(job: string, bytes: ArrayBuffer): void;
  /** Settles with the module's default export, called with (input, env). `namespace` may be a promise of one. */
  settleModule(namespace: unknown): void;
  /** Settles with a script's completion value. */
  settleScript(value: unknown): void;
  fail(error: unknown): void;
  /** Like `fail`, for an error that exists only as texts. `engineError`: it is of the class of the engine's own. */
  failAs(name: string, message: string, stack: string, engineError: boolean): void;
  /** The host's message: its kind, text and bytes, which become the guest's. */
  deliver(kind: string, text: string, bytes: ArrayBuffer): void;
  /**
   * When no job is left: runs one timer if one is due, else sends what has been put together. The answer: RAN_ONE,
   * JUMP (nothing but a timer is awaited on a virtual clock: move it to `due`), or how many things may still bring
   * the guest to life.
   */
  turn(): number;
  due(): number;
}

/** Answers of `turn` that are no number of things. */
export const RAN_ONE = -1;
export const JUMP = -2;

/* oxlint-disable no-extend-native, unicorn/no-new-array, no-new-func, typescript/no-explicit-any, unicorn/no-thenable */
export function world(
  host: WorldHost,
  makeCodec: () => Codec,
  makeStubs: MakeStubs,
  makeWeb: MakeWeb,
): WorldControl {
  const uncurry = (f: any) => Function.prototype.call.bind(f) as (...args: any[]) => any;
  const { apply, defineProperty, ownKeys, getPrototypeOf, getOwnPropertyDescriptor } = Reflect;
  const { freeze, create } = Object;
  const slice = uncurry(String.prototype.slice);
  const indexOf = uncurry(String.prototype.indexOf);
  const split = uncurry(String.prototype.split);
  const then = uncurry(Promise.prototype.then);
  const isArray = Array.isArray;
  const toString = String;
  const PromiseCtor = Promise;
  const stringify = JSON.stringify;
  const parse = JSON.parse;
  const ErrorCtor = Error;
  // What QuickJS says when its heap or its stack is used up, and what V8 says. The others are looked for nowhere.
  const [EngineError, exhausted, overflow] =
    (globalThis as any).InternalError === undefined
      ? [RangeError, "Array buffer allocation failed", "Maximum call stack size exceeded"]
      : [(globalThis as any).InternalError, "out of memory", "stack overflow"];
  const [dateIso, mapSize, setSize] = [
    uncurry(Date.prototype.toISOString),
    uncurry(Object.getOwnPropertyDescriptor(Map.prototype, "size")?.get),
    uncurry(Object.getOwnPropertyDescriptor(Set.prototype, "size")?.get),
  ];
  const codec = makeCodec();
  const { put } = codec;
  const define = (target: object, name: PropertyKey, value: unknown): void => put(target, name, value, false);
  /** `then` asks a promise for its constructor (ECMA-262 SpeciesConstructor): one of ours must not ask the guest. */
  const unseen = (promise: unknown): unknown => {
    define(promise as object, "constructor", undefined);
    return promise;
  };
  const global = globalThis as any;
  const dateNow = Date.now; // the engine's host side holds it still, or not: that is the clock grant's matter
  /**
   * A function as built-in ones are (ECMA-262 section 18): its own name and length, no constructor, and of its text
   * only that it is native, which a bound function says of itself.
   */
  const bind = uncurry(Function.prototype.bind);
  const native = <F extends (...args: any[]) => unknown>(name: string, length: number, f: F): F => {
    const built = bind(f, undefined);
    const fact = (key: string, value: unknown) =>
      defineProperty(built, key, { __proto__: null, value, configurable: true } as PropertyDescriptor);
    fact("length", length);
    fact("name", name);
    return built;
  };
  let [input, env, lastMissing] = [undefined as unknown, undefined as any, ""];
  let [maxResultBytes, maxLogBytes, maxTimers, startMs, virtual] = [0, 0, 0, 0, false];

  // -- errors ---------------------------------------------------------------------------------------------------
  const OWN_FRAMES = ["(doublehull:", " at doublehull:"];
  const text = (value: unknown, limit: number): string => {
    const s = typeof value === "string" ? value : "";
    return s.length > limit ? slice(s, 0, limit) + "…" : s;
  };
  const cleanStack = (stack: unknown): string => {
    const lines = split(text(stack, 8192), "\n");
    let out = "";
    let kept = 0;
    let at = 0;
    while (at < lines.length && indexOf(lines[at], "    at ") !== 0) at++; // V8 begins with name and message
    for (let i = at; i < lines.length && kept < 32; i++) {
      const line = lines[i];
      if (line === "" || indexOf(line, OWN_FRAMES[0]) >= 0 || indexOf(line, OWN_FRAMES[1]) >= 0) continue;
      out += (out === "" ? "" : "\n") + line;
      kept++;
    }
    return out;
  };
  const read = (value: any, key: string): unknown => {
    try {
      return value[key];
    } catch {
      return undefined; // a throwing getter of the guest's own: its text is not worth more than nothing
    }
  };
  // Each text by itself: an array would be asked for its toJSON, which the guest may have put there.
  const threw = (name: string, message: string, stack: string): void =>
    host.result('["threw",' + stringify(name) + "," + stringify(message) + "," + stringify(stack) + "]");
  const stopped = (reason: string, detail: string): void =>
    host.result('["stopped",' + stringify(reason) + "," + stringify(detail) + "]");

  /** What a script from elsewhere looks for and does not find here, and what there is instead. */
  const INSTEAD: Record<string, string> = {
    __proto__: null as never,
    process: "there is no process here; what a run needs comes as `input` or in `env`",
    require: "modules come with the run (modules: { name: source }, or --module NAME=FILE); use import",
    module: "write an ES module: export default async (input, env) => { … }",
    exports: "write an ES module: export default async (input, env) => { … }",
    Buffer: "use Uint8Array, TextEncoder and TextDecoder, atob and btoa",
    XMLHttpRequest: "use fetch, which comes with the http capability",
    WebSocket: "there is no grant for sockets; use fetch, which comes with the http capability",
    localStorage: "use env.kv, which comes with the kv capability",
    sessionStorage: "use env.kv, which comes with the kv capability",
    indexedDB: "use env.kv, which comes with the kv capability",
    Deno: "files come with the files capability (env.files), requests with the http capability (fetch)",
    Bun: "files come with the files capability (env.files), requests with the http capability (fetch)",
    window: "this is no browser; use globalThis",
    document: "this is no browser",
    global: "use globalThis",
    setImmediate: "use queueMicrotask or setTimeout",
    Intl: "this engine has no Intl",
    SharedArrayBuffer: "there is no shared memory here",
    Atomics: "there is no shared memory here",
    WebAssembly: "there is no WebAssembly here",
    kv: "it stands in env: env.kv, if the kv capability was granted",
    files: "it stands in env: env.files, if the files capability was granted",
    http: "it stands in env: env.http, if the http capability was granted",
  };
  /** V8's only word to an import() that no host function serves; isolated-vm has none. */
  const NO_IMPORT = " (import() cannot be had with this engine: write import … from … at the top)";
  const hintFor = (name: string, message: string): string => {
    if (name === "ReferenceError" && indexOf(message, " is not defined") > 0) {
      let missing = slice(message, 0, indexOf(message, " is not defined"));
      if (missing[0] === "'") missing = slice(missing, 1, missing.length - 1);
      const instead = INSTEAD[missing];
      return instead === undefined ? "" : " (" + instead + ")";
    }
    if (name === "Error" && message === "Not supported") return NO_IMPORT;
    return name !== "TypeError" || lastMissing === "" ? "" : " (" + lastMissing + ")";
  };
  const fail = (error: any): void => {
    if (error === null || (typeof error !== "object" && typeof error !== "function")) {
      let shown: string;
      try {
        shown = inspect(error, 0);
      } catch {
        shown = "an unprintable value";
      }
      return threw("Error", text(shown, 4096), "");
    }
    let engineError = false;
    try {
      engineError = error instanceof EngineError || error instanceof SyntaxError;
    } catch {
      engineError = false; // a proxy that throws is not the engine's own error
    }
    failAs(read(error, "name"), read(error, "message"), read(error, "stack"), engineError);
  };
  const failAs = (name: unknown, message: unknown, stack: unknown, engineError: boolean): void => {
    if (engineError && message === exhausted) return stopped("memory", "out of memory");
    if (engineError && message === overflow) return stopped("stack", "stack overflow");
    const shownName = text(name, 255) || "Error";
    const shownMessage = text(message, 4000);
    threw(shownName, shownMessage + hintFor(shownName, shownMessage), cleanStack(stack));
  };

  // -- the result -----------------------------------------------------------------------------------------------
  const succeed = (value: unknown): void => {
    let encoded;
    try {
      encoded = codec.encode(value, {
        maxBytes: maxResultBytes,
        maxDepth: 64,
        maxNodes: 1_000_000,
        root: "value",
        stackOf: cleanStack,
      });
    } catch (error) {
      if (codec.isCodecError(error) && error.code === "too-large") {
        return stopped("output", text(error.message, 512));
      }
      return fail(error);
    }
    // What was asked for and not awaited goes out all the same; nobody will hear the answer.
    guestStubs.flush();
    const unheard = guestStubs.calls();
    if (unheard > 0) {
      const calls = unheard === 1 ? "1 call was" : unheard + " calls were";
      unawaited(calls + " not awaited: the script finished before the answer came");
    }
    const parts: unknown[] = ['["ok",' + encoded.text + "]"];
    // The codec's copies: each a buffer of its own.
    for (let i = 0; i < encoded.blobs.length; i++) define(parts, i + 1, bufferOf(encoded.blobs[i]));
    apply(host.result, undefined, parts as never); // no spread: it would ask the guest's iterator
  };
  const typed = getPrototypeOf(Uint8Array.prototype) as object;
  const getter = (name: string) => uncurry(getOwnPropertyDescriptor(typed, name)?.get);
  const [bufferOf, offsetOf, lengthOf] = [getter("buffer"), getter("byteOffset"), getter("byteLength")];

  // -- console --------------------------------------------------------------------------------------------------
  const inspect = (value: any, depth: number): string => {
    switch (typeof value) {
      case "string":
        return depth === 0 ? value : stringify(text(value, 200));
      case "bigint":
        return toString(value) + "n";
      case "symbol":
        return toString(value);
      case "function":
        return "[Function " + (text(read(value, "name"), 80) || "(anonymous)") + "]";
      case "object":
        return value === null ? "null" : inspectObject(value, depth);
      default:
        return value === 0 && 1 / value < 0 ? "-0" : toString(value);
    }
  };
  const inspectObject = (value: any, depth: number): string => {
    if (value instanceof ErrorCtor) {
      const stack = cleanStack(read(value, "stack"));
      const head = (text(read(value, "name"), 80) || "Error") + ": " + text(read(value, "message"), 1000);
      return stack === "" || depth > 0 ? head : head + "\n" + stack;
    }
    try {
      return dateIso(value);
    } catch {
      // not a Date, or an invalid one: shown as the object that it is
    }
    try {
      return "Map(" + mapSize(value) + ")";
    } catch {
      // not a Map
    }
    try {
      return "Set(" + setSize(value) + ")";
    } catch {
      // not a Set
    }
    if (depth >= 3) return isArray(value) ? "[Array]" : "[Object]";
    let out = "";
    const limit = 50;
    if (isArray(value)) {
      const length = value.length;
      for (let i = 0; i < length && i < limit; i++) out += (i ? ", " : "") + inspect(value[i], depth + 1);
      return "[" + out + (length > limit ? ", … " + (length - limit) + " more" : "") + "]";
    }
    const keys = ownKeys(value);
    let shown = 0;
    for (let i = 0; i < keys.length && shown < limit; i++) {
      const key = keys[i] as PropertyKey;
      const property = getOwnPropertyDescriptor(value, key);
      if (property === undefined || !property.enumerable) continue;
      const label = typeof key === "symbol" ? "[" + toString(key) + "]" : text(key, 100);
      out +=
        (shown++ ? ", " : "") +
        label +
        ": " +
        (property.get ? "[Getter]" : inspect(property.value, depth + 1));
    }
    return out === "" ? "{}" : "{ " + out + " }";
  };
  let [loggedBytes, leastLevel] = [0, 0];
  const print =
    (level: string, rank: number) =>
    (...args: unknown[]): void => {
      if (rank < leastLevel) return;
      if (loggedBytes > maxLogBytes) return; // the cap has been reported to the host: what follows is dropped here
      loggedBytes += 16; // an empty line is a line too
      const line: string[] = [];
      let width = 0;
      for (let i = 0; i < args.length && i < 64 && width < 65536; i++) {
        let shown: string;
        try {
          shown = text(inspect(args[i], 0), maxLogBytes < 16384 ? maxLogBytes : 16384);
        } catch {
          shown = "[unprintable]";
        }
        loggedBytes += shown.length + 16;
        width += shown.length;
        define(line, i, shown);
      }
      // Each by itself: an array would be asked for its toJSON, which the guest may have put there.
      let texts = "";
      for (let i = 0; i < line.length; i++) texts += (i === 0 ? "" : ",") + stringify(line[i]);
      host.log('["' + level + '",' + dateNow() + ",[" + texts + "]]");
    };
  const unawaited = print("warn", 3);
  const consoleObject: any = {};
  const LEVELS = ["debug", "log", "info", "warn", "error"];
  for (let i = 0; i < LEVELS.length; i++)
    consoleObject[LEVELS[i]!] = native(LEVELS[i]!, 0, print(LEVELS[i]!, i));
  consoleObject.trace = native("trace", 0, print("debug", 0));
  consoleObject.assert = native("assert", 0, (ok: unknown, ...args: unknown[]) => {
    if (!ok) apply(consoleObject.error, undefined, ["Assertion failed", ...args]);
  });
  define(global, "console", consoleObject);

  // -- clock ----------------------------------------------------------------------------------------------------
  // Date itself reads the engine's clock, which the host side holds still; only performance has to be added.
  define(
    global,
    "performance",
    freeze({
      now: native("now", 0, () => dateNow() - startMs),
      get timeOrigin() {
        return startMs;
      },
    }),
  );

  // -- randomness: ChaCha20 (RFC 8439 section 2.3, with a 16-byte key) for bytes, xoshiro128** beside it -------------
  const key = new Uint32Array(4);
  const block = new Uint32Array(16);
  const bytes = new Uint8Array(block.buffer);
  let [counter, used] = [0, 64];
  const rotate = (x: number, n: number) => (x << n) | (x >>> (32 - n));
  const quarter = (s: Uint32Array, a: number, b: number, c: number, d: number) => {
    s[a]! += s[b]!;
    s[d] = rotate(s[d]! ^ s[a]!, 16);
    s[c]! += s[d]!;
    s[b] = rotate(s[b]! ^ s[c]!, 12);
    s[a]! += s[b]!;
    s[d] = rotate(s[d]! ^ s[a]!, 8);
    s[c]! += s[d]!;
    s[b] = rotate(s[b]! ^ s[c]!, 7);
  };
  const initial = new Uint32Array(16);
  const refill = (): void => {
    initial[0] = 0x61707865;
    initial[1] = 0x3120646e;
    initial[2] = 0x79622d36;
    initial[3] = 0x6b206574;
    for (let i = 0; i < 8; i++) initial[4 + i] = key[i & 3]!;
    initial[12] = counter;
    initial[13] = initial[14] = initial[15] = 0;
    counter++;
    for (let i = 0; i < 16; i++) block[i] = initial[i]!;
    for (let round = 0; round < 10; round++) {
      quarter(block, 0, 4, 8, 12);
      quarter(block, 1, 5, 9, 13);
      quarter(block, 2, 6, 10, 14);
      quarter(block, 3, 7, 11, 15);
      quarter(block, 0, 5, 10, 15);
      quarter(block, 1, 6, 11, 12);
      quarter(block, 2, 7, 8, 13);
      quarter(block, 3, 4, 9, 14);
    }
    for (let i = 0; i < 16; i++) block[i]! += initial[i]!;
    used = 0;
  };
  const randomByte = (): number => {
    if (used === 64) refill();
    return bytes[used++]!;
  };
  const Math_imul = Math.imul;
  let [s0, s1, s2, s3] = [1, 2, 3, 4];
  const randomWord = (): number => {
    const result = Math_imul(rotate(Math_imul(s1, 5), 7), 9) >>> 0;
    const t = s1 << 9;
    s2 ^= s0;
    s3 ^= s1;
    s1 ^= s2;
    s0 ^= s3;
    s2 ^= t;
    s3 = rotate(s3, 11);
    return result;
  };
  const random = () => ((randomWord() >>> 5) * 67108864 + (randomWord() >>> 6)) / 9007199254740992;
  define(Math, "random", native("random", 0, random));
  const [Uint8, Words] = [Uint8Array, Uint32Array];
  const hex = "0123456789abcdef";
  define(
    global,
    "crypto",
    freeze({
      getRandomValues: native("getRandomValues", 1, <T>(array: T): T => {
        let [buffer, offset, length] = [undefined as any, 0, 0];
        try {
          [buffer, offset, length] = [bufferOf(array), offsetOf(array), lengthOf(array)];
        } catch {
          throw new TypeError("crypto.getRandomValues: the argument must be a typed array");
        }
        if (length > 65536) throw new RangeError("crypto.getRandomValues: at most 65536 bytes at a time");
        const view = new Uint8(buffer, offset, length);
        for (let i = 0; i < length; i++) view[i] = randomByte();
        return array;
      }),
      randomUUID: native("randomUUID", 0, (): string => {
        let out = "";
        for (let i = 0; i < 16; i++) {
          let byte = randomByte();
          if (i === 6) byte = (byte & 0x0f) | 0x40;
          if (i === 8) byte = (byte & 0x3f) | 0x80;
          if (i === 4 || i === 6 || i === 8 || i === 10) out += "-";
          out += hex[byte >> 4]! + hex[byte & 15]!;
        }
        return out;
      }),
    }),
  );
  // -- timers and microtasks ------------------------------------------------------------------------------------
  interface Timer {
    id: number;
    due: number;
    every: number;
    run: () => void;
    next: Timer | undefined;
  }
  let [queue, lastTimer, timerCount] = [undefined as Timer | undefined, 0, 0];
  interface Wake {
    at: number;
    next: Wake | undefined;
  }
  /** When the host was asked to wake us, and has not yet. */
  let wakes: Wake | undefined;
  let wakeCount = 0;
  /** A little less than the broker lets us sleep at once: an interval that goes on adds to it. */
  const MAX_WAKES = 1000;
  const wakeBy = (at: number, now: number): void => {
    for (let wake = wakes; wake !== undefined; wake = wake.next) if (wake.at <= at) return;
    const wake: Wake = { at, next: wakes };
    wakes = wake;
    wakeCount++;
    guestStubs.sleep(at - now, () => {
      wakeCount--;
      if (wakes === wake) wakes = wake.next;
      for (let other = wakes; other !== undefined; other = other.next) {
        if (other.next === wake) other.next = wake.next;
      }
    });
  };
  const enqueue = (timer: Timer): void => {
    if (queue === undefined || timer.due < queue.due) {
      timer.next = queue;
      queue = timer;
      return;
    }
    let before = queue;
    while (before.next !== undefined && before.next.due <= timer.due) before = before.next;
    timer.next = before.next;
    before.next = timer;
  };
  const addTimer = (name: string, f: any, ms: unknown, repeat: boolean, args: unknown[]): number => {
    if (typeof f !== "function") throw new TypeError(name + ": the first argument must be a function");
    if (timerCount >= maxTimers) {
      throw new RangeError(
        maxTimers === 0
          ? name + ": timers were taken from this run (timers grant)"
          : name + ": at most " + maxTimers + " timers may be pending",
      );
    }
    // At least one, as elsewhere: a chain of timers without delay must not keep the host's answers from being heard.
    let delay = Number(ms);
    if (!(delay >= 1)) delay = 1;
    if (delay > 2147483647) delay = 2147483647;
    const timer: Timer = create(null);
    timer.id = ++lastTimer;
    timer.every = repeat ? delay : -1;
    timer.due = dateNow() + delay;
    // Each that is due before all others asks the host for a wake, and none can be taken back.
    if (wakeCount >= MAX_WAKES && timer.due < wakes!.at) {
      throw new RangeError(name + ": over " + MAX_WAKES + " timers were set, each for an earlier time");
    }
    timer.run = () => void apply(f, undefined, args);
    timer.next = undefined;
    enqueue(timer);
    timerCount++;
    return timer.id;
  };
  const clearTimer = (id: unknown): void => {
    let before: Timer | undefined;
    for (let timer = queue; timer !== undefined; timer = timer.next) {
      if (timer.id === id) {
        if (before === undefined) queue = timer.next;
        else before.next = timer.next;
        timerCount--;
        return;
      }
      before = timer;
    }
  };
  const offer = (name: string, length: number, f: (...args: any[]) => unknown): void =>
    define(global, name, native(name, length, f));
  const timerFunction =
    (name: string, repeat: boolean) =>
    (f: unknown, ms?: unknown, ...args: unknown[]): number =>
      addTimer(name, f, ms, repeat, args);
  offer("setTimeout", 1, timerFunction("setTimeout", false));
  offer("setInterval", 1, timerFunction("setInterval", true));
  offer("clearTimeout", 0, clearTimer);
  offer("clearInterval", 0, clearTimer);
  const resolved = unseen(PromiseCtor.resolve());
  offer("queueMicrotask", 1, (f: unknown) => {
    if (typeof f !== "function") throw new TypeError("queueMicrotask: the argument must be a function");
    then(resolved, () => void apply(f as () => void, undefined, []));
  });

  // -- what a guest does not get --------------------------------------------------------------------------------
  delete global.SharedArrayBuffer;
  delete global.Atomics;

  // What fails while a result is being told (the memory may be used up) is told like an error of the script.
  const settle = (promise: unknown): void =>
    void then(unseen(then(unseen(promise), succeed)), undefined, fail);
  /** What `fetch` asks: a request that changes nothing needs only the right to read. */
  const requester = (http: any): unknown => {
    if (http === undefined || http === null) return undefined;
    const { read: get, request } = http;
    return (wish: any) => {
      if (get !== undefined && (wish.method === "GET" || wish.method === "HEAD")) {
        return get({ url: wish.url, method: wish.method, headers: wish.headers, redirect: wish.redirect });
      }
      if (request === undefined) throw new TypeError("http was granted for GET and HEAD only");
      return request(wish);
    };
  };
  const noted = (name: string): void => void (lastMissing = name);
  const guestStubs = makeStubs({
    call: host.call,
    reply: host.reply,
    release: host.release,
    codec,
    stackOf: cleanStack,
    missing: noted,
    collect: host.collect ?? (() => {}),
  });
  const web = makeWeb({
    define: (name, value) => define(global, name, value),
    now: () => dateNow() - startMs,
    setTimeout: (f, ms) => addTimer("setTimeout", f, ms, false, []),
  });

  return {
    begin(job, bytesIn) {
      const parts = parse(job);
      const words = new Words(bytesIn, 0, 8);
      // Half of the seed for each: what Math.random shows tells nothing of the bytes that crypto gives.
      [s0, s1, s2, s3] = [words[0]!, words[1]!, words[2]!, words[3]! | 1];
      for (let i = 0; i < 4; i++) key[i] = words[4 + i]!;
      [counter, used] = [0, 64];
      [maxResultBytes, maxLogBytes, maxTimers, virtual] = [parts[0], parts[1], parts[4], parts[5]];
      startMs = dateNow();
      [loggedBytes, queue, timerCount, wakes, wakeCount, lastMissing] = [0, undefined, 0, undefined, 0, ""];
      for (leastLevel = 0; LEVELS[leastLevel] !== parts[6];) leastLevel++;
      input = codec.decode(parts[8], new Uint8(bytesIn, 32), { maxDepth: 64, maxNodes: 1_000_000 });
      env = guestStubs.begin(parts[7], parts[3], parts[2]);
      if (parts[9]) {
        define(global, "input", input);
        define(global, "env", env);
      }
      web.bindFetch(requester(getOwnPropertyDescriptor(env, "http")?.value));
    },
    settleModule(namespace) {
      const call = (ns: any): unknown => {
        const main = ns.default;
        if (typeof main !== "function") {
          throw new TypeError(
            "the module has no default export to call: write `export default async (input, env) => { … }`",
          );
        }
        return main(input, env);
      };
      if (namespace instanceof PromiseCtor) settle(then(namespace, call));
      else {
        settle(
          new PromiseCtor((resolve, reject) => {
            try {
              resolve(call(namespace));
            } catch (error) {
              reject(error);
            }
          }),
        );
      }
    },
    settleScript(value) {
      settle(new PromiseCtor((resolve) => resolve(value)));
    },
    fail,
    failAs,
    deliver(kind, json, bytesIn) {
      guestStubs.deliver(kind, parse(json), new Uint8(bytesIn));
    },
    turn() {
      const timer = queue;
      const now = timer === undefined ? 0 : dateNow();
      if (timer !== undefined && timer.due <= now) {
        queue = timer.next;
        if (timer.every >= 0) {
          timer.due = now + timer.every;
          enqueue(timer);
        } else timerCount--;
        timer.run();
        return -1; // RAN_ONE; the constants are out of this realm's reach
      }
      if (timer !== undefined) {
        if (virtual) {
          if (guestStubs.calls() === 0) return -2; // JUMP
        } else wakeBy(timer.due, now);
      }
      guestStubs.flush();
      return guestStubs.outstanding();
    },
    due: () => queue?.due ?? 0,
  };
}
