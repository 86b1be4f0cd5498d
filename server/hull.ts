/**
 * Where workers come from: forked by a zygote in the jail, or (explicitly, for development) spawned without a kernel
 * hull. Both give the same parked worker to the conversation.
 */
import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { Duplex } from "node:stream";
import { fileURLToPath } from "node:url";
import { WorkerConnection, type ConnectionLimits } from "../hostapi/wire.js";
import { JailError } from "../osjail/errors.js";
import { planJail, type HostFacts, type JailPlan } from "../osjail/plan.js";
import type { Arch } from "../osjail/abi/syscalls.js";
import type { Host } from "../osjail/host.js";
import type { LaunchedKeeper, WorkerExit, Zygote } from "../osjail/zygote-client.js";
import type { LaunchFrom } from "../osjail/launch.js";
import {
  COLD,
  ENGINE_UNAVAILABLE_EXIT,
  isV8,
  nodeFlags,
  WARM,
  type EngineKind,
  type ImageKind,
} from "./engines.js";
import { WORKER_OVERHEAD_MB, type Limits } from "./limits.js";
import type { Layers } from "./outcome.js";

/** What a conversation needs of a process, from outside. */
export interface WorkerProcess {
  readonly socket: Duplex & { ref(): unknown; unref(): unknown };
  readonly exited: Promise<WorkerExit>;
  /** CPU time that it had used when it was found parked, ms. */
  readonly parkedCpuMs: number;
  cpuMs(): number | undefined;
  peakBytes(exit?: WorkerExit): number;
  oomKilled(): boolean;
  /** From now on others' CPU time comes first. */
  giveWay(): void;
  kill(): void;
}

/** A process that made workers ready: one generation of an engine's image. */
export interface Hull {
  readonly alive: boolean;
  /** Workers that could be made now. */
  readonly free: number;
  readonly forks: number;
  readonly ended: Promise<void>;
  readonly layers: Layers;
  /** Called when there is room for a worker again. */
  onFree: (() => void) | undefined;
  /**
   * A worker on its way; undefined when there is no room. Resolves when it is parked and attested. A cold one takes less
   * memory while it waits, and more time for its run.
   */
  fork(temperature: "warm" | "cold"): Promise<ParkedWorker> | undefined;
  stop(): Promise<void>;
}

export interface HullOptions {
  engine: EngineKind;
  image: ImageKind;
  /** The most that any run may ask for. */
  limits: Limits;
  slots: number;
}

const keeperMain = fileURLToPath(new URL("./keeper-main.js", import.meta.url));
const localMain = fileURLToPath(new URL("./local-main.js", import.meta.url));

/** A worker that waits for its one job. */
export class ParkedWorker {
  #handlers: { data: (chunk: Buffer) => void; closed: () => void } | undefined;
  /** It ended before it got a job: the pool forgets it. */
  onLost: (() => void) | undefined;
  cpuSeconds: number;
  #limited = false;

