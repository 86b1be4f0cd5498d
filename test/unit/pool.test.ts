/** The pool's rules with a hull that forks when the test says so: no process, no clock. */
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { JAIL_ERRORS, JailError } from "#osjail/errors";
import { SandboxError } from "#server/errors";
import type { Hull, ParkedWorker } from "#server/hull";
import { asSandboxError, Pool, type Lease, type PoolOptions } from "#server/pool";

interface FakeWorker {
  hull: FakeHull;
  /** Which fork of its hull it is, from 0. */
  at: number;
  discarded: boolean;
  onLost: (() => void) | undefined;
  discard(): void;
}

class FakeHull implements Hull {
  onFree: (() => void) | undefined;
  alive = true;
  forks = 0;
  stopped = 0;
  readonly layers = { hull: "double", engine: "quickjs", kernel: [] } as const as unknown as Hull["layers"];
  readonly ended: Promise<void>;
  /** What forks wait for; settled at once unless `manual`. */
  readonly pending: { resolve: () => FakeWorker; reject: (error: Error) => void }[] = [];
  readonly workers: FakeWorker[] = [];
  readonly temperatures: ("warm" | "cold")[] = [];
  #end!: () => void;

  constructor(
    readonly room: number,
    readonly manual: boolean,
    public failNext = 0,
    /** Forks that throw at once, as where there is no descriptor for a socket. */
    public throwNext = 0,
  ) {
    this.ended = new Promise((resolve) => (this.#end = resolve));
  }

  get free(): number {
    return this.alive ? this.room - this.workers.filter(({ discarded }) => !discarded).length : 0;
  }

  fork(temperature: "warm" | "cold"): Promise<ParkedWorker> | undefined {
    if (!this.alive || this.free - this.pending.length <= 0) return undefined;
    if (this.throwNext > 0) {
      this.throwNext--;
      throw new JailError("worker-start", "no more descriptors");
    }
    const at = this.forks++;
    this.temperatures.push(temperature);
    return new Promise((resolve, reject) => {
      const make = (): FakeWorker => {
        const worker: FakeWorker = {
          hull: this,
          at,
          discarded: false,
          onLost: undefined,
          discard: () => (worker.discarded = true),
        };
        this.workers.push(worker);
        resolve(worker as unknown as ParkedWorker);
        return worker;
      };
      if (this.failNext > 0) {
        this.failNext--;
        reject(new JailError("zygote-lost", "no more processes"));
      } else if (this.manual) this.pending.push({ resolve: make, reject });
      else make();
    });
  }

  /** Lets the oldest fork through. */
  deliver(): FakeWorker {
    const next = this.pending.shift();
    if (next === undefined) throw new Error("no fork was asked for");
    return next.resolve();
  }

  /** The zygote dies. */
  die(): void {
    this.alive = false;
    for (const { reject } of this.pending.splice(0)) reject(new Error("the zygote ended"));
    this.#end();
  }

  async stop(): Promise<void> {
    this.stopped++;
    this.die();
    await this.ended;
  }
}

/** Forking is put off for a moment where nobody waits for it. */
async function parked(pool: Pool, count: number): Promise<void> {
  while (pool.state.parked < count) await new Promise((go) => setTimeout(go, 1));
}

/** Lets every promise and setImmediate that is due run. */
async function settled(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise(setImmediate);
}

async function makePool(options: Partial<PoolOptions> & { room?: number; manual?: boolean } = {}) {
  const { room = 100, manual = false, ...rest } = options;
  const hulls: FakeHull[] = [];
  const pool = await Pool.create({
    start: () => {
      const hull = new FakeHull(room, manual);
      hulls.push(hull);
      return Promise.resolve(hull);
    },
    parked: 1,
    maxConcurrent: 4,
    maxQueue: 100,
    recycleForks: 1_000_000,
    recycleMs: 3_600_000,
    replaceFirst: false,
    ...rest,
  });
  await settled();
  return { pool, hulls, first: hulls[0] as FakeHull };
}

const workerOf = (lease: Lease) => lease.parked as unknown as FakeWorker;
const refusal = async (what: Promise<unknown>): Promise<SandboxError> => {
  const error: unknown = await what.then(
    () => new Error("nothing was refused"),
    (reason: unknown) => reason,
  );
  if (error instanceof SandboxError) return error;
  throw error as Error;
};

describe("workers ahead of demand", () => {
  test("as many are forked as are to be parked, before anybody asks", async () => {
    const { pool, first } = await makePool({ parked: 3 });
    expect(pool.state).toEqual({ running: 0, waiting: 0, parked: 3, generations: 1 });
    expect(first.forks).toBe(3);
  });

  describe("with the clock in hand", () => {
    beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] }));
    afterEach(() => void vi.useRealTimers());

    test("a worker that was taken is replaced, but not beside the run that has just begun", async () => {
      const { pool, first } = await makePool({ parked: 2 });
      await pool.acquire("", undefined);
      await settled();
      expect(pool.state).toMatchObject({ running: 1, parked: 1 });
      vi.advanceTimersByTime(5);
      await settled();
      expect(pool.state).toMatchObject({ running: 1, parked: 2 });
      expect(first.forks).toBe(3);
    });

    test("the last one that was taken is replaced at once, and so is one that somebody waits for", async () => {
      const { pool, first } = await makePool({ parked: 1, maxConcurrent: 3 });
      await pool.acquire("", undefined);
      await settled();
      expect(pool.state).toMatchObject({ running: 1, parked: 1 });
      await Promise.all([pool.acquire("", undefined), pool.acquire("", undefined)]);
      expect(pool.state).toMatchObject({ running: 3 });
      expect(first.forks).toBeGreaterThanOrEqual(3);
    });
  });

  test("those beyond 64 wait cold, are taken last, and what was taken is replaced by a warm one", async () => {
    const { pool, first } = await makePool({ parked: 70, maxConcurrent: 100, room: 300 });
    const warm = (count: number) => Array.from({ length: count }, () => "warm");
    expect(first.temperatures).toEqual([...warm(64), ...Array.from({ length: 6 }, () => "cold")]);
    const burst = await Promise.all(Array.from({ length: 70 }, () => pool.acquire("", undefined)));
    const taken = burst.map((lease) => workerOf(lease).at);
    expect(taken.slice(0, 64)).toEqual(Array.from({ length: 64 }, (_, at) => at));
    await settled();
    expect(pool.state).toMatchObject({ running: 70, parked: 70 });
    const before = first.forks;
    await pool.acquire("", undefined);
    await parked(pool, 70);
    expect(first.temperatures.slice(before)).toEqual(["warm"]);
  });

  test("no worker is handed out twice", async () => {
    const { pool } = await makePool();
    const leases = await Promise.all([1, 2, 3, 4].map(() => pool.acquire("", undefined)));
    expect(new Set(leases.map(workerOf)).size).toBe(4);
  });

  test("a sandbox that parks none forks when it is asked", async () => {
    const { pool, first } = await makePool({ parked: 0 });
    expect(first.forks).toBe(0);
    const lease = await pool.acquire("", undefined);
    expect(first.forks).toBe(1);
    lease.done();
  });

  test("a full hull is asked again when a run is over", async () => {
    const { pool, first } = await makePool({ parked: 0, room: 1 });
    const lease = await pool.acquire("", undefined);
    const next = pool.acquire("", undefined);
    await settled();
    expect(pool.state.waiting).toBe(1);
    workerOf(lease).discard();
    lease.done();
    expect(workerOf(await next)).not.toBe(workerOf(lease));
    expect(first.forks).toBe(2);
  });

  test("a full hull is asked again when it says that a worker was buried, which may be after the run was over", async () => {
    const { pool, first } = await makePool({ parked: 0, room: 1 });
    const lease = await pool.acquire("", undefined);
    const next = pool.acquire("", undefined);
    lease.done(); // its slot is not free yet
    await settled();
    expect(pool.state).toMatchObject({ waiting: 1, running: 0 });
    workerOf(lease).discard();
    await settled();
    expect(pool.state.waiting).toBe(1); // the control: nobody has told the pool
    first.onFree?.();
    expect(workerOf(await next)).not.toBe(workerOf(lease));
  });

  test("a parked worker that dies is not handed out, and is replaced", async () => {
    const { pool, first } = await makePool({ parked: 2 });
    const [lost, kept] = first.workers as [FakeWorker, FakeWorker];
    lost.discard();
    lost.onLost?.();
    await parked(pool, 2);
    expect(pool.state.parked).toBe(2);
    const lease = await pool.acquire("", undefined);
    expect(workerOf(lease)).toBe(kept);
  });

  test("a worker that was handed out is no longer the pool's to lose", async () => {
    const { pool } = await makePool({ parked: 1 });
    const lease = await pool.acquire("", undefined);
    expect(workerOf(lease).onLost).toBeUndefined();
  });
});

