import fs from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { policyJsonSchema } from "#server/policy-schema";
import { cli, folder, root } from "./command.js";

/** A session of its own: no terminal to ask at, whoever runs the tests. */
const alone = {
  command: ["setsid", "--wait", process.execPath, path.join(root, "dist/server/cli.js")],
} as const;

const SCRIPT = `export default async (input, env) => {
  const code = async (act) => { try { return await act(); } catch (error) { return error.code; } };
  return {
    names: Object.keys(env).sort(),
    kv: await code(async () => { await env.kv.set("a", [1]); return env.kv.get("a"); }),
    read: await code(() => env.files.readText("a.txt")),
    above: await code(() => env.files.readText("../secret.txt")),
    link: await code(() => env.files.readText("link.txt")),
    write: await code(() => env.files.write?.("b.txt", "x") ?? "no such method"),
  };
}`;

function place(policy: unknown = {}) {
  const dir = folder({
    "script.js": SCRIPT,
    "policy.json": JSON.stringify(policy),
    "secret.txt": "the secret",
  });
  fs.mkdirSync(path.join(dir.path, "data"));
  fs.writeFileSync(path.join(dir.path, "data/a.txt"), "hello");
  fs.symlinkSync("../secret.txt", path.join(dir.path, "data/link.txt"));
  return Object.assign(dir, { file: (name: string) => path.join(dir.path, name) });
}

