/**
 * Events, aborting, headers, bodies and fetch in the guest's world, with a request function made of guest code; and what
 * becomes of the web part when a script patches what it stands on.
 */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { guest, guestAtOnce, useRealm } from "../realm.js";

useRealm();

describe("EventTarget", () => {
  test("listeners are called in order, those that capture first, each once however often it was added", () => {
    expect(
      guest(`const t = new EventTarget(), seen = []; const f = (e) => seen.push("f" + e.eventPhase);
        t.addEventListener("x", f); t.addEventListener("x", f); t.addEventListener("x", () => seen.push("capture"), true);
        t.addEventListener("x", { handleEvent(e) { seen.push(this.name + (e.target === t) + (e.currentTarget === t)) }, name: "object" });
        t.addEventListener("x", function () { seen.push(this === t) }, { once: true }); t.addEventListener("y", f); t.addEventListener("x", null);
        const event = new Event("x"); const answer = t.dispatchEvent(event); t.dispatchEvent(new Event("x"));
        return [seen, answer, event.target === t, event.currentTarget, event.eventPhase, event.isTrusted]`),
    ).toEqual([
      ["capture", "f2", "objecttruetrue", true, "capture", "f2", "objecttruetrue"],
      true,
      true,
      null,
      0,
      false,
    ]);
  });

  test("removal takes the capture flag into account, and holds during a dispatch; what is added then waits", () => {
    expect(
      guest(`const t = new EventTarget(), seen = []; const a = () => { seen.push("a"); t.removeEventListener("x", b); t.addEventListener("x", c) }, b = () => seen.push("b"), c = () => seen.push("c");
        t.addEventListener("x", a); t.addEventListener("x", b); t.removeEventListener("x", a, true); t.dispatchEvent(new Event("x"));
        t.removeEventListener("x", a); t.dispatchEvent(new Event("x")); return seen`),
    ).toEqual(["a", "c"]);
  });

  test("preventDefault works where it may, stopImmediatePropagation stops the rest", () => {
    expect(
      guest(`const t = new EventTarget(); let after = 0;
        t.addEventListener("x", (e) => e.preventDefault(), { passive: true }); const passive = t.dispatchEvent(new Event("x", { cancelable: true }));
        t.addEventListener("x", (e) => { e.preventDefault(); e.stopImmediatePropagation() }); t.addEventListener("x", () => after++);
        const fixed = t.dispatchEvent(new Event("x")); const event = new Event("x", { cancelable: true }); const cancelled = t.dispatchEvent(event);
        return [passive, fixed, cancelled, event.defaultPrevented, event.returnValue, after]`),
    ).toEqual([true, true, false, true, false, 0]);
  });

  test("what a listener throws is reported as uncaught, and the next is called", () => {
    expect(
      guest(`const t = new EventTarget(), seen = [];
        t.addEventListener("x", () => { throw new RangeError("mine") }); t.addEventListener("x", {}); t.addEventListener("x", () => seen.push("next"));
        const answer = t.dispatchEvent(new Event("x"));
        return [answer, seen, caught(() => pass(0))[0]]`),
    ).toEqual([true, ["next"], "RangeError"]);
  });

  test("arguments are checked, an event that is under way is not dispatched again, a subclass is a target", () => {
    expect(
      guest(`class Mine extends EventTarget {} const t = new Mine(); let again;
        t.addEventListener("x", (e) => { again = caught(() => t.dispatchEvent(e)) }); t.dispatchEvent(new CustomEvent("x", { detail: 1 }));
        return [again, caught(() => t.addEventListener("x"))[0], caught(() => t.addEventListener("x", 1))[0], caught(() => t.dispatchEvent({}))[0], caught(() => new Event())[0],
          new CustomEvent("x", { detail: { a: 1 } }).detail, new CustomEvent("x").detail, new Event("x").timeStamp, Event.AT_TARGET, new Event("x").NONE, caught(() => t.addEventListener("x", () => {}, { signal: {} }))[0]]`),
    ).toEqual([
      ["InvalidStateError", true, 11],
      "TypeError",
      "TypeError",
      "TypeError",
      "TypeError",
      { a: 1 },
      null,
      1000,
      2,
      0,
      "TypeError",
    ]);
  });

  test("a listener with a signal ends with it", () => {
    expect(
      guest(`const t = new EventTarget(), c = new AbortController(); let n = 0; t.addEventListener("x", () => n++, { signal: c.signal });
        t.dispatchEvent(new Event("x")); c.abort(); t.dispatchEvent(new Event("x")); t.addEventListener("x", () => n++, { signal: c.signal }); t.dispatchEvent(new Event("x")); return n`),
    ).toBe(1);
  });
});

