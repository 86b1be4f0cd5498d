/**
 * A worker that has fallen speaks whatever it likes on its one socket. Each case writes raw bytes from inside the jail
 * and must end as its class says, with the supervisor's memory where it was, and the hull ready for the next run.
 */
import { beforeAll, describe, expect, it } from "vitest";
import type { Limits } from "#server/limits";
import type { Outcome } from "#server/outcome";
import { attack, ownedHull, valueOf, type OwnedHull } from "./harness.js";
import { heldBytes, TOOLS, weighed } from "./wire.js";

interface Case {
  what: string;
  code: string;
  limits?: Partial<Limits>;
  /** The stop's reason, or "ok". */
  ends: string;
  /** A part of the stop's detail. */
  detail?: string;
}

const MiB = 1 << 20;
const SOON = { wallMs: 200 };

const CASES: Case[] = [
  {
    what: "sends garbage",
    code: 'put(Buffer.from("GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")); hang()',
    ends: "protocol",
  },
  { what: "sends zeros", code: "put(Buffer.alloc(4096)); hang()", ends: "protocol", detail: "unknown-kind" },
  {
    what: "sends a text of less than an array",
    code: "put(header(1, 0, LOG)); hang()",
    ends: "protocol",
    detail: "bad-length",
  },
  {
    what: "fills the reserved bytes",
    code: "put(header(2, 0, LOG | 0x100)); hang()",
    ends: "protocol",
    detail: "bad-reserved",
  },
  { what: "invents a kind", code: "put(header(2, 0, 8)); hang()", ends: "protocol", detail: "unknown-kind" },
  {
    what: "announces 4 GiB of text",
    code: "put(header(0xffffffff, 0, RESULT)); hang()",
    ends: "output",
    detail: "too-large",
  },
  {
    what: "announces 4 GiB of bytes",
    code: "put(header(2, 0xffffffff, RESULT)); hang()",
    ends: "output",
    detail: "too-large",
  },
  {
    what: "stops in a header and dies",
    code: "put(header(64, 0, LOG).subarray(0, 7)); die(0)",
    ends: "crash",
  },
  {
    what: "stops in a frame and dies",
    code: 'put(frame(LOG, \'["log",0,["x"]]\').subarray(0, 16)); die(0)',
    ends: "crash",
  },
  {
    what: "stops in a frame and hangs",
    code: "put(header(1000000, 0, LOG)); hang()",
    limits: SOON,
    ends: "wall-time",
  },
  {
    what: "drips a frame byte by byte",
    code: "put(header(1000000, 0, LOG)); for (;;) put(Buffer.from('['))",
    limits: SOON,
    ends: "wall-time",
  },
  { what: "sends invalid UTF-8", code: "put(Buffer.concat([header(4, 0, LOG), Buffer.from([0x5b, 0xff, 0xfe, 0x5d])])); hang()", ends: "protocol", detail: "bad-utf8" }, // prettier-ignore
  {
    what: "sends an object",
    code: "put(frame(RESULT, '{\"__proto__\":{}}')); hang()",
    ends: "protocol",
    detail: "object",
  },
  { what: "nests without end", code: "put(frame(RESULT, '['.repeat(100000) + ']'.repeat(100000))); hang()", ends: "protocol", detail: "too-deep" }, // prettier-ignore
  { what: "sends millions of items", code: "put(frame(RESULT, '[\"ok\",[' + '0,'.repeat(1500000) + '0]]')); hang()", ends: "protocol", detail: "too-many-nodes" }, // prettier-ignore
  {
    what: "sends no JSON",
    code: "put(frame(RESULT, '[\"ok\",]')); hang()",
    ends: "protocol",
    detail: "bad-json",
  },
  {
    what: "sends the wrong parts",
    code: "put(frame(LOG, '[\"log\"]')); hang()",
    ends: "protocol",
    detail: "bad-shape",
  },
  {
    what: "logs at a level of its own",
    code: "put(frame(LOG, '[\"fatal\",0,[]]')); hang()",
    ends: "protocol",
    detail: "bad-shape",
  },
  {
    what: "sends a result that is no value",
    code: 'put(frame(RESULT, \'["ok",["no such tag"]]\')); hang()',
    ends: "protocol",
  },
  {
    what: "sends a result over the limit",
    code: "put(frame(RESULT, '[\"ok\",\"' + 'x'.repeat(2000000) + '\"]')); hang()",
    ends: "output",
  },
  { what: "sends two results at once", code: "const r = frame(RESULT, '[\"ok\",1]'); put(Buffer.concat([r, r])); hang()", ends: "protocol", detail: "bad-order" }, // prettier-ignore
  { what: "logs after its result", code: "put(Buffer.concat([frame(RESULT, '[\"ok\",1]'), frame(LOG, '[\"log\",0,[]]')])); hang()", ends: "protocol", detail: "bad-order" }, // prettier-ignore
  {
    what: "parks a second time",
    code: "put(frame(PARKED, '[]')); hang()",
    ends: "protocol",
    detail: "bad-order",
  },
  { what: "sends a job", code: "put(frame(JOB, '[]')); hang()", ends: "protocol", detail: "wrong-direction" },
  { what: "begins its calls with 2", code: "put(call(2)); hang()", ends: "protocol", detail: "bad-call-id" },
  {
    what: "calls twice with one id",
    code: "put(Buffer.concat([call(1, 'x', '[\"a\"]', 9), call(1, 'x', '[\"a\"]', 9)])); hang()",
    ends: "protocol",
    detail: "bad-call-id",
  },
  { what: "calls with the id 0", code: "put(call(0)); hang()", ends: "protocol", detail: "bad-shape" },
  {
    what: "calls with arguments that are no list",
    code: "put(call(1, 'x', '1')); hang()",
    ends: "protocol",
    detail: "bad-shape",
  },
  {
    what: "calls a name that is too long",
    code: "put(call(1, 'x'.repeat(200))); hang()",
    ends: "protocol",
    detail: "bad-shape",
  },
  {
    what: "releases what it was never given",
    code: "put(frame(RELEASE, '[[1,1]]')); hang()",
    ends: "protocol",
    detail: "unknown-ref",
  },
  {
    what: "answers what nobody asked",
    code: "put(frame(REPLY, '[[1,true,null]]')); hang()",
    ends: "protocol",
    detail: "unknown-reply",
  },
  { what: "sleeps for a text", code: "put(call(1, 'sleep', '[\"a\",\"long\"]')); hang()", ends: "protocol" },
  {
    what: "sleeps for less than nothing",
    code: "put(call(1, 'sleep', '[\"a\",-1]')); hang()",
    ends: "protocol",
  },
  {
    what: "sleeps for what is no value",
    code: "put(call(1, 'sleep', '[\"a\",[\"?\"]]')); hang()",
    ends: "protocol",
  },
  { what: "sleeps without an argument", code: "put(call(1, 'sleep', '[\"a\"]')); hang()", ends: "protocol" },
  {
    what: "sleeps for ever",
    code: "put(call(1, 'sleep', '[\"a\",1e300]')); hang()",
    limits: SOON,
    ends: "wall-time",
  },
  { what: "sleeps too often at once", code: "for (let id = 1; id < 2000; id++) put(call(id, 'sleep', '[\"a\",100000]')); hang()", ends: "protocol" }, // prettier-ignore
  {
    what: "floods with calls",
    code: "for (let id = 1; ; id++) put(call(id, 'x', '[\"a\"]', 9))",
    ends: "host-calls",
  },
  { what: "floods with calls that carry much", code: "const args = '[\"a\",\"' + 'x'.repeat(60000) + '\"]'; for (let id = 1; ; id++) put(call(id, 'x', args, 9))", limits: { wallMs: 15_000, cpuMs: 15_000 }, ends: "host-calls" }, // prettier-ignore
  { what: "floods with sleeps that end at once, and reads no answer", code: "for (let id = 1; ; ) { const all = []; while (all.length < 500) all.push(call(id++, 'sleep', '[\"a\",0]')); put(Buffer.concat(all)); }", limits: { wallMs: 15_000, cpuMs: 15_000 }, ends: "protocol" }, // prettier-ignore
  { what: "floods with logs", code: "const log = frame(LOG, '[\"log\",0,[\"' + 'x'.repeat(30000) + '\"]]'); for (;;) put(log)", limits: { wallMs: 15_000, cpuMs: 15_000 }, ends: "protocol", detail: "logs" }, // prettier-ignore
  { what: "floods with empty logs", code: "const log = frame(LOG, '[\"log\",0,[]]'); const many = Buffer.concat(Array(1000).fill(log)); for (;;) put(many)", limits: { wallMs: 15_000, cpuMs: 15_000 }, ends: "protocol", detail: "logs" }, // prettier-ignore
  { what: "floods with releases", code: "const log = frame(RELEASE, '[[9007199254740991,9007199254740991]]'); for (;;) put(log)", ends: "protocol", detail: "unknown-ref" }, // prettier-ignore
  { what: "claims a deadline that has not come", code: "put(frame(RESULT, '[\"stopped\",\"interrupted\",\"\"]')); hang()", ends: "protocol" }, // prettier-ignore
  { what: "claims a reason that there is not", code: "put(frame(RESULT, '[\"stopped\",\"wall-time\",\"\"]')); hang()", ends: "protocol", detail: "bad-shape" }, // prettier-ignore
  { what: "exits as if all were well", code: "die(0)", ends: "crash", detail: "exit code 0" },
  { what: "exits with an error", code: "die(77)", ends: "crash", detail: "exit code 77" },
  { what: "dies of a signal", code: 'syscall("rt_sigreturn")', ends: "crash", detail: "signal 11" },
  { what: "says nothing", code: "hang()", limits: SOON, ends: "wall-time" },
];

