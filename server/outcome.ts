/** What became of a run: closed unions, decided from outside the worker. */
import type { LogLevel } from "../engine/engine.js";
import type { LedgerEntry } from "../hostapi/broker.js";
import type { LayerReport } from "../osjail/plan.js";
import type { EngineKind } from "./engines.js";

export type StopReason =
  | "wall-time"
  | "cpu-time"
  | "fuel"
  | "memory"
  | "stack"
  | "output"
  | "source"
  | "host-calls"
  | "deadlock"
  | "idle"
  | "syscall"
  | "crash"
  | "protocol"
  | "lost";

/** The layer that ended the run. */
export type StopLayer = "language" | "broker" | "supervisor" | "seccomp" | "rlimit" | "cgroup" | "kernel";

export interface Stop {
  reason: StopReason;
  layer: StopLayer;
  /** In the unit of the limit of that name: milliseconds, bytes, calls. */
  limit?: number;
  measured?: number;
  /** The refused system call, by name ("openat"), or "#n" for a number without one. */
  syscall?: string;
  detail?: string;
}

/** A script's own error. The stack has the script's lines and columns only. */
export interface ScriptError {
  name: string;
  message: string;
  stack: string;
}

export interface LogEntry {
  level: LogLevel;
  /** Each argument as text. Guest text: escape it where you print it. */
  args: string[];
  /** Milliseconds since 1970, by the guest's clock. */
  timeMs: number;
}

export interface Usage {
  /** From the job's departure to the outcome. */
  wallMs: number;
  cpuMs: number;
  /** The cgroup's peak, else the process's high-water mark less the image that it began with. */
  peakMemoryBytes: number;
  hostCalls: number;
  bytesIn: number;
  bytesOut: number;
}

/** What was really on. `kernel` is empty without a kernel hull. */
export interface Layers {
  hull: "double" | "language-only";
  engine: EngineKind;
  kernel: LayerReport[];
}

export type { LedgerEntry };

interface OutcomeBase {
  logs: LogEntry[];
  usage: Usage;
  ledger: LedgerEntry[];
  layers: Layers;
}

export type Outcome<T = unknown> = OutcomeBase &
  (
    | { status: "ok"; value: T }
    | { status: "threw"; error: ScriptError }
    | { status: "stopped"; stop: Stop }
    | { status: "cancelled" }
  );

/** A script that threw, rejected, was stopped or cancelled, as an exception: for callers that like those better. */
export class RunError extends Error {
  override name = "RunError";
  constructor(
    message: string,
    readonly outcome: Exclude<Outcome, { status: "ok" }>,
  ) {
    super(message);
  }
}
export class ScriptThrew extends RunError {
  override name = "ScriptThrew";
}
export class RunStopped extends RunError {
  override name = "RunStopped";
}
export class RunCancelled extends RunError {
  override name = "RunCancelled";
}

/** The value of an outcome that is `ok`; throws ScriptThrew, RunStopped or RunCancelled otherwise. */
export function unwrap<T>(outcome: Outcome<T>): T {
  switch (outcome.status) {
    case "ok":
      return outcome.value;
    case "threw":
      throw new ScriptThrew(`${outcome.error.name}: ${outcome.error.message}`, outcome);
    case "stopped":
      throw new RunStopped(describeStop(outcome.stop), outcome);
    case "cancelled":
      throw new RunCancelled("the run was cancelled", outcome);
  }
}

/** A stop in one line: "wall-time, by the supervisor (limit 1000, measured 1020.3)". */
export function describeStop(stop: Stop): string {
  const facts = [
    stop.limit === undefined ? "" : `limit ${stop.limit}`,
    stop.measured === undefined ? "" : `measured ${Math.round(stop.measured * 10) / 10}`,
    stop.syscall === undefined ? "" : `system call ${stop.syscall}`,
    stop.detail ?? "",
  ].filter((fact) => fact !== "");
  return `${stop.reason}, by ${stop.layer}${facts.length > 0 ? ` (${facts.join(", ")})` : ""}`;
}
