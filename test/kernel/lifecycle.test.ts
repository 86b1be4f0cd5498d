/**
 * Nothing is left behind, however it ends: no process, cgroup, descriptor, socket or temporary file. The host is looked
 * at from outside, and every absence is preceded by the presence: first the processes and cgroups are counted alive.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { Sandbox, type Outcome, type RunOptions, type SandboxOptions } from "doublehull";
import {
  busyWorker,
  cgroupsOf,
  descriptorCount,
  families,
  isAlive,
  makeSandbox,
  members,
  onlyFamily,
  processOf,
  stopOf,
  until,
  valueOf,
  type Family,
  type Process,
} from "../harness.js";
import { program } from "./program.js";

const script: RunOptions = { type: "script" };
const LIBRARY = new URL("../../dist/server/index.js", import.meta.url).href;

const sandboxes: Sandbox[] = [];
const children: ChildProcess[] = [];
const directories: string[] = [];
afterEach(async () => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  for (const dir of directories.splice(0)) fs.rmSync(dir, { recursive: true });
  await Promise.all(sandboxes.splice(0).map((sandbox) => sandbox.close()));
});

async function open(options: SandboxOptions = {}): Promise<Sandbox> {
  const limits = { wallMs: 60_000, cpuMs: 60_000 };
  const sandbox = await makeSandbox({ limits, ...options });
  sandboxes.push(sandbox);
  return sandbox;
}

const kill = ({ pid }: Process) => process.kill(pid, "SIGKILL");
const cgroupLayer = (outcome: Outcome) =>
  outcome.layers.kernel.find(({ layer }) => layer === "cgroup")?.state;

/** Waits until a worker is parked, so that what is counted afterwards does not change by itself. */
async function settled(sandbox: Sandbox): Promise<void> {
  for (;;) {
    const [state] = await sandbox.state();
    const workers = families().reduce((sum, family) => sum + family.workers.length, 0);
    if (state?.running === 0 && state.parked === 1 && workers === 1) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** A program of its own that has a sandbox. It lives until it is killed, or ends as `program` lets it. */
async function supervisor(
  program: string,
): Promise<{ child: ChildProcess; temporary: string; ended: Promise<unknown> }> {
  const temporary = fs.mkdtempSync(path.join(os.tmpdir(), "lifecycle-"));
  directories.push(temporary);
  const source = `import { Sandbox } from ${JSON.stringify(LIBRARY)};
    const sandbox = await Sandbox.create({ image: "fast-start", parked: 1, limits: { wallMs: 60000, cpuMs: 60000 } });
    console.log("started " + (await sandbox.run("6 * 7", { type: "script" })).value);
    ${program}`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", source], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, TMPDIR: temporary },
  });
  children.push(child);
  const ended = once(child, "exit");
  await new Promise<void>((resolve, reject) => {
    let said = "";
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      said += text;
      if (said.includes("started 42")) resolve();
    });
    ended.then(() => reject(new Error(`it ended before it had started: ${said}`)), reject);
  });
  return { child, temporary, ended };
}

async function expectGone(all: readonly Process[], keepers: readonly Process[]): Promise<void> {
  await until(`processes ${all.map(({ pid }) => pid).join()} are gone`, () => !all.some(isAlive));
  await until("their cgroups are gone", () => cgroupsOf(keepers).length === 0);
}

