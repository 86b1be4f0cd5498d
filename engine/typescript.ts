/**
 * Strips the types from TypeScript. Parsing hostile source is an attack of its own (deep nesting breaks every parser
 * there is), so this is an engine kind like the others: it runs in a jailed worker, takes one job, and its output is
 * plain text. Types become white space: every line and column stays where it was, so no source map is needed.
 */
import { createRequire } from "node:module";
import { codec } from "./codec.js";
import {
  resultText,
  type Engine,
  type GuestError,
  type GuestMessage,
  type Image,
  type Job,
} from "./engine.js";

interface Stripper {
  transformSync(
    source: string,
    options: { mode: "strip-only"; module?: boolean; filename: string },
  ): { code: string };
}

export const typescript: Engine = {
  async boot(): Promise<Image> {
    // The package instantiates its WebAssembly when it is loaded: before the fork, as everything costly.
    const stripper = createRequire(import.meta.url)("@swc/wasm-typescript") as Stripper;
    const { encode } = codec();
    const strip = (name: string, source: string, module: boolean) =>
      stripper.transformSync(source, { mode: "strip-only", module, filename: name }).code;
    strip("warm.ts", "export const x: number = 1;", true);
    const image: Image = {
      rehearse: (spend) => spend(image),
      warm: () =>
        void strip("warm.ts", "interface A { b: string } export default (a: A) => a.b as string;", true),
      load: (job: Job, send: (message: GuestMessage) => void) => ({
        outstanding: 0,
        reserve: () => undefined,
        step: () => {
          const stripped: string[] = [];
          for (const [name, source] of job.modules) {
            try {
              stripped.push(strip(name, source, job.type === "module" || name !== job.name));
            } catch (error) {
              // A trap leaves the parser poisoned; this process ends with the job either way.
              if (error instanceof WebAssembly.RuntimeError) throw error;
              const text = resultText({ status: "threw", error: describe(error, name) });
              return send({ kind: "result", text, blobs: [] });
            }
          }
          const limits = { maxBytes: job.maxResultBytes, maxDepth: 4, maxNodes: 10_000, root: "source" };
          const text = resultText({ status: "ok", value: encode(stripped, limits).text });
          send({ kind: "result", text, blobs: [] });
        },
      }),
    };
    return image;
  },
};

/** swc throws plain objects: a code, a message and the place, columns counted from 0. */
function describe(error: unknown, name: string): GuestError {
  const fields = new Map(Object.entries((error ?? {}) as Record<string, unknown>));
  if (!fields.has("startLine")) throw error;
  const message = String(fields.get("message")).slice(0, 1000);
  const place = `${name}:${Number(fields.get("startLine"))}:${Number(fields.get("startColumn")) + 1}`;
  return { name: "SyntaxError", message, stack: `    at ${place}` };
}
