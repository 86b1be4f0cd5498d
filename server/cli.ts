#!/usr/bin/env node
/**
 * The program. A `run` (or `replay`) needs a keeper for sure, and a keeper takes as long to boot as the command line itself: so it is
 * launched first, and both boot side by side. A keeper that nobody tells what to become ends with us.
 */
import { readHost } from "../osjail/host.js";
import type { LaunchedKeeper } from "../osjail/zygote-client.js";
import { isTypeScript, type EngineKind } from "./engines.js";
import { launchEngine } from "./hull.js";

const launched = new Map<EngineKind, Promise<LaunchedKeeper>>();
try {
  launchAhead(process.argv.slice(2));
} catch {
  // Whatever it was, the sandbox meets it again, where it is told with its remedy and the right exit code.
}
const { commandLine } = await import("./commands.js");
await commandLine(launched);

function launchAhead(args: readonly string[]): void {
  if (
    process.platform !== "linux" ||
    !/^(?:run|replay)$/.test(args[0] ?? "") ||
    args.length < 2 ||
    args.some(rulesOut)
  )
    return;
  const host = readHost(process.env);
  const typescript = args.some(isTypeScript);
  for (const engine of typescript ? (["quickjs", "typescript"] as const) : (["quickjs"] as const)) {
    const keeper = launchEngine(engine, "fast-start", "main", host);
    keeper.catch(() => {}); // heard by the sandbox that takes it over
    launched.set(engine, keeper);
  }
}

function rulesOut(arg: string): boolean {
  return arg.startsWith("--hull") || arg === "-h" || arg === "--help";
}
