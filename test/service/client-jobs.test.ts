/** Durable jobs through the client: against a service, a network that fails, and answers that no service gives. */
import http from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { Client, ServiceError, verifyCallback, type JobEvent, type JobRequest } from "doublehull/client"; // prettier-ignore
import { all, refusal } from "./answers.js";
import { cutting } from "./cutting.js";
import { end, shared, start } from "./harness.js";

/** Time enough for what is cancelled to be under way until then, on a busy machine too. */
const limits = { wallMs: 20_000, cpuMs: 20_000, logBytes: 512 * 1024 };
const policy = { limits, grants: { events: true } };
const it = shared({ limits });
let key: string;
let client: Client;
const clientOf = (apiKey: string, baseUrl = it.service.address): Client => new Client({ baseUrl, apiKey });
beforeAll(async () => {
  key = await it.tenant("main", { policy });
  client = clientOf(key);
});

/** The same client through a network that cuts so many connections. */
async function throughCuts(
  cuts: { afterEvents: number; times: number },
  use: (through: Client) => Promise<void>,
  by = key,
): Promise<void> {
  const proxy = await cutting(it.service.address, cuts);
  try {
    await use(clientOf(by, proxy.address));
    expect(proxy.cuts()).toBe(cuts.times);
  } finally {
    await proxy.close();
  }
}
/** Resolves when the job has said that it has begun. */
async function begun(id: string): Promise<void> {
  for await (const event of client.jobs.events(id)) if (event.type === "log") return;
}
const endless: JobRequest = { source: "export default () => { console.log('begun'); for (;;); }" };
const later: JobRequest = { source: "1", type: "script", delayMs: 1e9 };

