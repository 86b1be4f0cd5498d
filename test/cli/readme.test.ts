import { execFile } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import { callCount } from "#osjail/plan";
import * as hostapi from "#server/hostapi";
import { LIMITS } from "#server/limits";
import { GRANT_TYPES } from "#server/policy-schema";
import { cli, finished, folder, root, start } from "./command.js";

const readme = fs.readFileSync(path.join(root, "README.md"), "utf8");
const blocks = (language: string, text = readme): string[] =>
  [...text.matchAll(/^```(\w+)\n([^]*?)^```$/gm)]
    .filter((found) => found[1] === language)
    .map((found) => found[2] ?? "");
const capabilities = /^## Capabilities\n[^]*?(?=^## )/m.exec(readme)?.[0] ?? "";

/** Runs a program as it stands; resolves to what it prints. */
async function runProgram(code: string): Promise<string> {
  const run = promisify(execFile)(process.execPath, ["--input-type=module", "-e", code], { cwd: root });
  return (await run).stdout;
}

describe("the README", () => {
  test("its library code does what it says", async () => {
    const [code = ""] = blocks("js");
    // Node 20 and 22 have no `await using`: the README says what to write there.
    const older = `${code.replace("await using sandbox", "const sandbox")}\nawait sandbox.close();`;
    expect(older).not.toBe(code);
    expect(await runProgram(older)).toMatch(/^\{ hello: 'Ada', at: \d{4}-\d\d-\d\dT.*\}\n$/);
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
    expect(blocks("sh").slice(0, 2)).toEqual([
      "npm ci && npx doublehull run samples/hello.ts\n",
      "npm ci && npm test\n",
    ]);
    expect(scripts.scripts).toHaveProperty("test");
    expect(fs.existsSync(path.join(root, "samples/hello.ts"))).toBe(true);
  });
});

describe("the README's Capabilities", () => {
  const [granting = "", own = "", ...others] = blocks("js", capabilities);

  test("has two programs, and with that of models these are all that is left to run", () => {
    expect(others).toEqual([]);
    expect(blocks("js").length).toBe(4);
  });

  test("its grants do what it says: the value goes out, and the placeholder comes back", async () => {
    const printed = await runProgram(granting);
    expect(printed).toMatch(/\{\s+seen: 1,\s+answer: 'you sent Bearer secret-[0-9a-f]{32}'\s+\}\n$/);
    for (const line of ["allowed kv increment", "done kv increment", "allowed http read", "done http read"]) {
      expect(printed.split("\n")).toContain(line);
    }
    // What comes back says nothing of what went out: a length does, and http without the secret is the control.
    const measured = granting.replace(
      "${headers.authorization}",
      "${headers.authorization.length} characters",
    );
    const without = measured.replace(", secrets: [token]", "");
    expect(new Set([granting, measured, without]).size).toBe(3);
    expect(await runProgram(measured)).toContain(`sent ${"Bearer correct-horse-battery".length} characters`);
    expect(await runProgram(without)).toContain(`sent ${"Bearer secret-".length + 32} characters`);
  });

  test("its own capability does what it says", async () => {
    expect(await runProgram(own)).toBe("{ celsius: 4 }\n");
  });

  test("names what the package exports, and all that can be granted", () => {
    const table = capabilities.slice(capabilities.indexOf("| built in |"));
    for (const name of GRANT_TYPES) {
      expect(hostapi).toHaveProperty(name);
      expect(table).toContain(`\`${name}(`);
    }
    for (const name of ["sqliteStore", "withApproval", "callback", "hostFunction", "caretaker"]) {
      expect(hostapi).toHaveProperty(name);
      expect(capabilities).toContain(`${name}(`);
    }
    const weak = hostapi.kv().prefix("a/");
    for (const name of ["readOnly", "only", "budget", "rate", "expires", "where"] as const) {
      expect(weak[name]).toBeTypeOf("function");
      expect(capabilities).toContain(`\`${name}(`);
    }
  });

  test("its policy is one, with the grants that it shows", async () => {
    const [policy = ""] = blocks("json", capabilities);
    using dir = folder({ "policy.json": policy });
    const { code, stdout } = await cli(["policy", "check", path.join(dir.path, "policy.json"), "--json"]);
    expect(code).toBe(0);
    const { grants } = JSON.parse(stdout) as { grants: { name: string }[] };
    expect(grants.map(({ name }) => name)).toEqual(["kv", "data", "http", "token"]);
  });
});