describe("AbortController and AbortSignal", () => {
  test("an abort happens once, with its reason, and tells its listeners", () => {
    expect(
      guest(`const c = new AbortController(), { signal } = c, seen = []; signal.onabort = function (e) { seen.push("on" + (this === signal) + e.isTrusted) }; signal.addEventListener("abort", (e) => seen.push(e.type));
        const before = [signal.aborted, signal.reason === undefined, signal.throwIfAborted() === undefined]; c.abort("why"); c.abort("again");
        let thrown; try { signal.throwIfAborted() } catch (error) { thrown = error }
        return [before, seen, signal.aborted, signal.reason, thrown, c.signal === signal]`),
    ).toEqual([[false, true, true], ["ontruetrue", "abort"], true, "why", "why", true]);
  });

  test("without a reason it is an AbortError", () => {
    expect(
      guest(`const c = new AbortController(); c.abort(); const s = AbortSignal.abort();
        return [c.signal.reason, s.reason].map((e) => [e.name, e.code, e instanceof DOMException, e instanceof Error, typeof e.stack]).concat([[AbortSignal.abort(0).reason, s.aborted]])`),
    ).toEqual([
      ["AbortError", 20, true, true, "string"],
      ["AbortError", 20, true, true, "string"],
      [0, true],
    ]);
  });

  test("timeout aborts when its time is over, with a TimeoutError", () => {
    expect(
      guest(`const s = AbortSignal.timeout(50); let fired = 0; s.addEventListener("abort", () => fired++); pass(49); const early = s.aborted; pass(1);
        return [early, s.aborted, s.reason.name, s.reason.code, fired, caught(() => AbortSignal.timeout(-1))[0], caught(() => AbortSignal.timeout(NaN))[0], caught(() => AbortSignal.timeout())[0]]`),
    ).toEqual([false, true, "TimeoutError", 23, 1, "TypeError", "TypeError", "TypeError"]);
  });

  test("any follows the first that aborts, through others of its kind, and all are aborted before a listener looks", () => {
    expect(
      guest(`const a = new AbortController(), b = new AbortController(); const one = AbortSignal.any([a.signal, b.signal]), two = AbortSignal.any([one]), seen = [];
        a.signal.addEventListener("abort", () => seen.push("a" + two.aborted)); two.addEventListener("abort", () => seen.push("two")); one.addEventListener("abort", () => seen.push("one"));
        a.abort("first"); b.abort("second");
        const done = AbortSignal.any([b.signal, a.signal]);
        return [seen, one.reason, two.reason, done.aborted, done.reason, AbortSignal.any([]).aborted, caught(() => AbortSignal.any([{}]))[0], caught(() => AbortSignal.any())[0]]`),
    ).toEqual([["atrue", "one", "two"], "first", "first", true, "second", false, "TypeError", "TypeError"]);
  });
});

describe("DOMException", () => {
  test("it is an Error with a name, a legacy code and the constants", () => {
    expect(
      guest(`const e = new DOMException("m", "NotFoundError"), plain = new DOMException(), own = new DOMException("m", { name: "Mine", cause: 1 });
        return [String(e), e.code, plain.name, plain.message, plain.code, own.name, own.cause, own.code, DOMException.ABORT_ERR, e.DATA_CLONE_ERR, DOMException.URL_MISMATCH_ERR, DOMException.INUSE_ATTRIBUTE_ERR, DOMException.QUOTA_EXCEEDED_ERR,
          e instanceof Error, Object.keys(e), Object.prototype.toString.call(e), typeof e.stack]`),
    ).toEqual([
      "NotFoundError: m",
      8,
      "Error",
      "",
      0,
      "Mine",
      1,
      0,
      20,
      25,
      21,
      10,
      22,
      true,
      [],
      "[object DOMException]",
      "string",
    ]);
  });
});

