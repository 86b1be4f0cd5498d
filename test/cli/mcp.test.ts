/** `doublehull mcp` as a client meets it: a process, spoken to by the protocol's own client package, or by hand. */
import { spawn, type ChildProcess } from "node:child_process";
import path from "node:path";
import { Client, type ClientOptions } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { afterEach, describe, expect, test } from "vitest";
import { busyWorker, families, isAlive, members, processOf, until, type Process } from "../harness.js";
import { cli, finished, folder, root } from "./command.js";

const program = path.join(root, "dist/server/cli.js");
const closers: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
});

interface Connected {
  client: Client;
  server: Process;
}

async function connect(
  args: readonly string[] = [],
  options: ClientOptions = {},
  env = {},
): Promise<Connected> {
  const client = new Client({ name: "test", version: "1" }, options);
  const transport = new StdioClientTransport({
    command: process.execPath,
    args: [program, "mcp", ...args],
    cwd: root,
    env: { PATH: process.env["PATH"] ?? "", ...env },
  });
  closers.push(() => client.close());
  await client.connect(transport);
  return { client, server: processOf(transport.pid ?? 0) };
}

interface Answer {
  content: { type: string; text: string }[];
  structuredContent?: Record<string, unknown>;
  isError?: boolean;
}

const call = async ({ client }: Connected, args: Record<string, unknown>, options = {}): Promise<Answer> =>
  (await client.callTool({ name: "run_code", arguments: args }, options)) as Answer;

const textOf = ({ content: [first] }: Answer): string => first?.text ?? "";

const ENDLESS = "export default () => { for (;;); }";
const ASKING = `export default async (input, env) => {
  const first = await env.approve.ask("May I?", "because\\nI ask").catch(({ code }) => code);
  return [first, await env.approve.ask("And this?").catch(({ code }) => code)];
}`;

describe.each(["legacy", "auto"] as const)("a client of the revisions that %s negotiation finds", (mode) => {
  const versionNegotiation = { mode };

  test("finds one tool, with the types of the grants and schemas of both sides", async () => {
    const { client } = await connect(["--grant", "kv", "--limit", "wallMs=700"], { versionNegotiation });
    const { tools } = await client.listTools();
    expect(tools.map(({ name }) => name)).toEqual(["run_code"]);
    const [tool] = tools;
    expect(tool?.description).toContain("increment(key: string, by?: number): Promise<number>;");
    expect(tool?.description).toContain("700 ms");
    expect(tool?.inputSchema).toMatchObject({ required: ["code"], additionalProperties: false });
    expect(tool?.outputSchema).toMatchObject({ type: "object", required: ["status"] });
    expect(tool?.annotations).toMatchObject({ readOnlyHint: false, openWorldHint: false });
    const { resources } = await client.listResources();
    expect(resources.map(({ uri }) => uri)).toEqual(["doublehull://env.d.ts"]);
    const { contents } = await client.readResource({ uri: "doublehull://env.d.ts" });
    const types = await cli(["types", "--grant", "kv"]);
    expect(contents).toMatchObject([{ mimeType: "application/typescript", text: types.stdout }]);
  });

  test("runs code, whose store remembers from call to call", async () => {
    const server = await connect(["--grant", "kv"], { versionNegotiation });
    const code = `export default async ({ by }: { by: number }, env: Env) => ({ sum: await env.kv.increment("n", by) })`;
    expect(await call(server, { code, input: { by: 2 } })).toMatchObject({
      isError: false,
      structuredContent: { status: "ok", value: { sum: 2 }, logs: [], usage: { hostCalls: 1 } },
      content: [{ type: "text", text: 'Result:\n{\n  "sum": 2\n}\n' }],
    });
    expect(await call(server, { code, input: { by: 3 } })).toMatchObject({
      structuredContent: { value: { sum: 5 } },
    });
  });

  test("is asked for a person's yes, and only that is one", async () => {
    const answers = [
      { action: "accept" as const, content: { allow: true } },
      { action: "accept" as const, content: { allow: false } },
      { action: "decline" as const },
      { action: "accept" as const, content: { allow: true } },
    ];
    const messages: string[] = [];
    const server = await connect(["--grant", "approve"], {
      versionNegotiation,
      capabilities: { elicitation: {} },
    });
    server.client.setRequestHandler("elicitation/create", ({ params }) => {
      messages.push(params.message);
      return answers.shift() ?? { action: "cancel" };
    });
    const [first, second] = [await call(server, { code: ASKING }), await call(server, { code: ASKING })];
    expect(first.structuredContent).toMatchObject({ status: "ok", value: [true, false] });
    expect(second.structuredContent).toMatchObject({ status: "ok", value: [false, true] });
    expect(messages[0]).toMatch(/by approve\.ask:\n {4}\| May I\?\n {4}\| because\n {4}\| I ask\n/);
    expect(messages.length).toBe(4);
  });

  test("that cannot ask anybody is told that it was to, and the code that the answer is no", async () => {
    const server = await connect(["--grant", "approve"], { versionNegotiation });
    const answer = await call(server, { code: ASKING });
    expect(answer.structuredContent).toMatchObject({ status: "ok", value: ["unavailable", "unavailable"] });
    expect(answer.content[1]?.text).toMatch(/wanted to ask a person.*elicitation.*no/);
  });

  test("hears the log while the code runs as progress, if it asks for that", async () => {
    const server = await connect([], { versionNegotiation });
    const heard: (string | undefined)[] = [];
    const code =
      "export default () => { console.warn('on \\x1b[2J my way'); for (let i = 0; i < 900; i++) console.log(i); }";
    const onprogress = ({ message }: { message?: string | undefined }) => void heard.push(message);
    expect(await call(server, { code }, { onprogress })).toMatchObject({ isError: false });
    expect(heard[0]).toBe("[warn] on \\x1b[2J my way");
    // No more of its 901 lines; and what the answer overtakes in the client, the client drops.
    expect(heard.length).toBeLessThanOrEqual(200);
  });

  test("cancels a call, and its process is gone", async () => {
    const server = await connect(["--limit", "wallMs=60000"], { versionNegotiation });
    const controller = new AbortController();
    const pending = call(server, { code: ENDLESS }, { signal: controller.signal });
    const outcome = expect(pending).rejects.toThrow();
    const worker = await busyWorker(server.server.pid); // it had begun
    controller.abort();
    await outcome;
    await until("the worker is gone", () => !isAlive(worker));
    expect(await call(server, { code: "export default () => 1" })).toMatchObject({ isError: false });
  });
});

