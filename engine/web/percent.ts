/** Percent-decoding and application/x-www-form-urlencoded (URL Standard sections 1.3 and 5). */
import { utf8Decode } from "./text.js";

const { decodeURIComponent, encodeURIComponent, unescape } = globalThis as unknown as Record<
  "decodeURIComponent" | "encodeURIComponent" | "unescape",
  (text: string) => string
>;

/** The text whose UTF-8 `text` is when its %XX are bytes. What is no escape, or no UTF-8, is as lenient as the standard. */
export function percentDecode(text: string): string {
  if (!text.includes("%")) return text;
  try {
    return decodeURIComponent(text);
  } catch {
    // A URIError: a lone % or bytes that are not UTF-8. Byte by byte then.
    const binary = unescape(encodeURIComponent(text)).replace(/%[\da-f]{2}/gi, (escape) =>
      String.fromCharCode(Number.parseInt(escape.slice(1), 16)),
    );
    return utf8Decode(Uint8Array.from(binary, (byte) => byte.charCodeAt(0)));
  }
}

type Pair = [name: string, value: string];

export function parseForm(text: string): Pair[] {
  const pairs: Pair[] = [];
  for (const part of text.split("&")) {
    if (part === "") continue;
    const at = part.indexOf("=");
    const name = at < 0 ? part : part.slice(0, at);
    const value = at < 0 ? "" : part.slice(at + 1);
    pairs.push([percentDecode(name.replaceAll("+", " ")), percentDecode(value.replaceAll("+", " "))]);
  }
  return pairs;
}

/** `text` is well-formed. */
const formEncode = (text: string): string =>
  encodeURIComponent(text)
    .replace(/[!'()~]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)
    .replaceAll("%20", "+");

export const serializeForm = (pairs: readonly Readonly<Pair>[]): string =>
  pairs.map(([name, value]) => `${formEncode(name)}=${formEncode(value)}`).join("&");
