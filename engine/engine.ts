/**
 * What an engine is to the rest: a warm image made once before the fork, and one guest per process after it.
 * An engine knows no operating system: no descriptor, no process, no clock but the one it is handed. After `boot`
 * everything is synchronous, because a forked worker has no event loop.
 */
import type { EncodedValue } from "./codec.js";

/** A value on its way in: the parsed text and the bytes that it refers to, end to end. */
export interface WireValue {
  wire: unknown;
  blob: Uint8Array;
}

/** One run: what the guest is told. Times in milliseconds, sizes in bytes. */
export interface Job {
  kind: "job";
  role: "run" | "session" | "template";
  type: "module" | "script";
  /** File name that the guest's stacks show. */
  name: string;
  source: string;
  /** Extra modules by name; nothing else can be imported. */
  modules: readonly (readonly [name: string, source: string])[];
  /** 32 bytes from the host's generator: the only source of the guest's randomness. */
  seed: Uint8Array;
  /** The guest's clock at the start, milliseconds since 1970. */
  nowMs: number;
  /** Soft deadline, from now. The hard one is outside. */
  wallMs: number;
  maxResultBytes: number;
  maxLogBytes: number;
  maxStackBytes: number;
  /** Of the engine's heap; never more than the image was booted with. */
  maxMemoryBytes: number;
  input: WireValue;
}

export type LogLevel = "debug" | "log" | "info" | "warn" | "error";

/** What ends a guest from within. The supervisor checks each claim against what it can see from outside. */
export type InnerStop = "interrupted" | "memory" | "stack" | "deadlock" | "output" | "source" | "crash";

export interface GuestError {
  name: string;
  message: string;
  stack: string;
}

/** What a guest sends. */
export type GuestEvent =
  | { kind: "call"; id: number; ref: number; method: string; args: EncodedValue }
  | { kind: "reply"; id: number; ok: boolean; value: EncodedValue }
  | { kind: "release"; ref: number; count: number }
  | { kind: "log"; level: LogLevel; timeMs: number; texts: string[] }
  | { kind: "result"; status: "ok"; value: EncodedValue }
  | { kind: "result"; status: "threw"; error: GuestError }
  | { kind: "result"; status: "stopped"; reason: InnerStop; detail: string };

/** What a guest is sent while it runs. */
export type HostEvent =
  | { kind: "reply"; id: number; nowMs: number; ok: boolean; value: WireValue }
  | { kind: "call"; id: number; ref: number; method: string; args: WireValue }
  | { kind: "release"; ref: number; count: number };

export interface BootOptions {
  /** Bound of the engine's whole linear memory, MiB. */
  memoryMb: number;
}

export interface Engine {
  boot(options: BootOptions): Promise<Image>;
}

/** A warm engine with the guest's world made, before the fork. It has seen no script. */
export interface Image {
  /**
   * Hands a spare image of the same engine to `spend`, which runs jobs of our own on it. Before the fork, so that every
   * function that a job will need is compiled once, and not in each worker; after it, so that the pages which every
   * run writes are the worker's own before its job comes.
   */
  rehearse(spend: (spare: Image) => void): void;
  /** A throw-away evaluation in the image itself, for the same reason. Called once, after the fork. */
  warm(): void;
  /** Takes the one job of this process. `send` is synchronous; after a `result` the guest is not stepped again. */
  load(job: Job, send: (event: GuestEvent) => void): Guest;
}

export interface Guest {
  /**
   * Delivers what the host sent (nothing at first) and runs until the guest can only wait. Throws only if the engine
   * itself broke: then the process must end.
   */
  step(event?: HostEvent): void;
  /** Calls to the host that have no answer yet. Zero without a result is a deadlock. */
  readonly outstanding: number;
}

/** The method of the run's built-in services (reference 0) that answers after a time: args [milliseconds]. */
export const SLEEP = "sleep";
