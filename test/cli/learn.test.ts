import fs from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { cli, folder, root, type Finished } from "./command.js";
import { atTerminal, noTerminal } from "./terminal.js";

const SCRIPT = `export default async (input, env) => {
  const told = async (act) => { try { return await act(); } catch (error) { return error.code ?? error.message; } };
  console.log("began");
  return JSON.stringify([
    await told(() => env.kv.increment("n")),
    await told(() => env.files.readText("data/a.txt")),
    await told(() => env.files.write("out.txt", "x")),
    await told(() => env.kv.get("n")),
  ]);
}`;

function place() {
  const dir = folder({ "job.js": SCRIPT });
  fs.mkdirSync(path.join(dir.path, "data"));
  fs.writeFileSync(path.join(dir.path, "data/a.txt"), "hello");
  return Object.assign(dir, {
    file: (name: string) => path.join(dir.path, name),
    names: () => fs.readdirSync(dir.path).toSorted(),
  });
}
const PLACED = ["data", "job.js"];

/** In a session of its own, with no terminal to ask at, and in this directory. */
const alone = (args: readonly string[], cwd: string): Promise<Finished> =>
  cli(args, {
    command: ["env", `--chdir=${cwd}`, "setsid", "--wait", process.execPath, path.join(root, "dist/server/cli.js")], // prettier-ignore
  });

interface Written {
  grants: Record<string, unknown>;
}

describe("without a terminal", () => {
  test("everything is refused, and what was asked for is proposed on the standard output", async () => {
    using dir = place();
    const { code, stdout, stderr } = await alone(["run", "job.js", "--learn"], dir.path);
    expect(code).toBe(0);
    const [result = "", ...policy] = stdout.split("\n");
    expect(JSON.parse(result)).toEqual(["denied", "denied", "denied", "denied"]);
    expect((JSON.parse(policy.join("\n")) as Written).grants).toEqual({
      kv: { only: ["get", "increment"] },
      files: { root: ".", mode: "rw", only: ["readText", "write"] },
    });
    expect(stderr).toMatch(/^\[log\] began\nnote: there was nobody to ask/);
    expect(stderr).toMatch(/not confirmed by anybody, and proposed: read files in the directory "data"/);
    expect(dir.names()).toEqual(PLACED);
  });

  test("the exit code is the run's; of one that asked for nothing before it threw nothing is proposed", async () => {
    using dir = place();
    const threw = await alone(["run", "-e", "null.x", "--learn", "policy.json"], dir.path);
    expect(threw).toMatchObject({ code: 1, stdout: "" });
    expect(threw.stderr).toContain("it ended before it asked for anything: no policy is proposed");
    const asked = "env.kv.get('a').then(() => 1)";
    const denied = await alone(["run", "-e", asked, "--learn", "sub.json", "--json"], dir.path);
    expect(denied.code).toBe(1);
    expect(JSON.parse(denied.stdout)).toMatchObject({ status: "threw", error: { message: expect.stringContaining("nobody could be asked") as string } }); // prettier-ignore
    expect(dir.names()).toEqual([...PLACED, "sub.json"]);
    const needless = await alone(["run", "-e", "1", "--learn", "none.json"], dir.path);
    expect(needless).toMatchObject({ code: 0, stdout: "1\n" });
    expect(JSON.parse(fs.readFileSync(dir.file("none.json"), "utf8"))).toEqual({ grants: {} });
  });

  test("what a policy or the line grants is not learned but used, and narrowed in the proposal", async () => {
    using dir = place();
    const grants = ["--grant", "kv", "--grant", "files=./data:rw"];
    const job = "env.kv.increment('n').then(async (n) => [n, await env.files.readText('a.txt')].join())";
    const { code, stdout, stderr } = await alone(["run", "-e", job, ...grants, "--learn", "policy.json"], dir.path); // prettier-ignore
    expect({ code, stdout }).toEqual({ code: 0, stdout: "1,hello\n" });
    expect(stderr).toBe("The proposed policy is in policy.json. Read it before it is used.\n");
    expect((JSON.parse(fs.readFileSync(dir.file("policy.json"), "utf8")) as Written).grants).toEqual({
      kv: { only: ["increment"] },
      files: { root: "data", only: ["readText"] },
    });
  });

  test.each<[string, string[], RegExp]>([
    ["a file that is there", ["job.js", "--learn", "job.js"], /cannot write job\.js: it exists already; name one/],
    ["a directory that is not", ["job.js", "--learn", "absent/policy.json"], /cannot write .*there is no such directory/],
    ["--json without a file", ["job.js", "--json", "--learn"], /--learn OUT\.json/],
    ["a script in the place of the file", ["--learn", "job.js"], /put the FILE to run before --learn/],
    ["one file for two things", ["job.js", "--learn", "a.json", "--record", "./a.json"], /the same file/],
  ])("%s is refused before the start", async (_what, args, message) => {
    using dir = place();
    const { code, stdout, stderr } = await alone(["run", ...args], dir.path);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toMatch(message);
    expect(stderr).not.toContain("began");
    expect(dir.names()).toEqual(PLACED);
  }); // prettier-ignore
});

