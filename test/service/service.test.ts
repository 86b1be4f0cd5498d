/** The HTTP service as its clients meet it. */
import fs from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { verifyAudit } from "#server/service/audit-verify";
import { audited, end, shared, start, until } from "./harness.js";

const it = shared();

const script = (source: string, more: object = {}) => ({ source, type: "script", ...more });
/** The line of the audit log, when it is there. */
const untilAudited = (dir: string, fits: (line: Record<string, unknown>) => boolean) =>
  until(() => audited(dir).find(fits));

describe("a run", () => {
  test("answers with the outcome, whatever the script does", async () => {
    const ok = await it.ask("POST", "/v1/runs", {
      body: { source: "export default (input) => input.n * 2", input: { n: 21 } },
    });
    expect(ok).toMatchObject({ status: 200, body: { outcome: { status: "ok", value: 42 } } });
    expect(ok.headers.get("x-run-id")).toBe(ok.body.id);
    const threw = await it.ask("POST", "/v1/runs", { body: script("\n  null.x") });
    expect(threw.body.outcome).toMatchObject({ status: "threw", error: { name: "TypeError", stack: expect.stringContaining("script.js:2") } }); // prettier-ignore
    const stopped = await it.ask("POST", "/v1/runs", {
      body: script("for (;;);", { limits: { wallMs: 100 } }),
    });
    expect(stopped).toMatchObject({ status: 200, body: { outcome: { status: "stopped", stop: { reason: "wall-time" } } } }); // prettier-ignore
  });

  test("may be TypeScript, with modules", async () => {
    const body = {
      source: 'import { two } from "lib.ts"; export default (n: number): number => n * two',
      language: "typescript",
      modules: { "lib.ts": "export const two: number = 2" },
      input: 4,
    };
    expect((await it.ask("POST", "/v1/runs", { body })).body.outcome).toMatchObject({
      status: "ok",
      value: 8,
    });
  });

  test("has of the policy's grants what it asks for, and nothing without asking", async () => {
    const source = "export default (input, env) => Object.keys(env)";
    const value = async (grants?: unknown) => (await it.ask("POST", "/v1/runs", { body: { source, grants } })).body.outcome.value; // prettier-ignore
    expect(await value()).toEqual([]);
    expect(await value(["kv"])).toEqual(["kv"]);
    expect(await value({ kv: true, events: true })).toEqual(["kv", "events"]);
    const body = {
      source: "export default (input, env) => env.kv.set('a', 1)",
      grants: { kv: { readOnly: true } },
    };
    expect((await it.ask("POST", "/v1/runs", { body })).body.outcome).toMatchObject({ status: "threw" });
    const none = await it.ask("POST", "/v1/runs", { body: { source, grants: ["http"] } });
    expect(none).toMatchObject({
      status: 403,
      body: { code: "forbidden", errors: [{ field: "grants.http" }] },
    });
  });

  test("is cancelled when its client goes away", async () => {
    const gone = new AbortController();
    const source = "export default async (i, env) => { await env.kv.get('begun'); for (;;); }";
    const asked = it.ask("POST", "/v1/runs", {
      body: { source, grants: ["kv"], limits: { wallMs: 5000 } },
      signal: gone.signal,
    });
    const seen = audited(it.dir).length;
    const call = await untilAudited(it.dir, (line) => line["kind"] === "call" && Number(line["seq"]) >= seen && line["decision"] === "done"); // prettier-ignore
    gone.abort();
    await expect(asked).rejects.toThrow(/abort/);
    const end = await untilAudited(
      it.dir,
      (line) => line["run"] === call["run"] && line["act"] === "finished",
    );
    expect(end["status"]).toBe("cancelled");
  });
});

