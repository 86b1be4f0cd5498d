/** Fuel: the one limit that ends a run at the same place however busy the machine is. Only quickjs counts its steps. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Sandbox } from "doublehull";
import { makeSandbox, stopOf, valueOf } from "../harness.js";

describe("fuel", () => {
  let sandbox: Sandbox;
  beforeAll(async () => {
    sandbox = await makeSandbox({ limits: { wallMs: 20_000, cpuMs: 20_000 } });
  });
  afterAll(() => sandbox.close());

  /** Tells how far it came. */
  const COUNT = "let n = 0; for (;;) if (++n % 1000 === 0) console.log(n)";

  test("ends a loop as fuel, by the language, and counts nothing where it is not asked for", async () => {
    const source = "let n = 0; while (n < 1e6) n++; n";
    const stop = stopOf(await sandbox.run(source, { type: "script", limits: { fuel: 100_000 } }));
    expect(stop).toEqual({ reason: "fuel", layer: "language", limit: 100_000, measured: 100_000 });
    expect(valueOf(await sandbox.run(source, { type: "script", limits: { fuel: 20_000_000 } }))).toBe(1e6);
    expect(valueOf(await sandbox.run(source, { type: "script" }))).toBe(1e6);
  });

  test("ends the same script at the same step every time, in whichever image", async () => {
    const ends = async (from: Sandbox) => {
      const { logs } = await from.run(COUNT, { type: "script", limits: { fuel: 200_000 } });
      return Number(logs.at(-1)?.args[0]);
    };
    const [first, ...others] = [await ends(sandbox), await ends(sandbox), await ends(sandbox)];
    const fast = await makeSandbox({ image: "fast-run", limits: { wallMs: 20_000, cpuMs: 20_000 } });
    try {
      others.push(await ends(fast));
    } finally {
      await fast.close();
    }
    expect(first).toBeGreaterThan(50_000);
    expect(others).toEqual([first, first, first]);
    const more = await sandbox.run(COUNT, { type: "script", limits: { fuel: 400_000 } });
    expect(Number(more.logs.at(-1)?.args[0])).toBeGreaterThan(first as number);
  });

  test.each([
    ["recursion that is caught", "const f = (n) => n === 0 ? 0 : f(n - 1); for (;;) try { f(50) } catch {}"],
    ["a generator", "function* g() { for (;;) yield 1 } for (const x of g()) x"],
    ["promises", "(async () => { for (;;) await 0 })()"],
    ["a catch that goes on", "for (;;) try { for (;;); } catch {}"],
    ["a getter of the result", "({ get a() { for (;;); } })"],
  ])("is used up by %s as well", async (_name, source) => {
    const stop = stopOf(await sandbox.run(source, { type: "script", limits: { fuel: 1_000_000 } }));
    expect(stop.reason).toBe("fuel");
  });

  test("is a part of a recording, and its replay ends at the same step", async () => {
    const outcome = await sandbox.run(COUNT, { type: "script", record: true, limits: { fuel: 300_000 } });
    expect(stopOf(outcome).reason).toBe("fuel");
    const again = await sandbox.replay(outcome.recording as never);
    expect(again).toMatchObject({ identical: true });
  });
});
