/**
 * Where a request may go: which URLs and methods the embedder's rules name, and which addresses a host name may stand
 * for. Both are asked for the first request and for every redirect alike; what neither allows is refused.
 *
 * The failures behind it (server-side request forgery): a check of the text and a connection made from another reading
 * of it (odd numbers, userinfo, backslashes), a path rule that the server's own decoding walks out of (`..%2f`), a name
 * that resolves to a private address, or to a public one at the check and to a private one at the connection, and
 * private IPv4 addresses inside IPv6 ones. So: one parser (WHATWG `URL`), the request is built from its output, a name
 * is resolved once, every answer is checked, and the caller connects to those answers and to nothing else.
 *
 * What it cannot tell: that a public address is this very host's, or leads inward by a NAT64 prefix of the network's
 * own (RFC 6052, 3.1). Such names do not belong in a rule.
 */
import { isIP } from "node:net";
import ipaddr from "ipaddr.js";
import { CapabilityError } from "./capability.js";
import { anything, checkOptions, isPlainObject, kindOf } from "./options.js";

/** Rules as the embedder writes them; as a string it is the `url` alone. */
export interface HttpRule {
  /**
   * `https://api.example.com/v1/*`: the scheme (https or http), the host (exact, or `*.example.com` for every name
   * below it, however deep), the port (the scheme's own if absent), and the path: exact, or all that begin with what
   * stands before a final `*`. It says nothing of the query: any is allowed.
   */
  readonly url: string;
  /** Upper case. All, if absent. */
  readonly methods?: readonly string[];
}

/** A rule as it is matched. */
export interface Rule {
  /** In words, for `explain`. */
  readonly words: string;
  readonly protocol: string;
  /** "api.example.com", "*.example.com", "127.0.0.1", "[::1]". */
  readonly host: string;
  /** As `URL.port`: empty for the scheme's own. */
  readonly port: string;
  readonly path: string;
  readonly prefix: boolean;
  readonly methods: ReadonlySet<string> | undefined;
}

/** RFC 9110, 5.6.2. */
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$/;
export type Header = readonly [name: string, value: string];

/** Methods of tunnels and of debugging; a browser's fetch has none of them either (Fetch, 2.2.1, "forbidden method"). */
const FORBIDDEN_METHODS: ReadonlySet<string> = new Set(["CONNECT", "TRACE", "TRACK"]);
/** What no URL of ours may hold: the parser would drop (tab, line feed) or turn (backslash) it, and another might not. */
const ODD_CHARACTERS = /[\0-\x1f\x7f\\]/;

/** Throws TypeError naming `option`, the rule, and what is wrong with it. `addresses` absent: any literal address may be named. */
export function parseRules(
  option: string,
  given: readonly (string | HttpRule)[],
  addresses?: Addresses,
): readonly Rule[] {
  if (!Array.isArray(given) || given.length === 0) {
    throw new TypeError(`${option} must be a list of at least one rule, such as "https://api.example.com/*"`);
  }
  return (given as readonly (string | HttpRule)[]).map((one) => parseRule(option, one, addresses));
}

