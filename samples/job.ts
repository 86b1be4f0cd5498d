// npx doublehull run samples/job.ts --policy samples/policy.json --input '["hello.ts","sum.js"]'
// A policy file: what the job may do stands in policy.json. Its types are in env.d.ts, written by
// npx doublehull types --policy samples/policy.json > samples/env.d.ts
import type { CapabilityError, Env } from "./env.js";

/** Counts the lines of files. */
export default async function count(names: string[], env: Env): Promise<object> {
  for (const name of names) {
    const text = await env.source.readText(name);
    const lines = text.split("\n").length - 1;
    await env.events.emit("counted", { name, lines });
    await env.totals.increment("lines", lines);
  }
  return { lines: await env.totals.get("lines"), outside: await why(env.source.readText("../README.md")) };
}

const why = (call: Promise<unknown>): Promise<unknown> => call.catch((error: CapabilityError) => error.code);
