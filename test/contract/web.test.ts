/**
 * The web platform's part of the guest's world, asked in a realm of its own: the meaning of the Web Platform Tests'
 * cases, and where Node has the same function, Node's answer to the same input.
 */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { bare, guest, useRealm } from "../realm.js";

useRealm();

describe("what is installed", () => {
  const NAMES = "AbortController AbortSignal CustomEvent DOMException Event EventTarget Headers Request Response TextDecoder TextEncoder URL URLSearchParams atob btoa fetch structuredClone".split(" "); // prettier-ignore

  test("every global is a writable, configurable, non-enumerable function with its own name", () => {
    const found = guest(
      `return args[0].map((name) => {
        const { value, writable, configurable, enumerable } = Object.getOwnPropertyDescriptor(globalThis, name);
        return [typeof value, value.name, writable, configurable, enumerable];
      })`,
      NAMES,
    );
    expect(found).toEqual(NAMES.map((name) => ["function", name, true, true, false]));
  });

  test("nothing else is: no store, no symbol, no patched prototype", async () => {
    const look = `[Reflect.ownKeys(globalThis), ...[Object, Function, Array, String, Number, RegExp, Promise, Map, Set,
      Error, Date, Symbol, Uint8Array, ArrayBuffer].flatMap((one) => [Reflect.ownKeys(one), Reflect.ownKeys(one.prototype)])].map((keys) => keys.map(String))`;
    const before = (await bare(look)) as string[][];
    const after = guest(`return ${look}`) as string[][];
    const ours = new Set([...NAMES, "bindFetch", "pass", "caught"]);
    expect(after[0]!.filter((name) => !ours.has(name))).toEqual(before[0]);
    expect(after.slice(1)).toEqual(before.slice(1));
  });

  test("classes look like the platform's: a string tag, enumerable attributes, a constructor that must be called with new", () => {
    expect(
      guest(`return [
        String(new URL("http://h")) , Object.prototype.toString.call(new URL("http://h")),
        Object.keys(Headers.prototype).includes("append"), "searchParams" in URL.prototype,
        caught(() => URL("http://h"))[0], caught(() => new AbortSignal())[0], caught(() => new fetch())[0],
        Object.getOwnPropertySymbols(new URL("http://h")).length, Object.keys(new Response("x")).length,
      ]`),
    ).toEqual(["http://h/", "[object URL]", true, true, "TypeError", "TypeError", "TypeError", 0, 0]);
  });
});

const PARTS = ["href", "origin", "protocol", "username", "password", "host", "hostname", "port", "pathname", "search", "hash"] as const; // prettier-ignore

function partsOf(url: string, base?: string): string[] | "TypeError" {
  try {
    const parsed = new URL(url, base);
    return PARTS.map((part) => parsed[part]);
  } catch {
    return "TypeError";
  }
}

type Row = [url: string, base?: string | undefined];
const guestParts = (rows: readonly Row[]): unknown =>
  guest(
    `return args[0].map(([url, base]) => {
      try { const parsed = new URL(url, base ?? undefined); return args[1].map((part) => parsed[part]); }
      catch (error) { return error instanceof TypeError ? "TypeError" : String(error); }
    })`,
    rows,
    PARTS,
  );

