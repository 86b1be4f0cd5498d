/** The parts of the playground's page that need no browser: links, declarations, values, words. */
import fs from "node:fs";
import { deflateRawSync } from "node:zlib";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { capability, method } from "#hostapi/capability";
import { secret } from "#hostapi/secret";
import { events, http, kv } from "#server/hostapi";
import { environmentTypes } from "#server/types";
import type { KeyFacts, Outcome } from "#server/client";
import { DEFAULT_LIMITS } from "#server/limits";
import { readDeclarations } from "../../server/playground/declarations.js";
import { DraftError, requestOf, type Draft } from "../../server/playground/draft.js";
import { hullsOf, hullWords } from "../../server/playground/hull-layers.js";
import { decodeLink, encodeLink, LinkError, MAX_LINK } from "../../server/playground/link.js";
import { placeIn, words } from "../../server/playground/run.js";
import { valueText } from "../../server/playground/value-text.js";

const draft: Draft = {
  source: "export default () => 1;\n",
  type: "module",
  language: "typescript",
  engine: "v8-jitless",
  limits: new Map([["wallMs", "300"]]),
  grants: new Set(["kv", "events"]),
  input: '{ "name": "Ada" }',
};

/** A link that holds this, as whoever makes links by hand would write it. */
const forged = (plain: unknown): string =>
  `#share=${deflateRawSync(typeof plain === "string" ? plain : JSON.stringify(plain)).toString("base64url")}`;
const whole = { source: "1", type: "script", language: "javascript" };
const refusal = (fragment: string): Promise<string> =>
  decodeLink(fragment).then(
    () => "read",
    (error: unknown) => (error instanceof LinkError ? error.message : `no LinkError: ${String(error)}`),
  );

