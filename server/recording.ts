/**
 * Record and replay. Everything that a run hears comes through its supervisor: the job (source, input, seed, clock) and
 * the messages that answer its calls. A recording keeps these in order, and what the worker had said before each; a
 * replay sends them again to a worker that is granted nothing, and compares what it says with what was said then.
 *
 * Only a clock that the supervisor moves can be replayed: a run whose clock runs by itself is not recorded. What was
 * recorded holds the answers of capabilities, so it is as secret as they are; a secret's value is not among them.
 */
import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import { codec } from "../engine/codec.js";
import type { BrokerMessage, BrokerPort, LedgerEntry } from "../hostapi/broker.js";
import type { EnvEntry } from "../hostapi/stubs.js";
import type { CallMessage, ReplyMessage, WireValue, WorkerMessage } from "../hostapi/wire.js";
import type { HostSide, Recorder, RunJob } from "./conversation.js";
import { SCRIPT_ENGINES, type ScriptEngine } from "./engines.js";
import { SandboxError } from "./errors.js";
import type { Limits } from "./limits.js";
import { limitsSchema } from "./options.js";
import type { Outcome } from "./outcome.js";

const { encode } = codec();

const base64 = z.string().regex(/^[A-Za-z0-9+/]*={0,2}$/);
const encodedValue = z.strictObject({ text: z.string(), blobs: z.array(base64) });
const id = z.number().int().min(1);
/** What a Date can hold (ECMA-262 21.4.1.1), and as long as a run may take. */
const timeMs = z.number().min(-8.64e15).max(8.65e15);
const said = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("call"), id, ref: z.number().int().min(0), method: z.string(), args: z.unknown(), blob: base64 }), // prettier-ignore
  z.strictObject({ kind: z.literal("reply"), id, ok: z.boolean(), value: z.unknown(), blob: base64 }),
]);
const sent = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("call"), id, ref: id, method: z.string(), args: encodedValue }),
  z.strictObject({ kind: z.literal("reply"), id, ok: z.boolean(), value: encodedValue }),
  z.strictObject({ kind: z.literal("release"), ref: id, count: id }),
]);
const envEntry = z.union([
  z.tuple([z.string(), z.literal("capability"), id, z.array(z.string())]),
  z.tuple([z.string(), z.literal("function"), id]),
  z.tuple([z.string(), z.literal("text"), z.string()]),
]);

const recordingSchema = z.strictObject({
  format: z.literal("doublehull recording 1"),
  engine: z.enum(SCRIPT_ENGINES),
  limits: limitsSchema.required(),
  job: z.strictObject({
    type: z.enum(["module", "script"]),
    name: z.string(),
    /** As it ran: TypeScript without its types. */
    source: z.string(),
    modules: z.array(z.tuple([z.string(), z.string()])),
    seed: z.string().regex(/^[A-Za-z0-9+/]{43}=$/, "must be 32 bytes in base64"),
    nowMs: timeMs,
    clock: z.strictObject({ mode: z.enum(["frozen", "virtual"]), stepMs: z.number() }),
    leastLevel: z.enum(["debug", "log", "info", "warn", "error"]),
    maxTimers: z.int().min(0).max(10_000),
    input: encodedValue,
    env: z.array(envEntry),
  }),
  /** What the worker said that was answered, in order. */
  said: z.array(said),
  /** What it was sent: together, with this clock, once it had said so many of those. */
  sent: z.array(z.strictObject({ after: z.number().int().min(0), nowMs: timeMs, messages: z.array(sent) })),
  /** How it ended, as far as it can be repeated: no usage. */
  end: z.strictObject({
    status: z.enum(["ok", "threw", "stopped", "cancelled"]),
    value: encodedValue.optional(),
    error: z.strictObject({ name: z.string(), message: z.string(), stack: z.string() }).optional(),
    reason: z.string().optional(),
    logs: z.array(z.strictObject({ level: z.string(), args: z.array(z.string()), timeMs: z.number() })),
  }),
});

/** A run that can be run again: plain JSON data. */
export type Recording = z.output<typeof recordingSchema>;
type Said = z.output<typeof said>;
type EncodedJson = z.output<typeof encodedValue>;

/** Reads what `JSON.stringify` made of a recording. Throws SandboxError `bad-input` naming the field. */
export function parseRecording(text: string): Recording {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    const remedy = "Give the text that a recording was written as.";
    throw new SandboxError("bad-input", "the recording is not JSON", { cause: error, remedy });
  }
  return checkRecording(json);
}

/** The same for one that is an object already. */
export function checkRecording(json: unknown): Recording {
  const result = recordingSchema.safeParse(json);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const field = issue?.path.join(".") ?? "";
  const message = `the recording is not one of this version: ${field === "" ? "" : `${field}: `}${issue?.message}`;
  throw new SandboxError("bad-input", message, { field, remedy: "Record the run again with this version." });
}

