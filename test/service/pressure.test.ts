/** Health and readiness of a service that is flooded, or busy beyond its bound. */
import { expect, test, vi } from "vitest";
import { shared } from "./harness.js";

/** How busy the service is told that its event loop is. Hoisted, for it takes the measure when it is loaded. */
const loop = vi.hoisted(() => {
  const loop = { busy: false };
  const hooks = process.getBuiltinModule("node:perf_hooks");
  const real = hooks.monitorEventLoopDelay;
  hooks.monitorEventLoopDelay = (options) => {
    const histogram = real(options);
    Object.defineProperty(histogram, "mean", { get: () => (loop.busy ? 60e9 : 10e6) });
    return histogram;
  };
  return loop;
});

const it = shared();
const open = (route: string) => it.ask("GET", route, { key: "" });

test("whoever floods the service from one address does not make it look dead", async () => {
  const flood = async (route: string, count: number) => {
    const statuses = new Map<number, number>();
    for (let i = 0; i < count; i += 100)
      for (const { status } of await Promise.all(Array.from({ length: 100 }, () => open(route))))
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
    return Object.fromEntries(statuses);
  };
  expect(Object.keys(await flood("/docs/static/index.html", 6100))).toEqual(["200", "429"]); // the control: there is a bound
  expect(await flood("/healthz", 200)).toEqual({ 200: 200 });
  expect(await flood("/readyz", 200)).toEqual({ 200: 200 });
  expect((await it.ask("GET", "/v1")).status).toBe(200);
}, 120_000);

test("a node that is too busy for requests is not ready, and alive", async () => {
  expect((await open("/readyz")).status).toBe(200);
  loop.busy = true;
  for (;;) {
    const { status, body } = await it.ask("GET", "/v1");
    if (status === 200) continue; // it is measured once a second
    expect({ status, code: body.code }).toEqual({ status: 503, code: "overloaded" }); // the control
    break;
  }
  expect((await open("/healthz")).status).toBe(200);
  const ready = await open("/readyz");
  expect(ready).toMatchObject({ status: 503, body: { code: "overloaded" } });
  loop.busy = false;
});
