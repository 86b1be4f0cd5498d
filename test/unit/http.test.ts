/** The http capability against servers on loopback that answer as they should, and as they should not. */
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import type { TLSSocket } from "node:tls";
import zlib from "node:zlib";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type Capability, capability, caretaker, method } from "#hostapi/capability";
import { http as httpCapability, type HttpAnswer, type HttpOptions, narrowHttp } from "#hostapi/http";
import { secret } from "#hostapi/secret";
import { callOn, type FakeRun, fakeRun, type Told } from "../capability.js";
import { cert, key } from "../certificate.js";

type Handler = (request: http.IncomingMessage, response: http.ServerResponse, body: Buffer) => void;
interface Seen {
  method: string;
  url: string;
  headers: http.IncomingHttpHeaders;
  rawHeaders: string[];
  body: string;
  port: number;
}
interface Server {
  port: number;
  /** "http://127.0.0.1:1234" */
  origin: string;
  seen: Seen[];
  /** What it answers; back to an echo of nothing after each test. */
  handle: Handler;
  server: http.Server;
}

const servers: Server[] = [];
async function serve(
  create: (listener: http.RequestListener) => http.Server,
  scheme = "http",
): Promise<Server> {
  const seen: Seen[] = [];
  const server = create((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const body = Buffer.concat(chunks);
      const { method = "", url = "", headers, rawHeaders } = request;
      const port = request.socket.remotePort ?? 0;
      seen.push({ method, url, headers, rawHeaders, body: body.toString("latin1"), port });
      one.handle(request, response, body);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  const one: Server = { port, origin: `${scheme}://127.0.0.1:${port}`, seen, handle: hello, server };
  servers.push(one);
  return one;
}
const hello: Handler = (_request, response) => response.end("hello");

let main: Server;
let other: Server;
let tls: Server;
let run: FakeRun;
let told: Told;

beforeAll(async () => {
  main = await serve((listener) => http.createServer(listener));
  other = await serve((listener) => http.createServer(listener));
  tls = await serve((listener) => https.createServer({ key, cert }, listener), "https");
});
beforeEach(() => {
  run = fakeRun();
  told = { notes: [], charged: 0 };
});
const made: Capability[] = [];
afterEach(() => {
  for (const capability of made.splice(0)) capability.close(run);
  for (const one of servers) {
    one.handle = hello;
    one.seen.length = 0;
  }
});
afterAll(async () => {
  for (const { server } of servers) {
    server.closeAllConnections();
    server.close();
    await once(server, "close");
  }
});

const open = ["127.0.0.1/32"];
const names = (hostname: string) =>
  hostname.endsWith(".test")
    ? Promise.resolve([{ address: "127.0.0.1", family: 4 }])
    : Promise.reject(new Error("no such name"));

function make(options: Partial<HttpOptions> = {}): Capability {
  const capability = httpCapability({
    allow: [`${main.origin}/*`],
    open,
    lookup: names,
    ca: cert,
    timeoutMs: 10_000,
    ...options,
  });
  made.push(capability);
  return capability;
}
const ask = (capability: Capability, wish: object, method = "request", maxAnswerBytes = 1 << 24) =>
  callOn(capability, method, [wish], { run, told, maxAnswerBytes }) as Promise<HttpAnswer>;
const text = ({ body }: HttpAnswer) => Buffer.from(body).toString("latin1");

/** The refusal, after a check that nothing of the host stands in its words. */
async function refusal(promise: Promise<unknown>): Promise<{ code: string; message: string }> {
  const error = await promise.then(
    (value) => Promise.reject(new Error(`was answered: ${JSON.stringify(value)}`)),
    (error: unknown) => error as { name: string; code: string; message: string },
  );
  expect(error).toMatchObject({ name: "CapabilityError" });
  expect(error.message).not.toMatch(/\d+\.\d+\.\d+|::|E[A-Z]{4,}|UND_|\/tmp|node_modules|127|undici|socket/);
  return error as { code: string; message: string };
}
const codeOf = async (promise: Promise<unknown>) => (await refusal(promise)).code;
const noted = () => Object.assign({}, ...told.notes) as Record<string, unknown>;

describe("a request", () => {
  test("is made as asked, and its answer given in full", async () => {
    main.handle = (_request, response) => {
      response.writeHead(
        201,
        "Made It",
        [
          ["X-A", "1"],
          ["Set-Cookie", "a=1"],
          ["set-cookie", "b=2"],
        ].flat(),
      );
      response.end(Buffer.from([0, 1, 255]));
    };
    const answer = await ask(make(), {
      url: `${main.origin}/path?q=1#part`,
      method: "POST",
      headers: [
        ["X-Mine", "yes"],
        ["x-mine", "twice"],
      ],
      body: new Uint8Array([1, 2, 255]),
    });
    expect(answer).toMatchObject({
      url: `${main.origin}/path?q=1`,
      status: 201,
      statusText: "Made It",
      redirected: false,
    });
    expect(answer.headers.filter(([name]) => /^(?:x-|set-)/.test(name))).toEqual([["x-a", "1"], ["set-cookie", "a=1"], ["set-cookie", "b=2"]]); // prettier-ignore
    expect(answer.body).toStrictEqual(new Uint8Array([0, 1, 255]));
    const [seen] = main.seen;
    expect(seen).toMatchObject({ method: "POST", url: "/path?q=1", body: "\x01\x02\xff" });
    expect(seen.headers).toMatchObject({
      host: `127.0.0.1:${main.port}`,
      "content-length": "3",
      "x-mine": "yes, twice",
    });
    expect(seen.headers["user-agent"]).toBe("doublehull");
  });

  test("is told to the audit without its query, and its bytes are charged both ways", async () => {
    await ask(make(), { url: `${main.origin}/path?token=1`, method: "PUT", body: new Uint8Array(10) });
    expect(noted()).toEqual({ method: "PUT", url: `${main.origin}/path`, status: 200, redirects: 0 });
    expect(told.charged).toBe(10 + "hello".length);
  });

  test("keeps no cookie and asks no cache", async () => {
    main.handle = (_request, response) =>
      response.writeHead(200, { "set-cookie": "a=1", "cache-control": "max-age=3600", etag: '"1"' }).end("x");
    const capability = make();
    await ask(capability, { url: main.origin });
    await ask(capability, { url: main.origin });
    expect(main.seen).toHaveLength(2);
    expect(main.seen[1].headers).not.toHaveProperty("cookie");
    expect(main.seen[1].headers).not.toHaveProperty("if-none-match");
  });

  test("goes through no proxy that the environment names", async () => {
    const before = { ...process.env };
    for (const name of ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
      process.env[name] = other.origin;
    process.env.NODE_USE_ENV_PROXY = "1";
    try {
      expect(text(await ask(make(), { url: main.origin }))).toBe("hello");
      expect(other.seen).toHaveLength(0);
    } finally {
      process.env = before;
    }
  });

  test("by read is GET or HEAD, and read-only leaves nothing else", async () => {
    const reading = make().readOnly();
    expect([...reading.methods.keys()]).toEqual(["read"]);
    expect(text(await ask(reading, { url: main.origin }, "read"))).toBe("hello");
    expect(await ask(reading, { url: main.origin, method: "HEAD" }, "read")).toMatchObject({
      status: 200,
      body: new Uint8Array(),
    });
    expect(main.seen.map(({ method }) => method)).toEqual(["GET", "HEAD"]);
    expect(await codeOf(ask(reading, { url: main.origin, method: "POST" }, "read"))).toBe("bad-argument");
    expect(await codeOf(ask(reading, { url: main.origin, body: new Uint8Array(1) }, "read"))).toBe(
      "bad-argument",
    );
    expect(await codeOf(ask(reading, { url: main.origin }))).toBe("denied");
    expect(main.seen).toHaveLength(2);
  });

  test.each<[what: string, wish: unknown]>([
    ["nothing", undefined],
    ["a text", "http://127.0.0.1/"],
    ["no URL", {}],
    ["a URL that is a number", { url: 7 }],
    ["a URL without end", { url: `http://x.test/${"a".repeat(40_000)}` }],
    ["something unknown", { url: "http://x.test/", dispatcher: {} }],
    ["headers that are no list", { url: "http://x.test/", headers: { a: "b" } }],
    ["a header of three", { url: "http://x.test/", headers: [["a", "b", "c"]] }],
    ["a header that is a number", { url: "http://x.test/", headers: [["a", 7]] }],
    ["300 headers", { url: "http://x.test/", headers: Array.from({ length: 300 }, () => ["a", "b"]) }],
    ["a body that is a text", { url: "http://x.test/", method: "POST", body: "text" }],
    ["a body over the limit", { url: "http://x.test/", method: "POST", body: new Uint8Array((1 << 20) + 1) }],
    ["another redirect", { url: "http://x.test/", redirect: "maybe" }],
    ["a prototype", JSON.parse('{"url":"http://x.test/","__proto__":{"method":"POST"}}')],
  ])("with %s is refused before anything is done", async (_what, wish) => {
    expect(await codeOf(ask(make(), wish as object))).toBe("bad-argument");
  });

  test.each<[what: string, wish: object]>([
    ["a line end in a header", { headers: [["x-a", "1\r\nx-b: 2"]] }],
    ["a line end in a header's name", { headers: [["x-a: 1\r\nx-b", "2"]] }],
    ["a length of its own", { method: "POST", headers: [["content-length", "5"]], body: new Uint8Array(9) }],
    [
      "a coding of its own",
      { method: "POST", headers: [["transfer-encoding", "chunked"]], body: new Uint8Array(9) },
    ],
    ["another host", { headers: [["host", "evil.test"]] }],
    ["an upgrade", { headers: [["connection", "upgrade"]] }],
    ["a second request in its method", { method: "GET / HTTP/1.1\r\nhost: x\r\n\r\nGET" }],
  ])("with %s does not reach the server", async (_what, wish) => {
    expect(await codeOf(ask(make(), { url: main.origin, ...wish }))).toBe("bad-argument");
    expect(main.seen).toHaveLength(0);
    await ask(make(), { url: main.origin, headers: [["x-a", "1"]] });
    expect(main.seen).toHaveLength(1);
  });
});

describe("where it may go", () => {
  test("a name is resolved once for each hop, and connected to at the address that was checked", async () => {
    const asked: string[] = [];
    const lookup = (hostname: string) => {
      asked.push(hostname);
      return names(hostname);
    };
    const capability = make({ allow: [`http://name.test:${main.port}/*`], lookup });
    expect(text(await ask(capability, { url: `http://name.test:${main.port}/` }))).toBe("hello");
    expect(asked).toEqual(["name.test"]);
    expect(main.seen[0].headers.host).toBe(`name.test:${main.port}`);
  });

  test("a name that turns to a private address is refused from then on, open connection or not", async () => {
    const answers = ["127.0.0.1", "127.0.0.2", "10.0.0.1", "127.0.0.1"];
    const lookup = () => Promise.resolve([{ address: answers.shift() ?? "", family: 4 }]);
    const capability = make({ allow: [`http://name.test:${main.port}/*`], lookup });
    const url = `http://name.test:${main.port}/`;
    expect(text(await ask(capability, { url }))).toBe("hello");
    expect(await codeOf(ask(capability, { url }))).toBe("denied");
    expect(noted()).toMatchObject({ refused: "address" });
    expect(await codeOf(ask(capability, { url }))).toBe("denied");
    expect(text(await ask(capability, { url }))).toBe("hello");
  });

  test("a name whose first address does not answer is reached at its second", async () => {
    const lookup = () =>
      Promise.resolve([
        { address: "127.0.0.9", family: 4 },
        { address: "127.0.0.1", family: 4 },
      ]);
    const capability = make({ allow: [`http://name.test:${main.port}/*`], lookup, open: ["127.0.0.0/8"] });
    expect(text(await ask(capability, { url: `http://name.test:${main.port}/` }))).toBe("hello");
  });

  test("a forbidden address, a name that stands for one and a URL that no rule names are told apart by nobody", async () => {
    const capability = make({
      allow: ["http://inward.test/*", "http://mixed.test/*"],
      open: [],
      lookup: (hostname) =>
        Promise.resolve(
          ["10.0.0.1", ...(hostname === "mixed.test" ? ["8.8.8.8"] : [])].map((address) => ({
            address,
            family: 4,
          })),
        ),
    });
    const urls = ["http://inward.test/", "http://mixed.test/", "http://169.254.169.254/", "http://[::1]/", `${main.origin}/`, "https://nowhere.test/", "file:///etc/passwd"]; // prettier-ignore
    const words = new Set<string>();
    for (const url of urls) {
      const { code, message } = await refusal(ask(capability, { url }));
      expect(code).toBe("denied");
      words.add(message);
    }
    expect([...words]).toEqual(["http: no rule allows that request to that place"]);
    expect(main.seen).toHaveLength(0);
  });

  test("by the machine's own resolver, localhost is refused until it is opened", async () => {
    const allow = [`http://localhost:${main.port}/*`];
    const closed = httpCapability({ allow });
    expect(await codeOf(ask(closed, { url: `http://localhost:${main.port}/` }))).toBe("denied");
    expect(main.seen).toHaveLength(0);
    const opened = httpCapability({ allow, open: ["127.0.0.0/8", "::1/128"] });
    made.push(opened);
    expect(text(await ask(opened, { url: `http://localhost:${main.port}/` }))).toBe("hello");
  });

  test("a name that nobody knows and a port where nobody listens are unavailable, in the same words", async () => {
    const gone = net.createServer().listen(0, "127.0.0.1");
    await once(gone, "listening");
    const { port } = gone.address() as net.AddressInfo;
    gone.close();
    await once(gone, "close");
    const capability = make({ allow: [`http://127.0.0.1:${port}/*`, "http://unknown.example/*"] });
    const refused = await refusal(ask(capability, { url: `http://127.0.0.1:${port}/` }));
    expect(noted()).toMatchObject({ cause: "ECONNREFUSED" });
    const unknown = await refusal(ask(capability, { url: "http://unknown.example/" }));
    expect(refused.code).toBe("unavailable");
    expect(unknown.message).toBe(refused.message);
  });

  test("narrowed, it goes where both allow, at redirects too", async () => {
    const capability = make({ allow: [`${main.origin}/*`, `${other.origin}/*`] });
    const narrow = narrowHttp(capability, [{ url: `${main.origin}/a/*`, methods: ["GET"] }]);
    main.handle = (request, response) =>
      request.url === "/a/away"
        ? response.writeHead(302, { location: `${other.origin}/` }).end()
        : response.end("in");
    expect(text(await ask(narrow, { url: `${main.origin}/a/x` }))).toBe("in");
    expect(await codeOf(ask(narrow, { url: `${main.origin}/b` }))).toBe("denied");
    expect(await codeOf(ask(narrow, { url: `${main.origin}/a/x`, method: "POST" }))).toBe("denied");
    expect(await codeOf(ask(narrow, { url: `${main.origin}/a/away` }))).toBe("denied");
    expect(other.seen).toHaveLength(0);
    expect(text(await ask(capability, { url: `${main.origin}/a/away` }))).toBe("hello");
    const wider = narrowHttp(caretaker(narrow).capability, [`${main.origin}/*`, `${other.origin}/*`]);
    expect(await codeOf(ask(wider, { url: `${main.origin}/b` }))).toBe("denied");
    expect(text(await ask(wider, { url: `${main.origin}/a/x` }))).toBe("in");
    expect(wider.bounds.join("; ")).toContain(`only GET ${main.origin}/a/*`);
  });
});

describe("redirects", () => {
  const moved =
    (status: number, location: string): Handler =>
    (request, response) =>
      request.url === "/from" ? response.writeHead(status, { location }).end("moved") : response.end("there");
  const from = () => `${main.origin}/from`;

  test.each([
    [301, "POST", "GET", ""],
    [302, "POST", "GET", ""],
    [303, "POST", "GET", ""],
    [303, "PUT", "GET", ""],
    [301, "PUT", "PUT", "body"],
    [307, "POST", "POST", "body"],
    [308, "POST", "POST", "body"],
  ])("after %i a %s goes on as %s", async (status, method, next, body) => {
    main.handle = moved(status, "to");
    const answer = await ask(make(), {
      url: from(),
      method,
      headers: [
        ["content-type", "text/plain"],
        ["authorization", "mine"],
      ],
      body: Buffer.from("body"),
    });
    expect(answer).toMatchObject({ url: `${main.origin}/to`, status: 200, redirected: true });
    expect(main.seen[1]).toMatchObject({ method: next, url: "/to", body });
    expect(main.seen[1].headers["content-type"]).toBe(body === "" ? undefined : "text/plain");
    expect(main.seen[1].headers.authorization).toBe("mine");
    expect(noted()).toMatchObject({
      url: from(),
      redirectedTo: `${main.origin}/to`,
      redirects: 1,
      status: 200,
    });
  });

  test("HEAD stays HEAD", async () => {
    main.handle = moved(303, "/to");
    await ask(make(), { url: from(), method: "HEAD" });
    expect(main.seen.map(({ method }) => method)).toEqual(["HEAD", "HEAD"]);
  });

  test("another origin is not told what was meant for the first", async () => {
    main.handle = moved(307, `${other.origin}/to`);
    const capability = make({ allow: [`${main.origin}/*`, `${other.origin}/*`] });
    const headers = [
      ["authorization", "mine"],
      ["cookie", "a=1"],
      ["x-other", "stays"],
    ];
    await ask(capability, { url: from(), method: "POST", headers, body: Buffer.from("body") });
    expect(main.seen[0].headers).toMatchObject({ authorization: "mine", cookie: "a=1", "x-other": "stays" });
    expect(other.seen[0]).toMatchObject({ method: "POST", body: "body" });
    expect(other.seen[0].headers).toMatchObject({ "x-other": "stays" });
    expect(other.seen[0].headers).not.toHaveProperty("authorization");
    expect(other.seen[0].headers).not.toHaveProperty("cookie");
  });

  test("to a port, address, name, scheme or path that no rule names they are refused", async () => {
    const capability = make({
      allow: [`${main.origin}/from`, `${main.origin}/to/*`, "http://inward.test/*"],
    });
    const target = (location: string) => {
      main.handle = moved(302, location);
      return ask(capability, { url: from() });
    };
    expect(text(await target("/to/x"))).toBe("there");
    const places = [`${other.origin}/`, "http://127.0.0.2/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://2130706433/", "//evil.test/", "https://evil.test/", "/elsewhere", "/to/../elsewhere", "/to/..%2felsewhere", "/to/\\..\\..\\elsewhere", "file:///etc/passwd", "data:text/plain,x", "javascript:1", `http://u:p@127.0.0.1:${main.port}/to/x`, `https://127.0.0.1:${main.port}/to/x`]; // prettier-ignore
    for (const place of places) expect([place, await codeOf(target(place))]).toEqual([place, "denied"]);
    expect(other.seen).toHaveLength(0);
    expect(main.seen.filter(({ url }) => url !== "/from")).toHaveLength(1);
  });

  test("to a name that stands for a private address they are refused", async () => {
    main.handle = moved(302, "http://inward.test/");
    const capability = make({
      allow: [`${main.origin}/*`, "http://inward.test/*"],
      lookup: () => Promise.resolve([{ address: "192.168.1.1", family: 4 }]),
    });
    expect(await codeOf(ask(capability, { url: from() }))).toBe("denied");
    expect(noted()).toMatchObject({ refused: "address", redirectedTo: "http://inward.test/" });
  });

  test("are given as they are, or refused, if the script wants that", async () => {
    main.handle = moved(302, `${other.origin}/`);
    const answer = await ask(make(), { url: from(), redirect: "manual" });
    expect(answer).toMatchObject({ status: 302, url: from(), redirected: false });
    expect(answer.headers).toContainEqual(["location", `${other.origin}/`]);
    expect(text(answer)).toBe("moved");
    expect(await codeOf(ask(make(), { url: from(), redirect: "error" }))).toBe("denied");
    expect(text(await ask(make(), { url: main.origin, redirect: "error" }))).toBe("there");
    expect(other.seen).toHaveLength(0);
  });

  test("end: after so many, in a loop, at two places at once, at no URL", async () => {
    main.handle = (request, response) =>
      response.writeHead(302, { location: `/${Number(request.url?.slice(1)) + 1}` }).end();
    expect(await codeOf(ask(make(), { url: `${main.origin}/0` }))).toBe("unavailable");
    expect(main.seen).toHaveLength(6);
    expect(await codeOf(ask(make({ maxRedirects: 0 }), { url: `${main.origin}/0` }))).toBe("unavailable");
    expect(main.seen).toHaveLength(7);
    main.handle = (_request, response) => response.writeHead(302, ["location", "/a", "location", "/b"]).end();
    expect(await codeOf(ask(make(), { url: main.origin }))).toBe("unavailable");
    main.handle = (_request, response) => response.writeHead(302, { location: "http://" }).end();
    expect(await codeOf(ask(make(), { url: main.origin }))).toBe("unavailable");
    main.handle = (_request, response) => response.writeHead(302).end("nowhere");
    expect(text(await ask(make(), { url: main.origin }))).toBe("nowhere");
  });

  test("with a body that does not end cost a connection, not the answer", async () => {
    main.handle = (request, response) =>
      request.url === "/from"
        ? response.writeHead(302, { location: "/to" }).write("x")
        : response.end("there");
    expect(text(await ask(make(), { url: from() }))).toBe("there");
  });
});

describe("limits", () => {
  test("a server that never answers, or never ends, is given up in time", async () => {
    const capability = make({ timeoutMs: 200 });
    main.handle = () => {};
    expect(await codeOf(ask(capability, { url: main.origin }))).toBe("timeout");
    main.handle = (_request, response) => response.write("begun");
    expect(await codeOf(ask(capability, { url: main.origin }))).toBe("timeout");
    expect(await codeOf(ask(make({ timeoutMs: 200, allow: ["http://slow.test/*"], lookup: () => new Promise(() => {}) }), { url: "http://slow.test/" }))).toBe("timeout"); // prettier-ignore
    main.handle = hello;
    expect(text(await ask(capability, { url: main.origin }))).toBe("hello");
  });

  test("a server that does not shake hands for TLS is given up in time", async () => {
    const silent = net.createServer((socket) => socket.on("error", () => {})).listen(0, "127.0.0.1");
    await once(silent, "listening");
    const sockets: net.Socket[] = [];
    silent.on("connection", (socket) => sockets.push(socket));
    const { port } = silent.address() as net.AddressInfo;
    const capability = make({ timeoutMs: 200, allow: [`https://api.example.test:${port}/*`] });
    expect(await codeOf(ask(capability, { url: `https://api.example.test:${port}/` }))).toBe("timeout");
    capability.close(run);
    for (const socket of sockets) socket.destroy();
    silent.close();
  });

  test("a body without end is left at the limit, and its connection closed", async () => {
    let closed: Promise<unknown> | undefined;
    main.handle = (_request, response) => {
      closed = once(response, "close");
      const more = () => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536)));
      };
      response.on("drain", more);
      more();
    };
    expect(await codeOf(ask(make({ maxResponseBytes: 1 << 20 }), { url: main.origin }))).toBe("too-large");
    await closed;
    expect(told.charged).toBeLessThan(2 << 20);
  });

  test("a body is taken up to the limit, and one that announces more is not begun", async () => {
    const exact = make({ maxResponseBytes: 5 });
    expect(text(await ask(exact, { url: main.origin }))).toBe("hello");
    told.charged = 0;
    expect(await codeOf(ask(make({ maxResponseBytes: 4 }), { url: main.origin }))).toBe("too-large");
    expect(told.charged).toBe(0);
    expect(await codeOf(ask(make(), { url: main.origin }, "request", 4))).toBe("too-large");
    expect(await ask(make({ maxResponseBytes: 4 }), { url: main.origin, method: "HEAD" })).toMatchObject({
      status: 200,
    });
  });

  test("a body that grows when unpacked is left at the limit; one that does not is unpacked", async () => {
    const packed =
      (coding: string, body: Buffer): Handler =>
      (_request, response) =>
        response.writeHead(200, { "content-encoding": coding }).end(body);
    const bomb = Buffer.alloc(64 << 20);
    main.handle = packed("gzip", zlib.gzipSync(bomb));
    expect(await codeOf(ask(make(), { url: main.origin }))).toBe("too-large");
    main.handle = packed(
      "br",
      zlib.brotliCompressSync(bomb, { params: { [zlib.constants.BROTLI_PARAM_QUALITY]: 2 } }),
    );
    expect(await codeOf(ask(make(), { url: main.origin }))).toBe("too-large");
    main.handle = packed("gzip", zlib.gzipSync("small"));
    expect(text(await ask(make(), { url: main.origin }))).toBe("small");
    expect(await ask(make(), { url: main.origin, method: "HEAD" })).toMatchObject({ status: 200 });
    main.handle = packed("BR", zlib.brotliCompressSync("small"));
    expect(text(await ask(make(), { url: main.origin }))).toBe("small");
    main.handle = packed("identity", Buffer.from("small"));
    expect(text(await ask(make(), { url: main.origin }))).toBe("small");
    expect(main.seen.at(-1)?.headers["accept-encoding"]).toBe("gzip, br");
  });

  test.each<[what: string, coding: string, body: Buffer]>([
    ["not asked for", "zstd", Buffer.from("x")],
    ["applied twice", "gzip, gzip", zlib.gzipSync(zlib.gzipSync("x"))],
    ["that it is not in", "gzip", Buffer.from("plain")],
    ["cut short", "gzip", zlib.gzipSync("x".repeat(1000)).subarray(0, 15)],
  ])("a body in a coding %s is not given", async (_what, coding, body) => {
    main.handle = (_request, response) => response.writeHead(200, { "content-encoding": coding }).end(body);
    expect(await codeOf(ask(make(), { url: main.origin }))).toBe("unavailable");
  });

  test("headers over the limit, by bytes or by number, are too large", async () => {
    const flood =
      (headers: string[]): Handler =>
      (_request, response) =>
        response.writeHead(200, headers).end("x");
    main.handle = flood(["x-a", "a".repeat(20_000)]);
    expect(await codeOf(ask(make(), { url: main.origin }))).toBe("too-large");
    main.handle = flood(Array.from({ length: 600 }, (_, i) => (i % 2 ? "1" : "x-a")));
    expect(await codeOf(ask(make(), { url: main.origin }))).toBe("too-large");
    main.handle = flood(["x-a", "a".repeat(10_000)]);
    expect(text(await ask(make(), { url: main.origin }))).toBe("x");
  });

  test("a budget of bytes ends the request in the middle", async () => {
    main.handle = (_request, response) => {
      response.write(Buffer.alloc(100_000));
    };
    expect(await codeOf(ask(make().budget({ bytes: 50_000 }), { url: main.origin }))).toBe("budget");
    expect(await codeOf(ask(make().budget({ bytes: 10 }), { url: main.origin, method: "POST", body: new Uint8Array(20) }))).toBe("budget"); // prettier-ignore
    expect(main.seen).toHaveLength(1);
  });

  test("the end of the run ends the request, at the server too", async () => {
    let reached: (() => void) | undefined;
    const there = new Promise<void>((resolve) => (reached = resolve));
    let closed: Promise<unknown> | undefined;
    main.handle = (_request, response) => {
      closed = once(response, "close");
      response.write("begun");
      reached?.();
    };
    const asked = ask(make(), { url: main.origin });
    asked.catch(() => {});
    await there;
    run.end();
    expect(await codeOf(asked)).toBe("unavailable");
    await closed;
    expect(await codeOf(ask(make(), { url: main.origin }))).toBe("unavailable");
    expect(main.seen).toHaveLength(1);
  });
});

