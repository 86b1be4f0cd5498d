/**
 * The library: untrusted JavaScript in, outcome out. Composes the language hull, the kernel hull and the rules about
 * who waits for whom; everything hard happens in the modules that it names.
 */
import { randomBytes } from "node:crypto";
import { setMaxListeners } from "node:events";
import os from "node:os";
import { codec } from "../engine/codec.js";
import { Broker } from "../hostapi/broker.js";
import { Capability } from "../hostapi/capability.js";
import type { ClockSetting, LogLevel } from "../hostapi/ambient.js";
import { Secret } from "../hostapi/secret.js";
import type { Job } from "../engine/engine.js";
import { readHost, type Host } from "../osjail/host.js";
import type { LaunchFrom } from "../osjail/launch.js";
import type { LaunchedKeeper } from "../osjail/zygote-client.js";
import { converse, type RunJob } from "./conversation.js";
import {
  isTypeScript,
  isV8,
  requirePackage,
  type EngineKind,
  type ImageKind,
  type ScriptEngine,
} from "./engines.js";
import { SandboxError } from "./errors.js";
import { startJail, startLocal, type Hull, type HullOptions } from "./hull.js";
import {
  completeLimits,
  INPUT_BYTES,
  LIMITS,
  type LimitName,
  type Limits,
  type PartialLimits,
} from "./limits.js";
import type { Outcome, ScriptError, Stop } from "./outcome.js";
import {
  createSchema,
  parse,
  type Grant,
  replaySchema,
  type ReplayOptions,
  runSchema,
  type ParsedOptions,
  type RunOptions,
  type SandboxOptions,
} from "./options.js";
import { asSandboxError, NO_TENANT, Pool, slotsFor } from "./pool.js";
import { checkRecording, Replayer, RunRecorder, type Recording, type Replay } from "./recording.js";

const { encode, isCodecError } = codec();
/** What an entry file knows and the library does not: where the filter may be installed, and the environment. */
export interface SandboxPowers {
  launchFrom: LaunchFrom;
  env: Readonly<Record<string, string | undefined>>;
  /** Keepers launched ahead, by engine; each is used once. */
  launched?: Map<EngineKind, Promise<LaunchedKeeper>>;
}

const MAX_TENANT_ZYGOTES = 16;

/** Runs at once, unless said otherwise. */
export const usualConcurrent = (): number => Math.max(4, 2 * os.availableParallelism());

export class Sandbox {
  readonly #options: ParsedOptions;
  readonly #limits: Limits;
  readonly #host: Host | undefined;
  readonly #powers: SandboxPowers;
  /** One pool, or one per tenant, in the order of their last use. */
  readonly #pools = new Map<string, Promise<Pool>>();
  #stripper: Promise<Pool> | undefined;
  #closed = false;
  /** An idle sandbox keeps no process alive, a pending run does: workers' own handles come and go meanwhile. */
  readonly #keepAlive = setInterval(() => {}, 1_000_000_000).unref();
  #pending = 0;

  private constructor(options: ParsedOptions, powers: SandboxPowers) {
    this.#options = options;
    this.#limits = completeLimits(options.limits ?? {});
    this.#host = options.hull === "language-only" ? undefined : readHost(powers.env);
    this.#powers = powers;
  }

