import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { outsideOf } from "#osjail/attest";
import {
  CGROUP_ERRORS,
  CgroupError,
  detectCgroups,
  isAlive,
  ownerName,
  parseOwnerName,
  parseStat,
  type CgroupSupport,
  type FileView,
} from "#osjail/cgroup";
import { Slot } from "#osjail/cgroup-slot";
import { CgroupTree, sweepCgroups } from "#osjail/cgroup-tree";

/** A file tree as a value: contents by path, and which paths may be written ("*": all that exist). */
function fake(files: Record<string, string>, writable: string[] | "*" = []): FileView {
  const exists = (p: string) => p in files || Object.keys(files).some((f) => f.startsWith(`${p}/`));
  return {
    readFile: (p) => files[p],
    isWritable: (p) => exists(p) && (writable === "*" || writable.includes(p)),
    list: (p) =>
      Object.keys(files)
        .filter((f) => f.startsWith(`${p}/`))
        .map((f) => f.slice(p.length + 1).split("/")[0] ?? ""),
  };
}

const CG = "/sys/fs/cgroup";
const V2_MOUNT = `30 23 0:26 / ${CG} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n`;
function v2Dir(
  dir: string,
  controllers: string,
  enabled: string,
  procs = "",
  root = false,
): Record<string, string> {
  return {
    [`${dir}/cgroup.controllers`]: `${controllers}\n`,
    [`${dir}/cgroup.subtree_control`]: `${enabled}\n`,
    [`${dir}/cgroup.procs`]: procs,
    ...(!root && { [`${dir}/cgroup.events`]: "populated 1\nfrozen 0\n" }),
  };
}
const files = (dir: string) => [dir, `${dir}/cgroup.procs`, `${dir}/cgroup.subtree_control`];

const ALL = "cpuset cpu io memory pids";
const SYSTEMD_ROOT = v2Dir(CG, ALL, ALL, "1\n2\n", true);
const USER = `${CG}/user.slice/user-1000.slice/user@1000.service`;
const SCOPE = `${USER}/app.slice/run-r1.scope`;
const USER_SCOPE = {
  "/proc/self/mountinfo": V2_MOUNT,
  "/proc/self/cgroup": `0::${SCOPE.slice(CG.length)}\n`,
  ...SYSTEMD_ROOT,
  ...v2Dir(`${CG}/user.slice`, ALL, "memory pids"),
  ...v2Dir(`${CG}/user.slice/user-1000.slice`, "memory pids", "memory pids"),
  ...v2Dir(USER, "cpu memory pids", "cpu memory pids"),
  ...v2Dir(`${USER}/app.slice`, "cpu memory pids", "cpu memory pids"),
};

