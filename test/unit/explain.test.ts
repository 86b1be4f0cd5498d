import { describe, expect, test } from "vitest";
import { planJail, type HostFacts } from "#osjail/plan";
import { PROFILES } from "#osjail/seccomp";
import { explain, explanationText } from "#server/explain";
import { DEFAULT_LIMITS, LIMITS } from "#server/limits";
import { errorText, excerpt, jsonable, neutral, painter, placeOf, stopText, valueText } from "#server/show";

const host: HostFacts = {
  platform: "linux",
  arch: "aarch64",
  kernel: "6.1.0",
  uid: 1000,
  gid: 1000,
  spareIds: true,
  maySeeUndumpable: false,
  landlockAbi: 4,
  mdwe: false,
  timeNamespace: true,
  keyrings: true,
  cgroups: { available: false, reason: "nothing is delegated", remedy: "delegate" },
};
const plan = planJail(host, {
  profile: "quickjs",
  requireCgroup: false,
  slots: 1,
  maxMemoryBytes: 1 << 26,
  coreScheduling: false,
  speculation: false,
  without: [],
});

describe("explain", () => {
  const explanation = explain({ engine: "quickjs", limits: DEFAULT_LIMITS, grants: [], plan, filter: true });

  test("has every limit, every layer of the plan and every call of the profile", () => {
    expect(explanation.limits.map(({ name }) => name)).toEqual(Object.keys(LIMITS));
    expect(explanation.layers).toBe(plan.layers);
    expect(explanation.systemCalls?.map(({ call }) => call)).toEqual(
      PROFILES.quickjs.rules.map(({ call }) => call),
    );
  });

  test("names the rights that this kernel's Landlock can refuse, and no others", () => {
    expect(explanation.landlock?.abi).toBe(4);
    expect(explanation.landlock?.refused).toContain("net: connect tcp");
    expect(explanation.landlock?.refused).not.toContain("file: ioctl dev"); // ABI 5
    expect(explanation.landlock?.refused).not.toContain("scope: signal"); // ABI 6
  });

  test("disassembles the filter for the host's architecture", () => {
    expect(explanation.filter).toContain("aarch64");
    expect(explanation.filter).not.toContain("x86_64");
  });

  test("says in words what is absent and why", () => {
    const text = explanationText(explanation);
    expect(text).toMatch(/cgroup +absent +nothing is delegated/);
    expect(text).toMatch(/mdwe +absent +needs Linux 6\.3/);
  });

  test("promises nothing of a kernel hull where there is none", () => {
    const none = explain({
      engine: "quickjs",
      limits: DEFAULT_LIMITS,
      grants: [],
      plan: undefined,
      filter: true,
    });
    expect(none).toMatchObject({ hull: "language-only", layers: [], fixed: [] });
    expect(none.systemCalls ?? none.landlock ?? none.filter).toBeUndefined();
    expect(explanationText(none)).toContain("NO kernel hull");
  });
});

describe("hostile text", () => {
  test("control characters, C1, direction marks and lone surrogates become visible; line breaks and tabs stay", () => {
    expect(neutral("a\x1b[2J\x9b1m\x7f\r\0\u202e\u2028\ud800b\n\tü😀")).toBe(
      String.raw`a\x1b[2J\x9b1m\x7f\x0d\x00\u202e\u2028\ud800b` + "\n\tü😀",
    );
  });

  test("errors inside a value are calmed before they are printed in colours", () => {
    const error = Object.assign(new Error("x\x1b[2J"), { stack: "    at \x1b[2J", name: "N\x1b[2J" });
    const text = valueText(new Map([["k", [error]]]), true);
    expect(text).toContain(String.raw`x\x1b[2J`);
    expect(text).not.toContain("\x1b[2J");
  });
});

describe("values as JSON", () => {
  test.each([
    [undefined, { $type: "undefined" }],
    [-0, { $type: "number", value: "-0" }],
    [Number.NaN, { $type: "number", value: "NaN" }],
    [12n, { $type: "bigint", value: "12" }],
    [new Date(Number.NaN), { $type: "Date", value: null }],
    [new Map([[{ a: 1 }, new Set([1n])]]), { $type: "Map", entries: [[{ a: 1 }, { $type: "Set", values: [{ $type: "bigint", value: "1" }] }]] }], // prettier-ignore
    [new Float32Array([1]).subarray(0, 1), { $type: "Float32Array", base64: "AACAPw==" }],
    [new Uint8Array([1, 2]).buffer, { $type: "ArrayBuffer", base64: "AQI=" }],
    [{ $type: "Date", value: 1 }, { $type: "Object", entries: [["$type", "Date"], ["value", 1]] }], // prettier-ignore
    [{ a: [null, "x", true] }, { a: [null, "x", true] }],
  ])("%o", (value, json) => {
    expect(jsonable(value)).toEqual(json);
  });
});

describe("errors and stops in words", () => {
  const plainly = painter(false);

  test("the topmost place of a stack, with and without a function name", () => {
    expect(placeOf({ name: "E", message: "", stack: "    at f (dir/a.js:3:7)\n    at b.js:1:2" })).toEqual({ file: "dir/a.js", line: 3, column: 7 }); // prettier-ignore
    expect(placeOf({ name: "E", message: "", stack: "    at [eval]:1:2" })).toEqual({
      file: "[eval]",
      line: 1,
      column: 2,
    });
    expect(placeOf({ name: "E", message: "", stack: "    at Promise (native)" })).toBeUndefined();
  });

  test("the caret stands below its column, also in a line that is cut and has tabs or escapes", () => {
    const line = `${"\t".repeat(150)}\x1b@${"x".repeat(500)}`;
    const [shown = "", caret = ""] = (excerpt(line, { file: "f", line: 1, column: 152 }) ?? "").split("\n");
    expect(shown.length).toBeLessThan(110);
    expect(shown[caret.indexOf("^")]).toBe("@");
    expect(shown).not.toContain("\x1b");
  });

  test("a place that is not in the source gives no excerpt but the stack", () => {
    const error = { name: "SyntaxError", message: "odd", stack: "    at a.js:9:9" };
    expect(errorText(error, new Map([["a.js", "one line"]]), plainly)).toBe(
      "SyntaxError: odd\n    at a.js:9:9\n",
    );
  });

  test("a stop has its reason, layer, limit and measure in units, and a hint", () => {
    const stop = {
      reason: "memory",
      layer: "cgroup",
      limit: 64 * 1024 * 1024,
      measured: 65.5 * 1024 * 1024,
    } as const;
    expect(stopText(stop, DEFAULT_LIMITS, plainly)).toBe(
      "stopped (memory): it asked for more memory than it may have\n" +
        "    its cgroup ended it, limit 64 MiB, measured 65.5 MiB\n" +
        "    Give it more with --limit memoryMb=N.\n",
    );
    const call = { reason: "syscall", layer: "seccomp", syscall: "openat" } as const;
    expect(stopText(call, DEFAULT_LIMITS, plainly)).toMatch(
      /the seccomp filter ended it, system call openat/,
    );
  });
});
