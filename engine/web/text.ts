/**
 * TextEncoder and TextDecoder (Encoding Standard), and the UTF-8 that the other parts use. The work is left to the
 * engine's own functions for whole blocks (a loop over bytes costs a hundred times as much in an interpreter); only
 * malformed input is decoded byte by byte.
 */
import { bytesOf, dictionary, domString, dress, usvString } from "./realm.js";

// oxlint-disable typescript/no-useless-default-assignment -- the default keeps the parameter out of `length`

// escape and unescape turn bytes that are written as Latin-1 into %XX and back (ECMA-262 B.2.1).
const { escape, unescape, encodeURIComponent, decodeURIComponent } = globalThis as unknown as Record<
  "escape" | "unescape" | "encodeURIComponent" | "decodeURIComponent",
  (text: string) => string
>;
const { apply } = Reflect;
const { fromCharCode } = String;
/** Bytes at a time; below the number of arguments that a call may have. */
const BLOCK = 8192;

/** `text` must be well-formed. */
export function utf8Encode(text: string): Uint8Array<ArrayBuffer> {
  const binary = /[^\0-\x7f]/.test(text) ? unescape(encodeURIComponent(text)) : text;
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** How many bytes before `end` begin a sequence that does not end there, though it may go on. 0 to 3. */
function openTail(bytes: Uint8Array, start: number, end: number): number {
  for (let size = 1; size <= 3 && end - size >= start; size++) {
    const lead = bytes[end - size] as number;
    if (lead >= 0x80 && lead < 0xc0) continue;
    const wanted = lead < 0xc2 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 1;
    if (size >= wanted) return 0;
    const [low, high] = secondByte(lead);
    const second = bytes[end - size + 1] as number;
    return size === 1 || (second >= low && second <= high) ? size : 0;
  }
  return 0;
}

/** The range of what may follow a lead byte: no overlong forms, no surrogates, nothing above U+10FFFF. */
function secondByte(lead: number): [low: number, high: number] {
  if (lead === 0xe0) return [0xa0, 0xbf];
  if (lead === 0xed) return [0x80, 0x9f];
  if (lead === 0xf0) return [0x90, 0xbf];
  if (lead === 0xf4) return [0x80, 0x8f];
  return [0x80, 0xbf];
}

/** Encoding Standard section 8.1.1: every maximal part of a sequence that goes wrong becomes one U+FFFD. */
function decodeMalformed(bytes: Uint8Array): string {
  let out = "";
  for (let i = 0; i < bytes.length;) {
    const lead = bytes[i++] as number;
    if (lead < 0x80) {
      out += fromCharCode(lead);
      continue;
    }
    const more = lead < 0xc2 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : lead < 0xf5 ? 3 : 0;
    let [low, high] = secondByte(lead);
    let point = lead & (0x3f >> more);
    let seen = 0;
    while (seen < more) {
      const byte = bytes[i];
      if (byte === undefined || byte < low || byte > high) break;
      point = (point << 6) | (byte & 0x3f);
      [low, high] = [0x80, 0xbf];
      seen++;
      i++;
    }
    out += more > 0 && seen === more ? String.fromCodePoint(point) : "\ufffd";
  }
  return out;
}

/** A byte order mark is a character like any other here. Undefined: `fatal`, and malformed. */
export function utf8Decode(bytes: Uint8Array, fatal: true): string | undefined;
export function utf8Decode(bytes: Uint8Array, fatal?: false): string;
export function utf8Decode(bytes: Uint8Array, fatal = false): string | undefined {
  let out = "";
  for (let start = 0; start < bytes.length;) {
    let end = Math.min(start + BLOCK, bytes.length);
    if (end < bytes.length) end -= openTail(bytes, start, end);
    const block = bytes.subarray(start, end);
    const binary = latin1Decode(block);
    if (!/[\x80-\xff]/.test(binary)) out += binary;
    else {
      try {
        out += decodeURIComponent(escape(binary));
      } catch {
        if (fatal) return undefined; // a URIError: not UTF-8
        out += decodeMalformed(block);
      }
    }
    start = end;
  }
  return out;
}

/** Every byte a code unit. */
export function latin1Decode(bytes: Uint8Array): string {
  let out = "";
  for (let start = 0; start < bytes.length; start += BLOCK) {
    out += apply(fromCharCode, undefined, bytes.subarray(start, start + BLOCK));
  }
  return out;
}

export class TextEncoder {
  get encoding(): string {
    return "utf-8";
  }
  encode(input: unknown = ""): Uint8Array<ArrayBuffer> {
    return utf8Encode(usvString(input));
  }
  encodeInto(source: unknown, destination: Uint8Array): { read: number; written: number } {
    const text = domString(source);
    if (!(destination instanceof Uint8Array)) {
      throw new TypeError("TextEncoder.encodeInto: the second argument must be a Uint8Array");
    }
    let [read, written] = [0, 0];
    for (const character of text) {
      const bytes = utf8Encode(usvString(character));
      if (written + bytes.length > destination.length) break;
      destination.set(bytes, written);
      written += bytes.length;
      read += character.length;
    }
    return { read, written };
  }
}

type Encoding = "utf-8" | "utf-16le" | "utf-16be" | "windows-1252";
/** Encoding Standard section 4.2, the labels of these four. What else there is, nobody sends any more. */
const LABELS = new Map<string, Encoding>();
const labels: Record<Encoding, string> = {
  "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
  "utf-16le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
  "utf-16be": "unicodefffe utf-16be",
  "windows-1252":
    "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252",
};
for (const [encoding, names] of Object.entries(labels)) {
  for (const name of names.split(" ")) LABELS.set(name, encoding as Encoding);
}
/** What windows-1252 has at 0x80 to 0x9F (index-windows-1252). */
const WINDOWS =
  "\u20ac\x81\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\x8d\u017d\x8f\x90\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\x9d\u017e\u0178";

export class TextDecoder {
  readonly #encoding: Encoding;
  readonly #fatal: boolean;
  readonly #ignoreBOM: boolean;
  /** What a streamed part ended with and the next has to complete. */
  #rest = new Uint8Array(0);
  #begun = false;
  #streaming = false;

  constructor(label: unknown = "utf-8", options: unknown = undefined) {
    const name = domString(label).replace(/^[\t\n\f\r ]+|[\t\n\f\r ]+$/g, "").toLowerCase(); // prettier-ignore
    const encoding = LABELS.get(name);
    if (encoding === undefined) {
      throw new RangeError(
        `TextDecoder: the encoding "${name.slice(0, 40)}" is not supported; these are: ${Object.keys(labels).join(", ")}`,
      );
    }
    const { fatal, ignoreBOM } = dictionary(options, "TextDecoder: the options");
    this.#encoding = encoding;
    this.#fatal = Boolean(fatal);
    this.#ignoreBOM = Boolean(ignoreBOM);
  }
  get encoding(): string {
    return this.#encoding;
  }
  get fatal(): boolean {
    return this.#fatal;
  }
  get ignoreBOM(): boolean {
    return this.#ignoreBOM;
  }
  decode(input: unknown = undefined, options: unknown = undefined): string {
    const given = input === undefined ? new Uint8Array(0) : bytesOf(input);
    if (given === undefined) {
      throw new TypeError("TextDecoder.decode: the input must be an ArrayBuffer or a view of one");
    }
    const stream = Boolean(dictionary(options, "TextDecoder.decode: the options").stream);
    let bytes = given;
    if (!this.#streaming) {
      this.#rest = new Uint8Array(0);
      this.#begun = false;
    } else if (this.#rest.length > 0) {
      bytes = new Uint8Array(this.#rest.length + given.length);
      bytes.set(this.#rest);
      bytes.set(given, this.#rest.length);
    }
    this.#streaming = stream;
    const open = stream ? this.#open(bytes) : 0;
    this.#rest = bytes.slice(bytes.length - open);
    let text = this.#whole(bytes.subarray(0, bytes.length - open));
    if (text === "") return text;
    if (!this.#begun && !this.#ignoreBOM && this.#encoding !== "windows-1252" && text[0] === "\ufeff") {
      text = text.slice(1);
    }
    this.#begun = true;
    return text;
  }

  #open(bytes: Uint8Array): number {
    if (this.#encoding === "utf-8") return openTail(bytes, 0, bytes.length);
    if (this.#encoding === "windows-1252") return 0;
    const odd = bytes.length % 2;
    const last = bytes[bytes.length - odd - (this.#encoding === "utf-16le" ? 1 : 2)];
    return odd + (last !== undefined && last >= 0xd8 && last <= 0xdb ? 2 : 0);
  }

  #whole(bytes: Uint8Array): string {
    if (this.#encoding === "windows-1252") {
      return latin1Decode(bytes).replace(
        /[\x80-\x9f]/g,
        (byte) => WINDOWS[byte.charCodeAt(0) - 0x80] as string,
      );
    }
    const text = this.#encoding === "utf-8" ? utf8Decode(bytes, this.#fatal as true) : this.#wide(bytes);
    if (text === undefined) {
      this.#streaming = false;
      throw new TypeError(`TextDecoder.decode: the input is not valid ${this.#encoding}`);
    }
    return text;
  }

  #wide(bytes: Uint8Array): string | undefined {
    const low = this.#encoding === "utf-16le" ? 0 : 1;
    let text = "";
    for (let i = 0; i + 1 < bytes.length; i += 2) {
      text += fromCharCode((bytes[i + low] as number) | ((bytes[i + 1 - low] as number) << 8));
    }
    if (bytes.length % 2 === 1) text += "\ud800"; // half a unit, as malformed as half a pair
    const whole = usvString(text);
    return this.#fatal && whole !== text ? undefined : whole;
  }
}

dress(TextEncoder, "TextEncoder");
dress(TextDecoder, "TextDecoder");
