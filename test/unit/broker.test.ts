/**
 * The broker alone, between a port that only writes down and messages that no honest guest would send: forged and stale
 * references, names that objects have from birth, numbers used twice, values that are none. The rule under test is that
 * nothing happens which was not granted, and that unknown and forbidden look the same.
 */
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { codec, type EncodedValue } from "#engine/codec";
import { Broker, type AuditEvent, type BrokerLimits, type BrokerMessage } from "#hostapi/broker";
import {
  callback,
  Capability,
  CapabilityError,
  capability,
  caretaker,
  hostFunction,
  method,
  type GuestFunction,
  type Method,
  type Params,
  type RunContext,
} from "#hostapi/capability";
import type { EnvEntry } from "#hostapi/stubs";
import { fakeRun } from "../capability.js";

const { decode } = codec();

const LIMITS: BrokerLimits = { hostCalls: 1000, hostCallsInFlight: 64, callBytes: 65_536, references: 100 };

const act = <P extends Params>(params: P, run: Method<P>["run"]) =>
  method({ doc: "acts", params, effect: "write", run });

/** What the broker did with its port. */
class Bench {
  readonly sent: BrokerMessage[] = [];
  readonly violations: string[] = [];
  readonly exhausted: number[] = [];
  readonly events: AuditEvent[] = [];
  /** Set: the worker does not read, and what was to be written waits here. */
  held: (() => void)[] | undefined;
  readonly broker: Broker;
  #lastId = 0;

  constructor(
    grants: Readonly<Record<string, Capability | string>> = {},
    limits: Partial<BrokerLimits> = {},
    run: RunContext = fakeRun(),
    audit?: (event: AuditEvent) => void,
  ) {
    this.broker = new Broker(new Map(Object.entries(grants)), {
      limits: { ...LIMITS, ...limits },
      run,
      port: {
        send: (message) => void this.sent.push(message),
        whenRoom: (write) => void (this.held === undefined ? write() : this.held.push(write)),
        nowMs: () => 7,
        violated: (detail) => void this.violations.push(detail),
        exhausted: (calls) => void this.exhausted.push(calls),
        audit: audit ?? ((event) => void this.events.push(event)),
      },
    });
  }

  /** The reference under which a grant was announced. */
  ref(name: string): number {
    const entry = this.broker.env.find(([known]) => known === name);
    if (entry === undefined || entry[1] === "text") throw new Error(`${name} is no capability`);
    return (entry as Exclude<EnvEntry, readonly [string, "text", string]>)[2];
  }

  /** Sends a call as the worker would, its arguments in the codec's form. */
  send(ref: number, name: string, args: unknown[] = [], blob = new Uint8Array(0)): number {
    const id = ++this.#lastId;
    this.broker.call({ kind: "call", id, ref, method: name, args: { wire: ["a", ...args], blob } });
    return id;
  }

  /** The answer to a call: undefined as long as there is none. */
  answerTo(id: number): { ok: boolean; value: unknown; text: string } | undefined {
    const replies = this.sent.filter((message) => message.kind === "reply" && message.id === id);
    expect(replies.length).toBeLessThanOrEqual(1);
    const [reply] = replies;
    if (reply?.kind !== "reply") return undefined;
    return { ok: reply.ok, value: read(reply.value), text: reply.value.text };
  }

  /** Calls, and gives what was answered at once or soon. */
  async call(ref: number, name: string, args: unknown[] = []): Promise<unknown> {
    const id = this.send(ref, name, args);
    await new Promise((resolve) => setImmediate(resolve));
    const answer = this.answerTo(id);
    return answer?.ok === false ? { error: answer.value } : answer?.value;
  }

  /** The guest answers the host's last call. */
  reply(ok: boolean, wire: unknown, blob = new Uint8Array(0)): void {
    const last = this.sent.findLast(({ kind }) => kind === "call");
    if (last?.kind !== "call") throw new Error("nothing was asked");
    this.broker.reply({ kind: "reply", id: last.id, ok, value: { wire, blob } });
  }
}

