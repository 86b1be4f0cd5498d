/**
 * The worker's main, the same in the jail and out of it: park, take one job, run it, wait to be killed. From the first
 * guest byte the process counts as hostile; what this loop says is a claim that the supervisor checks. It lives
 * on one descriptor and never sees an event loop.
 */
import fs from "node:fs";
import type { GuestEvent, Image } from "../engine/engine.js";
import { codec } from "../engine/codec.js";
import { FrameSource, encodeMessage } from "../hostapi/wire.js";

export interface WorkerPort {
  fd: number;
  exit(code: number): never;
}

export function serveWorker(image: Image, port: WorkerPort): never {
  const write = (frame: Uint8Array): void => {
    for (let at = 0; at < frame.length;) at += fs.writeSync(port.fd, frame, at, frame.length - at);
  };
  let finished = false;
  const send = (event: GuestEvent): void => {
    write(encodeMessage(event));
    if (event.kind === "result") finished = true;
  };
  try {
    image.warm();
    const source = new FrameSource((into) => readSome(port.fd, into));
    write(encodeMessage({ kind: "parked" }));
    const job = source.next();
    if (job?.kind === "job") {
      runJob(image, job, source, send, () => finished);
      // The result is out. The supervisor reads our clocks and ends us; until then we must not vanish.
      while (readSome(port.fd, scrap) > 0);
    }
    return port.exit(0);
  } catch {
    return port.exit(1); // the supervisor sees the exit; there is nobody else to tell
  }
}

/**
 * The whole way of a job through this file, the wire and the engine. Before the fork often enough that V8 has compiled
 * all of it and knows the shapes: what each worker would do for itself costs it milliseconds.
 */
export function rehearse(image: Image, rounds: number): void {
  const { encode } = codec();
  const limits = { maxBytes: 4096, maxNodes: 64, root: "rehearsal" };
  image.rehearse((spare) => {
    for (let i = 0; i < rounds; i++) {
      for (const [type, source] of SCRIPTS) {
        const frame = encodeMessage({
          kind: "job",
          role: "run",
          type,
          name: `rehearsal-${i}.js`,
          source,
          modules: [["part.js", "export const part = 1;"]],
          seed: new Uint8Array(32),
          nowMs: i,
          wallMs: 10_000,
          maxResultBytes: 4096,
          maxLogBytes: 4096,
          maxStackBytes: 256 * 1024,
          maxMemoryBytes: 2 ** 31,
          input: encode({ list: [1, "two", null], bytes: new Uint8Array(2) }, limits),
        });
        const reply = (id: number) =>
          encodeMessage({ kind: "reply", id, nowMs: i + 10, ok: true, value: encode(undefined, limits) });
        const incoming = [frame, reply(1)];
        const events: GuestEvent[] = [];
        const incomingFrames = new FrameSource((into) => {
          const next = incoming.shift();
          if (next !== undefined) into.set(next);
          return next?.length ?? 0;
        });
        const job = incomingFrames.next();
        const send = (event: GuestEvent) => {
          encodeMessage(event);
          events.push(event);
        };
        if (job?.kind === "job")
          runJob(spare, job, incomingFrames, send, () => events.at(-1)?.kind === "result");
      }
    }
  });
}

const SCRIPTS: readonly (readonly ["module" | "script", string])[] = [
  ["module", "export default async (input) => ({ ...input, n: 1n, date: new Date(0), at: Date.now() })"],
  [
    "module",
    "import { part } from './part.js'; export default (input) => { console.log('x', input); return part; }",
  ],
  [
    "module",
    "export default async () => { await new Promise((go) => setTimeout(go, 5)); throw new TypeError('x'); }",
  ],
  ["script", "[Math.random(), crypto.getRandomValues(new Uint8Array(4))]"],
  ["script", "this is no script"],
];

const scrap = Buffer.alloc(4096);

/** On a socket that another process made non-blocking a read may find nothing yet: then it is tried again. */
function readSome(fd: number, into: Uint8Array): number {
  for (;;) {
    try {
      return fs.readSync(fd, into, 0, into.length, null);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "EOF") return 0;
      if (code !== "EAGAIN" && code !== "EINTR") throw error;
      Atomics.wait(nap, 0, 0, 1);
    }
  }
}

const nap = new Int32Array(new SharedArrayBuffer(4));

function runJob(
  image: Image,
  job: Parameters<Image["load"]>[0],
  source: FrameSource,
  send: (event: GuestEvent) => void,
  finished: () => boolean,
): void {
  try {
    const guest = image.load(job, send);
    guest.step();
    while (!finished()) {
      if (guest.outstanding === 0) {
        const detail = "the promise can never settle: nothing is outstanding that could settle it";
        return send({ kind: "result", status: "stopped", reason: "deadlock", detail });
      }
      const message = source.next();
      if (message === undefined || message.kind === "job") return;
      guest.step(message);
    }
  } catch (error) {
    if (finished()) return;
    // No guest value but an exception of our realm: the instance is broken and ends here with its process. V8's own
    // stack gave out before the engine's limit (RangeError), or the WebAssembly trapped.
    const reason = error instanceof RangeError ? "stack" : "crash";
    send({ kind: "result", status: "stopped", reason, detail: "the engine broke" });
  }
}
