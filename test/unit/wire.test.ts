import { describe, expect, test } from "vitest";
import { codec, type EncodedValue } from "#engine/codec";
import {
  encodeItems,
  encodeMessage,
  FrameDecoder,
  FrameSource,
  parseFrame,
  protocolErrors,
  ProtocolError,
  WorkerConnection,
  wireLimits,
  type ConnectionLimits,
  type Frame,
  type HostMessage,
  type ProtocolErrorCode,
  type WorkerMessage,
} from "#hostapi/wire";

const values = codec();
const limits: ConnectionLimits = {
  maxTextBytes: 1 << 20,
  maxBlobBytes: 1 << 20,
  maxFrames: 100,
  maxBytesIn: 1 << 22,
  maxCalls: 10,
  maxInFlight: 3,
};
const wired = (value: unknown): EncodedValue =>
  values.encode(value, { maxBytes: 1 << 20, maxNodes: 1000, root: "value" });

/** A frame as no honest worker would write it. */
function raw(
  kind: number,
  text: string | Uint8Array,
  blob = new Uint8Array(),
  header: Partial<Record<number, number>> = {},
): Buffer {
  const body = typeof text === "string" ? Buffer.from(text) : Buffer.from(text);
  const head = Buffer.alloc(12);
  head.writeUInt32LE(body.length, 0);
  head.writeUInt32LE(blob.length, 4);
  head.writeUInt8(kind, 8);
  for (const [at, byte] of Object.entries(header)) head.writeUInt8(byte ?? 0, Number(at));
  return Buffer.concat([head, body, blob]);
}

function onlyFrame(bytes: Uint8Array): Frame {
  const [frame] = new FrameDecoder(limits).push(bytes);
  if (frame === undefined) throw new Error("no frame");
  return frame;
}

const parked = encodeMessage({ kind: "parked" });
const call = (id: number, args: unknown[] = []) =>
  encodeMessage({ kind: "call", id, ref: 0, method: "get", args: wired(args) });
const reply = (id: number) => encodeMessage({ kind: "reply", id, ok: true, value: wired(1) });
const log = encodeMessage({ kind: "log", level: "info", timeMs: 1.5, texts: ["hé", "llo"] });
const result = encodeMessage({ kind: "result", status: "ok", value: wired({ a: new Uint8Array([7]) }) });

const fresh = (extra: Partial<ConnectionLimits> = {}) => new WorkerConnection({ ...limits, ...extra });
const knows = (ref: number): boolean => ref === 5;
function running(extra: Partial<ConnectionLimits> = {}): WorkerConnection {
  const connection = fresh(extra);
  connection.feed(parked);
  connection.startJob(knows);
  return connection;
}

function codeOf(act: () => unknown): ProtocolErrorCode {
  try {
    act();
  } catch (error) {
    if (error instanceof ProtocolError) return error.code;
    throw error;
  }
  throw new Error("nothing was refused");
}

/** The bytes end the connection with this code, and afterwards even a good frame is refused. */
function refused(connection: WorkerConnection, bytes: Uint8Array, code: ProtocolErrorCode): void {
  expect(codeOf(() => connection.feed(bytes))).toBe(code);
  expect(connection.dead).toBe(true);
  expect(codeOf(() => connection.feed(log))).toBe("dead");
}

