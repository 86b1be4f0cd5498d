/**
 * The `.d.ts` of an `env`: what a script may call, for editors, compilers and language models. Made from the schemas
 * that the broker checks arguments with, so the two cannot say different things.
 *
 * A parameter is shown as the guest writes it (before defaults and transforms), an answer as it arrives. What has no
 * name in TypeScript is `unknown`, never something narrower than the truth. Texts of capabilities are put into comments
 * and literals only where they cannot end them.
 */
import { z } from "zod";
import { CAPABILITY_ERRORS, Capability, type Method } from "../hostapi/capability.js";
import { Secret } from "../hostapi/secret.js";
import type { Ambient } from "../hostapi/ambient.js";
import type { Grant } from "./options.js";

/** Which side of a schema: what goes in, or what comes out. */
type Side = "input" | "output";

/** Parts of a type, deeper than this, are `unknown`: a schema may contain itself. */
const MAX_DEPTH = 16;

/** TypeScript for what a zod schema accepts, or for what it makes of it. */
export function typeText(schema: z.core.$ZodType, side: Side = "input", depth = 0): string {
  const said = z.globalRegistry.get(schema)?.["ts"];
  if (typeof said === "string") return said;
  if (depth > MAX_DEPTH) return "unknown";
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the union of all definitions, told apart by `type`
  const { def } = (schema as z.core.$ZodTypes)._zod;
  const inner = (part: z.core.$ZodType) => typeText(part, side, depth + 1);
  switch (def.type) {
    case "string":
    case "number":
    case "boolean":
    case "bigint":
    case "undefined":
    case "null":
    case "any":
    case "unknown":
    case "never":
    case "void":
      return def.type;
    case "template_literal":
      return "string";
    case "nan":
      return "number";
    case "date":
      return "Date";
    case "literal":
      return union(def.values.map(literal));
    case "enum":
      return union(Object.values(def.entries).map(literal));
    case "array":
      return `${bracketed(inner(def.element))}[]`;
    case "tuple":
      return `[${[...def.items.map(inner), ...(def.rest ? [`...${bracketed(inner(def.rest))}[]`] : [])].join(", ")}]`;
    case "object":
      return objectText(def, side, depth);
    case "record": {
      const key = inner(def.keyType);
      const closed = def.keyType._zod.values !== undefined;
      return `${closed ? "Partial<" : ""}Record<${key}, ${inner(def.valueType)}>${closed ? ">" : ""}`;
    }
    case "map":
      return `Map<${inner(def.keyType)}, ${inner(def.valueType)}>`;
    case "set":
      return `Set<${inner(def.valueType)}>`;
    case "union":
      return union(def.options.map(inner));
    case "intersection":
      return `${bracketed(inner(def.left))} & ${bracketed(inner(def.right))}`;
    case "optional":
      return union([inner(def.innerType), "undefined"]);
    case "default":
    case "prefault":
      return side === "input" ? union([inner(def.innerType), "undefined"]) : inner(def.innerType);
    case "nullable":
      return union([inner(def.innerType), "null"]);
    case "nonoptional":
    case "readonly":
    case "catch":
      return inner(def.innerType);
    case "lazy":
      return inner(def.getter());
    case "pipe":
      return inner(side === "input" ? def.in : def.out);
    default:
      return "unknown"; // custom without `ts`, transform, promise, file, symbol, success: no name, or none that can cross
  }
}

const literal = (value: unknown): string =>
  typeof value === "bigint" ? `${value}n` : typeof value === "string" ? quoted(value) : String(value);

/** A string literal: JSON's, with the two line separators that old readers of TypeScript take for line ends. */
const quoted = (text: string): string =>
  JSON.stringify(text).replaceAll("\u2028", "\\u2028").replaceAll("\u2029", "\\u2029");

const union = (parts: readonly string[]): string => {
  const all = [...new Set(parts)];
  if (all.length === 0) return "never";
  if (all.length === 1) return all[0] ?? "never";
  return all.map((part) => (/=>/.test(part) && !part.startsWith("{") ? `(${part})` : part)).join(" | ");
};

