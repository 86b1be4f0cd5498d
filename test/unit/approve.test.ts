import { describe, expect, test, vi } from "vitest";
import { approve, withApproval, type Approval, type ApprovalQuestion } from "#hostapi/approve";
import {
  CapabilityError,
  asGuestFunction,
  capability,
  caretaker,
  callback,
  method,
  type Capability,
  type GuestFunction,
} from "#hostapi/capability";
import { readable } from "#hostapi/readable";
import { z } from "zod";
import { callOn, fakeRun, type Told } from "../capability.js";

/** A person who answers when the test says so. */
function person() {
  const open: { question: ApprovalQuestion; signal: AbortSignal; answer: (approval: Approval) => void; fail: (error: Error) => void }[] = []; // prettier-ignore
  let seen = 0;
  const watchers: (() => void)[] = [];
  return {
    open,
    ask(question: ApprovalQuestion, signal: AbortSignal): Promise<Approval> {
      return new Promise((answer, fail) => {
        open.push({ question, signal, answer, fail });
        for (const watcher of watchers.splice(0)) watcher();
      });
    },
    /** The next question, once it is there. */
    async next() {
      while (open.length <= seen) await new Promise<void>((resolve) => watchers.push(resolve));
      return open[seen++];
    },
  };
}

const always = (approval: unknown) => ({ ask: async () => approval as Approval });
const settle = () => new Promise<void>((resolve) => setImmediate(resolve));

/** What a person reads of a text and details. */
async function asked(text: unknown, details?: unknown): Promise<ApprovalQuestion> {
  const { ask, open } = { ...person() };
  const answer = callOn(approve({ ask }), "ask", details === undefined ? [text] : [text, details]);
  await Promise.race([answer, settle()]);
  open[0].answer(true);
  await answer;
  return open[0].question;
}

