/**
 * The only place where a guest's wish becomes an act: one broker per run, on the trusted side. A wish names a reference
 * in this run's table; the broker checks the arguments, lets the capability's own guards charge and refuse, has the
 * audit line written, acts under a deadline and encodes the answer.
 *
 * The table's keys are random and never used twice, so a worker that has been taken over cannot guess a reference, use
 * one that it released, or reach another run's. What an honest worker cannot send ends the run (`violated`); what an
 * honest script can do wrong is an error for the script. Nothing here knows a socket, a clock but the one it is handed,
 * or a kind of capability.
 */
import { codec, type EncodedValue } from "../engine/codec.js";
import {
  asCapabilityError,
  asGuestFunction,
  Capability,
  CapabilityError,
  DEFAULT_TIMEOUT_MS,
  GuestError,
  isGuestFunction,
  type AuditDetail,
  type Call,
  type CapabilityErrorCode,
  type GuestFunction,
  type RunContext,
} from "./capability.js";
import type { EnvEntry } from "./stubs.js";
import type { CallMessage, ReleaseMessage, ReplyMessage, WireValue } from "./wire.js";

const { encode, decode, isCodecError } = codec();

/** What becomes of a wish. The sink hears it as it happens, on the trusted side only. */
export interface AuditEvent {
  /** Milliseconds since 1970. */
  readonly timeMs: number;
  readonly runId: string;
  readonly tenant: string;
  /** The name in `env`, or the kind of a capability that another one handed out. */
  readonly capability: string;
  /** "kv", "http", ... */
  readonly kind: string;
  readonly method: string;
  /**
   * - `allowed`: every guard has let it pass; the act begins. A sink that throws here stops it.
   * - `refused`: it was not begun.
   * - `done`, `failed`: how an allowed one ended.
   */
  readonly decision: "allowed" | "refused" | "done" | "failed";
  readonly code?: CapabilityErrorCode;
  readonly detail: AuditDetail;
  /** Of arguments, answer, and what the act itself moved. */
  readonly bytes: number;
  /** What a handler threw that was no CapabilityError: for the host's eyes only. */
  readonly error?: unknown;
}

/** What one method of one capability was asked to do in a run. */
export interface LedgerEntry {
  capability: string;
  method: string;
  calls: number;
  refused: number;
  failed: number;
  bytes: number;
}

export interface BrokerLimits {
  /** Calls in all. */
  readonly hostCalls: number;
  /** Calls without an answer: the credit that the guest was told, and keeps if it is honest. */
  readonly hostCallsInFlight: number;
  /** Bytes of one call's arguments, and of one answer. */
  readonly callBytes: number;
  /** References that a guest may be handed besides its grants, and functions that the host may hold of it, at one time. */
  readonly references: number;
}

export type BrokerMessage = CallMessage<EncodedValue> | ReplyMessage<EncodedValue> | ReleaseMessage;

export interface BrokerPort {
  /** Goes out in this order, soon. */
  send(message: BrokerMessage): void;
  /** Goes out now, together, and with this clock. */
  sendAt(nowMs: number, messages: readonly BrokerMessage[]): void;
  /** Calls `act` now or, if the worker has much to read already, later, in order: nothing is written down before. */
  whenRoom(act: () => void): void;
  /** Milliseconds since 1970. */
  nowMs(): number;
  /** The worker sent what no honest one sends: the run must end. */
  violated(detail: string): void;
  /** The run made more calls than its limit: it must end. */
  exhausted(calls: number): void;
  audit?: ((event: AuditEvent) => void) | undefined;
}

/** What ref 0 answers: the worker's own services. `sleep` [ms] answers after that time. */
const SLEEP = "sleep";
/** Sleeps that an honest worker asks for at once: one for each time at which a timer is due. */
const MAX_SLEEPS = 1024;
const MAX_NODES = 200_000;
/** Most time that building one value may take: a script can choose keys that collide in V8's hash tables, ms. */
const DECODE_MS = 50;
/** Values that may be given up for that in a run: more are no accident, and other runs wait for them. */
const MAX_GIVEN_UP = 5;
/** Calls of guest functions that may be unanswered at one time. */
const MAX_CALLBACKS = 1000;
/** Of a guest's error, name and message: what its half of the protocol cuts them to is less. */
const MAX_ERROR_CHARS = 8192;
const MAX_U32 = 0xffff_ffff;
/** What setTimeout can count; over it Node fires at once. */
const MAX_TIMER_MS = 2_147_483_647;

