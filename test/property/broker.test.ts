/**
 * Frames of every kind, in any order, honest, bent and hostile, into the connection and the broker as the supervisor
 * joins them. Two things are asked: that nothing but the known ways out is taken (an error of the protocol, a violation,
 * an exhausted limit), with nothing done that was not granted and checked; and that the references a guest holds are at
 * every moment those that a model of four lines says.
 */
import * as fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import { z } from "zod";
import { codec, type EncodedValue } from "#engine/codec";
import { Broker, type BrokerMessage } from "#hostapi/broker";
import {
  callback,
  capability,
  method,
  type GuestFunction,
  type Method,
  type Params,
} from "#hostapi/capability";
import { encodeMessage, ProtocolError, WorkerConnection } from "#hostapi/wire";
import { fakeRun } from "../capability.js";

/** Runs that once found something, or cover much, are kept by their seed; the last one is new each time. */
const SEEDS = [1, 20, 77, 1969, 424_242, undefined];
const RUNS = 600;
/** Hangs are what this is for; a slow machine is not. */
const MOST_MS_PER_FRAME = 2000;

const { decode } = codec();
const keysBefore = Reflect.ownKeys(Object.prototype).length;
afterEach(() => expect(Reflect.ownKeys(Object.prototype)).toHaveLength(keysBefore));

const act = <P extends Params>(params: P, run: Method<P>["run"]) =>
  method({ doc: "acts", params, effect: "write", run });

const LIMITS = { hostCalls: 200, hostCallsInFlight: 16, callBytes: 4096, references: 20 };

/** The supervisor's joint of connection and broker, without a process behind it. */
class Joint {
  readonly connection = new WorkerConnection({
    maxTextBytes: 16_384,
    maxBlobBytes: 4096,
    maxFrames: 10_000,
    maxBytesIn: 1 << 22,
    maxCalls: 1000,
    maxInFlight: LIMITS.hostCallsInFlight + 1024,
  });
  readonly broker: Broker;
  readonly sent: BrokerMessage[] = [];
  ended: string | undefined;
  lastId = 0;
  /** Acts that were begun with arguments that their schema does not allow, or without a grant. */
  readonly wrong: string[] = [];
  /** References that the guest was told of. */
  readonly told: number[] = [];
  /** Calls of its functions that it has not answered. */
  asked: number[] = [];
  readonly kept = new Map<number, GuestFunction>();
  #lastFunction = 0;

  constructor() {
    const inner = () => capability("inner", { get: act({}, () => "inner") });
    const g = capability("g", {
      echo: act({ v: z.any() }, ({ v }) => v),
      later: act({ v: z.any() }, async ({ v }) => v),
      strict: act({ n: z.number().int().min(0), s: z.string().max(3).optional() }, ({ n, s }) => {
        if (!Number.isInteger(n) || n < 0 || (s !== undefined && typeof s !== "string"))
          this.wrong.push("strict");
        return n;
      }),
      open: act({}, inner),
      pair: act({}, () => [inner(), { deep: inner() }]),
      never: act({}, () => new Promise(() => {})),
      fail: act({}, () => Promise.reject(new Error("/host/path"))),
      ask: act({ f: callback() }, async ({ f }) => f(1)),
      fire: act({ f: callback() }, ({ f }) => void f(inner())),
      keep: act({ f: callback(), as: z.number().int() }, ({ f, as }) => void this.kept.set(as, f.keep())),
      use: act({ as: z.number().int() }, async ({ as }) => this.kept.get(as)?.()),
      drop: act({ as: z.number().int() }, ({ as }) => {
        this.kept.get(as)?.release();
        this.kept.delete(as);
      }),
    });
    const forbidden = capability("forbidden", {
      read: method({ doc: "reads", params: {}, effect: "read", run: () => "read" }),
      wipe: act({}, () => void this.wrong.push("wipe")),
    }).readOnly();
    this.broker = new Broker(
      new Map([
        ["g", g],
        ["forbidden", forbidden],
      ]),
      {
        // prettier-ignore
        limits: LIMITS,
        run: fakeRun(),
        port: {
          send: (message) => this.#send(message),
          whenRoom: (write) => write(),
          nowMs: () => 0,
          violated: (detail) => this.end(`violated: ${detail}`),
          exhausted: () => this.end("exhausted"),
        },
      },
    );
    for (const entry of this.broker.env) if (entry[1] !== "text") this.told.push(entry[2]);
    this.connection.feed(encodeMessage({ kind: "parked" }));
    this.connection.startJob(this.broker.knows);
  }

  end(why: string): void {
    this.ended ??= why;
    this.broker.close();
  }

  nextFunction(): number {
    return ++this.#lastFunction;
  }