describe("an orderly end", () => {
  test("close() leaves no process, no cgroup and no descriptor", async () => {
    const before = descriptorCount();
    const sandbox = await open();
    const outcome = await sandbox.run("1", script);
    valueOf(await sandbox.run("export default (n: number) => n", { name: "a.ts" }));
    const found = families();
    const all = found.flatMap(members);
    const keepers = found.map(({ keeper }) => keeper);
    expect(found).toHaveLength(2); // scripts and TypeScript
    expect(all.length).toBeGreaterThanOrEqual(4);
    // Of its workers one may just be ending: it has had its run.
    expect(found.every(({ keeper, zygote }) => isAlive(keeper) && zygote !== undefined && isAlive(zygote))).toBe(true); // prettier-ignore
    if (cgroupLayer(outcome) === "on") expect(cgroupsOf(keepers).length).toBeGreaterThan(4);
    expect(descriptorCount()).toBeGreaterThan(before);

    await sandbox.close();
    expect(all.filter(isAlive)).toEqual([]);
    expect(cgroupsOf(keepers)).toEqual([]);
    expect(families()).toEqual([]);
    await until("every descriptor is closed", () => descriptorCount() <= before);
  });

  test("close() while a zygote is starting waits for it, and leaves nothing", async () => {
    const sandbox = await open({ zygotePerTenant: true });
    const run = sandbox.run("1", { ...script, tenant: "late" }).catch((error: unknown) => error);
    await until("a keeper is there", () => families().length > 0);
    const [family] = families();
    await sandbox.close();
    expect(await run).toMatchObject({ code: "closed" });
    expect(families()).toEqual([]);
    await expectGone(members(family as Family), [(family as Family).keeper]);
  });

  test("a keeper stands in the root directory and pins none of its supervisor's", async () => {
    const gone = fs.mkdtempSync(path.join(os.tmpdir(), "lifecycle-"));
    const { ended, said } = await program(`
      const { Sandbox } = await import(${JSON.stringify(LIBRARY)});
      process.chdir(${JSON.stringify(gone)});
      const sandbox = await Sandbox.create({ image: "fast-start", parked: 0 });
      fs.rmdirSync(${JSON.stringify(gone)});
      const [keeper] = fs.readdirSync("/proc/self/task").flatMap((task) =>
        fs.readFileSync("/proc/self/task/" + task + "/children", "utf8").split(" ").filter((pid) => pid !== ""));
      say(fs.readlinkSync("/proc/" + keeper + "/cwd"));
      say((await sandbox.run("1", { type: "script" })).value);
      await sandbox.close();
    `);
    expect({ ended, said }).toEqual({ ended: 0, said: ["/", 1] });
  });

  test("close() may be called twice and at once, and what is asked afterwards is refused", async () => {
    const sandbox = await open();
    await Promise.all([sandbox.close(), sandbox.close()]);
    await sandbox.close();
    await expect(sandbox.run("1")).rejects.toMatchObject({ code: "closed" });
    expect(families()).toEqual([]);
  });

  test("`await using` closes, also when the block throws", async () => {
    let all: Process[] = [];
    const block = async () => {
      await using sandbox = await makeSandbox();
      valueOf(await sandbox.run("1", script));
      all = families().flatMap(members);
      throw new Error("out of the block");
    };
    await expect(block()).rejects.toThrow("out of the block");
    expect(all.length).toBeGreaterThanOrEqual(2);
    expect(all.filter(isAlive)).toEqual([]);
  });

  test("close() while runs are in flight ends them all, each with an answer", async () => {
    const sandbox = await open({ maxConcurrent: 2 });
    const runs = Array.from({ length: 6 }, () =>
      sandbox.run("for (;;);", script).catch((error: unknown) => error),
    );
    await busyWorker();
    const family = onlyFamily();
    await sandbox.close();
    const answers = await Promise.all(runs);
    const told = answers.map((answer) =>
      answer instanceof Error ? (answer as Error & { code?: string }).code : (answer as Outcome).status,
    );
    expect(told.filter((one) => one === "closed")).toHaveLength(4);
    // The kill was ours: not a crash, and not the script's doing.
    const stopped = answers.filter((answer) => !(answer instanceof Error)) as Outcome[];
    const closed = { reason: "lost", layer: "supervisor", detail: "the sandbox was closed" };
    expect(stopped.map(stopOf)).toEqual([closed, closed]);
    await expectGone(members(family), [family.keeper]);
  });

  test("a program that forgets to close ends by itself, and nothing of it is left", async () => {
    const { child, temporary, ended } = await supervisor("setTimeout(() => {}, 300);");
    const family = onlyFamily(child.pid);
    expect(await ended).toEqual([0, null]);
    await expectGone(members(family), [family.keeper]);
    expect(fs.readdirSync(temporary)).toEqual([]);
  });

  test("a program that is waiting for a run does not end before it", async () => {
    const { child, ended } = await supervisor(
      `const { value } = await sandbox.run("new Promise((go) => setTimeout(go, 200, 'waited'))", { type: "script" }); process.exitCode = value === "waited" ? 7 : 1;`, // prettier-ignore
    );
    const family = onlyFamily(child.pid);
    expect(await ended).toEqual([7, null]);
    await expectGone(members(family), [family.keeper]);
  });
});