describe("who is next", () => {
  test("no more run at once than maxConcurrent", async () => {
    const { pool } = await makePool({ maxConcurrent: 2, parked: 4 });
    const leases = [await pool.acquire("", undefined), await pool.acquire("", undefined)];
    let served = false;
    const third = pool.acquire("", undefined).then((lease) => ((served = true), lease));
    await settled();
    expect(pool.state).toMatchObject({ running: 2, waiting: 1 });
    expect(served).toBe(false);
    leases[0]?.done();
    (await third).done();
    leases[1]?.done();
    expect(pool.idle).toBe(true);
  });

  test("`done` counts once, however often it is called", async () => {
    const { pool } = await makePool({ maxConcurrent: 2 });
    const one = await pool.acquire("", undefined);
    await pool.acquire("", undefined);
    one.done();
    one.done();
    one.done();
    expect(pool.state.running).toBe(1);
  });

  test("runs of one tenant come in the order in which they were asked for", async () => {
    const { pool } = await makePool({ maxConcurrent: 1 });
    const order: number[] = [];
    const runs = [0, 1, 2, 3, 4].map((n) =>
      pool.acquire("a", undefined).then((lease) => {
        order.push(n);
        lease.done();
      }),
    );
    await Promise.all(runs);
    expect(order).toEqual([0, 1, 2, 3, 4]);
  });

  test("a tenant with a backlog delays another's single run by one", async () => {
    const { pool } = await makePool({ maxConcurrent: 1 });
    const order: string[] = [];
    const take = (tenant: string) =>
      pool.acquire(tenant, undefined).then((lease) => {
        order.push(tenant);
        setImmediate(() => lease.done());
      });
    const flood = Array.from({ length: 20 }, () => take("a"));
    await settled();
    const before = order.length;
    const single = take("b");
    await Promise.all([...flood, single]);
    expect(order.indexOf("b") - before).toBeLessThanOrEqual(1);
    expect(order).toHaveLength(21);
  });

  test("three tenants with a backlog take turns", async () => {
    const { pool } = await makePool({ maxConcurrent: 1 });
    const blocker = await pool.acquire("x", undefined);
    const order: string[] = [];
    const runs = ["a", "b", "c"].flatMap((tenant) =>
      [1, 2, 3].map(() =>
        pool.acquire(tenant, undefined).then((lease) => {
          order.push(tenant);
          lease.done();
        }),
      ),
    );
    blocker.done();
    await Promise.all(runs);
    expect(order.join("")).toBe("abcabcabc");
  });
});