describe("Headers", () => {
  test("names have no case, values are trimmed and combined, iteration is sorted", () => {
    expect(
      guest(`const h = new Headers({ "X-B": " 1 ", a: 2 }); h.append("x-b", "3"); h.append("Set-Cookie", "p=1"); h.append("set-cookie", "q=2");
        const list = [...h]; const get = [h.get("X-b"), h.get("none"), h.has("A"), h.get("set-cookie")]; h.set("x-B", "9"); h.delete("A");
        const each = []; h.forEach((value, name) => each.push(name + "=" + value));
        return [list, get, h.getSetCookie(), each, [...h.keys()], [...h.values()], [...new Headers(h)].length, [...new Headers([["a", "1"], ["a", "2"]])]]`),
    ).toEqual([
      [["a", "2"], ["set-cookie", "p=1"], ["set-cookie", "q=2"], ["x-b", "1, 3"]],
      ["1, 3", null, true, "p=1, q=2"],
      ["p=1", "q=2"],
      ["set-cookie=p=1", "set-cookie=q=2", "x-b=9"],
      ["set-cookie", "set-cookie", "x-b"],
      ["p=1", "q=2", "9"],
      3,
      [["a", "1, 2"]],
    ]); // prettier-ignore
  });

  test("set keeps the first place of a name, and a change during iteration is seen", () => {
    expect(
      guest(
        `const h = new Headers([["b", "1"], ["c", "2"]]), seen = []; for (const [name] of h) { seen.push(name); if (name === "b") h.append("d", "4") } return seen`,
      ),
    ).toEqual(["b", "c", "d"]);
  });

  test.each(["a\\nb", "a\\rb", "a\\0b", "\\u0100", "a\\r\\nx: y"])(
    "the value %j is refused, and not told",
    (value) => {
      const [name, message] = guest(
        `try { new Headers({ "x-key": "hidden${value}" }) } catch (error) { return [error.name, error.message] }`,
      ) as string[];
      expect(name).toBe("TypeError");
      expect(message).toContain("x-key");
      expect(message).not.toContain("hidden");
    },
  );

  test.each(["", "a b", "a:b", "é", "a\\n", "(x)"])("the name %j is refused", (name) => {
    expect(
      guest(
        `return ["append", "set", "get", "has", "delete"].map((method) => caught(() => new Headers()[method]("${name}", "v"))[0])`,
      ),
    ).toEqual(Array.from({ length: 5 }, () => "TypeError"));
  });

  test("a value may be an object that has a text: a secret's handle is its placeholder", () => {
    expect(
      guest(`return new Headers({ authorization: { toString: () => "secret-0123" } }).get("authorization")`),
    ).toBe("secret-0123");
  });

  test("whatever is appended is what Node's Headers give", () => {
    const pair = fc.tuple(
      fc.constantFrom("a", "B", "b", "Set-Cookie", "x-1"),
      fc.stringMatching(/^[ -~\t]{0,8}$/),
    );
    fc.assert(
      fc.property(fc.array(pair, { maxLength: 8 }), (pairs) => {
        expect(guest("return [...new Headers(args[0])]", pairs)).toEqual([...new Headers(pairs)]);
      }),
      { numRuns: 100 },
    );
  });

  test("neither null nor a text nor odd pairs make headers", () => {
    expect(
      guest(
        `return [null, "a", 1, [["a"]], [["a", "b", "c"]], ["ab"]].map((init) => caught(() => new Headers(init))[0])`,
      ),
    ).toEqual(Array.from({ length: 6 }, () => "TypeError"));
  });
});

