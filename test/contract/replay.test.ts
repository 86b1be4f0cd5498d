/** Record and replay through a whole sandbox: the same run again with nothing granted, and where other code parts from it. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { parseRecording, Sandbox, type Recording, type RunOptions } from "doublehull";
import { callback, capability, clock, events, kv, method, random } from "doublehull/hostapi";
import { ENGINES } from "../engines.js";
import { families, makeSandbox, until, valueOf } from "../harness.js";

/** Answers differently each time, and in an order that nobody knows. */
function moody() {
  let asked = 0;
  const later = <T>(value: T) =>
    new Promise<T>((resolve) => setTimeout(() => resolve(value), Math.random() * 5));
  const capability_ = capability("mood", {
    ask: method({
      doc: "An answer.",
      params: { of: z.unknown() },
      effect: "read",
      run: ({ of }) => {
        asked++;
        return later({ of, asked, chance: Math.random(), bytes: new Uint8Array([asked]) });
      },
    }),
    each: method({
      doc: "Calls back.",
      params: { f: callback() },
      effect: "read",
      run: async ({ f }) => [await f(1), await f(new Uint8Array([2])), await later(await f("three"))],
    }),
    fail: method({
      doc: "Fails.",
      params: {},
      effect: "read",
      run: () => Promise.reject(new Error("/etc/hostname")),
    }),
  });
  return { capability: capability_, asked: () => asked };
}

const PROGRAM = `export default async (input, env) => {
  console.log("begins", input, Math.random(), crypto.randomUUID());
  const all = await Promise.all(["a", "b", "c", "d"].map((of) => env.mood.ask(of)));
  const before = Date.now();
  await new Promise((go) => setTimeout(go, 20));
  const each = await env.mood.each(async (value) => [value, (await env.mood.ask("inner")).asked, Date.now() - before]);
  const first = await Promise.race([env.mood.ask("x"), env.mood.ask("y")]);
  const failed = await env.mood.fail().catch((error) => error.message);
  console.warn(failed);
  return { all, each, first, failed, at: new Date(), n: 1n };
}`;