  #send(message: BrokerMessage): void {
    if (this.ended !== undefined) return;
    this.sent.push(message);
    // What these throw would be our own mistake: a second answer, or a number used twice.
    if (message.kind === "reply") this.connection.answered(message.id);
    if (message.kind === "call") {
      this.connection.called(message.id);
      this.asked.push(message.id);
    }
    if (message.kind === "release") return;
    this.read(message.kind === "call" ? message.args : message.value);
  }

  /** What the guest would make of it: takes note of references, and of text that is the host's own. */
  read({ text, blobs }: EncodedValue): unknown {
    expect(text).not.toContain("/host/path");
    return decode(JSON.parse(text), blobs, {
      maxNodes: 100_000,
      resolve: (kind, ref) => {
        if (kind !== "home") this.told.push(ref);
        return { kind, ref };
      },
    });
  }

  feed(bytes: Uint8Array): void {
    if (this.ended !== undefined) return;
    const start = performance.now();
    try {
      for (const message of this.connection.feed(bytes)) {
        if (this.ended !== undefined) break;
        if (message.kind === "call") this.lastId = message.id;
        if (message.kind === "reply") this.asked = this.asked.filter((id) => id !== message.id);
        if (message.kind === "call") this.broker.call(message);
        else if (message.kind === "reply") this.broker.reply(message);
        else if (message.kind === "release") this.broker.release(message);
        else if (message.kind === "result") this.end("result");
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.end(error.code);
    }
    expect(performance.now() - start).toBeLessThan(MOST_MS_PER_FRAME);
  }

  /** A call's answer, if it has come. */
  answerTo(id: number): unknown {
    const reply = this.sent.find((message) => message.kind === "reply" && message.id === id);
    if (reply?.kind !== "reply") return undefined;
    const value = decode(JSON.parse(reply.value.text), reply.value.blobs, {
      maxNodes: 100_000,
      resolve: (kind, ref) => ({ kind, ref }),
    });
    return reply.ok ? value : (value as [string, string])[0];
  }
}

const soon = () => new Promise((resolve) => setImmediate(resolve));

const frame = (kind: 2 | 3 | 4 | 5 | 6, text: string, blob = new Uint8Array(0)): Uint8Array => {
  const body = Buffer.from(text);
  const head = Buffer.alloc(12);
  head.writeUInt32LE(body.length, 0);
  head.writeUInt32LE(blob.length, 4);
  head.writeUInt32LE(kind, 8);
  return Buffer.concat([head, body, blob]);
};

// -- what may come ----------------------------------------------------------------------------------------------------

const METHODS = ["echo", "later", "strict", "open", "pair", "never", "fail", "ask", "fire", "keep", "use", "drop", "get", "read", "wipe"]; // prettier-ignore
const HOSTILE = ["constructor", "__proto__", "then", "toString", "hasOwnProperty", "", "call", "\u0000", "x".repeat(129)]; // prettier-ignore

/** Mostly this, seldom that: or hardly a run would come far. */
const mostly = <A, B>(often: fc.Arbitrary<A>, seldom: fc.Arbitrary<B>, weight: number) =>
  fc.oneof({ weight, arbitrary: often }, { weight: 1, arbitrary: seldom });

/** A wire value, right or wrong; "$ref" and "$function" stand for ones that fit. */
const right = fc.constantFrom<unknown>(null, true, 0, 1, -1, 1.5, "text", "", ["u"], ["n", "NaN"], ["i", "12"], ["d", 0], "$ref", "$function", "$function"); // prettier-ignore
const wrong = fc.constantFrom<unknown>(["z"], [], ["o", "__proto__", 1], ["o", "constructor", ["o", "prototype", 1]], ["o", "a", 1, "a", 2], ["b", "Uint8Array", 9], ["r", "home", 7], ["r", "capability", 7, "get"], ["n", "1"], ["i", "0x1"], {}, "x".repeat(5000)); // prettier-ignore
const { wire } = fc.letrec<{ wire: unknown }>((tie) => ({
  wire: fc.oneof(
    { depthSize: "small" },
    { weight: 20, arbitrary: mostly(right, wrong, 60) },
    {
      weight: 3,
      arbitrary: fc
        .tuple(fc.constantFrom("a", "s"), fc.array(tie("wire"), { maxLength: 4 }))
        .map(([tag, parts]) => [tag, ...(tag === "a" ? parts : parts.slice(0, 1))]),
    },
    {
      weight: 3,
      arbitrary: fc
        .tuple(
          fc.constantFrom("o", "m"),
          fc.uniqueArray(fc.tuple(fc.string({ maxLength: 3 }), tie("wire")), {
            maxLength: 3,
            selector: ([key]) => key,
          }),
        )
        .map(([tag, pairs]) => [tag, ...pairs.flat()]),
    },
    {
      weight: 1,
      arbitrary: fc.tuple(fc.string(), fc.string()).map(([name, words]) => ["e", name, words, null]),
    },
  ),
}));

