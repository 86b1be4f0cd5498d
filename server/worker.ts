/**
 * The worker's main, the same in the jail and out of it: park, take one job, run it, wait to be killed. From the first
 * guest byte the process counts as hostile; what this loop says is a claim that the supervisor checks. It lives
 * on one descriptor and never sees an event loop.
 */
import fs from "node:fs";
import { codec } from "../engine/codec.js";
import { resultText, type GuestMessage, type Image, type InnerStop, type Job } from "../engine/engine.js";
import { webSource } from "../engine/guest.js";
import { stubs } from "../hostapi/stubs.js";
import { FrameSource, encodeItems, encodeMessage, frameHeader, headerBytes } from "../hostapi/wire.js";
import { COLD, WARM } from "./engines.js";

/** What a guest finds in its realm besides its language and the engine's own world. */
export const GUEST = { stubs: String(stubs), web: webSource };

export interface WorkerPort {
  fd: number;
  /** WARM or COLD. */
  note: number;
  exit(code: number): never;
}

type Send = (message: GuestMessage) => void;

export function serveWorker(image: Image, port: WorkerPort): never {
  const write = (bytes: Uint8Array): void => {
    for (let at = 0; at < bytes.length;) at += fs.writeSync(port.fd, bytes, at, bytes.length - at);
  };
  try {
    if (port.note !== COLD) {
      image.warm();
      rehearseMessages();
    }
    const source = new FrameSource((into) => readSome(port.fd, into));
    write(encodeMessage({ kind: "parked" }));
    const job = source.job();
    if (job !== undefined) {
      runJob(image, job, source, sender(write));
      // The result is out. The supervisor reads our clocks and ends us; until then we must not vanish.
      while (readSome(port.fd, scrap) > 0);
    }
    return port.exit(0);
  } catch {
    return port.exit(1); // the supervisor sees the exit; there is nobody else to tell
  }
}

/** Made with the module: a forked worker writes its messages here and allocates nothing. */
const out = Buffer.alloc(64 * 1024);
const outView = new DataView(out.buffer, out.byteOffset, out.byteLength);

/** Small messages are put together and written at once; large ones go in pieces, as they lie in the guest's memory. */
function sender(write: (bytes: Uint8Array) => void): Send {
  return ({ kind, text, blobs }) => {
    const textBytes = typeof text === "string" ? Buffer.byteLength(text) : text.length;
    let blobBytes = 0;
    for (const blob of blobs) blobBytes += blob.length;
    frameHeader(kind, textBytes, blobBytes, outView);
    if (headerBytes + textBytes + blobBytes <= out.length) {
      if (typeof text === "string") out.write(text, headerBytes);
      else out.set(text, headerBytes);
      let at = headerBytes + textBytes;
      for (const blob of blobs) {
        out.set(blob, at);
        at += blob.length;
      }
      return write(out.subarray(0, at));
    }
    write(out.subarray(0, headerBytes));
    write(typeof text === "string" ? Buffer.from(text) : text);
    for (const blob of blobs) write(blob);
  };
}

/** No small integer to V8, like every date: a field that held one would be laid out anew for the first job. */
const A_DATE_MS = 1.7e12;

const jobOf = (
  type: Job["type"],
  name: string,
  source: string,
  nowMs: number,
  input: { text: string; blobs: Uint8Array[] },
): Uint8Array =>
  encodeMessage({
    kind: "job",
    role: "run",
    type,
    name,
    source,
    modules: [["part.js", "export const part = 1;"]],
    seed: new Uint8Array(32),
    nowMs,
    wallMs: 10_000,
    maxResultBytes: 4096,
    maxLogBytes: 4096,
    maxStackBytes: 256 * 1024,
    maxMemoryBytes: 2 ** 31,
    maxCallBytes: 4096,
    maxInFlight: 8,
    maxTimers: 8,
    fuel: 0,
    clock: { mode: "frozen", stepMs: 0 },
    leastLevel: "debug",
    env: [["kv", "capability", 7, ["get", "set"]]],
    input,
  });