describe("a streamed run", () => {
  const source = `export default async (input, env) => {
    console.log("one"); await env.events.emit("step", { n: 1 }); console.warn("two"); return 3 }`;
  const events = (text: string) =>
    text
      .split("\n\n")
      .filter((block) => block.includes("data: "))
      .map((block) => ({
        id: /^id: (.*)$/m.exec(block)?.[1],
        event: /^event: (.*)$/m.exec(block)?.[1],
        data: JSON.parse(/^data: (.*)$/m.exec(block)?.[1] ?? "null"),
      }));

  test("tells logs, events and the outcome in order, and goes on where a client was", async () => {
    const headers = { accept: "text/event-stream" };
    const first = await it.ask("POST", "/v1/runs", { body: { source, grants: ["events"] }, headers });
    expect(first.headers.get("content-type")).toContain("text/event-stream");
    const all = events(first.body);
    expect(all.map(({ event }) => event)).toEqual(["log", "event", "log", "outcome"]);
    expect(all.map(({ id }) => id)).toEqual(["1", "2", "3", "4"]);
    expect(all[3]?.data.outcome).toMatchObject({ status: "ok", value: 3 });
    const id = first.headers.get("x-run-id") ?? "";
    const again = await it.ask("GET", `/v1/runs/${id}/events`, {
      headers: { ...headers, "last-event-id": "2" },
    });
    expect(events(again.body).map(({ id: at }) => at)).toEqual(["3", "4"]);
    const other = await it.ask("GET", `/v1/runs/${id}/events`, { headers, key: await it.tenant("stranger") });
    expect(other).toMatchObject({ status: 404, body: { code: "not-found" } });
    const wrong = await it.ask("GET", `/v1/runs/${id}/events`, {
      headers: { ...headers, "last-event-id": "x" },
    });
    expect(wrong).toMatchObject({ status: 400, body: { errors: [{ field: "last-event-id" }] } });
  });

  test("can be cancelled by its id", async () => {
    const seen = audited(it.dir).length;
    const endless = {
      source: "export default async (i, env) => { await env.kv.get('x'); for (;;); }",
      grants: ["kv"],
    };
    const asked = it.ask("POST", "/v1/runs", { body: endless, headers: { accept: "text/event-stream" } });
    const call = await untilAudited(it.dir, (line) => line["kind"] === "call" && Number(line["seq"]) >= seen && line["decision"] === "done"); // prettier-ignore
    expect((await it.ask("DELETE", `/v1/runs/${String(call["run"])}`)).status).toBe(204);
    expect(events((await asked).body).at(-1)?.data.outcome.status).toBe("cancelled");
  });

  test("that may not begin ends with the problem", async () => {
    const answer = await it.ask("POST", "/v1/runs", {
      body: { source, grants: ["nope"] },
      headers: { accept: "text/event-stream" },
    });
    expect(events(answer.body)).toMatchObject([
      { event: "problem", data: { status: 403, errors: [{ field: "grants.nope" }] } },
    ]);
  });
});