describe.each(ENGINES)("a recorded run, with the engine %s", (engine) => {
  let sandbox: Sandbox;
  let mood: ReturnType<typeof moody>;
  let recording: Recording;
  let value: unknown;
  const record = async (source: string, options: RunOptions = {}) => {
    const outcome = await sandbox.run(source, { record: true, ...options });
    if (outcome.recording === undefined) throw new Error("nothing was recorded");
    return { outcome, recording: parseRecording(JSON.stringify(outcome.recording)) };
  };

  beforeAll(async () => {
    sandbox = await makeSandbox({ engine, limits: { wallMs: 10_000, cpuMs: 10_000 } });
    mood = moody();
    const made = await record(PROGRAM, { grants: { mood: mood.capability }, input: { who: "Ada" } });
    value = valueOf(made.outcome);
    recording = made.recording;
  });
  afterAll(() => sandbox.close());

  test("that called the host too often ends of that again, and at once", async () => {
    const source =
      "export default async (_, env) => { for (let i = 0; i < 50; i++) await env.kv.set('a', i) }";
    const grants = { kv: kv({ namespace: "replay" }) };
    const { recording, ...outcome } = await sandbox.run(source, {
      record: true,
      grants,
      limits: { hostCalls: 20 },
    });
    expect(outcome).toMatchObject({ status: "stopped", stop: { reason: "host-calls" } });
    const again = await sandbox.replay(recording as Recording);
    expect(again).toMatchObject({
      identical: true,
      outcome: { stop: { reason: "host-calls", measured: 21 } },
    });
  });

  test("gives the identical outcome each time, and asks nobody", async () => {
    const asked = mood.asked();
    expect(asked).toBeGreaterThan(8);
    for (let i = 0; i < 5; i++) {
      const replay = await sandbox.replay(recording);
      expect(replay.divergence).toBeUndefined();
      expect(replay.identical).toBe(true);
      expect(valueOf(replay.outcome)).toStrictEqual(value);
      expect(replay.outcome.ledger).toEqual([]);
    }
    expect(mood.asked()).toBe(asked);
  });

  test("says which call is another one when the code has changed", async () => {
    const replay = await sandbox.replay(recording, { source: PROGRAM.replace('"c"', '"z"') });
    expect(replay).toMatchObject({
      identical: false,
      divergence: { at: 3, expected: 'mood.ask("c")', got: 'mood.ask("z")' },
    });
  });

  test("says so when the code makes a call more, or one less", async () => {
    const more = PROGRAM.replace("return {", "await env.mood.ask('more'); return {");
    const last = recording.said.length + 1;
    expect((await sandbox.replay(recording, { source: more })).divergence).toEqual({
      at: last,
      expected: "nothing more",
      got: 'mood.ask("more")',
    });
    const less = PROGRAM.replace("await env.mood.fail().catch((error) => error.message)", "'nothing'");
    expect((await sandbox.replay(recording, { source: less })).divergence).toMatchObject({
      at: last - 1,
      expected: "mood.fail()",
    });
  });

  test("says where results and logs part", async () => {
    const result = await sandbox.replay(recording, { source: PROGRAM.replace("n: 1n", "n: 2n") });
    expect(result.identical).toBe(false);
    expect(result.divergence?.expected).toContain('"n",["i","1"]');
    expect(result.divergence?.got).toContain('"n",["i","2"]');
    const log = await sandbox.replay(recording, { source: PROGRAM.replace('"begins"', '"starts"') });
    expect(log.divergence?.expected).toContain("line 1 of the log");
  });

  test("has no capability when it is replayed, even if other code asks for more of it", async () => {
    const source = `export default async (_, env) => {
      const answers = [];
      for (let i = 0; i < 100; i++) answers.push(env.mood.ask("more").catch((e) => e));
      return Promise.all(answers);
    }`;
    const asked = mood.asked();
    const replay = await sandbox.replay(recording, { source });
    expect(replay.identical).toBe(false);
    expect(mood.asked()).toBe(asked);
  });

  test.each([
    ["a thrown error", "export default () => { throw new RangeError('no') }", {}],
    ["a deadlock", "export default () => new Promise(() => {})", {}],
    ["too large a result", "export default () => 'x'.repeat(2e6)", {}],
    ["a script", "console.log(env.mood ? 1 : 2); Math.random() + Date.now()", { type: "script" as const }],
    ["TypeScript", "export default (a: number): number => (a as number) + Math.random()", { name: "a.ts" }],
    [
      "a virtual clock",
      "export default async () => { await new Promise((go) => setTimeout(go, 1e7)); return Date.now(); }",
      { grants: { clock: clock({ mode: "virtual", startMs: 5 }) } },
    ],
    ["a seed", "export default () => Math.random()", { grants: { random: random({ seed: "s" }) } }],
    [
      "callbacks that are kept",
      "export default async (_, env) => new Promise((done) => env.later.on((value) => done(value)))",
      { grants: { later: keeper() } },
    ],
    [
      "events",
      "export default async (_, env) => { await env.events.emit('a', { b: 1 }); return 2; }",
      { grants: { events: events({ onEvent: () => {} }) } },
    ],
  ] satisfies [string, string, RunOptions][])("with %s is repeated", async (_what, source, options) => {
    const made = await record(source, options);
    const replay = await sandbox.replay(made.recording);
    expect(replay.divergence).toBeUndefined();
    expect(replay.identical).toBe(true);
  });

  test("is refused where the clock runs by itself", async () => {
    for (const mode of [{ mode: "real" }, { mode: "coarse", stepMs: 10 }] as const) {
      const run = sandbox.run("1", { record: true, grants: { clock: clock(mode) } });
      await expect(run).rejects.toMatchObject({ code: "bad-option", field: "record" });
    }
  });

  test("that is no recording is refused, naming the field", () => {
    expect(() => parseRecording("{")).toThrow("not JSON");
    const { job: _job, ...rest } = recording;
    expect(() => parseRecording(JSON.stringify(rest))).toThrow("job");
    expect(() => parseRecording(JSON.stringify({ ...recording, more: 1 }))).toThrow("more");
    const odd = { ...recording, sent: [{ after: -1, nowMs: 0, messages: [] }] };
    expect(() => parseRecording(JSON.stringify(odd))).toThrow("sent.0.after");
  });

  test.each([
    ["limits.memoryMb", (good: Recording) => ({ ...good, limits: { ...good.limits, memoryMb: 20.5 } })],
    ["limits.wallMs", (good: Recording) => ({ ...good, limits: { ...good.limits, wallMs: -1 } })],
    ["job.seed", (good: Recording) => ({ ...good, job: { ...good.job, seed: "" } })],
    ["job.maxTimers", (good: Recording) => ({ ...good, job: { ...good.job, maxTimers: -1 } })],
    ["job.nowMs", (good: Recording) => ({ ...good, job: { ...good.job, nowMs: 1e300 } })],
  ])("with a %s that no run had is refused, and not tried for ever", async (field, change) => {
    const odd = change(recording) as Recording;
    expect(() => parseRecording(JSON.stringify(odd))).toThrow(field);
    await expect(sandbox.replay(odd)).rejects.toMatchObject({ code: "bad-input" });
  });

  test.each([
    ["answers a call before it was made", 0, [{ kind: "reply", id: 5, ok: true }]],
    ["answers a call that was never made", 1, [{ kind: "reply", id: 99, ok: true }]],
    [
      "calls twice by one number",
      0,
      [
        { kind: "call", id: 1 },
        { kind: "call", id: 1 },
      ],
    ],
  ] as const)("that %s ends as protocol, and its worker with it", async (_what, after, messages) => {
    const sent = messages.map((message) =>
      message.kind === "reply"
        ? { ...message, value: { text: "null", blobs: [] } }
        : { ...message, ref: 1, method: "call", args: { text: '["a"]', blobs: [] } },
    );
    const odd = { ...recording, sent: [{ after, nowMs: 0, messages: sent }] };
    for (let i = 0; i < 3; i++) {
      const replay = await sandbox.replay(parseRecording(JSON.stringify(odd)));
      expect(replay.identical).toBe(false);
      expect(replay.outcome).toMatchObject({ status: "stopped", stop: { reason: "protocol" } });
    }
    const workers = () => families().flatMap((family) => family.workers).length;
    await until("only parked workers are left", () => workers() <= families().length);
  });

  test("with larger limits than the sandbox's is refused", async () => {
    const larger = { ...recording, limits: { ...recording.limits, memoryMb: 512 } };
    await expect(sandbox.replay(larger)).rejects.toMatchObject({
      code: "over-limit",
      field: "limits.memoryMb",
    });
  });
});

/** Calls a listener some time after the call that brought it has ended. */
function keeper() {
  return capability("later", {
    on: method({
      doc: "Calls the listener later.",
      params: { listener: callback() },
      effect: "read",
      run: ({ listener }) => {
        const kept = listener.keep();
        setTimeout(() => void kept("later"), 5);
      },
    }),
  });
}
