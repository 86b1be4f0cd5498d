/**
 * What the parts share: how a class of the web platform is made to look like one, the conversions of Web IDL, and the
 * primordials that stand between a guest's value and what leaves the realm. Taken when the bundle is evaluated, so
 * before the guest's first word.
 */
const { defineProperty } = Object;
const { ownKeys } = Reflect;
const call = Function.prototype.call;

/** `method` with its `this` as first argument; what becomes of the prototype it came from no longer matters. */
export function uncurry<T, A extends unknown[], R>(method: (this: T, ...args: A) => R) {
  return call.bind(method) as unknown as (self: T, ...args: A) => R;
}

/** An own data property. The descriptor has no prototype: its fields are looked up through inheritance. */
export function put(target: object, key: PropertyKey, value: unknown, enumerable: boolean): void {
  defineProperty(target, key, {
    __proto__: null,
    value,
    enumerable,
    writable: true,
    configurable: true,
  } as PropertyDescriptor);
}

/**
 * Web IDL section 3.7: methods and attributes are enumerable, the class has its name as string tag, constants stand
 * on both. The name is given because the bundle is minified.
 */
// oxlint-disable-next-line typescript/no-unsafe-function-type -- a class: abstract or not, with whatever arguments
export function dress(constructor: Function, name: string, constants: Record<string, number> = {}): void {
  const prototype = constructor.prototype as object;
  const enumerable = { __proto__: null, enumerable: true } as PropertyDescriptor;
  const readOnly = (value: unknown) =>
    ({ __proto__: null, value, enumerable: true }) as unknown as PropertyDescriptor;
  for (const owner of [prototype, constructor]) {
    for (const key of ownKeys(owner)) {
      if (typeof key !== "string" || /^(?:constructor|prototype|length|name)$/.test(key)) continue;
      defineProperty(owner, key, enumerable);
    }
    for (const [key, value] of Object.entries(constants)) defineProperty(owner, key, readOnly(value));
  }
  defineProperty(constructor, "name", { value: name, configurable: true });
  defineProperty(prototype, Symbol.toStringTag, { value: name, configurable: true });
}

/** Iterating it gives what `entries` gives. */
export function iterable(prototype: { entries: () => unknown }): void {
  put(prototype, Symbol.iterator, prototype.entries, false);
}

// -- Web IDL's conversions (section 3.2) ----------------------------------------------------------------------------
const toWellFormed = uncurry(
  (String.prototype as unknown as { toWellFormed: (this: string) => string }).toWellFormed,
);

// oxlint-disable typescript/no-unnecessary-template-expression -- String() would take a symbol, which must throw
/** DOMString. */
export const domString = (value: unknown): string => `${value as string}`;
/** USVString: lone surrogates become U+FFFD. */
export const usvString = (value: unknown): string => toWellFormed(`${value as string}`);

/** A dictionary argument: undefined and null are an empty one, other primitives a TypeError. */
export function dictionary(value: unknown, what: string): Record<string, unknown> {
  if (value === undefined || value === null) return Object.create(null) as Record<string, unknown>;
  if (typeof value !== "object" && typeof value !== "function")
    throw new TypeError(`${what} must be an object`);
  return value as Record<string, unknown>;
}

/** How many arguments a call must have (Web IDL section 3.6). */
export function need(count: number, args: ArrayLike<unknown>, what: string): void {
  if (args.length < count) {
    throw new TypeError(
      `${what} needs ${count} argument${count === 1 ? "" : "s"}, but only ${args.length} given`,
    );
  }
}

/** A sequence of pairs of strings, or a record of strings, as Headers and URLSearchParams take them. */
export function pairsOf(
  init: object,
  convert: (value: unknown) => string,
  what: string,
): [name: string, value: string][] {
  const pairs: [string, string][] = [];
  const iterator = (init as Partial<Iterable<unknown>>)[Symbol.iterator];
  if (iterator === undefined || iterator === null) {
    for (const key of ownKeys(init)) {
      if (Object.getOwnPropertyDescriptor(init, key)?.enumerable !== true) continue;
      if (typeof key === "symbol") throw new TypeError(`${what}: a symbol cannot be a name`);
      pairs.push([convert(key), convert((init as Record<string, unknown>)[key])]);
    }
    return pairs;
  }
  for (const item of init as Iterable<unknown>) {
    const pair = item !== null && typeof item === "object" ? [...(item as Iterable<unknown>)] : [];
    if (pair.length !== 2) throw new TypeError(`${what}: every item must be a pair of a name and a value`);
    pairs.push([convert(pair[0]), convert(pair[1])]);
  }
  return pairs;
}

// -- bytes ------------------------------------------------------------------------------------------------------------
const typedPrototype = Object.getPrototypeOf(Uint8Array.prototype) as object;
// oxlint-disable-next-line typescript/no-unnecessary-type-parameters -- says what the primordial returns
const getter = <T>(owner: object, name: PropertyKey) =>
  uncurry(Object.getOwnPropertyDescriptor(owner, name)?.get as (this: unknown) => T);
export const typedName = getter<string | undefined>(typedPrototype, Symbol.toStringTag);
const typedBuffer = getter<ArrayBuffer>(typedPrototype, "buffer");
const typedOffset = getter<number>(typedPrototype, "byteOffset");
const typedBytes = getter<number>(typedPrototype, "byteLength");
const viewBuffer = getter<ArrayBuffer>(DataView.prototype, "buffer");
const viewOffset = getter<number>(DataView.prototype, "byteOffset");
const viewBytes = getter<number>(DataView.prototype, "byteLength");
const bufferBytes = getter<number>(ArrayBuffer.prototype, "byteLength");
const bytesSlice = uncurry(Uint8Array.prototype.slice);

/** Whether `brand`, a getter or method that looks for an internal slot, finds it in `value`. */
export function has(brand: (value: object) => unknown, value: object): boolean {
  try {
    brand(value);
    return true;
  } catch {
    return false; // its TypeError is the answer
  }
}

export const isDataView = (value: object): value is DataView => has(viewBuffer, value);
export const isArrayBuffer = (value: object): value is ArrayBuffer => has(bufferBytes, value);

/** The bytes of an ArrayBuffer or a view, not copied; undefined for any other value. */
export function bytesOf(value: unknown): Uint8Array<ArrayBuffer> | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  if (typedName(value) !== undefined) {
    return new Uint8Array(typedBuffer(value), typedOffset(value), typedBytes(value));
  }
  if (isArrayBuffer(value)) return new Uint8Array(value);
  if (isDataView(value)) return new Uint8Array(viewBuffer(value), viewOffset(value), viewBytes(value));
  return undefined;
}

export const copyOf = (bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> =>
  bytesSlice(bytes) as Uint8Array<ArrayBuffer>;