describe("a job", () => {
  test("is submitted, waited for and looked at, with values as the script had them", async () => {
    const source = "export default (n) => new Map([[n, new Set([1n])]])";
    const job = await client.jobs.submit({ source, input: 21 });
    expect(job).toMatchObject({ state: "queued", attempt: 0, attempts: 1 });
    const ended = await client.jobs.wait(job.id);
    expect(ended).toMatchObject({ id: job.id, state: "done", attempt: 1, outcome: { status: "ok" } });
    expect(ended).toHaveProperty("outcome.value", new Map([[21, new Set([1n])]]));
    expect(await client.jobs.get(job.id)).toEqual(ended);
    await client.jobs.remove(job.id);
    expect((await refusal(client.jobs.wait(job.id))).code).toBe("not-found");
  });

  test("that fails is no error of the client's; it is run again when asked, and one that is done is not", async () => {
    const { id } = await client.jobs.submit({ source: "null.x", type: "script" });
    expect(await client.jobs.wait(id)).toMatchObject({ state: "failed", outcome: { status: "threw" } });
    expect(await client.jobs.retry(id)).toMatchObject({ attempts: 2 });
    expect(await client.jobs.wait(id)).toMatchObject({ state: "failed", attempt: 2 });
    const done = await client.jobs.wait((await client.jobs.submit({ source: "1", type: "script" })).id);
    expect((await refusal(client.jobs.retry(done.id))).code).toBe("conflict");
  });

  test("is cancelled while it waits and while it runs", async () => {
    const waiting = await client.jobs.submit(later);
    expect(await client.jobs.cancel(waiting.id)).toMatchObject({ state: "cancelled", attempt: 0 });
    const running = await client.jobs.submit(endless);
    await begun(running.id);
    expect((await refusal(client.jobs.remove(running.id))).code).toBe("conflict");
    await client.jobs.cancel(running.id);
    expect(await client.jobs.wait(running.id)).toMatchObject({ state: "cancelled", attempt: 1 });
  });

  test("that is wrong is refused with its fields", async () => {
    const error = await refusal(client.jobs.submit({ source: "1", retry: { attempts: 0 } }));
    expect(error).toMatchObject({ status: 400, problem: { errors: [{ field: "retry.attempts" }] } });
  });

  test("goes on when whoever waits or listens aborts or leaves", async () => {
    const { id } = await client.jobs.submit(endless);
    await begun(id); // and has left
    const reason = new Error("enough");
    const waiting = new AbortController();
    const waited = client.jobs.wait(id, { signal: waiting.signal });
    waiting.abort(reason);
    await expect(waited).rejects.toBe(reason);
    await expect(client.jobs.wait(id, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    const listening = new AbortController();
    const listened = (async () => {
      for await (const _ of client.jobs.events(id, { signal: listening.signal })) listening.abort(reason);
    })();
    await expect(listened).rejects.toBe(reason);
    expect(await client.jobs.get(id)).toMatchObject({ state: "running" });
    await client.jobs.cancel(id);
    expect(await client.jobs.wait(id)).toMatchObject({ state: "cancelled", attempt: 1 });
  });

  test("of another tenant is not there", async () => {
    const other = clientOf(await it.tenant("stranger"));
    const { id } = await client.jobs.submit(later);
    expect(await client.jobs.get(id)).toMatchObject({ state: "queued" });
    for (const asked of [other.jobs.get(id), other.jobs.wait(id), all(other.jobs.events(id)), other.jobs.cancel(id), other.jobs.remove(id)])
      expect((await refusal(asked)).code).toBe("not-found"); // prettier-ignore
    expect(await all(other.jobs.list())).toEqual([]);
    await client.jobs.cancel(id);
  });
});

describe("an idempotency key", () => {
  test("makes one job of a request whose answer was lost; without it the job is there, and the answer is not", async () => {
    const key = await it.tenant("once");
    const own = clientOf(key);
    await throughCuts(
      { afterEvents: 0, times: 2 },
      async (through) => {
        const { id } = await through.jobs.submit(later, { idempotencyKey: "a" });
        expect((await all(own.jobs.list())).map((job) => job.id)).toEqual([id]);
      },
      key,
    );
    const lost = (through: Client) =>
      refusal(through.jobs.submit(later)).then(({ code }) => expect(code).toBe("no-answer"));
    await throughCuts({ afterEvents: 0, times: 1 }, lost, key);
    expect(await all(own.jobs.list())).toHaveLength(2);
  });

  test("gives the same job or batch again, and refuses another request", async () => {
    const [one, two] = [await client.jobs.submit(later, { idempotencyKey: "k" }), await client.jobs.submit(later, { idempotencyKey: "k" })]; // prettier-ignore
    expect(two).toEqual(one);
    expect((await refusal(client.jobs.submit({ ...later, input: 1 }, { idempotencyKey: "k" }))).code).toBe("idempotency-reused"); // prettier-ignore
    const batch = { jobs: [later, later] };
    const made = await client.batches.submit(batch, { idempotencyKey: "b" });
    expect(await client.batches.submit(batch, { idempotencyKey: "b" })).toEqual(made);
    await client.jobs.cancel(one.id);
    await client.batches.cancel(made.id);
  });

  test("that is none is told before anything is sent", async () => {
    for (const idempotencyKey of ["", "é", "a b", "a\nb", "x".repeat(256)])
      await expect(client.jobs.submit(later, { idempotencyKey })).rejects.toThrow(/idempotencyKey must be/);
  });
});

describe("what a job tells", () => {
  const source = `export default async (input, env) => {
    console.log("one"); await env.events.emit("step", new Map([[1n, undefined]])); return new Set([3]) }`;

  test("comes in order, with its values, and at the end the job; `after` goes on where another left", async () => {
    const { id } = await client.jobs.submit({ source, grants: ["events"] });
    const events = await all(client.jobs.events(id));
    expect(events).toMatchObject([
      { id: 1, type: "attempt", attempt: 1, run: expect.stringMatching(/^[0-9a-f-]{36}$/) },
      { id: 2, type: "log", entry: { level: "log", args: ["one"] } },
      { id: 3, type: "event", name: "step", seq: 1 },
      { id: 3, type: "job", job: { id, state: "done" } },
    ]);
    expect(events[2]).toHaveProperty("data", new Map([[1n, undefined]]));
    expect(events[3]).toHaveProperty("job.outcome.value", new Set([3]));
    expect(await all(client.jobs.events(id, { after: 2 }))).toEqual(events.slice(2));
    expect(await all(client.jobs.events(id, { after: 3 }))).toEqual(events.slice(3));
  });

  test("comes once and whole over connections that are cut in the middle of events", async () => {
    const source = "export default () => { for (let i = 0; i < 30; i++) console.log('é', i); }";
    await throughCuts({ afterEvents: 7, times: 3 }, async (through) => {
      const { id } = await through.jobs.submit({ source });
      const events = await all(through.jobs.events(id));
      const logs = events.flatMap((event) => (event.type === "log" ? [event.entry.args.join(" ")] : []));
      expect(logs).toEqual(Array.from({ length: 30 }, (_, i) => `é ${i}`));
      expect(events.at(-1)).toMatchObject({ type: "job", job: { state: "done" } });
    });
  });

  test("ends with `full` where it is more than the service keeps", async () => {
    const source = "export default () => { for (let i = 0; i < 4000; i++) console.log(i); }";
    const { id } = await client.jobs.submit({ source, limits });
    const [full, job] = (await all(client.jobs.events(id))).slice(-2);
    expect(job).toMatchObject({ type: "job", job: { state: "done" } });
    expect(full).toMatchObject({ type: "full" });
  });
});

describe("waiting", () => {
  test("outlasts connections that are cut", async () => {
    const { id } = await client.jobs.submit({ source: "6 * 7", type: "script" });
    await throughCuts({ afterEvents: 0, times: 3 }, async (through) => {
      expect(await through.jobs.wait(id)).toMatchObject({ state: "done", outcome: { value: 42 } });
    });
  });

  test("and listening outlast a service that is replaced", async () => {
    const before = await start();
    const keys = { key: before.service.made?.key ?? "", adminKey: before.service.made?.adminKey ?? "" };
    const { address } = before.service;
    const own = clientOf(keys.key, address);
    const { id } = await own.jobs.submit(later);
    const waited = own.jobs.wait(id);
    const listened = all(own.jobs.events(id));
    expect(await own.jobs.get(id)).toMatchObject({ state: "queued" });
    await before.service.close();
    const after = await start({ dataDir: before.dir, port: Number(new URL(address).port) }, keys);
    try {
      expect(await own.jobs.cancel(id)).toMatchObject({ state: "cancelled" });
      expect(await waited).toMatchObject({ id, state: "cancelled" });
      expect(await listened).toMatchObject([{ type: "job", job: { id, state: "cancelled" } }]);
    } finally {
      await end(after);
    }
  }, 120_000); // two starts of a service
});

describe("many jobs", () => {
  test("of a batch are counted, listed over all pages, cancelled together, and removed on the way", async () => {
    const made = await client.batches.submit({ jobs: Array.from({ length: 230 }, (_, input) => ({ ...later, input })) }); // prettier-ignore
    expect(new Set(made.jobs).size).toBe(230);
    expect(await client.batches.get(made.id)).toMatchObject({ total: 230, counts: { queued: 230 } });
    const listed = await all(client.jobs.list({ batch: made.id }));
    expect(listed.map(({ id }) => id).sort()).toEqual(made.jobs.toSorted());
    expect(await all(client.jobs.list({ batch: made.id, state: "done" }))).toEqual([]);
    expect(await client.batches.cancel(made.id)).toMatchObject({ total: 230, counts: { cancelled: 230 } });
    for await (const { id } of client.jobs.list({ batch: made.id })) await client.jobs.remove(id);
    expect((await refusal(client.batches.get(made.id))).code).toBe("not-found");
  });

  test("of which one is wrong are refused, all of them", async () => {
    const error = await refusal(client.batches.submit({ jobs: [later, { ...later, keepS: 1 }] }));
    expect(error.problem?.errors).toMatchObject([{ field: "jobs[1].keepS" }]);
  });

  test("are made by a schedule, which is made, changed, listed and removed", async () => {
    const cron = "0 6 * * 1-5";
    const made = await client.schedules.put("mornings", { cron, timeZone: "Europe/Berlin", job: later });
    expect(made).toMatchObject({ name: "mornings", nextMs: expect.any(Number), settings: { overlap: "skip" } }); // prettier-ignore
    expect(await client.schedules.put("mornings", { cron, enabled: false, job: later })).toMatchObject({ nextMs: null }); // prettier-ignore
    const { settings, ...facts } = await client.schedules.get("mornings");
    const { job: _, ...rest } = settings;
    expect(await client.schedules.list()).toEqual([{ ...facts, settings: rest }]);
    expect((await refusal(client.schedules.put("mornings", { cron: "never", job: later }))).problem?.errors).toMatchObject([{ field: "cron" }]); // prettier-ignore
    await client.schedules.remove("mornings");
    expect((await refusal(client.schedules.get("mornings"))).code).toBe("not-found");
    expect(await all(client.jobs.list({ schedule: "mornings" }))).toEqual([]);
  });
});

describe("a callback", () => {
  const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
  let receiver: http.Server;
  beforeAll(async () => {
    receiver = http.createServer();
    await new Promise<void>((ready) => receiver.listen(0, "127.0.0.1", ready));
  });
  afterAll(() => void receiver.close());

  test("that the service sends is verified, and tells of the job with its values", async () => {
    const origin = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}`;
    const callbacks = { allow: [`${origin}/*`], open: ["127.0.0.1/32"] };
    const own = clientOf(await it.tenant("called", { callbacks }));
    await own.secrets.put("HOOK", secret);
    await own.secrets.put("NEXT", "plain words and more");
    const received = new Promise<{ headers: http.IncomingHttpHeaders; body: Buffer }>((resolve) => {
      receiver.once("request", (request, response) => {
        const parts: Buffer[] = [];
        request.on("data", (part: Buffer) => parts.push(part));
        request.on("end", () => {
          response.end();
          resolve({ headers: request.headers, body: Buffer.concat(parts) });
        });
      });
    });
    const source = "export default () => new Map([['é', 1n]])";
    const callback = { url: `${origin}/hook`, secret: ["HOOK", "NEXT"] };
    const { id } = await own.jobs.submit({ source, callback });
    const { headers, body } = await received;
    const event = await verifyCallback(secret, headers, body);
    expect(event).toMatchObject({ type: "job.done", data: { id, state: "done", attempt: 1 } });
    expect(event.id).toContain(id);
    expect(event).toHaveProperty("data.outcome.value", new Map([["é", 1n]]));
    expect(await verifyCallback("plain words and more", headers, body.toString())).toEqual(event);
    expect(await verifyCallback(["retired", secret], new Headers(headers as Record<string, string>), new Uint8Array(body).buffer)).toEqual(event); // prettier-ignore
    await expect(verifyCallback("retired", headers, body)).rejects.toMatchObject({ code: "bad-signature" });
    await expect(verifyCallback(secret, headers, `${body.toString()} `)).rejects.toMatchObject({ code: "bad-signature" }); // prettier-ignore
  });
});

describe("answers that no service gives", () => {
  afterEach(() => void vi.useRealTimers());
  const job = (more: object = {}) => ({ id: "j", state: "running", createdMs: 1, dueMs: 1, attempt: 1, attempts: 1, ...more }); // prettier-ignore
  const problem = (status: number, headers: Record<string, string> = {}) =>
    Response.json({ type: "t", title: "t", status, detail: "d", code: "draining", remedy: "r" }, { status, headers }); // prettier-ignore
  type Answer = (init: RequestInit, url: string) => Response | Error | Promise<Response>;
  /** Each is given in turn, the last one for ever. */
  const scripted = (...answers: [...Answer[], Answer]) => {
    const asked: { url: string; last: string | null; key: string | null }[] = [];
    const fetch = async (url: unknown, init: RequestInit = {}): Promise<Response> => {
      const headers = new Headers(init.headers);
      asked.push({ url: String(url), last: headers.get("last-event-id"), key: headers.get("idempotency-key") }); // prettier-ignore
      init.signal?.throwIfAborted();
      const answer = await (answers.length > 1 ? answers.shift() : answers[0])?.(init, String(url));
      if (answer instanceof Error) throw answer;
      return answer ?? new Response();
    };
    const { jobs, batches, schedules } = new Client({
      baseUrl: "http://service.invalid",
      apiKey: "k",
      fetch,
    });
    return { asked, jobs, batches, schedules };
  };
  const gone: Answer = () => new TypeError("fetch failed");
  const says = (body: unknown) => (): Response => Response.json(body);
  /** What becomes of it in so many minutes of the client's clock. */
  async function inMinutes<T>(minutes: number, begin: () => Promise<T>): Promise<T | ServiceError | "waits"> {
    vi.useFakeTimers();
    const settled = begin().catch((error: unknown) => error as ServiceError);
    const waits = new Promise<"waits">((resolve) => setTimeout(resolve, minutes * 60_000, "waits"));
    await vi.advanceTimersByTimeAsync(minutes * 60_000);
    return Promise.race([settled, waits]);
  }
  const stream = (text: string) => (): Response => new Response(text, { headers: { "content-type": "text/event-stream" } }); // prettier-ignore
  const log = (id: number) => `id: ${id}\nevent: log\ndata: {"level":"log","args":["${id}"],"timeMs":0}\n\n`;
  const over = (id: number) => `id: ${id}\nevent: job\ndata: ${JSON.stringify(job({ state: "done" }))}\n\n`;

  test.each([
    ["a list", []],
    ["no id", { state: "done", createdMs: 1 }],
    ["a state that is no text", job({ state: ["done"] })],
    ["an outcome that is none", job({ state: "done", outcome: "ok" })],
    ["a value that is none", job({ state: "done", outcome: { status: "ok", value: { $type: "Gift" } } })],
    ["a value with a hostile key", JSON.parse(`{"id":"j","state":"done","createdMs":1,"outcome":{"status":"ok","value":{"__proto__":{"polluted":1}}}}`)], // prettier-ignore
  ])("for a job are refused: %s", async (_, answer: unknown) => {
    const { jobs, asked } = scripted(says(answer));
    for (const job of [jobs.get("j"), jobs.wait("j"), jobs.submit(later, { idempotencyKey: "k" }), jobs.cancel("j"), jobs.retry("j")])
      expect((await refusal(job)).code).toBe("bad-answer"); // prettier-ignore
    expect(asked).toHaveLength(5); // what is wrong once is not asked for again
  });

  test("for lists, batches and schedules are refused", async () => {
    for (const answer of [{}, { jobs: {} }, { jobs: [1] }, { jobs: "x", schedules: "y" }])
      expect((await refusal(all(scripted(says(answer)).jobs.list()))).code).toBe("bad-answer");
    const { batches, schedules } = scripted(says({ id: "b", jobs: 1, schedules: {} }));
    expect((await refusal(batches.submit({ jobs: [later] }))).code).toBe("bad-answer");
    expect((await refusal(schedules.list())).code).toBe("bad-answer");
  });

  test("a list whose pages stand still or go back ends with an error, not never", async () => {
    const page = (from: number) => says({ jobs: Array.from({ length: 100 }, (_, i) => job({ id: `j${i}`, createdMs: from - i })), next: "1_j" }); // prettier-ignore
    expect((await refusal(all(scripted(page(1000)).jobs.list()))).code).toBe("bad-answer");
    expect((await refusal(all(scripted(page(1000), page(900), page(950)).jobs.list()))).code).toBe("bad-answer"); // prettier-ignore
    expect(await all(scripted(page(1000), page(900), says({ jobs: [] })).jobs.list())).toHaveLength(200);
  });

  test("a wait goes on after lost connections and refusals that pass, when it is told to", async () => {
    const { jobs, asked } = scripted(gone, () => problem(503, { "retry-after": "40" }), () => new Response("", { status: 502 }), says(job({ state: "done" }))); // prettier-ignore
    expect(await inMinutes(0.5, () => jobs.wait("j"))).toBe("waits");
    expect(asked).toHaveLength(2);
    await vi.advanceTimersByTimeAsync(25_000);
    expect(asked).toHaveLength(4);
    expect(asked[0]?.url).toBe("http://service.invalid/v1/jobs/j?wait=30");
  });

  test("a wait without any answer ends after fifteen tries, or two minutes; with answers between them it goes on", async () => {
    const silent = scripted(gone);
    expect(await inMinutes(2, () => silent.jobs.wait("j"))).toMatchObject({ code: "no-answer" });
    expect(silent.asked.length).toBeLessThanOrEqual(15);
    expect(silent.asked.length).toBeGreaterThan(10);
    vi.useRealTimers();
    const fails = Array.from({ length: 9 }, () => gone);
    const moody = scripted(
      ...fails,
      says(job()),
      ...fails,
      says(job()),
      ...fails,
      says(job({ state: "done" })),
    );
    expect(await inMinutes(5, () => moody.jobs.wait("j"))).toMatchObject({ state: "done" });
  });

  test("a wait does not ask without pause where each answer comes at once", async () => {
    const { jobs, asked } = scripted(says(job()));
    const gone = new AbortController();
    expect(await inMinutes(10, () => jobs.wait("j", { signal: gone.signal }))).toBe("waits");
    expect(asked.length).toBeLessThan(150);
    gone.abort();
  });

  test("a wait on a connection that died unnoticed asks again", async () => {
    const never: Answer = ({ signal }) => new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason as Error))); // prettier-ignore
    const { jobs } = scripted(never, never, says(job({ state: "failed" })));
    expect(await inMinutes(3, () => jobs.wait("j"))).toMatchObject({ state: "failed" });
  });

  test("what asks for too long a wait, or does not pass, is told at once", async () => {
    for (const [answer, status] of [[() => problem(429, { "retry-after": "3600" }), 429], [() => problem(404), 404], [() => problem(500), 500]] as const) {
      const { jobs, asked } = scripted(answer);
      expect(await refusal(jobs.wait("j"))).toMatchObject({ status });
      expect(await refusal(jobs.submit(later, { idempotencyKey: "k" }))).toMatchObject({ status });
      expect(await refusal(all(jobs.events("j")))).toMatchObject({ status });
      expect(asked).toHaveLength(3);
    } // prettier-ignore
  });

  test("a request with a key is sent again with the same key, one without is not", async () => {
    const busy = () => Response.json({ type: "t", title: "t", status: 409, detail: "d", code: "idempotency-busy", remedy: "r" }, { status: 409 }); // prettier-ignore
    const keyed = scripted(gone, busy, says(job({ state: "queued" })));
    expect(await inMinutes(1, () => keyed.jobs.submit(later, { idempotencyKey: "k" }))).toMatchObject({ id: "j" }); // prettier-ignore
    expect(keyed.asked.map(({ key }) => key)).toEqual(["k", "k", "k"]);
    vi.useRealTimers();
    const plain = scripted(gone, says(job()));
    expect((await refusal(plain.jobs.submit(later))).code).toBe("no-answer");
    expect(plain.asked).toHaveLength(1);
  });

  test("a stream of events goes on after the last one, and what comes again is dropped", async () => {
    const { jobs, asked } = scripted(stream(log(1) + log(2)), gone, stream(`${log(1)}${log(2)}${log(3)}id: 4\nevent: lo`), stream("id: 4\nevent: new-kind\ndata: {}\n\n"), stream(over(4))); // prettier-ignore
    const events = (await inMinutes(1, () => all(jobs.events("j")))) as JobEvent[];
    expect(events.map(({ id, type }) => `${id} ${type}`)).toEqual(["1 log", "2 log", "3 log", "4 job"]);
    expect(asked.map(({ last }) => last)).toEqual(["0", "2", "2", "3", "4"]);
  });

  test("a stream that never tells anything ends with an error", async () => {
    const { jobs, asked } = scripted(stream(""));
    expect(await inMinutes(2, () => all(jobs.events("j")))).toMatchObject({ code: "no-answer" });
    expect(asked.length).toBeLessThanOrEqual(15);
  });

  test.each([
    ["is none", says({})],
    ["has no numbers", stream(`event: log\ndata: {}\n\n`)],
    ["has a number that is none", stream(`id: 1e3\nevent: log\ndata: {}\n\n`)],
    ["has an event that is no object", stream(`id: 1\nevent: log\ndata: [\n\n`)],
    ["ends with a job that is none", stream(`id: 1\nevent: job\ndata: {"id":1}\n\n`)],
    ["has a value that is none", stream(`id: 1\nevent: event\ndata: {"name":"n","seq":1,"data":{"$type":"Date","value":1}}\n\n`)], // prettier-ignore
  ] satisfies [string, Answer][])("a stream that %s is refused", async (_, answer) => {
    const { jobs, asked } = scripted(answer);
    expect((await refusal(all(jobs.events("j")))).code).toBe("bad-answer");
    expect(asked).toHaveLength(1);
  });

  test("an id never leads to another address", async () => {
    const { jobs, batches, schedules, asked } = scripted(says(job()));
    for (const id of ["", ".", ".."]) await expect(jobs.get(id)).rejects.toThrow(TypeError);
    await jobs.get("../runs?x#y");
    await batches.get("../jobs");
    await schedules.get("a/../b");
    expect(asked.map(({ url }) => url.replace("http://service.invalid/v1/", ""))).toEqual(["jobs/..%2Fruns%3Fx%23y", "batches/..%2Fjobs", "schedules/a%2F..%2Fb"]); // prettier-ignore
  });
});
