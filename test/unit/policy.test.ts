import { describe, expect, test } from "vitest";
import { parsePolicy, PolicyError, type Problem } from "#server/policy";
import { GRANT_TYPES, policyJsonSchema, type Policy } from "#server/policy-schema";
import { policyWords } from "#server/policy-words";
import { MAX_JSON_DEPTH, parseStrict } from "#server/strict-json";

const parse = (value: unknown): Policy => parsePolicy(JSON.stringify(value), "/srv/policies");
const grants = (given: Record<string, unknown>): Policy => parse({ grants: given });

/** What is wrong with a policy; fails if nothing is. */
function problems(text: string): readonly Problem[] {
  try {
    parsePolicy(text, "/srv");
  } catch (error) {
    if (error instanceof PolicyError) return error.problems;
    throw error;
  }
  throw new Error(`it was accepted: ${text.slice(0, 200)}`);
}
const wrong = (given: Record<string, unknown>) => problems(JSON.stringify({ grants: given }));

const HTTP = { allow: ["https://api.example.com/v1/*"] };
const TOKEN = { type: "secret", env: "API_TOKEN", hosts: ["api.example.com"] };

describe("a policy", () => {
  test("says all that it means: defaults are filled in, paths are those of its directory", () => {
    const policy = parse({
      $schema: "x",
      limits: { wallMs: 5000 },
      grants: {
        kv: true,
        notes: { type: "kv", store: { sqlite: "notes.db" }, namespace: "n" },
        files: { root: "../data" },
        out: { type: "files", root: "/out", mode: "rw", quotaBytes: 10 },
        http: { ...HTTP, inject: [{ host: "api.example.com", header: "x-a", secret: { file: "a.txt" } }] },
        token: TOKEN,
        clock: true,
      },
    });
    expect(policy).toMatchObject({
      engine: "quickjs",
      limits: { wallMs: 5000 },
      grants: {
        kv: { type: "kv", namespace: "kv", store: "memory", quotaBytes: 10_485_760, maxKeys: 10_000 },
        notes: { namespace: "n", store: { sqlite: "/srv/policies/notes.db" } },
        files: { type: "files", root: "/srv/data", mode: "ro" },
        out: { root: "/out", mode: "rw", quotaBytes: 10, maxFiles: 1000 },
        http: {
          allow: [{ url: "https://api.example.com/v1/*" }],
          inject: [{ secret: { file: "/srv/policies/a.txt" } }],
        },
        clock: { type: "clock", mode: "real" },
      },
    });
    expect(policy.grants["files"]).not.toHaveProperty("quotaBytes");
  });

  test("that lets a script ask a person gives the person time, unless it says how much", () => {
    expect(grants({ approve: { timeoutMs: 5000 } }).limits).toEqual({ wallMs: 6000, cpuMs: 1000 });
    expect(parse({ limits: { wallMs: 50 }, grants: { approve: true } }).limits).toEqual({ wallMs: 50 });
  });

  test("grants nothing if it says nothing", () => {
    expect(parse({})).toEqual({ engine: "quickjs", limits: {}, grants: {} });
  });

  test("cannot be changed after it was parsed, at any depth", () => {
    const policy = grants({ http: HTTP });
    const { http } = policy.grants;
    expect(http?.type).toBe("http");
    if (http?.type !== "http") return;
    const reach = [
      () => ((policy as { engine: string }).engine = "v8"),
      () => ((policy.grants as Record<string, unknown>)["kv"] = { type: "kv" }),
      () => ((http as { maxRedirects: number }).maxRedirects = 99),
      () => http.allow.push({ url: "https://evil.example/*" }),
      () => ((http.allow[0] as { url: string }).url = "https://evil.example/*"),
    ];
    for (const act of reach) expect(act).toThrow(TypeError);
  });

  test("has no names but its own in its table of grants", () => {
    const { grants: table } = grants({ kv: true });
    expect(Object.getPrototypeOf(table)).toBeNull();
    expect(table["constructor"] ?? table["toString"]).toBeUndefined();
  });
});