describe("approve", () => {
  test("gives the person's answer, and the note to the audit alone", async () => {
    for (const [approval, expected] of [
      [true, true],
      [false, false],
      [{ approved: true }, true],
      [{ approved: false, note: "no" }, false],
    ] as const) {
      // prettier-ignore
      expect(await callOn(approve(always(approval)), "ask", ["Send it?"])).toBe(expected);
    }
    const told: Told = { notes: [], charged: 0 };
    const answer = { approved: true, note: `go\u001b[2J${"x".repeat(500)}` };
    expect(await callOn(approve(always(answer)), "ask", ["Send it?", "to é"], { told })).toBe(true);
    expect(told.notes.slice(1)).toEqual([{ question: "Send it?", approved: true, note: expect.stringMatching(/^go\\u\{1b\}\[2Jx{194}$/) }]); // prettier-ignore
    expect(told.charged).toBe(8 + 5);
  });

  test.each([[undefined], [null], ["yes"], [1], [{}], [{ approved: "true" }], [{ approved: 1 }], [[true]], ["true"]])(
    "takes %j for a no",
    async (answer) => {
      expect(await callOn(approve(always(answer)), "ask", ["Send it?"])).toBe(false);
    },
  ); // prettier-ignore

  test("an asker that fails is no yes, and why is not the guest's to know", async () => {
    const failing = [
      () => Promise.reject(new Error("SMTP at 10.0.0.7 refused")),
      () => {
        throw new Error("SMTP at 10.0.0.7 refused");
      },
      () => Promise.reject(), // oxlint-disable-line typescript/prefer-promise-reject-errors -- an asker may
    ];
    for (const ask of failing) {
      await expect(callOn(approve({ ask }), "ask", ["Send it?"])).rejects.toMatchObject({
        code: "unavailable",
        message: "approve.ask: nobody could be asked",
      });
    }
  });

  test("an asker that knows why nobody can be asked tells the guest, in an error that is for guests", async () => {
    const why = new CapabilityError("unavailable", "approve.ask: nobody listens");
    const asked = callOn(approve({ ask: () => Promise.reject(why) }), "ask", ["Send it?"]);
    await expect(asked).rejects.toBe(why);
  });

  test("the question names who asks, and holds what was asked", async () => {
    const run = fakeRun();
    const someone = person();
    const answer = callOn(approve({ ask: someone.ask }), "ask", ["Delete 3 files?", "a\nb\r\nc"], {
      run,
      label: "boss",
    });
    const { question, answer: say } = await someone.next();
    expect(question).toEqual({ run, label: "boss", method: "ask", text: "Delete 3 files?", details: ["a", "b", "c"], untilMs: run.elapsedMs() + 600_000 }); // prettier-ignore
    expect(Object.isFrozen(question) && Object.isFrozen(question.details)).toBe(true);
    say(true);
    await answer;
  });

  test.each([
    ["escape sequences", "ok\u001b[2K\u001b[1A\u009b2J", "ok\\u{1b}[2K\\u{1b}[1A\\u{9b}2J"],
    ["carriage return and backspace", "Delete?\rRead?\b\b\u007f", "Delete?\\u{d}Read?\\u{8}\\u{8}\\u{7f}"],
    ["line ends of every kind", "a\nb\u0085c\u2028d\u2029e\vf\fg", "a\\u{a}b\\u{85}c\\u{2028}d\\u{2029}e\\u{b}f\\u{c}g"],
    ["NUL and tab", "a\0b\tc", "a\\u{0}b\\u{9}c"],
    ["bidirectional overrides and isolates", "\u202etxt.exe\u202c \u2066a\u2069\u200f\u061c", "\\u{202e}txt.exe\\u{202c} \\u{2066}a\\u{2069}\\u{200f}\\u{61c}"],
    ["invisible characters", "pay\u200bpal\u00ad\ufeff\u3164\u115f\u2060", "pay\\u{200b}pal\\u{ad}\\u{feff}\\u{3164}\\u{115f}\\u{2060}"],
    ["tags and variation selectors", "a\u{e0041}\ufe0f\u{e0100}", "a\\u{e0041}\\u{fe0f}\\u{e0100}"],
    ["lone surrogates, private and unassigned ones", "a\ud800b\ue000\uffff\u{10ffff}", "a\\u{d800}b\\u{e000}\\u{ffff}\\u{10ffff}"],
    ["stacked marks", `e${"\u0301".repeat(6)}!`, `e${"\u0301".repeat(4)}\\u{301}\\u{301}!`],
    ["nothing of an honest text", "Überweise 5 € an Zoë (日本語, हिन्दी, العربية)? 🚢", "Überweise 5 € an Zoë (日本語, हिन्दी, العربية)? 🚢"],
  ])("what a person reads has escaped: %s", async (_what, text, expected) => {
    const question = await asked(text);
    expect(question.text).toBe(expected);
    expect((await asked("q", text.replaceAll(/[\r\n]/g, ""))).details).toEqual([expected.replaceAll(/\\u\{[ad]\}/g, "")]); // prettier-ignore
  }); // prettier-ignore

  test("text and details are bounded, and nothing is cut off unseen: more is refused", async () => {
    await asked("x".repeat(500), Array.from({ length: 40 }, () => "y".repeat(90)).join("\n"));
    const { ask } = always(true);
    const asking = vi.fn(ask);
    for (const args of [
      ["x".repeat(501)],
      ["x".repeat(1 << 24)],
      [""],
      [" \n\t"],
      ["x", "y".repeat(4097)],
      ["x", "y".repeat(501)],
      ["x", "\n".repeat(40)],
      [7],
      [undefined],
      [{ toString: () => "x" }],
      ["x", 7],
      ["x", ["y"]],
      ["x", "y", "z"],
    ]) {
      await expect(callOn(approve({ ask: asking }), "ask", args)).rejects.toMatchObject({ code: "bad-argument" }); // prettier-ignore
    }
    expect(asking).not.toHaveBeenCalled();
  });

  test("a run has one question open; the next come in order, and too many are refused", async () => {
    const run = fakeRun();
    const someone = person();
    const target = approve({ ask: someone.ask });
    const other = approve({ ask: someone.ask }); // another capability of the same run waits in the same queue
    const answers = Array.from({ length: 9 }, (_, i) => callOn(i % 2 ? other : target, "ask", [`question ${i}`], { run })); // prettier-ignore
    await expect(callOn(target, "ask", ["one more"], { run })).rejects.toMatchObject({ code: "rate" });
    for (let i = 0; i < 9; i++) {
      const { question, answer } = await someone.next();
      await settle();
      expect(someone.open).toHaveLength(i + 1);
      expect(question.text).toBe(`question ${i}`);
      answer(i % 3 === 0);
    }
    expect(await Promise.all(answers)).toEqual([true, false, false, true, false, false, true, false, false]);
    const again = callOn(target, "ask", ["after all"], { run });
    (await someone.next()).answer(true);
    expect(await again).toBe(true);
  });

  test("another run does not wait for it", async () => {
    const someone = person();
    const target = approve({ ask: someone.ask });
    const first = callOn(target, "ask", ["first"], { run: fakeRun("run-1") });
    const second = callOn(target, "ask", ["second"], { run: fakeRun("run-2") });
    const [one, two] = [await someone.next(), await someone.next()];
    two.answer(true);
    expect(await second).toBe(true);
    one.answer(false);
    expect(await first).toBe(false);
  });

  test("nobody answers in time: a timeout, the question is void, and the next is put", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    try {
      const run = fakeRun();
      const someone = person();
      const target = approve({ ask: someone.ask, timeoutMs: 5000 });
      expect(target.methods.get("ask")?.timeoutMs).toBe(5000);
      const first = callOn(target, "ask", ["first"], { run });
      const { signal, answer } = await someone.next();
      vi.advanceTimersByTime(3000);
      const second = callOn(target, "ask", ["second"], { run });
      vi.advanceTimersByTime(1999);
      expect(signal.aborted).toBe(false);
      vi.advanceTimersByTime(1);
      await expect(first).rejects.toMatchObject({ code: "timeout" });
      expect(signal.aborted).toBe(true);
      answer(true); // too late to matter
      (await someone.next()).answer(true);
      expect(await second).toBe(true);
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });

  test("waits ten minutes unless told otherwise", () => {
    expect(approve(always(true)).methods.get("ask")?.timeoutMs).toBe(600_000);
  });

  test("taken back while a question is open and another waits: both are revoked, and neither is asked on", async () => {
    const run = fakeRun();
    const someone = person();
    const care = caretaker(approve({ ask: someone.ask }));
    const first = callOn(care.capability, "ask", ["first"], { run });
    const second = callOn(care.capability, "ask", ["second"], { run });
    const outcomes = Promise.allSettled([first, second]);
    const { signal } = await someone.next();
    care.revoke();
    for (const outcome of await outcomes) expect(outcome).toMatchObject({ reason: { code: "revoked" } });
    expect(signal.aborted).toBe(true);
    await settle();
    expect(someone.open).toHaveLength(1);
    // The queue of the run is free again.
    const later = callOn(approve({ ask: someone.ask }), "ask", ["third"], { run });
    (await someone.next()).answer(true);
    expect(await later).toBe(true);
  });

  test("one that gives up while it waits does not let the one behind it overtake", async () => {
    const run = fakeRun();
    const someone = person();
    const [target, care] = [approve({ ask: someone.ask }), caretaker(approve({ ask: someone.ask }))];
    const first = callOn(target, "ask", ["first"], { run });
    const second = callOn(care.capability, "ask", ["second"], { run });
    const third = callOn(target, "ask", ["third"], { run });
    const { answer } = await someone.next();
    care.revoke();
    await expect(second).rejects.toMatchObject({ code: "revoked" });
    await settle();
    expect(someone.open).toHaveLength(1);
    answer(true);
    (await someone.next()).answer(false);
    expect([await first, await third]).toEqual([true, false]);
  });

  test("the end of the run voids the question", async () => {
    const run = fakeRun();
    const someone = person();
    const answer = callOn(approve({ ask: someone.ask }), "ask", ["first"], { run });
    const { signal } = await someone.next();
    run.end();
    await expect(answer).rejects.toMatchObject({ name: "CapabilityError" });
    expect(signal.aborted).toBe(true);
    const late = callOn(approve({ ask: someone.ask }), "ask", ["after the end"], { run });
    await expect(late).rejects.toMatchObject({ code: "timeout" });
    expect(someone.open).toHaveLength(1);
  });

  test("read-only leaves nothing of it, and a budget weakens it", async () => {
    const target = approve(always(true));
    expect(() => target.readOnly()).toThrow(/^readOnly: it leaves nothing of approve/);
    const [run, weak] = [fakeRun(), target.budget({ calls: 1 })];
    await callOn(weak, "ask", ["x"], { run });
    await expect(callOn(weak, "ask", ["x"], { run })).rejects.toMatchObject({ code: "budget" });
  });

  test("bad options are named at construction", () => {
    for (const make of [approve, (options: never) => withApproval(approve(always(true)), options)]) {
      for (const options of [
        {},
        { ask: true },
        { ...always(true), timeoutMs: 0 },
        { ...always(true), timeoutMs: 1e9 },
        { ...always(true), timeoutMs: "5" },
        { ...always(true), timeout: 5 },
        undefined,
        null,
        always(true).ask,
      ]) {
        // prettier-ignore
        expect(() => make(options as never)).toThrow(TypeError);
      }
    }
  });
});

describe("withApproval", () => {
  /** A capability that remembers what it did. */
  function box() {
    const done: unknown[] = [];
    const target = capability("box", {
      put: method({
        doc: "Puts.",
        params: { name: z.string(), value: z.unknown(), after: callback().optional() },
        effect: "write",
        timeoutMs: 1000,
        run: ({ name, value }) => void done.push([name, value]),
      }),
      look: method({ doc: "Looks.", params: {}, effect: "read", run: () => done.length }),
    });
    return { done, target };
  }

  test("an act waits for a yes, and is denied without", async () => {
    const { done, target } = box();
    const someone = person();
    const guarded = withApproval(target, { ask: someone.ask, methods: ["put"] });
    const run = fakeRun();
    const yes = callOn(guarded, "put", ["a", 1], { run });
    const first = await someone.next();
    expect(await callOn(guarded, "look", [], { run })).toBe(0); // not named: not asked, and nothing was done yet
    first.answer(true);
    await yes;
    expect(done).toEqual([["a", 1]]);
    const no = callOn(guarded, "put", ["b", 2], { run });
    (await someone.next()).answer({ approved: false, note: "the person's reasons" });
    await expect(no).rejects.toMatchObject({ code: "denied", message: "box.put: it was not approved" });
    expect(done).toHaveLength(1);
    expect(guarded.bounds).toEqual(["a person approves each put"]);
  });

  test("all methods are asked for if none is named", async () => {
    const { target } = box();
    const asking = vi.fn(async () => true);
    const guarded = withApproval(target, { ask: asking });
    await callOn(guarded, "look");
    await callOn(guarded, "put", ["a"]);
    expect(asking).toHaveBeenCalledTimes(2);
  });

  test("the question shows method and arguments, long ones cut with what is missing, all of it escaped", async () => {
    const { target } = box();
    const someone = person();
    const guarded = withApproval(target, { ask: someone.ask });
    const run = fakeRun();
    const show = async (...args: unknown[]) => {
      const answer = callOn(guarded, "put", args, { run, label: "disk" });
      const { question, answer: say } = await someone.next();
      say(true);
      await answer;
      return question;
    };
    expect(await show("a\u202eb", { deep: [1, "x\ny"] })).toEqual({
      run,
      untilMs: run.elapsedMs() + 600_000,
      label: "disk",
      method: "put",
      text: "put",
      details: ['name: "a\\u{202e}b"', 'value: {"deep": [1, "x\\ny"]}'],
    });
    expect((await show("x".repeat(10_000))).details[0]).toMatch(/^name: "x{200,300}"\.\.\. \(9\d{3} characters more\)$/); // prettier-ignore
    expect((await show("a", "x".repeat(2 << 20))).details[1]).toMatch(/^value: "x+"\.\.\. \(20\d{5} characters more\)$/); // prettier-ignore
    expect((await show("a", target)).details[1]).toBe("value: <capability box>");
    const f = asGuestFunction(Object.assign(async () => 1, { keep: () => f, release() {} }) as GuestFunction);
    expect((await show("a", null, f)).details.slice(1)).toEqual(["value: null", "after: <function>"]);
  });

  test.each<[what: string, value: unknown, shown: string]>([
    ["a message", { to: "a@b.test", html: "<p>Hi</p>", n: 1.5 }, '{"to": "a@b.test", "html": "<p>Hi</p>", "n": 1.5}'],
    ["what is no JSON", [undefined, null, NaN, -0, 10n, true], "[undefined, null, NaN, -0, 10n, true]"],
    ["a Map, a Set", [new Map([["k", new Set([1])]])], '[Map {"k" => Set {1}}]'],
    ["a moment", new Date(0), "<1970-01-01T00:00:00.000Z>"],
    ["no moment", new Date(NaN), "<no date>"],
    ["bytes", new Uint8Array([1, 255]), "<2 bytes 01ff>"],
    ["many bytes", new Uint8Array(100), `<100 bytes ${"00".repeat(16)}...>`],
    ["a pattern, an error", [/a"b/gi, new Error("no")], '[<pattern "a\\"b" gi>, <error "no">]'],
    ["a text that plays a structure", { a: '", "to": <function>' }, '{"a": "\\", \\"to\\": <function>"}'],
    ["a key that plays a structure", { '": 1}\n': 1 }, '{"\\": 1}\\n": 1}'],
    ["a large number", 1n << 4000n, "<a whole number of over 150 digits>"],
    ["what is deep", [[[[[[["x"]]]]]]], "[[[[[<more inside>]]]]]"],
    ["a list of many", Array.from({ length: 1000 }, () => 1), `[${"1, ".repeat(20)}... (980 more)]`],
  ])("a person can read %s", async (_what, value, shown) => {
    const { target } = box();
    const someone = person();
    const answer = callOn(withApproval(target, { ask: someone.ask }), "put", ["a", value]);
    const { question, answer: say } = await someone.next();
    say(true);
    await answer;
    expect(question.details[1]).toBe(`value: ${shown}`);
  }); // prettier-ignore

  test("padding cannot push the field that matters off the line, and whatever is left out is counted", async () => {
    const { target } = box();
    const someone = person();
    const show = async (value: unknown) => {
      const answer = callOn(withApproval(target, { ask: someone.ask }), "put", ["a", value]);
      const { question, answer: say } = await someone.next();
      say(true);
      await answer;
      return question.details[1] ?? "";
    };
    expect(await show({ subject: "x".repeat(1e6), to: "eve" })).toMatch(/characters more\), "to": "eve"\}$/);
    const cyclic: unknown[] = [];
    cyclic.push(cyclic, cyclic);
    const wide = (depth: number): unknown => Array.from({ length: 30 }, () => (depth === 0 ? "\0".repeat(200) : wide(depth - 1))); // prettier-ignore
    expect(readable(cyclic, 300)).toMatch(/more inside/);
    for (const value of [wide(2), new Map([[wide(1), wide(1)]]), { ["k".repeat(1e5)]: 1 }]) {
      const shown = await show(value);
      expect(shown.length).toBeLessThan(600);
      expect(shown).toMatch(/ more|more inside/);
    }
  });

  test("a describe that returns no lines leaves the act undone", async () => {
    const { done, target } = box();
    for (const lines of [undefined, "put it?", [7], Promise.resolve(["put?"])]) {
      const guarded = withApproval(target, { ...always(true), describe: () => lines as never });
      await expect(callOn(guarded, "put", ["a"])).rejects.toThrow(/describe must return a list of lines/);
    }
    expect(done).toEqual([]);
  });

  test("what would ask for nothing is refused", () => {
    const { target } = box();
    for (const [options, why] of [
      [{ methods: [] }, /methods must be a list of at least one/],
      [{ methods: "put" }, /methods must be a list/],
      [{ methods: [7] }, /methods must be a list/],
      [{ method: ["put"] }, /no option "method"; known are ask, timeoutMs, methods, describe/],
      [{ describe: ["put"] }, /describe must be a function/],
    ] as const) {
      expect(() => withApproval(target, { ...always(true), ...options } as never)).toThrow(why);
    }
    for (const nothing of [undefined, null, { methods: target.methods }]) {
      expect(() => withApproval(nothing as never, always(true))).toThrow(
        /^withApproval: must be a capability/,
      );
    }
  });

  test("describe says it in the embedder's words, in which guest text is escaped all the same", async () => {
    const { target } = box();
    const someone = person();
    const describe = (name: string, args: Readonly<Record<string, unknown>>) => [`${name} ${String(args["name"])}?`, ...Array.from({ length: 50 }, (_, i) => `line ${i}`)]; // prettier-ignore
    const answer = callOn(withApproval(target, { ask: someone.ask, describe }), "put", ["\u001b[2J"]);
    const { question, answer: say } = await someone.next();
    say(true);
    await answer;
    expect(question.text).toBe("put \\u{1b}[2J?");
    expect(question.details).toHaveLength(41);
    expect(question.details.at(-1)).toBe("... (10 lines more)");
  });

  test("a describe that throws, or an asker that does, leaves the act undone", async () => {
    const { done, target } = box();
    const describe = () => {
      throw new Error("no words");
    };
    await expect(callOn(withApproval(target, { ...always(true), describe }), "put", ["a"])).rejects.toThrow("no words"); // prettier-ignore
    const ask = () => Promise.reject(new Error("nobody there"));
    await expect(callOn(withApproval(target, { ask }), "put", ["a"])).rejects.toMatchObject({ code: "unavailable" }); // prettier-ignore
    expect(done).toEqual([]);
  });

  test("what is taken back while a person thinks is not done, whichever way round it was weakened", async () => {
    const inside = box();
    const someone = person();
    const inner = caretaker(inside.target);
    const one = callOn(withApproval(inner.capability, { ask: someone.ask }), "put", ["a"], {
      run: fakeRun(),
    });
    const first = await someone.next();
    inner.revoke();
    first.answer(true);
    await expect(one).rejects.toMatchObject({ code: "revoked" });

    expect(inside.done).toEqual([]);
  });

  test("what is taken back between the yes and the act is not done, at whatever moment", async () => {
    const moments = new Set<number>();
    for (let wait = 0; wait < 20; wait++) {
      const { done, target } = box();
      const someone = person();
      const care = caretaker(withApproval(target, { ask: someone.ask }));
      const answer = callOn(care.capability, "put", ["b"]);
      const outcome = answer.catch((error: unknown) => error);
      (await someone.next()).answer(true);
      for (let i = 0; i < wait; i++) await Promise.resolve();
      const before = done.length;
      care.revoke();
      await outcome;
      await settle();
      expect(done).toHaveLength(before);
      moments.add(before);
    }
    expect([...moments]).toEqual([0, 1]); // the control: the last ones came too late
  });

  test("the deadline of the method leaves time for the person and for the act", () => {
    const { target } = box();
    const guarded = withApproval(target, { ...always(true), methods: ["put"], timeoutMs: 5000 });
    expect(guarded.methods.get("put")?.timeoutMs).toBe(6000);
    expect(guarded.methods.get("look")?.timeoutMs).toBeUndefined();
    expect(target.methods.get("put")?.timeoutMs).toBe(1000);
    const all: Capability = withApproval(target, { ...always(true), timeoutMs: 5000 });
    expect(all.methods.get("look")?.timeoutMs).toBe(35_000);
  });

  test("a method that the capability has not is an error that lists those it has", () => {
    const { target } = box();
    for (const name of ["get", "constructor", "__proto__"]) {
      expect(() => withApproval(target, { ...always(true), methods: [name] })).toThrow(/it has put, look/);
    }
  });
});