describe("a request with an Idempotency-Key", () => {
  const count = { source: "export default (input, env) => env.kv.increment(input)", grants: ["kv"] };
  const send = (key: string, body: object, more: object = {}) =>
    it.ask("POST", "/v1/runs", { body, headers: { "idempotency-key": key }, ...more });

  test("is run once, and answered again with the same", async () => {
    const body = { ...count, input: "once" };
    const first = await send("a", body);
    expect(first.body.outcome.value).toBe(1);
    const again = await send("a", body);
    expect(again.body).toEqual(first.body);
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    expect((await send("b", body)).body.outcome.value).toBe(2); // the control: another key is another run
    const key = await it.tenant("other-keys", { policy: { grants: { kv: true } } });
    expect((await send("a", body, { key })).body.outcome.value).toBe(1); // another tenant's key is its own
  });

  test("is run once of many at a time", async () => {
    const answers = await Promise.all(
      Array.from({ length: 8 }, () => send("many", { ...count, input: "many" })),
    );
    expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThan(0);
    for (const { status, body } of answers) {
      if (status === 200) expect(body.outcome.value).toBe(1);
      else expect({ status, code: body.code }).toEqual({ status: 409, code: "idempotency-busy" });
    }
    expect((await send("another", { ...count, input: "many" })).body.outcome.value).toBe(2);
  });

  test("is refused for another body, for a stream and for a key that is none; a refused one gives it back", async () => {
    await send("reused", { ...count, input: "x" });
    expect(await send("reused", { ...count, input: "y" })).toMatchObject({ status: 422, body: { code: "idempotency-reused" } }); // prettier-ignore
    expect((await send("has space", count)).body.errors[0].field).toBe("idempotency-key");
    const headers = { "idempotency-key": "s", accept: "text/event-stream" };
    expect((await it.ask("POST", "/v1/runs", { body: count, headers })).body.errors[0].field).toBe(
      "idempotency-key",
    );
    expect((await send("back", { ...count, grants: ["nope"] })).status).toBe(403);
    expect((await send("back", { ...count, input: "back" })).body.outcome.value).toBe(1);
  });

  test("goes on when its client is gone, whose next attempt gets the answer", async () => {
    const seen = audited(it.dir).length;
    const gone = new AbortController();
    const source = `export default async (input, env) => {
      await env.kv.get("x"); await new Promise((done) => setTimeout(done, 300)); return env.kv.increment("gone") }`;
    const body = { source, grants: ["kv"] };
    const asked = send("gone", body, { signal: gone.signal });
    await untilAudited(it.dir, (line) => line["kind"] === "call" && Number(line["seq"]) >= seen);
    gone.abort();
    await expect(asked).rejects.toThrow(/abort/);
    for (;;) {
      const { status, body: answer } = await send("gone", body);
      if (status === 200) return expect(answer.outcome).toMatchObject({ status: "ok", value: 1 });
      expect(answer.code).toBe("idempotency-busy");
    }
  });

  test("whose answer has no room is told as lost, and not run again", async () => {
    const key = await it.tenant("no-room", {
      quotas: { storageBytes: 10 },
      policy: { grants: { kv: true } },
    });
    const body = { ...count, input: "n" };
    expect((await send("big", body, { key })).body.outcome.value).toBe(1);
    expect(await send("big", body, { key })).toMatchObject({
      status: 409,
      body: { code: "idempotency-lost" },
    });
    expect((await send("next", body, { key })).body.outcome.value).toBe(2);
  });
});

describe("what is wrong with a request is told by its field, and nothing has run", () => {
  const { stringify } = JSON;
  const source = "1";
  const cases: [string, { body: unknown; headers?: Record<string, string> }, number, string, string?][] = [
    ["malformed JSON", { body: "{" }, 400, "bad-json"],
    ["no body", { body: "" }, 400, "bad-json"],
    ["a key __proto__", { body: '{"source":"1","input":{"__proto__":{}}}' }, 400, "bad-json"],
    ["bytes that are no UTF-8 in a name", { body: Uint8Array.of(0x7b, 0xff, 0x7d) }, 400, "bad-json"],
    [
      "another media type",
      { body: "source=1", headers: { "content-type": "text/plain" } },
      415,
      "bad-media-type",
    ],
    ["a wrong type", { body: stringify({ source: 1 }) }, 400, "bad-request", "source"],
    ["an unknown field", { body: stringify({ source, sorce: "" }) }, 400, "bad-request", "sorce"],
    [
      "an unknown limit",
      { body: stringify({ source, limits: { wall: 1 } }) },
      400,
      "bad-request",
      "limits.wall",
    ],
    [
      "a limit out of range",
      { body: stringify({ source, limits: { wallMs: 1 } }) },
      400,
      "bad-request",
      "limits.wallMs",
    ],
    [
      "more than the policy's limit",
      { body: stringify({ source, limits: { wallMs: 20_001 } }) },
      403,
      "forbidden",
      "limits.wallMs",
    ],
    ["neither source nor script", { body: "{}" }, 400, "bad-request", "source"],
    ["a script that is not stored", { body: stringify({ script: "nope" }) }, 404, "not-found", "script"],
    [
      "an engine that there is not",
      { body: stringify({ source, engine: "v9" }) },
      400,
      "bad-request",
      "engine",
    ],
    ["no object", { body: "[]" }, 400, "bad-request", "body"],
    ["too many bytes", { body: stringify({ source: "x".repeat(17 * 1024 * 1024) }) }, 413, "too-large"],
  ];
  test.each(cases)("%s", async (_name, request, status, code, field) => {
    const begun = () => audited(it.dir).filter(({ act }) => act === "started").length;
    const before = begun();
    const answer = await it.ask("POST", "/v1/runs", request);
    expect(answer).toMatchObject({ status, body: { code, status, type: `urn:doublehull:problem:${code}` } });
    expect(answer.headers.get("content-type")).toContain("application/problem+json");
    if (field !== undefined) expect(answer.body.errors.map((error: { field: string }) => error.field)).toContain(field); // prettier-ignore
    expect(JSON.stringify(answer.body)).not.toMatch(/node_modules|\/dist\/|at .*:\d+:\d+/);
    expect(begun()).toBe(before);
  });

  test("the control: a right one runs", async () => {
    expect((await it.ask("POST", "/v1/runs", { body: script("1") })).body.outcome.value).toBe(1);
  });
});