  constructor(
    readonly worker: WorkerProcess,
    readonly connection: WorkerConnection,
    readonly arch: Arch,
    maximum: Limits,
    readonly lower: ((limits: Limits) => void) | undefined,
    /** Whether the hull was closed: then its workers' deaths are our own doing. */
    readonly closed: () => boolean = () => false,
  ) {
    this.cpuSeconds = cpuSecondsFor(maximum);
    worker.socket.on("data", (chunk: Buffer) => this.#hear(chunk));
    worker.socket.on("error", () => {}); // EPIPE or a reset: the close that follows says all
    worker.socket.on("close", () => (this.#handlers === undefined ? this.#lost() : this.#handlers.closed()));
  }

  /** From outside, before the job: a run may ask for less than the worker parked with. */
  applyLimits(limits: Limits): void {
    this.lower?.(limits);
    this.cpuSeconds = cpuSecondsFor(limits);
    this.#limited = true;
  }

  listen(handlers: { data: (chunk: Buffer) => void; closed: () => void }): void {
    if (!this.#limited) throw new Error("a worker must be limited before it is given a job");
    this.#handlers = handlers;
    this.worker.socket.ref();
  }

  write(frame: Uint8Array): void {
    if (!this.worker.socket.destroyed) this.worker.socket.write(frame);
  }

  /** Bytes that were written and have not left. */
  get backlog(): number {
    return this.worker.socket.writableLength;
  }

  /** Calls `then` when everything has left. There must be a backlog. */
  whenDrained(then: () => void): void {
    this.worker.socket.once("drain", then);
  }

  /** Hears nothing more until `resume`. */
  pause(): void {
    this.worker.socket.pause();
  }

  resume(): void {
    this.worker.socket.resume();
  }

  /** Kills the process and lets go of its socket. */
  discard(): void {
    this.worker.kill();
    this.#handlers = { data: () => {}, closed: () => {} };
    this.worker.socket.unref();
    this.worker.socket.destroy();
  }

  #hear(chunk: Buffer): void {
    if (this.#handlers !== undefined) return this.#handlers.data(chunk);
    this.#lost(); // a parked worker has nothing to say
  }

  #lost(): void {
    this.discard();
    this.onLost?.();
  }
}

function cpuSecondsFor(limits: Limits): number {
  return Math.ceil(limits.cpuMs / 1000) + 1;
}

const MiB = 1024 * 1024;

export function connectionLimits(limits: Limits): ConnectionLimits {
  const largest = Math.max(limits.resultBytes, limits.callBytes);
  return {
    // The codec counts UTF-16 units, of which one may take three bytes; a log line may take a MiB.
    maxTextBytes: 3 * largest + MiB,
    maxBlobBytes: largest,
    maxFrames: 1_000_000 + 4 * limits.hostCalls + limits.logBytes / 16,
    maxBytesIn:
      16 * MiB + 4 * limits.resultBytes + 8 * limits.logBytes + 3 * limits.hostCalls * limits.callBytes,
    // Timers make calls too; the broker's limit on host calls is counted apart.
    maxCalls: 1_000_000 + limits.hostCalls,
    maxInFlight: limits.hostCallsInFlight + 1024,
  };
}

// ---- the jail -------------------------------------------------------------------------------------------------------

export interface JailOptions extends HullOptions {
  host: HostFacts;
  requireCgroup: boolean;
  coreScheduling: boolean;
  speculation: boolean;
  launchFrom: LaunchFrom;
  systemdScope: boolean;
  scopeEnv: Readonly<Record<string, string>>;
  /** A keeper that was launched ahead, for this engine and image. It is taken over. */
  launched?: Promise<LaunchedKeeper> | undefined;
}

/** Loads the FFI library, which other systems than Linux need not have. */
const zygoteClient = () => import("../osjail/zygote-client.js");

/** Launches the program for an engine; it boots while the caller goes on. Throws JailError. */
export async function launchEngine(
  engine: EngineKind,
  image: ImageKind,
  launchFrom: LaunchFrom,
  host: Pick<Host, "systemdScope" | "scopeEnv">,
): Promise<LaunchedKeeper> {
  const { launchKeeper } = await zygoteClient();
  const { systemdScope, scopeEnv } = host;
  const flags = nodeFlags(engine, image);
  return launchKeeper({
    main: keeperMain,
    argument: engine,
    nodeFlags: flags,
    launchFrom,
    systemdScope,
    scopeEnv,
  });
}

/** Starts a zygote for the engine. Throws JailError naming the layer that is missing. */
export async function startJail(options: JailOptions): Promise<Hull> {
  const { limits, engine } = options;
  const plan: JailPlan = planJail(options.host, {
    profile: engine,
    requireCgroup: options.requireCgroup,
    slots: options.slots,
    maxMemoryBytes: (limits.memoryMb + WORKER_OVERHEAD_MB) * MiB,
    coreScheduling: options.coreScheduling,
    speculation: options.speculation,
    without: [],
  });
  const { Zygote } = await zygoteClient();
  const keeper = options.launched ?? launchEngine(engine, options.image, options.launchFrom, options);
  const zygote = await Zygote.start(
    plan,
    { plan, memoryMb: limits.memoryMb, stackKb: limits.stackKb, image: options.image },
    await keeper,
  );
  return new JailHull(zygote, options);
}

class JailHull implements Hull {
  onFree: (() => void) | undefined;
  readonly layers: Layers;
  constructor(
    readonly zygote: Zygote,
    readonly options: JailOptions,
  ) {
    zygote.onFree = () => this.onFree?.();
    this.layers = { hull: "double", engine: options.engine, kernel: zygote.layers };
  }
  get alive(): boolean {
    return this.zygote.alive;
  }
  get free(): number {
    return this.zygote.free;
  }
  get forks(): number {
    return this.zygote.forks;
  }
  get ended(): Promise<void> {
    return this.zygote.ended;
  }
  #stopping = false;
  stop(): Promise<void> {
    this.#stopping = true;
    return this.zygote.stop();
  }

  fork(temperature: "warm" | "cold"): Promise<ParkedWorker> | undefined {
    let worker: ReturnType<Zygote["fork"]>;
    try {
      worker = this.zygote.fork(temperature === "cold" ? COLD : WARM);
    } catch (error) {
      throw asStartError(error);
    }
    if (worker === undefined) return undefined;
    const { limits, engine } = this.options;
    // RLIMIT_DATA counts what comes on top of the image. All of QuickJS's heap is in it already; of V8's nothing is,
    // and what a run may have less than the isolate is taken from it in one block, which counts as well.
    const growthMb = (wanted: Limits) =>
      engine === "quickjs" ? 0 : isV8(engine) ? limits.memoryMb : wanted.memoryMb;
    const workerLimits = (wanted: Limits) => ({
      dataBytes: (growthMb(wanted) + WORKER_OVERHEAD_MB) * MiB,
      cgroupBytes: (wanted.memoryMb + WORKER_OVERHEAD_MB) * MiB,
      cpuSeconds: cpuSecondsFor(wanted),
    });
    const parked = awaitParked(worker, limits, (connection) => {
      const lower = (wanted: Limits) => {
        // The news of its death may still be on the way: a job that nobody can take must not be sent.
        if (worker.gone) throw new JailError("zygote-lost", "a parked worker has ended");
        worker.limit(workerLimits(wanted));
      };
      return new ParkedWorker(worker, connection, this.zygote.plan.arch, limits, lower, () => this.#stopping);
    });
    const attested = parked.then((ready) => {
      try {
        this.zygote.attest(worker, workerLimits(limits));
        return ready;
      } catch (error) {
        ready.discard();
        throw error;
      }
    });
    return attested.catch((error: unknown) => {
      throw this.zygote.failure ?? asStartError(error);
    });
  }
}

/** What the kernel answers when this host has no more of something: descriptors, processes, memory. man 3 errno */
const EXHAUSTED: ReadonlySet<unknown> = new Set(["EMFILE", "ENFILE", "EAGAIN", "ENOMEM", "ENOBUFS"]);

/** The host's limits are the host's fault and have a remedy; every other error stays what it is. */
function asStartError(error: unknown): unknown {
  if (!(error instanceof Error) || !("code" in error) || !EXHAUSTED.has(error.code)) return error;
  return new JailError("worker-start", `a worker could not be started: ${error.message}`, { cause: error });
}

/** Waits for the one `parked` message; anything else, or the end, is a worker that never was. */
function awaitParked(
  worker: WorkerProcess,
  limits: Limits,
  make: (connection: WorkerConnection) => ParkedWorker,
): Promise<ParkedWorker> {
  const connection = new WorkerConnection(connectionLimits(limits));
  return new Promise((resolve, reject) => {
    const { socket } = worker;
    let settled = false;
    const failed = (why: string) => {
      if (settled) return;
      settled = true;
      worker.kill();
      socket.destroy();
      // Its exit comes first: a hull that ends for the same reason is then known to have ended.
      void worker.exited.then(({ status }) => {
        const unavailable = status === ENGINE_UNAVAILABLE_EXIT << 8;
        const words = "the engine's package does not load under this Node";
        reject(unavailable ? new JailError("engine", words) : new JailError("zygote-lost", why));
      });
    };
    const onClose = () => failed("a worker ended before it was parked");
    socket.once("close", onClose);
    socket.on("error", () => {}); // the close that follows is heard
    void worker.exited.then(onClose); // a process that never was has a socket that never closes
    socket.once("data", (chunk: Buffer) => {
      socket.off("close", onClose);
      if (settled) return;
      try {
        connection.feed(chunk);
        if (connection.state !== "parked") throw new Error("not parked");
      } catch (error) {
        return failed(`a worker said something else than parked: ${String(error)}`);
      }
      settled = true;
      resolve(make(connection));
    });
  });
}

// ---- no kernel hull -------------------------------------------------------------------------------------------------

/** The same worker main in a spawned process. No layer of the kernel holds anything: for development only. */
export async function startLocal(options: HullOptions): Promise<Hull> {
  return Promise.resolve(new LocalHull(options));
}

class LocalHull implements Hull {
  onFree: (() => void) | undefined;
  readonly layers: Layers;
  readonly ended: Promise<void>;
  alive = true;
  forks = 0;
  #living = 0;
  #end!: () => void;
  readonly #children = new Set<LocalWorker>();
  constructor(readonly options: HullOptions) {
    this.layers = { hull: "language-only", engine: options.engine, kernel: [] };
    this.ended = new Promise((resolve) => (this.#end = resolve));
  }
  get free(): number {
    return this.alive ? this.options.slots - this.#living : 0;
  }
  fork(): Promise<ParkedWorker> | undefined {
    if (this.free <= 0) return undefined;
    const { engine, limits } = this.options;
    const setup = JSON.stringify({ engine, memoryMb: limits.memoryMb, stackKb: limits.stackKb });
    let child: ChildProcess;
    try {
      child = spawn(process.execPath, [...nodeFlags(engine, "fast-start"), localMain, setup], {
        env: { TZ: "UTC" },
        stdio: ["ignore", "ignore", "ignore", "pipe"],
      });
    } catch (error) {
      throw asStartError(error);
    }
    this.forks++;
    const failed = new Promise<never>((_, reject) =>
      child.once("error", (error) => reject(asStartError(error))),
    );
    // Out of descriptors, spawn gives a child that has nothing but the error that is to come.
    if (!hasSocket(child)) return failed;
    const worker = new LocalWorker(child);
    this.#living++;
    this.#children.add(worker);
    void worker.exited.then(() => {
      this.#living--;
      this.#children.delete(worker);
      if (this.alive) this.onFree?.();
      if (!this.alive && this.#living === 0) this.#end();
    });
    const parked = awaitParked(worker, this.options.limits, (connection) => {
      const arch = process.arch === "arm64" ? "aarch64" : "x86_64";
      return new ParkedWorker(worker, connection, arch, this.options.limits, undefined, () => !this.alive);
    });
    return Promise.race([failed, parked]);
  }
  async stop(): Promise<void> {
    this.alive = false;
    if (this.#living === 0) this.#end();
    for (const worker of this.#children) {
      worker.child.ref(); // who waits for the end must not exit before it
      worker.kill();
    }
    await this.ended;
  }
}

type ChildWithSocket = ChildProcess & { stdio: { 3: WorkerProcess["socket"] } };

function hasSocket(child: ChildProcess): child is ChildWithSocket {
  const stdio: ChildProcess["stdio"] | undefined = child.stdio; // Node's types know of no failure
  return stdio?.[3] instanceof Duplex;
}

class LocalWorker implements WorkerProcess {
  readonly socket: WorkerProcess["socket"];
  readonly exited: Promise<WorkerExit>;
  constructor(readonly child: ChildWithSocket) {
    this.socket = child.stdio[3];
    child.unref();
    this.socket.unref();
    this.exited = new Promise((resolve) => {
      const ended = (code: number | null, signal: NodeJS.Signals | null) =>
        resolve({
          // As a wait status; only SIGKILL and "some signal" need telling apart without a kernel hull.
          status: signal === null ? (code ?? 1) << 8 : signal === "SIGKILL" ? 9 : 6,
          cpuMs: 0,
          maxRssBytes: 0,
          refusedCall: undefined,
        });
      child.once("exit", ended);
      child.once("error", () => ended(127, null));
    });
  }
  readonly parkedCpuMs = 0;
  /** Not measured here: without the kernel hull only the wall clock counts. */
  cpuMs(): undefined {
    return undefined;
  }
  peakBytes(): number {
    return 0;
  }
  oomKilled(): boolean {
    return false;
  }
  giveWay(): void {
    // Without a kernel hull nobody is held to a share.
  }
  kill(): void {
    this.child.kill("SIGKILL");
  }
}
