#!/usr/bin/env node
/**
 * The program. A `run` (or `replay`) needs a keeper for sure, and a keeper takes as long to boot as the command line itself: so it is
 * launched first, and both boot side by side. A keeper that nobody tells what to become ends with us.
 */
import { readHost } from "../osjail/host.js";
import type { LaunchedKeeper } from "../osjail/zygote-client.js";
import { isTypeScript, SCRIPT_ENGINES, type EngineKind } from "./engines.js";
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
  const engines: EngineKind[] = [engineIn(args)];
  if (args.some(isTypeScript)) engines.push("typescript");
  for (const engine of engines) {
    const keeper = launchEngine(engine, "fast-start", "main", host);
    keeper.catch(() => {}); // heard by the sandbox that takes it over
    launched.set(engine, keeper);
  }
}

/** What the command line says of it; a policy or a recording may say otherwise, and then this keeper goes unused. */
function engineIn(args: readonly string[]): EngineKind {
  const said = /(?:^|\0)--engine[=\0]([^\0,]+)/.exec(args.join("\0"))?.[1];
  return SCRIPT_ENGINES.find((engine) => engine === said) ?? "quickjs";
}

function rulesOut(arg: string): boolean {
  return arg.startsWith("--hull") || arg === "-h" || arg === "--help";
}