describe("detection on cgroup v2", () => {
  it("as root under systemd takes the nearest cgroup that hands memory and pids down", () => {
    const tree = {
      "/proc/self/mountinfo": V2_MOUNT,
      "/proc/self/cgroup": "0::/system.slice/app.service\n",
      ...SYSTEMD_ROOT,
      ...v2Dir(`${CG}/system.slice`, ALL, "memory pids"),
      ...v2Dir(`${CG}/system.slice/app.service`, "memory pids", "", "50\n51\n"),
    };
    expect(detectCgroups(fake(tree, "*"), [51])).toEqual({
      available: true,
      version: "v2",
      base: { dir: `${CG}/system.slice` },
      cpu: false,
      enable: false,
      move: [],
    });
  });

  it("takes a delegated user scope in which we are alone, and moves us aside", () => {
    const tree = { ...USER_SCOPE, ...v2Dir(SCOPE, "cpu memory pids", "", "77\n") };
    expect(detectCgroups(fake(tree, files(SCOPE)), [77])).toEqual({
      available: true,
      version: "v2",
      base: { dir: SCOPE },
      cpu: true,
      enable: true,
      move: [77],
    });
  });

  it("moves the process that started us too, but only when told that it is ours", () => {
    const view = fake({ ...USER_SCOPE, ...v2Dir(SCOPE, "memory pids", "", "70\n77\n") }, files(SCOPE));
    expect(detectCgroups(view, [77, 70])).toMatchObject({ available: true, move: [70, 77], cpu: false });
    const refused = detectCgroups(view, [77]);
    expect(refused).toMatchObject({ available: false });
    expect(refused).toHaveProperty("reason", expect.stringContaining("holds 1 other process"));
  });

  it("moves aside what we have started, too, and nobody else", () => {
    const stat = (pid: number, parent: number) => ({
      [`/proc/${pid}/stat`]: `${pid} (node) S ${parent} ${"0 ".repeat(17)}9 0\n`,
    });
    const processes = { ...stat(70, 1), ...stat(77, 70), ...stat(78, 70), ...stat(79, 78), ...stat(80, 1) };
    const tree = (inside: string) => ({
      ...USER_SCOPE,
      ...processes,
      ...v2Dir(SCOPE, "memory pids", "", inside),
    });
    const detect = (inside: string, ours: number[]) => detectCgroups(fake(tree(inside), files(SCOPE)), ours);
    expect(detect("70\n77\n78\n79\n", [77, 70])).toMatchObject({ available: true, move: [70, 77, 78, 79] });
    expect(detect("70\n77\n78\n79\n", [70])).toMatchObject({ available: true });
    expect(detect("70\n77\n78\n79\n", [77])).toMatchObject({ available: false });
    expect(detect("70\n77\n80\n", [77, 70])).toHaveProperty(
      "reason",
      expect.stringContaining("holds 1 other"),
    );
    expect(detect("0\n70\n77\n", [77, 70])).toHaveProperty(
      "reason",
      expect.stringContaining("holds 1 other"),
    ); // of another pid namespace
    expect(detect("70\n77\n99\n", [77, 70])).toHaveProperty(
      "reason",
      expect.stringContaining("holds 1 other"),
    ); // has just ended
  });

  it("uses the delegated scope again from the leaf into which an earlier keeper moved everyone", () => {
    const tree = {
      ...USER_SCOPE,
      "/proc/self/cgroup": `0::${SCOPE.slice(CG.length)}/keeper\n`,
      ...v2Dir(SCOPE, "memory pids", "memory pids"),
      ...v2Dir(`${SCOPE}/keeper`, "memory pids", "", "77\n"),
    };
    expect(detectCgroups(fake(tree, [...files(SCOPE), ...files(`${SCOPE}/keeper`)]), [77])).toMatchObject({
      available: true,
      base: { dir: SCOPE },
      enable: false,
      move: [],
    });
  });

  it("without delegation says so and names the command to use", () => {
    const tree = { ...USER_SCOPE, ...v2Dir(SCOPE, "memory pids", "", "77\n") };
    const support = detectCgroups(fake(tree), [77]);
    expect(support).toMatchObject({ available: false, reason: expect.stringContaining("not delegated") });
    expect(support).toHaveProperty(
      "remedy",
      expect.stringContaining("systemd-run --user --scope -p Delegate=yes"),
    );
  });

  it("does not take an ancestor whose cgroup.procs refuses us: joining would fail later", () => {
    const tree = { ...USER_SCOPE, ...v2Dir(SCOPE, "memory pids", "", "1\n77\n") };
    expect(detectCgroups(fake(tree, [`${USER}/app.slice`]), [77])).toMatchObject({ available: false });
  });

  it("enables the controllers itself at the root of the hierarchy, where processes may stay", () => {
    const tree = {
      "/proc/self/mountinfo": V2_MOUNT,
      "/proc/self/cgroup": "0::/\n",
      ...v2Dir(CG, ALL, "", "1\n2\n3\n", true),
    };
    expect(detectCgroups(fake(tree, "*"), [3])).toMatchObject({ base: { dir: CG }, enable: true, move: [] });
  });

  it("tells a container with a read-only cgroup file system what the container lacks", () => {
    const tree = {
      "/proc/self/mountinfo": `30 23 0:26 / ${CG} ro,nosuid - cgroup2 cgroup rw\n`,
      "/proc/self/cgroup": "0::/\n",
      ...v2Dir(CG, "memory pids", "", "1\n7\n"),
    };
    expect(detectCgroups(fake(tree), [7])).toHaveProperty(
      "remedy",
      expect.stringContaining("--cgroupns=private"),
    );
  });

  it("cannot place a cgroup outside of the namespace", () => {
    const tree = { "/proc/self/mountinfo": V2_MOUNT, "/proc/self/cgroup": "0::/../other\n", ...SYSTEMD_ROOT };
    expect(detectCgroups(fake(tree, "*"), [7])).toMatchObject({ available: false });
  });
});

