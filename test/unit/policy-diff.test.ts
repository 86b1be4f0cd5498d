/** Soundness is the property: whatever B allows and A does not is listed. Narrowings that are listed too are no fault. */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parseRules, permits } from "#hostapi/http-rules";
import { policyOf } from "#server/policy";
import { policyDiff } from "#server/policy-diff";

const policy = (value: unknown) => policyOf(value, "/srv");
const fields = (a: unknown, b: unknown): string[] =>
  policyDiff(policy(a), policy(b)).map(({ field }) => field);
const ofGrants = (a: unknown, b: unknown): string[] => fields({ grants: a }, { grants: b });

const http = (...allow: unknown[]) => ({ http: { allow } });
const kvWith = (fields: object) => ({ kv: fields });

/** Each widens in one place, and is its own way back. */
const STEPS: [what: string, narrow: object, wide: object, field: string][] = [
  ["a limit", { limits: { wallMs: 500 } }, { limits: { wallMs: 600 } }, "limits.wallMs"],
  ["a limit over the default", {}, { limits: { memoryMb: 65 } }, "limits.memoryMb"],
  ["a limit that is left out", { limits: { hostCalls: 5 } }, {}, "limits.hostCalls"],
  ["a grant", {}, { grants: { kv: true } }, "grants.kv"],
  ["a clock that runs", {}, { grants: { clock: true } }, "grants.clock"],
  ["a finer clock", { grants: { clock: { mode: "coarse", stepMs: 100 } } }, { grants: { clock: { mode: "coarse", stepMs: 50 } } }, "grants.clock"],
  ["the default clock after a virtual one", { grants: { clock: { mode: "virtual" } } }, {}, "grants.clock"],
  ["this host's date", { grants: { clock: { startMs: 0 } } }, { grants: { clock: {} } }, "grants.clock"],
  ["random numbers that nobody can foresee", { grants: { random: { seed: "s" } } }, {}, "grants.random"],
  ["more of the console", { grants: { log: { least: "error" } } }, { grants: { log: { least: "warn" } } }, "grants.log"],
  ["the timers", { grants: { timers: { most: 0 } } }, {}, "grants.timers"],
  ["writing after reading", { grants: { files: { root: "d" } } }, { grants: { files: { root: "d", mode: "rw" } } }, "grants.files.mode"],
  ["a larger quota", { grants: { files: { root: "d", mode: "rw", quotaBytes: 1 } } }, { grants: { files: { root: "d", mode: "rw" } } }, "grants.files.quotaBytes"],
  ["more keys", { grants: kvWith({ maxKeys: 5 }) }, { grants: kvWith({ maxKeys: 6 }) }, "grants.kv.maxKeys"],
  ["a shorter prefix", { grants: kvWith({ prefix: "ab" }) }, { grants: kvWith({ prefix: "a" }) }, "grants.kv.prefix"],
  ["no prefix", { grants: kvWith({ prefix: "a" }) }, { grants: kvWith({}) }, "grants.kv.prefix"],
  ["writing methods", { grants: kvWith({ readOnly: true }) }, { grants: kvWith({}) }, "grants.kv.readOnly"],
  ["a method more", { grants: kvWith({ only: ["get"] }) }, { grants: kvWith({ only: ["get", "set"] }) }, "grants.kv.only"],
  ["every method", { grants: kvWith({ only: ["get"] }) }, { grants: kvWith({}) }, "grants.kv.only"],
  ["calls", { grants: kvWith({ budget: { calls: 5 } }) }, { grants: kvWith({ budget: { calls: 6 } }) }, "grants.kv.budget.calls"],
  ["bytes, by another bound", { grants: kvWith({ budget: { calls: 5, bytes: 5 } }) }, { grants: kvWith({ budget: { calls: 5 } }) }, "grants.kv.budget.bytes"],
  ["a larger burst", { grants: kvWith({ rate: { calls: 1, perMs: 10 } }) }, { grants: kvWith({ rate: { calls: 2, perMs: 20 } }) }, "grants.kv.rate"],
  ["a faster refill", { grants: kvWith({ rate: { calls: 2, perMs: 20 } }) }, { grants: kvWith({ rate: { calls: 2, perMs: 19 } }) }, "grants.kv.rate"],
  ["a later end", { grants: kvWith({ expiresMs: 5 }) }, { grants: kvWith({}) }, "grants.kv.expiresMs"],
  ["a path above", { grants: http("https://a.example/v1/*") }, { grants: http("https://a.example/*") }, "grants.http.allow[0]"],
  ["what begins so", { grants: http("https://a.example/v1/") }, { grants: http("https://a.example/v1/*") }, "grants.http.allow[0]"],
  ["a rule more", { grants: http("https://a.example/*") }, { grants: http("https://a.example/*", "https://b.example/*") }, "grants.http.allow[1]"],
  ["every name below", { grants: http("https://x.a.example/*") }, { grants: http("https://*.a.example/*") }, "grants.http.allow[0]"],
  ["every method of a rule", { grants: http({ url: "https://a.example/*", methods: ["GET"] }) }, { grants: http("https://a.example/*") }, "grants.http.allow[0]"],
  ["a method of a rule", { grants: http({ url: "https://a.example/*", methods: ["GET"] }) }, { grants: http({ url: "https://a.example/*", methods: ["GET", "PUT"] }) }, "grants.http.allow[0]"],
  ["a range", { grants: http("https://a.example/*") }, { grants: { http: { allow: ["https://a.example/*"], open: ["10.0.0.0/8"] } } }, "grants.http.open[0]"],
  ["a wider range", { grants: { http: { allow: ["https://a.example/*"], open: ["10.1.0.0/16"] } } }, { grants: { http: { allow: ["https://a.example/*"], open: ["10.0.0.0/8"] } } }, "grants.http.open[0]"],
  ["redirects", { grants: { http: { allow: ["https://a.example/*"], maxRedirects: 0 } } }, { grants: http("https://a.example/*") }, "grants.http.maxRedirects"],
  ["an event", { grants: { events: { names: ["a"] } } }, { grants: { events: true } }, "grants.events.names"],
  ["patience", { limits: { wallMs: 50 }, grants: { approve: { timeoutMs: 5 } } }, { limits: { wallMs: 50 }, grants: { approve: true } }, "grants.approve.timeoutMs"],
]; // prettier-ignore

