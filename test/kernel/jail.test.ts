/**
 * The jail as the kernel shows it from outside, the attestation that reads it, and what either does when a layer is
 * missing. Workers here are of the owned engine; nothing runs in most of them.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { ERRNO } from "#osjail/abi/linux";
import { attest, filterCount } from "#osjail/attest";
import type { SlotPaths } from "#osjail/cgroup-slot";
import { JailError } from "#osjail/errors";
import type { JailPlan, LayerName } from "#osjail/plan";
import { syscallNumber } from "#osjail/libc.ffi";
import { Sandbox } from "#server/sandbox";
import type { Layers } from "#server/outcome";
import { ENGINES } from "../engines.js";
import { until } from "../harness.js";
import {
  ALL_LAYERS,
  answerOf,
  asRoot,
  attack,
  control,
  host,
  ownedHull,
  OwnedHull,
  stopOf,
  valueOf,
  type Victim,
} from "../escape/harness.js";

const { facts } = host;
const LIMITS = { dataBytes: 1 << 26, cgroupBytes: 1 << 26, cpuSeconds: 5 };

const children: ChildProcess[] = [];
const parked: Victim[] = [];
afterEach(async () => {
  for (const child of children.splice(0)) {
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }
  for (const { parked: p, worker } of parked.splice(0)) {
    p.discard();
    await worker.exited;
  }
});

/** A process of ours without a jail, which the attestation is shown as if it were a worker. */
async function plainProcess(): Promise<number> {
  const child = spawn("sleep", ["600"], { stdio: "ignore", env: {} });
  children.push(child);
  await once(child, "spawn");
  if (child.pid === undefined) throw new Error("it did not start");
  return child.pid;
}

async function parkedWorker(
  without: readonly LayerName[] = [],
  engine: "owned" | "quickjs" | "v8-jitless" | "v8" = "owned",
): Promise<Victim & { hull: OwnedHull; proc: string }> {
  const hull = await ownedHull({ without, engine });
  const victim = await hull.fork();
  parked.push(victim);
  return { ...victim, hull, proc: `/proc/${victim.worker.pid}` };
}

/** What the attestation says of a process, under the plan of a jail that lacks these layers only. */
function difference(
  pid: number,
  plan: JailPlan,
  off: readonly LayerName[],
  inherited: number,
  slot?: SlotPaths,
): string {
  // Where no slot is named, the cgroup is not what the test is about.
  const without: LayerName[] = slot === undefined ? [...off, "cgroup"] : [...off];
  try {
    attest(pid, { ...plan, without }, inherited, true, slot);
    return "none";
  } catch (error) {
    if (!(error instanceof JailError)) throw error;
    expect(error.code).toBe("attestation");
    expect(error.remedy).not.toBe("");
    return error.message;
  }
}

const uid = (pid: number) => /^Uid:\s*(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, "latin1"))?.[1];
/** Mappings of a kind, as `/proc/PID/maps` writes it. */
const pagesOf = (proc: string, mode: string) =>
  fs.readFileSync(`${proc}/maps`, "latin1").match(new RegExp(`^[0-9a-f]+-[0-9a-f]+ ${mode}`, "gm"))?.length ??
  0;
const owner = (proc: string) => fs.statSync(`${proc}/maps`).uid;
const group = (proc: string) => fs.readFileSync(`${proc}/cgroup`, "utf8");
const probesWithout = async (layer: LayerName) => (await ownedHull({ without: [layer] })).zygote.probes;