const toJson = (value: { text: string; blobs: readonly Uint8Array[] }): EncodedJson => ({
  text: value.text,
  blobs: value.blobs.map((blob) => Buffer.from(blob).toString("base64")),
});
const fromJson = ({ text, blobs }: EncodedJson) => ({
  text,
  blobs: blobs.map((blob) => new Uint8Array(Buffer.from(blob, "base64"))),
});

function saidOf(message: CallMessage<WireValue> | ReplyMessage<WireValue>): Said {
  const blobOf = ({ blob }: WireValue) => Buffer.from(blob).toString("base64");
  if (message.kind === "reply") {
    const { kind, ok, value } = message;
    return { kind, id: message.id, ok, value: value.wire, blob: blobOf(value) };
  }
  const { kind, ref, method, args } = message;
  return { kind, id: message.id, ref, method, args: args.wire, blob: blobOf(args) };
}

function endOf(outcome: Outcome): Recording["end"] {
  const { status, logs } = outcome;
  switch (status) {
    case "ok": {
      const value = encode(outcome.value, { maxBytes: Infinity, maxNodes: Infinity, root: "value" });
      return { status, value: toJson(value), logs };
    }
    case "threw":
      return { status, error: outcome.error, logs };
    case "stopped":
      return { status, reason: outcome.stop.reason, logs };
    case "cancelled":
      return { status, logs };
  }
}

/** Listens to one run. */
export class RunRecorder implements Recorder {
  #job: Recording["job"] | undefined;
  readonly #said: Said[] = [];
  readonly #sent: Recording["sent"] = [];

  job(job: RunJob["job"] & { env: readonly EnvEntry[] }): void {
    const { type, name, source, modules, seed, nowMs, clock, leastLevel, maxTimers, input, env } = job;
    this.#job = {
      type,
      name,
      source,
      modules: modules.map(([module, text]) => [module, text]),
      seed: Buffer.from(seed).toString("base64"),
      nowMs,
      clock: { mode: clock.mode === "virtual" ? "virtual" : "frozen", stepMs: 0 },
      leastLevel,
      maxTimers,
      input: toJson(input),
      env: structuredClone(env) as Recording["job"]["env"],
    };
  }

  heard(message: WorkerMessage): void {
    if (message.kind === "call" || message.kind === "reply") this.#said.push(saidOf(message));
  }

  sent(nowMs: number, messages: readonly BrokerMessage[]): void {
    const all = messages.map((message): Recording["sent"][number]["messages"][number] => {
      switch (message.kind) {
        case "call":
          return { ...message, args: toJson(message.args) };
        case "reply":
          return { ...message, value: toJson(message.value) };
        case "release":
          return { ...message };
      }
    });
    this.#sent.push({ after: this.#said.length, nowMs, messages: all });
  }

  /** Undefined for a run that never got its job. */
  finish(outcome: Outcome, limits: Limits, engine: ScriptEngine): Recording | undefined {
    if (this.#job === undefined) return undefined;
    return {
      format: "doublehull recording 1",
      engine,
      limits: { ...limits },
      job: this.#job,
      said: this.#said,
      sent: this.#sent,
      end: endOf(outcome),
    };
  }
}

/** Where a replay left the recording. */
export interface Divergence {
  /** Of the worker's messages, from 1; after the last one: the end of the run. */
  at: number;
  expected: string;
  got: string;
}

export interface Replay {
  outcome: Outcome;
  /** The same end and the same messages in the same order. */
  identical: boolean;
  divergence?: Divergence;
}

/** Answers a replayed run from the recording, and grants nothing. */
export class Replayer implements HostSide {
  readonly knows = (): boolean => true;
  calls = 0;
  divergence: Divergence | undefined;
  #heard = 0;
  #next = 0;

  constructor(
    readonly recording: Recording,
    readonly port: Pick<BrokerPort, "sendAt" | "exhausted">,
    /** Ends the run: it went another way. */
    readonly diverged: () => void,
    /** On another engine: stacks and the engine's own wording are not compared. */
    readonly otherEngine: boolean,
  ) {}

  get env(): readonly EnvEntry[] {
    return this.recording.job.env;
  }

  call(message: CallMessage<WireValue>): void {
    if (message.ref !== 0) this.calls++;
    this.#compare(saidOf(message));
    if (this.calls > this.recording.limits.hostCalls) this.port.exhausted(this.calls);
  }

  reply(message: ReplyMessage<WireValue>): void {
    this.#compare(saidOf(message));
  }

  release(): void {
    // When a guest forgets is its engine's matter and no input of anything.
  }

  ledger(): LedgerEntry[] {
    return [];
  }

  close(): void {
    // Nothing was opened.
  }

  #compare(now: Said): void {
    if (this.divergence !== undefined) return;
    const then = this.recording.said[this.#heard];
    this.#heard++;
    const comparable = this.otherEngine ? withoutStacks : (it: Said) => it;
    if (then === undefined || !isDeepStrictEqual(comparable(then), comparable(now))) {
      this.#differs(then === undefined ? "nothing more" : this.#shown(then), this.#shown(now));
      return this.diverged();
    }
    this.start();
  }

