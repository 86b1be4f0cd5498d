/** Durable jobs, batches and schedules over HTTP. */
import { describe, expect, test } from "vitest";
import { audited, shared, type Ask } from "./harness.js";

/** What the service's clock is ahead of this machine's, ms. */
let ahead = 0;
const it = shared({
  now: () => Date.now() + ahead,
  limits: { wallMs: 20_000, cpuMs: 20_000, logBytes: 512 * 1024 },
});

const post = (body: object, options: Ask = {}) => it.ask("POST", "/v1/jobs", { body, ...options });
/** Accepted; resolves to the id. */
async function accepted(body: object, options: Ask = {}): Promise<string> {
  const answer = await post(body, options);
  expect(answer).toMatchObject({ status: 202, body: { state: "queued", attempt: 0 } });
  expect(answer.headers.get("location")).toBe(`/v1/jobs/${answer.body.id}`);
  return answer.body.id as string;
}
/** Resolves to the job when it has ended. */
async function ended(id: string, options: Ask = {}) {
  for (;;) {
    const { status, body } = await it.ask("GET", `/v1/jobs/${id}?wait=30`, options);
    if (status !== 200 || (body.state !== "queued" && body.state !== "running")) return body;
  }
}
/** Resolves when the job's stream has told what is looked for. */
async function told(id: string, words: string, key?: string): Promise<void> {
  const gone = new AbortController();
  const response = await fetch(`${it.service.address}/v1/jobs/${id}/events`, {
    headers: { accept: "text/event-stream", authorization: `Bearer ${key ?? it.service.made?.key}` },
    signal: gone.signal,
  });
  let text = "";
  for await (const chunk of response.body ?? []) {
    text += Buffer.from(chunk as Uint8Array).toString();
    if (text.includes(words)) break;
  }
  gone.abort();
  expect(text).toContain(words);
}
const endless = "export default () => { console.log('begun'); for (;;); }";
/** Counts in the tenant's store how often it ran, and throws until the third time. */
const third = `export default async (input, { kv }) => {
  const count = ((await kv.get("count")) ?? 0) + 1;
  await kv.set("count", count);
  if (count < 3) throw new Error("not yet " + count);
  return count;
}`;
const withKv = (quotas: object = {}) => ({ policy: { limits: { wallMs: 20_000, cpuMs: 20_000 }, grants: { kv: true, events: true } }, quotas }); // prettier-ignore

