/**
 * One run, from the job's departure to its outcome: the supervisor's end of a worker's socket. It holds the deadlines
 * by clocks of its own, checks every claim of the worker against what it can see, and kills the process in the end,
 * whatever it said.
 */
import { codec } from "../engine/codec.js";
import { SLEEP, type Job } from "../engine/engine.js";
import {
  ProtocolError,
  encodeMessage,
  type CallMessage,
  type ResultMessage,
  type WireValue,
  type WorkerMessage,
} from "../hostapi/wire.js";
import type { WorkerExit } from "../osjail/zygote-client.js";
import type { Limits } from "./limits.js";
import type { Layers, LogEntry, Outcome, Stop } from "./outcome.js";
import type { ParkedWorker } from "./hull.js";
import { verdict } from "./verdict.js";

const { encode, decode, isCodecError } = codec();

/** The worker's own deadline comes first; this is how long it may take to say so. */
const SOFT_GRACE_MS = 20;

/** Sleeps of the guest's timers that may be asked for at once by an honest worker: one a due time. */
const MAX_SLEEPS = 1024;

/** The supervisor's own answers are short, whatever a call may carry. */
const OWN_ANSWER_BYTES = 4096;

/** Most time that building one result may take: a script can choose keys that collide in V8's hash tables, ms. */
const DECODE_MS = 100;

/** The line with which an honest worker passes its log limit, at its longest. */
const LOG_SLACK_BYTES = 256 * 1024;

function within(ms: number): () => boolean {
  const end = performance.now() + ms;
  return () => performance.now() > end;
}

/** What the run ended with, before usage and logs are added. */
type Ending =
  | { status: "ok"; value: unknown }
  | { status: "threw"; error: { name: string; message: string; stack: string } }
  | { status: "stopped"; stop: Stop }
  | { status: "cancelled" };

export interface RunJob {
  job: Omit<Job, "kind" | "input" | "wallMs"> & { input: { text: string; blobs: Uint8Array[] } };
  limits: Limits;
  signal: AbortSignal | undefined;
  layers: Layers;
}

/** Runs one job on a parked worker and kills it. Resolves to the outcome; never rejects. */
export function converse(parked: ParkedWorker, run: RunJob): Promise<Outcome> {
  return new Promise((resolve) => new Conversation(parked, run, resolve).begin());
}

class Conversation {
  readonly #logs: LogEntry[] = [];
  readonly #sleeps = new Set<NodeJS.Timeout>();
  #logBytes = 0;
  #hostCalls = 0;
  #bytesOut = 0;
  #started = 0;
  #cpuBefore = 0;
  #bytesBefore = 0;
  #wallTimer: NodeJS.Timeout | undefined;
  #cpuTimer: NodeJS.Timeout | undefined;
  /** Set by the first cause to end the run; what comes later does not count. */
  #ended = false;

  constructor(
    readonly parked: ParkedWorker,
    readonly run: RunJob,
    readonly resolve: (outcome: Outcome) => void,
  ) {}

