/** Durable jobs attacked: by a tenant that floods them, and by hosts that fail in the middle. */
import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { afterEach, describe, expect, test, vi } from "vitest";
import { shared, type Ask } from "./harness.js";

/** What the service's clock is ahead of this machine's, ms. */
let ahead = 0;
const it = shared({ now: () => Date.now() + ahead, limits: { wallMs: 20_000, cpuMs: 20_000 } });

const plenty = { requestsPerMinute: 1e9 };
const policy = { limits: { wallMs: 20_000, cpuMs: 20_000 }, grants: { kv: true } };
const post = async (body: object, options: Ask = {}) => {
  const answer = await it.ask("POST", "/v1/jobs", { body, ...options });
  expect({ status: answer.status, detail: answer.body.detail }).toEqual({ status: 202, detail: undefined });
  return answer.body.id as string;
};
const look = async (id: string, options: Ask = {}) => (await it.ask("GET", `/v1/jobs/${id}`, options)).body;
async function ended(id: string, options: Ask = {}) {
  for (;;) {
    const { status, body } = await it.ask("GET", `/v1/jobs/${id}?wait=5`, options);
    if (status !== 200 || (body.state !== "queued" && body.state !== "running")) return body;
  }
}
const one = { source: "6 * 7", type: "script" };
const endless = { source: "export default () => { for (;;); }" };
const batch = async (jobs: object[], key: string) => {
  const { status, body } = await it.ask("POST", "/v1/batches", { body: { jobs }, key });
  expect({ status, detail: body.detail }).toEqual({ status: 202, detail: undefined });
  return body as { id: string; jobs: string[] };
};

