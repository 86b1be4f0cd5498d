/** The program that becomes keeper, zygote and workers: boots one engine, then never returns to an event loop. */
import v8 from "node:v8";
import { keepTogether } from "../osjail/address-space.js";
import { COMMANDS_FD, keep } from "../osjail/keeper.js";
import { readSetup } from "../osjail/setup.js";
import { trimHeap } from "../osjail/libc.ffi.js";
import { nameKeeper } from "../osjail/thread-end.js";
import type { JailPlan } from "../osjail/plan.js";
import { loadEngine, type EngineKind, type ImageKind } from "./engines.js";
import { GUEST, rehearse, serveWorker } from "./worker.js";

export interface KeeperSetup {
  plan: JailPlan;
  memoryMb: number;
  /** Which of the two kinds this process was launched as. */
  image?: ImageKind;
}

nameKeeper();
const giveBack = keepTogether();
const engine = await loadEngine(process.argv[2] as EngineKind);
const setup = readSetup(COMMANDS_FD) as KeeperSetup | undefined;
if (setup === undefined) process.exit(0); // launched ahead of a wish that never came
const image = await engine.boot({ memoryMb: setup.memoryMb, guest: GUEST });
// Somebody waits for a fast start, and the rehearsal takes longer than what its few runs would save by it.
if (setup.image !== "fast-start") rehearse(image, 12);
image.warm();
// What a collection moves then, it moves together: fewer pages, and fewer page tables.
if (setup.image !== "fast-start") v8.setFlagsFromString("--compact-on-every-full-gc");
collect();
keep(setup.plan, (port) => serveWorker(image, port), settle);

/**
 * Whatever the boot left lying about, every worker would inherit as page tables and copies. An ordinary collection: a
 * "last-resort" one also flushes compiled WebAssembly on Node 24, and no worker could compile it again.
 */
function collect(): void {
  (globalThis as { gc?: () => void }).gc?.();
  trimHeap();
}

/** In the zygote: until here its memory has grown together; when it forks no address is taken. */
function settle(): void {
  trimHeap();
  v8.setFlagsFromString("--no-compact-on-every-full-gc");
  giveBack();
}
