/**
 * Every limit is armed: by default, lower for one run, never higher; and the bounds on how much a sandbox does at once.
 * What the kernel was told is read from outside, from the files of the worker itself.
 */
import fs from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  DEFAULT_LIMITS,
  FIXED_LIMITS,
  LIMITS,
  Sandbox,
  SandboxError,
  type LimitName,
  type Outcome,
  type RunOptions,
} from "doublehull";
import { WORKER_OVERHEAD_MB } from "#server/limits";

const OVERHEAD = WORKER_OVERHEAD_MB * 1024 * 1024;
import { ENGINES } from "../engines.js";
import {
  busyWorker,
  cgroupDir,
  families,
  makeSandbox,
  onlyFamily,
  stopOf,
  valueOf,
  type Process,
} from "../harness.js";

describe.each(ENGINES)("with the engine %s", (engine) => {
  const MiB = 1024 * 1024;
  const script: RunOptions = { type: "script" };
  const NAMES = Object.keys(LIMITS) as LimitName[];

  /** Default limits, and a worker parked. */
  let sandbox: Sandbox;
  /** One run at a time and a short queue. */
  let narrow: Sandbox;
  /** The keeper of `sandbox`, to tell its workers from those of the other. */
  let keeper: Process;
  beforeAll(async () => {
    sandbox = await makeSandbox({ engine });
    keeper = onlyFamily().keeper;
    narrow = await makeSandbox({
      engine,
      maxConcurrent: 1,
      maxQueue: 30,
      limits: { wallMs: 30_000, cpuMs: 30_000 },
    });
  });
  afterAll(async () => {
    await sandbox.close();
    await narrow.close();
  });

  async function refusalOf(what: Promise<unknown>): Promise<SandboxError> {
    const result = await what.catch((error: unknown) => error);
    if (result instanceof Sandbox) await result.close();
    if (!(result instanceof SandboxError)) throw new Error(`a refusal was expected: ${String(result)}`);
    return result;
  }

  /** The worker of the sandbox with the default limits that waits for its job. */
  async function parkedWorker(): Promise<Process> {
    for (;;) {
      const [state] = await sandbox.state();
      const workers = families().find((family) => family.keeper.pid === keeper.pid)?.workers ?? [];
      if (state?.running === 0 && state.parked === 1 && workers.length === 1) return workers[0] as Process;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  /** The hard limit by its name in /proc/PID/limits; the soft one must be the same. man 5 proc_pid_limits */
  function kernelLimit(pid: number, name: string): number {
    const text = fs.readFileSync(`/proc/${pid}/limits`, "latin1");
    const match = new RegExp(`^${name}\\s+(\\S+)\\s+(\\S+)`, "m").exec(text);
    expect(match?.[1]).toBe(match?.[2]);
    return match?.[2] === "unlimited" ? Infinity : Number(match?.[2]);
  }

  describe("the table", () => {
    test.each(NAMES)("%s has a default within its range, and says what it stops", (name) => {
      const { default: value, min, max, stops } = LIMITS[name];
      expect(min).toBeLessThanOrEqual(value);
      expect(value).toBeLessThan(max);
      expect(DEFAULT_LIMITS[name]).toBe(value);
      expect(stops.length).toBeGreaterThan(10);
    });

    test("a sandbox that was not told otherwise has all of it", () => {
      expect(sandbox.limits).toEqual(DEFAULT_LIMITS);
      expect(Object.keys(sandbox.limits).toSorted()).toEqual(NAMES.toSorted());
    });

    test("what a sandbox says of its limits is a copy", () => {
      (sandbox.limits as Record<string, number>)["wallMs"] = 1e9;
      expect(sandbox.limits.wallMs).toBe(DEFAULT_LIMITS.wallMs);
    });
  });

  describe("asking for limits", () => {
    test.runIf(engine === "quickjs")(
      "of fuel none is more than any, and so no run's to ask for where the sandbox has a bound",
      async () => {
        const bounded = await makeSandbox({ engine, limits: { fuel: 1_000_000 } });
        try {
          expect(await refusalOf(bounded.run("1", { ...script, limits: { fuel: 0 } }))).toMatchObject({
            code: "over-limit",
            field: "limits.fuel",
          });
          const over = await refusalOf(bounded.run("1", { ...script, limits: { fuel: 1_000_001 } }));
          expect(over).toMatchObject({ code: "over-limit", field: "limits.fuel" });
          expect(valueOf(await bounded.run("1", { ...script, limits: { fuel: 10_000 } }))).toBe(1);
        } finally {
          await bounded.close();
        }
      },
    );

    test.runIf(engine !== "quickjs")("an engine that cannot count steps says so", async () => {
      const limits = { fuel: 1000 };
      for (const asked of [Sandbox.create({ engine, limits }), sandbox.run("1", { limits })]) {
        const error = await refusalOf(asked);
        expect(error).toMatchObject({ code: "bad-option", field: "limits.fuel" });
        expect(error.message).toContain(`${engine} cannot count`);
      }
    });

    test.each(NAMES.filter((name) => name !== "fuel"))(
      "a run may ask for less %s than its sandbox has, but for no more",
      async (name) => {
        const error = await refusalOf(
          sandbox.run("1", { ...script, limits: { [name]: DEFAULT_LIMITS[name] + 1 } }),
        );
        expect(error).toMatchObject({ code: "over-limit", field: `limits.${name}` });
        expect(error.message).toContain(String(DEFAULT_LIMITS[name]));
        expect(valueOf(await sandbox.run("1", { ...script, limits: { [name]: DEFAULT_LIMITS[name] } }))).toBe(
          1,
        );
      },
    );

    test.each(
      NAMES.flatMap((name) => [
        [name, "below its range", LIMITS[name].min - 1],
        [name, "above its range", LIMITS[name].max + 1],
        [name, "not whole", LIMITS[name].min + 0.5],
        [name, "not a number", "100"],
        [name, "NaN", NaN],
      ]),
    )("%s that is %s is refused by name, for a sandbox and for a run", async (name, _what, value) => {
      const limits = { [name as string]: value } as never;
      const expected = { code: "bad-option", field: `limits.${name}` };
      const refusals = [
        await refusalOf(Sandbox.create({ limits })),
        await refusalOf(sandbox.run("1", { limits })),
      ];
      for (const error of refusals) {
        expect(error).toMatchObject(expected);
        expect(error.message).toContain(name);
        expect(error.remedy).not.toBe("");
      }
    });

    test("an unknown limit or option is refused by name, and the known ones are listed", async () => {
      const wrong = { limits: { wallSeconds: 1 } } as never;
      for (const error of [
        await refusalOf(Sandbox.create(wrong)),
        await refusalOf(sandbox.run("1", wrong)),
      ]) {
        expect(error).toMatchObject({ code: "bad-option", field: "limits.wallSeconds" });
        expect(error.message).toContain("wallMs");
      }
      expect(await refusalOf(Sandbox.create({ limit: {} } as never))).toMatchObject({ field: "limit" });
      expect(await refusalOf(sandbox.run("1", { timeout: 1 } as never))).toMatchObject({ field: "timeout" });
    });

    test.each([
      ["engine", { engine: "v9" }],
      ["hull", { hull: "none" }],
      ["maxConcurrent", { maxConcurrent: 0 }],
      ["maxQueue", { maxQueue: -1 }],
      ["parked", { parked: 1.5 }],
      ["recycleForks", { recycleForks: 0 }],
      ["recycleMinutes", { recycleMinutes: "1" }],
      ["image", { image: "slow" }],
      ["requireCgroup", { requireCgroup: "yes" }],
    ])("a wrong %s of a sandbox is refused by name", async (field, options) => {
      expect(await refusalOf(Sandbox.create(options as never))).toMatchObject({ code: "bad-option", field });
    });

    test.each([
      ["type", { type: "commonjs" }],
      ["name", { name: "a\nb" }],
      ["name", { name: 7 }],
      ["language", { language: "coffee" }],
      ["modules.a", { modules: { a: 1 } }],
      ["signal", { signal: {} }],
      ["tenant", { tenant: 5 }],
    ])("a wrong %s of a run is refused by name", async (field, options) => {
      expect(await refusalOf(sandbox.run("1", options as never))).toMatchObject({
        code: "bad-option",
        field,
      });
    });

    test("a source that is no string is refused", async () => {
      expect(await refusalOf(sandbox.run(7 as never))).toMatchObject({ code: "bad-option", field: "source" });
    });
  });

  describe("each limit stops a run that the default lets through", () => {
    const CASES: [LimitName, number, string, string][] = [
      ["wallMs", 50, "new Promise((go) => setTimeout(go, 200))", "wall-time"],
      [
        "cpuMs",
        20,
        `const end = ${engine === "v8" ? 2e8 : 3e6}; for (let i = 0; i < end; i++); 1`,
        "cpu-time",
      ],
      ["memoryMb", 16, "new Uint8Array(24 << 20).length", "memory"],
      [
        "stackKb",
        32,
        `const f = (n) => n ? 1 + f(n - 1) : 0; f(${engine === "quickjs" ? 400 : 2000})`,
        "stack",
      ],
      ["sourceBytes", 10, "1 + 2 + 3 + 4", "source"],
      ["resultBytes", 100, "'x'.repeat(200)", "output"],
    ];
    const roomy: RunOptions = { ...script, limits: { wallMs: 30_000, cpuMs: 30_000 } };

    test.each(CASES)("%s", async (name, value, source, reason) => {
      expect((await narrow.run(source, roomy)).status).toBe("ok");
      const stop = stopOf(await narrow.run(source, { ...script, limits: { [name]: value } }));
      expect(stop.reason).toBe(reason);
      const unit = { memoryMb: MiB, stackKb: 1024 }[name as string] ?? 1;
      expect(stop.limit).toBe(value * unit);
    });

    test("logBytes cuts and does not stop", async () => {
      const source = "for (let i = 0; i < 100; i++) console.log('x'.repeat(50)); 1";
      const all = await sandbox.run(source, script);
      expect(all.logs).toHaveLength(100);
      const cut = await sandbox.run(source, { ...script, limits: { logBytes: 500 } });
      expect(valueOf(cut)).toBe(1);
      expect(cut.logs.length).toBeLessThan(12);
      expect(cut.logs.at(-1)?.args[0]).toContain("cut at 500 bytes");
      const none = await sandbox.run(source, { ...script, limits: { logBytes: 0 } });
      expect(valueOf(none)).toBe(1);
      expect(none.logs.length).toBeLessThanOrEqual(1);
    });

    test("the limits of one run are not those of the next", async () => {
      const source = "new Uint8Array(24 << 20).length";
      const low: RunOptions = { ...script, limits: { memoryMb: 16 } };
      const reasons: unknown[] = [];
      for (let i = 0; i < 4; i++) {
        const outcome = await sandbox.run(source, i % 2 === 0 ? low : script);
        reasons.push(outcome.status === "stopped" ? outcome.stop.reason : outcome.status);
      }
      expect(reasons).toEqual(["memory", "ok", "memory", "ok"]);
    });
  });

  describe("what the kernel was told about a parked worker", () => {
    test("it may have no other process and no other file", async () => {
      expect(FIXED_LIMITS).toMatchObject({ processes: { value: 1 }, openFiles: { value: 1 } });
      const { pid } = await parkedWorker();
      expect(kernelLimit(pid, "Max processes")).toBe(0);
      expect(kernelLimit(pid, "Max open files")).toBe(0);
      expect(kernelLimit(process.pid, "Max open files")).toBeGreaterThan(0); // the control: the file is read rightly
      expect(fs.readdirSync(`/proc/${pid}/fd`)).toHaveLength(FIXED_LIMITS.openFiles.value);
      expect(fs.readdirSync(`/proc/${pid}/task`)).toHaveLength(FIXED_LIMITS.processes.value);
    });

    test("it may write no file, leave no core and lock no memory", async () => {
      const { pid } = await parkedWorker();
      for (const name of ["Max file size", "Max core file size", "Max locked memory"]) {
        expect(kernelLimit(pid, name), name).toBe(0);
      }
    });

    test("its CPU seconds and its data are bounded by the sandbox's limits", async () => {
      const { pid } = await parkedWorker();
      expect(kernelLimit(pid, "Max cpu time")).toBe(DEFAULT_LIMITS.cpuMs / 1000 + 1);
      const data = kernelLimit(pid, "Max data size");
      expect(data).toBeLessThan(Infinity);
      const used =
        Number(/^VmData:\s+(\d+) kB/m.exec(fs.readFileSync(`/proc/${pid}/status`, "latin1"))?.[1]) * 1024;
      expect(data - used).toBeGreaterThan(0);
      expect(data - used).toBeLessThanOrEqual(DEFAULT_LIMITS.memoryMb * MiB + OVERHEAD);
    });

    test("its cgroup holds one process and the memory of the sandbox's limit", async (context) => {
      if (!(await hasCgroup())) return context.skip(NO_CGROUP);
      const { pid } = await parkedWorker();
      const pids = cgroupDir(pid, "pids");
      expect(pids).toMatch(/doublehull-\d+-\d+-\d+\/slot-\d+$/);
      expect(fs.readFileSync(`${pids}/pids.max`, "latin1").trim()).toBe("1");
      expect(fs.readFileSync(`${pids}/cgroup.procs`, "latin1").trim()).toBe(String(pid));
      expect(memoryLimitOf(pid)).toBe(DEFAULT_LIMITS.memoryMb * MiB + OVERHEAD);
    });

    test("a run that asked for less is held to less, from outside", async () => {
      const abort = new AbortController();
      const limits = { memoryMb: 16, cpuMs: 5000 };
      const pending = narrow.run("for (;;);", { ...script, limits, signal: abort.signal });
      try {
        const { pid } = await busyWorker();
        expect(kernelLimit(pid, "Max cpu time")).toBe(6);
        if (await hasCgroup()) expect(memoryLimitOf(pid)).toBe(16 * MiB + OVERHEAD);
      } finally {
        abort.abort();
      }
      expect((await pending).status).toBe("cancelled");
    });
  });

  const NO_CGROUP = "this user can make no cgroup here: the rlimits are the resource layer";

  async function hasCgroup(): Promise<boolean> {
    const { layers } = await sandbox.run("1", script);
    return layers.kernel.find(({ layer }) => layer === "cgroup")?.state === "on";
  }

  function memoryLimitOf(pid: number): number {
    const dir = cgroupDir(pid, "memory");
    const file = ["memory.max", "memory.limit_in_bytes"].find((name) => fs.existsSync(`${dir}/${name}`));
    return Number(fs.readFileSync(`${dir}/${file}`, "latin1"));
  }

  describe("how much at once", () => {
    /** Occupies the narrow sandbox's one place until `free` is called. */
    async function occupy(): Promise<() => Promise<Outcome>> {
      const abort = new AbortController();
      const pending = narrow.run("new Promise((go) => setTimeout(go, 29000))", {
        ...script,
        signal: abort.signal,
      });
      await runningIn(narrow, 1);
      return () => {
        abort.abort();
        return pending;
      };
    }

    async function runningIn(of: Sandbox, count: number): Promise<void> {
      for (;;) {
        const [state] = await of.state();
        if (state?.running === count) return;
        await new Promise(setImmediate);
      }
    }

    test("what does not fit into the queue is refused as overloaded; what waits is served", async () => {
      const free = await occupy();
      const queued = Array.from({ length: 30 }, (_, i) => narrow.run(`${i}`, script));
      const error = await refusalOf(narrow.run("1", script));
      expect(error).toMatchObject({ code: "overloaded" });
      expect(error.remedy).toContain("maxQueue");
      await free();
      expect((await Promise.all(queued)).map(valueOf)).toEqual(Array.from({ length: 30 }, (_, i) => i));
      expect(valueOf(await narrow.run("'again'", script))).toBe("again");
    });

    test("a run that is cancelled in the queue never starts, and gives its place to another", async () => {
      const free = await occupy();
      const abort = new AbortController();
      const queued = Array.from({ length: 30 }, () => narrow.run("1", { ...script, signal: abort.signal }));
      abort.abort();
      const outcomes = await Promise.all(queued); // while the first still runs
      expect(new Set(outcomes.map(({ status }) => status))).toEqual(new Set(["cancelled"]));
      for (const { usage } of outcomes) expect(usage).toMatchObject({ wallMs: 0, cpuMs: 0, bytesOut: 0 });
      const next = narrow.run("2", script);
      await free();
      expect(valueOf(await next)).toBe(2);
    });

    test("a run whose signal is aborted already does not wait for its turn", async () => {
      const free = await occupy();
      const outcome = await narrow.run("1", { ...script, signal: AbortSignal.abort() });
      expect(outcome.status).toBe("cancelled");
      expect((await narrow.state())[0]).toMatchObject({ running: 1, waiting: 0 });
      await free();
    });

    test("a tenant with a backlog delays another's single run by one or two, not by the backlog", async () => {
      const order: string[] = [];
      const run = (tenant: string) => narrow.run("1", { ...script, tenant }).then(() => order.push(tenant));
      const flood = Array.from({ length: 20 }, () => run("a"));
      await runningIn(narrow, 1);
      const before = order.length;
      await run("b");
      expect(order.indexOf("b") - before).toBeLessThanOrEqual(2);
      expect(order.length).toBeLessThan(20); // the control: there was a backlog
      await Promise.all(flood);
      expect(order).toHaveLength(21);
    });

    test("two hundred runs at once each get their own value, log and time", async () => {
      const source = "export default async (n) => { console.log(n); await 0; return [n, n * n] }";
      const outcomes = await Promise.all(
        Array.from({ length: 200 }, (_, n) => sandbox.run(source, { input: n })),
      );
      expect(outcomes.map(valueOf)).toEqual(Array.from({ length: 200 }, (_, n) => [n, n * n]));
      expect(outcomes.map(({ logs }) => logs.map(({ args }) => args))).toEqual(
        Array.from({ length: 200 }, (_, n) => [[String(n)]]),
      );
      for (const { usage } of outcomes) expect(usage.wallMs).toBeLessThan(DEFAULT_LIMITS.wallMs + 500);
      expect(await sandbox.state()).toEqual([expect.objectContaining({ running: 0, waiting: 0 })]);
    });

    test("runs that end in every way do not disturb each other", async () => {
      const kinds = [
        "1",
        "throw new Error('x')",
        "new Promise(() => {})",
        "for (;;);",
        "const f = () => f() + 1; f()",
      ];
      const all = Array.from({ length: 40 }, (_, i) => kinds[i % kinds.length] as string);
      const limits = { wallMs: 500 };
      const outcomes = await Promise.all(all.map((source) => sandbox.run(source, { ...script, limits })));
      const told = outcomes.map((o) => (o.status === "stopped" ? o.stop.reason : o.status));
      const expected = ["ok", "threw", "deadlock", "wall-time", "stack"];
      expect(told).toEqual(all.map((_, i) => expected[i % kinds.length]));
    });

    test("tenants share no zygote where each is to have its own, and each comes back to it", async () => {
      const before = new Set(families().map(({ keeper }) => keeper.pid));
      const apart = await makeSandbox({ engine, zygotePerTenant: true });
      try {
        const added = () => families().filter(({ keeper }) => !before.has(keeper.pid));
        const uids = () => added().map(({ zygote }) => /^Uid:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${zygote?.pid}/status`, "latin1"))?.[1]); // prettier-ignore
        expect(added()).toHaveLength(0); // no tenant has come yet
        for (const tenant of ["a", "b", "a", "b"]) {
          expect(valueOf(await apart.run(`"${tenant}"`, { ...script, tenant }))).toBe(tenant);
        }
        expect(added()).toHaveLength(2);
        if (process.getuid?.() === 0) expect(new Set(uids()).size).toBe(2);
      } finally {
        await apart.close();
      }
      expect(families().filter(({ keeper }) => !before.has(keeper.pid))).toEqual([]);
    });
  });
});