describe("URL", () => {
  // After the Web Platform Tests' urltestdata.json. Left out is what the standard changed after some Node was released.
  const TABLE: Row[] = [
    ["http://example.com"], ["HTTP://EXAMPLE.COM/A"], ["http://user:pass@foo:21/bar;par?b#c"], ["http:foo.com", "http://h/a/b"],
    ["\t   :foo.com   \n", "http://example.org/foo/bar"], [" foo.com  ", "http://example.org/foo/bar"], ["a:\t foo.com"],
    ["http://f:21/ b ? d # e "], ["lolscheme:x x#x x"], ["http://f:c/b"], ["http://f: /c"], ["http://f:00000000000000000000080/c"],
    ["http://f:65536/c"], ["http://f:\n/c"], ["", "http://example.org/foo/bar"], [":a", "http://example.org/foo/bar"],
    ["#β", "http://example.org/foo/bar"], ["?", "http://example.org/foo/bar?q"], ["\\x", "http://example.org/foo/bar"],
    [":#", "http://example.org/foo/bar"], ["http://a:b@c:29/d"], ["http::@c:29"], ["http://&a:foo(b]c@d:2/"], ["http://::@c@d:2"],
    ["http://foo.com:b@d/"], ["http://foo.com/\\@"], ["http:\\\\foo.com\\"], ["http:\\\\a\\b:c\\d@foo.com\\"], ["foo:/"], ["foo:////://///"],
    ["c:/foo"], ["//foo/bar", "http://h/"], ["http://foo/path;a??e#f#g"], ["[61:24:74]:98", "http://h/"], ["http:[61:27]/:foo", "http://h/"],
    ["http://[1::2]:3:4"], ["http://2001::1"], ["http://[::127.0.0.1]"], ["http://[0:0:0:0:0:0:13.1.68.3]"], ["http://[2001:DB8::1]:80/"],
    ["http://[1:0:0:2:0:0:0:3]"], ["http://[::1.2.3]"], ["http://[::1.2.3.256]"], ["http://[:::1]"], ["http://[1:2:3:4:5:6:7::]"], ["http://[1:2:3:4:5:6:7:8::]"],
    ["http://1.2.3.4/"], ["http://0x7f.1"], ["http://0177.0.0.1"], ["http://2130706433"], ["http://256.256.256.256"], ["http://1.2.3.4.5"], ["http://4294967296"],
    ["http://1.2.3.0x"], ["http://a.0x1"], ["http://1e2"], ["http://09"], ["http://1..2"], ["http://1."], ["http://0xffffffff."],
    ["file:c:\\foo\\bar.html"], ["file:///C|/x/../.."], ["file://localhost/x"], ["file://h:80/"], ["/C:/y", "file:///D:/x"], ["..", "file:///C:/"], ["//server/x", "file:///C:/"],
    ["x", "file:///C:/a/b"], ["file:?q", "file:///C:/a?z"], ["file:#f", "file:///C:/a?z"], ["file:..", "http://h/"],
    ["http://h/a/./b/../c/%2e%2E/d/."], ["http://h/%zz%41"], ["http://h/a?'\"<>`{}|"], ["sc://h/?'\"<>`{}|#'\"<>`"], ["http://h/é?ü#ß"], ["http://h/\ud83d\ude00\ud800"],
    ["javascript:alert(1)"], ["mailto:x@y"], ["data:text/plain,a b#c d"], ["blob:https://a.b/c"], ["blob:x"], ["about:blank"], ["urn:isbn:1"], ["sc://ñ.test/x"], ["sc://a b/"], ["sc://%zz/"], ["sc:"],
    ["http://exa%6Dple.com"], ["http://a%00b/"], ["http://a b/"], ["http://a^b"], ["http://a|b"], ["http://<h>"], ["http://%/"], ["http:///x"], ["http://@/x"], ["http://@h"], ["http://u@"], ["wss://h:443"], ["ws://h:443"],
    ["notaurl"], ["//x"], ["http:"], ["../x", "http://h/a/b/c"], ["./", "http://h/a/b"], ["?q", "sc://h/p"], ["x", "sc://h/p/q"], ["/x", "sc:/a/b"], ["x", "notaurl"], ["#f", "about:blank"], ["x", "data:,x"],
  ]; // prettier-ignore

  test(`it parses the table's ${TABLE.length} rows as Node does`, () => {
    expect(TABLE.length).toBeGreaterThanOrEqual(60);
    const wanted = TABLE.map(([url, base]) => partsOf(url, base));
    const found = guestParts(TABLE) as unknown[];
    expect(found.map((parts, i) => [TABLE[i], parts])).toEqual(wanted.map((parts, i) => [TABLE[i], parts]));
  });

  test("it parses anything made of the parts of URLs as Node does", () => {
    const PIECES = ":|/|//|\\|?|#|@|[|]|..|.|%2e|%|%41|%zz|%00|a|b.c|example.com|LocalHost|1.2.3.4|0x7f.1|256|0300.1|[::1]|[1:2::3]|[::ffff:1.2.3.4]|C:|c|é|☃|日本|ß|80|:8080|:65536|user:pa@|\t|\n| |'|\"|<|>|`|{|}|&|=|+|~|\u00ad|😀|*|!|$|,|;|0".split("|"); // prettier-ignore
    const row = fc.tuple(
      fc.constantFrom("http://", "https:", "file://", "file:", "ws://h", "http:\\\\", "//", "/", ""),
      fc.array(fc.constantFrom(...PIECES), { maxLength: 8 }),
      fc.constantFrom(
        undefined,
        "http://h/a/b?q#f",
        "file:///C:/x/y",
        "file://host/p",
        "https://u:p@h:99/x/",
      ),
    );
    fc.assert(
      fc.property(fc.array(row, { minLength: 20, maxLength: 20 }), (drawn) => {
        // A letter and a colon would begin a scheme that is not special, of which Nodes differ.
        const rows = drawn
          .map(([start, pieces, base]): Row => [start + pieces.join(""), base])
          .filter(([url]) => !/^\s*[a-z][a-z0-9+.\-\t\n]*:/i.test(url) || /^(?:https?|file|ws):/.test(url));
        expect(guestParts(rows)).toEqual(rows.map(([url, base]) => partsOf(url, base)));
      }),
      { numRuns: 100 },
    );
  });

  test.each<[url: string, part: string, value: string, href: string]>([
    ["http://h/", "protocol", "https", "https://h/"],
    ["http://h:443/", "protocol", "https:", "https://h/"],
    ["http://h/", "protocol", "sc", "http://h/"],
    ["http://u@h/", "protocol", "file", "http://u@h/"],
    ["http://h/", "protocol", "1x", "http://h/"],
    ["http://h/", "username", "a@b:c", "http://a%40b%3Ac@h/"],
    ["file:///x", "username", "a", "file:///x"],
    ["http://u@h/", "password", "p:/", "http://u:p%3A%2F@h/"],
    ["http://h:1/", "host", "x:2", "http://x:2/"],
    ["http://h:1/", "host", "x:y", "http://x:1/"],
    ["http://h/", "host", "", "http://h/"],
    ["http://h/", "host", "a b", "http://h/"],
    ["sc://h/x", "host", "", "sc:///x"],
    ["mailto:x", "host", "h", "mailto:x"],
    ["http://h:1/", "hostname", "x:2", "http://h:1/"],
    ["http://h:1/", "hostname", "[::0001]", "http://[::1]:1/"],
    ["http://h/", "hostname", "0x7f.1", "http://127.0.0.1/"],
    ["file:///x", "hostname", "localhost", "file:///x"],
    ["http://h/", "port", "8080x", "http://h:8080/"],
    ["http://h:1/", "port", "80", "http://h/"],
    ["http://h:1/", "port", "", "http://h/"],
    ["http://h:1/", "port", "65536", "http://h:1/"],
    ["http://h:1/", "port", "x", "http://h:1/"],
    ["http://h/a", "pathname", "b/../c?d#e", "http://h/c%3Fd%23e"],
    ["http://h/a", "pathname", "", "http://h/"],
    ["sc://h/a", "pathname", "", "sc://h"],
    ["http://h/a", "pathname", "\\x\\y", "http://h/x/y"],
    ["sc:/a", "pathname", "//b", "sc:/.//b"],
    ["mailto:x", "pathname", "y", "mailto:x"],
    ["http://h/?a", "search", "", "http://h/"],
    ["http://h/", "search", "?b'#c", "http://h/?b%27%23c"],
    ["http://h/#a", "hash", "", "http://h/"],
    ["http://h/", "hash", "#b `", "http://h/#b%20%60"],
    ["http://h/", "href", "https://x/y", "https://x/y"],
  ])("setting of %s the %s to %j gives %s", (url, part, value, href) => {
    expect(
      guest("const [u, k, v] = args; const url = new URL(u); url[k] = v; return url.href", url, part, value),
    ).toBe(href);
  });

  test("a bad href is refused and leaves the URL as it was; canParse and parse do not throw", () => {
    expect(
      guest(`const url = new URL("http://h/?a=1");
        return [caught(() => { url.href = "x" })[0], url.href, URL.canParse("x"), URL.canParse("x", "http://h"),
          URL.parse("x"), URL.parse("x", "http://h").href, JSON.stringify({ url }), caught(() => URL.canParse())[0]]`),
    ).toEqual([
      "TypeError",
      "http://h/?a=1",
      false,
      true,
      null,
      "http://h/x",
      '{"url":"http://h/?a=1"}',
      "TypeError",
    ]);
  });

  test("searchParams and the URL follow each other", () => {
    expect(
      guest(`const url = new URL("http://h/?a=1&b=2"); const { searchParams } = url;
        searchParams.append("c", "ä &"); const first = url.search;
        url.search = "?x=1+2"; const second = searchParams.get("x");
        searchParams.delete("x"); const third = url.href;
        url.href = "http://h/?z"; return [first, second, third, searchParams.has("z"), url.searchParams === searchParams]`),
    ).toEqual(["?a=1&b=2&c=%C3%A4+%26", "1 2", "http://h/", true, true]);
  });
});