/** In brackets if an operator behind it would bind to a part of it. */
const bracketed = (type: string): string =>
  /^[\w.$]+$|^\{[^]*\}$|^"[^"]*"$/.test(type) && !/\} [|&] \{/.test(type) ? type : `(${type})`;

const key = (name: string): string => (/^[A-Za-z_$][\w$]*$/.test(name) ? name : quoted(name));

function objectText(def: z.core.$ZodObjectDef, side: Side, depth: number): string {
  const fields = Object.entries(def.shape).map(([name, field]) => {
    const absent = side === "input" ? field._zod.optin : field._zod.optout;
    return `${key(name)}${absent === undefined ? "" : "?"}: ${typeText(field, side, depth + 1)}`;
  });
  const open =
    def.catchall === undefined || def.catchall._zod.def.type === "never" ? [] : ["[key: string]: unknown"];
  const all = [...fields, ...open];
  return all.length === 0 ? "{}" : `{ ${all.join("; ")} }`;
}

// ---- an env ---------------------------------------------------------------------------------------------------------

/** Lines of a comment, none of which ends it. */
function comment(lines: readonly string[], indent: string): string {
  const safe = lines
    .flatMap((line) => line.split(/[\r\n\u2028\u2029]+/))
    .map((line) => line.replaceAll("*/", "*\\/").trim());
  const shown = safe.filter((line) => line !== "");
  if (shown.length === 0) return "";
  if (shown.length === 1) return `${indent}/** ${shown[0]} */\n`;
  return `${indent}/**\n${shown.map((line) => `${indent} * ${line}\n`).join("")}${indent} */\n`;
}

/** What an optional parameter takes when it is given. */
function unwrapped(schema: z.core.$ZodType): z.core.$ZodType {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- as above
  const { def } = (schema as z.core.$ZodTypes)._zod;
  const wraps = def.type === "optional" || def.type === "default" || def.type === "prefault";
  return wraps ? unwrapped(def.innerType) : schema;
}

/** "(key: string, ttlMs?: number): Promise<void>" */
function signature({ params, returns }: Method, arrow: boolean): string {
  const all = Object.entries(params);
  // Only what nothing required follows may be left out.
  const lastRequired = all.findLastIndex(([, schema]) => schema._zod.optin === undefined);
  const list = all.map(([name, schema], i) => {
    const mayLack = i > lastRequired;
    const type = typeText(mayLack ? unwrapped(schema) : schema);
    return `${parameterName(name, i)}${mayLack ? "?" : ""}: ${type}`;
  });
  const answer = returns === undefined ? "unknown" : typeText(returns, "output");
  return `(${list.join(", ")})${arrow ? " => " : ": "}Promise<${answer}>`;
}

/** Words that may not name a parameter in strict code. ECMA-262 12.7.2 */
const RESERVED =
  /^(?:arguments|await|break|case|catch|class|const|continue|debugger|default|delete|do|else|enum|eval|export|extends|false|finally|for|function|if|implements|import|in|instanceof|interface|let|new|null|package|private|protected|public|return|static|super|switch|this|throw|true|try|typeof|var|void|while|with|yield)$/;
const parameterName = (name: string, at: number): string =>
  !/^[A-Za-z_$][\w$]*$/.test(name) ? `argument${at}` : RESERVED.test(name) ? `${name}_` : name;

function capabilityText(grant: Capability): string {
  if (grant.callable) {
    const call = grant.methods.get("call");
    return call === undefined ? "unknown" : signature(call, true);
  }
  const methods = [...grant.methods].map(
    ([name, method]) => `${comment([method.doc], "    ")}    ${key(name)}${signature(method, false)};\n`,
  );
  return methods.length === 0 ? "{}" : `{\n${methods.join("")}  }`;
}