const nothing = fc.constant(undefined);
const call = fc.record({
  what: fc.constant("call" as const),
  target: fc.nat(),
  forged: mostly(nothing, fc.maxSafeNat(), 8),
  name: mostly(fc.constantFrom(...METHODS), fc.constantFrom(...HOSTILE), 20),
  args: fc.array(wire, { maxLength: 3 }),
  skip: mostly(fc.constant(0), fc.integer({ min: -2, max: 2 }), 200),
  blob: mostly(fc.constant(new Uint8Array(0)), fc.uint8Array({ maxLength: 9 }), 100),
});
const reply = fc.record({
  what: fc.constant("reply" as const),
  target: fc.nat(),
  forged: mostly(nothing, fc.nat(), 60),
  said: fc.oneof(
    wire.map((value) => ({ ok: true, value })),
    mostly(
      fc.tuple(fc.string(), fc.string()).map((words): unknown => ["a", ...words]),
      wire,
      20,
    ).map((value) => ({ ok: false, value })),
  ),
});
const release = fc.record({
  what: fc.constant("release" as const),
  target: fc.nat(),
  forged: mostly(nothing, fc.maxSafeNat(), 60),
  twice: fc.boolean(),
});
const raw = fc.record({ what: fc.constant("raw" as const), bytes: fc.uint8Array({ maxLength: 60 }) });
const log = fc.record({ what: fc.constant("log" as const), words: fc.string() });
const step = fc.oneof(
  { weight: 100, arbitrary: call },
  { weight: 40, arbitrary: reply },
  { weight: 12, arbitrary: release },
  { weight: 5, arbitrary: log },
  { weight: 20, arbitrary: fc.constant({ what: "wait" as const }) },
  { weight: 1, arbitrary: raw },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;
const bend = fc.record({
  at: fc.nat(),
  byte: fc.oneof(fc.integer({ min: 0, max: 255 }), fc.constantFrom(...Buffer.from('[]{},"\\0'))),
});

function fill(joint: Joint, value: unknown): unknown {
  if (value === "$ref") return ["r", "home", joint.told[joint.told.length >> 1]];
  if (value === "$function") return ["r", "function", joint.nextFunction()];
  return Array.isArray(value) ? value.map((part) => fill(joint, part)) : value;
}

function bytesOf(joint: Joint, one: Step): Uint8Array {
  const pick = (from: readonly number[], at: number): number => from[at % Math.max(1, from.length)] ?? 1;
  switch (one.what) {
    case "call": {
      const ref = one.forged ?? pick(joint.told, one.target);
      const item = [
        joint.lastId + 1 + one.skip,
        ref,
        one.name,
        ["a", ...one.args.map((arg) => fill(joint, arg))],
      ];
      return frame(2, JSON.stringify([item]), one.blob);
    }
    case "reply": {
      if (joint.asked.length === 0 && one.forged === undefined) return new Uint8Array(0);
      const { ok, value } = one.said;
      return frame(
        3,
        JSON.stringify([[one.forged ?? pick(joint.asked, one.target), ok, fill(joint, value)]]),
      );
    }
    case "release": {
      const held = joint.told.filter((ref) => joint.broker.knows(ref));
      const item = [one.forged ?? pick(held, one.target), 1];
      return frame(4, JSON.stringify(one.twice ? [item, item] : [item]));
    }
    case "log":
      return frame(5, JSON.stringify(["log", 0, [one.words]]));
    case "raw":
      return one.bytes;
    case "wait":
      return new Uint8Array(0);
  }
}

describe.each(SEEDS)("with the seed %s", (seed) => {
  const parameters = { numRuns: RUNS, ...(seed === undefined ? {} : { seed }) };

  test("any frames in any order end in a known way or are served, and nothing is done that was not granted", async () => {
    const ends = new Map<string, number>();
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { maxLength: 40, size: "max" }),
        mostly(fc.constant(null), bend, 4),
        fc.nat(),
        async (steps, bent, place) => {
          const joint = new Joint();
          for (const [at, one] of steps.entries()) {
            const bytes = Uint8Array.from(bytesOf(joint, one));
            if (bent !== null && at === place % steps.length && bytes.length > 0) {
              bytes[bent.at % bytes.length] = bent.byte;
            }
            joint.feed(bytes);
            if (one.what === "wait") await soon();
          }
          await soon();
          const why = joint.ended?.replace(/:.*/, "") ?? "served";
          ends.set(why, (ends.get(why) ?? 0) + 1);
          joint.broker.close();
          await soon();
          expect(joint.wrong).toEqual([]);
          const held = joint.told.filter((ref) => joint.broker.knows(ref));
          expect(held).toEqual([]); // the run is over
          const sum = joint.broker.ledger().reduce((all, { calls }) => all + calls, 0);
          // Arguments over the limit and calls over the credit end the run before they are calls.
          expect(joint.broker.calls - sum).toBeLessThanOrEqual(joint.ended === undefined ? 0 : 1);
        },
      ),
      parameters,
    );
    expect(ends.get("served") ?? 0).toBeGreaterThan(0); // the control: not everything is refused at once
    expect(ends.size).toBeGreaterThan(2);
  });

  test("the references that a guest holds are those of the model", async () => {
    const command = fc.record({
      what: fc.constantFrom("open", "open", "open", "pair", "release", "get", "pass", "keep", "use", "drop", "forged"), // prettier-ignore
      target: fc.nat(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(command, { maxLength: 60, size: "max" }), async (commands) => {
        const joint = new Joint();
        const [g] = joint.told as [number];
        const seen = new Set<number>();
        // The model: what is held, and which of its functions the host keeps.
        const held = new Set<number>();
        const kept = new Set<number>();
        const roots = joint.told.length;
        const ask = async (ref: number, name: string, args: unknown[] = []): Promise<unknown> => {
          const id = joint.lastId + 1;
          joint.feed(frame(2, JSON.stringify([[id, ref, name, ["a", ...args]]])));
          await soon();
          return joint.answerTo(id);
        };
        for (const { what, target } of commands) {
          const all = [...seen];
          const one = all[target % Math.max(1, all.length)] ?? 1;
          const slot = target % 4;
          if (what === "open" || what === "pair") {
            const before = joint.told.length;
            const fits = held.size + (what === "pair" ? 2 : 1) <= LIMITS.references;
            const answer = await ask(g, what);
            if (!fits) expect(answer).toBe("quota");
            else expect(joint.told).toHaveLength(before + (what === "pair" ? 2 : 1));
            for (const ref of joint.told.slice(before)) {
              expect(seen.has(ref)).toBe(false);
              seen.add(ref);
              held.add(ref);
            }
          } else if (what === "release") {
            if (!held.delete(one)) continue; // that ends the run: the other test's matter
            joint.feed(frame(4, JSON.stringify([[one, 1]])));
          } else if (what === "get") expect(await ask(one, "get")).toBe(held.has(one) ? "inner" : "denied");
          else if (what === "pass") {
            const before = joint.told.length;
            const room = held.size < LIMITS.references;
            const answer = await ask(g, "echo", [["r", "home", one]]);
            if (!held.has(one)) expect(answer).toBe("denied");
            else if (!room) expect(answer).toBe("quota");
            else {
              const [again] = joint.told.slice(before) as [number]; // a reference of its own for the same thing
              expect(again).not.toBe(one);
              seen.add(again);
              held.add(again);
            }
          } else if (what === "forged") expect(await ask(target + 1, "get")).toBe("denied");
          else if (what === "keep") {
            if (kept.has(slot)) continue;
            await ask(g, "keep", [["r", "function", joint.nextFunction()], slot]);
            kept.add(slot);
          } else if (what === "drop") {
            const before = joint.sent.filter(({ kind }) => kind === "release").length;
            await ask(g, "drop", [slot]);
            const after = joint.sent.filter(({ kind }) => kind === "release").length;
            expect(after - before).toBe(kept.delete(slot) ? 1 : 0);
          } else {
            const calls = joint.asked.length;
            const id = joint.lastId + 1;
            joint.feed(frame(2, JSON.stringify([[id, g, "use", ["a", slot]]])));
            await soon();
            expect(joint.asked.length - calls).toBe(kept.has(slot) ? 1 : 0);
            for (const callId of joint.asked) joint.feed(frame(3, JSON.stringify([[callId, true, "back"]])));
            await soon();
            if (kept.has(slot)) expect(joint.answerTo(id)).toBe("back");
          }
          expect(joint.ended).toBeUndefined();
          expect([...seen].filter((ref) => joint.broker.knows(ref))).toEqual(
            [...seen].filter((ref) => held.has(ref)),
          );
          expect(held.size).toBeLessThanOrEqual(LIMITS.references);
          expect(joint.told.slice(0, roots).every((ref) => joint.broker.knows(ref))).toBe(true);
        }
        joint.broker.close();
      }),
      { ...parameters, numRuns: RUNS / 6 },
    );
  });
});