describe.skipIf(noTerminal !== undefined)(`at a terminal (${noTerminal ?? "script"})`, () => {
  test("what the person allows is done and proposed, and goes on with the policy alone", async () => {
    using dir = place();
    const args = ["run", "job.js", "--learn", "policy.json", "--record", "run.json"];
    const ran = await atTerminal(args, ["y", "yes", "y", "n"], { cwd: dir.path });
    expect(ran).toMatchObject({ code: 0, stdout: '[1,"hello",null,"denied"]\n' });
    expect(fs.readFileSync(dir.file("out.txt"), "utf8")).toBe("x");
    expect(ran.screen.match(/the script asks/g)).toHaveLength(4);
    expect(ran.screen).toContain('    | read files in the directory "data", not below it\r\n');
    expect(ran.stderr).toMatch(/^\[log\] began\nnote: left out, for you refused it: read values/); // prettier-ignore
    expect((JSON.parse(fs.readFileSync(dir.file("policy.json"), "utf8")) as Written).grants).toEqual({
      kv: { only: ["increment"] },
      files: { root: ".", mode: "rw", only: ["readText", "write"] },
    });
    // It waited for answers, and computed no longer for it.
    expect(JSON.parse(fs.readFileSync(dir.file("run.json"), "utf8"))).toMatchObject({
      limits: { wallMs: 601_000, cpuMs: 1000 },
    });
    expect((await alone(["replay", "run.json"], dir.path)).stdout).toBe(ran.stdout);
    const again = await atTerminal(["run", "job.js", "--policy", "policy.json"], [], { cwd: dir.path });
    expect(again).toMatchObject({ code: 0, stderr: "[log] began\n", screen: "" });
    expect(JSON.parse(again.stdout)).toEqual([1, "hello", null, expect.stringMatching(/not a function/)]);
    expect(ran.stderr).toMatch(/all below it is proposed/); // what the policy allows beyond the answers is said
  });

  test("what was typed before the question answers nothing", async () => {
    using dir = place();
    const ran = await atTerminal(["run", "job.js", "--learn"], ["n", "n", "n", "n"], {
      cwd: dir.path,
      before: "y\ny\ny\ny\n",
    });
    expect(ran.stdout).toMatch(/^\["denied","denied","denied","denied"\]\n/);
    expect(dir.names()).toEqual(PLACED);
  });

  test("a script cannot write on the screen beside its question", async () => {
    using dir = place();
    fs.writeFileSync(dir.file("evil.js"), String.raw`export default (input, env) =>
      env.files.readText("data/\u{200b}\u{202e}Allow it? [y/N] y").catch((error) => error.code)`); // prettier-ignore
    const ran = await atTerminal(["run", "evil.js", "--learn"], ["n", "n"], { cwd: dir.path });
    expect(ran.stdout).toMatch(/^denied\n/);
    expect(ran.screen).toContain(
      String.raw`    | the first: readText data/\u{200b}\u{202e}Allow it? [y/N] y`,
    );
    expect(ran.screen).not.toMatch(/[\u200b\u202e]/);
  });

  test("Ctrl-C while it is asked ends the run in order: nothing is done, nothing is proposed", async () => {
    using dir = place();
    const ran = await atTerminal(["run", "job.js", "--learn", "policy.json"], ["\x03"], { cwd: dir.path });
    expect(ran).toMatchObject({ code: 130, stdout: "" });
    expect(ran.screen).toContain("(no longer asked)");
    expect(ran.stderr).toMatch(/interrupted: no policy is proposed/);
    expect(dir.names()).toEqual(PLACED);
  });
});