function parseRule(option: string, given: string | HttpRule, addresses: Addresses | undefined): Rule {
  const rule: unknown = typeof given === "string" ? { url: given } : given;
  const { url: text, methods } = (isPlainObject(rule) ? rule : {}) as unknown as HttpRule;
  const shown = `${option}: rule "${typeof text === "string" ? text : kindOf(given)}"`;
  const wrong = (why: string) => new TypeError(`${shown} ${why}`);
  if (typeof text !== "string") throw wrong("has no url");
  checkOptions(shown, rule as HttpRule, { url: anything, methods: anything });
  if (ODD_CHARACTERS.test(text) || text.includes(" ")) {
    throw wrong("holds a space, a backslash or a control character");
  }
  const [, scheme, rest] = /^(https?):\/\/(.*)$/.exec(text) ?? [];
  if (scheme === undefined || rest === undefined) throw wrong("must begin with https:// or http://");
  if (/[?#]/.test(rest)) throw wrong("must have neither query nor fragment");
  const slash = rest.indexOf("/");
  if (slash < 0) throw wrong(`must say which paths: write "${text}/*" for all`);
  const below = rest.startsWith("*.");
  const authority = rest.slice(below ? 2 : 0, slash);
  if (authority.includes("@")) throw wrong("must not name a user");
  if (authority.includes("*")) throw wrong("may have a * in the host only as its first label");
  const prefix = rest.endsWith("*");
  const path = rest.slice(slash, prefix ? -1 : undefined);
  if (path.includes("*")) throw wrong("may have a * in the path only at its end");

  let url: URL;
  try {
    url = new URL(`${scheme}://${authority}${path}`);
  } catch {
    throw wrong("is not a URL");
  }
  if (url.pathname !== path)
    throw wrong(`can never match: such a request is sent as "${url.pathname}"; write that`);
  if (url.port === "0") throw wrong("can never match: there is no port 0");
  if (url.hostname.endsWith(".")) throw wrong("must be written without the host's final dot");
  const literal = literalAddress(url.hostname);
  if (literal !== undefined) {
    if (below) throw wrong("has a * before an address, which has no names below it");
    if (addresses !== undefined && addresses.standing(literal) === undefined) {
      throw wrong("can never match: the address is not public; add it to open if it is meant");
    }
  }
  if (methods !== undefined && (!Array.isArray(methods) || methods.length === 0)) {
    throw wrong("must have at least one method, or no methods to mean all");
  }
  for (const method of methods ?? []) {
    if (typeof method !== "string" || !TOKEN.test(method) || method !== method.toUpperCase()) {
      throw wrong(`has the method "${String(method)}", which must be an upper-case token`);
    }
    if (FORBIDDEN_METHODS.has(method)) throw wrong(`can never match: ${method} is never sent`);
  }
  return {
    words: methods === undefined ? text : `${methods.join(", ")} ${text}`,
    protocol: url.protocol,
    host: below ? `*.${url.hostname}` : url.hostname,
    port: url.port,
    path,
    prefix,
    methods: methods && new Set(methods),
  };
}

/** Whether a rule allows the request. A URL that names a user is allowed by none. */
export function permits(rules: readonly Rule[], url: URL, method: string): boolean {
  if (url.username !== "" || url.password !== "") return false;
  return rules.some(
    (rule) =>
      rule.protocol === url.protocol &&
      rule.port === url.port &&
      hostMatches(rule.host, url.hostname) &&
      (rule.methods === undefined || rule.methods.has(method)) &&
      pathMatches(rule, url.pathname),
  );
}

/** `pattern` is an exact host, or "*.example.com" for every name below it but not for it. */
export function hostMatches(pattern: string, host: string): boolean {
  if (!pattern.startsWith("*.")) return pattern === host;
  return host.length > pattern.length - 1 && host.endsWith(pattern.slice(1));
}

function pathMatches(rule: Rule, path: string): boolean {
  if (!rule.prefix) return path === rule.path;
  if (!path.startsWith(rule.path)) return false;
  return rule.path === "/" || !isAmbiguous(path.slice(rule.path.lastIndexOf("/")));
}

/**
 * Whether a server that decodes more than it should might see another path: encoded slashes, backslashes, percent signs
 * and control characters, dot segments behind an encoding or before a parameter (`..;`), characters that compatibility
 * folding turns into these, bytes that are no UTF-8. (Plain dot segments are gone: `URL` has resolved them, `%2e` too.)
 */
function isAmbiguous(path: string): boolean {
  let seen: string;
  try {
    seen = decodeURIComponent(path).normalize("NFKC");
  } catch {
    return true;
  }
  return (
    /[\0-\x1f\x7f\\%]/.test(seen) ||
    seen.split("/").length !== path.split("/").length ||
    /(?:^|\/)\.{1,2}(?:[;/]|$)/.test(seen)
  );
}

export interface LookupAddress {
  readonly address: string;
  readonly family: number;
}
/** Resolves a name to all its addresses, as `dns.promises.lookup(name, { all: true })` does; rejects if it has none. */
export type Lookup = (hostname: string) => Promise<readonly LookupAddress[]>;

/** Where to connect: nothing else is to be tried. */
export interface Target {
  readonly addresses: readonly LookupAddress[];
  /** All of them were opened by the embedder: their network is trusted like this host. */
  readonly opened: boolean;
}

type Address = ReturnType<typeof ipaddr.parse>;

/** Public addresses, and those that the embedder opened. */
export class Addresses {
  readonly #open: readonly [Address, number][];

  /** `open`: CIDRs such as "127.0.0.1/32". Throws TypeError naming the one that is wrong. */
  constructor(option: string, open: readonly string[]) {
    if (!Array.isArray(open)) throw new TypeError(`${option} must be a list of CIDRs`);
    this.#open = (open as readonly string[]).map((cidr) => {
      const v4 = typeof cidr === "string" && ipaddr.IPv4.isValidCIDRFourPartDecimal(cidr);
      if (!v4 && !(typeof cidr === "string" && cidr.includes(":") && ipaddr.IPv6.isValidCIDR(cidr))) {
        throw new TypeError(`${option}: "${cidr}" is no CIDR; write "127.0.0.1/32" for one address`);
      }
      const [address, bits] = ipaddr.parseCIDR(cidr);
      const kind = v4 ? ipaddr.IPv4 : ipaddr.IPv6;
      const first = kind.networkAddressFromCIDR(cidr).toString();
      if (first !== address.toString()) {
        throw new TypeError(`${option}: "${cidr}" has bits set beyond its prefix; write "${first}/${bits}"`);
      }
      if (!v4 && (address as ipaddr.IPv6).isIPv4MappedAddress()) {
        throw new TypeError(`${option}: "${cidr}" is an IPv4 network in IPv6 form; write it as IPv4`);
      }
      return [address, bits];
    });
  }

  /** undefined: not to be reached. IPv4-mapped IPv6 (RFC 4291, 2.5.5.2) counts as the IPv4 address that it is. */
  standing(text: string): "public" | "opened" | undefined {
    const address = text.includes("%") ? undefined : parseAddress(text); // a zone (RFC 4007) is link-local at best
    if (address === undefined) return undefined;
    for (const [network, bits] of this.#open) {
      if (network.kind() === address.kind() && address.match(network, bits)) return "opened";
    }
    return isPublic(address) ? "public" : undefined;
  }

  /**
   * Resolves the host once and checks what it stands for. `denied` if any answer may not be reached: a name with a
   * public and a private address is an attack or a mistake, and choosing among them would hide it. `unavailable` if
   * it has none.
   */
  async resolve(url: URL, lookup: Lookup): Promise<Target | "denied" | "unavailable"> {
    const literal = literalAddress(url.hostname);
    let addresses: readonly LookupAddress[];
    if (literal === undefined) {
      try {
        addresses = await lookup(url.hostname);
      } catch {
        return "unavailable"; // no such name, or no name server: the same to whoever asks
      }
      if (addresses.length === 0) return "unavailable";
    } else {
      addresses = [{ address: literal, family: literal.includes(":") ? 6 : 4 }];
    }
    const standings = addresses.map(({ address }) => this.standing(address));
    if (standings.includes(undefined)) return "denied";
    return { addresses, opened: standings.every((standing) => standing === "opened") };
  }
}