const REFUSED: ReadonlySet<CapabilityErrorCode> = new Set<CapabilityErrorCode>([
  "bad-argument",
  "denied",
  "revoked",
  "expired",
  "budget",
  "rate",
]);

interface Export {
  capability: Capability;
  label: string;
}

type Audited = Pick<BrokerCall, "label" | "kind" | "method" | "detail" | "bytes">;

interface Callback {
  resolve(value: unknown): void;
  reject(error: Error): void;
  owner: BrokerCall;
}

/** The one text for whatever was not granted: what exists elsewhere cannot be told from what does not. */
const unknown = () => new CapabilityError("denied", "there is no such capability or method");

export class Broker {
  readonly #limits: BrokerLimits;
  readonly #port: Omit<BrokerPort, "sendAt">;
  readonly #run: RunContext;
  readonly #table = new Map<number, Export>();
  readonly #opened = new Set<Capability>();
  readonly #active = new Set<BrokerCall>();
  /** Functions of the guest's that we hold, by its number for them. */
  readonly #functions = new Map<number, GuestFunction>();
  readonly #callbacks = new Map<number, Callback>();
  readonly #sleeps = new Set<NodeJS.Timeout>();
  readonly #ledger = new Map<string, LedgerEntry>();
  readonly #env: EnvEntry[] = [];
  #roots = 0;
  #lastCallback = 0;
  #givenUp = 0;
  #calls = 0;
  #closed = false;

  constructor(
    grants: ReadonlyMap<string, Capability | string>,
    options: { limits: BrokerLimits; run: RunContext; port: Omit<BrokerPort, "sendAt"> },
  ) {
    this.#limits = options.limits;
    this.#port = options.port;
    this.#run = options.run;
    for (const [name, grant] of grants) {
      if (typeof grant === "string") this.#env.push([name, "text", grant]);
      else {
        this.#roots++;
        const ref = this.#export(grant, name);
        const { callable, methods } = grant;
        this.#env.push(callable ? [name, "function", ref] : [name, "capability", ref, [...methods.keys()]]);
      }
    }
  }

  /** What the job says of `env`. */
  get env(): readonly EnvEntry[] {
    return this.#env;
  }

  /** Calls of capabilities so far. */
  get calls(): number {
    return this.#calls;
  }

  /** Whether the guest holds this reference now. */
  readonly knows = (ref: number): boolean => this.#table.has(ref);

