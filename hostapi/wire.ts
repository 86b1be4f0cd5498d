/**
 * The frames between a worker and its supervisor: this file is the protocol and its specification.
 *
 * It is pure: no input or output, no clock, no authority. The worker counts as hostile from the first guest byte, so
 * nothing is allocated, parsed or believed before it is checked, and there is no resynchronising: a frame that is
 * wrong ends the worker. (The failures behind the rule: lengths believed before they were compared with a limit, line
 * buffers without end, JSON bombs, handlers looked up by the name that the peer sent.)
 *
 * A frame:
 *
 *     0   u32 LE   textBytes   at least 2
 *     4   u32 LE   blobBytes
 *     8   u8       kind        job 1, call 2, reply 3, release 4, log 5, result 6, parked 7
 *     9   3 bytes  zero
 *     12  textBytes of strict UTF-8: a JSON array (RFC 8259) in which no object stands anywhere
 *         blobBytes of bytes, which the value in the text names in order
 *
 * The text by kind; `value` is the codec's text (engine/codec.ts), embedded as it is and always last:
 *
 *     host to worker
 *       job      [role, type, name, source, [[name, source]...], nowMs, wallMs, [limit...], [clock mode, step],
 *                least log level, [env entry...], value]   the blob area begins with the 32 bytes of the seed
 *       call     [nowMs, [id, ref, method, value]...]   calls a guest's function; value is an array value ["a", ...]
 *       reply    [nowMs, [id, ok, value]...]            answers, or errors, to the worker's calls
 *       release  [nowMs, [ref, count]...]               the host forgot a guest's function it had been given
 *     worker to host
 *       parked   []                               ready for a job
 *       call     [[id, ref, method, value]...]    ids count up by one from 1; ref 0 is the run's built-in services
 *       reply    [[id, ok, value]...]             answers, or errors, to the host's calls
 *       release  [[ref, count]...]
 *       log      [level, timeMs, [text...]]
 *       result   ["ok", value] | ["threw", name, message, stack] | ["stopped", reason, detail]
 *
 * Items of a kind go out together, in the order in which they were made; one whose value has bytes is alone in its
 * frame. An error's value is ["a", code, message] from the host, ["a", name, message] from the worker.
 *
 * Order, from the worker: parked once, silence until the job; then calls, replies, releases and logs; one result; then
 * silence.
 */
import { isUtf8 } from "node:buffer";
import type { EncodedValue } from "../engine/codec.js";
import type { ClockMode, LogLevel } from "./ambient.js";
import type { EnvEntry } from "./stubs.js";

/** Every way in which a peer can break the protocol. The text goes to the host's log; it holds nothing of the peer's. */
export const protocolErrors = {
  "bad-length": {
    message: "a frame announces a text shorter than an empty array",
    remedy: "Treat the worker as hostile: end it and report its run as stopped by protocol.",
  },
  "bad-reserved": {
    message: "the reserved bytes of a frame are not zero",
    remedy: "Treat the worker as hostile, or check that both sides are of the same version.",
  },
  "unknown-kind": {
    message: "a frame is of no known kind",
    remedy: "Treat the worker as hostile, or check that both sides are of the same version.",
  },
  "too-large": {
    message: "a frame announces more bytes than the limit",
    remedy: "End the worker; raise maxTextBytes or maxBlobBytes if honest runs need larger values.",
  },
  truncated: {
    message: "the stream ended in the middle of a frame",
    remedy: "The peer died while writing: look at how its process ended.",
  },
  "bad-utf8": { message: "a text is not valid UTF-8", remedy: "Treat the worker as hostile: end it." },
  "too-deep": { message: "a text is nested too deep", remedy: "Treat the worker as hostile: end it." },
  "too-many-nodes": {
    message: "a text holds too many items",
    remedy: "Treat the worker as hostile: end it.",
  },
  object: { message: "a text holds a JSON object", remedy: "Treat the worker as hostile: end it." },
  "bad-json": { message: "a text is not valid JSON", remedy: "Treat the worker as hostile: end it." },
  "bad-shape": {
    message: "a message has not the parts that its kind asks for",
    remedy: "Treat the worker as hostile, or check that both sides are of the same version.",
  },
  "wrong-direction": {
    message: "a message came from the side that may not send it",
    remedy: "Treat the worker as hostile: end it.",
  },
  "bad-order": {
    message: "a message came in a state that does not allow it",
    remedy: "Treat the worker as hostile: end it.",
  },
  "bad-call-id": {
    message: "a call's id is not the one after the last",
    remedy: "Treat the worker as hostile: end it.",
  },
  "unknown-reply": {
    message: "a reply answers no outstanding call",
    remedy: "Treat the worker as hostile: end it.",
  },
  "unknown-ref": {
    message: "a release names a reference that was never given",
    remedy: "Treat the worker as hostile: end it.",
  },
  "too-many-in-flight": {
    message: "more calls are unanswered than the limit",
    remedy: "End the worker; raise maxInFlight if honest runs need more calls at once.",
  },
  "too-many-calls": {
    message: "the run made more calls than its limit",
    remedy: "Report the run as stopped by host-calls; raise the limit if honest runs need more.",
  },
  flood: {
    message: "the worker sent more frames or bytes than its run may",
    remedy: "End the worker; raise maxFrames or maxBytesIn if honest runs need more.",
  },
  dead: {
    message: "the connection had already failed",
    remedy: "Stop reading after the first ProtocolError.",
  },
} as const satisfies Record<string, { message: string; remedy: string }>;

