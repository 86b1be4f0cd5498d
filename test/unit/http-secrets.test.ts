/** What goes out in a placeholder's place, and what never comes back. */
import { describe, expect, test } from "vitest";
import { type Injection, Secrets } from "#hostapi/http-secrets";
import { isForbiddenHeader } from "#hostapi/http-rules";
import { secret } from "#hostapi/secret";

const VALUE = "sk/live+A1b2 C3d4==é";
const ascii = secret({
  name: "key",
  value: "sk/live+A1b2&C3d4==",
  hosts: ["api.example.com", "*.api.example.com"],
});
const wide = secret({ name: "wide", value: VALUE, hosts: ["other.example"] });
const inject: Injection[] = [
  { host: "injected.example", header: "Authorization", value: "Bearer tok-0123456789" },
  { host: "*.basic.example", header: "authorization", value: `Basic ${btoa("ada:correct horse")}` },
];
const secrets = new Secrets([ascii, wide], inject, isForbiddenHeader);
const to = (host: string, confidential = true) => ({ host, confidential });
const plain = (value: string) => value;
const codeOf = (act: () => unknown) => {
  try {
    act();
    return "done";
  } catch (error) {
    return (error as { code?: string }).code;
  }
};

describe("on the way out", () => {
  const put = (host: string, confidential?: boolean, text = `Bearer ${ascii.placeholder}`) =>
    secrets.substitute(text, to(host, confidential), plain, 1000);

  test("a placeholder becomes the value for the secret's hosts", () => {
    expect(put("api.example.com")).toBe(`Bearer ${ascii.reveal()}`);
    expect(put("eu.api.example.com")).toBe(`Bearer ${ascii.reveal()}`);
    expect(put("api.example.com", true, `${ascii.placeholder},${ascii.placeholder}`)).toBe(
      `${ascii.reveal()},${ascii.reveal()}`,
    );
  });

  test.each([
    "evil.test",
    "api.example.com.evil.test",
    "xapi.example.com",
    "example.com",
    "api.example.com.",
  ])("for %s the call is refused", (host) => expect(codeOf(() => put(host))).toBe("denied"));

  test("over a connection that others can read it is refused", () => {
    expect(codeOf(() => put("api.example.com", false))).toBe("denied");
  });

  test("a placeholder that nobody gave out stays as it is", () => {
    const unknown = `secret-${"0".repeat(32)}`;
    expect(put("evil.test", true, unknown)).toBe(unknown);
    expect(secrets.carries(unknown)).toBe(false);
    expect(secrets.carries(`x${ascii.placeholder}y`)).toBe(true);
  });

  test("many placeholders do not grow beyond the limit", () => {
    const long = secret({ name: "long", value: "v".repeat(8192), hosts: ["x.example"] });
    const many = new Secrets([long], [], isForbiddenHeader);
    const text = long.placeholder.repeat(20_000);
    expect(codeOf(() => many.substitute(text, to("x.example"), plain, 1 << 20))).toBe("too-large");
    expect(codeOf(() => many.substitute(long.placeholder, to("x.example"), plain, 1 << 20))).toBe("done");
  });

  test.each([
    ["application/json", `{"key":"${wide.placeholder}"}`, (sent: string) => JSON.parse(sent).key],
    [
      "application/vnd.api+json; charset=utf-8",
      `{"key":"${wide.placeholder}"}`,
      (sent: string) => JSON.parse(sent).key,
    ],
    [
      "application/x-www-form-urlencoded",
      `a=1&key=${wide.placeholder}`,
      (sent: string) => new URLSearchParams(sent).get("key"),
    ],
    ["text/plain", wide.placeholder, (sent: string) => sent],
  ])("in a body of %s it is written so that it is read again", (type, body, read) => {
    const sent = secrets.substituteBody(
      Buffer.from(body),
      [["content-type", type]],
      to("other.example"),
      1000,
    );
    expect(read(sent.toString("utf8"))).toBe(VALUE);
  });

  test("bytes that are no text pass through a body unchanged", () => {
    const around = Buffer.from([0, 255, 128, 10]);
    const body = Buffer.concat([around, Buffer.from(ascii.placeholder), around]);
    const sent = secrets.substituteBody(body, [], to("api.example.com"), 1000);
    expect(sent).toEqual(Buffer.concat([around, Buffer.from(ascii.reveal()), around]));
  });

  test("a header is injected for its host in place of the script's own, and for no other", () => {
    const own = [
      ["authorization", "mine"],
      ["x-a", "1"],
    ] as const;
    expect(secrets.inject(own, to("injected.example"))).toEqual([
      ["x-a", "1"],
      ["authorization", "Bearer tok-0123456789"],
    ]);
    expect(secrets.inject(own, to("injected.example", false))).toEqual(own);
    expect(secrets.inject(own, to("x.injected.example"))).toEqual(own);
    expect(secrets.inject(own, to("basic.example"))).toEqual(own);
    expect(secrets.inject(own, to("x.basic.example"))).toHaveLength(2);
  });

  test("a value on its way to another host is seen, however a URL spells it", () => {
    const url = `https://evil.test/?k=${encodeURIComponent(ascii.reveal())}`;
    expect(secrets.strays(url, to("evil.test"))).toBe(true);
    expect(secrets.strays(encodeURIComponent(url), to("evil.test"))).toBe(true);
    expect(secrets.strays(url, to("api.example.com"))).toBe(false);
    expect(secrets.strays("https://evil.test/?k=1", to("evil.test"))).toBe(false);
  });
});