interface Ref {
  ref: number;
  kind: string;
  methods: readonly string[];
}

function read({ text, blobs }: EncodedValue): unknown {
  return decode(JSON.parse(text), blobs, {
    maxNodes: 100_000,
    resolve: (kind, ref, methods): Ref => ({ ref, kind, methods }),
  });
}

const DENIED = { error: ["denied", "there is no such capability or method"] };

const box = (value: unknown = 1) =>
  capability("box", { get: act({}, () => value), put: act({ v: z.any() }, ({ v }) => v) });

describe("references", () => {
  test.each([0.5, -1, 1, 2 ** 31, 2 ** 32, 2 ** 52, 2 ** 53 - 1, Number.MAX_SAFE_INTEGER, NaN, Infinity])(
    "that were forged (%d) reach nothing",
    async (forged) => {
      const bench = new Bench({ box: box() });
      expect(await bench.call(forged, "get")).toEqual(DENIED);
      expect(bench.broker.knows(forged)).toBe(false);
      expect(await bench.call(bench.ref("box"), "get")).toBe(1); // the control
    },
  );

  test("next to a real one reach nothing", async () => {
    const bench = new Bench({ box: box() });
    const ref = bench.ref("box");
    for (const near of [ref - 1, ref + 1, ref ^ 1, -ref, ref % 2 ** 32]) {
      expect(await bench.call(near, "get")).toEqual(DENIED);
    }
  });

  test("of another run reach nothing in this one", async () => {
    const shared = box();
    const [one, two] = [new Bench({ box: shared }), new Bench({ box: shared })];
    expect(one.ref("box")).not.toBe(two.ref("box"));
    expect(await two.call(one.ref("box"), "get")).toEqual(DENIED);
    expect(await two.call(two.ref("box"), "put", [["r", "home", one.ref("box")]])).toEqual(DENIED);
  });

  test("that were released are dead, for calls and as arguments, and releasing again changes nothing", async () => {
    const bench = new Bench({ box: box(), other: box(2) });
    const ref = bench.ref("box");
    expect(await bench.call(bench.ref("other"), "put", [["r", "home", ref]])).toMatchObject({
      kind: "capability",
    });
    bench.broker.release({ kind: "release", ref, count: 1 });
    bench.broker.release({ kind: "release", ref, count: 1 });
    bench.broker.release({ kind: "release", ref: 12_345, count: 1 });
    expect(await bench.call(ref, "get")).toEqual(DENIED);
    expect(await bench.call(bench.ref("other"), "put", [["r", "home", ref]])).toEqual(DENIED);
    expect(await bench.call(bench.ref("other"), "get")).toBe(2);
    expect(bench.violations).toEqual([]);
  });

  test("are never given twice, over a hundred thousand of them, and show no order", async () => {
    const maker = capability("maker", {
      make: act({}, () => Array.from({ length: 1000 }, () => box())),
    });
    const bench = new Bench({ maker }, { references: 1000, callBytes: 1 << 20 });
    const seen = new Set<number>();
    let rising = 0;
    let last = 0;
    for (let round = 0; round < 100; round++) {
      const made = (await bench.call(bench.ref("maker"), "make")) as Ref[];
      for (const { ref } of made) {
        expect(Number.isSafeInteger(ref) && ref > 0).toBe(true);
        seen.add(ref);
        if (ref > last) rising++;
        last = ref;
        bench.broker.release({ kind: "release", ref, count: 1 });
      }
      bench.sent.length = 0;
    }
    expect(seen.size).toBe(100_000);
    expect(rising).toBeGreaterThan(45_000);
    expect(rising).toBeLessThan(55_000);
    // Every bit of 52 is sometimes set and sometimes not, the upper ones too.
    for (let bit = 0; bit < 52; bit++) {
      const set = [...seen].filter((ref) => Math.floor(ref / 2 ** bit) % 2 === 1).length;
      expect(set).toBeGreaterThan(45_000);
      expect(set).toBeLessThan(55_000);
    }
  });

  test("over the limit are an error of quota, and what the failed answer had exported is taken back", async () => {
    const maker = capability("maker", {
      make: act({ n: z.number() }, ({ n }) => Array.from({ length: n }, () => box())),
    });
    const bench = new Bench({ maker }, { references: 10 });
    const ref = bench.ref("maker");
    for (let i = 0; i < 5; i++) expect(await bench.call(ref, "make", [11])).toMatchObject({ error: ["quota", expect.any(String)] }); // prettier-ignore
    expect(await bench.call(ref, "make", [10])).toHaveLength(10);
    expect(await bench.call(ref, "make", [1])).toMatchObject({ error: ["quota", expect.any(String)] });
  });

  test("that an answer named which could not be written are taken back too", async () => {
    const maker = capability("maker", {
      bad: act({}, () => [box(), box(), Symbol("no")]),
      good: act({}, () => [box(), box()]),
    });
    const bench = new Bench({ maker }, { references: 2 });
    for (let i = 0; i < 5; i++) expect(await bench.call(bench.ref("maker"), "bad")).toMatchObject({ error: ["failed", expect.any(String)] }); // prettier-ignore
    expect(await bench.call(bench.ref("maker"), "good")).toHaveLength(2);
  });
});