describe("the slots between tenants", () => {
  /** Asks for so many slots; says how many the tenant has now. */
  const asking = async (maxConcurrent: number) => {
    const { pool } = await makePool({ maxConcurrent });
    const held = new Map<string, Lease[]>();
    const ask = async (tenant: string, count: number) => {
      for (let i = 0; i < count; i++) {
        const take = (lease: Lease) => void held.set(tenant, [...(held.get(tenant) ?? []), lease]);
        pool.acquire(tenant, undefined).then(take, () => {});
      }
      await settled();
      return held.get(tenant)?.length ?? 0;
    };
    return { pool, held, ask };
  };

  test("one tenant leaves a slot for who holds none, however much it asks for", async () => {
    const { pool, held, ask } = await asking(4);
    expect(await ask("noisy", 20)).toBe(3);
    expect(await ask("quiet", 1)).toBe(1);
    held.get("quiet")?.[0]?.done();
    await settled();
    expect(held.get("noisy")).toHaveLength(3); // its turn has come again, and it has its share
    held.get("noisy")?.[0]?.done();
    await settled();
    expect(held.get("noisy")).toHaveLength(4);
    expect(pool.state).toMatchObject({ running: 3, waiting: 16 });
  });

  test("a tenant that has most leaves some for a second, and both leave one for a third", async () => {
    const { ask } = await asking(16);
    expect(await ask("a", 50)).toBe(12);
    expect(await ask("b", 50)).toBe(3);
    expect(await ask("c", 1)).toBe(1);
  });

  test("runs of no tenant may have all slots, and a single slot serves everyone in turn", async () => {
    expect(await (await asking(4)).ask("", 20)).toBe(4);
    const { held, ask } = await asking(1);
    expect(await ask("a", 2)).toBe(1);
    expect(await ask("b", 1)).toBe(0);
    held.get("a")?.[0]?.done();
    await settled();
    held.get("a")?.[1]?.done();
    await settled();
    expect([held.get("a"), held.get("b")].map((leases) => leases?.length ?? 0)).toEqual([2, 1]);
  });

  test("a queue of none refuses who holds its share, and serves who holds nothing", async () => {
    const { pool } = await makePool({ maxConcurrent: 4, maxQueue: 0 });
    for (let i = 0; i < 3; i++) await pool.acquire("noisy", undefined);
    expect(await refusal(pool.acquire("noisy", undefined))).toMatchObject({ code: "overloaded" });
    await pool.acquire("quiet", undefined);
  });
});

