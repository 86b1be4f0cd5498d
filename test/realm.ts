/** A guest's realm without an engine around it: the web part alone, on a host made of a few lines. */
import { getQuickJS, type QuickJSContext, type QuickJSRuntime } from "quickjs-emscripten";
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

// One for each test, made anew.
let runtime: QuickJSRuntime;
let context: QuickJSContext;

/** To be called by a test file: gives each of its tests a realm of its own. */
export function useRealm(): void {
  beforeEach(async () => {
    const quickjs = await getQuickJS();
    runtime = quickjs.newRuntime();
    // Well below V8's own, which must not overflow first.
    runtime.setMaxStackSize(100_000);
    // Of calls that QuickJS counts between two questions, enough for everything here and no end for a loop.
    let questions = 0;
    runtime.setInterruptHandler(() => ++questions > 20_000);
    context = runtime.newContext();
    const source = `(${HOST})(${webSource}, (${String(codec)})())`;
    valueOf(context.evalCode(source, "doublehull:world"));
  });

  afterEach(() => {
    context.dispose();
    runtime.dispose();
  });
}

/** Copied out. An error is told as text: the engine's own error holds the whole engine, which no reporter survives. */
function valueOf(result: ReturnType<QuickJSContext["evalCode"]>): unknown {
  const value: unknown = context.dump(result.error ?? result.value);
  const failed = result.error !== undefined;
  result.dispose();
  if (failed) throw new Error(JSON.stringify(value));
  return value;
}

/** What the body of an async function, run as guest code, returns, through JSON. Throws what it throws, as text. */
export function guest(body: string, ...args: unknown[]): unknown {
  const source = `(async (...args) => { ${body}\n})(...${JSON.stringify(args)}).then(
    (value) => { globalThis.answer = JSON.stringify({ value }) },
    (error) => { globalThis.answer = JSON.stringify({ error: String(error) + "\\n" + error?.stack }) })`;
  valueOf(context.evalCode(`${source}; 0`, "guest.js"));
  const jobs = runtime.executePendingJobs();
  if (jobs.error) throw new Error(JSON.stringify(jobs.error.consume((error) => context.dump(error))));
  const answer = valueOf(context.evalCode("globalThis.answer"));
  if (typeof answer !== "string") throw new Error("the guest's promise did not settle");
  const { value, error } = JSON.parse(answer) as { value?: unknown; error?: string };
  if (error !== undefined) throw new Error(error);
  return value;
}

/** What the body of a function returns at once, through JSON: needs no promise and no iterator of the guest's. */
export function guestAtOnce(body: string): unknown {
  const source = `{ const { stringify } = JSON; stringify((() => { ${body}\n})()) }`;
  return JSON.parse(valueOf(context.evalCode(source, "guest.js")) as string);
}