describe("names", () => {
  const NAMES = ["constructor", "__proto__", "prototype", "then", "toString", "valueOf", "hasOwnProperty", "__defineGetter__", "call", "has", "size", "", "get\0", "Get"]; // prettier-ignore
  test.each(NAMES)("that were not granted (%j) are no methods", async (name) => {
    const bench = new Bench({ box: box() });
    expect(await bench.call(bench.ref("box"), name)).toEqual(DENIED);
    expect(bench.broker.ledger()).toEqual([
      expect.objectContaining({ capability: "(unknown)", method: "(unknown)", calls: 1, refused: 1 }),
    ]);
  });

  test("that were weakened away, revoked, or never existed are answered with the same bytes", async () => {
    const keeper = caretaker(box());
    const bench = new Bench({ box: box(), less: box().only("get"), kept: keeper.capability });
    keeper.weaken((now) => now.only("get"));
    const texts = [
      bench.send(bench.ref("box"), "nothing"),
      bench.send(bench.ref("less"), "put", [1]),
      bench.send(bench.ref("kept"), "put", [1]),
      bench.send(4242, "get"),
      bench.send(4242, "put", [["r", "home", bench.ref("box")]]),
      bench.send(bench.ref("box"), "put", [["r", "home", 4242]]),
    ].map((id) => bench.answerTo(id)?.text);
    expect(new Set(texts)).toEqual(new Set([JSON.stringify(["a", ...DENIED.error])]));
  });

  test("of methods on a plain function are none but its call", async () => {
    const f = hostFunction(act({ n: z.number() }, ({ n }) => n + 1));
    const bench = new Bench({ f });
    expect(bench.broker.env).toEqual([["f", "function", bench.ref("f")]]);
    expect(await bench.call(bench.ref("f"), "call", [1])).toBe(2);
    expect(await bench.call(bench.ref("f"), "apply", [1])).toEqual(DENIED);
  });
});

