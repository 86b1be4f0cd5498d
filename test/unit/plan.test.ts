import { describe, expect, it } from "vitest";
import { LANDLOCK_ABI } from "#osjail/abi/linux";
import { JAIL_ERRORS, JailError, type JailErrorCode } from "#osjail/errors";
import { explainLandlock, landlockRules } from "#osjail/landlock";
import { callCount, planJail, type HostFacts, type JailRequest, type LayerName } from "#osjail/plan";
import { PROFILES } from "#osjail/seccomp";

const ROOT: HostFacts = {
  platform: "linux",
  arch: "x86_64",
  kernel: "6.18.0",
  uid: 0,
  gid: 0,
  spareIds: true,
  maySeeUndumpable: true,
  landlockAbi: 7,
  mdwe: true,
  timeNamespace: true,
  keyrings: true,
  cgroups: {
    available: true,
    version: "v2",
    base: { dir: "/sys/fs/cgroup" },
    cpu: true,
    enable: false,
    move: [],
  },
};
const USER: HostFacts = {
  ...ROOT,
  uid: 1000,
  gid: 1001,
  spareIds: true,
  maySeeUndumpable: false,
  cgroups: { available: false, reason: "no delegation", remedy: "ask for it" },
};
const REQUEST: JailRequest = {
  profile: "quickjs",
  requireCgroup: false,
  slots: 3,
  maxMemoryBytes: 1 << 26,
  coreScheduling: false,
  speculation: false,
  without: [],
};

const statesOf = (host: HostFacts, request: Partial<JailRequest> = {}) =>
  Object.fromEntries(
    planJail(host, { ...REQUEST, ...request }).layers.map(({ layer, state }) => [layer, state]),
  );

/** Where looking at the host has found more than the table can know. */
const remedies: Partial<Record<JailErrorCode, string>> = { cgroup: "ask for it" };
const names = (host: HostFacts) => planJail(host, REQUEST).layers.map(({ layer }) => layer);
const bits = (n = 0) => n.toString(2).replaceAll("0", "").length;

