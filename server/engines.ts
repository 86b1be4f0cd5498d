/** Which engine a name means, and the V8 flags under which its image can be forked. An engine is loaded only where it boots. */
import { createRequire } from "node:module";
import type { Engine } from "../engine/engine.js";
import { SandboxError } from "./errors.js";

/** The engines that a caller may choose. */
export const SCRIPT_ENGINES = ["quickjs", "v8-jitless", "v8"] as const;
export type ScriptEngine = (typeof SCRIPT_ENGINES)[number];
export type EngineKind = ScriptEngine | "typescript" | "owned";

/** Whether the engine is an isolate of V8's, by isolated-vm. */
export const isV8 = (engine: EngineKind): boolean => engine === "v8" || engine === "v8-jitless";

/** Whether a script of this file name needs the `typescript` engine first. */
export const isTypeScript = (name: string): boolean => /\.[cm]?ts$/.test(name);

/** What to install for the V8 engines under this Node: each release of isolated-vm builds for a few of them. */
function isolatedVm(node = process.versions.node): string {
  const major = Number.parseInt(node, 10);
  return `isolated-vm@${major < 22 ? "^5.0.4" : major < 24 ? "^6.2.0" : "^7.0.1"}`;
}

/** Throws SandboxError `no-engine`, saying how to get it, where the engine's optional package is not installed. */
export function requirePackage(engine: EngineKind): void {
  if (!isV8(engine)) return;
  try {
    createRequire(import.meta.url).resolve("isolated-vm");
  } catch (cause) {
    const message = `the engine ${engine} needs the optional package isolated-vm, which is not installed`;
    throw new SandboxError("no-engine", message, { cause, field: "engine", remedy: engineRemedy() });
  }
}

/** How a worker without a jail says so: sysexits.h EX_UNAVAILABLE. */
export const ENGINE_UNAVAILABLE_EXIT = 69;

export const engineRemedy = (): string =>
  `npm install ${isolatedVm()} (it may have to compile: a C++ compiler and python3), or use the engine quickjs.`;

/**
 * Whether a worker writes, before it parks, the pages that a run writes. A cold one waits with 0.5 MB less, and the run
 * that gets it takes 0.3 ms longer.
 */
export const WARM = 0;
export const COLD = 1;

/** How WebAssembly is compiled: `fast-start` in a tenth of the time, `fast-run` to code twice as fast. */
export type ImageKind = "fast-start" | "fast-run";

export async function loadEngine(kind: EngineKind): Promise<Engine> {
  switch (kind) {
    case "quickjs":
      return (await import("../engine/quickjs.js")).quickjs;
    case "v8":
    case "v8-jitless":
      return (await import("../engine/v8.js")).v8Engine;
    case "typescript":
      return (await import("../engine/typescript.js")).typescript;
    case "owned":
      return (await import("./owned.js")).owned;
  }
}

/**
 * One thread, for the worker threads of V8 do not survive a fork and the child would wait for them for ever. Room on
 * V8's stack for the engine's own limit to be the one that is met.
 *
 * With QuickJS: no compiler for JavaScript, so that no page must be writable and executable after the seal, and all of
 * WebAssembly compiled before the fork. Two things would still write code after the seal, and must not happen. A function
 * exported by WebAssembly gets a wrapper compiled after its thousandth call: on Node 20 all wrappers are compiled at once
 * instead, later ones take an endless budget. And a mark-compact collection writes to the pages that hold wrappers: a
 * worker's garbage stays with the young generation, kept small, and old space has room up to the worker's memory limit.
 *
 * With V8 there is no WebAssembly and a worker may collect its garbage, at once: a task that V8 would put off is never
 * run there. isolated-vm cannot be loaded into a Node that was itself started from a snapshot.
 *
 * Node's own code lies in large pages where the kernel has them: a worker then meets it without a hundred page faults,
 * and its page tables are thirteen entries. It costs each zygote the size of that code (26 MB in Node 20, 44 in 24), and
 * a moment at its start.
 */
export function nodeFlags(engine: EngineKind, image: ImageKind, version = process.versions.v8): string[] {
  const pages = image === "fast-run" ? " --use-largepages=silent" : "";
  const common =
    "--single-threaded --v8-pool-size=0 --stack-size=3900 --no-incremental-marking --no-memory-reducer --no-minor-gc-task --no-warnings" +
    pages;
  if (isV8(engine)) {
    const jit = engine === "v8" ? "" : "--jitless";
    return `${common} --no-node-snapshot ${jit}`.trim().split(" ");
  }
  const javascript = "--expose-gc --no-opt --no-sparkplug --no-maglev --regexp-interpret-all";
  const wrappers =
    Number.parseInt(version, 10) < 12
      ? "--no-wasm-generic-wrapper"
      : "--wasm-wrapper-tiering-budget=2000000000";
  const heap = "--max-semi-space-size=1 --initial-old-space-size=2048";
  const wasm =
    image === "fast-run"
      ? "--no-wasm-tier-up --no-liftoff --no-wasm-lazy-compilation"
      : "--liftoff --liftoff-only --no-wasm-lazy-compilation";
  return `${common} ${javascript} ${wrappers} ${heap} ${wasm}`.split(" ");
}