describe("arguments", () => {
  test("are checked before the act, and nothing is done when they are wrong", async () => {
    let acts = 0;
    const c = capability("c", { go: act({ n: z.number().int() }, () => ++acts) });
    const bench = new Bench({ c });
    const wrong: unknown[][] = [[], ["1"], [1.5], [null], [["u"]], [["n", "NaN"]], [["a"]], [["o", "valueOf", 1]], [["i", "1"]], [1, 2]]; // prettier-ignore
    for (const args of wrong) {
      expect(await bench.call(bench.ref("c"), "go", args)).toMatchObject({
        error: ["bad-argument", expect.any(String)],
      });
    }
    expect(acts).toBe(0);
    expect(bench.events.every(({ decision }) => decision === "refused")).toBe(true);
    expect(await bench.call(bench.ref("c"), "go", [1])).toBe(1);
  });

  test.each([
    ["an unknown tag", [["?"]]],
    ["an object", [{}]],
    ["a hostile key", [["o", "__proto__", 1]]],
    ["another hostile key", [["o", "a", ["o", "constructor", 1]]]],
    ["a key twice", [["o", "a", 1, "a", 2]]],
    ["bytes that were not sent", [["b", "Uint8Array", 5]]],
    ["a reference of no kind", [["r", "root", 1]]],
    ["a capability of its own making", [["r", "capability", 5, "get"]]],
    ["a reference that is no number", [["r", "home", "5"]]],
  ])("with %s end the run", async (_what, args) => {
    let acts = 0;
    const bench = new Bench({ c: capability("c", { go: act({ v: z.any() }, () => ++acts) }) });
    bench.send(bench.ref("c"), "go", args);
    // A capability can only come home; whoever makes one up is told that it does not exist.
    if (bench.violations.length === 0) expect(bench.answerTo(1)?.value).toEqual(DENIED.error);
    expect(acts).toBe(0);
    expect(({} as Record<string, unknown>)["a"]).toBeUndefined();
  });

  test("over the limit of bytes end the run, as text or as bytes; at the limit they do not", async () => {
    const bench = new Bench({ box: box() }, { callBytes: 1000 });
    expect(await bench.call(bench.ref("box"), "put", ["x".repeat(990)])).toHaveLength(990);
    bench.send(bench.ref("box"), "put", ["x".repeat(1001)]);
    bench.send(bench.ref("box"), "put", [["b", "Uint8Array", 1001]], new Uint8Array(1001));
    expect(bench.violations).toEqual(Array(2).fill("arguments over the limit of bytes"));
  });

  test("that name the same function twice end the run", async () => {
    const bench = new Bench({ box: box() });
    bench.send(bench.ref("box"), "put", [["a", ["r", "function", 1], ["r", "function", 1]]]);
    expect(bench.violations).toEqual(["a function's number used twice"]);
  });

  test("that would be built for too long are an error, not an offence", async () => {
    const bench = new Bench({ box: box() }, { callBytes: 4_000_000 });
    expect(await bench.call(bench.ref("box"), "put", [["a", ...Array(200_001).fill(0)]])).toMatchObject({
      error: ["too-large", expect.any(String)],
    });
    expect(bench.violations).toEqual([]);
  });
});