  ledger(): LedgerEntry[] {
    return [...this.#ledger.values()];
  }

  /** The run is over: every call under way is cancelled, every function of the guest's is dead. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const timer of this.#sleeps) clearTimeout(timer);
    const over = () => new CapabilityError("unavailable", "the run is over");
    for (const call of this.#active) call.cancel(over());
    for (const { reject } of this.#callbacks.values()) reject(over());
    this.#callbacks.clear();
    this.#table.clear();
    for (const capability of this.#opened) {
      try {
        capability.close(this.#run);
      } catch (error) {
        const { name } = capability;
        this.audit({ label: name, kind: name, method: "(close)", detail: {}, bytes: 0 }, "failed", "failed", error); // prettier-ignore
      }
    }
  }

  // -- the guest's messages -----------------------------------------------------------------------------------------

  call(message: CallMessage<WireValue>): void {
    if (message.ref === 0) return this.#service(message);
    this.#calls++;
    if (this.#calls > this.#limits.hostCalls) return this.#port.exhausted(this.#calls);
    const found = this.#table.get(message.ref);
    const known = found?.capability.methods.has(message.method) === true;
    const call = new BrokerCall(this, this.#run, {
      id: message.id,
      label: known ? found.label : "(unknown)",
      kind: known ? found.capability.name : "(unknown)",
      method: known ? message.method : "(unknown)",
      argumentBytes: leastBytes(message.args.wire, this.#limits.callBytes) + message.args.blob.byteLength,
      maxAnswerBytes: this.#limits.callBytes,
    });
    if (call.argumentBytes > this.#limits.callBytes)
      return this.#port.violated("arguments over the limit of bytes");
    if (this.#active.size >= this.#limits.hostCallsInFlight) {
      return this.#port.violated("more calls in flight than the credit");
    }
    this.#active.add(call);
    let positional: unknown[];
    try {
      positional = this.#decode(message.args, call) as unknown[];
    } catch (error) {
      const own = this.#undecodable(error);
      return own === undefined ? undefined : call.fail(own);
    }
    if (!known) return call.fail(unknown());
    const { capability, label } = found;
    let answer: unknown;
    let isLater: boolean;
    try {
      const args = capability.parse(label, message.method, positional);
      answer = capability.invoke(message.method, args, call);
      isLater = isThenable(answer);
    } catch (error) {
      return call.fail(error);
    }
    if (!isLater) return call.succeed(answer);
    call.arm(capability.methods.get(message.method)?.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    // A promise stays itself; another's `then` that throws becomes a rejection.
    Promise.resolve(answer).then(
      (value) => call.succeed(value),
      (error: unknown) => call.fail(error),
    );
  }

  /** The guest's answer to a call of its function. */
  reply(message: ReplyMessage<WireValue>): void {
    const callback = this.#callbacks.get(message.id);
    if (callback === undefined) return; // the connection refuses what nobody asked for
    this.#callbacks.delete(message.id);
    let value: unknown;
    const { wire, blob } = message.value;
    const most = message.ok ? this.#limits.callBytes : MAX_ERROR_CHARS;
    if (leastBytes(wire, most) + blob.byteLength > most) {
      callback.reject(new CapabilityError("too-large", "the callback's answer is over its limit of bytes"));
      return this.#port.violated("an answer over the limit of bytes");
    }
    try {
      value = this.#decode(message.value, callback.owner);
    } catch (error) {
      const own = this.#undecodable(error);
      return callback.reject(own ?? new CapabilityError("failed", "the callback's answer cannot be read"));
    }
    if (message.ok) return callback.resolve(value);
    if (!Array.isArray(value) || typeof value[0] !== "string" || typeof value[1] !== "string") {
      callback.reject(new CapabilityError("failed", "the callback's answer cannot be read"));
      return this.#port.violated("an error that is not one");
    }
    callback.reject(new GuestError(`${value[0]}: ${value[1]}`));
  }

  /** The guest forgot a reference. */
  release(message: ReleaseMessage): void {
    this.#table.delete(message.ref);
  }

  /** An honest worker's values can be decoded; what takes too long or is too many may be an honest script's doing. */
  #undecodable(error: unknown): CapabilityError | undefined {
    if (error instanceof CapabilityError) return error;
    if (!isCodecError(error)) throw error;
    if (error.code === "too-large" && ++this.#givenUp <= MAX_GIVEN_UP)
      return new CapabilityError("too-large", "the value is too large to be built");
    this.#port.violated("a value that is none");
    return undefined;
  }

  /** Reference 0: what every worker may ask for. */
  #service({ id, method, args }: CallMessage<WireValue>): void {
    const ms: unknown = Array.isArray(args.wire) && args.wire.length === 2 ? args.wire[1] : undefined;
    if (method !== SLEEP || typeof ms !== "number" || !(ms >= 0) || this.#sleeps.size >= MAX_SLEEPS) {
      return this.#port.violated("a sleep that no honest worker asks for");
    }
    const timer = setTimeout(
      () => {
        this.#sleeps.delete(timer);
        this.#port.send({ kind: "reply", id, ok: true, value: { text: "null", blobs: [] } });
      },
      Math.min(ms, MAX_TIMER_MS),
    );
    this.#sleeps.add(timer);
  }

  // -- references ---------------------------------------------------------------------------------------------------

