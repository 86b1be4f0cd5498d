/**
 * What the escape suite attacks, and from where. A hull of the owned engine runs the attacker's code in the worker's own
 * realm after lock-down, so the kernel hull is graded by itself. `control` runs the same code in a plain process: an
 * attack that does nothing there proves nothing here. `without` leaves layers out, which only the lab and these tests
 * may do: it shows which layer it is that holds.
 */
import { spawn } from "node:child_process";
import { afterAll } from "vitest";
import { codec } from "#engine/codec";
import { Broker } from "#hostapi/broker";
import type { Capability } from "#hostapi/capability";
import { encodeMessage, WorkerConnection } from "#hostapi/wire";
import { readHost, type Host } from "#osjail/host";
import { planJail, type JailPlan, type LayerName } from "#osjail/plan";
import type { ProfileName } from "#osjail/seccomp";
import { Zygote, type JailedWorker, type WorkerLimits } from "#osjail/zygote-client";
import { converse } from "#server/conversation";
import { connectionLimits, launchEngine, ParkedWorker } from "#server/hull";
import { completeLimits, WORKER_OVERHEAD_MB, type Limits } from "#server/limits";
import type { Layers, Outcome, Stop } from "#server/outcome";

const values = codec();
const MiB = 1024 * 1024;
const LIBC = new URL("../../dist/osjail/libc.ffi.js", import.meta.url).href;

/** The host of this test run, read once. */
export const host: Host = readHost(process.env);
export const asRoot = host.facts.uid === 0;

/** Every layer that can be left out and still leaves a process that forks and speaks. */
export const ALL_LAYERS: readonly LayerName[] = [
  "pid-namespace",
  "net-namespace",
  "ipc-namespace",
  "uts-namespace",
  "cgroup-namespace",
  "time-namespace",
  "namespace-limits",
  "session-keyring",
  "empty-root",
  "capabilities",
  "no-new-privs",
  "landlock",
  "sealed-code",
  "mdwe",
  "not-dumpable",
  "rlimits",
  "cgroup",
  "seccomp",
];

export const allBut = (...kept: LayerName[]): LayerName[] =>
  ALL_LAYERS.filter((layer) => !kept.includes(layer));

export interface LabOptions {
  without?: readonly LayerName[];
  slots?: number;
  limits?: Partial<Limits>;
  /** The worker keeps the caller's own ids, as an ordinary user's does. */
  ownIds?: boolean;
  /** Another image in the same jail, to be looked at; only the owned one runs attacks. */
  engine?: "owned" | "quickjs" | "v8-jitless" | "v8";
  /** The filter of another engine around it. */
  profile?: ProfileName;
}

/** A worker on which nothing has run yet, and the process behind it. */
export interface Victim {
  parked: ParkedWorker;
  worker: JailedWorker;
}

/** A zygote of the owned engine. Whoever starts one stops it. */
export class OwnedHull {
  private constructor(
    readonly zygote: Zygote,
    readonly limits: Limits,
  ) {}

  static async start(options: LabOptions = {}): Promise<OwnedHull> {
    const limits = completeLimits({ wallMs: 20_000, cpuMs: 20_000, ...options.limits });
    const engine = options.engine ?? "owned";
    const planned = planJail(host.facts, {
      profile: options.profile ?? engine,
      requireCgroup: false,
      slots: options.slots ?? 4,
      maxMemoryBytes: (limits.memoryMb + WORKER_OVERHEAD_MB) * MiB,
      coreScheduling: false,
      speculation: false,
      without: options.without ?? [],
    });
    const { uid, gid } = host.facts;
    const plan: JailPlan = options.ownIds ? { ...planned, ids: { kind: "own", uid, gid } } : planned;
    const keeper = await launchEngine(engine, "fast-start", "thread", host);
    const zygote = await Zygote.start(
      plan,
      { plan, memoryMb: limits.memoryMb, stackKb: limits.stackKb },
      keeper,
    );
    return new OwnedHull(zygote, limits);
  }

  get layers(): Layers {
    return { hull: "double", engine: "owned", kernel: this.zygote.layers };
  }