describe("a supervisor that is killed", () => {
  test.each([
    ["idle", "setInterval(() => {}, 1000);"],
    ["in the middle of a run", `await sandbox.run("for (;;);", { type: "script" });`],
  ])("while it is %s leaves nothing", async (_when, program) => {
    const { child, temporary, ended } = await supervisor(program);
    const pid = child.pid as number;
    if (program.includes("for")) await busyWorker(pid);
    const family = onlyFamily(pid);
    const all = members(family);
    expect([family.keeper, family.zygote].every(isAlive)).toBe(true);
    child.kill("SIGKILL");
    expect(await ended).toEqual([null, "SIGKILL"]);
    await expectGone(all, [family.keeper]);
    expect(fs.readdirSync(temporary)).toEqual([]);
  });
});

describe("a part that is killed", () => {
  test("the zygote: the run in progress is lost, the one that waits is served, and a new zygote serves on", async () => {
    const sandbox = await open({ maxConcurrent: 1 });
    const old = onlyFamily();
    const running = sandbox.run("for (;;);", script);
    await busyWorker();
    const waiting = sandbox.run("'served'", script);
    kill(old.zygote);
    expect(stopOf(await running)).toMatchObject({ reason: "lost", layer: "supervisor" });
    expect(valueOf(await waiting)).toBe("served");
    await expectGone(members(old), [old.keeper]);
    const now = onlyFamily();
    expect(now.zygote).not.toEqual(old.zygote);
    expect(valueOf(await sandbox.run("1", script))).toBe(1);
  });

  test("an idle zygote: it is started anew before anybody asks", async () => {
    const sandbox = await open();
    const old = onlyFamily();
    kill(old.zygote);
    await expectGone(members(old), [old.keeper]);
    await until("another zygote stands", () => families().some(({ zygote }) => zygote !== undefined));
    expect(valueOf(await sandbox.run("1", script))).toBe(1);
  });

  test("the keeper: its zygote goes with it, another serves, and the next start sweeps its cgroups", async () => {
    const sandbox = await open();
    const old = onlyFamily();
    kill(old.keeper);
    await until("the keeper is gone, and its zygote with it", () => !members(old).some(isAlive));
    await until("another zygote stands", () => families().some(({ zygote }) => zygote !== undefined));
    expect(valueOf(await sandbox.run("'on'", script))).toBe("on");
    await sandbox.close();
    // Nobody was left to remove its cgroups: the next start sweeps them.
    const next = await open();
    await next.close();
    await until("its cgroups are swept", () => cgroupsOf([old.keeper]).length === 0);
  });

  test("cgroups that somebody removed: no worker runs without them, and another keeper makes its own", async ({
    skip,
  }) => {
    const sandbox = await open();
    const outcome = await sandbox.run("1", script);
    if (cgroupLayer(outcome) !== "on") skip("this user has no cgroup");
    await settled(sandbox);
    const old = onlyFamily();
    const occupied = (dir: string) => fs.readFileSync(`${dir}/cgroup.procs`, "latin1") !== "";
    const empty = cgroupsOf([old.keeper]).filter((dir) => dir.includes("/slot-") && !occupied(dir));
    expect(empty.length).toBeGreaterThan(0);
    for (const dir of empty) fs.rmdirSync(dir);
    const runs = await Promise.all(Array.from({ length: 8 }, () => sandbox.run("1", script)));
    for (const run of runs) {
      if (run.status === "stopped")
        expect(run.stop.reason).toBe("lost"); // in a slot that was left to the old one
      else expect(valueOf(run)).toBe(1);
      expect(cgroupLayer(run)).toBe("on");
    }
    await expectGone(members(old), [old.keeper]);
    expect(valueOf(await sandbox.run("'on'", script))).toBe("on");
  });

  test("a parked worker: it is replaced and no run notices", async () => {
    const sandbox = await open();
    await settled(sandbox);
    const [worker] = onlyFamily().workers as [Process];
    kill(worker);
    const replaced = () => families().some(({ workers }) => workers.some(({ pid }) => pid !== worker.pid));
    await until("another worker is parked", () => !isAlive(worker) && replaced());
    const runs = await Promise.all(Array.from({ length: 5 }, () => sandbox.run("1", script)));
    expect(runs.map(valueOf)).toEqual([1, 1, 1, 1, 1]);
  });

  test("a running worker: that run alone ends, as a crash told by the kernel", async () => {
    const sandbox = await open();
    const running = sandbox.run("console.log('ran'); for (;;);", script);
    const beside = sandbox.run("new Promise((go) => setTimeout(go, 100, 'beside'))", script);
    kill(await busyWorker());
    const outcome = await running;
    expect(stopOf(outcome)).toMatchObject({ reason: "crash", layer: "kernel", detail: "signal 9" });
    expect(outcome.logs[0]?.args).toEqual(["ran"]);
    expect(outcome.usage.cpuMs).toBeGreaterThan(50);
    expect(valueOf(await beside)).toBe("beside");
    expect(valueOf(await sandbox.run("1", script))).toBe(1);
  });
});