export type ProtocolErrorCode = keyof typeof protocolErrors;

export class ProtocolError extends Error {
  override readonly name = "ProtocolError";
  readonly code: ProtocolErrorCode;
  constructor(code: ProtocolErrorCode) {
    super(`${protocolErrors[code].message} (${code})`);
    this.code = code;
  }
}

/**
 * Bounds of the protocol itself. `encodeMessage` cuts guest-made texts down to them, so an honest worker never breaks
 * one; `parseMessage` refuses what is over. Characters are UTF-16 units.
 */
export const wireLimits = {
  /** Brackets within brackets: 64 of a value, a tag inside the deepest, the message around it. Stops stack exhaustion. */
  nesting: 72,
  /** Commas in a text. Stops a text of "0,0,0..." that grows eightfold when parsed. */
  commas: 1 << 20,
  /** Items in a frame of calls, replies or releases. Stops a frame of small ones that grows twentyfold when parsed. */
  items: 16_384,
  /** The longest method name. */
  methodChars: 128,
  /** Texts in one log message. */
  logTexts: 64,
  /** One text of a log message. */
  logTextChars: 32_768,
  errorNameChars: 256,
  errorMessageChars: 16_384,
  errorStackChars: 32_768,
  detailChars: 1024,
  seedBytes: 32,
} as const;

export interface WireValue {
  /** What JSON.parse made of the value's text: hostile until the codec has decoded it. */
  readonly wire: unknown;
  readonly blob: Uint8Array;
}

export type WireStopReason =
  "interrupted" | "fuel" | "memory" | "stack" | "deadlock" | "output" | "source" | "crash";

export interface JobMessage<V> {
  readonly kind: "job";
  readonly role: "run" | "session" | "template";
  readonly type: "module" | "script";
  readonly name: string;
  readonly source: string;
  readonly modules: readonly (readonly [name: string, source: string])[];
  /** 32 bytes, from which the guest's random generator starts. */
  readonly seed: Uint8Array;
  /** The guest's clock, in milliseconds since 1970. */
  readonly nowMs: number;
  /** The deadline that the engine keeps by itself; the supervisor keeps its own. */
  readonly wallMs: number;
  readonly maxResultBytes: number;
  readonly maxLogBytes: number;
  readonly maxStackBytes: number;
  /** Of the engine's own heap. */
  readonly maxMemoryBytes: number;
  /** Of one call's arguments, and of one answer to the host's call. */
  readonly maxCallBytes: number;
  /** Credit: calls that may be unanswered at one time; an honest guest keeps the others back. */
  readonly maxInFlight: number;
  /** Timers that may be pending at once. */
  readonly maxTimers: number;
  /** Steps of the engine; 0: not counted. */
  readonly fuel: number;
  readonly clock: { readonly mode: ClockMode; readonly stepMs: number };
  readonly leastLevel: LogLevel;
  readonly env: readonly EnvEntry[];
  readonly input: V;
}
export interface CallMessage<V> {
  readonly kind: "call";
  readonly id: number;
  readonly ref: number;
  readonly method: string;
  /** An array value. */
  readonly args: V;
}
/** What the host sends carries its clock. */
export type FromHost<M> = M & { readonly nowMs: number };
export interface ReplyMessage<V> {
  readonly kind: "reply";
  readonly id: number;
  readonly ok: boolean;
  readonly value: V;
}
export interface ReleaseMessage {
  readonly kind: "release";
  readonly ref: number;
  readonly count: number;
}
export interface LogMessage {
  readonly kind: "log";
  readonly level: LogLevel;
  readonly timeMs: number;
  readonly texts: readonly string[];
}
export interface ParkedMessage {
  readonly kind: "parked";
}
export interface ThrownError {
  readonly name: string;
  readonly message: string;
  readonly stack: string;
}
export type ResultMessage<V> = { readonly kind: "result" } & (
  | { readonly status: "ok"; readonly value: V }
  | { readonly status: "threw"; readonly error: ThrownError }
  | { readonly status: "stopped"; readonly reason: WireStopReason; readonly detail: string }
);

export type HostMessage<V = WireValue> =
  JobMessage<V> | FromHost<CallMessage<V>> | FromHost<ReplyMessage<V>> | FromHost<ReleaseMessage>;
