/** The program that becomes keeper, zygote and workers: boots one engine, then never returns to an event loop. */
import v8 from "node:v8";
import { keepTogether } from "../osjail/address-space.js";
import { socketPair } from "../osjail/descriptors.js";
import { COMMANDS_FD, failToStart, keep } from "../osjail/keeper.js";
import { readSetup } from "../osjail/setup.js";
import { settleHeap, sys, trimHeap } from "../osjail/libc.ffi.js";
import { nameKeeper } from "../osjail/thread-end.js";
import type { JailPlan } from "../osjail/plan.js";
import { EngineUnavailable, type Image } from "../engine/engine.js";
import { loadEngine, type EngineKind, type ImageKind } from "./engines.js";
import { GUEST, rehearse, serveWorker, type Stage } from "./worker.js";

export interface KeeperSetup {
  plan: JailPlan;
  memoryMb: number;
  stackKb: number;
  /** Which of the two kinds this process was launched as. */
  image?: ImageKind;
}

/** man 2 shutdown */
const SHUT_WR = 1;

nameKeeper();
const giveBack = keepTogether();
const kind = process.argv[2] as EngineKind;
const engine = await loadEngine(kind);
const setup = readSetup(COMMANDS_FD) as KeeperSetup | undefined;
if (setup === undefined) process.exit(0); // launched ahead of a wish that never came
const image = await boot(setup);
// Somebody waits for a fast start, and the rehearsal takes longer than what its few runs would save by it.
if (setup.image === "fast-start") {
  image.warm();
  // Whatever the boot left lying about, every worker would inherit as page tables and copies. An ordinary collection: a
  // "last-resort" one also flushes compiled WebAssembly on Node 24, and no worker could compile it again.
  gc();
} else {
  rehearse(image, 12, buildStage);
  packCode();
  rehearse(image, 12, buildStage);
  image.warm();
  // No full collection after the last rehearsal: it would take the shapes of objects that are no more, and each worker
  // would learn them anew.
  gc({ type: "minor" });
  settleHeap();
}
trimHeap();
keep(setup.plan, serveWorker.bind(undefined, image), {
  before: image.beforeFork?.bind(image),
  // Until here its memory has grown together; when the zygote forks no address is taken.
  settle: () => {
    trimHeap();
    giveBack();
  },
});

/** An engine of an optional package may be there and not fit this Node. */
async function boot({ memoryMb, stackKb }: KeeperSetup): Promise<Image> {
  try {
    return await engine.boot({ memoryMb, stackKb, guest: GUEST });
  } catch (error) {
    if (error instanceof EngineUnavailable) failToStart("engine", error.message);
    throw error;
  }
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
