#!/usr/bin/env node
/**
 * The program. A `run` needs a keeper for sure, and a keeper takes as long to boot as the command line itself: so it is
 * launched first, and both boot side by side. A keeper that nobody tells what to become ends with us.
 */
import { readHost } from "../osjail/host.js";
import type { LaunchedKeeper } from "../osjail/zygote-client.js";
import type { EngineKind } from "./engines.js";
import { launchEngine } from "./hull.js";

const launched = new Map<EngineKind, Promise<LaunchedKeeper>>();
const args = process.argv.slice(2);
if (process.platform === "linux" && args[0] === "run" && args.length > 1 && !args.some(rulesOut)) {
  const host = readHost(process.env);
  const engines: EngineKind[] = args.some((arg) => /\.[cm]?ts$/.test(arg))
    ? ["quickjs", "typescript"]
    : ["quickjs"];
  for (const engine of engines) {
    const keeper = launchEngine(engine, "fast-start", "main", host);
    keeper.catch(() => {}); // heard by the sandbox that takes it over
    launched.set(engine, keeper);
  }
}

function rulesOut(arg: string): boolean {
  return arg.startsWith("--hull") || arg === "-h" || arg === "--help";
}

const { commandLine } = await import("./commands.js");
await commandLine(launched);
