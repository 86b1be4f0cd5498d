/**
 * Grants that change what every script has anyway: its clock, its randomness, its console, its timers. They are no
 * objects in `env`, for there is nothing to call: the engine keeps them inside the worker, and the job says how.
 */
import { createHash } from "node:crypto";
import { type Check, checkOptions, oneOf, wholeNumber } from "./options.js";

/**
 * - `frozen` (default): stands still between the answers of the host.
 * - `real`: runs, in milliseconds. A script can time its own computing, and so, coarsely, the host.
 * - `coarse`: runs in steps of `stepMs`.
 * - `virtual`: begins at `startMs` and moves only when a timer is due, at once: a sleep costs no time.
 */
export type ClockMode = "frozen" | "real" | "coarse" | "virtual";

export interface ClockSetting {
  readonly mode: ClockMode;
  /** Of `coarse`, ms; 0 otherwise. */
  readonly stepMs: number;
  /** Milliseconds since 1970 at which the run begins; undefined: the host's clock. */
  readonly startMs: number | undefined;
}

export type LogLevel = "debug" | "log" | "info" | "warn" | "error";

export type Ambient =
  | { readonly kind: "clock"; readonly setting: ClockSetting }
  /** 32 bytes. */
  | { readonly kind: "random"; readonly seed: Uint8Array | undefined }
  | { readonly kind: "log"; readonly least: LogLevel }
  /** Timers that may be pending at once; 0: none, and `setTimeout` says so. */
  | { readonly kind: "timers"; readonly most: number };

export const AMBIENT_KINDS = [
  "clock",
  "random",
  "log",
  "timers",
] as const satisfies readonly Ambient["kind"][];

/** The script's clock. Throws TypeError naming the option that is wrong. */
export function clock(options: { mode?: ClockMode; stepMs?: number; startMs?: number } = {}): Ambient {
  checkOptions("clock", options, {
    mode: oneOf("frozen", "real", "coarse", "virtual"),
    stepMs: inRange(1, 3_600_000, "must be a number from 1 to 3600000 ms"),
    startMs: inRange(-8.64e15, 8.64e15, "must be a number of milliseconds since 1970: date.getTime()"),
  });
  const { mode = "real", stepMs, startMs } = options;
  if ((mode === "coarse") !== (stepMs !== undefined)) {
    throw new TypeError('clock: stepMs goes with mode "coarse", and must stand there');
  }
  return Object.freeze({ kind: "clock", setting: Object.freeze({ mode, stepMs: stepMs ?? 0, startMs }) });
}

/**
 * The script's randomness: from the host's generator, or the same for every run from a seed of any length. Throws
 * TypeError naming the option that is wrong.
 */
export function random(options: { seed?: string | Uint8Array } = {}): Ambient {
  const { seed } = checkOptions("random", options, {
    seed: (value) =>
      typeof value === "string" || value instanceof Uint8Array ? undefined : "must be a string or bytes",
  });
  const digest = seed === undefined ? undefined : new Uint8Array(createHash("sha256").update(seed).digest());
  return Object.freeze({ kind: "random", seed: digest });
}

const LEVELS: readonly LogLevel[] = ["debug", "log", "info", "warn", "error"];

/** The script's console: entries below `least` are dropped in the worker. Throws TypeError naming the option that is wrong. */
export function log(options: { least?: LogLevel } = {}): Ambient {
  const { least = "debug" } = checkOptions("log", options, { least: oneOf(...LEVELS) });
  return Object.freeze({ kind: "log", least });
}

/** The script's timers: how many may be pending at once; 0 takes them away. Throws TypeError naming the option that is wrong. */
export function timers(options: { most?: number } = {}): Ambient {
  const { most = 10_000 } = checkOptions("timers", options, { most: wholeNumber(0, 10_000) });
  return Object.freeze({ kind: "timers", most });
}

/** A number and not a Date or a text, which would compare as one. */
const inRange =
  (least: number, most: number, fault: string): Check =>
  (value) =>
    typeof value === "number" && value >= least && value <= most ? undefined : fault;
