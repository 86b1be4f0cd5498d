/**
 * Where the engines part: each row is asked of every engine, and the README's table is what they answered. With
 * UPDATE_DIFFERENCES=1 the table is written anew.
 */
import fs from "node:fs";
import { describe, expect, test } from "vitest";
import { type RunOptions } from "doublehull";
import { SCRIPT_ENGINES } from "#server/engines";
import { ENGINES } from "../engines.js";
import { makeSandbox } from "../harness.js";

interface Row {
  what: string;
  /** Gives "yes", "no" or a few words. */
  source: string;
  options?: RunOptions;
}

const has = (expression: string) => `${expression} ? "yes" : "no"`;
const parses = (code: string) =>
  `(() => { try { new Function(${JSON.stringify(code)}); return "yes" } catch { return "no" } })()`;

const ROWS: Row[] = [
  { what: "`Intl`, and `toLocaleString` in the language asked for", source: has("typeof Intl === 'object' && (1234.5).toLocaleString('de') === '1.234,5'") }, // prettier-ignore
  { what: "`import()` of the run's modules", source: "export default async () => { try { await import('./m.js'); return 'yes' } catch { return 'no' } }", options: { type: "module", modules: { "m.js": "" } } }, // prettier-ignore
  { what: "out of heap can be caught", source: "let a = [], said = 'no'; try { for (;;) a.push({ x: 1 }) } catch { a = 0; said = 'yes' } said" }, // prettier-ignore
  { what: "`using` declarations", source: parses("{ using x = null; }") },
  { what: "`Array.fromAsync`", source: has("typeof Array.fromAsync === 'function'") },
  { what: "`Uint8Array.fromBase64`", source: has("typeof Uint8Array.fromBase64 === 'function'") },
  { what: "iterator helpers", source: has("typeof Iterator === 'function' && typeof Iterator.prototype.map === 'function'") }, // prettier-ignore
  { what: "`Set.prototype.union` and the like", source: has("typeof Set.prototype.union === 'function'") },
  { what: "`Float16Array`", source: has("typeof Float16Array === 'function'") },
  { what: "`structuredClone` moves a buffer (`transfer`)", source: "let b = new ArrayBuffer(1); try { structuredClone(b, { transfer: [b] }); b.byteLength ? 'no' : 'yes' } catch { 'no' }" }, // prettier-ignore
  { what: "`RegExp.escape`", source: has("typeof RegExp.escape === 'function'") },
  { what: "`Error.captureStackTrace`", source: has("typeof Error.captureStackTrace === 'function'") },
  {
    what: "a stack names the error in its first line",
    source: has("/^Error: x/.test(new Error('x').stack)"),
  },
];

async function answersOf(engine: (typeof SCRIPT_ENGINES)[number]): Promise<string[]> {
  const sandbox = await makeSandbox({ engine, limits: { wallMs: 10_000, cpuMs: 10_000 } });
  try {
    const outcomes = await Promise.all(
      ROWS.map(({ source, options }) => sandbox.run(source, { type: "script", ...options })),
    );
    return outcomes.map((outcome) => {
      if (outcome.status === "ok") return String(outcome.value);
      return outcome.status === "stopped" && outcome.stop.reason === "memory" ? "no" : outcome.status;
    });
  } finally {
    await sandbox.close();
  }
}

/** What the host side and the kernel make of them, by the tables that they are made from. */
const FIXED = [
  ["`FinalizationRegistry` calls back", "sometimes", "no", "no"],
  ["`limits.fuel`", "yes", "no", "no"],
  [
    "the language ends an endless loop by itself",
    "yes",
    "no: the supervisor does",
    "no: the supervisor does",
  ],
  ["no page of the worker may become code", "yes", "yes", "no"],
];

const README = new URL("../../README.md", import.meta.url);
const [BEGIN, END] = ["<!-- differences: begin -->\n", "<!-- differences: end -->"];

describe("what differs between the engines", () => {
  test.runIf(ENGINES.length === SCRIPT_ENGINES.length)(
    "is what the README's table says",
    async () => {
      const columns: string[][] = [];
      for (const engine of SCRIPT_ENGINES) columns.push(await answersOf(engine));
      const rows = ROWS.map(({ what }, i) => [what, ...columns.map((answers) => answers[i] ?? "")]);
      for (const [what, ...answers] of rows) {
        for (const answer of answers) expect(["yes", "no"], what).toContain(answer);
      }
      const later = rows.filter(([, a, b, c]) => !(a === b && b === c));
      expect(later.length).toBeGreaterThan(3); // the control: they do differ
      const head = ["", ...SCRIPT_ENGINES.map((name) => `\`${name}\``)];
      const lines = [head, head.map(() => "---"), ...later, ...FIXED].map((row) => `| ${row.join(" | ")} |`);
      const readme = fs.readFileSync(README, "utf8");
      const [before = "", rest = ""] = readme.split(BEGIN);
      const [table = "", after = ""] = rest.split(END);
      const cells = (text: string) => text.replace(/ +/g, " ").replace(/-+/g, "-").trim();
      // What V8 can depends on the Node that it comes with: the table is of the oldest.
      if (process.versions.node.startsWith("20.") && process.env["UPDATE_DIFFERENCES"] === "1") {
        fs.writeFileSync(README, `${before}${BEGIN}\n${lines.join("\n")}\n\n${END}${after}`);
      } else if (process.versions.node.startsWith("20.")) {
        expect(cells(table)).toBe(cells(lines.join("\n")));
      }
    },
    60_000,
  );
});
