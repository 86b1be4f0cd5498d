/** The client of the HTTP service, against a service. */
import net, { type AddressInfo } from "node:net";
import { afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { AdminClient, Client, ServiceError, type RunEvent } from "doublehull/client";
import { all, refusal } from "./answers.js";
import { cutting } from "./cutting.js";
import { audited, shared, until } from "./harness.js";

const it = shared();
let client: Client;
let admin: AdminClient;
const adminKey = (): string => it.service.made?.adminKey ?? "";
beforeAll(() => {
  client = new Client({ baseUrl: it.service.address, apiKey: it.service.made?.key ?? "" });
  admin = new AdminClient({ baseUrl: `${it.service.adminAddress}/`, apiKey: adminKey() });
});

/** Resolves when the audit log says how the run ended. */
const endOf = async (run: string): Promise<unknown> =>
  (await until(() => audited(it.dir).find((line) => line["run"] === run && line["act"] === "finished")))["status"]; // prettier-ignore
const ENDLESS = {
  source: "export default async (i, env) => { await env.events.emit('begun', 0); for (;;); }",
  grants: ["events"],
  limits: { wallMs: 5000, cpuMs: 5000 },
};

describe("a run", () => {
  test("resolves to its outcome, with values as the script had them", async () => {
    const source = `export default (input) => [input, undefined, NaN, -0, 7n, new Date(0), new Map([["a", new Set([1])]]),
      Uint16Array.of(1, 2), Uint8Array.of(3).buffer, new DataView(Uint8Array.of(4).buffer), BigInt64Array.of(-5n),
      { $type: "Map" }, new RangeError("far")]`;
    const { id, outcome } = await client.run({ source, input: { n: 1 } });
    expect(id).toMatch(/^[0-9a-f-]{36}$/);
    if (outcome.status !== "ok") throw new Error(JSON.stringify(outcome));
    const values = outcome.value as unknown[];
    const error = values.pop();
    expect(values).toStrictEqual([{ n: 1 }, undefined, NaN, -0, 7n, new Date(0), new Map([["a", new Set([1])]]), Uint16Array.of(1, 2), Uint8Array.of(3).buffer, new DataView(Uint8Array.of(4).buffer), BigInt64Array.of(-5n), { $type: "Map" }]); // prettier-ignore
    expect(error).toMatchObject({ name: "RangeError", message: "far" });
    expect(error).toBeInstanceOf(Error);
    expect(outcome.usage.wallMs).toBeGreaterThan(0);
  });

  test("that throws or is stopped is no error of the client's", async () => {
    const threw = await client.run({ source: "null.x", type: "script" });
    expect(threw.outcome).toMatchObject({ status: "threw", error: { name: "TypeError" } });
    const stopped = await client.run({ source: "for (;;);", type: "script", limits: { wallMs: 100 } });
    expect(stopped.outcome).toMatchObject({ status: "stopped", stop: { reason: "wall-time" } });
  });

  test("rejects with the signal's reason, and is cancelled", async () => {
    const gone = new AbortController();
    const source = "export default async (i, env) => { await env.kv.get('begun'); for (;;); }";
    const seen = audited(it.dir).length;
    const asked = client.run({ ...ENDLESS, source, grants: ["kv"] }, { signal: gone.signal });
    const call = await until(() => audited(it.dir).find((line) => line["kind"] === "call" && Number(line["seq"]) >= seen)); // prettier-ignore
    const reason = new Error("enough");
    gone.abort(reason);
    await expect(asked).rejects.toBe(reason);
    expect(await endOf(String(call["run"]))).toBe("cancelled");
  });
});

describe("a stream", () => {
  test("tells logs, events with their values, and the outcome", async () => {
    const source = `export default async (input, env) => {
      console.log("one"); await env.events.emit("step", new Map([[1n, undefined]])); return new Set([3]) }`;
    const events = await all(client.stream({ source, grants: ["events"] }));
    expect(events).toMatchObject([
      { type: "log", entry: { level: "log", args: ["one"] } },
      { type: "event", name: "step", seq: 1 },
      { type: "outcome", outcome: { status: "ok" } },
    ]);
    expect(events[1]).toHaveProperty("data", new Map([[1n, undefined]]));
    expect(events[2]).toHaveProperty("outcome.value", new Set([3]));
  });

  test("whose connection is cut in the middle of events goes on: none comes twice, none is lost", async () => {
    const source = `export default async (input, env) => {
      for (let i = 0; i < 30; i++) { console.log("é", i); await env.kv.set("a", i); } return "done" }`;
    const proxy = await cutting(it.service.address, { afterEvents: 7, times: 3 });
    try {
      const through = new Client({ baseUrl: proxy.address, apiKey: it.service.made?.key ?? "" });
      const events = await all(through.stream({ source, grants: ["kv"] }));
      expect(proxy.cuts()).toBe(3);
      const logs = events.flatMap((event) => (event.type === "log" ? [event.entry.args.join(" ")] : []));
      expect(logs).toEqual(Array.from({ length: 30 }, (_, i) => `é ${i}`));
      expect(events.at(-1)).toMatchObject({ type: "outcome", outcome: { status: "ok", value: "done" } });
    } finally {
      await proxy.close();
    }
  });

  test("of a quiet run goes on too", async () => {
    const source = "export default async (i, env) => { await env.kv.get('x'); return 1 }";
    const proxy = await cutting(it.service.address, { afterEvents: 0, times: 1 });
    try {
      const through = new Client({ baseUrl: proxy.address, apiKey: it.service.made?.key ?? "" });
      expect(await all(through.stream({ source, grants: ["kv"] }))).toMatchObject([{ type: "outcome" }]);
      expect(proxy.cuts()).toBe(1);
    } finally {
      await proxy.close();
    }
  });

  test("of a run that says nothing names the run at once", async () => {
    const silent = JSON.stringify({ source: "for (;;);", type: "script", limits: ENDLESS.limits });
    const headers = { accept: "text/event-stream", "content-type": "application/json", authorization: `Bearer ${it.service.made?.key}` }; // prettier-ignore
    const response = await fetch(`${it.service.address}/v1/runs`, { method: "POST", body: silent, headers });
    await client.cancel(response.headers.get("x-run-id") ?? ""); // before its limit of time, or it would be "stopped"
    expect(await response.text()).toContain('"status":"cancelled"');
  });

  test("that is cancelled by its id ends with that outcome", async () => {
    const events: RunEvent[] = [];
    for await (const event of client.stream(ENDLESS)) {
      events.push(event);
      if (event.type === "event") await client.cancel(event.run);
    }
    expect(events.at(-1)).toMatchObject({ type: "outcome", outcome: { status: "cancelled" } });
  });

  test("that is left or aborted cancels its run", async () => {
    let left = "";
    for await (const event of client.stream(ENDLESS)) {
      left = event.run;
      break;
    }
    expect(await endOf(left)).toBe("cancelled");
    const gone = new AbortController();
    let aborted = "";
    const listening = async () => {
      for await (const event of client.stream(ENDLESS, { signal: gone.signal })) {
        aborted = event.run;
        gone.abort();
      }
    };
    await expect(listening()).rejects.toMatchObject({ name: "AbortError" });
    expect(await endOf(aborted)).toBe("cancelled");
  });

  test("that may not begin rejects with the problem", async () => {
    const error = await refusal(all(client.stream({ ...ENDLESS, grants: ["nope"] })));
    expect(error).toMatchObject({ status: 403, code: "forbidden", problem: { errors: [{ field: "grants.nope" }] } }); // prettier-ignore
  });
});

describe("a stream from a network that fails", () => {
  afterEach(() => void vi.useRealTimers());
  const head = { "content-type": "text/event-stream", "x-run-id": "r" };
  const log = (id: number) => `id: ${id}\nevent: log\ndata: {"level":"log","args":["${id}"],"timeMs":0}\n\n`;
  /** Answers in turn; a text is a stream that ends there. */
  const scripted = (answers: (string | Error | Response)[]) => {
    const asked: { method: string; last: string | null }[] = [];
    const fetch = (_url: unknown, init: RequestInit = {}): Promise<Response> => {
      asked.push({ method: init.method ?? "", last: new Headers(init.headers).get("last-event-id") });
      if (init.method === "DELETE") return Promise.resolve(new Response(null, { status: 204 }));
      const answer = answers.shift() ?? new TypeError("fetch failed");
      if (answer instanceof Error) return Promise.reject(answer);
      return Promise.resolve(answer instanceof Response ? answer : new Response(answer, { headers: head }));
    };
    return { asked, client: new Client({ baseUrl: "http://service.invalid", apiKey: "k", fetch }) };
  };
  const listen = async (from: Client) => {
    vi.useFakeTimers();
    const seen: RunEvent[] = [];
    const listening = (async () => {
      for await (const event of from.stream({ source: "1" })) seen.push(event);
    })();
    const settled = listening.then(
      () => undefined,
      (error: unknown) => error as ServiceError,
    );
    await vi.advanceTimersByTimeAsync(120_000);
    return { seen, error: await settled };
  };
  const outcome = (id: number) => `id: ${id}\nevent: outcome\ndata: {"id":"r","outcome":{"status":"cancelled"}}\n\n`; // prettier-ignore

  test("is tried again after the last event, as long as something comes, and what comes again is dropped", async () => {
    const busy = Response.json({ type: "t", title: "t", status: 503, detail: "d", code: "draining", remedy: "r" }, { status: 503, headers: { "retry-after": "3" } }); // prettier-ignore
    const fails = [1, 2, 3, 4, 5].map(() => new TypeError("fetch failed"));
    const it = scripted([log(1), ...fails, log(1) + log(2), ...fails.slice(1), busy, `${log(3)}id: 4\nevent: out`, outcome(4)]); // prettier-ignore
    const { seen, error } = await listen(it.client);
    expect(error).toBeUndefined();
    expect(seen.map((event) => (event.type === "log" ? event.entry.args[0] : event.type))).toEqual(["1", "2", "3", "outcome"]); // prettier-ignore
    expect(it.asked.filter(({ method }) => method === "POST")).toHaveLength(1);
    expect(it.asked.at(-1)).toEqual({ method: "GET", last: "3" });
  });

  test("tells a question once, though it comes again until it is answered", async () => {
    const question = (id: number) =>
      `id: ${id}\nevent: approval\ndata: {"id":"1","text":"?","details":[]}\n\n`;
    const answered = 'id: 3\nevent: approval-end\ndata: {"id":"1","result":"approved"}\n\n';
    const it = scripted([log(1) + question(2), question(2), question(2) + answered, outcome(4)]);
    const { seen, error } = await listen(it.client);
    expect(error).toBeUndefined();
    expect(seen.map(({ type }) => type)).toEqual(["log", "approval", "approval-end", "outcome"]);
    expect(it.asked.map(({ last }) => last)).toEqual([null, "2", "2", "3"]);
  });

  test("ends with the network's error after six tries in vain", async () => {
    const it = scripted([log(1)]);
    const { seen, error } = await listen(it.client);
    expect(seen).toHaveLength(1);
    expect(error).toMatchObject({ code: "no-answer", status: 0, cause: { message: "fetch failed" } });
    expect(it.asked.filter(({ method }) => method === "GET")).toHaveLength(6);
    expect(it.asked.at(-1)?.method).toBe("DELETE");
  });

  test("is not begun twice, for it may have begun", async () => {
    const it = scripted([new TypeError("fetch failed"), log(1)]);
    expect((await listen(it.client)).error).toMatchObject({ code: "no-answer" });
    expect(it.asked).toHaveLength(1);
  });

  test("tells of a gap, and does not pass over events that are missing without one", async () => {
    const gap = 'id: 8\nevent: gap\ndata: {"missed":7}\n\n';
    const told = await listen(scripted([log(1) + gap + log(9) + outcome(10)]).client);
    expect(told.seen.map(({ type }) => type)).toEqual(["log", "gap", "log", "outcome"]);
    vi.useRealTimers();
    const silent = await listen(scripted([log(1) + log(3) + outcome(4)]).client);
    expect(silent.error).toMatchObject({ code: "bad-answer" });
  });
});

describe("scripts, secrets and the rest", () => {
  test("scripts are stored, read, listed over all pages, run and removed", async () => {
    const key = await it.tenant("pages");
    const own = new Client({ baseUrl: it.service.address, apiKey: key });
    const names = Array.from({ length: 230 }, (_, i) => `s${String(i).padStart(3, "0")}`);
    for (const name of names) await own.scripts.put(name, { source: `"${name}"`, type: "script" });
    expect((await all(own.scripts.list())).map(({ name }) => name)).toEqual(names);
    expect(await own.scripts.put("s000", { source: "2", type: "script" })).toMatchObject({ version: 2 });
    expect((await own.scripts.get("s000", 1)).content.source).toBe('"s000"');
    expect((await own.scripts.get("s000")).content).toEqual({ source: "2", type: "script", language: "javascript" }); // prettier-ignore
    expect((await own.run({ script: "s000" })).outcome).toMatchObject({ status: "ok", value: 2 });
    await own.scripts.remove("s000");
    expect((await refusal(own.scripts.get("s000"))).code).toBe("not-found");
  });

  test("secrets are stored, listed by name and removed", async () => {
    await client.secrets.put("API_TOKEN", "correct-horse");
    expect(await client.secrets.list()).toEqual([{ name: "API_TOKEN", updatedMs: expect.any(Number) }]);
    await client.secrets.remove("API_TOKEN");
    expect(await client.secrets.list()).toEqual([]);
  });

  test("whoami, types and usage say what they should", async () => {
    const facts = await client.whoami();
    expect(facts).toMatchObject({ limits: { wallMs: expect.any(Number) }, engines: expect.arrayContaining([facts.engine]) }); // prettier-ignore
    expect(facts.today.runs).toBeGreaterThan(0);
    expect(await client.types()).toContain("export interface Env {");
    const today = new Date().toISOString().slice(0, 10);
    expect(await client.usage({ from: "2020-01-01", to: "2020-01-02" })).toEqual([]);
    expect(await client.usage({ to: "9999-01-01", from: today.slice(0, 8) + "01" })).toBeInstanceOf(Array);
  });

  test("an administrator makes tenants and keys, and takes them away", async () => {
    const { settings } = await admin.tenants.put("acme", { name: "Acme", policy: { grants: { kv: true } } });
    expect(settings).toMatchObject({ name: "Acme", quotas: { runsPerDay: 1e6 } });
    expect(await admin.tenants.get("acme")).toEqual({ id: "acme", settings });
    expect(await admin.tenants.list()).toContainEqual({ id: "acme", name: "Acme", createdMs: expect.any(Number) }); // prettier-ignore
    const { id, key } = await admin.keys.create("acme", { name: "ci" });
    expect(await admin.keys.list("acme")).toMatchObject([{ id, name: "ci", expiresMs: null }]);
    const own = new Client({ baseUrl: it.service.address, apiKey: key });
    expect((await own.whoami()).tenant).toBe("acme");
    expect(await admin.usage("acme", { from: "2020-01-01", to: "2020-01-02" })).toEqual([]);
    await admin.keys.revoke("acme", id);
    expect(await refusal(own.whoami())).toMatchObject({ status: 401, code: "unauthorized" });
    await admin.tenants.remove("acme");
    expect((await refusal(admin.tenants.get("acme"))).status).toBe(404);
  });
});

describe("what goes wrong", () => {
  test("is a ServiceError with the field, the problem document and the time to wait", async () => {
    const wrong = await refusal(client.run({ source: "1", limits: { wallMs: 1 } }));
    expect(wrong).toMatchObject({ status: 400, code: "bad-request", problem: { errors: [{ field: "limits.wallMs" }] } }); // prettier-ignore
    expect(wrong.message).toContain(wrong.problem?.remedy);
    const key = await it.tenant("spent", { quotas: { runsPerDay: 0 } });
    const spent = await refusal(
      new Client({ baseUrl: it.service.address, apiKey: key }).run({ source: "1" }),
    );
    expect(spent).toMatchObject({ status: 429, code: "quota-exceeded" });
    expect(spent.retryAfterS).toBeGreaterThan(0);
    expect((await refusal(client.cancel("nope"))).code).toBe("not-found");
  });

  test("keeps the network's error as its cause", async () => {
    const closed = net.createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => closed.once("listening", resolve));
    const { port } = closed.address() as AddressInfo;
    await new Promise((resolve) => closed.close(resolve));
    const nobody = new Client({ baseUrl: `http://127.0.0.1:${port}`, apiKey: "k" });
    const error = await refusal(nobody.whoami());
    expect(error).toMatchObject({ status: 0, code: "no-answer", cause: { cause: { code: "ECONNREFUSED" } } });
  });

  test("may be an answer that no service gives", async () => {
    const saying = (text: string, status: number, headers: Record<string, string> = {}) =>
      new Client({ baseUrl: "http://x", apiKey: "k", fetch: () => Promise.resolve(new Response(text, { status, headers })) }); // prettier-ignore
    const page = saying("<h1>Bad Gateway</h1>", 502, { "retry-after": "7" });
    expect(await refusal(page.whoami())).toMatchObject({ status: 502, code: "bad-answer", problem: undefined, retryAfterS: 7 }); // prettier-ignore
    expect((await refusal(saying("<h1>Welcome</h1>", 200).whoami())).code).toBe("bad-answer");
    expect((await refusal(saying('{"id":"x"}', 200).run({ source: "1" }))).code).toBe("bad-answer");
    const hostile = '{"id":"x","outcome":{"status":"ok","value":{"__proto__":{"polluted":1}}}}';
    expect((await refusal(saying(hostile, 200).run({ source: "1" }))).code).toBe("bad-answer");
    expect((await refusal(all(saying("{}", 200, { "x-run-id": "r" }).stream({ source: "1" })))).code).toBe("bad-answer"); // prettier-ignore
  });

  test("is told before anything is sent, where it can be; a name never leads to another address", async () => {
    for (const baseUrl of ["nowhere", "ftp://x", "http://u:p@x", "http://x/?a"])
      expect(() => new Client({ baseUrl, apiKey: "k" })).toThrow(/baseUrl must be/);
    expect(() => new Client({ baseUrl: "http://x", apiKey: "a\nb" })).toThrow(/apiKey must be/);
    const paths: string[] = [];
    const fetch = (url: unknown): Promise<Response> => {
      paths.push(String(url));
      return Promise.resolve(new Response(null, { status: 204 }));
    };
    const below = new Client({ baseUrl: "http://x/below/", apiKey: "k", fetch });
    for (const name of ["", ".", ".."]) await expect(below.scripts.remove(name)).rejects.toThrow(TypeError);
    for (const name of ["../a", "a?b#c", "%2e%2e"]) await below.scripts.remove(name);
    expect(paths).toEqual(
      ["..%2Fa", "a%3Fb%23c", "%252e%252e"].map((it) => `http://x/below/v1/scripts/${it}`),
    );
  });

  test("does not hand the key to whoever a redirect names", async () => {
    const seen: string[] = [];
    const server = net.createServer((socket) => {
      socket.once("data", (text) => {
        seen.push(String(text).split(" ")[1] ?? "");
        socket.end(
          "HTTP/1.1 307 x\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    const led = new Client({ baseUrl: `http://127.0.0.1:${port}`, apiKey: "k" });
    expect((await refusal(led.secrets.put("A", "b"))).code).toBe("no-answer");
    expect(seen).toEqual(["/v1/secrets/A"]);
    await new Promise((resolve) => server.close(resolve));
  });
});
