import { describe, expect, test } from "vitest";
import { Sandbox } from "doublehull";

const until = async (what: () => Promise<boolean>): Promise<void> => {
  while (!(await what())) await new Promise((go) => setImmediate(go));
};

describe("without a kernel hull, because the caller said so", () => {
  test("the same scripts have the same outcomes, and every outcome says that no kernel layer was on", async () => {
    const sandbox = await Sandbox.create({ hull: "language-only", parked: 1, limits: { wallMs: 2000 } });
    try {
      const fine = await sandbox.run("export default (input) => { console.log('hi'); return input * 2 }", {
        input: 21,
      });
      expect(fine).toMatchObject({ status: "ok", value: 42, layers: { hull: "language-only", kernel: [] } });
      expect(fine.logs.map(({ args }) => args)).toEqual([["hi"]]);
      const threw = await sandbox.run("\n  throw new TypeError('no')", { type: "script", name: "a.js" });
      expect(threw).toMatchObject({ status: "threw", error: { name: "TypeError", message: "no" } });
      if (threw.status === "threw") expect(threw.error.stack).toContain("a.js:2:");
      const typed = await sandbox.run("const x: number = 1; export default (): number => x", {
        name: "a.ts",
      });
      expect(typed).toMatchObject({ status: "ok", value: 1 });
    } finally {
      await sandbox.close();
    }
  });

  test("a loop is ended by the language, and a long builtin by the supervisor", async () => {
    const sandbox = await Sandbox.create({ hull: "language-only", parked: 1, limits: { wallMs: 300 } });
    try {
      const loop = await sandbox.run("for (;;);", { type: "script" });
      expect(loop).toMatchObject({ status: "stopped", stop: { reason: "wall-time" } });
      const builtin = await sandbox.run("new Array(1e9) + ''", { type: "script" });
      expect(builtin).toMatchObject({
        status: "stopped",
        stop: { reason: "wall-time", layer: "supervisor" },
      });
    } finally {
      await sandbox.close();
    }
  });
});

describe.runIf(process.platform === "linux")("the images of the engine", () => {
  test("fast-run gives the outcomes that fast-start gives", async () => {
    const sandbox = await Sandbox.create({ image: "fast-run", parked: 1 });
    try {
      expect(await sandbox.run("export default () => [1n, new Date(0)]")).toMatchObject({
        status: "ok",
        value: [1n, new Date(0)],
      });
      expect(await sandbox.run("for (;;);", { type: "script", limits: { wallMs: 100 } })).toMatchObject({
        status: "stopped",
        stop: { reason: "wall-time" },
      });
    } finally {
      await sandbox.close();
    }
  });

  test("auto serves from the first image, and goes on from the second without losing a run", async () => {
    const sandbox = await Sandbox.create({ image: "auto", parked: 1 });
    try {
      const hulls = new Set<unknown>();
      await until(async () => {
        const outcome = await sandbox.run("export default () => 1");
        expect(outcome).toMatchObject({ status: "ok", value: 1 });
        hulls.add(outcome.layers);
        return hulls.size === 2;
      });
    } finally {
      await sandbox.close();
    }
  });
});