describe("a tenant", () => {
  test("whose thousand callbacks nobody answers holds up no other tenant's, nor do four such", async () => {
    const silent = http.createServer(() => {});
    const prompt = http.createServer((_request, response) => response.end());
    for (const server of [silent, prompt]) await new Promise<void>((up) => server.listen(0, "127.0.0.1", up));
    const url = (server: http.Server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`;
    const callbacks = { allow: [url(silent), url(prompt)], open: ["127.0.0.1/32"] };
    const tenant = async (id: string) => {
      const key = await it.tenant(id, { quotas: plenty, callbacks });
      await it.ask("PUT", "/v1/secrets/HOOK", { key, body: { value: "a text of some length" } });
      return key;
    };
    for (let i = 0; i < 4; i++) {
      const key = await tenant(`silent-${i}`);
      const callback = { url: url(silent), secret: "HOOK" };
      const { id } = await batch(Array.from({ length: 250 }, () => ({ ...one, delayMs: 1e8, callback })), key); // prettier-ignore
      await it.ask("POST", `/v1/batches/${id}/cancel`, { key });
    }
    const key = await tenant("prompt");
    const id = await post({ ...one, callback: { url: url(prompt), secret: "HOOK" } }, { key });
    while ((await look(id, { key })).callback?.state !== "delivered");
    for (let i = 0; i < 4; i++)
      expect((await it.admin("DELETE", `/admin/v1/tenants/silent-${i}`)).status).toBe(204);
    for (const server of [silent, prompt]) {
      server.closeAllConnections();
      server.close();
    }
  }, 60_000);

  test("whose jobs take all the time they may have leaves room for another's", async () => {
    const [greedy, modest] = [await it.tenant("greedy", { policy }), await it.tenant("modest")];
    const { id, jobs } = await batch([endless, endless, endless, endless], greedy);
    while ((await look(jobs[0] as string, { key: greedy })).state !== "running");
    expect(await ended(await post(one, { key: modest }), { key: modest })).toMatchObject({ state: "done" });
    expect((await it.ask("GET", `/v1/batches/${id}`, { key: greedy })).body.counts.running).toBeGreaterThan(
      0,
    );
    await it.ask("POST", `/v1/batches/${id}/cancel`, { key: greedy });
  });

  test("cannot keep more than its storage by what its jobs return", async () => {
    const key = await it.tenant("hoarder", { policy, quotas: { storageBytes: 1_000_000 } });
    const jobs = Array.from({ length: 12 }, () => ({ source: "'x'.repeat(400_000)", type: "script" }));
    const made = await batch(jobs, key);
    const states = async () => {
      const all = [];
      for (const id of made.jobs) all.push(await look(id, { key }));
      return all as { state: string; problem?: { code: string } }[];
    };
    for (;;) {
      const all = await states();
      const settled = all.filter(
        ({ state, problem }) => state === "done" || problem?.code === "storage-full",
      );
      if (settled.length < all.length) continue;
      expect(all.filter(({ state }) => state === "done").length).toBeLessThanOrEqual(5);
      break;
    }
    for (const [i, { state }] of (await states()).entries())
      if (state === "done") await it.ask("DELETE", `/v1/jobs/${made.jobs[i]}`, { key });
    ahead += 61_000; // with room again, the others go on
    while ((await states()).filter(({ state }) => state === "done").length === 0);
  }, 60_000);

  test("cannot have more jobs wait than it may by asking for old ones again", async () => {
    const key = await it.tenant("again-and-again", { policy, quotas: { queuedJobs: 2 } });
    const later = { ...one, delayMs: 1e8 };
    const old = await post(later, { key });
    await it.ask("POST", `/v1/jobs/${old}/cancel`, { key });
    const waiting = [await post(later, { key }), await post(later, { key })];
    expect(await it.ask("POST", `/v1/jobs/${old}/retry`, { key })).toMatchObject({ status: 429, body: { code: "tenant-busy" } }); // prettier-ignore
    await it.ask("POST", `/v1/jobs/${waiting[0]}/cancel`, { key });
    expect((await it.ask("POST", `/v1/jobs/${old}/retry`, { key })).status).toBe(200); // the control
    expect(await ended(old, { key })).toMatchObject({ state: "done" });
  });

  test("that cancels a thousand jobs at once lets others be answered meanwhile", async () => {
    const key = await it.tenant("canceller", { policy });
    const { id } = await batch(
      Array.from({ length: 1000 }, () => ({ ...one, delayMs: 1e8 })),
      key,
    );
    const order: string[] = [];
    const cancelled = it.ask("POST", `/v1/batches/${id}/cancel`, { key }).then(() => order.push("cancelled"));
    for (let queued = 1000; queued > 990;)
      queued = (await it.ask("GET", `/v1/batches/${id}`, { key })).body.counts.queued as number;
    order.push("looked");
    await cancelled;
    expect(order).toEqual(["looked", "cancelled"]);
  });

  test("that sends a million unknown fields is told of some", async () => {
    const fields = Array.from({ length: 300_000 }, (_, i) => `"f${i}":0`).join(",");
    const { status, body } = await it.ask("POST", "/v1/jobs", { body: `{"source":"1",${fields}}` });
    expect(status).toBe(400);
    expect(body.errors.length).toBeLessThanOrEqual(100);
    expect(body.errors[0].field).toBe("f0");
    expect(JSON.stringify(body).length).toBeLessThan(64 * 1024);
  });

  test("that nests a value as deeply as it likes is told so, before anybody has waited for it", async () => {
    const nested = (depth: number) => `{"source":"1","type":"script","input":${"[".repeat(depth)}${"]".repeat(depth)}}`; // prettier-ignore
    for (const route of ["/v1/jobs", "/v1/runs"]) {
      const { status, body } = await it.ask("POST", route, { body: nested(4_000_000) });
      expect([route, status, body.code, body.detail]).toEqual([route, 400, "bad-json", expect.stringMatching(/deep/)]); // prettier-ignore
    }
    const inText = { ...one, input: [`"${"[".repeat(5000)}\\`, "{".repeat(5000)] };
    for (const job of [inText, JSON.parse(nested(50)) as object])
      expect(await ended(await post(job))).toMatchObject({ state: "done" });
  });

  test("that sends one Idempotency-Key with a job and with a batch of it gets no answer of the other", async () => {
    const headers = { "idempotency-key": "of-both" };
    await post(one, { headers });
    expect(await it.ask("POST", "/v1/batches", { headers, body: { jobs: [one] } })).toMatchObject({ status: 422, body: { code: "idempotency-reused" } }); // prettier-ignore
  });
});

describe("a job", () => {
  test("that was to begin in ten days waits like any other when it cannot begin then", async () => {
    const key = await it.tenant("patient", { policy, quotas: { runsPerDay: 1 } });
    const id = await post({ ...one, delayMs: 10 * 86_400_000 }, { key });
    ahead += 10 * 86_400_000;
    expect(await ended(await post(one, { key }), { key })).toMatchObject({ state: "done" });
    for (;;) {
      const job = await look(id, { key });
      if (job.problem === undefined) continue;
      expect(job).toMatchObject({ state: "queued", problem: { code: "quota-exceeded" } });
      break;
    }
    ahead += 86_400_000;
    expect(await ended(id, { key })).toMatchObject({ state: "done", attempt: 1 });
  });

  test("that was handed out while the clock was back by a minute begins when its time has come again", async () => {
    const key = await it.tenant("timeless", { policy, quotas: { concurrent: 1 } });
    const first = await post(endless, { key });
    while ((await look(first, { key })).state !== "running");
    ahead += 60_000;
    const id = await post(one, { key });
    ahead -= 60_000;
    await it.ask("POST", `/v1/jobs/${first}/cancel`, { key });
    await ended(first, { key });
    // It has been handed out, and did not begin, when one that came after it is done.
    expect(await ended(await post(one, { key }), { key })).toMatchObject({ state: "done" });
    expect(await look(id, { key })).toMatchObject({ state: "queued", attempt: 0 });
    ahead += 61_000;
    expect(await ended(id, { key })).toMatchObject({ state: "done", attempt: 1 });
  });
});

test("while another program holds the database the service says that it cannot, and then goes on", async () => {
  const require = createRequire(import.meta.url);
  type Driver = new (file: string) => { exec(sql: string): void; close(): void };
  const other = new (require("better-sqlite3") as Driver)(path.join(it.dir, "service.db"));
  other.exec("BEGIN IMMEDIATE");
  const refused = await it.ask("POST", "/v1/jobs", { body: one });
  expect(refused).toMatchObject({ status: 503, body: { code: "host-cannot" } });
  other.exec("ROLLBACK");
  other.close();
  while ((await it.ask("GET", "/readyz", { key: "" })).status !== 200); // it was busy waiting
  expect(await ended(await post(one))).toMatchObject({ state: "done" });
});

describe("with an audit log whose disk is full", () => {
  afterEach(() => void vi.restoreAllMocks());
  /** Lines that fit cannot be written for as long as `full`; resolves how often that was so. */
  function filling(fits: RegExp) {
    const disk = { full: true, refused: 0 };
    const { writeSync } = fs;
    vi.spyOn(fs, "writeSync").mockImplementation(((fd: number, bytes: Uint8Array, ...rest: []) => {
      if (disk.full && fits.test(Buffer.from(bytes).toString("latin1"))) {
        disk.refused++;
        throw Object.assign(new Error("no space left on device"), { code: "ENOSPC" });
      }
      return writeSync(fd, bytes, ...rest);
    }) as typeof fs.writeSync);
    return disk;
  }

  test("jobs wait: none of them counts as begun, and all are done when there is room", async () => {
    const key = await it.tenant("unaudited", { policy });
    const { jobs } = await batch(
      Array.from({ length: 12 }, () => ({ ...one, delayMs: 100_000 })),
      key,
    );
    const disk = filling(/"kind":"(?:job|run)","act":"started"/);
    ahead += 101_000;
    while (disk.refused < 2) await new Promise((resolve) => setImmediate(resolve));
    const seen: { attempt: number }[] = [];
    for (const id of jobs) seen.push(await look(id, { key }));
    disk.full = false;
    ahead += 31_000;
    for (const id of jobs) expect(await ended(id, { key })).toMatchObject({ state: "done", attempt: 1 });
  });

  test("a job that has run is not run again, and its end is written when there is room", async () => {
    const key = await it.tenant("unended", { policy });
    const source = `export default async (i, { kv }) => { const n = ((await kv.get("n")) ?? 0) + 1; await kv.set("n", n); return n; }`;
    for (const kind of ["run", "job"]) {
      const disk = filling(new RegExp(`"kind":"${kind}","act":"finished"`));
      const id = await post({ source, grants: ["kv"] }, { key });
      while (disk.refused === 0) await new Promise((resolve) => setImmediate(resolve));
      disk.full = false;
      ahead += 31_000;
      expect(await ended(id, { key })).toMatchObject({
        state: "done",
        attempt: 1,
        outcome: { value: kind === "run" ? 1 : 2 },
      });
      vi.restoreAllMocks();
    }
  });

  test("callbacks wait, and none of their tries is used up", async () => {
    const key = await it.tenant("untold", { policy });
    await it.ask("PUT", "/v1/secrets/HOOK", { key, body: { value: "a text of some length" } });
    const callback = { url: "https://127.0.0.1:1/", secret: "HOOK" };
    const id = await post({ ...one, delayMs: 1e8, callback }, { key });
    const disk = filling(new RegExp(`"act":"told","job":"${id}"`));
    await it.ask("POST", `/v1/jobs/${id}/cancel`, { key });
    for (let refused = 0; refused < 3; refused++) {
      while (disk.refused <= refused) await new Promise((resolve) => setImmediate(resolve));
      ahead += 61_000;
    }
    expect((await look(id, { key })).callback).toMatchObject({ state: "pending" });
    disk.full = false;
    for (;;) {
      ahead += 61_000;
      const { callback: told } = await look(id, { key });
      if (told.state === "pending") continue;
      expect(told).toEqual({ state: "failed", attempts: 1, detail: "the address may not be called" });
      break;
    }
  });

  test("a request with an Idempotency-Key that has run is not run again", async () => {
    const key = await it.tenant("unended-once", { policy });
    const source = `export default async (i, { kv }) => { const n = ((await kv.get("n")) ?? 0) + 1; await kv.set("n", n); return n; }`;
    const run = { key, body: { source, grants: ["kv"] }, headers: { "idempotency-key": "k" } };
    const disk = filling(/"kind":"run","act":"finished"/);
    await it.ask("POST", "/v1/runs", run);
    expect(disk.refused).toBe(1);
    disk.full = false;
    const again = await it.ask("POST", "/v1/runs", run);
    expect(again.body.outcome?.value ?? again.body.code).toBe(1);
  });
});