  #export(capability: Capability, label: string): number {
    if (this.#table.size >= this.#limits.references + this.#roots) {
      throw new CapabilityError(
        "quota",
        `at most ${this.#limits.references} references may be held at one time`,
      );
    }
    const ref = randomReference(this.#table);
    this.#table.set(ref, { capability, label });
    this.#opened.add(capability);
    return ref;
  }

  #decode({ wire, blob }: WireValue, owner: BrokerCall): unknown {
    const end = performance.now() + DECODE_MS;
    return decode(wire, blob, {
      maxDepth: 64,
      maxNodes: MAX_NODES,
      expired: () => performance.now() > end,
      resolve: (kind, id) => {
        if (kind === "function") return this.#import(id, owner);
        const home = kind === "home" ? this.#table.get(id) : undefined;
        if (home === undefined) throw unknown();
        return home.capability;
      },
    });
  }

  #import(id: number, owner: BrokerCall): GuestFunction {
    if (this.#functions.has(id)) {
      this.#port.violated("a function's number used twice");
      throw unknown();
    }
    if (this.#functions.size >= this.#limits.references) {
      throw new CapabilityError(
        "quota",
        `at most ${this.#limits.references} functions may be held at one time`,
      );
    }
    let kept = false;
    const release = () => {
      if (!this.#functions.delete(id) || this.#closed) return;
      // Behind the calls of it that wait for room.
      this.#port.whenRoom(() => this.#port.send({ kind: "release", ref: id, count: 1 }));
    };
    const f = asGuestFunction(
      Object.assign((...args: unknown[]) => this.#callGuest(id, args, owner), {
        keep: () => {
          kept = true;
          return f;
        },
        release,
      }),
    );
    guestIds.set(f, id);
    this.#functions.set(id, f);
    owner.onEnd(() => kept || release());
    return f;
  }

  #callGuest(ref: number, args: unknown[], owner: BrokerCall): Promise<unknown> {
    if (this.#closed) return Promise.reject(new CapabilityError("unavailable", "the run is over"));
    if (!this.#functions.has(ref)) {
      const words = "the callback was released when its call ended; keep() it to call it later";
      return Promise.reject(new CapabilityError("revoked", words));
    }
    if (this.#callbacks.size >= MAX_CALLBACKS) {
      return Promise.reject(new CapabilityError("rate", "too many callbacks are unanswered"));
    }
    const answer = new Promise<unknown>((resolve, reject) => {
      const id = (this.#lastCallback = (this.#lastCallback % MAX_U32) + 1);
      this.#callbacks.set(id, { resolve, reject, owner });
      this.#port.whenRoom(() => {
        if (!this.#callbacks.has(id)) return; // the run is over
        try {
          const encoded = this.#encode(args, owner.label);
          this.#port.send({ kind: "call", id, ref, method: "call", args: encoded });
        } catch (error) {
          this.#callbacks.delete(id);
          reject(error as Error);
        }
      });
    });
    // A guest must not end its host's process by a rejection that a listener did not expect.
    answer.catch(() => {});
    return answer;
  }

  /** Writes a value of the host's for the guest. What it had exported is taken back when it, or `charge`, throws. */
  #encode(value: unknown, label: string, charge?: (bytes: number) => void): EncodedValue {
    const exported: number[] = [];
    try {
      const encoded = encode(value, {
        maxBytes: this.#limits.callBytes,
        maxNodes: MAX_NODES,
        root: "answer",
        omitStacks: true,
        reference: (part) => {
          if (part instanceof Capability) {
            const ref = this.#export(part, part.callable ? label : part.name);
            exported.push(ref);
            if (part.callable) return { kind: "function", id: ref };
            return { kind: "capability", id: ref, methods: [...part.methods.keys()] };
          }
          // Numbers mean something in their own run only, and while the function is held.
          const id = isGuestFunction(part) ? guestIds.get(part) : undefined;
          return id === undefined || this.#functions.get(id) !== part ? undefined : { kind: "home", id };
        },
      });
      charge?.(sizeOf(encoded));
      return encoded;
    } catch (error) {
      for (const ref of exported) this.#table.delete(ref);
      if (isCodecError(error) && error.code === "too-large") {
        throw new CapabilityError("too-large", `the answer is over ${this.#limits.callBytes} bytes`, {
          cause: error,
        });
      }
      throw error;
    }
  }

  // -- what calls tell us -------------------------------------------------------------------------------------------

  /** @internal */
  whenRoom(act: () => void): void {
    this.#port.whenRoom(act);
  }

  /** @internal A call's end: its answer goes out, if there is still anybody to hear it. */
  finish(call: BrokerCall, result: { value: unknown } | { error: unknown }): void {
    if (!this.#active.delete(call)) return;
    let answer: EncodedValue | undefined;
    let failure: unknown;
    if ("value" in result) {
      try {
        if (!this.#closed) answer = this.#encode(result.value, call.label, (bytes) => call.charge(bytes));
      } catch (error) {
        failure = error;
      }
    } else failure = result.error;
    const failed = failure !== undefined || (answer === undefined && !this.#closed);
    const entry = this.#entry(call.label, call.method);
    entry.calls++;
    entry.bytes += call.bytes;
    if (!failed) {
      this.audit(call, "done");
      if (answer !== undefined) this.#port.send({ kind: "reply", id: call.id, ok: true, value: answer });
      return;
    }
    const own = asCapabilityError(failure);
    const code = own?.code ?? "failed";
    const refused = !call.admitted && REFUSED.has(code);
    if (refused) entry.refused++;
    else entry.failed++;
    this.audit(call, refused ? "refused" : "failed", code, own === undefined ? failure : own.cause);
    if (this.#closed) return;
    const shown = call.label === "(unknown)" ? "" : `${call.label}.${call.method}: `;
    const words = own?.message ?? `${shown}the capability failed`;
    const text = `["a",${JSON.stringify(code)},${JSON.stringify(words.slice(0, 4096))}]`;
    this.#port.send({ kind: "reply", id: call.id, ok: false, value: { text, blobs: [] } });
  }

  #entry(capability: string, method: string): LedgerEntry {
    const key = `${capability}\n${method}`;
    let entry = this.#ledger.get(key);
    if (entry === undefined) {
      entry = { capability, method, calls: 0, refused: 0, failed: 0, bytes: 0 };
      this.#ledger.set(key, entry);
    }
    return entry;
  }

  /** @internal Every guard has let the call pass. Throws CapabilityError when the audit's sink does. */
  admit(call: BrokerCall): void {
    try {
      this.#tellAudit(call, "allowed");
    } catch (error) {
      throw new CapabilityError("failed", `${call.label}: the audit refused`, { cause: error });
    }
  }

  /** @internal Tells what is over, or was not begun. */
  audit(about: Audited, decision: AuditEvent["decision"], code?: CapabilityErrorCode, error?: unknown): void {
    try {
      this.#tellAudit(about, decision, code, error);
    } catch {
      // The act is over, or was not begun: there is nothing left that a broken sink could stop.
    }
  }

  #tellAudit(
    about: Audited,
    decision: AuditEvent["decision"],
    code?: CapabilityErrorCode,
    error?: unknown,
  ): void {
    const told: unknown = this.#port.audit?.({
      timeMs: this.#port.nowMs(),
      runId: this.#run.id,
      tenant: this.#run.tenant,
      capability: about.label,
      kind: about.kind,
      method: about.method,
      decision,
      ...(code === undefined ? {} : { code }),
      detail: about.detail,
      bytes: about.bytes,
      ...(error === undefined ? {} : { error }),
    });
    if (!isThenable(told)) return;
    // Its failure would come after the act, and as an unhandled rejection.
    told.then(undefined, () => {});
    throw new TypeError("the audit sink must not be asynchronous: it has to have written when it returns");
  }
}