describe("the log as messages", () => {
  const code =
    "export default (i, env) => { console.debug('d'); console.warn('w'); return env.events?.emit('step', 1); }";

  test("comes from the level on that was set, and never unasked", async () => {
    const server = await connect(["--grant", "events"]);
    const heard: unknown[] = [];
    server.client.setNotificationHandler("notifications/message", ({ params }) => void heard.push(params));
    await call(server, { code });
    expect(heard).toEqual([]);
    await server.client.setLoggingLevel("info");
    await call(server, { code });
    expect(heard).toEqual([
      { level: "warning", logger: "code", data: "w" },
      { level: "info", logger: "event", data: { name: "step", seq: 1, data: 1 } },
    ]);
  });
});

describe("a hostile program", () => {
  test("that loops is stopped, and the model told in words", async () => {
    const server = await connect(["--limit", "wallMs=300"]);
    const answer = await call(server, { code: ENDLESS });
    expect(answer).toMatchObject({ isError: true, structuredContent: { status: "stopped" } });
    expect(textOf(answer)).toMatch(
      /^The code was stopped \(wall-time\): .*\n.*limit 300 ms.*\n.*loop or a wait without end/,
    );
  });

  test("that floods its log, or poisons keys, gets a bounded answer and a whole server", async () => {
    const server = await connect();
    const flood = await call(server, {
      code: `export default () => { for (let i = 0; i < 50000; i++) console.log("x".repeat(200)); return 1; }`,
    });
    expect(flood).toMatchObject({ structuredContent: { status: "ok", value: 1 } });
    expect(textOf(flood)).toContain("left out here");
    expect(JSON.stringify(flood).length).toBeLessThan(128 * 1024);
    const poison = await call(server, {
      code: `export default () => JSON.parse('{"__proto__": {"admin": true}}')`,
    });
    expect(poison).toMatchObject({ isError: true, structuredContent: { error: { name: "DataCloneError" } } });
    const map = await call(server, {
      code: "export default () => new Map([['__proto__', { admin: true }]])",
    });
    expect(map.structuredContent).toMatchObject({
      value: { $type: "Map", entries: [["__proto__", { admin: true }]] },
    });
    expect(({} as { admin?: true }).admin).toBeUndefined();
  });

  test("in wrong arguments is refused in words", async () => {
    const server = await connect();
    const unknown = await call(server, { code: "export default () => 1", shell: "sh" });
    expect(unknown).toMatchObject({ isError: true, structuredContent: { status: "refused" } });
    expect(textOf(unknown)).toContain('"shell" is no argument; known are code and input');
    expect(textOf(await call(server, {}))).toContain("code is missing");
    await expect(server.client.callTool({ name: "other", arguments: {} })).rejects.toThrow(/other not found/);
  });
});

