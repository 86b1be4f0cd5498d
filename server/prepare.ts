/**
 * An image between its boot and its fork: everything that a worker would compile, allocate or touch for itself is done
 * once here, and what is left lies together, because each page that a fork writes to is copied.
 */
import v8 from "node:v8";
import type { Image } from "../engine/engine.js";
import { socketPair } from "../osjail/descriptors.js";
import { settleHeap, sys, trimHeap } from "../osjail/libc.ffi.js";
import type { ImageKind } from "./engines.js";
import { rehearse, type Stage } from "./worker.js";

const ROUNDS = 12;

/** man 2 shutdown */
const SHUT_WR = 1;

/** Runs jobs of our own on a spare of the image. A fast start warms it only: somebody waits for that. */
export function prepare(image: Image, kind: ImageKind): void {
  if (kind === "fast-start") {
    image.warm();
    // Whatever the boot left lying about, every worker would inherit as page tables and copies. An ordinary collection: a
    // "last-resort" one also flushes compiled WebAssembly on Node 24, and no worker could compile it again.
    gc();
  } else {
    rehearse(image, ROUNDS, buildStage);
    packCode();
    rehearse(image, ROUNDS, buildStage);
    image.warm();
    // No full collection after the last rehearsal: it would take the shapes of objects that are no more, and each worker
    // would learn them anew.
    gc({ type: "minor" });
    settleHeap();
  }
  trimHeap();
}

/**
 * V8 writes to a function's bytecode and counters whenever it runs, so each worker copies the pages on which they lie.
 * All bytecode is dropped and the heap compacted: what the next rehearsal runs is compiled anew, side by side, and what
 * it does not run is gone.
 */
function packCode(): void {
  v8.setFlagsFromString("--stress-flush-code");
  v8.setFlagsFromString("--compact-on-every-full-gc");
  gc();
  v8.setFlagsFromString("--no-stress-flush-code");
  v8.setFlagsFromString("--no-compact-on-every-full-gc");
}

function gc(options?: { type: "minor" }): void {
  (globalThis as { gc?: (options?: { type: "minor" }) => void }).gc?.(options);
}

function buildStage(): Stage {
  const [host, worker] = socketPair();
  return {
    host,
    worker,
    finish: () => sys("shutdown", host, SHUT_WR),
    close: () => [host, worker].forEach((fd) => sys("close", fd)),
  };
}