describe("keys", () => {
  test("open what is their tenant's and nothing else, and each refusal is in the audit log", async () => {
    const missing = await it.ask("GET", "/v1", { key: "" });
    expect(missing).toMatchObject({ status: 401, body: { code: "unauthorized" } });
    expect(missing.headers.get("www-authenticate")).toBe("Bearer");
    const { key = "", adminKey = "" } = it.service.made ?? {};
    const last = key.at(-2) === "A" ? "B" : "A";
    for (const wrong of [
      "x",
      `dh_${"0".repeat(12)}_${"A".repeat(43)}`,
      key.slice(0, -2) + last + key.at(-1),
      adminKey,
    ])
      expect((await it.ask("GET", "/v1", { key: wrong })).status).toBe(401);
    expect((await it.admin("GET", "/admin/v1/tenants", { key })).status).toBe(401);
    expect((await it.ask("GET", "/v1")).body.tenant).toBe("default"); // the control
    expect((await it.admin("GET", "/admin/v1/tenants")).status).toBe(200);
    expect((await it.ask("GET", "/admin/v1/tenants")).status).toBe(404);
    const reasons = audited(it.dir).filter(({ kind }) => kind === "auth").map(({ reason }) => reason); // prettier-ignore
    expect(new Set(reasons)).toEqual(new Set(["missing", "unknown", "forbidden"]));
  });

  test("are revoked at once, expire, and are kept as hashes only", async () => {
    const key = await it.tenant("revoked");
    expect((await it.ask("GET", "/v1", { key })).status).toBe(200);
    const [, id = "", secret = ""] = /^dh_([0-9a-f]{12})_(.*)$/.exec(key) ?? [];
    expect((await it.admin("DELETE", `/admin/v1/tenants/revoked/keys/${id}`)).status).toBe(204);
    expect((await it.ask("GET", "/v1", { key })).status).toBe(401);
    const late = await it.admin("POST", "/admin/v1/tenants/revoked/keys", {
      body: { expiresMs: Date.now() - 1 },
    });
    expect((await it.ask("GET", "/v1", { key: late.body.key })).body.detail).toContain("expired");
    for (const file of fs.readdirSync(it.dir).filter((name) => name.startsWith("service.db")))
      expect(fs.readFileSync(path.join(it.dir, file)).includes(secret)).toBe(false);
  });
});