  /**
   * Starts the first zygote and resolves when a run could begin. Rejects with SandboxError: `bad-option` naming the
   * field, `host-cannot` naming the missing layer and its remedy. The caller owns the sandbox and closes it.
   */
  static async create(
    options: SandboxOptions = {},
    powers: SandboxPowers = { launchFrom: "thread", env: process.env },
  ): Promise<Sandbox> {
    let sandbox: Sandbox | undefined;
    try {
      sandbox = new Sandbox(parse(createSchema, options), powers);
      sandbox.#checkFuel(options.limits ?? {});
      requirePackage(sandbox.#engine);
      const first = sandbox.#options.zygotePerTenant ? undefined : sandbox.#poolOf(NO_TENANT);
      if (sandbox.#options.typescript) void sandbox.#strippers().catch(() => {}); // told to the run that needs it
      await first;
      return sandbox;
    } catch (error) {
      await sandbox?.close();
      throw asSandboxError(error);
    }
  }

  /** The limits that a run gets when it does not ask for less. */
  get limits(): Readonly<Limits> {
    return { ...this.#limits };
  }

  /**
   * Runs a script in a process of its own. Resolves to an Outcome whatever the script does; rejects with SandboxError
   * only for a mistake of the caller (`bad-option`, `bad-input`, `over-limit`, `closed`) or of this host
   * (`overloaded`, `host-cannot`). Any number of runs may be under way. With `record` the outcome has a recording,
   * unless the run never began.
   */
  async run(source: string, options: RunOptions = {}): Promise<Outcome & { recording?: Recording }> {
    return this.#whilePending(() => this.#run(source, options));
  }

  async #whilePending<T>(act: () => Promise<T>): Promise<T> {
    if (++this.#pending === 1) this.#keepAlive.ref();
    try {
      return await act();
    } finally {
      if (--this.#pending === 0) this.#keepAlive.unref();
    }
  }

  async #run(source: string, options: RunOptions): Promise<Outcome & { recording?: Recording }> {
    if (this.#closed) throw new SandboxError("closed", "the sandbox is closed");
    if (typeof source !== "string") {
      throw new SandboxError("bad-option", "source must be a string", { field: "source" });
    }
    for (const table of ["modules", "grants"] as const) {
      if (!Object.hasOwn(options[table] ?? {}, "__proto__")) continue;
      const field = `${table}.__proto__`;
      throw new SandboxError("bad-option", `${field} cannot be a name: choose another`, { field });
    }
    const given = parse(runSchema, options);
    const { table, clock, seed, leastLevel, maxTimers } = arrange(given.grants ?? {});
    const limits = this.#limitsFor(given.limits ?? {});
    if (given.record === true && (clock.mode === "real" || clock.mode === "coarse")) {
      const message = `record: a clock that runs by itself (${clock.mode}) cannot be replayed; use frozen or virtual`;
      throw new SandboxError("bad-option", message, { field: "record" });
    }
    const input = encodeInput(given.input);
    const { signal, tenant = NO_TENANT } = given;
    if (signal !== undefined) setMaxListeners(0, signal); // one signal may cancel any number of runs
    const script = await this.#prepare(source, given, limits, tenant);
    if ("status" in script) return script;
    const recorder = given.record === true ? new RunRecorder() : undefined;
    const pool = await this.#poolOf(tenant);
    const outcome = await this.#converse(pool, tenant, limits, {
      signal,
      onLog: given.onLog,
      recorder,
      host: (port, run) => new Broker(table, { limits, run, port: { ...port, audit: given.audit } }),
      job: () => ({
        ...jobLimits(limits),
        ...script,
        role: "run",
        seed: seed ?? freshSeed(),
        nowMs: clock.startMs ?? Date.now(),
        clock,
        leastLevel,
        maxTimers,
        input,
      }),
    });
    const recording = recorder?.finish(outcome, limits, this.#engine);
    return recording === undefined ? outcome : { ...outcome, recording };
  }

  /**
   * Runs a recorded run again, with nothing granted: its calls are answered from the recording. With `source` (and
   * `modules`) other code runs in its place. Resolves to the outcome, whether it is identical, and if not, where it
   * first differs. Rejects as `run` does.
   */
  async replay(recorded: Recording, options: ReplayOptions = {}): Promise<Replay> {
    return this.#whilePending(async () => {
      if (this.#closed) throw new SandboxError("closed", "the sandbox is closed");
      const given = parse(replaySchema, options);
      const recording = checkRecording(recorded);
      const otherEngine = recording.engine !== this.#engine;
      if (otherEngine && given.otherEngine !== true) {
        const message = `the recording was made with the engine ${recording.engine}, and this sandbox has ${this.#engine}`;
        const remedy = `Replay it in a sandbox with engine: "${recording.engine}", or with otherEngine: true.`;
        throw new SandboxError("bad-input", message, { field: "engine", remedy });
      }
      const limits = this.#limitsFor(recording.limits);
      const { job } = recording;
      const { signal, source = job.source } = given;
      const code = {
        type: job.type,
        name: given.name ?? job.name,
        language: given.language ?? (given.source === undefined ? ("javascript" as const) : undefined),
        modules: given.modules ?? (Object.fromEntries(job.modules) as Record<string, string>),
        stripped: given.source === undefined,
        signal,
      };
      const script = await this.#prepare(source, code, limits, NO_TENANT);
      if ("status" in script) return { outcome: script, identical: false };
      const diverged = new AbortController();
      let replayer: Replayer | undefined;
      const outcome = await this.#converse(await this.#poolOf(NO_TENANT), NO_TENANT, limits, {
        signal: signal === undefined ? diverged.signal : AbortSignal.any([signal, diverged.signal]),
        onLog: given.onLog,
        host: (port) => (replayer = new Replayer(recording, port, () => diverged.abort(), otherEngine)),
        job: () => ({
          ...jobLimits(limits),
          ...script,
          role: "run",
          seed: new Uint8Array(Buffer.from(job.seed, "base64")),
          nowMs: job.nowMs,
          clock: job.clock,
          leastLevel: job.leastLevel,
          maxTimers: job.maxTimers,
          input: { text: job.input.text, blobs: job.input.blobs.map((blob) => Buffer.from(blob, "base64")) },
        }),
      });
      return replayer?.finish(outcome) ?? { outcome, identical: false };
    });
  }