describe("a long life", () => {
  test("a zygote is replaced after so many forks while runs go on, and the old one goes with all it had", async () => {
    const sandbox = await open({ recycleForks: 5 });
    const first = onlyFamily();
    const values: unknown[] = [];
    while (isAlive(first.zygote) && values.length < 2000)
      values.push(valueOf(await sandbox.run("1", script)));
    expect(values.length).toBeGreaterThanOrEqual(4); // the fifth fork at the earliest
    expect(isAlive(first.zygote)).toBe(false);
    await expectGone(members(first), [first.keeper]);
    const together = await Promise.all(Array.from({ length: 30 }, (_, i) => sandbox.run(`${i}`, script)));
    expect(together.map(valueOf)).toEqual(Array.from({ length: 30 }, (_, i) => i));
  });

  test("three hundred runs leave as many descriptors, processes and places for workers as before", async () => {
    const sandbox = await open({ maxConcurrent: 4 });
    valueOf(await sandbox.run("1", script));
    await settled(sandbox);
    const family = onlyFamily();
    const [descriptors, cgroups] = [descriptorCount(), cgroupsOf([family.keeper]).length];
    const held = fs.readdirSync(`/proc/${family.zygote.pid}/task`).length;
    for (let round = 0; round < 10; round++) {
      const sources = Array.from(
        { length: 30 },
        (_, i) => ["1", "throw 1", "new Promise(() => {})"][i % 3] as string,
      );
      const outcomes = await Promise.all(sources.map((source) => sandbox.run(source, script)));
      expect(outcomes.map(({ status }) => status).slice(0, 3)).toEqual(["ok", "threw", "stopped"]);
    }
    await settled(sandbox);
    expect(onlyFamily().zygote).toEqual(family.zygote); // no run of these was served by another
    await until("descriptors are back", () => descriptorCount() <= descriptors);
    expect(cgroupsOf([family.keeper])).toHaveLength(cgroups);
    expect(fs.readdirSync(`/proc/${family.zygote.pid}/task`)).toHaveLength(held);
    const full = await Promise.all(Array.from({ length: 12 }, () => sandbox.run("1", script)));
    expect(full.map(valueOf)).toEqual(Array(12).fill(1));
  });

  test("sandboxes that come and go leave the process as it was", async () => {
    const once = async () => {
      const sandbox = await makeSandbox();
      valueOf(await sandbox.run("1", script));
      await sandbox.close();
    };
    await once();
    const [descriptors, own] = [descriptorCount(), processOf(process.pid)];
    for (let i = 0; i < 3; i++) await once();
    await until("descriptors are back", () => descriptorCount() <= descriptors);
    expect(families(own.pid)).toEqual([]);
  });
});
