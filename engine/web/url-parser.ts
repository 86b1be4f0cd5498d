/**
 * The URL Standard's parser (sections 3 to 5) on strings: where the standard walks a state machine over code points,
 * this splits off the fragment, the query and the scheme, since each state ends at the same characters, and hands the
 * rest to the function of its kind. Written anew because of what it costs where it runs: whatwg-url, the reference
 * implementation, without its tables takes 20 KB and 8 ms of every start, and five times as long for a URL.
 *
 * Nothing trusts its answer: what a request is sent to is parsed again by whoever sends it.
 */
import { domainToASCII } from "./idna.js";
import { percentDecode } from "./percent.js";

/** Section 4.1. The host is kept serialized; `path` is a string if it is opaque. */
export interface UrlRecord {
  scheme: string;
  username: string;
  password: string;
  host: string | null;
  port: number | null;
  path: string | string[];
  query: string | null;
  fragment: string | null;
}

const SPECIAL = new Map([
  ["ftp", 21],
  ["file", -1],
  ["http", 80],
  ["https", 443],
  ["ws", 80],
  ["wss", 443],
]);
const isSpecial = (url: UrlRecord): boolean => SPECIAL.has(url.scheme);

// -- percent-encoding (section 1.3): each set holds the one before it, but for the fragment's --------------------------
const CONTROLS = /[^ -~]+/g;
const FRAGMENT = /(?:[^ -~]|[ "<>`])+/g;
const QUERY = /(?:[^ -~]|[ "#<>])+/g;
const SPECIAL_QUERY = /(?:[^ -~]|[ "#<>'])+/g;
const PATH = /(?:[^ -~]|[ "#<>?^`{}])+/g;
const USERINFO = /(?:[^ -~]|[ "#<>?^`{}/:;=@[\\\]|])+/g;
const encodeRun = encodeURIComponent;
/** Of all that these sets hold, encodeURIComponent leaves the apostrophe alone. */
const encode = (text: string, set: RegExp): string =>
  text.replace(set, (run) => encodeRun(run).replaceAll("'", "%27"));

// -- hosts (section 3.5) ----------------------------------------------------------------------------------------------
const FORBIDDEN_HOST = /[\0\t\n\r #/:<>?@[\\\]^|]/;
// oxlint-disable-next-line no-control-regex
const FORBIDDEN_DOMAIN = /[\0- #/:<>?@[\\\]^|%\x7f]/;

/** Null: not a host. */
function parseHost(text: string, special: boolean): string | null {
  if (text[0] === "[") return text.endsWith("]") ? parseIPv6(text.slice(1, -1)) : null;
  if (!special) return FORBIDDEN_HOST.test(text) ? null : encode(text, CONTROLS);
  const domain = domainToASCII(percentDecode(text));
  if (domain === null || domain === "" || FORBIDDEN_DOMAIN.test(domain)) return null;
  const parts = domain.split(".");
  if (parts.length > 1 && parts.at(-1) === "") parts.pop();
  const last = parts.at(-1) as string;
  return /^(?:\d+|0x[\da-f]*)$/i.test(last) ? parseIPv4(parts) : domain;
}

function parseIPv4(parts: readonly string[]): string | null {
  if (parts.length > 4) return null;
  let address = 0;
  for (const [i, part] of parts.entries()) {
    const [, hex, octal, decimal] = /^(?:0x([\da-f]*)|0([0-7]*)|([1-9]\d*))$/i.exec(part) ?? [];
    const digits = hex ?? octal ?? decimal;
    if (digits === undefined) return null;
    const number =
      digits === "" ? 0 : Number.parseInt(digits, hex !== undefined ? 16 : octal !== undefined ? 8 : 10);
    const isLast = i === parts.length - 1;
    if (number >= (isLast ? 256 ** (5 - parts.length) : 256)) return null;
    address += isLast ? number : number * 256 ** (3 - i);
  }
  return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join(".");
}

function parseIPv6(text: string): string | null {
  // An IPv4 address at the end is two pieces.
  const mapped = /^(.*:)(0|[1-9]\d{0,2})\.(0|[1-9]\d{0,2})\.(0|[1-9]\d{0,2})\.(0|[1-9]\d{0,2})$/.exec(text);
  if (mapped !== null) {
    const [a, b, c, d] = mapped.slice(2).map(Number) as [number, number, number, number];
    if (Math.max(a, b, c, d) > 255) return null;
    return parseIPv6(`${mapped[1] as string}${(a * 256 + b).toString(16)}:${(c * 256 + d).toString(16)}`);
  }
  const halves = text.split("::").map((half) => (half === "" ? [] : half.split(":")));
  const [head = [], tail] = halves;
  const given = head.length + (tail?.length ?? 0);
  if (halves.length > 2 || (tail === undefined ? given !== 8 : given > 7)) return null;
  if (![...head, ...(tail ?? [])].every((piece) => /^[\da-f]{1,4}$/i.test(piece))) return null;
  const zeros = Array.from({ length: 8 - given }, () => "0");
  const pieces = [...head, ...zeros, ...(tail ?? [])].map((piece) => Number.parseInt(piece, 16).toString(16));
  // The first of the longest runs of two zeros or more is left out (section 3.6).
  let [from, length] = [-1, 1];
  for (let i = 0; i < 8; i++) {
    let end = i;
    while (pieces[end] === "0") end++;
    if (end - i > length) [from, length] = [i, end - i];
  }
  if (from < 0) return `[${pieces.join(":")}]`;
  return `[${pieces.slice(0, from).join(":")}::${pieces.slice(from + length).join(":")}]`;
}

// -- paths (sections 4.2 and 4.4, path state) -------------------------------------------------------------------------
const DRIVE = /^[A-Za-z][:|]$/;
const STARTS_WITH_DRIVE = /^[A-Za-z][:|](?:[/\\]|$)/;

function shorten(url: UrlRecord, path: string[]): void {
  if (url.scheme === "file" && path.length === 1 && /^[A-Za-z]:$/.test(path[0] as string)) return;
  path.pop();
}

/** Appends to the path what `text`, without its leading slash, names. */
function appendPath(url: UrlRecord, text: string): void {
  const path = url.path as string[];
  const segments = text.split(isSpecial(url) ? /[/\\]/ : "/");
  for (const [i, plain] of segments.entries()) {
    const segment = encode(plain, PATH);
    const isLast = i === segments.length - 1;
    if (/^(?:\.|%2e){2}$/i.test(segment)) {
      shorten(url, path);
      if (isLast) path.push("");
    } else if (/^(?:\.|%2e)$/i.test(segment)) {
      if (isLast) path.push("");
    } else if (url.scheme === "file" && path.length === 0 && DRIVE.test(segment)) {
      path.push(`${segment[0] as string}:`);
    } else path.push(segment);
  }
}

/** Path start state: one slash is the separator. */
function parsePath(url: UrlRecord, text: string): void {
  const slash = text[0] === "/" || (text[0] === "\\" && isSpecial(url));
  if (text !== "" || isSpecial(url)) appendPath(url, slash ? text.slice(1) : text);
}

// -- the parser (section 4.4) -----------------------------------------------------------------------------------------
const fresh = (scheme: string): UrlRecord => ({
  scheme,
  username: "",
  password: "",
  host: null,
  port: null,
  path: [],
  query: null,
  fragment: null,
});
const SCHEME = /^([A-Za-z][A-Za-z0-9+\-.]*):/;
const stripped = (text: string): string => text.replace(/[\t\n\r]+/g, "");
const copied = (path: string | string[]): string | string[] => (typeof path === "string" ? path : [...path]);

/** Null: not a URL. `input` is well-formed, the result the caller's. */
export function parseUrl(input: string, base: UrlRecord | null): UrlRecord | null {
  // oxlint-disable-next-line no-control-regex
  let rest = stripped(input.replace(/^[\0- ]+|[\0- ]+$/g, ""));
  let [query, fragment] = [null as string | null, null as string | null];
  const hash = rest.indexOf("#");
  if (hash >= 0) [rest, fragment] = [rest.slice(0, hash), rest.slice(hash + 1)];
  const mark = rest.indexOf("?");
  if (mark >= 0) [rest, query] = [rest.slice(0, mark), rest.slice(mark + 1)];
  const scheme = SCHEME.exec(rest)?.[1];
  let url: UrlRecord;
  if (scheme === undefined) {
    if (base === null) return null;
    if (typeof base.path === "string" && (rest !== "" || query !== null || fragment === null)) return null;
    url = fresh(base.scheme);
  } else {
    url = fresh(scheme.toLowerCase());
    rest = rest.slice(scheme.length + 1);
  }
  const special = isSpecial(url);
  const slashes = special ? /^[/\\]*/ : /^\/*/;
  const leading = (slashes.exec(rest) as RegExpExecArray)[0].length;
  let done: boolean;
  if (url.scheme === "file") done = parseFile(url, rest, base?.scheme === "file" ? base : null);
  else if (scheme !== undefined && !(special && base?.scheme === url.scheme && !rest.startsWith("//"))) {
    if (special) done = parseAuthority(url, rest.slice(leading));
    else if (leading >= 2) done = parseAuthority(url, rest.slice(2));
    else if (leading === 1) {
      appendPath(url, rest.slice(1));
      done = true;
    } else {
      // A space before a query or fragment would be lost when the URL is parsed again.
      const kept = query === null && fragment === null ? rest : rest.replace(/ $/, "%20");
      url.path = encode(kept, CONTROLS);
      done = true;
    }
  } else if (leading >= 2) done = parseAuthority(url, rest.slice(special ? leading : 2));
  else {
    const { username, password, host, port, path, query: baseQuery } = base as UrlRecord;
    [url.username, url.password, url.host, url.port] = [username, password, host, port];
    if (leading === 1) appendPath(url, rest.slice(1));
    else {
      url.path = copied(path);
      if (rest === "") url.query = baseQuery;
      else {
        shorten(url, url.path as string[]);
        appendPath(url, rest);
      }
    }
    done = true;
  }
  if (!done) return null;
  if (query !== null) setQuery(url, query);
  if (fragment !== null) setFragment(url, fragment);
  return url;
}

/** Authority, host and port states, then the path. */
function parseAuthority(url: UrlRecord, text: string): boolean {
  const end = text.search(isSpecial(url) ? /[/\\]/ : /\//);
  const authority = end < 0 ? text : text.slice(0, end);
  const at = authority.lastIndexOf("@");
  if (at >= 0) {
    const [, name = "", password = ""] = /^([^:]*):?([^]*)$/.exec(authority.slice(0, at)) ?? [];
    setUsername(url, name);
    setPassword(url, password);
  }
  const [host, port] = splitPort(authority.slice(at + 1));
  if (host === "" && (isSpecial(url) || port !== undefined || at >= 0)) return false;
  url.host = parseHost(host, isSpecial(url));
  if (url.host === null || (port !== undefined && !/^\d*$/.test(port))) return false;
  if (port !== undefined && !setPort(url, port)) return false;
  parsePath(url, end < 0 ? "" : text.slice(end));
  return true;
}

/** At the first colon outside brackets. */
function splitPort(text: string): [host: string, port: string | undefined] {
  let inside = false;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "[") inside = true;
    else if (text[i] === "]") inside = false;
    else if (text[i] === ":" && !inside) return [text.slice(0, i), text.slice(i + 1)];
  }
  return [text, undefined];
}

/** False: out of range. What follows the digits is not looked at. */
function setPort(url: UrlRecord, text: string): boolean {
  const digits = /^\d*/.exec(text)?.[0] ?? "";
  if (digits === "") return true;
  const port = Number(digits);
  if (port > 65535) return false;
  url.port = port === SPECIAL.get(url.scheme) ? null : port;
  return true;
}

/** File, file slash and file host states. */
function parseFile(url: UrlRecord, text: string, base: UrlRecord | null): boolean {
  url.host = "";
  if (/^[/\\]{2}/.test(text)) {
    const rest = text.slice(2);
    const end = rest.search(/[/\\]/);
    const host = end < 0 ? rest : rest.slice(0, end);
    if (DRIVE.test(host)) {
      appendPath(url, rest);
      return true;
    }
    const path = end < 0 ? "" : rest.slice(end);
    if (!setFileHost(url, host)) return false;
    parsePath(url, path);
    return true;
  }
  const slash = /^[/\\]/.test(text);
  const path = slash ? text.slice(1) : text;
  if (base !== null) {
    url.host = base.host;
    const drive = base.path[0];
    if (slash) {
      const keeps = drive !== undefined && /^[A-Za-z]:$/.test(drive) && !STARTS_WITH_DRIVE.test(path);
      if (keeps) url.path = [drive];
    } else if (text === "") {
      url.path = copied(base.path);
      url.query = base.query;
      return true;
    } else if (!STARTS_WITH_DRIVE.test(path)) {
      url.path = copied(base.path);
      shorten(url, url.path as string[]);
    }
  }
  appendPath(url, path);
  return true;
}

function setFileHost(url: UrlRecord, text: string): boolean {
  const host = text === "" ? "" : parseHost(text, true);
  if (host === null) return false;
  url.host = host === "localhost" ? "" : host;
  return true;
}

// -- the setters' parts (section 6.1): what is not valid changes nothing ----------------------------------------------
export const hasOpaquePath = (url: UrlRecord): boolean => typeof url.path === "string";
export const cannotHaveCredentials = (url: UrlRecord): boolean =>
  url.host === null || url.host === "" || url.scheme === "file";
const hasCredentialsOrPort = (url: UrlRecord): boolean =>
  url.username !== "" || url.password !== "" || url.port !== null;

export function setUsername(url: UrlRecord, text: string): void {
  url.username = encode(text, USERINFO);
}
export function setPassword(url: UrlRecord, text: string): void {
  url.password = encode(text, USERINFO);
}
export function setQuery(url: UrlRecord, text: string): void {
  url.query = encode(stripped(text), isSpecial(url) ? SPECIAL_QUERY : QUERY);
}
export function setFragment(url: UrlRecord, text: string): void {
  url.fragment = encode(stripped(text), FRAGMENT);
}
export function overrideScheme(url: UrlRecord, text: string): void {
  const scheme = SCHEME.exec(`${stripped(text)}:`)?.[1]?.toLowerCase();
  if (scheme === undefined || SPECIAL.has(scheme) !== isSpecial(url)) return;
  if (scheme === "file" && hasCredentialsOrPort(url)) return;
  if (url.scheme === "file" && url.host === "") return;
  url.scheme = scheme;
  if (url.port === SPECIAL.get(scheme)) url.port = null;
}
/** `port` may follow, unless only the name is set: then a colon is a mistake. */
export function overrideHost(url: UrlRecord, text: string, nameOnly: boolean): void {
  const input = stripped(text);
  const end = input.search(isSpecial(url) ? /[/\\?#]/ : /[/?#]/);
  const authority = end < 0 ? input : input.slice(0, end);
  if (url.scheme === "file") return void setFileHost(url, authority);
  const [name, port] = splitPort(authority);
  if (port !== undefined && (name === "" || nameOnly)) return;
  if (name === "" && (isSpecial(url) || hasCredentialsOrPort(url))) return;
  const host = parseHost(name, isSpecial(url));
  if (host === null) return;
  url.host = host;
  if (port !== undefined) setPort(url, port);
}
export function overridePort(url: UrlRecord, text: string): void {
  if (text === "") url.port = null;
  else setPort(url, stripped(text));
}
export function overridePath(url: UrlRecord, text: string): void {
  url.path = [];
  const path = stripped(text);
  parsePath(url, path);
  if (path === "" && !isSpecial(url) && url.host === null) url.path.push("");
}

// -- the serializer (section 4.5) -------------------------------------------------------------------------------------
export const serializePath = ({ path }: UrlRecord): string =>
  typeof path === "string" ? path : path.map((segment) => `/${segment}`).join("");

export function serializeUrl(url: UrlRecord, withFragment = true): string {
  const { scheme, username, password, host, port, path, query, fragment } = url;
  let text = `${scheme}:`;
  if (host !== null) {
    text += "//";
    if (username !== "" || password !== "") text += `${username}${password === "" ? "" : `:${password}`}@`;
    text += host + (port === null ? "" : `:${port}`);
  } else if (typeof path !== "string" && path.length > 1 && path[0] === "") text += "/.";
  text += serializePath(url);
  if (query !== null) text += `?${query}`;
  return fragment === null || !withFragment ? text : `${text}#${fragment}`;
}

/** Section 4.7. "null": an opaque origin. */
export function originOf(url: UrlRecord): string {
  if (url.scheme === "blob") {
    const inner = parseUrl(serializePath(url), null);
    return inner !== null && /^https?$/.test(inner.scheme) ? originOf(inner) : "null";
  }
  if (!isSpecial(url) || url.scheme === "file") return "null";
  return `${url.scheme}://${url.host as string}${url.port === null ? "" : `:${url.port}`}`;
}