describe("a well-formed sequence", () => {
  test("passes through every state, whole or byte by byte", () => {
    for (const size of [1, 7, 1 << 16]) {
      const connection = fresh();
      const feed = (bytes: Uint8Array): WorkerMessage[] => {
        const messages: WorkerMessage[] = [];
        for (let at = 0; at < bytes.length; at += size) {
          messages.push(...connection.feed(bytes.subarray(at, at + size)));
        }
        return messages;
      };
      expect(connection.state).toBe("starting");
      expect(feed(parked)).toEqual([{ kind: "parked" }]);
      expect(connection.state).toBe("parked");
      connection.startJob(knows);
      connection.called(9);
      const release = encodeMessage({ kind: "release", ref: 5, count: 2 });
      const messages = feed(Buffer.concat([call(1, ["k"]), log, reply(9), release, call(2)]));
      expect(messages.map((message) => message.kind)).toEqual(["call", "log", "reply", "release", "call"]);
      expect(messages[0]).toMatchObject({ id: 1, ref: 0, method: "get", args: { wire: ["a", "k"] } });
      expect(messages[1]).toEqual({ kind: "log", level: "info", timeMs: 1.5, texts: ["hé", "llo"] });
      connection.answered(1);
      connection.answered(2);
      const [last] = feed(result);
      expect(connection.state).toBe("done");
      if (last?.kind !== "result" || last.status !== "ok") throw new Error("no result");
      expect(values.decode(last.value.wire, last.value.blob, { maxNodes: 9 })).toEqual({
        a: new Uint8Array([7]),
      });
    }
  });

  test("carries every message of the worker unchanged", () => {
    const messages: WorkerMessage<EncodedValue>[] = [
      { kind: "result", status: "threw", error: { name: "TypeError", message: "é\ud800{", stack: "at a" } },
      { kind: "result", status: "stopped", reason: "deadlock", detail: "" },
    ];
    for (const message of messages) expect(running().feed(encodeMessage(message))).toEqual([message]);
  });

  test("carries every message of the host to a blocking reader, in pieces smaller and larger than its buffer", () => {
    const source = "x".repeat(200_000);
    const job: HostMessage<EncodedValue> = {
      kind: "job",
      role: "session",
      type: "module",
      name: "main",
      source,
      modules: [["./a", "export {}"]],
      seed: new Uint8Array(32).fill(3),
      nowMs: 1.7e12,
      wallMs: 1000,
      maxResultBytes: 1,
      maxLogBytes: 2,
      maxStackBytes: 3,
      maxMemoryBytes: 4,
      maxCallBytes: 5,
      maxInFlight: 6,
      maxTimers: 7,
      fuel: 12_345,
      clock: { mode: "coarse", stepMs: 8 },
      leastLevel: "warn",
      env: [
        ["kv", "capability", 2 ** 52 - 1, ["get", "set"]],
        ["f", "function", 9],
        ["token", "text", "secret-é"],
      ],
      input: wired(new Uint8Array([1, 2])),
    };
    const bytes = Buffer.concat([
      encodeMessage(job),
      ...encodeItems(5, [
        { kind: "reply", id: 1, ok: false, value: wired(new Error("no")) },
        { kind: "reply", id: 2, ok: true, value: wired("two") },
        { kind: "reply", id: 3, ok: true, value: wired(new Uint8Array([9])) },
        { kind: "call", id: 1, ref: 4, method: "", args: wired([1]) },
      ]),
      encodeMessage({ kind: "release", ref: 4, count: 1, nowMs: 6 }),
    ]);
    let at = 0;
    const reader = new FrameSource((into) => {
      const part = bytes.subarray(at, Math.min(at + into.length, at + 70_001));
      into.set(part);
      at += part.length;
      return part.length;
    });
    const got = reader.job();
    if (got === undefined) throw new Error("no job");
    const { input, ...rest } = got;
    const { input: _input, ...sent } = job;
    expect(rest).toEqual(sent);
    expect(values.decode(input.wire, input.blob, { maxNodes: 9 })).toEqual(new Uint8Array([1, 2]));
    const next = () => {
      let [text, blob] = [new Uint8Array(), new Uint8Array()];
      const kind = reader.next((textBytes, blobBytes) => {
        [text, blob] = [new Uint8Array(textBytes), new Uint8Array(blobBytes)];
        return { text, blob };
      });
      return kind === undefined ? undefined : [kind, JSON.parse(Buffer.from(text).toString()), [...blob]];
    };
    expect(next()).toEqual(["reply", [5, [1, false, ["e", "Error", "no", expect.any(String)]], [2, true, "two"]], []]); // prettier-ignore
    expect(next()).toEqual(["reply", [5, [3, true, ["b", "Uint8Array", 1]]], [9]]);
    expect(next()).toEqual(["call", [5, [1, 4, "", ["a", 1]]], []]);
    expect(next()).toEqual(["release", [6, [4, 1]], []]);
    expect(next()).toBeUndefined();
  });

  test("texts that a guest chose are cut to their limits instead of ending an honest worker", () => {
    const long = "y".repeat(100_000);
    const connection = running();
    const texts = Array.from({ length: 100 }, () => "z");
    connection.feed(encodeMessage({ kind: "log", level: "warn", timeMs: 0, texts: [long, ...texts] }));
    const error = { name: long, message: long, stack: long };
    const [message] = connection.feed(encodeMessage({ kind: "result", status: "threw", error }));
    expect(message).toEqual({
      kind: "result",
      status: "threw",
      error: {
        name: long.slice(0, wireLimits.errorNameChars),
        message: long.slice(0, wireLimits.errorMessageChars),
        stack: long.slice(0, wireLimits.errorStackChars),
      },
    });
  });
});

