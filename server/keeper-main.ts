/** The program that becomes keeper, zygote and workers: boots one engine, then never returns to an event loop. */
import { COMMANDS_FD, failToStart, keep } from "../osjail/keeper.js";
import { readSetup } from "../osjail/setup.js";
import { trimHeap } from "../osjail/libc.ffi.js";
import { nameKeeper } from "../osjail/thread-end.js";
import type { JailPlan } from "../osjail/plan.js";
import { EngineUnavailable, type Image } from "../engine/engine.js";
import { loadEngine, type EngineKind, type ImageKind } from "./engines.js";
import { GUEST, rehearse, serveWorker } from "./worker.js";

export interface KeeperSetup {
  plan: JailPlan;
  memoryMb: number;
  stackKb: number;
  /** Which of the two kinds this process was launched as. */
  image?: ImageKind;
}

nameKeeper();
const kind = process.argv[2] as EngineKind;
const engine = await loadEngine(kind);
const setup = readSetup(COMMANDS_FD) as KeeperSetup | undefined;
if (setup === undefined) process.exit(0); // launched ahead of a wish that never came
const image = await boot(setup);
// Somebody waits for a fast start, and the rehearsal takes longer than what its few runs would save by it.
if (setup.image !== "fast-start") rehearse(image, 12);
image.warm();
// Whatever the boot left lying about, every worker would inherit as page tables and copies. An ordinary collection: a
// "last-resort" one also flushes compiled WebAssembly on Node 24, and no worker could compile it again.
(globalThis as { gc?: () => void }).gc?.();
trimHeap();
keep(setup.plan, (port) => serveWorker(image, port), image.beforeFork && (() => image.beforeFork?.() ?? 0));

/** An engine of an optional package may be there and not fit this Node. */
async function boot({ memoryMb, stackKb }: KeeperSetup): Promise<Image> {
  try {
    return await engine.boot({ memoryMb, stackKb, guest: GUEST });
  } catch (error) {
    if (error instanceof EngineUnavailable) failToStart("engine", error.message);
    throw error;
  }
}
