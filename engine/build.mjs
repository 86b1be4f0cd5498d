/**
 * Writes dist/engine/guest.js: what is evaluated in a guest's realm, as text (engine/guest.d.ts). Run by
 * `npm run build`, after the compiler.
 */
import { copyFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { Script } from "node:vm";
import { rolldown } from "rolldown";
import { minifySync } from "rolldown/experimental";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const bundle = await rolldown({ input: here("web/web.ts"), tsconfig: false });
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

/** One function that refers to nothing outside itself, made smaller. */
async function smaller(file, name) {
  const { [name]: f } = await import(here(`../dist/engine/${file}`));
  const { code, errors } = minifySync(file, `export default (${String(f)})`);
  const expression = /^export default([^]*?);?\s*$/.exec(code)?.[1];
  if (expression === undefined || errors.length > 0) throw new Error(`${name} could not be made smaller`);
  // QuickJS makes a template with String.prototype.concat, which a guest may have replaced by then.
  if (/\$\{/.test(expression)) throw new Error(`${name} has a template with parts: write it with +`);
  void new Script(`(${expression})`);
  return expression.trim();
}

const sources = {
  codecSource: await smaller("codec.js", "codec"),
  worldSource: await smaller("world.js", "world"),
  v8RealmSource: await smaller("v8-realm.js", "v8Realm"),
  webSource: source,
};
const text = Object.entries(sources).map(
  ([name, code]) => `export const ${name} = ${JSON.stringify(code)};\n`,
);
const out = (name) => here(`../dist/engine/${name}`);
await writeFile(out("guest.js"), text.join(""));
await copyFile(here("guest.d.ts"), out("guest.d.ts"));
