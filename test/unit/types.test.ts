/** The generated `.d.ts` is judged by the compiler: right scripts compile, wrong ones do not. */
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { clock, timers } from "#hostapi/ambient";
import { bytes, callback, capability, hostFunction, method } from "#hostapi/capability";
import { secret } from "#hostapi/secret";
import { environmentTypes, typeText } from "#server/types";

const tsc = fileURLToPath(new URL("../../node_modules/typescript/bin/tsc", import.meta.url));

/** The compiler's complaints about a script beside the declarations, by line; empty if it compiles. */
function complaints(declarations: string, script: string): { lines: number[]; text: string } {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-types-"));
  try {
    fs.writeFileSync(path.join(dir, "env.d.ts"), declarations);
    fs.writeFileSync(path.join(dir, "script.ts"), script);
    const compilerOptions = {
      strict: true,
      exactOptionalPropertyTypes: true,
      noEmit: true,
      target: "ES2023",
      lib: ["ES2023"],
      types: [],
      module: "ESNext",
      moduleResolution: "bundler",
    };
    fs.writeFileSync(path.join(dir, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["*.ts"] }));
    const { stdout, status, error } = spawnSync(process.execPath, [tsc, "-p", dir, "--pretty", "false"], {
      encoding: "utf8",
      timeout: 60_000,
    });
    if (error !== undefined) throw error;
    const lines = [...stdout.matchAll(/script\.ts\((\d+),/g)].map(([, line]) => Number(line));
    if (status !== 0 && lines.length === 0) throw new Error(`the declarations do not compile:\n${stdout}`);
    return { lines: [...new Set(lines)], text: stdout };
  } finally {
    fs.rmSync(dir, { recursive: true });
  }
}

describe("one schema", () => {
  test.each<[string, z.ZodType, input: string, output?: string]>([
    ["a string with checks", z.string().min(1).regex(/x/), "string"],
    ["a whole number", z.int().min(0), "number"],
    ["a boolean", z.boolean(), "boolean"],
    ["a bigint", z.bigint(), "bigint"],
    ["a date", z.date(), "Date"],
    ["undefined", z.undefined(), "undefined"],
    ["null", z.null(), "null"],
    ["anything", z.any(), "any"],
    ["an unknown", z.unknown(), "unknown"],
    ["literals", z.literal(["a\"b", 1, null]), '"a\\"b" | 1 | null'],
    ["an enum", z.enum(["a", "b"]), '"a" | "b"'],
    ["an array of a union", z.array(z.union([z.string(), z.number()])), "(string | number)[]"],
    ["an array of functions", z.array(callback()), "((...args: any[]) => any)[]"],
    ["a tuple with a rest", z.tuple([z.string(), z.number()], z.boolean()), "[string, number, ...boolean[]]"],
    ["an object", z.strictObject({ a: z.string(), "b-c": z.number().optional() }), '{ a: string; "b-c"?: number | undefined }'],
    ["an object with unknown keys", z.looseObject({ a: z.string() }), "{ a: string; [key: string]: unknown }"],
    ["an object without keys", z.strictObject({}), "{}"],
    ["a record", z.record(z.string(), z.number()), "Record<string, number>"],
    ["a map", z.map(z.string(), z.set(z.int())), "Map<string, Set<number>>"],
    ["a union that says a thing twice", z.union([z.string(), z.string().min(2)]), "string"],
    ["a nullable optional", z.string().nullable().optional(), "string | null | undefined"],
    ["a default", z.number().default(1), "number | undefined", "number"],
    ["an object with a default", z.object({ a: z.int().default(1) }), "{ a?: number | undefined }", "{ a: number }"],
    ["a transform", z.string().transform(Number), "string", "unknown"],
    ["a pipe", z.string().pipe(z.coerce.number()), "string", "number"],
    ["bytes", bytes(10), "Uint8Array"],
    ["optional bytes", bytes(10).optional(), "Uint8Array | undefined"],
    ["a callback with a type", callback("(line: string) => void"), "(line: string) => void"],
    ["an optional callback", callback("() => void").optional(), "(() => void) | undefined"],
    ["a custom one without a name", z.custom(() => true), "unknown"],
    ["an intersection", z.intersection(z.strictObject({ a: z.int() }), z.strictObject({ b: z.int() })), "{ a: number } & { b: number }"],
  ])("%s", (_what, schema, input, output = input) => {
    expect(typeText(schema)).toBe(input);
    expect(typeText(schema, "output")).toBe(output);
  }); // prettier-ignore

  test("a schema that contains itself ends", () => {
    const tree: z.ZodType = z.strictObject({ children: z.array(z.lazy(() => tree)) });
    expect(typeText(tree)).toMatch(/^\{ children: .*unknown.*\[\] \}$/);
  });
});

