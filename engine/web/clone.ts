/**
 * structuredClone (HTML section 2.7). Within one realm, so serialization and deserialization are one walk; cycles and
 * shared parts stay what they are. A value is told by its internal slots, never by its class. Objects of the web
 * platform cannot be cloned, but for DOMException; of what can be transferred there is only ArrayBuffer.
 *
 * The walk is as deep as the value: too deep a value ends in the engine's stack overflow, which is its limit.
 */
import { DOMException, isDOMException } from "./dom-exception.js";
import {
  bytesOf,
  copyOf,
  dictionary,
  has,
  isArrayBuffer,
  isDataView,
  need,
  put,
  typedName,
  uncurry,
} from "./realm.js";

const { isArray } = Array;
const { getPrototypeOf, hasOwn, keys } = Object;
const tagOf = uncurry(Object.prototype.toString);
const valueOf = {
  boolean: uncurry(Boolean.prototype.valueOf),
  number: uncurry(Number.prototype.valueOf),
  string: uncurry(String.prototype.valueOf),
  bigint: uncurry(BigInt.prototype.valueOf),
  symbol: uncurry(Symbol.prototype.valueOf),
} as unknown as Record<"boolean" | "number" | "string" | "bigint" | "symbol", (value: object) => unknown>;
const getTime = uncurry(Date.prototype.getTime) as (value: object) => number;
const getter = (owner: object, name: string) =>
  uncurry(Object.getOwnPropertyDescriptor(owner, name)?.get as (this: object) => unknown);
const source = getter(RegExp.prototype, "source");
const mapSize = getter(Map.prototype, "size");
const setSize = getter(Set.prototype, "size");
const mapForEach = uncurry(Map.prototype.forEach) as (
  map: object,
  run: (value: unknown, key: unknown) => void,
) => void;
const setForEach = uncurry(Set.prototype.forEach) as (set: object, run: (value: unknown) => void) => void;
const weak = [uncurry(WeakMap.prototype.has), uncurry(WeakSet.prototype.has)] as unknown as ((
  value: object,
  key: object,
) => boolean)[];
const deref = uncurry(WeakRef.prototype.deref) as (value: object) => unknown;
const resizable = getter(ArrayBuffer.prototype, "resizable");
const maxByteLength = getter(ArrayBuffer.prototype, "maxByteLength");
/** No view can be made of a detached buffer (ECMA-262 section 23.2.5.1.3): not every V8 has the `detached` getter. */
const isDetached = (buffer: ArrayBuffer): boolean => !has(() => new Uint8Array(buffer), buffer);
/** V8 before 11.4 has none, and nothing else that detaches. */
const { transfer: transferMethod } = ArrayBuffer.prototype as {
  transfer?: (this: ArrayBuffer) => ArrayBuffer;
};
const transferTo = transferMethod && uncurry(transferMethod);
const ErrorCtor = Error as typeof Error & { isError?: (value: unknown) => boolean };
const isErrorSlot = ErrorCtor.isError;

/** The engine's own kinds that have slots of their own and no method that only looks for them. */
const UNCLONEABLE =
  /^(?:Promise|FinalizationRegistry|(?:Async)?Generator|Iterator Helper|(?:Array|Map|Set|String|RegExp String) Iterator)$/;
const ERRORS = new Map<string, ErrorConstructor>();
for (const one of [EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError])
  ERRORS.set(one.name, one);
const VIEWS = new Map<string, new (buffer: ArrayBuffer, offset: number, length?: number) => object>();
for (const one of Object.values(Object.getOwnPropertyDescriptors(globalThis)).map(
  (d) => d.value as unknown,
)) {
  if (typeof one === "function" && Object.getPrototypeOf(one) === Object.getPrototypeOf(Uint8Array)) {
    VIEWS.set(one.name, one as never);
  }
}

const dataClone = (what: string): DOMException =>
  new DOMException(`${what} could not be cloned`, "DataCloneError");

function isError(value: object): boolean {
  if (isErrorSlot !== undefined) return isErrorSlot(value);
  return tagOf(value) === "[object Error]" || value instanceof Error;
}