const v1Mounts = (root: string, flags = "rw") =>
  [
    `31 23 0:28 / ${CG} rw - tmpfs tmpfs rw`,
    `32 31 0:29 ${root} ${CG}/cpu,cpuacct ${flags} - cgroup cgroup rw,cpu,cpuacct`,
    `35 31 0:32 ${root} ${CG}/memory ${flags} master:9 - cgroup cgroup rw,memory`,
    `39 31 0:36 ${root} ${CG}/pids ${flags} - cgroup cgroup rw,pids`,
    "",
  ].join("\n");
const v1Cgroups = (p: string) => `4:memory:${p}\n3:cpu,cpuacct:${p}\n2:pids:${p}\n1:name=systemd:${p}\n`;
const v1Dir = (p: string) =>
  Object.fromEntries(["memory", "pids", "cpu,cpuacct"].map((c) => [`${CG}/${c}${p}/cgroup.procs`, ""]));

describe("detection on cgroup v1", () => {
  it("takes our own cgroup in each hierarchy", () => {
    const tree = {
      "/proc/self/mountinfo": v1Mounts("/"),
      "/proc/self/cgroup": v1Cgroups("/a:b/c d"),
      ...v1Dir("/a:b/c d"),
    };
    expect(detectCgroups(fake(tree, "*"))).toEqual({
      available: true,
      version: "v1",
      base: { memory: `${CG}/memory/a:b/c d`, pids: `${CG}/pids/a:b/c d`, cpu: `${CG}/cpu,cpuacct/a:b/c d` },
    });
  });

  it("climbs to the nearest writable ancestor, in each hierarchy for itself", () => {
    const tree = {
      "/proc/self/mountinfo": v1Mounts("/"),
      "/proc/self/cgroup": v1Cgroups("/user/app"),
      ...v1Dir("/user/app"),
    };
    const writable = [`${CG}/memory/user`, `${CG}/pids/user/app`];
    expect(detectCgroups(fake(tree, writable))).toEqual({
      available: true,
      version: "v1",
      base: { memory: `${CG}/memory/user`, pids: `${CG}/pids/user/app` },
    });
  });

  it("on a hybrid host passes over the v2 tree that has no controllers", () => {
    const tree = {
      "/proc/self/mountinfo": v1Mounts("/") + `41 31 0:38 / ${CG}/unified rw,relatime - cgroup2 cgroup2 rw\n`,
      "/proc/self/cgroup": `9:name=systemd:/\n8:pids:/\n4:memory:/own\n1:cpu:/\n0::/\n`,
      ...v1Dir(""),
      ...v1Dir("/own"),
      ...v2Dir(`${CG}/unified`, "", "", "1\n", true),
    };
    expect(detectCgroups(fake(tree, "*"))).toEqual({
      available: true,
      version: "v1",
      base: { memory: `${CG}/memory/own`, pids: `${CG}/pids`, cpu: `${CG}/cpu,cpuacct` },
    });
  });

  it("strips the mount's root from our path, as in a container without a cgroup namespace", () => {
    const tree = {
      "/proc/self/mountinfo": v1Mounts("/docker/abc"),
      "/proc/self/cgroup": v1Cgroups("/docker/abc/app"),
      ...v1Dir("/app"),
    };
    expect(detectCgroups(fake(tree, "*"))).toMatchObject({ base: { memory: `${CG}/memory/app` } });
  });

  it("in a namespace whose path is / takes the top of what the mount shows", () => {
    const tree = {
      "/proc/self/mountinfo": v1Mounts("/docker/abc"),
      "/proc/self/cgroup": v1Cgroups("/"),
      ...v1Dir(""),
    };
    expect(detectCgroups(fake(tree, "*"))).toMatchObject({
      version: "v1",
      base: { memory: `${CG}/memory`, pids: `${CG}/pids`, cpu: `${CG}/cpu,cpuacct` },
    });
  });

  it("does not take another container's cgroup for ours because its name begins alike", () => {
    const tree = {
      "/proc/self/mountinfo": v1Mounts("/docker/abc"),
      "/proc/self/cgroup": v1Cgroups("/docker/abcdef"),
      ...v1Dir(""),
      ...v1Dir("def"),
    };
    expect(detectCgroups(fake(tree, "*"))).toMatchObject({ available: false });
  });

  it("that is read-only is unavailable, with a remedy", () => {
    const tree = {
      "/proc/self/mountinfo": v1Mounts("/", "ro"),
      "/proc/self/cgroup": v1Cgroups("/x"),
      ...v1Dir("/x"),
    };
    const support = detectCgroups(fake(tree));
    expect(support).toMatchObject({ available: false, reason: expect.stringContaining("writable") });
    expect(support).toHaveProperty("remedy", expect.stringContaining("run as root"));
  });

  it("reads mount points with escaped spaces, and lets the last mount on a point win", () => {
    const tree = {
      "/proc/self/mountinfo":
        "1 0 0:1 /old /c\\040g/memory rw - cgroup cgroup rw,memory\n" +
        "2 0 0:1 / /c\\040g/memory rw - cgroup cgroup rw,memory\n" +
        "3 0 0:2 / /c\\040g/pids rw - cgroup cgroup rw,pids\n",
      "/proc/self/cgroup": "2:memory:/old\n1:pids:/\n",
      "/c g/memory/old/cgroup.procs": "",
      "/c g/pids/cgroup.procs": "",
    };
    expect(detectCgroups(fake(tree, "*"))).toMatchObject({
      base: { memory: "/c g/memory/old", pids: "/c g/pids" },
    });
  });
});

