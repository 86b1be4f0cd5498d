/** The HTTP service under clients and operators that it must outlive. */
import net, { type AddressInfo } from "node:net";
import { describe, expect, test } from "vitest";
import { AuditLog } from "#server/service/audit-log";
import { descriptorsOf, families, members } from "../harness.js";
import { audited, end, posted, sent, shared, start, temporaryDirectory, until } from "./harness.js";

const it = shared();

const stream = { accept: "text/event-stream" };
const settings = (quotas: object = {}) => ({
  policy: { limits: { wallMs: 20_000, cpuMs: 20_000 }, grants: { kv: true, events: true } },
  quotas,
});
const endless = { source: "export default async (i, env) => { await env.kv.get('x'); for (;;); }", grants: ["kv"] }; // prettier-ignore

const runsOf = (dir: string, tenant: string, act: string) =>
  audited(dir).filter((line) => line["tenant"] === tenant && line["act"] === act && line["kind"] === "run");

test("requests without a key fill the audit log with so many lines a minute, and hold up nobody who has one", async () => {
  const one = await start({ now: () => 1_900_000_000_000 });
  const statuses = new Set<number>();
  for (let i = 0; i < 700; i += 50) {
    const asked = () => one.ask("GET", "/v1", { key: "nobody" });
    for (const { status } of await Promise.all(Array.from({ length: 50 }, asked))) statuses.add(status);
  }
  expect([...statuses]).toEqual([401, 429]);
  expect(audited(one.dir).filter(({ kind }) => kind === "auth")).toHaveLength(600);
  expect((await one.ask("GET", "/v1")).status).toBe(200);
  expect((await one.ask("GET", "/v1", { key: one.service.made?.adminKey ?? "" })).status).toBe(401);
  expect(audited(one.dir).filter(({ reason }) => reason === "forbidden")).toHaveLength(1);
  await end(one);
});

describe("what a client accepts", () => {
  test.each(["text/event-stream;q=0", "application/json, text/event-stream; q=0", "text/event-streams"])(
    "as %s is answered with a body, not a stream",
    async (accept) => {
      const answer = await it.ask("POST", "/v1/runs", { body: { source: "1", type: "script" }, headers: { accept } }); // prettier-ignore
      expect(answer).toMatchObject({ status: 200, body: { outcome: { value: 1 } } });
    },
  );

  test("as a stream in a list of others is a stream", async () => {
    const headers = { accept: "application/json;q=0.5, TEXT/event-stream" };
    const answer = await it.ask("POST", "/v1/runs", { body: { source: "1", type: "script" }, headers });
    expect(answer.headers.get("content-type")).toContain("text/event-stream");
  });
});

test("an address that no route can be looked up for is a problem document, too", async () => {
  for (const route of ["/v1/scripts/%zz", `/v1/scripts/${"a".repeat(300)}`]) {
    const answer = await it.ask("GET", route);
    expect(answer).toMatchObject({ status: 400, body: { code: "bad-request" } });
    expect(answer.headers.get("content-type")).toContain("application/problem+json");
    expect(answer.body.detail).not.toContain("zz");
  }
});

