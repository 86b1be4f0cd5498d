/**
 * Events and aborting (DOM Standard sections 2 and 3), for targets that have no parents: there is no tree, so nothing
 * bubbles. One file, since each knows the other: a signal is an event target, and a listener may end with a signal.
 * What a listener throws is reported as an uncaught error and stops no other listener.
 */
import { DOMException } from "./dom-exception.js";
import { dictionary, domString, dress, need } from "./realm.js";

export interface EventPowers {
  /** The guest's clock, ms. */
  now(): number;
  setTimeout(run: () => void, ms: number): unknown;
}

export type Events = ReturnType<typeof makeEvents>;
/** What other parts need of a signal. */
export interface Abortable {
  readonly aborted: boolean;
  readonly reason: unknown;
}

interface Listener {
  readonly type: string;
  readonly callback: object;
  readonly capture: boolean;
  readonly once: boolean;
  readonly passive: boolean;
  removed: boolean;
}

const PHASES = { NONE: 0, CAPTURING_PHASE: 1, AT_TARGET: 2, BUBBLING_PHASE: 3 };

function call(callback: object, target: object, event: object): void {
  if (typeof callback === "function") {
    Reflect.apply(callback as (event: object) => void, target, [event]);
    return;
  }
  const { handleEvent } = callback as { handleEvent?: unknown };
  if (typeof handleEvent !== "function") {
    throw new TypeError("an event listener must be a function or have a method handleEvent");
  }
  Reflect.apply(handleEvent as (event: object) => void, callback, [event]);
}

function flatten(options: unknown): Record<string, unknown> {
  return typeof options === "boolean"
    ? { capture: options }
    : dictionary(options, "the options of a listener");
}