describe("a parked worker, seen from outside,", () => {
  it("holds no capability, no privilege to gain and exactly one filter more than its zygote", async () => {
    const { proc, hull } = await parkedWorker();
    const status = fs.readFileSync(`${proc}/status`, "latin1");
    for (const set of ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]) {
      expect(status).toMatch(new RegExp(`^${set}:\\s*0000000000000000$`, "m"));
    }
    expect(status).toMatch(/^NoNewPrivs:\s*1$/m);
    expect(status).toMatch(/^Seccomp:\s*2$/m);
    expect(status).toMatch(/^Threads:\s*1$/m);
    // An ordinary user may not drop its supplementary groups: setgroups(2) is denied in its user namespace.
    if (process.getuid?.() === 0) expect(status).toMatch(/^Groups:\s*$/m);
    expect(filterCount(Number(proc.slice(6)))).toBe(filterCount(hull.zygote.pid) + 1);
  });

  it("is a user that nobody is, though the caller is root", async ({ skip }) => {
    if (!asRoot) skip("an ordinary user has only its own id to give");
    const { proc, hull } = await parkedWorker();
    const ids = (name: string) =>
      (new RegExp(`^${name}:(.*)$`, "m").exec(fs.readFileSync(`${proc}/status`, "latin1"))?.[1] ?? "")
        .trim()
        .split(/\s+/);
    for (const name of ["Uid", "Gid"]) {
      const all = ids(name).map(Number);
      expect(new Set(all).size).toBe(1);
      expect(all[0]).toBeGreaterThan(1000);
      expect(
        fs
          .readFileSync("/etc/passwd", "utf8")
          .split("\n")
          .some((line) => Number(line.split(":")[2]) === all[0]),
      ).toBe(false);
    }
    const other = await OwnedHull.start({ slots: 1 });
    try {
      const neighbour = await other.fork();
      expect(uid(neighbour.worker.pid)).not.toBe(ids("Uid")[0]);
      neighbour.parked.discard();
      await neighbour.worker.exited;
    } finally {
      await other.stop();
    }
    expect(hull.zygote.alive).toBe(true);
  });

  it("shares no namespace with the host, and not its pid namespace with another worker", async () => {
    const [one, two] = [await parkedWorker(), await parkedWorker()];
    const spaces = [
      "user",
      "pid",
      "mnt",
      "net",
      "ipc",
      "uts",
      "cgroup",
      ...(facts.timeNamespace ? ["time"] : []),
    ];
    const of = (proc: string) =>
      Object.fromEntries(spaces.map((name) => [name, fs.readlinkSync(`${proc}/ns/${name}`)]));
    const [host, first, second] = [of("/proc/self"), of(one.proc), of(two.proc)];
    for (const name of spaces) expect(first[name], name).not.toBe(host[name]);
    expect(first["pid"]).not.toBe(second["pid"]);
    expect(fs.readFileSync(`${one.proc}/status`, "latin1")).toMatch(/^NSpid:\s*\d+\s+\d+\s+1$/m);
  });

  it("stands in an empty root of its own and has one descriptor", async () => {
    const { proc } = await parkedWorker();
    expect(fs.readdirSync(`${proc}/root/`)).toEqual([]);
    expect(fs.readFileSync(`${proc}/mountinfo`, "utf8").trim().split("\n")).toEqual([
      expect.stringMatching(/ \/ \/ ro,nosuid,nodev,noexec.* - tmpfs /),
    ]);
    expect(fs.readdirSync(`${proc}/fd`)).toEqual(["3"]);
    expect(fs.readFileSync(`${proc}/environ`, "latin1")).toBe("TZ=UTC\0");
  });

  it.each(
    ENGINES.includes("v8-jitless")
      ? (["owned", "quickjs", "v8-jitless"] as const)
      : (["owned", "quickjs"] as const),
  )("has no page that is writable and executable, where V8 had made some (%s)", async (engine) => {
    const { proc } = await parkedWorker([], engine);
    expect(pagesOf(proc, "r-xp")).toBeGreaterThan(0);
    expect(pagesOf(proc, ".wx.")).toBe(0);
    if (engine !== "quickjs") return; // without WebAssembly V8 had no such page
    const unsealed = await parkedWorker(["sealed-code"], engine);
    expect(pagesOf(unsealed.proc, ".wx.")).toBeGreaterThan(0);
  });

  it.runIf(ENGINES.includes("v8"))(
    "may make code where its engine compiles, and nowhere else, and its layers say so",
    async () => {
      const map = `return memory(1) && syscall("mmap", 0, 4096, 7, 0x22, -1, 0)`;
      const hull = await ownedHull({ profile: "v8" });
      expect(answerOf(await attack(hull, map)).errno).toBe(0);
      expect(stopOf(await attack(await ownedHull(), map))).toMatchObject({
        reason: "syscall",
        syscall: "mmap",
      });
      const held = (layers: Layers) =>
        layers.kernel
          .filter(({ layer }) => layer === "sealed-code" || layer === "mdwe")
          .map(({ state }) => state);
      expect(held(hull.layers)).toEqual(["off", "off"]);
      // Every other condition on memory stays: nothing shared, no file, no stack that grows.
      for (const flags of [0x21, 0x122, 0x2]) {
        const wrong = `return syscall("mmap", 0, 4096, 7, ${flags}, -1, 0)`;
        expect(stopOf(await attack(hull, wrong))).toMatchObject({ syscall: "mmap" });
      }
    },
  );

  it("has limits that it cannot raise", async () => {
    const { proc } = await parkedWorker();
    const limits = fs.readFileSync(`${proc}/limits`, "latin1");
    const limit = (name: string) => new RegExp(`^${name}\\s+(\\S+)\\s+(\\S+)`, "m").exec(limits)?.slice(1);
    for (const name of [
      "Max core file size",
      "Max file size",
      "Max processes",
      "Max open files",
      "Max locked memory",
      "Max msgqueue size",
    ]) {
      expect(limit(name), name).toEqual(["0", "0"]);
    }
    expect(limit("Max cpu time")).toEqual(["21", "21"]);
    const [soft, hard] = limit("Max data size") ?? [];
    expect(soft).toBe(hard);
    const vmData = Number(/^VmData:\s*(\d+)/m.exec(fs.readFileSync(`${proc}/status`, "latin1"))?.[1]) * 1024;
    expect(Number(hard) - vmData).toBeLessThanOrEqual((64 + 24) * 1024 * 1024);
  });

  it("hides its memory behind root's ownership where the supervisor may look all the same", async ({
    skip,
  }) => {
    if (!facts.maySeeUndumpable) skip("an ordinary supervisor must read the worker's /proc itself");
    // The kernel gives the files of an undumpable process to root. man 5 proc_pid
    const open = await parkedWorker(["not-dumpable"]);
    expect(owner(open.proc)).toBeGreaterThan(1000);
    expect(owner((await parkedWorker()).proc)).toBe(0);
  });

  it("is in a cgroup of its own, with room for one process", async ({ skip }) => {
    if (!facts.cgroups.available) skip(facts.cgroups.reason);
    const [one, two] = [await parkedWorker(), await parkedWorker()];
    expect(group(one.proc)).not.toBe(group(two.proc));
    expect(group(one.proc)).toMatch(/doublehull-.*\/slot-\d+/);
    expect(one.worker.cgroup?.processes()).toEqual([one.worker.pid]);
  });
});