describe("servers that do not speak HTTP as they should", () => {
  test.each<[what: string, bytes: string]>([
    ["garbage", "\x16\x03\x01 hello\r\n\r\n"],
    ["nothing", ""],
    ["another protocol", "220 mail.test ESMTP\r\n"],
    ["two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"],
    [
      "a length and chunks",
      "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ["less than it announced", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nxx"],
    ["another protocol to switch to", "HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"],
    ["chunks without a size", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"],
  ])("%s is unavailable", async (_what, bytes) => {
    const raw = net.createServer((socket) => {
      socket.on("error", () => {});
      socket.once("data", () => socket.end(bytes, "latin1"));
    });
    raw.listen(0, "127.0.0.1");
    await once(raw, "listening");
    const { port } = raw.address() as net.AddressInfo;
    const url = `http://127.0.0.1:${port}/`;
    expect(await codeOf(ask(make({ allow: [url] }), { url }))).toBe("unavailable");
    raw.close();
    await once(raw, "close");
  });
});

describe("TLS", () => {
  const api = () => `https://api.example.test:${tls.port}`;

  test("the certificate is checked for the name in the URL, which the server is told", async () => {
    let servername: unknown;
    tls.handle = (request, response) => {
      ({ servername } = request.socket as TLSSocket & { servername: string });
      response.end("hello");
    };
    const capability = make({ allow: [`${api()}/*`, `https://wrong.test:${tls.port}/*`] });
    expect(text(await ask(capability, { url: `${api()}/` }))).toBe("hello");
    expect(servername).toBe("api.example.test");
    expect(tls.seen[0].headers.host).toBe(`api.example.test:${tls.port}`);
    expect(await codeOf(ask(capability, { url: `https://wrong.test:${tls.port}/` }))).toBe("unavailable");
    expect(noted()).toMatchObject({ cause: "ERR_TLS_CERT_ALTNAME_INVALID" });
    expect(tls.seen).toHaveLength(1);
  });

  test("an unknown authority is refused, whatever the environment says", async () => {
    const before = process.env.NODE_TLS_REJECT_UNAUTHORIZED;
    process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
    try {
      const capability = httpCapability({ allow: [`${api()}/*`], open, lookup: names });
      expect(await codeOf(ask(capability, { url: `${api()}/` }))).toBe("unavailable");
    } finally {
      if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
      else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before;
    }
    expect(tls.seen).toHaveLength(0);
  });
});

describe("connections", () => {
  test("are used again within a run, and not from run to run", async () => {
    const capability = make();
    const second = fakeRun("run-2");
    await ask(capability, { url: main.origin });
    await new Promise(setImmediate); // a script's next call comes no sooner
    await ask(capability, { url: main.origin });
    await callOn(capability, "request", [{ url: main.origin }], { run: second });
    const ports = main.seen.map(({ port }) => port);
    expect(ports[1]).toBe(ports[0]);
    expect(ports[2]).not.toBe(ports[0]);
    capability.close(second);
  });

  test("end with the run, whatever is under way on them", async () => {
    let reached: (() => void) | undefined;
    const there = new Promise<void>((resolve) => (reached = resolve));
    let closed: Promise<unknown> | undefined;
    main.handle = (request) => {
      closed = once(request.socket, "close");
      reached?.();
    };
    const capability = make();
    const asked = ask(capability, { url: main.origin });
    asked.catch(() => {});
    await there;
    capability.close(run);
    expect(await codeOf(asked)).toBe("unavailable");
    await closed;
  });

  test("to more origins than a run keeps still work, the old ones too", async () => {
    const hosts = Array.from({ length: 12 }, (_, i) => `http://h${i}.many.test:${main.port}/`);
    const capability = make({ allow: [`http://*.many.test:${main.port}/*`] });
    for (const url of [...hosts, ...hosts]) expect(text(await ask(capability, { url }))).toBe("hello");
    await Promise.all(hosts.map((url) => ask(capability, { url })));
    expect(main.seen).toHaveLength(36);
  });
});

describe("secrets", () => {
  const VALUE = "sk/live+A1b2&C3d4==";
  const token = secret({ name: "token", value: VALUE, hosts: ["api.example.test"] });
  const api = () => `https://api.example.test:${tls.port}`;
  const files = () => `https://files.example.test:${tls.port}`;
  const inject = [{ host: "api.example.test", header: "x-injected", value: "Bearer hidden-0123456789" }];
  const withSecrets = () => make({ allow: [`${api()}/*`, `${files()}/*`], secrets: [token], inject });
  /** Says back all that it was sent. */
  const echo: Handler = (request, response, body) => {
    response.setHeader("x-echo", String(request.headers["x-key"] ?? ""));
    response.setHeader("location", `/?back=${encodeURIComponent(VALUE)}`);
    response.end(
      JSON.stringify([request.url, request.rawHeaders, body.toString("utf8"), body.toString("base64")]),
    );
  };

  test("reach their host in headers, query and body, and come back as placeholders in every form", async () => {
    tls.handle = echo;
    const answer = await ask(withSecrets(), {
      url: `${api()}/?key=${token.placeholder}&a=1`,
      method: "POST",
      headers: [["x-key", `Bearer ${token.placeholder}`]],
      body: Buffer.from(`key: ${token.placeholder}`),
    });
    const [seen] = tls.seen;
    expect(new URL(seen.url, api()).searchParams.get("key")).toBe(VALUE);
    expect(seen.headers["x-key"]).toBe(`Bearer ${VALUE}`);
    expect(seen.headers["x-injected"]).toBe(inject[0].value);
    expect(seen.body).toBe(`key: ${VALUE}`);
    const all = JSON.stringify([answer, text(answer)]);
    for (const form of [
      VALUE,
      encodeURIComponent(VALUE),
      btoa(VALUE).slice(0, -4),
      btoa(`key: ${VALUE}`).slice(7, -4),
      "hidden-0123456789",
    ]) {
      // prettier-ignore
      expect(all).not.toContain(form);
    }
    expect(answer.url).toBe(`${api()}/?key=${token.placeholder}&a=1`);
    expect(answer.headers).toContainEqual(["x-echo", `Bearer ${token.placeholder}`]);
    expect(answer.headers).toContainEqual(["location", `/?back=${token.placeholder}`]);
    expect(text(answer)).toContain(`key: ${token.placeholder}`);
    expect(text(answer)).toContain('"[redacted]"');
    expect(JSON.stringify(told.notes)).not.toContain("sk");
  });

  test("are found in an answer that comes byte by byte, or packed", async () => {
    const capability = withSecrets();
    tls.handle = (_request, response) => {
      const bytes = [...Buffer.from(`a ${VALUE} b`)];
      const next = () => {
        const byte = bytes.shift();
        if (byte === undefined) response.end();
        else response.write(Buffer.of(byte), next);
      };
      next();
    };
    expect(text(await ask(capability, { url: `${api()}/` }))).toBe(`a ${token.placeholder} b`);
    tls.handle = (_request, response) =>
      response.writeHead(200, { "content-encoding": "gzip" }).end(zlib.gzipSync(`a ${VALUE} b`));
    expect(text(await ask(capability, { url: `${api()}/` }))).toBe(`a ${token.placeholder} b`);
    tls.handle = (_request, response) => response.writeHead(200, `It is ${VALUE}`).end();
    expect((await ask(capability, { url: `${api()}/` })).statusText).toBe(`It is ${token.placeholder}`);
  });

  test.each<[where: string, wish: (host: string) => object]>([
    ["a header", (host) => ({ url: host, headers: [["x-key", token.placeholder]] })],
    ["the query", (host) => ({ url: `${host}/?k=${token.placeholder}` })],
    ["the body", (host) => ({ url: host, method: "POST", body: Buffer.from(token.placeholder) })],
  ])("in %s to another host are refused, and nothing is sent", async (_where, wish) => {
    expect(await codeOf(ask(withSecrets(), wish(files())))).toBe("denied");
    expect(tls.seen).toHaveLength(0);
    expect(await ask(withSecrets(), wish(api()))).toMatchObject({ status: 200 });
    expect(JSON.stringify(tls.seen)).toMatch(/sk(?:\/|%2F)live/);
  });

  test("in the path are refused with the places where they may stand", async () => {
    const { code, message } = await refusal(ask(withSecrets(), { url: `${api()}/${token.placeholder}/x` }));
    expect(code).toBe("bad-argument");
    expect(message).toContain("in the query, in a header or in the body");
  });

  test("that are not ASCII stand in no header, where they would be other bytes", async () => {
    const wide = secret({ name: "wide", value: "schlüssel-1234", hosts: ["api.example.test"] });
    const capability = make({ allow: [`${api()}/*`], secrets: [wide] });
    const headers = [["x-key", wide.placeholder]];
    expect(await codeOf(ask(capability, { url: `${api()}/`, headers }))).toBe("bad-argument");
    tls.handle = echo;
    const answer = await ask(capability, {
      url: `${api()}/?k=${wide.placeholder}`,
      method: "POST",
      body: Buffer.from(wide.placeholder),
    });
    expect(Buffer.from(tls.seen[0].body, "latin1").toString()).toBe("schlüssel-1234");
    expect(Buffer.from(answer.body).toString()).toContain(`"${wide.placeholder}"`);
  });

  test("do not follow a redirect to another host", async () => {
    tls.handle = (request, response) =>
      request.url?.startsWith("/from")
        ? response.writeHead(307, { location: `${files()}/to` }).end()
        : response.end("x");
    const headers = [
      ["x-key", token.placeholder],
      ["x-other", "1"],
    ];
    await ask(withSecrets(), { url: `${api()}/from?k=${token.placeholder}`, headers });
    const [first, second] = tls.seen;
    expect(first.headers).toMatchObject({ "x-key": VALUE, "x-injected": inject[0].value });
    expect(second.headers).toMatchObject({ "x-other": "1", host: `files.example.test:${tls.port}` });
    expect(second.headers).not.toHaveProperty("x-key");
    expect(second.headers).not.toHaveProperty("x-injected");
    const body = Buffer.from(token.placeholder);
    expect(await codeOf(ask(withSecrets(), { url: `${api()}/from`, method: "POST", body }))).toBe("denied");
    expect(tls.seen).toHaveLength(3);
  });

  test("do not leave in a redirect that their host writes, and a placeholder in one is a text like any other", async () => {
    const capability = withSecrets();
    const to = (location: string) => {
      tls.handle = (request, response) =>
        request.url?.startsWith("/from") ? response.writeHead(302, { location }).end() : response.end("x");
      return ask(capability, { url: `${api()}/from?k=${token.placeholder}` });
    };
    expect(await codeOf(to(`${files()}/?k=${encodeURIComponent(VALUE)}`))).toBe("denied");
    expect(noted()).toMatchObject({ refused: "secret" });
    expect(await codeOf(to(`${files()}/${encodeURIComponent(inject[0].value)}`))).toBe("denied");
    expect(tls.seen.every(({ headers }) => headers.host?.startsWith("api."))).toBe(true);
    await to(`${api()}/?k=${token.placeholder}`);
    expect(tls.seen.at(-1)?.url).toBe(`/?k=${token.placeholder}`);
    const back = await to(`${api()}/?k=${encodeURIComponent(VALUE)}`);
    expect(back.url).toBe(`${api()}/?k=${token.placeholder}`);
  });

  test("go over plain http to an opened address only", async () => {
    const capability = make({
      allow: [`http://api.example.test:${main.port}/*`, "http://api.example.test/*"],
      secrets: [token],
    });
    const headers = [["x-key", token.placeholder]];
    await ask(capability, { url: `http://api.example.test:${main.port}/`, headers });
    expect(main.seen[0].headers["x-key"]).toBe(VALUE);
    const outside = make({
      allow: ["http://api.example.test/*"],
      secrets: [token],
      lookup: () => Promise.resolve([{ address: "8.8.8.8", family: 4 }]),
    });
    expect(await codeOf(ask(outside, { url: "http://api.example.test/", headers }))).toBe("denied");
  });
});

describe("options", () => {
  test.each<[options: object, why: RegExp]>([
    [{}, /allow must be a list/],
    [{ allow: [] }, /at least one rule/],
    [{ allow: ["http://127.0.0.1/*"] }, /add it to open/],
    [{ allow: ["https://x.test/*"], open: "127.0.0.1/32" }, /open must be a list/],
    [{ allow: ["https://x.test/*"], open: ["127.0.0.1"] }, /no CIDR/],
    [{ allow: ["https://x.test/*"], inject: {} }, /inject must be a list/],
    [{ allow: ["https://x.test/*"], secrets: ["x"] }, /secret\(\)/],
    [{ allow: ["https://x.test/*"], timeoutMs: 0 }, /timeoutMs/],
    [{ allow: ["https://x.test/*"], maxResponseBytes: 1.5 }, /maxResponseBytes/],
    [{ allow: ["https://x.test/*"], maxRedirects: -1 }, /maxRedirects/],
    [{ allow: ["https://x.test/*"], ca: 7 }, /ca must be/],
  ])("%j is refused at once", (options, why) => {
    expect(() => httpCapability(options as HttpOptions)).toThrow(TypeError);
    expect(() => httpCapability(options as HttpOptions)).toThrow(why);
  });

  test("headers that are too many are counted, and not looked at", () => {
    let looked = 0;
    const wish = (length: number) => {
      const headers = Array.from({ length }, () => ["a", "b"]);
      Object.defineProperty(headers, 0, { get: () => (looked++, ["a", "b"]) });
      return [{ url: "http://nowhere.test/", headers }];
    };
    make().parse("http", "request", wish(256));
    expect(looked).toBeGreaterThan(0);
    looked = 0;
    expect(() => make().parse("http", "request", wish(257))).toThrow(/wish.headers/);
    expect(looked).toBe(0);
  });

  test("only what http made can be narrowed by its rules", () => {
    expect(() => narrowHttp({ name: "kv" } as Capability, ["https://x.test/*"])).toThrow(/made by http/);
    expect(() => narrowHttp(make(), [])).toThrow(/at least one rule/);
    const own = capability("http", {
      request: method({ doc: "", params: {}, effect: "write", run: () => 1 }),
    });
    expect(() => narrowHttp(own, ["https://x.test/*"])).toThrow(/made by http/);
    const weak = narrowHttp(make().readOnly(), ["https://x.test/*"]);
    expect(narrowHttp(caretaker(weak).capability, ["https://x.test/*"]).bounds).toHaveLength(5);
  });
});

describe("the client library", () => {
  /** A program of its own that makes a capability; what it says at its end is whether the library was loaded. */
  const program = (rest: string) => `
    import { createRequire } from "node:module";
    import { http } from ${JSON.stringify(new URL("../../dist/hostapi/http.js", import.meta.url).href)};
    const loaded = () => Object.keys(createRequire(import.meta.url).cache).some((file) => file.includes("/undici/"));
    process.on("exit", () => console.log(String(loaded())));
    if (loaded()) throw new Error("it was loaded before");
    http({ allow: ["https://x.test/*"] });
    ${rest}
  `;
  const told = (rest: string) =>
    spawnSync(process.execPath, ["--input-type=module", "-e", program(rest)], {
      encoding: "utf8",
      timeout: 60_000,
    });

  test("is loaded once there is a capability, before its first request, by a program that goes on", () => {
    const until = "while (!loaded()) await new Promise((resolve) => setTimeout(resolve, 5));";
    expect(told(until)).toMatchObject({ status: 0, stdout: "true\n", stderr: "" });
  });

  test("does not keep a program that has nothing else to do", () => {
    expect(told("")).toMatchObject({ status: 0, stderr: "" }); // loaded or not, as time has it
  });
});
