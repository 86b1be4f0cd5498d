/** Properties of the http rules that no table can enumerate. The other side of each is written here anew. */
import path from "node:path";
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { Addresses, isForbiddenHeader, parseRules, permits, readWish } from "#hostapi/http-rules";
import { Secrets } from "#hostapi/http-secrets";
import { secret } from "#hostapi/secret";

const rules = parseRules("allow", ["https://api.example.com/v1/*"]);

/** As the most obliging of servers would read it: decoded again and again, every slash a slash, parameters dropped. */
function asLenientServer(pathname: string): string {
  let seen = pathname;
  for (let round = 0; round < 4; round++) {
    try {
      seen = decodeURIComponent(seen);
    } catch {
      seen = unescape(seen);
    }
    seen = seen.normalize("NFKC").replaceAll("\\", "/").replaceAll(/\0.*/g, "");
  }
  const segments = seen.split("/").map((segment) => segment.replace(/;.*/, ""));
  return path.posix.normalize(segments.join("/"));
}

const pieces = fc.array(
  fc.oneof(
    fc.constantFrom("https://", "http://", "api.example.com", "api.example.com.", "evil.test", "127.0.0.1", "/v1/", "/v1", "/", "//", "..", ".", "%2e", "%2E%2e", "%2f", "%5c", "%252f", "%25", "%00", "%c0%af", "%ef%bc%8f", "%e2%80%a5", ";", "%3b", "@", ":", ":443", ":8443", "\\", "\t", "\n", "?", "#", "a", "*", "[::1]", "。", "．", "／", "‥"), // prettier-ignore
    fc.string({ unit: "binary", maxLength: 3 }),
  ),
  { maxLength: 12 },
);

