import * as fc from "fast-check";
import { afterEach, expect, test } from "vitest";
import { codec } from "#engine/codec";
import { encodeMessage, FrameDecoder, parseFrame, ProtocolError, WorkerConnection } from "#hostapi/wire";

const values = codec();
const limits = {
  maxTextBytes: 1 << 20,
  maxBlobBytes: 1 << 20,
  maxFrames: 1000,
  maxBytesIn: 1 << 24,
  maxCalls: 100,
  maxInFlight: 10,
};
const hostile = new Set(["__proto__", "constructor", "prototype"]);
const keysBefore = Reflect.ownKeys(Object.prototype).length;

afterEach(() => expect(Reflect.ownKeys(Object.prototype)).toHaveLength(keysBefore));

const text = fc.string({ unit: "binary" });
const { value: anyValue } = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small", withCrossShrink: true },
    fc.oneof(
      text,
      fc.double(),
      fc.integer(),
      fc.boolean(),
      fc.bigInt(),
      fc.date({ noInvalidDate: true }),
      fc.constantFrom<unknown>(null, undefined, "\ud800", "{", '"'),
      fc.uint8Array(),
      fc.int16Array(),
      fc.float64Array(),
      fc.bigUint64Array(),
    ),
    fc.array(tie("value"), { maxLength: 6 }),
    fc.dictionary(
      text.filter((key) => !hostile.has(key)),
      tie("value"),
      { maxKeys: 6, noNullPrototype: true },
    ),
    fc.array(fc.tuple(tie("value"), tie("value")), { maxLength: 4 }).map((pairs) => new Map(pairs)),
    fc.array(tie("value"), { maxLength: 4 }).map((items) => new Set(items)),
  ),
}));

const encode = (value: unknown) =>
  values.encode(value, { maxBytes: 1 << 20, maxNodes: 100_000, root: "value" });

function running(): WorkerConnection {
  const connection = new WorkerConnection(limits);
  connection.feed(encodeMessage({ kind: "parked" }));
  connection.startJob(() => true);
  return connection;
}

/** Cuts at the given places, in any order, some of them perhaps equal. */
function pieces(bytes: Uint8Array, cuts: number[]): Uint8Array[] {
  const places = [0, ...cuts.map((cut) => cut % (bytes.length + 1)), bytes.length].sort((a, b) => a - b);
  return places.slice(1).map((end, index) => bytes.subarray(places[index], end));
}

test("any value comes back the same through codec, frame and any cutting of the stream", () => {
  fc.assert(
    fc.property(anyValue, fc.array(fc.nat(), { maxLength: 8 }), (value, cuts) => {
      const frame = encodeMessage({ kind: "result", status: "ok", value: encode(value) });
      const connection = running();
      const messages = pieces(frame, cuts).flatMap((piece) => connection.feed(piece));
      expect(messages).toHaveLength(1);
      const [message] = messages;
      if (message?.kind !== "result" || message.status !== "ok") throw new Error("no result");
      const back = values.decode(message.value.wire, message.value.blob, { maxNodes: 100_000 });
      expect(back).toStrictEqual(value);
      expect(encode(back)).toStrictEqual(encode(value));
    }),
    { numRuns: 500 },
  );
});

/** Feeds hostile bytes as the supervisor would; nothing but the two known errors may come out. */
function survives(bytes: Uint8Array, cuts: number[]): void {
  const connection = running();
  try {
    for (const piece of pieces(bytes, cuts)) {
      for (const message of connection.feed(piece)) {
        const value =
          message.kind === "call"
            ? message.args
            : message.kind === "result" && message.status === "ok"
              ? message.value
              : undefined;
        if (value !== undefined) values.decode(value.wire, value.blob, { maxNodes: 10_000 });
      }
    }
  } catch (error) {
    if (!(error instanceof ProtocolError) && !values.isCodecError(error)) throw error;
  }
}

test("random bytes are refused with an error of the protocol or of the codec and nothing else", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), fc.array(fc.nat(), { maxLength: 4 }), survives), {
    numRuns: 2000,
  });
});

test("random bodies behind an honest header are refused in the same way", () => {
  const body = fc.oneof(
    fc.json().map((json) => Buffer.from(json)),
    fc
      .array(fc.constantFrom(...'[]{},"\\:019-.eaobnmirsdu\n\u00e9'.split("")), { maxLength: 60 })
      .map((all) => Buffer.from(all.join(""))),
    fc.uint8Array({ maxLength: 60 }),
  );
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 7 }),
      body,
      fc.uint8Array({ maxLength: 40 }),
      (kind, bytes, blob) => {
        const header = Buffer.alloc(12);
        header.writeUInt32LE(bytes.length, 0);
        header.writeUInt32LE(blob.length, 4);
        header.writeUInt8(kind, 8);
        const frame = Buffer.concat([header, bytes, blob]);
        survives(frame, []);
        try {
          for (const one of new FrameDecoder(limits).push(frame)) parseFrame(one, "host");
        } catch (error) {
          if (!(error instanceof ProtocolError)) throw error;
        }
      },
    ),
    { numRuns: 3000 },
  );
});

test("valid frames with some bytes changed, removed or doubled are refused in the same way or still valid", () => {
  const change = fc.record({
    at: fc.nat(),
    byte: fc.oneof(fc.integer({ min: 0, max: 255 }), fc.constantFrom(...Buffer.from('[]{},"\\09-'))),
    how: fc.constantFrom("set", "remove", "double"),
  });
  fc.assert(
    fc.property(anyValue, fc.array(change, { minLength: 1, maxLength: 4 }), (value, changes) => {
      const bytes = [
        ...encodeMessage({ kind: "call", id: 1, ref: 0, method: "m", args: encode([value]) }),
        ...encodeMessage({ kind: "result", status: "ok", value: encode(value) }),
      ];
      for (const { at, byte, how } of changes) {
        const place = at % bytes.length;
        if (how === "set") bytes[place] = byte;
        else bytes.splice(place, how === "remove" ? 1 : 0, ...(how === "double" ? [byte] : []));
      }
      survives(Uint8Array.from(bytes), []);
    }),
    { numRuns: 2000 },
  );
});

test("any JSON is read by the codec or refused by it, and a value read is written again", () => {
  const { wire } = fc.letrec<{ wire: unknown }>((tie) => ({
    wire: fc.oneof(
      { depthSize: "small" },
      fc.oneof(
        fc.constantFrom<unknown>(null, true, 1, -0, "__proto__", "123", "Uint8Array", "NaN"),
        fc.double(),
        text,
      ),
      fc
        .tuple(
          fc.constantFrom("a", "o", "u", "n", "i", "d", "m", "s", "b", "e", "r", "x"),
          fc.array(tie("wire"), { maxLength: 5 }),
        )
        .map(([tag, parts]) => [tag, ...parts]),
      fc.dictionary(text, tie("wire"), { maxKeys: 2 }),
    ),
  }));
  fc.assert(
    fc.property(wire, fc.uint8Array({ maxLength: 8 }), (hostileWire, blob) => {
      try {
        encode(values.decode(hostileWire, blob, { maxNodes: 100 }));
      } catch (error) {
        if (!values.isCodecError(error)) throw error;
      }
    }),
    { numRuns: 3000 },
  );
});
