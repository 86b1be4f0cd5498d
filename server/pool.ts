/**
 * Parked workers ahead of demand, and who gets the next one. A generation is one hull (a zygote); generations are
 * recycled by age and by number of forks, because forks of one zygote share an address-space layout, and replaced when
 * they die. A run that has not started is never lost with them. Tenants take turns: a tenant with a thousand runs in
 * the queue delays another's by one; and none can hold all slots, so that a newcomer need not wait for a run to end.
 */
import { CgroupError } from "../osjail/cgroup.js";
import { JailError } from "../osjail/errors.js";
import { engineRemedy } from "./engines.js";
import { SandboxError } from "./errors.js";
import type { Hull, ParkedWorker } from "./hull.js";
import { Shares } from "./shares.js";

export interface PoolOptions {
  /** Starts a generation. `first` is the one that somebody waits for. */
  start(first: boolean): Promise<Hull>;
  /** Workers kept ready. */
  parked: number;
  maxConcurrent: number;
  maxQueue: number;
  /** Forks after which a generation is replaced, and its greatest age, ms. */
  recycleForks: number;
  recycleMs: number;
  /** The first generation is a stopgap: replace it as soon as the next one stands. */
  replaceFirst: boolean;
}

/** A worker for one run. `done` must be called once, when the run is over. */
export interface Lease {
  parked: ParkedWorker;
  hull: Hull;
  done(): void;
}

interface Waiter {
  tenant: string;
  resolve: (lease: Lease) => void;
  reject: (error: Error) => void;
}

interface Generation {
  hull: Hull;
  /** Warm ones, which are taken first, and cold ones. */
  ready: ParkedWorker[];
  reserve: ParkedWorker[];
  forking: number;
  forkingWarm: number;
  running: number;
  born: number;
  retired: boolean;
}

/** The runs of nobody in particular: they are one another's, and no rule between tenants holds for them. */
export const NO_TENANT = "";

/**
 * Workers that wait warm. What is parked beyond them is a reserve for a burst, and waits cold: of a thousand workers
 * that is half a gigabyte.
 */
const MOST_WARM = 64;

/**
 * How long forking waits while there are parked workers left and nobody waits for one: most runs are over by then, and a
 * fork beside a run, which takes zygote and supervisor, would double what that run takes on two cores, ms.
 */
const PUT_OFF_MS = 5;

/** Failures to fork in a row after which those who wait are told. */
const MAX_FORK_FAILURES = 3;

export class Pool {
  readonly #options: PoolOptions;
  /** Waiting runs by tenant; a Map keeps the order in which tenants take turns. */
  readonly #queues = new Map<string, Waiter[]>();
  readonly #generations = new Set<Generation>();
  #current: Generation | undefined;
  #starting: Promise<void> | undefined;
  #waiting = 0;
  #running = 0;
  /** Slots held, by tenant. */
  readonly #held = new Shares();
  #forkFailures = 0;
  #closed = false;
  #recycleTimer: NodeJS.Timeout | undefined;
  #refilling: NodeJS.Timeout | undefined;

  private constructor(options: PoolOptions) {
    this.#options = options;
  }

  /** Starts the first generation; rejects with its error when the host cannot. */
  static async create(options: PoolOptions): Promise<Pool> {
    const pool = new Pool(options);
    await pool.#startGeneration(true);
    return pool;
  }

  get idle(): boolean {
    return this.#running === 0 && this.#waiting === 0;
  }