describe("run", () => {
  const expected = {
    names: ["files", "kv"],
    kv: [1],
    read: "hello",
    above: "bad-argument",
    link: "denied",
    write: "no such method",
  };

  test("with a policy may do what it says, with paths from the policy's directory, and no more", async () => {
    using dir = place({ grants: { kv: true, files: { root: "data" } } });
    const ran = await cli(["run", "--json", dir.file("script.js"), "--policy", dir.file("policy.json")]);
    expect(ran).toMatchObject({ code: 0, stderr: "" });
    const outcome: { value: unknown; ledger: { capability: string; method: string }[] } = JSON.parse(
      ran.stdout,
    );
    expect(outcome.value).toEqual(expected);
    expect(outcome.ledger.map(({ capability, method }) => `${capability}.${method}`)).toContain(
      "files.readText",
    );
  });

  test("with --grant may do the same", async () => {
    using dir = place();
    const grants = ["--grant", "kv", "--grant", `files=${dir.file("data")}`];
    const { code, stdout } = await cli(["run", "--json", dir.file("script.js"), ...grants]);
    expect({ code, value: (JSON.parse(stdout) as { value: unknown }).value }).toEqual({
      code: 0,
      value: expected,
    });
  });

  test("with both has both; with neither has nothing", async () => {
    using dir = place({ grants: { kv: true } });
    fs.writeFileSync(dir.file("names.js"), "export default (input, env) => Object.keys(env).sort().join()");
    const both = ["--policy", dir.file("policy.json"), "--grant", `files=${dir.file("data")}`];
    expect((await cli(["run", dir.file("names.js"), ...both])).stdout).toBe("files,kv\n");
    expect((await cli(["run", dir.file("names.js")])).stdout).toBe("\n");
  });

  test("takes the policy's limits, and those on the line before them", async () => {
    using dir = place({ limits: { wallMs: 150 } });
    const endless = ["run", "--json", "-e", "for (;;);", "--policy", dir.file("policy.json")];
    const limitOf = async (args: string[]) =>
      (JSON.parse((await cli(args)).stdout) as { stop: { limit: number } }).stop.limit;
    expect(await limitOf(endless)).toBe(150);
    expect(await limitOf([...endless, "--limit", "wallMs=120"])).toBe(120);
  });

  test("a store in a file is there in the next run", async () => {
    using dir = place();
    fs.writeFileSync(dir.file("count.js"), "export default (input, env) => env.kv.increment('n')");
    const again = ["run", dir.file("count.js"), "--grant", `kv=sqlite:${dir.file("a.db")}`];
    const first = await cli(again);
    if (first.code === 4) return expect(first.stderr).toMatch(/better-sqlite3/); // where the driver is not installed
    expect([first.stdout, (await cli(again)).stdout]).toEqual(["1\n", "2\n"]);
  });

  test("events are told as they come; a question without a terminal is a no", async () => {
    using dir = place();
    fs.writeFileSync(
      dir.file("ask.js"),
      String.raw`export default async (input, env) => {
        await env.events.emit("step", "a\x1b[2J\ndoublehull: fine");
        try { return await env.approve.ask("may I?"); } catch (error) { return error.code; }
      }`,
    );
    const args = ["run", dir.file("ask.js"), "--grant", "events", "--grant", "approve"];
    expect(await cli(args, alone)).toEqual({
      code: 0,
      stdout: "unavailable\n",
      stderr: "[event step] a\\x1b[2J\n             doublehull: fine\n",
    });
    const json = await cli([...args, "--json"], alone);
    expect(JSON.parse(json.stderr)).toEqual({ event: "step", seq: 1, data: "a\x1b[2J\ndoublehull: fine" });
    expect(JSON.parse(json.stdout)).toMatchObject({ status: "ok", value: "unavailable" });
  });

  test.each<[string, string[], RegExp]>([
    ["a grant that does not exist", ["--grant", "kvv"], /grants\.kvv: .*did you mean kv/],
    ["a grant that is given twice", ["--grant", "kv", "--grant", "kv"], /--grant kv: .*twice/],
    ["a rule that cannot match", ["--grant", "http=https://a.example/x/../y"], /grants\.http\.allow\[0\]: .*never match/],
    ["a directory that is not there", ["--grant", "files=./no-such-directory"], /grants\.files\.root: .*no-such-directory/],
    ["a secret that is missing", ["--grant", "http=https://a.example/*", "--grant", "t=secret:NO_SUCH@a.example"], /grants\.t\.env: .*NO_SUCH/],
    ["a policy that is not there", ["--policy", "no-such-policy.json"], /no-such-policy\.json: there is no such file/],
  ])("%s is refused before the script starts", async (_what, grants, message) => {
    const { code, stdout, stderr } = await cli(["run", "-e", "console.log('it ran')", ...grants]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toMatch(message);
    expect(stderr).not.toContain("it ran");
  }); // prettier-ignore
});

describe("policy check", () => {
  test("says what a policy grants, and needs nothing of this host for it", async () => {
    using dir = place({
      grants: {
        files: { root: "not-here" },
        http: { allow: ["https://a.example/*"] },
        t: { type: "secret", env: "NOT_SET", hosts: ["a.example"] },
      },
    });
    const { code, stdout } = await cli(["policy", "check", dir.file("policy.json")]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/reads files below .*not-here[\s\S]*https:\/\/a\.example\/\*[\s\S]*NOT_SET/);
    const json = await cli(["policy", "check", dir.file("policy.json"), "--json"]);
    expect(JSON.parse(json.stdout)).toMatchObject({ ok: true, problems: [], grants: [{ name: "files" }, { name: "http" }, { name: "t" }] }); // prettier-ignore
  });

  test("says everything that is wrong, with its field; exit code 2", async () => {
    using dir = place({ grants: { kv: { namespce: "a", only: ["get"] }, files: {} }, limit: {} });
    const { code, stdout, stderr } = await cli(["policy", "check", dir.file("policy.json")]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    for (const field of ["limit:", "grants.kv.namespce:", "grants.files.root:"])
      expect(stderr).toContain(field);
    const json = await cli(["policy", "check", dir.file("policy.json"), "--json"]);
    expect(json.code).toBe(2);
    expect(JSON.parse(json.stdout)).toMatchObject({ ok: false, problems: [{ field: "limit" }, { field: "grants.kv.namespce" }, { field: "grants.files.root" }] }); // prettier-ignore
  });

  test("knows the methods that there are", async () => {
    using dir = place({ grants: { kv: { only: ["gett"] } } });
    expect((await cli(["policy", "check", dir.file("policy.json")])).stderr).toMatch(
      /grants\.kv\.only: .*did you mean get/,
    );
  });

  test("shows what a policy's text holds and does not obey it", async () => {
    using dir = place({ grants: { kv: { namespace: "a\x1b[2Jb", prefix: "\u202e" } } });
    const { stdout, stderr } = await cli(["policy", "check", dir.file("policy.json")]);
    expect(stdout + stderr).not.toMatch(/[\x1b\u202e]/);
  });
});

describe("policy diff", () => {
  test("exit code 0 where nothing is added, 1 with each thing that is", async () => {
    using dir = folder({
      "a.json": JSON.stringify({ grants: { http: { allow: ["https://a.example/v1/*"] } } }),
      "b.json": JSON.stringify({
        limits: { wallMs: 2000 },
        grants: { http: { allow: ["https://a.example/*"] }, kv: true },
      }),
    });
    const [a, b] = ["a.json", "b.json"].map((name) => path.join(dir.path, name)) as [string, string];
    const same = await cli(["policy", "diff", b, a]);
    expect(same).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("allows nothing that") as unknown,
    });
    const more = await cli(["policy", "diff", a, b]);
    expect(more.code).toBe(1);
    for (const part of ["limits.wallMs", "grants.http.allow[0]", "grants.kv"])
      expect(more.stdout).toContain(part);
    const json = await cli(["policy", "diff", a, b, "--json"]);
    expect((JSON.parse(json.stdout) as { additions: { field: string }[] }).additions.map(({ field }) => field)).toEqual(["limits.wallMs", "limits.cpuMs", "grants.http.allow[0]", "grants.kv"]); // prettier-ignore
  });

  test("a directory inside another is no addition, but one that a link leads to is", async () => {
    using dir = folder({
      "a.json": JSON.stringify({ grants: { files: { root: "data" } } }),
      "in.json": JSON.stringify({ grants: { files: { root: "data/in" } } }),
      "out.json": JSON.stringify({ grants: { files: { root: "data/out" } } }),
    });
    const file = (name: string) => path.join(dir.path, name);
    fs.mkdirSync(file("data/in"), { recursive: true });
    fs.symlinkSync("/etc", file("data/out"));
    expect((await cli(["policy", "diff", file("a.json"), file("in.json")])).code).toBe(0);
    expect((await cli(["policy", "diff", file("a.json"), file("out.json")])).code).toBe(1);
  });
});