describe("Response and Request", () => {
  test.each<[init: string, text: string, type: string | null]>([
    ["'é'", "é", "text/plain;charset=UTF-8"],
    ["new Uint8Array([65, 66]).subarray(1)", "B", null],
    ["new Uint8Array([65]).buffer", "A", null],
    ["new DataView(new Uint8Array([65, 66]).buffer, 1)", "B", null],
    ["new URLSearchParams({ a: 'x y' })", "a=x+y", "application/x-www-form-urlencoded;charset=UTF-8"],
    ["'\\ufeffx'", "x", "text/plain;charset=UTF-8"],
    ["12", "12", "text/plain;charset=UTF-8"],
    ["null", "", null],
    ["undefined", "", null],
  ])("a body of %s is read as %j with the type %j", (init, text, type) => {
    expect(
      guest(
        `const r = new Response(${init}); const type = r.headers.get("content-type"); return [await r.text(), type]`,
      ),
    ).toEqual([text, type]);
  });

  test("a body is read once, by any reader; null can be read again", () => {
    expect(
      guest(`const r = new Response('{"a":[1]}'); const before = r.bodyUsed; const json = await r.json(); const again = await r.text().catch((e) => e.name);
        const buffer = await new Response("ab").arrayBuffer(), bytes = await new Response("ab").bytes(); const empty = new Response(); await empty.text();
        return [before, json, r.bodyUsed, again, buffer instanceof ArrayBuffer, buffer.byteLength, [...bytes], empty.bodyUsed, await empty.text(), empty.body, await new Response("{").json().catch((e) => e.name)]`),
    ).toEqual([false, { a: [1] }, true, "TypeError", true, 2, [97, 98], false, "", null, "SyntaxError"]);
  });

  test("a body can be iterated once, and handed on", () => {
    expect(
      guest(`const r = new Response("abc"), parts = []; for await (const part of r.body) parts.push(...part);
        const moved = new Response("xyz"); const copy = new Response(moved.body);
        return [parts, r.bodyUsed, r.body === r.body, await r.text().catch((e) => e.name), await copy.text(), moved.bodyUsed]`),
    ).toEqual([[97, 98, 99], true, true, "TypeError", "xyz", true]);
  });

  test("a clone has bytes of its own, and what has been read cannot be cloned", () => {
    expect(
      guest(`const bytes = new Uint8Array([1, 2]); const r = new Response(bytes, { status: 201, statusText: "S", headers: { a: "1" } }); bytes[0] = 9; const c = r.clone(); c.headers.set("a", "2");
        const first = await r.bytes(); first[1] = 7;
        return [[...first], [...await c.bytes()], c.status, c.statusText, r.headers.get("a"), caught(() => r.clone())[0]]`),
    ).toEqual([[1, 7], [1, 2], 201, "S", "1", "TypeError"]);
  });

  test("the static makers", () => {
    expect(
      guest(`const j = Response.json({ a: 1 }, { status: 202, headers: { "x": "y" } }), e = Response.error(), r = Response.redirect("http://h/a b", 307);
        return [j.headers.get("content-type"), j.status, j.headers.get("x"), await j.text(), e.type, e.status, e.ok, caught(() => e.headers.set("a", "b"))[0], r.status, r.headers.get("location"),
          caught(() => r.headers.delete("location"))[0], caught(() => Response.redirect("http://h", 200))[0], caught(() => Response.redirect("x"))[0], caught(() => Response.json(undefined))[0], caught(() => Response.json(1n))[0]]`),
    ).toEqual([
      "application/json",
      202,
      "y",
      '{"a":1}',
      "error",
      0,
      false,
      "TypeError",
      307,
      "http://h/a%20b",
      "TypeError",
      "RangeError",
      "TypeError",
      "TypeError",
      "TypeError",
    ]);
  });

  test.each(["null, { status: 199 }", "null, { status: 600 }", "null, { status: 'x' }"])(
    "new Response(%s) is a RangeError",
    (args) => {
      expect(guest(`return caught(() => new Response(${args}))[0]`)).toBe("RangeError");
    },
  );

  test.each([
    "'x', { status: 204 }",
    "null, { statusText: 'a\\nb' }",
    "null, { headers: { 'a b': '' } }",
    "null, 1",
  ])("new Response(%s) is a TypeError", (args) => {
    expect(guest(`return caught(() => new Response(${args}))[0]`)).toBe("TypeError");
  });

  test("a request has what it was made with, and its like is made of it", () => {
    expect(
      guest(`const r = new Request("http://h/a#f", { method: "post", body: "x", headers: { a: "1" }, redirect: "manual" }); const c = r.clone(); const next = new Request(r, { method: "PATCH" });
        return [r.url, r.method, r.redirect, r.headers.get("a"), r.headers.get("content-type"), r.signal.aborted, r.bodyUsed, next.method, next.url, next.headers.get("a"), await next.text(), await c.text(), new Request("http://h", { method: "patch" }).method]`),
    ).toEqual([
      "http://h/a#f",
      "POST",
      "manual",
      "1",
      "text/plain;charset=UTF-8",
      false,
      true,
      "PATCH",
      "http://h/a#f",
      "1",
      "x",
      "x",
      "patch",
    ]);
  });

  test.each([
    "'/x'",
    "'http://u:p@h'",
    "'http://h', { method: 'CONNECT' }",
    "'http://h', { method: 'TRACE' }",
    "'http://h', { method: 'a b' }",
    "'http://h', { body: 'x' }",
    "'http://h', { method: 'HEAD', body: 'x' }",
    "'http://h', { redirect: 'x' }",
    "'http://h', { signal: {} }",
    "",
  ])("new Request(%s) is a TypeError", (args) => {
    expect(guest(`return caught(() => new Request(${args}))[0]`)).toBe("TypeError");
  });
});