  /** What runs: within its limit of bytes, and without its types. Or the outcome of a script that cannot. */
  async #prepare(
    source: string,
    given: Pick<RunOptions, "type" | "name" | "language" | "modules" | "signal"> & { stripped?: boolean },
    limits: Limits,
    tenant: string,
  ): Promise<Pick<Job, "type" | "name" | "source" | "modules"> | Outcome> {
    const { type = "module", signal } = given;
    const typescript =
      given.language === "typescript" || (given.language === undefined && isTypeScript(given.name ?? ""));
    const name = given.name ?? (typescript ? "script.ts" : "script.js");
    const modules = Object.entries(given.modules ?? {});
    const bytes = modules.reduce((sum, [, text]) => sum + Buffer.byteLength(text), Buffer.byteLength(source));
    if (bytes > limits.sourceBytes) {
      return this.#unstarted({
        reason: "source",
        layer: "supervisor",
        limit: limits.sourceBytes,
        measured: bytes,
      });
    }
    const typed = given.stripped === true ? [] : modules.filter(([module]) => isTypeScript(module));
    if (!typescript && typed.length === 0) return { type, name, source, modules };
    const toStrip = typescript ? [[name, source] as [string, string], ...typed] : typed;
    const stripped = await this.#strip(name, type, toStrip, tenant, signal);
    if (!Array.isArray(stripped)) return stripped;
    const texts = new Map(
      typed.map(([module], at) => [module, stripped[at + (typescript ? 1 : 0)] as string]),
    );
    return {
      type,
      name,
      source: typescript ? (stripped[0] as string) : source,
      modules: modules.map(([module, text]) => [module, texts.get(module) ?? text]),
    };
  }

  /** Ends every run, zygote and worker and waits until nothing is left. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#keepAlive);
    const pools = [...this.#pools.values(), ...(this.#stripper === undefined ? [] : [this.#stripper])];
    await Promise.all(
      pools.map(async (pool) => {
        try {
          await (await pool).close();
        } catch (error) {
          if (!(error instanceof Error)) throw error; // a pool that never started has nothing to close
        }
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** For metrics and tests. */
  async state(): Promise<Pool["state"][]> {
    return Promise.all([...this.#pools.values()].map(async (pool) => (await pool).state));
  }

  // -- one run ------------------------------------------------------------------------------------------------------

  async #converse(
    pool: Pool,
    tenant: string,
    limits: Limits,
    run: Pick<RunJob, "signal" | "onLog" | "host" | "recorder"> & { job: () => RunJob["job"] },
  ): Promise<Outcome> {
    const { signal } = run;
    for (;;) {
      let lease;
      try {
        lease = await pool.acquire(tenant, signal);
      } catch (error) {
        if (signal?.aborted) return { ...this.#nothing(), status: "cancelled" };
        throw asSandboxError(error);
      }
      try {
        const { parked, hull } = lease;
        try {
          parked.applyLimits(limits);
        } catch {
          parked.discard(); // it died while it was parked: the run has not started, another worker takes it
          continue;
        }
        return await converse(parked, { ...run, job: run.job(), limits, tenant, layers: hull.layers });
      } finally {
        lease.done();
      }
    }
  }

  #limitsFor(asked: PartialLimits): Limits {
    this.#checkFuel(asked);
    for (const name of Object.keys(LIMITS) as LimitName[]) {
      const [wanted, most] = [asked[name], this.#limits[name]];
      const unbounded = name === "fuel" && most === 0;
      if (wanted !== undefined && wanted > most && !unbounded) {
        const message = `limits.${name} is ${wanted}, more than the sandbox's ${most}`;
        throw new SandboxError("over-limit", message, { field: `limits.${name}` });
      }
    }
    return completeLimits(asked, this.#limits);
  }

  /** Of fuel nothing means no bound, which is more than any; and only an engine that counts can hold it. */
  #checkFuel(asked: PartialLimits): void {
    const { fuel } = asked;
    const field = "limits.fuel";
    if (fuel === 0 && this.#limits.fuel > 0) {
      throw new SandboxError("over-limit", `${field} is 0, no bound, and the sandbox's is ${this.#limits.fuel}`, { field }); // prettier-ignore
    }
    if (!isV8(this.#engine) || (fuel ?? 0) === 0) return;
    const message = `${field}: ${this.#engine} cannot count steps; use the engine quickjs, or limit cpuMs`;
    throw new SandboxError("bad-option", message, { field });
  }

  #nothing(): Pick<Outcome, "logs" | "usage" | "ledger" | "layers"> {
    const usage = { wallMs: 0, cpuMs: 0, peakMemoryBytes: 0, hostCalls: 0, bytesIn: 0, bytesOut: 0 };
    const hull = this.#host === undefined ? "language-only" : "double";
    return {
      logs: [],
      usage,
      ledger: [],
      layers: { hull, engine: this.#engine, kernel: [] },
    };
  }

  get #engine(): ScriptEngine {
    return this.#options.engine ?? "quickjs";
  }

  #unstarted(stop: Stop): Outcome {
    return { ...this.#nothing(), status: "stopped", stop };
  }

  // -- TypeScript ---------------------------------------------------------------------------------------------------

  /** The stripped sources in order, or the outcome that the run has because they could not be stripped. */
  async #strip(
    name: string,
    type: "module" | "script",
    modules: [string, string][],
    tenant: string,
    signal: AbortSignal | undefined,
  ): Promise<string[] | Outcome> {
    const limits = this.#stripLimits();
    const pool = await this.#strippers();
    const outcome = await this.#converse(pool, tenant, limits, {
      signal,
      host: (port, run) => new Broker(new Map(), { limits, run, port }),
      job: () => ({
        ...jobLimits(limits),
        role: "run",
        type,
        name,
        source: "",
        modules,
        seed: new Uint8Array(32),
        nowMs: 0,
        clock: { mode: "frozen", stepMs: 0 },
        leastLevel: "error",
        maxTimers: 0,
        input: { text: "null", blobs: [] },
      }),
    });
    switch (outcome.status) {
      case "ok":
        return checkStripped(outcome.value, modules);
      case "threw":
        return { ...outcome, error: withExcerpt(outcome.error, modules) };
      case "stopped": {
        if (outcome.stop.reason === "lost") return outcome; // nothing is wrong with the source
        const detail = `the TypeScript could not be parsed: ${outcome.stop.reason}`;
        return { ...outcome, stop: { reason: "source", layer: outcome.stop.layer, detail } };
      }
      case "cancelled":
        return outcome;
    }
  }

  #stripLimits(): Limits {
    const bytes = this.#limits.sourceBytes;
    const resultBytes = Math.min(LIMITS.resultBytes.max, 4 * bytes + 1024);
    return completeLimits({ wallMs: 5000, cpuMs: 5000, memoryMb: 128, sourceBytes: bytes, resultBytes });
  }

  #strippers(): Promise<Pool> {
    this.#stripper ??= this.#newPool("typescript", this.#stripLimits(), { parked: 1, image: "fast-start" });
    this.#stripper.catch(() => (this.#stripper = undefined)); // the next run tries again
    return this.#stripper;
  }

  // -- pools --------------------------------------------------------------------------------------------------------

  async #poolOf(tenant: string): Promise<Pool> {
    const key = this.#options.zygotePerTenant ? tenant : NO_TENANT;
    let pool = this.#pools.get(key);
    if (pool === undefined) {
      const full = this.#pools.size >= MAX_TENANT_ZYGOTES;
      const [parked, image] = [this.#options.parked ?? 2, this.#options.image ?? "auto"];
      const start = () => {
        if (this.#closed) throw new SandboxError("closed", "the sandbox is closed");
        return this.#newPool(this.#engine, this.#limits, { parked, image });
      };
      // In the map before anything is awaited: runs of one tenant that come together share it, and close() finds it.
      pool = full ? this.#evictIdle().then(start) : start();
      const made = pool;
      pool.catch(() => this.#pools.get(key) === made && this.#pools.delete(key));
    }
    this.#pools.delete(key);
    this.#pools.set(key, pool); // at the end: most recently used
    try {
      return await pool;
    } catch (error) {
      throw asSandboxError(error);
    }
  }

  async #evictIdle(): Promise<void> {
    for (const [key, pending] of this.#pools) {
      const pool = await pending.catch(() => undefined);
      if (pool?.idle !== true || this.#pools.get(key) !== pending) continue;
      this.#pools.delete(key);
      return pool.close();
    }
    throw new SandboxError(
      "overloaded",
      `${MAX_TENANT_ZYGOTES} tenants are running, each with a zygote of its own`,
    );
  }

  #newPool(
    engine: EngineKind,
    limits: Limits,
    { parked, image }: { parked: number; image: "auto" | ImageKind },
  ): Promise<Pool> {
    const { recycleForks = 10_000, recycleMinutes = 60, maxQueue = 1000 } = this.#options;
    const maxConcurrent = this.#options.maxConcurrent ?? usualConcurrent();
    const slots = slotsFor({ parked, maxConcurrent });
    return Pool.create({
      start: (first) =>
        this.#startHull({
          engine,
          limits,
          slots,
          image: image === "auto" ? (first ? "fast-start" : "fast-run") : image,
        }),
      parked,
      maxConcurrent,
      maxQueue,
      recycleForks,
      recycleMs: recycleMinutes * 60_000,
      replaceFirst: image === "auto" && this.#host !== undefined,
    });
  }

  #startHull(options: HullOptions): Promise<Hull> {
    const host = this.#host;
    if (host === undefined) return startLocal(options);
    return startJail({
      ...options,
      host: host.facts,
      systemdScope: host.systemdScope,
      scopeEnv: host.scopeEnv,
      requireCgroup: this.#options.requireCgroup ?? false,
      coreScheduling: this.#options.coreScheduling ?? false,
      speculation: this.#options.speculation ?? false,
      launchFrom: this.#powers.launchFrom,
      launched: this.#takeLaunched(options.engine),
    });
  }

  #takeLaunched(engine: EngineKind): Promise<LaunchedKeeper> | undefined {
    const keeper = this.#powers.launched?.get(engine);
    this.#powers.launched?.delete(engine);
    return keeper;
  }
}