  /** Process ids and the like are nobody's business: this is for tests and metrics. */
  get state(): { running: number; waiting: number; parked: number; generations: number } {
    const generation = this.#current;
    const parked = generation === undefined ? 0 : parkedIn(generation);
    return { running: this.#running, waiting: this.#waiting, parked, generations: this.#generations.size };
  }

  /**
   * A parked worker, in turn. Rejects with SandboxError `overloaded` when the queue is full, `closed` when the pool
   * closes first, the signal's reason when it aborts first, and the start's error when no zygote can be had.
   */
  acquire(tenant: string, signal: AbortSignal | undefined): Promise<Lease> {
    if (this.#closed) return Promise.reject(new SandboxError("closed", "the sandbox is closed"));
    if (signal?.aborted) return Promise.reject(signal.reason as Error);
    const startable = this.#mayHold(tenant) ? Math.max(0, this.#options.maxConcurrent - this.#running) : 0;
    if (this.#waiting >= this.#options.maxQueue + startable) {
      const queued = `${this.#waiting} runs are waiting (maxQueue ${this.#options.maxQueue})`;
      return Promise.reject(new SandboxError("overloaded", queued));
    }
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        tenant,
        resolve: (lease) => {
          signal?.removeEventListener("abort", onAbort);
          resolve(lease);
        },
        reject: (error) => {
          signal?.removeEventListener("abort", onAbort);
          reject(error);
        },
      };
      const onAbort = () => {
        if (this.#withdraw(tenant, waiter)) waiter.reject(signal?.reason as Error);
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      const queue = this.#queues.get(tenant);
      if (queue === undefined) this.#queues.set(tenant, [waiter]);
      else queue.push(waiter);
      this.#waiting++;
      this.#pump();
    });
  }

  /** Ends every generation; waits until nothing of them is left. Waiting runs are rejected, running ones lost. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#recycleTimer);
    clearTimeout(this.#refilling);
    this.#rejectAll(new SandboxError("closed", "the sandbox was closed while the run was waiting"));
    await this.#starting?.catch(() => {}); // its error has been reported to those who waited
    await Promise.all([...this.#generations].map((generation) => generation.hull.stop()));
  }

  // -- who is next --------------------------------------------------------------------------------------------------

  #withdraw(tenant: string, waiter: Waiter): boolean {
    const queue = this.#queues.get(tenant);
    const at = queue?.indexOf(waiter) ?? -1;
    if (queue === undefined || at < 0) return false;
    queue.splice(at, 1);
    if (queue.length === 0) this.#queues.delete(tenant);
    this.#waiting--;
    return true;
  }

  /** Whether the tenant may have one more of the slots that are free. */
  #mayHold(tenant: string): boolean {
    const free = this.#options.maxConcurrent - this.#running;
    return tenant === NO_TENANT || this.#held.mayHoldOneMore(tenant, free);
  }

