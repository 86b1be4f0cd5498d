/** Which engine a name means, and the V8 flags under which its image can be forked. Loaded only where it boots. */
import type { Engine } from "../engine/engine.js";

export type EngineKind = "quickjs" | "typescript" | "owned";

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
 */
export function nodeFlags(image: ImageKind): string[] {
  const common = "--single-threaded --v8-pool-size=0 --no-opt --no-sparkplug --no-maglev --regexp-interpret-all";
  const wasm =
    image === "fast-run"
      ? "--no-wasm-tier-up --no-liftoff --no-wasm-lazy-compilation"
      : "--liftoff --liftoff-only --no-wasm-lazy-compilation";
  return [...common.split(" "), ...wasm.split(" "), "--stack-size=3900", "--no-warnings"];
}