export function makeStructuredClone(platformClasses: readonly object[]) {
  const platform = platformClasses.map((one) => (one as { prototype: object }).prototype);
  const isPrototypeOf = uncurry(Object.prototype.isPrototypeOf);

  /** `memory` is what was made for each object of the original, the transferred buffers among them. */
  function clone(value: unknown, memory: Map<object, unknown>): unknown {
    if (typeof value === "symbol") throw dataClone(String(value));
    if (typeof value === "function") throw dataClone(`the function ${value.name}`.trim());
    if (typeof value !== "object" || value === null) return value;
    if (memory.has(value)) return memory.get(value);
    // First what most values are: the questions about slots are asked by catching errors, which is dear.
    if (isArray(value)) {
      const array: unknown[] = [];
      array.length = value.length;
      return cloneOwn(value, array, memory);
    }
    const prototype = getPrototypeOf(value) as unknown;
    if (prototype === Object.prototype || prototype === null) return cloneOwn(value, {}, memory);
    const made = cloneLeaf(value, memory);
    if (made !== undefined) {
      memory.set(value, made);
      return made;
    }
    if (has(mapSize, value)) {
      const map = new Map<unknown, unknown>();
      memory.set(value, map);
      const entries: unknown[] = [];
      mapForEach(value, (item, key) => void entries.push(key, item)); // all first: cloning may run getters
      for (let i = 0; i < entries.length; i += 2)
        map.set(clone(entries[i], memory), clone(entries[i + 1], memory));
      return map;
    }
    if (has(setSize, value)) {
      const set = new Set<unknown>();
      memory.set(value, set);
      const items: unknown[] = [];
      setForEach(value, (item) => void items.push(item));
      for (const item of items) set.add(clone(item, memory));
      return set;
    }
    if (isError(value)) return cloneError(value, memory);
    refuse(value);
    return cloneOwn(value, {}, memory);
  }

  /** Own enumerable string keys; the copy is a plain object, whatever class the original is of. */
  function cloneOwn(value: object, copy: object, memory: Map<object, unknown>): object {
    memory.set(value, copy);
    for (const key of keys(value)) {
      if (hasOwn(value, key)) put(copy, key, clone((value as Record<string, unknown>)[key], memory), true);
    }
    return copy;
  }

  /** What holds no other value; undefined for the rest. */
  function cloneLeaf(value: object, memory: Map<object, unknown>): object | undefined {
    if (isArrayBuffer(value)) return cloneBuffer(value);
    const name = typedName(value);
    if (name !== undefined || isDataView(value)) return cloneView(value as ArrayBufferView, name, memory);
    if (has(getTime, value)) return new Date(getTime(value));
    // The getter answers for RegExp.prototype too, which has no slots.
    if (has(source, value) && value !== RegExp.prototype) {
      return new RegExp(source(value) as string, (value as RegExp).flags);
    }
    for (const [type, unwrap] of Object.entries(valueOf)) {
      if (!has(unwrap, value)) continue;
      if (type === "symbol") throw dataClone("an object that wraps a symbol");
      return Object(unwrap(value)) as object;
    }
    return undefined;
  }

  function cloneBuffer(buffer: ArrayBuffer): ArrayBuffer {
    if (isDetached(buffer)) throw dataClone("a detached ArrayBuffer");
    const bytes = new Uint8Array(buffer);
    if (resizable(buffer) !== true) return copyOf(bytes).buffer;
    const options = { maxByteLength: maxByteLength(buffer) as number };
    const copy = new (ArrayBuffer as new (n: number, o: typeof options) => ArrayBuffer)(
      bytes.length,
      options,
    );
    new Uint8Array(copy).set(bytes);
    return copy;
  }

  /** Views of one buffer become views of one copy. */
  function cloneView(view: ArrayBufferView, name: string | undefined, memory: Map<object, unknown>): object {
    const bytes = bytesOf(view) as Uint8Array<ArrayBuffer>;
    const buffer = memory.get(bytes.buffer) ?? clone(bytes.buffer, memory);
    if (name === undefined) return new DataView(buffer as ArrayBuffer, bytes.byteOffset, bytes.length);
    const View = VIEWS.get(name) as new (b: unknown, offset: number, length: number) => object;
    const { BYTES_PER_ELEMENT } = View as unknown as { BYTES_PER_ELEMENT: number };
    return new View(buffer, bytes.byteOffset, bytes.length / BYTES_PER_ELEMENT);
  }

  function cloneError(value: object, memory: Map<object, unknown>): Error {
    const { name, message, stack } = value as Record<"name" | "message" | "stack", unknown>;
    const own = Object.getOwnPropertyDescriptor(value, "message");
    const text = own === undefined || !("value" in own) ? undefined : String(message);
    const copy = isDOMException(value)
      ? new DOMException(message, name)
      : new (ERRORS.get(String(name)) ?? ErrorCtor)(text);
    memory.set(value, copy);
    if (hasOwn(value, "cause")) put(copy, "cause", clone((value as Error).cause, memory), false);
    put(copy, "stack", typeof stack === "string" ? stack : "", false);
    return copy;
  }

  function refuse(value: object): void {
    const tag = tagOf(value).slice(8, -1);
    const isWeak = weak.some((method) => has((one) => method(one, one), value)) || has(deref, value);
    if (isWeak || UNCLONEABLE.test(tag)) throw dataClone(`a ${tag}`);
    if (platform.some((prototype) => isPrototypeOf(prototype, value))) throw dataClone(`a ${tag}`);
  }

  /**
   * Buffers are moved by a copy, after which the original is detached: a clone that fails must leave them as they were
   * (HTML section 2.7.10: the transfer comes after the serialization), and getters may run only once.
   */
  return {
    structuredClone(...args: [unknown, unknown?]): unknown {
      need(1, args, "structuredClone");
      const { transfer } = dictionary(args[1], "structuredClone: the options");
      const memory = new Map<object, unknown>();
      const moved: ArrayBuffer[] = [];
      for (const buffer of (transfer ?? []) as Iterable<unknown>) {
        if (typeof buffer !== "object" || buffer === null || !isArrayBuffer(buffer)) {
          throw dataClone("a value in transfer that is no ArrayBuffer");
        }
        if (transferTo === undefined) {
          throw new DOMException("this engine cannot transfer an ArrayBuffer: clone it", "DataCloneError");
        }
        if (memory.has(buffer)) throw dataClone("an ArrayBuffer that stands in transfer twice");
        memory.set(buffer, cloneBuffer(buffer));
        moved.push(buffer);
      }
      const result = clone(args[0], memory);
      for (const buffer of moved) if (isDetached(buffer)) throw dataClone("a detached ArrayBuffer");
      for (const buffer of moved) transferTo?.(buffer);
      return result;
    },
  }.structuredClone;
}