/**
 * Unicast and global. For IPv6 only what is assigned (2000::/3, RFC 4291, 2.4, and the IANA registry): elsewhere lie
 * forms that carry an IPv4 address, and the deprecated ::/96 of those counts as unicast in the library.
 */
function isPublic(address: Address): boolean {
  if (address.range() !== "unicast") return false;
  if (address.kind() === "ipv6") return (address.toByteArray()[0] as number) >> 5 === 1;
  // Azure's host node answers at this public-looking one, metadata of the machine included.
  return address.toString() !== "168.63.129.16";
}

/** The address that a host of `URL` is, without brackets, or undefined for a name. (`URL` leaves no other form of IPv4.) */
function literalAddress(hostname: string): string | undefined {
  if (hostname.startsWith("[")) return hostname.slice(1, -1);
  return /^\d+\.\d+\.\d+\.\d+$/.test(hostname) ? hostname : undefined;
}

/**
 * Whole addresses only (the library alone takes "127.1"). IPv6 is spelled by `URL` first: the library reads "::1.2.3.4",
 * which is ::102:304 and what inet_ntop(3) writes for it, as the mapped ::ffff:1.2.3.4.
 */
function parseAddress(text: string): Address | undefined {
  const family = isIP(text);
  if (family === 0) return undefined;
  return ipaddr.process(family === 6 ? new URL(`http://[${text}]/`).hostname.slice(1, -1) : text);
}