// oxlint-disable typescript/no-useless-default-assignment -- the default keeps the parameter out of `length`
// oxlint-disable prefer-rest-params -- how many arguments there were is the question, and `length` must stay
export function makeEvents({ now, setTimeout }: EventPowers) {
  /** An uncaught error of a timer: the engine ends the run with it, as it does with any other. */
  const report = (error: unknown): void =>
    void setTimeout(() => {
      throw error;
    }, 0);

  // Doors into the classes' private parts, opened by their static blocks.
  let run: (event: Event, target: EventTarget, listeners: readonly Listener[]) => boolean;
  let trust: (event: Event) => void;
  let fire: (target: EventTarget, event: Event) => void;
  let remove: (target: EventTarget, listener: Listener) => void;
  let createSignal: () => AbortSignal;
  let abortSignal: (signal: AbortSignal, reason: unknown) => void;
  let isSignal: (value: unknown) => value is AbortSignal;
  let whenAborted: (signal: AbortSignal, run: () => void) => () => void;

  class Event {
    readonly #type: string;
    readonly #bubbles: boolean;
    readonly #cancelable: boolean;
    readonly #composed: boolean;
    readonly #timeStamp = now();
    #target: EventTarget | null = null;
    #current: EventTarget | null = null;
    #dispatching = false;
    #canceled = false;
    #stopped = false;
    #stoppedNow = false;
    #passive = false;
    #trusted = false;

    constructor(type: unknown, init: unknown = undefined) {
      need(1, arguments, "Event");
      this.#type = domString(type);
      const { bubbles, cancelable, composed } = dictionary(init, "Event: the second argument");
      this.#bubbles = Boolean(bubbles);
      this.#cancelable = Boolean(cancelable);
      this.#composed = Boolean(composed);
    }
    get type(): string {
      return this.#type;
    }
    get target(): EventTarget | null {
      return this.#target;
    }
    get srcElement(): EventTarget | null {
      return this.#target;
    }
    get currentTarget(): EventTarget | null {
      return this.#current;
    }
    get eventPhase(): number {
      return this.#dispatching ? PHASES.AT_TARGET : PHASES.NONE;
    }
    get bubbles(): boolean {
      return this.#bubbles;
    }
    get cancelable(): boolean {
      return this.#cancelable;
    }
    get composed(): boolean {
      return this.#composed;
    }
    get defaultPrevented(): boolean {
      return this.#canceled;
    }
    get returnValue(): boolean {
      return !this.#canceled;
    }
    set returnValue(value: unknown) {
      if (!value) this.preventDefault();
    }
    get cancelBubble(): boolean {
      return this.#stopped;
    }
    set cancelBubble(value: unknown) {
      if (value) this.#stopped = true;
    }
    get isTrusted(): boolean {
      return this.#trusted;
    }
    get timeStamp(): number {
      return this.#timeStamp;
    }
    composedPath(): EventTarget[] {
      return this.#current === null ? [] : [this.#current];
    }
    preventDefault(): void {
      if (this.#cancelable && !this.#passive) this.#canceled = true;
    }
    stopPropagation(): void {
      this.#stopped = true;
    }
    stopImmediatePropagation(): void {
      this.#stopped = true;
      this.#stoppedNow = true;
    }

    static {
      run = (event, target, listeners) => {
        if (event.#dispatching) {
          throw new DOMException("the event is already being dispatched", "InvalidStateError");
        }
        event.#dispatching = true;
        event.#target = target;
        event.#current = target;
        // Those that capture come first, at the target too. `listeners` is never changed in place: one that is added
        // meanwhile is not called, one that is removed knows it.
        for (const capture of [true, false]) {
          if (event.#stopped) break;
          for (const listener of listeners) {
            if (listener.capture !== capture || listener.type !== event.#type || listener.removed) continue;
            if (listener.once) remove(target, listener);
            event.#passive = listener.passive;
            try {
              call(listener.callback, target, event);
            } catch (error) {
              report(error);
            }
            event.#passive = false;
            if (event.#stoppedNow) break;
          }
        }
        event.#current = null;
        event.#dispatching = false;
        event.#stopped = false;
        event.#stoppedNow = false;
        return !event.#canceled;
      };
      trust = (event) => void (event.#trusted = true);
    }
  }
  dress(Event, "Event", PHASES);

  class CustomEvent extends Event {
    readonly #detail: unknown;
    constructor(type: unknown, init: unknown = undefined) {
      need(1, arguments, "CustomEvent");
      super(type, init);
      this.#detail = dictionary(init, "CustomEvent: the second argument").detail ?? null;
    }
    get detail(): unknown {
      return this.#detail;
    }
  }
  dress(CustomEvent, "CustomEvent");

  class EventTarget {
    #listeners: readonly Listener[] = [];

    addEventListener(type: unknown, callback: unknown, options: unknown = undefined): void {
      need(2, arguments, "EventTarget.addEventListener");
      const { capture, once, passive, signal } = flatten(options);
      if (signal !== undefined && !isSignal(signal)) {
        throw new TypeError("EventTarget.addEventListener: options.signal must be an AbortSignal");
      }
      const listener: Listener = {
        type: domString(type),
        callback: callback as object,
        capture: Boolean(capture),
        once: Boolean(once),
        passive: Boolean(passive),
        removed: false,
      };
      if (callback === null || callback === undefined || signal?.aborted === true) return;
      if (typeof callback !== "object" && typeof callback !== "function") {
        throw new TypeError("EventTarget.addEventListener: the listener must be a function or an object");
      }
      if (this.#find(listener.type, callback, listener.capture) !== undefined) return;
      this.#listeners = [...this.#listeners, listener];
      if (signal !== undefined) whenAborted(signal, () => remove(this, listener));
    }
    removeEventListener(type: unknown, callback: unknown, options: unknown = undefined): void {
      need(2, arguments, "EventTarget.removeEventListener");
      const listener = this.#find(domString(type), callback, Boolean(flatten(options).capture));
      if (listener !== undefined) remove(this, listener);
    }
    dispatchEvent(event: Event): boolean {
      if (!(event instanceof Event)) {
        throw new TypeError("EventTarget.dispatchEvent: the argument must be an Event");
      }
      return run(event, this, this.#listeners);
    }

    #find(type: string, callback: unknown, capture: boolean): Listener | undefined {
      return this.#listeners.find(
        (one) => one.type === type && one.callback === callback && one.capture === capture,
      );
    }

    static {
      remove = (target, listener) => {
        listener.removed = true;
        target.#listeners = target.#listeners.filter((one) => one !== listener);
      };
      fire = (target, event) => {
        trust(event);
        run(event, target, target.#listeners);
      };
    }
  }
  dress(EventTarget, "EventTarget");

  /** Only to be made by us: the constructor asks for it. */
  const OURS = {};

  class AbortSignal extends EventTarget {
    #aborted = false;
    #reason: unknown = undefined;
    /** What an abort does before its event, in order of registration. */
    readonly #steps = new Set<() => void>();
    /** Signals of `any` that end with this one; never themselves ones that are followed. */
    readonly #dependents = new Set<AbortSignal>();
    /** Of a signal of `any`: the ones it follows, none of which follows another. */
    #sources: AbortSignal[] | undefined;
    #handler: unknown = null;
    #handlerListens = false;

    constructor(ours: unknown = undefined) {
      if (ours !== OURS) throw new TypeError("AbortSignal cannot be constructed: use an AbortController");
      super();
    }
    get aborted(): boolean {
      return this.#aborted;
    }
    get reason(): unknown {
      return this.#reason;
    }
    throwIfAborted(): void {
      if (this.#aborted) throw this.#reason;
    }
    get onabort(): unknown {
      return this.#handler;
    }
    set onabort(handler: unknown) {
      this.#handler = typeof handler === "function" || typeof handler === "object" ? handler : null;
      if (this.#handlerListens || this.#handler === null) return;
      this.#handlerListens = true;
      this.addEventListener("abort", (event: Event) => {
        if (typeof this.#handler === "function") call(this.#handler, this, event);
      });
    }
    static abort(reason: unknown = undefined): AbortSignal {
      const signal = createSignal();
      signal.#aborted = true;
      signal.#reason =
        reason === undefined ? new DOMException("This operation was aborted", "AbortError") : reason;
      return signal;
    }
    static timeout(milliseconds: unknown): AbortSignal {
      need(1, arguments, "AbortSignal.timeout");
      const ms = Math.trunc(Number(milliseconds));
      if (!(ms >= 0 && ms <= Number.MAX_SAFE_INTEGER)) {
        throw new TypeError(
          "AbortSignal.timeout: the argument must be a number of milliseconds, not negative",
        );
      }
      const signal = createSignal();
      setTimeout(() => {
        abortSignal(signal, new DOMException("The operation was aborted due to timeout", "TimeoutError"));
      }, ms);
      return signal;
    }
    static any(signals: Iterable<unknown>): AbortSignal {
      need(1, arguments, "AbortSignal.any");
      const given = [...signals].map((signal) => {
        if (isSignal(signal)) return signal;
        throw new TypeError("AbortSignal.any: every item must be an AbortSignal");
      });
      const result = createSignal();
      const aborted = given.find((signal) => signal.#aborted);
      if (aborted !== undefined) {
        result.#aborted = true;
        result.#reason = aborted.#reason;
        return result;
      }
      result.#sources = given.flatMap((signal) => signal.#sources ?? [signal]);
      for (const source of result.#sources) source.#dependents.add(result);
      return result;
    }

    static {
      createSignal = () => new AbortSignal(OURS);
      isSignal = (value): value is AbortSignal =>
        typeof value === "object" && value !== null && #aborted in value;
      abortSignal = (signal, reason) => {
        if (signal.#aborted) return;
        const ending = [signal];
        for (const dependent of signal.#dependents) if (!dependent.#aborted) ending.push(dependent);
        // All are aborted before the first of the guest's listeners can look at one.
        for (const one of ending) {
          one.#aborted = true;
          one.#reason = reason;
        }
        for (const one of ending) {
          for (const step of one.#steps) step();
          one.#steps.clear();
          for (const source of one.#sources ?? []) source.#dependents.delete(one);
          fire(one, new Event("abort"));
        }
        signal.#dependents.clear();
      };
      whenAborted = (signal, step) => {
        signal.#steps.add(step);
        return () => void signal.#steps.delete(step);
      };
    }
  }
  dress(AbortSignal, "AbortSignal");

  class AbortController {
    readonly #signal = createSignal();
    get signal(): AbortSignal {
      return this.#signal;
    }
    abort(reason: unknown = undefined): void {
      const why =
        reason === undefined ? new DOMException("This operation was aborted", "AbortError") : reason;
      abortSignal(this.#signal, why);
    }
  }
  dress(AbortController, "AbortController");

  return {
    classes: { Event, CustomEvent, EventTarget, AbortSignal, AbortController },
    /** For those who take a signal as an argument. */
    signals: {
      is: isSignal!,
      /** Runs `step` once if `signal` aborts, before its listeners. The result takes it back. */
      whenAborted: whenAborted!,
      any: AbortSignal.any,
    },
  };
}
