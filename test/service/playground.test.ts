/** The playground's pages as the service serves them, without a browser; and that every sample does what it says. */
import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import { brotliDecompressSync, gunzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Client } from "doublehull/client";
import { SAMPLES } from "../../server/playground/samples.js";
import { start, type Running } from "./harness.js";

let running: Running;
beforeAll(async () => {
  running = await start();
});
afterAll(async () => {
  await running.service.close();
  fs.rmSync(path.dirname(running.dir), { recursive: true });
});

const page = (route: string) => running.ask("GET", route, { key: "" });

describe("the playground's pages", () => {
  test("need no key, and have a policy without anything inline or from elsewhere", async () => {
    const { status, headers, body } = await page("/playground/");
    expect({ status, type: headers.get("content-type") }).toEqual({ status: 200, type: expect.stringMatching(/^text\/html/) as string }); // prettier-ignore
    expect(body).toContain("<title>doublehull playground</title>");
    const policy = headers.get("content-security-policy") ?? "";
    for (const part of [
      "default-src 'none'",
      "script-src 'self'",
      "style-src 'self'",
      "frame-ancestors 'none'",
      "base-uri 'none'",
      "form-action 'none'",
    ])
      // prettier-ignore
      expect(policy.split("; ")).toContain(part);
    expect(policy).not.toMatch(/unsafe|\*|https?:/);
    expect(headers.get("x-content-type-options")).toBe("nosniff");
  });

  test("are asked for anew each time, and what their names stand for is kept for good", async () => {
    const { headers, body } = await page("/playground/");
    expect(headers.get("cache-control")).toBe("no-cache");
    const assets = [...String(body).matchAll(/(?:src|href)="\.\/(assets\/[^"]+)"/g)].map(
      ([, name]) => name ?? "",
    );
    expect(assets.length).toBeGreaterThanOrEqual(3); // script, style, icon
    for (const asset of assets) {
      const answer = await page(`/playground/${asset}`);
      expect(answer.status).toBe(200);
      expect(answer.headers.get("cache-control")).toBe("public, max-age=31536000, immutable");
    }
  });

  /** As it comes, nothing of it undone. */
  const raw = (route: string, headers: Record<string, string>) =>
    new Promise<{ status: number | undefined; headers: http.IncomingHttpHeaders; bytes: Buffer }>(
      (resolve, reject) => {
        const request = http.get(running.service.address + route, { headers }, (response) => {
          const chunks: Buffer[] = [];
          response.on("data", (chunk: Buffer) => chunks.push(chunk));
          response.on("end", () => resolve({ status: response.statusCode, headers: response.headers, bytes: Buffer.concat(chunks) })); // prettier-ignore
        });
        request.on("error", reject);
      },
    );

  test("come in the smallest form that a client takes, as the build made it, and caches tell the forms apart", async () => {
    const { body } = await page("/playground/");
    const names = [...String(body).matchAll(/(?:src|href)="\.\/(assets\/[^"]+)"/g)].map(([, name]) => name);
    for (const route of ["/playground/", ...names.map((name) => `/playground/${name}`)]) {
      const plain = await raw(route, {});
      expect(plain.headers["content-encoding"]).toBeUndefined();
      for (const [taken, coding, undo, part] of [
        ["gzip, deflate, br, zstd", "br", brotliDecompressSync, 0.31],
        ["gzip", "gzip", gunzipSync, 0.36],
        ["gzip;q=1, br;q=0", "gzip", gunzipSync, 0.36],
      ] as const) {
        const small = await raw(route, { "accept-encoding": taken });
        expect(small.status).toBe(200);
        expect(small.headers["content-encoding"]).toBe(coding);
        expect(undo(small.bytes).equals(plain.bytes)).toBe(true);
        expect(Number(small.headers["content-length"])).toBe(small.bytes.length);
        if (plain.bytes.length > 10_000) expect(small.bytes.length).toBeLessThan(plain.bytes.length * part);
        for (const name of ["content-type", "cache-control", "content-security-policy", "vary"])
          expect(small.headers[name], name).toBe(plain.headers[name]);
        expect(small.headers.vary).toBe("accept-encoding");
        expect(small.headers.etag).not.toBe(plain.headers.etag);
        const again = await raw(route, {
          "accept-encoding": taken,
          "if-none-match": small.headers.etag ?? "",
        });
        expect([again.status, again.headers.vary]).toEqual([304, "accept-encoding"]);
      }
      for (const taken of ["identity", "zstd", "", "br;q=0"])
        expect((await raw(route, { "accept-encoding": taken })).bytes.equals(plain.bytes)).toBe(true);
    }
    expect((await raw("/playground/none.js", { "accept-encoding": "br" })).status).toBe(404);
  });

  test("are where / and /playground lead, wherever a proxy puts the service", async () => {
    for (const route of ["/", "/playground"]) {
      const response = await fetch(running.service.address + route, { redirect: "manual" });
      expect({ status: response.status, to: response.headers.get("location") }).toEqual({ status: 302, to: "playground/" }); // prettier-ignore
    }
  });

  test("and what beside them there is not are told apart; nothing above their directory is served", async () => {
    for (const route of ["/playground/none.js", "/playground/..%2f..%2fcli.js", "/playground/assets/"])
      expect((await page(route)).body).toMatchObject({ status: 404, code: "not-found" });
  });

  test("hold no path of the machine that built them, and no map that would", async () => {
    const { body } = await page("/playground/");
    const script = /src="\.\/(assets\/[^"]+\.js)"/.exec(String(body))?.[1] ?? "";
    const code = String((await page(`/playground/${script}`)).body);
    expect(code.length).toBeGreaterThan(100_000); // the control
    expect(code).not.toContain(process.cwd());
    expect(code).not.toContain("sourceMappingURL");
    expect((await page(`/playground/${script}.map`)).status).toBe(404);
  });

  test("of a package without them are said to be missing, and the API works", async () => {
    const empty = fs.mkdtempSync(path.join(os.tmpdir(), "service-"));
    const other = await start({ playground: empty });
    try {
      const missing = await other.ask("GET", "/playground/", { key: "" });
      expect(missing).toMatchObject({
        status: 404,
        body: { detail: expect.stringMatching(/not built/) as string },
      });
      expect((await other.ask("GET", "/v1")).status).toBe(200);
    } finally {
      await other.service.close();
      fs.rmSync(empty, { recursive: true });
      fs.rmSync(path.dirname(other.dir), { recursive: true });
    }
  });
});

