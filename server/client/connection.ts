/**
 * One service by HTTP: asks it, and makes of everything that can go wrong one kind of error. Of the world it needs fetch
 * and what comes with it (URL, streams, TextDecoder, AbortSignal), so it works in browsers, Deno and Node. What an answer
 * may hold is bounded while it arrives. The API key leaves this file in one header, to one origin: redirects are refused.
 */
import type { ProblemCode, ProblemDocument } from "../service/problems.js";
import { EventStreamParser, type ServerSentEvent } from "./event-stream.js";

export interface ClientOptions {
  /** Where the service is: "http://127.0.0.1:7070", with a path if a proxy puts it below one. */
  baseUrl: string | URL;
  apiKey: string;
  /** In the place of the global one. */
  fetch?: typeof globalThis.fetch;
}

/**
 * The service's own codes, and two of the client's: `no-answer` (the network, `cause` says what) and `bad-answer` (what
 * arrived is not what a service says; a proxy's page, for example). A newer service may have codes that are not here.
 */
export type ServiceErrorCode = ProblemCode | "no-answer" | "bad-answer" | (string & {});

/** A request that was not answered as it should be. What a script does is never one: that is an outcome. */
export class ServiceError extends Error {
  override readonly name: string = "ServiceError";
  /** Of HTTP; 0 if there was no answer. */
  readonly status: number;
  /** What the service says of it (RFC 9457): `remedy`, and in `errors` the fields that are wrong. */
  readonly problem: ProblemDocument | undefined;
  /** Seconds to wait before the same can be asked again. */
  readonly retryAfterS: number | undefined;

  constructor(
    readonly code: ServiceErrorCode,
    message: string,
    more: {
      status?: number;
      problem?: ProblemDocument;
      retryAfterS?: number | undefined;
      cause?: unknown;
    } = {},
  ) {
    super(message, more.cause === undefined ? {} : { cause: more.cause });
    this.status = more.status ?? more.problem?.status ?? 0;
    this.problem = more.problem;
    this.retryAfterS = more.retryAfterS;
  }

  static of(problem: ProblemDocument, retryAfterS?: number): ServiceError {
    const { code, title, detail, remedy } = problem;
    const Kind = code === "idempotency-lost" ? AnswerLostError : ServiceError;
    return new Kind(code, `${title}: ${detail}. ${remedy}`, { problem, retryAfterS });
  }
}

/**
 * A run with an idempotency key was begun, and what became of it is not known: the service ended in the middle of it, or had
 * no room to keep the answer. Find out by what the run does; asked again with the same key, this is the answer again.
 */
export class AnswerLostError extends ServiceError {
  override readonly name = "AnswerLostError";
}

export interface Call {
  method: "GET" | "PUT" | "POST" | "DELETE";
  /** Segments, each any text. */
  path: readonly string[];
  query?: Readonly<Record<string, string | number | undefined>>;
  /** Sent as JSON. */
  body?: unknown;
  headers?: Readonly<Record<string, string>>;
  signal?: AbortSignal | undefined;
}

/** UTF-16 units of an answer or an event: above the largest result and log that a run may have, as JSON escapes them. */
const MAX_ANSWER = 64 * 1024 * 1024;

export class Connection {
  readonly #base: string;
  readonly #key: string;
  readonly #fetch: typeof globalThis.fetch;

  /** Throws TypeError naming the option that is wrong. */
  constructor({ baseUrl, apiKey, fetch = globalThis.fetch }: ClientOptions) {
    const url = URL.canParse(String(baseUrl)) ? new URL(baseUrl) : undefined;
    if (
      url === undefined ||
      !/^https?:$/.test(url.protocol) ||
      url.username + url.password + url.search + url.hash !== ""
    )
      // prettier-ignore
      throw new TypeError("baseUrl must be an http or https address without credentials, query and fragment");
    if (typeof apiKey !== "string" || !/^[\x21-\x7e]+$/.test(apiKey))
      throw new TypeError("apiKey must be a key as the service gave it: text without spaces");
    if (typeof fetch !== "function")
      throw new TypeError("fetch must be a function: give one where none is global");
    this.#base = url.href.replace(/\/+$/, "");
    this.#key = apiKey;
    this.#fetch = (input, init) => fetch(input, init); // a browser's does not work as another object's method
  }

