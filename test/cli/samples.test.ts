import fs from "node:fs";
import path from "node:path";
import { expect, test } from "vitest";
import { cli, root, type Finished } from "./command.js";

/** What every sample must do when it is run as its first line says. */
const EXPECTED: Readonly<Record<string, (run: Finished) => void>> = {
  "hello.ts": (run) =>
    expect(run).toEqual({
      code: 0,
      stdout: "{ hello: 'world', letters: 5 }\n",
      stderr: "[log] greeting world\n",
    }),
  "sum.js": (run) => expect(run).toEqual({ code: 0, stdout: "6\n", stderr: "" }),
  "endless.js": (run) => {
    expect(run).toMatchObject({ code: 3, stdout: "" });
    expect(run.stderr).toMatch(/^stopped \(wall-time\): .*\n.*limit 200 ms/);
  },
  "library.mjs": (run) => {
    expect(run).toMatchObject({ code: 0, stderr: "" });
    expect(run.stdout).toBe("polite: hello, Ada\nfaulty: threw TypeError\nendless: stopped by wall-time\n");
  },
};

test("every sample has an expectation", () => {
  expect(fs.readdirSync(path.join(root, "samples")).toSorted()).toEqual(Object.keys(EXPECTED).toSorted());
});

test.each(Object.keys(EXPECTED))("%s does what its first line says", async (name) => {
  const [first = ""] = fs.readFileSync(path.join(root, "samples", name), "utf8").split("\n");
  const [, tool, words = ""] = /^\/\/ (npx doublehull|node) (.*)$/.exec(first) ?? [];
  expect(tool).toBeDefined();
  const args = (words.match(/'[^']*'|\S+/g) ?? []).map((word) => word.replace(/^'(.*)'$/, "$1"));
  expect(args).toContain(`samples/${name}`);
  EXPECTED[name]?.(await cli(args, tool === "node" ? { command: [process.execPath] } : {}));
});