describe("a job", () => {
  test("is accepted, runs, and is waited for; its stream tells what it did and goes on where it was", async () => {
    const source =
      "export default async (n, { events }) => { console.log('at', n); await events.emit('half', { n }); return n * 2; }";
    const id = await accepted({ source, input: 21, grants: ["events"] });
    expect(await ended(id)).toMatchObject({
      id,
      state: "done",
      attempt: 1,
      attempts: 1,
      outcome: { status: "ok", value: 42 },
    });
    const stream = { headers: { accept: "text/event-stream" } };
    const { body } = await it.ask("GET", `/v1/jobs/${id}/events`, stream);
    expect(body).toMatch(
      /^id: 1\nevent: attempt\n[^]*event: log\ndata: .*"at","21"[^]*event: event\ndata: .*half[^]*event: job\ndata: .*"done"/,
    );
    const rest = await it.ask("GET", `/v1/jobs/${id}/events`, {
      headers: { ...stream.headers, "last-event-id": "2" },
    });
    expect(rest.body).not.toContain("event: log");
    expect(rest.body).toContain("event: job");
    const lines = audited(it.dir).filter((line) => line["job"] === id);
    expect(lines.map(({ kind, act }) => `${String(kind)} ${String(act)}`)).toEqual([
      "job submitted",
      "job started",
      "run started",
      "job finished",
    ]);
  });

  test("of a stored script, in every state, is listed with the newest first and without its outcome", async () => {
    const key = await it.tenant("lister");
    await it.ask("PUT", "/v1/scripts/twice", { key, body: { source: "export default n => n * 2" } });
    const ids: string[] = [];
    for (let n = 0; n < 5; n++) ids.unshift(await accepted({ script: "twice", input: n }, { key }));
    for (const id of ids) expect((await ended(id, { key })).outcome.value).toBe(2 * (4 - ids.indexOf(id)));
    const page = (query: string) => it.ask("GET", `/v1/jobs?limit=2${query}`, { key });
    const first = await page("");
    await it.ask("DELETE", `/v1/jobs/${ids[1]}`, { key }); // the page's last one
    const second = await page(`&before=${first.body.next}`);
    expect([...first.body.jobs, ...second.body.jobs].map((job: { id: string }) => job.id)).toEqual(
      ids.slice(0, 4),
    );
    expect(first.body.jobs[0]).not.toHaveProperty("outcome");
    expect((await page("&state=failed")).body).toEqual({ jobs: [] });
    expect((await page(`&before=${second.body.next}`)).body).not.toHaveProperty("next");
    expect((await page("&before=x")).body.errors[0].field).toBe("before");
    expect((await page("&state=gone")).status).toBe(400);
  });

  test("is tried as often as it was declared, with its waits between; then it is done or has failed", async () => {
    const key = await it.tenant("again", withKv());
    const retry = { attempts: 5, backoffMs: 100 };
    const id = await accepted({ source: third, grants: ["kv"], retry }, { key });
    expect(await ended(id, { key })).toMatchObject({
      state: "done",
      attempt: 3,
      attempts: 5,
      outcome: { value: 3 },
    });

    const thrower = "export default () => { throw new RangeError('never') }";
    const failed = await ended(
      await accepted({ source: thrower, retry: { attempts: 2, backoffMs: 100 } }, { key }),
      { key },
    );
    expect(failed).toMatchObject({
      state: "failed",
      attempt: 2,
      outcome: { status: "threw", error: { name: "RangeError" } },
    });
    const picky = { attempts: 3, backoffMs: 100, on: ["stopped"] };
    expect(await ended(await accepted({ source: thrower, retry: picky }, { key }), { key })).toMatchObject({
      state: "failed",
      attempt: 1,
    });
  });

  test("that failed or was cancelled is run again when asked, and no other", async () => {
    const key = await it.tenant("by-hand", withKv());
    const id = await accepted({ source: third, grants: ["kv"] }, { key });
    expect(await ended(id, { key })).toMatchObject({ state: "failed", attempt: 1 });
    await it.ask("POST", `/v1/jobs/${id}/retry`, { key });
    expect(await ended(id, { key })).toMatchObject({ state: "failed", attempt: 2 });
    expect((await it.ask("POST", `/v1/jobs/${id}/retry`, { key })).status).toBe(200);
    expect(await ended(id, { key })).toMatchObject({ state: "done", attempt: 3 });
    expect(await it.ask("POST", `/v1/jobs/${id}/retry`, { key })).toMatchObject({
      status: 409,
      body: { code: "conflict" },
    });
  });

  test("is cancelled while it waits and while it runs, and forgotten when asked", async () => {
    const waiting = await accepted({ source: "1", type: "script", delayMs: 3_600_000 });
    expect((await it.ask("POST", `/v1/jobs/${waiting}/cancel`)).body).toMatchObject({
      state: "cancelled",
      attempt: 0,
    });
    const running = await accepted({ source: endless });
    await told(running, "begun");
    expect(await it.ask("DELETE", `/v1/jobs/${running}`)).toMatchObject({
      status: 409,
      body: { code: "conflict" },
    });
    await it.ask("POST", `/v1/jobs/${running}/cancel`);
    expect(await ended(running)).toMatchObject({
      state: "cancelled",
      attempt: 1,
      outcome: { status: "cancelled" },
    });
    expect((await it.ask("DELETE", `/v1/jobs/${running}`)).status).toBe(204);
    expect((await it.ask("GET", `/v1/jobs/${running}`)).status).toBe(404);
  });

  test("begins not before its time, and is forgotten after its time, with what it took of the storage", async () => {
    const key = await it.tenant("timely", withKv({ storageBytes: 4000 }));
    const source = `"${"x".repeat(3000)}".length`;
    const id = await accepted({ source, type: "script", delayMs: 5000, keepS: 60 }, { key });
    expect((await it.ask("GET", `/v1/jobs/${id}?wait=1`, { key })).body.state).toBe("queued");
    expect(await post({ source, type: "script" }, { key })).toMatchObject({
      status: 507,
      body: { code: "storage-full" },
    });
    ahead += 6000;
    expect(await ended(id, { key })).toMatchObject({ state: "done", outcome: { value: 3000 } });
    ahead += 61_000;
    while ((await it.ask("GET", `/v1/jobs/${id}`, { key })).status !== 404);
    expect((await post({ source, type: "script" }, { key })).status).toBe(202);
  });

  test("runs with what the tenant may do when it begins, not when it was accepted", async () => {
    const key = await it.tenant("narrowed", withKv());
    const id = await accepted(
      { source: "export default (i, env) => env.kv.get('x')", grants: ["kv"], delayMs: 3_600_000 },
      { key },
    );
    const put = await it.admin("PUT", "/admin/v1/tenants/narrowed", { body: { policy: {} } });
    expect(put.status).toBe(200);
    ahead += 3_600_000;
    expect(await ended(id, { key })).toMatchObject({
      state: "failed",
      problem: { code: "forbidden", errors: [{ field: "grants.kv" }] },
    });
  });

  test("that floods its log leaves a bounded number of events, and says so", async () => {
    const limits = { logBytes: 512 * 1024 };
    const key = await it.tenant("talker", { policy: { limits } });
    const source = "export default () => { for (let i = 0; i < 4000; i++) console.log(i); return 'end' }";
    const id = await accepted({ source, limits }, { key });
    expect(await ended(id, { key })).toMatchObject({ state: "done" });
    const { body } = await it.ask("GET", `/v1/jobs/${id}/events`, { key, headers: { accept: "text/event-stream" } }); // prettier-ignore
    expect((body as string).match(/event: log/g)?.length).toBeLessThanOrEqual(2000);
    expect(body).toContain("event: full");
    expect(body).toContain("event: job");
  });

  test("is accepted once for an Idempotency-Key, also for many requests at once; another body is refused", async () => {
    const headers = { "idempotency-key": "one" };
    const body = { source: "1", type: "script" };
    const answers = await Promise.all(Array.from({ length: 8 }, () => post(body, { headers })));
    expect(new Set(answers.map(({ body: { id } }) => id as string)).size).toBe(1);
    expect(answers.filter((answer) => answer.headers.get("idempotency-replayed") === "true")).toHaveLength(7);
    expect(await post({ ...body, input: 1 }, { headers })).toMatchObject({
      status: 422,
      body: { code: "idempotency-reused" },
    });
  });
});

