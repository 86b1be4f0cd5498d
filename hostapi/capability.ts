/**
 * What a capability is: a set of methods with checked arguments, and the ways to weaken it. An object of the host's
 * that a run was handed is all the authority it has over that thing (Miller, Robust Composition, 2006, chapter 8).
 *
 * A capability is immutable and may be granted to any number of runs; what a run used up of it is kept by run. Nothing
 * may live here that knows a wire, a process or a kind of capability. The broker alone calls `invoke`, with arguments
 * that `parse` has made from a guest's: a handler never sees an argument that its schema did not describe.
 */
import { z } from "zod";
import {
  aFunction,
  type Check,
  checkOptions,
  type Checks,
  isPlainObject,
  kindOf,
  needed,
  oneOf,
  wholeNumber,
} from "./options.js";

/** Why a call failed, for the guest to tell apart. Handlers throw these; whatever else they throw arrives as `failed`. */
export const CAPABILITY_ERRORS = {
  "bad-argument": "an argument is not what the method takes",
  denied: "no such capability or method, or a rule forbids it",
  revoked: "the host took the capability back",
  expired: "the capability was granted for a time that is over",
  budget: "the budget of calls or bytes is used up",
  rate: "too many calls in too short a time",
  quota: "the store is full",
  "not-found": "there is no such thing",
  conflict: "it was changed by somebody else, or exists already",
  timeout: "it took too long",
  "too-large": "an argument or the answer is over its limit of bytes",
  unavailable: "the other side cannot be reached",
  failed: "the capability failed; the host knows why",
} as const;

export type CapabilityErrorCode = keyof typeof CAPABILITY_ERRORS;