describe("the bound of the queue", () => {
  test("what does not fit is refused as overloaded, with the bound in words", async () => {
    const { pool } = await makePool({ maxConcurrent: 1, maxQueue: 2 });
    const running = await pool.acquire("", undefined);
    const queued = [pool.acquire("", undefined), pool.acquire("", undefined)];
    const error = await refusal(pool.acquire("", undefined));
    expect(error).toMatchObject({ code: "overloaded" });
    expect(error.message).toContain("maxQueue 2");
    running.done();
    (await (queued[0] as Promise<Lease>)).done();
    (await (queued[1] as Promise<Lease>)).done();
    (await pool.acquire("", undefined)).done();
  });

  test("a queue of none still serves what a parked worker can take at once", async () => {
    const { pool } = await makePool({ maxConcurrent: 2, maxQueue: 0 });
    const lease = await pool.acquire("", undefined);
    lease.done();
    await settled();
    expect(await pool.acquire("", undefined)).toBeDefined();
  });

  test("runs that could begin are no queue: only what is beyond them counts", async () => {
    const { pool, first } = await makePool({ maxConcurrent: 3, maxQueue: 1, parked: 0, manual: true });
    const served = [1, 2, 3, 4].map(() => pool.acquire("", undefined)); // three to begin, one to wait
    expect(await refusal(pool.acquire("", undefined))).toMatchObject({ code: "overloaded" });
    await settled();
    while (first.pending.length > 0) first.deliver();
    const leases = await Promise.all(served.slice(0, 3));
    expect(pool.state).toMatchObject({ running: 3, waiting: 1 });
    expect(await refusal(pool.acquire("", undefined))).toMatchObject({ code: "overloaded" });
    for (const lease of leases) lease.done();
    await settled();
    while (first.pending.length > 0) first.deliver();
    (await (served[3] as Promise<Lease>)).done();
  });

  test("a run that was withdrawn by its signal leaves room in the queue and takes no worker", async () => {
    const { pool } = await makePool({ maxConcurrent: 1, maxQueue: 1 });
    const running = await pool.acquire("", undefined);
    const abort = new AbortController();
    const queued = pool.acquire("", abort.signal);
    abort.abort(new Error("changed my mind"));
    await expect(queued).rejects.toThrow("changed my mind");
    expect(pool.state.waiting).toBe(0);
    const next = pool.acquire("", undefined);
    running.done();
    (await next).done();
  });

  test("a signal that aborts after the worker was handed out does not touch the queue", async () => {
    const { pool } = await makePool({ maxConcurrent: 1 });
    const abort = new AbortController();
    const lease = await pool.acquire("a", abort.signal);
    const waiting = pool.acquire("a", undefined);
    abort.abort();
    expect(pool.state).toMatchObject({ running: 1, waiting: 1 });
    lease.done();
    (await waiting).done();
  });
});

