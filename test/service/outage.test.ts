/** What the service does while its database is gone, and a database's other nodes while one of them is. */
import fs from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { finished, start as command } from "../cli/command.js";
import { audited, start, temporaryDirectory, type Answer, type Running } from "./harness.js";
import { describeWith, startPostgres, type Postgres } from "./servers.js";

const remove = async ({ service, dir }: Running) => {
  await service.close();
  fs.rmSync(path.dirname(dir), { recursive: true });
};
async function until(ask: () => Promise<Answer>, status: number): Promise<Answer> {
  for (;;) {
    const answer = await ask();
    if (answer.status === status) return answer;
  }
}
/** Resolves when so many runs have called a capability. */
async function untilCalled(dir: string, runs: number): Promise<void> {
  const calling = () => audited(dir).flatMap((line) => (line["kind"] === "call" ? [line["run"]] : []));
  while (new Set(calling()).size < runs) await new Promise((resolve) => setImmediate(resolve));
}
/** A service with a tenant that has time. */
async function startPatient(options: Parameters<typeof start>[0]): Promise<Running> {
  const it = await start(options);
  const policy = { limits: { wallMs: 20_000 }, grants: { kv: true } };
  await it.admin("PUT", "/admin/v1/tenants/default", { body: { policy } });
  return it;
}
/** Goes on until the store fails, then says so. */
const persistent = {
  source: `export default async (i, env) => {
    for (;;) {
      try { await env.kv.get("x"); } catch (error) { return error.code; }
      await new Promise((done) => setTimeout(done, 20));
    }
  }`,
  grants: ["kv"],
};

describeWith("PostgreSQL", "a service", () => {
  let server: Postgres;
  beforeAll(async () => {
    server = await startPostgres({ durable: true });
  });
  afterAll(() => server.stop());

  test("whose database is killed says so to its load balancer and to each client, and goes on when it is back", async () => {
    const it = await startPatient({ store: await server.database() });
    const ready = () => it.ask("GET", "/readyz", { key: "" });
    const run = { source: "6 * 7", type: "script" };
    expect((await it.ask("POST", "/v1/runs", { body: run })).status).toBe(200);

    const streamed = it.ask("POST", "/v1/runs", { body: persistent, headers: { accept: "text/event-stream" } }); // prettier-ignore
    const once = { body: persistent, headers: { "idempotency-key": "k" } };
    const asked = it.ask("POST", "/v1/runs", once);
    await untilCalled(it.dir, 2);
    await server.kill();
    // What is under way ends with its own outcome, for it has run.
    expect((await asked).body.outcome).toMatchObject({ status: "ok", value: "unavailable" });
    expect((await streamed).body).toMatch(/event: outcome\ndata: .*"value":"unavailable"/);

    expect((await until(ready, 503)).body).toMatchObject({ code: "host-cannot", detail: "the database cannot be reached" }); // prettier-ignore
    expect((await it.ask("GET", "/healthz", { key: "" })).status).toBe(200);
    for (const ask of [
      it.ask("POST", "/v1/runs", { body: run }),
      it.ask("GET", "/v1"),
      it.admin("GET", "/admin/v1/tenants"),
    ]) {
      const answer = await ask;
      expect(answer).toMatchObject({ status: 503, body: { code: "host-cannot" } });
      expect(Number(answer.headers.get("retry-after"))).toBeGreaterThan(0);
      expect(JSON.stringify(answer.body)).not.toMatch(/127\.0\.0\.1|ECONN|hush/);
    }

    await server.startAgain();
    await until(ready, 200);
    expect((await it.ask("POST", "/v1/runs", { body: run })).body.outcome).toMatchObject({ status: "ok", value: 42 }); // prettier-ignore
    // Its answer could not be kept: that is told, and it does not run again.
    expect(await it.ask("POST", "/v1/runs", once)).toMatchObject({ status: 409, body: { code: "idempotency-lost" } }); // prettier-ignore
    // And what was used before, in and after the outage is on the bill.
    expect((await it.ask("GET", "/v1/usage")).body.days).toMatchObject([{ runs: 4, ok: 4 }]);
    expect(it.log.join("")).not.toContain("hush");
    await remove(it);
  });

  test("ends in order though its database is gone", async () => {
    const other = await startPostgres();
    const it = await startPatient({ store: await other.database() });
    const asked = it.ask("POST", "/v1/runs", { body: persistent });
    await untilCalled(it.dir, 1);
    await other.kill();
    expect((await asked).body.outcome).toMatchObject({ status: "ok", value: "unavailable" });
    await it.service.close();
    expect(it.log.join("")).toContain("usage could not be written");
    expect(audited(it.dir).at(-1)).toMatchObject({ kind: "server", act: "stopped" });
    await remove(it);
    await other.stop();
  });

  test("goes on when another node is killed, and knows when what that one had under way is lost", async () => {
    const store = await server.database();
    const it = await startPatient({ store, node: "stays" });
    const data = temporaryDirectory();
    const other = command(
      ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data", data, "--sealing-key", path.join(it.dir, "sealing.key"), "--node", "goes"],
      { env: { DOUBLEHULL_STORE: store } },
    ); // prettier-ignore
    const ended = finished(other);
    const address = await new Promise<string>((resolve, reject) => {
      let said = "";
      other.stdout?.on("data", (text: string) => {
        const [, found] = /^runs +(\S+)\/v1\/runs$/m.exec((said += text)) ?? [];
        if (found !== undefined) resolve(found);
      });
      void ended.then(({ stderr }) => reject(new Error(stderr)));
    });
    const key = it.service.made?.key ?? "";
    const once = { body: persistent, headers: { "idempotency-key": "k" } };
    const asked = fetch(`${address}/v1/runs`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json", ...once.headers },
      body: JSON.stringify(once.body),
    });
    await untilCalled(data, 1);
    expect(await it.ask("POST", "/v1/runs", once)).toMatchObject({ status: 409, body: { code: "idempotency-busy" } }); // prettier-ignore
    other.kill("SIGKILL");
    await expect(asked).rejects.toThrow();
    expect((await ended).stdout).not.toContain("hush");

    const run = { source: "6 * 7", type: "script" };
    expect((await it.ask("POST", "/v1/runs", { body: run })).body.outcome).toMatchObject({ status: "ok", value: 42 }); // prettier-ignore
    expect((await it.ask("GET", "/readyz", { key: "" })).status).toBe(200);
    // It may live for all that others know, until its lease is over.
    expect((await it.ask("POST", "/v1/runs", once)).body.code).toBe("idempotency-busy");
    const later = await start({ store, sealingKey: path.join(it.dir, "sealing.key"), now: () => Date.now() + 60_000 }, it.service.made); // prettier-ignore
    expect((await later.ask("POST", "/v1/runs", once)).body.code).toBe("idempotency-lost");
    expect(new Set(audited(data).map(({ node }) => node))).toEqual(new Set(["goes"]));
    await remove(later);
    await remove(it);
    fs.rmSync(path.dirname(data), { recursive: true });
  });
});
