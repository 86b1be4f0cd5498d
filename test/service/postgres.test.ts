/** Several nodes of the service on one PostgreSQL. */
import fs from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { Client } from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openDatabase } from "#server/service/database";
import { postgresStore } from "#server/service/kv-postgres";
import { audited, start, temporaryDirectory, type Answer, type Running } from "./harness.js";
import { describeWith, startPostgres, type Postgres } from "./servers.js";

const nobody = { key: "", adminKey: "" };
const remove = async (...nodes: Running[]) => {
  for (const { service, dir } of nodes) {
    await service.close();
    fs.rmSync(path.dirname(dir), { recursive: true });
  }
};

describeWith("PostgreSQL", "two nodes on one database", () => {
  let server: Postgres;
  let store: string;
  let sealingKey: string;
  let [a, b]: Running[] = [];
  beforeAll(async () => {
    server = await startPostgres();
    store = await server.database();
    sealingKey = path.join(path.dirname(temporaryDirectory()), "shared.key");
    a = await start({ store, sealingKey, node: "a" });
    b = await start({ store, sealingKey, node: "b" }, a.service.made);
  });
  afterAll(async () => {
    await remove(a, b);
    await server.stop();
    fs.rmSync(path.dirname(sealingKey), { recursive: true });
  });

  const limits = { wallMs: 15_000, cpuMs: 5000 };
  const kvPolicy = { policy: { limits, grants: { kv: true } } };
  const runOn = (node: Running, body: object, more: object = {}) =>
    node.ask("POST", "/v1/runs", { body, ...more });
  /** A query beside the service. */
  async function query(sql: string, values: unknown[] = []): Promise<Record<string, unknown>[]> {
    const client = new Client(store);
    await client.connect();
    const { rows } = await client.query<Record<string, unknown>>(sql, values);
    await client.end();
    return rows;
  }

  test("know each other's scripts, keys, policies and secrets at once", async () => {
    const key = await a.tenant("shared", kvPolicy);
    await a.ask("PUT", "/v1/scripts/greet", {
      key,
      body: { source: "export default (name) => 'hi ' + name" },
    });
    const greeted = await runOn(b, { script: "greet", input: "Ada" }, { key });
    expect(greeted.body.outcome).toMatchObject({ status: "ok", value: "hi Ada" });
    await b.admin("PUT", "/admin/v1/tenants/shared", { body: { policy: {} } });
    const kv = { source: "export default (i, env) => env.kv.get('x')", grants: ["kv"] };
    expect((await runOn(a, kv, { key })).body.errors[0].field).toBe("grants.kv");
    const id = /^dh_([0-9a-f]+)_/.exec(key)?.[1] ?? "";
    expect((await a.admin("DELETE", `/admin/v1/tenants/shared/keys/${id}`)).status).toBe(204);
    expect((await b.ask("GET", "/v1", { key })).status).toBe(401);
  });

  test("send out a secret that was stored on the other", async () => {
    let heard = "";
    const target = http.createServer(({ headers }, response) => {
      heard = headers.authorization ?? "";
      response.end("yes");
    });
    await new Promise<void>((ready) => target.listen(0, "127.0.0.1", ready));
    const origin = `http://127.0.0.1:${(target.address() as AddressInfo).port}`;
    const inject = [{ host: "127.0.0.1", header: "authorization", scheme: "Bearer", secret: { env: "TOKEN" } }]; // prettier-ignore
    const key = await a.tenant("secretive", { policy: { limits, grants: { http: { allow: [`${origin}/*`], open: ["127.0.0.1/32"], inject } } } }); // prettier-ignore
    await a.ask("PUT", "/v1/secrets/TOKEN", { key, body: { value: "of-both-nodes" } });
    const source = "export default async (url) => (await fetch(url)).text()";
    const answer = await runOn(b, { source, input: `${origin}/x`, grants: ["http"] }, { key });
    target.close();
    expect(answer.body.outcome).toMatchObject({ status: "ok", value: "yes" });
    expect(heard).toBe("Bearer of-both-nodes");
    expect(JSON.stringify(await query("SELECT * FROM secrets"))).not.toContain("of-both-nodes");
  });

  test("write to one key-value store: no update is lost, and no quota overrun", async () => {
    const grants = { kv: { quotaBytes: 3000, namespace: "n" }, counts: { type: "kv", namespace: "counts" } };
    const key = await a.tenant("writers", { policy: { limits, grants } });
    const count = "export default async (i, env) => { for (let n = 0; n < 25; n++) await env.counts.increment('n'); }"; // prettier-ignore
    const counted = [a, b, a, b].map((node) => runOn(node, { source: count, grants: ["counts"] }, { key }));
    for (const { body } of await Promise.all(counted)) expect(body.outcome.status).toBe("ok");
    const read = "export default (i, env) => env.counts.get('n')";
    expect((await runOn(b, { source: read, grants: ["counts"] }, { key })).body.outcome.value).toBe(100);
    // Each entry has 3 + 100 bytes or so: 29 or less fit.
    const fill = `export default async (id, env) => {
      let kept = 0;
      for (let n = 0; n < 25; n++)
        try { await env.kv.set(id + (10 + n), "x".repeat(98)); kept++; } catch (error) { if (error.code !== "quota") throw error; }
      return kept;
    }`;
    const filled = ["a", "b"].map((input, i) => runOn(i === 0 ? a : b, { source: fill, input, grants: ["kv"] }, { key })); // prettier-ignore
    const kept = (await Promise.all(filled)).map(({ body }) => body.outcome.value as number);
    const [usage] = await query("SELECT keys, bytes FROM kv_spaces WHERE namespace LIKE 'writers/%/n'");
    const [rows] = await query("SELECT count(*) AS keys, sum(e.bytes) AS bytes FROM kv_entries AS e JOIN kv_spaces AS s ON s.id = space WHERE namespace LIKE 'writers/%/n'"); // prettier-ignore
    expect(usage).toEqual(rows);
    expect(Number(usage?.["keys"])).toBe((kept[0] ?? 0) + (kept[1] ?? 0));
    expect(Number(usage?.["bytes"])).toBeLessThanOrEqual(3000);
    expect(Number(usage?.["bytes"])).toBeGreaterThan(3000 - 103);
    expect((await a.admin("DELETE", "/admin/v1/tenants/writers")).status).toBe(204);
    expect(await query("SELECT 1 FROM kv_spaces WHERE namespace LIKE 'writers/%'")).toEqual([]);
    expect(await query("SELECT 1 FROM kv_entries")).toEqual([]);
  });

  test("keep keys of any length apart and in order, as every store does", async () => {
    const db = await openDatabase(store);
    const kv = postgresStore(db);
    const long = (end: string) => "\u{1f6a2}".repeat(1000) + end; // 4000 bytes, more than an index takes
    const entry = (text: string) => ({ text, blob: new Uint8Array(), version: text, expiresMs: undefined });
    const tail = (key: string) => Buffer.from(key).toString("hex").slice(-8);
    const all = { nowMs: 0, ifVersion: undefined, maxBytes: 1e9, maxKeys: 1e9 };
    const keys = [long("\u{10ffff}"), long("b"), long("B"), long("a"), "z", "B", "\ue000", "\u{10000}"];
    for (const key of keys) expect(await kv.set("long", key, entry(tail(key)), all)).toBe("stored");
    expect(await kv.list("long", { prefix: "", after: undefined, limit: 10 }, 0)).toEqual([
      "B", "z", "\ue000", "\u{10000}", long("B"), long("a"), long("b"), long("\u{10ffff}"),
    ]); // prettier-ignore
    expect(await kv.list("long", { prefix: long(""), after: long("a"), limit: 10 }, 0)).toEqual([long("b"), long("\u{10ffff}")]); // prettier-ignore
    for (const key of keys) expect((await kv.get("long", key, 0))?.text).toBe(tail(key));
    await kv.removeSpaces("lon");
    await db.close();
  });

  test("run a request with an Idempotency-Key once, whichever of them is asked", async () => {
    const key = await a.tenant("once", kvPolicy);
    const body = {
      source: "export default async (i, env) => { const n = await env.kv.increment('n'); await new Promise((done) => setTimeout(done, 300)); return n }", // prettier-ignore
      grants: ["kv"],
    };
    const send = (node: Running) => runOn(node, body, { key, headers: { "idempotency-key": "k" } });
    const answers = await Promise.all([send(a), send(b), send(a), send(b)]);
    expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThan(0);
    for (const { status, body: answer } of answers) {
      if (status === 200) expect(answer.outcome.value).toBe(1);
      else expect({ status, code: answer.code }).toEqual({ status: 409, code: "idempotency-busy" });
    }
    const [first, second] = [await send(a), await send(b)];
    expect(first.body).toEqual(second.body);
    expect(second.headers.get("idempotency-replayed")).toBe("true");
  });

  test("add up what a tenant used, and hold it to its day together", async () => {
    const key = await a.tenant("frugal", { quotas: { runsPerDay: 5 } });
    const runs = async (node: Running) => (await node.ask("GET", "/v1", { key })).body.today.runs as number;
    const one = { source: "1", type: "script" };
    for (let i = 0; i < 3; i++) expect((await runOn(a, one, { key })).status).toBe(200);
    while ((await runs(b)) < 3); // a second or two later
    for (let i = 0; i < 2; i++) expect((await runOn(b, one, { key })).status).toBe(200);
    while ((await runs(a)) < 5);
    for (const node of [a, b]) {
      expect(await runOn(node, one, { key })).toMatchObject({
        status: 429,
        body: { code: "quota-exceeded" },
      });
      expect((await node.ask("GET", "/v1/usage", { key })).body.days).toMatchObject([{ runs: 5, ok: 5 }]);
    }
  });

  test("name themselves in their audit logs", () => {
    expect(new Set(audited(a.dir).map(({ node }) => node))).toEqual(new Set(["a"]));
    expect(new Set(audited(b.dir).map(({ node }) => node))).toEqual(new Set(["b"]));
  });

  test("answer what waits for a tenant that is being removed with a problem", async () => {
    const key = await a.tenant("leaving");
    const one = { source: "1", type: "script" };
    const remover = new Client(store);
    await remover.connect();
    await remover.query("BEGIN");
    await remover.query("DELETE FROM tenants WHERE id = 'leaving'");
    const asked = [
      b.ask("PUT", "/v1/scripts/s", { key, body: { source: "1" } }),
      b.ask("PUT", "/v1/secrets/S", { key, body: { value: "1" } }),
      runOn(b, one, { key, headers: { "idempotency-key": "k" } }),
      b.admin("POST", "/admin/v1/tenants/leaving/keys", { body: {} }),
    ];
    const waiting = "SELECT count(*) AS count FROM pg_locks WHERE NOT granted";
    while (Number((await query(waiting))[0]?.["count"]) < asked.length);
    await remover.query("COMMIT");
    await remover.end();
    for (const { status, body } of await Promise.all(asked)) expect({ status, code: body.code }).toEqual({ status: 404, code: "not-found" }); // prettier-ignore
  });

  test("refuse U+0000 by its field, which the database could not keep", async () => {
    const field = async (answer: Promise<Answer>) => (await answer).body.errors?.[0];
    const refused = (name: string) => ({ field: name, message: expect.stringContaining("U+0000") });
    for (const node of [a, b]) {
      const put = (id: string, name: string) =>
        node.admin("PUT", `/admin/v1/tenants/${id}`, { body: { name } });
      expect(await field(put("nul", "a\0b"))).toEqual(refused("name"));
      expect(await field(node.admin("POST", "/admin/v1/tenants/default/keys", { body: { name: "\0" } }))).toEqual(refused("name")); // prettier-ignore
      expect(await field(node.admin("DELETE", "/admin/v1/tenants/default/keys/%00"))).toEqual(refused("key"));
      expect(await field(node.ask("GET", "/v1/scripts?after=%00"))).toEqual(refused("after"));
      expect(await field(node.ask("GET", "/v1/jobs?batch=%00"))).toEqual(refused("batch"));
      expect(await field(node.ask("GET", "/v1/jobs?before=%00"))).toMatchObject({ field: "before" });
      const stream = { headers: { accept: "text/event-stream" } };
      for (const [method, route, more] of [
        ["GET", "/v1/jobs/%00"], ["GET", "/v1/jobs/%00/events", stream], ["POST", "/v1/jobs/%00/cancel"], ["POST", "/v1/jobs/%00/retry"], ["DELETE", "/v1/jobs/%00"],
        ["GET", "/v1/batches/%00"], ["POST", "/v1/batches/%00/cancel"],
      ] as const) expect({ route, field: await field(node.ask(method, route, more)) }).toEqual({ route, field: refused("id") }); // prettier-ignore
      // In what is kept as JSON it is a text like any other.
      const source = 'export default () => "\0"';
      expect((await node.ask("PUT", "/v1/scripts/nul", { body: { source } })).status).toBeLessThan(300);
      expect((await runOn(node, { script: "nul" })).body.outcome.value).toBe("\0");
      expect((await put("controls", "a\u0001b")).status).toBeLessThan(300); // the control
    }
  });
});