const SEED_BYTES = 32;
let seeds = Buffer.alloc(0);

/** From a supply: asking the generator takes as long for many as for one, and a run waits for it. */
function freshSeed(): Uint8Array {
  if (seeds.length === 0) seeds = randomBytes(128 * SEED_BYTES);
  const seed = Uint8Array.from(seeds.subarray(0, SEED_BYTES));
  seeds.fill(0, 0, SEED_BYTES); // nobody needs to find it here later
  seeds = seeds.subarray(SEED_BYTES);
  return seed;
}

const jobLimits = (limits: Limits) => ({
  maxResultBytes: limits.resultBytes,
  maxLogBytes: limits.logBytes,
  maxStackBytes: limits.stackKb * 1024,
  maxMemoryBytes: limits.memoryMb * 1024 * 1024,
  maxCallBytes: limits.callBytes,
  maxInFlight: limits.hostCallsInFlight,
  fuel: limits.fuel,
});

/** What goes into the broker's table, and what the job says of the clock and the like. */
function arrange(grants: Readonly<Record<string, Grant>>) {
  const table = new Map<string, Capability | string>();
  let clock: ClockSetting = { mode: "frozen", stepMs: 0, startMs: undefined };
  let seed: Uint8Array | undefined;
  let leastLevel: LogLevel = "debug";
  let maxTimers = 10_000;
  for (const [name, grant] of Object.entries(grants)) {
    if (grant instanceof Capability) table.set(name, grant);
    else if (grant instanceof Secret) table.set(name, grant.placeholder);
    else {
      if (name !== grant.kind) {
        const field = `grants.${name}`;
        const message = `${field} is a ${grant.kind}, which changes what every script has: grant it as "${grant.kind}"`;
        throw new SandboxError("bad-option", message, { field });
      }
      if (grant.kind === "clock") clock = grant.setting;
      if (grant.kind === "random") ({ seed } = grant);
      if (grant.kind === "log") leastLevel = grant.least;
      if (grant.kind === "timers") maxTimers = grant.most;
    }
  }
  return { table, clock, seed, leastLevel, maxTimers };
}

