/** Callbacks: what a receiver gets, what becomes of them when it does not answer, and where they never go. */
import { createHmac } from "node:crypto";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { audited, end, start, type Running } from "./harness.js";

interface Received {
  url: string;
  headers: http.IncomingHttpHeaders;
  body: string;
}

let it: Running;
let key: string;
let ahead = 0;
let receiver: http.Server;
let port: number;
let received: Received[] = [];
let careless = 0;
let answer: (
  at: number,
) => { status: number; headers?: Record<string, string>; body?: string } | "silent" = () => ({ status: 200 });

/** Tests look again and again. */
const quotas = { requestsPerMinute: 1e9 };
const local = { allow: ["http://127.0.0.1/*", "http://127.0.0.1:1/*"], open: ["127.0.0.1/32"] };
beforeAll(async () => {
  receiver = http.createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8").on("data", (chunk: string) => (body += chunk));
    request.on("end", () => {
      received.push({ url: request.url ?? "", headers: request.headers, body });
      const said = answer(received.length);
      if (said !== "silent") response.writeHead(said.status, said.headers).end(said.body ?? "ok");
    });
  });
  await new Promise<void>((ready) => receiver.listen(0, "127.0.0.1", ready));
  ({ port } = receiver.address() as AddressInfo);
  it = await start({ now: () => Date.now() + ahead });
  key = await it.tenant("caller", { quotas, callbacks: { ...local, allow: [`http://127.0.0.1:${port}/*`] } });
  await it.ask("PUT", "/v1/secrets/HOOK", { key, body: { value: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" } });
});
afterAll(async () => {
  await end(it);
  receiver.closeAllConnections();
  receiver.close();
});
beforeEach(() => {
  received = [];
  answer = () => ({ status: 200 });
});

/** What the receiver got of this job. */
const got = (id: string) =>
  received.filter(({ body }) => (JSON.parse(body) as { data: { id: string } }).data.id === id);
const hook = (more: object = {}) => ({ url: `http://127.0.0.1:${port}/hook`, secret: "HOOK", ...more });
async function accepted(job: object, of = key): Promise<string> {
  const { status, body } = await it.ask("POST", "/v1/jobs", {
    key: of,
    body: { source: "6 * 7", type: "script", ...job },
  });
  expect({ status, problem: body.detail }).toEqual({ status: 202, problem: undefined });
  return body.id as string;
}
/** Resolves to the job when its callback is as said. */
async function until(
  id: string,
  fits: (callback: { state: string; attempts: number; detail?: string }) => boolean,
  of = key,
) {
  for (;;) {
    const { body } = await it.ask("GET", `/v1/jobs/${id}?wait=1`, { key: of });
    if (body.callback !== undefined && fits(body.callback)) return body;
  }
}
const over = ({ state }: { state: string }) => state !== "pending";

test("the receiver gets the ended job, signed as Standard Webhooks says, once", async () => {
  const id = await accepted({ callback: hook() });
  expect(await until(id, over)).toMatchObject({
    state: "done",
    callback: { state: "delivered", attempts: 1, detail: "answered 200" },
  });
  const [one, ...more] = got(id);
  expect(more).toEqual([]);
  expect(one?.url).toBe("/hook");
  expect(JSON.parse(one?.body ?? "")).toMatchObject({
    type: "job.done",
    data: { id, state: "done", outcome: { status: "ok", value: 42 } },
  });
  const {
    "webhook-id": message,
    "webhook-timestamp": time,
    "webhook-signature": signed,
    "content-type": type,
  } = one?.headers ?? {};
  expect(type).toBe("application/json");
  const own = createHmac("sha256", Buffer.from("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "base64"));
  expect(signed).toBe(`v1,${own.update(`${String(message)}.${String(time)}.${one?.body}`).digest("base64")}`);
  expect(Math.abs(Number(time) - Date.now() / 1000)).toBeLessThan(60);
  expect(audited(it.dir).filter((line) => line["job"] === id && line["act"] === "told")).toHaveLength(1);
});

test("is signed with each of several secrets while one replaces another", async () => {
  await it.ask("PUT", "/v1/secrets/NEXT", { key, body: { value: "plain words and more" } });
  const id = await accepted({ callback: hook({ secret: ["HOOK", "NEXT"] }) });
  await until(id, over);
  const { headers, body } = got(id)[0] as Received;
  const signatures = String(headers["webhook-signature"]).split(" ");
  expect(signatures).toHaveLength(2);
  const text = `${String(headers["webhook-id"])}.${String(headers["webhook-timestamp"])}.${body}`;
  expect(signatures[1]).toBe(
    `v1,${createHmac("sha256", "plain words and more").update(text).digest("base64")}`,
  );
});

test("is told of the ends that were asked for, and of no others", async () => {
  const failed = await accepted({ source: "throw 1", callback: hook({ on: ["failed"] }) });
  await until(failed, over);
  expect(JSON.parse(received[0]?.body ?? "")).toMatchObject({ type: "job.failed" });
  const done = await accepted({ callback: hook({ on: ["failed", "cancelled"] }) });
  expect((await it.ask("GET", `/v1/jobs/${done}?wait=30`, { key })).body).not.toHaveProperty("callback");
  const waiting = await accepted({ delayMs: 1e6, callback: hook() });
  await it.ask("POST", `/v1/jobs/${waiting}/cancel`, { key });
  await until(waiting, over);
  expect(received.map(({ body }) => (JSON.parse(body) as { type: string }).type)).toEqual([
    "job.failed",
    "job.cancelled",
  ]);
});

test("a receiver that fails is asked again later with the same id, until it takes it", async () => {
  answer = (at) => ({ status: at < 3 ? 500 : 204 });
  const id = await accepted({ callback: hook() });
  await until(id, ({ attempts, detail }) => attempts === 1 && detail === "answered 500");
  expect(got(id)).toHaveLength(1);
  ahead += 5000;
  await until(id, ({ attempts, detail }) => attempts === 2 && detail === "answered 500");
  ahead += 30_000;
  expect((await until(id, over)).callback).toEqual({
    state: "delivered",
    attempts: 3,
    detail: "answered 204",
  });
  expect(new Set(got(id).map(({ headers }) => headers["webhook-id"])).size).toBe(1);
});

test("one that says Gone is not asked again; one that never answers is given up after the last try", async () => {
  answer = () => ({ status: 410 });
  expect((await until(await accepted({ callback: hook() }), over)).callback).toEqual({
    state: "failed",
    attempts: 1,
    detail: "answered 410",
  });
  answer = () => ({ status: 503 });
  const id = await accepted({ keepS: 60, callback: hook() });
  for (let attempts = 1; attempts < 9; attempts++) {
    await until(id, (callback) => callback.attempts === attempts && callback.detail !== undefined);
    ahead += 43_200_000; // the result would be forgotten by now, were there nothing to tell
  }
  while ((await it.ask("GET", `/v1/jobs/${id}`, { key })).status !== 404);
  expect(got(id)).toHaveLength(9);
});

test("a receiver that takes it with a long page has taken it; one whose answer is endless is told of", async () => {
  answer = () => ({ status: 200, body: "x".repeat(100_000) });
  expect((await until(await accepted({ callback: hook() }), over)).callback.state).toBe("delivered");
  answer = () => ({ status: 200, body: "x".repeat(1_000_000) });
  const id = await accepted({ callback: hook() });
  await until(id, ({ detail }) => /the answer has more than/.test(detail ?? ""));
  await it.ask("DELETE", `/v1/jobs/${id}`, { key });
});

test("a redirect is not followed", async () => {
  answer = () => ({ status: 307, headers: { location: `http://127.0.0.1:${port}/elsewhere` } });
  const id = await accepted({ callback: hook() });
  await until(id, ({ detail }) => detail === "answered 307");
  expect(got(id).map(({ url }) => url)).toEqual(["/hook"]);
  await it.ask("DELETE", `/v1/jobs/${id}`, { key });
});

test.each([
  "https://127.0.0.1",
  "https://localhost",
  "https://[::1]",
  "https://169.254.169.254",
  "https://[::ffff:7f00:1]",
  "https://0x7f.1",
])("without a rule of the tenant's, an address that is not public is never called: %s", async (origin) => {
  const tenant = await it.tenant(`careless-${++careless}`, { quotas });
  await it.ask("PUT", "/v1/secrets/HOOK", { key: tenant, body: { value: "a text of some length" } });
  const id = await accepted({ callback: hook({ url: `${origin}:${port}/hook` }) }, tenant);
  expect((await until(id, over, tenant)).callback).toEqual({
    state: "failed",
    attempts: 1,
    detail: "the address may not be called",
  });
  expect(got(id)).toEqual([]);
});

test.each([
  ["http://example.com/hook", /https/],
  ["https://user:word@example.com/", /without a user/],
])("without a rule, %s is refused at once", async (url, words) => {
  await it.ask("PUT", "/v1/secrets/HOOK", { body: { value: "a text of some length" } });
  const { status, body } = await it.ask("POST", "/v1/jobs", {
    body: { source: "1", callback: hook({ url }) },
  });
  expect({ status, field: body.errors?.[0].field }).toEqual({ status: 403, field: "callback.url" });
  expect(body.errors[0].message).toMatch(words);
});

test("a tenant's rules are checked when they are stored, and a callback that none allows is refused", async () => {
  for (const [callbacks, field] of [
    [{ allow: ["ftp://x/*"] }, "callbacks.allow"],
    [{ allow: ["http://127.0.0.1/*"] }, "callbacks.allow"],
    [{ open: ["127.0.0.1"] }, "callbacks.open"],
  ] as const) {
    const { status, body } = await it.admin("PUT", "/admin/v1/tenants/wrong", { body: { callbacks } });
    expect({ status, field: body.errors?.[0].field }).toEqual({ status: 400, field });
  }
  const { status, body } = await it.ask("POST", "/v1/jobs", {
    key,
    body: { source: "1", callback: hook({ url: "https://example.com/" }) },
  });
  expect({ status, field: body.errors?.[0].field }).toEqual({ status: 403, field: "callback.url" });
});

test.each(["whsec_", "whsec_!!!", "whsec_YWJj", "short"])(
  "a secret that is no key, or can be guessed, signs nothing: %s",
  async (value) => {
    await it.ask("PUT", "/v1/secrets/WEAK", { key, body: { value } });
    const job = { source: "1", callback: hook({ secret: "WEAK" }) };
    const { status, body } = await it.ask("POST", "/v1/jobs", { key, body: job });
    expect({ status, field: body.errors?.[0].field }).toEqual({ status: 403, field: "callback.secret" });
    // Nor one that became so later.
    await it.ask("PUT", "/v1/secrets/WEAK", { key, body: { value: "long enough to be one" } });
    const id = await accepted({ delayMs: 1000, callback: hook({ secret: "WEAK" }) });
    await it.ask("PUT", "/v1/secrets/WEAK", { key, body: { value } });
    ahead += 1500;
    expect((await until(id, over)).callback).toMatchObject({
      state: "failed",
      detail: "a secret that signs it is no key",
    });
    expect(got(id)).toEqual([]);
  },
);

test("a secret that is gone by then is told of, and no secret's value is in any answer", async () => {
  await it.ask("PUT", "/v1/secrets/BRIEF", { key, body: { value: "brief-words-and-more" } });
  const id = await accepted({ delayMs: 2000, callback: hook({ secret: "BRIEF" }) });
  await it.ask("DELETE", "/v1/secrets/BRIEF", { key });
  ahead += 3000;
  const job = await until(id, ({ detail }) => detail !== undefined);
  expect(job.callback).toMatchObject({
    state: "pending",
    detail: "a secret that signs it is not stored any more",
  });
  expect(JSON.stringify(job)).not.toContain("brief-words-and-more");
  await it.ask("DELETE", `/v1/jobs/${id}`, { key });
  expect(got(id)).toEqual([]);
});

test("silent receivers of one tenant hold up no other tenant's callbacks", async () => {
  answer = () => "silent";
  const ids = await Promise.all(Array.from({ length: 12 }, () => accepted({ callback: hook() })));
  while (received.length < 4) await new Promise((resolve) => setImmediate(resolve));
  const other = await it.tenant("prompt", {
    quotas,
    callbacks: { ...local, allow: [`http://127.0.0.1:${port}/*`] },
  });
  await it.ask("PUT", "/v1/secrets/HOOK", { key: other, body: { value: "a text of some length" } });
  answer = () => ({ status: 200 });
  await until(await accepted({ callback: hook() }, other), ({ state }) => state === "delivered", other);
  expect(ids.filter((id) => got(id).length > 0)).toHaveLength(4);
  for (const id of ids) await it.ask("DELETE", `/v1/jobs/${id}`, { key });
  receiver.closeAllConnections();
});
