/**
 * One run, from the job's departure to its outcome: the supervisor's end of a worker's socket. It holds the deadlines
 * by clocks of its own, checks every claim of the worker against what it can see, and kills the process in the end,
 * whatever it said.
 */
import { randomUUID } from "node:crypto";
import { codec } from "../engine/codec.js";
import type { Job } from "../engine/engine.js";
import type { BrokerMessage, BrokerPort } from "../hostapi/broker.js";
import type { RunContext } from "../hostapi/capability.js";
import type { EnvEntry } from "../hostapi/stubs.js";
import {
  ProtocolError,
  encodeItems,
  encodeMessage,
  type CallMessage,
  type ReleaseMessage,
  type ReplyMessage,
  type ResultMessage,
  type WireValue,
  type WorkerMessage,
} from "../hostapi/wire.js";
import type { WorkerExit } from "../osjail/zygote-client.js";
import type { Limits } from "./limits.js";
import type { Layers, LedgerEntry, LogEntry, Outcome, Stop } from "./outcome.js";
import type { ParkedWorker } from "./hull.js";
import { verdict } from "./verdict.js";

const { decode, isCodecError } = codec();

/** The worker's own deadline comes first; this is how long it may take to say so. */
const SOFT_GRACE_MS = 20;

/** Time after which the rest of a worker's messages wait for the next turn of the event loop, ms. */
const SLICE_MS = 10;

/** Most time that building one result may take: a script can choose keys that collide in V8's hash tables, ms. */
const DECODE_MS = 100;

/**
 * Time after which a run gives way to those that have just begun: most are over by then, and who computes for a second
 * in any case does not delay them.
 */
const FRESH_MS = 20;

/** The line with which an honest worker passes its log limit, at its longest. */
const LOG_SLACK_BYTES = 256 * 1024;

function within(ms: number): () => boolean {
  const end = performance.now() + ms;
  return () => performance.now() > end;
}

function endedWhen(already: boolean): AbortController {
  const controller = new AbortController();
  if (already) controller.abort();
  return controller;
}

/** What the run ended with, before usage and logs are added. */
type Ending =
  | { status: "ok"; value: unknown }
  | { status: "threw"; error: { name: string; message: string; stack: string } }
  | { status: "stopped"; stop: Stop }
  | { status: "cancelled" };

/** Answers the guest's calls: the broker, or what was recorded of one. */
export interface HostSide {
  readonly env: readonly EnvEntry[];
  /** Calls of capabilities so far. */
  readonly calls: number;
  readonly knows: (ref: number) => boolean;
  call(message: CallMessage<WireValue>): void;
  reply(message: ReplyMessage<WireValue>): void;
  release(message: ReleaseMessage): void;
  /** The job is out. */
  start?(): void;
  ledger(): LedgerEntry[];
  close(): void;
}

/** Hears what a replay will need: everything that the worker was sent, and when. */
export interface Recorder {
  job(job: RunJob["job"] & { wallMs: number; env: readonly EnvEntry[] }): void;
  /** The worker's messages that decide what it is sent. */
  heard(message: WorkerMessage): void;
  sent(nowMs: number, messages: readonly BrokerMessage[]): void;
}

export interface RunJob {
  job: Omit<Job, "kind" | "input" | "wallMs" | "env"> & { input: { text: string; blobs: Uint8Array[] } };
  limits: Limits;
  signal: AbortSignal | undefined;
  layers: Layers;
  tenant: string;
  host(port: Omit<BrokerPort, "audit">, run: RunContext): HostSide;
  onLog?: ((entry: LogEntry) => void) | undefined;
  recorder?: Recorder | undefined;
}

/** Over so many unsent bytes nothing more is done for a worker: it asks, and does not read the answers. */
const MAX_BACKLOG_BYTES = 8 * 1024 * 1024;

/** Over what one call may carry: calls beside it and releases, and twice what the guest has in flight (CREDIT_BYTES). */
const UNHEARD_SLACK_BYTES = 2 * 1024 * 1024;

/** Answers over so many bytes go out before more calls are heard: one read may bring a thousand of those. */
const MAX_OUTBOX_BYTES = 1024 * 1024;

/** Runs one job on a parked worker and kills it. Resolves to the outcome; never rejects. */
export function converse(parked: ParkedWorker, run: RunJob): Promise<Outcome> {
  return new Promise((resolve) => new Conversation(parked, run, resolve).begin());
}

