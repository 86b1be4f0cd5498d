/** A tenant that is removed, and one that is made anew with its id: nothing of the one is the other's. */
import { once } from "node:events";
import { expect, test } from "vitest";
import { audited, posted, sent, shared, until } from "./harness.js";

const it = shared();
const settings = { policy: { grants: { kv: true }, limits: { wallMs: 20_000, cpuMs: 20_000 } } };
const endless = { source: "export default async (i, env) => { await env.kv.set('x', 1); for (;;); }", grants: ["kv"] }; // prettier-ignore
const lines = (tenant: string, act: string) =>
  audited(it.dir).filter((line) => line["tenant"] === tenant && line["kind"] === "run" && line["act"] === act); // prettier-ignore
const remove = (tenant: string) => it.admin("DELETE", `/admin/v1/tenants/${tenant}`);

test("its runs are cancelled, and have ended when the removal is answered", async () => {
  const key = await it.tenant("leaving", settings);
  const run = (headers: Record<string, string>) => it.ask("POST", "/v1/runs", { key, body: endless, headers }); // prettier-ignore
  const [plain, kept, streamed] = [run({}), run({ "idempotency-key": "k" }), run({ accept: "text/event-stream" })]; // prettier-ignore
  const stays = new AbortController();
  const other = it.ask("POST", "/v1/runs", { key: await it.tenant("staying", settings), body: endless, signal: stays.signal }); // prettier-ignore
  await until(() => lines("staying", "started")[0]);
  await until(() => lines("leaving", "started")[2]);
  expect((await remove("leaving")).status).toBe(204);
  expect(lines("leaving", "finished").map(({ status }) => status)).toEqual(["cancelled", "cancelled", "cancelled"]); // prettier-ignore
  expect((await plain).body.outcome.status).toBe("cancelled");
  expect((await kept).body.outcome.status).toBe("cancelled");
  expect((await streamed).body).toContain('"status":"cancelled"');
  expect(lines("staying", "finished")).toEqual([]); // the control: it goes on
  stays.abort();
  await expect(other).rejects.toThrow(/abort/);
});

test("a request of its that was still arriving begins nothing", async () => {
  const key = await it.tenant("arriving", settings);
  const request = posted(key, { source: "1", type: "script" });
  const socket = await sent(it.service.address, request.slice(0, -5));
  // An answer to a later connection's request: the head of this one has been read, and its key has been looked up.
  for (let i = 0; i < 3; i++) expect((await it.ask("GET", "/v1", { key })).status).toBe(200);
  await remove("arriving");
  socket.write(request.slice(-5));
  const [answer] = (await once(socket, "data")) as [Buffer];
  expect(answer.toString("latin1")).toMatch(/^HTTP\/1.1 401 .*"code":"unauthorized"/s);
  expect(lines("arriving", "started")).toEqual([]);
  socket.destroy();
});

test("one that is made anew has its own policy, usage, answers and streams", async () => {
  const body = { source: "export default (i, env) => env.kv.increment('n')", grants: ["kv"] };
  const [once_, stream] = [{ "idempotency-key": "same" }, { accept: "text/event-stream" }];
  const old = await it.tenant("anew", settings);
  expect((await it.ask("POST", "/v1/runs", { key: old, body, headers: once_ })).body.outcome.value).toBe(1);
  const streamed = await it.ask("POST", "/v1/runs", { key: old, body, headers: stream });
  const events = (key: string) => it.ask("GET", `/v1/runs/${streamed.headers.get("x-run-id")}/events`, { key, headers: stream }); // prettier-ignore
  expect((await events(old)).body).toContain("event: outcome"); // the control
  expect((await it.ask("GET", "/v1", { key: old })).body.today.runs).toBe(2);
  await remove("anew");
  const key = await it.tenant("anew", { ...settings, policy: { limits: { wallMs: 1234 }, grants: { kv: true } } }); // prettier-ignore
  expect((await it.ask("GET", "/v1", { key })).body).toMatchObject({ limits: { wallMs: 1234 }, today: { runs: 0 } }); // prettier-ignore
  expect((await events(key)).status).toBe(404);
  const again = await it.ask("POST", "/v1/runs", { key, body, headers: once_ });
  expect(again.headers.get("idempotency-replayed")).toBeNull();
  expect(again.body.outcome.value).toBe(1);
  expect((await it.ask("GET", "/v1/usage", { key })).body.days).toMatchObject([{ runs: 1 }]);
});
