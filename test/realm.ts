/**
 * A guest's realm without an engine around it: the web part alone, on a host made of a few lines. It is QuickJS's, or V8's
 * by Node's own vm, which is the V8 of the isolates too.
 */
import vm from "node:vm";
import { getQuickJS } from "quickjs-emscripten";
import { afterEach, beforeEach } from "vitest";
import { codec } from "#engine/codec";
import { webSource } from "#engine/guest";

/** What stands around the web part in an engine, as small as it can be. The timers run when `fire` says so. */
const HOST = `(web, codec) => {
  const timers = [];
  let now = 1000;
  const define = (name, value) => void Object.defineProperty(globalThis, name,
    { __proto__: null, value, writable: true, configurable: true, enumerable: false });
  const control = web({
    define,
    now: () => now,
    setTimeout: (run, ms) => timers.push({ run, due: now + ms }),
    clearTimeout: () => {},
    codec,
    randomBytes: (n) => new Uint8Array(n),
  });
  define("bindFetch", control.bindFetch);
  define("pass", (ms) => {
    now += ms;
    for (const timer of timers.splice(0)) timer.due <= now ? timer.run() : timers.push(timer);
  });
  define("caught", (run) => {
    try { return ["returned", run()]; } catch (error) { return [error.name, error instanceof DOMException, error.code]; }
  });
}`;

interface Realm {
  /** What the source's value is, copied out. Throws what it throws, as text. */
  evaluate(source: string): unknown;
  /** Runs the jobs that are left. */
  drain(): void;
  dispose(): void;
}

async function quickjsRealm(): Promise<Realm> {
  const quickjs = await getQuickJS();
  const runtime = quickjs.newRuntime();
  // Well below V8's own, which must not overflow first.
  runtime.setMaxStackSize(100_000);
  // Of calls that QuickJS counts between two questions, enough for everything here and no end for a loop.
  let questions = 0;
  runtime.setInterruptHandler(() => ++questions > 20_000);
  const context = runtime.newContext();
  return {
    evaluate(source) {
      const result = context.evalCode(source, "guest.js");
      const value: unknown = context.dump(result.error ?? result.value);
      const failed = result.error !== undefined;
      result.dispose();
      // As text: the engine's own error holds the whole engine, which no reporter survives.
      if (failed) throw new Error(JSON.stringify(value));
      return value;
    },
    drain() {
      const jobs = runtime.executePendingJobs();
      if (jobs.error) throw new Error(JSON.stringify(jobs.error.consume((error) => context.dump(error))));
    },
    dispose() {
      context.dispose();
      runtime.dispose();
    },
  };
}

/** Longer than anything here takes. */
const LOOP_MS = 20_000;

async function v8Realm(): Promise<Realm> {
  const context = vm.createContext({ __proto__: null }, { microtaskMode: "afterEvaluate" });
  return {
    evaluate(source) {
      try {
        return vm.runInContext(source, context, { filename: "guest.js", timeout: LOOP_MS });
      } catch (error) {
        throw new Error(String(error), { cause: error });
      }
    },
    drain() {
      // V8 has run them at the end of each evaluation.
    },
    dispose() {
      // Garbage like any other.
    },
  };
}

let makeRealm: () => Promise<Realm> = quickjsRealm;

/** To be called before a test file is imported: its realms are V8's. */
export function useV8(): void {
  makeRealm = v8Realm;
}

// One for each test, made anew.
let realm: Realm;

/** To be called by a test file: gives each of its tests a realm of its own. */
export function useRealm(): void {
  beforeEach(async () => {
    realm = await makeRealm();
    realm.evaluate(`void (${HOST})(${webSource}, (${String(codec)})())`);
  });
  afterEach(() => realm.dispose());
}

/** What a script returns in a realm of that kind in which nothing has been put, through JSON. */
export async function bare(source: string): Promise<unknown> {
  const untouched = await makeRealm();
  try {
    return JSON.parse(untouched.evaluate(`JSON.stringify(${source})`) as string);
  } finally {
    untouched.dispose();
  }
}

/** What the body of an async function, run as guest code, returns, through JSON. Throws what it throws, as text. */
export function guest(body: string, ...args: unknown[]): unknown {
  const source = `(async (...args) => { ${body}\n})(...${JSON.stringify(args)}).then(
    (value) => { globalThis.answer = JSON.stringify({ value }) },
    (error) => { globalThis.answer = JSON.stringify({ error: String(error) + "\\n" + error?.stack }) })`;
  realm.evaluate(`${source}; 0`);
  realm.drain();
  const answer = realm.evaluate("globalThis.answer");
  if (typeof answer !== "string") throw new Error("the guest's promise did not settle");
  const { value, error } = JSON.parse(answer) as { value?: unknown; error?: string };
  if (error !== undefined) throw new Error(error);
  return value;
}

/** What the body of a function returns at once, through JSON: needs no promise and no iterator of the guest's. */
export function guestAtOnce(body: string): unknown {
  const source = `{ const { stringify } = JSON; stringify((() => { ${body}\n})()) }`;
  return JSON.parse(realm.evaluate(source) as string);
}