export type WorkerMessage<V = WireValue> =
  ParkedMessage | CallMessage<V> | ReplyMessage<V> | ReleaseMessage | LogMessage | ResultMessage<V>;
export type Message<V = WireValue> = HostMessage<V> | WorkerMessage<V>;

const kindNumbers = {
  job: 1,
  call: 2,
  reply: 3,
  release: 4,
  log: 5,
  result: 6,
  parked: 7,
} as const satisfies Record<Message["kind"], number>;

export const headerBytes = 12;
const maxU32 = 0xffff_ffff;
const noBlobs: readonly Uint8Array[] = [];

const cut = (text: string, chars: number): string => (text.length > chars ? text.slice(0, chars) : text);

/**
 * One frame, ready to be written. Texts that a guest chose (logs, errors, details) are cut to {@link wireLimits}.
 * The message is not checked otherwise: both sides trust what they themselves make.
 */
export function encodeMessage(message: Message<EncodedValue>): Buffer {
  switch (message.kind) {
    case "job": {
      const head = JSON.stringify([
        message.role,
        message.type,
        message.name,
        message.source,
        message.modules,
        message.nowMs,
        message.wallMs,
        [
          message.maxResultBytes,
          message.maxLogBytes,
          message.maxStackBytes,
          message.maxMemoryBytes,
          message.maxCallBytes,
          message.maxInFlight,
          message.maxTimers,
          message.fuel,
        ],
        [message.clock.mode, message.clock.stepMs],
        message.leastLevel,
        message.env,
      ]);
      const { text, blobs } = message.input;
      return frameOf(kindNumbers.job, `${head.slice(0, -1)},${text}]`, [message.seed, ...blobs]);
    }
    case "call":
    case "reply":
    case "release": {
      const head = "nowMs" in message ? `${message.nowMs},` : "";
      const blobs =
        message.kind === "call"
          ? message.args.blobs
          : message.kind === "reply"
            ? message.value.blobs
            : noBlobs;
      return frameOf(kindNumbers[message.kind], `[${head}${itemText(message)}]`, blobs);
    }
    case "log": {
      const texts = message.texts
        .slice(0, wireLimits.logTexts)
        .map((text) => cut(text, wireLimits.logTextChars));
      return frameOf(kindNumbers.log, JSON.stringify([message.level, message.timeMs, texts]), noBlobs);
    }
    case "parked":
      return frameOf(kindNumbers.parked, "[]", noBlobs);
    default:
      return encodeResult(message);
  }
}

function itemText(message: CallMessage<EncodedValue> | ReplyMessage<EncodedValue> | ReleaseMessage): string {
  switch (message.kind) {
    case "call":
      return `[${message.id},${message.ref},${JSON.stringify(message.method)},${message.args.text}]`;
    case "reply":
      return `[${message.id},${message.ok},${message.value.text}]`;
    default:
      return `[${message.ref},${message.count}]`;
  }
}

/** A frame that is longer takes no more items. */
const BATCH_CHARS = 65_536;

type Item<V> = CallMessage<V> | ReplyMessage<V> | ReleaseMessage;

/** The host's messages in as few frames as their order allows, each frame with the host's clock. */
export function encodeItems(nowMs: number, items: readonly Item<EncodedValue>[]): Buffer[] {
  const frames: Buffer[] = [];
  let kind: Item<never>["kind"] | undefined;
  let text = "";
  const flush = () => {
    if (kind !== undefined) frames.push(frameOf(kindNumbers[kind], `[${nowMs}${text}]`, noBlobs));
    kind = undefined;
    text = "";
  };
  for (const item of items) {
    const blobs = item.kind === "call" ? item.args.blobs : item.kind === "reply" ? item.value.blobs : noBlobs;
    if (blobs.length > 0) {
      flush();
      frames.push(frameOf(kindNumbers[item.kind], `[${nowMs},${itemText(item)}]`, blobs));
      continue;
    }
    // Not all in one: what a frame needs at once, here and in the guest's small memory, is a multiple of its length.
    if (kind !== item.kind || text.length > BATCH_CHARS) flush();
    kind = item.kind;
    text += `,${itemText(item)}`;
  }
  flush();
  return frames;
}

function encodeResult(message: ResultMessage<EncodedValue>): Buffer {
  switch (message.status) {
    case "ok":
      return frameOf(kindNumbers.result, `["ok",${message.value.text}]`, message.value.blobs);
    case "threw": {
      const { name, message: words, stack } = message.error;
      const text = JSON.stringify([
        "threw",
        cut(name, wireLimits.errorNameChars),
        cut(words, wireLimits.errorMessageChars),
        cut(stack, wireLimits.errorStackChars),
      ]);
      return frameOf(kindNumbers.result, text, noBlobs);
    }
    default: {
      const detail = cut(message.detail, wireLimits.detailChars);
      return frameOf(kindNumbers.result, JSON.stringify(["stopped", message.reason, detail]), noBlobs);
    }
  }
}