describe("what is wrong", () => {
  test.each([
    [{}, "source"],
    [{ source: "1", script: "x" }, "source"],
    [{ source: "1", retry: { attempts: 0 } }, "retry.attempts"],
    [{ source: "1", retry: { tries: 1 } }, "retry.tries"],
    [{ source: "1", delayMs: -1 }, "delayMs"],
    [{ source: "1", keepS: 1e9 }, "keepS"],
    [{ source: "1", limits: { wallMs: 1e9 } }, "limits.wallMs"],
    [{ source: "1", grants: ["files"] }, "grants.files"],
    [{ source: "1", callback: { url: "ftp://x/", secret: "A" } }, "callback.url"],
    [{ source: "1", callback: { url: "https://example.com/" } }, "callback.secret"],
    [{ source: "1", callback: { url: "https://example.com/", secret: "NOT_STORED" } }, "callback.secret"],
    [{ source: "1", callback: { url: "http://example.com/", secret: "NOT_STORED" } }, "callback.url"],
    [{ source: "1", wat: 1 }, "wat"],
  ])("%j names the field", async (body, field) => {
    const { status, body: problem } = await post(body);
    expect([400, 403]).toContain(status);
    expect(problem.errors.map((error: { field: string }) => error.field)).toContain(field);
  });

  test("a wait that is none, an event that is none, and things that are not there", async () => {
    const id = await accepted({ source: "1", type: "script" });
    expect((await it.ask("GET", `/v1/jobs/${id}?wait=61`)).body.errors[0].field).toBe("wait");
    const stream = { accept: "text/event-stream" };
    expect(
      (await it.ask("GET", `/v1/jobs/${id}/events`, { headers: { ...stream, "last-event-id": "x" } })).status,
    ).toBe(400);
    expect((await it.ask("GET", "/v1/jobs/nothing/events", { headers: stream })).status).toBe(404);
    for (const route of ["/v1/jobs/nothing", "/v1/batches/nothing", "/v1/schedules/nothing"])
      expect((await it.ask("GET", route)).status).toBe(404);
  });

  test("another tenant's jobs, batches and schedules are not there", async () => {
    const other = { key: await it.tenant("other-one") };
    const id = await accepted({ source: "1", type: "script", delayMs: 1000 });
    const batch = (await it.ask("POST", "/v1/batches", { body: { jobs: [{ source: "1", type: "script" }] } }))
      .body.id as string;
    await it.ask("PUT", "/v1/schedules/mine", {
      body: { cron: "0 0 1 1 *", job: { source: "1", type: "script" } },
    });
    const stream = { headers: { accept: "text/event-stream" } };
    for (const [method, route, more] of [
      ["GET", `/v1/jobs/${id}`], ["GET", `/v1/jobs/${id}/events`, stream], ["POST", `/v1/jobs/${id}/cancel`], ["POST", `/v1/jobs/${id}/retry`], ["DELETE", `/v1/jobs/${id}`],
      ["GET", `/v1/batches/${batch}`], ["POST", `/v1/batches/${batch}/cancel`], ["GET", "/v1/schedules/mine"], ["DELETE", "/v1/schedules/mine"],
    ] as const) expect({ route, status: (await it.ask(method, route, { ...more, ...other })).status }).toEqual({ route, status: 404 }); // prettier-ignore
    expect((await it.ask("GET", `/v1/jobs?batch=${batch}`, other)).body).toEqual({ jobs: [] });
    expect((await it.ask("GET", "/v1/schedules", other)).body).toEqual({ schedules: [] });
    expect(await ended(id)).toMatchObject({ state: "done" });
    expect((await it.ask("DELETE", "/v1/schedules/mine")).status).toBe(204);
  });
});