const endOf = (outcome: Outcome): string =>
  outcome.status === "stopped" ? outcome.stop.reason : outcome.status;

/** A hull whose bounds on frames and bytes are small enough to be met soon. */
const tight = () => ownedHull({ limits: { hostCalls: 100, callBytes: 65_536, logBytes: 65_536 } });

describe("a hostile worker", () => {
  let hull: OwnedHull;
  beforeAll(async () => {
    hull = await tight();
    await attack(hull, "return 1"); // what a first run loads is no growth
  });

  it.each(CASES)(
    "that $what ends as $ends, costs no memory, and harms no other run",
    async ({ code, limits, ends, detail }) => {
      const before = heldBytes();
      const { value: outcome, peakBytes } = await weighed(() =>
        attack(hull, TOOLS + code, undefined, limits),
      );
      expect(endOf(outcome)).toBe(ends);
      outcome.logs.length = 0; // the caller's, who may drop them
      if (detail !== undefined)
        expect(outcome).toMatchObject({ stop: { detail: expect.stringContaining(detail) } });
      expect(peakBytes).toBeLessThan(24 * MiB);
      expect(valueOf(await attack(hull, "return input", [1, "next"]))).toEqual([1, "next"]);
      expect(heldBytes() - before).toBeLessThan(2 * MiB);
      expect(hull.zygote.alive).toBe(true);
      expect(hull.zygote.free).toBe(4);
    },
  );

  it("that tells the truth by hand is believed: the control of all of these", async () => {
    const code = `${TOOLS} put(frame(LOG, '["log",5,["hello"]]')); put(frame(RESULT, '["ok","by hand"]')); hang();`;
    const outcome = await attack(hull, code);
    expect(valueOf(outcome)).toBe("by hand");
    expect(outcome.logs).toEqual([{ level: "log", args: ["hello"], timeMs: 5 }]);
  });

  it("keeps no more log entries than the limit on logs pays for", async () => {
    const code =
      "const logs = Buffer.concat(Array(1000).fill(frame(LOG, '[\"log\",0,[]]'))); for (;;) put(logs)";
    const outcome = await attack(hull, TOOLS + code, undefined, { wallMs: 15_000, logBytes: 1600 });
    expect(outcome.logs.length).toBeLessThanOrEqual(101);
  });

  it("beside another is no harm to that other", async () => {
    const log = `const logs = Buffer.concat(Array(100).fill(frame(LOG, '["log",0,["x"]]'))); for (;;) put(logs)`;
    const flood = attack(hull, TOOLS + log, undefined, { wallMs: 15_000 });
    const quiet = await attack(hull, "let n = 0; for (let i = 0; i < 1e5; i++) n += i; return n");
    expect(valueOf(quiet)).toBe(4999950000);
    expect(endOf(await flood)).toBe("protocol");
  });
});