it("with nothing mounted, cgroups are unavailable and the remedy says what to mount", () => {
  for (const view of [fake({}), fake({ "/proc/self/mountinfo": "", "/proc/self/cgroup": "0::/\n" })]) {
    const support = detectCgroups(view);
    expect(support).toMatchObject({ available: false, remedy: expect.stringContaining("mount -t cgroup2") });
    expect(() => CgroupTree.create(support, { slots: 1, maxMemoryBytes: 1 << 26 })).toThrow(CgroupError);
    expect(sweepCgroups(support)).toEqual([]);
  }
});

describe("owner names", () => {
  const after = `S ${Array.from({ length: 18 }, (_, i) => i).join(" ")} 4242 1000 200`;

  it("come from field 22, whatever the command calls itself", () => {
    for (const comm of [
      "node",
      "a b",
      "x) S 1 1 1",
      ") R 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9",
      "((()",
      "\n)",
    ]) {
      expect(parseStat(`31 (${comm}) ${after}\n`)).toEqual({ state: "S", parent: 0, startTime: "4242" });
      const files = fake({ "/proc/31/stat": `31 (${comm}) ${after}\n` });
      expect(ownerName(31, files, "4026531836")).toBe("doublehull-31-4242-4026531836");
    }
  });

  it("are refused for stat lines that are cut short, and for processes that do not exist", () => {
    for (const text of [
      "",
      "31 (node",
      "31 (node) S 1 2 3",
      "31 (node) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 x",
    ]) {
      expect(parseStat(text)).toBeUndefined();
    }
    expect(() => ownerName(31, fake({}))).toThrow(CgroupError);
  });

  it("survive the way there and back, for this very process", () => {
    const pidNamespace = String(fs.statSync("/proc/self/ns/pid").ino);
    expect(parseOwnerName(ownerName())).toMatchObject({ pid: process.pid, pidNamespace });
    expect(parseOwnerName("doublehull-31-4242-7")).toEqual({ pid: 31, startTime: "4242", pidNamespace: "7" });
  });

  it("tell a process of another pid namespace, of which nobody here knows whether it lives, from a dead one", () => {
    const own = parseOwnerName(ownerName());
    if (own === undefined) throw new Error("the name of this process was not read");
    expect(isAlive(own)).toBe(true);
    expect(isAlive({ ...own, startTime: "1" })).toBe(false);
    expect(isAlive({ ...own, startTime: "1", pidNamespace: "1" })).toBe(true);
  });

  it("are not read out of anything else", () => {
    const others = [
      "doublehull",
      "doublehull-31",
      "doublehull-31-4242",
      "doublehull-0-1-1",
      "doublehull-031-1-1",
      "doublehull-31-1-0",
      "doublehull-31-4242-x",
      "doublehull-31-4242-7-x",
    ];
    others.push(
      "xdoublehull-31-4242-7",
      "doublehull--31-1-1",
      "doublehull-31-4242-",
      "doublehull-31-4242-7\n",
      "../doublehull-1-1-1",
    );
    for (const name of others) expect(parseOwnerName(name)).toBeUndefined();
  });
});

