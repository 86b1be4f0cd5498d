import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decodeValue, ValueError } from "doublehull/client";
import { jsonable } from "#server/show";

const sent = (value: unknown): unknown => JSON.parse(JSON.stringify(jsonable(value))) as unknown;

describe("a value that crossed as JSON", () => {
  test.each<[string, unknown]>([
    ["undefined", undefined],
    ["NaN, infinities and -0", [NaN, Infinity, -Infinity, -0]],
    ["bigint", [-12345678901234567890n, 0n]],
    ["Date", [new Date(0), new Date(-1e15), new Date(8.64e15)]],
    ["Map", new Map<unknown, unknown>([[{ a: 1 }, new Set([undefined])], [NaN, new Map()]])], // prettier-ignore
    ["Set", new Set([1n, "a", [new Date(5)]])],
    ["ArrayBuffer", Uint8Array.of(1, 2, 255).buffer],
    ["DataView", new DataView(Uint8Array.of(1, 2, 255).buffer)],
    ...[
      Int8Array,
      Uint8Array,
      Uint8ClampedArray,
      Int16Array,
      Uint16Array,
      Int32Array,
      Uint32Array,
      Float32Array,
      Float64Array,
    ].map((View): [string, unknown] => [View.name, View.from([1, 2, 200])]),
    ["BigInt64Array", BigInt64Array.of(-1n, 2n)],
    ["BigUint64Array", BigUint64Array.of(2n ** 64n - 1n)],
    ["an object with a key $type", { $type: "Map", entries: [{ $type: undefined }] }],
    ["keys of Object's own", { toString: 1, hasOwnProperty: null, valueOf: [] }],
  ])("is what it was: %s", (_name, value) => {
    const back = decodeValue(sent(value));
    expect(back).toStrictEqual(value);
    expect(Object.prototype.toString.call(back)).toBe(Object.prototype.toString.call(value));
  });

  test("is what it was: Error, and an invalid Date", () => {
    const error = decodeValue({
      $type: "Error",
      name: "RangeError",
      message: "far",
      stack: "  at x",
    }) as Error;
    expect(error).toBeInstanceOf(Error);
    expect([error.name, error.message, error.stack, Object.keys(error)]).toEqual(["RangeError", "far", "  at x", []]); // prettier-ignore
    expect(decodeValue(sent(new Date(NaN)))).toEqual(new Date(NaN));
  });

  test("is what it was, whatever it is", () => {
    const key = fc.oneof(fc.constant("$type"), fc.string()).filter((it) => !/^(?:__proto__|constructor|prototype)$/.test(it)); // prettier-ignore
    const { value } = fc.letrec<{ value: unknown }>((tie) => ({
      value: fc.oneof(
        { depthSize: "small", withCrossShrink: true },
        fc.oneof(fc.string(), fc.double(), fc.bigInt(), fc.boolean(), fc.constantFrom(null, undefined), fc.date(), fc.float32Array(), fc.uint8Array()), // prettier-ignore
        fc.array(tie("value")),
        fc.dictionary(key, tie("value"), { noNullPrototype: true }),
        fc.uniqueArray(tie("value"), { comparator: "SameValueZero" }).map((all) => new Set(all)),
        fc.array(fc.tuple(fc.string(), tie("value"))).map((all) => new Map(all)),
      ),
    }));
    fc.assert(fc.property(value, (it) => void expect(decodeValue(sent(it))).toStrictEqual(it)));
  });
});

describe("hostile JSON", () => {
  test.each([
    ["a key __proto__", '{"a":{"__proto__":{"polluted":1}}}'],
    ["a key __proto__ among entries", '{"$type":"Object","entries":[["__proto__",{"polluted":1}]]}'],
    ["a key constructor", '{"constructor":{"prototype":{"polluted":1}}}'],
    ["an unknown type", '{"$type":"Function","value":"1"}'],
    ["a type of Object's own", '{"$type":"constructor","base64":""}'],
    ["a type that is no text", '{"$type":["Map"],"entries":[]}'],
    ["a number that JSON has", '{"$type":"number","value":"1"}'],
    ["a bigint that is none", '{"$type":"bigint","value":"0x10"}'],
    ["a bigint of many digits", `{"$type":"bigint","value":"${"9".repeat(5000)}"}`],
    ["a date that is none", '{"$type":"Date","value":"2020-99-01T00:00:00.000Z"}'],
    ["a date in other words", '{"$type":"Date","value":"now"}'],
    ["a Map without entries", '{"$type":"Map"}'],
    ["a Map of half a pair", '{"$type":"Map","entries":[[1]]}'],
    ["an Object whose key is none", '{"$type":"Object","entries":[[{},1]]}'],
    ["bytes that are no base64", '{"$type":"Uint8Array","base64":"*"}'],
    ["bytes of half an element", '{"$type":"Float64Array","base64":"AAAA"}'],
    ["an Error without a stack", '{"$type":"Error","name":"E","message":"m"}'],
    ["an abyss", "[".repeat(100_000) + "]".repeat(100_000)],
    ["an abyss of Maps", '{"$type":"Set","values":['.repeat(500) + "]}".repeat(500)],
  ])("is an error: %s", (_name, text) => {
    expect(() => decodeValue(JSON.parse(text))).toThrow(ValueError);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
  });

  test("is nothing else: the deepest value that a run may have is read", () => {
    const deepest = "[".repeat(64) + '{"$type":"undefined"}' + "]".repeat(64);
    expect(decodeValue(JSON.parse(deepest))).toBeInstanceOf(Array);
  });
});