describeWith("PostgreSQL", "the first start", () => {
  let server: Postgres;
  beforeAll(async () => {
    server = await startPostgres();
  });
  afterAll(() => server.stop());

  test("of two nodes at the same moment makes one tenant, one administrator and one sealing key", async () => {
    const store = await server.database();
    const sealingKey = path.join(path.dirname(temporaryDirectory()), "shared.key");
    const both = await Promise.all(["a", "b"].map((node) => start({ store, sealingKey, node }, nobody)));
    const made = both.flatMap(({ service }) => (service.made === undefined ? [] : [service.made]));
    expect(made).toHaveLength(1);
    const { key, adminKey } = made[0] ?? nobody;
    for (const node of both) {
      expect((await node.ask("POST", "/v1/runs", { key, body: { source: "7", type: "script" } })).body.outcome.value).toBe(7); // prettier-ignore
      expect((await node.admin("GET", "/admin/v1/tenants", { key: adminKey })).body.tenants).toHaveLength(1);
    }
    await remove(...both);
    expect(fs.readdirSync(path.dirname(sealingKey))).toEqual(["shared.key"]);
    fs.rmSync(path.dirname(sealingKey), { recursive: true });
  });

  test("with another sealing key than the database's is refused with its remedy, and leaves none behind", async () => {
    const store = await server.database();
    const one = await start({ store });
    const keyFile = path.join(one.dir, "sealing.key");
    const refused = { code: "host-cannot", field: "sealing-key", remedy: expect.stringContaining("--sealing-key") }; // prettier-ignore
    const [without, second, third] = [temporaryDirectory(), temporaryDirectory(), temporaryDirectory()];
    await expect(start({ store, dataDir: without }, nobody)).rejects.toMatchObject(refused);
    expect(fs.readdirSync(without)).toEqual(["audit"]);
    const other = path.join(path.dirname(without), "other.key");
    fs.writeFileSync(other, Buffer.alloc(32, 7), { mode: 0o600 });
    await expect(start({ store, dataDir: second, sealingKey: other }, nobody)).rejects.toMatchObject(refused);
    fs.copyFileSync(keyFile, other);
    fs.chmodSync(other, 0o604);
    const open = { ...refused, remedy: expect.stringContaining("chmod") };
    await expect(start({ store, dataDir: third, sealingKey: other }, nobody)).rejects.toMatchObject(open);
    fs.chmodSync(other, 0o600);
    const two = await start({ store, sealingKey: other }, one.service.made); // the control
    await remove(one, two);
    for (const dir of [without, second, third]) fs.rmSync(path.dirname(dir), { recursive: true });
  });
});
