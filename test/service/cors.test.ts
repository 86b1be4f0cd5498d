/** Pages of other origins: those that the operator names may ask, and no other. */
import { expect, test } from "vitest";
import { shared } from "./harness.js";

const app = "https://app.example.com";
const it = shared({ corsOrigins: [app] });
const preflight = (origin: string, route = "/v1/runs") =>
  fetch(it.service.address + route, {
    method: "OPTIONS",
    headers: {
      origin,
      "access-control-request-method": "POST",
      "access-control-request-headers": "authorization,content-type",
    },
  });

test("a named origin's page may ask, with its key and what it needs of the answer", async () => {
  const asked = await preflight(app);
  expect(asked.status).toBe(204);
  expect(asked.headers.get("access-control-allow-origin")).toBe(app);
  expect(asked.headers.get("access-control-allow-headers")).toContain("authorization");
  expect(asked.headers.get("access-control-allow-credentials")).toBeNull();
  const run = await it.ask("POST", "/v1/runs", {
    body: { source: "1", type: "script" },
    headers: { origin: app },
  });
  expect(run.status).toBe(200);
  expect(run.headers.get("access-control-allow-origin")).toBe(app);
  expect(run.headers.get("access-control-expose-headers")).toContain("x-run-id");
  expect(run.headers.get("vary")?.toLowerCase()).toContain("origin");
});

test("it is told why it was refused", async () => {
  const refused = await it.ask("GET", "/v1", { key: "", headers: { origin: app } });
  expect(refused).toMatchObject({ status: 401, body: { code: "unauthorized" } });
  expect(refused.headers.get("access-control-allow-origin")).toBe(app);
});

test.each(["https://evil.example.com", "https://app.example.com.evil.com", "http://app.example.com", "null"])(
  "no other origin is let in: %s",
  async (origin) => {
    expect((await preflight(origin)).headers.get("access-control-allow-origin")).toBeNull();
    const run = await it.ask("POST", "/v1/runs", {
      body: { source: "1", type: "script" },
      headers: { origin },
    });
    expect(run.headers.get("access-control-allow-origin")).toBeNull();
  },
);

test("administrators' address lets no page in", async () => {
  const asked = await fetch(`${it.service.adminAddress}/admin/v1/tenants`, { method: "OPTIONS", headers: { origin: app, "access-control-request-method": "GET" } }); // prettier-ignore
  expect(asked.headers.get("access-control-allow-origin")).toBeNull();
});
