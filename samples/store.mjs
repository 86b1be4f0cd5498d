// node samples/store.mjs
// kv: values that outlive a run. A grant is one namespace of a store, or a part of it; what a script may not do is not there.
import { Sandbox, unwrap } from "doublehull";
import { kv, memoryStore } from "doublehull/hostapi";

const store = memoryStore(); // sqliteStore("file.db") keeps it, through the optional better-sqlite3
const ada = kv({ store, namespace: "ada", quotaBytes: 64 * 1024 });
const bob = kv({ store, namespace: "bob" });

const sandbox = await Sandbox.create();
const run = (body, grant) =>
  sandbox.run(`export default async (input, env) => { ${body} }`, { grants: { kv: grant } });
const show = async (what, body, grant) => console.log(`${what}:`, unwrap(await run(body, grant)));

try {
  // An increment is one act: two runs at once count two.
  const visit = `return env.kv.increment("visits")`;
  await Promise.all([run(visit, ada), run(visit, ada)]);
  await show("visits of ada", `return env.kv.get("visits")`, ada);
  await show("visits of bob", `return env.kv.get("visits")`, bob);

  // A script that is handed a prefix does not see it, and reaches nothing else.
  await show(
    "below drafts/",
    `await env.kv.set("x", new Date(0)); return env.kv.list()`,
    ada.prefix("drafts/"),
  );
  await show("all keys", `return (await env.kv.list()).keys`, ada);

  // Compare-and-set: the second writer is told that it was too late.
  const change = `
    const { version } = await env.kv.entry("visits");
    await env.kv.set("visits", 10, { ifVersion: version });
    try { await env.kv.set("visits", 20, { ifVersion: version }); } catch (error) { return error.code; }`;
  await show("a lost race", change, ada);

  // Weaker grants: writing is no method any more; after two calls the budget is used up.
  await show("read-only", `return Object.keys(env.kv)`, ada.readOnly());
  const outcome = await run(`for (;;) await env.kv.get("visits")`, ada.budget({ calls: 2 }));
  console.log("budget:", outcome.error.message);
  console.log("ledger:", outcome.ledger);
} finally {
  await sandbox.close();
}
