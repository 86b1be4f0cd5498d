/**
 * What a receiver of callbacks does first: check that the service sent it, and lately (Standard Webhooks 1.0,
 * standardwebhooks.com). With WebCrypto, so that it works wherever that is.
 *
 * The rule: nothing of the body is read before its signature is known to be right. Headers and body are anybody's.
 */
import type { JOB_ENDS } from "../service/jobs/schemas.js";
import { isObject, parsed, ServiceError } from "./connection.js";
import { jobOf, type Job } from "./jobs.js";

export type CallbackErrorCode = "bad-header" | "bad-timestamp" | "bad-signature" | "bad-body";

/** The request is no callback of the service's, or one of another time. Answer it with 400. */
export class CallbackError extends Error {
  override readonly name = "CallbackError";

  constructor(
    readonly code: CallbackErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** A job's end. */
export interface CallbackEvent {
  /** The same each time that this end is told, and of no other: what was seen may be dropped. */
  id: string;
  type: `job.${(typeof JOB_ENDS)[number]}`;
  /** When the job ended, ISO 8601. */
  timestamp: string;
  /** The job, its outcome's value decoded. An outcome that is too large for a callback is left out: `jobs.get` has it. */
  data: Omit<Job, "callback"> & { outcomeLeftOut?: boolean };
}

/** Headers as fetch has them, or as Node's http does. */
export type CallbackHeaders =
  { get(name: string): string | null } | Readonly<Record<string, string | readonly string[] | undefined>>;

export interface VerifyOptions {
  /** How far the time of sending may be from now, seconds: 300. Whoever copies a callback can send it again until then. */
  toleranceS?: number | undefined;
  /** Milliseconds since 1970. */
  now?: (() => number) | undefined;
}

const TOLERANCE_S = 300;
/** The service sends three at most. Each costs as much as the body is long, and anybody can send many. */
const MAX_SIGNATURES = 10;

/**
 * Resolves to the event, if one of the secrets signed it and it was sent a short time ago.
 *
 * @param secrets the stored secret's value, or several while one replaces another: "whsec_" and base64, or any other text
 * @param body the bytes as they came, or their text; never JSON that was parsed and written again
 * @throws CallbackError saying what is wrong with the request; TypeError for what is wrong with secrets, body or options
 */
export async function verifyCallback(
  secrets: string | readonly string[],
  headers: CallbackHeaders,
  body: string | Uint8Array | ArrayBuffer,
  { toleranceS = TOLERANCE_S, now = Date.now }: VerifyOptions = {},
): Promise<CallbackEvent> {
  const keys: Key[] = await Promise.all((typeof secrets === "string" ? [secrets] : secrets).map(keyOf));
  if (keys.length === 0) throw new TypeError("secrets must be one at least");
  if (!(toleranceS >= 0)) throw new TypeError("toleranceS must be seconds, 0 or more");
  const bytes = bytesOf(body);

  const id = textOf(headers, "webhook-id");
  const time = textOf(headers, "webhook-timestamp");
  const signatures = signaturesOf(textOf(headers, "webhook-signature"));
  if (!/^\d{1,12}$/.test(time)) throw new CallbackError("bad-header", "webhook-timestamp must be seconds");
  const ageS = now() / 1000 - Number(time);
  if (!(Math.abs(ageS) <= toleranceS)) {
    const where = ageS > 0 ? "ago" : "from now";
    throw new CallbackError("bad-timestamp", `it was sent ${Math.round(Math.abs(ageS))} s ${where}, and ${toleranceS} s are allowed: is a clock wrong?`); // prettier-ignore
  }

  const head = new TextEncoder().encode(`${id}.${time}.`);
  const signed = new Uint8Array(head.length + bytes.length);
  signed.set(head);
  signed.set(bytes, head.length);
  const right = await anyOf(keys, (key) =>
    anyOf(signatures, (signature) => crypto.subtle.verify("HMAC", key, signature, signed)),
  );
  if (!right)
    throw new CallbackError("bad-signature", "no signature is of these secrets and this body: is it the body as it came?"); // prettier-ignore
  return eventOf(id, bytes);
}

async function anyOf<T>(items: readonly T[], fits: (item: T) => Promise<boolean>): Promise<boolean> {
  for (const item of items) if (await fits(item)) return true;
  return false;
}

type Key = Awaited<ReturnType<typeof crypto.subtle.importKey>>;

function keyOf(secret: string): Promise<Key> {
  const bytes = typeof secret === "string" ? secretBytes(secret) : undefined;
  if (bytes === undefined || bytes.length === 0)
    throw new TypeError('a secret must be "whsec_" and base64, or any other text that is not empty');
  return crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
}

const secretBytes = (secret: string): Uint8Array<ArrayBuffer> | undefined =>
  secret.startsWith("whsec_") ? fromBase64(secret.slice("whsec_".length)) : new TextEncoder().encode(secret);

/** Either alphabet, padded or not, as the service takes it. */
function fromBase64(text: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(binary, (char) => char.charCodeAt(0));
  } catch {
    return undefined; // no base64, and whoever asked says what it should have been
  }
}

function bytesOf(body: unknown): Uint8Array {
  if (typeof body === "string") return new TextEncoder().encode(body);
  if (body instanceof Uint8Array) return body;
  if (body instanceof ArrayBuffer) return new Uint8Array(body);
  throw new TypeError("body must be the bytes or the text of the request, as they came: not parsed");
}

/** One header, which is there once and is text. */
function textOf(headers: CallbackHeaders, name: string): string {
  const values: unknown[] =
    typeof headers.get === "function"
      ? [headers.get(name)]
      : Object.entries(headers)
          .filter(([key]) => key.toLowerCase() === name)
          .map(([, value]) => value);
  const [value, ...more] = values.filter((value) => value !== undefined && value !== null);
  if (value === undefined) throw new CallbackError("bad-header", `the header ${name} is missing`);
  if (typeof value !== "string" || value === "" || more.length > 0)
    throw new CallbackError("bad-header", `the header ${name} must be there once, as text`);
  return value;
}

/** Those of version 1 that can be right; of others (v1a, asymmetric) nothing is known here. */
function signaturesOf(header: string): Uint8Array<ArrayBuffer>[] {
  const all = header.split(" ");
  if (all.length > MAX_SIGNATURES)
    throw new CallbackError("bad-header", `webhook-signature has more than ${MAX_SIGNATURES} signatures`);
  return all.flatMap((text) => {
    const bytes = text.startsWith("v1,") ? fromBase64(text.slice("v1,".length)) : undefined;
    return bytes?.length === 32 ? [bytes] : [];
  });
}

function eventOf(id: string, bytes: Uint8Array): CallbackEvent {
  const wrong = (cause?: unknown) =>
    new CallbackError("bad-body", "it is signed, and no event that this client knows: is the service newer?", { cause }); // prettier-ignore
  const event = parsed(new TextDecoder().decode(bytes));
  if (!isObject(event) || !isObject(event["data"]) || typeof event["timestamp"] !== "string") throw wrong();
  const { type, timestamp, data } = event;
  if (!/^job\.(?:done|failed|cancelled)$/.test(String(type)) || type !== `job.${String(data["state"])}`)
    throw wrong();
  try {
    return { id, type: type as CallbackEvent["type"], timestamp, data: jobOf(data) };
  } catch (error) {
    throw error instanceof ServiceError ? wrong(error) : error;
  }
}