describe("streams", () => {
  test("tell events with values that JSON has not", async () => {
    const source = "export default (i, env) => env.events.emit('x', { n: 1n, m: new Map([[1, 2]]) })";
    const answer = await it.ask("POST", "/v1/runs", { body: { source, grants: ["events"] }, headers: stream }); // prettier-ignore
    expect(answer.body).toContain('"n":{"$type":"bigint","value":"1"}');
    expect(answer.body).toContain('"m":{"$type":"Map","entries":[[1,2]]}');
    expect(answer.body).toContain("event: outcome");
  });

  test("of one tenant, as many as it likes, leave room for another's", async () => {
    const hog = await it.tenant("hog", settings({ runsPerDay: 0, requestsPerMinute: 1e6 }));
    const asked = (key: string) => it.ask("POST", "/v1/runs", { key, body: { source: "1", type: "script" }, headers: stream }); // prettier-ignore
    for (let i = 0; i < 1050; i += 50) {
      const answers = await Promise.all(Array.from({ length: 50 }, () => asked(hog)));
      expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200));
      if (i === 0) expect(answers[0]?.body).toContain("quota-exceeded"); // the control
    }
    expect((await asked(await it.tenant("other", settings()))).body).toContain("event: outcome");
  });

  test("of much that nobody reads keep no more than their bound, and tell the gap", async () => {
    const key = await it.tenant("loud", settings());
    const source = "export default async (i, env) => { for (let n = 0; n < 400; n++) await env.events.emit('x', 'y'.repeat(60000)) }"; // prettier-ignore
    const socket = await sent(it.service.address, posted(key, { source, grants: ["events"] }, "Accept: text/event-stream\r\n")); // prettier-ignore
    socket.pause();
    const { run } = await until(() => runsOf(it.dir, "loud", "finished")[0]);
    socket.destroy();
    const again = await it.ask("GET", `/v1/runs/${String(run)}/events`, { key, headers: stream });
    expect(again.body).toContain("event: gap");
    expect(again.body).toContain("event: outcome");
    expect(again.body.length).toBeLessThan(17 * 1024 * 1024);
  });

  test("whose client stopped reading and went away are cancelled like any other", async () => {
    const key = await it.tenant("stalled", settings());
    const source = "export default async (i, env) => { for (let n = 0; n < 200; n++) await env.events.emit('x', 'y'.repeat(60000)); for (;;); }"; // prettier-ignore
    const socket = await sent(it.service.address, posted(key, { source, grants: ["events"] }, "Accept: text/event-stream\r\n")); // prettier-ignore
    socket.pause();
    await until(() => audited(it.dir).filter((line) => line["tenant"] === "stalled" && line["kind"] === "call" && line["decision"] === "done")[150]); // prettier-ignore
    socket.destroy();
    const end = await until(() => runsOf(it.dir, "stalled", "finished")[0]);
    expect(end["status"]).toBe("cancelled");
  }, 30_000);
});

test("runs that were asked for on one connection are all cancelled when it ends", async () => {
  const key = await it.tenant("pipelined", settings());
  const socket = await sent(it.service.address, posted(key, endless).repeat(3));
  await until(() => runsOf(it.dir, "pipelined", "started")[2]);
  socket.destroy();
  const ends = await until(() => (runsOf(it.dir, "pipelined", "finished").length === 3 ? runsOf(it.dir, "pipelined", "finished") : undefined)); // prettier-ignore
  expect(ends.map((line) => line["status"])).toEqual(["cancelled", "cancelled", "cancelled"]);
});

test("a day's runs are not exceeded by those that are asked for at once", async () => {
  const key = await it.tenant("racing", settings({ runsPerDay: 2 }));
  const body = { source: "let n = 0; for (let i = 0; i < 3e6; i++) n += i; n", type: "script" };
  const answers = await Promise.all(Array.from({ length: 12 }, () => it.ask("POST", "/v1/runs", { key, body }))); // prettier-ignore
  expect(answers.filter(({ status }) => status === 200)).toHaveLength(2);
  expect(runsOf(it.dir, "racing", "started")).toHaveLength(2);
});

test("a tenant that is made anew with the name of one that is gone finds nothing in its store", async () => {
  const body = (source: string) => ({ body: { source: `export default (i, env) => env.kv.${source}`, grants: ["kv"] } }); // prettier-ignore
  const value = async (key: string, source: string) => (await it.ask("POST", "/v1/runs", { key, ...body(source) })).body.outcome.value; // prettier-ignore
  const [old, like] = [await it.tenant("again", settings()), await it.tenant("again-2", settings())];
  for (const key of [old, like]) await value(key, "set('x', 'kept')");
  expect(await value(old, "get('x')")).toBe("kept"); // the control
  await it.admin("DELETE", "/admin/v1/tenants/again");
  expect(await value(await it.tenant("again", settings()), "get('x') ?? 'nothing'")).not.toBe("kept");
  expect(await value(like, "get('x')")).toBe("kept");
});

test("a directory of the host is named to its administrator and to no tenant", async () => {
  const root = "/nowhere/of-this-host";
  const key = await it.tenant("filed", { policy: { grants: { files: { root } } } });
  const policy = await it.ask("GET", "/v1", { key });
  expect(policy.body.grants).toMatchObject([{ what: "reads files below a directory of the service" }]);
  const source = "export default (i, env) => env.files.list('.')";
  const run = await it.ask("POST", "/v1/runs", { key, body: { source, grants: ["files"] } });
  expect(run).toMatchObject({ status: 503, body: { code: "host-cannot" } });
  expect(JSON.stringify([policy.body, run.body])).not.toContain("nowhere");
  expect(it.log.join("")).toContain(root); // the operator's log says what is missing
});