  begin(): void {
    const { worker, connection } = this.parked;
    const { limits, signal, job } = this.run;
    if (signal?.aborted) return this.#end({ status: "cancelled" });
    signal?.addEventListener("abort", this.#onAbort, { once: true });
    this.#cpuBefore = worker.cpuMs() ?? 0;
    this.#bytesBefore = connection.bytesIn;
    this.parked.listen({ data: (chunk) => this.#hear(chunk), closed: () => this.#onClosed() });
    void worker.exited.then((exit) => this.#onExit(exit));
    connection.startJob();
    this.#started = performance.now();
    this.#send(encodeMessage({ kind: "job", ...job, wallMs: limits.wallMs }));
    this.#wallTimer = setTimeout(() => this.#onWallDeadline(), limits.wallMs + SOFT_GRACE_MS);
    this.#armCpuTimer(limits.cpuMs);
  }

  // -- what the worker says -----------------------------------------------------------------------------------------

  #hear(chunk: Uint8Array): void {
    if (this.#ended) return;
    try {
      for (const message of this.parked.connection.feed(chunk)) {
        this.#take(message);
        if (this.#ended) return;
      }
    } catch (error) {
      // Whatever a worker's bytes can make us throw ends that worker, and nothing else.
      if (!(error instanceof ProtocolError)) {
        return this.#stop({
          reason: "protocol",
          layer: "supervisor",
          detail: "a message that could not be handled",
        });
      }
      if (error.code === "too-large")
        return this.#stop({ reason: "output", layer: "supervisor", detail: error.message });
      this.#stop({ reason: "protocol", layer: "supervisor", detail: error.message });
    }
  }

  #take(message: WorkerMessage): void {
    switch (message.kind) {
      case "log":
        return this.#log(message.level, message.texts, message.timeMs);
      case "call":
        return this.#call(message);
      case "result":
        return this.#result(message);
      case "parked":
      case "reply":
      case "release":
        return; // the connection refuses them in this state: no reference was ever given
    }
  }

  /** Capped by truncation: the world stops sending; a worker that goes on is not an honest one. */
  #log(level: LogEntry["level"], texts: readonly string[], timeMs: number): void {
    const { logBytes } = this.run.limits;
    const cut = this.#logBytes > logBytes;
    this.#logBytes += 16; // an empty line is an entry too
    for (const text of texts) this.#logBytes += text.length + 16;
    if (this.#logBytes > logBytes + LOG_SLACK_BYTES) {
      return this.#stop({
        reason: "protocol",
        layer: "supervisor",
        detail: "logs that no honest worker sends",
      });
    }
    if (cut) return;
    if (this.#logBytes > logBytes) {
      this.#logs.push({ level: "warn", args: [`the log was cut at ${logBytes} bytes`], timeMs });
      return;
    }
    this.#logs.push({ level, args: [...texts], timeMs });
  }

  #call(call: CallMessage<WireValue>): void {
    if (call.ref === 0 && call.method === SLEEP) return this.#sleep(call);
    this.#hostCalls++;
    if (this.#hostCalls > this.run.limits.hostCalls) {
      const { hostCalls } = this.run.limits;
      return this.#stop({
        reason: "host-calls",
        layer: "broker",
        limit: hostCalls,
        measured: this.#hostCalls,
      });
    }
    this.#answer(call.id, false, new Error("there is no such capability"));
  }

  #sleep(call: CallMessage<WireValue>): void {
    let ms: unknown;
    try {
      [ms] = decode(call.args.wire, call.args.blob, { maxDepth: 2, maxNodes: 4 }) as [unknown];
    } catch (error) {
      if (!isCodecError(error)) throw error;
    }
    if (typeof ms !== "number" || !(ms >= 0) || this.#sleeps.size >= MAX_SLEEPS) {
      return this.#stop({
        reason: "protocol",
        layer: "supervisor",
        detail: "a sleep that no honest worker asks for",
      });
    }
    const timer = setTimeout(
      () => {
        this.#sleeps.delete(timer);
        this.#answer(call.id, true, undefined);
      },
      Math.min(ms, 2_147_483_647),
    );
    this.#sleeps.add(timer);
  }

  #answer(id: number, ok: boolean, value: unknown): void {
    this.parked.connection.answered(id);
    const limits = { maxBytes: OWN_ANSWER_BYTES, maxNodes: 64, root: "answer", omitStacks: true };
    this.#send(encodeMessage({ kind: "reply", id, nowMs: Date.now(), ok, value: encode(value, limits) }));
  }

  /** A claim. It counts if the process lives within its limits at this moment, by our clocks. */
  #result(result: ResultMessage<WireValue>): void {
    const { limits } = this.run;
    if (result.status === "ok") {
      const measured = JSON.stringify(result.value.wire).length + result.value.blob.byteLength;
      if (measured > limits.resultBytes) {
        return this.#stop({ reason: "output", layer: "supervisor", limit: limits.resultBytes, measured });
      }
      try {
        const value = decode(result.value.wire, result.value.blob, {
          maxDepth: 64,
          maxNodes: 1_000_000,
          expired: within(DECODE_MS),
        });
        return this.#end({ status: "ok", value });
      } catch (error) {
        if (!isCodecError(error)) throw error;
        if (error.code === "too-large") {
          const detail = "the result takes too long to build";
          return this.#stop({
            reason: "output",
            layer: "supervisor",
            limit: limits.resultBytes,
            measured,
            detail,
          });
        }
        return this.#stop({ reason: "protocol", layer: "supervisor", detail: "the result is no value" });
      }
    }
    if (result.status === "threw") return this.#end({ status: "threw", error: { ...result.error } });
    this.#claimedStop(result.reason, result.detail);
  }

  #claimedStop(reason: Extract<ResultMessage<never>, { status: "stopped" }>["reason"], detail: string): void {
    const { limits } = this.run;
    const wallMs = performance.now() - this.#started;
    switch (reason) {
      case "interrupted": // the engine's soft deadline: believed only if our clock agrees
        if (wallMs < limits.wallMs - 5) {
          return this.#stop({
            reason: "protocol",
            layer: "supervisor",
            detail: "interrupted before the deadline",
          });
        }
        return this.#stop({ reason: "wall-time", layer: "language", limit: limits.wallMs, measured: wallMs });
      case "memory":
        return this.#stop({ reason, layer: "language", limit: limits.memoryMb * 1024 * 1024, detail });
      case "stack":
        return this.#stop({ reason, layer: "language", limit: limits.stackKb * 1024, detail });
      case "output":
        return this.#stop({ reason, layer: "language", limit: limits.resultBytes, detail });
      case "deadlock":
      case "source":
      case "crash":
        return this.#stop({ reason, layer: "language", detail });
    }
  }

  // -- what the clocks and the kernel say ---------------------------------------------------------------------------

  readonly #onAbort = (): void => this.#end({ status: "cancelled" });

  /** The socket is drained before the stop is declared: a result that has arrived counts. */
  #onWallDeadline(): void {
    setImmediate(() => {
      if (this.#ended) return;
      const measured = performance.now() - this.#started;
      this.#stop({ reason: "wall-time", layer: "supervisor", limit: this.run.limits.wallMs, measured });
    });
  }

  /** One thread: the CPU clock is never ahead of the wall clock, so the rest of the budget is the earliest moment. */
  #armCpuTimer(restMs: number): void {
    if (this.run.limits.cpuMs >= this.run.limits.wallMs + SOFT_GRACE_MS) return; // the wall deadline comes first
    this.#cpuTimer = setTimeout(() => {
      const { cpuMs } = this.run.limits;
      const used = this.#cpuMs();
      if (used < cpuMs) return this.#armCpuTimer(Math.max(1, cpuMs - used));
      this.#stop({ reason: "cpu-time", layer: "supervisor", limit: cpuMs, measured: used });
    }, Math.ceil(restMs));
  }

  #cpuMs(): number {
    return Math.max(0, (this.parked.worker.cpuMs() ?? this.#cpuBefore) - this.#cpuBefore);
  }

  /** The worker closed its socket. Alive or dead, it can say nothing more: it is killed and its exit decides. */
  #onClosed(): void {
    if (!this.#ended) this.parked.worker.kill();
  }

  #onExit(exit: WorkerExit): void {
    if (this.#ended) return;
    // What it wrote before it died may still be in the socket: the close event comes after the last byte.
    setImmediate(() => {
      if (this.#ended) return;
      const { worker } = this.parked;
      const peakMemoryBytes = worker.peakBytes(exit);
      if (this.parked.closed()) {
        const detail = "the sandbox was closed";
        return this.#end({ status: "stopped", stop: { reason: "lost", layer: "supervisor", detail } }, exit);
      }
      const death = {
        exit,
        oomKilled: worker.oomKilled(),
        cpuMs: exit.cpuMs,
        cpuSeconds: this.parked.cpuSeconds,
        peakMemoryBytes,
        arch: this.parked.arch,
      };
      this.#end({ status: "stopped", stop: verdict(death, this.run.limits) }, exit);
    });
  }

  // -- the end ------------------------------------------------------------------------------------------------------

  #stop(stop: Stop): void {
    this.#end({ status: "stopped", stop });
  }

  #end(ending: Ending, exit?: WorkerExit): void {
    if (this.#ended) return;
    this.#ended = true;
    const { worker, connection } = this.parked;
    const wallMs = this.#started === 0 ? 0 : performance.now() - this.#started;
    const cpuMs = exit === undefined ? this.#cpuMs() : Math.max(0, exit.cpuMs - this.#cpuBefore);
    const usage = {
      wallMs,
      cpuMs,
      peakMemoryBytes: this.#started === 0 ? 0 : worker.peakBytes(exit),
      hostCalls: this.#hostCalls,
      bytesIn: connection.bytesIn - this.#bytesBefore,
      bytesOut: this.#bytesOut,
    };
    clearTimeout(this.#wallTimer);
    clearTimeout(this.#cpuTimer);
    for (const timer of this.#sleeps) clearTimeout(timer);
    this.run.signal?.removeEventListener("abort", this.#onAbort);
    this.parked.discard();
    this.resolve({ ...ending, logs: this.#logs, usage, ledger: [], layers: this.run.layers });
  }

  #send(frame: Uint8Array): void {
    this.#bytesOut += frame.byteLength;
    this.parked.write(frame);
  }
}
