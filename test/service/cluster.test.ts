/**
 * Several nodes: one PostgreSQL for what must be remembered, Redis or PostgreSQL to hand jobs out, nodes that die, and
 * servers that do. Real ones, started here.
 */
import { afterAll, beforeAll, expect, test } from "vitest";
import { serving, temporaryDirectory, type Keys, type Serving } from "./harness.js";
import { describeWith, startPostgres, startRedis, type Postgres, type Server } from "./servers.js";
import fs from "node:fs";
import path from "node:path";

const settings = { policy: { limits: { wallMs: 20_000, cpuMs: 20_000 }, grants: { kv: true } }, quotas: { requestsPerMinute: 1e9 } }; // prettier-ignore
/** Counts itself in the tenant's store. */
const counting = (then = "") => `export default async (name, { kv }) => {
  await kv.set(name, ((await kv.get(name)) ?? 0) + 1);
  ${then}
  return name;
}`;
const hang = "for (;;) if (Date.now() < 0) break;";

for (const kind of ["Redis", "PostgreSQL"] as const) {
  describeWith("PostgreSQL", `with jobs on ${kind}`, () => {
    describeWith(kind, "several nodes", () => {
      let postgres: Postgres;
      let queue: Server;
      let keys: Keys;
      let key: string;
      const env: Record<string, string> = {};
      const dirs: string[] = [];
      const nodes: Serving[] = [];
      const node = async (): Promise<Serving> => {
        const dir = temporaryDirectory();
        dirs.push(path.dirname(dir));
        const args = ["--node", `n${nodes.length}`, "--sealing-key", sealing, "--max-concurrent", "4"];
        const one = await serving(dir, args, nodes.length === 0 ? undefined : keys, env);
        nodes.push(one);
        return one;
      };
      let sealing: string;
      beforeAll(async () => {
        postgres = await startPostgres();
        queue = kind === "Redis" ? await startRedis() : postgres;
        const home = temporaryDirectory();
        dirs.push(path.dirname(home));
        sealing = path.join(path.dirname(home), "sealing.key");
        env["DOUBLEHULL_STORE"] = await postgres.database();
        env["DOUBLEHULL_QUEUE"] = kind === "Redis" ? queue.url : await postgres.database();
        const first = await node();
        ({ keys } = first);
        key = await first.tenant("worker", settings);
        await node();
      }, 60_000);
      afterAll(async () => {
        for (const one of nodes) await one.kill("SIGKILL");
        await queue.stop();
        await postgres.stop();
        for (const dir of dirs) fs.rmSync(dir, { recursive: true, force: true });
      });

      const alive = () => nodes.at(-1) as Serving;
      const batch = async (count: number, name: (i: number) => string, more: object = {}) => {
        const jobs = Array.from({ length: count }, (_, i) => ({ source: counting(), input: name(i), grants: ["kv"], ...more })); // prettier-ignore
        const { status, body } = await alive().ask("POST", "/v1/batches", { key, body: { jobs } });
        expect({ status, detail: body.detail }).toEqual({ status: 202, detail: undefined });
        return body as { id: string; jobs: string[] };
      };
      const ended = async (id: string) => {
        for (;;) {
          const { body } = await alive().ask("GET", `/v1/jobs/${id}?wait=30`, { key });
          if (body.state !== "queued" && body.state !== "running") return body;
        }
      };
      const countOf = async (name: string) => {
        const source = "export default async (name, { kv }) => (await kv.get(name)) ?? 0";
        const { body } = await alive().ask("POST", "/v1/runs", { key, body: { source, input: name, grants: ["kv"] } }); // prettier-ignore
        return body.outcome.value as number;
      };
      const running = async (id: string) => {
        for (;;) {
          const { body } = await alive().ask("GET", `/v1/jobs/${id}`, { key });
          if (body.state === "running") return;
        }
      };

      test("share the jobs: each is done once, and every node does some", async () => {
        const made = await batch(60, (i) => `shared${i}`);
        for (const id of made.jobs) expect(await ended(id)).toMatchObject({ state: "done", attempt: 1 });
        for (let i = 0; i < 60; i += 7) expect(await countOf(`shared${i}`)).toBe(1);
        const doneBy = dirs.slice(1).map((dir) => {
          const lines = fs
            .readdirSync(path.join(dir, "data/audit"))
            .map((name) => fs.readFileSync(path.join(dir, "data/audit", name), "utf8"));
          return lines.join("").match(/"kind":"job","act":"finished"/g)?.length ?? 0;
        });
        expect(doneBy.every((count) => count > 0)).toBe(true);
        expect(doneBy.reduce((sum, count) => sum + count)).toBe(60);
      }, 60_000);

      test("a job that runs on one node is told of and cancelled through another", async () => {
        const id = (await batch(1, () => "cancelled", { source: counting(hang) })).jobs[0] as string;
        await running(id);
        for (const one of nodes)
          expect((await one.ask("GET", `/v1/jobs/${id}`, { key })).body.state).toBe("running");
        for (const one of nodes) await one.ask("POST", `/v1/jobs/${id}/cancel`, { key });
        expect(await ended(id)).toMatchObject({ state: "cancelled" });
      }, 60_000);

      test("one that is suspended for longer than it may be silent does nothing twice when it goes on", async () => {
        const hanging = { source: counting(`if ((await kv.get(name)) === 1) ${hang}`), retry: { attempts: 2, backoffMs: 100 } }; // prettier-ignore
        const [sleeper] = nodes as [Serving];
        const began = (await batch(4, (i) => `slept${i}`, hanging)).jobs;
        for (let i = 0; i < 4; i++) while ((await countOf(`slept${i}`)) !== 1);
        process.kill(sleeper.pid, "SIGSTOP");
        for (const id of began) expect(await ended(id)).toMatchObject({ state: "done", attempt: 2 });
        const rest = (await batch(30, (i) => `awake${i}`)).jobs;
        process.kill(sleeper.pid, "SIGCONT");
        for (const id of rest) expect(await ended(id)).toMatchObject({ state: "done", attempt: 1 });
        const after = (await batch(30, (i) => `after${i}`)).jobs;
        for (const id of after) expect(await ended(id)).toMatchObject({ state: "done", attempt: 1 });
        for (let i = 0; i < 4; i++) expect(await countOf(`slept${i}`)).toBe(2);
        for (let i = 0; i < 30; i += 3) for (const name of ["awake", "after"]) expect(await countOf(`${name}${i}`)).toBe(1); // prettier-ignore
        expect((await sleeper.ask("GET", "/v1/jobs?state=running", { key })).body.jobs).toEqual([]);
      }, 120_000);

      test("one that is killed loses nothing: its jobs are done by the others, once or as declared", async () => {
        const hanging = { source: counting(`if ((await kv.get(name)) === 1) ${hang}`), retry: { attempts: 2, backoffMs: 100 } }; // prettier-ignore
        const [victim] = nodes as [Serving];
        const again = (await batch(2, (i) => `again${i}`, hanging)).jobs;
        const once = (await batch(1, () => "once", { source: counting(hang) })).jobs[0] as string;
        const retry = { attempts: 3, backoffMs: 100, on: ["lost"] };
        const rest = (await batch(20, (i) => `rest${i}`, { retry })).jobs;
        for (const id of again) await running(id);
        // Each has counted itself: one that was killed before would count itself first in its second attempt.
        for (const i of again.keys()) while ((await countOf(`again${i}`)) !== 1);
        await victim.kill("SIGKILL");
        await nodes[1]?.kill("SIGKILL");
        await node();
        for (const id of again) expect(await ended(id)).toMatchObject({ state: "done", attempt: 2 });
        for (const id of rest) expect(await ended(id)).toMatchObject({ state: "done" });
        for (let i = 0; i < 20; i++) expect(await countOf(`rest${i}`)).toBeGreaterThan(0);
        // It began at most once: on the node that was killed, or, if it had not begun there, on the last one.
        const last = await ended(once);
        expect(last).toMatchObject({ state: "failed", attempt: 1 });
        expect([undefined, "job-lost"]).toContain(last.problem?.code);
        expect(await countOf("once")).toBeLessThanOrEqual(1); // it was killed before it counted itself, or after
      }, 120_000);

      if (kind === "Redis")
        test("while the queue is gone jobs are accepted, and done when it is back, with all that it forgot", async () => {
          await queue.kill();
          const made = await batch(5, (i) => `meanwhile${i}`);
          await queue.startAgain();
          for (const id of made.jobs) expect(await ended(id)).toMatchObject({ state: "done", attempt: 1 });
          for (let i = 0; i < 5; i++) expect(await countOf(`meanwhile${i}`)).toBe(1);
        }, 120_000);

      if (kind === "PostgreSQL")
        test("a schedule makes one job each time, however many nodes there are", async () => {
          await node();
          await alive().ask("PUT", "/v1/schedules/minutely", { key, body: { cron: "* * * * *", job: { source: "1", type: "script" } } }); // prettier-ignore
          for (;;) {
            const { body } = await alive().ask("GET", "/v1/schedules/minutely", { key });
            if (body.lastJob !== null) break;
            await new Promise((resolve) => setTimeout(resolve, 200));
          }
          const { body } = await alive().ask("GET", "/v1/jobs?schedule=minutely", { key });
          expect(body.jobs).toHaveLength(1);
        }, 120_000);

      test("end in order on SIGTERM, also with the queue's server beside them gone", async () => {
        const last = nodes.pop() as Serving;
        if (kind === "Redis") await queue.kill();
        expect(await last.kill("SIGTERM")).toBe(0);
      }, 60_000);
    });
  });
}
