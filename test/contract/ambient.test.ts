/**
 * What every script has anyway, and the grants that change it: clock, randomness, console, timers. And the two ends that
 * hang on them: a script that can only wait for nothing, and one that waits too long.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RunOptions, Sandbox } from "doublehull";
import { clock, log, random, timers } from "#hostapi/ambient";
import { capability, method } from "#hostapi/capability";
import { ENGINES } from "../engines.js";
import { errorOf, makeSandbox, stopOf, valueOf } from "../harness.js";

/** Answers after some milliseconds of the host's clock. */
const nap = capability("nap", {
  take: method({
    doc: "waits",
    params: {},
    effect: "read",
    run: () => new Promise((resolve) => setTimeout(() => resolve("rested"), 15)),
  }),
});

const HOUR = 3_600_000;

describe.each(ENGINES)("what a script has anyway, on %s", (engine) => {
  let sandbox: Sandbox;
  beforeAll(async () => {
    sandbox = await makeSandbox({ engine, limits: { wallMs: 20_000, cpuMs: 20_000, hostCalls: 3000 } });
  });
  afterAll(() => sandbox.close());

  const run = (body: string, grants: RunOptions["grants"] = {}, options: RunOptions = {}) =>
    sandbox.run(`export default async (input, env) => { ${body} }`, { grants: grants ?? {}, ...options });
  const value = async (body: string, grants?: RunOptions["grants"], options?: RunOptions) =>
    valueOf(await run(body, grants, options));

  const SPIN = "let n = 0; for (let i = 0; i < 2e6; i++) n += i;";

  describe("the clock", () => {
    test("goes on when the host's date is set back", async () => {
      const date = Date.now;
      const setBack = capability("host", {
        setBack: method({
          doc: "sets the host's date back",
          params: {},
          effect: "write",
          run: () => void (Date.now = () => date() - HOUR),
        }),
      });
      try {
        const body = `const a = Date.now(); await env.host.setBack(); await new Promise((go) => setTimeout(go, 30)); return Date.now() - a;`;
        expect(await value(body, { host: setBack })).toBeGreaterThanOrEqual(30);
      } finally {
        Date.now = date;
      }
    });

    const TIMES = `const a = Date.now(); ${SPIN} const b = Date.now(); await env.nap.take(); const c = Date.now(); return [a, b, c]`;

    test("stands still between answers of the host, whether asked to or not", async () => {
      for (const grants of [{ nap }, { nap, clock: clock({ mode: "frozen" }) }]) {
        const before = Date.now();
        const [a = 0, b = 0, c = 0] = (await value(TIMES, grants)) as number[];
        expect(b).toBe(a);
        expect(c - a).toBeGreaterThanOrEqual(14);
        expect(a).toBeGreaterThanOrEqual(before);
        expect(c).toBeLessThanOrEqual(Date.now() + 1);
      }
    });

    test("runs if it is real", async () => {
      const body = "const a = Date.now(); while (Date.now() - a < 5); return Date.now() - a";
      expect(await value(body, { clock: clock() })).toBeGreaterThanOrEqual(5);
    });

    test("steps if it is coarse", async () => {
      const [a = 0, b = 0, c = 0] = (await value(TIMES, {
        nap,
        clock: clock({ mode: "coarse", stepMs: 10 }),
      })) as number[];
      expect([a % 10, b % 10, c % 10]).toEqual([0, 0, 0]);
      expect(c - a).toBeGreaterThanOrEqual(10);
    });

    test.each([0, 86_400_000, -1e12, 8.64e15 - HOUR, 1_700_000_000_000.5])(
      "begins at %d if told so, and goes on from there",
      async (startMs) => {
        const frozen = clock({ mode: "frozen", startMs });
        const [a = 0, b = 0, c = 0] = (await value(TIMES, { nap, clock: frozen })) as number[];
        expect(Math.abs(a - startMs)).toBeLessThan(1);
        expect(b).toBe(a);
        expect(c - a).toBeGreaterThanOrEqual(13);
        expect(c - a).toBeLessThan(HOUR);
      },
    );

    test("that is virtual makes an hour of sleeping cost nothing, in order", async () => {
      const body = `
        const start = Date.now();
        const seen = [];
        const sleep = (ms, name) => new Promise((go) => setTimeout(() => { seen.push([name, Date.now() - start]); go(); }, ms));
        const ticks = setInterval(() => seen.push(["tick", Date.now() - start]), 1_000_000);
        await Promise.all([sleep(3_600_000, "hour"), sleep(60_000, "minute"), sleep(1000, "second"), sleep(60_000, "minute too")]);
        clearInterval(ticks);
        return [performance.now(), seen]`;
      // The wall limit of 20 s does not end it.
      expect(await value(body, { clock: clock({ mode: "virtual", startMs: 0 }) })).toEqual([
        HOUR,
        [
          ["second", 1000],
          ["minute", 60_000],
          ["minute too", 60_000],
          ["tick", 1_000_000],
          ["tick", 2_000_000],
          ["tick", 3_000_000],
          ["hour", HOUR],
        ],
      ]);
    });

    test("that is virtual waits for the host's answers, and does not move for them", async () => {
      const body = `
        const seen = [];
        const timer = new Promise((go) => setTimeout(() => { seen.push("timer"); go(); }, 1));
        await env.nap.take(); seen.push(Date.now()); await timer; seen.push(Date.now()); return seen`;
      expect(await value(body, { nap, clock: clock({ mode: "virtual", startMs: 7 }) })).toEqual([
        7,
        "timer",
        8,
      ]);
    });
  });

  describe("randomness", () => {
    const DRAW =
      "return [Math.random(), Math.random(), [...crypto.getRandomValues(new Uint8Array(8))], crypto.randomUUID()]";

    test("differs from run to run", async () => {
      const draws = [await value(DRAW), await value(DRAW), await value(DRAW, { random: random() })];
      expect(new Set(draws.map((draw) => JSON.stringify(draw))).size).toBe(3);
    });

    test("is the same for the same seed, and another for another", async () => {
      const seeded = (seed: string | Uint8Array) => value(DRAW, { random: random({ seed }) });
      const first = await seeded("a seed");
      expect(await seeded("a seed")).toEqual(first);
      expect(await seeded(new TextEncoder().encode("a seed"))).toEqual(first);
      expect(await seeded("a seed.")).not.toEqual(first);
    });
  });

  describe("the console", () => {
    const body = "for (const level of ['debug', 'log', 'info', 'warn', 'error']) console[level](level)";
    test.each([
      ["debug", ["debug", "log", "info", "warn", "error"]],
      ["warn", ["warn", "error"]],
      ["error", ["error"]],
    ] as const)("tells what is at least %s", async (least, told) => {
      const outcome = await run(body, { log: log({ least }) });
      expect(outcome.logs.map(({ level }) => level)).toEqual(told);
      expect(outcome.logs.map(({ args }) => args)).toEqual(told.map((level) => [level]));
    });
  });

  describe("timers", () => {
    test("may be pending up to the number that was granted", async () => {
      const body =
        "const all = []; try { for (;;) all.push(setTimeout(() => {}, 1e6)); } catch (e) { return [all.length, e.name, e.message]; }";
      expect(await value(body, { timers: timers({ most: 3 }) })).toEqual([
        3,
        "RangeError",
        "setTimeout: at most 3 timers may be pending",
      ]);
      const again =
        "for (let i = 0; i < 50; i++) { const t = setTimeout(() => {}, 1e6); clearTimeout(t); await new Promise((go) => setTimeout(go, 1)); } return 'done'";
      expect(await value(again, { timers: timers({ most: 1 }), clock: clock({ mode: "virtual" }) })).toBe(
        "done",
      );
    });

    test("that were taken away say so", async () => {
      const error = errorOf(await run("setTimeout(() => {}, 1)", { timers: timers({ most: 0 }) }));
      expect(error.message).toMatch(/timers were taken/);
    });

    test("each for an earlier time than all before are an error for the script at last, and no offence", async () => {
      const body =
        "for (let i = 0; i < 2000; i++) { setTimeout(() => {}, 1e8 - i * 1000); await env.n.now(); }";
      const n = capability("n", {
        now: method({ doc: "now", params: {}, effect: "read", run: () => null }),
      });
      expect(errorOf(await run(body, { n })).message).toMatch(/^setTimeout: over 1000 timers were set/);
    });
  });

  describe("waiting", () => {
    test("for nothing that could come is a deadlock, told at once", async () => {
      const forms = [
        "await new Promise(() => {})",
        "await env.nap.take(); await new Promise(() => {})",
        "await new Promise((go) => { setTimeout(() => {}, 1); })",
      ];
      for (const body of forms) {
        expect(stopOf(await run(body, { nap }))).toMatchObject({ reason: "deadlock", layer: "language" });
      }
    });

    test("for an answer is none, and ends with the wall limit", async () => {
      const never = capability("never", {
        come: method({ doc: "x", params: {}, effect: "read", run: () => new Promise(() => {}) }),
      });
      const outcome = await run("await env.never.come()", { never }, { limits: { wallMs: 200 } });
      expect(stopOf(outcome).reason).toBe("wall-time");
      expect(outcome.ledger).toEqual([
        { capability: "never", method: "come", calls: 1, refused: 0, failed: 1, bytes: expect.any(Number) },
      ]);
    });
  });
});
