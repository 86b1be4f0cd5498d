/** Parts of durable jobs on their own: what no request shows, and what two nodes do in the same moment. */
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import v8 from "node:v8";
import vm from "node:vm";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { openDatabase, type Database } from "#server/service/database";
import { Jobs } from "#server/service/jobs/jobs";
import { Schedules } from "#server/service/jobs/schedules";
import type { JobRequest } from "#server/service/jobs/schemas";
import { JobTable } from "#server/service/jobs/table";

test("who has asked for a job is forgotten: a million questions leave nothing in memory", async () => {
  const job = { id: "x", state: "done" };
  const jobs = new Jobs({ table: { get: () => Promise.resolve(job), events: () => Promise.resolve([]) } } as never); // prettier-ignore
  v8.setFlagsFromString("--expose-gc");
  const collect = vm.runInNewContext("gc") as () => void;
  const used = () => (collect(), process.memoryUsage().heapUsed);
  const gone = new AbortController().signal;
  const ask = async (count: number) => {
    for (let i = 0; i < count; i++) {
      await jobs.wait("tenant", `job-${i}`, i % 2, gone);
      const left = new AbortController();
      const events = jobs.events("tenant", `job-${i}`, 0, left.signal);
      if (i % 3 === 0) for await (const { event } of events) expect(event).toBe("job");
      left.abort();
    }
  };
  await ask(1000);
  const before = used();
  await ask(30_000);
  const after = used();
  await ask(1); // until here it is in use
  expect(after - before).toBeLessThan(2 * 1024 * 1024);
});

test("of one tenant a thousand requests wait for news, and no more; another tenant's still may", async () => {
  const jobs = new Jobs({ table: { get: () => Promise.resolve({ id: "x", state: "queued" }) } } as never);
  const left = new AbortController();
  for (let i = 0; i < 1000; i++) jobs.events("many", `job-${i}`, 0, left.signal);
  expect(() => jobs.events("many", "job", 0, left.signal)).toThrow("as many as may");
  jobs.events("other", "job", 0, left.signal);
  left.abort();
  jobs.events("many", "job", 0, new AbortController().signal);
});

describe("of the table", () => {
  let dir: string;
  let db: Database;
  let now: number;
  let table: JobTable;
  beforeEach(async () => {
    dir = fs.mkdtempSync(path.join(os.tmpdir(), "jobs-"));
    db = await openDatabase(`sqlite:${path.join(dir, "jobs.db")}`);
    for (const tenant of ["a", "b", "c"])
      await db.run("INSERT INTO tenants (id, name, policy_json, revision, created_ms) VALUES (?, '', '{}', 1, 0)", tenant); // prettier-ignore
    now = 1_000_000;
    table = new JobTable(db, () => now);
  });
  afterEach(async () => {
    await db.close();
    fs.rmSync(dir, { recursive: true });
  });

  let made = 0;
  const insert = (tenant: string, count: number, more: Partial<JobRequest> = {}) =>
    db.transaction((queries) =>
      table.insert(
        queries,
        Array.from({ length: count }, () => ({ id: `job-${made++}`, tenant, key: "", text: JSON.stringify({ keepS: 60, ...more }), request: { source: "1", delayMs: 0, keepS: 60, retry: { attempts: 1, backoffMs: 100, on: ["lost" as const] }, ...more } })), // prettier-ignore
      ),
    );

  test("a node that was taken for dead claims nothing before it is known again", async () => {
    await table.seen("suspended", "");
    await table.seen("lively", "");
    const [ticket] = await insert("a", 1);
    now += 30_000;
    await table.seen("lively", "");
    await table.lost("lively", new Map());
    expect(await table.claim(ticket as never, "suspended")).toBeUndefined();
    expect(await table.seen("suspended", "")).toBe(false);
    expect(await table.claim(ticket as never, "suspended")).toMatchObject({ state: "running", attempt: 1 });
  });

  test("a node that slept between two of its own statements does not take its own jobs for lost", async () => {
    await table.seen("one", "");
    const [ticket] = await insert("a", 1);
    await table.claim(ticket as never, "one");
    now += 3_600_000;
    expect(await table.lost("one", new Map([[ticket?.job ?? "", {}]]))).toEqual([]);
    expect(await table.lost("one", new Map())).toHaveLength(1); // the control: one that it has dropped
    expect(await table.seen("one", "")).toBe(true);
  });

  test("jobs that begin much later keep no place in line, neither for their tenant nor for others", async () => {
    await table.seen("one", "");
    await insert("c", 20, { delayMs: 100_000 });
    const busy = await insert("a", 100);
    for (const ticket of busy.slice(0, 90)) {
      const row = await table.claim(ticket, "one");
      await table.finish(row as never, { state: "done", eventBytes: 0 });
    }
    const place = (tickets: readonly { turn: number }[]) => tickets.map(({ turn }) => turn);
    const next = (busy[90] as { turn: number }).turn;
    const newcomer = await insert("b", 20);
    expect(place(newcomer)).toEqual(Array.from({ length: 20 }, (_, i) => next + i));
    now += 100_000;
    const late = await table.offer(false);
    expect(late.map(({ tenant }) => tenant)).toEqual(Array.from({ length: 20 }, () => "c"));
    expect(place(late).sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, i) => next + i));
  });

  test("a schedule that has no next time any more stops, says why, and holds up no other", async () => {
    const job = { source: "1", delayMs: 0, keepS: 60, retry: { attempts: 1, backoffMs: 100, on: [] } };
    const put = (name: string, timeZone: string) =>
      db.run("INSERT INTO schedules (tenant, name, key, settings_json, job_json, bytes, next_ms) VALUES ('a', ?, '', ?, ?, 0, ?)", name, JSON.stringify({ cron: "* * * * *", timeZone, overlap: "skip" }), JSON.stringify(job), now - 1000); // prettier-ignore
    await put("a-bad", "Atlantis/Capital"); // known to the node that took it
    await put("b-good", "UTC");
    const accept = () => Promise.resolve({ ids: ["made"], offer: () => Promise.resolve() });
    const logger = { error: () => {} };
    const schedules = new Schedules({ db, table, tenants: { get: () => Promise.resolve({}) }, jobs: { accept }, logger, now: () => now } as never); // prettier-ignore
    schedules.start();
    while ((await schedules.get("a", "b-good")).lastJob !== "made");
    await schedules.stop();
    const { nextMs, lastProblem } = await schedules.get("a", "a-bad");
    expect({ nextMs, lastProblem }).toEqual({ nextMs: null, lastProblem: expect.stringContaining("timeZone") }); // prettier-ignore
  });

  test("results are forgotten in time, those whose callback is pending later, and none keeps others", async () => {
    await table.seen("one", "");
    const callback = { url: "https://example.com/", secret: "S", on: ["done" as const] };
    for (const ticket of [...(await insert("a", 3, { callback })), ...(await insert("b", 3))])
      await table.finish((await table.claim(ticket, "one")) as never, { state: "done", eventBytes: 0 });
    now += 61_000;
    await table.removeExpired();
    expect((await table.list("b", { limit: 10 })).jobs).toEqual([]);
    expect((await table.list("a", { limit: 10 })).jobs).toHaveLength(3);
    await db.run("UPDATE deliveries SET state = 'delivered'");
    now += 61_000;
    await table.removeExpired();
    expect((await table.list("a", { limit: 10 })).jobs).toEqual([]);
  });
});
