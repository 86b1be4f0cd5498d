// node samples/replay.mjs
// Record and replay: a run's input, seed, clock and answers are kept; played again it is granted nothing and does the same.
import { parseRecording, Sandbox } from "doublehull";
import { kv } from "doublehull/hostapi";

const store = kv();
const source = `export default async (name, env) => {
  const visit = await env.kv.increment(name);
  console.log("at", new Date().toISOString());
  return { name, visit, lot: Math.floor(Math.random() * 1e6) };
}`;

const sandbox = await Sandbox.create();
try {
  const recorded = await sandbox.run(source, { input: "ada", grants: { kv: store }, record: true });
  const file = JSON.stringify(recorded.recording); // as secret as the answers in it
  await sandbox.run(source, { input: "ada", grants: { kv: store } }); // the world goes on: ada's second visit

  const recording = parseRecording(file);
  const again = await sandbox.replay(recording);
  console.log("identical:", again.identical, "visit", again.outcome.value.visit);
  console.log("same lot, same time:", [
    again.outcome.value.lot === recorded.value.lot,
    again.outcome.logs[0].args[1] === recorded.logs[0].args[1],
  ]);

  // Other code on the same recording: up to where it goes another way.
  const other = await sandbox.replay(recording, { source: source.replace("increment(name)", 'get("ada")') });
  console.log("other code:", other.identical, other.divergence);
} finally {
  await sandbox.close();
}
