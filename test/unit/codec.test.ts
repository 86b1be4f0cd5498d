import vm from "node:vm";
import { describe, expect, test } from "vitest";
import { getQuickJS } from "quickjs-emscripten";
import { codec, type EncodeLimits, type Reference } from "#engine/codec";

// oxlint-disable typescript/no-unsafe-type-assertion -- what comes back is unknown until the test has looked at it
const values = codec();
const known = () => 1;
const limits: EncodeLimits = { maxBytes: 1 << 20, maxNodes: 10_000, root: "value" };
const encode = (value: unknown, extra: Partial<EncodeLimits> = {}) =>
  values.encode(value, { ...limits, ...extra });
const decode = (text: string, bytes: Uint8Array = new Uint8Array(), extra = {}) =>
  values.decode(JSON.parse(text), bytes, { maxNodes: 10_000, ...extra });
const roundTrip = (value: unknown) => {
  const { text, blobs } = encode(value);
  return values.decode(JSON.parse(text), blobs, { maxNodes: 10_000 });
};

function refusal(act: () => unknown): { code: string; message: string; path: string } {
  try {
    act();
  } catch (error) {
    if (values.isCodecError(error)) {
      expect(error.name).toBe("DataCloneError");
      return { code: error.code, message: error.message, path: error.path };
    }
    throw error;
  }
  throw new Error("nothing was refused");
}

describe("what crosses", () => {
  test.each([
    ["null", null, "null"],
    ["a boolean", true, "true"],
    ["a string", 'a"b', '"a\\"b"'],
    ["a number", 1e21, "1e+21"],
    ["undefined", undefined, '["u"]'],
    ["NaN", NaN, '["n","NaN"]'],
    ["minus infinity", -Infinity, '["n","-Infinity"]'],
    ["minus zero", -0, '["n","-0"]'],
    ["a bigint", -(2n ** 80n), '["i","-1208925819614629174706176"]'],
    ["a date", new Date(5), '["d",5]'],
    ["an array", [1, [undefined]], '["a",1,["a",["u"]]]'],
    ["an object", { a: 1, b: {} }, '["o","a",1,"b",["o"]]'],
    ["a map", new Map<unknown, unknown>([["__proto__", 1]]), '["m","__proto__",1]'],
    ["a set", new Set([1, "x"]), '["s",1,"x"]'],
    ["a lone surrogate", "\ud800", '"\\ud800"'],
  ])("%s is written as the format says and comes back", (_name, value, text) => {
    expect(encode(value).text).toBe(text);
    expect(roundTrip(value)).toStrictEqual(value);
  });

  test("an invalid date comes back invalid", () => {
    expect(encode(new Date(NaN)).text).toBe('["d",null]');
    expect(Number.isNaN((roundTrip(new Date(NaN)) as Date).getTime())).toBe(true);
  });

  test("bytes of every view come back in order, as copies with their own buffers", () => {
    const shared = new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]).buffer;
    const value = [
      new Uint8Array(shared, 1, 3),
      new Float64Array(shared, 8, 1),
      new BigInt64Array(shared),
      new DataView(shared, 2, 5),
      shared,
      new Int16Array(0),
    ];
    const { text, blobs } = encode(value);
    expect(text).toContain('["b","DataView",5]');
    const whole = Buffer.concat(blobs);
    const [bytes, doubles, big, view, buffer, none] = values.decode(JSON.parse(text), whole, {
      maxNodes: 99,
    }) as [Uint8Array, Float64Array, BigInt64Array, DataView, ArrayBuffer, Int16Array];
    expect([...bytes]).toEqual([2, 3, 4]);
    expect(bytes.buffer.byteLength).toBe(3);
    expect(doubles[0]).toBe((value[1] as Float64Array)[0]);
    expect(big).toStrictEqual(value[2]);
    expect(view.getUint8(0)).toBe(3);
    expect(new Uint8Array(buffer)).toStrictEqual(new Uint8Array(shared));
    expect(none).toStrictEqual(new Int16Array(0));
  });

  test("bytes that are cut into pieces at odd places come back whole", () => {
    const pieces = [new Uint8Array([1]), new Uint8Array(), new Uint8Array([2, 3]), new Uint8Array([4])];
    expect(values.decode(["b", "Uint8Array", 4], pieces, { maxNodes: 9 })).toStrictEqual(
      new Uint8Array([1, 2, 3, 4]),
    );
  });

  test("a Buffer crosses as a Uint8Array", () => {
    expect(roundTrip(Buffer.from("hi"))).toStrictEqual(new Uint8Array([104, 105]));
  });

  test("an error comes back as an Error with its own name, message and stack", () => {
    const back = roundTrip(new RangeError("too far")) as Error;
    expect(back).toBeInstanceOf(Error);
    expect(Object.hasOwn(back, "name") && back.name).toBe("RangeError");
    expect(back.message).toBe("too far");
    expect(back.stack).toContain("too far");
  });

  test("an error without a stack does not get the reader's", () => {
    const { text } = encode(new Error("x"), { omitStacks: true });
    expect(text).toBe('["e","Error","x",null]');
    expect((decode(text) as Error).stack).toBeUndefined();
  });

  test("functions and capabilities cross by reference when a hook knows them", () => {
    const capability = { get: known };
    const mine = {};
    const reference = (value: object): Reference | undefined => {
      if (value === capability) return { kind: "capability", id: 7, methods: ["get", 'a"b'] };
      if (value === mine) return { kind: "home", id: 9 };
      return value === known ? { kind: "function", id: 3 } : undefined;
    };
    const { text } = encode({ a: [known, capability, mine] }, { reference });
    expect(text).toBe('["o","a",["a",["r","function",3],["r","capability",7,"get","a\\"b"],["r","home",9]]]');
    const resolve = (kind: string, id: number, methods: readonly string[]) => [kind, id, ...methods];
    expect(decode(text, undefined, { resolve })).toEqual({
      a: [
        ["function", 3],
        ["capability", 7, "get", 'a"b'],
        ["home", 9],
      ],
    });
  });

  test("a value that stands twice without a cycle is no cycle", () => {
    const twice = { x: 1 };
    expect(roundTrip([twice, twice])).toEqual([{ x: 1 }, { x: 1 }]);
  });

  test("a getter runs once and what it throws is thrown as it is", () => {
    let runs = 0;
    expect(encode({ get a() { return (runs += 1); } }).text).toBe('["o","a",1]'); // prettier-ignore
    const own = new TypeError("mine");
    expect(() => encode({ get a() { throw own; } })).toThrow(own); // prettier-ignore
  });
});