describe("URLSearchParams", () => {
  test.each([
    "a=1&b=2&a=3",
    "?x",
    "??x",
    "a=b=c",
    "&&a&",
    "a+b=%20c",
    "%zz=%",
    "%C3%A4=%FF%80",
    "é=☃",
    "=x",
    "%00=\0",
    "a=%F0%9F%98%80",
    "\ufeffa=1",
    "%EF%BB%BFtest",
  ])("it parses and serializes %j as Node does", (text) => {
    const node = new URLSearchParams(text);
    const found = guest(
      "const params = new URLSearchParams(args[0]); return [[...params], String(params), params.size]",
      text,
    );
    expect(found).toEqual([[...node], String(node), [...node].length]);
  });

  test("whatever pairs it is made of survive the way through text", () => {
    const pair = fc.tuple(fc.string({ unit: "grapheme" }), fc.string({ unit: "binary" }));
    fc.assert(
      fc.property(fc.array(pair, { maxLength: 5 }), (pairs) => {
        const text = String(new URLSearchParams(pairs));
        expect(
          guest(
            "return [String(new URLSearchParams(args[0])), [...new URLSearchParams(args[1])]]",
            pairs,
            text,
          ),
        ).toEqual([text, [...new URLSearchParams(text)]]);
      }),
      { numRuns: 100 },
    );
  });

  test("it is made of a record, of pairs, or of another; of nothing else", () => {
    expect(
      guest(`return [
        String(new URLSearchParams({ a: 1, b: "x y" })), String(new URLSearchParams([["a", 1], ["a", 2]])),
        String(new URLSearchParams(new URLSearchParams("q=1"))), String(new URLSearchParams(new Map([["m", "1"]]))), String(new URLSearchParams(undefined)),
        String(new URLSearchParams(null)), caught(() => new URLSearchParams([["a"]]))[0], caught(() => new URLSearchParams({ a: Symbol() }))[0]]`),
    ).toEqual(["a=1&b=x+y", "a=1&a=2", "q=1", "m=1", "", "null=", "TypeError", "TypeError"]);
  });

  test("set, delete and has with a value, getAll, stable sort, forEach and live iteration", () => {
    expect(
      guest(`const p = new URLSearchParams("b=1&a=2&b=3&a=1&ﬃ=&🌈=");
        p.sort(); const sorted = String(p);
        p.set("b", "9"); const set = String(p);
        const has = [p.has("a", "2"), p.has("a", "7"), p.has("a", undefined)];
        p.delete("a", "2"); const all = p.getAll("a");
        const seen = []; for (const [name] of p) { seen.push(name); if (name === "a") p.delete("b"); }
        const each = []; p.forEach(function (value, name, self) { each.push(name + value + (self === p) + this.t) }, { t: 1 });
        return [sorted, set, has, all, seen, each, [...p.keys()], [...p.values()], p.get("none"), p.size]`),
    ).toEqual([
      "a=2&a=1&b=1&b=3&%F0%9F%8C%88=&%EF%AC%83=",
      "a=2&a=1&b=9&%F0%9F%8C%88=&%EF%AC%83=",
      [true, false, true],
      ["1"],
      ["a", "🌈", "ﬃ"],
      ["a1true1", "🌈true1", "ﬃtrue1"],
      ["a", "🌈", "ﬃ"],
      ["1", "", ""],
      null,
      3,
    ]);
  });
});