/** What a grant that is no object in `env` means to a script. */
function ambientText(grant: Ambient): string {
  switch (grant.kind) {
    case "clock": {
      const { mode, stepMs, startMs } = grant.setting;
      const ways = {
        frozen: "Date and performance.now stand still between answers of the host.",
        real: "Date and performance.now run, in milliseconds.",
        coarse: `Date and performance.now run in steps of ${stepMs} ms.`,
        virtual: "Date and performance.now move only when a timer is due, and then at once.",
      };
      const begin = startMs === undefined ? "" : ` The run begins at ${new Date(startMs).toISOString()}.`;
      return ways[mode] + begin;
    }
    case "random":
      return grant.seed === undefined
        ? "Math.random and crypto.getRandomValues differ from run to run."
        : "Math.random and crypto.getRandomValues are the same in every run.";
    case "log":
      return grant.least === "debug"
        ? "console keeps every level."
        : `console drops what is below ${grant.least}.`;
    case "timers":
      return grant.most === 0
        ? "There are no timers: setTimeout throws."
        : `At most ${grant.most} timers may be pending.`;
  }
}

const CODES = Object.keys(CAPABILITY_ERRORS)
  .map((code) => `    | ${quoted(code)}`)
  .join("\n")
  .concat(";\n");

const bringsFetch = (grant: Grant | undefined): boolean =>
  grant instanceof Capability && grant.name === "http" && grant.methods.size > 0;

/** Of the web's fetch, what needs no type that a script without the DOM's library lacks. */
const FETCH = `
/** What fetch resolves to. */
export interface FetchResponse {
  readonly url: string;
  readonly ok: boolean;
  readonly status: number;
  readonly statusText: string;
  readonly redirected: boolean;
  readonly headers: Iterable<[string, string]> & { get(name: string): string | null; has(name: string): boolean };
  readonly bodyUsed: boolean;
  text(): Promise<string>;
  json(): Promise<any>;
  bytes(): Promise<Uint8Array>;
  arrayBuffer(): Promise<ArrayBuffer>;
}

declare global {
  /** Asks by env.http, within its rules. */
  function fetch(
    url: string | { toString(): string },
    init?: {
      method?: string;
      headers?: Record<string, string> | Iterable<readonly [string, string]>;
      body?: string | Uint8Array | ArrayBuffer | null;
      redirect?: "follow" | "error" | "manual";
      signal?: object | null;
    },
  ): Promise<FetchResponse>;
}
`;

/** The text of a `.d.ts` with `Env`, for these grants by their names in `env`. */
export function environmentTypes(grants: Readonly<Record<string, Grant>>): string {
  const ambient: string[] = [];
  const members: string[] = [];
  for (const [name, grant] of Object.entries(grants)) {
    if (grant instanceof Capability) {
      const bounds = grant.bounds.length === 0 ? [] : [`Bounds: ${grant.bounds.join("; ")}.`];
      members.push(`${comment(bounds, "  ")}  readonly ${key(name)}: ${capabilityText(grant)};\n`);
    } else if (grant instanceof Secret) {
      const doc = `A secret: a placeholder, whose value is put in its place on the way to ${grant.hosts.join(", ")}.`;
      members.push(`${comment([doc], "  ")}  readonly ${key(name)}: string;\n`);
    } else {
      ambient.push(ambientText(grant));
    }
  }
  const about = ["What the script may call. Written by `doublehull types`.", ...ambient];
  return [
    comment(about, ""),
    members.length === 0 ? "export interface Env {}\n" : `export interface Env {\n${members.join("")}}\n`,
    "\n/** What a call of the host rejects with. */\n",
    "export interface CapabilityError extends Error {\n  readonly code:\n",
    CODES,
    "}\n",
    bringsFetch(grants["http"]) ? FETCH : "",
    "\n/** A module's default export. */\n",
    "export type Script<Input = unknown, Result = unknown> = (input: Input, env: Env) => Result | Promise<Result>;\n",
  ].join("");
}
