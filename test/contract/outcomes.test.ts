/**
 * What becomes of a run: every way to end, with the layer that ended it and what it measured. Each test that expects a
 * stop has its control: the same kind of program, within the limits, is not stopped.
 */
import fs from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { describeStop, Sandbox, type Outcome, type RunOptions } from "doublehull";
import { ENGINES } from "../engines.js";
import {
  busyWorker,
  busyWorkers,
  errorOf,
  makeSandbox,
  stopOf,
  until,
  valueOf,
  type Process,
} from "../harness.js";

describe.each(ENGINES)("with the engine %s", (engine) => {
  const MiB = 1024 * 1024;
  const script: RunOptions = { type: "script" };
  /** Loops end by this; what is to end by itself has the sandbox's ten seconds. */
  const SHORT: RunOptions = { type: "script", limits: { wallMs: 300 } };

  let sandbox: Sandbox;
  const run = (source: string, options: RunOptions = script) => sandbox.run(source, options);

  beforeAll(async () => {
    sandbox = await makeSandbox({
      engine,
      limits: { wallMs: 10_000, cpuMs: 10_000, sourceBytes: 4_194_304 },
    });
  });
  afterAll(() => sandbox.close());

  /** What every outcome of a run that started says, whatever it was. */
  function expectSane(outcome: Outcome, wallMs = 10_000): void {
    const { usage, layers } = outcome;
    expect(usage.wallMs).toBeGreaterThan(0);
    expect(usage.cpuMs).toBeGreaterThanOrEqual(0);
    // One thread, two clocks that are read one after the other: never much more CPU than time.
    expect(usage.cpuMs).toBeLessThanOrEqual(usage.wallMs + 50);
    expect(usage.peakMemoryBytes).toBeGreaterThanOrEqual(0);
    // Without a cgroup it is what is resident: pages of V8's compilers, which the run is the first to touch, with it.
    const compilers = engine === "v8" ? 8 : 0;
    expect(usage.peakMemoryBytes).toBeLessThan((64 + 32 + compilers) * MiB);
    expect(usage.bytesOut).toBeGreaterThan(0);
    expect(usage.hostCalls).toBe(0);
    expect(usage.wallMs).toBeLessThan(wallMs + 5000);
    expect(layers).toMatchObject({ hull: "double", engine });
    expect(layers.kernel.find(({ layer }) => layer === "seccomp")?.state).toBe("on");
  }

  /** A run that the host has heard of: what follows its first line is under way. */
  async function begun(
    source: string,
    options: RunOptions,
    by = sandbox,
  ): Promise<{ pending: Promise<Outcome> }> {
    let hear!: () => void;
    const heard = new Promise<void>((resolve) => (hear = resolve));
    const pending = by.run(`console.log('running'); ${source}`, { ...options, onLog: hear });
    await Promise.race([heard, pending]);
    return { pending };
  }

  const expectServesTheNext = async () => expect(valueOf(await run("6 * 7"))).toBe(42);

  describe("time", () => {
    test("an endless loop ends at the wall limit, by the language", async () => {
      const outcome = await run("let n = 0; while (true) n++", SHORT);
      expect(stopOf(outcome)).toMatchObject({ reason: "wall-time", limit: 300 });
      expect(["language", "supervisor"]).toContain(stopOf(outcome).layer); // who comes first on a busy machine
      expect(stopOf(outcome).measured).toBeGreaterThanOrEqual(295);
      expectSane(outcome, 300);
      expect(outcome.usage.cpuMs).toBeGreaterThan(10); // the control: it computed
      await expectServesTheNext();
    });

    test("a loop that ends in time is not stopped", async () => {
      const outcome = await run("let n = 0; while (n < 1e5) n++; n", { ...script, limits: { wallMs: 5000 } });
      expect(valueOf(outcome)).toBe(1e5);
      expectSane(outcome);
    });

    // V8 refuses the one at once, and is done with the other in time.
    const SLOW_IN_QUICKJS: [string, string, string, unknown][] =
      engine !== "quickjs"
        ? []
        : [
            ["the text of a huge array", "new Array(1e9) + ''", "new Array(10) + ''", ",".repeat(9)],
            ["a bigint in decimal", "(3n ** 600000n).toString().length", "(3n ** 60n).toString().length", 29],
          ];

    test.each([
      ...SLOW_IN_QUICKJS,
      ["a search in an array-like without end", "Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)", "Array.prototype.indexOf.call({ length: 9 }, 1)", -1], // prettier-ignore
      [
        "a regular expression that backtracks",
        "/(a+)+$/.test('a'.repeat(40) + 'b')",
        "/(a+)+$/.test('aaab')",
        false,
      ],
    ])(
      "an endless builtin (%s) ends at the wall limit, from outside if need be",
      async (_name, source, small, value) => {
        expect(valueOf(await run(small))).toBe(value);
        const outcome = await run(source, SHORT);
        const stop = stopOf(outcome);
        expect(stop).toMatchObject({ reason: "wall-time", limit: 300 });
        expect(["language", "supervisor"]).toContain(stop.layer);
        expect(stop.measured).toBeGreaterThanOrEqual(295);
        expectSane(outcome, 300);
        await expectServesTheNext();
      },
    );

    test("a builtin that never asks whether it should stop is ended by the supervisor", async () => {
      const outcome = await run("Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)", SHORT);
      expect(stopOf(outcome)).toMatchObject({ reason: "wall-time", layer: "supervisor" });
    });

    test.each([
      ["microtasks", "const f = () => queueMicrotask(f); f(); new Promise(() => {})"],
      ["promises", "(async () => { for (;;) await 0 })()"],
      ["timers of no time", "const f = () => setTimeout(f, 0); f(); new Promise(() => {})"],
      ["an interval", "setInterval(() => {}, 1); new Promise(() => {})"],
      ["a getter of the result", "({ get a() { for (;;); } })"],
      ["a getter of the error", "throw { get message() { for (;;); } }"],
      ["a proxy in the log", "console.log(new Proxy({}, { ownKeys() { for (;;); } }))"],
      ["a catch that goes on", "for (;;) try { for (;;); } catch {}"],
      ["a finally that goes on", "try { for (;;); } finally { for (;;); }"],
      ["a generator", "const g = function* () { for (;;) yield 1 }; for (const x of g()) x"],
    ])("endless work (%s) ends at the wall limit", async (_name, source) => {
      const outcome = await run(source, SHORT);
      expect(stopOf(outcome)).toMatchObject({ reason: "wall-time", limit: 300 });
      expectSane(outcome, 300);
      await expectServesTheNext();
    });

    test("a module that loops while it is loaded ends at the wall limit too", async () => {
      const modules = { "lib.js": "for (;;);" };
      const outcome = await run("import './lib.js'; export default () => 1", {
        modules,
        limits: { wallMs: 300 },
      });
      expect(stopOf(outcome)).toMatchObject({ reason: "wall-time", limit: 300 });
    });

    test("waiting counts as time, though it costs no CPU", async () => {
      const outcome = await run("new Promise((go) => setTimeout(go, 60000))", SHORT);
      expect(stopOf(outcome)).toMatchObject({ reason: "wall-time", layer: "supervisor", limit: 300 });
      expect(outcome.usage.cpuMs).toBeLessThan(250);
      expectSane(outcome, 300);
      expect(valueOf(await run("new Promise((go) => setTimeout(go, 20, 'in time'))"))).toBe("in time");
    });

    test("burnt CPU ends a run whose wall limit is generous", async () => {
      const outcome = await run("for (;;);", { ...script, limits: { cpuMs: 200 } });
      const stop = stopOf(outcome);
      expect(stop).toMatchObject({ reason: "cpu-time", layer: "supervisor", limit: 200 });
      expect(stop.measured).toBeGreaterThanOrEqual(200);
      expectSane(outcome);
      expect(valueOf(await run("new Promise((go) => setTimeout(go, 400, 'slept'))", { ...script, limits: { cpuMs: 200 } }))).toBe("slept"); // prettier-ignore
    });

    test("while the supervisor's own loop is blocked, the kernel ends the run at its CPU limit", async () => {
      // However little of a busy machine the run gets: its wall limit is far.
      const patient = await makeSandbox({ engine, limits: { wallMs: 120_000, cpuMs: 1000 } });
      try {
        const { pending } = await begun("for (;;);", script, patient);
        const nap = new Int32Array(new SharedArrayBuffer(4));
        const giveUp = performance.now() + 60_000;
        let worker: Process | undefined;
        while (performance.now() < giveUp) {
          worker ??= busyWorkers()[0];
          if (worker !== undefined && !fs.existsSync(`/proc/${worker.pid}`)) break;
          Atomics.wait(nap, 0, 0, 20);
        }
        expect(worker, "a worker computed").toBeDefined();
        const stop = stopOf(await pending);
        expect(stop, describeStop(stop)).toMatchObject({ reason: "cpu-time", limit: 1000 });
        expect(stop.measured).toBeGreaterThanOrEqual(1000);
        expect(valueOf(await patient.run("6 * 7", script))).toBe(42);
      } finally {
        await patient.close();
      }
    }, 90_000);
  });

  describe("a promise that can never settle", () => {
    test.each([
      ["a script", "new Promise(() => {})", script],
      ["a module", "export default () => new Promise(() => {})", {}],
      ["an async function", "export default async () => { await new Promise(() => {}) }", {}],
      ["a module's top level", "await new Promise(() => {}); export default () => 1", {}],
      ["a thenable", "({ then() {} })", script],
    ])("is a deadlock at once, in %s", async (_name, source, options) => {
      const outcome = await run(source, options);
      expect(stopOf(outcome)).toMatchObject({ reason: "deadlock", layer: "language" });
      expect(stopOf(outcome).detail).toContain("never settle");
      expect(outcome.usage.wallMs).toBeLessThan(10_000); // by itself: no deadline has passed
      expectSane(outcome);
      await expectServesTheNext();
    });

    test("is no deadlock while a timer may still settle it, and one when the last timer has not", async () => {
      expect(valueOf(await run("new Promise((go) => setTimeout(() => setTimeout(go, 5, 1), 5))"))).toBe(1);
      const outcome = await run("let ran = 0; new Promise(() => setTimeout(() => console.log('ran'), 5))");
      expect(stopOf(outcome).reason).toBe("deadlock");
      expect(outcome.logs[0]?.args).toEqual(["ran"]); // the control: it waited for the timer
    });
  });

  describe("memory", () => {
    const USES = [
      ["many small objects", "const a = []; for (;;) a.push({ x: 1 })", "const a = []; for (let i = 0; i < 1000; i++) a.push({ x: 1 }); a.length", 1000], // prettier-ignore
      [
        "many strings",
        "const a = []; for (let i = 0; ; i++) a.push('x'.repeat(1e6) + i)",
        "['x'.repeat(1e6)].length",
        1,
      ],
      ["a few large buffers", "const a = []; for (;;) a.push(new Uint8Array(1 << 20))", "new Uint8Array(1 << 20).length", 1 << 20], // prettier-ignore
      [
        "one buffer of two gigabytes",
        "new Uint8Array(2 ** 31 - 1)",
        "new Uint8Array(1 << 22).length",
        1 << 22,
      ],
      ["a list that doubles", "let a = [1]; for (;;) a = a.concat(a)", "let a = [1]; while (a.length < 1e4) a = a.concat(a); a.length", 16384], // prettier-ignore
      [
        "a map",
        "const m = new Map(); for (let i = 0; ; i++) m.set(i, {})",
        "const m = new Map(); m.set(1, 2); m.size",
        1,
      ],
      ["closures", "let f = () => 1; for (;;) { const g = f; f = () => g }", "let f = () => 1; f()", 1],
    ] as const;

    test.each(USES)("%s, uncaught, is stopped as memory", async (_name, source, small, value) => {
      expect(valueOf(await run(small))).toBe(value);
      const outcome = await run(source);
      const stop = stopOf(outcome);
      expect(stop).toMatchObject({ reason: "memory", limit: 64 * MiB });
      expect(["language", "rlimit", "cgroup"]).toContain(stop.layer);
      expectSane(outcome);
      await expectServesTheNext();
    });

    test.each([
      ["an array", "new Array(32 * 1024 * 1024 - 1).fill(0).length"],
      ["a string that is made flat", "'x'.repeat(3e8).charCodeAt(5)"],
      ["characters apart", "'x'.repeat(2e7).split('').length"],
    ])("one thing that is too large (%s) is memory, and no crash", async (_name, source) => {
      const stop = stopOf(await run(source));
      expect(stop).toMatchObject({ reason: "memory", limit: 64 * MiB });
      await expectServesTheNext();
    });

    test.each([
      ["large buffers", "a.push(new Uint8Array(1 << 20))"],
      ["small objects", "a.push({ x: 1 })"],
    ])("a script that catches its exhaustion by %s goes on", async (_name, grow) => {
      const source = `let a = [], caught = false; try { for (;;) ${grow} } catch { a = undefined; caught = true }
      [caught, new Uint8Array(1 << 20).length]`;
      const outcome = await run(source);
      // Of its heap V8 has no such error: an isolate that is over its limit has ended.
      if (engine !== "quickjs" && grow.includes("{ x: 1 }")) expect(stopOf(outcome).reason).toBe("memory");
      else expect(valueOf(outcome)).toEqual([true, 1 << 20]);
    });

    test("what a script catches when memory is out is an error like others", async () => {
      const source = "let a = [], e; try { for (;;) a.push(new Uint8Array(1 << 20)) } catch (x) { a = undefined; e = x } [e instanceof Error, e?.message]"; // prettier-ignore
      expect(valueOf(await run(source))).toEqual([
        true,
        engine === "quickjs" ? "out of memory" : "Array buffer allocation failed",
      ]);
    });

    test("exhaustion in an async function, a microtask and a timer is memory too", async () => {
      const grow = "const a = []; for (;;) a.push(new Uint8Array(1 << 20));";
      for (const source of [
        `(async () => { await 0; ${grow} })()`,
        `new Promise((go, no) => queueMicrotask(() => { try { ${grow} } catch (e) { no(e) } }))`,
        `setTimeout(() => { ${grow} }, 1); new Promise(() => {})`,
      ]) {
        expect(stopOf(await run(source)), source).toMatchObject({ reason: "memory" });
      }
    });

    test("the peak is what the run held, within its limit", async () => {
      const small = (await run("1")).usage.peakMemoryBytes;
      const large = (await run("new Uint8Array(32 << 20).fill(1).length")).usage.peakMemoryBytes;
      expect(small).toBeLessThan(16 * MiB);
      expect(large).toBeGreaterThan(30 * MiB);
      expect(large).toBeLessThan(88 * MiB);
    });
  });

  describe("stack", () => {
    test.each([
      ["recursion", "const f = () => f() + 1; f()"],
      ["mutual recursion", "const f = () => g() + 1, g = () => f() + 1; f()"],
      ["recursion through a builtin", "const f = () => [1].map(f); f()"],
      ["recursion through a getter", "const o = { get a() { return this.a } }; o.a"],
      ["recursion through a proxy", "const p = new Proxy({}, { get: (t, k, r) => r[k] }); p.x"],
      ["recursion through toString", "const o = { toString() { return '' + this } }; '' + o"],
      ["recursion in a regular expression's replace", "const f = () => 'x'.replace(/x/, f); f()"],
    ])("%s without end, uncaught, is stopped as stack", async (_name, source) => {
      const outcome = await run(source);
      expect(stopOf(outcome)).toMatchObject({ reason: "stack", layer: "language", limit: 256 * 1024 });
      expectSane(outcome);
      await expectServesTheNext();
    });

    test("a script that catches its overflow goes on", async () => {
      const source = "let depth = 0; const f = () => { depth++; f() }; try { f() } catch (e) { [e instanceof Error, depth > 100] }"; // prettier-ignore
      expect(valueOf(await run(source))).toEqual([true, true]);
    });

    test("ordinary recursion is no overflow", async () => {
      expect(valueOf(await run("const f = (n) => n ? 1 + f(n - 1) : 0; f(500)"))).toBe(500);
    });

    test.each([
      ["parentheses", `${"(".repeat(20_000)}1${")".repeat(20_000)}`],
      ["unclosed brackets", "[".repeat(300_000)],
      ["objects", `(${"{a:".repeat(20_000)}1${"}".repeat(20_000)})`],
      ["functions", `${"(()=>".repeat(20_000)}1${")".repeat(20_000)}`],
      ["templates", `${"`${".repeat(20_000)}1${"}`".repeat(20_000)}`],
      ["a regular expression's groups", `/${"(".repeat(20_000)}a${")".repeat(20_000)}/.test("a")`],
      ["blocks", `${"{".repeat(100_000)}${"}".repeat(100_000)}`],
      ["else-ifs", `${"if(0);else ".repeat(30_000)};`],
    ])("source nested by %s ends in an outcome of the language's", async (_name, source) => {
      expect(valueOf(await run("((((1))))"))).toBe(1);
      const outcome = await run(source);
      if (outcome.status === "stopped") expect(["stack", "memory"]).toContain(outcome.stop.reason);
      else if (outcome.status === "threw")
        expect(["SyntaxError", "RangeError"]).toContain(outcome.error.name);
      else expect(outcome.status).toBe("ok");
      expectSane(outcome);
      await expectServesTheNext();
    });
  });

  describe("output", () => {
    test.each([
      ["a string", "'x'.repeat(5e6)"],
      ["bytes", "new Uint8Array(5e6)"],
      ["an array", "new Array(3e5).fill('four')"],
      ["one string many times", "const s = 'x'.repeat(1e5); Array.from({ length: 1000 }, () => s)"],
      ["shared branches that double", "let v = [1]; for (let i = 0; i < 40; i++) v = [v, v]; v"],
      ["a proxy that says it is long", "new Proxy([], { get: (t, k) => k === 'length' ? 4294967295 : 1 })"],
    ])("a result over its limit (%s) is stopped as output", async (_name, source) => {
      const outcome = await run(source);
      const stop = stopOf(outcome);
      expect(stop).toMatchObject({ reason: "output", layer: "language", limit: MiB });
      expect(stop.detail).toContain("value");
      expect(outcome.usage.bytesIn).toBeLessThan(10_000); // it was stopped before it was sent
      expectSane(outcome);
      await expectServesTheNext();
    });

    test("a result just below its limit is none too many", async () => {
      expect(valueOf(await run("'x'.repeat(1e6)"))).toHaveLength(1e6);
    });

    test("a flood of logs is cut, said to be, and does not end the run", async () => {
      const outcome = await run(
        "for (let i = 0; i < 1e5; i++) console.log('line ' + i, 'x'.repeat(100)); 'done'",
      );
      expect(valueOf(outcome)).toBe("done");
      const kept = outcome.logs.flatMap(({ args }) => args).reduce((sum, text) => sum + text.length, 0);
      expect(kept).toBeGreaterThan(30_000);
      expect(kept).toBeLessThan(65_536 + 200);
      expect(outcome.logs[0]?.args[0]).toBe("line 0");
      expect(outcome.logs.at(-1)).toMatchObject({ level: "warn", args: ["the log was cut at 65536 bytes"] });
      expect(outcome.logs.filter(({ args }) => args[0]?.includes("was cut"))).toHaveLength(1);
      expectSane(outcome);
    });

    test("a flood of empty lines is cut like any other", async () => {
      const outcome = await run("for (let i = 0; i < 1e5; i++) console.log(); 'done'");
      expect(valueOf(outcome)).toBe("done");
      expect(outcome.logs.length).toBeLessThan(6000);
    });

    test("one line of thirty megabytes is cut", async () => {
      const outcome = await run("console.log('x'.repeat(3e7)); 'done'");
      expect(valueOf(outcome)).toBe("done");
      expect(outcome.logs[0]?.args[0]?.length).toBeLessThan(65_536);
    });
  });

  describe("source", () => {
    test("a source over its limit is stopped before a worker sees it, with what it weighs", async () => {
      const outcome = await run(`//${"x".repeat(1e6)}\n1`, { ...script, limits: { sourceBytes: 500_000 } });
      const stop = stopOf(outcome);
      expect(stop).toEqual({ reason: "source", layer: "supervisor", limit: 500_000, measured: 1_000_004 });
      expect(outcome.usage).toMatchObject({ wallMs: 0, cpuMs: 0, bytesOut: 0 });
      expect(valueOf(await run(`//${"x".repeat(1e6)}\n1`))).toBe(1);
    });

    test("bytes are counted, not characters, and extra modules with them", async () => {
      const limits = { sourceBytes: 100 };
      expect(stopOf(await run("'é€😀'".padEnd(96), { ...script, limits })).measured).toBe(101);
      expect(valueOf(await run("'é€😀'", { ...script, limits }))).toBe("é€😀");
      const modules = { "lib.js": `//${"x".repeat(90)}` };
      const outcome = await run("export default () => 1", { modules, limits });
      expect(stopOf(outcome)).toMatchObject({ reason: "source", measured: 22 + 92 });
    });

    test("four megabytes of one-line source within the limit run", async () => {
      expect(valueOf(await run(`"${"x".repeat(4e6)}".length`))).toBe(4e6);
    });

    test.each([
      ["20,000 parentheses", `export default () => ${"(".repeat(20_000)}1${")".repeat(20_000)}`],
      ["four megabytes of brackets", "[".repeat(4e6)],
      ["nested types", `let x: ${"Array<".repeat(20_000)}1${">".repeat(20_000)}`],
      ["nested templates", "`${".repeat(20_000)],
      ["nested functions", "(()=>".repeat(20_000)],
    ])(
      "hostile TypeScript (%s) ends in an outcome, and the next TypeScript is stripped",
      async (_name, source) => {
        const outcome = await run(source, { name: "hostile.ts" });
        if (outcome.status === "stopped") {
          expect(["source", "stack", "memory"]).toContain(outcome.stop.reason);
          if (outcome.stop.reason === "source")
            expect(outcome.stop.detail).toContain("TypeScript could not be parsed");
        } else expect(errorOf(outcome).name).toBe("SyntaxError");
        const next = await run("export default (n: number): number => n + 1", { name: "next.ts", input: 1 });
        expect(valueOf(next)).toBe(2);
      },
    );
  });

  describe("cancelling", () => {
    test("a signal that is aborted already cancels before anything starts", async () => {
      const outcome = await run("1", { ...script, signal: AbortSignal.abort() });
      expect(outcome.status).toBe("cancelled");
      expect(outcome.usage).toMatchObject({ wallMs: 0, cpuMs: 0, bytesOut: 0 });
      await expectServesTheNext();
    });

    test("a signal that aborts while the script runs ends it, and keeps its logs", async () => {
      const abort = new AbortController();
      const { pending } = await begun("for (;;);", { ...script, signal: abort.signal });
      const worker = await busyWorker();
      abort.abort();
      const outcome = await pending;
      expect(outcome.status).toBe("cancelled");
      expect(outcome.logs[0]?.args).toEqual(["running"]);
      expect(outcome.usage.cpuMs).toBeGreaterThan(0);
      expectSane(outcome);
      await until("the worker is gone", () => !fs.existsSync(`/proc/${worker.pid}`));
      await expectServesTheNext();
    });

    test("a signal that aborts while the script waits ends it", async () => {
      const abort = new AbortController();
      const pending = run("new Promise((go) => setTimeout(go, 60000))", { ...script, signal: abort.signal });
      await untilRunning();
      abort.abort();
      expect((await pending).status).toBe("cancelled");
    });

    test("a signal that aborts after the end changes nothing", async () => {
      const abort = new AbortController();
      const outcome = await run("'done'", { ...script, signal: abort.signal });
      abort.abort();
      expect(valueOf(outcome)).toBe("done");
      await expectServesTheNext();
    });

    test("one signal may cancel many runs", async () => {
      const abort = new AbortController();
      const all = Array.from({ length: 20 }, () => run("for (;;);", { ...script, signal: abort.signal }));
      await untilRunning();
      abort.abort();
      const statuses = (await Promise.all(all)).map(({ status }) => status);
      expect(new Set(statuses)).toEqual(new Set(["cancelled"]));
      await expectServesTheNext();
    });
  });

  async function untilRunning(): Promise<void> {
    for (;;) {
      const [state] = await sandbox.state();
      if (state !== undefined && state.running > 0) return;
      await new Promise(setImmediate);
    }
  }
});