describe("TextEncoder and TextDecoder", () => {
  const decode = (bytes: readonly number[], label?: string, options?: object): unknown =>
    guest(
      "return caught(() => new TextDecoder(args[1] ?? undefined, args[2] ?? undefined).decode(new Uint8Array(args[0])))",
      bytes,
      label,
      options,
    );

  test("any text goes to bytes as Node encodes it, lone surrogates as U+FFFD", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 0xffff })), (units) => {
        const text = String.fromCharCode(...units);
        expect(guest("return [...new TextEncoder().encode(String.fromCharCode(...args[0]))]", units)).toEqual(
          [...new TextEncoder().encode(text)],
        );
      }),
      { numRuns: 100 },
    );
  });

  test("any bytes, malformed or not, are decoded as Node does, whole and in parts", () => {
    const byte = fc.oneof(fc.constantFrom(0, 0x41, 0x7f, 0x80, 0xbf, 0xc1, 0xc2, 0xe0, 0xa0, 0x9f, 0xed, 0xf0, 0x90, 0xf4, 0x8f, 0xf5, 0xff, 0xef, 0xbb), fc.integer({ min: 0, max: 255 })); // prettier-ignore
    fc.assert(
      fc.property(fc.array(byte, { maxLength: 40 }), fc.nat(40), fc.nat(40), (bytes, a, b) => {
        const [from, to] = a < b ? [a, b] : [b, a];
        const whole = new TextDecoder().decode(new Uint8Array(bytes));
        let fatal = true;
        try {
          new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes));
        } catch {
          fatal = false;
        }
        expect(
          guest(
            `const [bytes, from, to] = args; const all = new Uint8Array(bytes); const decoder = new TextDecoder();
             const parts = [all.slice(0, from), all.slice(from, to), all.slice(to)].map((part) => decoder.decode(part, { stream: true })).join("") + decoder.decode();
             return [new TextDecoder().decode(all), parts, caught(() => new TextDecoder("utf-8", { fatal: true }).decode(all))[0] === "returned"]`,
            bytes,
            from,
            to,
          ),
        ).toEqual([whole, whole, fatal]);
      }),
      { numRuns: 200 },
    );
  });

  test("a long text is decoded as Node does, though its blocks end within characters", () => {
    const text = "aé日😀".repeat(5000);
    expect(
      guest("return new TextDecoder().decode(new TextEncoder().encode(args[0])) === args[0]", text),
    ).toBe(true);
    expect(
      guest(
        "const bytes = new TextEncoder().encode(args[0]); bytes[30000] = 0xff; return new TextDecoder().decode(bytes)",
        text,
      ),
    ).toBe(
      (() => {
        const bytes = new TextEncoder().encode(text);
        bytes[30000] = 0xff;
        return new TextDecoder().decode(bytes);
      })(),
    );
  });

  test("a byte order mark is left out once, or kept if asked", () => {
    const BOM = [0xef, 0xbb, 0xbf];
    expect(decode([...BOM, ...BOM, 0x41])).toEqual(["returned", "\ufeffA"]);
    expect(decode([...BOM, 0x41], "utf-8", { ignoreBOM: true })).toEqual(["returned", "\ufeffA"]);
    expect(
      guest(`const d = new TextDecoder(); const s = { stream: true };
        return [d.decode(new Uint8Array([0xef]), s) + d.decode(new Uint8Array([0xbb, 0xbf, 0x41])), d.decode(new Uint8Array([0xef, 0xbb, 0xbf, 0x42]))]`),
    ).toEqual(["A", "B"]);
  });

  test("fatal throws a TypeError, also at the end of a stream, and the decoder begins anew", () => {
    expect(decode([0x41, 0xff], "utf8", { fatal: true })).toEqual(["TypeError", false, null]);
    expect(
      guest(`const d = new TextDecoder("utf-8", { fatal: true });
        return [d.decode(new Uint8Array([0xe2, 0x82]), { stream: true }), caught(() => d.decode())[0], d.decode(new Uint8Array([0x41]))]`),
    ).toEqual(["", "TypeError", "A"]);
  });

  test.each<[label: string, encoding: string, bytes: number[], text: string]>([
    [" UTF-8\n", "utf-8", [0xc3, 0xa9], "é"],
    ["unicode-1-1-utf-8", "utf-8", [0x41], "A"],
    ["utf-16", "utf-16le", [0xff, 0xfe, 0x41, 0, 0x3d, 0xd8, 0, 0xde], "A😀"],
    ["utf-16le", "utf-16le", [0, 0xd8, 0x41, 0], "\ufffdA"],
    ["utf-16le", "utf-16le", [0x41], "\ufffd"],
    ["utf-16be", "utf-16be", [0, 0x41, 0xd8, 0x3d, 0xde, 0], "A😀"],
    ["latin1", "windows-1252", [0x80, 0x41, 0xe9, 0x81, 0x9f], "€Aé\x81Ÿ"],
    ["ascii", "windows-1252", [0xff], "ÿ"],
  ])("the label %j means %s", (label, encoding, bytes, text) => {
    expect(guest("return new TextDecoder(args[0]).encoding", label)).toBe(encoding);
    expect(decode(bytes, label)).toEqual(["returned", text]);
  });

  test("UTF-16 may be streamed byte by byte", () => {
    expect(
      guest(`const d = new TextDecoder("utf-16le");
        return [0x41, 0, 0x3d, 0xd8, 0, 0xde].map((byte) => d.decode(new Uint8Array([byte]), { stream: true })).join("") + d.decode()`),
    ).toBe("A😀");
  });

  test("an unknown label is a RangeError, what is no buffer a TypeError; views keep to their part", () => {
    expect(
      guest(`const bytes = new TextEncoder().encode("abcdef");
        return [caught(() => new TextDecoder("utf-7"))[0], caught(() => new TextDecoder().decode("x"))[0], caught(() => new TextDecoder().decode([65]))[0],
          new TextDecoder().decode(bytes.subarray(1, 3)), new TextDecoder().decode(new DataView(bytes.buffer, 2, 2)), new TextDecoder().decode(bytes.buffer), new TextDecoder().decode(),
          new TextEncoder().encodeInto("a😀é", new Uint8Array(6)), new TextEncoder().encode().length]`),
    ).toEqual(["RangeError", "TypeError", "TypeError", "bc", "cd", "abcdef", "", { read: 3, written: 5 }, 0]);
  });
});

