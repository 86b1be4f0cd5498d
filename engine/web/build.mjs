/**
 * Bundles engine/web/ into dist/engine/web.js, which exports it as text: the guest's realm has no module loader.
 * Run by `npm run build`.
 */
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { Script } from "node:vm";
import { rolldown } from "rolldown";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const bundle = await rolldown({ input: here("web.ts"), tsconfig: false });
const { output } = await bundle.generate({ format: "iife", name: "web", minify: true });
await bundle.close();
const [{ code }, ...more] = output;
const expression = /^(?:"use strict";)?\s*var web=([^]*);\s*$/.exec(code)?.[1];
if (expression === undefined || more.length > 0) throw new Error("the bundle is not one expression");
// The language's globals are taken when the bundle is evaluated: what a guest puts in their place later is not met.
const LANGUAGE =
  "Array ArrayBuffer BigInt Boolean DataView Date Error EvalError FinalizationRegistry Function JSON Map Math Number Object Promise RangeError ReferenceError Reflect RegExp Set String Symbol SyntaxError TypeError URIError Uint8Array WeakMap WeakRef WeakSet isNaN decodeURIComponent encodeURIComponent escape unescape";
const taken = LANGUAGE.split(" ").filter((name) => new RegExp(`\\b${name}\\b`).test(expression));
const source = `(()=>{"use strict";const{${taken.join()}}=globalThis;return ${expression}})()`;
void new Script(source); // throws unless it parses

const out = (name) => here(`../../dist/engine/${name}`);
await mkdir(out("."), { recursive: true });
await writeFile(out("web.js"), `export const webSource = ${JSON.stringify(source)};\n`);
await copyFile(here("../web.d.ts"), out("web.d.ts"));