describe("callbacks", () => {
  /** A capability whose handler is handed a function and does with it what the test says. */
  const taker = (use: (f: GuestFunction) => unknown) =>
    new Bench({ t: capability("t", { take: act({ f: callback() }, ({ f }) => use(f)) }) });
  const F = ["r", "function", 5];

  test("are called by their number, and the answer comes to whoever called", async () => {
    const bench = taker((f) => f(1, new Uint8Array([7])));
    const id = bench.send(bench.ref("t"), "take", [F]);
    expect(bench.sent).toMatchObject([{ kind: "call", id: 1, ref: 5, method: "call" }]);
    bench.reply(true, ["a", "answer"]);
    await new Promise((resolve) => setImmediate(resolve));
    expect(bench.answerTo(id)?.value).toEqual(["answer"]);
    expect(bench.sent.at(-1)).toEqual({ kind: "release", ref: 5, count: 1 });
  });

  test("answered with what nobody asked for change nothing", () => {
    const bench = taker((f) => f());
    bench.send(bench.ref("t"), "take", [F]);
    bench.broker.reply({ kind: "reply", id: 99, ok: true, value: { wire: 1, blob: new Uint8Array(0) } });
    expect(bench.answerTo(1)).toBeUndefined();
    bench.reply(true, 1);
    bench.reply(true, 2); // the second answer to the same call
    expect(bench.violations).toEqual([]);
  });

  test.each<[string, boolean, unknown]>([
    ["a value that is none", true, ["?"]],
    ["an error that is a text", false, "Error"],
    ["an error without a message", false, ["a", "Error"]],
    ["an error of numbers", false, ["a", 1, 2]],
    ["an error that holds a function twice", false, ["a", ["r", "function", 5], "x"]],
    ["more than the limit of bytes", true, "x".repeat(70_000)],
    ["an error of a book's length", false, ["a", "Error", "x".repeat(10_000)]],
  ])("answered with %s end the run, and whoever waits is told", async (_what, ok, wire) => {
    let caught: unknown;
    const bench = taker((f) => f().catch((error: unknown) => (caught = error)));
    bench.send(bench.ref("t"), "take", [F]);
    bench.reply(ok, wire);
    await new Promise((resolve) => setImmediate(resolve));
    expect(bench.violations).toHaveLength(1);
    expect(caught).toBeInstanceOf(CapabilityError);
  });

  test("answered with too many functions are an error for whoever waits, not an offence", async () => {
    let caught: unknown;
    const bench = taker((f) => f().catch((error: unknown) => (caught = error)));
    bench.send(bench.ref("t"), "take", [F]);
    bench.reply(true, ["a", ...Array.from({ length: 200 }, (_, i) => ["r", "function", 100 + i])]);
    await new Promise((resolve) => setImmediate(resolve));
    expect(caught).toMatchObject({ code: "quota" });
    expect(bench.violations).toEqual([]);
  });

  test("unanswered are bounded in number", async () => {
    const failures: unknown[] = [];
    const bench = taker((f) => {
      for (let i = 0; i < 1010; i++) f().catch((error: unknown) => failures.push(error));
    });
    bench.send(bench.ref("t"), "take", [F]);
    await new Promise((resolve) => setImmediate(resolve));
    expect(bench.sent.filter(({ kind }) => kind === "call")).toHaveLength(1000);
    expect(failures).toHaveLength(10);
  });

  test("are dead when the run is over, those under way too", async () => {
    let kept: GuestFunction | undefined;
    let pending: Promise<unknown> | undefined;
    const bench = taker((f) => {
      kept = f.keep();
      pending = f();
      return 1;
    });
    bench.send(bench.ref("t"), "take", [F]);
    bench.broker.close();
    const before = bench.sent.length;
    await expect(pending).rejects.toMatchObject({ code: "unavailable" });
    await expect(kept?.()).rejects.toMatchObject({ code: "unavailable" });
    kept?.release();
    expect(bench.sent).toHaveLength(before);
  });
});

describe("the end of a run", () => {
  test("closes each capability once, those that were handed out too, whatever their hooks do", async () => {
    const closed: string[] = [];
    const made = (name: string): Capability =>
      capability(
        name,
        { make: act({}, () => inner), same: act({}, () => inner) },
        {
          close(run) {
            closed.push(`${name} ${run.id}`);
            if (name === "outer") throw new Error("in close");
          },
        },
      );
    const inner: Capability = made("inner");
    const outer = made("outer");
    const bench = new Bench({ a: outer, b: outer });
    await bench.call(bench.ref("a"), "make");
    await bench.call(bench.ref("b"), "same");
    bench.broker.close();
    bench.broker.close();
    expect(closed).toEqual(["outer run-1", "inner run-1"]);
    expect(bench.events.at(-1)).toMatchObject({ capability: "outer", method: "(close)", decision: "failed" });
  });

  test("aborts every call under way, and sends nothing more", async () => {
    const run = fakeRun();
    const signals: AbortSignal[] = [];
    let finish: ((value: unknown) => void) | undefined;
    const c = capability("c", {
      go: act({}, (_args, call) => {
        signals.push(call.signal);
        return new Promise((resolve) => (finish = resolve));
      }),
    });
    const bench = new Bench({ c }, {}, run);
    for (let i = 0; i < 5; i++) bench.send(bench.ref("c"), "go");
    bench.broker.close();
    expect(signals.map(({ aborted }) => aborted)).toEqual(Array(5).fill(true));
    finish?.("too late");
    await new Promise((resolve) => setImmediate(resolve));
    expect(bench.sent).toEqual([]);
    expect(bench.broker.ledger()).toMatchObject([{ method: "go", calls: 5, failed: 5, refused: 0 }]);
    expect(bench.broker.knows(bench.ref("c"))).toBe(false);
  });

  test("a signal that is first asked for when its call is over is aborted already", async () => {
    let late: (() => AbortSignal) | undefined;
    const c = capability("c", {
      go: act({}, (_args, call) => {
        late = () => call.signal;
        return 1;
      }),
    });
    const bench = new Bench({ c });
    expect(await bench.call(bench.ref("c"), "go")).toBe(1);
    expect(late?.().aborted).toBe(true);
  });
});

