/**
 * What a request carries that the script may not read, both ways: values put in on the way out, for the hosts that they
 * are for and over a connection that nobody else can read, and taken out of whatever comes back.
 *
 * The failures behind it: a token sent to where a redirect points, a token in an error page that quotes the request,
 * a token in a `Location`. A value is looked for as it is; as percent-encoded (again and again, too), JSON, backslash
 * and HTML escapes spell it; in base64 (either alphabet, at any offset in what was encoded), in hexadecimal, in UTF-16.
 *
 * What it cannot do: recognise a value that a host transforms (reverses, compresses, hashes, cuts in pieces, returns by
 * byte ranges), or keep it from what else that host does with what it is sent (publishes it). Who lets a script use a
 * secret trusts the hosts of the secret; a header that is injected can be misused less than a placeholder, since the
 * script cannot choose where in a request it goes.
 */
import { CapabilityError } from "./capability.js";
import { type Header, hostMatches } from "./http-rules.js";
import { anything, checkOptions, needed } from "./options.js";
import { Secret } from "./secret.js";

/** A header put on every request to a host; over https, or to an address that was opened. It replaces the script's own. */
export interface Injection {
  /** Exact ("api.example.com"), or "*.example.com" for every name below. */
  readonly host: string;
  readonly header: string;
  /** At least 8 characters after an authentication scheme: a shorter one cannot be scrubbed. */
  readonly value: string;
}

export interface Destination {
  readonly host: string;
  /** https, or an address that the embedder opened. */
  readonly confidential: boolean;
}

interface Hidden {
  readonly hosts: readonly string[];
  readonly pattern: RegExp;
  readonly shown: string;
}

const PLACEHOLDER = /secret-[0-9a-f]{32}/g;
/** A shorter text occurs by chance. */
const LEAST = 8;

const mayGo = (hosts: readonly string[], { host, confidential }: Destination): boolean =>
  confidential && hosts.some((pattern) => hostMatches(pattern, host));

export class Secrets {
  readonly #secrets = new Map<string, Secret>();
  readonly #inject: readonly Injection[];
  readonly #hidden: readonly Hidden[];
  /** What stands for values that are looked for in pieces, and so may stand several times for one. */
  readonly #inPieces = new Set<string>();