class Conversation {
  readonly #logs: LogEntry[] = [];
  readonly #host: HostSide;
  /** Made for who asks for its signal. */
  #over: AbortController | undefined;
  /** Messages to the worker that go out together at the end of this tick. */
  #outbox: BrokerMessage[] = [];
  #outboxBytes = 0;
  /** What will be done when the worker has read more: calls that it made meanwhile, and answers to be written. */
  #later: (() => void)[] = [];
  #unheardBytes = 0;
  /** Messages that came and have not been looked at, and whether a later turn of the event loop will. */
  #fresh: WorkerMessage[] = [];
  #slicing = false;
  #logBytes = 0;
  #bytesOut = 0;
  #started = 0;
  #cpuBefore = 0;
  #bytesBefore = 0;
  #wallTimer: NodeJS.Timeout | undefined;
  #cpuTimer: NodeJS.Timeout | undefined;
  #freshTimer: NodeJS.Timeout | undefined;
  /** Set by the first cause to end the run; what comes later does not count. */
  #ended = false;

  constructor(
    readonly parked: ParkedWorker,
    readonly run: RunJob,
    readonly resolve: (outcome: Outcome) => void,
  ) {
    const port = {
      send: (message: BrokerMessage) => this.#queue(message),
      sendAt: (nowMs: number, messages: readonly BrokerMessage[]) => this.#transmit(nowMs, messages),
      whenRoom: (act: () => void) => this.#whenRoom(act),
      nowMs: () => Date.now(),
      violated: (detail: string) => this.#stop({ reason: "protocol", layer: "broker", detail }),
      exhausted: (measured: number) =>
        this.#stop({ reason: "host-calls", layer: "broker", limit: run.limits.hostCalls, measured }),
    };
    const over = () => (this.#over ??= endedWhen(this.#ended));
    const context: RunContext = {
      id: randomUUID(),
      tenant: run.tenant,
      get signal() {
        return over().signal;
      },
      elapsedMs: () => (this.#started === 0 ? 0 : performance.now() - this.#started),
    };
    this.#host = run.host(port, context);
  }

  begin(): void {
    const { worker, connection } = this.parked;
    const { limits, signal, job } = this.run;
    if (signal?.aborted) return this.#end({ status: "cancelled" });
    signal?.addEventListener("abort", this.#onAbort, { once: true });
    this.#cpuBefore = worker.parkedCpuMs;
    this.#bytesBefore = connection.bytesIn;
    this.parked.listen({ data: (chunk) => this.#hear(chunk), closed: () => this.#onClosed() });
    void worker.exited.then((exit) => this.#onExit(exit));
    connection.startJob(this.#host.knows);
    this.#started = performance.now();
    const told = { ...job, env: this.#host.env, wallMs: limits.wallMs };
    this.run.recorder?.job(told);
    this.#send(encodeMessage({ kind: "job", ...told }));
    this.#wallTimer = setTimeout(() => this.#onWallDeadline(), limits.wallMs + SOFT_GRACE_MS);
    this.#armCpuTimer(limits.cpuMs);
    this.#freshTimer = setTimeout(() => worker.giveWay(), FRESH_MS);
    // What was recorded may be anything: it must not throw past the end of the run, which kills the worker.
    this.#guarded(() => this.#host.start?.());
  }

  // -- what the worker says -----------------------------------------------------------------------------------------

  #hear(chunk: Uint8Array): void {
    if (this.#ended) return;
    this.#guarded(() => {
      for (const message of this.parked.connection.feed(chunk)) this.#fresh.push(message);
      if (!this.#slicing) this.#takeFresh();
    });
  }

  /** In turns: what one worker's messages cost us, by values that take long to build, no other run waits for. */
  #takeFresh(): void {
    const messages = this.#fresh;
    const until = performance.now() + SLICE_MS;
    for (let at = 0; at < messages.length && !this.#ended;) {
      const message = messages[at++] as WorkerMessage;
      // Answers and lines of the log ask for nothing: they need not wait until the worker has read ours.
      if (message.kind === "reply" || message.kind === "log" || this.#hasRoom()) this.#take(message);
      else this.#keepUnheard(message);
      if (at === messages.length || performance.now() < until) continue;
      this.#fresh = messages.slice(at);
      this.#slicing = true;
      this.parked.pause();
      setImmediate(() => this.#guarded(() => this.#takeFresh()));
      return;
    }
    this.#fresh = [];
    if (!this.#slicing || this.#ended) return;
    this.#slicing = false;
    if (this.#unheardBytes <= this.#mostUnheard) this.parked.resume();
  }

  get #mostUnheard(): number {
    return this.run.limits.callBytes + UNHEARD_SLACK_BYTES;
  }

  /** What can be made to wait is what an honest worker may have in flight; then it is heard no more. */
  #keepUnheard(message: WorkerMessage): void {
    this.#putOff(() => this.#take(message));
    this.#unheardBytes += 64;
    if (message.kind === "call") {
      this.#unheardBytes += JSON.stringify(message.args.wire).length + message.args.blob.byteLength;
    }
    if (this.#unheardBytes > this.#mostUnheard) this.parked.pause();
  }

  /** Whatever a worker's bytes can make us throw ends that worker, and nothing else. */
  #guarded(act: () => void): void {
    try {
      act();
    } catch (error) {
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

  /** Nothing is done for a worker that does not read its answers: what it can make us keep stays bounded. */
  #whenRoom(act: () => void): void {
    if (this.#hasRoom()) act();
    else this.#putOff(act);
  }

  #putOff(act: () => void): void {
    if (this.#later.push(act) === 1) this.parked.whenDrained(() => this.#guarded(() => this.#catchUp()));
  }

  /** What was put off goes first. */
  #hasRoom(): boolean {
    return this.#later.length === 0 && this.#isRead();
  }

  #isRead(): boolean {
    if (this.#outboxBytes > MAX_OUTBOX_BYTES) this.#flush();
    return this.parked.backlog <= MAX_BACKLOG_BYTES;
  }

  #catchUp(): void {
    const acts = this.#later;
    let at = 0;
    while (at < acts.length && !this.#ended && this.#isRead()) (acts[at++] as () => void)();
    if (this.#ended) return;
    this.#later = acts.slice(at);
    if (this.#later.length > 0) {
      return this.parked.whenDrained(() => this.#guarded(() => this.#catchUp()));
    }
    this.#unheardBytes = 0;
    if (!this.#slicing) this.parked.resume();
  }

  #take(message: WorkerMessage): void {
    this.run.recorder?.heard(message);
    switch (message.kind) {
      case "log":
        return this.#log(message.level, message.texts, message.timeMs);
      case "call":
        return this.#host.call(message);
      case "reply":
        return this.#host.reply(message);
      case "release":
        return this.#host.release(message);
      case "result":
        return this.#result(message);
      case "parked":
        return; // the connection refuses it in this state
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
      return this.#addLog({ level: "warn", args: [`the log was cut at ${logBytes} bytes`], timeMs });
    }
    this.#addLog({ level, args: [...texts], timeMs });
  }

  #addLog(entry: LogEntry): void {
    this.#logs.push(entry);
    try {
      const told: unknown = this.run.onLog?.(entry);
      if (told instanceof Promise) told.catch(() => {});
    } catch {
      // The caller's own listener: the run is not the place to tell of it, and the entry is in the outcome.
    }
  }

  #queue(message: BrokerMessage): void {
    if (this.#ended) return;
    if (message.kind !== "release") {
      const { text, blobs } = message.kind === "call" ? message.args : message.value;
      this.#outboxBytes += text.length;
      for (const blob of blobs) this.#outboxBytes += blob.byteLength;
    }
    if (this.#outbox.push(message) === 1) process.nextTick(() => this.#flush());
  }

  #flush(): void {
    const messages = this.#outbox;
    this.#outbox = [];
    this.#outboxBytes = 0;
    // Counted from the job, and not by the host's date: one that is set back would stop the guest's timers.
    const nowMs = Math.floor(this.run.job.nowMs + performance.now() - this.#started);
    if (messages.length > 0) this.#transmit(nowMs, messages);
  }

  #transmit(nowMs: number, messages: readonly BrokerMessage[]): void {
    if (this.#ended) return;
    const { connection } = this.parked;
    for (const message of messages) {
      if (message.kind === "reply") connection.answered(message.id);
      if (message.kind === "call") connection.called(message.id);
    }
    this.run.recorder?.sent(nowMs, messages);
    for (const frame of encodeItems(nowMs, messages)) this.#send(frame);
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
      case "fuel":
        if (limits.fuel === 0) {
          return this.#stop({ reason: "protocol", layer: "supervisor", detail: "fuel that nobody limited" });
        }
        return this.#stop({ reason, layer: "language", limit: limits.fuel, measured: limits.fuel });
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
        engine: this.run.layers.engine,
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
      hostCalls: this.#host.calls,
      bytesIn: connection.bytesIn - this.#bytesBefore,
      bytesOut: this.#bytesOut,
    };
    clearTimeout(this.#wallTimer);
    clearTimeout(this.#cpuTimer);
    clearTimeout(this.#freshTimer);
    this.#later = [];
    this.#over?.abort();
    this.#host.close();
    this.run.signal?.removeEventListener("abort", this.#onAbort);
    this.parked.discard();
    this.resolve({
      ...ending,
      logs: this.#logs,
      usage,
      ledger: this.#host.ledger(),
      layers: this.run.layers,
    });
  }

  #send(frame: Uint8Array): void {
    this.#bytesOut += frame.byteLength;
    this.parked.write(frame);
  }
}
