import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { spawnSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { readHost } from "#osjail/host";
import { cgroupsOf, families, isAlive, members, until } from "../harness.js";
import { cli, finished, folder, root, start } from "./command.js";

/** No control character but line breaks: nothing that a terminal would obey. */
// oxlint-disable-next-line no-control-regex -- finding them is the point
const OBEYED = /[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]/;

describe("what a run prints", () => {
  test("the result on the standard output, the logs on the standard error", async () => {
    const { code, stdout, stderr } = await cli(["run", "-e", "console.log('seen', 1); ({ a: [1, 'b'] })"]);
    expect({ code, stdout, stderr }).toEqual({
      code: 0,
      stdout: "{ a: [ 1, 'b' ] }\n",
      stderr: "[log] seen 1\n",
    });
  });

  test("the whole log in order, however much of it is told while the script runs", async () => {
    const lines = Array.from({ length: 2000 }, (_, i) => `${i} ${"\x1b".repeat(9)}`);
    const source = `for (const line of ${JSON.stringify(lines)}) console.log(line); throw new Error("the end")`;
    const { stderr } = await cli(["run", "-e", source, "--limit", "logBytes=200000"]);
    const expected = lines.map((line) => `[log] ${line.replaceAll("\x1b", String.raw`\x1b`)}\n`).join("");
    expect(stderr.startsWith(`${expected}Error: the end\n`)).toBe(true);
    expect(expected.length).toBeGreaterThan(64 * 1024); // more than a pipe holds
  });

  test("a string as it is, and undefined as nothing", async () => {
    expect((await cli(["run", "-e", "'plain text'"])).stdout).toBe("plain text\n");
    expect(await cli(["run", "-e", "undefined"])).toEqual({ code: 0, stdout: "", stderr: "" });
  });

  test("a script from the standard input is a module with the input as argument", async () => {
    const stdin = "export default ({ n }) => n * 2";
    expect(await cli(["run", "-", "--input", '{"n":21}'], { stdin })).toEqual({
      code: 0,
      stdout: "42\n",
      stderr: "",
    });
  });

  test("a file imports the modules that were given by name, TypeScript among them", async () => {
    using dir = folder({
      "main.js": "import { one } from 'one'; import { two } from 'two.ts'; export default () => one + two;",
      "one.js": "export const one = 1;",
      "two.ts": "export const two: number = 2;",
    });
    const file = (name: string) => path.join(dir.path, name);
    const modules = ["--module", `one=${file("one.js")}`, "--module", `two.ts=${file("two.ts")}`];
    expect(await cli(["run", file("main.js"), ...modules])).toEqual({ code: 0, stdout: "3\n", stderr: "" });
  });

  test("--json is one JSON object on one line and nothing else", async () => {
    const code =
      "console.log('x'); ({ big: 2n, when: new Date(0), u: undefined, bytes: new Uint8Array([1, 2]) })";
    const { stdout, stderr } = await cli(["run", "--json", "-e", code]);
    expect(stderr).toBe("");
    expect(stdout.endsWith("}\n")).toBe(true);
    expect(stdout.trimEnd()).not.toContain("\n");
    const outcome: Record<string, unknown> = JSON.parse(stdout);
    expect(Object.keys(outcome)).toEqual(["status", "value", "logs", "usage", "ledger", "layers"]);
    expect(outcome).toMatchObject({
      status: "ok",
      value: {
        big: { $type: "bigint", value: "2" },
        when: { $type: "Date", value: "1970-01-01T00:00:00.000Z" },
        u: { $type: "undefined" },
        bytes: { $type: "Uint8Array", base64: "AQI=" },
      },
      logs: [{ level: "log", args: ["x"] }],
      layers: { hull: "double", engine: "quickjs" },
    });
  });

  test("--json tells of errors and stops in the same place", async () => {
    const threw = await cli(["run", "--json", "-e", "throw new TypeError('no')"]);
    expect(threw).toMatchObject({ code: 1, stderr: "" });
    expect(JSON.parse(threw.stdout)).toMatchObject({
      status: "threw",
      error: { name: "TypeError", message: "no" },
    });
    const stopped = await cli(["run", "--json", "-e", "for (;;);", "--limit", "wallMs=100"]);
    expect(stopped).toMatchObject({ code: 3, stderr: "" });
    expect(JSON.parse(stopped.stdout)).toMatchObject({
      status: "stopped",
      stop: { reason: "wall-time", limit: 100 },
    });
  });

  test("what a guest wrote to command a terminal is shown and not obeyed", async () => {
    const evil = String.raw`"\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e"`;
    const logged = await cli(["run", "-e", `console.log(${evil}); console.error(${evil}); ${evil}`]);
    expect(logged).toMatchObject({ code: 0 });
    expect(logged.stderr).toContain(String.raw`[log] \x1b]0;title\x07\x1b[2J\x9b31m\x0d\u202e`);
    expect(logged.stdout).toContain(String.raw`\x1b]0;title`);
    const inside = await cli([
      "run",
      "-e",
      `({ [${evil}]: ${evil}, error: new Error(${evil}), m: new Map([[${evil}, 1]]) })`,
    ]);
    expect(inside.stdout).toContain("title");
    const threw = await cli(["run", "-e", `const e = new Error(${evil}); e.name = ${evil}; throw e`]);
    expect(threw.stderr).toContain(String.raw`\x1b]0;title`);
    const json = await cli(["run", "--json", "-e", `console.log(${evil}); ${evil}`]);
    expect(JSON.parse(json.stdout)).toMatchObject({ value: "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e" });
    for (const { stdout, stderr } of [logged, inside, threw, json])
      expect(stdout + stderr).not.toMatch(OBEYED);
  });

  test("a guest's line cannot pass for ours", async () => {
    const { stderr } = await cli([
      "run",
      "-e",
      String.raw`console.log("a\nstopped (syscall): it is an attack")`,
    ]);
    expect(stderr).toBe("[log] a\n      stopped (syscall): it is an attack\n");
  });

  test("a reader that closes early is no error", async () => {
    const child = start(["run", "-e", "'line\\n'.repeat(150_000)"]);
    const end = finished(child);
    child.stdout?.once("data", () => child.stdout?.destroy());
    expect(await end).toMatchObject({ code: 0, stderr: "" });
  });
});

describe("a script that fails", () => {
  test("a thrown error has its name, message and the script's own places", async () => {
    using dir = folder({ "fail.js": "function f() {\n  null.x;\n}\nexport default () => f();\n" });
    const file = path.join(dir.path, "fail.js");
    const { code, stdout, stderr } = await cli(["run", file]);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(/^TypeError: cannot read property 'x' of null\n/);
    expect(stderr).toContain(`at f (${file}:2:`);
    expect(stderr).not.toContain("dist/");
  });

  test.each([
    ["bad.js", "let a = 1;\n\tlet b = ;\n", 2, 10, ";"],
    ["bad.ts", "let a: number = 1;\nlet b: = 2;\n", 2, 8, "="],
  ])(
    "a syntax error in %s has file, line, column, the line and a caret",
    async (name, source, line, column, token) => {
      using dir = folder({ [name]: source });
      const file = path.join(dir.path, name);
      const { code, stdout, stderr } = await cli(["run", file]);
      expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
      const [headline = "", , excerpt = "", caret = "", ...rest] = stderr.split("\n");
      expect(headline.startsWith(`${file}:${line}:${column}: SyntaxError: `)).toBe(true);
      expect(excerpt).toBe(`${line} | ${source.split("\n")[line - 1].replace("\t", " ")}`);
      expect(excerpt[caret.indexOf("^")]).toBe(token);
      expect(rest.join("")).toBe("");
    },
  );

  test.each([
    ["for (;;);", ["--limit", "wallMs=100"], "wall-time", "limit 100 ms"],
    ["new Promise(() => {})", [], "deadlock", "waits for a promise"],
    ["'x'.repeat(1000)", ["--limit", "resultBytes=100"], "output", "limit 100 bytes"],
    ["1", ["--type", "module", "--limit", "sourceBytes=0x"], undefined, "must be a whole number"],
  ])("a stop is told in words: %s %j", async (source, flags, reason, words) => {
    const { code, stdout, stderr } = await cli(["run", "-e", source, ...flags]);
    expect({ code, stdout }).toEqual({ code: reason === undefined ? 2 : 3, stdout: "" });
    if (reason !== undefined) expect(stderr).toMatch(new RegExp(`^stopped \\(${reason}\\): `));
    expect(stderr).toContain(words);
  });

  test("a longer wall clock brings the CPU time that it needs", async () => {
    const busy = "const end = 3e7; let n = 0; while (n < end) n++; n";
    const { code, stdout } = await cli(["run", "--json", "-e", busy, "--limit", "wallMs=30000"]);
    const outcome: { status: string; stop?: unknown } = JSON.parse(stdout);
    expect({ code, status: outcome.status, stop: outcome.stop }).toEqual({
      code: 0,
      status: "ok",
      stop: undefined,
    });
  });
});

describe("a mistake of the caller is told with exit code 2 and nothing on the standard output", () => {
  test.each([
    [["run"], /give a FILE/],
    [["run", "a.js", "-e", "1"], /not both/],
    [["run", "a.js", "b.js"], /too many arguments/],
    [["run", "absent.js"], /cannot read absent\.js: there is no such file/],
    [["run", "samples"], /cannot read samples: it is a directory/],
    [["run", "/dev/zero"], /larger than/],
    [["run", "-e", "1", "--limt", "wallMs=1"], /unknown option[^]*--limit/],
    [["run", "-e", "1", "--limit", "wallMs"], /name=number/],
    [["run", "-e", "1", "--limit", "wallMs=ten"], /wallMs must be a whole number/],
    [["run", "-e", "1", "--limit", "wallMs=1.5"], /wallMs must be a whole number/],
    [["run", "-e", "1", "--limit", "wallMs=9"], /wallMs must be a whole number from 10 to 3600000/],
    [["run", "-e", "1", "--limit", "memMb=9"], /no limit "memMb"[^]*memoryMb/],
    [["run", "-e", "1", "--limit", "toString=9"], /no limit "toString"/],
    [["run", "-e", "1", "--input", "{"], /not JSON/],
    [["run", "-e", "1", "--input", '{"__proto__":1}'], /cannot cross/],
    [["run", "-e", "1", "--engine", "v9"], /Known are quickjs/],
    [["run", "-e", "1", "--hull", "none"], /Allowed choices/],
    [["run", "-e", "1", "--type", "json"], /Allowed choices/],
    [["run", "-e", "1", "--module", "lib"], /NAME=FILE/],
    [["run", "-e", "1", "--module", "lib=lib.ts"], /lib\.ts=lib\.ts/],
    [["rn", "a.js"], /unknown command[^]*run/],
    [[], /Usage: doublehull/],
  ])("%j", async (args, message) => {
    const { code, stdout, stderr } = await cli(args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toMatch(message);
    expect(stderr).not.toMatch(/ at .*dist\//); // no stack of ours
  });

  test("a file that is not text", async () => {
    using dir = folder({ "binary.js": new Uint8Array([0xff, 0xfe, 0x00]) });
    const { code, stderr } = await cli(["run", path.join(dir.path, "binary.js")]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/is not UTF-8 text/);
  });
});

describe("exit codes", () => {
  test("4, with the remedy, where a layer that was demanded cannot be had", async (context) => {
    using tree = installedTree();
    const asOther = process.getuid?.() === 0;
    if (asOther && spawnSync("setpriv", ["--version"]).status !== 0)
      context.skip("there is no setpriv to become another user");
    if (!asOther && readHost(process.env).facts.cgroups.available) context.skip("this user has cgroups");
    const program = [process.execPath, path.join(tree.path, "dist/server/cli.js")] as const;
    const other = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", ...program] as const;
    const command = asOther ? other : program;
    expect(await cli(["run", "-e", "1 + 1"], { command })).toEqual({ code: 0, stdout: "2\n", stderr: "" }); // the control
    const refused = await cli(["run", "-e", "1 + 1", "--require-cgroup"], { command });
    expect(refused).toMatchObject({ code: 4, stdout: "" });
    expect(refused.stderr).toMatch(
      /this host cannot: no usable cgroup: .*\n {4}.*(Delegate=yes|run as root)/,
    );
  });

  test("5, with the stack, for a fault of our own", async () => {
    const fault = "Buffer.concat = () => { throw new TypeError('planted') }";
    const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(fault)}`;
    const { code, stdout, stderr } = await cli(["run", "samples/hello.ts"], { env: { NODE_OPTIONS } });
    expect({ code, stdout }).toEqual({ code: 5, stdout: "" });
    expect(stderr).toMatch(/bug of doublehull[^]*TypeError: planted\n\s+at /);
  });

  test.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("%s ends the run in order with %i and leaves nothing behind", async (signal, code) => {
    const child = start(["run", "-e", "for (;;);", "--limit", "wallMs=60000"]);
    const end = finished(child);
    await until("a worker is there", () => families(child.pid).some(({ workers }) => workers.length > 0));
    const family = families(child.pid);
    const processes = family.flatMap(members);
    const keepers = family.map(({ keeper }) => keeper);
    expect(keepers.every(isAlive)).toBe(true); // a worker may be the probe, which is just ending
    child.kill(signal);
    expect(await end).toEqual({ code, stdout: "", stderr: "doublehull: interrupted\n" });
    expect(processes.filter(isAlive)).toEqual([]);
    expect(cgroupsOf(keepers)).toEqual([]);
  });

  test("SIGINT ends a script that is still being read, though nobody writes to its pipe", async () => {
    using dir = folder({});
    const fifo = path.join(dir.path, "script.js");
    expect(spawnSync("mkfifo", [fifo]).status).toBe(0);
    const child = start(["run", fifo]);
    const end = finished(child);
    const writer = await fs.promises.open(fifo, "w"); // settles when the command line has opened it to read
    child.kill("SIGINT");
    expect(await end).toMatchObject({ code: null, stdout: "", stderr: "" });
    expect(child.signalCode).toBe("SIGINT"); // which a shell calls 130
    await writer.close();
  });
});

test("without a kernel hull it runs and warns", async () => {
  const { code, stdout, stderr } = await cli(["run", "-e", "1 + 1", "--hull", "language-only"]);
  expect({ code, stdout }).toEqual({ code: 0, stdout: "2\n" });
  expect(stderr).toMatch(/warning: no kernel hull/);
});

test("the help has examples, limits and the table of exit codes", async () => {
  const { code, stdout } = await cli(["run", "--help"]);
  expect(code).toBe(0);
  for (const part of ["Examples:", "Exit codes:", "wallMs", "--require-cgroup", "--record", "--learn", "6 "])
    expect(stdout).toContain(part);
});

/** The built package with what it needs to run, where any user may read it, as an installation would be. */
function installedTree(): { path: string } & Disposable {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-tree-"));
  fs.chmodSync(dir, 0o755);
  const lock: { packages: Record<string, { dev?: boolean }> } = JSON.parse(
    fs.readFileSync(path.join(root, "package-lock.json"), "utf8"),
  );
  const needed = Object.entries(lock.packages).filter(([where, { dev }]) => where !== "" && dev !== true);
  for (const where of ["dist", "package.json", ...needed.map(([folder]) => folder)]) {
    const from = path.join(root, where);
    if (fs.existsSync(from)) fs.cpSync(from, path.join(dir, where), { recursive: true });
  }
  spawnSync("chmod", ["-R", "a+rX", dir]);
  return { path: dir, [Symbol.dispose]: () => fs.rmSync(dir, { recursive: true }) };
}