describe("what is refused when written", () => {
  const revoked = Proxy.revocable({}, {});
  revoked.revoke();
  class Point {
    x = 1;
  }
  test.each<[string, unknown, string]>([
    [
      "a function",
      { items: [1, 2, 3, { callback() {} }] },
      "value.items[3].callback: a function cannot cross",
    ],
    ["a symbol", new Map([[Symbol("s"), 1]]), "value<key 0>: a symbol cannot cross"],
    ["a promise", { p: Promise.resolve() }, "value.p: a promise cannot cross"],
    ["a class instance", [new Point()], "value[0]: an instance of a class cannot cross"],
    ["a regular expression", { "odd key": /x/ }, 'value["odd key"]: an instance of a class'],
    ["a subclass of Map", new (class extends Map {})(), "value: an instance of a class"],
    ["a WeakMap", new Set([new WeakMap()]), "value<item 0>: an instance of a class"],
    ["a revoked proxy", { p: revoked.proxy }, "value.p: a proxy that cannot be read"],
    ["a proxy whose keys throw", new Proxy({}, { ownKeys: () => { throw new Error("x"); } }), "value: a proxy"], // prettier-ignore
  ])("%s is refused by its path", (_name, value, words) => {
    const { code, message } = refusal(() => encode(value));
    expect(code).toBe("uncloneable");
    expect(message).toContain(words);
  });

  test("a cycle is refused with both ends named", () => {
    const a: Record<string, unknown> = {};
    a.a = { b: a };
    const { code, message } = refusal(() => encode(a));
    expect(code).toBe("cyclic");
    expect(message).toContain("value.a.b refers back to value");
  });

  test.each(["__proto__", "constructor", "prototype"])("the key %s is refused with advice", (key) => {
    const value = { a: Object.defineProperty({}, key, { value: 1, enumerable: true }) };
    const { code, message, path } = refusal(() => encode(value));
    expect(code).toBe("hostile-key");
    expect(path).toBe(`value.a.${key}`);
    expect(message).toContain("use a Map");
  });

  test("limits of depth, count and bytes are armed", () => {
    const sparse: unknown[] = [];
    sparse.length = 1e9;
    const nested = (depth: number): unknown => (depth === 0 ? 1 : [nested(depth - 1)]);
    expect(encode(nested(64)).text).toContain("1]");
    expect(refusal(() => encode(nested(65))).code).toBe("too-deep");
    expect(refusal(() => encode(sparse)).code).toBe("too-large");
    expect(encode([1, 2], { maxNodes: 3 }).text).toBe('["a",1,2]');
    expect(refusal(() => encode([1, 2], { maxNodes: 2 })).code).toBe("too-large");
    expect(encode("x".repeat(8), { maxBytes: 10 }).text).toHaveLength(10);
    expect(refusal(() => encode("x".repeat(9), { maxBytes: 10 })).code).toBe("too-large");
    expect(refusal(() => encode(new Uint8Array(100), { maxBytes: 100 })).code).toBe("too-large");
    expect(refusal(() => encode(10n ** 4096n)).code).toBe("too-large");
  });
});