function frameOf(kind: number, text: string, blobs: readonly Uint8Array[]): Buffer {
  const textBytes = Buffer.byteLength(text);
  let blobBytes = 0;
  for (const blob of blobs) blobBytes += blob.byteLength;
  // Every byte is written below, so memory that is not zeroed cannot leak.
  const frame = Buffer.allocUnsafe(headerBytes + textBytes + blobBytes);
  frame.writeUInt32LE(textBytes, 0);
  frame.writeUInt32LE(blobBytes, 4);
  frame.writeUInt32LE(kind, 8);
  frame.write(text, headerBytes, "utf8");
  let at = headerBytes + textBytes;
  for (const blob of blobs) {
    frame.set(blob, at);
    at += blob.byteLength;
  }
  return frame;
}

export interface FrameLimits {
  /** Stops a frame that fills the reader's memory with text. */
  readonly maxTextBytes: number;
  /** The same for bytes. */
  readonly maxBlobBytes: number;
}

export interface Frame {
  /** 1 to 7. */
  readonly kind: number;
  /** May be a view of the chunk that was pushed: parse it before that memory is used again. */
  readonly text: Buffer;
  /** Never a view of the chunk: the frame's own. */
  readonly blob: Uint8Array;
}

/** Cuts a stream of bytes into frames. After it has thrown, it only throws. */
export class FrameDecoder {
  readonly #limits: FrameLimits;
  readonly #header = Buffer.alloc(headerBytes);
  #headerHave = 0;
  #textBytes = 0;
  #blobBytes = 0;
  #body: Buffer | undefined;
  #bodyHave = 0;
  #dead = false;

  constructor(limits: FrameLimits) {
    this.#limits = limits;
  }

  /** Bytes allocated for the frame that is under way: at most about twice what has arrived. */
  get buffered(): number {
    return this.#body?.length ?? 0;
  }

  /** Whether a frame has begun and not ended. */
  get partial(): boolean {
    return this.#headerHave > 0;
  }

