/**
 * A draft as the fragment of an address, which a browser sends to no server: "#share=" and the deflated JSON in base64url.
 * A link is hostile input: its length is bounded before it is read and while it is inflated, what comes out is checked
 * against a strict schema, and nothing of it runs by itself. It never holds a key: there is no field for one.
 */
import * as z from "zod/mini";
import { LIMITS, type LimitName } from "../limits.js";
import { LIMIT_NAMES, type Draft } from "./draft.js";

/** Characters of a fragment: what browsers and chats carry whole. */
export const MAX_LINK = 64 * 1024;
/** Bytes of JSON. Deflate makes a thousandth of what repeats, so this is counted while it comes out. */
export const MAX_INFLATED = 512 * 1024;
const MARK = "share=";

/** A link that cannot be read, or a draft that is too large for one. */
export class LinkError extends Error {
  override readonly name = "LinkError";
}

const limitSchema = (name: LimitName) => {
  const { min, max } = LIMITS[name];
  return z.optional(z.int().check(z.minimum(min), z.maximum(max)));
};
const schema = z.strictObject({
  source: z.string(),
  type: z.enum(["module", "script"]),
  language: z.enum(["javascript", "typescript"]),
  engine: z.optional(z.string().check(z.regex(/^[a-z0-9-]{1,32}$/))),
  limits: z.optional(
    z.strictObject(Object.fromEntries(LIMIT_NAMES.map((name) => [name, limitSchema(name)]))),
  ),
  grants: z.optional(z.array(z.string().check(z.regex(/^[A-Za-z_$][\w$]{0,63}$/))).check(z.maxLength(100))),
  input: z.optional(z.string()),
});

/** The fragment, with its "#". Limits that are no numbers are left out. Throws LinkError if it would be too long. */
export async function encodeLink(draft: Draft): Promise<string> {
  const { source, type, language, engine, grants, input } = draft;
  const limits = [...draft.limits].filter(([, text]) => /^\s*\d{1,15}\s*$/.test(text));
  const plain: z.infer<typeof schema> = {
    source,
    type,
    language,
    ...(engine === undefined ? {} : { engine }),
    ...(limits.length === 0 ? {} : { limits: Object.fromEntries(limits.map(([name, text]) => [name, Number(text)])) }), // prettier-ignore
    ...(grants.size === 0 ? {} : { grants: [...grants] }),
    ...(input.trim() === "" ? {} : { input }),
  };
  const bytes = new TextEncoder().encode(JSON.stringify(plain));
  if (bytes.length > MAX_INFLATED) throw new LinkError("this is too large for a link");
  const deflated = await through(new CompressionStream("deflate-raw"), bytes, 2 * MAX_INFLATED);
  const fragment = `#${MARK}${base64url(deflated)}`;
  if (fragment.length > MAX_LINK) throw new LinkError("this is too large for a link");
  return fragment;
}

export const isLink = (fragment: string): boolean => fragment.startsWith(`#${MARK}`);

/** What a fragment shares. Throws LinkError with words for whoever opened it. */
export async function decodeLink(fragment: string): Promise<Draft> {
  if (!isLink(fragment)) throw new LinkError("the link shares nothing");
  if (fragment.length > MAX_LINK) throw new LinkError("the link is longer than any that this page makes");
  const text = fragment.slice(MARK.length + 1);
  if (!/^[\w-]+$/.test(text) || text.length % 4 === 1)
    throw new LinkError("the link is damaged: it is no base64url");
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const deflated = Uint8Array.from(binary, (char) => char.charCodeAt(0));
  const json = await through(new DecompressionStream("deflate-raw"), deflated, MAX_INFLATED);
  let plain: unknown;
  try {
    plain = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json));
  } catch (cause) {
    throw new LinkError("the link is damaged: it holds no JSON", { cause });
  }
  const read = schema.safeParse(plain);
  if (!read.success) {
    const field = read.error.issues[0]?.path.map(String).join(".").slice(0, 100) ?? "";
    throw new LinkError(`the link is none of this page's${field === "" ? "" : `: its ${field} is wrong`}`);
  }
  const { source, type, language, engine, limits = {}, grants = [], input = "" } = read.data;
  const given = LIMIT_NAMES.flatMap((name) => {
    const value = limits[name];
    return value === undefined ? [] : [[name, String(value)] as const];
  });
  return { source, type, language, engine, limits: new Map(given), grants: new Set(grants), input };
}

/** Stops at the first byte over the bound: what would have come after it is never made. */
async function through(
  stream: CompressionStream | DecompressionStream,
  bytes: Uint8Array<ArrayBuffer>,
  most: number,
): Promise<Uint8Array> {
  const writer = stream.writable.getWriter();
  const written = Promise.all([writer.write(bytes), writer.close()]);
  written.catch(() => {}); // the reader hears of the same mistake
  const reader: ReadableStreamDefaultReader<Uint8Array> = stream.readable.getReader();
  const parts: Uint8Array[] = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read().catch((cause: unknown) => {
      throw new LinkError("the link is damaged: it cannot be inflated", { cause });
    });
    if (done) break;
    length += value.length;
    if (length > most) {
      reader.cancel().catch(() => {}); // nothing more of it is wanted
      throw new LinkError("what the link holds is too large");
    }
    parts.push(value);
  }
  const all = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function base64url(bytes: Uint8Array): string {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}