describe("many jobs", () => {
  test("of a batch are accepted all or none, counted, and cancelled together", async () => {
    const key = await it.tenant("batcher");
    const job = { source: "export default n => n", delayMs: 0 };
    const wrong = await it.ask("POST", "/v1/batches", {
      key,
      body: { jobs: [job, { ...job, limits: { wallMs: 1e6 } }, { ...job, engine: "v9" }] },
    });
    expect(wrong).toMatchObject({ status: 400 });
    expect(wrong.body.errors.map((error: { field: string }) => error.field)).toContain("jobs[2].engine");
    const forbidden = await it.ask("POST", "/v1/batches", {
      key,
      body: { jobs: [job, { ...job, limits: { wallMs: 19_999_999 } }] },
    });
    expect(forbidden.body.errors[0].field).toBe("jobs[1].limits.wallMs");
    expect((await it.ask("GET", "/v1/jobs", { key })).body).toEqual({ jobs: [] });

    const made = await it.ask("POST", "/v1/batches", {
      key,
      body: { jobs: Array.from({ length: 30 }, (_, input) => ({ ...job, input })) },
    });
    expect(made).toMatchObject({ status: 202 });
    expect(made.body.jobs).toHaveLength(30);
    for (const id of made.body.jobs as string[]) await ended(id, { key });
    expect((await it.ask("GET", `/v1/batches/${made.body.id}`, { key })).body).toMatchObject({
      total: 30,
      counts: { done: 30, queued: 0 },
    });

    const later = await it.ask("POST", "/v1/batches", {
      key,
      body: { jobs: [{ ...job, delayMs: 1e6 }, { source: endless }] },
    });
    await told(later.body.jobs[1] as string, "begun", key);
    await it.ask("POST", `/v1/batches/${later.body.id}/cancel`, { key });
    for (const id of later.body.jobs as string[]) expect((await ended(id, { key })).state).toBe("cancelled");
  });

  test("of one tenant are never more at once than it may have, and all of them are done", async () => {
    const key = await it.tenant("one-by-one", withKv({ concurrent: 1 }));
    const source = `export default async (i, { kv }) => {
      const now = ((await kv.get("now")) ?? 0) + 1;
      await kv.set("now", now);
      await kv.set("most", Math.max(now, (await kv.get("most")) ?? 0));
      await kv.set("now", now - 1);
    }`;
    const made = await it.ask("POST", "/v1/batches", {
      key,
      body: { jobs: Array.from({ length: 6 }, () => ({ source, grants: ["kv"] })) },
    });
    for (const id of made.body.jobs as string[]) expect((await ended(id, { key })).state).toBe("done");
    const most = await it.ask("POST", "/v1/runs", {
      key,
      body: { source: "export default (i, { kv }) => kv.get('most')", grants: ["kv"] },
    });
    expect(most.body.outcome.value).toBe(1);
  });

  test("of one tenant do not keep another's waiting until all of them are done", async () => {
    const [many, few] = [await it.tenant("many"), await it.tenant("few")];
    const job = { source: "export default () => { for (let i = 0; i < 1e5; i++); }" };
    const made = await it.ask("POST", "/v1/batches", {
      key: many,
      body: { jobs: Array.from({ length: 60 }, () => job) },
    });
    const own = await ended(await accepted(job, { key: few }), { key: few });
    for (const id of made.body.jobs as string[]) await ended(id, { key: many });
    const { jobs } = (await it.ask("GET", "/v1/jobs?limit=100", { key: many })).body;
    const after = jobs.filter((one: { startedMs: number }) => one.startedMs > own.startedMs).length as number;
    expect(after).toBeGreaterThan(20);
  });

  test("are refused beyond what may wait, with a time to come back", async () => {
    const key = await it.tenant("queuer", withKv({ queuedJobs: 3 }));
    const job = { source: "1", type: "script", delayMs: 100_000 };
    for (let i = 0; i < 3; i++) await accepted(job, { key });
    const refused = await post(job, { key });
    expect(refused).toMatchObject({ status: 429, body: { code: "tenant-busy" } });
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
    expect((await it.ask("POST", "/v1/batches", { key, body: { jobs: [job] } })).status).toBe(429);
    expect((await it.ask("GET", "/v1/jobs", { key })).body.jobs).toHaveLength(3);
  });

  test("wait for tomorrow where today's quota is used up", async () => {
    const key = await it.tenant("daily", withKv({ runsPerDay: 1 }));
    const job = { source: "1", type: "script" };
    expect(await ended(await accepted(job, { key }), { key })).toMatchObject({ state: "done" });
    const id = await accepted(job, { key });
    for (;;) {
      const { body } = await it.ask("GET", `/v1/jobs/${id}`, { key });
      if (body.problem === undefined) continue;
      expect(body).toMatchObject({ state: "queued", attempt: 0, problem: { code: "quota-exceeded" } });
      break;
    }
    ahead += 86_400_000;
    expect(await ended(id, { key })).toMatchObject({ state: "done", attempt: 1 });
  });
});

