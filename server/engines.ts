/** Which engine a name means, and the V8 flags under which its image can be forked. Loaded only where it boots. */
import type { Engine } from "../engine/engine.js";

export type EngineKind = "quickjs" | "typescript" | "owned";

/** Whether a script of this file name needs the `typescript` engine first. */
export const isTypeScript = (name: string): boolean => /\.[cm]?ts$/.test(name);

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
    case "typescript":
      return (await import("../engine/typescript.js")).typescript;
    case "owned":
      return (await import("./owned.js")).owned;
  }
}

/**
 * One thread, for the worker threads of V8 do not survive a fork and the child would wait for them for ever. No
 * compiler for JavaScript, so that no page must be writable and executable after the seal. All of WebAssembly compiled
 * before the fork. Room on V8's stack for the engine's own limit to be the one that is met.
 *
 * Two things would still write code after the seal, and must not happen. A function exported by WebAssembly gets a
 * wrapper compiled after its thousandth call: on Node 20 all wrappers are compiled at once instead, later ones take
 * an endless budget. And a mark-compact collection writes to the pages that hold wrappers: a worker's garbage stays
 * with the young generation, kept small, and old space has room up to the worker's memory limit.
 */
export function nodeFlags(image: ImageKind, v8 = process.versions.v8): string[] {
  const common =
    "--single-threaded --v8-pool-size=0 --no-opt --no-sparkplug --no-maglev --regexp-interpret-all";
  const wrappers =
    Number.parseInt(v8, 10) < 12 ? "--no-wasm-generic-wrapper" : "--wasm-wrapper-tiering-budget=2000000000";
  const heap =
    "--max-semi-space-size=1 --initial-old-space-size=2048 --no-incremental-marking --no-memory-reducer --no-minor-gc-task";
  const wasm =
    image === "fast-run"
      ? "--no-wasm-tier-up --no-liftoff --no-wasm-lazy-compilation"
      : "--liftoff --liftoff-only --no-wasm-lazy-compilation";
  return [
    ...`${common} ${wrappers} ${heap} ${wasm}`.split(" "),
    "--stack-size=3900",
    "--expose-gc",
    "--no-warnings",
  ];
}
