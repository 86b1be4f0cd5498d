/** What an embedder can get wrong without a compiler: told where it is written, and never run as something weaker. */
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { clock, log, random, timers } from "#hostapi/ambient";
import {
  bytes,
  callback,
  Capability,
  capability,
  caretaker,
  hostFunction,
  method,
  type Method,
} from "#hostapi/capability";
import { http, narrowHttp } from "#hostapi/http";
import { kv } from "#hostapi/kv";
import { memoryStore } from "#hostapi/kv-store";
import { checkOptions } from "#hostapi/options";
import { Secret, secret } from "#hostapi/secret";
import { callOn, fakeRun } from "../capability.js";

const definition: Method = {
  doc: "Gets.",
  params: { n: z.number().optional() },
  effect: "read",
  run: () => "got",
};
const box = () =>
  capability("box", { get: method(definition), put: method({ ...definition, effect: "write" }) });

/** Each is refused with a TypeError whose message begins so. */
function refused(cases: readonly (readonly [act: (...given: never[]) => unknown, message: string])[]): void {
  for (const [act, message] of cases) {
    let thrown: unknown;
    try {
      act();
    } catch (error) {
      thrown = error;
    }
    expect(thrown, act.toString()).toBeInstanceOf(TypeError);
    expect((thrown as Error).message.slice(0, message.length), act.toString()).toBe(message);
  }
}
/** Any argument, as JavaScript lets it pass. */
const any = (value: unknown) => value as never;

