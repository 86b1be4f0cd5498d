/**
 * Values as structured data: what may cross between the host and a guest, and how it is written down.
 *
 * One implementation for both realms. `codec` is a self-contained factory: the host calls it, and its source text
 * (`String(codec)`) is evaluated inside the guest before any guest code runs. It therefore refers to nothing outside
 * itself but the standard globals, takes every primordial it uses at creation, and afterwards neither looks up a
 * method on a prototype nor writes through one: code that patches `Array.prototype` later changes nothing here. (The
 * failure behind the rule: a sandbox that called `push` on an array inherited from the guest's realm.)
 * Nothing may live here that needs Intl, structuredClone, TextEncoder or atob: the guest's engine has none of them.
 *
 * The text is JSON that holds no JSON object at all, so there are no keys to be hostile or duplicate:
 *
 *     null true false "text" 1.5             themselves (a finite number that is not -0)
 *     ["a", item...]                         array
 *     ["o", key, value, key, value...]       plain object
 *     ["u"]                                  undefined
 *     ["n", "NaN"|"Infinity"|"-Infinity"|"-0"]
 *     ["i", "123"]                           bigint, at most 4096 digits
 *     ["d", milliseconds|null]               Date (null: an invalid one)
 *     ["m", key, value, key, value...]       Map
 *     ["s", item...]                         Set
 *     ["b", "Uint8Array", byteLength]        the next byteLength bytes of the blob area, as that view or buffer
 *     ["e", name, message, stack|null]       Error
 *     ["r", "function", id]                  a function of the writer's; id is a positive safe integer
 *     ["r", "capability", id, method...]     an object of the writer's with these methods
 *     ["r", "home", id]                      what the reader had given under this id
 *
 * A lone surrogate is written as an escape (ECMA-262 25.5.2.3 QuoteJSONString), so the text is always valid UTF-8.
 */

export type CodecErrorCode =
  "uncloneable" | "cyclic" | "too-deep" | "too-large" | "hostile-key" | "malformed";

/** Thrown by {@link Codec.encode} and {@link Codec.decode}. Its `name` is "DataCloneError". */
export interface CodecError extends Error {
  readonly code: CodecErrorCode;
  /** Where in the value: "input.items[3].callback". For `decode` always "wire". */
  readonly path: string;
}

export interface Reference {
  readonly kind: "function" | "capability" | "home";
  /** A positive safe integer. */
  readonly id: number;
  /** Of a capability: names without quotes, backslashes or control characters. */
  readonly methods?: readonly string[];
}

export interface EncodedValue {
  readonly text: string;
  /** Copies of the bytes, in the order in which the text names them. */
  readonly blobs: Uint8Array[];
}

export interface EncodeLimits {
  /** Length of the text in UTF-16 units plus bytes in blobs. Stops a result that fills the other side's memory. */
  readonly maxBytes: number;
  /** Containers within containers; 64 if absent. Stops a value that overflows the reader's stack. */
  readonly maxDepth?: number;
  /** Values in all. Stops a small text that grows into many objects. */
  readonly maxNodes: number;
  /** What the value is called in errors: "value", "input". */
  readonly root: string;
  /** Leaves the stacks of errors out: a host's stack tells a guest the host's paths. */
  readonly omitStacks?: boolean;
  /** What is to stand for an error's stack. */
  readonly stackOf?: (stack: unknown) => string;
  /** Asked first of every function and every object; undefined means that the value is not a reference. */
  readonly reference?: (value: object) => Reference | undefined;
}

export interface DecodeLimits {
  /** Containers within containers; 64 if absent. */
  readonly maxDepth?: number;
  readonly maxNodes: number;
  /** Asked now and then while a Map or Set is filled: true ends the decoding as "too-large". */
  readonly expired?: () => boolean;
  /** Without it, a reference is malformed. What it throws, `decode` throws. */
  readonly resolve?: (kind: Reference["kind"], id: number, methods: readonly string[]) => unknown;
  /** The chunks are the caller's to give away: bytes that are one whole chunk become the value's without a copy. */
  readonly owned?: boolean;
}

