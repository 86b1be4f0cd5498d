/** A service that dies: what it accepted is done once, or tried again as declared. */
import { expect, test } from "vitest";
import { audited, end, serving, start, temporaryDirectory, type Running } from "./harness.js";

/** Counts itself in the tenant's store, then does what `then` says. */
const counting = (then: string) => `export default async (name, { kv }) => {
  await kv.set(name, ((await kv.get(name)) ?? 0) + 1);
  console.log("counted");
  ${then}
}`;
const settings = { policy: { limits: { wallMs: 20_000, cpuMs: 20_000 }, grants: { kv: true } } };

async function endOf(it: Pick<Running, "ask">, id: string, key: string) {
  for (;;) {
    const { body } = await it.ask("GET", `/v1/jobs/${id}?wait=30`, { key });
    if (body.state !== "queued" && body.state !== "running") return body;
  }
}
const countOf = async (it: Pick<Running, "ask">, name: string, key: string) =>
  (await it.ask("POST", "/v1/runs", { key, body: { source: "export default (name, { kv }) => kv.get(name)", input: name, grants: ["kv"] } })).body.outcome.value; // prettier-ignore

test("killed with kill -9 between and within jobs, it does each accepted job once, or again as it was declared", async () => {
  const dir = temporaryDirectory();
  const first = await serving(dir, ["--max-concurrent", "4"]);
  const key = await first.tenant("worker", settings);
  const body = (name: string, then: string, more: object = {}) => ({ source: counting(then), input: name, grants: ["kv"], ...more }); // prettier-ignore
  const post = async (job: object) =>
    (await first.ask("POST", "/v1/jobs", { key, body: job })).body.id as string;
  // Two that are within a run at the moment of the kill: one at most once, one at least once.
  const hang = "for (;;) if (Date.now() < 0) break;";
  const once = await post(body("once", hang));
  const again = await post(
    body("again", "if ((await kv.get(name)) === 1) " + hang, { retry: { attempts: 3, backoffMs: 100 } }),
  );
  for (const id of [once, again]) {
    for (;;) {
      const { body: events } = await first.ask("GET", `/v1/jobs/${id}`, { key });
      if (events.state === "running") break;
    }
  }
  const waiting = (
    await first.ask("POST", "/v1/batches", {
      key,
      body: { jobs: Array.from({ length: 20 }, (_, i) => body(`b${i}`, "return name")) },
    })
  ).body.jobs as string[];
  const counted = async (name: string) => (await countOf(first, name, key)) === 1;
  while (!(await counted("once")) || !(await counted("again")));
  await first.kill("SIGKILL");

  const second = await start({ dataDir: dir }, first.keys);
  expect(await endOf(second, once, key)).toMatchObject({
    state: "failed",
    attempt: 1,
    problem: { code: "job-lost" },
  });
  expect(await endOf(second, again, key)).toMatchObject({ state: "done", attempt: 2 });
  for (const id of waiting) expect(await endOf(second, id, key)).toMatchObject({ state: "done", attempt: 1 });
  expect(await countOf(second, "once", key)).toBe(1);
  expect(await countOf(second, "again", key)).toBe(2);
  for (let i = 0; i < 20; i++) expect(await countOf(second, `b${i}`, key)).toBe(1);
  await end(second);
}, 60_000);

test("killed again and again while it accepts, it does every job that it said yes to, each once", async () => {
  const dir = temporaryDirectory();
  let one = await serving(dir, []);
  const { keys } = one;
  const key = await one.tenant("worker", settings);
  const yes: string[] = [];
  for (let round = 0; round < 3; round++) {
    const killed = new AbortController();
    const asking = (async () => {
      for (let i = 0; !killed.signal.aborted; i++) {
        const name = `r${round}n${i}`;
        const answer = await one.ask("POST", "/v1/jobs", { key, body: { source: counting("return name"), input: name, grants: ["kv"], retry: { attempts: 5, on: ["lost"], backoffMs: 100 } } }).catch(() => undefined); // prettier-ignore
        if (answer?.status === 202) yes.push(answer.body.id as string);
      }
    })();
    const aim = yes.length + 15;
    while (yes.length < aim) await new Promise((resolve) => setImmediate(resolve));
    await one.kill("SIGKILL");
    killed.abort();
    await asking;
    if (round < 2) one = await serving(dir, [], keys);
  }
  const last = await start({ dataDir: dir }, keys);
  for (const id of yes) expect((await endOf(last, id, key)).state).toBe("done");
  // The attempts say so too: a job was begun again only where its node had died under it.
  const lines = audited(dir).filter(({ kind, act }) => kind === "job" && act === "finished");
  expect(new Set(lines.map(({ job }) => job)).size).toBeGreaterThanOrEqual(yes.length);
  await end(last);
}, 120_000);

test("ended with SIGTERM, it lets jobs under way end, and the next start does the rest", async () => {
  const dir = temporaryDirectory();
  const first = await serving(dir, []);
  const key = await first.tenant("worker", settings);
  const jobs = Array.from({ length: 40 }, (_, i) => ({ source: counting("return name"), input: `n${i}`, grants: ["kv"] })); // prettier-ignore
  const ids = (await first.ask("POST", "/v1/batches", { key, body: { jobs } })).body.jobs as string[];
  await endOf(first, ids[0] as string, key);
  expect(await first.kill("SIGTERM")).toBe(0);
  const second = await start({ dataDir: dir }, first.keys);
  for (const id of ids) expect(await endOf(second, id, key)).toMatchObject({ state: "done", attempt: 1 });
  for (let i = 0; i < 40; i++) expect(await countOf(second, `n${i}`, key)).toBe(1);
  await end(second);
}, 60_000);
