/**
 * The guest's half of the protocol: what stands in `env`, and how a call of it becomes a message. `stubs` is evaluated
 * inside the guest's realm from its own source text, before any guest code; like the codec it refers to nothing
 * outside itself but the standard globals, and saves every primordial that it will need.
 *
 * Nothing here is a wall. A guest that breaks these tables has only itself to talk to: the broker checks every message
 * as if they did not exist. What they do keep is good manners: no more calls in flight than the credit allows, the
 * others wait here; small messages go out together; what the guest forgot is released.
 * No template literal either: QuickJS makes them with String.prototype.concat, which a guest may have replaced.
 */
import type { Codec } from "../engine/codec.js";

/** What the world lends. */
export interface StubPort {
  /** One protocol text of that kind (hostapi/wire.ts) and its bytes. */
  call(text: string, ...buffers: ArrayBuffer[]): void;
  reply(text: string, ...buffers: ArrayBuffer[]): void;
  release(text: string): void;
  codec: Codec;
  /** Of an error's stack, what is the script's own. */
  stackOf(stack: unknown): string;
  /** A script asked for a grant or a method that is not there; `hint` says so, should it fail of that. */
  missing(hint: string): void;
  /** Collects garbage, where weak references would else be held for long. */
  collect(): void;
}

/** `["capability", ref, methods]`, `["function", ref]` or `["text", text]`, after the name in `env`. */
export type EnvEntry =
  | readonly [name: string, kind: "capability", ref: number, methods: readonly string[]]
  | readonly [name: string, kind: "function", ref: number]
  | readonly [name: string, kind: "text", text: string];

export interface Stubs {
  /** Forgets everything and makes `env`. */
  begin(entries: readonly EnvEntry[], maxInFlight: number, maxCallBytes: number): object;
  /** The host's call, reply or release: parsed text and bytes. The bytes become the guest's. */
  deliver(kind: "call" | "reply" | "release", items: unknown[], bytes: Uint8Array): void;
  /** Sends what has been put together. */
  flush(): void;
  /** Asks the host to answer after `ms`. */
  sleep(ms: number, wake: () => void): void;
  /** Calls without an answer. */
  calls(): number;
  /** What may still bring the guest to life: calls, sleeps, functions that the host holds. */
  outstanding(): number;
}

