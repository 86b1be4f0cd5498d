/** Prometheus metrics. The one file that knows the client library. Labels are of closed sets: no tenant, no name. */
import { Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from "prom-client";
import type { Outcome } from "../outcome.js";
import type { ProblemCode } from "./problems.js";

export class Metrics {
  readonly #registry = new Registry();
  readonly #runs = this.#counter("doublehull_runs_total", "Runs by engine, status and reason of the stop.", ["engine", "status", "reason"]); // prettier-ignore
  readonly #refused = this.#counter(
    "doublehull_runs_refused_total",
    "Runs that were not begun, by problem.",
    ["code"],
  );
  readonly #requests = this.#counter("doublehull_http_requests_total", "Answers by route and status.", ["route", "status"]); // prettier-ignore
  readonly #jobs = this.#counter("doublehull_jobs_total", "Durable jobs that ended, by how.", ["state"]);
  readonly #callbacks = this.#counter("doublehull_callbacks_total", "Callbacks sent, by what became of them; pending: to be tried again.", ["state"]); // prettier-ignore
  readonly #cpu = this.#counter("doublehull_run_cpu_seconds_total", "CPU time of workers.", ["engine"]);
  readonly #wall = new Histogram({
    name: "doublehull_run_wall_seconds",
    help: "From the job's departure to the outcome.",
    labelNames: ["engine"],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
    registers: [this.#registry],
  });

  /** Both are asked at each scrape: this process's workers, and jobs in the store by state. */
  constructor(
    pools: () => Promise<{ running: number; waiting: number; parked: number }>,
    jobs: () => Promise<Readonly<Record<string, number>>>,
  ) {
    collectDefaultMetrics({ register: this.#registry });
    this.#gauge("doublehull_workers", "Workers that run and that are parked, and runs that wait for one.", pools); // prettier-ignore
    this.#gauge("doublehull_jobs", "Durable jobs in the store, of all nodes, by state.", jobs);
  }

  #gauge(name: string, help: string, ask: () => Promise<object>): Gauge<"state"> {
    return new Gauge({
      name,
      help,
      labelNames: ["state"],
      registers: [this.#registry],
      async collect() {
        for (const [state, count] of Object.entries(await ask()) as [string, number][])
          this.set({ state }, count);
      },
    });
  }

  #counter<T extends string>(name: string, help: string, labelNames: T[]): Counter<T> {
    return new Counter({ name, help, labelNames, registers: [this.#registry] });
  }

  ran(engine: string, outcome: Outcome): void {
    const reason = outcome.status === "stopped" ? outcome.stop.reason : "";
    this.#runs.inc({ engine, status: outcome.status, reason });
    this.#cpu.inc({ engine }, outcome.usage.cpuMs / 1000);
    this.#wall.observe({ engine }, outcome.usage.wallMs / 1000);
  }

  refused(code: ProblemCode): void {
    this.#refused.inc({ code });
  }

  answered(route: string, status: number): void {
    this.#requests.inc({ route, status: String(status) });
  }

  job(state: string): void {
    this.#jobs.inc({ state });
  }

  callback(state: string): void {
    this.#callbacks.inc({ state });
  }

  /** In the text format of Prometheus, with its content type. */
  async text(): Promise<{ type: string; body: string }> {
    return { type: this.#registry.contentType, body: await this.#registry.metrics() };
  }
}