const store = capability("kv", {
  get: method({
    doc: "The value of a key, or undefined. */ export const injected: 1; /*",
    params: { key: z.string() },
    returns: z.unknown(),
    effect: "read",
    run: () => undefined,
  }),
  set: method({
    doc: "Sets a key.",
    params: {
      key: z.string(),
      value: z.unknown(),
      options: z
        .strictObject({ ttlMs: z.int().optional(), mode: z.enum(["a", "b"]).default("a") })
        .optional(),
    },
    returns: z.void(),
    effect: "write",
    run: () => undefined,
  }),
  delete: method({
    doc: "Forgets a key.",
    params: { default: z.string() },
    returns: z.boolean(),
    effect: "write",
    run: () => true,
  }),
  watch: method({
    doc: "Tells of changes.",
    params: {
      listener: callback("(key: string, value: unknown) => void"),
      first: z.boolean().optional(),
      prefix: z.string(),
    },
    returns: z.strictObject({ count: z.int() }),
    effect: "read",
    run: () => ({ count: 1 }),
  }),
});

describe("an env", () => {
  const declarations = environmentTypes({
    kv: store.readOnly().budget({ calls: 3 }),
    notes: store,
    add: hostFunction({
      doc: "Adds.",
      params: { a: z.number(), b: z.number() },
      returns: z.number(),
      effect: "read",
      run: ({ a, b }) => (a as number) + (b as number),
    }),
    token: secret({ name: "token", value: "12345678", hosts: ["api.example.com"] }),
    clock: clock({ mode: "coarse", stepMs: 50 }),
    timers: timers({ most: 0 }),
  });

  test("a script that keeps to it compiles", () => {
    const { text } = complaints(
      declarations,
      `import type { Env, Script, CapabilityError } from "./env.js";
       export default (async (input, env) => {
         const seen: unknown = await env.kv.get("a");
         await env.notes.set("k", { any: ["thing", 1n] });
         await env.notes.set("k", 1, { ttlMs: 5 });
         await env.notes.set("k", 1, { mode: "b" });
         await env.notes.set("k", 1, undefined);
         const { count } = await env.notes.watch((key) => void key.length, undefined, "p");
         const gone: boolean = await env.notes.delete("x");
         const sum: number = await env.add(1, count);
         try { await env.kv.get(env.token.slice(0)); }
         catch (error) { const { code }: CapabilityError = error as CapabilityError; if (code === "budget") return 1; }
         return gone && seen ? sum + input : 0;
       }) satisfies Script<number, number>;
       export function typed(env: Env): string { return env.token; }`,
    );
    expect(text).toBe("");
  });

  test("a script that does not, does not: each wrong line is found", () => {
    const wrong = [
      `await env.kv.set("a", 1);`, // read-only
      `await env.kv.get(1);`,
      `await env.kv.get();`,
      `await env.kv.get("a", "b");`,
      `await env.notes.set("a", 1, { ttl: 5 });`,
      `await env.notes.set("a", 1, { mode: "c" });`,
      `await env.notes.watch((key: number) => {}, true, "p");`,
      `const n: number = await env.notes.delete("x");`,
      `await env.add("1", 2);`,
      `env.files;`,
      `env.token = "x";`,
      `const s: string = await env.kv.get("a");`,
    ];
    const script = `import type { Env } from "./env.js"; export async function f(env: Env) {\n${wrong.join("\n")}\n}`;
    expect(complaints(declarations, script).lines).toEqual(wrong.map((_line, i) => i + 2));
  });

  test("documentation stands where editors look, and cannot end its comment", () => {
    expect(declarations).toContain("/** Sets a key. */");
    expect(declarations).toContain("Bounds: read-only; at most 3 calls a run.");
    expect(declarations).toContain("steps of 50 ms");
    expect(declarations).toContain("no timers");
    expect(declarations).not.toMatch(/^\s*export const injected/m);
    expect(declarations.match(/\*\/ export const/)).toBeNull();
  });

  test("fetch is there with the grant http, and only then", () => {
    const http = capability("http", {
      request: method({ doc: "Asks.", params: {}, effect: "write", run: () => undefined }),
    });
    const script = `
      const answer = await fetch("https://a.example/", { method: "POST", headers: { a: "b" }, body: "x" });
      const seen: string | null = answer.headers.get("x");
      export default [await answer.json(), seen, [...answer.headers]];`;
    expect(complaints(environmentTypes({ http }), script).text).toBe("");
    expect(complaints(environmentTypes({ other: http }), script).lines).toEqual([2]);
    expect(complaints(environmentTypes({ http }), `export default fetch(1, 2, 3);`).lines).toEqual([1]);
  });

  test("the value of a secret is nowhere in it", () => {
    expect(declarations).not.toContain("12345678");
    expect(declarations).toContain("api.example.com");
  });
});