describe("what is refused when read", () => {
  test.each<[string, string]>([
    ["a JSON object", '{"a":1}'],
    ["an array without a tag", "[]"],
    ["an unknown tag", '["x"]'],
    ["a tag that is no string", "[1]"],
    ["a tag that names a property of every object", '["constructor"]'],
    ["undefined with a part too many", '["u",1]'],
    ["a number of unknown name", '["n","1"]'],
    ["minus zero in plain", "-0"],
    ["a number past the largest", "1e999"],
    ["a bigint in hexadecimal", '["i","0x10"]'],
    ["a bigint of nothing", '["i","-"]'],
    ["a bigint with an idle zero", '["i","007"]'],
    ["a bigint as a number", '["i",7]'],
    ["a bigint of too many digits", `["i","${"9".repeat(4097)}"]`],
    ["a date out of range", '["d",8640000000000001]'],
    ["a date in text", '["d","2020"]'],
    ["an object with a key and no value", '["o","a"]'],
    ["an object whose key is no string", '["o",1,2]'],
    ["an object with a key twice", '["o","a",1,"a",2]'],
    ["a map with a key twice", '["m",1,1,1,2]'],
    ["a set with an item twice", '["s",["n","NaN"],["n","NaN"]]'],
    ["bytes of an unknown kind", '["b","Buffer",0]'],
    ["bytes of a kind that every object has", '["b","__proto__",0]'],
    ["bytes with a negative length", '["b","Uint8Array",-1]'],
    ["bytes with a broken length", '["b","Uint8Array",0.5]'],
    ["more bytes than were sent", '["b","Uint8Array",5]'],
    ["fewer bytes than were sent", '["b","Uint8Array",3]'],
    ["bytes that are no whole number of elements", '["a",["b","Int32Array",3],["b","Uint8Array",1]]'],
    ["an error with a name that is no string", '["e",1,"m",null]'],
    ["an error of three parts", '["e","n","m"]'],
    ["a reference of unknown kind", '["r","object",1]'],
    ["a reference to zero", '["r","function",0]'],
    ["a reference where none may stand", '["r","function",1]'],
  ])("%s is malformed", (_name, text) => {
    expect(refusal(() => decode(text, new Uint8Array(4))).code).toBe("malformed");
  });

  test("hostile keys are refused and pollute nothing", () => {
    for (const key of ["__proto__", "constructor", "prototype"]) {
      expect(refusal(() => decode(`["o","${key}",["o","polluted",1]]`)).code).toBe("hostile-key");
    }
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
  });

  test("limits of depth and count are armed", () => {
    expect(refusal(() => decode('["a",'.repeat(65) + "1" + "]".repeat(65))).code).toBe("too-deep");
    expect(refusal(() => decode('["a",1,2,3]', undefined, { maxNodes: 3 })).code).toBe("too-large");
  });

  test("an announced terabyte is refused before it is allocated", () => {
    expect(refusal(() => decode('["b","ArrayBuffer",1099511627776]')).code).toBe("malformed");
  });
});