describe("what is refused", () => {
  test.each<[string, Record<string, unknown>, field: string, message: RegExp]>([
    ["a grant that does not exist, with the one that was meant", { htpp: {} }, "grants.htpp", /no grant "htpp"; did you mean http\?/],
    ["a type that does not exist", { a: { type: "file", root: "." } }, "grants.a.type", /no grant "file"; did you mean files\?/],
    ["a name of one's own without a type", { cache: {} }, "grants.cache", /has a "type"/],
    ["a type under another type's name", { kv: { type: "files", root: "." } }, "grants.kv", /choose another name/],
    ["an ambient grant under a name of one's own", { time: { type: "clock" } }, "grants.time", /name the grant clock/],
    ["a name that env cannot have", { "a-b": { type: "kv" } }, 'grants["a-b"]', /cannot be a name/],
    ["a name that objects have", { constructor: { type: "kv" } }, "grants.constructor", /cannot be a name/],
    ["a name that makes env a promise", JSON.parse('{"then":{"type":"kv"}}'), "grants.then", /cannot be a name/],
    ["false for a grant", { kv: false }, "grants.kv", /true/],
    ["an unknown field, with the one that was meant", { kv: { namespce: "a" } }, "grants.kv.namespce", /did you mean namespace\?/],
    ["an unknown field further down", { kv: { budget: { call: 1 } } }, "grants.kv.budget.call", /did you mean calls\?/],
    ["an unknown field inside a union", { kv: { store: { sqlit: "a.db" } } }, "grants.kv.store.sqlite", /missing/],
    ["an unknown field inside a rule", { http: { allow: [{ url: "https://a.example/*", method: ["GET"] }] } }, "grants.http.allow[0].method", /did you mean methods\?/],
    ["a budget of nothing", { kv: { budget: {} } }, "grants.kv.budget", /must bound calls or bytes/],
    ["a budget of no calls", { kv: { budget: { calls: 0 } } }, "grants.kv.budget.calls", />=1|at least 1/],
    ["half a number", { kv: { maxKeys: 1.5 } }, "grants.kv.maxKeys", /int/],
    ["readOnly: false, which would not mean a thing", { kv: { readOnly: false } }, "grants.kv.readOnly", /true/],
    ["files without a root", { files: true }, "grants.files.root", /missing.*string/],
    ["a path with a NUL", { files: { root: "a\0b" } }, "grants.files.root", /NUL/],
    ["a quota of what cannot be written", { files: { root: ".", quotaBytes: 5 } }, "grants.files.quotaBytes", /goes with mode "rw"/],
    ["an empty allow-list", { http: { allow: [] } }, "grants.http.allow", /1/],
    ["a rule without a path", { http: { allow: ["https://a.example"] } }, "grants.http.allow[0]", /which paths/],
    ["a rule of another scheme", { http: { allow: ["https://a.example/*", "ftp://a.example/*"] } }, "grants.http.allow[1]", /https/],
    ["a rule that cannot match: dots in its path", { http: { allow: ["https://a.example/a/../b"] } }, "grants.http.allow[0]", /never match/],
    ["a rule that cannot match: a private address that is not open", { http: { allow: ["http://127.0.0.1/*"] } }, "grants.http.allow[0]", /never match.*open/],
    ["a rule with a user", { http: { allow: ["https://u@a.example/*"] } }, "grants.http.allow[0]", /user/],
    ["a method that is never sent", { http: { allow: [{ url: "https://a.example/*", methods: ["TRACE"] }] } }, "grants.http.allow[0]", /never/],
    ["a range that is none", { http: { ...HTTP, open: ["10.0.0.1/8"] } }, "grants.http.open[0]", /10\.0\.0\.0\/8/],
    ["a header for a host that no rule reaches", { http: { ...HTTP, inject: [{ host: "b.example", header: "a", secret: { env: "A" } }] } }, "grants.http.inject[0].host", /never be sent/],
    ["a header from a secret that is not there", { http: { ...HTTP, inject: [{ host: "api.example.com", header: "a", secret: "tokn" }] }, token: TOKEN }, "grants.http.inject[0].secret", /did you mean token\?/],
    ["a header from a secret for another host", { http: { allow: ["https://*.example.com/*"], inject: [{ host: "b.example.com", header: "a", secret: "token" }] }, token: TOKEN }, "grants.http.inject[0].secret", /not for b\.example\.com/],
    ["a header from two places", { http: { ...HTTP, inject: [{ host: "api.example.com", header: "a", secret: { env: "A", file: "b" } }] } }, "grants.http.inject[0].secret", /either/],
    ["a secret that nothing can send", { token: TOKEN }, "grants.token.hosts[0]", /could never be sent/],
    ["a secret from nowhere", { http: HTTP, token: { type: "secret", hosts: ["api.example.com"] } }, "grants.token", /either/],
    ["a secret for any host at all", { http: HTTP, token: { ...TOKEN, hosts: ["*"] } }, "grants.token.hosts[0]", /host name/],
    ["a coarse clock without a step", { clock: { mode: "coarse" } }, "grants.clock.stepMs", /coarse/],
    ["a step of a clock that has none", { clock: { mode: "real", stepMs: 5 } }, "grants.clock.stepMs", /coarse/],
    ["a method named twice", { kv: { only: ["get", "get"] } }, "grants.kv.only", /twice/],
  ])("%s", (_what, given, field, message) => {
    const found = wrong(given);
    expect(found.map((problem) => problem.field)).toContain(field);
    expect(found.find((problem) => problem.field === field)?.message).toMatch(message);
  }); // prettier-ignore

  test("the near miss of each of these is accepted", () => {
    const accepted = grants({
      kv: { namespace: "a", budget: { calls: 1 }, readOnly: true, only: ["get"] },
      http: {
        allow: ["https://*.example.com/*", { url: "http://127.0.0.1/*", methods: ["GET"] }],
        open: ["127.0.0.0/8"],
        inject: [{ host: "api.example.com", header: "authorization", scheme: "Bearer", secret: "token" }],
      },
      token: TOKEN,
      clock: { mode: "coarse", stepMs: 5 },
    });
    expect(Object.keys(accepted.grants)).toEqual(["kv", "http", "token", "clock"]);
  });

  test("everything at once, each with its field", () => {
    const text = JSON.stringify({
      limit: {},
      limits: { wallMs: 1, memory: 2 },
      grants: { kv: { a: 1 }, x: 1 },
    });
    expect(problems(text).map(({ field }) => field)).toEqual(["limits.wallMs", "limits.memory", "limit", "grants.kv.a", "grants.x"]); // prettier-ignore
  });

  test("the message of the error has every field in it, and the next step", () => {
    const error = new PolicyError(problems(JSON.stringify({ grants: { htpp: {}, kv: { a: 1 } } })));
    expect(error).toMatchObject({ code: "bad-option", field: "grants.htpp" });
    expect(error.message.split("\n")).toHaveLength(2);
    expect(error.remedy).toMatch(/policy schema/);
  });

  test.each(["null", "[]", "1", '"kv"', '{"grants":[]}', '{"grants":null}'])(
    "%s, which is no policy",
    (text) => {
      expect(problems(text).length).toBeGreaterThan(0);
    },
  );
});