/** A request function that keeps what it was asked, and answers with what is given. */
const ANSWERING = `const asked = []; const answer = { url: "http://h/end", status: 200, statusText: "OK", headers: [["content-type", "text/plain"], ["set-cookie", "a=1"], ["set-cookie", "b=2"]], body: new TextEncoder().encode("hello"), redirected: false };
  const answering = (more) => bindFetch(async (request) => { asked.push(request); return { ...answer, ...more } });`;

describe("fetch", () => {
  test.each(["", "bindFetch(async () => ({}));bindFetch(undefined);"])(
    "without the grant it is there, and says which one it needs (%j)",
    (before) => {
      expect(
        guest(
          `${before} return [typeof fetch, fetch.length, await fetch("http://h").catch((e) => [e.name, e.message])]`,
        ),
      ).toEqual([
        "function",
        1,
        [
          "TypeError",
          "fetch needs the http capability, which this run was not granted (grants: { http: http({ allow: [...] }) }, or --grant 'http=https://example.com/*')",
        ],
      ]);
    },
  );

  test("what is asked for and what comes back", () => {
    expect(
      guest(`${ANSWERING} answering({ redirected: true });
        const r = await fetch("HTTP://H:80/a b?q#f", { method: "put", headers: [["X-A", "1"], ["x-a", { toString: () => "secret-1" }]], body: "é", redirect: "error" });
        const [q] = asked;
        return [{ ...q, body: [...q.body], headers: q.headers }, q.body instanceof Uint8Array, [r.url, r.status, r.statusText, r.ok, r.redirected, r.type, r.headers.get("content-type"), r.headers.getSetCookie(), await r.text()], caught(() => r.headers.set("a", "b"))[0]]`),
    ).toEqual([
      { url: "http://h/a%20b?q", method: "PUT", headers: [["x-a", "1"], ["x-a", "secret-1"], ["content-type", "text/plain;charset=UTF-8"]], body: [0xc3, 0xa9], redirect: "error" },
      true,
      ["http://h/end", 200, "OK", true, true, "basic", "text/plain", ["a=1", "b=2"], "hello"],
      "TypeError",
    ]); // prettier-ignore
  });

  test("a plain request has no body and follows; a Request or URL is taken too, and its body is used up", () => {
    expect(
      guest(`${ANSWERING} answering(); await fetch("http://h"); await fetch(new URL("http://u/")); const request = new Request("http://r", { method: "POST", body: "b" }); await fetch(request);
        return [asked.map(({ url, method, body, redirect, headers }) => [url, method, body && [...body], redirect, headers.length]), request.bodyUsed, await fetch(request).catch((e) => e.name)]`),
    ).toEqual([
      [["http://h/", "GET", null, "follow", 0], ["http://u/", "GET", null, "follow", 0], ["http://r/", "POST", [98], "follow", 1]],
      true,
      "TypeError",
    ]); // prettier-ignore
  });

  test.each<[more: string, options: string, expected: unknown[]]>([
    ["{ status: 404, statusText: 'Not Found' }", "{}", [404, false, true, "hello"]],
    ["{ status: 302 }", "{ redirect: 'manual' }", [302, false, true, "hello"]],
    ["{ status: 204, body: new Uint8Array(0) }", "{}", [204, true, false, ""]],
    ["{ status: 304 }", "{}", [304, false, false, ""]],
    ["{}", "{ method: 'HEAD' }", [200, true, false, ""]],
  ])("an answer of %s to %s", (more, options, expected) => {
    expect(
      guest(
        `${ANSWERING} answering(${more}); const r = await fetch("http://h", ${options}); return [r.status, r.ok, r.body !== null, await r.text()]`,
      ),
    ).toEqual(expected);
  });

  test("a failure is a TypeError with the original as its cause, however it fails", () => {
    expect(
      guest(`const own = Object.assign(new Error("host not allowed"), { code: "denied" }); const seen = [];
        for (const request of [async () => { throw own }, () => { throw own }, () => Promise.reject(own), async () => undefined, async () => ({ headers: [["a b", ""]], body: new Uint8Array(0), status: 200 })]) {
          bindFetch(request); seen.push(await fetch("http://h").then(() => "fine", (e) => [e.name, e.message.slice(0, 30), e.cause === own]));
        }
        return seen`),
    ).toEqual([
      ["TypeError", "fetch failed: host not allowed", true],
      ["TypeError", "fetch failed: host not allowed", true],
      ["TypeError", "fetch failed: host not allowed", true],
      ["TypeError", expect.stringMatching(/^fetch failed: /), false],
      ["TypeError", expect.stringMatching(/^fetch failed: /), false],
    ]);
  });

  test("what is wrong with the call rejects, and asks for nothing", () => {
    expect(
      guest(
        `${ANSWERING} answering(); const seen = []; for (const args of [[], ["/x"], ["http://u:p@h"], ["http://h", { body: "x" }], ["http://h", { headers: { "a": "\\n" + "b\\nc" } }]]) seen.push(await fetch(...args).catch((e) => e.name)); return [seen, asked.length]`,
      ),
    ).toEqual([Array.from({ length: 5 }, () => "TypeError"), 0]);
  });

  test("an abort rejects at once with its reason, and the late answer is dropped", () => {
    expect(
      guest(`let late; bindFetch(() => new Promise((resolve) => { late = resolve })); const c = new AbortController(); const seen = [];
        const promise = fetch("http://h", { signal: c.signal }).then(() => seen.push("answer"), (e) => seen.push(e.name, e instanceof DOMException, e === c.signal.reason));
        c.abort(); await promise; late({ status: 200, headers: [], body: new Uint8Array(0) }); await null; await null;
        return [seen, await fetch("http://h", { signal: AbortSignal.abort("why") }).catch((e) => e), await fetch(new Request("http://h", { signal: c.signal })).catch((e) => e.name)]`),
    ).toEqual([["AbortError", true, true], "why", "AbortError"]);
  });

  test("a timeout is told as one, and an answer before it stays", () => {
    expect(
      guest(`let late; bindFetch(() => new Promise((resolve) => { late = resolve })); const answer = { status: 200, headers: [], body: new Uint8Array([65]) };
        const slow = fetch("http://h", { signal: AbortSignal.timeout(10) }).catch((e) => e.name); pass(10);
        const quick = fetch("http://h", { signal: AbortSignal.timeout(10) }); late(answer); const r = await quick; pass(10);
        return [await slow, await r.text()]`),
    ).toEqual(["TimeoutError", "A"]);
  });
});