  /** A worker that is parked, attested and limited; waits for nothing but the kernel. */
  async fork(): Promise<Victim> {
    const worker = this.zygote.fork();
    if (worker === undefined) throw new Error("no slot is free: ask the hull for more of them");
    const connection = new WorkerConnection(connectionLimits(this.limits));
    await new Promise<void>((resolve, reject) => {
      const closed = () => reject(new Error("the worker ended before it was parked"));
      worker.socket.once("close", closed);
      worker.socket.once("data", (chunk: Buffer) => {
        worker.socket.off("close", closed);
        connection.feed(chunk);
        resolve();
      });
    });
    this.zygote.attest(worker, workerLimits(this.limits));
    const lower = (wanted: Limits) => worker.limit(workerLimits(wanted));
    return { worker, parked: new ParkedWorker(worker, connection, host.facts.arch, this.limits, lower) };
  }

  /** Gives the victim its one job. Resolves when the process is gone, so that the hull has its slot back. */
  async attack(
    { parked, worker }: Victim,
    code: string,
    input?: unknown,
    asked: Partial<Limits> = {},
    grants: Readonly<Record<string, Capability>> = {},
  ): Promise<Outcome> {
    const limits = completeLimits(asked, this.limits);
    parked.applyLimits(limits);
    const job = this.#job(code, input, limits);
    const outcome = await converse(parked, {
      job,
      limits,
      signal: undefined,
      layers: this.layers,
      tenant: "",
      host: (port, run) => new Broker(new Map(Object.entries(grants)), { limits, run, port }),
    });
    await worker.exited;
    return outcome;
  }

  /** Gives the victim a job and resolves at its first word, whatever it is: it still runs, to be looked at. */
  async hold({ parked }: Victim, code: string): Promise<void> {
    parked.applyLimits(this.limits);
    const said = new Promise<void>((resolve, reject) => {
      parked.listen({ data: () => resolve(), closed: () => reject(new Error("it ended without a word")) });
    });
    const job = this.#job(code, undefined, this.limits);
    parked.connection.startJob(() => false);
    parked.write(encodeMessage({ kind: "job", ...job, env: [], wallMs: this.limits.wallMs }));
    await said;
  }

  /** The engine gives the input in its wire form; here it goes with the source, as plain JSON. */
  #job(code: string, input: unknown, limits: Limits): Parameters<typeof converse>[1]["job"] {
    return {
      role: "run",
      type: "script",
      name: "attack.js",
      source: input === undefined ? code : `input = ${JSON.stringify(input)};\n${code}`,
      modules: [],
      seed: new Uint8Array(32),
      nowMs: 0,
      maxResultBytes: limits.resultBytes,
      maxLogBytes: limits.logBytes,
      maxStackBytes: limits.stackKb * 1024,
      maxMemoryBytes: limits.memoryMb * MiB,
      maxCallBytes: limits.callBytes,
      maxInFlight: limits.hostCallsInFlight,
      maxTimers: 0,
      fuel: 0,
      clock: { mode: "frozen", stepMs: 0 },
      leastLevel: "debug",
      input: values.encode(undefined, { maxBytes: 1024, maxNodes: 8, root: "input" }),
    };
  }

  stop(): Promise<void> {
    return this.zygote.stop();
  }
}

function workerLimits(limits: Limits): WorkerLimits {
  return {
    dataBytes: (limits.memoryMb + WORKER_OVERHEAD_MB) * MiB,
    cgroupBytes: (limits.memoryMb + WORKER_OVERHEAD_MB) * MiB,
    cpuSeconds: Math.ceil(limits.cpuMs / 1000) + 1,
  };
}

// ---- what a test file asks for --------------------------------------------------------------------------------------

const hulls = new Map<string, Promise<OwnedHull>>();

/** The file's hull of that kind: started at the first call, stopped after the file's last test. */
export function ownedHull(options: LabOptions = {}): Promise<OwnedHull> {
  const key = JSON.stringify({ ...options, without: [...(options.without ?? [])].sort() });
  const known = hulls.get(key);
  if (known !== undefined) return known;
  if (hulls.size === 0) {
    afterAll(async () => {
      const all = await Promise.allSettled(hulls.values());
      hulls.clear();
      for (const hull of all) if (hull.status === "fulfilled") await hull.value.stop();
    });
  }
  const hull = OwnedHull.start(options);
  hulls.set(key, hull);
  return hull;
}

