/** The program that becomes keeper, zygote and workers: boots one engine, then never returns to an event loop. */
import { keep } from "../osjail/keeper.js";
import type { JailPlan } from "../osjail/plan.js";
import { loadEngine, type EngineKind } from "./engines.js";
import { rehearse, serveWorker } from "./worker.js";

export interface KeeperSetup {
  plan: JailPlan;
  engine: EngineKind;
  memoryMb: number;
}

const setup = JSON.parse(process.argv[2] as string) as KeeperSetup;
const engine = await loadEngine(setup.engine);
const image = await engine.boot({ memoryMb: setup.memoryMb });
rehearse(image, 12);
image.warm();
(globalThis as { gc?: () => void }).gc?.();
keep(setup.plan, (port) => serveWorker(image, port));