describe("the text", () => {
  test.each<[string, string, RegExp]>([
    [
      "a key twice",
      '{"grants":{"kv":{"readOnly":true},\n "kv":{}}}',
      /^line 2, column 2: the key "kv" stands twice/,
    ],
    ["a key twice, once with escapes", '{"limits":{},"\\u006cimits":{}}', /stands twice/],
    ["__proto__", '{"grants":{"__proto__":{"type":"kv"}}}', /"__proto__" is not accepted/],
    ["__proto__ with escapes", '{"\\u005f_proto__":{}}', /"__proto__" is not accepted/],
    ["no JSON", '{"grants":{},\n}', /^line 2, column 1: it is not JSON/],
    ["a string without an end", '{"grants', /it is not JSON/],
    ["nothing", "", /it is not JSON/],
    ["depth without end", "[".repeat(100_000), /deeper than/],
    ["length without end", `"${"x".repeat(300_000)}"`, /longer than/],
  ])("%s is refused before anything is built of it", (_what, text, message) => {
    expect(problems(text)[0]?.message).toMatch(message);
  });

  test("the same key in two objects, or in a string, is no key twice", () => {
    const text = '{"a":[{"a":1},{"a":"\\"a\\":{[\\\\"}],"b":{"a":{}}}';
    expect(parseStrict(text)).toEqual(JSON.parse(text));
  });

  test("as deep as may be is not too deep", () => {
    const text = `${"[".repeat(MAX_JSON_DEPTH)}${"]".repeat(MAX_JSON_DEPTH)}`;
    expect(parseStrict(text)).toEqual(JSON.parse(text));
  });
});