const A_JOB = jobOf("module", "nobody.js", "", A_DATE_MS, { text: "null", blobs: [] });
const A_RESULT = Buffer.from("null");

/** A job comes in and a result goes out, of nobody: the pages that this writes to are then the worker's own. */
function rehearseMessages(): void {
  const source = new FrameSource((into) => {
    into.set(A_JOB);
    return A_JOB.length;
  });
  source.job();
  sender(() => {})({ kind: "result", text: A_RESULT, blobs: [] });
}

/** Both ends of a connection between the rehearsal and the worker's main. */
export interface Stage {
  host: number;
  worker: number;
  /** Nothing more comes from the host. */
  finish(): void;
  close(): void;
}

/**
 * The whole way of a worker through this file, the wire and the engine. Before the fork often enough that V8 has
 * compiled all of it and knows the shapes: what each worker would do for itself costs it milliseconds.
 */
export function rehearse(image: Image, rounds: number, build: () => Stage): void {
  const { encode } = codec();
  const limits = { maxBytes: 4096, maxNodes: 64, root: "rehearsal" };
  image.rehearse((spare) => {
    for (let i = 0; i < rounds; i++) {
      for (const [type, source] of SCRIPTS) {
        const input = encode({ list: [1, "two", null], bytes: new Uint8Array(2) }, limits);
        const frame = jobOf(type, `rehearsal-${i}.js`, source, A_DATE_MS + i, input);
        const value = encode("an answer", limits);
        const reply = (id: number) =>
          encodeItems(A_DATE_MS + i + 10, [{ kind: "reply", id, ok: true, value }]);
        const stage = build();
        for (const bytes of [frame, ...reply(1), ...reply(2)]) fs.writeSync(stage.host, bytes);
        stage.finish();
        perform(spare, stage.worker);
        stage.close();
      }
    }
  });
}

/** The worker's main, up to where its process would end. */
function perform(image: Image, fd: number): void {
  let exitCode: number | undefined;
  const exit = (code: number): never => {
    exitCode ??= code;
    throw new Error("the end of a rehearsal");
  };
  try {
    serveWorker(image, { fd, note: WARM, exit });
  } catch (error) {
    if (exitCode !== 0) throw new Error("the rehearsal of a worker failed", { cause: error });
  }
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
  ["module", "export default async (_, env) => [await env.kv.get('a'), await env.kv.set('b', { c: 1 })]"],
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

/** Ends when the result is out, or the host is gone. */
function runJob(image: Image, job: Job, source: FrameSource, send: Send): void {
  const state = { finished: false };
  const tell: Send = (message) => {
    send(message);
    if (message.kind === "result") state.finished = true;
  };
  const stop = (reason: InnerStop, detail: string) =>
    tell({ kind: "result", text: resultText({ status: "stopped", reason, detail }), blobs: [] });
  try {
    const guest = image.load(job, tell);
    guest.step();
    while (!state.finished) {
      if (guest.outstanding === 0) {
        return stop("deadlock", "the promise can never settle: nothing is outstanding that could settle it");
      }
      const kind = source.next((textBytes, blobBytes) => {
        const room = guest.reserve(textBytes, blobBytes);
        if (room === undefined) throw new NoRoom();
        return room;
      });
      if (kind !== "call" && kind !== "reply" && kind !== "release") return;
      guest.step(kind);
    }
  } catch (error) {
    if (state.finished) return;
    if (error instanceof NoRoom) return stop("memory", "out of memory");
    // No guest value but an exception of our realm: the instance is broken and ends here with its process. V8's own
    // stack gave out before the engine's limit (RangeError), or the WebAssembly trapped.
    stop(error instanceof RangeError ? "stack" : "crash", "the engine broke");
  }
}

/** The guest has no memory left for what the host has to say. */
class NoRoom extends Error {}
