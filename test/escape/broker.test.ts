/**
 * A worker that has fallen, and holds real grants. It may use them as they were granted, for that much it was trusted
 * with; here it tries to get more: references that it was not given, answers without end, callbacks that lie, memory of
 * the supervisor. Each case runs inside the jail, ends as its class says, and leaves the next run unharmed.
 */
import { beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { callback, Capability, capability, method, type Method, type Params } from "#hostapi/capability";
import type { Limits } from "#server/limits";
import type { Outcome } from "#server/outcome";
import { attack, ownedHull, valueOf, type OwnedHull } from "./harness.js";
import { heldBytes, TOOLS, weighed } from "./wire.js";

const MiB = 1 << 20;
/** Beside what lies idle; half of it is what a worker may leave unread. */
const MOST_BYTES = 32 * MiB;

const act = <P extends Params>(params: P, run: Method<P>["run"]) =>
  method({ doc: "acts", params, effect: "write", run });

const LONG = "x".repeat(1_000_000);

/** What was done, by name: an act that should not have been begun shows here. */
interface Log {
  acts: string[];
  errors: unknown[];
}

const grantsFor = (log: Log): Record<string, Capability> => ({
  g: capability("g", {
    echo: act({ v: z.any() }, ({ v }) => {
      log.acts.push("echo");
      return v;
    }),
    big: act({}, () => LONG),
    later: act({}, async () => {
      await new Promise((resolve) => setImmediate(resolve));
      return LONG;
    }),
    bytes: act({}, async () => new Uint8Array(1_000_000)),
    never: act({}, () => new Promise(() => {})),
    open: act({}, () => capability("inner", { get: act({}, () => "inner") })),
    strict: act({ n: z.number().int() }, () => {
      log.acts.push("strict");
      return null;
    }),
    ask: act({ f: callback() }, async ({ f }) => {
      try {
        return await f("question");
      } catch (error) {
        log.errors.push(error);
        throw error;
      }
    }),
    askOften: act({ f: callback() }, async ({ f }) => {
      const all = Array.from({ length: 100 }, () => f(LONG));
      return (await Promise.allSettled(all)).length;
    }),
  }),
  forbidden: capability("forbidden", {
    get: method({ doc: "reads", params: {}, effect: "read", run: () => "read" }),
    wipe: act({}, () => void log.acts.push("wipe")),
  }).readOnly(),
});

interface Case {
  what: string;
  code: string;
  limits?: Partial<Limits>;
  /** The stop's reason, or "ok". */
  ends: string;
  /** A part of the stop's detail. */
  detail?: string;
  /** What it told, if it ended well. */
  value?: unknown;
  /** The acts that it got done. */
  acts?: string[];
}

const SOON = { wallMs: 400 };
const DENIED = "denied";

/** Calls one after the other: the answer's value, or its error's code. */
const ASK = `
  let lastId = 0;
  const answer = (id) => { for (;;) { const [kind, [, ...items]] = hear(); for (const item of items) if (kind === REPLY && item[0] === id) return item[1] ? item[2] : item[2][1]; } };
  const ask = (method, args = '["a"]', of = ref("g")) => { put(call(++lastId, method, args, of)); return answer(lastId); };
  const flood = (method, args = '["a"]', of = ref("g")) => { for (;;) { const all = []; while (all.length < 100) all.push(call(++lastId, method, args, of)); put(Buffer.concat(all)); } };
  const many = (count, method, args = '["a"]', of = ref("g")) => { const all = []; while (all.length < count) all.push(call(++lastId, method, args, of)); put(Buffer.concat(all)); };
`;

const CASES: Case[] = [
  {
    what: "uses its grants by hand is served: the control of all of these",
    code: `tell([ask("echo", '["a","by hand"]'), ask("big").length, ask("get", '["a"]', ask("open")[2]), ask("ask", '["a",["r","function",1]]') ])`.replace(
      `ask("ask", '["a",["r","function",1]]')`,
      `(() => { put(call(++lastId, "ask", '["a",["r","function",1]]', ref("g"))); const [kind, [, [id]]] = hear(); put(frame(REPLY, '[[' + id + ',true,"' + kind + '"]]')); return answer(lastId); })()`,
    ),
    ends: "ok",
    value: ["by hand", 1_000_000, "inner", "2"],
    acts: ["echo"],
  },
  {
    what: "forges references gets nothing of any, and cannot tell unknown from forbidden",
    code: `
      const codes = new Set();
      const near = ref("forbidden");
      for (let i = 1; i <= 300; i++) for (const guess of [i, near + i, near - i, Math.floor(Math.random() * 2 ** 52) + 1]) codes.add(ask("wipe", '["a"]', guess));
      for (const method of ["wipe", "constructor", "__proto__", "then", "toString"]) codes.add(ask(method, '["a"]', near));
      codes.add(ask("echo", '["a",["r","home",' + (near + 1) + ']]'));
      tell([...codes, ask("get", '["a"]', near)])`,
    limits: { hostCalls: 5000 },
    ends: "ok",
    value: [DENIED, "read"],
    acts: [],
  },
  {
    what: "releases what it was granted has lost it",
    code: `put(frame(RELEASE, '[[' + ref("g") + ',1]]')); tell([ask("echo", '["a",1]'), ask("echo", '["a",["r","home",' + ref("g") + ']]', ref("forbidden")), ask("get", '["a"]', ref("forbidden"))])`,
    ends: "ok",
    value: [DENIED, DENIED, "read"],
    acts: [],
  },
  {
    what: "releases the same twice",
    code: `const r = frame(RELEASE, '[[' + ref("g") + ',1]]'); put(r); ask("get", '["a"]', ref("forbidden")); put(r); hang()`,
    ends: "protocol",
    detail: "unknown-ref",
  },
  {
    what: "releases a hundred thousand times in one frame",
    code: `put(frame(RELEASE, "[" + Array(100000).fill("[" + ref("g") + ",1]").join() + "]")); hang()`,
    ends: "protocol",
    detail: "too-many-nodes",
  },
  {
    what: "calls a hundred thousand times in one frame",
    code: `put(frame(CALL, "[" + Array.from({ length: 100000 }, (_, i) => "[" + (i + 1) + "," + ref("g") + ',"big",["a"]]').join() + "]")); hang()`,
    ends: "protocol",
    detail: "too-many-nodes",
  },
  {
    what: "floods with calls for long answers and reads none",
    code: `flood("big")`,
    limits: { hostCalls: 1_000_000, wallMs: 15_000 },
    ends: "protocol",
    detail: "too-many-in-flight",
  },
  {
    what: "asks for as many long answers as it may and reads none",
    code: `many(64, "big"); hang()`,
    limits: SOON,
    ends: "wall-time",
  },
  {
    what: "asks for as many long answers as it may, which come later and all at once, and reads none",
    code: `many(64, "later"); hang()`,
    limits: SOON,
    ends: "wall-time",
  },
  {
    what: "asks for as many long answers as it may at a time and reads them all is served",
    code: `let frames = 0; for (let round = 0; round < 3; round++) { many(60, "later"); for (let i = 0; i < 60; i++) { const head = take(12); drop(head.readUInt32LE(0)); if (head.readUInt32LE(0) > 1e6) frames++; } } tell(frames)`,
    ends: "ok",
    value: 180,
  },
  {
    what: "has more calls in flight than its credit",
    code: `many(65, "never"); hang()`,
    ends: "protocol",
    detail: "credit",
  },
  {
    what: "sends long arguments by the thousand while it reads nothing",
    code: `flood("echo", '["a","' + "x".repeat(60000) + '"]')`,
    limits: { ...SOON, hostCalls: 1_000_000 },
    ends: "wall-time",
  },
  {
    what: "sends arguments over the limit",
    code: `put(call(1, "echo", '["a","' + "x".repeat(2000000) + '"]', ref("g"))); hang()`,
    ends: "protocol",
    detail: "over the limit",
    acts: [],
  },
  {
    what: "stops in the middle of a call",
    code: `put(call(1, "echo", '["a",1]', ref("g")).subarray(0, 20)); hang()`,
    limits: SOON,
    ends: "wall-time",
    acts: [],
  },
  {
    what: "stops in the middle of a call and dies",
    code: `many(10, "never"); put(call(++lastId, "echo", '["a",1]', ref("g")).subarray(0, 20)); die(0)`,
    ends: "crash",
    acts: [],
  },
  ...(
    [
      ["nests arguments deeper than values go", `"[\\"a\\",".repeat(67) + "1" + "]".repeat(67)`, "none"],
      ["nests arguments without end", `"[\\"a\\",".repeat(50000) + "1" + "]".repeat(50000)`, "too-deep"],
      ["names the prototype", `'["o","__proto__",["o","polluted",1]]'`, "none"],
      ["names a constructor", `'["o","constructor",["o","prototype",["o","polluted",1]]]'`, "none"],
      ["makes up a capability with methods", `'["r","capability",1,"get"]'`, undefined],
      ["gives one function twice", `'["a",["r","function",1],["r","function",1]]'`, "used twice"],
      ["sends a tag that there is not", `'["z"]'`, "none"],
      ["announces bytes that it does not send", `'["b","Uint8Array",1000000]'`, "none"],
    ] as const
  ).map(([what, arg, detail]): Case => {
    const code = `tell(ask("echo", '["a",' + ${arg} + ']'))`;
    if (detail === undefined) return { what, code, ends: "ok", value: DENIED, acts: [] };
    return { what, code, ends: "protocol", detail, acts: [] };
  }),
  {
    what: "sends wrong arguments of every kind does not reach the act",
    code: `const codes = new Set(); for (const arg of ['"1"', "1.5", '["u"]', '["i","1"]', '["n","NaN"]', '["o","valueOf",1]', '["a",1]', "1,2", "null"]) codes.add(ask("strict", '["a",' + arg + ']')); tell([...codes])`,
    ends: "ok",
    value: ["bad-argument"],
    acts: [],
  },
  {
    what: "gives functions by the thousand is told that they are too many",
    code: `const codes = new Set(); for (let i = 0; i < 20; i++) codes.add(ask("echo", '["a",["a"' + Array.from({ length: 5000 }, (_, j) => ',["r","function",' + (i * 5000 + j + 1) + ']').join("") + ']]')); tell([...codes])`,
    ends: "ok",
    value: ["quota"],
    acts: [],
  },
  ...(
    [
      ["with a value that is none", `'[[' + id + ',true,["z"]]]'`, "none"],
      ["with an error that is none", `'[[' + id + ',false,["a",1]]]'`, "not one"],
      ["with an object", `'[[' + id + ',true,{}]]'`, "object"],
      ["with too much", `'[[' + id + ',true,"' + "x".repeat(2000000) + '"]]'`, "over the limit"],
      ["with another's number", `'[[' + (id + 1) + ',true,1]]'`, "unknown-reply"],
      ["twice", `'[[' + id + ',true,1],[' + id + ',true,2]]'`, "unknown-reply"],
      [
        "a hundred thousand times",
        `"[" + Array(100000).fill("[" + id + ",true,1]").join() + "]"`,
        "too-many-nodes",
      ],
      ["without a number", `'[[true,1]]'`, "bad-shape"],
      [
        "with a function twice",
        `'[[' + id + ',true,["a",["r","function",7],["r","function",7]]]]'`,
        "used twice",
      ],
    ] as const
  ).map(([what, text, detail]): Case => ({
    what: `answers a callback ${what}`,
    code: `put(call(1, "ask", '["a",["r","function",1]]', ref("g"))); const [, [, [id]]] = hear(); put(frame(REPLY, ${text})); hang()`,
    ends: "protocol",
    detail,
  })),
  {
    what: "floods with answers to the one callback",
    code: `put(call(1, "ask", '["a",["r","function",1]]', ref("g"))); const [, [, [id]]] = hear(); const r = frame(REPLY, '[[' + id + ',true,1]]'); for (;;) put(r)`,
    ends: "protocol",
    detail: "unknown-reply",
  },
  {
    what: "is called back a hundred times with much, and reads none",
    code: `put(call(1, "askOften", '["a",["r","function",1]]', ref("g"))); hang()`,
    limits: SOON,
    ends: "wall-time",
  },
  {
    what: "never answers a callback",
    code: `put(call(1, "ask", '["a",["r","function",1]]', ref("g"))); hang()`,
    limits: SOON,
    ends: "wall-time",
  },
  {
    what: "throws a book in every callback is served like any other",
    code: `put(call(1, "ask", '["a",["r","function",1]]', ref("g"))); const [, [, [id]]] = hear(); put(frame(REPLY, '[[' + id + ',false,["a","Error","' + "x".repeat(4096) + '"]]]')); tell(answer(1))`,
    ends: "ok",
    value: "failed",
  },
];

const endOf = (outcome: Outcome): string =>
  outcome.status === "stopped" ? outcome.stop.reason : outcome.status;

describe("a hostile worker with grants that", () => {
  let hull: OwnedHull;
  let log: Log;
  const strike = (code: string, limits?: Partial<Limits>) => {
    log = { acts: [], errors: [] };
    return attack(hull, TOOLS + ASK + code, undefined, limits, grantsFor(log));
  };

  beforeAll(async () => {
    hull = await ownedHull({ limits: { hostCalls: 1_000_000, memoryMb: 256 } });
    await strike(`tell(ask("echo", '["a",1]'))`); // what a first run loads is no growth
  });

  it.each(CASES)("$what", async ({ code, limits, ends, detail, value, acts }) => {
    const before = heldBytes();
    const { value: outcome, peakBytes } = await weighed(() => strike(code, limits));
    expect(endOf(outcome)).toBe(ends);
    if (detail !== undefined)
      expect(outcome).toMatchObject({ stop: { detail: expect.stringContaining(detail) } });
    if (ends === "ok") expect(valueOf(outcome)).toEqual(value);
    if (acts !== undefined) expect(log.acts).toEqual(acts);
    expect(log.acts).not.toContain("wipe");
    expect(({} as Record<string, unknown>)["polluted"]).toBeUndefined();
    expect(peakBytes).toBeLessThan(MOST_BYTES);
    expect(valueOf(await strike(`tell(ask("echo", '["a","next"]'))`))).toBe("next");
    expect(heldBytes() - before).toBeLessThan(2 * MiB);
    expect(hull.zygote.alive).toBe(true);
    expect(hull.zygote.free).toBe(4);
  });

  it("floods is no harm to another run with grants of its own", async () => {
    const flood = strike(`flood("echo", '["a","' + "x".repeat(60000) + '"]')`, { wallMs: 3000 });
    const quiet = await strike(
      `const all = []; for (let i = 0; i < 200; i++) all.push(ask("echo", '["a",' + i + ']')); tell(all.length)`,
    );
    expect(valueOf(quiet)).toBe(200);
    expect((await flood).status).toBe("stopped");
  });
});

describe("a frame of many values that each take long to build", () => {
  it("is taken in turns: other work goes on meanwhile", async () => {
    const hull = await ownedHull();
    // Keys that fall into few buckets of V8's hash tables: its hash of integers has no seed.
    const code = `${TOOLS}
      const keys = [];
      for (let key = 1; keys.length < 1500; key++) {
        let hash = (~key + (key << 15)) | 0;
        hash ^= hash >>> 12; hash = (hash + (hash << 2)) | 0; hash ^= hash >>> 4;
        hash = Math.imul(hash, 2057); hash ^= hash >>> 16;
        if ((hash & 0xfff) === 0) keys.push(key);
      }
      const set = '["a",["s",' + keys.join() + ']]';
      const items = [];
      for (let id = 1; id <= 40; id++) items.push('[' + id + ',' + ref("g") + ',"echo",' + set + ']');
      put(frame(CALL, '[' + items.join() + ']'));
      hang();`;
    let turns = 0;
    let running = true;
    const turn = () => {
      turns++;
      if (running) setImmediate(turn);
    };
    turn();
    const seen: number[] = [];
    const g = capability("g", { echo: act({ v: z.any() }, () => void seen.push(turns)) });
    const limits = { callBytes: 1_048_576, wallMs: 2000, cpuMs: 2000 };
    await attack(hull, code, undefined, limits, { g });
    running = false;
    expect(seen.length).toBeGreaterThan(5); // the control: they were built and acted upon
    expect(new Set(seen).size).toBeGreaterThan(3);
  });
});