describe("a weakening that would not be one is refused", () => {
  const c = box();

  test("budget", async () => {
    refused([
      [() => c.budget(any(undefined)), "budget: takes an object with calls, bytes, and got undefined"],
      [() => c.budget(any(100)), "budget: takes an object with calls, bytes, and got a number"],
      [() => c.budget(any([100])), "budget: takes an object with calls, bytes, and got a list"],
      [() => c.budget(any(new Map())), "budget: takes an object with calls, bytes, and got a Map"],
      [() => c.budget({}), "budget: must bound calls, bytes or both: budget({ calls: 100 })"],
      [() => c.budget(any({ calls: undefined })), "budget: must bound calls, bytes or both"],
      [() => c.budget(any({ call: 5 })), 'budget: there is no option "call"; known are calls, bytes'],
      [() => c.budget(any({ calls: 5, byte: 5 })), 'budget: there is no option "byte"'],
      [() => c.budget(any({ calls: "5" })), "budget: calls must be a whole number of at least 1"],
      [() => c.budget({ calls: 0 }), "budget: calls must be"],
      [() => c.budget({ calls: -1 }), "budget: calls must be"],
      [() => c.budget({ calls: NaN }), "budget: calls must be"],
      [() => c.budget({ calls: Infinity }), "budget: calls must be"],
      [() => c.budget({ bytes: 1.5 }), "budget: bytes must be"],
      [() => c.budget(any({ bytes: null })), "budget: bytes must be"],
    ]);
    const [run, weak] = [fakeRun(), c.budget({ calls: 1 })];
    await callOn(weak, "get", [], { run });
    await expect(callOn(weak, "get", [], { run })).rejects.toMatchObject({ code: "budget" });
  });

  test("rate", () => {
    refused([
      [() => c.rate(any(undefined), 1000), "rate: calls must be a number of at least 1"],
      [() => c.rate(any({ calls: 5, perMs: 1000 }), any(undefined)), "rate: calls must be"],
      [() => c.rate(0, 1000), "rate: calls must be"],
      [() => c.rate(Infinity, 1000), "rate: calls must be"],
      [() => c.rate(any("5"), 1000), "rate: calls must be"],
      [() => c.rate(5, any(undefined)), "rate: perMs must be a number of milliseconds over 0"],
      [() => c.rate(5, 0), "rate: perMs must be"],
      [() => c.rate(5, -1), "rate: perMs must be"],
      [() => c.rate(5, NaN), "rate: perMs must be"],
      [() => c.rate(5, any("1000")), "rate: perMs must be"],
    ]);
    expect(c.rate(5, 0.5).bounds).toEqual(["at most 5 calls in 0.5 ms"]);
  });

  test("expires", async () => {
    refused([
      [() => c.expires(any(undefined)), "expires: takes an object with afterMs, and got undefined"],
      [() => c.expires(any(1000)), "expires: takes an object with afterMs, and got a number"],
      [() => c.expires(any("2030-01-01")), "expires: takes an object with afterMs, and got a string"],
      [() => c.expires(new Date("soon")), "expires: the Date is not valid"],
      [() => c.expires(any({})), "expires: afterMs must be a number of milliseconds, 0 or more"],
      [() => c.expires(any({ after: 5 })), 'expires: there is no option "after"; known are afterMs'],
      [() => c.expires(any({ afterMs: 5, at: 1 })), 'expires: there is no option "at"'],
      [() => c.expires(any({ afterMs: "5" })), "expires: afterMs must be"],
      [() => c.expires({ afterMs: -1 }), "expires: afterMs must be"],
      [() => c.expires({ afterMs: NaN }), "expires: afterMs must be"],
      [() => c.expires({ afterMs: Infinity }), "expires: afterMs must be"],
    ]);
    const end = new Date(Date.now() - 1000);
    const over = c.expires(end);
    end.setFullYear(2999); // it was said before
    await expect(callOn(over, "get")).rejects.toMatchObject({ code: "expired" });
    expect(await callOn(c.expires(end), "get")).toBe("got");
  });

  test("only and readOnly", () => {
    refused([
      [() => c.only(), "only: name at least one method"],
      [() => c.only(any(["get"])), "only: takes names"],
      [() => c.only("get", any(undefined)), "only: takes names"],
      [() => c.only("got"), 'only: box has no method "got"; it has get, put'],
      [() => c.only("constructor"), 'only: box has no method "constructor"'],
      [() => c.only("put").readOnly(), "readOnly: it leaves nothing of box"],
    ]);
    expect([...c.readOnly().methods.keys()]).toEqual(["get"]);
  });

  test("where and guarded", () => {
    const rule = () => true as const;
    refused([
      [() => c.where(any(rule), any(undefined)), "where: the first argument must say in words"],
      [() => c.where("", rule), "where: the first argument must say in words"],
      [() => c.where("mine", any(undefined)), "where: the second argument must be a function"],
      [() => c.where("mine", any(true)), "where: the second argument must be a function"],
      [() => c.guarded("", any(rule)), "guarded: the first argument must say in words"],
      [() => c.guarded("mine", any({})), "guarded: the second argument must be a function"],
      [() => c.guarded("mine", any(rule), any({})), "guarded: methods must be a Map"],
      [() => c.guarded("mine", any(rule), new Map<string, any>([["get", 1], ["eat", definition]])), 'guarded: box has no method "eat"'], // prettier-ignore
    ]);
  });

  test.each([[undefined], [false], [null], [0], [1], [""], ["true".length], [{}], [Promise.resolve(true)]])(
    "a rule that answers %j refuses the call, in fixed words",
    async (verdict) => {
      const weak = c.where("a rule", () => verdict as never);
      await expect(callOn(weak, "get")).rejects.toMatchObject({
        code: "denied",
        message: "box: a rule forbids that call",
      });
    },
  );

  test("a rule that answers true lets the call pass, and a text is told", async () => {
    expect(await callOn(c.where("a rule", () => true), "get")).toBe("got"); // prettier-ignore
    await expect(callOn(c.where("a rule", () => "not today"), "get")).rejects.toMatchObject({ message: "box: not today" }); // prettier-ignore
  });

  test("caretaker, and what it is weakened to", async () => {
    const keeper = caretaker(c);
    refused([
      [() => caretaker(any(undefined)), "caretaker: must be a capability"],
      [() => caretaker(any({ methods: new Map() })), "caretaker: must be a capability"],
      [() => keeper.weaken(any(undefined)), "weaken: takes a function"],
      [() => keeper.weaken(any(c.only("get"))), "weaken: takes a function"],
      [() => keeper.weaken(any(() => undefined)), "weaken: the function's result: must be a capability"],
    ]);
    expect(await callOn(keeper.capability, "put")).toBe("got");
    keeper.weaken((now) => now.only("get"));
    await expect(callOn(keeper.capability, "put")).rejects.toMatchObject({ code: "denied" });
  });

  test("narrowHttp, prefix", () => {
    const whole = http({ allow: ["https://x.test/*"] });
    refused([
      [() => narrowHttp(any(undefined), ["https://x.test/*"]), "narrowHttp: takes a capability made by http()"],
      [() => narrowHttp(whole, any(undefined)), "narrowHttp must be a list of at least one rule"],
      [() => narrowHttp(whole, any("https://x.test/*")), "narrowHttp must be a list of at least one rule"],
      [() => narrowHttp(whole, any([null])), 'narrowHttp: rule "null" has no url'],
      [() => narrowHttp(whole, any([{ url: "https://x.test/*", method: ["GET"] }])), 'narrowHttp: rule "https://x.test/*": there is no option "method"'],
      [() => kv().prefix(any(undefined)), "kv: prefix must be a string"],
      [() => kv().prefix(""), "kv: prefix must not be empty"],
    ]); // prettier-ignore
  });
});