describe("the first start's tenant", () => {
  const grants = async (of: Running) =>
    (await of.ask("GET", "/v1")).body.grants.map(({ name }: { name: string }) => name);

  test("may store, tell events and ask a person, if the service lets runs wait for one", async () => {
    expect(await grants(running)).toEqual(["kv", "events", "approve"]);
    const hasty = await start({ limits: { wallMs: 4999, cpuMs: 1000 } });
    try {
      expect(await grants(hasty)).toEqual(["kv", "events"]);
      expect((await hasty.ask("GET", "/v1")).body.limits).toMatchObject({ wallMs: 4999, cpuMs: 1000 });
    } finally {
      await hasty.service.close();
      fs.rmSync(path.dirname(hasty.dir), { recursive: true });
    }
  });
});

describe("a sample", () => {
  const ends: Record<string, unknown> = {
    compute: { status: "ok", value: { largest: 1999, twins: 61 } },
    kv: { status: "ok", value: { visits: 1, keys: ["last", "visits"] } },
    events: { status: "ok", value: "all done" },
    ask: { status: "ok", value: expect.stringMatching(/^sent/) as string },
    typescript: { status: "ok", value: { hello: "Ada" } },
    throw: { status: "threw", error: { name: "RangeError" } },
    endless: { status: "stopped", stop: { reason: "wall-time" } },
    memory: { status: "stopped", stop: { reason: "memory" } },
    denied: { status: "ok", value: { env: [], escape: "nothing there" } },
  };

  test("is told how it ends, each of them", () => {
    expect(SAMPLES.map(({ id }) => id).sort()).toEqual(Object.keys(ends).sort());
  });

  test.each(SAMPLES.map((sample) => [sample.id, sample] as const))(
    "%s ends as it says",
    async (id, { draft }) => {
      const { input, ...code } = draft;
      const limits = id === "endless" ? { wallMs: 200 } : {};
      const request = {
        ...code,
        grants: [...(code.grants ?? [])],
        limits,
        ...(input === undefined ? {} : { input: JSON.parse(input) as unknown }),
      };
      const { service } = running;
      const client = new Client({ baseUrl: service.address, apiKey: service.made?.key ?? "" });
      const outcomes: unknown[] = [];
      for await (const event of client.stream(request, { onApproval: () => Promise.resolve(true) }))
        if (event.type === "outcome") outcomes.push(event.outcome);
      expect(outcomes).toMatchObject([ends[id]]);
    },
  );
});
