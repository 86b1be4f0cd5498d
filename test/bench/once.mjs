// Loads one peer, runs the trivial script once and ends: what a cold start of it costs. node once.mjs PEER
import { PEERS } from "./peers.mjs";
import { runRight, TRIVIAL } from "./workloads.mjs";

const peer = await PEERS[process.argv[2]]();
await runRight(peer, TRIVIAL);
await peer.stop();
process.exit(0);