describe("the plan", () => {
  it("says which layers an engine that compiles cannot have, and asks for none of them", () => {
    const held = statesOf(ROOT, { profile: "v8-jitless" });
    const states = statesOf(ROOT, { profile: "v8" });
    expect(held).toMatchObject({ mdwe: "on", "sealed-code": "on" });
    expect(states).toEqual({ ...held, mdwe: "off", "sealed-code": "off" });
    const plan = planJail(ROOT, { ...REQUEST, profile: "v8" });
    expect(plan).toMatchObject({ mdwe: false, compiles: true });
    expect(plan.layers.find(({ layer }) => layer === "mdwe")?.detail).toContain("not held: v8 compiles");
    expect(planJail(ROOT, REQUEST)).toMatchObject({ mdwe: true, compiles: false });
  });

  it("gives root's jail an own high id, a cgroup, and workers that are not dumpable", () => {
    const plan = planJail(ROOT, REQUEST);
    expect(plan).toMatchObject({
      ids: { kind: "high" },
      dumpable: false,
      cgroup: { slots: 3, maxMemoryBytes: 1 << 26 },
    });
    const off = Object.entries(statesOf(ROOT)).filter(([, state]) => state !== "on");
    expect(Object.fromEntries(off)).toEqual({ "core-scheduling": "off", speculation: "off" });
  });

  it("gives an ordinary user's jail its own id, rlimits alone, and workers that it can attest", () => {
    const plan = planJail(USER, REQUEST);
    expect(plan).toMatchObject({
      ids: { kind: "own", uid: 1000, gid: 1001 },
      dumpable: true,
      cgroup: undefined,
    });
    expect(statesOf(USER)).toMatchObject({
      "other-uid": "absent",
      "not-dumpable": "absent",
      cgroup: "absent",
      rlimits: "on",
    });
    expect(plan.layers.find(({ layer }) => layer === "cgroup")?.detail).toBe("no delegation");
  });

  it("reports an extra that the kernel lacks as absent, and goes on", () => {
    const old: HostFacts = { ...ROOT, mdwe: false, timeNamespace: false, landlockAbi: 1 };
    expect(statesOf(old)).toMatchObject({ mdwe: "absent", "time-namespace": "absent", landlock: "on" });
    expect(planJail(old, REQUEST)).toMatchObject({ mdwe: false, timeNamespace: false, landlock: { abi: 1 } });
  });

  it.each<[string, HostFacts, Partial<JailRequest>, JailErrorCode]>([
    ["another system", { ...ROOT, platform: "darwin" }, {}, "not-linux"],
    ["a kernel without Landlock", { ...ROOT, landlockAbi: 0 }, {}, "landlock"],
    ["no cgroup though one is required", USER, { requireCgroup: true }, "cgroup"],
  ])("refuses %s, with a remedy", (_, host, request, code) => {
    let caught: unknown;
    try {
      planJail(host, { ...REQUEST, ...request });
    } catch (error) {
      caught = error;
    }
    expect(caught).toBeInstanceOf(JailError);
    expect(caught).toMatchObject({ code, remedy: remedies[code] ?? JAIL_ERRORS[code] });
  });

  it("reports a layer that the lab left out as off, never as on or absent", () => {
    const layers = planJail(ROOT, REQUEST).layers.map(({ layer }) => layer);
    for (const host of [ROOT, USER]) {
      for (const layer of layers) expect(statesOf(host, { without: [layer] })[layer]).toBe("off");
    }
    expect(planJail(ROOT, { ...REQUEST, without: ["cgroup"] }).cgroup).toBe(undefined);
  });

  it("names every layer once and in the same order on every host", () => {
    expect(names(USER)).toEqual(names(ROOT));
    expect(new Set(names(ROOT)).size).toBe(names(ROOT).length);
  });

  it("is data: it survives the way to the keeper", () => {
    for (const host of [ROOT, USER]) {
      const plan = planJail(host, REQUEST);
      expect(JSON.parse(JSON.stringify(plan))).toEqual(JSON.parse(JSON.stringify({ ...plan })));
    }
  });

  it("does not change what it was given", () => {
    const without: LayerName[] = ["seccomp"];
    const host = structuredClone(ROOT);
    planJail(host, { ...REQUEST, without });
    expect(host).toEqual(ROOT);
    expect(without).toEqual(["seccomp"]);
  });

  it("counts the filter's calls", () => {
    for (const profile of ["quickjs", "typescript", "owned"] as const) {
      expect(callCount(profile)).toBe(PROFILES[profile].rules.length);
      const { layers } = planJail(ROOT, { ...REQUEST, profile });
      expect(layers.find(({ layer }) => layer === "seccomp")?.detail).toContain(
        `${callCount(profile)} system calls`,
      );
    }
  });
});

describe("Landlock's rules", () => {
  it("are those of the kernel's own ABI, and of the newest known one on a kernel of the future", () => {
    for (const { abi, fs, net, scope } of LANDLOCK_ABI)
      expect(landlockRules(abi)).toEqual({ abi, fs, net, scope });
    expect(landlockRules(99)).toEqual(landlockRules(LANDLOCK_ABI.at(-1)?.abi ?? 0));
  });

  it("are none where there is no Landlock", () => {
    expect(landlockRules(0)).toBe(undefined);
  });

  it("never ask an older kernel for a right that it does not know", () => {
    for (let abi = 2; abi <= 7; abi++) {
      const [older, newer] = [landlockRules(abi - 1), landlockRules(abi)];
      for (const part of ["fs", "net", "scope"] as const) {
        expect((older?.[part] ?? 0) & ~(newer?.[part] ?? 0), `${part} of ABI ${abi - 1}`).toBe(0);
      }
    }
    // Written out by hand from man 7 landlock: thirteen file rights at first, then one each; TCP with 4; scopes with 6.
    const count = [1, 2, 3, 4, 5, 6, 7].map((abi) => {
      const rules = landlockRules(abi);
      return [bits(rules?.fs), bits(rules?.net), bits(rules?.scope)];
    });
    expect(count).toEqual([[13, 0, 0], [14, 0, 0], [15, 0, 0], [15, 2, 0], [16, 2, 0], [16, 2, 2], [16, 2, 2]]); // prettier-ignore
  });

  it("are explained with what they refuse and nothing more", () => {
    const words = [1, 4, 6].map((abi) =>
      explainLandlock(landlockRules(abi) ?? { abi: 0, fs: 0, net: 0, scope: 0 }),
    );
    expect(words).toEqual([
      "ABI 1: every file access",
      "ABI 4: every file access, TCP bind and connect",
      "ABI 6: every file access, TCP bind and connect, abstract sockets and signals beyond the domain",
    ]);
  });
});