describe("frames", () => {
  test("a text shorter than an empty array is refused", () => refused(running(), raw(5, "1"), "bad-length"));

  test("a frame that is cut short never completes and yields no message", () => {
    const connection = running();
    for (let at = 0; at < result.length - 1; at += 1) {
      expect(connection.feed(result.subarray(at, at + 1))).toEqual([]);
    }
    expect(connection.state).toBe("running");
  });

  test("a stream that ends within a frame is an error for a blocking reader", () => {
    let left = 1;
    const source = new FrameSource((into) => {
      into.set(result.subarray(0, 20));
      left -= 1;
      return left === 0 ? 20 : 0;
    });
    const room = (text: number, blob: number) => ({ text: new Uint8Array(text), blob: new Uint8Array(blob) });
    expect(codeOf(() => source.next(room))).toBe("truncated");
  });

  test("a header that announces more than the limit is refused before its body comes", () => {
    refused(running(), raw(5, "[]", undefined, { 3: 0x7f }).subarray(0, 12), "too-large");
    refused(running(), raw(5, "[]", undefined, { 7: 0x7f }).subarray(0, 12), "too-large");
  });

  test("a header that announces 64 MiB allocates only for what arrives", () => {
    const decoder = new FrameDecoder({ maxTextBytes: 1 << 26, maxBlobBytes: 1 << 26 });
    expect(decoder.push(raw(5, "[]", undefined, { 0: 0, 3: 4 }))).toEqual([]);
    expect(decoder.partial).toBe(true);
    expect(decoder.buffered).toBeLessThan(16);
    decoder.push(new Uint8Array(1000));
    expect(decoder.buffered).toBeLessThan(2100);
  });

  test.each([0, 8, 255])("the unknown kind %i is refused", (kind) => {
    refused(running(), raw(kind, "[]"), "unknown-kind");
  });

  test.each([9, 10, 11])("a byte that is not zero at the reserved place %i is refused", (at) => {
    refused(running(), raw(5, "[]", undefined, { [at]: 1 }), "bad-reserved");
  });

  test("a decoder that has failed stays failed", () => {
    const decoder = new FrameDecoder(limits);
    expect(codeOf(() => decoder.push(raw(0, "[]")))).toBe("unknown-kind");
    expect(codeOf(() => decoder.push(parked))).toBe("dead");
  });

  test("a frame's blob is its own when the chunk is used again", () => {
    const chunk = Buffer.from(result);
    const frame = onlyFrame(chunk);
    chunk.fill(0);
    expect([...frame.blob]).toEqual([7]);
  });
});

describe("texts", () => {
  test.each([
    ["a lone continuation byte", [0x80]],
    ["an overlong slash", [0xc0, 0xaf]],
    ["a surrogate in UTF-8", [0xed, 0xa0, 0x80]],
    ["a character cut short", [0xe2, 0x82]],
  ])("invalid UTF-8 is refused: %s", (_name, bytes) => {
    const text = Buffer.concat([Buffer.from('["info",1,["'), Buffer.from(bytes), Buffer.from('"]]')]);
    refused(running(), raw(5, text), "bad-utf8");
  });

  test("deep nesting is refused before it is parsed", () => {
    refused(running(), raw(6, '["ok",' + "[".repeat(100_000) + "]".repeat(100_000) + "]"), "too-deep");
  });

  test("a text of nothing but commas is refused before it is parsed", () => {
    const bomb = `["ok",["a"${",0".repeat(wireLimits.commas)}]]`;
    refused(running({ maxTextBytes: 1 << 23, maxBytesIn: 1 << 24 }), raw(6, bomb), "too-many-nodes");
  });

  test("a JSON object is refused wherever it stands", () => {
    for (const text of [
      '{"status":"ok"}',
      '["ok",{}]',
      '["ok",["a",{"a":1}]]',
      '["ok",}]',
      '["ok","\\"",{}]',
    ]) {
      refused(running(), raw(6, text), "object");
    }
  });

  test("braces within strings are text", () => {
    expect(running().feed(raw(6, '["ok","{\\"}\\\\"]'))).toMatchObject([{ value: { wire: '{"}\\' } }]);
  });

  test.each(["[[", "[1,]", "]]", "[01]", '["\\x"]', '["', "\ufeff[]", "[] []"])(
    "broken JSON is refused: %s",
    (text) => {
      refused(running(), raw(6, text), "bad-json");
    },
  );

  test("a text that is no array is refused", () => {
    for (const text of ["12", "null", '"ok"']) refused(running(), raw(6, text), "bad-shape");
  });

  test("keys that pollute are refused by the codec and touch nothing", () => {
    const [message] = running().feed(raw(6, '["ok",["o","__proto__",["o","polluted",1]]]'));
    if (message?.kind !== "result" || message.status !== "ok") throw new Error("no result");
    const { wire, blob } = message.value;
    expect(() => values.decode(wire, blob, { maxNodes: 99 })).toThrow(/a key that cannot cross/);
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
  });

  test("a JSON object with duplicate keys is refused as an object, a value with them by the codec", () => {
    refused(running(), raw(6, '["ok",{"a":1,"a":2}]'), "object");
    const [message] = running().feed(raw(6, '["ok",["o","a",1,"a",2]]'));
    if (message?.kind !== "result" || message.status !== "ok") throw new Error("no result");
    const { wire, blob } = message.value;
    expect(() => values.decode(wire, blob, { maxNodes: 99 })).toThrow(/a key that stands twice/);
  });

  test("words that every object has are no words of the protocol", () => {
    for (const word of ["__proto__", "constructor", "toString", "hasOwnProperty"]) {
      refused(running(), raw(6, `["${word}",1]`), "bad-shape");
      refused(running(), raw(6, `["stopped","${word}",""]`), "bad-shape");
      refused(running(), raw(5, `["${word}",1,[]]`), "bad-shape");
    }
  });
});