/* oxlint-disable typescript/no-explicit-any, typescript/no-unsafe-type-assertion, unicorn/consistent-function-scoping */
export function stubs(port: StubPort): Stubs {
  const uncurry = (f: any) => Function.prototype.call.bind(f) as (...args: any[]) => any;
  const { apply } = Reflect;
  const { create, freeze } = Object;
  const objectPrototype = Object.prototype;
  const [PromiseCtor, ErrorCtor, MapCtor, ProxyCtor] = [Promise, Error, Map, Proxy];
  const then = uncurry(Promise.prototype.then);
  const quote = JSON.stringify;
  const slice = uncurry(String.prototype.slice);
  const [mapGet, mapSet, mapDelete, mapSize] = [
    uncurry(Map.prototype.get),
    uncurry(Map.prototype.set),
    uncurry(Map.prototype.delete),
    uncurry(Object.getOwnPropertyDescriptor(Map.prototype, "size")?.get),
  ];
  const [weakGet, weakSet] = [uncurry(WeakMap.prototype.get), uncurry(WeakMap.prototype.set)];
  const [WeakRefCtor, deref] = [WeakRef, uncurry(WeakRef.prototype.deref)];
  const typed = Object.getPrototypeOf(Uint8Array.prototype) as object;
  const bufferOf = uncurry(Object.getOwnPropertyDescriptor(typed, "buffer")?.get);
  const lengthOf = uncurry(Object.getOwnPropertyDescriptor(typed, "byteLength")?.get);
  const { call: emitCall, reply: emitReply, release: emitRelease, codec, collect } = port;
  const { put } = codec;
  const noBytes = new Uint8Array(0);

  /** Texts over this go out at once: the host may begin while the guest still computes. */
  const BATCH_CHARS = 16_384;
  /**
   * Of arguments without an answer; a longer call goes alone. The worker can either write or read: were it to write
   * more than the host takes from one that does not read its answers, both would wait for ever.
   */
  const CREDIT_BYTES = 1_048_576;
  const BUILT_IN = ["kv", "files", "http", "events", "approve"];

  /**
   * A call without an answer: how to settle it, an error made where the script made it, whose stack says where, and the
   * size of its arguments, text and bytes.
   */
  type Pending = readonly [resolve: (value: unknown) => void, reject: (error: unknown) => void, site: Error, size: number]; // prettier-ignore
  /** A call that the credit keeps back. */
  interface Waiting {
    pending: Pending;
    target: string;
    /** What the call is made on and what its arguments name: not to be released before it is sent. */
    token: object;
    mentioned: object[];
    text: string;
    blobs: Uint8Array[];
    next: Waiting | undefined;
  }

  let [lastCall, lastExport, inFlight, inFlightBytes, waitingCount, sleeps] = [0, 0, 0, 0, 0, 0];
  let [maxInFlight, maxCallBytes] = [0, 0];
  let [first, last] = [undefined as Waiting | undefined, undefined as Waiting | undefined];
  let [pending, sleeping, exported] = [new MapCtor(), new MapCtor(), new MapCtor()];
  /** What is put together for the next frame of each kind. */
  let [calls, replies, releases] = ["", "", ""];

  const flush = (): void => {
    if (calls !== "") {
      const text = "[" + calls + "]";
      calls = "";
      emitCall(text);
    }
    if (replies !== "") {
      const text = "[" + replies + "]";
      replies = "";
      emitReply(text);
    }
    if (releases !== "") {
      const text = "[" + releases + "]";
      releases = "";
      emitRelease(text);
    }
  };
  /** An item with bytes is a frame of its own, behind all that was said before it. */
  const emitAlone = (emit: StubPort["call"], item: string, blobs: Uint8Array[]): void => {
    flush();
    const parts: unknown[] = ["[" + item + "]"];
    for (let i = 0; i < blobs.length; i++) put(parts, i + 1, bufferOf(blobs[i]), true);
    apply(emit, undefined, parts as never);
  };
  const queueCall = (item: string, blobs: Uint8Array[]): void => {
    if (blobs.length > 0) return emitAlone(emitCall, item, blobs);
    // One at a time: a string that nobody else holds grows in place.
    if (calls !== "") calls += ",";
    calls += item;
    if (calls.length > BATCH_CHARS) flush();
  };

  // -- references -------------------------------------------------------------------------------------------------
  /** Stub -> the host's reference, so that a stub which is passed home is known there. */
  const homes = new WeakMap<object, number>();
  interface Held {
    ref: number;
    target: WeakRef<object>;
    next: Held | undefined;
  }
  /**
   * What the guest was handed. Looked through for what it forgot whenever an eighth has come on top, and not by a
   * FinalizationRegistry: QuickJS calls those only when it collects cycles, which it seldom does.
   */
  let [held, heldCount, sweepAt] = [undefined as Held | undefined, 0, 0];
  const SWEEP_LEAST = 32;
  const sweep = (): void => {
    collect();
    let entry = held;
    held = undefined;
    heldCount = 0;
    while (entry !== undefined) {
      const { next } = entry;
      if (deref(entry.target) === undefined) {
        releases += (releases === "" ? "[" : ",[") + entry.ref + ",1]";
        if (releases.length > BATCH_CHARS) flush();
      } else {
        entry.next = held;
        held = entry;
        heldCount++;
      }
      entry = next;
    }
    sweepAt = heldCount + (heldCount >> 3) + SWEEP_LEAST;
  };
  const hold = (ref: number, target: object): void => {
    if (heldCount >= sweepAt) sweep();
    held = { ref, target: new WeakRefCtor(target), next: held };
    heldCount++;
  };
  let exporting: number[] = [];
  let mentioned: object[] = [];
  const reference = (value: object): any => {
    const ref = weakGet(homes, value);
    if (ref !== undefined) {
      put(mentioned, mentioned.length, value, true);
      return { __proto__: null, kind: "home", id: ref };
    }
    if (typeof value !== "function") return undefined;
    lastExport++;
    mapSet(exported, lastExport, value);
    put(exporting, exporting.length, lastExport, true);
    return { __proto__: null, kind: "function", id: lastExport };
  };
  /** What stands in a call's text after its id. */
  const targetOf = (ref: number, method: string): string => "," + ref + "," + quote(method) + ",";
  /** A prototype that notes what is asked for and is not there. `in` says the truth. */
  const noting = (hintFor: (name: string) => string): object => {
    const get = (target: object, name: PropertyKey): unknown => {
      const value = (target as any)[name];
      if (value === undefined && typeof name === "string" && name !== "then" && name !== "toJSON") {
        port.missing(hintFor(name));
      }
      return value;
    };
    return new ProxyCtor(create(objectPrototype) as object, { __proto__: null, get } as any);
  };
  const listOf = (names: readonly string[]): string => {
    let text = "";
    for (let i = 0; i < names.length; i++) text += (i === 0 ? "" : ", ") + names[i];
    return text;
  };
  const noMethod = (label: string, name: string, methods: readonly string[]): string =>
    "env." + label + " has no method " + name + "; it has " + listOf(methods);
  const notGranted = (name: string, names: readonly string[]): string => {
    for (let i = 0; i < BUILT_IN.length; i++) {
      if (BUILT_IN[i] !== name) continue;
      const example = name + ": " + name + "(…)";
      return "env." + name + " was not granted: grants: { " + example + " }, or --grant " + name;
    }
    return "there is no env." + name + (names.length === 0 ? "" : "; env has " + listOf(names));
  };
  /** Each method holds the token, for a script may take it off the stub: the reference lives as long as any of them. */
  const stubOf = (
    ref: number,
    methods: readonly string[] | undefined,
    token: object,
    label?: string,
  ): object => {
    let stub: any;
    if (methods === undefined) {
      const target = targetOf(ref, "call");
      stub = (...args: unknown[]) => call(target, token, args);
    } else {
      // What `env` holds has a name to complain by; what a capability handed out has not.
      stub = create(label === undefined ? objectPrototype : noting((name) => noMethod(label, name, methods)));
      for (let i = 0; i < methods.length; i++) {
        const name = methods[i] as string;
        const target = targetOf(ref, name);
        put(stub, name, (...args: unknown[]) => call(target, token, args), true);
      }
    }
    weakSet(homes, stub, ref);
    return freeze(stub);
  };
  const resolveReference = (kind: string, id: number, methods?: readonly string[]): unknown => {
    if (kind === "home") return mapGet(exported, id);
    const token = create(null) as object;
    const stub = stubOf(id, kind === "function" ? undefined : methods, token);
    hold(id, kind === "capability" && methods?.length === 0 ? stub : token);
    return stub;
  };

  // -- calls ------------------------------------------------------------------------------------------------------
  const encodeLimits = {
    __proto__: null,
    maxBytes: 0,
    maxNodes: 200_000,
    root: "arguments",
    reference,
    stackOf: port.stackOf,
  } as any;
  const decodeLimits = {
    __proto__: null,
    maxNodes: 1_000_000,
    owned: true,
    resolve: resolveReference,
  } as any;
  /** Rolls back what a value that failed to be written had exported. */
  const encode = (value: unknown, root: string): { text: string; blobs: Uint8Array[] } => {
    exporting = [];
    mentioned = [];
    encodeLimits.maxBytes = maxCallBytes;
    encodeLimits.root = root;
    try {
      return codec.encode(value, encodeLimits);
    } catch (error) {
      for (let i = 0; i < exporting.length; i++) mapDelete(exported, exporting[i]);
      throw error;
    }
  };
  /** Texts, numbers and the like need no codec. Undefined: something else is among them. */
  const plain = (args: unknown[]): string | undefined => {
    let text = '["a"';
    for (let i = 0; i < args.length; i++) {
      const arg = args[i];
      if (typeof arg === "string") text += "," + quote(arg);
      else if (typeof arg === "boolean" || arg === null) text += "," + arg;
      else if (typeof arg === "number" && arg - arg === 0 && (arg !== 0 || 1 / arg > 0)) text += "," + arg;
      else return undefined;
    }
    return text.length < maxCallBytes ? text + "]" : undefined;
  };
  const maySend = (size: number): boolean =>
    inFlight < maxInFlight && (inFlightBytes + size <= CREDIT_BYTES || inFlight === 0);
  const send = (entry: Pending, target: string, text: string, blobs: Uint8Array[]): void => {
    inFlight++;
    inFlightBytes += entry[3];
    lastCall++;
    mapSet(pending, lastCall, entry);
    queueCall("[" + lastCall + target + text + "]", blobs);
  };
  const noBlobs: Uint8Array[] = [];
  const noObjects: object[] = [];
  const call = (target: string, token: object, args: unknown[]): Promise<unknown> => {
    const site = new ErrorCtor("");
    return new PromiseCtor((resolve, reject) => {
      let text = plain(args);
      let blobs = noBlobs;
      let names = noObjects;
      if (text === undefined) {
        const encoded = encode(args, "arguments"); // what it throws rejects the promise
        text = encoded.text;
        blobs = encoded.blobs;
        names = mentioned;
      }
      let size = text.length;
      for (let i = 0; i < blobs.length; i++) size += lengthOf(blobs[i]);
      const entry: Pending = [resolve, reject, site, size];
      if (first === undefined && maySend(size)) return send(entry, target, text, blobs);
      const waiting: Waiting = { pending: entry, target, token, mentioned: names, text, blobs, next: undefined }; // prettier-ignore
      if (last === undefined) first = waiting;
      else last.next = waiting;
      last = waiting;
      waitingCount++;
    });
  };
  const sendWaiting = (): void => {
    for (let entry = first; entry !== undefined; entry = first) {
      if (!maySend(entry.pending[3])) return;
      first = entry.next;
      if (first === undefined) last = undefined;
      waitingCount--;
      send(entry.pending, entry.target, entry.text, entry.blobs);
    }
  };
  const valueOf = (wire: unknown, bytes: Uint8Array): unknown =>
    typeof wire === "object" && wire !== null ? codec.decode(wire, bytes, decodeLimits) : wire;

  /** The host's error is [code, message]; it becomes one with the stack of the call. */
  const fail = (entry: Pending, wire: unknown): void => {
    const parts = valueOf(wire, noBytes) as any;
    const site = entry[2];
    put(site, "name", "CapabilityError", false);
    put(site, "message", parts[1], false);
    put(site, "code", parts[0], true);
    entry[1](site);
  };
  const answered = (id: number, ok: boolean, wire: unknown, bytes: Uint8Array): void => {
    if (sleeps > 0) {
      const wake = mapGet(sleeping, id);
      if (wake !== undefined) {
        mapDelete(sleeping, id);
        sleeps--;
        return wake();
      }
    }
    const entry: Pending | undefined = mapGet(pending, id);
    if (entry === undefined) return;
    mapDelete(pending, id);
    inFlight--;
    inFlightBytes -= entry[3];
    if (!ok) return fail(entry, wire);
    if (typeof wire !== "object" || wire === null) return entry[0](wire);
    let value;
    try {
      value = codec.decode(wire, bytes, decodeLimits);
    } catch (error) {
      return entry[1](error);
    }
    entry[0](value);
  };

  // -- the host's calls -------------------------------------------------------------------------------------------
  const answer = (item: string, blobs: Uint8Array[]): void => {
    if (blobs.length > 0) return emitAlone(emitReply, item, blobs);
    replies = replies === "" ? item : replies + "," + item;
    if (replies.length > BATCH_CHARS) flush();
  };
  const textOf = (value: unknown, most: number): string => {
    const s = typeof value === "string" ? value : "";
    return s.length > most ? slice(s, 0, most) : s;
  };
  const refuse = (id: number, error: any): void => {
    let name = "Error";
    let message = "";
    try {
      if (error !== null && typeof error === "object") {
        name = textOf(error.name, 256);
        message = textOf(error.message, 4096);
      } else message = textOf(error, 4096);
    } catch {
      message = "an error that cannot be read"; // a getter of the guest's own threw
    }
    answer("[" + id + ',false,["a",' + quote(name) + "," + quote(message) + "]]", []);
  };
  const called = (id: number, ref: number, wire: unknown, bytes: Uint8Array): void => {
    const f = mapGet(exported, ref);
    const done = new PromiseCtor((resolve) => {
      const args = valueOf(wire, bytes) as unknown[];
      resolve(apply(f, undefined, args));
    });
    const settle = (value: unknown): void => {
      const { text, blobs } = encode(value, "the callback's answer");
      answer("[" + id + ",true," + text + "]", blobs);
    };
    // `then` asks a promise for its constructor (ECMA-262 SpeciesConstructor), and would ask the guest's.
    put(done, "constructor", undefined, false);
    const settled = then(done, settle);
    put(settled, "constructor", undefined, false);
    then(settled, undefined, (error: unknown) => refuse(id, error));
  };

  // -- env --------------------------------------------------------------------------------------------------------
  const environment = (entries: readonly EnvEntry[]): object => {
    const names: string[] = [];
    const env: object = create(noting((name) => notGranted(name, names)));
    for (let i = 0; i < entries.length; i++) {
      const entry = entries[i] as any;
      put(names, i, entry[0], true);
      const value = entry[1] === "text" ? entry[2] : stubOf(entry[2], entry[3], env, entry[0]);
      put(env, entry[0], value, true);
    }
    return freeze(env);
  };

  return freeze({
    begin(entries: readonly EnvEntry[], credit: number, callBytes: number) {
      [lastCall, lastExport, inFlight, inFlightBytes, waitingCount, sleeps] = [0, 0, 0, 0, 0, 0];
      [maxInFlight, maxCallBytes] = [credit, callBytes];
      first = last = undefined;
      [pending, sleeping, exported] = [new MapCtor(), new MapCtor(), new MapCtor()];
      calls = replies = releases = "";
      [held, heldCount, sweepAt] = [undefined, 0, SWEEP_LEAST];
      return environment(entries);
    },
    deliver(kind: "call" | "reply" | "release", items: unknown[], bytes: Uint8Array) {
      for (let i = 1; i < items.length; i++) {
        const item = items[i] as any;
        if (kind === "reply") answered(item[0], item[1], item[2], bytes);
        else if (kind === "call") called(item[0], item[1], item[3], bytes);
        else mapDelete(exported, item[0]);
      }
      sendWaiting();
    },
    flush,
    sleep(ms: number, wake: () => void) {
      lastCall++;
      sleeps++;
      mapSet(sleeping, lastCall, wake);
      queueCall("[" + lastCall + ',0,"sleep",["a",' + ms + "]]", []);
    },
    calls: () => inFlight + waitingCount,
    outstanding: () => inFlight + waitingCount + sleeps + mapSize(exported),
  });
}
