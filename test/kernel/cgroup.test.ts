/**
 * Cgroups on the real kernel: limits that bite, counters that count, trees that vanish. Only cgroups made here are
 * touched. Joining is tried as the worker does it: through descriptors that were opened before the fork.
 */
import { spawn, type ChildProcess } from "node:child_process";
import * as fs from "node:fs";
import { afterEach, describe, expect, it } from "vitest";
import { CgroupError, detectCgroups, ownerName, ownPidNamespace, parseOwnerName } from "#osjail/cgroup";
import { Slot, type SlotPaths } from "#osjail/cgroup-slot";
import { CgroupTree, sweepCgroups } from "#osjail/cgroup-tree";
import { LOCK } from "#osjail/abi/linux";
import { sys } from "#osjail/libc.ffi";
import { until } from "../harness.js";

const MIB = 1 << 20;
const support = detectCgroups();
const MODULE = new URL("../../dist/osjail/cgroup-tree.js", import.meta.url).href;

const children: ChildProcess[] = [];
const trees: CgroupTree[] = [];
const slots: Slot[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  for (const slot of slots.splice(0)) slot.close();
  for (const tree of trees.splice(0)) tree.remove();
});

function makeTree(options: Partial<Parameters<typeof CgroupTree.create>[1]> = {}): CgroupTree {
  const tree = CgroupTree.create(support, { slots: 1, maxMemoryBytes: 256 * MIB, maxPids: 64, ...options });
  trees.push(tree);
  return tree;
}

function openSlot(paths: SlotPaths | undefined): Slot {
  if (paths === undefined) throw new Error("the tree has no such slot");
  const slot = Slot.open(paths);
  slots.push(slot);
  return slot;
}

/** Names of the trees made in a pid namespace, in the hierarchy that counts processes. */
function treesOf(pidNamespace: string): string[] {
  if (!support.available) return [];
  const base = support.version === "v2" ? support.base.dir : support.base.pids;
  return fs.readdirSync(base).filter((name) => parseOwnerName(name)?.pidNamespace === pidNamespace);
}

const directories = (tree: CgroupTree) =>
  tree.slots.flatMap((s) => [s.memory, s.pids, ...(s.cpu ? [s.cpu] : [])]);
const tops = (tree: CgroupTree) => directories(tree).map((dir) => dir.replace(/\/slot-\d+$/, ""));

/**
 * A process that joins a slot by writing "0" to the inherited descriptors, says "joined", waits for a byte on its
 * standard input and runs `then`.
 */
async function joined(tree: CgroupTree, index: number, then: string, uid?: number): Promise<ChildProcess> {
  const join = tree.openJoin();
  const fds = join[index] ?? [];
  const source = `const fs = require("node:fs");
    for (let fd = 3; fd < ${3 + fds.length}; fd++) fs.writeSync(fd, "0");
    fs.writeSync(1, "joined");
    fs.readSync(0, Buffer.alloc(1));
    ${then}`;
  const child = spawn(process.execPath, ["-e", source], {
    stdio: ["pipe", "pipe", "inherit", ...fds],
    ...(uid !== undefined && { uid, gid: uid }),
  });
  children.push(child);
  for (const fd of join.flat()) fs.closeSync(fd);
  expect(await output(child)).toBe("joined");
  return child;
}

function output(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    child.stdout?.once("data", (data: Buffer) => resolve(data.toString()));
    child.once("exit", (code, signal) => reject(new Error(`ended before it spoke: ${code ?? signal}`)));
    child.once("error", reject);
  });
}

function exit(child: ChildProcess): Promise<number | NodeJS.Signals | null> {
  return new Promise((resolve) => {
    child.once("exit", (code, signal) => resolve(signal ?? code));
  });
}

const WAIT_FOREVER = "setInterval(() => {}, 1000);";