/** Its message and code reach the guest as they are: no host path, address or stack may stand in them. */
export class CapabilityError extends Error {
  override readonly name = "CapabilityError";
  constructor(
    readonly code: CapabilityErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/**
 * Its code and message, if it is a CapabilityError whose parts are what they should be; undefined for whatever else a
 * handler threw, which may be a proxy that does not even let itself be looked at.
 */
export function asCapabilityError(
  thrown: unknown,
): Pick<CapabilityError, "code" | "message" | "cause"> | undefined {
  try {
    if (!(thrown instanceof CapabilityError)) return undefined;
    const { code, message, cause } = thrown;
    return Object.hasOwn(CAPABILITY_ERRORS, code) && typeof message === "string"
      ? { code, message, cause }
      : undefined;
  } catch {
    return undefined; // a getter of the handler's threw: no error of ours
  }
}

/** One run, as capabilities see it. The same object for all calls of the run: state by run hangs on it. */
export interface RunContext {
  readonly id: string;
  readonly tenant: string;
  /** Aborts when the run is over. */
  readonly signal: AbortSignal;
  /** Milliseconds since the run began, by a monotonic clock. */
  elapsedMs(): number;
}

/** What an audit line may hold besides the decision: short facts, never a secret. */
export type AuditDetail = Readonly<Record<string, string | number | boolean>>;

/** One call under way. */
export interface Call {
  readonly run: RunContext;
  /** How the guest and the audit know the capability: "kv". */
  readonly label: string;
  readonly method: string;
  /** Of the arguments, as they came over the wire. */
  readonly argumentBytes: number;
  /** Largest answer, in bytes as the codec writes it. */
  readonly maxAnswerBytes: number;
  /** Aborts when the call is cancelled, over its deadline, or the run ends. Made when first asked for. */
  readonly signal: AbortSignal;
  /** Counts bytes that the act moves. Throws CapabilityError `budget` when a budget above is used up. */
  charge(bytes: number): void;
  /** `meter` hears of the arguments' bytes at once and of every charge from now on, the answer's included. What it throws fails the call. */
  meter(meter: (bytes: number) => void): void;
  /** The last thing before the act: every guard has let the call pass. Writes the audit line, and throws if that fails. */
  admit(detail: AuditDetail): void;
  /** Adds to the audit line of this call. */
  note(detail: AuditDetail): void;
  /** Fails the call with this error now, whatever the handler does later. */
  cancel(error: CapabilityError): void;
  /** Called once when the call is over, however. */
  onEnd(listener: () => void): void;
}

/** A function of the guest's. Lives until the call that brought it ends, unless kept. */
export interface GuestFunction {
  /** Resolves to what the guest answered; rejects with GuestError if it threw, CapabilityError if it can be called no more. */
  (...args: unknown[]): Promise<unknown>;
  /** Keeps it beyond the call; then the keeper releases it. The guest is not taken for idle meanwhile. */
  keep(): GuestFunction;
  /** Lets the guest forget it. Idempotent. */
  release(): void;
}

/** What a guest's function threw: guest text. */
export class GuestError extends Error {
  override readonly name = "GuestError";
}

const guestFunctions = new WeakSet<object>();
/** The broker's: marks what it made. */
export function asGuestFunction(f: GuestFunction): GuestFunction {
  guestFunctions.add(f);
  return f;
}
export const isGuestFunction = (value: unknown): value is GuestFunction =>
  typeof value === "function" && guestFunctions.has(value);

/** Schema of a callback parameter. `ts` is its type in the `.d.ts`. Throws TypeError if that is no text. */
export function callback(ts = "(...args: any[]) => any"): z.ZodType<GuestFunction> {
  if (typeof ts !== "string" || ts.trim() === "") {
    throw new TypeError(
      'callback: takes the type of the function as text, such as "(line: string) => void", or nothing',
    );
  }
  return z.custom<GuestFunction>(isGuestFunction, "must be a function").meta({ ts });
}

/** Schema of bytes, at most `max` of them. Throws TypeError if that is no number of bytes. */
export function bytes(max?: number): z.ZodType<Uint8Array> {
  const fault = max === undefined ? undefined : wholeNumber(0)(max);
  if (fault !== undefined) throw new TypeError(`bytes: max ${fault}`);
  return z
    .custom<Uint8Array>((value) => value instanceof Uint8Array, "must be a Uint8Array")
    .refine((value) => max === undefined || value.byteLength <= max, `must be at most ${max} bytes`)
    .meta({ ts: "Uint8Array" });
}

/** `read` leaves the world as it was. */
export type Effect = "read" | "write";
export type Params = Readonly<Record<string, z.ZodType>>;
export type ArgsOf<P extends Params> = { [K in keyof P]: z.output<P[K]> };

export interface Method<P extends Params = Params> {
  /** One sentence for whoever writes a script; it stands in the `.d.ts`. */
  doc: string;
  /** By position, in the order written. Trailing ones may be optional. */
  params: P;
  /** Of the answer, for the `.d.ts`; the answer is the handler's and is not checked. */
  returns?: z.ZodType;
  effect: Effect;
  /** Deadline of one call, ms; 30000 if absent. The run's own limits come first. */
  timeoutMs?: number;
  /** What the audit line says of the arguments; nothing if absent, for they may be secret. */
  audit?(this: void, args: ArgsOf<P>): AuditDetail;
  /** The act. May return any value that can cross, or other capabilities. */
  run(this: void, args: ArgsOf<P>, call: Call): unknown;
}

/** Infers a method's argument types. Throws TypeError naming what the definition lacks. */
export const method = <P extends Params>(definition: Method<P>): Method =>
  checkMethod("method", definition as unknown as Method);

/** What setTimeout(3) takes: a longer one would be over at once. */
export const MAX_TIMEOUT_MS = 2 ** 31 - 1;

const METHOD: Checks<Method> = {
  doc: needed((value) => (typeof value === "string" ? undefined : "must say in a sentence what it does")),
  params: needed((value) => {
    const entries = isPlainObject(value) ? Object.entries(value) : undefined;
    if (entries === undefined) return "must be an object of zod schemas by name: {} for no parameters";
    for (const [name, schema] of entries) {
      if (!isName(name)) return `has "${name}", which cannot be a parameter's name`;
      if (!isSchema(schema)) return `has "${name}", which is no zod 4 schema: write z.string() or the like`;
    }
    return undefined;
  }),
  returns: (value) => (isSchema(value) ? undefined : "must be a zod 4 schema"),
  effect: needed(oneOf("read", "write")),
  timeoutMs: wholeNumber(1, MAX_TIMEOUT_MS),
  audit: aFunction("of the arguments that returns short facts"),
  run: needed(aFunction("that does the act")),
};

const checkMethod = (who: string, definition: Method): Method => checkOptions(who, definition, METHOD);

/** Of any copy of zod 4; those of zod 3 can be asked for no type. */
const isSchema = (value: unknown): boolean =>
  typeof value === "object" &&
  value !== null &&
  "_zod" in value &&
  typeof (value as { safeParse?: unknown }).safeParse === "function";

/** Of methods and parameters. "then" would make a promise of what has it (ECMA-262, 27.2.1.3.2). */
const isName = (name: string): boolean =>
  /^[A-Za-z_$][\w$]{0,63}$/.test(name) && name !== "then" && !(name in Object.prototype);

type Args = Readonly<Record<string, unknown>>;
type Invoke = (name: string, args: Args, call: Call) => unknown;
/** Runs before `next` and may throw, change nothing, or call `call`'s hooks. */
export type Guard = (name: string, args: Args, call: Call, next: () => unknown) => unknown;

export const DEFAULT_TIMEOUT_MS = 30_000;

interface CapabilityParts {
  name: string;
  methods: ReadonlyMap<string, Method>;
  invoke: Invoke;
  callable?: boolean;
  bounds?: readonly string[];
  close?: ((run: RunContext) => void) | undefined;
}

const text: (most: number) => Check = (most) => (value) =>
  typeof value === "string" && value !== "" && value.length <= most && !/\p{Cc}/u.test(value)
    ? undefined
    : `must be a text of 1 to ${most} characters, none of them a control character`;

const KIND = text(64);
const BOUNDS: Check = (value) =>
  Array.isArray(value) && value.every((words) => typeof words === "string")
    ? undefined
    : "must be a list of texts";
const CLOSE = aFunction("of a run that is over");

const PARTS: Checks<CapabilityParts> = {
  name: needed(KIND),
  methods: needed((value) => {
    if (!(value instanceof Map)) return "must be a Map of methods by name; capability() takes an object";
    for (const [name, definition] of value as Map<unknown, Method>) {
      if (typeof name !== "string" || !isName(name))
        return `has "${String(name)}", which cannot be a method's name`;
      checkMethod(`method ${name}`, definition);
    }
    return undefined;
  }),
  invoke: needed(aFunction("that calls a method")),
  callable: (value) => (typeof value === "boolean" ? undefined : "must be true or false"),
  bounds: BOUNDS,
  close: CLOSE,
};

export class Capability {
  /** Kind: "kv". Under which name a run knows it is the grant's matter. */
  readonly name: string;
  readonly methods: ReadonlyMap<string, Method>;
  /** A function rather than an object: its only method is "call". */
  readonly callable: boolean;
  readonly #invoke: Invoke;
  readonly #close: ((run: RunContext) => void) | undefined;
  /** How it was weakened, in words, strongest first: for `explain` and the audit. */
  readonly bounds: readonly string[];

  /** Throws TypeError naming the option that is wrong. `capability()` is the way to define one. */
  constructor(options: CapabilityParts) {
    checkOptions("Capability", options, PARTS);
    this.name = options.name;
    this.methods = options.methods;
    this.callable = options.callable ?? false;
    this.bounds = Object.freeze([...(options.bounds ?? [])]);
    this.#invoke = options.invoke;
    this.#close = options.close;
    Object.freeze(this);
  }

  /**
   * The arguments by name. `label` is for messages. Throws CapabilityError: `denied` for a method that it has not,
   * `bad-argument` naming the parameter.
   */
  parse(label: string, name: string, positional: readonly unknown[]): Args {
    const known = this.methods.get(name);
    const shown = this.callable ? label : `${label}.${name}`;
    if (known === undefined) throw new CapabilityError("denied", "there is no such capability or method");
    const names = Object.keys(known.params);
    if (positional.length > names.length) {
      const most = names.length === 0 ? "no arguments" : `at most ${names.length} (${names.join(", ")})`;
      throw new CapabilityError("bad-argument", `${shown} takes ${most}`);
    }
    const args: Record<string, unknown> = {};
    for (const [at, param] of names.entries()) {
      const result = (known.params[param] as z.ZodType).safeParse(positional[at]);
      if (result.success) {
        args[param] = result.data;
        continue;
      }
      const [issue] = result.error.issues;
      const where = [param, ...(issue?.path ?? [])].map(String).join(".");
      throw new CapabilityError("bad-argument", `${shown}: ${where}: ${issue?.message ?? "not accepted"}`);
    }
    return args;
  }

  /** Only the broker calls it, with arguments from `parse`. Returns or throws what the handler does. */
  invoke(name: string, args: Args, call: Call): unknown {
    return this.#invoke(name, args, call);
  }

  /** The broker's: the run is over. */
  close(run: RunContext): void {
    this.#close?.(run);
  }

  /**
   * A weaker one: each call passes `guard` first. `bound` says in words what it forbids. Throws TypeError for what is no
   * guard, and for methods that this one has not.
   */
  guarded(bound: string, guard: Guard, methods: ReadonlyMap<string, Method> = this.methods): Capability {
    const fault = words(bound);
    if (fault !== undefined) throw new TypeError(`guarded: the first argument ${fault}`);
    if (typeof guard !== "function") {
      throw new TypeError(
        `guarded: the second argument must be a function that guards, not ${kindOf(guard)}`,
      );
    }
    if (!(methods instanceof Map)) throw new TypeError("guarded: methods must be a Map of methods by name");
    for (const name of (methods as ReadonlyMap<string, Method>).keys()) {
      if (!this.methods.has(name)) throw this.#hasNo("guarded", name);
    }
    return new Capability({
      name: this.name,
      methods,
      callable: this.callable,
      bounds: [...this.bounds, bound],
      invoke: (name, args, call) => guard(name, args, call, () => this.#invoke(name, args, call)),
      close: (run) => this.close(run),
    });
  }

  #hasNo(who: string, name: string): TypeError {
    const known = [...this.methods.keys()].join(", ");
    return new TypeError(`${who}: ${this.name} has no method "${name}"; it has ${known}`);
  }

  /** Only these methods. Throws TypeError for none, and for a method that it has not. */
  only(...names: string[]): Capability {
    const kept = new Map<string, Method>();
    if (names.length === 0) throw new TypeError('only: name at least one method: only("get", "list")');
    for (const name of names) {
      if (typeof name !== "string") {
        throw new TypeError(`only: takes names, only("get", "list"), and got ${kindOf(name)}`);
      }
      const known = this.methods.get(name);
      if (known === undefined) throw this.#hasNo("only", name);
      kept.set(name, known);
    }
    return this.guarded(`only ${names.join(", ")}`, permit, kept);
  }

  /** Only the methods that leave the world as it was. Throws TypeError if it has none. */
  readOnly(): Capability {
    const reading = [...this.methods].filter(([, { effect }]) => effect === "read");
    if (reading.length === 0) {
      throw new TypeError(
        `readOnly: it leaves nothing of ${this.name}: every method changes something; do not grant it`,
      );
    }
    return this.guarded("read-only", permit, new Map(reading));
  }

  /**
   * For each run at most so many calls, and so many bytes in arguments, answers and what the act itself moves. Throws
   * TypeError where it would bound nothing.
   */
  budget(most: { calls?: number; bytes?: number }): Capability {
    checkOptions("budget", most, { calls: wholeNumber(1), bytes: wholeNumber(1) });
    const { calls = Infinity, bytes: most_ = Infinity } = most;
    if (calls === Infinity && most_ === Infinity) {
      throw new TypeError("budget: must bound calls, bytes or both: budget({ calls: 100 })");
    }
    const spent = new WeakMap<RunContext, { calls: number; bytes: number }>();
    const parts = [
      calls === Infinity ? "" : `${calls} calls`,
      most_ === Infinity ? "" : `${most_} bytes`,
    ].filter((word) => word !== "");
    return this.guarded(`at most ${parts.join(" and ")} a run`, (_name, _args, call, next) => {
      const used = stateOf(spent, call.run, () => ({ calls: 0, bytes: 0 }));
      if (used.calls >= calls) {
        throw new CapabilityError("budget", `${call.label}: the budget of ${calls} calls is used up`);
      }
      used.calls++;
      call.meter((count) => {
        used.bytes += count;
        if (used.bytes > most_) {
          throw new CapabilityError("budget", `${call.label}: the budget of ${most_} bytes is used up`);
        }
      });
      return next();
    });
  }

  /**
   * For each run at most `calls` in any `perMs` milliseconds (a token bucket: a burst of `calls`, then evenly). Throws
   * TypeError for what is no rate.
   */
  rate(calls: number, perMs: number): Capability {
    if (!isNumberFrom(calls, 1))
      throw new TypeError("rate: calls must be a number of at least 1: rate(5, 1000)");
    if (!isNumberFrom(perMs, Number.MIN_VALUE)) {
      throw new TypeError("rate: perMs must be a number of milliseconds over 0: rate(5, 1000)");
    }
    const buckets = new WeakMap<RunContext, { tokens: number; at: number }>();
    return this.guarded(`at most ${calls} calls in ${perMs} ms`, (_name, _args, call, next) => {
      const now = call.run.elapsedMs();
      const bucket = stateOf(buckets, call.run, () => ({ tokens: calls, at: now }));
      bucket.tokens = Math.min(calls, bucket.tokens + ((now - bucket.at) * calls) / perMs);
      bucket.at = now;
      if (bucket.tokens < 1) {
        const waitMs = Math.ceil(((1 - bucket.tokens) * perMs) / calls);
        throw new CapabilityError("rate", `${call.label}: too many calls; the next in ${waitMs} ms`);
      }
      bucket.tokens--;
      return next();
    });
  }

  /** Until a moment, or for so many milliseconds of each run. Calls under way at that time go on. Throws TypeError for no time. */
  expires(when: Date | { afterMs: number }): Capability {
    if (when instanceof Date) {
      const end = when.getTime(); // a Date can be changed
      if (Number.isNaN(end)) throw new TypeError("expires: the Date is not valid");
      return this.#until(`until ${when.toISOString()}`, () => Date.now() >= end);
    }
    const { afterMs } = checkOptions("expires", when, { afterMs: needed(AFTER) });
    return this.#until(`for the first ${afterMs} ms`, ({ run }) => run.elapsedMs() >= afterMs);
  }

  #until(bound: string, over: (call: Call) => boolean): Capability {
    return this.guarded(bound, (_name, _args, call, next) => {
      if (over(call))
        throw new CapabilityError("expired", `${call.label}: the time it was granted for is over`);
      return next();
    });
  }

  /**
   * Only calls that `rule` accepts: true, or the reason that the guest is told. `bound` says the rule in words. Whatever
   * else it returns, a promise of true too, refuses the call. Throws TypeError for what is no rule.
   */
  where(bound: string, rule: (method: string, args: Args) => true | string): Capability {
    const fault = words(bound);
    if (fault !== undefined) throw new TypeError(`where: the first argument ${fault}`);
    if (typeof rule !== "function") {
      throw new TypeError(
        `where: the second argument must be a function that returns true or the reason why not, not ${kindOf(rule)}`,
      );
    }
    return this.guarded(bound, (name, args, call, next) => {
      const verdict: unknown = rule(name, args);
      if (verdict === true) return next();
      const why = typeof verdict === "string" && verdict !== "" ? verdict : "a rule forbids that call";
      throw new CapabilityError("denied", `${call.label}: ${why}`);
    });
  }
}

const isNumberFrom = (value: unknown, least: number): value is number =>
  typeof value === "number" && value >= least && value < Infinity;
const AFTER: Check = (value) =>
  isNumberFrom(value, 0) ? undefined : "must be a number of milliseconds, 0 or more";
/** Of a bound. */
const words: Check = (value) =>
  typeof value === "string" && value.trim() !== "" ? undefined : "must say in words what it forbids";

const permit: Guard = (_name, _args, _call, next) => next();

/** State by run; gone with it. */
export function stateOf<S>(states: WeakMap<RunContext, S>, run: RunContext, make: () => S): S {
  let state = states.get(run);
  if (state === undefined) states.set(run, (state = make()));
  return state;
}

export interface CapabilityOptions {
  /** Called when a run that was handed it is over. */
  close?: (run: RunContext) => void;
  /** How it is bounded from the start, in words. */
  bounds?: readonly string[];
}

/**
 * Defines a capability: `capability("weather", { today: method({ ... }) })`. Throws TypeError for a name that no guest
 * could call, for a method that lacks something, and for an option that there is not.
 */
export function capability(
  name: string,
  methods: Readonly<Record<string, Method>>,
  options: CapabilityOptions = {},
): Capability {
  const fault = KIND(name);
  if (fault !== undefined) throw new TypeError(`capability: the name ${fault}`);
  if (!isPlainObject(methods)) {
    throw new TypeError(`capability ${name}: takes an object of methods by name, and got ${kindOf(methods)}`);
  }
  checkOptions(`capability ${name}`, options, { close: CLOSE, bounds: BOUNDS });
  const table = new Map(Object.entries(methods));
  for (const [key, definition] of table) {
    if (!isName(key)) throw new TypeError(`capability ${name}: "${key}" cannot be a method's name`);
    checkMethod(`capability ${name}: ${key}`, definition);
  }
  return new Capability({ name, methods: table, invoke: direct(table), ...options });
}

/**
 * A function of the host's that a guest may call: what a handler returns where the guest needs a plain function. Throws
 * TypeError naming what the definition lacks.
 */
export function hostFunction(definition: Method): Capability {
  const table = new Map([["call", checkMethod("hostFunction", definition)]]);
  return new Capability({ name: "function", methods: table, invoke: direct(table), callable: true });
}

const direct =
  (table: ReadonlyMap<string, Method>): Invoke =>
  (name, args, call) => {
    const { run, audit } = table.get(name) as Method; // parse has seen to it
    call.admit(audit?.(args) ?? {});
    return run(args, call);
  };

export interface Caretaker {
  /** What to grant. */
  readonly capability: Capability;
  /** Takes it back, in every run, now: calls under way fail with `revoked`. */
  revoke(): void;
  /**
   * Puts a weaker one in its place, from the next call on: `(now) => now.readOnly()`. Throws TypeError for what is no
   * function or gives no capability; all stays as it was then.
   */
  weaken(change: (now: Capability) => Capability): void;
}

/** A revocable forwarder (Redell 1974): hand out `capability`, keep the rest. Throws TypeError for what is no capability. */
export function caretaker(target: Capability): Caretaker {
  checkCapability("caretaker", target);
  let now: Capability | undefined = target;
  const active = new Set<Call>();
  const capability_ = target.guarded("revocable", (name, args, call) => {
    if (now === undefined) throw new CapabilityError("revoked", `${call.label}: it was taken back`);
    if (!now.methods.has(name)) throw new CapabilityError("denied", "there is no such capability or method");
    active.add(call);
    call.onEnd(() => active.delete(call));
    return now.invoke(name, args, call);
  });
  return {
    capability: capability_,
    revoke() {
      now = undefined;
      for (const call of active)
        call.cancel(new CapabilityError("revoked", `${call.label}: it was taken back`));
    },
    weaken(change) {
      if (typeof change !== "function") {
        throw new TypeError("weaken: takes a function: weaken((now) => now.readOnly())");
      }
      if (now !== undefined) now = checkCapability("weaken: the function's result", change(now));
    },
  };
}

/** `given`, if it is a capability. Throws TypeError. */
export function checkCapability(who: string, given: Capability): Capability {
  if (given instanceof Capability) return given;
  throw new TypeError(
    `${who}: must be a capability, such as kv() or capability() makes, not ${kindOf(given)}`,
  );
}
