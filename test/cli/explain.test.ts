import { expect, test } from "vitest";
import type { Explanation } from "#server/explain";
import { cli } from "./command.js";

test("explain starts nothing and says what a run has in fact", async () => {
  const explained = await cli(["explain", "--json", "--limit", "memoryMb=32"]);
  expect(explained).toMatchObject({ code: 0, stderr: "" });
  const explanation: Explanation = JSON.parse(explained.stdout);
  const ran = await cli(["run", "--json", "-e", "1"]);
  const outcome: { layers: { kernel: unknown[] } } = JSON.parse(ran.stdout);
  expect(explanation.layers).toEqual(outcome.layers.kernel);
  expect(explanation.limits.find(({ name }) => name === "memoryMb")?.value).toBe(32);
});

test("explain for people has the limits, the layers, the calls, and the filter if asked", async () => {
  const { code, stdout } = await cli(["explain", "--filter"]);
  expect(code).toBe(0);
  for (const part of ["wallMs", "user-namespace", "Landlock ABI", "exit_group", "return KILL_PROCESS"]) {
    expect(stdout).toContain(part);
  }
  expect((await cli(["explain"])).stdout).not.toContain("return KILL_PROCESS");
});

test("explain says that there is no kernel hull where there is none", async () => {
  const { code, stdout } = await cli(["explain", "--hull", "language-only"]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/NO kernel hull/);
});

test("a limit out of range is a mistake of the caller here too", async () => {
  expect(await cli(["explain", "--limit", "wallMs=1"])).toMatchObject({ code: 2, stdout: "" });
});