test("two calls are under way at once", async () => {
  const server = await connect(["--grant", "kv", "--limit", "wallMs=20000"]);
  // Each waits for the other's mark: one after the other neither would end.
  const code = `export default async ({ mine, other }, env) => {
    await env.kv.set(mine, 1);
    while (!(await env.kv.has(other))) await new Promise((done) => setTimeout(done, 20));
    return mine;
  }`;
  const both = await Promise.all([
    call(server, { code, input: { mine: "a", other: "b" } }),
    call(server, { code, input: { mine: "b", other: "a" } }),
  ]);
  expect(both.map(({ structuredContent }) => structuredContent?.["value"])).toEqual(["a", "b"]);
});

test("a policy's file and the engine are taken as run takes them", async () => {
  using dir = folder({
    "p.json": '{ "limits": { "wallMs": 400 }, "grants": { "kv": { "only": ["get"] } } }',
  });
  const server = await connect(["--policy", path.join(dir.path, "p.json")]);
  const answer = await call(server, { code: "export default (i, env) => Object.keys(env.kv)" });
  expect(answer.structuredContent).toMatchObject({ value: ["get"] });
  expect(await cli(["mcp", "--policy", path.join(dir.path, "none.json")])).toMatchObject({
    code: 2,
    stdout: "",
  });
  expect(await cli(["mcp", "--grant", "kvv"])).toMatchObject({ code: 2, stdout: "" });
});

describe("a server spoken to by hand", () => {
  const line = (message: object): string => `${JSON.stringify({ jsonrpc: "2.0", ...message })}\n`;
  const OPENING =
    line({
      id: 1,
      method: "initialize",
      params: { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: { name: "hand", version: "1" } },
    }) + line({ method: "notifications/initialized" });
  const callLine = (id: number, code: string) =>
    line({ id, method: "tools/call", params: { name: "run_code", arguments: { code } } });

  function serve(...args: string[]): ChildProcess & { replies: Map<number, unknown> } {
    const child = spawn(process.execPath, [program, "mcp", "--limit", "wallMs=60000", ...args], {
      cwd: root,
    });
    const replies = new Map<number, unknown>();
    let text = "";
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      const lines = text.split("\n");
      text = lines.pop() ?? "";
      // Nothing but the protocol: any other line is an error here.
      for (const { id, ...reply } of lines.map((one) => JSON.parse(one) as { id?: number })) {
        if (id !== undefined) replies.set(id, reply);
      }
    });
    closers.push(async () => void child.kill("SIGKILL"));
    return Object.assign(child, { replies });
  }

  test("survives what is no JSON-RPC, and answers what comes after it", async () => {
    const server = serve();
    server.stdin?.write(
      '{"garbage\n[]\nnull\n"text"\n{"jsonrpc":"2.0"}\n{"jsonrpc":"1.0","id":7,"method":5}\n\0\xff\n',
    );
    server.stdin?.write(OPENING);
    server.stdin?.write(
      `}{\n${line({ id: 9, method: "no/such" })}${line({ id: 10, method: "tools/call", params: 5 })}`,
    );
    server.stdin?.write(callLine(11, "export default () => 42"));
    await until("it answers", () => server.replies.has(11));
    expect(server.replies.get(11)).toMatchObject({ result: { structuredContent: { value: 42 } } });
    expect(server.replies.get(9)).toMatchObject({ error: { code: -32601 } });
    const end = finished(server);
    server.stdin?.end();
    expect(await end).toMatchObject({ code: 0 });
  });

  test.each([
    ["the end of its input", (server: ChildProcess) => void server.stdin?.end(), 0],
    ["SIGTERM", (server: ChildProcess) => void server.kill("SIGTERM"), 143],
    ["SIGINT", (server: ChildProcess) => void server.kill("SIGINT"), 130],
    [
      "a reader that is gone",
      (server: ChildProcess) => {
        server.stdout?.destroy();
        server.stdin?.write(line({ id: 5, method: "ping" }));
      },
      0,
    ],
  ])("ends with %s in the middle of a run, and leaves nothing", async (_what, leave, code) => {
    const server = serve();
    server.stdin?.write(OPENING + callLine(2, ENDLESS));
    const worker = await busyWorker(server.pid);
    const all = families(server.pid).flatMap(members);
    expect(all.map(({ pid }) => pid)).toContain(worker.pid);
    const end = finished(server);
    leave(server);
    expect((await end).code).toBe(code);
    await until("its processes are gone", () => !all.some(isAlive));
  });
});