describe("a capability is refused where it is defined, if no call of it could be right", () => {
  const without = (key: keyof Method) => Object.fromEntries(Object.entries(definition).filter(([name]) => name !== key)) as never; // prettier-ignore

  test("a method that lacks something", () => {
    const wrong: [given: unknown, message: string][] = [
      [undefined, "takes an object with doc, params, returns, effect, timeoutMs, audit, run, and got undefined"],
      [() => 1, "takes an object with doc, params, returns, effect, timeoutMs, audit, run, and got a function"],
      [without("doc"), "doc must say in a sentence what it does"],
      [without("params"), "params must be an object of zod schemas by name: {} for no parameters"],
      [without("effect"), 'effect must be "read" or "write"'],
      [without("run"), "run must be a function that does the act"],
      [{ ...definition, params: [z.string()] }, "params must be an object of zod schemas by name"],
      [{ ...definition, params: new Map() }, "params must be an object of zod schemas by name"],
      [{ ...definition, params: { n: "string" } }, 'params has "n", which is no zod 4 schema'],
      [{ ...definition, params: { n: { safeParse: () => 1 } } }, 'params has "n", which is no zod 4 schema'],
      [{ ...definition, params: { n: z.string } }, 'params has "n", which is no zod 4 schema'],
      // oxlint-disable-next-line unicorn/no-thenable -- that is the point
      [{ ...definition, params: { then: z.string() } }, 'params has "then", which cannot be'],
      [{ ...definition, params: { ["__proto__"]: z.string() } }, 'params has "__proto__", which cannot be'],
      [{ ...definition, params: { "a b": z.string() } }, 'params has "a b", which cannot be'],
      [{ ...definition, returns: "string" }, "returns must be a zod 4 schema"],
      [{ ...definition, effect: "none" }, "effect must be"],
      [{ ...definition, timeoutMs: 0 }, "timeoutMs must be a whole number from 1 to 2147483647"],
      [{ ...definition, timeoutMs: 2 ** 31 }, "timeoutMs must be"],
      [{ ...definition, timeoutMs: "5" }, "timeoutMs must be"],
      [{ ...definition, audit: {} }, "audit must be a function"],
      [{ ...definition, timeout: 5 }, 'there is no option "timeout"'],
    ]; // prettier-ignore
    for (const [given, message] of wrong) {
      refused([
        [() => method(any(given)), `method: ${message}`],
        [() => hostFunction(any(given)), `hostFunction: ${message}`],
        [() => capability("box", { get: any(given) }), `capability box: get: ${message}`],
      ]);
    }
  });

  test("names that mean something else already, and what is no table of methods", () => {
    for (const name of ["then", "constructor", "__proto__", "toString", "a b", "", "1a", "x".repeat(65)]) {
      refused([[() => capability("box", { [name]: definition }), `capability box: "${name}" cannot be`]]);
    }
    refused([
      [() => capability(any(undefined), {}), "capability: the name must be a text"],
      [() => capability("", {}), "capability: the name must be a text"],
      [() => capability(any({ get: definition }), any(undefined)), "capability: the name must be a text"],
      [() => capability("box", any(undefined)), "capability box: takes an object of methods by name, and got undefined"],
      [() => capability("box", any(new Map([["get", definition]]))), "capability box: takes an object of methods by name, and got a Map"],
      [() => capability("box", {}, any(null)), "capability box: takes an object with close, bounds, and got null"],
      [() => capability("box", {}, any({ onClose() {} })), 'capability box: there is no option "onClose"; known are close, bounds'],
      [() => capability("box", {}, any({ close: true })), "capability box: close must be a function"],
      [() => capability("box", {}, any({ bounds: "x" })), "capability box: bounds must be a list of texts"],
      [() => new Capability(any(undefined)), "Capability: takes an object with name, methods"],
      [() => new Capability(any({ name: "box", methods: { get: definition }, invoke() {} })), "Capability: methods must be a Map"],
      [() => new Capability(any({ name: "box", methods: new Map() })), "Capability: invoke must be a function"],
      [() => new Capability({ name: "box", methods: new Map([["then", definition]]), invoke() {} }), 'Capability: methods has "then"'],
    ]); // prettier-ignore
    expect(capability("a token", {}).methods.size).toBe(0);
  });

  test("callback and bytes", () => {
    refused([
      [() => callback(any({ ts: "x" })), "callback: takes the type of the function as text"],
      [() => callback(""), "callback: takes the type of the function as text"],
      [() => bytes(any("10")), "bytes: max must be a whole number of at least 0"],
      [() => bytes(any({ max: 10 })), "bytes: max must be"],
      [() => bytes(NaN), "bytes: max must be"],
    ]);
    expect(bytes(2).safeParse(new Uint8Array(3)).success).toBe(false);
  });
});