describe("tenants", () => {
  const count = "export default (input, env) => env.kv.increment('n')";
  const kvPolicy = { policy: { grants: { kv: true } } };

  test("do not see each other's stores, scripts or secrets", async () => {
    const [a, b] = [await it.tenant("a", kvPolicy), await it.tenant("b", kvPolicy)];
    const counted = async (key: string) => (await it.ask("POST", "/v1/runs", { key, body: { source: count, grants: ["kv"] } })).body.outcome.value; // prettier-ignore
    expect([await counted(a), await counted(a), await counted(b)]).toEqual([1, 2, 1]);
    await it.ask("PUT", "/v1/scripts/mine", { key: a, body: { source: "export default () => 1" } });
    expect((await it.ask("GET", "/v1/scripts/mine", { key: a })).status).toBe(200);
    expect((await it.ask("GET", "/v1/scripts/mine", { key: b })).status).toBe(404);
    expect((await it.ask("POST", "/v1/runs", { key: b, body: { script: "mine" } })).status).toBe(404);
    await it.ask("PUT", "/v1/secrets/TOKEN", { key: a, body: { value: "a-secret" } });
    expect((await it.ask("GET", "/v1/secrets", { key: a })).body.secrets).toMatchObject([{ name: "TOKEN" }]);
    expect((await it.ask("GET", "/v1/secrets", { key: b })).body.secrets).toEqual([]);
  });

  test("have policies that are refused by field, with what only a host's own user could mean", async () => {
    const put = (policy: object) => it.admin("PUT", "/admin/v1/tenants/wrong", { body: { policy } });
    const fields = async (policy: object) => (await put(policy)).body.errors.map((error: { field: string }) => error.field); // prettier-ignore
    expect(await fields({ grants: { kw: true } })).toEqual(["policy.grants.kw"]);
    expect(await fields({ grants: { kv: { store: { sqlite: "x.db" } } } })).toEqual([
      "policy.grants.kv.store",
    ]);
    const http = { allow: ["https://a.example/*"] };
    expect(await fields({ grants: { http, token: { type: "secret", file: "/etc/passwd", hosts: ["a.example"] } } })).toEqual(["policy.grants.token.file"]); // prettier-ignore
    expect(await fields({ limits: { wallMs: 30_000 } })).toContain("policy.limits.wallMs");
    expect((await it.admin("GET", "/admin/v1/tenants/wrong")).status).toBe(404); // nothing of it was kept
  });

  test("are held to their quotas, each with its problem and when to come again", async () => {
    const key = await it.tenant("small", {
      quotas: { runsPerDay: 2, storageBytes: 200, concurrent: 1 },
      ...kvPolicy,
    });
    const body = script("1");
    const stored = await it.ask("PUT", "/v1/scripts/s", { key, body: { source: `"${"x".repeat(300)}"` } });
    expect(stored).toMatchObject({ status: 507, body: { code: "storage-full" } });
    const seen = audited(it.dir).length;
    const long = { source: "export default async (i, env) => { await env.kv.get('x'); for (;;); }", grants: ["kv"], limits: { wallMs: 1000 } }; // prettier-ignore
    const first = it.ask("POST", "/v1/runs", { key, body: long });
    await untilAudited(it.dir, (line) => line["kind"] === "call" && Number(line["seq"]) >= seen);
    const busy = await it.ask("POST", "/v1/runs", { key, body });
    expect(busy).toMatchObject({ status: 429, body: { code: "tenant-busy" } });
    expect(Number(busy.headers.get("retry-after"))).toBeGreaterThan(0);
    await first;
    expect((await it.ask("POST", "/v1/runs", { key, body })).status).toBe(200);
    const over = await it.ask("POST", "/v1/runs", { key, body });
    expect(over).toMatchObject({ status: 429, body: { code: "quota-exceeded" } });
    expect(Number(over.headers.get("retry-after"))).toBeLessThanOrEqual(86_400);
    const days = (await it.ask("GET", "/v1/usage", { key })).body.days;
    expect(days).toMatchObject([{ runs: 2, ok: 1 }]);
    expect(days[0].cpuMs).toBeGreaterThan(50);
  });

  test("are held to their requests a minute", async () => {
    const key = await it.tenant("eager", { quotas: { requestsPerMinute: 3 } });
    const statuses = [];
    for (let i = 0; i < 5; i++) statuses.push((await it.ask("GET", "/v1", { key })).status);
    expect(statuses).toEqual([200, 200, 200, 429, 429]);
    const answer = await it.ask("GET", "/v1", { key });
    expect(answer.body.code).toBe("rate-limited");
    expect(Number(answer.headers.get("retry-after"))).toBeGreaterThan(0);
    expect((await it.ask("GET", "/v1")).status).toBe(200); // another tenant is not held
  });

  test("are gone with all that was theirs", async () => {
    const key = await it.tenant("leaving");
    await it.ask("PUT", "/v1/scripts/s", { key, body: { source: "1" } });
    expect((await it.admin("DELETE", "/admin/v1/tenants/leaving")).status).toBe(204);
    expect((await it.ask("GET", "/v1", { key })).status).toBe(401);
    const anew = await it.tenant("leaving");
    expect((await it.ask("GET", "/v1/scripts", { key: anew })).body.scripts).toEqual([]);
  });
});