describe("the place of a process, as /proc/PID/cgroup tells it,", () => {
  const tree = "doublehull-31-4242-7";
  const v2 = { version: "v2", memory: `${CG}/a/${tree}/slot-2`, pids: `${CG}/a/${tree}/slot-2` } as const;
  const v1 = (cpu?: string) =>
    ({
      version: "v1",
      memory: `${CG}/memory/m/${tree}/slot-2`,
      pids: `${CG}/pids/${tree}/slot-2`,
      ...(cpu !== undefined && { cpu }),
    }) as const;
  const lines = (memory: string, pids: string, cpu: string) =>
    `4:memory:${memory}\n3:cpu,cpuacct:${cpu}\n2:pids:${pids}\n0::/\n`;
  const slot = `/${tree}/slot-2`;

  it("is right where the ends agree, whatever the namespace or the mount shows above", () => {
    for (const above of ["", "/a", "/..", "/../../x:y"])
      expect(outsideOf(v2, `0::${above}${slot}\n`)).toBeUndefined();
    expect(outsideOf(v1(), lines(`/m${slot}`, slot, "/"))).toBeUndefined();
    expect(outsideOf(v1(`${CG}/cpu${slot}`), lines(`/m${slot}`, slot, slot))).toBeUndefined();
  });

  it.each([
    ["another slot", v2, `0::/a/${tree}/slot-21\n`, /memory cgroup is \/a\/doublehull.*slot-21, not/],
    ["another keeper's", v2, "0::/a/doublehull-3-4242-7/slot-2\n", /not doublehull-31/],
    ["a removed one", v2, `0::/a${slot} (deleted)\n`, /\(deleted\)/],
    ["one below", v2, `0::/a${slot}/x\n`, /slot-2\/x, not/],
    ["one whose name merely ends alike", v2, `0::/x${slot.slice(1)}\n`, /not doublehull-31/],
    ["none at all", v2, "", /is none, not/],
    ["v1 where v2 was meant", v2, lines(slot, slot, slot), /is \/, not/],
    ["the parent in one hierarchy of v1", v1(), lines(slot, "/", "/"), /pids cgroup is \/, not/],
    ["the parent in the third", v1(`${CG}/cpu${slot}`), lines(slot, slot, "/"), /cpu cgroup is \/, not/],
  ] as const)("is wrong in %s", (_what, paths, text, said) => {
    expect(outsideOf(paths, text)).toMatch(said);
  });

  it("is wrong where no slot was given", () => {
    expect(outsideOf(undefined, `0::${slot}\n`)).toBe("it was given no cgroup");
  });
});

