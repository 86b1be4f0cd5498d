/**
 * Capabilities as a script and its host meet them, through the whole sandbox: calls in every order and number, callbacks
 * both ways, capabilities handed on, errors that carry the script's own place, the ways to weaken a grant, and what the
 * audit and the ledger say of it. What a guest must not be able to do is tried next to what it may.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import type { Outcome, RunOptions, Sandbox } from "doublehull";
import type { AuditEvent } from "#hostapi/broker";
import {
  bytes,
  callback,
  Capability,
  CAPABILITY_ERRORS,
  CapabilityError,
  capability,
  caretaker,
  GuestError,
  hostFunction,
  method,
  type CapabilityErrorCode,
  type GuestFunction,
  type Method,
  type Params,
} from "#hostapi/capability";
import { secret } from "#hostapi/secret";
import { ENGINES } from "../engines.js";
import { errorOf, makeSandbox, stopOf, valueOf } from "../harness.js";

const reading = <P extends Params>(params: P, run: Method<P>["run"], more: Partial<Method<P>> = {}) =>
  method({ doc: "reads", params, effect: "read", run, ...more });
const writing = <P extends Params>(params: P, run: Method<P>["run"], more: Partial<Method<P>> = {}) =>
  method({ doc: "writes", params, effect: "write", run, ...more });

/** A number that can be read and added to. */
const counter = (start = 0): Capability => {
  let value = start;
  return capability("counter", {
    get: reading({}, () => value),
    add: writing({ by: z.number() }, async ({ by }) => (value += by)),
  });
};

const echo = capability("echo", { say: reading({ value: z.any() }, ({ value }) => value) });

/** Resolves when somebody opens it. */
function gate(): { open: () => void; opened: Promise<void> } {
  let open!: () => void;
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { open, opened };
}

/** Place of the first frame of `file`. */
function placeIn(stack: string): string | undefined {
  return /script\.js:(\d+:\d+)/.exec(stack)?.[1];
}