test("a run that was begun and refused by the sandbox has its end in the audit log, and is not on the bill", async () => {
  const key = await it.tenant("refused", settings());
  const input = JSON.parse("[".repeat(100) + "]".repeat(100)) as unknown;
  const body = { source: "1", type: "script", input };
  const answer = await it.ask("POST", "/v1/runs", { key, body });
  expect(answer).toMatchObject({ status: 400, body: { code: "bad-request" } });
  const begun = runsOf(it.dir, "refused", "started");
  expect(begun).toHaveLength(1); // the control
  expect(runsOf(it.dir, "refused", "refused")).toMatchObject([
    { run: begun[0]?.["run"], code: "bad-request" },
  ]);
  expect((await it.ask("GET", "/v1", { key })).body.today.runs).toBe(0);
});

test("a secret stands in no answer, log or line when the request that it goes out with fails", async () => {
  const values = ["hush-1234-abcd", "hush-line\nhush-next", "hush-\u2603-snow"];
  for (const [i, value] of values.entries()) {
    const inject = [{ host: "127.0.0.1", header: "x-token", secret: { env: "TOKEN" } }];
    const policy = { grants: { http: { allow: ["http://127.0.0.1:1/*"], open: ["127.0.0.1/32"], inject } } };
    const key = await it.tenant(`hush-${i}`, { policy });
    await it.ask("PUT", "/v1/secrets/TOKEN", { key, body: { value } });
    const source = "export default async () => { try { await fetch('http://127.0.0.1:1/x') } catch (error) { return String(error.stack) + error } }"; // prettier-ignore
    const answer = await it.ask("POST", "/v1/runs", { key, body: { source, grants: ["http"] } });
    // One goes out and is not answered; the others are no header.
    expect(i === 0 ? answer.body.outcome.value : answer.body.detail).toContain(
      i === 0 ? "fetch failed" : "must be printable ASCII",
    );
    expect(JSON.stringify(answer.body)).not.toMatch(/hush-(?!\d)|hush-1234/);
  }
  expect(it.log.join("") + JSON.stringify(audited(it.dir))).not.toMatch(/hush-(?!\d")|hush-1234/);
});

describe("bodies that are announced and do not come", () => {
  test("have so much room in all of one tenant, and give it back when they are gone", async () => {
    const { key = "" } = it.service.made ?? {};
    const { port } = new URL(it.service.address);
    const bytes = 15 * 1024 * 1024;
    const sockets: net.Socket[] = [];
    /** Announces a body and sends a byte of it; resolves to the answer's first line if one comes before the body has. */
    const announce = () =>
      new Promise<string>((resolve) => {
        const socket = net.connect(Number(port), "127.0.0.1");
        sockets.push(socket);
        socket.on("error", () => {}); // it may be cut with the answer
        socket.on("data", (data) => resolve(data.toString("latin1").split("\r\n")[0] ?? ""));
        socket.write(`POST /v1/runs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${key}\r\ncontent-type: application/json\r\ncontent-length: ${bytes}\r\n\r\n{`); // prettier-ignore
      });
    expect(await Promise.race(Array.from({ length: 6 }, announce))).toBe("HTTP/1.1 503 Service Unavailable");
    const other = await it.tenant("unhindered");
    expect(
      (await it.ask("POST", "/v1/runs", { key: other, body: { source: "1", type: "script" } })).status,
    ).toBe(200);
    for (const socket of sockets) socket.destroy();
    const input = "x".repeat(1024 * 1024);
    const body = { source: "export default (text) => text.length", input };
    for (;;) {
      const { status, body: answer } = await it.ask("POST", "/v1/runs", { body });
      if (status === 200) return expect(answer.outcome.value).toBe(input.length);
      expect(status).toBe(503); // the sockets' ends are on their way
    }
  });
});

describe("an audit log that cannot be written", () => {
  test("stops changes of policies, new keys and runs before they are made", async () => {
    const one = await start();
    const key = await one.tenant("known", settings());
    const append = AuditLog.prototype.append; // oxlint-disable-line typescript/unbound-method -- put back below
    AuditLog.prototype.append = () => {
      throw new Error("no space left");
    };
    const changed = await one.admin("PUT", "/admin/v1/tenants/known", { body: { name: "changed" } });
    const made = await one.admin("PUT", "/admin/v1/tenants/made", { body: {} });
    const more = await one.admin("POST", "/admin/v1/tenants/known/keys", { body: {} });
    const run = await one.ask("POST", "/v1/runs", { key, body: { source: "1", type: "script" } });
    AuditLog.prototype.append = append;
    expect([changed, made, more, run].map(({ status }) => status)).toEqual([500, 500, 500, 500]);
    expect((await one.admin("GET", "/admin/v1/tenants/known")).body.settings.name).toBe("");
    expect((await one.admin("GET", "/admin/v1/tenants/made")).status).toBe(404);
    expect((await one.admin("GET", "/admin/v1/tenants/known/keys")).body.keys).toHaveLength(1);
    expect((await one.ask("GET", "/v1", { key })).body.today.runs).toBe(0);
    expect((await one.ask("POST", "/v1/runs", { key, body: { source: "1", type: "script" } })).status).toBe(200); // prettier-ignore
    await end(one);
  });
});

test("a service that starts with less than a policy has tells the operator's mistake as the operator's", async () => {
  const one = await start();
  const made = one.service.made ?? { key: "", adminKey: "" };
  await one.service.close();
  const less = await start({ dataDir: one.dir, limits: { wallMs: 1000, cpuMs: 1000 } }, made);
  expect(await less.ask("GET", "/v1")).toMatchObject({ status: 503, body: { code: "host-cannot" } });
  expect(less.log.join("")).toContain("policy.limits.wallMs");
  const fitting = { body: { policy: { limits: { wallMs: 1000, cpuMs: 1000 } } } };
  expect((await less.admin("PUT", "/admin/v1/tenants/default", fitting)).status).toBe(200);
  expect((await less.ask("GET", "/v1")).status).toBe(200);
  await end(less);
});

test("no keeper, zygote or worker has a descriptor of the service's data, its lock or its sockets", async () => {
  await it.ask("POST", "/v1/runs", { body: { source: "1", type: "script" } }); // it has worked with all that
  const ofData = (pid: number) => descriptorsOf(pid).filter(({ target }) => target.startsWith(it.dir));
  const lock = `${it.dir}/audit`;
  expect(ofData(process.pid).map(({ target }) => target)).toContain(lock); // the control
  const family = await until(() => families().find(({ workers }) => workers.length > 0));
  expect(family.zygote).toBeDefined();
  const sockets = new Set(descriptorsOf(process.pid).map(({ target }) => target).filter((target) => target.startsWith("socket:"))); // prettier-ignore
  for (const { pid } of members(family)) {
    const open = descriptorsOf(pid);
    expect(open.length).toBeGreaterThan(0);
    expect(ofData(pid)).toEqual([]);
    expect(open.filter(({ target }) => sockets.has(target))).toEqual([]);
  }
});

describe("a first start", () => {
  test("that fails has made no keys: the next one tells them", async () => {
    const taken = net.createServer();
    await new Promise<void>((ready) => taken.listen(0, "127.0.0.1", ready));
    const dataDir = temporaryDirectory();
    const { port } = taken.address() as AddressInfo;
    await expect(start({ dataDir, adminPort: port })).rejects.toMatchObject({ code: "host-cannot" });
    taken.close();
    const next = await start({ dataDir });
    expect(next.service.made).toMatchObject({ tenant: "default" });
    await end(next);
  });
});

describe("a service that ends", () => {
  test("does not wait for clients that send or read for ever", async () => {
    const one = await start();
    const key = one.service.made?.key ?? "";
    const source = "export default async (i, env) => { for (let n = 0; n < 200; n++) await env.events.emit('x', 'y'.repeat(60000)) }"; // prettier-ignore
    const reader = await sent(one.service.address, posted(key, { source, grants: ["events"] }, "Accept: text/event-stream\r\n")); // prettier-ignore
    reader.pause();
    const sender = await sent(one.service.address, posted(key, { source: "1" }).slice(0, -3));
    await until(() => runsOf(one.dir, "default", "finished")[0]);
    await one.service.close();
    expect(audited(one.dir).at(-1)).toMatchObject({ kind: "server", act: "stopped" });
    reader.destroy();
    sender.destroy();
    await end(one);
  }, 30_000);
});