describe("one step", () => {
  test.each(STEPS)("%s is new, and nothing else; the way back is not", (_what, narrow, wide, field) => {
    expect(fields(narrow, wide)).toEqual([field]);
    expect(fields(wide, narrow)).toEqual([]);
  });
});

describe("what lies beside", () => {
  test.each<[string, object, object, string[]]>([
    ["another store", kvWith({}), kvWith({ store: { sqlite: "a.db" } }), ["grants.kv"]],
    ["another namespace", kvWith({ namespace: "a" }), kvWith({ namespace: "b" }), ["grants.kv"]],
    ["another directory", { files: { root: "a" } }, { files: { root: "b" } }, ["grants.files.root"]],
    ["a directory that begins alike", { files: { root: "a" } }, { files: { root: "ab" } }, ["grants.files.root"]],
    ["the same directory, written otherwise", { files: { root: "a" } }, { files: { root: "/srv/b/../a/" } }, []],
    ["the same authority under a new name", { a: { type: "kv" } }, { b: { type: "kv", namespace: "a" } }, ["grants.b"]],
    ["another scheme", http("https://a.example/*"), http("http://a.example/*"), ["grants.http.allow[0]"]],
    ["another port", http("https://a.example/*"), http("https://a.example:8443/*"), ["grants.http.allow[0]"]],
    ["the scheme's port, written out", http("https://a.example/*"), http("https://a.example:443/*"), []],
    ["the name above a wildcard", http("https://*.a.example/*"), http("https://a.example/*"), ["grants.http.allow[0]"]],
    ["a host that ends alike", http("https://*.a.example/*"), http("https://ba.example/*"), ["grants.http.allow[0]"]],
    ["an exact path that its beginning refuses as ambiguous", http("https://a.example/a/*"), http("https://a.example/a/..%2fb"), ["grants.http.allow[0]"]],
    ["the methods of one rule, of two", http({ url: "https://a.example/*", methods: ["GET"] }, { url: "https://a.example/*", methods: ["PUT"] }), http({ url: "https://a.example/b", methods: ["GET", "PUT"] }), []],
    ["an IPv4 range in place of an IPv6 one", { http: { allow: ["https://a.example/*"], open: ["::/0"] } }, { http: { allow: ["https://a.example/*"], open: ["10.0.0.0/8"] } }, ["grants.http.open[0]"]],
  ])("%s", (_what, a, b, expected) => {
    expect(ofGrants(a, b)).toEqual(expected);
  }); // prettier-ignore

  test("a secret: another source, another host, another header; not another name for the same", () => {
    const withToken = (name: string, token: object, inject: object) => ({
      grants: {
        http: { allow: ["https://*.example/*"], inject: [{ host: "a.example", header: "x-key", secret: name, ...inject }] },
        [name]: { type: "secret", env: "T", hosts: ["a.example"], ...token },
      },
    });
    const base = withToken("t", {}, {});
    expect(fields(base, base)).toEqual([]);
    expect(fields(base, withToken("t", { env: "U" }, {}))).toEqual(["grants.http.inject[0]", "grants.t"]);
    expect(fields(base, withToken("t", { hosts: ["a.example", "b.example"] }, {}))).toEqual(["grants.t.hosts[1]"]);
    expect(fields(base, withToken("t", {}, { header: "x-other" }))).toEqual(["grants.http.inject[0]", "grants.http.inject[0]"]);
    expect(fields(base, withToken("u", {}, {}))).toEqual(["grants.u"]);
    expect(fields(withToken("t", { hosts: ["*.example"] }, {}), base)).toEqual([]);
  }); // prettier-ignore

  test("a header that the host puts in is new; so is one that it puts in no more, for then the script may", () => {
    const inject = [{ host: "a.example", header: "Authorization", secret: { env: "T" } }];
    const [plain, injected] = [
      http("https://a.example/*"),
      { http: { allow: ["https://a.example/*"], inject } },
    ];
    expect(ofGrants(plain, injected)).toEqual(["grants.http.inject[0]"]);
    expect(ofGrants(injected, plain)).toEqual(["grants.http.inject[0]"]);
  });

  test("a directory inside, if links are resolved; not if a link leads out of it", () => {
    const [outer, inner] = [{ grants: { files: { root: "a" } } }, { grants: { files: { root: "a/b" } } }];
    expect(policyDiff(policy(outer), policy(inner), (path) => path)).toEqual([]);
    expect(policyDiff(policy(inner), policy(outer), (path) => path)).toHaveLength(1);
    expect(
      policyDiff(policy(outer), policy(inner), (path) => (path === "/srv/a/b" ? "/etc" : path)),
    ).toHaveLength(1);
    expect(policyDiff(policy(outer), policy(inner))).toHaveLength(1);
  });

  test("a clock is compared by what it tells, not by its name", () => {
    const clock = (a: object, b: object) => ofGrants({ clock: a }, { clock: b });
    expect(clock({ mode: "coarse", stepMs: 1000 }, { mode: "frozen" })).toEqual(["grants.clock"]); // answers to 1 ms
    expect(clock({ mode: "frozen" }, { mode: "coarse", stepMs: 1000 })).toEqual(["grants.clock"]); // its own computing
    expect(clock({ mode: "real" }, { mode: "coarse", stepMs: 2 })).toEqual([]);
  });
});

