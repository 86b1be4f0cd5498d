/** The engines that this machine has: every suite of an engine's promises runs on each of them. */
import { createRequire } from "node:module";
import { SCRIPT_ENGINES, type ScriptEngine } from "#server/engines";

function hasIsolatedVm(): boolean {
  try {
    createRequire(import.meta.url).resolve("isolated-vm");
    return true;
  } catch (error) {
    if (process.env["DOUBLEHULL_CI"] !== undefined) throw error; // there it is installed, and not to be skipped
    return false;
  }
}

export const ENGINES: readonly ScriptEngine[] = hasIsolatedVm() ? SCRIPT_ENGINES : ["quickjs"];