test("policy schema prints the schema that the parser is made from", async () => {
  const { code, stdout } = await cli(["policy", "schema"]);
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toEqual(JSON.parse(JSON.stringify(policyJsonSchema())));
});

describe("types", () => {
  test("writes the declarations of the env that the grants make, and opens nothing", async () => {
    const args = [
      "types",
      "--grant",
      "kv",
      "--grant",
      "out=files:./no-such-directory:rw",
      "--grant",
      "timers=0",
    ];
    const { code, stdout, stderr } = await cli(args);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(
      /export interface Env \{[\s\S]*readonly kv: \{[\s\S]*set\(key: string, value: unknown/,
    );
    expect(stdout).toMatch(/readonly out: \{[\s\S]*write\(path: string/);
    expect(stdout).toContain("no timers");
    expect(stdout).not.toContain("fetch");
  });

  test("and those of a policy", async () => {
    using dir = place({ grants: { kv: { readOnly: true } } });
    const { stdout } = await cli(["types", "--policy", dir.file("policy.json")]);
    expect(stdout).toContain("get(key: string)");
    expect(stdout).not.toContain("set(key");
  });
});

test("explain says what a policy grants, and that without one nothing is granted", async () => {
  using dir = place({ limits: { wallMs: 77 }, grants: { files: { root: "data" } } });
  const { code, stdout } = await cli(["explain", "--policy", dir.file("policy.json"), "--grant", "kv"]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/wallMs +77[\s\S]*through the capability broker:\n {2}files: reads files below/);
  expect(stdout).toContain("kv: a key-value store");
  expect((await cli(["explain"])).stdout).toContain("reaches nothing outside its process");
});