describe("the schema for editors", () => {
  const schema = policyJsonSchema() as {
    additionalProperties: boolean;
    properties: {
      grants: { properties: Record<string, { anyOf?: unknown[]; properties?: object; required?: string[] }> };
    };
  };

  test("knows every type of grant, and that nothing else may stand there", () => {
    expect(schema).toMatchObject({
      $schema: "https://json-schema.org/draft/2020-12/schema",
      additionalProperties: false,
    });
    expect(Object.keys(schema.properties.grants.properties)).toEqual(GRANT_TYPES);
  });

  test("requires what the parser requires, and lets out what has a default", () => {
    const { files, http, kv } = schema.properties.grants.properties;
    expect(files?.required).toEqual(["root"]);
    expect(http?.required).toEqual(["allow"]);
    expect(kv?.anyOf?.[0]).toMatchObject({ const: true });
    expect(kv?.anyOf?.[1]).not.toHaveProperty("required");
  });
});

describe("in words", () => {
  test("every grant has a headline, and every bound is said", () => {
    const policy = grants({
      kv: { prefix: "a/", readOnly: true, only: ["get"], budget: { calls: 2, bytes: 3 }, rate: { calls: 4, perMs: 5 }, expiresMs: 6 },
      files: { root: "/data", mode: "rw" },
      http: { allow: [{ url: "https://api.example.com/*", methods: ["GET"] }], inject: [{ host: "api.example.com", header: "authorization", secret: "token" }] },
      token: TOKEN,
      events: { names: ["done"] },
      approve: true,
      clock: { mode: "virtual", startMs: 0 },
      random: { seed: "s" },
      log: { least: "warn" },
      timers: { most: 0 },
    }); // prettier-ignore
    const words = new Map(
      policyWords(policy).map(({ name, what, details }) => [name, [what, ...details].join("; ")]),
    );
    expect(words.get("kv")).toMatch(
      /namespace kv, in memory.*begin with "a\/".*10485760 bytes.*only methods that leave.*only get.*2 calls.*3 bytes.*4 calls in 5 ms.*first 6 ms/,
    );
    expect(words.get("files")).toMatch(
      /reads and writes files below \/data.*add 67108864 bytes and 1000 files/,
    );
    expect(words.get("http")).toMatch(
      /GET https:\/\/api\.example\.com\/\*.*header authorization.*from the secret token/,
    );
    expect(words.get("token")).toMatch(/cannot read.*environment variable API_TOKEN.*api\.example\.com/);
    expect(words.get("events")).toMatch(/done/);
    expect(words.get("clock")).toMatch(/1970-01-01/);
    expect(words.get("random")).toMatch(/same/);
    expect(words.get("timers")).toBe("no timers");
    expect([...words.keys()]).toEqual(Object.keys(policy.grants));
  });
});