describe("the attestation", () => {
  it("finds nothing wrong with a worker", async () => {
    const { worker, hull } = await parkedWorker();
    expect(difference(worker.pid, hull.zygote.plan, [], filterCount(hull.zygote.pid))).toBe("none");
  });

  it("names one difference after the other of a process without a jail", async () => {
    const { plan } = (await ownedHull()).zygote;
    const pid = await plainProcess();
    const off: LayerName[] = [];
    const said = (layer: LayerName) => {
      const what = difference(pid, plan, off, 0);
      off.push(layer);
      return what;
    };
    expect(said("seccomp")).toMatch(/0 seccomp filters, not 1|seccomp filters/);
    expect(said("no-new-privs")).toMatch(/NoNewPrivs is "[01]", not "1"|Cap/);
    if (asRoot) {
      expect(said("capabilities")).toMatch(/Cap\w+ is "[0-9a-f]{16}", not "0{16}"/);
      expect(difference(pid, plan, off, 0)).toContain("it has the host's uid 0");
      return;
    }
    expect(said("capabilities")).toMatch(/CapBnd is/);
    for (const name of ["user", "pid", "mount", "net", "ipc", "uts", "cgroup"] as const) {
      expect(said(`${name}-namespace`)).toContain(`it shares the host's ${name} namespace`);
    }
    expect(difference(pid, plan, off, 0)).toMatch(/its open descriptors are 0, 1, 2/);
  });

  it.each([
    ["pid-namespace", "it shares the host's pid namespace"],
    ["net-namespace", "it shares the host's net namespace"],
    ["ipc-namespace", "it shares the host's ipc namespace"],
    ["uts-namespace", "it shares the host's uts namespace"],
    ["cgroup-namespace", "it shares the host's cgroup namespace"],
    ["seccomp", "it has 1 seccomp filters, not 2"],
    ["capabilities", /CapPrm is "[0-9a-f]{16}", not "0{16}"|CapBnd/],
  ] as const)("sees that a worker really lacks %s, when its plan does not excuse it", async (layer, said) => {
    const { worker, hull } = await parkedWorker([layer]);
    const inherited = filterCount(hull.zygote.pid);
    expect(difference(worker.pid, hull.zygote.plan, [layer], inherited)).toBe("none");
    expect(difference(worker.pid, hull.zygote.plan, [], inherited)).toMatch(said);
  });

  it("sees a page that is writable and executable", async () => {
    const { worker, hull, ...victim } = await parkedWorker(["mdwe", "seccomp"]);
    const inherited = filterCount(hull.zygote.pid);
    expect(difference(worker.pid, hull.zygote.plan, ["mdwe", "seccomp"], inherited)).toBe("none");
    await hull.hold({ worker, ...victim }, 'return syscall("mmap", 0, 4096, 7, 0x22, -1, 0).errno');
    expect(difference(worker.pid, hull.zygote.plan, ["mdwe", "seccomp"], inherited)).toMatch(
      /writable and executable/,
    );
    expect(difference(worker.pid, hull.zygote.plan, ["mdwe", "seccomp", "sealed-code"], inherited)).toBe(
      "none",
    );
  });

  it("sees a worker that is in another cgroup than its own, in any hierarchy, or in none of ours", async ({
    skip,
  }) => {
    if (!facts.cgroups.available) skip(facts.cgroups.reason);
    const [one, two] = [await parkedWorker(), await parkedWorker()];
    const { plan, pid: keeper } = one.hull.zygote;
    const inherited = filterCount(keeper);
    const [mine, other] = [one, two].map(({ worker }) => worker.cgroup?.paths) as [SlotPaths, SlotPaths];
    const said = (slot: SlotPaths) => difference(one.worker.pid, plan, [], inherited, slot);
    expect(said(mine)).toBe("none");
    expect(said(other)).toMatch(/its memory cgroup is .*slot-\d+, not doublehull-/);
    expect(() => attest(one.worker.pid, plan, inherited, true, undefined)).toThrow("it was given no cgroup");

    if (!asRoot) return; // moving a process takes the right to write both cgroups
    const move = (to: string) => fs.writeFileSync(`${to}/cgroup.procs`, String(one.worker.pid));
    for (const controller of ["pids", "memory", "cpu"] as const) {
      const [here, there] = [mine[controller], other[controller]];
      if (here === undefined || there === undefined) continue;
      for (const wrong of [path.dirname(path.dirname(here)), there]) {
        if (mine.version === "v2" && wrong !== there) continue; // no process beside the slots' tree. v2.rst
        // A slot has room for one process; moving is not forking, so the limit does not hinder it. pids.rst
        move(wrong);
        expect(said(mine), wrong).toMatch(new RegExp(`its ${mine.version === "v2" ? "memory" : controller} cgroup is `)); // prettier-ignore
        expect(() => one.hull.zygote.attest(one.worker, LIMITS)).toThrow(JailError);
      }
      move(here);
      expect(said(mine)).toBe("none");
    }
  });

  it("sees a worker that has a filter too many, or was counted wrong", async () => {
    const { worker, hull } = await parkedWorker();
    expect(difference(worker.pid, hull.zygote.plan, [], filterCount(hull.zygote.pid) + 1)).toMatch(
      /2 seccomp filters, not 3/,
    );
  });

  it("refuses a process that has ended", async () => {
    const { plan } = (await ownedHull()).zygote;
    const pid = await plainProcess();
    const [child] = children.splice(0);
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
    expect(() => attest(pid, plan, 0, true, undefined)).toThrow(/ENOENT|ESRCH/);
  });
});

