import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { families, isAlive, members, until } from "../harness.js";
import { cli, finished, folder, start, type Finished } from "./command.js";

const SCRIPT = `export default async (input, env) => {
  console.log("began", input.n);
  await env.kv.set("a", Math.random());
  return { stored: await env.kv.get("a"), at: new Date(), names: Object.keys(env) };
}`;

function place(files: Readonly<Record<string, string>> = {}) {
  const dir = folder({ "job.js": SCRIPT, ...files });
  return Object.assign(dir, { file: (name: string) => path.join(dir.path, name) });
}
type Place = ReturnType<typeof place>;

/** One run of job.js, for the tests that only need a recording. */
let text = "";
let first: Finished;
beforeAll(async () => {
  using dir = place();
  first = (await recorded(dir)).ran;
  text = fs.readFileSync(dir.file("run.json"), "utf8");
});

const JOB = ["--input", '{"n":1}', "--grant", "kv"];

/** Records a run of job.js, or of what is given. */
async function recorded(dir: Place, args: readonly string[] = [dir.file("job.js"), ...JOB]) {
  const ran = await cli(["run", ...args, "--record", dir.file("run.json")]);
  return { ran, recording: dir.file("run.json") };
}

describe("a recorded run", () => {
  test("is the same again with nothing granted: result, log and exit code", async () => {
    using dir = place();
    const { ran, recording } = await recorded(dir);
    expect(ran).toMatchObject({ code: 0, stderr: "[log] began 1\n" });
    expect(ran.stdout).toContain("names: [ 'kv' ]");
    expect(await cli(["replay", recording])).toEqual(ran);
    expect(fs.statSync(recording).mode & 0o777).toBe(0o600);
    expect(fs.readdirSync(dir.path).toSorted()).toEqual(["job.js", "run.json"]); // nothing is left beside it
  });

  test("takes the place of an older recording, and of nothing else", async () => {
    using dir = place({ "run.json": "old", target: "precious" });
    const { ran, recording } = await recorded(dir);
    expect(ran.code).toBe(0);
    expect(await cli(["replay", recording])).toEqual(ran);
    fs.symlinkSync("target", dir.file("link"));
    expect(spawnSync("mkfifo", [dir.file("fifo")]).status).toBe(0);
    for (const name of ["link", "fifo", ".", "absent/run.json"]) {
      const refused = await cli(["run", "-e", "console.log('it ran')", "--record", dir.file(name)]);
      expect(refused).toMatchObject({ code: 2, stdout: "" });
      expect(refused.stderr).toMatch(
        /^doublehull: cannot write .*: (it is no regular file|it is a directory|there is no such directory)\n$/,
      );
    }
    expect(fs.readFileSync(dir.file("target"), "utf8")).toBe("precious");
    expect(fs.readdirSync(dir.path).toSorted()).toEqual(["fifo", "job.js", "link", "run.json", "target"]);
  });

  test.each([
    ["throws", "export default () => { console.warn('x'); null.y; }", [], 1, /^\[warn\] x\nTypeError/],
    ["is stopped", "export default () => { for (;;); }", ["--limit", "wallMs=100"], 3, /^stopped \(wall-time\)/],
  ])("that %s does so again", async (_how, source, flags, code, message) => {
    using dir = place({ "job.js": source });
    const { ran, recording } = await recorded(dir, [dir.file("job.js"), ...flags]);
    expect(ran).toMatchObject({ code, stdout: "" });
    expect(ran.stderr).toMatch(message);
    const again = await cli(["replay", recording]);
    expect(again).toMatchObject({ code, stdout: "" });
    expect(again.stderr).toMatch(message);
    expect(again.stderr).not.toContain("diverged");
  }); // prettier-ignore

  test("of TypeScript and modules needs neither again, and can be recorded under a policy", async () => {
    using dir = place({
      "main.ts": "import { two } from 'two.ts'; export default async (_: unknown, env: any) => (await env.kv.get('a')) ?? two;",
      "two.ts": "export const two: number = 2;",
      "policy.json": '{"grants":{"kv":true,"clock":{"mode":"virtual"}}}',
    }); // prettier-ignore
    const module = ["--module", `two.ts=${dir.file("two.ts")}`];
    const { ran, recording } = await recorded(dir, [dir.file("main.ts"), ...module, "--policy", dir.file("policy.json")]); // prettier-ignore
    expect(ran).toEqual({ code: 0, stdout: "2\n", stderr: "" });
    for (const name of ["main.ts", "two.ts", "policy.json"]) fs.rmSync(dir.file(name));
    expect(await cli(["replay", recording])).toEqual(ran);
  });

  test("has its outcome as --json, too, and the recording is not in it", async () => {
    using dir = place();
    const { ran, recording } = await recorded(dir, [dir.file("job.js"), ...JOB, "--json"]);
    expect(ran).toMatchObject({ code: 0, stderr: "" });
    expect(JSON.parse(ran.stdout)).not.toHaveProperty("recording");
    const { code, stdout, stderr } = await cli(["replay", recording, "--json"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const { value, logs } = JSON.parse(ran.stdout) as { value: unknown; logs: unknown };
    const replayed: unknown = JSON.parse(stdout);
    expect(replayed).toMatchObject({ outcome: { status: "ok", value, logs }, identical: true, divergence: null }); // prettier-ignore
  });
});

describe("no recording is written", () => {
  test.each([["clock=real"], ["clock=coarse:10"]])("of %s: it is refused before the start", async (grant) => {
    using dir = place();
    const { ran } = await recorded(dir, ["-e", "console.log('it ran')", "--grant", grant]);
    expect(ran).toMatchObject({ code: 2, stdout: "" });
    expect(ran.stderr).toMatch(/record: a clock that runs by itself/);
    expect(ran.stderr).not.toContain("it ran");
    expect(fs.readdirSync(dir.path)).toEqual(["job.js"]);
  });

  test("of a run that never began, and that is said", async () => {
    using dir = place({ "bad.ts": "let a: = 1;" });
    const { ran } = await recorded(dir, [dir.file("bad.ts")]);
    expect(ran).toMatchObject({ code: 1, stdout: "" });
    expect(ran.stderr).toMatch(/^doublehull: the run never began: no recording was written\n/);
    expect(fs.existsSync(dir.file("run.json"))).toBe(false);
  });

  test("of an interrupted run, and nothing is left of it", async () => {
    using dir = place({ "run.json": "old" });
    const child = start(["run", "-e", "console.log('x'); for (;;);", "--limit", "wallMs=60000", "--record", dir.file("run.json")]); // prettier-ignore
    const end = finished(child);
    await new Promise((resolve) => child.stderr?.once("data", resolve)); // the log is told as it comes
    child.kill("SIGINT");
    expect(await end).toEqual({
      code: 130,
      stdout: "",
      stderr:
        "[log] x\ndoublehull: the run was interrupted: no recording was written\ndoublehull: interrupted\n",
    });
    expect(fs.readFileSync(dir.file("run.json"), "utf8")).toBe("old");
    expect(fs.readdirSync(dir.path).toSorted()).toEqual(["job.js", "run.json"]);
  });
});

describe("replaying other code", () => {
  test("that does the same is identical, whatever its file is called", async () => {
    using dir = place({ "run.json": text, "same.js": SCRIPT, "typed.ts": SCRIPT.replace("(input, env)", "(input: any, env: any)") }); // prettier-ignore
    for (const name of ["same.js", "typed.ts"]) {
      expect(await cli(["replay", dir.file("run.json"), "--script", dir.file(name)])).toEqual(first);
    }
  });

  test.each([
    ["a call", SCRIPT.replace(`"a", Math`, `"b\\x1b[2J", Math`), "at call 1 of 2", /expected: kv\.set\("a",.*\n.*got: .*kv\.set\("b\\u001b\[2J"/],
    ["one call less", SCRIPT.replace(/await env.kv.get."a"./, "1"), "at call 2 of 2", /expected: kv\.get\("a"\)\n.*got: .*the result/],
    ["one call more", SCRIPT.replace("return", "await env.kv.get('c'); await env.kv.get('a'); return"), "at call 2 of 2", /got: .*kv\.get\("c"\)/],
    ["a call at the end", SCRIPT.replace("return", "const r =").replace(/\}$/, "await env.kv.get('z'); return r; }"), "after all 2 recorded calls", /expected: nothing more\n.*got: .*kv\.get\("z"\)/],
    ["another result", SCRIPT.replace("names", "other"), "after all 2 recorded calls", /expected: .*names.*\n.*got: .*other/],
    ["no TypeScript", "let a: = 1;", "the script never began", /SyntaxError/],
  ])("that differs by %s says where, and has an exit code of its own", async (what, source, where, words) => {
    using dir = place({ "run.json": text });
    const name = what === "no TypeScript" ? "other.ts" : "other.js";
    fs.writeFileSync(dir.file(name), source);
    const { code, stderr } = await cli(["replay", dir.file("run.json"), "--script", dir.file(name)]);
    expect(code).toBe(6);
    expect(stderr).toContain(where);
    expect(stderr).toMatch(words);
    expect(stderr).not.toContain("\x1b");
    const json = await cli(["replay", dir.file("run.json"), "--script", dir.file(name), "--json"]);
    expect(json).toMatchObject({ code: 6, stderr: "" });
    expect(JSON.parse(json.stdout)).toMatchObject({ identical: false });
  }); // prettier-ignore

  test("takes the recorded modules, but for those that are given", async () => {
    using dir = place({
      "main.js": "import { a } from 'a'; import { b } from 'b'; export default () => a + b;",
      "a.js": "export const a = 1;",
      "b.js": "export const b = 10;",
      "b2.js": "export const b = 20;",
    });
    const modules = ["--module", `a=${dir.file("a.js")}`, "--module", `b=${dir.file("b.js")}`];
    await recorded(dir, [dir.file("main.js"), ...modules]);
    const again = ["replay", dir.file("run.json"), "--script", dir.file("main.js")];
    expect(await cli(again)).toEqual({ code: 0, stdout: "11\n", stderr: "" });
    const other = await cli([...again, "--module", `b=${dir.file("b2.js")}`]);
    expect(other).toMatchObject({ code: 6, stdout: "21\n" });
  });

  test("can be interrupted, and leaves nothing behind", async () => {
    using dir = place({
      "run.json": text.replace('"wallMs":1000', '"wallMs":60000'),
      "endless.js": "for (;;);",
    });
    const child = start(["replay", dir.file("run.json"), "--script", dir.file("endless.js")]);
    const end = finished(child);
    await until("a worker is there", () => families(child.pid).some(({ workers }) => workers.length > 0));
    const processes = families(child.pid).flatMap(members);
    child.kill("SIGINT");
    expect(await end).toEqual({ code: 130, stdout: "", stderr: "doublehull: interrupted\n" });
    expect(processes.filter(isAlive)).toEqual([]);
  });
});

describe("what is no recording is refused by its name, with exit code 2", () => {
  test.each<[string, (whole: string) => string, RegExp]>([
    ["a truncated one", (whole) => whole.slice(0, -20), /run\.json: the recording is not JSON/],
    ["one of another version", (whole) => whole.replace("recording 1", "recording 2"), /run\.json: the recording is not one of this version: format: .*\n.*Record the run again/],
    ["other JSON", () => "[1]", /run\.json: the recording is not one of this version/],
    ["one whose limits cannot be", (whole) => whole.replace('"memoryMb":64', '"memoryMb":99999'), /run\.json: .*memoryMb must be at most 1024/],
    ["none at all", () => "", /run\.json: the recording is not JSON/],
  ])("%s", async (_what, change, message) => {
    using dir = place({ "run.json": text });
    fs.writeFileSync(dir.file("run.json"), change(text));
    const { code, stdout, stderr } = await cli(["replay", dir.file("run.json")]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toMatch(message);
  }); // prettier-ignore

  test("a file that is not there, one that is too large, options that do not go together", async () => {
    using dir = place({ "run.json": text, "large.json": "" });
    fs.truncateSync(dir.file("large.json"), 64 * 1024 * 1024 + 1);
    const cases: [string[], RegExp][] = [
      [[dir.file("absent.json")], /cannot read .*absent\.json: there is no such file/],
      [[dir.file("large.json")], /large\.json is larger than 67108864 bytes/],
      [[dir.file("run.json"), "--module", `a=${dir.file("job.js")}`], /--module goes with --script/],
      [[dir.file("run.json"), "--script", dir.file("absent.js")], /cannot read .*absent\.js/],
      [[dir.file("run.json"), "--grant", "kv"], /unknown option/],
      [[], /missing required argument/],
    ];
    for (const [args, message] of cases) {
      const { code, stdout, stderr } = await cli(["replay", ...args]);
      expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
      expect(stderr).toMatch(message);
    }
  });
});

test("without a kernel hull a replay warns; its help tells of the exit code", async () => {
  using dir = place({ "run.json": text });
  const { code, stdout, stderr } = await cli(["replay", dir.file("run.json"), "--hull", "language-only"]);
  expect({ code, stdout }).toEqual({ code: 0, stdout: first.stdout });
  expect(stderr).toMatch(/warning: no kernel hull/);
  const help = await cli(["replay", "--help"]);
  expect(help.stdout).toMatch(/Examples:[\s\S]*Exit codes:[\s\S]*6 +the replay diverged/);
});