/** Everything in one value, written by the codec that stands in `codec` and read again; returns the text. */
const trial = `
  const made = codec();
  const value = { list: [1, -0, "\\ud800", undefined, null], big: 12n, at: new Date(3),
    map: new Map([[1, new Set(["x"])]]), bytes: new Uint16Array([1, 2]), error: new RangeError("far") };
  const sent = made.encode(value, { maxBytes: 1e6, maxNodes: 1000, root: "value", omitStacks: true });
  const back = made.decode(JSON.parse(sent.text), sent.blobs, { maxNodes: 1000 });
  const again = made.encode(back, { maxBytes: 1e6, maxNodes: 1000, root: "value", omitStacks: true });
  if (again.text !== sent.text || again.blobs[0].length !== 4) throw new Error(again.text);
  let cycle = []; cycle[0] = cycle;
  try { made.encode(cycle, { maxBytes: 1e6, maxNodes: 1000, root: "value" }); throw new Error("no cycle"); }
  catch (error) { if (!made.isCodecError(error)) throw error; }
`;
const expected =
  '["o","list",["a",1,["n","-0"],"\\ud800",["u"],null],"big",["i","12"],"at",["d",3],' +
  '"map",["m",1,["s","x"]],"bytes",["b","Uint16Array",4],"error",["e","RangeError","far",null]]';

describe("one implementation for both realms", () => {
  test("its source text runs in an empty context of node:vm", () => {
    const context = vm.createContext(Object.create(null));
    expect(vm.runInContext(`"use strict"; const codec = ${String(codec)};${trial} sent.text`, context)).toBe(
      expected,
    );
  });

  test("its source text runs in QuickJS", async () => {
    const quickjs = await getQuickJS();
    const result = quickjs.evalCode(`"use strict"; const codec = ${String(codec)};${trial} sent.text`);
    expect(result).toBe(expected);
  });

  test("code that patches the primordials later neither changes nor sees what is written", async () => {
    // The patching itself uses nothing that it has patched: indices, and descriptors without a prototype.
    const patch = `
      let seen = "";
      const spy = (name) => {
        const touch = () => { seen += name + " "; };
        return { __proto__: null, configurable: true, get: touch, set: touch };
      };
      const targets = [];
      for (const owner of [Array, Object, Map, Set, Date, String, RegExp, Uint8Array, DataView, ArrayBuffer, WeakSet,
        Object.getPrototypeOf(Uint8Array)]) {
        for (const key of Reflect.ownKeys(owner.prototype)) targets.push([owner.prototype, key, String(key)]);
      }
      for (const key of ["0", "1", "get", "set", "value", "reference", "resolve", "maxDepth", "toJSON", "polluted"]) {
        targets.push([Object.prototype, key, key], [Array.prototype, key, key]);
      }
      const define = Reflect.defineProperty;
      const made = codec();
      const value = { a: [1, new Map([["k", new Set([2])]]), new Date(1), new Uint8Array([9]), new Error("e"), "s"] };
      const wire = JSON.parse(
        '["o","a",["a",1,["m","k",["s",2]],["d",1],["b","Uint8Array",1],["i","5"],["e","n","m",null]]]');
      const limits = { maxBytes: 1e6, maxNodes: 99, root: "value", omitStacks: true }, bytes = new Uint8Array([9]);
      for (let i = 0; i < targets.length; i += 1) define(targets[i][0], targets[i][1], spy(targets[i][2]));
      JSON.stringify = Reflect.apply = Object.keys = Object.defineProperty = Object.hasOwn = Array.isArray = () => "evil";
      Object.getPrototypeOf = Object.create = Reflect.getPrototypeOf = globalThis.BigInt = () => "evil";
      globalThis.Uint8Array = globalThis.Map = globalThis.Date = undefined;
      [].push; // positive control: the patches are in place
      const control = seen;
      seen = "";
      const sent = made.encode(value, limits);
      made.decode(wire, bytes, limits);
      sent.text + "|" + control + "|" + seen`;
    const program = `"use strict"; const codec = ${String(codec)};${patch}`;
    const quiet =
      '["o","a",["a",1,["m","k",["s",2]],["d",1],["b","Uint8Array",1],["e","Error","e",null],"s"]]|push |';
    expect(vm.runInNewContext(program)).toBe(quiet);
    expect((await getQuickJS()).evalCode(program)).toBe(quiet);
  });
});
