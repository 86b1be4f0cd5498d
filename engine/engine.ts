/**
 * What an engine is to the rest: a warm image made once before the fork, and one guest per process after it.
 * An engine knows no operating system: no descriptor, no process, no clock but the one it is handed. After `boot`
 * everything is synchronous, because a forked worker has no event loop. Between a guest and the host go texts of a
 * protocol (hostapi/wire.ts) that the engine carries and does not read.
 */

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
  maxCallBytes: number;
  /** Calls that the guest may have unanswered at one time. */
  maxInFlight: number;
  maxTimers: number;
  /** Steps after which the engine stops the guest, where it can count them; 0: it does not count. */
  fuel: number;
  clock: { mode: "frozen" | "real" | "coarse" | "virtual"; stepMs: number };
  leastLevel: LogLevel;
  /** What stands in `env`: for the guest's half of the protocol. */
  env: readonly unknown[];
  input: WireValue;
}

export type LogLevel = "debug" | "log" | "info" | "warn" | "error";

/** What ends a guest from within. The supervisor checks each claim against what it can see from outside. */
export type InnerStop =
  "interrupted" | "fuel" | "memory" | "stack" | "deadlock" | "output" | "source" | "crash";

export interface GuestError {
  name: string;
  message: string;
  stack: string;
}

/** One protocol text of the guest's. */
export interface GuestMessage {
  kind: "call" | "reply" | "release" | "log" | "result";
  /** UTF-8 if bytes. These and the blobs are the engine's memory, valid only during the call of `send`. */
  text: string | Uint8Array;
  blobs: readonly Uint8Array[];
}

export type HostMessageKind = "call" | "reply" | "release";

export interface BootOptions {
  /** Bound of the engine's whole linear memory, MiB. */
  memoryMb: number;
  /** Most stack that a job may ask for, KiB. */
  stackKb: number;
  /** Functions as source text, evaluated in the guest's realm: its half of the protocol, and the web's interfaces. */
  guest: { stubs: string; web: string };
}

export interface Engine {
  boot(options: BootOptions): Promise<Image>;
}

/** The engine's optional package is there and does not load under this Node. */
export class EngineUnavailable extends Error {
  override name = "EngineUnavailable";
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
  /**
   * To be called right before the image is forked, if it is there. The fork must have happened before the moment that
   * this gives (performance.now), else it is to be done again; and in the child nothing may run before that moment.
   */
  beforeFork?(): number;
  /** Takes the one job of this process. `send` is synchronous; after a `result` the guest is not stepped again. */
  load(job: Job, send: (message: GuestMessage) => void): Guest;
}

export interface Guest {
  /**
   * Room for the host's next message, in the guest's own memory where it has one: to be filled and then taken by
   * `step`. Undefined when the guest has no memory left for it.
   */
  reserve(textBytes: number, blobBytes: number): { text: Uint8Array; blob: Uint8Array } | undefined;
  /**
   * Delivers the message that lies in the reserved room (nothing at first) and runs until the guest can only wait.
   * Throws only if the engine itself broke: then the process must end.
   */
  step(kind?: HostMessageKind): void;
  /** What may still bring the guest to life. Zero without a result is a deadlock. */
  readonly outstanding: number;
}

/** The protocol text of a result. */
export function resultText(
  result:
    | { status: "ok"; value: string }
    | { status: "threw"; error: GuestError }
    | { status: "stopped"; reason: InnerStop; detail: string },
): string {
  switch (result.status) {
    case "ok":
      return `["ok",${result.value}]`;
    case "threw": {
      const { name, message, stack } = result.error;
      return JSON.stringify(["threw", name.slice(0, 256), message.slice(0, 4096), stack.slice(0, 8192)]);
    }
    case "stopped":
      return JSON.stringify(["stopped", result.reason, result.detail.slice(0, 512)]);
  }
}