describe("atob and btoa", () => {
  const answer = (run: () => string): unknown => {
    try {
      return ["returned", run()];
    } catch (error) {
      return [(error as DOMException).name, true, (error as DOMException).code];
    }
  };

  test.each(["", "A", "ab", "abc", "\0\xff\x80", "hello world", "\u0100", "日"])(
    "btoa(%j) is what Node says",
    (text) => {
      expect(guest("return caught(() => btoa(args[0]))", text)).toEqual(answer(() => btoa(text)));
    },
  );

  test.each([
    "",
    "YQ==",
    "YQ=",
    "YQ",
    "YWI=",
    "YWJj",
    " Y\tW\nJ\fj\r",
    "Y",
    "YQ===",
    "=",
    "==",
    "YQ=a",
    "Y=Q=",
    "YWJ-",
    "/+8=",
    "ab\u00a0cd",
    "A\vAA",
    "é",
    "YR==",
    "AAAA=",
    "AAAA==",
  ])("atob(%j) is what Node says", (text) => {
    expect(guest("return caught(() => atob(args[0]))", text)).toEqual(answer(() => atob(text)));
  });

  test("any bytes come back", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 50 }), (bytes) => {
        const text = String.fromCharCode(...bytes);
        expect(guest("return [btoa(args[0]), atob(btoa(args[0])) === args[0]]", text)).toEqual([
          btoa(text),
          true,
        ]);
      }),
      { numRuns: 50 },
    );
  });

  test("they take what becomes a string, and need an argument", () => {
    expect(
      guest(
        "return [btoa(12), btoa(undefined), atob(null).length, caught(() => btoa())[0], caught(() => atob())[0]]",
      ),
    ).toEqual([btoa("12"), btoa("undefined"), 3, "TypeError", "TypeError"]);
  });
});