/** One spelling for an address, so that two can be compared; empty for what is none. */
export const canonical = (text: string): string => parseAddress(text.replace(/%.*$/, ""))?.toString() ?? "";

/** Of a URL as a script or a server writes it: four times what servers commonly take. */
export const MAX_URL = 32 * 1024;

/** One hop, as the script wishes it: placeholders, not values. */
export interface Wish {
  readonly url: URL;
  readonly method: string;
  readonly headers: readonly Header[];
  readonly body: Buffer;
  /** The script wrote the URL, not a server: placeholders in its query are its own. */
  readonly own: boolean;
}

/** What a script asks for, as its schema lets it through. */
export interface Asked {
  readonly url: string;
  readonly method?: string | undefined;
  readonly headers?: readonly Header[] | undefined;
  readonly body?: Uint8Array | null | undefined;
  readonly redirect?: "follow" | "manual" | "error" | undefined;
}

/** Throws CapabilityError `bad-argument` for what no rule could make right. */
export function readWish(asked: Asked, label: string, maxHeaderBytes: number): Wish {
  const bad = (what: string) => new CapabilityError("bad-argument", `${label}: ${what}`);
  if (ODD_CHARACTERS.test(asked.url)) throw bad("the URL holds a backslash or a control character");
  let url: URL;
  try {
    url = new URL(asked.url);
  } catch {
    throw bad("the URL is not an absolute URL");
  }
  if (url.username !== "" || url.password !== "") throw bad("the URL names a user");
  url.hash = "";
  const { method: verb = "GET" } = asked;
  if (!TOKEN.test(verb)) throw bad("the method is no token");
  // As fetch does (Fetch, 2.2.1, "normalize"): these only; the names of others are case-sensitive.
  const upper = verb.toUpperCase();
  const method = /^(?:DELETE|GET|HEAD|OPTIONS|POST|PUT)$/.test(upper) ? upper : verb;
  if (FORBIDDEN_METHODS.has(upper)) throw bad(`the method ${upper} is never sent`);
  const body = Buffer.from(asked.body ?? []);
  if (body.length > 0 && (method === "GET" || method === "HEAD")) throw bad(`${method} takes no body`);

  let size = 0;
  const headers = (asked.headers ?? []).map(([name, value]): Header => {
    if (!TOKEN.test(name)) throw bad("a header's name is no token");
    const header = name.toLowerCase();
    if (isForbiddenHeader(header)) throw bad(`the header ${header} is not a script's to set`);
    if (!FIELD_VALUE.test(value)) {
      throw bad(`the header ${header} holds a character that no header may hold`);
    }
    size += header.length + value.length;
    return [header, value.trim()];
  });
  if (size > maxHeaderBytes) {
    throw new CapabilityError("too-large", `${label}: the headers are over ${maxHeaderBytes} bytes`);
  }
  return { url, method, headers, body, own: true };
}

/** RFC 9110, 5.5, without what ends a line. */
const FIELD_VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;

/**
 * Headers that say where a message goes, where it ends or what becomes of the connection (Fetch, 2.2.2, "forbidden
 * request-header", where it is about that), the coding of the answer, which is ours to undo, and those that make
 * another method or path of the one that the rules saw (IIS and Symfony, CVE-2018-14773). Some servers take `_` for `-`.
 */
const FORBIDDEN_HEADERS =
  /^(?:host|connection|content-length|transfer-encoding|upgrade|te|trailer|keep-alive|expect|via|http2-settings|accept-encoding|proxy-.*|x-http-method|x-http-method-override|x-method-override|x-original-url|x-rewrite-url)$/;
export const isForbiddenHeader = (name: string): boolean =>
  FORBIDDEN_HEADERS.test(name.toLowerCase().replaceAll("_", "-"));
