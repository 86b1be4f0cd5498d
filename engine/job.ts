/**
 * What every engine does with a job in the same way: what the world is told to begin with, the guest's clock, and what
 * a module's name means.
 */
import type { Job } from "./engine.js";

/** File name of what is evaluated in a guest's realm and is not the guest's: stacks do not show it. */
export const OWN_FILE = "doublehull:world";

/** A job of no consequence: what is compiled and written by it, no real job has to. */
export const WARM_JOB: Job = {
  kind: "job",
  role: "run",
  type: "module",
  name: OWN_FILE,
  source: "export default () => [1, { a: 'b' }]",
  modules: [],
  seed: new Uint8Array(32),
  nowMs: 1.7e12, // as of any real job: V8 lays small integers out in another way
  wallMs: 10_000,
  maxResultBytes: 4096,
  maxLogBytes: 4096,
  maxStackBytes: 0,
  maxMemoryBytes: Infinity,
  maxCallBytes: 4096,
  maxInFlight: 1,
  maxTimers: 8,
  fuel: 0,
  clock: { mode: "frozen", stepMs: 0 },
  leastLevel: "debug",
  env: [],
  input: { wire: null, blob: new Uint8Array(0) },
};

/** The arguments of the world's `begin`. */
export function beginning(job: Job): { text: string; bytes: ArrayBuffer } {
  const { blob } = job.input;
  const bytes = new ArrayBuffer(job.seed.length + blob.length);
  new Uint8Array(bytes).set(job.seed);
  new Uint8Array(bytes).set(blob, job.seed.length);
  const text = JSON.stringify([
    job.maxResultBytes,
    job.maxLogBytes,
    job.maxCallBytes,
    job.maxInFlight,
    job.maxTimers,
    job.clock.mode === "virtual",
    job.leastLevel,
    job.env,
    job.input.wire,
    job.type === "script",
  ]);
  return { text, bytes };
}

/**
 * What the guest's Date shows. Frozen: it stands still between the host's messages, each of which carries the time;
 * virtual: between timers; real and coarse run by themselves.
 */
export class GuestClock {
  #setting: Job["clock"] = WARM_JOB.clock;
  /** What it shows, and, where it runs by itself, our own time when it showed that. */
  #now = 0;
  #since = 0;

  start({ clock, nowMs }: Job): void {
    this.#setting = clock;
    this.#now = nowMs;
    this.#since = performance.now();
  }

  read(): number {
    const { mode, stepMs } = this.#setting;
    if (mode === "frozen" || mode === "virtual") return this.#now;
    const now = Math.floor(this.#now + performance.now() - this.#since);
    return mode === "coarse" ? now - (now % stepMs) : now;
  }

  /** A text of the host's: its time is the first number in it. */
  hear(text: Uint8Array, at = 0): void {
    if (this.#setting.mode === "frozen") this.#now = Math.max(this.#now, numberAt(text, at + 1));
  }

  /** To the time of the next timer, where nothing else is waited for. */
  jump(to: number): void {
    this.#now = to;
  }
}

/** The whole part of the number that begins at `at`: the host's clock, first in each of its texts. */
function numberAt(bytes: Uint8Array, at: number): number {
  if (bytes[at] === 0x2d) return -numberAt(bytes, at + 1); // before 1970
  let number = 0;
  for (let digit = (bytes[at] as number) - 48; digit >= 0 && digit <= 9; digit = (bytes[at] as number) - 48) {
    number = number * 10 + digit;
    at++;
  }
  return number;
}

/** "./x" and "../x" are taken relative to the importing module's name; anything else is a name of its own. */
export function resolveModule(
  base: string,
  requested: string,
  modules: ReadonlyMap<string, unknown>,
): string {
  if (modules.has(requested) || !/^\.\.?\//.test(requested)) return requested;
  const path = base.split("/").slice(0, -1);
  for (const part of requested.split("/")) {
    if (part === "..") path.pop();
    else if (part !== "." && part !== "") path.push(part);
  }
  return path.join("/");
}

/** The error of an import that nobody provided for. */
export function notProvided(name: string, modules: ReadonlyMap<string, unknown>): Error {
  const known = modules.size === 0 ? "none were provided" : `provided are ${[...modules.keys()].join(", ")}`;
  return new Error(`module "${name.slice(0, 200)}" was not provided (${known})`);
}
