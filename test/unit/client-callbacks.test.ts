/** Callbacks that somebody else sends, or sends again. What the service itself sends: client-jobs.test.ts. */
import { createHmac } from "node:crypto";
import { describe, expect, test } from "vitest";
import { CallbackError, verifyCallback, type CallbackHeaders } from "doublehull/client";

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const key = Buffer.from("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "base64");
const at = 1_900_000_000;
const now = () => at * 1000;
const timestamp = "2030-03-17T17:46:40.000Z";
const job = { id: "j", state: "done", createdMs: 1, outcome: { status: "ok", value: { $type: "bigint", value: "7" } } }; // prettier-ignore
const body = JSON.stringify({ type: "job.done", timestamp, data: job });

const signed = (text: string, { with: by = key as Buffer | string, id = "j-1", time = String(at) } = {}) => ({
  "webhook-id": id,
  "webhook-timestamp": time,
  "webhook-signature": `v1,${createHmac("sha256", by).update(`${id}.${time}.${text}`).digest("base64")}`,
});
const good = signed(body);
const verified = (headers: unknown, text = body, options = {}) =>
  verifyCallback(secret, headers as CallbackHeaders, text, { now, ...options });
const refusal = async (asked: Promise<unknown>): Promise<CallbackError> => {
  const error: unknown = await asked.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(CallbackError);
  return error as CallbackError;
};

describe("a callback is taken", () => {
  test("that the secret signed just now", async () => {
    expect(await verified(good)).toEqual({ id: "j-1", type: "job.done", timestamp, data: { ...job, outcome: { status: "ok", value: 7n } } }); // prettier-ignore
  });

  test("as the standard's own example is signed", async () => {
    const example = {
      "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
      "webhook-timestamp": "1614265330",
      "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    };
    const then = { now: () => 1_614_265_330_000 };
    // The signature is right; its event is no job's.
    expect((await refusal(verified(example, '{"test": 2432232314}', then))).code).toBe("bad-body");
    expect((await refusal(verified(example, '{"test": 2432232315}', then))).code).toBe("bad-signature");
  });

  test("with any one of several signatures and secrets, whatever the others are", async () => {
    const right = good["webhook-signature"];
    const wrong = signed(body, { with: "other" })["webhook-signature"];
    for (const signatures of [`${wrong} ${right}`, `${right} ${wrong}`, `v1a,${"A".repeat(86)} v1,x v1, ${right}`, ` ${right}`])
      expect((await verified({ ...good, "webhook-signature": signatures })).id).toBe("j-1"); // prettier-ignore
    expect((await verifyCallback(["other", secret], good, body, { now })).id).toBe("j-1");
    expect((await refusal(verified({ ...good, "webhook-signature": `${wrong} ${wrong}` }))).code).toBe("bad-signature"); // prettier-ignore
  });

  test("by a secret in either alphabet of base64, padded or not, and one that is any text", async () => {
    const bytes = Buffer.from("fbefbeff00", "hex");
    for (const form of [bytes.toString("base64"), bytes.toString("base64url")])
      expect((await verifyCallback(`whsec_${form}`, signed(body, { with: bytes }), body, { now })).id).toBe("j-1"); // prettier-ignore
    expect((await verifyCallback("wörter", signed(body, { with: "wörter" }), body, { now })).id).toBe("j-1");
  });

  test("with names of headers in any case, and from fetch's own", async () => {
    const upper = Object.fromEntries(
      Object.entries(good).map(([name, value]) => [name.toUpperCase(), value]),
    );
    expect((await verified(upper)).id).toBe("j-1");
    expect((await verified(new Headers(good))).id).toBe("j-1");
  });
});

describe("a callback is refused", () => {
  test.each([
    ["another secret's", signed(body, { with: "other" })],
    ["the text of the secret's, not its bytes'", signed(body, { with: secret })],
    ["of another id", { ...good, "webhook-id": "j-2" }],
    ["of another time", { ...good, "webhook-timestamp": String(at - 1) }],
    ["with a part of a signature", { ...good, "webhook-signature": good["webhook-signature"].slice(0, 20) }],
    ["of no version", { ...good, "webhook-signature": good["webhook-signature"].slice(3) }],
    ["of version 1a alone", { ...good, "webhook-signature": good["webhook-signature"].replace("v1", "v1a") }],
    ["with a point moved from the id to the time", { ...signed(body, { id: "j.1", time: "9" }), "webhook-id": "j", "webhook-timestamp": "1" }], // prettier-ignore
  ])("%s", async (_, headers) => {
    const time = Number(headers["webhook-timestamp"]);
    expect((await refusal(verified(headers, body, { now: () => time * 1000 }))).code).toBe("bad-signature");
  });

  test("whose body was changed, or written anew", async () => {
    for (const text of [body.replace("done", "failed"), `${body}\n`, JSON.stringify(JSON.parse(body), null, 1), ""])
      expect((await refusal(verified(good, text))).code).toBe("bad-signature"); // prettier-ignore
  });

  test("that was sent too long ago, or is said to be sent later on", async () => {
    for (const apart of [-300, 300]) expect((await verified(signed(body, { time: String(at + apart) }))).id).toBe("j-1"); // prettier-ignore
    for (const apart of [-301, 301]) {
      const error = await refusal(verified(signed(body, { time: String(at + apart) })));
      expect(error).toMatchObject({ code: "bad-timestamp", message: expect.stringContaining("301 s") });
    }
    expect((await verified(signed(body, { time: String(at - 900) }), body, { toleranceS: 900 })).id).toBe("j-1"); // prettier-ignore
    expect((await refusal(verified(good, body, { now: () => NaN }))).code).toBe("bad-timestamp");
  });

  test.each(["", "soon", "-1", "1.9e9", " 1900000000", "1900000000, 1900000000", "9".repeat(13), "0x1"])(
    "with a time that is none: %j",
    async (time) => {
      expect((await refusal(verified(signed(body, { time })))).code).toBe("bad-header");
    },
  );

  test.each(Object.keys(good))("without %s, or where it is no text or there twice", async (name) => {
    const { [name as keyof typeof good]: value, ...rest } = good;
    const missing = await refusal(verified(rest));
    expect(missing).toMatchObject({ code: "bad-header", message: `the header ${name} is missing` });
    for (const wrong of [undefined, null, "", 7, [value], [value, value], { toString: () => value }])
      expect((await refusal(verified({ ...rest, [name]: wrong }))).code).toBe("bad-header");
    expect((await refusal(verified({ ...good, [name.toUpperCase()]: value }))).code).toBe("bad-header");
    expect((await refusal(verified(new Headers(rest)))).message).toBe(missing.message);
    expect((await refusal(verified(Object.create(good)))).code).toBe("bad-header"); // not an own field
  });

  test("with more signatures than the service sends, before any is computed", async () => {
    const right = good["webhook-signature"];
    const many = (count: number) => ({ ...good, "webhook-signature": Array.from({ length: count }, () => right).join(" ") }); // prettier-ignore
    expect((await verified(many(10))).id).toBe("j-1");
    expect((await refusal(verified(many(11)))).code).toBe("bad-header");
  });

  test.each([
    ["is no JSON", "{"],
    ["is a list", "[]"],
    ["has no job", JSON.stringify({ type: "job.done", timestamp })],
    ["is of a kind unknown here", JSON.stringify({ type: "job.begun", timestamp, data: job })],
    ["contradicts its job", JSON.stringify({ type: "job.failed", timestamp, data: job })],
    ["has a value that is none", JSON.stringify({ type: "job.done", timestamp, data: { ...job, outcome: { status: "ok", value: { $type: "Gift" } } } })], // prettier-ignore
    ["has a hostile key", `{"type":"job.done","timestamp":"${timestamp}","data":{"id":"j","state":"done","createdMs":1,"outcome":{"status":"ok","value":{"__proto__":{}}}}}`], // prettier-ignore
  ])("that is signed, and whose body %s", async (_, text) => {
    expect((await refusal(verified(signed(text), text))).code).toBe("bad-body");
  });
});

describe("the caller's own mistake is a TypeError", () => {
  test.each([
    ["no secret", [], {}],
    ["an empty secret", "", {}],
    ["an empty secret among others", [secret, ""], {}],
    ["an empty key", "whsec_", {}],
    ["a key that is no base64", "whsec_!!!", {}],
    ["a tolerance that is none", secret, { toleranceS: NaN }],
    ["a negative tolerance", secret, { toleranceS: -1 }],
  ])("%s", async (_, secrets, options) => {
    // Signed with the empty key, as anybody could.
    const headers = signed(body, { with: "" });
    await expect(verifyCallback(secrets, headers, body, { now, ...options })).rejects.toThrow(TypeError);
  });

  test("a body that was parsed already", async () => {
    await expect(verified(good, JSON.parse(body) as string)).rejects.toThrow(/body must be the bytes/);
  });
});