describe("a script that patches what all of this stands on", () => {
  const SPOILS = {
    "Array.prototype":
      "for (const name of ['push', 'map', 'filter', 'flatMap', 'slice', 'join']) Array.prototype[name] = () => { throw new Error('spoiled') };",
    "the array iterator": "Object.getPrototypeOf([][Symbol.iterator]()).next = () => ({ done: true });",
    "an index setter":
      "Object.defineProperty(Array.prototype, 0, { set() { throw new Error('spoiled') }, get: () => 'spoiled', configurable: true });",
    "Object.prototype":
      "for (const name of ['get', 'set', 'value', 'enumerable', 'writable', 'configurable', 'then', 'cause']) Object.defineProperty(Object.prototype, name, { __proto__: null, value: () => 'spoiled', configurable: true, writable: true });",
    "Promise.prototype":
      "Promise.prototype.then = Promise.prototype.catch = () => { throw new Error('spoiled') }; Promise.resolve = () => 1;",
    "String and RegExp":
      "String.prototype.replace = String.prototype.split = () => 'spoiled'; RegExp.prototype.exec = () => null; RegExp.prototype.test = () => true;",
    "Map, Set and species":
      "Map.prototype.get = Map.prototype.has = Set.prototype.has = () => { throw new Error('spoiled') }; Object.defineProperty(Object.getPrototypeOf(Uint8Array), Symbol.species, { get() { throw new Error('spoiled') } });",
    "the globals":
      "for (const name of ['URL', 'Headers', 'Request', 'Response', 'AbortSignal', 'DOMException', 'Promise', 'Map', 'Set', 'Object', 'Reflect', 'String', 'Number', 'Error', 'TypeError', 'Uint8Array', 'encodeURIComponent']) globalThis[name] = class {};",
  };
  /** Uses of each part, made before the spoiling, and how they end after it. */
  const USE = `const { URL: U, Headers: H, Uint8Array: B, URLSearchParams: P } = globalThis;
    const uses = [() => new U("http://h/?a=1").href, () => structuredClone({ a: [1] }), () => new TextDecoder().decode(new B(2)), () => atob("QQ=="), () => new H({ a: "1" }).get("a"),
      () => { const c = new AbortController(); c.abort(1); return c.signal.reason }, () => new EventTarget().dispatchEvent(new Event("x")), () => new P("a=1").toString()];
    const run = () => { const ends = []; for (let i = 0; i < uses.length; i++) { let end; try { end = uses[i]() } catch { end = "threw" } ends[i + 1] = end } return ends };`;
  const FINE = [null, "http://h/?a=1", { a: [1] }, "\0\0", "A", "1", 1, true, "a=1"];

  test.each(Object.entries(SPOILS))(
    "%s: every use ends, in an answer or an error of the script's own",
    (_name, spoil) => {
      expect(guestAtOnce(`${USE} return run()`)).toEqual(FINE);
      expect(guestAtOnce(`${USE} ${spoil} return run().length`)).toBe(FINE.length);
    },
  );

  test.each(["Object.prototype", "Promise.prototype", "the globals"] as const)(
    "%s: nothing here stands on it",
    (name) => {
      expect(guestAtOnce(`${USE} ${SPOILS[name]} return run()`)).toEqual(FINE);
    },
  );

  test.each(["Object.prototype", "Promise.prototype", "the globals"] as const)(
    "%s: a fetch asks for what the script gave",
    (name) => {
      expect(
      guestAtOnce(`let asked; const { Promise: P } = globalThis; bindFetch((request) => { asked = request; return new P(() => {}) });
        const options = { method: "POST", body: "b", headers: { a: "1" }, signal: undefined }; ${SPOILS[name]}
        fetch("http://h/x", options);
        return [asked.url, asked.method, asked.redirect, asked.body.length, asked.headers]`),
    ).toEqual(["http://h/x", "POST", "follow", 1, [["a", "1"], ["content-type", "text/plain;charset=UTF-8"]]]); // prettier-ignore
    },
  );
});