describe("a run that goes on", () => {
  /** man 5 proc_pid_stat (19) */
  const niceOf = (pid: number) => {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[16]);
  };

  /** `look` sees the worker of an endless run that has just begun, and what becomes of it. The next begins as it did. */
  async function whileItRuns(hull: OwnedHull, look: (worker: Victim["worker"]) => Promise<void>) {
    for (let i = 0; i < 2; i++) {
      const victim = await hull.fork();
      const running = hull.attack(victim, "for (;;);");
      try {
        await look(victim.worker);
      } finally {
        victim.worker.kill();
      }
      expect(stopOf(await running).reason).toBe("crash");
    }
  }

  it("gives way to every process where it has no cgroup", async () => {
    await whileItRuns(await ownedHull({ without: ["cgroup"] }), async ({ pid }) => {
      expect(niceOf(pid)).toBe(niceOf(process.pid)); // the control: until then it is like any other
      await until("it is nicer", () => niceOf(pid) === 10);
    });
  });

  it("gives way to its siblings alone where its cgroup has a share of the CPU", async ({ skip }) => {
    if (!facts.cgroups.available) skip(facts.cgroups.reason);
    await whileItRuns(await ownedHull(), async ({ pid, cgroup }) => {
      const { version, cpu } = (cgroup as NonNullable<typeof cgroup>).paths;
      if (cpu === undefined) return skip("no cpu controller can be had here");
      const [file, first, later] = version === "v2" ? ["cpu.weight", 100, 10] : ["cpu.shares", 1024, 102];
      const share = () => Number(fs.readFileSync(`${cpu}/${file}`, "latin1"));
      expect(share()).toBe(first);
      await until("it has a tenth", () => share() === later);
      expect(niceOf(pid)).toBe(niceOf(process.pid));
    });
  });
});

