// One contender in a process of its own, by its key: an engine of doublehull or a peer.
// node once.mjs KEY         runs the trivial script once and ends: what a cold start of it costs
// node once.mjs KEY COUNT   makes so many idle sandboxes, says so, and keeps them until its standard input ends
import fs from "node:fs";
import { runRight, TRIVIAL } from "./workloads.mjs";

const [key, count] = process.argv.slice(2);
const { PEERS } = await import("./peers.mjs");
const start = PEERS[key] ?? (async () => (await import("./doublehull.mjs")).startDoublehull(key));
const contender = await start();
if (count === undefined) await runRight(contender, TRIVIAL);
else {
  const end = await contender.idle.start(Number(count));
  globalThis.gc?.();
  fs.writeSync(1, "\n");
  await new Promise((resolve) => process.stdin.once("end", resolve).resume());
  await end();
}
await contender.stop();
process.exit(0);