export interface Codec {
  /**
   * Writes a value down. Own enumerable string keys only; a getter runs once, and what it throws is thrown as it is.
   * @throws CodecError naming the path, if something in the value cannot cross or a limit is reached
   */
  encode(value: unknown, limits: EncodeLimits): EncodedValue;
  /**
   * Builds the value again from what JSON.parse made of the text. The input counts as hostile.
   * Typed arrays are copies with buffers of their own; the caller keeps `blobs`.
   * @throws CodecError "malformed", "hostile-key", "too-deep" or "too-large"
   */
  decode(wire: unknown, blobs: Uint8Array | readonly Uint8Array[], limits: DecodeLimits): unknown;
  /** Defines an own property, writable and configurable; nothing inherited can see or stop it. */
  put(target: object, key: PropertyKey, value: unknown, enumerable: boolean): void;
  /** Whether this codec threw it. */
  isCodecError(error: unknown): error is CodecError;
}

// oxlint-disable unicorn/consistent-function-scoping -- all that the factory uses stands inside it
// oxlint-disable typescript/no-unsafe-type-assertion -- primordials are taken by name and values are told apart by
// their internal slots: neither narrows a type
export function codec(): Codec {
  const { apply, getPrototypeOf } = Reflect;
  const { create, defineProperty, freeze, getOwnPropertyDescriptor, hasOwn, is, keys } = Object;
  const { isArray } = Array;
  const { isSafeInteger } = Number;
  const { abs } = Math;
  const quote = JSON.stringify;
  const toBigInt = BigInt;
  const RealDate = Date;
  const RealError = Error;
  const RealMap = Map;
  const RealSet = Set;
  const Bytes = Uint8Array;
  const RealDataView = DataView;

  const objectPrototype = Object.prototype;
  const arrayPrototype = Array.prototype;
  const mapPrototype = Map.prototype;
  const setPrototype = Set.prototype;
  const datePrototype = Date.prototype;
  const errorPrototype = Error.prototype;
  const promisePrototype = Promise.prototype;
  const typedPrototype: object = getPrototypeOf(Int8Array.prototype) ?? objectPrototype;

  type Method = (...args: never[]) => unknown;
  const method = (owner: object, name: string): Method => (owner as Record<string, Method>)[name] as Method;
  const getter = (owner: object, name: string | symbol): Method =>
    (getOwnPropertyDescriptor(owner, name) as { get: Method }).get;
  // `any`, as Reflect.apply itself says: what a primordial returns is known to the caller alone.
  const run: (what: Method, self: unknown, args: unknown[]) => any = apply;

  const isPrototypeOf = method(objectPrototype, "isPrototypeOf");
  const charCodeAt = method(String.prototype, "charCodeAt");
  const slice = method(String.prototype, "slice");
  const exec = method(RegExp.prototype, "exec");
  const getTime = method(datePrototype, "getTime");
  const mapForEach = method(mapPrototype, "forEach");
  const mapGet = method(mapPrototype, "get");
  const mapHas = method(mapPrototype, "has");
  const mapSet = method(mapPrototype, "set");
  const mapSize = getter(mapPrototype, "size");
  const setForEach = method(setPrototype, "forEach");
  const setAdd = method(setPrototype, "add");
  const setHas = method(setPrototype, "has");
  const setSize = getter(setPrototype, "size");
  const weakAdd = method(WeakSet.prototype, "add");
  const weakHas = method(WeakSet.prototype, "has");
  const typedSet = method(typedPrototype, "set");
  const typedName = getter(typedPrototype, Symbol.toStringTag);
  const typedBuffer = getter(typedPrototype, "buffer");
  const typedOffset = getter(typedPrototype, "byteOffset");
  const typedLength = getter(typedPrototype, "byteLength");
  const viewBuffer = getter(RealDataView.prototype, "buffer");
  const viewOffset = getter(RealDataView.prototype, "byteOffset");
  const viewLength = getter(RealDataView.prototype, "byteLength");
  const bufferLength = getter(ArrayBuffer.prototype, "byteLength");

  /** Bytes per element; 1 for what is no typed array. */
  const elementSizes = new RealMap<string, number>();
  const typedConstructors = new RealMap<string, new (buffer: ArrayBuffer) => object>();
  for (const constructor of [
    Int8Array,
    Uint8Array,
    Uint8ClampedArray,
    Int16Array,
    Uint16Array,
    Int32Array,
    Uint32Array,
    Float32Array,
    Float64Array,
    BigInt64Array,
    BigUint64Array,
  ]) {
    elementSizes.set(constructor.name, constructor.BYTES_PER_ELEMENT);
    typedConstructors.set(constructor.name, constructor);
  }
  elementSizes.set("ArrayBuffer", 1);
  elementSizes.set("DataView", 1);

  const maxDigits = 4096;
  const digitsBound = toBigInt(10) ** toBigInt(maxDigits);
  const defaultDepth = 64;
  const maxDateMs = 8.64e15;
  const identifier = /^[A-Za-z_$][A-Za-z0-9_$]*$/;
  const thrown = new WeakSet();

  class CodecError extends RealError {
    override readonly name = "DataCloneError";
    readonly code: CodecErrorCode;
    readonly path: string;
    constructor(code: CodecErrorCode, path: string, words: string) {
      super(path + ": " + words);
      this.code = code;
      this.path = path;
      run(weakAdd, thrown, [this]);
    }
  }
  freeze(CodecError.prototype);
  freeze(CodecError);

  // One for all, because making one costs more than all the rest of it. A null prototype, because a descriptor's fields
  // are looked up through inheritance (ToPropertyDescriptor).
  const descriptor = { __proto__: null, value: undefined as unknown, enumerable: true, writable: true, configurable: true }; // prettier-ignore

  function put(target: object, key: PropertyKey, value: unknown, enumerable: boolean): void {
    descriptor.value = value;
    descriptor.enumerable = enumerable;
    defineProperty(target, key, descriptor);
    descriptor.value = undefined;
  }

  /** An option of the caller's, never one that a guest put on Object.prototype. */
  function option<T extends object, K extends keyof T>(limits: T, name: K): T[K] | undefined {
    return hasOwn(limits, name) ? limits[name] : undefined;
  }

  const isHostileKey = (key: string): boolean =>
    key === "__proto__" || key === "constructor" || key === "prototype";

  const isReferenceKind = (kind: unknown): kind is Reference["kind"] =>
    kind === "function" || kind === "capability" || kind === "home";

  function bytesOf(buffer: ArrayBuffer, offset: number, length: number): Uint8Array {
    const copy = new Bytes(length);
    run(typedSet, copy, [new Bytes(buffer, offset, length)]);
    return copy;
  }

  function answers(brand: Method, value: object): boolean {
    try {
      run(brand, value, []);
      return true;
    } catch {
      return false; // the getter's TypeError is the answer: the internal slot is missing
    }
  }

  type Shape =
    "a" | "o" | "m" | "s" | "d" | "e" | "typed" | "view" | "buffer" | "promise" | "class" | "unreadable";

  function shapeOf(value: object): Shape {
    try {
      const prototype = getPrototypeOf(value);
      if (isArray(value)) return prototype === arrayPrototype ? "a" : "class";
      if (prototype === objectPrototype || prototype === null) return "o";
      if (run(typedName, value, []) !== undefined) return "typed";
      if (prototype === mapPrototype && answers(mapSize, value)) return "m";
      if (prototype === setPrototype && answers(setSize, value)) return "s";
      if (prototype === datePrototype && answers(getTime, value)) return "d";
      if (run(isPrototypeOf, errorPrototype, [value]) === true) return "e";
      if (answers(bufferLength, value)) return "buffer";
      if (answers(viewLength, value)) return "view";
      return run(isPrototypeOf, promisePrototype, [value]) === true ? "promise" : "class";
    } catch {
      return "unreadable"; // a proxy that throws or is revoked
    }
  }

  /** A container that is being written, and where it stands: enough to find a cycle and to name a path. */
  class Place {
    readonly up: Place | null;
    readonly label: string | number;
    readonly value: object;
    readonly shape: Shape;
    path = "";
    constructor(up: Place | null, label: string | number, value: object, shape: Shape) {
      this.up = up;
      this.label = label;
      this.value = value;
      this.shape = shape;
    }
  }

  /** The name of what stands under `label` in `place`; at the root, `label` is the name. */
  function pathTo(place: Place | null, label: string | number): string {
    if (place === null) return "" + label;
    if (place.path === "") place.path = pathTo(place.up, place.label);
    if (place.shape === "a") return place.path + "[" + label + "]";
    if (typeof label === "number") {
      if (place.shape === "s") return place.path + "<item " + label + ">";
      const pair = (label - (label % 2)) / 2;
      return place.path + (label % 2 === 0 ? "<key " : "<value ") + pair + ">";
    }
    if (label.length <= 64 && run(exec, identifier, [label]) !== null) return place.path + "." + label;
    const short = label.length <= 64 ? label : run(slice, label, [0, 64]) + "...";
    return place.path + "[" + quote(short) + "]";
  }

  class Encoder {
    left: number;
    nodesLeft: number;
    readonly maxDepth: number;
    readonly omitStacks: boolean;
    readonly stackOf: EncodeLimits["stackOf"];
    readonly reference: EncodeLimits["reference"];
    readonly blobs: Uint8Array[] = [];

    constructor(limits: EncodeLimits) {
      this.left = limits.maxBytes;
      this.nodesLeft = limits.maxNodes;
      this.maxDepth = option(limits, "maxDepth") ?? defaultDepth;
      this.omitStacks = option(limits, "omitStacks") ?? false;
      this.stackOf = option(limits, "stackOf");
      this.reference = option(limits, "reference");
    }

    spend(size: number, up: Place | null, label: string | number): void {
      this.left -= size;
      if (this.left < 0)
        throw new CodecError("too-large", pathTo(up, label), "the value is over its limit of bytes");
    }

    quoted(text: string, up: Place | null, label: string | number): string {
      // Before quoting: what is too long is not to be copied first.
      this.spend(text.length + 2, up, label);
      const quotedText = quote(text);
      this.spend(quotedText.length - text.length - 2, up, label);
      return quotedText;
    }

    leaf(text: string, up: Place | null, label: string | number): string {
      this.spend(text.length, up, label);
      return text;
    }

    /** A value of so many parts weighs as much: what is read of it is bounded by parts, not by values alone. */
    parts(count: number, up: Place | null, label: string | number): void {
      this.nodesLeft -= count - 1;
      if (this.nodesLeft < 0) throw this.tooMany(up, label);
    }

    value(value: unknown, up: Place | null, label: string | number, depth: number): string {
      this.nodesLeft -= 1;
      if (this.nodesLeft < 0) throw this.tooMany(up, label);
      switch (typeof value) {
        case "string":
          return this.quoted(value, up, label);
        case "number":
          if (value - value === 0 && !is(value, -0)) return this.leaf("" + value, up, label);
          this.parts(2, up, label);
          return this.leaf('["n","' + (is(value, -0) ? "-0" : value) + '"]', up, label);
        case "boolean":
          return this.leaf(value ? "true" : "false", up, label);
        case "undefined":
          return this.leaf('["u"]', up, label);
        case "bigint":
          if (value >= digitsBound || value <= -digitsBound) {
            throw new CodecError(
              "too-large",
              pathTo(up, label),
              "a bigint of more than 4096 digits cannot cross",
            );
          }
          this.parts(2, up, label);
          return this.leaf('["i","' + value + '"]', up, label);
        case "symbol":
          throw new CodecError("uncloneable", pathTo(up, label), "a symbol cannot cross");
        case "function":
          return this.referenceTo(value, up, label) ?? this.refuse("a function cannot cross", up, label);
        default:
          return value === null
            ? this.leaf("null", up, label)
            : this.object(value as object, up, label, depth);
      }
    }

    refuse(words: string, up: Place | null, label: string | number): never {
      throw new CodecError("uncloneable", pathTo(up, label), words);
    }

    tooMany(up: Place | null, label: string | number): CodecError {
      return new CodecError("too-large", pathTo(up, label), "the value holds more values than its limit");
    }

    referenceTo(value: object, up: Place | null, label: string | number): string | undefined {
      const hook = this.reference;
      if (hook === undefined) return undefined;
      const found = hook(value);
      if (found === undefined) return undefined;
      const { kind, id } = found;
      if (!isReferenceKind(kind) || !isSafeInteger(id) || id < 1) {
        return this.refuse("the reference made for it is not valid", up, label);
      }
      let text = '["r","' + kind + '",' + id;
      const methods = option(found, "methods");
      if (methods !== undefined) {
        for (let index = 0; index < methods.length; index += 1) text += "," + quote(methods[index]);
      }
      return this.leaf(text + "]", up, label);
    }

    object(value: object, up: Place | null, label: string | number, depth: number): string {
      const reference = this.referenceTo(value, up, label);
      if (reference !== undefined) return reference;
      for (let place = up; place !== null; place = place.up) {
        if (place.value === value) {
          throw new CodecError(
            "cyclic",
            pathTo(up, label),
            pathTo(up, label) + " refers back to " + pathTo(place.up, place.label),
          );
        }
      }
      const shape = shapeOf(value);
      switch (shape) {
        case "a":
        case "o":
        case "m":
        case "s": {
          if (depth >= this.maxDepth) {
            throw new CodecError(
              "too-deep",
              pathTo(up, label),
              "the value is nested deeper than " + this.maxDepth,
            );
          }
          this.spend(5, up, label); // ["a"]
          const place = new Place(up, label, value, shape);
          if (shape === "a") return this.array(value as unknown[], place, depth + 1);
          if (shape === "o") return this.plain(value, place, depth + 1);
          return this.collection(value, place, depth + 1);
        }
        case "d": {
          const ms: number = run(getTime, value, []);
          this.parts(2, up, label);
          return this.leaf('["d",' + (ms === ms ? ms : "null") + "]", up, label);
        }
        case "e":
          return this.error(value as Error, up, label);
        case "typed":
        case "view":
        case "buffer":
          return this.bytes(value, shape, up, label);
        case "promise":
          return this.refuse("a promise cannot cross; await it first", up, label);
        case "unreadable":
          return this.refuse("a proxy that cannot be read cannot cross", up, label);
        default:
          shape satisfies "class";
          return this.refuse("an instance of a class cannot cross; make it a plain object", up, label);
      }
    }

    array(value: unknown[], place: Place, depth: number): string {
      const { length } = value;
      if (length > this.nodesLeft) throw this.tooMany(place.up, place.label);
      let text = '["a"';
      for (let index = 0; index < length; index += 1) {
        this.spend(1, place, index);
        text += "," + this.value(value[index], place, index, depth);
      }
      return text + "]";
    }

    plain(value: object, place: Place, depth: number): string {
      let names: string[];
      try {
        names = keys(value);
      } catch {
        return this.refuse("a proxy that cannot be read cannot cross", place.up, place.label);
      }
      if (names.length > this.nodesLeft) throw this.tooMany(place.up, place.label);
      let text = '["o"';
      for (let index = 0; index < names.length; index += 1) {
        const name = names[index] ?? "";
        if (isHostileKey(name)) {
          throw new CodecError("hostile-key", pathTo(place, name), "this key cannot cross; use a Map");
        }
        this.spend(2, place, name);
        this.parts(2, place, name);
        text += "," + this.quoted(name, place, name);
        text += "," + this.value((value as Record<string, unknown>)[name], place, name, depth);
      }
      return text + "]";
    }

    collection(value: object, place: Place, depth: number): string {
      const isMap = place.shape === "m";
      let text = isMap ? '["m"' : '["s"';
      let count = 0;
      const add = (item: unknown): void => {
        this.spend(1, place, count);
        text += "," + this.value(item, place, count, depth);
        count += 1;
      };
      run(isMap ? mapForEach : setForEach, value, [
        (item: unknown, key: unknown): void => {
          if (isMap) add(key);
          add(item);
        },
      ]);
      return text + "]";
    }

    error(value: Error, up: Place | null, label: string | number): string {
      const { name, message } = value as { name: unknown; message: unknown };
      let stack: unknown = this.omitStacks ? undefined : value.stack;
      const { stackOf } = this;
      if (stackOf !== undefined && stack !== undefined) stack = stackOf(stack);
      this.spend(8, up, label); // ["e",,,]
      this.parts(4, up, label);
      const nameText = this.quoted(typeof name === "string" ? name : "Error", up, label);
      const messageText = this.quoted(typeof message === "string" ? message : "", up, label);
      const stackText =
        typeof stack === "string" ? this.quoted(stack, up, label) : this.leaf("null", up, label);
      return '["e",' + nameText + "," + messageText + "," + stackText + "]";
    }

    bytes(
      value: object,
      shape: "typed" | "view" | "buffer",
      up: Place | null,
      label: string | number,
    ): string {
      let name = "ArrayBuffer";
      let buffer = value as ArrayBuffer;
      let offset = 0;
      let length: number;
      if (shape === "typed") {
        name = run(typedName, value, []);
        if (run(mapHas, elementSizes, [name]) !== true)
          return this.refuse("a " + name + " cannot cross", up, label);
        buffer = run(typedBuffer, value, []);
        offset = run(typedOffset, value, []);
        length = run(typedLength, value, []);
      } else if (shape === "view") {
        name = "DataView";
        buffer = run(viewBuffer, value, []);
        offset = run(viewOffset, value, []);
        length = run(viewLength, value, []);
      } else {
        length = run(bufferLength, value, []);
      }
      this.parts(3, up, label);
      const text = this.leaf('["b","' + name + '",' + length + "]", up, label);
      this.spend(length, up, label);
      let copy: Uint8Array;
      try {
        copy = bytesOf(buffer, offset, length);
      } catch {
        return this.refuse("a detached buffer cannot cross", up, label);
      }
      put(this.blobs, this.blobs.length, copy, true);
      return text;
    }
  }

  class Decoder {
    nodesLeft: number;
    readonly maxDepth: number;
    readonly resolve: DecodeLimits["resolve"];
    readonly expired: DecodeLimits["expired"];
    readonly chunks: readonly Uint8Array[];
    readonly owned: boolean;
    chunk = 0;
    /** Bytes taken from the current chunk. */
    taken = 0;
    bytesLeft = 0;

    constructor(blobs: Uint8Array | readonly Uint8Array[], limits: DecodeLimits) {
      this.nodesLeft = limits.maxNodes;
      this.maxDepth = option(limits, "maxDepth") ?? defaultDepth;
      this.resolve = option(limits, "resolve");
      this.expired = option(limits, "expired");
      this.owned = option(limits, "owned") ?? false;
      this.chunks = isArray(blobs) ? (blobs as readonly Uint8Array[]) : [blobs as Uint8Array];
      for (let index = 0; index < this.chunks.length; index += 1) {
        this.bytesLeft += run(typedLength, this.chunks[index], []);
      }
    }

    bad(words: string): never {
      throw new CodecError("malformed", "wire", words);
    }

    arity(wire: unknown[], count: number): void {
      if (wire.length !== count) this.bad("a tag with the wrong number of parts");
    }

    value(wire: unknown, depth: number): unknown {
      this.nodesLeft -= 1;
      if (this.nodesLeft < 0) this.tooMany();
      switch (typeof wire) {
        case "string":
        case "boolean":
          return wire;
        case "number":
          if (wire - wire !== 0 || is(wire, -0)) this.bad("a number that is written as a tag");
          return wire;
        default:
          if (wire === null) return null;
          if (!isArray(wire)) return this.bad("neither a primitive nor an array");
          return this.tagged(wire as unknown[], depth);
      }
    }

    tooMany(): never {
      throw new CodecError("too-large", "wire", "more values than the limit");
    }

    tagged(wire: unknown[], depth: number): unknown {
      if (wire.length === 0) return this.bad("an array without a tag");
      switch (wire[0]) {
        case "a":
        case "o":
        case "m":
        case "s":
          return this.container(wire[0], wire, depth);
        case "u":
          this.arity(wire, 1);
          return undefined;
        case "n":
          this.arity(wire, 2);
          switch (wire[1]) {
            case "NaN":
              return NaN;
            case "Infinity":
              return Infinity;
            case "-Infinity":
              return -Infinity;
            case "-0":
              return -0;
            default:
              return this.bad("an unknown number");
          }
        case "i":
          this.arity(wire, 2);
          return this.bigint(wire[1]);
        case "d": {
          this.arity(wire, 2);
          const ms = wire[1];
          if (ms === null) return new RealDate(NaN);
          if (typeof ms !== "number" || !isSafeInteger(ms) || is(ms, -0) || abs(ms) > maxDateMs) {
            return this.bad("a date out of range");
          }
          return new RealDate(ms);
        }
        case "b":
          this.arity(wire, 3);
          return this.bytes(wire[1], wire[2]);
        case "e":
          this.arity(wire, 4);
          return this.error(wire[1], wire[2], wire[3]);
        case "r": {
          const kind = wire[1];
          const id = wire[2];
          if (!isReferenceKind(kind)) return this.bad("an unknown kind of reference");
          if (kind !== "capability" || wire.length < 3) this.arity(wire, 3);
          if (typeof id !== "number" || !isSafeInteger(id) || id < 1)
            return this.bad("a reference that is no positive integer");
          const { resolve } = this;
          if (resolve === undefined) return this.bad("a reference where none may stand");
          const methods: string[] = [];
          for (let index = 3; index < wire.length; index += 1) {
            const name = wire[index];
            if (typeof name !== "string") return this.bad("a method's name that is no string");
            put(methods, index - 3, name, true);
          }
          return resolve(kind, id, methods);
        }
        default:
          return this.bad("an unknown tag");
      }
    }

    container(tag: "a" | "o" | "m" | "s", wire: unknown[], depth: number): unknown {
      if (depth >= this.maxDepth) {
        throw new CodecError("too-deep", "wire", "nested deeper than " + this.maxDepth);
      }
      const { length } = wire;
      const isPairs = tag === "o" || tag === "m";
      if (isPairs && length % 2 === 0) this.bad("a key without a value");
      if ((tag === "o" ? (length - 1) / 2 : length - 1) > this.nodesLeft) this.tooMany();
      switch (tag) {
        case "a": {
          const array: unknown[] = [];
          for (let index = 1; index < length; index += 1) {
            put(array, index - 1, this.value(wire[index], depth + 1), true);
          }
          return array;
        }
        case "o": {
          const object: object = create(objectPrototype);
          for (let index = 1; index < length; index += 2) {
            const key = wire[index];
            if (typeof key !== "string") return this.bad("a key that is no string");
            if (isHostileKey(key)) throw new CodecError("hostile-key", "wire", "a key that cannot cross");
            if (hasOwn(object, key)) return this.bad("a key that stands twice");
            put(object, key, this.value(wire[index + 1], depth + 1), true);
          }
          return object;
        }
        case "m": {
          const map = new RealMap();
          for (let index = 1; index < length; index += 2) {
            if (index % 256 === 1) this.hurry();
            const key = this.value(wire[index], depth + 1);
            if (run(mapHas, map, [key]) === true) this.bad("a key that stands twice");
            run(mapSet, map, [key, this.value(wire[index + 1], depth + 1)]);
          }
          return map;
        }
        default: {
          tag satisfies "s";
          const set = new RealSet();
          for (let index = 1; index < length; index += 1) {
            if (index % 256 === 0) this.hurry();
            const item = this.value(wire[index], depth + 1);
            if (run(setHas, set, [item]) === true) this.bad("an item that stands twice");
            run(setAdd, set, [item]);
          }
          return set;
        }
      }
    }

    /** Keys can be chosen to collide in a hash table, and then each costs as much as all before it. */
    hurry(): void {
      if (this.expired?.() === true) throw new CodecError("too-large", "wire", "it takes too long to build");
    }

    bigint(digits: unknown): bigint {
      if (typeof digits !== "string") return this.bad("a bigint that is no string");
      const start = digits[0] === "-" ? 1 : 0;
      const count = digits.length - start;
      if (count < 1 || count > maxDigits) this.bad("a bigint of no or too many digits");
      for (let index = start; index < digits.length; index += 1) {
        const code: number = run(charCodeAt, digits, [index]);
        if (code < 48 || code > 57) this.bad("a bigint that is not made of digits");
      }
      if (digits[start] === "0" && (count > 1 || start === 1)) this.bad("a bigint with an idle zero");
      return toBigInt(digits);
    }

    bytes(name: unknown, length: unknown): object {
      const size: number | undefined = run(mapGet, elementSizes, [name]);
      if (size === undefined) return this.bad("an unknown kind of bytes");
      if (typeof length !== "number" || !isSafeInteger(length) || length < 0 || is(length, -0)) {
        return this.bad("a length that is no integer");
      }
      if (length > this.bytesLeft) this.bad("more bytes announced than sent");
      if (length % size !== 0) this.bad("a length that is no multiple of the element's");
      const bytes = this.take(length);
      const buffer: ArrayBuffer = run(typedBuffer, bytes, []);
      if (name === "ArrayBuffer") return buffer;
      if (name === "DataView") return new RealDataView(buffer);
      if (name === "Uint8Array") return bytes;
      const Typed: new (buffer: ArrayBuffer) => object = run(mapGet, typedConstructors, [name]);
      return new Typed(buffer);
    }

    /** The next `length` bytes, which are there: copied, across chunks. */
    take(length: number): Uint8Array {
      if (this.owned && this.chunk === 0 && this.taken === 0) {
        const whole = this.chunks[0];
        if (run(bufferLength, run(typedBuffer, whole, []), []) === length && length > 0) {
          this.taken = length;
          this.bytesLeft -= length;
          return whole as Uint8Array;
        }
      }
      const out = new Bytes(length);
      let done = 0;
      while (done < length) {
        const chunk = this.chunks[this.chunk];
        const size: number = run(typedLength, chunk, []);
        const rest = size - this.taken;
        const part = rest < length - done ? rest : length - done;
        if (part > 0) {
          const offset: number = run(typedOffset, chunk, []) + this.taken;
          run(typedSet, out, [new Bytes(run(typedBuffer, chunk, []), offset, part), done]);
          done += part;
          this.taken += part;
        }
        if (this.taken === size && done < length) {
          this.chunk += 1;
          this.taken = 0;
        }
      }
      this.bytesLeft -= length;
      return out;
    }

    error(name: unknown, message: unknown, stack: unknown): Error {
      if (
        typeof name !== "string" ||
        typeof message !== "string" ||
        (stack !== null && typeof stack !== "string")
      ) {
        return this.bad("an error whose parts are no strings");
      }
      const error = new RealError("");
      put(error, "name", name, false);
      put(error, "message", message, false);
      // Always overwritten: the engine's own stack would name the reader's files.
      put(error, "stack", stack ?? undefined, false);
      return error;
    }
  }

  const made: Codec = {
    encode(value, limits) {
      const encoder = new Encoder(limits);
      const text = encoder.value(value, null, limits.root, 0);
      return { text, blobs: encoder.blobs };
    },
    decode(wire, blobs, limits) {
      const decoder = new Decoder(blobs, limits);
      const value = decoder.value(wire, 0);
      if (decoder.bytesLeft !== 0) decoder.bad("bytes that nothing names");
      return value;
    },
    put,
    isCodecError(error): error is CodecError {
      return typeof error === "object" && error !== null && run(weakHas, thrown, [error]) === true;
    },
  };
  return freeze(made);
}
