import { describe, expect, test } from "vitest";
import { asGuestFunction, caretaker, type Capability, type GuestFunction } from "#hostapi/capability";
import { events, type EventsOptions, type RunEvent } from "#hostapi/events";
import { callOn, fakeRun, type Told } from "../capability.js";

/** A capability, and what its listener heard. */
function heard(options: Omit<EventsOptions, "onEvent"> = {}) {
  const all: RunEvent[] = [];
  return { all, target: events({ ...options, onEvent: (event) => void all.push(event) }) };
}

const emit = (target: Capability, args: unknown[], options?: Parameters<typeof callOn>[3]) =>
  callOn(target, "emit", args, options);

describe("events", () => {
  test("arrive in the order of the calls, numbered from 1 in each run, before emit is answered", async () => {
    const { all, target } = heard();
    const [first, second] = [fakeRun("run-1"), fakeRun("run-2")];
    const calls = Array.from({ length: 20 }, (_, i) => emit(target, ["step", i], { run: first }));
    expect(all.map(({ seq, data }) => [seq, data])).toEqual(Array.from({ length: 20 }, (_, i) => [i + 1, i]));
    expect(await Promise.all(calls)).toEqual(Array.from({ length: 20 }, () => undefined));
    await emit(target, ["other"], { run: second });
    expect(all.at(-1)).toEqual({ name: "other", data: undefined, run: second, seq: 1 });
  });

  test("carry any data that can cross", async () => {
    const { all, target } = heard();
    const data = {
      at: new Date(5),
      big: 2n ** 70n,
      map: new Map([["__proto__", 1]]),
      bytes: new Uint8Array([1]),
    };
    await emit(target, ["a.b:c/d-e_F9", data]);
    expect(all[0].data).toEqual(data);
  });

  test("carry no function, no capability and no hostile key", async () => {
    const { all, target } = heard();
    const f = asGuestFunction(Object.assign(async () => 1, { keep: () => f, release() {} }) as GuestFunction);
    for (const bad of [f, target, Promise.resolve(), Symbol.iterator, JSON.parse('{"__proto__":1}')]) {
      await expect(emit(target, ["x", { deep: [bad] }])).rejects.toMatchObject({
        code: "bad-argument",
        message: expect.stringContaining("events.emit: data.deep[0]"),
      });
    }
    expect(all).toEqual([]);
    await emit(target, ["x", {}]);
    expect(all[0].seq).toBe(1); // what was refused left no gap
  });

  test.each([
    ["", "a b", "a\nb", "\u001b[2J", "a\u202eb", "é", "x".repeat(65), "x".repeat(1 << 24), "a\0", "a,b"],
    [7, null, undefined, {}, ["a"], Object("a")],
  ])("have plain names and no others", async (...names) => {
    const { all, target } = heard();
    for (const name of names) {
      await expect(emit(target, [name])).rejects.toMatchObject({ code: "bad-argument" });
    }
    expect(all).toEqual([]);
  });

  test("of other names than those listed are denied, and the guest is told which there are", async () => {
    const { all, target } = heard({ names: ["progress", "done"] });
    await emit(target, ["done"]);
    for (const name of ["Done", "constructor", "__proto__", "progres"]) {
      await expect(emit(target, [name])).rejects.toMatchObject({
        code: "denied",
        message: "events.emit: only the events progress, done",
      });
    }
    expect(all).toHaveLength(1);
  });

  test("are counted by run, and the one too many is not heard", async () => {
    const { all, target } = heard({ maxEvents: 2 });
    const run = fakeRun();
    const results = await Promise.allSettled([1, 2, 3, 4].map((data) => emit(target, ["x", data], { run })));
    expect(results.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled", "rejected", "rejected"]);
    await expect(emit(target, ["x"], { run })).rejects.toMatchObject({ code: "budget" });
    await emit(target, ["x", "another run's"], { run: fakeRun("run-2") });
    expect(all.map(({ data }) => data)).toEqual([1, 2, "another run's"]);
  });

  test("are bounded in bytes, blobs included and not in characters", async () => {
    const { all, target } = heard({ maxEventBytes: 100 });
    await emit(target, ["x", "x".repeat(98)]);
    await emit(target, ["x", "é".repeat(49)]);
    for (const data of [
      "x".repeat(99),
      "é".repeat(50),
      new Uint8Array(100),
      Array.from({ length: 1e5 }, () => 0),
    ]) {
      await expect(emit(target, ["x", data])).rejects.toMatchObject({ code: "too-large" });
    }
    expect(all).toHaveLength(2);
  });

  test("a listener that throws is noted and not heard of by the guest, and the next event arrives", async () => {
    let calls = 0;
    const told: Told = { notes: [], charged: 0 };
    const target = events({
      onEvent() {
        calls++;
        throw new Error("EPIPE at /srv/app/socket");
      },
    });
    const run = fakeRun();
    expect(await emit(target, ["x", "data"], { told, run })).toBeUndefined();
    expect(await emit(target, ["x", "data"], { told, run })).toBeUndefined();
    expect(calls).toBe(2);
    const about = (seq: number) => [{ name: "x" }, { seq, bytes: 6 }, { listener: "threw" }];
    expect(told.notes).toEqual([...about(1), ...about(2)]);
    expect(told.charged).toBe(12);
  });

  test("a listener whose promise is rejected ends nobody", async () => {
    const unhandled: unknown[] = [];
    const notice = (reason: unknown) => void unhandled.push(reason);
    process.on("unhandledRejection", notice);
    try {
      const onEvent = (async () => Promise.reject(new Error("late"))) as unknown as () => void;
      expect(await emit(events({ onEvent }), ["x"])).toBeUndefined();
      await new Promise((resolve) => setImmediate(resolve)); // unhandled ones are told of before this
      expect(unhandled).toEqual([]);
    } finally {
      process.off("unhandledRejection", notice);
    }
  });

  test("a budget of bytes that is used up stops an event before it is heard", async () => {
    const { all, target } = heard();
    const run = fakeRun();
    const weak = target.budget({ bytes: 50 }); // 16 of arguments and 10 of data each
    await emit(weak, ["x", "12345678"], { run });
    await expect(emit(weak, ["x", "12345678"], { run })).rejects.toMatchObject({ code: "budget" });
    expect(all).toHaveLength(1);
  });

  test("read-only leaves nothing, and a caretaker takes it back, from a listener too", async () => {
    const { target } = heard();
    expect(() => target.readOnly()).toThrow(/^readOnly: it leaves nothing of events/);
    const seen: unknown[] = [];
    const care = caretaker(
      events({
        onEvent({ data }) {
          seen.push(data);
          if (data === 2) care.revoke();
        },
      }),
    );
    const run = fakeRun();
    await emit(care.capability, ["x", 1], { run });
    await emit(care.capability, ["x", 2], { run }).catch(() => {}); // answered or revoked: it had been heard
    await expect(emit(care.capability, ["x", 3], { run })).rejects.toMatchObject({ code: "revoked" });
    expect(seen).toEqual([1, 2]);
  });

  test("an option that there is not, or no options at all, is a slip and is told", () => {
    const onEvent = () => {};
    expect(() => events({ onEvent, name: ["x"] } as EventsOptions)).toThrow(
      'events: there is no option "name"; known are onEvent, names, maxEvents, maxEventBytes',
    );
    for (const nothing of [undefined, null, onEvent, [onEvent], new Map(), "x"]) {
      expect(() => events(nothing as never)).toThrow(/^events: takes an object with onEvent, names/);
    }
  });

  test("bad options are named at construction", () => {
    const onEvent = () => {};
    for (const [option, value] of [
      ["onEvent", undefined],
      ["names", []],
      ["names", "x"],
      ["names", ["a b"]],
      ["names", [7]],
      ["maxEvents", 0],
      ["maxEvents", 1.5],
      ["maxEventBytes", Infinity],
      ["maxEventBytes", "1"],
    ] as const) {
      // prettier-ignore
      expect(() => events({ onEvent, [option]: value } as EventsOptions)).toThrow(new RegExp(`^events: ${option}`)); // prettier-ignore
      expect(() => events({ onEvent, [option]: value } as EventsOptions)).toThrow(TypeError);
    }
  });
});