describe("options that are not understood are refused, never left out", () => {
  test("a key that there is not, whatever kind of key, and what only looks like options", () => {
    const check = (given: unknown) => checkOptions("x", any(given), any({ a: () => undefined }));
    const known = "; known are a";
    refused([
      [() => check({ A: 1 }), `x: there is no option "A"${known}`],
      [() => check({ b: undefined }), `x: there is no option "b"${known}`],
      [() => check({ [Symbol("a")]: 1 }), `x: there is no option "Symbol(a)"${known}`],
      [() => check(Object.defineProperty({}, "b", { value: 1 })), `x: there is no option "b"${known}`],
      [() => check(JSON.parse('{"__proto__":1}')), `x: there is no option "__proto__"${known}`],
      [() => check(Object.create({ b: 1 })), "x: takes an object with a, and got an object"],
      [
        () =>
          check(
            new (class Options {
              readonly a = 1;
            })(),
          ),
        "x: takes an object with a, and got a Options",
      ],
    ]);
    for (const fine of [{}, { a: 1 }, { a: undefined }, Object.assign(Object.create(null), { a: 1 })]) {
      expect(check(fine)).toBe(fine);
    }
  });

  test("clock, random, log and timers", () => {
    refused([
      [() => clock(any("frozen")), "clock: takes an object with mode, stepMs, startMs, and got a string"],
      [() => clock(any(new Date(0))), "clock: takes an object with mode, stepMs, startMs, and got a Date"],
      [() => clock(any(null)), "clock: takes an object with mode, stepMs, startMs, and got null"],
      [() => clock(any({ start: 0 })), 'clock: there is no option "start"; known are mode, stepMs, startMs'],
      [() => clock(any({ startMs: new Date(0) })), "clock: startMs must be a number of milliseconds since 1970"],
      [() => clock(any({ startMs: "5" })), "clock: startMs must be a number"],
      [() => clock({ startMs: NaN }), "clock: startMs must be a number"],
      [() => clock({ startMs: Infinity }), "clock: startMs must be a number"],
      [() => clock(any({ mode: "coarse", stepMs: "5" })), "clock: stepMs must be a number"],
      [() => clock({ mode: "coarse" }), 'clock: stepMs goes with mode "coarse"'],
      [() => clock({ stepMs: 5 }), 'clock: stepMs goes with mode "coarse"'],
      [() => clock(any({ mode: ["real"] })), 'clock: mode must be "frozen"'],
      [() => random(any("seed")), "random: takes an object with seed, and got a string"],
      [() => random(any({ seed: 5 })), "random: seed must be a string or bytes"],
      [() => random(any({ sede: "x" })), 'random: there is no option "sede"; known are seed'],
      [() => log(any("warn")), "log: takes an object with least, and got a string"],
      [() => log(any({ level: "warn" })), 'log: there is no option "level"; known are least'],
      [() => log(any({ least: "none" })), 'log: least must be "debug"'],
      [() => timers(any(5)), "timers: takes an object with most, and got a number"],
      [() => timers(any({ max: 5 })), 'timers: there is no option "max"; known are most'],
      [() => timers(any({ most: "5" })), "timers: most must be a whole number from 0 to 10000"],
    ]); // prettier-ignore
    expect(clock({ startMs: 0 })).toMatchObject({ setting: { mode: "real", startMs: 0 } });
  });

  test("kv and its store", () => {
    const known = "namespace, store, quotaBytes, maxKeys, maxKeyBytes, maxValueBytes, now";
    refused([
      [() => kv(any({ namepsace: "a" })), `kv: there is no option "namepsace"; known are ${known}`],
      [() => kv(any("tenant-7")), `kv: takes an object with ${known}, and got a string`],
      [() => kv(any(memoryStore())), 'kv: there is no option "get"'],
      [() => kv(any(null)), `kv: takes an object with ${known}, and got null`],
      [() => kv({ quotaBytes: any("5") }), "kv: quotaBytes must be a whole number"],
      [() => memoryStore(any({ maxKeys: 5 })), "memoryStore: takes no options"],
    ]);
  });

  test("secret, however it is made", () => {
    const good = { name: "key", value: "12345678", hosts: ["x.test"] };
    for (const make of [secret, (options: typeof good) => new Secret(options)]) {
      refused([
        [() => make(any(undefined)), "secret: takes an object with name, value, hosts, and got undefined"],
        [() => make({ ...good, value: any(undefined) }), "secret key: value is undefined; if it comes from an environment variable, that may not be set"],
        [() => make({ ...good, value: any(12345678) }), "secret key: value must be a string"],
        [() => make({ ...good, value: "short" }), "secret key: value must be a string of 8"],
        [() => make({ ...good, hosts: [] }), "secret key: hosts must name at least one"],
        [() => make({ ...good, hosts: any("x.test") }), "secret key: hosts must name at least one"],
        [() => make(any({ ...good, host: "x.test" })), 'secret: there is no option "host"; known are name, value, hosts'],
      ]); // prettier-ignore
      expect(make(good).reveal()).toBe("12345678");
    }
  });

  test("http", () => {
    const allow = ["https://x.test/*"];
    refused([
      [() => http(any(undefined)), "http: takes an object with allow, open, inject"],
      [() => http(any(allow)), "http: takes an object with allow, open, inject"],
      [() => http(any({ allow: allow[0] })), "http: allow must be a list of at least one rule"],
      [() => http(any({ allow: [null] })), 'http: allow: rule "null" has no url'],
      [() => http(any({ allow: [{ url: allow[0], method: ["GET"] }] })), 'http: allow: rule "https://x.test/*": there is no option "method"; known are url, methods'],
      [() => http(any({ allow, timeout: 5 })), 'http: there is no option "timeout"'],
      [() => http(any({ allow, timeoutMs: "5" })), "http: timeoutMs must be a whole number"],
      [() => http(any({ allow, lookup: "8.8.8.8" })), "http: lookup must be a function"],
      [() => http(any({ allow, inject: [null] })), "http: inject: takes an object with host, header, value"],
    ]); // prettier-ignore
  });
});