describe("a worker that does not read", () => {
  test("has its answers unwritten until it does, and in order", async () => {
    let encoded = 0;
    const c = capability("c", {
      go: act({ n: z.number() }, ({ n }) => ({
        get n() {
          encoded++;
          return n;
        },
      })),
    });
    const bench = new Bench({ c });
    bench.held = [];
    for (let n = 1; n <= 3; n++) bench.send(bench.ref("c"), "go", [n]);
    expect([encoded, bench.sent]).toEqual([0, []]);
    for (const write of bench.held) write();
    expect(bench.sent.map((message) => message.kind === "reply" && read(message.value))).toEqual([{ n: 1 }, { n: 2 }, { n: 3 }]); // prettier-ignore
  });

  test("cannot keep an answer from being revoked, nor a run from ending", async () => {
    const keeper = caretaker(box("secret"));
    const bench = new Bench({ c: keeper.capability, box: box("late") });
    bench.held = [];
    const revoked = bench.send(bench.ref("c"), "get");
    const late = bench.send(bench.ref("box"), "get");
    keeper.revoke();
    bench.broker.close();
    for (const write of bench.held) write();
    expect(bench.answerTo(revoked)?.value).toEqual(["revoked", "c: it was taken back"]);
    expect(bench.answerTo(late)).toBeUndefined();
  });

  test("is called back before it is told to forget, and whoever called is told when the run ends", async () => {
    let ended: unknown;
    const c = capability("c", {
      fire: act({ f: callback() }, ({ f }) => {
        f("x").catch((error: unknown) => (ended = error));
        return 1;
      }),
    });
    const bench = new Bench({ c });
    bench.held = [];
    bench.send(bench.ref("c"), "fire", [["r", "function", 9]]);
    while (bench.held.length > 0) bench.held.shift()?.();
    expect(bench.sent.map(({ kind }) => kind)).toEqual(["call", "reply", "release"]);
    bench.send(bench.ref("c"), "fire", [["r", "function", 10]]);
    bench.broker.close();
    while (bench.held.length > 0) bench.held.shift()?.();
    await new Promise((resolve) => setImmediate(resolve));
    expect(ended).toMatchObject({ code: "unavailable" });
    expect(bench.sent).toHaveLength(3);
  });
});