describe("a link", () => {
  test("brings back the draft that it was made of", async () => {
    const link = await encodeLink(draft);
    expect(link).toMatch(/^#share=[\w-]+$/);
    expect(await decodeLink(link)).toEqual(draft);
  });

  test("brings back any text", async () => {
    const text = fc.string({ unit: "grapheme", maxLength: 300 });
    await fc.assert(
      fc.asyncProperty(text, text, async (source, input) => {
        const back = await decodeLink(await encodeLink({ ...draft, source, input }));
        expect(back.source).toBe(source);
        expect(back.input).toBe(input.trim() === "" ? "" : input);
      }),
      { numRuns: 50 },
    );
  });

  test("made by hand is read if it is right: the control of what follows", async () => {
    expect(await decodeLink(forged(whole))).toMatchObject({ source: "1", type: "script" });
  });

  test.each<[string, string, RegExp]>([
    ["nothing", "#share=", /base64url/],
    ["another fragment", "#else", /shares nothing/],
    ["no base64url", "#share=a+b/c=", /base64url/],
    ["base64url of an impossible length", "#share=abcde", /base64url/],
    ["bytes that are no deflate", "#share=_____w", /inflated/],
    ["a stream that was cut off", forged(whole).slice(0, -4), /inflated/],
    ["text that is no JSON", forged("export default 1"), /no JSON/],
    ["a value that is no object", forged([1]), /none of this page's/],
    ["a field that there is not", forged({ ...whole, key: "dh_1" }), /none of this page's/],
    ["a source that is no text", forged({ ...whole, source: { toString: 1 } }), /its source is wrong/],
    ["an unknown language", forged({ ...whole, language: "html" }), /its language is wrong/],
    [
      "a limit that is no number",
      forged({ ...whole, limits: { wallMs: "1" } }),
      /its limits\.wallMs is wrong/,
    ],
    [
      "a limit beyond all limits",
      forged({ ...whole, limits: { memoryMb: 1e9 } }),
      /its limits\.memoryMb is wrong/,
    ],
    ["a limit that there is not", forged({ ...whole, limits: { lives: 9 } }), /its limits is wrong/],
    ["a grant that is no name", forged({ ...whole, grants: ["<script>"] }), /its grants\.0 is wrong/],
    [
      "a key of the prototype's",
      forged('{"__proto__":{"source":"1"},"type":"script","language":"javascript"}'),
      /is wrong/,
    ],
    ["one longer than any that is made", `#share=${"A".repeat(MAX_LINK)}`, /longer than any/],
  ])("that holds %s is refused with words", async (_, fragment, said) => {
    expect(await refusal(fragment)).toMatch(said);
  });

  test("that inflates to a thousand times its size is given up when it is too large", async () => {
    const bomb = forged({ ...whole, source: "a".repeat(40_000_000) });
    expect(bomb.length).toBeLessThan(MAX_LINK); // the control: its own length does not give it away
    expect(await refusal(bomb)).toBe("what the link holds is too large");
  });

  test("is not made of what is too large for one", async () => {
    const noise = Array.from({ length: 20 }, () => crypto.getRandomValues(new Uint32Array(1000)).join(" "));
    await expect(encodeLink({ ...draft, source: noise.join() })).rejects.toThrow(LinkError);
    await expect(encodeLink({ ...draft, source: "a".repeat(1_000_000) })).rejects.toThrow(LinkError);
  });
});

describe("declarations", () => {
  const odd = capability("odd", {
    between: method({
      doc: "Ends */ nothing; not even {this}.",
      params: { at: z.literal([';"}', "b"]) },
      returns: z.object({ a: z.string(), "b;c": z.array(z.object({ d: z.number() })) }),
      effect: "read",
      run: () => Promise.resolve({ a: "", "b;c": [] }),
    }),
    plain: method({ doc: "", params: {}, returns: z.void(), effect: "read", run: () => Promise.resolve() }),
  });
  const text = environmentTypes({
    kv: kv().budget({ calls: 3 }),
    token: secret({ name: "token", value: "correct-horse", hosts: ["example.com"] }),
    odd,
    http: http({ allow: ["https://example.com/*"] }),
    events: events({ onEvent: () => {} }),
  });

  test("of a service are read whole: each grant, each method with signature and words", () => {
    const offers = readDeclarations(text);
    expect([...offers.keys()]).toEqual(["kv", "token", "odd", "http", "events"]);
    const store = offers.get("kv");
    expect(store?.doc).toMatch(/^Bounds: .*3 calls/);
    expect(store?.methods.map(({ name }) => name)).toEqual([
      "get",
      "has",
      "entry",
      "set",
      "delete",
      "list",
      "increment",
    ]);
    expect(store?.methods.find(({ name }) => name === "increment")).toEqual({
      name: "increment",
      signature: "(key: string, by?: number): Promise<number>",
      doc: expect.stringMatching(/^Adds a whole number/) as string,
    });
    expect(offers.get("token")).toMatchObject({ type: "string", methods: [], doc: expect.stringMatching(/example\.com/) as string }); // prettier-ignore
  });

  test("with brackets, quotes and ends of comments in names, types and words are told apart", () => {
    expect(readDeclarations(text).get("odd")?.methods).toEqual([
      {
        name: "between",
        signature: '(at: ";\\"}" | "b"): Promise<{ a: string; "b;c": { d: number }[] }>',
        doc: "Ends */ nothing; not even {this}.",
      },
      { name: "plain", signature: "(): Promise<void>", doc: "" },
    ]);
  });

  test("that are none are read to the end and give nothing", () => {
    expect(readDeclarations("").size).toBe(0);
    fc.assert(
      fc.property(fc.string({ maxLength: 200 }), fc.nat(text.length), (noise, at) => {
        readDeclarations(text.slice(0, at) + noise);
        readDeclarations(`export interface Env {${noise}`);
      }),
    );
  });
});

describe("a value", () => {
  test.each<[unknown, string]>([
    ["text <b>", "text <b>"],
    [{ a: 1, "b-c": [1n, null, undefined] }, '{ a: 1, "b-c": [1n, null, undefined] }'],
    [new Map([["k", new Set([1])]]), 'Map(1) { "k" => Set(1) { 1 } }'],
    [new Date(0), "1970-01-01T00:00:00.000Z"],
    [new Uint8Array([1, 2]), "Uint8Array [1, 2]"],
    [Object.assign(new Error("no"), { name: "E" }), "E: no"],
    [-0, "-0"],
    [[], "[]"],
  ])("%# is shown as a console would", (value, text) => {
    expect(valueText(value)).toBe(text);
  });

  test("is bounded in items, depth and characters, and says how much is left out", () => {
    expect(valueText(Array.from({ length: 1000 }, (_, i) => i))).toMatch(/… 800 more\n\]$/);
    let deep: unknown = 1;
    for (let i = 0; i < 60; i++) deep = { deep };
    expect(valueText(deep)).toContain("{…}");
    const long = valueText("a".repeat(1_000_000));
    expect(long.length).toBeLessThan(51_000);
    expect(long).toMatch(/more characters$/);
  });

  test("shows marks that would turn or hide text", () => {
    expect(valueText("a\u202eb\u0007")).toBe("a\\u202eb\\x07");
  });
});

describe("a request", () => {
  const facts = {
    engine: "quickjs",
    engines: ["quickjs", "v8"],
    limits: { ...DEFAULT_LIMITS, wallMs: 5000 },
    grants: [{ name: "kv", type: "kv", what: "", details: [] }],
  } as unknown as KeyFacts;

  test("has what was chosen, and of grants and engines what the key has", () => {
    expect(requestOf(draft, facts)).toEqual({
      source: draft.source,
      type: "module",
      language: "typescript",
      limits: { wallMs: 300 },
      grants: ["kv"],
      input: { name: "Ada" },
    });
  });

  test.each([
    ["an input that is no JSON", { input: "{a:1}" }, "input"],
    ["a limit beyond the policy's", { limits: new Map([["wallMs", "5001"]]) }, "limits.wallMs"],
    ["a limit that is no number", { limits: new Map([["wallMs", "1e3"]]) }, "limits.wallMs"],
  ])("with %s names the field", (_, change, field) => {
    let said: unknown;
    try {
      requestOf({ ...draft, ...(change as Partial<Draft>) }, facts);
    } catch (error) {
      said = error;
    }
    expect(said).toBeInstanceOf(DraftError);
    expect(said).toMatchObject({ field });
  });
});

describe("an outcome", () => {
  const layers = (engine: string, kernel: object[] = []) => ({
    hull: kernel.length > 0 ? "double" : "language-only",
    engine,
    kernel,
  });
  const outcome = (more: object): Outcome =>
    ({ logs: [], usage: {}, ledger: [], ...more }) as unknown as Outcome;
  const seccomp = { layer: "seccomp", state: "on", detail: "14 system calls" };

  test("that was stopped names the plate that ended it, and the fields of the page", () => {
    const stopped = outcome({ status: "stopped", stop: { reason: "memory", layer: "cgroup", limit: 2 ** 26 }, layers: layers("quickjs", [seccomp]) }); // prettier-ignore
    expect(hullsOf(stopped).ended).toBe("cgroup");
    const said = words(stopped, DEFAULT_LIMITS);
    expect(said.more).toContain("limit 64 MiB");
    expect(said.hint).toContain("memoryMb under Limits");
    expect(said.hint).not.toContain("--");
  });

  test("tells in words which layers were not on, and that there was no kernel hull", () => {
    const off = { layer: "mdwe", state: "absent", detail: "needs Linux 6.3" };
    const hulls = hullsOf(outcome({ status: "ok", layers: layers("v8", [seccomp, off]) }));
    expect(hullWords(hulls)).toBe(
      "1 of 2 layers of the kernel hull were on. Not on: mdwe (absent: needs Linux 6.3).",
    );
    expect(hulls.language.find(({ name }) => name === "interpreter")?.state).toBe("off");
    expect(hullWords(hullsOf(outcome({ status: "ok", layers: layers("quickjs") })))).toMatch(
      /no kernel hull/,
    );
  });

  test("of an error has the script's own line, not that of what is around it", () => {
    const stack =
      "    at check (native)\n    at lib (elsewhere.js:9:9)\n    at area (script.js:2:41)\n    at script.js:6:2";
    const threw = outcome({
      status: "threw",
      error: { name: "E", message: "m", stack },
      layers: layers("quickjs"),
    });
    expect(placeIn(threw)).toEqual({ file: "script.js", line: 2, column: 41 });
  });
});

describe("the colours", () => {
  const css = fs.readFileSync(new URL("../../server/playground/base.css", import.meta.url), "utf8");
  const pairs = new Map(
    [...css.matchAll(/--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\)/g)].map(([, name = "", ...both]) => [
      name,
      both,
    ]),
  );
  const light = (hex: string): number => {
    const [r = 0, g = 0, b = 0] = [0, 2, 4]
      .map((at) => Number.parseInt(hex.slice(at, at + 2), 16) / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  /** WCAG 2.2, "contrast ratio". */
  const contrast = (a: string, b: string): number => {
    const [low = 0, high = 0] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };

  test.each([
    ...["ink", "muted", "sea", "signal"].flatMap((text) =>
      ["surface", "foam", "page"].map((on) => [text, on]),
    ),
    ...["keyword", "string", "number", "call", "type"].map((part) => [`code-${part}`, "surface"]),
    ["on-sea", "sea"],
    ["ink", "signal-soft"],
    ["muted", "signal-soft"],
    ["sea", "signal-soft"],
    ["ink", "selection"],
  ])("of %s on %s can be read in light and dark (4.5:1, WCAG 2.2 AA)", (text = "", on = "") => {
    for (const side of [0, 1]) {
      const [a, b] = [pairs.get(text)?.[side], pairs.get(on)?.[side]];
      if (a === undefined || b === undefined) throw new Error(`there is no colour ${text} or ${on}`);
      expect(contrast(a, b), side === 0 ? "light" : "dark").toBeGreaterThanOrEqual(4.5);
    }
  });
});