/** A guest function's number in its run. */
const guestIds = new WeakMap<GuestFunction, number>();

/** One call under way. */
class BrokerCall implements Call {
  readonly id: number;
  readonly label: string;
  readonly kind: string;
  readonly method: string;
  readonly argumentBytes: number;
  readonly maxAnswerBytes: number;
  readonly #broker: Broker;
  readonly run: RunContext;
  bytes: number;
  admitted = false;
  detail: AuditDetail = {};
  #controller: AbortController | undefined;
  #reason: Error | undefined;
  #meters: ((bytes: number) => void)[] | undefined;
  #listeners: (() => void)[] | undefined;
  #timer: NodeJS.Timeout | undefined;
  #over = false;

  constructor(
    broker: Broker,
    run: RunContext,
    about: Pick<BrokerCall, "id" | "label" | "kind" | "method" | "argumentBytes" | "maxAnswerBytes">,
  ) {
    this.#broker = broker;
    this.run = run;
    this.id = about.id;
    this.label = about.label;
    this.kind = about.kind;
    this.method = about.method;
    this.argumentBytes = about.argumentBytes;
    this.maxAnswerBytes = about.maxAnswerBytes;
    this.bytes = about.argumentBytes;
  }

  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      if (this.#over) this.#controller.abort(this.#reason);
    }
    return this.#controller.signal;
  }

  charge(bytes: number): void {
    if (!(bytes >= 0)) throw new TypeError("charge: bytes must be a number, and not below 0");
    this.bytes += bytes;
    for (const meter of this.#meters ?? []) meter(bytes);
  }

  meter(meter: (bytes: number) => void): void {
    (this.#meters ??= []).push(meter);
    meter(this.argumentBytes);
  }

  note(detail: AuditDetail): void {
    this.detail = { ...this.detail, ...detail };
  }

  admit(detail: AuditDetail): void {
    this.note(detail);
    this.#broker.admit(this);
    this.admitted = true;
  }

  onEnd(listener: () => void): void {
    if (this.#over) return listener();
    (this.#listeners ??= []).push(listener);
  }

  arm(ms: number): void {
    if (this.#over) return;
    const late = () =>
      this.cancel(new CapabilityError("timeout", `${this.label}.${this.method}: no answer in ${ms} ms`));
    this.#timer = setTimeout(late, Math.min(ms, MAX_TIMER_MS));
  }

  cancel(error: CapabilityError): void {
    if (this.#over) return;
    this.#reason = error;
    this.fail(error);
    this.#controller?.abort(error);
  }

  succeed(value: unknown): void {
    if (this.#over) return;
    clearTimeout(this.#timer);
    this.#broker.whenRoom(() => {
      if (this.#over) return;
      this.#broker.finish(this, { value });
      this.#end();
    });
  }

  fail(error: unknown): void {
    if (this.#over) return;
    this.#broker.finish(this, { error });
    this.#end();
  }

  #end(): void {
    this.#over = true;
    clearTimeout(this.#timer);
    for (const listener of this.#listeners ?? []) {
      try {
        listener();
      } catch (error) {
        this.#broker.audit(this, "failed", "failed", error); // the call is over: nothing else can hear of it
      }
    }
    this.#listeners = undefined;
  }
}

const isThenable = (value: unknown): value is PromiseLike<unknown> =>
  typeof value === "object" && value !== null && "then" in value && typeof value.then === "function";

function sizeOf({ text, blobs }: EncodedValue): number {
  let bytes = text.length;
  for (const blob of blobs) bytes += blob.byteLength;
  return bytes;
}

/** Never more than what the codec would count: whoever is over the limit by this measure did not keep it. */
function leastBytes(wire: unknown, enough: number): number {
  if (typeof wire === "string") return wire.length;
  if (!Array.isArray(wire)) return 1;
  let sum = 0;
  for (const part of wire as unknown[]) {
    sum += leastBytes(part, enough);
    if (sum > enough) break;
  }
  return sum;
}

let pool = new Uint32Array(0);
let at = 0;

/** 52 random bits, not in the table: a positive safe integer that nobody can guess. */
function randomReference(table: ReadonlyMap<number, unknown>): number {
  for (;;) {
    if (at >= pool.length) {
      pool = crypto.getRandomValues(new Uint32Array(128));
      at = 0;
    }
    const ref = ((pool[at] as number) & 0xfffff) * 2 ** 32 + (pool[at + 1] as number);
    at += 2;
    if (ref > 0 && !table.has(ref)) return ref;
  }
}
