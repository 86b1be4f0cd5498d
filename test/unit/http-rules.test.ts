/** Where a request may go. The tables are written from what the RFCs say, not from what the code does. */
import { describe, expect, test } from "vitest";
import {
  Addresses,
  type HttpRule,
  isForbiddenHeader,
  parseRules,
  permits,
  readWish,
} from "#hostapi/http-rules";

describe("addresses", () => {
  const closed = new Addresses("open", []);
  const noName = () => Promise.reject(new Error("no lookup for an address"));

  /** URL of a literal host, and whether it is an address that anybody on the Internet may be asked at. */
  const TABLE: [url: string, verdict: "allowed" | "denied", why: string][] = [
    ["http://8.8.8.8/", "allowed", "public"],
    ["http://1.1.1.1/", "allowed", "public"],
    ["http://172.15.255.255/", "allowed", "just below RFC 1918's 172.16/12"],
    ["http://172.32.0.0/", "allowed", "just above it"],
    ["http://11.0.0.1/", "allowed", "just above 10/8"],
    ["http://9.255.255.255/", "allowed", "just below 10/8"],
    ["http://100.63.255.255/", "allowed", "just below RFC 6598's 100.64/10"],
    ["http://100.128.0.0/", "allowed", "just above it"],
    ["http://126.255.255.255/", "allowed", "just below loopback"],
    ["http://128.0.0.1/", "allowed", "just above loopback"],
    ["http://169.253.255.255/", "allowed", "just below link-local"],
    ["http://192.167.255.255/", "allowed", "just below 192.168/16"],
    ["http://192.169.0.0/", "allowed", "just above it"],
    ["http://223.255.255.255/", "allowed", "just below multicast"],
    ["http://0x08080808/", "allowed", "8.8.8.8 in hexadecimal"],
    ["http://[2606:4700:4700::1111]/", "allowed", "public"],
    ["http://[2a00:1450:4001:80b::200e]/", "allowed", "public"],
    ["http://[::ffff:8.8.8.8]/", "allowed", "mapped, and public as IPv4"],
    ["http://127.0.0.1/", "denied", "loopback, RFC 1122"],
    ["http://127.0.0.1:8080/", "denied", "with a port"],
    ["http://127.1/", "denied", "short form of inet_aton"],
    ["http://127.0.1/", "denied", "short form"],
    ["http://127.255.255.254/", "denied", "all of 127/8"],
    ["http://2130706433/", "denied", "127.0.0.1 as one number"],
    ["http://017700000001/", "denied", "as one octal number"],
    ["http://0x7f000001/", "denied", "as one hexadecimal number"],
    ["http://0x7f.1/", "denied", "hexadecimal and short"],
    ["http://0177.0.0.1/", "denied", "octal"],
    ["http://0x7f.0x0.0x0.0x1/", "denied", "hexadecimal parts"],
    ["http://127.0.0.1./", "denied", "final dot"],
    ["http://%31%32%37.0.0.1/", "denied", "percent-encoded host"],
    ["http://127。0。0。1/", "denied", "ideographic full stops (UTS 46)"],
    ["http://①②⑦.0.0.1/", "denied", "circled digits (UTS 46)"],
    ["http://１２７.０.０.１/", "denied", "fullwidth digits"],
    ["http://0/", "denied", "0.0.0.0 connects to this host on Linux"],
    ["http://0.0.0.0/", "denied", "unspecified"],
    ["http://0.1.2.3/", "denied", "this network, RFC 1122"],
    ["http://10.0.0.1/", "denied", "RFC 1918"],
    ["http://10.255.255.255/", "denied", "RFC 1918"],
    ["http://172.16.0.1/", "denied", "RFC 1918"],
    ["http://172.31.255.255/", "denied", "RFC 1918"],
    ["http://192.168.0.1/", "denied", "RFC 1918"],
    ["http://192.168.255.255/", "denied", "RFC 1918"],
    ["http://3232235521/", "denied", "192.168.0.1 as one number"],
    ["http://100.64.0.1/", "denied", "carrier-grade NAT, RFC 6598"],
    ["http://100.100.100.200/", "denied", "metadata of Alibaba Cloud"],
    ["http://100.127.255.255/", "denied", "RFC 6598"],
    ["http://169.254.169.254/", "denied", "metadata of AWS, Google, Azure"],
    ["http://169.254.169.254/latest/meta-data/", "denied", "with a path"],
    ["http://2852039166/", "denied", "169.254.169.254 as one number"],
    ["http://0xa9fea9fe/", "denied", "and in hexadecimal"],
    ["http://169.254.170.2/", "denied", "credentials of ECS tasks"],
    ["http://168.63.129.16/", "denied", "Azure's host node"],
    ["http://192.0.0.192/", "denied", "metadata of Oracle Cloud, RFC 6890"],
    ["http://192.0.2.1/", "denied", "documentation, RFC 5737"],
    ["http://198.51.100.1/", "denied", "documentation"],
    ["http://203.0.113.1/", "denied", "documentation"],
    ["http://198.18.0.1/", "denied", "benchmarks, RFC 2544"],
    ["http://198.19.255.255/", "denied", "benchmarks"],
    ["http://192.88.99.1/", "denied", "6to4 relays, RFC 7526"],
    ["http://224.0.0.1/", "denied", "multicast, RFC 1112"],
    ["http://239.255.255.255/", "denied", "multicast"],
    ["http://240.0.0.1/", "denied", "reserved"],
    ["http://255.255.255.255/", "denied", "broadcast"],
    ["http://[::1]/", "denied", "loopback"],
    ["http://[0:0:0:0:0:0:0:1]/", "denied", "loopback in full"],
    ["http://[::]/", "denied", "unspecified"],
    ["http://[::ffff:127.0.0.1]/", "denied", "mapped, RFC 4291"],
    ["http://[::ffff:7f00:1]/", "denied", "mapped, in hexadecimal"],
    ["http://[::ffff:169.254.169.254]/", "denied", "mapped metadata"],
    ["http://[::ffff:10.0.0.1]/", "denied", "mapped RFC 1918"],
    ["http://[::127.0.0.1]/", "denied", "IPv4-compatible, deprecated by RFC 4291"],
    ["http://[::7f00:1]/", "denied", "the same in hexadecimal"],
    ["http://[::8.8.8.8]/", "denied", "IPv4-compatible, whatever it holds"],
    ["http://[::ffff:0:127.0.0.1]/", "denied", "IPv4-translated, RFC 2765"],
    ["http://[64:ff9b::7f00:1]/", "denied", "NAT64, RFC 6052"],
    ["http://[64:ff9b::a9fe:a9fe]/", "denied", "NAT64 to metadata"],
    ["http://[64:ff9b::808:808]/", "denied", "NAT64, whatever it holds"],
    ["http://[64:ff9b:1::7f00:1]/", "denied", "local NAT64, RFC 8215"],
    ["http://[2002:7f00:1::]/", "denied", "6to4, RFC 3056"],
    ["http://[2002:a9fe:a9fe::1]/", "denied", "6to4 to metadata"],
    ["http://[2001::1]/", "denied", "Teredo, RFC 4380"],
    ["http://[2001:0:7f00:1::]/", "denied", "Teredo"],
    ["http://[2001:db8::1]/", "denied", "documentation, RFC 3849"],
    ["http://[3fff::1]/", "denied", "documentation, RFC 9637"],
    ["http://[2001:2::1]/", "denied", "benchmarks, RFC 5180"],
    ["http://[2001:10::1]/", "denied", "ORCHID, RFC 4843"],
    ["http://[2001:20::1]/", "denied", "ORCHIDv2, RFC 7343"],
    ["http://[fe80::1]/", "denied", "link-local"],
    ["http://[febf::1]/", "denied", "link-local, end of fe80::/10"],
    ["http://[fec0::1]/", "denied", "site-local, RFC 3879"],
    ["http://[fc00::1]/", "denied", "unique local, RFC 4193"],
    ["http://[fd00:ec2::254]/", "denied", "metadata of AWS"],
    ["http://[ff02::1]/", "denied", "multicast"],
    ["http://[100::1]/", "denied", "discard, RFC 6666"],
    ["http://[5f00::1]/", "denied", "segment routing, RFC 9602"],
    ["http://[4000::1]/", "denied", "not assigned: outside 2000::/3"],
    ["http://[1fff::1]/", "denied", "not assigned"],
  ];

  test("the table is as large as it claims", () => expect(TABLE.length).toBeGreaterThan(95));

  test.each(TABLE)("%s is %s: %s", async (url, verdict) => {
    const target = await closed.resolve(new URL(url), noName);
    expect(typeof target === "string" ? target : "allowed").toBe(verdict);
  });

  test.each(TABLE.filter(([, verdict]) => verdict === "denied"))(
    "a name that resolves to the address of %s is %s too",
    async (url) => {
      const { hostname } = new URL(url);
      const address = hostname.replace(/^\[|\]$/g, "");
      const lookup = () => Promise.resolve([{ address, family: address.includes(":") ? 6 : 4 }]);
      expect(await closed.resolve(new URL("http://name.example/"), lookup)).toBe("denied");
    },
  );

  test.each([
    "fe80::1%eth0",
    "::1%lo",
    "2606:4700::1%eth0",
    "127.1",
    "8.8",
    "",
    "name.example",
    "0x08080808",
  ])("an answer of a resolver that is no whole address is not believed: %s", (address) =>
    expect(closed.standing(address)).toBeUndefined(),
  );

  test.each([
    "http://[fe80::1%25eth0]/",
    "http://[::1%25lo]/",
    "http://256.256.256.256/",
    "http://1.2.3.4.5/",
    "http://[::1",
    "http://127.0.0.1%00/",
  ])("%s is no URL at all", (url) => expect(() => new URL(url)).toThrow(TypeError));

  test.each(["::8.8.8.8", "::808:808", "::0:8.8.8.8", "0::8.8.8.8", "64:ff9b::8.8.8.8", "2002::8.8.8.8"])(
    "%s, as a resolver may spell it, is not the IPv4 address in it",
    (address) => expect(closed.standing(address)).toBeUndefined(),
  );

  test("a name with a public and a private address is refused whole, one with public ones is not", async () => {
    const to = (...addresses: string[]) =>
      closed.resolve(new URL("https://name.example/"), () =>
        Promise.resolve(addresses.map((address) => ({ address, family: address.includes(":") ? 6 : 4 }))),
      );
    expect(await to("8.8.8.8", "2606:4700::1111")).toMatchObject({ opened: false });
    expect(await to("8.8.8.8", "10.0.0.1")).toBe("denied");
    expect(await to("8.8.8.8", "::1")).toBe("denied");
    expect(await to()).toBe("unavailable");
    expect(await closed.resolve(new URL("https://name.example/"), noName)).toBe("unavailable");
  });

  test("an opened network opens itself and nothing beside it", () => {
    const open = new Addresses("open", ["127.0.0.1/32", "10.1.0.0/16", "fd00:1::/32", "::1/128"]);
    expect(open.standing("127.0.0.1")).toBe("opened");
    expect(open.standing("::ffff:127.0.0.1")).toBe("opened");
    expect(open.standing("127.0.0.2")).toBeUndefined();
    expect(open.standing("10.1.255.255")).toBe("opened");
    expect(open.standing("10.2.0.0")).toBeUndefined();
    expect(open.standing("fd00:1::5")).toBe("opened");
    expect(open.standing("fd00:2::5")).toBeUndefined();
    expect(open.standing("::1")).toBe("opened");
    expect(open.standing("::2")).toBeUndefined();
    expect(open.standing("::127.0.0.1")).toBeUndefined();
    expect(open.standing("64:ff9b::7f00:1")).toBeUndefined();
    expect(open.standing("8.8.8.8")).toBe("public");
  });

  test("only a name whose every address was opened counts as opened", async () => {
    const open = new Addresses("open", ["127.0.0.1/32"]);
    const to = (...addresses: string[]) =>
      open.resolve(new URL("http://name.example/"), () =>
        Promise.resolve(addresses.map((address) => ({ address, family: 4 }))),
      );
    expect(await to("127.0.0.1")).toMatchObject({ opened: true });
    expect(await to("127.0.0.1", "8.8.8.8")).toMatchObject({ opened: false });
  });

  test.each([
    "127.0.0.1",
    "127.0.0.1/33",
    "127.1/8",
    "10.1.2.3/8",
    "0x7f.0.0.1/8",
    "::ffff:127.0.0.1/128",
    "fd00::1/8",
    "local",
    "::1",
    "/8",
    7,
  ])("%s is refused as an opened network, with what to write instead", (cidr) =>
    expect(() => new Addresses("http: open", [cidr as string])).toThrow(/^http: open: /),
  );
});