describe("generations", () => {
  test("after so many forks a new hull takes over and the old one is stopped when its last run is over", async () => {
    const { pool, hulls, first } = await makePool({ recycleForks: 3 });
    const leases = [await pool.acquire("", undefined), await pool.acquire("", undefined)];
    await settled();
    expect(hulls).toHaveLength(2);
    expect(first.stopped).toBe(0);
    leases[0]?.done();
    await settled();
    expect(first.stopped).toBe(0);
    leases[1]?.done();
    await settled();
    expect(first.stopped).toBe(1);
    const lease = await pool.acquire("", undefined);
    expect(workerOf(lease).hull).toBe(hulls[1]);
  });

  test("parked workers of a generation that is retired are discarded, also those still on their way", async () => {
    const { pool, hulls, first } = await makePool({ recycleForks: 2, parked: 2, manual: true });
    const early = first.deliver();
    await settled();
    expect(hulls).toHaveLength(2);
    expect(early.discarded).toBe(true);
    expect(pool.state.parked).toBe(0);
  });

  test("a stopgap is replaced as soon as the next generation stands", async () => {
    const { pool, hulls, first } = await makePool({ replaceFirst: true });
    await settled();
    expect(hulls).toHaveLength(2);
    expect(first.stopped).toBe(1);
    expect(workerOf(await pool.acquire("", undefined)).hull).toBe(hulls[1]);
  });

  test("a hull that dies is replaced, and who waits is served by the next", async () => {
    const { pool, hulls, first } = await makePool({ manual: true });
    const waiting = pool.acquire("", undefined);
    first.die();
    await settled();
    expect(hulls).toHaveLength(2);
    hulls[1]?.deliver();
    expect(workerOf(await waiting).hull).toBe(hulls[1]);
  });

  test("without a hull that can be started, those who wait are told why, and the next run tries again", async () => {
    let broken = false;
    const hulls: FakeHull[] = [];
    const { pool } = await makePool({
      start: () => {
        if (broken) return Promise.reject(new JailError("user-namespace", "no user namespaces"));
        const hull = new FakeHull(10, false);
        hulls.push(hull);
        return Promise.resolve(hull);
      },
      maxConcurrent: 1,
    });
    const running = await pool.acquire("", undefined);
    broken = true;
    const waiting = pool.acquire("", undefined);
    hulls[0]?.die();
    expect(await refusal(waiting)).toMatchObject({
      code: "host-cannot",
      message: "no user namespaces",
      remedy: JAIL_ERRORS["user-namespace"],
    });
    running.done();
    broken = false;
    expect(await pool.acquire("", undefined)).toBeDefined();
  });

  test("the first hull's failure is the failure of `create`", async () => {
    await expect(makePool({ start: () => Promise.reject(new Error("nothing here")) })).rejects.toThrow(
      "nothing here",
    );
  });
});

