/**
 * Values of an outcome, back from the form in which JSON carries them (`$type`, see show.ts). The bytes come from a
 * script by way of a service: no name in them chooses what is built but by a table, no object gets a key that means
 * something to the language, and what does not fit is an error, never a guess. Runs wherever ECMAScript and atob do.
 */

/** The text is no value that a service writes. */
export class ValueError extends Error {
  override readonly name = "ValueError";
}

/** The codec has 64 containers within one another, and a scalar in the innermost may be an object here. */
const MAX_DEPTH = 65;
/** As the codec has it: to parse more is slow. */
const MAX_DIGITS = 4096;
/** What no value of a run has, and what would surprise whoever copies it into another object. */
const HOSTILE: ReadonlySet<string> = new Set(["__proto__", "constructor", "prototype"]);

const VIEWS: ReadonlyMap<string, new (buffer: ArrayBuffer) => ArrayBufferView> = new Map<
  string,
  new (buffer: ArrayBuffer) => ArrayBufferView
>([
  ["Int8Array", Int8Array],
  ["Uint8Array", Uint8Array],
  ["Uint8ClampedArray", Uint8ClampedArray],
  ["Int16Array", Int16Array],
  ["Uint16Array", Uint16Array],
  ["Int32Array", Int32Array],
  ["Uint32Array", Uint32Array],
  ["Float32Array", Float32Array],
  ["Float64Array", Float64Array],
  ["BigInt64Array", BigInt64Array],
  ["BigUint64Array", BigUint64Array],
  ["DataView", DataView],
]);
const NUMBERS: ReadonlyMap<unknown, number> = new Map([
  ["NaN", NaN],
  ["Infinity", Infinity],
  ["-Infinity", -Infinity],
  ["-0", -0],
]);

type Fields = Readonly<Record<string, unknown>>;

/**
 * The value that parsed JSON stands for: Map, Set, Date, bigint, undefined, NaN, typed arrays, Error and so on where the
 * script had one. Objects are plain ones.
 *
 * @throws ValueError if it is malformed, has a key such as `__proto__`, or is nested deeper than a run's values are
 */
export function decodeValue(plain: unknown): unknown {
  return decoded(plain, 0);
}

function decoded(plain: unknown, depth: number): unknown {
  if (typeof plain !== "object" || plain === null) return plain;
  if (depth >= MAX_DEPTH) throw new ValueError(`a value is nested deeper than ${MAX_DEPTH}`);
  if (Array.isArray(plain)) return plain.map((item) => decoded(item, depth + 1));
  if (Object.hasOwn(plain, "$type")) return tagged(plain as Fields, depth);
  return objectOf(Object.entries(plain), depth);
}

function tagged(it: Fields, depth: number): unknown {
  const type = it["$type"];
  switch (type) {
    case "undefined":
      return undefined;
    case "number":
      return NUMBERS.get(it["value"]) ?? malformed("number");
    case "bigint":
      return bigint(it["value"]);
    case "Date":
      return date(it["value"]);
    case "Map":
      return new Map(
        list(it, "entries").map((pair) => {
          const [key, value] = pairOf(pair);
          return [decoded(key, depth + 1), decoded(value, depth + 1)];
        }),
      );
    case "Set":
      return new Set(list(it, "values").map((item) => decoded(item, depth + 1)));
    case "Object":
      return objectOf(
        list(it, "entries").map((pair) => {
          const [key, value] = pairOf(pair);
          return typeof key === "string" ? [key, value] : malformed("Object");
        }),
        depth,
      );
    case "Error":
      return error(it);
    default:
      return bytes(type, it["base64"]);
  }
}

function malformed(type: string): never {
  throw new ValueError(`a ${type} is not written as the service writes it`);
}

function list(it: Fields, field: "entries" | "values"): unknown[] {
  const items = it[field];
  return Array.isArray(items) ? items : malformed(String(it["$type"]));
}

function pairOf(pair: unknown): [unknown, unknown] {
  return Array.isArray(pair) && pair.length === 2 ? [pair[0], pair[1]] : malformed("pair");
}

function objectOf(entries: readonly [string, unknown][], depth: number): object {
  for (const [key] of entries) if (HOSTILE.has(key)) throw new ValueError(`an object has the key ${key}`);
  return Object.fromEntries(entries.map(([key, value]) => [key, decoded(value, depth + 1)]));
}

function bigint(digits: unknown): bigint {
  if (typeof digits !== "string" || digits.length > MAX_DIGITS + 1 || !/^-?\d+$/.test(digits))
    return malformed("bigint");
  return BigInt(digits);
}

function date(text: unknown): Date {
  if (text === null) return new Date(NaN);
  const value =
    typeof text === "string" && /^[+-]?\d{4,6}-\d\d-\d\dT/.test(text) ? new Date(text) : undefined;
  return value === undefined || Number.isNaN(value.getTime()) ? malformed("Date") : value;
}

/** Fields of its own that no setter sees, and unseen by loops as an Error's are. */
function error({ name, message, stack }: Fields): Error {
  if (typeof name !== "string" || typeof message !== "string" || typeof stack !== "string")
    return malformed("Error");
  const made = new Error(message);
  const hidden = (value: string) => ({ value, writable: true, configurable: true, enumerable: false });
  return Object.defineProperties(made, { name: hidden(name), stack: hidden(stack) });
}

function bytes(type: unknown, base64: unknown): ArrayBufferView | ArrayBuffer {
  const View = typeof type === "string" ? VIEWS.get(type) : undefined;
  if (View === undefined && type !== "ArrayBuffer")
    throw new ValueError("a value has a $type that this client does not know: is the service newer?");
  if (typeof base64 !== "string") return malformed(String(type));
  let buffer: ArrayBuffer;
  try {
    buffer = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0)).buffer;
    return View === undefined ? buffer : new View(buffer); // throws if the length is no multiple of its elements'
  } catch (cause) {
    throw new ValueError(`a ${String(type)} is not written as the service writes it`, { cause });
  }
}
