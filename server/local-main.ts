/** The worker's main without a jail: a spawned process on any operating system, for development only. */
import { EngineUnavailable, type Image } from "../engine/engine.js";
import { ENGINE_UNAVAILABLE_EXIT, loadEngine, WARM, type EngineKind } from "./engines.js";
import { GUEST, serveWorker } from "./worker.js";

const setup = JSON.parse(process.argv[2] as string) as {
  engine: EngineKind;
  memoryMb: number;
  stackKb: number;
};
serveWorker(await boot(), {
  fd: 3,
  note: WARM,
  exit: (code) => process.exit(code),
});

async function boot(): Promise<Image> {
  const engine = await loadEngine(setup.engine);
  try {
    return await engine.boot({ memoryMb: setup.memoryMb, stackKb: setup.stackKb, guest: GUEST });
  } catch (error) {
    if (error instanceof EngineUnavailable) process.exit(ENGINE_UNAVAILABLE_EXIT);
    throw error;
  }
}