describe("forks that fail", () => {
  test("one failure is nobody's business: another worker is forked", async () => {
    const { pool, first } = await makePool({ parked: 0 });
    first.failNext = 1;
    const lease = await pool.acquire("", undefined);
    expect(workerOf(lease).hull).toBe(first);
  });

  test("three in a row are told to those who wait", async () => {
    const { pool, first } = await makePool({ parked: 0 });
    first.failNext = 3;
    expect(await refusal(pool.acquire("", undefined))).toMatchObject({
      code: "host-cannot",
      message: "no more processes",
    });
  });

  test("forks that throw count like those that fail, and break nothing", async () => {
    const { pool, first } = await makePool({ parked: 0 });
    first.throwNext = 1;
    (await pool.acquire("", undefined)).done();
    first.throwNext = 3;
    expect(await refusal(pool.acquire("", undefined))).toMatchObject({
      code: "host-cannot",
      message: "no more descriptors",
      remedy: JAIL_ERRORS["worker-start"],
    });
    expect(await pool.acquire("", undefined)).toBeDefined();
    expect(pool.state).toMatchObject({ running: 1, waiting: 0 });
  });

  test("after a failure was told, the next run is served", async () => {
    const { pool, first } = await makePool({ parked: 0 });
    first.failNext = 3;
    await refusal(pool.acquire("", undefined));
    expect(await pool.acquire("", undefined)).toBeDefined();
  });
});

describe("the end", () => {
  test("close rejects those who wait, stops every hull and refuses what comes later", async () => {
    const { pool, first } = await makePool({ maxConcurrent: 1 });
    await pool.acquire("", undefined);
    const waiting = refusal(pool.acquire("", undefined));
    await pool.close();
    expect(await waiting).toMatchObject({ code: "closed" });
    expect(await refusal(pool.acquire("", undefined))).toMatchObject({ code: "closed" });
    expect(first.stopped).toBeGreaterThan(0);
    expect(pool.state.generations).toBe(0);
  });

  test("a hull that was being started when the pool closed is stopped too", async () => {
    let release!: (hull: FakeHull) => void;
    const hulls: FakeHull[] = [];
    const { pool } = await makePool({
      start: (isFirst) => {
        const hull = new FakeHull(10, false);
        hulls.push(hull);
        return isFirst ? Promise.resolve(hull) : new Promise((resolve) => (release = resolve));
      },
    });
    hulls[0]?.die();
    await settled();
    expect(hulls).toHaveLength(2);
    const closing = pool.close();
    release(hulls[1] as FakeHull);
    await closing;
    expect(hulls[1]?.stopped).toBe(1);
  });

  test("a worker that is parked after the close is discarded", async () => {
    const { pool, first } = await makePool({ manual: true });
    const [pending] = first.pending.splice(0, 1);
    await pool.close();
    const late = pending?.resolve();
    await settled();
    expect(late?.discarded).toBe(true);
  });
});

describe("an error of the host's", () => {
  test("keeps its message and its remedy when it becomes the caller's", () => {
    const error = asSandboxError(new JailError("landlock", "no Landlock here"));
    expect(error).toMatchObject({
      code: "host-cannot",
      message: "no Landlock here",
      remedy: JAIL_ERRORS.landlock,
    });
    expect(asSandboxError(error)).toBe(error);
  });

  test("that no table knows stays what it is: a fault of ours, not of the host", () => {
    const fault = new TypeError("x is undefined");
    expect(asSandboxError(fault)).toBe(fault);
    expect(asSandboxError("odd")).toMatchObject({ message: "odd" });
  });
});