test("an allowed URL names the rule's host and, to the most lenient of servers, a path below the rule's", () => {
  let allowed = 0;
  fc.assert(
    fc.property(fc.constantFrom("", "https://api.example.com/v1/"), pieces, (start, rest) => {
      let url: URL;
      try {
        ({ url } = readWish({ url: start + rest.join("") }, "http", 1000));
      } catch {
        return;
      }
      if (!permits(rules, url, "GET")) return;
      allowed++;
      expect(url.origin).toBe("https://api.example.com");
      expect(url.username + url.password).toBe("");
      expect(`${asLenientServer(url.pathname)}/`).toMatch(/^\/v1\//);
    }),
    { numRuns: 5000 },
  );
  expect(allowed).toBeGreaterThan(100);
});

/** IANA's special-purpose IPv4 registry and multicast, as bits. */
const SPECIAL: [network: string, bits: number][] = [["0.0.0.0", 8], ["10.0.0.0", 8], ["100.64.0.0", 10], ["127.0.0.0", 8], ["169.254.0.0", 16], ["172.16.0.0", 12], ["192.0.0.0", 24], ["192.0.2.0", 24], ["192.31.196.0", 24], ["192.52.193.0", 24], ["192.88.99.0", 24], ["192.168.0.0", 16], ["192.175.48.0", 24], ["198.18.0.0", 15], ["198.51.100.0", 24], ["203.0.113.0", 24], ["224.0.0.0", 4], ["240.0.0.0", 4], ["168.63.129.16", 32]]; // prettier-ignore
const number = (dotted: string) => dotted.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
const isSpecial = (address: number) =>
  SPECIAL.some(
    ([network, bits]) => Math.floor(address / 2 ** (32 - bits)) === number(network) / 2 ** (32 - bits),
  );
const anyIPv4 = fc.oneof(
  fc.nat({ max: 0xffff_ffff }),
  fc
    .tuple(fc.constantFrom(...SPECIAL), fc.integer({ min: -2, max: 2 }), fc.boolean())
    .map(([[network, bits], step, end]) => {
      const at = number(network) + (end ? 2 ** (32 - bits) : 0) + step;
      return Math.min(Math.max(at, 0), 0xffff_ffff);
    }),
);
const closed = new Addresses("open", []);
const noName = () => Promise.reject(new Error("no name was asked for"));
const bytesOf = (n: number) => [24, 16, 8, 0].map((shift) => (n >>> shift) & 255);
const halves = (n: number) => `${(n >>> 16).toString(16)}:${(n & 0xffff).toString(16)}`;

test("an IPv4 address is reached if no registry reserves it, in every spelling of it, and in no other IPv6 form", async () => {
  const spellings = (n: number) => [
    bytesOf(n).join("."),
    String(n),
    `0x${n.toString(16)}`,
    `0${n.toString(8)}`,
    bytesOf(n)
      .map((byte) => `0x${byte.toString(16)}`)
      .join("."),
    `${n >>> 24}.${n & 0xff_ffff}`,
    `[::ffff:${halves(n)}]`,
    `[::ffff:${bytesOf(n).join(".")}]`,
  ];
  const carriers = (n: number) => [`[::${halves(n)}]`, `[::ffff:0:${halves(n)}]`, `[64:ff9b::${halves(n)}]`, `[64:ff9b:1::${halves(n)}]`, `[2002:${halves(n)}::1]`, `[2001:0:${halves(n)}::]`, `[fe80::5efe:${halves(n)}]`]; // prettier-ignore
  await fc.assert(
    fc.asyncProperty(anyIPv4, async (n) => {
      const expected = isSpecial(n) ? "denied" : expect.objectContaining({ opened: false });
      for (const host of spellings(n)) {
        expect([host, await closed.resolve(new URL(`http://${host}/`), noName)]).toEqual([host, expected]);
      }
      for (const host of carriers(n)) {
        expect([host, await closed.resolve(new URL(`http://${host}/`), noName)]).toEqual([host, "denied"]);
      }
    }),
    { numRuns: 500 },
  );
});

test("no IPv6 address outside 2000::/3 is reached", () => {
  fc.assert(
    fc.property(fc.ipV6(), (address) => {
      const first = parseInt(new URL(`http://[${address}]/`).hostname.slice(1).split(":")[0] || "0", 16);
      const mapped = /^\[::ffff:[0-9a-f]+:[0-9a-f]+\]$/.test(new URL(`http://[${address}]/`).hostname);
      if (!mapped && first >> 13 !== 1) expect(closed.standing(address)).toBeUndefined();
    }),
    { numRuns: 2000 },
  );
});

test("a secret of any characters is found in every spelling, among any bytes", () => {
  const value = fc.string({ unit: fc.oneof(fc.constantFrom(...Array.from("/+=&%\"\\'<> .~-_*$^|()[]{}?é€😀")), fc.string({ unit: "grapheme-ascii", minLength: 1, maxLength: 1 })), minLength: 8, maxLength: 60 }); // prettier-ignore
  const latin1 = (text: string) => Buffer.from(text, "utf8").toString("latin1");
  const forms = [
    latin1,
    (v: string) => encodeURIComponent(v),
    (v: string) => new URLSearchParams({ v }).toString().slice(2),
    (v: string) => encodeURIComponent(encodeURIComponent(v)),
    (v: string) => new URL(`http://x/?${encodeURIComponent(v)}`).search.slice(1),
    (v: string) => latin1(JSON.stringify(v).slice(1, -1)),
    (v: string) => Buffer.from(v).toString("hex"),
    (v: string) => Buffer.from(v, "utf16le").toString("latin1"),
  ];
  fc.assert(
    fc.property(value, fc.constantFrom(...forms), fc.uint8Array({ maxLength: 20 }), (text, form, around) => {
      fc.pre(!/[\0-\x1f\x7f]/.test(text) && text.length >= 8);
      const one = secret({ name: "one", value: text, hosts: ["x.example"] });
      const secrets = new Secrets([one], [], isForbiddenHeader);
      const noise = Buffer.from(around).toString("latin1").replaceAll("\\", "/");
      const spelled = form(text);
      expect(secrets.scrub(`${noise} ${spelled} ${noise}`)).toBe(`${noise} ${one.placeholder} ${noise}`);
    }),
    { numRuns: 1000 },
  );
});

test("a secret is found in base64 wherever in the bytes it stands", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: "grapheme-ascii", minLength: 8, maxLength: 40 }),
      fc.uint8Array({ maxLength: 9 }),
      fc.uint8Array({ maxLength: 9 }),
      fc.constantFrom("base64" as const, "base64url" as const),
      (text, before, after, alphabet) => {
        // prettier-ignore
        const one = secret({ name: "one", value: text, hosts: ["x.example"] });
        const whole = Buffer.concat([before, Buffer.from(text), after]).toString(alphabet);
        const scrubbed = new Secrets([one], [], isForbiddenHeader).scrub(whole);
        expect(scrubbed).toContain(one.placeholder);
        // What is left decides at most a character at each end.
        const left = Buffer.from(scrubbed.split(one.placeholder)[0], "base64").subarray(before.length);
        expect(left.length).toBeLessThanOrEqual(1);
      },
    ),
    { numRuns: 1000 },
  );
});
