/** Choosing an engine on the command line, and running one script on several to see where they part. */
import { describe, expect, test } from "vitest";
import { SCRIPT_ENGINES } from "#server/engines";
import { ENGINES } from "../engines.js";
import { cli, folder } from "./command.js";

const all = ENGINES.length === SCRIPT_ENGINES.length;

describe("one engine", () => {
  test.each(ENGINES)("%s runs what it is given, and its outcome says so", async (engine) => {
    const { code, stdout } = await cli(["run", "--engine", engine, "--json", "-e", "6 * 7"]);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ status: "ok", value: 42, layers: { hull: "double", engine } });
  });

  test.each(ENGINES)(
    "%s is a policy's to choose, and the command line's to choose otherwise",
    async (engine) => {
      using dir = folder({
        "policy.json": JSON.stringify({ engine }),
        "a.ts": "export default (): number => 1",
      });
      const run = ["run", `${dir.path}/a.ts`, "--policy", `${dir.path}/policy.json`, "--json"];
      expect(JSON.parse((await cli(run)).stdout)).toMatchObject({ value: 1, layers: { engine } });
      const other = await cli([...run, "--engine=quickjs"]);
      expect(JSON.parse(other.stdout)).toMatchObject({ value: 1, layers: { engine: "quickjs" } });
      const { stdout } = await cli(["explain", "--policy", `${dir.path}/policy.json`, "--json"]);
      expect(JSON.parse(stdout)).toMatchObject({ engine });
    },
  );

  test("that does not exist is a usage error that names those that do", async () => {
    for (const wrong of ["v9", "quickjs,v9", "v8,v8", ""]) {
      const { code, stdout, stderr } = await cli(["run", "--engine", wrong, "-e", "console.log('it ran')"]);
      expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
      expect(stderr).toMatch(/quickjs, v8-jitless, v8|named twice/);
    }
  });

  test.runIf(all)("v8 says in explain which layers it cannot have", async () => {
    const { code, stdout } = await cli(["explain", "--engine", "v8"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/sealed-code +off +not held: v8 compiles scripts to machine code/);
    expect((await cli(["explain"])).stdout).toMatch(/sealed-code +on/);
  });
});

describe.runIf(all)("several engines", () => {
  const every = ["run", "--engine", SCRIPT_ENGINES.join(",")];

  test("that agree say so, of calls, clock and randomness too", async () => {
    const source = "env.kv.set('a', Math.random()).then(() => env.kv.get('a')).then((a) => [a, Date.now()])";
    const { code, stdout, stderr } = await cli([...every, "--grant", "kv", "-e", source]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^\[ 0\.\d+, \d+ \]\n$/);
    expect(stderr).toBe("v8-jitless: as on quickjs\nv8: as on quickjs\n");
  });

  test("that part are told apart with what each gave, and the exit code says so", async () => {
    const { code, stdout, stderr } = await cli([...every, "-e", "typeof Intl"]);
    expect({ code, stdout }).toEqual({ code: 6, stdout: "undefined\n" });
    expect(stderr).toContain('quickjs:    the result "undefined"\n    v8-jitless: the result "object"');
  });

  test("that throw the same in other words and at other columns agree", async () => {
    const { code, stderr } = await cli([...every, "-e", "null.x"]);
    expect(code).toBe(1);
    expect(stderr).toContain("TypeError: ");
    expect(stderr.endsWith("v8-jitless: as on quickjs\nv8: as on quickjs\n")).toBe(true);
    const parted = await cli(["run", "--engine", "quickjs,v8", "-e", "throw new Error(typeof Intl)"]);
    expect(parted.code).toBe(6);
  });

  test.each([
    ["an error's stack in the log", "console.log(new Error('x')); 1"],
    ["an error's stack in the result", "new Error('x')"],
    ["which deadline comes first", "for (;;);"],
    ["an engine's own words", "Promise.any([Promise.reject(1)])"],
  ])("do not part by %s", async (_name, source) => {
    const { code, stderr } = await cli([
      "run",
      "--engine",
      "quickjs,v8",
      "-e",
      source,
      "--limit",
      "wallMs=300",
    ]);
    expect(stderr).toContain("v8: as on quickjs\n");
    expect(code).not.toBe(6);
  });

  test("are one object in --json, with every outcome", async () => {
    const { code, stdout } = await cli([...every, "--json", "-e", "console.log('x'); typeof Intl"]);
    expect(code).toBe(6);
    expect(JSON.parse(stdout)).toMatchObject({
      engine: "quickjs",
      outcome: { status: "ok", value: "undefined", logs: [{ args: ["x"] }] },
      others: [
        { engine: "v8-jitless", identical: false, outcome: { value: "object" }, divergence: { at: 1 } },
        { engine: "v8", identical: false, outcome: { value: "object" } },
      ],
    });
  });
});
