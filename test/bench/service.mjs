// What HTTP costs beside the library's own runs, in turns in one process each: npm run bench:service [-- --rounds 5 --json F]
// One by one for the latency, then ever more at once until something breaks first, and what: refusals are counted by
// their code. The client is in a process of its own, so that it takes none of the service's time.
import { fork } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";
import { Sandbox } from "doublehull";
import { request, Agent } from "undici";
import { startService } from "../../dist/server/service/service.js";
import { describeHost, quantile } from "./measures.mjs";

const LOADS = [1, 8, 32, 128, 512];
const RUN = { source: "export default () => 1 + 1" };
const [maxConcurrent, parked] = [8, 16];

/** Runs `act` `count` times, `load` at once; what each came to, and how long it all took. */
async function loaded(count, load, act) {
  const times = [];
  const ends = {};
  let left = count;
  const start = performance.now();
  const worker = async () => {
    while (left-- > 0) {
      const begun = performance.now();
      const end = await act();
      if (end === "ok") times.push(performance.now() - begun);
      ends[end] = (ends[end] ?? 0) + 1;
    }
  };
  await Promise.all(Array.from({ length: load }, worker));
  const seconds = (performance.now() - start) / 1000;
  return {
    load,
    perSecond: (ends.ok ?? 0) / seconds,
    p50: quantile(times, 0.5),
    p99: quantile(times, 0.99),
    ends,
  };
}

if (process.argv[2] === "client") {
  const agent = new Agent({ connections: 512 });
  const measure = async ({ url, key, count, load }) => {
    const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
    const act = async () => {
      const { statusCode, body } = await request(url, {
        method: "POST",
        headers,
        body: JSON.stringify(RUN),
        dispatcher: agent,
      });
      const answer = await body.json();
      return statusCode === 200 ? answer.outcome.status : answer.code;
    };
    process.send(await loaded(count, load, act));
  };
  process.on("message", (job) => void measure(job));
} else {
  const { values: args } = parseArgs({
    options: { rounds: { type: "string", default: "3" }, json: { type: "string" } },
  });
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "bench-service-"));
  const client = fork(fileURLToPath(import.meta.url), ["client"], { execArgv: [] });
  const sandbox = await Sandbox.create({ image: "fast-run", maxConcurrent, parked });
  const service = await startService({
    version: "0",
    dataDir: path.join(dir, "data"),
    node: "bench",
    host: "127.0.0.1",
    port: 0,
    adminHost: "127.0.0.1",
    adminPort: 0,
    limits: {},
    maxConcurrent,
    parked,
    maxQueue: 1000,
    requireCgroup: false,
    graceMs: 1000,
    logLevel: "silent",
    now: Date.now,
  });
  const { key, adminKey } = service.made;
  // The tenant's own bounds are not what is measured.
  await request(`${service.adminAddress}/admin/v1/tenants/default`, {
    method: "PUT",
    headers: { authorization: `Bearer ${adminKey}`, "content-type": "application/json" },
    body: JSON.stringify({ quotas: { concurrent: 1000, requestsPerMinute: 1e9, runsPerDay: 1e9 } }),
  });
  const over = (count, load) =>
    new Promise((resolve) => {
      client.once("message", resolve);
      client.send({ url: `${service.address}/v1/runs`, key, count, load });
    });
  const within = (count, load) =>
    loaded(count, load, async () => (await sandbox.run(RUN.source, { tenant: "default" })).status);
  await over(20, 2);
  await within(20, 2);
  const ask = async (method, route, body) => {
    const answer = await request(service.address + route, {
      method,
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return answer.body.json();
  };
  /** Jobs accepted one by one, for what the disk costs; then a batch of them until the last is done. */
  const jobs = async (count) => {
    const times = [];
    for (let i = 0; i < 20; i++) {
      const begun = performance.now();
      await ask("POST", "/v1/jobs", { ...RUN, delayMs: 3_600_000 });
      times.push(performance.now() - begun);
    }
    const start = performance.now();
    const { jobs: ids } = await ask("POST", "/v1/batches", {
      jobs: Array.from({ length: count }, () => RUN),
    });
    for (const id of ids) await ask("GET", `/v1/jobs/${id}?wait=60`);
    const seconds = (performance.now() - start) / 1000;
    return { way: "jobs", perSecond: count / seconds, p50: quantile(times, 0.5), p99: quantile(times, 0.99) };
  };
  const rows = [];
  for (let round = 0; round < Number(args.rounds); round++) {
    for (const load of LOADS) {
      const count = Math.max(60, 2 * load);
      rows.push(
        { way: "library", ...(await within(count, load)) },
        { way: "http", ...(await over(count, load)) },
      );
    }
    rows.push(await jobs(200));
  }
  await service.close();
  await sandbox.close();
  client.disconnect();
  fs.rmSync(dir, { recursive: true });
  const middle = (way, load, what) => quantile(rows.filter((row) => row.way === way && row.load === load).map((row) => row[what]), 0.5); // prettier-ignore
  console.log("at once   library: p50 ms   p99   runs/s      http: p50 ms   p99   runs/s    p50 of http / library   other answers"); // prettier-ignore
  for (const load of LOADS) {
    const figures = ["library", "http"].flatMap((way) => ["p50", "p99", "perSecond"].map((what) => middle(way, load, what))); // prettier-ignore
    const others = {};
    for (const { ends } of rows.filter((row) => row.way === "http" && row.load === load))
      for (const [end, times] of Object.entries(ends))
        if (end !== "ok") others[end] = (others[end] ?? 0) + times;
    const ratio = figures[3] / figures[0];
    console.log(`${String(load).padStart(7)} ${figures.map((n) => n.toFixed(1).padStart(11)).join("")} ${ratio.toFixed(2).padStart(16)}   ${JSON.stringify(others)}`); // prettier-ignore
  }
  const job = (what) =>
    quantile(
      rows.filter(({ way }) => way === "jobs").map((row) => row[what]),
      0.5,
    );
  const share = job("perSecond") / middle("library", 8, "perSecond");
  console.log(`jobs: accepted in ${job("p50").toFixed(1)} ms (p99 ${job("p99").toFixed(1)}); ${job("perSecond").toFixed(1)} a second done, ${share.toFixed(2)} x the library's runs, 8 at once`); // prettier-ignore
  const host = { ...describeHost(), load: os.loadavg(), date: new Date().toISOString() };
  if (args.json !== undefined)
    fs.writeFileSync(args.json, `${JSON.stringify({ host, rows }, undefined, 1)}\n`);
}