describe("on the way back", () => {
  const latin1 = (text: string) => Buffer.from(text, "utf8").toString("latin1");
  const base64 = (text: string) => Buffer.from(text, "utf8").toString("base64");
  const html = (text: string) => text.replace(/[&<>"'/+=]/g, (char) => `&#${char.charCodeAt(0)};`);

  const FORMS: [name: string, spell: (value: string) => string][] = [
    ["as it is", latin1],
    ["percent-encoded", encodeURIComponent],
    ["percent-encoded, lower case", (v) => encodeURIComponent(v).replace(/%../g, (e) => e.toLowerCase())],
    ["percent-encoded twice", (v) => encodeURIComponent(encodeURIComponent(v))],
    ["as a form", (v) => new URLSearchParams({ v }).toString().slice(2)],
    ["as encodeURI leaves it", encodeURI],
    ["in JSON", (v) => latin1(JSON.stringify(v))],
    ["in JSON with slashes escaped", (v) => latin1(JSON.stringify(v).replaceAll("/", "\\/"))],
    [
      "in ASCII JSON",
      (v) =>
        JSON.stringify(v).replace(/[^\w"]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`),
    ],
    ["in HTML, decimal", (v) => latin1(html(v))],
    ["in HTML, named", (v) => latin1(v.replaceAll("&", "&amp;"))],
    [
      "in HTML, hexadecimal",
      (v) => latin1(v.replace(/[&/+=]/g, (c) => `&#x${c.charCodeAt(0).toString(16).toUpperCase()};`)),
    ],
    ["in base64", base64],
    ["in base64 for URLs", (v) => Buffer.from(v, "utf8").toString("base64url")],
    ["in base64 in a query", (v) => encodeURIComponent(base64(v))],
    ["in base64 in JSON of PHP", (v) => base64(v).replaceAll("/", "\\/")],
    ["in base64 behind one byte", (v) => base64(`:${v}`)],
    ["in base64 behind two bytes", (v) => base64(`a:${v}tail`)],
    ["in base64 within more", (v) => base64(`{"user":"ada","pass":"${v}"}`)],
    ["in hexadecimal", (v) => Buffer.from(v, "utf8").toString("hex")],
    ["in capital hexadecimal", (v) => Buffer.from(v, "utf8").toString("hex").toUpperCase()],
    ["in UTF-16", (v) => Buffer.from(v, "utf16le").toString("latin1")],
    ["in UTF-16, big end first", (v) => Buffer.from(v, "utf16le").swap16().toString("latin1")],
  ];

  describe.each([
    ["a secret", ascii.reveal(), ascii.placeholder],
    ["a secret that is not ASCII", VALUE, wide.placeholder],
    ["an injected token", "tok-0123456789", "[redacted]"],
    ["an injected password", "correct horse", "[redacted]"],
  ])("%s", (_what, value, shown) => {
    test.each(FORMS)("%s", (_form, spell) => {
      const spelled = spell(value);
      const text = `before ${spelled} between ${spelled} after`;
      const scrubbed = secrets.scrub(text);
      expect(text).toContain(spelled);
      expect(scrubbed).not.toContain(spelled);
      expect(scrubbed.split(shown)).toHaveLength(3);
      expect(scrubbed.startsWith("before ")).toBe(true);
      expect(scrubbed.endsWith(" after")).toBe(true);
    });
  });

  test("the injected header as a whole and as Basic sends it are found", () => {
    const basic = inject[1].value;
    expect(secrets.scrub(`Authorization: ${basic}`)).toBe("Authorization: [redacted]");
    expect(secrets.scrub(basic.slice(6))).toBe("[redacted]");
    expect(secrets.scrub("ada:correct horse")).toBe("[redacted]");
    expect(secrets.scrub("Bearer tok-0123456789")).toBe("[redacted]");
  });

  test("bytes around a value come back as they were", () => {
    const around = Buffer.from([0, 255, 128, 10]);
    const body = Buffer.concat([around, Buffer.from(VALUE), around]);
    expect(secrets.scrubBytes(body)).toEqual(Buffer.concat([around, Buffer.from(wide.placeholder), around]));
  });

  test("an answer without a value is the same object", () => {
    const body = Buffer.from("sk/live+A1b2 is only the first half, and tok-012 too; \xff");
    expect(secrets.scrubBytes(body)).toBe(body);
  });

  test("of two values, one within the other, both are found", () => {
    const short = secret({ name: "short", value: "abcdefgh", hosts: ["x.example"] });
    const long = secret({ name: "long", value: "xxabcdefghyy", hosts: ["x.example"] });
    for (const order of [
      [short, long],
      [long, short],
    ]) {
      const both = new Secrets(order, [], isForbiddenHeader);
      expect(both.scrub("xxabcdefghyy abcdefgh")).toBe(`${long.placeholder} ${short.placeholder}`);
    }
  });

  test("the longest secret that there may be is found, of any characters", () => {
    for (const value of ["a1B2c3D4".repeat(1024), "/+=&<\">'".repeat(1024), "é".repeat(8192)]) {
      const one = secret({ name: "long", value, hosts: ["x.example"] });
      const all = new Secrets([one], [], isForbiddenHeader);
      expect(all.scrub(`a ${Buffer.from(value, "utf8").toString("latin1")} b`)).toBe(
        `a ${one.placeholder} b`,
      );
      expect(all.scrub(Buffer.from(value).toString("base64"))).toContain(one.placeholder);
      expect(all.scrub(encodeURIComponent(value))).toBe(one.placeholder);
    }
  });
});

describe("options", () => {
  test.each<[given: unknown, why: RegExp]>([
    [{ host: "x.example", header: "host", value: "12345678" }, /no header that can be set/],
    [{ host: "x.example", header: "content-length", value: "12345678" }, /no header that can be set/],
    [{ host: "x.example", header: "a b", value: "12345678" }, /no header that can be set/],
    [{ host: "https://x.example", header: "x-a", value: "12345678" }, /no host/],
    [{ host: "x.example:443", header: "x-a", value: "12345678" }, /no host/],
    [{ host: "x.*.example", header: "x-a", value: "12345678" }, /no host/],
    [{ host: "", header: "x-a", value: "12345678" }, /no host/],
    [{ host: "x.example", header: "x-a", value: "1234567" }, /at least 8/],
    [{ host: "x.example", header: "x-a", value: "Bearer 123" }, /at least 8/],
    [{ host: "x.example", header: "x-a", value: "12345678\r\nx: y" }, /printable ASCII/],
    [{ host: "x.example", header: "x-a", value: "12345678é" }, /printable ASCII/],
    [{ host: "x.example", header: "x-a" }, /may not be set/],
    [{ host: "x.example", header: "x-a", value: 12345678 }, /printable ASCII/],
    [
      { host: "x.example", headers: "x-a", value: "12345678" },
      /no option "headers"; known are host, header, value/,
    ],
    [null, /takes an object with host, header, value, and got null/],
  ])("the injection %j is refused at once", (given, why) => {
    const make = () => new Secrets([], [given as Injection], isForbiddenHeader);
    expect(make).toThrow(TypeError);
    expect(make).toThrow(why);
  });

  test("a secret that is not one of ours is refused, and no message holds a value", () => {
    expect(() => new Secrets([{ placeholder: "x" } as never], [], isForbiddenHeader)).toThrow(/secret\(\)/);
    const make = () =>
      new Secrets([], [{ host: "x", header: "x-a", value: "hidden-value\n" }], isForbiddenHeader);
    expect(make).toThrow(expect.objectContaining({ message: expect.not.stringContaining("hidden") }));
  });
});