/** Runs the code in a fresh worker of the hull, to its outcome. */
export async function attack(
  hull: OwnedHull,
  code: string,
  input?: unknown,
  limits?: Partial<Limits>,
  grants?: Readonly<Record<string, Capability>>,
): Promise<Outcome> {
  return hull.attack(await hull.fork(), code, input, limits, grants);
}

/** How the same code ends in a plain process of this user, without any jail. */
export type Control =
  | { status: "ok"; value: unknown }
  | { status: "threw"; message: string }
  | { status: "died"; code: number | null; signal: NodeJS.Signals | null };

const CONTROL_MS = 20_000;
const CONTROL_BYTES = 4 * MiB;

/** The positive control: bounded in time and output, in an own session, killed with its children's parent. */
export async function control(code: string, input?: unknown): Promise<Control> {
  const source = `
    import fs from "node:fs";
    import { Memory, rawSyscall, syscallNumber } from ${JSON.stringify(LIBC)};
    const syscall = (nr, ...args) => {
      const ret = rawSyscall(typeof nr === "string" ? syscallNumber(nr) : nr, ...args);
      return ret < 0 && ret > -4096 ? { ret: -1, errno: -ret } : { ret, errno: 0 };
    };
    const run = new Function("syscall", "memory", "input", "Memory", ${JSON.stringify(code)});
    let answer;
    try {
      const value = run(syscall, (content) => new Memory(content), ${JSON.stringify(input ?? null)}, Memory);
      answer = { status: "ok", value };
    } catch (error) {
      answer = { status: "threw", message: String(error) };
    }
    fs.writeSync(4, JSON.stringify(answer));
    process.exit(0);`;
  const child = spawn(process.execPath, ["--no-warnings", "--input-type=module", "-e", source], {
    // 3 is a pipe, as in the jail it is the socket; the answer has a descriptor of its own.
    stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
    env: { TZ: "UTC" },
  });
  const timer = setTimeout(() => child.kill("SIGKILL"), CONTROL_MS);
  let text = "";
  child.stdio[3]?.on("error", () => {});
  (child.stdio[3] as NodeJS.ReadableStream).resume();
  (child.stdio[4] as NodeJS.ReadableStream).on("data", (chunk: Buffer) => {
    if (text.length < CONTROL_BYTES) text += chunk.toString("latin1");
  });
  try {
    const [exitCode, signal] = await new Promise<[number | null, NodeJS.Signals | null]>(
      (resolve, reject) => {
        child.once("error", reject);
        child.once("close", (code, signal) => resolve([code, signal]));
      },
    );
    if (text === "") return { status: "died", code: exitCode, signal };
    return JSON.parse(text) as Control;
  } finally {
    clearTimeout(timer);
  }
}

/** How one system call ended, in the attacker's words. */
export interface Answer {
  ret: number;
  errno: number;
}

/** What the run was stopped by; an error that shows the outcome if it was not stopped. */
export function stopOf(outcome: Outcome): Stop {
  if (outcome.status === "stopped") return outcome.stop;
  throw new Error(`not stopped: ${brief(outcome)}`);
}

/** What the run returned; an error that shows the outcome if it returned nothing. */
export function valueOf(outcome: Outcome | Control): unknown {
  if (outcome.status === "ok") return outcome.value;
  throw new Error(`no value: ${brief(outcome)}`);
}

/** The same where it returned what `syscall` gave it. */
export const answerOf = (outcome: Outcome | Control): Answer => valueOf(outcome) as Answer;

/** An outcome without what every outcome has, for messages. */
function brief(outcome: Outcome | Control): string {
  const { logs: _logs, usage: _usage, ledger: _ledger, layers: _layers, ...rest } = outcome as Outcome;
  return JSON.stringify(rest);
}

/** Works off tasks, so many at a time, and gives their results in order. */
export async function inParallel<T, R>(
  items: readonly T[],
  width: number,
  run: (item: T) => Promise<R>,
): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  const lane = async () => {
    while (next < items.length) {
      const at = next++;
      results[at] = await run(items[at]);
    }
  };
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, lane));
  return results;
}
