import { execFile } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import { callCount } from "#osjail/plan";
import { LIMITS } from "#server/limits";

const root = path.join(import.meta.dirname, "../..");
const readme = fs.readFileSync(path.join(root, "README.md"), "utf8");
const block = (language: string) =>
  [...readme.matchAll(/^```(\w+)\n([^]*?)^```$/gm)]
    .filter((found) => found[1] === language)
    .map((found) => found[2]);

describe("the README", () => {
  test("its library code does what it says", async () => {
    const [code = ""] = block("js");
    // Node 20 and 22 have no `await using`: the README says what to write there.
    const older = `${code.replace("await using sandbox", "const sandbox")}\nawait sandbox.close();`;
    expect(older).not.toBe(code);
    const run = promisify(execFile)(process.execPath, ["--input-type=module", "-e", older], { cwd: root });
    expect((await run).stdout).toMatch(/^\{ hello: 'Ada', at: \d{4}-\d\d-\d\dT.*\}\n$/);
  });

  test("its table of limits has every limit", () => {
    for (const name of Object.keys(LIMITS)) expect(readme).toContain(`\`${name}\``);
    for (const name of ["wallMs", "cpuMs", "memoryMb", "stackKb"] as const) {
      expect(readme).toMatch(
        new RegExp(`\`${name}\`[^|]*\\| ${LIMITS[name].default} \\| ${LIMITS[name].max} \\|`),
      );
    }
  });

  test("it counts the system calls as the profile does", () => {
    expect(callCount("quickjs")).toBe(14);
    expect(readme).toContain("fourteen system calls");
  });

  test("its two commands are those of the package", () => {
    const scripts = JSON.parse(fs.readFileSync(path.join(root, "package.json"), "utf8")) as {
      scripts: object;
    };
    expect(block("sh").slice(0, 2)).toEqual([
      "npm ci && npx doublehull run samples/hello.ts\n",
      "npm ci && npm test\n",
    ]);
    expect(scripts.scripts).toHaveProperty("test");
    expect(fs.existsSync(path.join(root, "samples/hello.ts"))).toBe(true);
  });
});
