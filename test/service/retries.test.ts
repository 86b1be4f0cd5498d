/** Runs with an idempotency key, asked for by the client over a network and a service that fail. */
import { setImmediate as turn } from "node:timers/promises";
import { afterEach, describe, expect, test, vi } from "vitest";
import { AnswerLostError, Client, ServiceError } from "doublehull/client";
import { shared } from "./harness.js";

const it = shared();
const count = { source: "export default (input, env) => env.kv.increment(input)", grants: ["kv"] };

describe("against a service", () => {
  /** A client whose first so many answers are lost on their way, after the service has given them. */
  const losing = (times: number, apiKey = it.service.made?.key ?? "") => {
    let sent = 0;
    const fetch: typeof globalThis.fetch = async (input, init) => {
      const response = await globalThis.fetch(input, init);
      if (++sent > times) return response;
      await response.arrayBuffer();
      throw new TypeError("fetch failed");
    };
    return { client: new Client({ baseUrl: it.service.address, apiKey, fetch }), sent: () => sent };
  };

  test("a run whose answers are lost runs once", async () => {
    const { client, sent } = losing(2);
    const { outcome } = await client.run({ ...count, input: "once" }, { idempotencyKey: "a" });
    expect(outcome).toMatchObject({ status: "ok", value: 1 });
    expect(sent()).toBe(3);
    await expect(losing(1).client.run({ ...count, input: "once" })).rejects.toMatchObject({
      code: "no-answer",
    });
    const third = await client.run({ ...count, input: "once" });
    expect(third.outcome).toMatchObject({ value: 3 }); // the control: without a key each is a run
  });

  test("many with one key get the answer of the one run", async () => {
    const source = "export default async (input, env) => { await new Promise((done) => setTimeout(done, 300)); return env.kv.increment(input) }"; // prettier-ignore
    const one = () =>
      losing(0).client.run({ source, grants: ["kv"], input: "many" }, { idempotencyKey: "b" });
    const answers = await Promise.all([one(), one(), one()]);
    expect(answers.map(({ outcome }) => outcome.status === "ok" && outcome.value)).toEqual([1, 1, 1]);
    expect(new Set(answers.map(({ id }) => id)).size).toBe(1);
  });

  test("an answer that was not kept is an error of its own, told at once", async () => {
    const key = await it.tenant("no-room", {
      quotas: { storageBytes: 10 },
      policy: { grants: { kv: true } },
    });
    const { client, sent } = losing(1, key);
    const error = await client
      .run({ ...count, input: "n" }, { idempotencyKey: "c" })
      .catch((e: unknown) => e);
    expect(error).toBeInstanceOf(AnswerLostError);
    expect(error).toBeInstanceOf(ServiceError);
    expect(error).toMatchObject({ name: "AnswerLostError", code: "idempotency-lost", status: 409 });
    expect(sent()).toBe(2);
  });

  test("a key that is none is told before anything is sent", async () => {
    const { client, sent } = losing(0);
    for (const idempotencyKey of ["", "a b", "é", "x".repeat(256), 7 as unknown as string])
      await expect(client.run(count, { idempotencyKey })).rejects.toThrow(/idempotencyKey must be/);
    expect(sent()).toBe(0);
  });
});

describe("from a service that is busy", () => {
  afterEach(() => void vi.useRealTimers());
  const problem =
    (status: number, code: string, headers: Record<string, string> = {}) =>
    () =>
      Response.json({ type: "t", title: "t", status, detail: "d", code, remedy: "r" }, { status, headers });
  const ok = () => Response.json({ id: "r", outcome: { status: "ok", value: 1 } });
  const lost = () => Promise.reject(new TypeError("fetch failed"));
  /** Answers in turn, the last one for ever. */
  const scripted = (...answers: (() => Response | Promise<Response>)[]) => {
    const asked: { at: number; key: string | null }[] = [];
    const fetch = (_url: unknown, init: RequestInit = {}) => {
      asked.push({ at: Date.now(), key: new Headers(init.headers).get("idempotency-key") });
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      return Promise.resolve().then(answer ?? lost);
    };
    return { asked, client: new Client({ baseUrl: "http://x", apiKey: "k", fetch }) };
  };
  const run = async ({ client }: { client: Client }, signal?: AbortSignal) => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"] });
    const state = { settled: false };
    const asked = client.run({ source: "1" }, { idempotencyKey: "key", signal }).then(
      ({ outcome }) => outcome.status,
      (error: unknown) => error as ServiceError,
    );
    void asked.finally(() => (state.settled = true));
    while (!state.settled) {
      await turn();
      await vi.advanceTimersByTimeAsync(100);
    }
    return asked;
  };

  test("it waits as long as the service says, and sends the same key", async () => {
    const busy = problem(409, "idempotency-busy", { "retry-after": "3" });
    const it = scripted(lost, busy, problem(429, "tenant-busy"), problem(503, "overloaded", { "retry-after": "7" }), ok); // prettier-ignore
    expect(await run(it)).toBe("ok");
    expect(new Set(it.asked.map(({ key }) => key))).toEqual(new Set(["key"]));
    const waits = it.asked.slice(1).map(({ at }, i) => at - (it.asked[i]?.at ?? 0));
    for (const [i, least] of [200, 3000, 800, 7000].entries()) {
      expect(waits[i]).toBeGreaterThanOrEqual(least);
      expect(waits[i]).toBeLessThanOrEqual(least * 1.25 + 200);
    }
  });

  test("it gives up after so many attempts, after so long, and at once where it would be too long", async () => {
    const quick = scripted(problem(503, "overloaded"));
    expect(await run(quick)).toMatchObject({ code: "overloaded" });
    const { asked } = quick;
    expect(asked.length).toBeLessThanOrEqual(15);
    expect(asked.length).toBeGreaterThan(10);
    expect((asked.at(-1)?.at ?? 0) - (asked[0]?.at ?? 0)).toBeLessThanOrEqual(120_000);
    const tomorrow = scripted(problem(429, "quota-exceeded", { "retry-after": "40000" }));
    expect(await run(tomorrow)).toMatchObject({ code: "quota-exceeded", retryAfterS: 40_000 });
    expect(tomorrow.asked).toHaveLength(1);
  });

  test("it does not ask again for what will not pass", async () => {
    for (const [status, code] of [
      [422, "idempotency-reused"],
      [409, "idempotency-lost"],
      [403, "forbidden"],
      [500, "internal"],
    ] as const) {
      // prettier-ignore
      const it = scripted(problem(status, code), ok);
      expect(await run(it)).toMatchObject({ code });
      expect(it.asked).toHaveLength(1);
    }
  });

  test("it stops when its caller does", async () => {
    const gone = new AbortController();
    const reason = new Error("enough");
    const it = scripted(lost, () => (gone.abort(reason), problem(503, "draining")()));
    expect(await run(it, gone.signal)).toBe(reason);
    expect(it.asked).toHaveLength(2);
  });
});