function encodeInput(input: unknown): { text: string; blobs: Uint8Array[] } {
  try {
    return encode(input, {
      maxBytes: INPUT_BYTES,
      maxNodes: 1_000_000,
      root: "input",
      omitStacks: true,
    });
  } catch (error) {
    if (!isCodecError(error)) throw error;
    throw new SandboxError("bad-input", error.message, { field: error.path });
  }
}

/** The stripper's worker is hostile too: its answer is text of about the size that went in, or nothing. */
function checkStripped(value: unknown, modules: [string, string][]): string[] {
  const texts = Array.isArray(value) ? (value as unknown[]) : [];
  const fits = (text: unknown, i: number) =>
    typeof text === "string" && text.length <= 2 * (modules[i]?.[1].length ?? 0) + 1024;
  if (texts.length !== modules.length || !texts.every(fits)) {
    throw new SandboxError("host-cannot", "the TypeScript stripper gave no usable answer");
  }
  return texts as string[];
}

/** Puts the line that is wrong, and a mark below the column, after the message. */
function withExcerpt(error: ScriptError, modules: [string, string][]): ScriptError {
  // All of this is a worker's word: short enough to look at, and the column within the line.
  const match = /at (.*):(\d+):(\d+)$/.exec(error.stack.slice(-300));
  const source = modules.find(([name]) => name === match?.[1])?.[1];
  const line = source?.split("\n")[Number(match?.[2]) - 1];
  const column = Number(match?.[3]);
  if (line === undefined || line.length > 200 || !(column >= 1 && column <= line.length + 1)) return error;
  return { ...error, message: `${error.message}\n  ${line}\n  ${" ".repeat(column - 1)}^` };
}