describe("limits and accounts", () => {
  test("calls over the limit in all are told, and not made", () => {
    let acts = 0;
    const bench = new Bench({ c: capability("c", { go: act({}, () => ++acts) }) }, { hostCalls: 3 });
    for (let i = 0; i < 4; i++) bench.send(bench.ref("c"), "go");
    expect([acts, bench.exhausted]).toEqual([3, [4]]);
  });

  test("calls over the credit end the run; an honest guest keeps them back", () => {
    let acts = 0;
    const c = capability("c", {
      go: act({}, () => {
        acts++;
        return new Promise(() => {});
      }),
    });
    const bench = new Bench({ c }, { hostCallsInFlight: 3 });
    for (let i = 0; i < 4; i++) bench.send(bench.ref("c"), "go");
    expect(acts).toBe(3);
    expect(bench.violations).toEqual(["more calls in flight than the credit"]);
    bench.broker.close();
  });

  test.each([
    [["a"]],
    [["a", -1]],
    [["a", "1"]],
    [["a", ["n", "NaN"]]],
    [["a", 1, 2]],
    [["o", "x", 1]],
    ["text"],
  ])("a sleep of %j ends the run", (wire) => {
    const bench = new Bench();
    bench.broker.call({ kind: "call", id: 1, ref: 0, method: "sleep", args: { wire, blob: new Uint8Array(0) } }); // prettier-ignore
    expect(bench.violations).toHaveLength(1);
  });

  test("the worker's own services are no capability: only sleep, only so often, uncounted", async () => {
    const bench = new Bench();
    for (const name of ["call", "constructor", "__proto__", "Sleep"]) bench.send(0, name, [1]);
    expect(bench.violations).toHaveLength(4);
    for (let i = 0; i < 1024; i++) bench.send(0, "sleep", [1e12]);
    expect(bench.violations).toHaveLength(4);
    bench.send(0, "sleep", [1]);
    expect(bench.violations).toHaveLength(5);
    expect([bench.broker.calls, bench.broker.ledger()]).toEqual([0, []]);
    bench.broker.close(); // ends the timers: the test would wait for them
  });

  test("the ledger is the sum of what the audit was told", async () => {
    const c = capability("c", {
      go: act({ n: z.number() }, ({ n }, call) => {
        call.charge(n);
        if (n === 13) throw new CapabilityError("not-found", "unlucky");
        return "x".repeat(n);
      }),
    });
    const bench = new Bench({ c, less: c.budget({ calls: 2 }) });
    for (const n of [1, 2, 13, 40]) {
      await bench.call(bench.ref("c"), "go", [n]);
      await bench.call(bench.ref("less"), "go", [n]);
    }
    await bench.call(bench.ref("c"), "go", ["wrong"]);
    await bench.call(99, "go");
    const ends = bench.events.filter(({ decision }) => decision !== "allowed");
    for (const entry of bench.broker.ledger()) {
      const own = ends.filter((e) => e.capability === entry.capability && e.method === entry.method);
      expect(entry).toEqual({
        capability: entry.capability,
        method: entry.method,
        calls: own.length,
        refused: own.filter(({ decision }) => decision === "refused").length,
        failed: own.filter(({ decision }) => decision === "failed").length,
        bytes: own.reduce((sum, event) => sum + event.bytes, 0),
      });
    }
    const all = bench.broker.ledger();
    expect(all.map(({ capability: name, calls, refused, failed }) => [name, calls, refused, failed])).toEqual(
      [
        ["c", 5, 1, 1],
        ["less", 4, 2, 0],
        ["(unknown)", 1, 1, 0],
      ],
    );
    expect(bench.broker.calls).toBe(10);
  });

  test("answers that cannot be written fail the call and nothing else", async () => {
    const loop: unknown[] = [];
    loop.push(loop);
    const values: Record<string, unknown> = {
      symbol: Symbol("s"),
      loop,
      function: () => 1,
      instance: new URL("file:///home"),
      promise: [Promise.resolve(1)],
      hostile: JSON.parse('{"__proto__":1}') as unknown,
      getter: {
        get path() {
          throw new Error("/home/host");
        },
      },
      proxy: new Proxy({}, { ownKeys: () => { throw new Error("/home/host"); } }), // prettier-ignore
      long: "x".repeat(100_000),
      wide: Array(300_000).fill(0),
    };
    const c = capability("c", { go: act({ name: z.string() }, ({ name }) => values[name]) });
    const bench = new Bench({ c });
    for (const name of Object.keys(values)) {
      const id = bench.send(bench.ref("c"), "go", [name]);
      const answer = bench.answerTo(id);
      expect(answer?.ok, name).toBe(false);
      expect(answer?.value).toEqual(
        name === "long" || name === "wide"
          ? ["too-large", expect.stringMatching(/^the answer is over/)]
          : ["failed", "c.go: the capability failed"],
      );
      expect(answer?.text).not.toContain("/home");
    }
    expect(bench.violations).toEqual([]);
    expect(bench.events.filter(({ decision }) => decision === "failed")).toHaveLength(10);
  });

  test("whatever a handler throws, at once or later, is an answer, and a code of the table", async () => {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    const odd = (change: PropertyDescriptorMap) =>
      Object.defineProperties(new CapabilityError("denied", "no"), change);
    const thrown: Record<string, unknown> = {
      proxy,
      nothing: undefined,
      text: odd({ message: { value: { toString: null } } }),
      getter: odd({ message: { get: () => { throw proxy; } } }), // prettier-ignore
      code: odd({ code: { value: "toString" } }),
      symbol: odd({ code: { value: Symbol("denied") } }),
    };
    const c = capability("c", {
      now: act({ name: z.string() }, ({ name }) => { throw thrown[name]; }), // prettier-ignore
      later: act({ name: z.string() }, async ({ name }) => Promise.reject(thrown[name])), // oxlint-disable-line typescript/prefer-promise-reject-errors
      well: act({}, () => { throw new CapabilityError("denied", "no"); }), // prettier-ignore
    });
    const bench = new Bench({ c });
    for (const name of Object.keys(thrown)) {
      for (const way of ["now", "later"]) {
        const error = ["failed", `c.${way}: the capability failed`];
        expect(await bench.call(bench.ref("c"), way, [name]), name).toEqual({ error });
      }
    }
    expect(await bench.call(bench.ref("c"), "well")).toEqual({ error: ["denied", "no"] });
    expect(bench.violations).toEqual([]);
  });

  test.each<[string, (c: Capability) => unknown]>([
    ["a budget of nothing", (c) => c.budget({})],
    ["a budget with a slip", (c) => c.budget({ call: 5 } as object)],
    ["a budget that is no number", (c) => c.budget({ calls: NaN })],
    ["a rate in no time", (c) => c.rate(5, 0)],
    ["a rate that is no number", (c) => c.rate(5, NaN)],
    ["a rate without end", (c) => c.rate(Infinity, 1000)],
    ["an end that is no date", (c) => c.expires(new Date("soon"))],
    ["an end that is no number", (c) => c.expires({ afterMs: NaN })],
    ["an end with a slip", (c) => c.expires({ after: 5 } as never)],
  ])("%s would bound nothing, and is refused", (_what, weaken) => {
    expect(() => weaken(box())).toThrow(TypeError);
  });

  test("an audit that throws keeps every act from being done, and the guest from knowing why", async () => {
    let acts = 0;
    const c = capability("c", { go: act({}, () => ++acts) });
    const bench = new Bench({ c }, {}, fakeRun(), () => {
      throw new Error("/var/log is full");
    });
    expect(await bench.call(bench.ref("c"), "go")).toEqual({ error: ["failed", "c: the audit refused"] });
    expect(acts).toBe(0);
  });
});

