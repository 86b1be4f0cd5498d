/**
 * What the editor offers while one types: the names of the `env` that is granted, their methods with signature and words,
 * and what every script has. The words come from the service's declarations and are text nodes.
 */
import {
  snippetCompletion,
  type Completion, type CompletionContext, type CompletionResult } from "@codemirror/autocomplete"; // prettier-ignore
import { completionPath } from "@codemirror/lang-javascript";
import { hoverTooltip, type EditorView, type Tooltip } from "@codemirror/view";
import type { Method, Offer } from "./declarations.js";

export type Offers = ReadonlyMap<string, Offer>;

/** Of the README's list of what a script finds, what is no word of the language alone. */
const GLOBALS = "AbortController Array ArrayBuffer BigInt Boolean Date Error EventTarget Headers Infinity JSON Map Math NaN Number Object Promise Proxy RangeError Reflect RegExp Request Response Set String Symbol SyntaxError TextDecoder TextEncoder TypeError URL URLSearchParams Uint8Array WeakMap atob btoa clearTimeout console crypto globalThis isNaN parseFloat parseInt queueMicrotask setTimeout structuredClone undefined"; // prettier-ignore

const VALID = /^[\w$]*$/;

export function completions(offered: () => Offers) {
  const always: Completion[] = GLOBALS.split(" ").map((label) => ({ label, type: /^[A-Z]/.test(label) ? "class" : "variable" })); // prettier-ignore
  const main = snippetCompletion("export default async (input, env) => {\n\t${}\n};\n", {
    label: "export default",
    detail: "the function that is run",
    type: "keyword",
  });
  return (context: CompletionContext): CompletionResult | null => {
    const path = completionPath(context);
    if (path === null) return null;
    const offers = offered();
    const from = context.pos - path.name.length;
    const [first, second] = path.path;
    if (path.path.length === 0) {
      if (path.name === "" && !context.explicit) return null;
      const granted = first === undefined && offers.has("http") ? [fetchCompletion] : [];
      const options = [{ label: "env", type: "variable" }, { label: "input", type: "variable" }, main, ...granted, ...always]; // prettier-ignore
      return { from, options, validFor: VALID };
    }
    if (path.path.length === 1 && first === "env")
      return { from, options: [...offers.values()].map(offerCompletion), validFor: VALID };
    // `env.kv.`, and `kv.` of one that was taken out of env.
    const name = first === "env" ? second : first;
    const offer = path.path.length === (first === "env" ? 2 : 1) ? offers.get(name ?? "") : undefined;
    if (offer === undefined || offer.methods.length === 0) return null;
    return { from, options: offer.methods.map((method) => methodCompletion(offer, method)), validFor: VALID };
  };
}

const fetchCompletion: Completion = {
  label: "fetch",
  type: "function",
  info: "Asks by env.http, within its rules.",
};

const offerCompletion = (offer: Offer): Completion => ({
  label: offer.name,
  type: offer.type === undefined ? "namespace" : "variable",
  ...(offer.type === undefined ? {} : { detail: short(offer.type) }),
  info: () => card(offer.name, offer.type ?? `${offer.methods.length} methods`, offer.doc),
});

const methodCompletion = (offer: Offer, method: Method): Completion => ({
  label: method.name,
  type: "method",
  detail: short(method.signature.replace(/\): Promise<.*$/, ")")),
  info: () => card(`${offer.name}.${method.name}`, method.signature, method.doc),
});

const short = (text: string): string => (text.length > 40 ? `${text.slice(0, 39)}…` : text);

function card(name: string, signature: string, doc: string): HTMLElement {
  const box = document.createElement("div");
  box.className = "card";
  const code = box.appendChild(document.createElement("code"));
  code.textContent = signature.startsWith("(") ? name + signature : `${name}: ${signature}`;
  if (doc !== "") box.appendChild(document.createElement("p")).textContent = doc;
  return box;
}

/** The same words where the pointer rests on `env.kv.get`. */
export const hovers = (offered: () => Offers) =>
  hoverTooltip((view, pos) => hoverAt(view, pos, offered()), { hoverTime: 350 });

function hoverAt(view: EditorView, pos: number, offers: Offers): Tooltip | null {
  const line = view.state.doc.lineAt(pos);
  for (const found of line.text.slice(0, 2000).matchAll(/\benv\.([\w$]+)(?:\.([\w$]+))?/g)) {
    const from = line.from + found.index;
    const end = from + found[0].length;
    if (pos < from || pos > end) continue;
    const offer = offers.get(found[1] ?? "");
    if (offer === undefined) return null;
    const method = offer.methods.find(({ name }) => name === found[2]);
    const create = () => ({
      dom:
        method === undefined
          ? card(offer.name, offer.type ?? `${offer.methods.length} methods`, offer.doc)
          : card(`${offer.name}.${method.name}`, method.signature, method.doc),
    });
    return { pos: from, end, above: true, create };
  }
  return null;
}