describe("a zygote that is stopped", () => {
  it("while all its workers are on their way ends with them: the order comes behind theirs, and is not lost", async () => {
    const hull = await OwnedHull.start({ slots: 12 });
    const workers = Array.from({ length: 12 }, () => hull.zygote.fork());
    expect(workers.every((worker) => worker !== undefined)).toBe(true);
    expect(hull.zygote.fork()).toBeUndefined();
    await hull.stop();
    for (const worker of workers) expect((await worker?.exited)?.status).not.toBe(0);
    expect(hull.zygote.fork()).toBeUndefined();
    expect(() => process.kill(hull.zygote.pid, 0)).toThrow("ESRCH");
  });
});

describe("a zygote whose cgroups have vanished", () => {
  it("ends with an error that says so, and no worker of it parks", async ({ skip }) => {
    if (!facts.cgroups.available) skip(facts.cgroups.reason);
    const hull = await OwnedHull.start({ slots: 1 });
    try {
      const { worker, parked: first } = await hull.fork(); // the control
      const { memory, pids, cpu } = (worker.cgroup as NonNullable<typeof worker.cgroup>).paths;
      first.discard();
      await worker.exited;
      for (const dir of new Set([memory, pids, cpu ?? pids])) fs.rmdirSync(dir);
      await expect(hull.fork()).rejects.toThrow("before it was parked");
      await hull.zygote.ended;
      expect(hull.zygote.failure).toMatchObject({
        code: "cgroup",
        message: expect.stringContaining(memory) as string,
      });
      expect(hull.zygote.fork()).toBeUndefined();
    } finally {
      await hull.stop();
    }
  });
});

describe("the zygote's probes", () => {
  it("attempted what Landlock, MDWE and the filter refuse, with a control before", async () => {
    const { zygote } = await ownedHull();
    expect(zygote.probes).toMatchObject({
      openBeforeLandlock: 0,
      openAfterLandlock: -13,
      executableBeforeMdwe: 0,
      executableAfterMdwe: facts.mdwe ? -13 : 0,
    });
    const limits = zygote.layers.find(({ layer }) => layer === "namespace-limits")?.state;
    expect(limits).toBe(zygote.probes?.userNamespaceAfterLimits === -ERRNO.ENOSPC ? "on" : "absent");
    if (zygote.refusal === "trace") {
      expect(zygote.probes).toMatchObject({ refusedCallSignal: 9, refusedCallNr: syscallNumber("getppid") });
    } else {
      expect(zygote.probes).toMatchObject({ refusedCallSignal: 31 });
    }
  });

  it("show each layer that is left out as left out", async () => {
    expect(await probesWithout("landlock")).toMatchObject({ openAfterLandlock: 0 });
    expect(await probesWithout("namespace-limits")).toMatchObject({ userNamespaceAfterLimits: 0 });
    expect(await probesWithout("mdwe")).toMatchObject({ executableAfterMdwe: 0 });
    expect(await probesWithout("seccomp")).toMatchObject({ refusedCallSignal: 0, refusedCallNr: -1 });
  });
});

describe("leaving one layer out", () => {
  it.each(ALL_LAYERS)(
    "%s leaves a worker that runs, so the layers do not lean on each other",
    async (layer) => {
      const hull = await ownedHull({ without: [layer] });
      expect(valueOf(await attack(hull, "return 6 * 7"))).toBe(42);
      expect(hull.layers.kernel.find((report) => report.layer === layer)?.state).toBe("off");
    },
  );
});

describe("the owned engine", () => {
  it.each(["owned", "typescript"])(
    "is out of a sandbox's reach, like every engine that is not for scripts: %s",
    async (engine) => {
      await expect(Sandbox.create({ engine: engine as "quickjs" })).rejects.toMatchObject({
        code: "bad-option",
        field: "engine",
      });
    },
  );

  it("cannot be had by leaving layers out either", async () => {
    await expect(Sandbox.create({ without: ["seccomp"] } as object)).rejects.toMatchObject({
      code: "bad-option",
      field: "without",
    });
  });

  it("runs the attacker's code with system calls, which the control does outside too", async () => {
    const code = 'return syscall("getpid").ret === process.pid';
    expect(valueOf(await control(code))).toBe(true);
    // Inside, process.pid is what Node read before the fork.
    expect(valueOf(await attack(await ownedHull(), 'return syscall("getpid").ret'))).toBe(1);
    expect(stopOf(await attack(await ownedHull(), 'syscall("getppid")'))).toMatchObject({
      syscall: "getppid",
    });
  });
});
