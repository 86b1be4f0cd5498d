/** What arrives on a connection that is no request, or is many at once. */
import http from "node:http";
import net, { type AddressInfo } from "node:net";
import { describe, expect, test } from "vitest";
import { answerBroken } from "#server/service/connections";
import { audited, posted, sent, shared, until } from "./harness.js";

const it = shared();

/** All that comes back on a connection that sends this, to its end. */
async function answered(address: string, text: string): Promise<{ head: string; body: string }> {
  const socket = await sent(address, text);
  let all = "";
  socket.on("data", (data) => (all += data.toString("latin1")));
  await new Promise((resolve) => socket.once("close", resolve));
  const [head = "", body = ""] = all.split(/\r\n\r\n(.*)/s);
  return { head, body };
}

describe("what is no request", () => {
  const marker = "hush-hush";
  const cases: [string, string, number, string][] = [
    ["is no HTTP", `${marker}\r\n\r\n`, 400, "bad-http"],
    [
      "has a header that is none",
      `GET /healthz HTTP/1.1\r\nHost: x\r\n${marker} : \0\r\n\r\n`,
      400,
      "bad-http",
    ],
    ["has no host", `GET /${marker} HTTP/1.1\r\nConnection: close\r\n\r\n`, 400, "bad-http"],
    ["has two lengths", `POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n${marker}`, 400, "bad-http"], // prettier-ignore
    ["has a length and chunks", `POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n${marker}`, 400, "bad-http"], // prettier-ignore
    ["has headers without end", `GET /healthz HTTP/1.1\r\nHost: x\r\nX: ${marker.repeat(4000)}`, 431, "headers-too-large"], // prettier-ignore
  ];
  test.each(cases)(
    "as it %s, is told so in a problem document, and cut off",
    async (_, text, status, code) => {
      for (const address of [it.service.address, it.service.adminAddress]) {
        const { head, body } = await answered(address, text);
        expect(head).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
        expect(head.toLowerCase()).toContain("content-type: application/problem+json");
        expect(head.toLowerCase()).toContain("connection: close");
        expect(JSON.parse(body)).toMatchObject({ status, code, type: `urn:doublehull:problem:${code}`, remedy: expect.any(String) }); // prettier-ignore
        expect(head + body).not.toContain("hush");
      }
      expect(it.log.join("")).not.toContain("hush");
    },
  );

  test("as it does not come to its end, is told so", async () => {
    const server = http.createServer({
      requestTimeout: 50,
      headersTimeout: 50,
      connectionsCheckingInterval: 20,
    });
    server.on("clientError", answerBroken);
    await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
    const address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const { head, body } = await answered(address, "GET / HTTP/1.1\r\nHost: x\r\n");
    expect(head).toMatch(/^HTTP\/1.1 408 Request Timeout\r\n/);
    expect(JSON.parse(body)).toMatchObject({ status: 408, code: "request-timeout" });
    await new Promise((resolve) => server.close(resolve));
  });

  test("behind a stream that has begun, puts nothing in the middle of that", async () => {
    const { key = "" } = it.service.made ?? {};
    const source = "export default async (i, env) => { await env.events.emit('begun', 0); for (;;); }";
    const socket = await sent(it.service.address, posted(key, { source, grants: ["events"] }, "Accept: text/event-stream\r\n")); // prettier-ignore
    let text = "";
    socket.on("data", (data) => (text += data.toString("latin1")));
    await until(() => (text.includes("event: event") ? true : undefined)); // the control
    const closed = new Promise((resolve) => socket.once("close", resolve));
    socket.write("\0\0\0\r\n\r\n");
    await closed;
    expect(text.match(/HTTP\/1\.1/g)).toHaveLength(1);
    expect(text).not.toContain("bad-http");
  });
});

test("a client that takes no stream is told so in a problem document", async () => {
  const answer = await it.ask("GET", "/v1/runs/x/events", { headers: { accept: "application/json" } });
  expect(answer).toMatchObject({ status: 406, body: { code: "not-acceptable", remedy: expect.any(String) } });
  expect(answer.headers.get("content-type")).toContain("application/problem+json");
  const stream = await it.ask("GET", "/v1/runs/x/events", { headers: { accept: "text/event-stream" } });
  expect(stream.body.code).toBe("not-found"); // the control
});

test("a refusal that no hook has seen has the headers of every other", async () => {
  const known = await it.ask("GET", "/v1/nothing");
  const unknown = await it.ask("GET", "/v1/scripts/%zz");
  expect([known.status, unknown.status]).toEqual([404, 400]);
  for (const { headers, body } of [known, unknown]) {
    expect(headers.get("cache-control")).toBe("no-store");
    expect(body.instance).toBe(`urn:uuid:${headers.get("x-request-id")}`);
  }
});

describe("many requests on one connection", () => {
  const endless = { source: "export default async (i, env) => { await env.kv.get('x'); for (;;); }", grants: ["kv"] }; // prettier-ignore
  const runs = (tenant: string, act: string) =>
    audited(it.dir).filter((line) => line["tenant"] === tenant && line["kind"] === "run" && line["act"] === act); // prettier-ignore

  test("are no leak of listeners, and end with it", async () => {
    const policy = { limits: { wallMs: 20_000, cpuMs: 20_000 }, grants: { kv: true } };
    const key = await it.tenant("pipelining", { policy, quotas: { concurrent: 40 } });
    const warnings: Error[] = [];
    const warned = (warning: Error) => void warnings.push(warning);
    process.on("warning", warned);
    const socket = await sent(it.service.address, posted(key, endless).repeat(30));
    await until(() => runs("pipelining", "started")[29]);
    socket.destroy();
    await until(() => runs("pipelining", "finished")[29]);
    process.off("warning", warned);
    expect(warnings).toEqual([]);
    expect(new Set(runs("pipelining", "finished").map(({ status }) => status))).toEqual(new Set(["cancelled"])); // prettier-ignore
  });

  test("give back the room of their bodies, also those whose turn to be answered never came", async () => {
    const key = await it.tenant("roomy", { policy: { limits: { wallMs: 20_000, cpuMs: 20_000 }, grants: { kv: true } } }); // prettier-ignore
    const large = { ...endless, input: "x".repeat(900_000) };
    for (let round = 1; round <= 10; round++) {
      const socket = await sent(it.service.address, posted(key, large).repeat(10));
      await until(() => runs("roomy", "started")[10 * round - 1]); // of 64 MiB for bodies: not without what was given back
      socket.destroy();
      await until(() => runs("roomy", "finished")[10 * round - 1]);
    }
  });
});

test("a connection is closed after a client's mistake only", async () => {
  const { port } = new URL(it.service.address);
  const socket = net.connect(Number(port), "127.0.0.1");
  for (let i = 0; i < 3; i++) {
    socket.write("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    const [data] = await new Promise<[Buffer]>((resolve) => socket.once("data", (text) => resolve([text])));
    expect(data.toString("latin1")).toMatch(/^HTTP\/1.1 200 /);
  }
  socket.destroy();
});
