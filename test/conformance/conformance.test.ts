/**
 * The language as a jailed guest has it. The runner is tried with a suite of a few files, written here, which must pass
 * and must fail in real workers; test262 itself (a sample) runs when TEST262 names a checkout of it.
 */
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  LAST_WALL_MS,
  compare,
  describeFailures,
  listTests,
  openJail,
  runTests,
  type Jail,
  type Known,
  type Result,
} from "./runner.mjs";
import { SCOPE, outOfScope, programsOf, readFrontmatter, verdict, type Test } from "./suite.mjs";

const front = (text: string, body = "") => `// a licence\n/*---\n${text}\n---*/\n${body}`;
const testOf = (name: string, source: string): Test => ({ path: name, source, ...readFrontmatter(source) });

describe("a test's frontmatter", () => {
  test("is read in each of the ways in which the suite writes lists", () => {
    const inline = readFrontmatter(front("flags: [onlyStrict, async]\nincludes: [a.js,b.js]\nfeatures: []"));
    expect(inline).toMatchObject({
      flags: ["onlyStrict", "async"],
      includes: ["a.js", "b.js"],
      features: [],
    });
    const dashes = readFrontmatter(
      front("flags:\n  - module\n  - generated\nfeatures:\n- Array.prototype.at"),
    );
    expect(dashes).toMatchObject({ flags: ["module", "generated"], features: ["Array.prototype.at"] });
    const broken = readFrontmatter(
      front("features: [\n  class-fields-public,\n  let\n]\nlocale: [en, de-CH]"),
    );
    expect(broken).toMatchObject({ features: ["class-fields-public", "let"], locale: ["en", "de-CH"] });
  });

  test("says what a negative test is to throw, and takes nothing from prose", () => {
    const text =
      "description: >\n  flags: [raw] are not meant here\nnegative:\n  phase: parse\n  type: SyntaxError";
    expect(readFrontmatter(front(text))).toMatchObject({
      flags: [],
      negative: { phase: "parse", type: "SyntaxError" },
    });
    expect(readFrontmatter("a file without any").negative).toBeUndefined();
  });
});

describe("the programs of a test", () => {
  const files = { read: () => undefined, harness: (name: string) => `/* ${name} */` };
  const modes = (flags: string) =>
    programsOf(testOf("x.js", front(`flags: [${flags}]`)), files).map(({ mode }) => mode);

  test("are one for each mode that the flags leave", () => {
    expect(modes("")).toEqual(["sloppy", "strict"]);
    expect(modes("noStrict")).toEqual(["sloppy"]);
    expect(modes("onlyStrict, async")).toEqual(["strict"]);
    expect(modes("raw")).toEqual(["raw"]);
    expect(modes("module")).toEqual(["module"]);
  });

  test("have the harness in its order before the test, and the directive before all", () => {
    const source = front("flags: [onlyStrict, async]\nincludes: [more.js]", "theTest();");
    const [program] = programsOf(testOf("x.js", source), files);
    const order = ["assert.js", "sta.js", "doneprintHandle.js", "more.js", "theTest"];
    const places = order.map((word) => program!.source.indexOf(word));
    expect(places).toEqual([...places].sort((a, b) => a - b));
    expect(places[0]).toBeGreaterThan(0);
    expect(program!.source.startsWith('"use strict";\n')).toBe(true);
    expect(() => programsOf(testOf("x.js", source), { ...files, harness: () => undefined })).toThrow(
      "assert.js",
    );
  });

  test("add nothing to a source that must not parse, and nothing before a raw one", () => {
    const negative = front("flags: [raw]\nnegative:\n  phase: parse\n  type: SyntaxError", "if (0)");
    expect(programsOf(testOf("x.js", negative), files)[0]!.source).toBe(negative);
    const raw = "#!/usr/bin/env node\n/*---\nflags: [raw]\n---*/\n";
    expect(programsOf(testOf("x.js", raw), files)[0]!.source.startsWith(raw)).toBe(true);
  });

  test("bring the fixtures that a test names, those that these name, and the test itself", () => {
    const beside: Record<string, string> = {
      "a_FIXTURE.js": "export * from './sub/b_FIXTURE.js';",
      "sub/b_FIXTURE.js": "import '../c_FIXTURE.js';",
      "c_FIXTURE.js": "import './x.js';",
      "unnamed_FIXTURE.js": "",
    };
    const source = front("flags: [module]", "import './a_FIXTURE.js'; import './missing_FIXTURE.js';");
    const [program] = programsOf(testOf("dir/x.js", source), { ...files, read: (name) => beside[name] });
    const { "test262:setup": setup, ...modules } = program!.modules;
    expect(setup).toContain("assert.js");
    expect(Object.keys(modules).sort()).toEqual(["a_FIXTURE.js", "c_FIXTURE.js", "sub/b_FIXTURE.js", "x.js"]);
  });

  test("are none where a run has not what the suite asks of a host", () => {
    const reason = (name: string, text: string, body = "", has: string[] = []) =>
      outOfScope(testOf(name, front(text, body)), has);
    expect(reason("built-ins/x.js", "features: [SharedArrayBuffer]")).toBe(SCOPE.memory);
    expect(
      reason("built-ins/x.js", "features: [SharedArrayBuffer]", "", ["SharedArrayBuffer"]),
    ).toBeUndefined();
    expect(reason("built-ins/x.js", "features: [Proxy]", "$262.createRealm()")).toBe(SCOPE.realms);
    expect(reason("intl402/x.js", "")).toBe(SCOPE.intl);
    expect(reason("built-ins/x.js", "features: [Proxy]", "$262.detachArrayBuffer(b)")).toBeUndefined();
  });
});