describe("a schedule", () => {
  const job = { source: "export default () => 'tick'" };
  const jobsOf = async (name: string) =>
    (await it.ask("GET", `/v1/jobs?schedule=${name}`)).body.jobs as { id: string; state: string }[];
  /** To a second after the schedule's next time. */
  const letPass = async (name: string) => {
    const { nextMs } = (await it.ask("GET", `/v1/schedules/${name}`)).body;
    ahead = nextMs - Date.now() + 1000;
    for (;;) {
      const { body } = await it.ask("GET", `/v1/schedules/${name}`);
      if (body.nextMs !== nextMs) return body;
    }
  };

  test("makes one job each time that it is due, and one for all times that passed unseen", async () => {
    const { body } = await it.ask("PUT", "/v1/schedules/minutely", { body: { cron: "* * * * *", job } });
    expect(body).toMatchObject({
      name: "minutely",
      lastJob: null,
      settings: { timeZone: "UTC", overlap: "skip" },
    });
    const first = await letPass("minutely");
    expect(await ended(first.lastJob as string)).toMatchObject({
      state: "done",
      schedule: "minutely",
      outcome: { value: "tick" },
    });
    ahead += 600_000;
    const later = await letPass("minutely");
    expect(await ended(later.lastJob as string)).toMatchObject({ state: "done" });
    expect((await jobsOf("minutely")).length).toBeLessThanOrEqual(3);
    expect((await it.ask("DELETE", "/v1/schedules/minutely")).status).toBe(204);
    expect((await it.ask("DELETE", "/v1/schedules/minutely")).status).toBe(404);
  });

  test("passes over a time at which the job before has not ended, unless it may overlap", async () => {
    const slow = { ...job, delayMs: 1_000_000_000 };
    await it.ask("PUT", "/v1/schedules/slow", { body: { cron: "*/5 * * * *", job: slow } });
    await letPass("slow");
    expect(await letPass("slow")).toMatchObject({ lastProblem: "the job of the time before has not ended" });
    expect(await jobsOf("slow")).toHaveLength(1);
    await it.ask("PUT", "/v1/schedules/slow", { body: { cron: "*/5 * * * *", overlap: "allow", job: slow } });
    await letPass("slow");
    expect(await jobsOf("slow")).toHaveLength(2);
    await it.ask("PUT", "/v1/schedules/slow", { body: { cron: "*/5 * * * *", enabled: false, job: slow } });
    expect((await it.ask("GET", "/v1/schedules/slow")).body.nextMs).toBeNull();
  });

  test("follows its time zone over the change of clocks", async () => {
    // 2027-03-28, 01:00 UTC: Berlin goes from 02:00 to 03:00.
    const before = ahead;
    ahead = Date.UTC(2027, 2, 27, 12) - Date.now();
    const { body } = await it.ask("PUT", "/v1/schedules/berlin", {
      body: { cron: "0 6 * * *", timeZone: "Europe/Berlin", job },
    });
    expect(new Date(body.nextMs as number).toISOString()).toBe("2027-03-28T04:00:00.000Z");
    ahead = before;
    await it.ask("DELETE", "/v1/schedules/berlin");
  });

  test.each([
    [{ cron: "* * * *", job }, "cron"],
    [{ cron: "* * * * * *", job }, "cron"],
    [{ cron: "0 0 30 2 *", job }, "cron"],
    [{ cron: "2099-01-01T00:00:00", job }, "cron"], // one that is over would have no next time
    [{ cron: "0 0 * * *", timeZone: "Mars/Olympus", job }, "timeZone"],
    [{ cron: "0 0 * * *" }, "job"],
    [{ cron: "0 0 * * *", job: { source: "1", limits: { wallMs: 999_999 } } }, "job.limits.wallMs"],
    [{ cron: "0 0 * * *", job: {} }, "job.source"],
  ])("that is wrong names the field: %j", async (body, field) => {
    const { status, body: problem } = await it.ask("PUT", "/v1/schedules/wrong", { body });
    expect([400, 403]).toContain(status);
    expect(problem.errors[0].field).toBe(field);
    expect((await it.ask("GET", "/v1/schedules/wrong")).status).toBe(404);
  });

  test("counts against the tenant's schedules", async () => {
    const key = await it.tenant("planner", withKv({ schedules: 1 }));
    const body = { cron: "0 0 * * *", job };
    expect((await it.ask("PUT", "/v1/schedules/one", { key, body })).status).toBe(200);
    expect((await it.ask("PUT", "/v1/schedules/one", { key, body })).status).toBe(200);
    expect((await it.ask("PUT", "/v1/schedules/two", { key, body })).status).toBe(429);
  });
});
