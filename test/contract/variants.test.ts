import { spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { Sandbox } from "doublehull";
import { ENGINES } from "../engines.js";

const until = async (what: () => Promise<boolean>): Promise<void> => {
  while (!(await what())) await new Promise((go) => setImmediate(go));
};

describe.each(ENGINES)("without a kernel hull, because the caller said so, with %s", (engine) => {
  test("the same scripts have the same outcomes, and every outcome says that no kernel layer was on", async () => {
    const sandbox = await Sandbox.create({
      engine,
      hull: "language-only",
      parked: 1,
      limits: { wallMs: 2000 },
    });
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

  test("a loop is ended, and a long builtin by the supervisor", async () => {
    const sandbox = await Sandbox.create({
      engine,
      hull: "language-only",
      parked: 1,
      limits: { wallMs: 300 },
    });
    try {
      const loop = await sandbox.run("for (;;);", { type: "script" });
      expect(loop).toMatchObject({ status: "stopped", stop: { reason: "wall-time" } });
      const builtin = await sandbox.run("Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)", {
        type: "script",
      });
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

describe.runIf(ENGINES.includes("v8"))("the package of the V8 engines", () => {
  /** A copy of the program beside packages of which one is not what it should be. */
  function withPackage(change: (dir: string) => void): { cli: string; [Symbol.dispose]: () => void } {
    const root = fileURLToPath(new URL("../..", import.meta.url));
    const home = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-packages-"));
    fs.chmodSync(home, 0o755);
    fs.cpSync(path.join(root, "dist"), path.join(home, "dist"), { recursive: true });
    fs.copyFileSync(path.join(root, "package.json"), path.join(home, "package.json"));
    const packages = path.join(home, "node_modules");
    fs.mkdirSync(packages);
    for (const name of fs.readdirSync(path.join(root, "node_modules"))) {
      if (name !== "isolated-vm")
        fs.symlinkSync(path.join(root, "node_modules", name), path.join(packages, name));
    }
    change(packages);
    return {
      cli: path.join(home, "dist/server/cli.js"),
      [Symbol.dispose]: () => fs.rmSync(home, { recursive: true, force: true }),
    };
  }
  const run = (cli: string, ...args: string[]) =>
    spawnSync(process.execPath, [cli, "run", ...args, "-e", "6 * 7"], { encoding: "utf8" });

  test("may be absent: then quickjs works, and another engine is refused with what to install", () => {
    using home = withPackage(() => {});
    expect(run(home.cli).stdout).toBe("42\n");
    for (const hull of ["double", "language-only"]) {
      const refused = run(home.cli, "--engine", "v8-jitless", "--hull", hull);
      expect(refused.status).toBe(4);
      expect(refused.stdout).toBe("");
      expect(refused.stderr).toMatch(
        /needs the optional package isolated-vm, which is not installed\n +npm install isolated-vm@/,
      );
    }
  });

  test("may not fit this Node: that is said with the same remedy, in the jail and out of it", () => {
    using home = withPackage((packages) => {
      fs.mkdirSync(path.join(packages, "isolated-vm"));
      fs.writeFileSync(
        path.join(packages, "isolated-vm/index.js"),
        "throw new Error('was compiled against a different Node.js version')",
      );
    });
    expect(run(home.cli).stdout).toBe("42\n");
    for (const hull of ["double", "language-only"]) {
      const refused = run(home.cli, "--engine", "v8", "--hull", hull);
      expect(refused.status).toBe(4);
      expect(refused.stderr).toMatch(/does not load[^\n]*\n +npm install isolated-vm@/);
    }
  });
});