describe("the verdict", () => {
  const of = (negative: Test["negative"], isAsync = false) => ({ negative, isAsync });
  const parse = { phase: "parse", type: "SyntaxError" };

  test("asks a negative test for its error and no other", () => {
    expect(verdict(of(parse), { status: "threw", name: "SyntaxError", message: "" })).toBeUndefined();
    expect(verdict(of(parse), { status: "threw", name: "Error", message: "not evaluated" })).toContain(
      "another",
    );
    expect(verdict(of(parse), { status: "ok" })).toContain("should have thrown");
    expect(verdict(of(parse), { status: "stopped", reason: "memory" })).toBe("stopped: memory");
  });

  test("asks an asynchronous one for its last word", () => {
    expect(
      verdict(of(undefined, true), { status: "ok", value: "Test262:AsyncTestComplete" }),
    ).toBeUndefined();
    expect(verdict(of(undefined, true), { status: "ok", value: "Test262:AsyncTestFailure: x" })).toContain(
      "x",
    );
    expect(verdict(of(undefined, true), { status: "ok" })).toBeDefined();
    expect(verdict(of(undefined), { status: "ok", value: 1 })).toBeUndefined();
  });
});

describe("known failures", () => {
  const result = (name: string, features: string[], ...bare: string[]): Result => ({
    path: name,
    features,
    modes: 2,
    failures: bare.map((bare, at) => ({ mode: at === 0 ? "sloppy" : "strict", why: "Error: it", bare })),
  });
  const failing = (name: string, features: string[] = []) => result(name, features, "Error: it", "Error: it");
  const all = [
    ...Array.from({ length: 10 }, (_, at) => failing(`built-ins/New/${at}.js`, ["New"])),
    failing("built-ins/Array/of/a.js"),
    result("built-ins/Array/of/b.js", []),
    result("built-ins/Array/of/c.js", [], "Error: it"),
    failing("language/statements/if/d.js", ["Old"]),
    ...Array.from({ length: 10 }, (_, at) => result(`language/statements/if/e${at}.js`, ["Old"])),
  ];
  const known = describeFailures(all, {}) as Known;

  test("are kept by feature where an engine has it not, and else by name and mode", () => {
    expect(known.engineLacks).toEqual({ New: { failing: 10, of: 10 } });
    expect(known.engineFails["built-ins/Array"]).toEqual({
      failing: 2,
      of: 3,
      tests: { "built-ins/Array/of": ["a.js", "c.js sloppy"] },
    });
    expect(known.ours).toEqual([]);
    expect(compare(known, all)).toEqual({ fresh: [], ours: [], healed: [] });
  });

  test("leave news to be told: another failure, one of ours, and one that is no more", () => {
    const news = compare(known, [
      failing("built-ins/Array/of/b.js"),
      result("built-ins/Array/of/c.js", [], "passed"),
      result("built-ins/Array/of/a.js", []),
    ]);
    expect(news.fresh.map(({ path }) => path)).toEqual([
      "built-ins/Array/of/b.js",
      "built-ins/Array/of/b.js",
    ]);
    expect(news.ours.map(({ path }) => path)).toEqual(["built-ins/Array/of/c.js"]);
    expect(news.healed.map(({ path }) => path)).toEqual(["built-ins/Array/of/a.js"]);
    expect(compare(undefined, [failing("x/y.js")]).fresh).toHaveLength(2);
  });
});