  /**
   * Resolves once the head of a good answer is there; whoever asked reads the body.
   *
   * @throws ServiceError; what `signal` was aborted with; TypeError for a path that cannot be asked for
   */
  async send({ method, path, query = {}, body, headers = {}, signal }: Call): Promise<Response> {
    const url = new URL(this.#base + path.map(segment).join(""));
    for (const [name, value] of Object.entries(query))
      if (value !== undefined) url.searchParams.set(name, String(value));
    const init: RequestInit = {
      method,
      headers: {
        accept: "application/json",
        ...headers,
        authorization: `Bearer ${this.#key}`,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      redirect: "error",
      credentials: "omit",
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal === undefined ? {} : { signal }),
    };
    let response: Response;
    try {
      response = await this.#fetch(url, init);
    } catch (cause) {
      throw lost(`${method} ${url.pathname} was not answered`, cause, signal);
    }
    if (response.ok) return response;
    throw refusal(response, await textOf(response, signal));
  }

  async text(call: Call): Promise<string> {
    return textOf(await this.send(call), call.signal);
  }

  /** The shape is what the service's schemas promise: an object. */
  async json<Answer extends object>(call: Call): Promise<Answer> {
    const response = await this.send(call);
    const answer = parsed(await textOf(response, call.signal));
    if (!isObject(answer))
      throw badAnswer("the answer is no JSON object: is this the service?", response.status);
    return answer as Answer;
  }

  /** For requests that are answered with nothing. */
  async done(call: Call): Promise<void> {
    await this.text(call);
  }
}

/** Not with encodeURIComponent alone, for "." and ".." stay and mean another address. */
function segment(text: string): string {
  if (typeof text !== "string" || text === "" || text === "." || text === "..")
    throw new TypeError(`a name must not be ${JSON.stringify(text)}`);
  return `/${encodeURIComponent(text)}`;
}

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export const badAnswer = (message: string, status = 200, cause?: unknown): ServiceError =>
  new ServiceError("bad-answer", message, { status, cause });

/** Whether it may be gone on with after it: the network's trouble, or a node that is busy or being replaced. */
export const passing = ({ code, status }: ServiceError): boolean =>
  code === "no-answer" || [429, 502, 503, 504].includes(status);

/** Who aborts gets its own reason, as from fetch. */
function lost(message: string, cause: unknown, signal: AbortSignal | undefined): ServiceError {
  signal?.throwIfAborted();
  return cause instanceof ServiceError ? cause : new ServiceError("no-answer", message, { cause });
}

/** Undefined if it is no JSON. */
export function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // no JSON text means undefined, and whoever asked says what it should have been
  }
}

function refusal(response: Response, text: string): ServiceError {
  const retryAfterS = secondsOf(response.headers.get("retry-after"));
  const problem = asProblem(parsed(text));
  if (problem !== undefined) return ServiceError.of(problem, retryAfterS);
  const { status } = response;
  return new ServiceError("bad-answer", `the answer is HTTP ${status} and no problem document`, { status, retryAfterS }); // prettier-ignore
}

/** A problem document, if it is one. */
export function asProblem(value: unknown): ProblemDocument | undefined {
  if (!isObject(value) || typeof value["status"] !== "number") return undefined;
  const texts = ["type", "title", "detail", "code", "remedy"].every(
    (name) => typeof value[name] === "string",
  );
  return texts ? (value as unknown as ProblemDocument) : undefined;
}

/** Retry-After: seconds, or the time of day (RFC 9110, 10.2.3). */
function secondsOf(header: string | null): number | undefined {
  if (header === null) return undefined;
  if (/^\d{1,9}$/.test(header)) return Number(header);
  const at = Date.parse(header);
  return Number.isNaN(at) ? undefined : Math.max(0, (at - Date.now()) / 1000);
}

/** Chunks of a body as they arrive. Whoever stops early lets go of the connection. */
async function* chunksOf({ body }: Response, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  if (body === null) return;
  const reader: ReadableStreamDefaultReader<Uint8Array> = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (cause) {
    throw lost("the connection was lost in the middle of an answer", cause, signal);
  } finally {
    reader.cancel().catch(() => {}); // a broken one cannot be cancelled, and need not be
  }
}

async function textOf(response: Response, signal: AbortSignal | undefined): Promise<string> {
  const decoder = new TextDecoder();
  const parts: string[] = [];
  let length = 0;
  for await (const chunk of chunksOf(response, signal)) {
    const part = decoder.decode(chunk, { stream: true });
    length += part.length;
    if (length > MAX_ANSWER)
      throw badAnswer(`the answer has more than ${MAX_ANSWER} characters`, response.status);
    parts.push(part);
  }
  return parts.join("") + decoder.decode();
}

/**
 * The events of an answer that is a stream, to its end.
 *
 * @throws ServiceError `no-answer` if the connection is lost, `bad-answer` if it is no such stream
 */
export async function* eventsOf(
  response: Response,
  signal: AbortSignal | undefined,
): AsyncGenerator<ServerSentEvent> {
  if (!/^text\/event-stream\b/.test(response.headers.get("content-type") ?? ""))
    throw badAnswer("the answer is no stream of events", response.status);
  const parser = new EventStreamParser(MAX_ANSWER);
  for await (const chunk of chunksOf(response, signal)) {
    let events: ServerSentEvent[];
    try {
      events = parser.push(chunk);
    } catch (cause) {
      throw badAnswer("an event of the stream is too large", response.status, cause);
    }
    yield* events;
  }
}

/** Resolves after so many milliseconds; rejects with the reason if aborted before. */
export function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal?.aborted === true) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
