/** The program that becomes keeper, zygote and workers: boots one engine, then never returns to an event loop. */
import { keepTogether } from "../osjail/address-space.js";
import { COMMANDS_FD, failToStart, keep } from "../osjail/keeper.js";
import { readSetup } from "../osjail/setup.js";
import { trimHeap } from "../osjail/libc.ffi.js";
import { nameKeeper } from "../osjail/thread-end.js";
import type { JailPlan } from "../osjail/plan.js";
import { EngineUnavailable, type Image } from "../engine/engine.js";
import { loadEngine, type EngineKind, type ImageKind } from "./engines.js";
import { prepare } from "./prepare.js";
import { GUEST, serveWorker } from "./worker.js";

export interface KeeperSetup {
  plan: JailPlan;
  memoryMb: number;
  stackKb: number;
  /** Which of the two kinds this process was launched as. */
  image?: ImageKind;
}

nameKeeper();
const giveBack = keepTogether();
const kind = process.argv[2] as EngineKind;
const engine = await loadEngine(kind);
const setup = readSetup(COMMANDS_FD) as KeeperSetup | undefined;
if (setup === undefined) process.exit(0); // launched ahead of a wish that never came
const image = await boot(setup);
prepare(image, setup.image ?? "fast-run");
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