describe("stored scripts", () => {
  test("have versions, run by name, and are the same version when nothing changed", async () => {
    const put = (source: string) =>
      it.ask("PUT", "/v1/scripts/greet", { body: { source, language: "typescript" } });
    const one = await put("export default (name: string) => 'hi ' + name");
    expect(one).toMatchObject({ status: 201, body: { name: "greet", version: 1 } });
    expect(await put("export default (name: string) => 'hi ' + name")).toMatchObject({ status: 200, body: { version: 1 } }); // prettier-ignore
    expect(await put("export default (name: string) => 'hello ' + name")).toMatchObject({ status: 201, body: { version: 2 } }); // prettier-ignore
    const run = async (reference: string) => (await it.ask("POST", "/v1/runs", { body: { script: reference, input: "Ada" } })).body.outcome.value; // prettier-ignore
    expect([await run("greet"), await run("greet@1")]).toEqual(["hello Ada", "hi Ada"]);
    expect((await it.ask("GET", "/v1/scripts?limit=1")).body.scripts).toHaveLength(1);
    expect((await it.ask("GET", "/v1/scripts/greet?version=1")).body.content.source).toContain("hi");
    expect((await it.ask("DELETE", "/v1/scripts/greet")).status).toBe(204);
    expect((await it.ask("GET", "/v1/scripts/greet")).status).toBe(404);
    expect((await it.ask("PUT", "/v1/scripts/..%2Fx", { body: { source: "1" } })).body.errors[0].field).toBe(
      "name",
    );
  });
});

describe("secrets", () => {
  test("go out with requests of the script's, and stand in no answer, log or file", async () => {
    const value = "correct-horse-battery-staple-9";
    let heard = "";
    const server = http.createServer(({ headers }, response) => {
      heard = headers.authorization ?? "";
      response.end(`got ${heard}`);
    });
    await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
    const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const inject = [
      { host: "127.0.0.1", header: "authorization", scheme: "Bearer", secret: { env: "TOKEN" } },
    ];
    const key = await it.tenant("sender", { policy: { grants: { http: { allow: [`${origin}/*`], open: ["127.0.0.1/32"], inject } } } }); // prettier-ignore
    const body = {
      source: "export default async (url) => (await fetch(url)).text()",
      input: `${origin}/x`,
      grants: ["http"],
    };
    const without = await it.ask("POST", "/v1/runs", { key, body });
    expect(without).toMatchObject({
      status: 400,
      body: { errors: [{ field: expect.stringContaining("grants.http") }] },
    });
    expect((await it.ask("PUT", "/v1/secrets/TOKEN", { key, body: { value } })).status).toBe(204);
    const answer = await it.ask("POST", "/v1/runs", { key, body });
    server.close();
    expect(heard).toBe(`Bearer ${value}`); // the control: it was sent
    expect(answer.body.outcome.status).toBe("ok");
    expect(JSON.stringify(answer.body)).not.toContain(value);
    expect(it.log.join("")).not.toContain(value);
    for (const file of fs
      .readdirSync(it.dir, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile()))
      expect(fs.readFileSync(path.join(file.parentPath, file.name)).includes(value)).toBe(false);
  });
});