// -- in the jail -------------------------------------------------------------------------------------------------------

const jobs = 2;
let jail: Jail;
beforeAll(async () => {
  jail = await openJail({ jobs, maxWallMs: LAST_WALL_MS, image: "fast-start" });
});
afterAll(() => jail.close());

/** A harness and tests of our own, as files. */
function suiteOf(tests: Record<string, string>): string {
  const suite = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-suite-"));
  const harness = {
    "assert.js": "function same(a, b) { if (!Object.is(a, b)) throw new Test262Error(String(a)); }",
    "sta.js":
      "function Test262Error(message) { this.message = message; }\nfunction never() { throw 'was run'; }",
    "doneprintHandle.js":
      "function $DONE(e) { print(e ? 'Test262:AsyncTestFailure:' + e : 'Test262:AsyncTestComplete'); }",
    "extra.js": "const extra = 42;",
  };
  const all = Object.entries(tests).map(([name, text]) => [`test/${name}`, text] as const);
  for (const [name, text] of [
    ...Object.entries(harness).map(([n, t]) => [`harness/${n}`, t] as const),
    ...all,
  ]) {
    fs.mkdirSync(path.dirname(path.join(suite, name)), { recursive: true });
    fs.writeFileSync(path.join(suite, name), text);
  }
  return suite;
}

async function failuresOf(tests: Record<string, string>): Promise<Record<string, string[]>> {
  const suite = suiteOf(tests);
  try {
    const { results } = await runTests(jail, { suite, paths: listTests(suite), jobs });
    expect(results.map(({ path }) => path)).toEqual(Object.keys(tests).filter((n) => !n.includes("_FIXTURE")).sort()); // prettier-ignore
    const failed = results.filter(({ failures }) => failures.length > 0);
    return Object.fromEntries(
      failed.map(({ path, failures }) => [
        path,
        failures.map(({ mode, why, bare }) => `${mode}: ${why} | ${bare}`),
      ]),
    );
  } finally {
    fs.rmSync(suite, { recursive: true });
  }
}