  /** The first of the tenant whose turn it is; the tenant then goes to the end of the line. */
  #next(may: (tenant: string) => boolean = () => true): Waiter | undefined {
    for (const [tenant, queue] of this.#queues) {
      if (!may(tenant)) continue;
      this.#queues.delete(tenant);
      const waiter = queue.shift();
      if (queue.length > 0) this.#queues.set(tenant, queue);
      if (waiter === undefined) continue;
      this.#waiting--;
      return waiter;
    }
    return undefined;
  }

  #rejectAll(error: Error): void {
    for (let waiter = this.#next(); waiter !== undefined; waiter = this.#next()) waiter.reject(error);
  }

  /** Hands out what is ready, and keeps enough on the way. Called after every change. */
  #pump(): void {
    if (this.#closed) return;
    const generation = this.#current;
    if (generation === undefined) {
      if (this.#waiting > 0) this.#startInBackground();
      return;
    }
    const { maxConcurrent } = this.#options;
    while (this.#waiting > 0 && this.#running < maxConcurrent && parkedIn(generation) > 0) {
      const waiter = this.#next((tenant) => this.#mayHold(tenant));
      if (waiter === undefined) break; // all who wait hold their share
      const worker = (generation.ready.shift() ?? generation.reserve.shift()) as ParkedWorker;
      waiter.resolve(this.#lease(generation, worker, waiter.tenant));
    }
    if (this.#waiting > 0 || parkedIn(generation) === 0) return this.#refill();
    this.#refilling ??= setTimeout(() => this.#refill(), PUT_OFF_MS);
  }

  #refill(): void {
    clearTimeout(this.#refilling);
    this.#refilling = undefined;
    const generation = this.#current;
    if (this.#closed || generation === undefined) return;
    const { parked, maxConcurrent } = this.#options;
    const wanted = parked + Math.min(this.#waiting, Math.max(0, maxConcurrent - this.#running));
    while (parkedIn(generation) + generation.forking < wanted && this.#fork(generation));
  }

  #lease(generation: Generation, parked: ParkedWorker, tenant: string): Lease {
    parked.onLost = undefined;
    generation.running++;
    this.#running++;
    this.#held.add(tenant);
    let over = false;
    return {
      parked,
      hull: generation.hull,
      done: () => {
        if (over) return;
        over = true;
        generation.running--;
        this.#running--;
        this.#held.giveBack(tenant);
        this.#retireIfDone(generation);
        this.#pump();
      },
    };
  }

  #fork(generation: Generation): boolean {
    const warm = generation.ready.length + generation.forkingWarm < MOST_WARM;
    let forked: Promise<ParkedWorker> | undefined;
    try {
      forked = generation.hull.fork(warm ? "warm" : "cold");
    } catch (error) {
      forked = Promise.reject(asSandboxError(error)); // out of descriptors, most likely: counted like any other failure
    }
    if (forked === undefined) return false;
    const count = (by: 1 | -1) => {
      generation.forking += by;
      if (warm) generation.forkingWarm += by;
    };
    count(1);
    forked.then(
      (worker) => {
        count(-1);
        this.#forkFailures = 0;
        if (this.#closed || generation.retired) return worker.discard();
        const list = warm ? generation.ready : generation.reserve;
        worker.onLost = () => {
          const at = list.indexOf(worker);
          if (at >= 0) list.splice(at, 1);
          this.#pump();
        };
        list.push(worker);
        if (generation.hull.forks >= this.#options.recycleForks) this.#startInBackground();
        this.#pump();
      },
      (error: unknown) => {
        count(-1);
        if (this.#closed || !generation.hull.alive) return; // its end is handled where it is heard
        this.#forkFailures++;
        if (this.#forkFailures < MAX_FORK_FAILURES) return this.#pump();
        this.#forkFailures = 0;
        this.#rejectAll(asSandboxError(error));
      },
    );
    return true;
  }

  // -- generations --------------------------------------------------------------------------------------------------

  #startInBackground(): void {
    this.#startGeneration(false).catch((error: unknown) => {
      // A generation that could not be replaced goes on serving; without one, those who wait are told.
      if (this.#current === undefined) this.#rejectAll(asSandboxError(error));
    });
  }

  #startGeneration(first: boolean): Promise<void> {
    this.#starting ??= this.#start(first).finally(() => (this.#starting = undefined));
    return this.#starting;
  }

  async #start(first: boolean): Promise<void> {
    const hull = await this.#options.start(first);
    if (this.#closed) return hull.stop();
    const generation: Generation = {
      hull,
      ready: [],
      reserve: [],
      forking: 0,
      forkingWarm: 0,
      running: 0,
      born: Date.now(),
      retired: false,
    };
    this.#generations.add(generation);
    hull.onFree = () => this.#pump();
    const previous = this.#current;
    this.#current = generation;
    void hull.ended.then(() => this.#ended(generation));
    if (previous !== undefined) this.#retire(previous);
    clearTimeout(this.#recycleTimer);
    this.#recycleTimer = setTimeout(() => this.#startInBackground(), this.#options.recycleMs);
    this.#recycleTimer.unref();
    this.#pump();
    if (first && this.#options.replaceFirst) setImmediate(() => this.#closed || this.#startInBackground());
  }

  #retire(generation: Generation): void {
    generation.retired = true;
    for (const worker of [...generation.ready.splice(0), ...generation.reserve.splice(0)]) {
      worker.onLost = undefined;
      worker.discard();
    }
    this.#retireIfDone(generation);
  }

  #retireIfDone(generation: Generation): void {
    if (generation.retired && generation.running === 0) void generation.hull.stop();
  }

  #ended(generation: Generation): void {
    this.#generations.delete(generation);
    if (this.#current !== generation) return;
    this.#current = undefined;
    if (!this.#closed) this.#startInBackground();
  }
}

function parkedIn({ ready, reserve }: Generation): number {
  return ready.length + reserve.length;
}

/** The host's errors keep their remedy when they become the caller's. What is no host's fault stays what it is. */
export function asSandboxError(error: unknown): Error {
  if (error instanceof JailError && error.code === "engine") {
    return new SandboxError("no-engine", error.message, {
      cause: error,
      field: "engine",
      remedy: engineRemedy(),
    });
  }
  if (error instanceof JailError || error instanceof CgroupError) {
    return new SandboxError("host-cannot", error.message, { cause: error, remedy: error.remedy });
  }
  return error instanceof Error ? error : new Error(String(error));
}

/** Slots for workers: those that run, those that wait, and those that are being buried. */
export function slotsFor(options: { parked: number; maxConcurrent: number }): number {
  return options.parked + options.maxConcurrent + 4;
}