  /**
   * Takes the next bytes, in pieces of any size, and returns the frames that they complete. The chunk stays the
   * caller's, also when it throws.
   * @throws ProtocolError "bad-length", "bad-reserved", "unknown-kind", "too-large", "dead"
   */
  push(chunk: Uint8Array): Frame[] {
    if (this.#dead) throw new ProtocolError("dead");
    this.#dead = true; // until this chunk has proved good
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    const frames: Frame[] = [];
    let at = 0;
    while (at < bytes.length) {
      if (this.#headerHave < headerBytes) {
        const part = Math.min(headerBytes - this.#headerHave, bytes.length - at);
        bytes.copy(this.#header, this.#headerHave, at, at + part);
        this.#headerHave += part;
        at += part;
        if (this.#headerHave < headerBytes) break;
        this.#checkHeader();
      }
      const total = this.#textBytes + this.#blobBytes;
      if (this.#body === undefined && bytes.length - at >= total) {
        frames.push(this.#frame(bytes.subarray(at, at + total), false));
        at += total;
      } else {
        const part = Math.min(total - this.#bodyHave, bytes.length - at);
        bytes.copy(this.#roomFor(this.#bodyHave + part, total), this.#bodyHave, at, at + part);
        this.#bodyHave += part;
        at += part;
        if (this.#bodyHave === total && this.#body !== undefined) {
          frames.push(this.#frame(this.#body.subarray(0, total), true));
        }
      }
    }
    this.#dead = false;
    return frames;
  }

  #checkHeader(): void {
    const header = this.#header;
    this.#textBytes = header.readUInt32LE(0);
    this.#blobBytes = header.readUInt32LE(4);
    const word = header.readUInt32LE(8);
    const kind = word & 0xff;
    if (word >>> 8 !== 0) throw new ProtocolError("bad-reserved");
    if (kind < kindNumbers.job || kind > kindNumbers.parked) throw new ProtocolError("unknown-kind");
    if (this.#textBytes < 2) throw new ProtocolError("bad-length");
    if (this.#textBytes > this.#limits.maxTextBytes || this.#blobBytes > this.#limits.maxBlobBytes) {
      throw new ProtocolError("too-large");
    }
  }

  /** The body with room for what has come, never for what is only announced. */
  #roomFor(have: number, total: number): Buffer {
    const body = this.#body;
    if (body !== undefined && body.length >= have) return body;
    const grown = Buffer.allocUnsafeSlow(Math.min(total, Math.max(have, 2 * (body?.length ?? 0))));
    if (body !== undefined) body.copy(grown, 0, 0, this.#bodyHave);
    this.#body = grown;
    return grown;
  }

  #frame(body: Buffer, own: boolean): Frame {
    const text = body.subarray(0, this.#textBytes);
    const blob = body.subarray(this.#textBytes);
    const kind = this.#header.readUInt8(8);
    this.#headerHave = 0;
    this.#body = undefined;
    this.#bodyHave = 0;
    // Plain Uint8Arrays: a Buffer's slice is a view, and who takes a part of a blob may want a copy.
    return {
      kind,
      text,
      blob: own ? new Uint8Array(blob.buffer, blob.byteOffset, blob.length) : new Uint8Array(blob),
    };
  }
}

/** Checks the text in one pass over its bytes, before anything is built from it. */
function parseText(text: Buffer): unknown {
  let depth = 0;
  let commas = 0;
  let high = 0;
  let inString = false;
  for (let at = 0; at < text.length; at += 1) {
    const byte = text[at] ?? 0;
    high |= byte;
    if (inString) {
      // A backslash takes the next byte along, so that \" ends no string; JSON.parse judges the escape.
      if (byte === 0x5c) {
        at += 1;
        high |= text[at] ?? 0;
      } else if (byte === 0x22) inString = false;
    } else if (byte === 0x22) inString = true;
    else if (byte === 0x2c) commas += 1;
    else if (byte === 0x5b) {
      depth += 1;
      if (depth > wireLimits.nesting) throw new ProtocolError("too-deep");
    } else if (byte === 0x5d) depth -= 1;
    else if (byte === 0x7b || byte === 0x7d) throw new ProtocolError("object");
  }
  if (commas > wireLimits.commas) throw new ProtocolError("too-many-nodes");
  if (high >= 0x80 && !isUtf8(text)) throw new ProtocolError("bad-utf8");
  try {
    return JSON.parse(high >= 0x80 ? text.toString("utf8") : text.toString("latin1"));
  } catch {
    throw new ProtocolError("bad-json"); // JSON.parse's own words quote the peer's text
  }
}

function malformed(): never {
  throw new ProtocolError("bad-shape");
}

/** The parts of a message, taken in order; each asks for its type and range. */
class Parts {
  readonly #parts: readonly unknown[];
  #next = 0;

  constructor(parts: unknown, count?: number) {
    if (!Array.isArray(parts) || (count !== undefined && parts.length !== count)) malformed();
    this.#parts = parts;
  }

  get length(): number {
    return this.#parts.length;
  }

  any(): unknown {
    if (this.#next >= this.#parts.length) malformed();
    const part = this.#parts[this.#next];
    this.#next += 1;
    return part;
  }

  text(maxChars: number): string {
    const part = this.any();
    return typeof part === "string" && part.length <= maxChars ? part : malformed();
  }

  flag(): boolean {
    const part = this.any();
    return typeof part === "boolean" ? part : malformed();
  }

  /** JSON can write 1e999, which is read as Infinity. */
  number(): number {
    const part = this.any();
    return typeof part === "number" && Number.isFinite(part) ? part : malformed();
  }

  integer(min: number, max = Number.MAX_SAFE_INTEGER): number {
    const part = this.any();
    if (typeof part !== "number" || !Number.isSafeInteger(part) || Object.is(part, -0)) return malformed();
    return part >= min && part <= max ? part : malformed();
  }

  word<W extends string>(words: ReadonlySet<W>): W {
    const part = this.any();
    return isOneOf(words, part) ? part : malformed();
  }

  list<T>(one: (part: unknown) => T, max: number): T[] {
    const part: unknown = this.any();
    return Array.isArray(part) && part.length <= max ? part.map((item) => one(item)) : malformed();
  }
}

function isOneOf<W extends string>(words: ReadonlySet<W>, word: unknown): word is W {
  const all: ReadonlySet<unknown> = words;
  return all.has(word);
}

/** A set that the compiler keeps complete. */
const wordsOf = <W extends string>(words: Record<W, true>): ReadonlySet<W> => {
  const set = new Set<W>();
  for (const word in words) set.add(word);
  return set;
};

const roles = wordsOf<JobMessage<never>["role"]>({ run: true, session: true, template: true });
const types = wordsOf<JobMessage<never>["type"]>({ module: true, script: true });
const levels = wordsOf<LogLevel>({ debug: true, log: true, info: true, warn: true, error: true });
const clockModes = wordsOf<ClockMode>({ frozen: true, real: true, coarse: true, virtual: true });
const stopReasons = wordsOf<WireStopReason>({
  interrupted: true,
  fuel: true,
  memory: true,
  stack: true,
  deadlock: true,
  output: true,
  source: true,
  crash: true,
});

function withoutBlob(frame: Frame): void {
  if (frame.blob.byteLength !== 0) malformed();
}

function argsOf(parts: Parts, blob: Uint8Array): WireValue {
  const wire = parts.any();
  return Array.isArray(wire) && wire[0] === "a" ? { wire, blob } : malformed();
}

/**
 * What a frame says, with every part checked but the values, which stay as they are for the codec.
 * @throws ProtocolError
 */
export function parseFrame(frame: Frame, from: "worker"): WorkerMessage[];
export function parseFrame(frame: Frame, from: "host"): HostMessage[];
export function parseFrame(frame: Frame, from: "worker" | "host"): Message[] {
  const { kind } = frame;
  const fromWorker = from === "worker";
  switch (kind) {
    case kindNumbers.job:
      if (fromWorker) throw new ProtocolError("wrong-direction");
      return [parseJob(frame)];
    case kindNumbers.call:
    case kindNumbers.reply:
    case kindNumbers.release:
      return parseItems(frame, fromWorker);
    case kindNumbers.log: {
      if (!fromWorker) throw new ProtocolError("wrong-direction");
      withoutBlob(frame);
      const parts = new Parts(parseText(frame.text), 3);
      return [{ kind: "log", level: parts.word(levels), timeMs: parts.number(), texts: logTexts(parts) }];
    }
    case kindNumbers.result:
      if (!fromWorker) throw new ProtocolError("wrong-direction");
      return [parseResult(frame)];
    case kindNumbers.parked:
      if (!fromWorker) throw new ProtocolError("wrong-direction");
      withoutBlob(frame);
      return new Parts(parseText(frame.text), 0).length === 0 ? [{ kind: "parked" }] : malformed();
    default:
      throw new ProtocolError("unknown-kind");
  }
}

function parseItems(frame: Frame, fromWorker: boolean): Message[] {
  const { kind, blob } = frame;
  const items = new Parts(parseText(frame.text));
  const clock = fromWorker ? undefined : { nowMs: items.number() };
  const count = items.length - (fromWorker ? 0 : 1);
  if (count > wireLimits.items) throw new ProtocolError("too-many-nodes");
  if (count < 1 || (count > 1 && blob.byteLength > 0)) malformed();
  if (kind === kindNumbers.release) withoutBlob(frame);
  const messages: Message[] = [];
  for (let i = 0; i < count; i++) {
    const message = parseItem(kind, items.any(), blob);
    messages.push(clock === undefined ? message : { ...message, ...clock });
  }
  return messages;
}

function parseItem(
  kind: number,
  item: unknown,
  blob: Uint8Array,
): CallMessage<WireValue> | ReplyMessage<WireValue> | ReleaseMessage {
  switch (kind) {
    case kindNumbers.call: {
      const parts = new Parts(item, 4);
      return {
        kind: "call",
        id: parts.integer(1, maxU32),
        ref: parts.integer(0),
        method: parts.text(wireLimits.methodChars),
        args: argsOf(parts, blob),
      };
    }
    case kindNumbers.reply: {
      const parts = new Parts(item, 3);
      return {
        kind: "reply",
        id: parts.integer(1, maxU32),
        ok: parts.flag(),
        value: { wire: parts.any(), blob },
      };
    }
    default: {
      const parts = new Parts(item, 2);
      return { kind: "release", ref: parts.integer(1), count: parts.integer(1) };
    }
  }
}

function logTexts(parts: Parts): string[] {
  return parts.list(
    (text) => (typeof text === "string" && text.length <= wireLimits.logTextChars ? text : malformed()),
    wireLimits.logTexts,
  );
}

function parseJob(frame: Frame): JobMessage<WireValue> {
  const { blob } = frame;
  if (blob.byteLength < wireLimits.seedBytes) malformed();
  const parts = new Parts(parseText(frame.text), 12);
  const text = (part: unknown): string => (typeof part === "string" ? part : malformed());
  return {
    kind: "job",
    role: parts.word(roles),
    type: parts.word(types),
    name: parts.text(Infinity),
    source: parts.text(Infinity),
    modules: parts.list((part): [string, string] => {
      const pair = new Parts(part, 2);
      return [pair.text(Infinity), pair.text(Infinity)];
    }, Infinity),
    seed: new Uint8Array(blob.subarray(0, wireLimits.seedBytes)),
    nowMs: parts.number(),
    wallMs: parts.number(),
    ...limitsOf(parts.any()),
    clock: clockOf(parts.any()),
    leastLevel: parts.word(levels),
    env: parts.list((part): EnvEntry => {
      const entry = new Parts(part);
      const name = entry.text(Infinity);
      const kind = entry.any();
      switch (kind) {
        case "capability":
          return [name, kind, entry.integer(1), entry.list(text, Infinity)];
        case "function":
          return [name, kind, entry.integer(1)];
        case "text":
          return [name, kind, entry.text(Infinity)];
        default:
          return malformed();
      }
    }, Infinity),
    input: { wire: parts.any(), blob: blob.subarray(wireLimits.seedBytes) },
  };
}

function limitsOf(part: unknown) {
  const parts = new Parts(part, 8);
  return {
    maxResultBytes: parts.integer(0),
    maxLogBytes: parts.integer(0),
    maxStackBytes: parts.integer(0),
    maxMemoryBytes: parts.integer(0),
    maxCallBytes: parts.integer(0),
    maxInFlight: parts.integer(0),
    maxTimers: parts.integer(0),
    fuel: parts.integer(0),
  };
}

function clockOf(part: unknown): JobMessage<never>["clock"] {
  const parts = new Parts(part, 2);
  return { mode: parts.word(clockModes), stepMs: parts.integer(0) };
}

function parseResult(frame: Frame): ResultMessage<WireValue> {
  const parts = new Parts(parseText(frame.text));
  switch (parts.any()) {
    case "ok":
      if (parts.length !== 2) malformed();
      return { kind: "result", status: "ok", value: { wire: parts.any(), blob: frame.blob } };
    case "threw":
      withoutBlob(frame);
      if (parts.length !== 4) malformed();
      return {
        kind: "result",
        status: "threw",
        error: {
          name: parts.text(wireLimits.errorNameChars),
          message: parts.text(wireLimits.errorMessageChars),
          stack: parts.text(wireLimits.errorStackChars),
        },
      };
    case "stopped":
      withoutBlob(frame);
      if (parts.length !== 3) malformed();
      return {
        kind: "result",
        status: "stopped",
        reason: parts.word(stopReasons),
        detail: parts.text(wireLimits.detailChars),
      };
    default:
      return malformed();
  }
}

export interface ConnectionLimits extends FrameLimits {
  /** Frames in all. Stops a worker that keeps the supervisor busy with small ones. */
  readonly maxFrames: number;
  /** Bytes in all. */
  readonly maxBytesIn: number;
  /** Calls in all. Over it: "too-many-calls", which is the run's outcome `host-calls`. */
  readonly maxCalls: number;
  /** Calls unanswered at one time. Stops a queue without end in the broker. */
  readonly maxInFlight: number;
}

export type ConnectionState = "starting" | "parked" | "running" | "done";

/** The supervisor's side of one worker: what may come, and when. After a throw it is dead and only throws. */
export class WorkerConnection {
  readonly #limits: ConnectionLimits;
  #knows: (ref: number) => boolean = () => false;
  readonly #decoder: FrameDecoder;
  #state: ConnectionState = "starting";
  #dead = false;
  #frames = 0;
  #bytes = 0;
  /** What the host itself asked for: callbacks' answers come on top of the run's allowance. */
  #asked = 0;
  #lastCall = 0;
  readonly #inFlight = new Set<number>();
  readonly #outstanding = new Set<number>();

  constructor(limits: ConnectionLimits) {
    this.#limits = limits;
    this.#decoder = new FrameDecoder(limits);
  }

  get state(): ConnectionState {
    return this.#state;
  }

  get dead(): boolean {
    return this.#dead;
  }

  /** Bytes received so far. */
  get bytesIn(): number {
    return this.#bytes;
  }

  /** Bytes allocated for the frame that is under way. */
  get buffered(): number {
    return this.#decoder.buffered;
  }

  /**
   * Takes what the socket gave and returns the messages in it, each allowed where it stands.
   * @throws ProtocolError; the messages before the bad one are lost with it
   */
  feed(chunk: Uint8Array): WorkerMessage[] {
    if (this.#dead) throw new ProtocolError("dead");
    this.#dead = true; // until this chunk has proved good
    this.#bytes += chunk.byteLength;
    const { maxBytesIn, maxFrames, maxTextBytes, maxBlobBytes } = this.#limits;
    if (this.#bytes > maxBytesIn + this.#asked * (headerBytes + maxTextBytes + maxBlobBytes))
      throw new ProtocolError("flood");
    if (chunk.byteLength > 0) this.#mustListen();
    const messages: WorkerMessage[] = [];
    for (const frame of this.#decoder.push(chunk)) {
      this.#frames += 1;
      if (this.#frames > maxFrames + this.#asked) throw new ProtocolError("flood");
      this.#mustListen();
      for (const message of parseFrame(frame, "worker")) {
        this.#accept(message);
        messages.push(message);
      }
    }
    if (this.#decoder.partial) this.#mustListen();
    this.#dead = false;
    return messages;
  }

  /** The host sends a job. The worker must be parked. `knows`: whether this run holds a reference now. */
  startJob(knows: (ref: number) => boolean): void {
    if (this.#state !== "parked") throw new Error(`a job for a worker that is ${this.#state}`);
    this.#state = "running";
    this.#knows = knows;
  }

  /** The host answers the worker's call. */
  answered(id: number): void {
    if (!this.#inFlight.delete(id)) throw new Error(`an answer to call ${id}, which is not in flight`);
  }

  /** The host calls a guest's function. */
  called(id: number): void {
    if (this.#outstanding.has(id)) throw new Error(`a second call with the id ${id}`);
    this.#outstanding.add(id);
    this.#asked++;
  }

  /** No byte may come in silence: while parked, and after the result. */
  #mustListen(): void {
    if (this.#state === "parked" || this.#state === "done") throw new ProtocolError("bad-order");
  }

  #accept(message: WorkerMessage): void {
    if ((message.kind === "parked") !== (this.#state === "starting")) throw new ProtocolError("bad-order");
    switch (message.kind) {
      case "parked":
        this.#state = "parked";
        break;
      case "call":
        if (message.id !== this.#lastCall + 1) throw new ProtocolError("bad-call-id");
        this.#lastCall = message.id;
        if (message.id > this.#limits.maxCalls) throw new ProtocolError("too-many-calls");
        if (this.#inFlight.size >= this.#limits.maxInFlight) throw new ProtocolError("too-many-in-flight");
        this.#inFlight.add(message.id);
        break;
      case "reply":
        if (!this.#outstanding.delete(message.id)) throw new ProtocolError("unknown-reply");
        break;
      case "release":
        if (!this.#knows(message.ref)) throw new ProtocolError("unknown-ref");
        break;
      case "log":
        break;
      default:
        message.kind satisfies "result";
        this.#state = "done";
    }
  }
}

/** One for the process: it has one host. Made with the module, so that a forked worker has not to touch all of it. */
const readBuffer = Buffer.alloc(64 * 1024);
const readView = new DataView(readBuffer.buffer, readBuffer.byteOffset, readBuffer.byteLength);
const kindNames = new Map<number, Message["kind"]>(
  Object.entries(kindNumbers).map(([name, number]) => [number, name as Message["kind"]]),
);

/** Where the body of the host's next message goes. */
export interface Room {
  readonly text: Uint8Array;
  readonly blob: Uint8Array;
}

/**
 * The worker's side: the host's frames, read one after the other from a blocking source. The host is trusted, so its
 * bodies go straight to where the guest wants them, and large ones without a copy between.
 */
export class FrameSource {
  readonly #read: (into: Uint8Array) => number;
  #start = 0;
  #end = 0;

  /** @param read blocks until there are bytes, writes them to the front of `into` and returns how many; 0 at the end */
  constructor(read: (into: Uint8Array) => number) {
    this.#read = read;
  }

  /**
   * Reads the next frame into the room that `roomFor` makes for it. Undefined at the end of the stream.
   * @throws ProtocolError "truncated" if the stream ends within a frame, "unknown-kind"
   */
  next(roomFor: (textBytes: number, blobBytes: number) => Room): Message["kind"] | undefined {
    while (this.#end - this.#start < headerBytes) {
      if (this.#start > 0) {
        readBuffer.copyWithin(0, this.#start, this.#end);
        this.#end -= this.#start;
        this.#start = 0;
      }
      const count = this.#read(this.#end === 0 ? readBuffer : readBuffer.subarray(this.#end));
      if (count === 0) {
        if (this.#end > 0) throw new ProtocolError("truncated");
        return undefined;
      }
      this.#end += count;
    }
    const textBytes = readView.getUint32(this.#start, true);
    const blobBytes = readView.getUint32(this.#start + 4, true);
    const kind = kindNames.get(readView.getUint32(this.#start + 8, true));
    if (kind === undefined) throw new ProtocolError("unknown-kind");
    this.#start += headerBytes;
    const room = roomFor(textBytes, blobBytes);
    this.#fill(room.text);
    if (blobBytes > 0) this.#fill(room.blob);
    return kind;
  }

  /** The job, parsed. Undefined at the end of the stream. */
  job(): JobMessage<WireValue> | undefined {
    let text = Buffer.alloc(0);
    let blob = Buffer.alloc(0);
    const kind = this.next((textBytes, blobBytes) => {
      text = Buffer.allocUnsafe(textBytes);
      blob = Buffer.allocUnsafe(blobBytes);
      return { text, blob };
    });
    if (kind === undefined) return undefined;
    const [message] = parseFrame({ kind: kindNumbers[kind], text, blob: new Uint8Array(blob) }, "host");
    if (message?.kind !== "job") throw new ProtocolError("bad-order");
    return message;
  }

  #fill(target: Uint8Array): void {
    const have = Math.min(target.length, this.#end - this.#start);
    target.set(readBuffer.subarray(this.#start, this.#start + have));
    this.#start += have;
    for (let at = have; at < target.length;) {
      const count = this.#read(target.subarray(at));
      if (count === 0) throw new ProtocolError("truncated");
      at += count;
    }
  }
}

/** The worker's side of sending: a frame of a text that the guest has written, in pieces as they lie. */
export function frameHeader(
  kind: Message["kind"],
  textBytes: number,
  blobBytes: number,
  view: DataView,
): void {
  view.setUint32(0, textBytes, true);
  view.setUint32(4, blobBytes, true);
  view.setUint32(8, kindNumbers[kind], true);
}