describe("tests in real workers", () => {
  test("that are to pass do: scripts in both modes, negative, asynchronous, raw and modules", async () => {
    const failed = await failuresOf({
      "a/both.js": front(
        "includes: [extra.js]",
        "same(extra, 42); var both = 1; same(this.both, 1); ({ then() {} })",
      ),
      "a/strict.js": front("flags: [onlyStrict]", "same((function () { return this; })(), undefined);"),
      "a/sloppy.js": front("flags: [noStrict]", "same((function () { return this; })(), globalThis);"),
      "a/early.js": front("negative:\n  phase: parse\n  type: SyntaxError", "never(); let a; let a;"),
      "a/late.js": front("negative:\n  phase: runtime\n  type: Test262Error", "same(1, 2);"),
      "a/async.js": front("flags: [async]", "Promise.resolve().then(() => setTimeout($DONE, 5));"),
      "a/poisoned.js": front("flags: [async]", "Promise.prototype.then = () => never(); $DONE();"),
      "a/raw.js": "#!raw\n/*---\nflags: [raw]\n---*/\nif (typeof same !== 'undefined') throw same;",
      "a/detach.js": front(
        "",
        "var b = new ArrayBuffer(8); $262.detachArrayBuffer(b); same(b.byteLength, 0);",
      ),
      "m/module.js": front(
        "flags: [module, async]\nincludes: [extra.js]",
        "import * as me from './module.js'; import { part } from './part_FIXTURE.js'; export default 1; same(me.default + part, extra); await 0; $DONE();",
      ),
      "m/part_FIXTURE.js": "export const part = 41;",
      "m/missing.js": front("flags: [module]\nnegative:\n  phase: resolution\n  type: SyntaxError", "never(); import { no } from './part_FIXTURE.js';"), // prettier-ignore
      "m/dynamic.js": front("flags: [async]", "import('./part_FIXTURE.js').then(({ part }) => same(part, 41)).then($DONE, $DONE);"), // prettier-ignore
    });
    expect(failed).toEqual({});
  });

  test("that are to fail do, in the jail and on the bare engine alike", async () => {
    const failed = await failuresOf({
      "throws.js": front("", "same(1, 2);"),
      "parses.js": front("flags: [noStrict]\nnegative:\n  phase: parse\n  type: SyntaxError", "never();"),
      "silent.js": front("flags: [noStrict, async]", "1;"),
      "says-so.js": front("flags: [onlyStrict, async]", "$DONE('no');"),
      "module.js": front("flags: [module]", "same(typeof $262.done, 'number');"),
      "one-mode.js": front("", "same(delete Object.prototype, false);"),
    });
    const both = (why: string) => `${why} | ${why}`;
    expect(Object.keys(failed)).toHaveLength(6);
    expect(failed["throws.js"]).toEqual(
      ["sloppy", "strict"].map((mode) => `${mode}: ${both("Test262Error: 1")}`),
    );
    expect(failed["parses.js"]![0]).toContain("threw another error");
    expect(failed["silent.js"]).toEqual([`sloppy: ${both("stopped: deadlock")}`]);
    expect(failed["says-so.js"]).toEqual([`strict: ${both("Test262:AsyncTestFailure:no")}`]);
    expect(failed["module.js"]).toEqual([`module: ${both("Test262Error: object")}`]);
    expect(failed["one-mode.js"]![0]).toMatch(/^strict: TypeError/);
  });

  test("that only our world fails are told apart from the engine's", async () => {
    const failed = await failuresOf({
      "ours.js": front("flags: [noStrict]", "same(typeof console, 'undefined');"),
    });
    expect(failed).toEqual({ "ours.js": ["sloppy: Test262Error: object | passed"] });
  });
});

describe("test262", () => {
  const suite = process.env.TEST262;
  test.skipIf(suite === undefined)(
    "a sample fails where it is known to fail and nowhere else (set TEST262 to a checkout of tc39/test262)",
    { timeout: 300_000 },
    async () => {
      const file = new URL("known/quickjs.json", import.meta.url);
      const known = JSON.parse(fs.readFileSync(file, "utf8")) as Known;
      const paths = listTests(suite!, { sample: 300 });
      const { results } = await runTests(jail, { suite: suite!, paths, jobs });
      expect(results.length).toBeGreaterThan(200);
      expect(results.filter(({ failures }) => failures.length === 0).length).toBeGreaterThan(
        results.length / 2,
      );
      expect(compare(known, results)).toEqual({ fresh: [], ours: [], healed: [] });
    },
  );
});