  /** Sends what is due. Called once at the start, too: a host may speak first. */
  start(): void {
    for (;;) {
      const next = this.recording.sent[this.#next];
      if (next === undefined || next.after > this.#heard) return;
      this.#next++;
      const messages = next.messages.map((message): BrokerMessage => {
        switch (message.kind) {
          case "call":
            return { ...message, args: fromJson(message.args) };
          case "reply":
            return { ...message, value: fromJson(message.value) };
          case "release":
            return message;
        }
      });
      this.port.sendAt(next.nowMs, messages);
    }
  }

  #differs(expected: string, got: string): void {
    this.divergence = { at: this.#heard, expected, got };
  }

  /** The run is over: whether its end is the recorded one. */
  finish(outcome: Outcome): Replay {
    const { said: all, end } = this.recording;
    const now = endOf(outcome);
    const comparable = this.otherEngine ? withoutWording : onTime;
    if (this.divergence === undefined && !isDeepStrictEqual(comparable(now), comparable(end))) {
      const next = all[this.#heard];
      this.#heard++;
      const [expected, got] = describeEnds(end, now);
      this.#differs(next === undefined ? expected : this.#shown(next), got);
    }
    const { divergence } = this;
    return divergence === undefined
      ? { outcome, identical: true }
      : { outcome, identical: false, divergence };
  }

  #shown(message: Said): string {
    if (message.kind === "reply") return `the answer to callback ${message.id}: ${short(message.value)}`;
    const { ref, method, args } = message;
    const name = ref === 0 ? "timers" : (this.env.find((entry) => entry[2] === ref)?.[0] ?? "a capability");
    const list = Array.isArray(args) ? args.slice(1).map(short).join(", ") : short(args);
    return `${name}.${method}(${list})${message.blob === "" ? "" : ` with ${message.blob.length} characters of bytes`}`;
  }
}

/** Which of its two deadlines a run meets first is the host's doing. */
const onTime = (end: Recording["end"]): Recording["end"] =>
  end.reason === "cpu-time" ? { ...end, reason: "wall-time" } : end;

/** Errors that engines throw themselves, each in words of its own. */
const WORDED: ReadonlySet<string> = new Set(
  "AggregateError EvalError InternalError RangeError ReferenceError SyntaxError TypeError URIError".split(
    " ",
  ),
);

function withoutWording(end: Recording["end"]): Recording["end"] {
  const { error, value } = end;
  const logs = end.logs.map((entry) => ({ ...entry, args: entry.args.map(withoutFrames) }));
  const same = onTime({ ...end, logs });
  if (error !== undefined) {
    same.error = { name: error.name, message: WORDED.has(error.name) ? "" : error.message, stack: "" };
  }
  if (value !== undefined)
    same.value = { ...value, text: JSON.stringify(errorsBare(JSON.parse(value.text))) };
  return same;
}

const withoutFrames = (text: string): string =>
  text
    .split("\n")
    .filter((line) => !line.startsWith("    at "))
    .join("\n");

const withoutStacks = (message: Said): Said =>
  message.kind === "call"
    ? { ...message, args: errorsBare(message.args) }
    : { ...message, value: errorsBare(message.value) };

/** A value as the codec writes it, its errors without their stacks: ["e", name, message, stack]. */
function errorsBare(wire: unknown): unknown {
  if (!Array.isArray(wire)) return wire;
  const [kind, ...parts] = wire as unknown[];
  return kind === "e" ? [kind, ...parts.slice(0, 2)] : [kind, ...parts.map(errorsBare)];
}

function short(wire: unknown): string {
  const text = JSON.stringify(wire) ?? "";
  return text.length > 200 ? `${text.slice(0, 200)}...` : text;
}

/** Both ends in words, and of long ones the place where they part. */
function describeEnds(then: Recording["end"], now: Recording["end"]): [string, string] {
  if (then.status === now.status && isDeepStrictEqual({ ...then, logs: [] }, { ...now, logs: [] })) {
    const at = then.logs.findIndex((entry, index) => !isDeepStrictEqual(entry, now.logs[index]));
    const line = at < 0 ? then.logs.length : at;
    const show = ({ logs }: Recording["end"]) =>
      `line ${line + 1} of the log: ${logs[line] === undefined ? "none" : short(logs[line].args)}`;
    return [show(then), show(now)];
  }
  const [a, b] = [describeEnd(then), describeEnd(now)];
  let at = 0;
  while (at < a.length && a[at] === b[at]) at++;
  const cut = (text: string) => {
    const from = Math.max(0, at - 60);
    return `${from > 0 ? "..." : ""}${text.slice(from, from + 160)}${text.length > from + 160 ? "..." : ""}`;
  };
  return [cut(a), cut(b)];
}

function describeEnd(end: Recording["end"]): string {
  switch (end.status) {
    case "ok":
      return `the result ${end.value?.text}`;
    case "threw":
      return `the error ${end.error?.name}: ${end.error?.message}`;
    case "stopped":
      return `a stop: ${end.reason}`;
    case "cancelled":
      return "a cancelled run";
  }
}
