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
  readonly #cpu = this.#counter("doublehull_run_cpu_seconds_total", "CPU time of workers.", ["engine"]);
  readonly #wall = new Histogram({
    name: "doublehull_run_wall_seconds",
    help: "From the job's departure to the outcome.",
    labelNames: ["engine"],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
    registers: [this.#registry],
  });

  /** `pools` is asked at each scrape. */
  constructor(pools: () => Promise<{ running: number; waiting: number; parked: number }>) {
    collectDefaultMetrics({ register: this.#registry });
    const gauge = new Gauge({
      name: "doublehull_workers",
      help: "Workers that run and that are parked, and runs that wait for one.",
      labelNames: ["state"],
      registers: [this.#registry],
      async collect() {
        for (const [state, count] of Object.entries(await pools())) this.set({ state }, count);
      },
    });
    gauge.set({ state: "running" }, 0);
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

  /** In the text format of Prometheus, with its content type. */
  async text(): Promise<{ type: string; body: string }> {
    return { type: this.#registry.contentType, body: await this.#registry.metrics() };
  }
}