  /** Throws TypeError naming the option that is wrong. `forbidden` says which headers nobody may set. */
  constructor(
    secrets: readonly Secret[],
    inject: readonly Injection[],
    forbidden: (name: string) => boolean,
  ) {
    const hidden: (Hidden & { length: number })[] = [];
    const hide = (hosts: readonly string[], texts: readonly string[], shown: string) => {
      for (const text of texts) {
        for (const piece of pieces(text)) {
          hidden.push({ hosts, pattern: new RegExp(spellings(piece), "g"), shown, length: text.length });
        }
        if (text.length > PIECE) this.#inPieces.add(shown);
      }
    };
    for (const secret of secrets) {
      if (!(secret instanceof Secret)) throw new TypeError("http: secrets must be made by secret()");
      this.#secrets.set(secret.placeholder, secret);
      hide(secret.hosts, [secret.reveal()], secret.placeholder);
    }
    this.#inject = inject.map((one) => {
      const { host, header, value } = checkOptions("http: inject", one, {
        host: needed(anything),
        header: needed(anything),
        value: anything,
      });
      if (typeof header !== "string" || !/^[A-Za-z0-9-]{1,128}$/.test(header) || forbidden(header)) {
        throw new TypeError(`http: inject: "${header}" is no header that can be set`);
      }
      const name = header.toLowerCase();
      if (typeof host !== "string" || !/^(?:\*\.)?[^*@/?#\\:\s]+$|^\[[0-9a-f:.]+\]$/.test(host)) {
        throw new TypeError(`http: inject ${name}: "${host}" is no host (no port, no scheme)`);
      }
      const below = host.startsWith("*.") ? "*." : "";
      let hostname: string;
      try {
        ({ hostname } = new URL(`https://${host.slice(below.length)}/`));
      } catch {
        throw new TypeError(`http: inject ${name}: "${host}" is no host`);
      }
      if (value === undefined) {
        throw new TypeError(
          `http: inject ${name}: value is undefined; if it comes from an environment variable, that may not be set`,
        );
      }
      if (typeof value !== "string" || !/^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$/.test(value)) {
        throw new TypeError(`http: inject ${name}: value must be printable ASCII`);
      }
      const parts = credentials(value);
      if ((parts[1] ?? value).length < LEAST) {
        throw new TypeError(
          `http: inject ${name}: value must have at least ${LEAST} characters, or it cannot be scrubbed`,
        );
      }
      const pattern = below + hostname;
      hide(
        [pattern],
        parts.filter((part) => part.length >= LEAST),
        "[redacted]",
      );
      return { host: pattern, header: name, value };
    });
    // A longer text first: a shorter one may be part of it.
    this.#hidden = hidden.sort((a, b) => b.length - a.length);
  }

  /** Whether a placeholder of one of these secrets stands in it. */
  carries(text: string): boolean {
    return (
      text.includes("secret-") && [...text.matchAll(PLACEHOLDER)].some(([one]) => this.#secrets.has(one))
    );
  }

  /**
   * The text with the values in their placeholders' places, each as `write` spells it. Throws CapabilityError: `denied`
   * if one may not go there, `too-large` when the result is longer than `most` characters.
   */
  substitute(text: string, to: Destination, write: (value: string) => string, most: number): string {
    if (!text.includes("secret-")) return text;
    let { length } = text;
    return text.replace(PLACEHOLDER, (placeholder) => {
      const secret = this.#secrets.get(placeholder);
      if (secret === undefined) return placeholder;
      if (!mayGo(secret.hosts, to)) {
        throw new CapabilityError("denied", `the secret ${secret.name} is not for that host or connection`);
      }
      const value = write(secret.reveal());
      length += value.length - placeholder.length;
      if (length > most) throw new CapabilityError("too-large", "the request is too large with its secrets");
      return value;
    });
  }

  /** The same for a body, the values escaped as its content type needs: a form, JSON, or anything else as it is. */
  substituteBody(body: Buffer, headers: readonly Header[], to: Destination, most: number): Buffer {
    if (!body.includes("secret-")) return body;
    const type = headers.find(([name]) => name === "content-type")?.[1] ?? "";
    const spelled = /^application\/x-www-form-urlencoded\b/i.test(type)
      ? encodeURIComponent
      : /^[^;]*[/+]json\b/i.test(type)
        ? (value: string) => JSON.stringify(value).slice(1, -1)
        : (value: string) => value;
    const write = (value: string) => Buffer.from(spelled(value), "utf8").toString("latin1");
    return Buffer.from(this.substitute(body.toString("latin1"), to, write, most), "latin1");
  }
  /** Adds what is injected for this destination, in place of headers of the same name. Names are lower case. */
  inject(headers: readonly Header[], to: Destination): readonly Header[] {
    const added = this.#inject.filter(({ host }) => mayGo([host], to));
    const names = new Set(added.map(({ header }) => header));
    return [
      ...headers.filter(([name]) => !names.has(name)),
      ...added.map(({ header, value }): Header => [header, value]),
    ];
  }

  /** Whether a text that is about to be sent holds a value that may not go there. */
  strays(text: string, to: Destination): boolean {
    return this.#hidden.some(({ hosts, pattern }) => !mayGo(hosts, to) && text.search(pattern) >= 0);
  }

  /** The text, one byte a character, without the values. */
  scrub(text: string): string {
    let scrubbed = text;
    for (const { pattern, shown } of this.#hidden) scrubbed = scrubbed.replace(pattern, shown);
    for (const shown of this.#inPieces) scrubbed = scrubbed.replace(repeated(shown), shown);
    return scrubbed;
  }

  /** The bytes without the values; the same object if none was there. */
  scrubBytes(bytes: Buffer): Buffer {
    if (this.#hidden.length === 0) return bytes;
    const text = bytes.toString("latin1");
    const scrubbed = this.scrub(text);
    return scrubbed === text ? bytes : Buffer.from(scrubbed, "latin1");
  }
}

/** The header's value, what follows its scheme, and of Basic (RFC 7617) the pair and the password. */
function credentials(value: string): string[] {
  const [, scheme, token] = /^(\S+) +(\S.*)$/.exec(value) ?? [];
  if (scheme === undefined || token === undefined) return [value];
  if (scheme.toLowerCase() !== "basic") return [value, token];
  const pair = Buffer.from(token, "base64").toString("utf8");
  return [value, token, pair, pair.slice(pair.indexOf(":") + 1)];
}

/** Characters; a pattern that is too long the engine refuses, in an error that quotes it. */
const PIECE = 256;

/** The text, or pieces of about the same length: each is looked for by itself. */
function pieces(text: string): string[] {
  const chars = Array.from(text);
  const size = Math.ceil(chars.length / Math.ceil(chars.length / PIECE));
  const all: string[] = [];
  for (let at = 0; at < chars.length; at += size) all.push(chars.slice(at, at + size).join(""));
  return all;
}

const repeated = (shown: string): RegExp => new RegExp(`(?:${literal(shown)}){2,}`, "g");

/** Source of a regular expression, over bytes as Latin-1 characters, that finds the value however it is spelled. */
function spellings(value: string): string {
  const utf8 = Buffer.from(value, "utf8");
  const utf16 = Buffer.from(value, "utf16le");
  const base64 = [0, 1, 2].map((offset) => {
    // Three bytes make four characters: what comes before shifts them. Only those that the value alone decides.
    const text = Buffer.concat([Buffer.alloc(offset), utf8]).toString("base64");
    return text.slice([0, 2, 3][offset], Math.floor(((offset + utf8.length) * 8) / 6));
  });
  return [
    escaped(value, () => []),
    ...base64.map((text) => escaped(text, (char) => (char === "+" ? ["-"] : char === "/" ? ["_"] : []))),
    hex(utf8.toString("hex")),
    literal(utf16.toString("latin1")),
    literal(Buffer.from(utf16).swap16().toString("latin1")),
  ].join("|");
}

const NAMED = new Map([
  ["&", "&amp;"],
  ["<", "&lt;"],
  [">", "&gt;"],
  ['"', "&quot;"],
  ["'", "&apos;"],
]);

/** Characters that encoders leave alone stand for themselves; every other one for all its spellings. */
function escaped(text: string, also: (char: string) => readonly string[]): string {
  return Array.from(text)
    .map((char) => {
      if (/[A-Za-z0-9]/.test(char)) return char;
      const percent = [...Buffer.from(char, "utf8")].map((byte) => `%(?:25)*${hexByte(byte)}`).join("");
      const units = [...Buffer.from(char, "utf16le").swap16().toString("hex").matchAll(/.{4}/g)];
      const point = char.codePointAt(0) as number;
      const ways = [
        percent,
        units.map(([unit]) => `\\\\u${hex(unit)}`).join(""),
        `&#0*${point};`,
        `&#[xX]0*${hex(point.toString(16))};`,
        ...(char === " " ? ["\\+"] : []),
        ...(NAMED.has(char) ? [NAMED.get(char) as string] : []),
        ...also(char).map(literal),
        // Last, for an escape may begin with the character itself.
        `\\\\?${literal(Buffer.from(char, "utf8").toString("latin1"))}`,
      ];
      return `(?:${ways.join("|")})`;
    })
    .join("");
}

const literal = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");
const hex = (digits: string): string =>
  digits.replace(/[a-f]/g, (digit) => `[${digit}${digit.toUpperCase()}]`);
const hexByte = (byte: number): string => hex(byte.toString(16).padStart(2, "0"));