describe("beside the runs", () => {
  test("health, readiness, metrics and a description that names every schema", async () => {
    expect((await it.ask("GET", "/healthz", { key: "" })).body).toEqual({ ok: true });
    expect((await it.ask("GET", "/readyz", { key: "" })).body).toEqual({ ok: true });
    const metrics = (await it.admin("GET", "/metrics", { key: "" })).body as string;
    expect(metrics).toMatch(/^doublehull_runs_total\{engine="quickjs",status="ok",reason=""\} \d+$/m);
    expect(metrics).toMatch(/^doublehull_workers\{state="parked"\} \d+$/m);
    const description = (await it.ask("GET", "/docs/json", { key: "" })).body;
    expect(description.openapi).toBe("3.1.0");
    expect(Object.keys(description.components.schemas)).toEqual(expect.arrayContaining(["RunRequestInput", "RunResult", "Problem"])); // prettier-ignore
    expect(description.paths["/v1/runs"].post.requestBody).toBeDefined();
    const types = await it.ask("GET", "/v1/types");
    expect(types.body).toContain("readonly kv:");
  });

  test("the audit log holds the runs and no word of a script, and its chain is whole", async () => {
    const marker = "a-word-that-only-a-script-has";
    await it.ask("POST", "/v1/runs", { body: script(`"${marker}"`) });
    const head = (await it.admin("GET", "/admin/v1/audit")).body as { seq: number; hash: string };
    const verified = await verifyAudit(path.join(it.dir, "audit"), { head });
    expect(verified).toMatchObject({ ok: true });
    const text = JSON.stringify(audited(it.dir)) + it.log.join("");
    expect(text).not.toContain(marker);
    expect(
      audited(it.dir).filter(({ kind, act }) => kind === "run" && act === "finished").length,
    ).toBeGreaterThan(10);
  });
});

describe("a service that ends", () => {
  test("lets a run finish, takes no other, and starts again with everything kept", async () => {
    const one = await start();
    const made = one.service.made ?? { key: "", adminKey: "", tenant: "" };
    const source = "export default async (input, env) => { const n = await env.kv.increment('n'); await new Promise((done) => setTimeout(done, 600)); return n }"; // prettier-ignore
    const asked = one.ask("POST", "/v1/runs", { body: { source, grants: ["kv"] } });
    await untilAudited(one.dir, (line) => line["kind"] === "call" && line["decision"] === "done");
    const closed = one.service.close();
    const refused = await one.ask("POST", "/v1/runs", { body: script("1") });
    expect(refused).toMatchObject({ status: 503, body: { code: "draining" } });
    expect(refused.headers.get("retry-after")).toBe("5");
    expect((await one.ask("GET", "/readyz", { key: "" })).status).toBe(503);
    expect((await asked).body.outcome).toMatchObject({ status: "ok", value: 1 });
    await closed;
    const two = await start({ dataDir: one.dir }, made);
    expect(two.service.made).toBeUndefined();
    expect((await two.ask("POST", "/v1/runs", { body: { source, grants: ["kv"] } })).body.outcome.value).toBe(
      2,
    );
    await expect(start({ dataDir: one.dir }, made)).rejects.toMatchObject({ code: "host-cannot", remedy: expect.any(String) }); // prettier-ignore
    await two.service.close();
    expect(await verifyAudit(path.join(one.dir, "audit"), {})).toMatchObject({ ok: true });
    await end(one);
  });

  test("cancels what goes on beyond its grace", async () => {
    const one = await start({ graceMs: 50 });
    const body = {
      source: "export default async (i, env) => { await env.kv.get('x'); for (;;); }",
      grants: ["kv"],
    };
    const asked = one.ask("POST", "/v1/runs", { body });
    await untilAudited(one.dir, (line) => line["kind"] === "call" && line["decision"] === "done");
    await one.service.close();
    expect((await asked).body.outcome.status).toBe("cancelled");
    await end(one);
  });

  test("refuses a directory that others can read, and a key file that is none", async () => {
    const one = await start();
    await one.service.close();
    const keys = one.service.made ?? { key: "", adminKey: "" };
    fs.chmodSync(one.dir, 0o755);
    await expect(start({ dataDir: one.dir }, keys)).rejects.toMatchObject({
      code: "host-cannot",
      field: "data",
    });
    fs.chmodSync(one.dir, 0o700);
    fs.writeFileSync(path.join(one.dir, "sealing.key"), "short");
    await expect(start({ dataDir: one.dir }, keys)).rejects.toMatchObject({
      remedy: expect.stringContaining("copy"),
    });
    await end(one);
  });
});