describe.each(ENGINES)("capabilities on %s", (engine) => {
  let sandbox: Sandbox;
  beforeAll(async () => {
    sandbox = await makeSandbox({
      engine,
      limits: { wallMs: 20_000, cpuMs: 20_000, hostCalls: 20_000, hostCallsInFlight: 1000 },
    });
  });
  afterAll(() => sandbox.close());

  const run = (body: string, grants: RunOptions["grants"], options: RunOptions = {}) =>
    sandbox.run(`export default async (input, env) => { ${body} }`, { grants: grants ?? {}, ...options });
  const value = async (body: string, grants: RunOptions["grants"], options?: RunOptions) =>
    valueOf(await run(body, grants, options));
  /** How a call of the script's failed: its code and message. */
  const failure = async (call: string, grants: RunOptions["grants"], options?: RunOptions) =>
    (await value(
      `try { await ${call}; return "it did not fail"; } catch (e) { return [e.code, e.message]; }`,
      grants,
      options,
    )) as [CapabilityErrorCode, string];

  test("a listener of the log that is asynchronous and fails harms nobody", async () => {
    const heard: string[] = [];
    const onLog = async ({ args }: { args: readonly string[] }) => {
      heard.push(...args);
      await Promise.reject(new Error("the disk is full"));
    };
    const unhandled: unknown[] = [];
    const hear = (error: unknown) => void unhandled.push(error);
    process.on("unhandledRejection", hear);
    try {
      const source = "export default () => { console.log('a'); console.log('b'); return 1; }";
      // oxlint-disable-next-line typescript/no-misused-promises -- it is what embedders will do
      expect(valueOf(await sandbox.run(source, { onLog }))).toBe(1);
      await new Promise((resolve) => setImmediate(resolve));
    } finally {
      process.off("unhandledRejection", hear);
    }
    expect(heard).toEqual(["a", "b"]);
    expect(unhandled).toEqual([]);
  });

  describe("calls", () => {
    test("one after the other are answered in turn", async () => {
      const body = "for (let i = 1; i <= 100; i++) await env.c.add(i); return env.c.get()";
      expect(await value(body, { c: counter() })).toBe(5050);
    });

    test("a thousand are in flight at once", async () => {
      const all = gate();
      let waiting = 0;
      let most = 0;
      const meeting = capability("meeting", {
        join: reading({ n: z.number() }, async ({ n }) => {
          most = Math.max(most, ++waiting);
          if (waiting === 1000) all.open();
          await all.opened;
          return n;
        }),
      });
      const body =
        "const all = []; for (let i = 0; i < 1000; i++) all.push(env.m.join(i)); const got = await Promise.all(all); return got.every((n, i) => n === i)";
      expect(await value(body, { m: meeting })).toBe(true);
      expect(most).toBe(1000);
    });

    test("over the credit wait in the guest, which is not killed for it", async () => {
      let active = 0;
      let most = 0;
      const slow = capability("slow", {
        go: reading({ n: z.number() }, async ({ n }) => {
          most = Math.max(most, ++active);
          await new Promise((resolve) => setImmediate(resolve));
          active--;
          return n;
        }),
      });
      const body =
        "const all = []; for (let i = 0; i < 500; i++) all.push(env.s.go(i)); return (await Promise.all(all)).reduce((a, b) => a + b)";
      expect(await value(body, { s: slow }, { limits: { hostCallsInFlight: 3 } })).toBe(124_750);
      expect(most).toBe(3);
    });

    test("wait for each other in any nesting", async () => {
      const body = `
        const add = async (depth) => {
          if (depth === 0) return env.c.add(1);
          await Promise.all([add(depth - 1), add(depth - 1)]);
          return env.c.get();
        };
        return [await add(6), await env.c.get()]`;
      const [, total] = (await value(body, { c: counter() })) as number[];
      expect(total).toBe(64);
    });

    test("are answered whether the handler is synchronous, asynchronous or some other thenable", async () => {
      const kinds = capability("kinds", {
        plain: reading({}, () => 1),
        promised: reading({}, async () => 2),
        thenable: reading({}, () => ({
          // oxlint-disable-next-line unicorn/no-thenable -- what a handler may return
          then: (go: (n: number) => void) => go(3),
        })),
        broken: reading({}, () => ({
          // oxlint-disable-next-line unicorn/no-thenable -- the same
          then: () => {
            throw new Error("/etc/shadow");
          },
        })),
      });
      const body =
        "return [await env.k.plain(), await env.k.promised(), await env.k.thenable(), await env.k.broken().catch((e) => e.message)]";
      expect(await value(body, { k: kinds })).toEqual([1, 2, 3, "k.broken: the capability failed"]);
    });

    test("may be left alone: a result does not wait for them, and their signal aborts with the run", async () => {
      const aborted = gate();
      const slow = capability("slow", {
        go: reading({}, (_args, { signal, run: context }) => {
          signal.addEventListener("abort", () => aborted.open());
          expect(context.signal.aborted).toBe(false);
          return new Promise(() => {});
        }),
        nothing: reading({}, () => null),
      });
      const outcome = await run("void env.s.go(); await env.s.nothing(); return 'done'", { s: slow });
      expect(valueOf(outcome)).toBe("done");
      await aborted.opened;
      expect(outcome.ledger).toContainEqual(expect.objectContaining({ method: "go", calls: 1, failed: 1 }));
    });

    test("that take longer than their method may are a timeout for the script, and are aborted", async () => {
      const aborted = gate();
      const slow = capability("slow", {
        go: reading(
          {},
          (_args, { signal }) => {
            signal.addEventListener("abort", () => aborted.open());
            return new Promise(() => {});
          },
          { timeoutMs: 20 },
        ),
        patient: reading({}, async () => "in time", { timeoutMs: 2_147_483_647 }),
      });
      expect(await failure("env.s.go()", { s: slow })).toEqual(["timeout", "s.go: no answer in 20 ms"]);
      await aborted.opened;
      expect(await value("return env.s.patient()", { s: slow })).toBe("in time");
    });

    test("over the limit end the run, and the last of them is not made", async () => {
      let made = 0;
      const c = capability("c", { tick: reading({}, () => ++made) });
      const outcome = await run("for (;;) await env.c.tick()", { c }, { limits: { hostCalls: 10 } });
      expect(stopOf(outcome)).toMatchObject({
        reason: "host-calls",
        layer: "broker",
        limit: 10,
        measured: 11,
      });
      expect(made).toBe(10);
    });
  });

  describe("values", () => {
    const VALUES: [string, unknown][] = [
      ["undefined", undefined],
      ["null", null],
      ["numbers of all kinds", [0, -0, NaN, Infinity, -1.5, Number.MAX_SAFE_INTEGER]],
      ["texts of all kinds", ["", "é\u0000\ud83d\ude00\u2028", "\ud800"]],
      ["a big integer", -(2n ** 100n)],
      ["a date", new Date(86_400_000)],
      ["a map with a hostile key", new Map([["__proto__", { a: 1 }]])],
      ["a set", new Set([1, "1", null])],
      ["plain objects in lists", [{ a: [{ b: undefined }] }, { valueOf: 1, toString: 2 }]],
      ["typed arrays", [new Uint8Array([1, 2]), new Float64Array([0.5]), new BigInt64Array([-1n])]],
    ];
    test.each(VALUES)("%s go in and come back as they were", async (_what, given) => {
      const heard: unknown[] = [];
      const ear = capability("ear", {
        hear: reading({ value: z.any() }, ({ value: said }) => {
          heard.push(said);
          return said;
        }),
      });
      expect(await value("return env.e.hear(input)", { e: ear }, { input: given })).toStrictEqual(given);
      expect(heard).toStrictEqual([given]);
    });

    test("bytes of a megabyte and more cross unchanged, both ways", async () => {
      const blob = new Uint8Array(3_000_000);
      for (let i = 0; i < blob.length; i++) blob[i] = (i * 31) & 0xff;
      const sum = (data: Uint8Array) => data.reduce((a, b) => (a * 33 + b) | 0, 7);
      const disk = capability("disk", {
        read: reading({}, () => blob),
        write: writing({ data: bytes() }, ({ data }) => sum(data)),
      });
      const big = await makeSandbox({ engine, limits: { wallMs: 20_000, callBytes: 4_000_000 } });
      try {
        const source = `export default async (_, env) => {
          const data = await env.disk.read();
          return [data.constructor === Uint8Array, data.length, data[1], await env.disk.write(data), await env.disk.write(data.subarray(5, 9))];
        }`;
        const got = valueOf(await big.run(source, { grants: { disk } }));
        expect(got).toEqual([true, 3_000_000, 31, sum(blob), sum(blob.subarray(5, 9))]);
      } finally {
        await big.close();
      }
    });

    test("of megabytes each cross in numbers both ways at once: neither side waits for the other to read", async () => {
      const large = capability("large", {
        back: reading({ data: bytes() }, ({ data }) => data),
        each: reading({ f: callback() }, async ({ f }) => {
          const answers = Array.from({ length: 20 }, () => f(new Uint8Array(1_000_000)));
          return (await Promise.all(answers)).length;
        }),
      });
      const wide = await makeSandbox({ engine, limits: { wallMs: 20_000, memoryMb: 256 } });
      try {
        const source = `export default async (_, env) => {
          const all = [];
          for (let i = 0; i < 20; i++) all.push(env.large.back(new Uint8Array(1_000_000).fill(i)));
          return [(await Promise.all(all)).every((data, i) => data[999_999] === i), await env.large.each((data) => data)];
        }`;
        expect(valueOf(await wide.run(source, { grants: { large } }))).toEqual([true, 20]);
      } finally {
        await wide.close();
      }
    });

    test("an error crosses as a value, without the host's stack", async () => {
      const maker = capability("maker", {
        make: reading({}, () => [new RangeError("too far")]),
        take: reading({ error: z.any() }, ({ error }) => [
          error instanceof Error,
          (error as Error).name,
          (error as Error).message,
        ]),
      });
      const body = `
        const [e] = await env.m.make();
        return [e instanceof Error, e.name, e.message, String(e.stack), await env.m.take(new TypeError("mine"))]`;
      const [isError, name, message, stack, taken] = (await value(body, { m: maker })) as unknown[];
      expect([isError, name, message, taken]).toEqual([true, "RangeError", "too far", [true, "TypeError", "mine"]]); // prettier-ignore
      expect(stack).not.toMatch(/capabilities\.test|node:|dist/);
    });

    test("an error of the script's crosses with the script's own frames alone", async () => {
      const seen: Error[] = [];
      const c = capability("c", {
        take: reading({ errors: z.any(), answer: callback() }, async ({ errors, answer }) => {
          seen.push(...(errors as Error[]), (await answer()) as Error);
        }),
      });
      const body = `
        const make = () => new TypeError("mine");
        const error = make();
        await env.c.take([error, make()], make);
        return error.stack;`;
      const whole = String(await value(body, { c }));
      expect(whole).toContain("doublehull:"); // the control: there is something to trim
      expect(seen.map(({ stack = "" }) => placeIn(stack))).toEqual([1, 2, 3].map(() => placeIn(whole)));
      for (const { stack } of seen) expect(stack).not.toMatch(/doublehull:|isolated-vm|node:|dist/);
    });

    test("that cannot cross are an error that names the path, and the call is not made", async () => {
      let made = 0;
      const c = capability("c", { go: reading({ v: z.any() }, () => ++made) });
      const body = "try { await env.c.go({ a: [Symbol('s')] }); } catch (e) { return [e.name, e.message]; }";
      const outcome = await run(body, { c });
      expect(valueOf(outcome)).toEqual([
        "DataCloneError",
        expect.stringMatching(/^arguments\[0\]\.a\[0\]: a symbol cannot cross/),
      ]);
      expect([made, outcome.usage.hostCalls, outcome.ledger]).toEqual([0, 0, []]);
    });

    test("of an answer that cannot cross fail the call, and say no more", async () => {
      const c = capability("c", { go: reading({}, () => new URL("file:///secret")) });
      expect(await failure("env.c.go()", { c })).toEqual(["failed", "c.go: the capability failed"]);
    });

    test("over the limit of bytes are an error for the script, either way, and the run goes on", async () => {
      const options: RunOptions = { limits: { callBytes: 1000 } };
      const c = capability("c", {
        long: reading({ n: z.number() }, ({ n }) => "x".repeat(n)),
        blob: reading({ n: z.number() }, ({ n }) => new Uint8Array(n)),
      });
      expect(await failure("env.c.long(2000)", { c }, options)).toEqual([
        "too-large",
        "the answer is over 1000 bytes",
      ]);
      expect(await failure("env.c.blob(2000)", { c }, options)).toEqual(["too-large", expect.any(String)]);
      const body = `
        const refused = await env.echo.say("x".repeat(2000)).catch((e) => e.name + ": " + e.message);
        return [refused, (await env.echo.say("x".repeat(900))).length]`;
      expect(await value(body, { echo }, options)).toEqual([
        expect.stringMatching(/^DataCloneError: arguments/),
        900,
      ]);
    });

    test("answers of a heap's size in all come one by one", async () => {
      const c = capability("c", { page: reading({}, () => "x".repeat(1_000_000)) });
      const body =
        "const all = []; for (let i = 0; i < 60; i++) all.push(env.c.page().then((s) => s.length)); return (await Promise.all(all)).length";
      expect(await value(body, { c })).toBe(60);
    });
  });

  describe("callbacks", () => {
    const caller = (more: Record<string, Method> = {}) =>
      capability("caller", {
        call: reading({ f: callback(), x: z.any() }, async ({ f, x }) => f(x)),
        ...more,
      });

    test("are called with values and answer with values, now or later", async () => {
      const body = `
        const now = await env.c.call((x) => x * 2, 21);
        const later = await env.c.call(async (m) => { await null; return [...m.keys()]; }, new Map([["k", 1n]]));
        return [now, later]`;
      expect(await value(body, { c: caller() })).toEqual([42, ["k"]]);
    });

    test("may call back into env, and those again", async () => {
      const body = `
        const dive = async (n) => n === 0 ? "deep" : "<" + await env.c.call(dive, n - 1) + ">";
        return dive(5)`;
      expect(await value(body, { c: caller() })).toBe("<<<<<deep>>>>>");
    });

    test.each([
      ["throws", "() => { throw new RangeError('mine') }", "RangeError: mine"],
      ["rejects", "async () => { throw new RangeError('mine') }", "RangeError: mine"],
      ["throws no error", "() => { throw 'words' }", "Error: words"],
      ["throws what cannot be read", "() => { throw { get name() { throw 1 } } }", "Error: an error that cannot be read"], // prettier-ignore
      ["answers what cannot cross", "() => Symbol('s')", expect.stringContaining("a symbol cannot cross")],
    ])("that %s is a GuestError for the handler", async (_what, f, message) => {
      let caught: unknown;
      const c = caller({
        tryCall: reading({ f: callback() }, async ({ f: g }) => {
          await g().catch((error: unknown) => (caught = error));
          return "caught";
        }),
      });
      expect(await value(`return env.c.tryCall(${f})`, { c })).toBe("caught");
      expect(caught).toBeInstanceOf(GuestError);
      expect((caught as GuestError).message).toEqual(message);
      expect(await failure(`env.c.call(${f})`, { c })).toEqual(["failed", "c.call: the capability failed"]);
    });

    test("that throw while nobody waits for them harm nobody", async () => {
      const rejections: unknown[] = [];
      const note = (error: unknown) => rejections.push(error);
      process.on("unhandledRejection", note);
      try {
        const c = caller({
          fire: reading({ f: callback() }, ({ f }) => {
            void f();
            return "fired";
          }),
        });
        const body =
          "const got = await env.c.fire(() => { throw new Error('mine'); }); await env.c.call(() => 1); return got";
        expect(await value(body, { c })).toBe("fired");
        await new Promise((resolve) => setImmediate(resolve));
        expect(rejections).toEqual([]);
      } finally {
        process.off("unhandledRejection", note);
      }
    });

    test("are dead after their call unless kept, live while kept, and are dead once released", async () => {
      let kept: GuestFunction | undefined;
      let lost: GuestFunction | undefined;
      const words = (f: GuestFunction | undefined, x: unknown) =>
        f?.(x).catch((error: unknown) => (error as CapabilityError).code);
      const c = capability("c", {
        give: reading({ keep: callback(), lose: callback() }, ({ keep, lose }) => {
          kept = keep.keep();
          lost = lose;
          return lose("in time");
        }),
        use: reading({}, async () => [await words(kept, "later"), await words(lost, "later")]),
        drop: reading({}, async () => {
          kept?.release();
          kept?.release();
          return words(kept, "too late");
        }),
      });
      const body =
        "return [await env.c.give((x) => 'kept ' + x, (x) => 'lost ' + x), await env.c.use(), await env.c.drop()]";
      expect(await value(body, { c })).toEqual(["lost in time", ["kept later", "revoked"], "revoked"]);
      await expect(kept?.("after the run")).rejects.toMatchObject({ code: "unavailable" });
    });

    test("that the host keeps are a reason to wait; once they are released there is none", async () => {
      const bell = (then: (f: GuestFunction) => void) =>
        capability("bell", {
          ring: reading({ f: callback() }, ({ f }) => {
            f.keep();
            setTimeout(() => then(f), 20);
            return null;
          }),
        });
      const body = "return new Promise((resolve) => { env.b.ring(resolve); })";
      const rung = bell((f) => void f("rung"));
      expect(await value(body, { b: rung })).toBe("rung");
      const silent = bell((f) => f.release());
      expect(stopOf(await run(body, { b: silent }))).toMatchObject({
        reason: "deadlock",
        layer: "language",
      });
    });

    test("answer without asking what the guest put in the place of a promise's constructor", async () => {
      const caller = capability("caller", { call: reading({ f: callback() }, ({ f }) => f()) });
      const body = `
        let armed = false;
        const real = Promise;
        const get = () => { if (armed) throw new Error("asked"); return real; };
        Object.defineProperty(Promise.prototype, "constructor", { get });
        return await env.c.call(() => { armed = true; queueMicrotask(() => { armed = false; }); return 7; })`;
      expect(await value(body, { c: caller })).toBe(7);
    });

    test("come home as the functions that they are", async () => {
      const body =
        "const f = () => 1; const other = await env.e.say([f]); return [other[0] === f, other[0]()]";
      expect(await value(body, { e: echo })).toEqual([true, 1]);
    });

    test("of another run are no function of this one's", async () => {
      let foreign: GuestFunction | undefined;
      const lost = gate();
      const taken = gate();
      const c = capability("c", {
        give: reading({ f: callback() }, async ({ f }) => {
          foreign = f.keep();
          taken.open();
          await lost.opened;
        }),
        take: reading({ f: callback() }, () => foreign),
      });
      const giving = run("await env.c.give(() => 'of the other')", { c });
      await taken.opened;
      expect(await failure("env.c.take(() => 'mine')", { c })).toEqual(["failed", expect.any(String)]);
      lost.open();
      expect((await giving).status).toBe("ok");
    });

    test("more than the limit are an error for the script", async () => {
      const body =
        "return env.e.say(Array.from({ length: 20 }, () => () => 1)).then((all) => all.length, (e) => e.code)";
      expect(await value(body, { e: echo }, { limits: { references: 10 } })).toBe("quota");
      expect(await value(body, { e: echo }, { limits: { references: 20 } })).toBe(20);
    });
  });

  describe("capabilities handed out by others", () => {
    const file = (text: string) => capability("file", { text: reading({}, async () => text) });
    const dir = (path: string): Capability =>
      capability("dir", {
        open: reading({ name: z.string() }, ({ name }) => file(`${path}/${name}`)),
        sub: reading({ name: z.string() }, ({ name }) => dir(`${path}/${name}`)),
        list: reading({}, () => new Map([["a", file(`${path}/a`)]])),
        same: reading(
          { other: z.custom<Capability>((v) => v instanceof Capability, "must be a capability") },
          ({ other }) => other.name,
        ),
      });

    test("are called like those that were granted, and hand out others", async () => {
      const body = `
        const inner = await (await env.d.sub("x")).sub("y");
        return [await (await inner.open("z")).text(), await (await inner.list()).get("a").text()]`;
      expect(await value(body, { d: dir("") })).toEqual(["/x/y/z", "/x/y/a"]);
    });

    test("go home as arguments, and are there what they were", async () => {
      const body =
        "return [await env.d.same(await env.d.open('a')), await env.d.same(env.d), await env.d.same({ text() {} }).catch((e) => e.code)]";
      expect(await value(body, { d: dir("") })).toEqual(["file", "dir", "bad-argument"]);
    });

    test("live as long as one of their methods does", async () => {
      const body = `
        const { text } = await env.d.open("kept");
        for (let i = 0; i < 200; i++) await env.d.open("other");
        return text()`;
      expect(await value(body, { d: dir("") })).toBe("/kept");
    });

    test("live as long as calls of them, or with them, wait for their turn", async () => {
      const body = `
        const all = [];
        let d = await env.d.sub("x");
        for (let i = 0; i < 60; i++) { const f = await d.open("f"); all.push(f.text(), env.d.same(f)); }
        d = undefined;
        for (let i = 0; i < 100; i++) all.push(env.d.open("more").then(() => "more"));
        return new Set(await Promise.all(all))`;
      expect(await value(body, { d: dir("") }, { limits: { hostCallsInFlight: 2 } })).toEqual(
        new Set(["/x/f", "file", "more"]),
      );
    });

    test("that are forgotten are released: any number one after the other, only so many at once", async () => {
      const options: RunOptions = { limits: { references: 100 } };
      const loop =
        "let n = 0; for (let i = 0; i < 500; i++) n += (await (await env.d.open('f')).text()).length; return n";
      expect(await value(loop, { d: dir("") }, options)).toBe(1000);
      const hoard = "const all = []; for (;;) all.push(await env.d.open('f'))";
      const error = errorOf(await run(hoard, { d: dir("") }, options));
      expect(error).toMatchObject({
        name: "CapabilityError",
        message: "at most 100 references may be held at one time",
      });
    });

    test("are not counted for what the run was granted", async () => {
      const grants = { a: counter(1), b: counter(2), c: counter(3) };
      const body = "return Promise.all([env.a.get(), env.b.get(), env.c.get()])";
      expect(await value(body, grants, { limits: { references: 1 } })).toEqual([1, 2, 3]);
    });

    test("may be plain functions", async () => {
      const adder = (sum: number): Capability =>
        hostFunction(reading({ n: z.number() }, ({ n }) => (n === 0 ? sum : adder(sum + n))));
      const body = `
        const two = await env.add(2);
        return [typeof env.add, typeof two, await (await (await two(3))(4))(0), await env.add("x").catch((e) => e.message)]`;
      const [grant, made, sum, message] = (await value(body, { add: adder(0) })) as unknown[];
      expect([grant, made, sum]).toEqual(["function", "function", 9]);
      expect(message).toMatch(/^add: n: /);
    });

    test("and functions go home to be called there", async () => {
      const c = capability("c", {
        both: reading({ f: callback() }, async ({ f }) => {
          const g = hostFunction(reading({ n: z.number() }, ({ n }) => n + 1));
          return f(g);
        }),
      });
      expect(await value("return env.c.both(async (g) => [await g(1), await g(2)])", { c })).toEqual([2, 3]);
    });
  });

  describe("errors", () => {
    test.each(Object.keys(CAPABILITY_ERRORS) as CapabilityErrorCode[])(
      "of the code %s arrive with code, message, and the script's own line and column",
      async (code) => {
        const c = capability("c", {
          fail: reading({}, async () => {
            await Promise.resolve();
            throw new CapabilityError(code, `the ${code} of it`, { cause: new Error("/secret/path") });
          }),
        });
        const source = `export default async (_, env) => {
          const mark = 1;
              await env.c.fail();
        }`;
        const outcome = await sandbox.run(source, { grants: { c } });
        const error = errorOf(outcome);
        expect([error.name, error.message]).toEqual(["CapabilityError", `the ${code} of it`]);
        const [line, column] = (placeIn(error.stack) ?? "").split(":").map(Number);
        expect(line).toBe(3);
        expect(column).toBeGreaterThanOrEqual(15);
        expect(column).toBeLessThanOrEqual(33);
        expect(error.stack).not.toMatch(/doublehull:|node:|dist|secret/);
        const shape =
          "await env.c.fail().catch((e) => { throw [e instanceof Error, e.name, e.code, Object.keys(e).join(), String(e)].join('|'); })";
        expect(errorOf(await run(shape, { c })).message).toBe(
          `true|CapabilityError|${code}|code|CapabilityError: the ${code} of it`,
        );
      },
    );

    test.each<[string, () => unknown]>([
      ["throws an error", () => { throw Object.assign(new Error("ENOENT: /etc/passwd"), { code: "ENOENT" }); }], // prettier-ignore
      ["rejects", () => Promise.reject(new TypeError("at /home/host/app.js"))],
      ["throws a text", () => { throw "password=hunter2"; }], // prettier-ignore
      ["throws nothing", () => { throw undefined; }], // prettier-ignore
      ["rejects with nothing", () => Promise.reject()], // prettier-ignore
      ["throws a stolen name", () => { throw Object.assign(new Error("x"), { name: "CapabilityError", code: "denied" }); }], // prettier-ignore
    ])("of a handler that %s tell the script nothing, and the audit all", async (_what, act) => {
      const events: AuditEvent[] = [];
      const c = capability("c", { go: reading({}, act) });
      const body =
        "try { await env.c.go(); } catch (e) { return [e.code, e.message, e.cause, String(e.stack)]; }";
      const outcome = await run(body, { c }, { audit: (event) => void events.push(event) });
      const [code, message, cause, stack] = valueOf(outcome) as unknown[];
      expect([code, message, cause]).toEqual(["failed", "c.go: the capability failed", undefined]);
      expect(stack).not.toMatch(/passwd|home|hunter2|test\.ts|node:/);
      expect(events.map(({ decision }) => decision)).toEqual(["allowed", "failed"]);
      expect(outcome.ledger).toEqual([
        { capability: "c", method: "go", calls: 1, refused: 0, failed: 1, bytes: expect.any(Number) },
      ]);
      const thrown = await Promise.resolve()
        .then(act)
        .catch((error: unknown) => error);
      if (thrown instanceof Error) expect(events[1]?.error).toMatchObject({ message: thrown.message });
    });

    test("of arguments name the parameter, and the handler never sees them", async () => {
      let seen = 0;
      const c = capability("c", {
        go: reading({ name: z.string().max(3), size: z.number().int().optional() }, () => ++seen),
      });
      expect(await failure("env.c.go(1)", { c })).toEqual([
        "bad-argument",
        expect.stringMatching(/^c\.go: name: /),
      ]);
      expect(await failure("env.c.go('long')", { c })).toEqual([
        "bad-argument",
        expect.stringContaining("name"),
      ]);
      expect(await failure("env.c.go('a', 1.5)", { c })).toEqual([
        "bad-argument",
        expect.stringContaining("size"),
      ]);
      expect(await failure("env.c.go('a', 1, 2)", { c })).toEqual([
        "bad-argument",
        "c.go takes at most 2 (name, size)",
      ]);
      expect(await failure("env.c.go()", { c })).toEqual(["bad-argument", expect.any(String)]);
      expect(seen).toBe(0);
      expect(await value("return env.c.go('abc')", { c })).toBe(1);
    });

    test("of a hook that fails at the end harm neither the run nor the next one", async () => {
      const events: AuditEvent[] = [];
      const c = capability(
        "c",
        {
          go: reading({}, (_args, call) => {
            call.onEnd(() => {
              throw new Error("in onEnd");
            });
            return 1;
          }),
        },
        {
          close() {
            throw new Error("in close");
          },
        },
      );
      const audit = (event: AuditEvent) => void events.push(event);
      expect(await value("return env.c.go()", { c }, { audit })).toBe(1);
      expect(events.map(({ error }) => (error as Error | undefined)?.message)).toEqual([
        undefined,
        undefined,
        "in onEnd",
        "in close",
      ]);
      expect(await value("return env.c.get()", { c: counter(5) })).toBe(5);
    });
  });

  describe("weakened grants", () => {
    test("a read-only one has no method that writes, and neither has the one with only some", async () => {
      const whole = counter(3);
      const body = "return [Object.keys(env.c), await env.c.get()]";
      expect(await value(body, { c: whole })).toEqual([["get", "add"], 3]);
      expect(await value(body, { c: whole.readOnly() })).toEqual([["get"], 3]);
      expect(await value(body, { c: whole.only("get") })).toEqual([["get"], 3]);
    });

    test("a budget of calls is spent by the run, and every run has its own", async () => {
      const c = counter().budget({ calls: 2 });
      const body =
        "return [await env.c.get(), await env.c.add(1), await env.c.get().catch((e) => e.code + ': ' + e.message)]";
      const spent = expect.stringMatching(/^budget: c: the budget of 2 calls is used up$/);
      expect(await value(body, { c })).toEqual([0, 1, spent]);
      expect(await value(body, { c })).toEqual([1, 2, spent]);
    });

    test("a budget of bytes counts arguments, answers, and what the act moves", async () => {
      const c = capability("c", {
        say: reading({ text: z.string() }, ({ text }) => text),
        pull: reading({ n: z.number() }, ({ n }, call) => {
          call.charge(n);
          return null;
        }),
      }).budget({ bytes: 1000 });
      const over = ["budget", "c: the budget of 1000 bytes is used up"];
      expect(await failure("env.c.say('x'.repeat(2000))", { c })).toEqual(over);
      expect(await failure("env.c.say('x'.repeat(600))", { c })).toEqual(over); // with the answer it is too much
      expect(await failure("env.c.pull(2000)", { c })).toEqual(over);
      expect(await value("return (await env.c.say('x'.repeat(300))).length", { c })).toBe(300);
    });

    test("an answer that breaks the budget leaves no capability behind", async () => {
      const maker = capability("maker", { make: reading({}, () => [counter(), "x".repeat(500)]) });
      const body =
        "const codes = new Set(); for (let i = 0; i < 20; i++) await env.m.make().catch((e) => codes.add(e.code)); return codes";
      expect(await value(body, { m: maker.budget({ bytes: 100 }) }, { limits: { references: 5 } })).toEqual(
        new Set(["budget"]),
      );
    });

    test("a rate lets a burst through and then says when the next may come", async () => {
      const c = counter().rate(3, 600_000);
      const body = "for (let i = 0; i < 3; i++) await env.c.add(1); return env.c.add(1)";
      expect(errorOf(await run(body, { c })).message).toMatch(/^c: too many calls; the next in \d+ ms$/);
    });

    test("one that has expired is refused; one that has not is not", async () => {
      const hour = 3_600_000;
      expect(await failure("env.c.get()", { c: counter().expires(new Date(Date.now() - hour)) })).toEqual([
        "expired",
        "c: the time it was granted for is over",
      ]);
      expect(await failure("env.c.get()", { c: counter().expires({ afterMs: 0 }) })).toEqual([
        "expired",
        expect.any(String),
      ]);
      expect(await value("return env.c.get()", { c: counter(1).expires({ afterMs: hour }) })).toBe(1);
      expect(await value("return env.c.get()", { c: counter(1).expires(new Date(Date.now() + hour)) })).toBe(
        1,
      );
    });

    test("a rule of the host's own sees the arguments", async () => {
      const c = counter().where(
        "adds at most 5",
        (name, { by }) => name !== "add" || (by as number) <= 5 || "at most 5 at a time",
      );
      expect(await value("return env.c.add(5)", { c })).toBe(5);
      expect(await failure("env.c.add(6)", { c })).toEqual(["denied", "c: at most 5 at a time"]);
    });

    test("one that is taken back fails calls that are under way, and all later ones", async () => {
      const begun = gate();
      let aborted = false;
      const slow = capability("slow", {
        wait: reading({}, (_args, { signal }) => {
          signal.addEventListener("abort", () => (aborted = true));
          begun.open();
          return new Promise(() => {});
        }),
      });
      const { capability: granted, revoke } = caretaker(slow);
      const running = run(
        "const codes = []; for (let i = 0; i < 2; i++) await env.s.wait().catch((e) => codes.push(e.code)); return codes",
        { s: granted },
      );
      await begun.opened;
      revoke();
      expect(valueOf(await running)).toEqual(["revoked", "revoked"]);
      expect(aborted).toBe(true);
    });

    test("one that is weakened while the script runs has fewer methods from the next call on", async () => {
      const keeper = caretaker(counter());
      const host = capability("host", {
        weaken: reading({}, () => keeper.weaken((now) => now.readOnly())),
      });
      const body =
        "await env.c.add(1); await env.h.weaken(); return [await env.c.get(), await env.c.add(1).catch((e) => [e.code, e.message])]";
      expect(await value(body, { c: keeper.capability, h: host })).toEqual([
        1,
        ["denied", "there is no such capability or method"],
      ]);
    });
  });

  describe("what the host is told", () => {
    test("audit events come in order, before the act and after it", async () => {
      const told: string[] = [];
      const c = capability("box", {
        put: writing({ key: z.string(), secret: z.string() }, async () => void told.push("act"), {
          audit: ({ key }) => ({ key }),
        }),
        fail: reading({}, () => {
          throw new CapabilityError("not-found", "nothing there");
        }),
      });
      const events: AuditEvent[] = [];
      const audit = (event: AuditEvent) => {
        events.push(event);
        told.push(`${event.capability}.${event.method} ${event.decision} ${event.code ?? "-"}`);
      };
      const body =
        "await env.c.put('k', 'hidden'); await env.c.put(1).catch(() => 0); await env.c.fail().catch(() => 0)";
      const outcome = await run(body, { c }, { audit, tenant: "ada" });
      expect(outcome.status).toBe("ok");
      expect(told).toEqual([
        "c.put allowed -",
        "act",
        "c.put done -",
        "c.put refused bad-argument",
        "c.fail allowed -",
        "c.fail failed not-found",
      ]);
      expect(events[0]).toMatchObject({ kind: "box", tenant: "ada", detail: { key: "k" } });
      expect(JSON.stringify(events)).not.toContain("hidden");
      expect(new Set(events.map(({ runId }) => runId)).size).toBe(1);
      expect(outcome.ledger).toEqual([
        { capability: "c", method: "put", calls: 2, refused: 1, failed: 0, bytes: expect.any(Number) },
        { capability: "c", method: "fail", calls: 1, refused: 0, failed: 1, bytes: expect.any(Number) },
      ]);
      const last = events.filter(({ decision }) => decision !== "allowed");
      expect(outcome.ledger.reduce((sum, entry) => sum + entry.bytes, 0)).toBe(
        last.reduce((sum, event) => sum + event.bytes, 0),
      );
    });

    test("an audit that fails stops the act; afterwards it changes nothing", async () => {
      let acts = 0;
      const c = capability("c", { go: writing({}, () => ++acts) });
      const broken = (decision: AuditEvent["decision"]) => (event: AuditEvent) => {
        if (event.decision === decision) throw new Error("disk full");
      };
      expect(await failure("env.c.go()", { c }, { audit: broken("allowed") })).toEqual([
        "failed",
        "c: the audit refused",
      ]);
      expect(acts).toBe(0);
      expect(await value("return env.c.go()", { c }, { audit: broken("done") })).toBe(1);
    });

    test("each log line as it comes, and a listener that throws is its own affair", async () => {
      const lines: string[] = [];
      const seen = gate();
      const c = capability("c", { wait: reading({}, () => seen.opened) });
      const onLog = ({ level, args }: Outcome["logs"][number]) => {
        lines.push(`${level} ${args.join(" ")}`);
        seen.open(); // the script goes on only because its line was heard while it ran
        throw new Error("mine");
      };
      const outcome = await run(
        "console.warn('first', 1); await env.c.wait(); console.log('second')",
        { c },
        { onLog },
      );
      expect(outcome.status).toBe("ok");
      expect(lines).toEqual(["warn first 1", "log second"]);
      expect(outcome.logs).toHaveLength(2);
    });
  });

  describe("env", () => {
    test("is frozen, as are the stubs in it, and holds no more than was granted", async () => {
      const body = `
        "use strict";
        const tries = [() => { env.x = 1; }, () => { delete env.c; }, () => { env.c.get = 1; }, () => { env.c = 1; }];
        return [tries.map((f) => { try { f(); return "done"; } catch (e) { return e.name; } }), Object.keys(env), await env.c.get()]`;
      expect(await value(body, { c: counter(9) })).toEqual([
        ["TypeError", "TypeError", "TypeError", "TypeError"],
        ["c"],
        9,
      ]);
      expect(await value("return [Object.keys(env), env.c, env.kv]", {})).toEqual([[], undefined, undefined]);
    });

    test("says which grant a script misses", async () => {
      const error = errorOf(await run("await env.kv.get('x')", { c: counter() }));
      expect(error).toMatchObject({ name: "TypeError", message: expect.stringContaining("--grant kv") });
    });

    test("stands with the input in a classic script too", async () => {
      const outcome = await sandbox.run("env.c.add(input.by)", {
        type: "script",
        input: { by: 4 },
        grants: { c: counter(1) },
      });
      expect(valueOf(outcome)).toBe(5);
    });

    test("holds a placeholder where a secret was granted, and the secret enters no worker", async () => {
      const key = secret({ name: "key", value: "correct-horse-battery", hosts: ["api.example.com"] });
      const body = "console.log(env.key); return [typeof env.key, env.key]";
      const outcome = await run(body, { key });
      expect(valueOf(outcome)).toEqual(["string", key.placeholder]);
      expect(JSON.stringify(outcome)).not.toContain("correct-horse");
    });

    test("that a script breaks harms that script only", async () => {
      const body = `
        Object.prototype.then = undefined;
        Object.prototype.get = () => { throw 1; };
        Array.prototype.push = Map.prototype.get = Map.prototype.set = WeakMap.prototype.get = WeakRef.prototype.deref = Promise.prototype.then;
        Object.prototype.ref = 1; Object.prototype.token = 2; Object.prototype.kind = "home"; Object.prototype.next = 3;
        const c = await env.m.make();
        return [await c.add(2), await env.e.say([c]).then(([d]) => d.get())]`;
      const maker = capability("maker", { make: reading({}, () => counter(1)) });
      expect(await value(body, { m: maker, e: echo })).toEqual([3, 3]);
    });

    test("has no method by the names that objects have from birth", async () => {
      const body = `
        const out = [];
        for (const name of ["constructor", "__proto__", "toString", "then", "valueOf", "hasOwnProperty"])
          out.push(Object.hasOwn(env.c, name));
        return out`;
      expect(await value(body, { c: counter() })).toEqual(Array(6).fill(false));
    });
  });
});