describe("values that take long to build", () => {
  /** Numbers that fall into few buckets of V8's hash tables: its hash of integers has no seed. */
  function colliding(count: number): number[] {
    const found: number[] = [];
    for (let key = 1; found.length < count; key++) {
      let hash = (~key + (key << 15)) | 0;
      hash ^= hash >>> 12;
      hash = (hash + (hash << 2)) | 0;
      hash ^= hash >>> 4;
      hash = Math.imul(hash, 2057);
      hash ^= hash >>> 16;
      if ((hash & 0x3ff) === 0) found.push(key);
    }
    return found;
  }

  test("are given up one by one, and end a run that goes on with them", () => {
    const keys = colliding(100_000);
    const bench = new Bench({ box: box() }, { callBytes: 4_194_304, hostCallsInFlight: 1000 });
    const honest = bench.send(bench.ref("box"), "put", [["s", ...keys.slice(0, 100)]]);
    expect(bench.answerTo(honest)?.ok).toBe(true); // the control: a few of them take no time
    for (let i = 0; i < 5; i++) {
      const id = bench.send(bench.ref("box"), "put", [["s", ...keys]]);
      expect(bench.answerTo(id)).toMatchObject({ ok: false, value: ["too-large", expect.any(String)] });
      expect(bench.violations).toEqual([]);
    }
    bench.send(bench.ref("box"), "put", [["s", ...keys]]);
    expect(bench.violations).toHaveLength(1);
  });
});