describe("shapes", () => {
  test.each<[string, number, string]>([
    ["parked with a part", 7, "[1]"],
    ["a call of three parts", 2, '[1,0,"get"]'],
    ["a call of five parts", 2, '[1,0,"get",["a"],1]'],
    ["a call whose arguments are no array value", 2, '[1,0,"get",["o"]]'],
    ["a call whose arguments are a string", 2, '[1,0,"get","a"]'],
    ["a call whose method is a number", 2, '[1,0,7,["a"]]'],
    ["a call whose method is too long", 2, `[1,0,"${"m".repeat(129)}",["a"]]`],
    ["a call with a negative reference", 2, '[1,-1,"get",["a"]]'],
    ["a call with a reference past 2^53", 2, '[1,9007199254740993,"get",["a"]]'],
    ["a call with a reference of minus zero", 2, '[1,-0,"get",["a"]]'],
    ["a call with a reference in text", 2, '[1,"0","get",["a"]]'],
    ["a call with an id past 32 bits", 2, '[4294967296,0,"get",["a"]]'],
    ["a call with a broken id", 2, '[1.5,0,"get",["a"]]'],
    ["a reply with the host's clock", 3, "[1,5,true,1]"],
    ["a reply whose ok is a number", 3, "[1,1,1]"],
    ["a release of nothing", 4, "[0,1]"],
    ["a release no times", 4, "[5,0]"],
    ["a log of unknown level", 5, '["fatal",1,[]]'],
    ["a log at infinity", 5, '["info",1e999,[]]'],
    ["a log whose text is a number", 5, '["info",1,[1]]'],
    ["a log of too many texts", 5, `["info",1,[${'"",'.repeat(64)}""]]`],
    ["a log of too long a text", 5, `["info",1,["${"x".repeat(32_769)}"]]`],
    ["a result of no parts", 6, "[]"],
    ["a result of unknown status", 6, '["cancelled"]'],
    ["a result without a value", 6, '["ok"]'],
    ["a result with two values", 6, '["ok",1,2]'],
    ["a thrown error without a stack", 6, '["threw","Error","m"]'],
    ["a stop for the supervisor's reason", 6, '["stopped","wall-time",""]'],
  ])("%s is refused", (_name, kind, text) => {
    const connection = kind === 7 ? fresh() : running();
    refused(connection, raw(kind, text), "bad-shape");
  });

  test("a blob where no value can name it is refused", () => {
    const blob = new Uint8Array(1);
    refused(fresh(), raw(7, "[]", blob), "bad-shape");
    refused(running(), raw(4, "[5,1]", blob), "bad-shape");
    refused(running(), raw(5, '["info",1,[]]', blob), "bad-shape");
    refused(running(), raw(6, '["stopped","memory",""]', blob), "bad-shape");
  });

  test("a blob longer or shorter than its value says is refused by the codec", () => {
    for (const size of [3, 5]) {
      const [message] = running().feed(raw(6, '["ok",["b","Uint8Array",4]]', new Uint8Array(size)));
      if (message?.kind !== "result" || message.status !== "ok") throw new Error("no result");
      const { wire, blob } = message.value;
      expect(() => values.decode(wire, blob, { maxNodes: 9 })).toThrow(
        /more bytes announced|bytes that nothing names/,
      );
    }
  });

  test("a job from the worker is refused", () => refused(running(), raw(1, "[]"), "wrong-direction"));

  test.each([5, 6, 7])("the worker's kind %i from the host is refused", (kind) => {
    const frame = onlyFrame(raw(kind, "[]"));
    expect(codeOf(() => parseFrame(frame, "host"))).toBe("wrong-direction");
  });

  test("a job without a whole seed is refused", () => {
    const frame = onlyFrame(raw(1, "[]", new Uint8Array(31)));
    expect(codeOf(() => parseFrame(frame, "host"))).toBe("bad-shape");
  });
});