describe("structuredClone", () => {
  test("every kind of value that can be cloned is", () => {
    expect(
      guest(`const kinds = [1, -0, NaN, 10n, "x", null, undefined, true, new Date(5), new Date(NaN), /a\\/b/gi, new Map([[{ a: 1 }, [2]]]), new Set([1, "x"]),
          new Boolean(false), new Number(3), new String("str"), Object(7n), [1, , 3], { a: { b: [] } }, new Uint8Array([1, 2]).buffer, new DataView(new ArrayBuffer(3), 1),
          ...[Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array, Uint32Array, Float32Array, Float64Array].map((T) => new T([1, 2, 3])), new BigInt64Array([5n]), new BigUint64Array([6n])];
        const tag = (v) => Object.prototype.toString.call(v);
        const text = (v) => v instanceof Map ? JSON.stringify([...v]) : v instanceof Set ? JSON.stringify([...v]) : v instanceof ArrayBuffer ? String(new Uint8Array(v)) :
          v instanceof DataView ? v.byteOffset + "," + v.byteLength : tag(v) === "[object Array]" || tag(v) === "[object Object]" ? JSON.stringify(v) : String(v);
        return kinds.filter((v) => { const c = structuredClone(v); return tag(c) !== tag(v) || text(c) !== text(v) || Object.is(c, v) !== (Object(v) !== v) }).map(String)
          .concat(Object.is(structuredClone(-0), -0) ? [] : "-0").concat(1 in structuredClone([1, , 3]) ? "hole" : [])`),
    ).toEqual([]);
  });

  test("cycles and shared parts stay what they are, and views of one buffer stay views of one", () => {
    expect(
      guest(`const shared = [1]; const value = { shared, again: shared, map: new Map(), set: new Set() };
        value.self = value; value.map.set(value.map, value); value.set.add(value.set);
        const buffer = new ArrayBuffer(8); value.a = new Uint8Array(buffer, 2, 3); value.b = new Uint16Array(buffer);
        const c = structuredClone(value); c.b[1] = 0x0201;
        return [c.self === c, c.shared === c.again, c.shared !== shared, c.map.get(c.map) === c, c.set.has(c.set), c.a.buffer === c.b.buffer, c.a.buffer !== buffer, [...c.a], c.a.byteOffset, buffer.byteLength]`),
    ).toEqual([true, true, true, true, true, true, true, [1, 2, 0], 2, 8]);
  });

  test("errors keep name, message and cause, of the names that the platform knows; a DOMException stays one", () => {
    expect(
      guest(`class Own extends Error { name = "Own"; extra = 1 }
        const show = (e) => { const c = structuredClone(e); return [c instanceof Error, c.constructor.name, c.name, c.message, String(c.cause), c.extra ?? null, Object.hasOwn(c, "message")] };
        const thrown = new DOMException("m", "AbortError"); const same = structuredClone(thrown);
        return [show(new TypeError("t", { cause: "c" })), show(new RangeError()), show(new Own("o")), same instanceof DOMException, same.name, same.message, same.code]`),
    ).toEqual([
      [true, "TypeError", "TypeError", "t", "c", null, true],
      [true, "RangeError", "RangeError", "", "undefined", null, false],
      [true, "Error", "Error", "o", "undefined", null, true],
      true,
      "AbortError",
      "m",
      20,
    ]);
  });

  test.each([
    "() => {}",
    "Symbol()",
    "Object(Symbol())",
    "new WeakMap()",
    "new WeakSet()",
    "new WeakRef({})",
    "Promise.resolve()",
    "(function* () {})()",
    "new Map().entries()",
    "new URL('http://h')",
    "new Headers()",
    "new Response()",
    "new EventTarget()",
    "new AbortController()",
    "new AbortController().signal",
    "new (class extends EventTarget {})()",
    "{ deep: [() => {}] }",
    "new Map([[1, Symbol()]])",
  ])("%s is a DataCloneError", (value) => {
    // prettier-ignore
    expect(guest(`return caught(() => structuredClone(${value}))`)).toEqual(["DataCloneError", true, 25]);
  });

  test("instances become plain objects of their own enumerable parts; getters run; what they throw is thrown", () => {
    expect(
      guest(`class Point { constructor() { this.x = 1; Object.defineProperty(this, "hidden", { value: 1 }); this[Symbol("s")] = 1 } get y() { return 2 } }
        const c = structuredClone(new Point());
        const proto = structuredClone(JSON.parse('{"__proto__": {"z": 1}}'));
        return [Object.getPrototypeOf(c) === Object.prototype, c, Reflect.ownKeys(c).length, structuredClone({ get a() { return 7 } }),
          caught(() => structuredClone({ get a() { throw new RangeError() } }))[0], Object.hasOwn(proto, "__proto__"), proto.z ?? null, caught(() => structuredClone())[0]]`),
    ).toEqual([true, { x: 1 }, 1, { a: 7 }, "RangeError", true, null, "TypeError"]);
  });

  const canMove = () => bare("'transfer' in ArrayBuffer.prototype");

  test("a buffer that this engine cannot move is cloned, and a transfer of it is refused", async ({
    skip,
  }) => {
    if (await canMove()) skip("it can: the next test");
    expect(
      guest(`const buffer = new Uint8Array([1, 2, 3]).buffer;
        return [caught(() => structuredClone(buffer, { transfer: [buffer] })), [...new Uint8Array(structuredClone(buffer, { transfer: [] }))], buffer.byteLength]`),
    ).toEqual([["DataCloneError", true, 25], [1, 2, 3], 3]);
  });

  test("a transferred buffer moves, and a clone that fails leaves it", async ({ skip }) => {
    if (!(await canMove())) skip("this engine has nothing that detaches a buffer: the test before");
    expect(
      guest(`const buffer = new Uint8Array([1, 2, 3]).buffer; const view = new Uint8Array(buffer, 1);
        const failed = caught(() => structuredClone([buffer, () => {}], { transfer: [buffer] }))[0]; const kept = buffer.byteLength;
        const c = structuredClone({ buffer, view }, { transfer: [buffer] });
        return [failed, kept, buffer.byteLength, view.length, [...new Uint8Array(c.buffer)], [...c.view], c.view.buffer === c.buffer,
          caught(() => structuredClone(1, { transfer: [buffer] }))[0], caught(() => structuredClone(buffer))[0], caught(() => structuredClone(1, { transfer: [{}] }))[0],
          caught(() => { const b = new ArrayBuffer(1); structuredClone(1, { transfer: [b, b] }) })[0]]`),
    ).toEqual([
      "DataCloneError",
      3,
      0,
      0,
      [1, 2, 3],
      [2, 3],
      true,
      "DataCloneError",
      "DataCloneError",
      "DataCloneError",
      "DataCloneError",
    ]);
  });

  test("a value of any depth ends in an error of the guest's own", () => {
    expect(
      guest(
        "let deep = {}; for (let i = 0; i < 100000; i++) deep = { deep }; return caught(() => structuredClone(deep))[0]",
      ),
    ).toMatch(/Error$/);
    expect(guest("return structuredClone({ fine: 1 })")).toEqual({ fine: 1 });
  });
});