describe("any two allow-lists", () => {
  const host = fc.constantFrom(
    "a.example",
    "*.a.example",
    "b.a.example",
    "*.b.a.example",
    "c.b.a.example",
    "ba.example",
  );
  const path = fc.constantFrom(
    "/",
    "/*",
    "/v1/",
    "/v1/*",
    "/v1*",
    "/v1/x",
    "/v1/..%2fx",
    "/v1/%2e%2e%2f*",
    "/v1/x;a/*",
  );
  const rule = fc.record({
    scheme: fc.constantFrom("https", "https", "https", "http"),
    host,
    port: fc.constantFrom("", "", ":443", ":80", ":8080"),
    path,
    methods: fc.constantFrom(undefined, ["GET"], ["GET", "PUT"], ["PUT"]),
  });
  const listOf = (most: number) =>
    fc.array(rule, { minLength: 1, maxLength: most }).map((all) =>
      all.map(({ scheme, host, port, path, methods }) => ({
        url: `${scheme}://${host}${port}${path}`,
        ...(methods && { methods }),
      })),
    );
  const request = fc.record({
    scheme: fc.constantFrom("https", "http"),
    host: fc.constantFrom("a.example", "b.a.example", "c.b.a.example", "x.c.b.a.example", "ba.example"),
    port: fc.constantFrom("", ":80", ":443", ":8080"),
    path: fc.constantFrom("/", "/v1", "/v1/", "/v1/x", "/v10", "/v1/..%2fx", "/v1/%2e%2e%2fy", "/v1/x;a/y", "/v1/x/..;/z", "/q"),
    method: fc.constantFrom("GET", "PUT", "DELETE"),
  }); // prettier-ignore

  test("nothing new is listed only if no request passes B and not A", () => {
    let [silent, told] = [0, 0];
    fc.assert(
      fc.property(
        listOf(12),
        listOf(1),
        fc.array(request, { minLength: 20, maxLength: 20 }),
        (before, after, requests) => {
          const listed = ofGrants(http(...before), http(...after)).length > 0;
          if (listed) return void told++;
          silent++;
          const [a, b] = [parseRules("a", before), parseRules("b", after)];
          for (const { scheme, host, port, path, method } of requests) {
            const url = new URL(`${scheme}://${host}${port}${path}`);
            if (permits(b, url, method) && !permits(a, url, method)) throw new Error(`${method} ${url.href}`);
          }
        },
      ),
      { numRuns: 3000 },
    );
    expect(silent).toBeGreaterThan(100);
    expect(told).toBeGreaterThan(100);
  });

  test("a list is no wider than itself, and no wider than itself and more", () => {
    fc.assert(
      fc.property(listOf(4), listOf(4), (some, more) => {
        expect(ofGrants(http(...some), http(...some))).toEqual([]);
        expect(ofGrants(http(...some, ...more), http(...some))).toEqual([]);
      }),
      { numRuns: 500 },
    );
  });
});