describe("order", () => {
  test("anything before parked is refused", () => {
    for (const bytes of [call(1), log, result]) refused(fresh(), bytes, "bad-order");
  });

  test("anything while parked is refused, even a second parked or a single byte", () => {
    for (const bytes of [parked, call(1), log, result, Buffer.of(1)]) {
      const connection = fresh();
      connection.feed(parked);
      refused(connection, bytes, "bad-order");
    }
    refused(fresh(), Buffer.concat([parked, log]), "bad-order");
    refused(fresh(), Buffer.concat([parked, Buffer.of(1)]), "bad-order");
  });

  test("a second parked while running is refused", () => refused(running(), parked, "bad-order"));

  test("anything after the result is refused, in the same chunk or the next", () => {
    for (const bytes of [result, log, parked, Buffer.of(0)]) {
      const connection = running();
      connection.feed(result);
      refused(connection, bytes, "bad-order");
      refused(running(), Buffer.concat([result, bytes]), "bad-order");
    }
  });

  test("a call id that stands twice is refused", () => {
    refused(running(), Buffer.concat([call(1), call(1)]), "bad-call-id");
  });

  test("a call id that skips one is refused", () => {
    refused(running(), call(2), "bad-call-id");
    refused(running(), Buffer.concat([call(1), call(3)]), "bad-call-id");
  });

  test("a call id stays used when its call is answered", () => {
    const connection = running();
    connection.feed(call(1));
    connection.answered(1);
    refused(connection, call(1), "bad-call-id");
  });

  test("a reply that nothing asked for is refused, and so is a second one", () => {
    refused(running(), reply(1), "unknown-reply");
    const connection = running();
    connection.called(1);
    expect(connection.feed(reply(1))).toHaveLength(1);
    refused(connection, reply(1), "unknown-reply");
  });

  test("a release of a reference that was never given is refused", () => {
    refused(running(), encodeMessage({ kind: "release", ref: 6, count: 1 }), "unknown-ref");
  });

  test("more calls in flight than the limit are refused, and answers make room", () => {
    const connection = running();
    connection.feed(Buffer.concat([call(1), call(2), call(3)]));
    connection.answered(2);
    connection.feed(call(4));
    refused(connection, call(5), "too-many-in-flight");
  });

  test("more calls in all than the limit are told apart from a broken protocol", () => {
    const connection = running({ maxCalls: 2 });
    for (const id of [1, 2]) {
      connection.feed(call(id));
      connection.answered(id);
    }
    refused(connection, call(3), "too-many-calls");
  });

  test("a flood of small frames is refused", () => {
    refused(running({ maxFrames: 50 }), Buffer.concat(Array.from({ length: 50 }, () => log)), "flood");
  });

  test("a flood of bytes is refused, also when no frame is whole", () => {
    const connection = running({ maxBytesIn: 1000 });
    connection.feed(raw(6, "[]", new Uint8Array(900), { 6: 1 }));
    refused(connection, new Uint8Array(200), "flood");
  });

  test("mistakes of the host itself are plain errors", () => {
    const connection = fresh();
    expect(() => connection.startJob(knows)).toThrow("a job for a worker that is starting");
    expect(() => connection.answered(1)).toThrow("not in flight");
    connection.called(1);
    expect(() => connection.called(1)).toThrow("a second call");
  });
});

test("every error of the protocol has words and a remedy of its own", () => {
  const messages = Object.values(protocolErrors).map((entry) => entry.message);
  expect(new Set(messages).size).toBe(messages.length);
  for (const { remedy } of Object.values(protocolErrors)) expect(remedy).toMatch(/^[A-Z].*\.$/);
});