describe("rules", () => {
  const rules = parseRules("allow", [
    "https://api.example.com/v1/*",
    "https://api.example.com/exact",
    "https://api.example.com/group%2Fproject/*",
    "https://*.wild.example/*",
    { url: "https://read.example/*", methods: ["GET", "HEAD"] },
    "http://plain.example:8080/*",
    "https://bücher.example/*",
    "https://xn--mnchen-3ya.example/*",
    "http://[2606:4700::1111]/*",
    "https://part.example/a/acme-*",
  ]);
  const verdict = (url: string, method = "GET") => {
    try {
      return permits(rules, readWish({ url, method }, "http.request", 1000).url, method)
        ? "allowed"
        : "denied";
    } catch {
      return "bad-argument";
    }
  };

  const TABLE: [url: string, verdict: "allowed" | "denied" | "bad-argument", why: string][] = [
    ["https://api.example.com/v1/", "allowed", "the prefix itself"],
    ["https://api.example.com/v1/users?id=1#top", "allowed", "below it, any query"],
    ["https://API.EXAMPLE.COM/v1/users", "allowed", "hosts have no case"],
    ["HTTPS://api.example.com:443/v1/users", "allowed", "the scheme's own port"],
    ["https://api.example.com/v1/a/../b", "allowed", "dot segments that stay below"],
    ["https://api.example.com/v1/caf%C3%A9", "allowed", "UTF-8"],
    ["https://api.example.com/v1/a%20b", "allowed", "an encoded space"],
    ["https://api.example.com/v1/file%2etxt", "allowed", "an encoded dot that is no segment"],
    ["https://api.example.com/v1/...", "allowed", "three dots are a name"],
    ["https://api.example.com/exact", "allowed", "exact"],
    ["https://api.example.com/group%2Fproject/x", "allowed", "encoded as the rule has it"],
    ["https://a.wild.example/", "allowed", "below the wildcard"],
    ["https://a.b.wild.example/x", "allowed", "deep below it"],
    ["http://plain.example:8080/x", "allowed", "its port"],
    ["https://xn--bcher-kva.example/", "allowed", "the same name in ASCII"],
    ["https://BÜCHER.example/", "allowed", "and in capitals"],
    ["https://münchen.example/", "allowed", "and the other way round"],
    ["http://[2606:4700:0:0::1111]/", "allowed", "the same address"],
    ["https://part.example/a/acme-1", "allowed", "a prefix within a segment"],
    ["https://a.wild.example/..%2fx", "allowed", "with all paths allowed, no encoding leads out"],
    ["https://api.example.com/v1", "denied", "not below /v1/"],
    ["https://api.example.com/v10/", "denied", "another segment"],
    ["https://api.example.com/", "denied", "another path"],
    ["https://api.example.com/V1/", "denied", "paths have case"],
    ["https://api.example.com/exact/", "denied", "more than exact"],
    ["https://api.example.com/exact/../v2", "denied", "resolved to another path"],
    ["https://api.example.com/v1/../admin", "denied", "dot segments that leave"],
    ["https://api.example.com/v1/%2e%2e/admin", "denied", "encoded ones"],
    ["https://api.example.com/v1/.%2E/admin", "denied", "half encoded"],
    ["https://api.example.com/v1/..%2fadmin", "denied", "encoded slash"],
    ["https://api.example.com/v1/..%2Fadmin", "denied", "encoded slash"],
    ["https://api.example.com/v1/..%5cadmin", "denied", "encoded backslash"],
    ["https://api.example.com/v1/..%252fadmin", "denied", "encoded twice"],
    ["https://api.example.com/v1/%252e%252e/admin", "denied", "dots encoded twice"],
    ["https://api.example.com/v1/..;/admin", "denied", "a path parameter behind dots (Tomcat)"],
    ["https://api.example.com/v1/..%3b/admin", "denied", "the same, encoded"],
    ["https://api.example.com/v1/..%00/admin", "denied", "NUL"],
    ["https://api.example.com/v1/x%0d%0aHost:%20y", "denied", "an encoded line end"],
    ["https://api.example.com/v1/%c0%ae%c0%ae/admin", "denied", "overlong UTF-8"],
    ["https://api.example.com/v1/%ef%bc%8e%ef%bc%8e%ef%bc%8fadmin", "denied", "fullwidth dots and slash"],
    ["https://api.example.com/v1/%E2%80%A5/admin", "denied", "two dot leader"],
    ["https://api.example.com/group/project/x", "denied", "not as the rule encodes it"],
    ["https://part.example/a/acme-x/..%2f..%2fb", "denied", "leaves a prefix within a segment"],
    ["https://part.example/a/acm", "denied", "less than the prefix"],
    ["http://api.example.com/v1/", "denied", "another scheme"],
    ["https://api.example.com:8443/v1/", "denied", "another port"],
    ["https://api.example.com:80/v1/", "denied", "another port"],
    ["http://plain.example/x", "denied", "another port"],
    ["https://api.example.com./v1/", "denied", "a final dot is another name"],
    ["https://api.example.com.evil.test/v1/", "denied", "another host"],
    ["https://evil.test/https://api.example.com/v1/", "denied", "another host"],
    ["https://evil.test?https://api.example.com/v1/", "denied", "another host"],
    ["https://evil.test#@api.example.com/v1/", "denied", "another host"],
    ["https://xapi.example.com/v1/", "denied", "another host"],
    ["https://wild.example/", "denied", "the name itself is not below itself"],
    ["https://.wild.example/", "denied", "an empty label"],
    ["https://xwild.example/", "denied", "no dot between"],
    ["https://a.wild.example.evil.test/", "denied", "another host"],
    ["ftp://api.example.com/v1/", "denied", "another scheme"],
    ["file:///etc/passwd", "denied", "another scheme"],
    ["data:text/plain,x", "denied", "another scheme"],
    ["javascript:alert(1)", "denied", "another scheme"],
    ["blob:https://api.example.com/v1/", "denied", "another scheme"],
    ["wss://api.example.com/v1/", "denied", "another scheme"],
    ["unix:/var/run/docker.sock", "denied", "another scheme"],
    ["https:api.example.com/v1/", "allowed", "the parser's reading, and the request is built from it"],
    ["https://api.example.com@evil.test/v1/", "bad-argument", "a user"],
    ["https://user:pw@api.example.com/v1/", "bad-argument", "a user"],
    ["https://evil.test\\@api.example.com/v1/", "bad-argument", "a backslash"],
    ["https:\\\\api.example.com\\v1\\", "bad-argument", "backslashes"],
    ["https://api.example.com/v1/..\\admin", "bad-argument", "a backslash"],
    ["https://api.exa\tmple.com/v1/", "bad-argument", "a tab, which the parser would drop"],
    ["https://api.example.com/v1/\r\nHost: evil.test", "bad-argument", "a line end"],
    ["\nhttps://api.example.com/v1/", "bad-argument", "a line feed in front"],
    ["https://api.example.com/v1/\0", "bad-argument", "NUL"],
    ["/v1/users", "bad-argument", "no absolute URL"],
    ["//api.example.com/v1/", "bad-argument", "no absolute URL"],
    ["api.example.com/v1/", "bad-argument", "no absolute URL"],
    ["", "bad-argument", "nothing"],
    ["https://", "bad-argument", "no host"],
    ["https://api.example.com:99999/v1/", "bad-argument", "no port"],
  ];

  test("the table is as large as it claims", () => expect(TABLE.length).toBeGreaterThan(80));
  test.each(TABLE)("%j is %s: %s", (url, expected) => expect(verdict(url)).toBe(expected));

  test("a rule with methods allows these and no other", () => {
    expect(verdict("https://read.example/x", "GET")).toBe("allowed");
    expect(verdict("https://read.example/x", "HEAD")).toBe("allowed");
    expect(verdict("https://read.example/x", "POST")).toBe("denied");
    expect(verdict("https://read.example/x", "PATCH")).toBe("denied");
    expect(verdict("https://a.wild.example/x", "PURGE")).toBe("allowed");
  });

  test.each<[given: unknown, why: RegExp]>([
    ["ftp://x.example/*", /must begin with https/],
    ["x.example/*", /must begin with https/],
    ["*", /must begin with https/],
    ["https://user@x.example/*", /must not name a user/],
    ["https://u:p@x.example/*", /must not name a user/],
    ["https://x.example/*#top", /fragment/],
    ["https://x.example/?q=*", /query/],
    ["https://x.example", /write "https:\/\/x.example\/\*"/],
    ["https://a.*.example/*", /only as its first label/],
    ["https://*example.com/*", /only as its first label/],
    ["https://*/*", /only as its first label/],
    ["https://x.example/a/*/b", /only at its end/],
    ["https://x.example/**", /only at its end/],
    ["https://x.example/a/../b/*", /can never match.*"\/b\/"/],
    ["https://x.example/a/%2e%2e/b", /can never match/],
    ["https://x.example/a b/*", /space/],
    ["https://x.example\\*", /backslash/],
    ["https://x.example/ü/*", /sent as "\/%C3%BC\/"/],
    ["https://x.example:0/*", /no port 0/],
    ["https://x.example:99999/*", /not a URL/],
    ["https://x.example./*", /final dot/],
    ["https:///*", /not a URL/],
    ["https://*.127.0.0.1/*", /before an address/],
    ["https://*.0.0.1/*", /before an address/],
    ["http://127.0.0.1/*", /add it to open/],
    ["http://2130706433/*", /add it to open/],
    ["http://[::1]/*", /add it to open/],
    ["http://169.254.169.254/*", /add it to open/],
    [{ url: "https://x.example/*", methods: [] }, /at least one method/],
    [{ url: "https://x.example/*", methods: ["get"] }, /upper-case/],
    [{ url: "https://x.example/*", methods: ["GET "] }, /upper-case/],
    [{ url: "https://x.example/*", methods: ["CONNECT"] }, /never sent/],
    [{ methods: ["GET"] }, /no url/],
    [7, /no url/],
    [null, /no url/],
    [Object.create(null), /no url/],
    [{ url: "https://x.example/*", method: ["GET"] }, /no option "method"; known are url, methods/],
    [{ url: "https://x.example/*", methods: "GET" }, /at least one method/],
  ])("the rule %j is refused at once, by name", (given, why) => {
    const parse = () => parseRules("http: allow", [given as HttpRule], new Addresses("open", []));
    expect(parse).toThrow(TypeError);
    expect(parse).toThrow(/^http: allow: rule "/);
    expect(parse).toThrow(why);
  });

  test("no rules at all are refused, and an opened address may be named", () => {
    expect(() => parseRules("http: allow", [])).toThrow(/at least one rule/);
    expect(() => parseRules("http: allow", undefined as never)).toThrow(/at least one rule/);
    const open = new Addresses("open", ["127.0.0.1/32"]);
    expect(parseRules("http: allow", ["http://127.0.0.1:3000/*"], open)).toHaveLength(1);
  });
});

describe("what a request may be made of", () => {
  const wish = (asked: object) => readWish({ url: "https://x.example/", ...asked }, "http.request", 1000);
  const codeOf = (asked: object) => {
    try {
      wish(asked);
      return "taken";
    } catch (error) {
      return (error as { code: string }).code;
    }
  };

  test.each([
    "Host",
    "connection",
    "Content-Length",
    "content_length",
    "Transfer-Encoding",
    "transfer_encoding",
    "upgrade",
    "TE",
    "trailer",
    "Keep-Alive",
    "expect",
    "Proxy-Authorization",
    "proxy-connection",
    "Accept-Encoding",
    "HTTP2-Settings",
    "via",
    "X-HTTP-Method-Override",
    "x_http_method_override",
    "X-Method-Override",
    "X-Original-URL",
    "x_rewrite_url",
  ])("the header %s is not a script's to set", (name) => {
    expect(isForbiddenHeader(name)).toBe(true);
    expect(codeOf({ headers: [[name, "1"]] })).toBe("bad-argument");
  });

  test.each([
    "authorization",
    "Cookie",
    "x-api-key",
    "content-type",
    "range",
    "origin",
    "User-Agent",
    "hostname",
    "x-te",
  ])("the header %s is", (name) => expect(codeOf({ headers: [[name, "1"]] })).toBe("taken"));

  test.each(["", "a b", "a:b", "a\r\nb", "a\n", "ä", "a\0", "(a)", '"a"', "a/b", "a".repeat(129)])(
    "%j is no header's name",
    (name) => expect(codeOf({ headers: [[name, "1"]] })).toBe("bad-argument"),
  );

  test.each(["a\r\nx: y", "a\nx: y", "a\rx: y", "a\0", "\r\n", "a\x7f", "\u010d\u010a", "\ud800", "a\x0b"])(
    "%j is no header's value",
    (value) => expect(codeOf({ headers: [["x-a", value]] })).toBe("bad-argument"),
  );

  test("values lose the blanks around them and keep those within", () => {
    expect(wish({ headers: [["X-A", " \ta b\t "]] }).headers).toEqual([["x-a", "a b"]]);
  });

  test("headers beyond the limit of bytes are too large, a long run of blanks among them costs nothing", () => {
    const headers = Array.from({ length: 256 }, (_, i) => [`x-${i}`, `a${" ".repeat(16_000)}b`]);
    expect(codeOf({ headers })).toBe("too-large");
    expect(codeOf({ headers: [["x-a", "a".repeat(996)]] })).toBe("taken");
  });

  test.each(["CONNECT", "connect", "TRACE", "TRACK", "GET /x HTTP/1.1\r\n", "", "G T"])(
    "the method %j is never sent",
    (method) => expect(codeOf({ method })).toBe("bad-argument"),
  );

  test("methods are spelled as fetch spells them", () => {
    expect(wish({}).method).toBe("GET");
    expect(wish({ method: "post" }).method).toBe("POST");
    expect(wish({ method: "patch" }).method).toBe("patch");
  });

  test("GET and HEAD have no body", () => {
    expect(codeOf({ body: new Uint8Array(1) })).toBe("bad-argument");
    expect(codeOf({ method: "head", body: new Uint8Array(1) })).toBe("bad-argument");
    expect(codeOf({ method: "GET", body: new Uint8Array(0) })).toBe("taken");
    expect(codeOf({ method: "DELETE", body: new Uint8Array(1) })).toBe("taken");
  });
});
