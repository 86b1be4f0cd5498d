/** The worker's main without a jail: a spawned process on any operating system, for development only. */
import { loadEngine, WARM, type EngineKind } from "./engines.js";
import { GUEST, serveWorker } from "./worker.js";

const setup = JSON.parse(process.argv[2] as string) as {
  engine: EngineKind;
  memoryMb: number;
  stackKb: number;
};
const engine = await loadEngine(setup.engine);
serveWorker(await engine.boot({ memoryMb: setup.memoryMb, stackKb: setup.stackKb, guest: GUEST }), {
  fd: 3,
  note: WARM,
  exit: (code) => process.exit(code),
});