describe("a v2 slot, on plain files in place of the kernel's", () => {
  const present = [
    "pids.max",
    "pids.events",
    "memory.max",
    "memory.swap.max",
    "memory.oom.group",
    "memory.current",
  ];
  present.push("memory.events", "cpu.max");
  const make = (absent: string[] = []) => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), "slot-"));
    for (const name of present) if (!absent.includes(name)) fs.writeFileSync(`${dir}/${name}`, "");
    return dir;
  };

  it("gets memory, swap, oom.group, pids and cpu limits, and reports what its files say", () => {
    const dir = make();
    const slot = Slot.open({ version: "v2", memory: dir, pids: dir, cpu: dir });
    slot.setLimits({ memoryBytes: 33_554_432, pids: 1, cpuQuota: { quotaUs: 50_000, periodUs: 100_000 } });
    const read = (name: string) => fs.readFileSync(`${dir}/${name}`, "utf8");
    expect(["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"].map(read)).toEqual([
      "33554432",
      "0",
      "1",
      "1",
      "50000 100000",
    ]);
    fs.writeFileSync(`${dir}/memory.events`, "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 2\n");
    fs.writeFileSync(`${dir}/pids.events`, "max 5\n");
    expect([slot.oomKills(), slot.pidsMaxEvents()]).toEqual([3, 5]);
    slot.close();
    slot.close();
    expect(() => slot.oomKills()).toThrow(CgroupError);
    fs.rmSync(dir, { recursive: true });
  });

  it("works without swap accounting, memory.peak and cpu.stat, and says so", () => {
    const dir = make(["memory.swap.max"]);
    const slot = Slot.open({ version: "v2", memory: dir, pids: dir });
    slot.setLimits({ memoryBytes: 33_554_432, pids: 1 });
    expect([slot.resetPeak(), slot.peakBytes(), slot.cpuUsageUs()]).toEqual([false, undefined, undefined]);
    expect(() =>
      slot.setLimits({ memoryBytes: 33_554_432, pids: 1, cpuQuota: { quotaUs: 1000, periodUs: 1000 } }),
    ).toThrow(/no cpu controller/);
    slot.close();
    fs.rmSync(dir, { recursive: true });
  });

  it("refuses a limit that did not take: the file holds something else afterwards", () => {
    const dir = make();
    fs.writeFileSync(`${dir}/memory.max`, "9".repeat(30));
    const slot = Slot.open({ version: "v2", memory: dir, pids: dir });
    expect(() => slot.setLimits({ memoryBytes: 33_554_432, pids: 1 })).toThrow(
      expect.objectContaining({
        code: "cgroup-not-armed",
        message: expect.stringContaining(`${dir}/memory.max`),
      }),
    );
    slot.close();
    fs.rmSync(dir, { recursive: true });
  });

  it("refuses limits that are no whole numbers in range, before it writes anything", () => {
    const dir = make();
    const slot = Slot.open({ version: "v2", memory: dir, pids: dir });
    for (const memoryBytes of [0, -1, 1.5, NaN, Infinity, 4096]) {
      expect(() => slot.setLimits({ memoryBytes, pids: 1 })).toThrow(/memoryBytes/);
    }
    expect(() => slot.setLimits({ memoryBytes: 1 << 26, pids: 0 })).toThrow(/pids/);
    expect(fs.readFileSync(`${dir}/memory.max`, "utf8")).toBe("");
    slot.close();
    fs.rmSync(dir, { recursive: true });
  });

  it("that is gone is an error with the file's name and a remedy, and leaves nothing open", () => {
    const before = fs.readdirSync("/proc/self/fd").length;
    const dir = make(["memory.events"]);
    expect(() => Slot.open({ version: "v2", memory: dir, pids: dir })).toThrow(
      expect.objectContaining({ code: "cgroup-open", remedy: CGROUP_ERRORS["cgroup-open"] }),
    );
    expect(fs.readdirSync("/proc/self/fd").length).toBe(before);
    fs.rmSync(dir, { recursive: true });
  });
});

it("a tree that cannot be made leaves nothing behind", () => {
  // Plain directories: making them works, but the kernel's files do not appear in them.
  const base = fs.mkdtempSync(path.join(os.tmpdir(), "base-"));
  const support: CgroupSupport = { available: true, version: "v1", base: { memory: base, pids: base } };
  expect(() => CgroupTree.create(support, { slots: 2, maxMemoryBytes: 1 << 26 })).toThrow(CgroupError);
  expect(fs.readdirSync(base)).toEqual([]);
  fs.rmdirSync(base);
});

it("every error has a remedy that says more than the code", () => {
  for (const remedy of Object.values(CGROUP_ERRORS)) expect(remedy.length).toBeGreaterThan(20);
});