describe("the README's For language models", () => {
  const models = /^## For language models\n[^]*?(?=^## )/m.exec(readme)?.[0] ?? "";

  test("its program does what it says", async () => {
    const [program = ""] = blocks("js", models);
    expect(await runProgram(program)).toBe("ok 2\nResult:\n2\n\n");
  });

  test("its configuration starts a server that answers, and ends with its input", async () => {
    const { mcpServers } = JSON.parse(blocks("json", models)[0] ?? "") as {
      mcpServers: { sandbox: { command: string; args: string[] } };
    };
    const { command, args } = mcpServers.sandbox;
    expect([command, args[0]]).toEqual(["npx", "doublehull"]);
    const clientInfo = { name: "test", version: "1" };
    const params = { protocolVersion: "2025-06-18", capabilities: {}, clientInfo };
    const server = start(args.slice(1), { keepOpen: true });
    server.stdin?.write(`${JSON.stringify({ jsonrpc: "2.0", id: 1, method: "initialize", params })}\n`);
    server.stdout?.once("data", () => server.stdin?.end());
    const { code, stdout } = await finished(server);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ id: 1, result: { serverInfo: { name: "doublehull" } } });
  });
});

describe("the command lines of the README's Capabilities", () => {
  const [policy = ""] = blocks("json", capabilities);
  const lines = blocks("sh", capabilities)
    .flatMap((block) => block.trim().split("\n"))
    .map((line) => line.replace(/ +#.*$/, ""));
  /** These ask a person or record; their own tests run them. */
  const elsewhere = /--learn|--record|\breplay\b/;

  interface Expected {
    /** The line's first words. */
    start: string;
    code?: number;
    stdout?: RegExp;
    /** What it writes, where its output goes to a file. */
    written?: { file: string; text: RegExp };
  }
  const expected: Expected[] = [
    { start: "run job.ts --grant kv", stdout: /^\{ kv: 1, names: \[ 'a.txt' \] \}\n$/ },
    { start: "run job.ts --policy", stdout: /^\{ kv: 1, names: \[ 'a.txt' \] \}\n$/ },
    { start: "policy check", stdout: /^policy\.json is a policy\. It grants:\n/ },
    { start: "policy diff", code: 1, stdout: /^policy\.json additionally allows:\n[^]*grants\.http/ },
    { start: "policy schema", written: { file: "schema.json", text: /"title": "doublehull policy"/ } },
    { start: "explain --policy", stdout: /through the capability broker:\n[^]*API_TOKEN/ },
    {
      start: "types --policy",
      written: { file: "env.d.ts", text: /readonly data: \{[^]*readText\(path: string\)/ },
    },
  ];

  test("are all run here, but for those whose tests are elsewhere", () => {
    const here = lines.filter((line) => !elsewhere.test(line));
    expect(here.length).toBe(expected.length);
    for (const [i, { start }] of expected.entries()) expect(here[i]).toContain(`npx doublehull ${start}`);
  });

  test.each(expected)("$start", async ({ start, code = 0, stdout = /^$/, written }) => {
    const line = lines.find((one) => one.startsWith(`npx doublehull ${start}`)) ?? "";
    using dir = folder({
      "policy.json": policy,
      "old.json": '{ "grants": { "kv": true } }',
      "job.ts": `export default async (input: unknown, env: any): Promise<unknown> => ({
        kv: await env.kv.increment("runs"),
        names: (await (env.data ?? env.files).list()).map(({ name }: { name: string }) => name),
      });`,
    });
    fs.mkdirSync(path.join(dir.path, "data"));
    fs.writeFileSync(path.join(dir.path, "data/a.txt"), "hello");
    // The line as it stands, in a shell whose npx is the built tree.
    const shell = `cd "$1" && npx() { shift; "$NODE" "$PROGRAM" "$@"; } && ${line}`;
    const ran = await cli(["-c", shell, "sh", dir.path], {
      command: ["/bin/sh"],
      env: {
        NODE: process.execPath,
        PROGRAM: path.join(root, "dist/server/cli.js"),
        API_TOKEN: "correct-horse-battery",
      },
    });
    expect(ran).toMatchObject({ code, stderr: "" });
    expect(ran.stdout).toMatch(stdout);
    if (written !== undefined) {
      expect(fs.readFileSync(path.join(dir.path, written.file), "utf8")).toMatch(written.text);
    }
  });
});

describe("the README's service", () => {
  const whole = /^## The service\n[^]*?(?=^## )/m.exec(readme)?.[0] ?? "";
  const jobs = /^### Jobs\n[^]*/m.exec(whole)?.[0] ?? "";
  const service = whole.replace(jobs, "");

  /** One that serves, and how to do with it what the README does; ends with `end`, which resolves to the exit code. */
  async function begin() {
    const dir = folder({});
    const anywhere = ["--listen", "0", "--admin-listen", "0"];
    const server = start(["serve", "--data", path.join(dir.path, "data"), ...anywhere]);
    const ended = finished(server);
    const greeting = await new Promise<string>((resolve) => {
      let text = "";
      server.stdout?.on("data", (chunk: string) => {
        text += chunk;
        if (text.includes("curl ") && text.endsWith("\n")) resolve(text);
      });
    });
    const found = (what: RegExp): string => what.exec(greeting)?.[1] ?? "";
    const env = {
      PATH: process.env["PATH"],
      KEY: found(/API key +(\S+)/),
      ADMIN_KEY: found(/administrator +(dh_\S+)/),
    };
    const [address, admin] = [found(/runs +(http:\S+?)\/v1/), found(/administration (http:\S+?)\/docs/)];
    let closing: Promise<number | null> | undefined;
    const end = () =>
      (closing ??= (async () => {
        server.kill("SIGTERM");
        const { code } = await ended;
        dir[Symbol.dispose]();
        return code;
      })());
    const here = (text: string) =>
      text.replaceAll("http://127.0.0.1:7070", address).replaceAll("http://127.0.0.1:7071", admin);
    return {
      address,
      admin,
      env,
      /** What the lines of a shell print. */
      async shell(text: string, more: Record<string, string> = {}): Promise<string> {
        return (await promisify(execFile)("bash", ["-euc", here(text)], { env: { ...env, ...more } })).stdout;
      },
      async program(code: string, more: Record<string, string> = {}): Promise<string> {
        const args = ["--input-type=module", "-e", here(code)];
        return (await promisify(execFile)(process.execPath, args, { env: { ...env, ...more }, cwd: root }))
          .stdout;
      },
      end,
      [Symbol.asyncDispose]: async () => void (await end()),
    };
  }
  const parsed = (text: string) =>
    text.replaceAll("}{", "}\n{").trim().split("\n").map((line) => JSON.parse(line) as Record<string, never>); // prettier-ignore

  test("its requests do what it says", async () => {
    const [serving = "", ...requests] = blocks("sh", service);
    expect(serving).toBe("npx doublehull serve\n");
    expect(requests.length).toBe(3);
    await using it = await begin();
    expect(parsed(await it.shell(requests.join("echo\n")))).toMatchObject([
      { outcome: { status: "ok", value: 1 } },
      { name: "greet", version: 1 },
      { outcome: { status: "ok", value: "hello Ada" } },
      { id: "acme" },
      { key: expect.stringMatching(/^dh_/) },
    ]);
    const [program = "", ...others] = blocks("ts", service);
    expect(others).toEqual([]);
    expect(await it.program(program)).toBe("hello Ada\nworking\nok\n");
    expect(await it.end()).toBe(0);
  });

  test("its jobs do what it says", async () => {
    const [submit = "", look = "", many = "", callback = "", ...others] = blocks("sh", jobs);
    expect(others).toEqual([]);
    await using it = await begin();
    await it.shell(blocks("sh", service)[2] ?? ""); // stores the script that jobs name

    const first = parsed(await it.shell(submit));
    expect(first).toMatchObject([{ state: "queued", attempt: 0, attempts: 3 }]);
    expect(parsed(await it.shell(submit))).toEqual(first); // once, for its key
    const JOB = String(first[0]?.["id"]);
    const [wait = "", events = "", cancel = "", ...none] = look.trim().split("\n");
    expect(none).toEqual([]);
    const done = { id: JOB, state: "done", outcome: { status: "ok", value: 42 } };
    expect(parsed(await it.shell(wait, { JOB }))).toMatchObject([done]);
    expect(await it.shell(events, { JOB })).toMatch(
      /event: attempt\n[^]*event: log\ndata: .*"at"[^]*event: job\n/,
    );
    expect(parsed(await it.shell(cancel, { JOB }))).toMatchObject([done]);

    const [batch, schedule] = parsed(await it.shell(many));
    expect(batch).toMatchObject({ jobs: [expect.any(String), expect.any(String)] });
    expect(schedule).toMatchObject({ name: "mornings", lastJob: null, nextMs: expect.any(Number) });

    const got = await received(async (url) => {
      // Where the README has an address of the public web, a receiver on this machine, which an administrator lets be called.
      const tenant = `${it.admin}/admin/v1/tenants/default`;
      const headers = { authorization: `Bearer ${it.env.ADMIN_KEY}`, "content-type": "application/json" };
      const callbacks = { allow: [url], open: ["127.0.0.1/32"] };
      expect((await fetch(tenant, { method: "PUT", headers, body: JSON.stringify({ callbacks }) })).status).toBe(200); // prettier-ignore
      const told = callback.replace("https://app.example.com/hook", url);
      expect(told).not.toBe(callback);
      return (await it.shell(`${told}\necho; echo "$HOOK"`)).trim().split("\n").at(-1) ?? "";
    });
    const [program = "", ...more] = blocks("ts", jobs);
    expect(more).toEqual([]);
    const before = `import { Client, verifyCallback } from "doublehull/client";
      const client = new Client({ baseUrl: "http://127.0.0.1:7070", apiKey: process.env["KEY"] ?? "" });
      const { headers, body } = JSON.parse(process.env["RECEIVED"]);
      const request = { headers };`;
    const env = { HOOK: got.value, RECEIVED: JSON.stringify({ headers: got.headers, body: got.body }) };
    expect(await it.program(before + program, env)).toMatch(
      /^done job\.done \{\s+status: 'ok',\s+value: 'hello Ada',/,
    );
    const forged = { ...env, HOOK: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" };
    await expect(it.program(before + program, forged)).rejects.toThrow("CallbackError");
    expect(await it.end()).toBe(0);
  });
});

/** What a server on this machine is sent, once `begin` has had it sent there; and what that resolves to. */
async function received(begin: (url: string) => Promise<string>) {
  const server = http.createServer();
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  const request = new Promise<{ headers: http.IncomingHttpHeaders; body: string }>((resolve) => {
    server.once("request", (request, response) => {
      let body = "";
      request.setEncoding("utf8").on("data", (chunk: string) => (body += chunk));
      request.on("end", () => {
        response.end();
        resolve({ headers: request.headers, body });
      });
    });
  });
  try {
    const value = await begin(`http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`);
    return { value, ...(await request) };
  } finally {
    server.closeAllConnections();
    server.close();
  }
}