describe.skipIf(!support.available)(
  `cgroups on this kernel${support.available ? ` (${support.version})` : ` (skipped: ${support.reason})`}`,
  () => {
    it("are looked for where the controllers really are, never in a v2 tree without them", () => {
      if (!support.available) return;
      const dir = support.version === "v2" ? support.base.dir : support.base.memory;
      const file = support.version === "v2" ? "cgroup.controllers" : "memory.limit_in_bytes";
      if (support.version === "v2") expect(fs.readFileSync(`${dir}/${file}`, "utf8")).toMatch(/memory/);
      const child = `${dir}/${makeTree().name}/slot-0`;
      expect(fs.existsSync(`${child}/${support.version === "v2" ? "memory.max" : file}`)).toBe(true);
    });

    it("limit every slot from the start, and a job may ask for less, for more, and for less again", () => {
      const tree = makeTree({ slots: 3, maxPids: 1, cpuWeight: 50 });
      expect(tree.slots).toHaveLength(3);
      expect(JSON.parse(JSON.stringify(tree.slots))).toEqual(tree.slots);
      for (const paths of tree.slots) {
        const read = (v2: string, v1: string, dir = paths.memory) =>
          fs.readFileSync(`${dir}/${paths.version === "v2" ? v2 : v1}`, "utf8").trim();
        expect(read("memory.max", "memory.limit_in_bytes")).toBe(String(256 * MIB));
        expect(read("pids.max", "pids.max", paths.pids)).toBe("1");
        const slot = openSlot(paths);
        for (const mib of [32, 128, 64]) {
          slot.setLimits({ memoryBytes: mib * MIB, pids: 5 });
          expect(read("memory.max", "memory.limit_in_bytes")).toBe(String(mib * MIB));
          expect(read("pids.max", "pids.max", paths.pids)).toBe("5");
        }
        slot.setLimits({ memoryBytes: 32 * MIB + 1, pids: 5 });
        expect(read("memory.max", "memory.limit_in_bytes")).toBe(String(32 * MIB));
      }
    });

    it("take a CPU quota for one job and lift it for the next", ({ skip }) => {
      const [paths] = makeTree().slots;
      const { cpu } = paths ?? {};
      if (cpu === undefined) {
        skip("this host offers no cpu controller");
        return;
      }
      const slot = openSlot(paths);
      const quota = () =>
        paths?.version === "v2"
          ? fs.readFileSync(`${cpu}/cpu.max`, "utf8").trim()
          : ["quota", "period"]
              .map((f) => fs.readFileSync(`${cpu}/cpu.cfs_${f}_us`, "utf8").trim())
              .join(" ");
      const limits = { memoryBytes: 64 * MIB, pids: 5 };
      slot.setLimits({ ...limits, cpuQuota: { quotaUs: 20_000, periodUs: 50_000 } });
      expect(quota()).toBe("20000 50000");
      slot.setLimits(limits);
      expect(quota()).toMatch(/^(max|-1) /);
    });

    it("give way to one another, and have their whole share again", ({ skip }) => {
      const [paths] = makeTree().slots;
      if (paths?.cpu === undefined) {
        skip("this host offers no cpu controller");
        return;
      }
      const slot = openSlot(paths);
      const file = paths.version === "v2" ? "cpu.weight" : "cpu.shares";
      const share = () => Number(fs.readFileSync(`${paths.cpu}/${file}`, "utf8"));
      const whole = share();
      expect(slot.setShare(10)).toBe(true);
      expect(share() / whole).toBeCloseTo(0.1, 2);
      expect(slot.setShare(100)).toBe(true);
      expect(share()).toBe(whole);
    });

    it("hold the process that joined through inherited descriptors, and end it when told to", async () => {
      const tree = makeTree({ slots: 2 });
      const slot = openSlot(tree.slots[1]);
      const other = openSlot(tree.slots[0]);
      const child = await joined(tree, 1, WAIT_FOREVER);
      expect(slot.processes()).toEqual([child.pid]);
      expect(other.processes()).toEqual([]);
      expect(slot.currentBytes()).toBeGreaterThanOrEqual(0);
      const ended = exit(child);
      other.kill();
      expect(slot.processes()).toEqual([child.pid]);
      slot.kill();
      expect(await ended).toBe("SIGKILL");
      expect(slot.processes()).toEqual([]);
    });

    it("are joined by a process of another user, who could not open them", async ({ skip }) => {
      if (process.getuid?.() !== 0) {
        skip("only root can start a process of another user");
        return;
      }
      const tree = makeTree();
      const slot = openSlot(tree.slots[0]);
      const path = JSON.stringify(`${tree.slots[0]?.memory}/cgroup.procs`);
      const tryOpen = `try { fs.openSync(${path}, "r+"); fs.writeSync(1, "opened"); } catch (e) { fs.writeSync(1, e.code); }`;
      const child = await joined(tree, 0, `${tryOpen} ${WAIT_FOREVER}`, 65_000);
      expect(slot.processes()).toEqual([child.pid]);
      const said = output(child);
      child.stdin?.write("x");
      expect(await said).toBe("EACCES");
    });

    it("kill a process at its memory limit, count it, and show the peak; a reset starts the peak anew", async () => {
      const tree = makeTree();
      const slot = openSlot(tree.slots[0]);
      slot.setLimits({ memoryBytes: 32 * MIB, pids: 64 });
      const allocate = (mib: number) =>
        `const kept = []; for (let i = 0; i < ${mib}; i++) kept.push(Buffer.alloc(${MIB}, 1)); fs.writeSync(1, "done");`;

      // Positive control: the same code with less to allocate ends by itself.
      const small = await joined(tree, 0, allocate(8));
      const smallEnd = exit(small);
      small.stdin?.write("x");
      expect(await smallEnd).toBe(0);
      expect(slot.oomKills()).toBe(0);

      const big = await joined(tree, 0, allocate(128));
      const bigEnd = exit(big);
      big.stdin?.write("x");
      expect(await bigEnd).toBe("SIGKILL");
      expect(slot.oomKills()).toBeGreaterThanOrEqual(1);
      const peak = slot.peakBytes();
      if (peak !== undefined) {
        expect(peak).toBeGreaterThan(28 * MIB);
        expect(peak).toBeLessThanOrEqual(32 * MIB);
        if (slot.resetPeak()) expect(slot.peakBytes()).toBeLessThan(16 * MIB);
      }
    });

    it("refuse a fork beyond the pids limit and count the refusal", async () => {
      const tree = makeTree();
      const slot = openSlot(tree.slots[0]);
      const child = await joined(
        tree,
        0,
        `const { error } = require("node:child_process").spawnSync("/bin/true"); fs.writeSync(1, error.code);`,
      );
      const before = slot.pidsMaxEvents();
      slot.setLimits({ memoryBytes: 256 * MIB, pids: 1 });
      const said = output(child);
      child.stdin?.write("x");
      expect(await said).toBe("EAGAIN");
      expect(slot.pidsMaxEvents()).toBeGreaterThan(before);
    });

    it("vanish with whatever is still inside, and a second removal is harmless", async () => {
      const tree = makeTree({ slots: 2 });
      const child = await joined(tree, 0, WAIT_FOREVER);
      const ended = exit(child);
      for (const dir of directories(tree)) expect(fs.existsSync(dir)).toBe(true);
      tree.remove();
      for (const dir of tops(tree)) expect(fs.existsSync(dir)).toBe(false);
      expect(await ended).toBe("SIGKILL");
      tree.remove();
      expect(() => openSlot(tree.slots[0])).toThrow(CgroupError);
    });

    it("let a process make its tree only once at a time", () => {
      const tree = makeTree();
      expect(() => makeTree()).toThrow(expect.objectContaining({ code: "cgroup-exists" }));
      for (const dir of directories(tree)) expect(fs.existsSync(dir)).toBe(true);
      tree.remove();
      expect(makeTree().name).toBe(tree.name);
    });

    it("of a keeper that was killed are swept, its orphans with them; those of a living keeper stay", async () => {
      const mine = makeTree();
      const source = `import { CgroupTree } from ${JSON.stringify(MODULE)};
        import { spawn } from "node:child_process";
        import * as fs from "node:fs";
        const tree = CgroupTree.create(${JSON.stringify(support)}, { slots: 2, maxMemoryBytes: ${64 * MIB}, maxPids: 64 });
        const orphan = spawn("sleep", ["600"], { detached: true, stdio: "ignore" });
        for (const fd of tree.openJoin()[0]) fs.writeSync(fd, String(orphan.pid));
        fs.writeSync(1, JSON.stringify({ name: tree.name, slots: tree.slots, orphan: orphan.pid }));`;
      const keeper = spawn(process.execPath, ["--input-type=module", "-e", source], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      children.push(keeper);
      const made: { name: string; slots: SlotPaths[]; orphan: number } = JSON.parse(await output(keeper));
      const left = openSlot(made.slots[0]);
      expect(left.processes()).toEqual([made.orphan]);

      expect(sweepCgroups(support)).not.toContain(made.name);
      expect(left.processes()).toEqual([made.orphan]);

      const ended = exit(keeper);
      keeper.kill("SIGKILL");
      expect(await ended).toBe("SIGKILL");
      const swept = sweepCgroups(support);
      expect(swept).toContain(made.name);
      expect(swept).not.toContain(mine.name);
      for (const paths of made.slots)
        expect(fs.existsSync(paths.memory) || fs.existsSync(paths.pids)).toBe(false);
      for (const dir of directories(mine)) expect(fs.existsSync(dir)).toBe(true);
      expect(sweepCgroups(support)).not.toContain(made.name);
    });

    it("with our id but another start time are a dead process's; with other names they are nobody's business", () => {
      if (!support.available) return;
      const bases = support.version === "v2" ? [support.base.dir] : [support.base.memory, support.base.pids];
      const dead = `doublehull-${process.pid}-1-${ownPidNamespace()}`;
      const foreign = `${ownerName()}-not-a-tree`;
      for (const base of bases) for (const name of [dead, foreign]) fs.mkdirSync(`${base}/${name}`);
      try {
        expect(sweepCgroups(support)).toContain(dead);
        for (const base of bases) {
          expect(fs.existsSync(`${base}/${dead}`)).toBe(false);
          expect(fs.existsSync(`${base}/${foreign}`)).toBe(true);
        }
      } finally {
        for (const base of bases) fs.rmdirSync(`${base}/${foreign}`);
      }
    });

    it("of another pid namespace are removed when they are empty and nobody has locked them, and only then", async () => {
      if (!support.available) return;
      const base = support.version === "v2" ? support.base.dir : support.base.pids;
      const top = `${base}/doublehull-${process.pid}-1-1`;
      fs.mkdirSync(top);
      const inside = spawn("sleep", ["600"], { stdio: "ignore" });
      children.push(inside);
      const name = top.slice(base.length + 1);
      try {
        fs.writeFileSync(`${top}/cgroup.procs`, String(inside.pid));
        expect(sweepCgroups(support)).not.toContain(name);
        expect(fs.readFileSync(`${top}/cgroup.procs`, "utf8").trim()).toBe(String(inside.pid));

        const ended = exit(inside);
        inside.kill("SIGKILL");
        await ended;
        const locked = fs.openSync(top, "r");
        sys("flock", locked, LOCK.EX);
        expect(sweepCgroups(support)).not.toContain(name);
        fs.closeSync(locked);
        expect(sweepCgroups(support)).toContain(name);
      } finally {
        fs.rmSync(top, { recursive: true, force: true });
      }
    });

    it("of a keeper whose lock is held are left alone, though its start time looks another's (time namespaces)", ({
      skip,
    }) => {
      if (support.available && support.version === "v2") skip("a cgroup of v2 cannot be renamed");
      const tree = makeTree();
      const [base = ""] = tops(tree).map((top) => top.slice(0, top.lastIndexOf("/")));
      const wrong = tree.name.replace(/-\d+-(\d+)$/, "-1-$1");
      fs.renameSync(`${base}/${tree.name}`, `${base}/${wrong}`);
      try {
        expect(sweepCgroups(support)).not.toContain(wrong);
      } finally {
        fs.renameSync(`${base}/${wrong}`, `${base}/${tree.name}`);
      }
    });

    describe("shared with a container, a pid namespace of its own,", () => {
      const cannot = process.getuid?.() !== 0 && "only root can make a pid namespace with a /proc";
      const LIBRARY = new URL("../../dist/server/index.js", import.meta.url).href;

      /** A sandbox in a child pid namespace, idle with a parked worker, that runs once more when told to. */
      interface Contained {
        child: ChildProcess;
        /** Trees of its pid namespace. */
        trees: () => string[];
        again: () => Promise<string>;
      }

      async function contained(): Promise<Contained> {
        const source = `import { Sandbox } from ${JSON.stringify(LIBRARY)};
          import fs from "node:fs";
          const sandbox = await Sandbox.create({ image: "fast-start", parked: 1 });
          const keeper = () => fs.readFileSync("/proc/self/task/" + process.pid + "/children", "utf8").trim();
          const first = keeper();
          const seen = async () => {
            const { value, layers } = await sandbox.run("6 * 7", { type: "script" });
            const cgroup = layers.kernel.find(({ layer }) => layer === "cgroup").state;
            fs.writeSync(1, [process.pid, value, cgroup, keeper() === first, fs.statSync("/proc/self/ns/pid").ino].join());
          };
          await seen();
          process.stdin.on("data", seen);`;
        const child = spawn(
          "unshare",
          ["--pid", "--fork", "--kill-child", "--mount-proc", process.execPath, "--input-type=module", "-e", source], // prettier-ignore
          { stdio: ["pipe", "pipe", "inherit"] },
        );
        children.push(child);
        const said = await output(child);
        expect(said).toMatch(/^1,42,on,true,\d+$/);
        const namespace = said.slice(said.lastIndexOf(",") + 1);
        const again = () => {
          const answer = output(child);
          child.stdin?.write("x");
          return answer;
        };
        return { child, trees: () => treesOf(namespace), again };
      }

      it("are not swept from outside, nor from inside", async ({ skip }) => {
        if (cannot) skip(cannot);
        const first = await contained();
        const before = first.trees();
        expect(before).toHaveLength(1);
        sweepCgroups(support); // from the parent of its namespace
        const mine = makeTree();
        const second = await contained(); // starts in another one, and sweeps on its way
        expect(first.trees()).toEqual(before);
        for (const dir of directories(mine)) expect(fs.existsSync(dir)).toBe(true);
        expect(await first.again()).toMatch(/^1,42,on,true,/); // and by the keeper that it had
        for (const { child } of [first, second]) {
          const ended = exit(child);
          child.kill("SIGKILL");
          await ended;
        }
      });

      it("are swept when the container has gone, however it went", async ({ skip }) => {
        if (cannot) skip(cannot);
        const { child, trees } = await contained();
        expect(trees()).toHaveLength(1);
        const ended = exit(child);
        child.kill("SIGKILL"); // and with it its whole pid namespace
        await ended;
        await until("its cgroups are swept", () => (sweepCgroups(support), trees().length === 0));
      });
    });
  },
);
