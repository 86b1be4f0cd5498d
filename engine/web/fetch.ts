/**
 * Request, Response and fetch (Fetch Standard section 5) upon one async function that does the request. There is no
 * network here: what `fetch` can reach is what that function grants.
 *
 * A body is bytes that are all there. `body` is null or an object that can be iterated once, with `for await`, and
 * stands where the web has a ReadableStream; there is no blob() and no formData(). A request has no mode, credentials,
 * cache or referrer, and no header is forbidden: there is no page whose rights they could limit.
 */
import type { Abortable, Events } from "./events.js";
import { Headers, freezeHeaders, listOf } from "./headers.js";
import { bytesOf, copyOf, dictionary, domString, dress, need, put, uncurry, usvString } from "./realm.js";
import { utf8Decode, utf8Encode } from "./text.js";
import { URL, URLSearchParams, withoutFragment } from "./url.js";

// oxlint-disable typescript/no-useless-default-assignment -- the default keeps the parameter out of `length`

/** What is asked for. Made by us for this call: whoever takes it owns it. */
export interface FetchRequest {
  /** Absolute, serialized, without a fragment or credentials. */
  url: string;
  /** A token; DELETE, GET, HEAD, OPTIONS, POST and PUT in capitals. */
  method: string;
  /** Names in lower case; a name may stand more than once. */
  headers: [name: string, value: string][];
  body: Uint8Array | null;
  redirect: Redirect;
}
export interface FetchAnswer {
  url: string;
  status: number;
  statusText: string;
  headers: Iterable<readonly [name: string, value: string]>;
  body: Uint8Array;
  redirected: boolean;
}
export type RequestFunction = (request: FetchRequest) => Promise<FetchAnswer>;
type Redirect = "follow" | "error" | "manual";

export const NO_GRANT =
  "fetch needs the http capability, which this run was not granted (grants: { http: http({ allow: [...] }) }, or --grant 'http=https://example.com/*')";

const then = uncurry(Promise.prototype.then) as (
  promise: Promise<unknown>,
  done: (value: unknown) => void,
  failed: (error: unknown) => void,
) => void;
const PromiseCtor = Promise;
const resolved = Promise.resolve.bind(Promise) as (value: unknown) => Promise<unknown>;
const { parse, stringify } = JSON;

/** RFC 9110 section 5.6.2, token. */
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const CAPITAL = /^(?:delete|get|head|options|post|put)$/i;
const FORBIDDEN_METHOD = /^(?:connect|trace|track)$/i;
const NULL_BODY_STATUS = new Set([101, 103, 204, 205, 304]);
const REDIRECT_STATUS = new Set([301, 302, 303, 307, 308]);

/** The bytes of a body that can be read once. */
let takeBody: (body: Body) => Uint8Array<ArrayBuffer> | null;
/** A copy for a clone, which leaves the original as it is. */
let copyBody: (body: Body) => Uint8Array<ArrayBuffer> | null;
let streamOf: (take: () => Uint8Array) => BodyStream;
let takeStream: (value: unknown) => Uint8Array<ArrayBuffer> | undefined;

class BodyStream {
  readonly #take: () => Uint8Array<ArrayBuffer>;
  constructor(take: () => Uint8Array<ArrayBuffer>) {
    this.#take = take;
  }
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    const bytes = this.#take();
    if (bytes.length > 0) yield bytes;
  }
  static {
    streamOf = (take) => new BodyStream(take as () => Uint8Array<ArrayBuffer>);
    takeStream = (value) =>
      typeof value === "object" && value !== null && #take in value ? value.#take() : undefined;
  }
}

interface Extracted {
  bytes: Uint8Array<ArrayBuffer> | null;
  /** For a Content-Type header that is not given. */
  type?: string;
}

/** Copies: what the caller does to the original later does not show. */
function extract(init: unknown): Extracted {
  if (init === undefined || init === null) return { bytes: null };
  const given = bytesOf(init);
  if (given !== undefined) return { bytes: copyOf(given) };
  const streamed = takeStream(init);
  if (streamed !== undefined) return { bytes: streamed };
  const text = utf8Encode(usvString(init));
  if (init instanceof URLSearchParams) {
    return { bytes: text, type: "application/x-www-form-urlencoded;charset=UTF-8" };
  }
  return { bytes: text, type: "text/plain;charset=UTF-8" };
}

function addType(headers: Headers, type: string | undefined): void {
  if (type !== undefined && !headers.has("content-type")) headers.append("content-type", type);
}

class Body {
  readonly #bytes: Uint8Array<ArrayBuffer> | null;
  #used = false;
  #stream: BodyStream | null = null;

  constructor(bytes: Uint8Array<ArrayBuffer> | null) {
    this.#bytes = bytes;
  }
  get body(): BodyStream | null {
    if (this.#bytes === null) return null;
    return (this.#stream ??= streamOf(() => this.#take()));
  }
  get bodyUsed(): boolean {
    return this.#used;
  }
  async text(): Promise<string> {
    const text = utf8Decode(this.#take());
    return text[0] === "\ufeff" ? text.slice(1) : text;
  }
  async json(): Promise<unknown> {
    const text = utf8Decode(this.#take());
    return parse(text[0] === "\ufeff" ? text.slice(1) : text) as unknown;
  }
  async bytes(): Promise<Uint8Array> {
    return this.#take();
  }
  async arrayBuffer(): Promise<ArrayBuffer> {
    const bytes = this.#take();
    return bytes.length === bytes.buffer.byteLength ? bytes.buffer : copyOf(bytes).buffer;
  }
  /** The reader owns them: a clone has its own. */
  #take(): Uint8Array<ArrayBuffer> {
    if (this.#bytes === null) return new Uint8Array(0);
    if (this.#used) throw new TypeError("the body has already been read; clone() before reading it twice");
    this.#used = true;
    return this.#bytes;
  }
  static {
    takeBody = (body) => (body.#bytes === null ? null : body.#take());
    copyBody = (body) => {
      if (body.#used) throw new TypeError("clone: the body has already been read");
      return body.#bytes === null ? null : copyOf(body.#bytes);
    };
  }
}
dress(BodyStream, "BodyStream");
dress(Body, "Body");

function absolute(input: unknown, what: string): URL {
  let url: URL;
  const text = usvString(input);
  try {
    url = new URL(text);
  } catch {
    throw new TypeError(`${what}: the URL must be absolute, and this is not: ${text.slice(0, 200)}`);
  }
  if (url.username !== "" || url.password !== "") {
    throw new TypeError(`${what}: the URL must not hold credentials; send them in a header`);
  }
  return url;
}

function methodOf(value: unknown): string {
  const method = domString(value);
  if (!TOKEN.test(method) || FORBIDDEN_METHOD.test(method)) {
    throw new TypeError(`Request: ${stringify(method.slice(0, 40))} is not a method that can be sent`);
  }
  return CAPITAL.test(method) ? method.toUpperCase() : method;
}

// oxlint-disable prefer-rest-params -- how many arguments there were is the question, and `length` must stay
export function makeFetch({ signals }: Pick<Events, "signals">) {
  type Signal = ReturnType<typeof signals.any>;
  /** The request's parts for `fetch`; its body is taken. */
  let toSend: (request: Request) => FetchRequest;
  let respond: (answer: FetchAnswer, method: string) => Response;

  class Request extends Body {
    readonly #url: URL;
    readonly #method: string;
    readonly #headers: Headers;
    readonly #redirect: Redirect;
    readonly #signal: Signal;

    constructor(input: unknown, options: unknown = undefined) {
      need(1, arguments, "Request");
      const init = dictionary(options, "Request: the second argument");
      const from = typeof input === "object" && input !== null && #url in input ? input : undefined;
      const url = from === undefined ? absolute(input, "Request") : from.#url;
      const method =
        init.method === undefined ? (from === undefined ? "GET" : from.#method) : methodOf(init.method);
      const redirect =
        init.redirect === undefined
          ? from === undefined
            ? "follow"
            : from.#redirect
          : domString(init.redirect);
      if (redirect !== "follow" && redirect !== "error" && redirect !== "manual") {
        throw new TypeError('Request: redirect must be "follow", "error" or "manual"');
      }
      const signal = init.signal === undefined && from !== undefined ? from.#signal : init.signal;
      if (signal !== undefined && signal !== null && !signals.is(signal)) {
        throw new TypeError("Request: signal must be an AbortSignal");
      }
      const headers = new Headers(
        init.headers === undefined && from !== undefined ? from.#headers : init.headers,
      );
      const given = init.body !== undefined && init.body !== null;
      const bodiless = method === "GET" || method === "HEAD";
      if (bodiless && (given || (from !== undefined && from.body !== null))) {
        throw new TypeError(`Request: a request with ${method} has no body`);
      }
      const { bytes, type } =
        given || from === undefined ? extract(init.body) : { bytes: takeBody(from), type: undefined };
      addType(headers, type);
      super(bytes);
      this.#url = url;
      this.#method = method;
      this.#headers = headers;
      this.#redirect = redirect;
      this.#signal = signals.any(signal === undefined || signal === null ? [] : [signal]);
    }
    get url(): string {
      return this.#url.href;
    }
    get method(): string {
      return this.#method;
    }
    get headers(): Headers {
      return this.#headers;
    }
    get redirect(): string {
      return this.#redirect;
    }
    get signal(): Signal {
      return this.#signal;
    }
    clone(): Request {
      const { redirect, signal } = this;
      return new Request(this.url, {
        method: this.#method,
        headers: this.#headers,
        body: copyBody(this),
        redirect,
        signal,
      });
    }
    static {
      toSend = (request) => {
        const headers: FetchRequest["headers"] = [];
        // Defined and not pushed: what leaves is what was given, whatever became of Array.prototype.
        const list = listOf(request.#headers);
        for (let i = 0; i < list.length; i++) put(headers, i, list[i], true);
        return {
          url: withoutFragment(request.#url),
          method: request.#method,
          headers,
          body: takeBody(request),
          redirect: request.#redirect,
        };
      };
    }
  }
  dress(Request, "Request");

  class Response extends Body {
    readonly #headers: Headers;
    #status: number;
    #statusText: string;
    #type = "default";
    #url = "";
    #redirected = false;

    constructor(body: unknown = null, options: unknown = undefined) {
      const init = dictionary(options, "Response: the second argument");
      const status = init.status === undefined ? 200 : Math.trunc(Number(init.status));
      if (!(status >= 200 && status <= 599)) throw new RangeError("Response: status must be 200 to 599");
      const statusText = init.statusText === undefined ? "" : domString(init.statusText);
      if (/[^\t\x20-\x7e\x80-\xff]/.test(statusText)) {
        throw new TypeError("Response: statusText holds a character that cannot be sent");
      }
      const headers = new Headers(init.headers);
      const { bytes, type } = extract(body);
      if (bytes !== null && NULL_BODY_STATUS.has(status)) {
        throw new TypeError(`Response: one with status ${status} has no body`);
      }
      addType(headers, type);
      super(bytes);
      this.#headers = headers;
      this.#status = status;
      this.#statusText = statusText;
    }
    static error(): Response {
      const response = new Response();
      response.#type = "error";
      response.#status = 0;
      freezeHeaders(response.#headers);
      return response;
    }
    static redirect(url: unknown, status: unknown = 302): Response {
      need(1, arguments, "Response.redirect");
      const location = new URL(url).href;
      const code = Math.trunc(Number(status));
      if (!REDIRECT_STATUS.has(code)) {
        throw new RangeError("Response.redirect: status must be 301, 302, 303, 307 or 308");
      }
      const response = new Response(null, { status: code, headers: [["location", location]] });
      freezeHeaders(response.#headers);
      return response;
    }
    static json(data: unknown, options: unknown = undefined): Response {
      need(1, arguments, "Response.json");
      const text = stringify(data) as string | undefined;
      if (text === undefined) throw new TypeError("Response.json: this value has no JSON");
      const { status, statusText, headers } = dictionary(options, "Response.json: the second argument");
      const sent = new Headers(headers);
      addType(sent, "application/json");
      return new Response(text, { status, statusText, headers: sent });
    }
    get type(): string {
      return this.#type;
    }
    get url(): string {
      return this.#url;
    }
    get redirected(): boolean {
      return this.#redirected;
    }
    get status(): number {
      return this.#status;
    }
    get ok(): boolean {
      return this.#status >= 200 && this.#status <= 299;
    }
    get statusText(): string {
      return this.#statusText;
    }
    get headers(): Headers {
      return this.#headers;
    }
    clone(): Response {
      const bytes = copyBody(this);
      const { headers, statusText } = this;
      const copy = new Response(bytes, { headers, statusText });
      copy.#status = this.#status;
      copy.#type = this.#type;
      copy.#url = this.#url;
      copy.#redirected = this.#redirected;
      if (this.#type !== "default") freezeHeaders(copy.#headers);
      return copy;
    }
    static {
      respond = ({ url, status, statusText, headers, body, redirected }, method) => {
        const bodiless = method === "HEAD" || NULL_BODY_STATUS.has(status);
        const response = new Response(bodiless ? null : body, { headers });
        response.#status = status;
        response.#statusText = statusText;
        response.#type = "basic";
        response.#url = url;
        response.#redirected = redirected;
        freezeHeaders(response.#headers);
        return response;
      };
    }
  }
  dress(Response, "Response");

  let send: RequestFunction | undefined;

  return {
    classes: { Request, Response },
    bindFetch(request: RequestFunction | undefined): void {
      send = request;
    },
    // A method of an object, because such a function is no constructor.
    fetch(input: unknown, options: unknown = undefined): Promise<Response> {
      const argumentCount = arguments;
      return new PromiseCtor<Response>((resolve, reject) => {
        need(1, argumentCount, "fetch");
        if (send === undefined) throw new TypeError(NO_GRANT);
        const request = new Request(input, options);
        const signal: Abortable = request.signal;
        if (signal.aborted) throw signal.reason;
        const asked = toSend(request);
        // A late answer finds the promise settled, and is dropped.
        const forget = signals.whenAborted(request.signal, () => reject(signal.reason));
        const failed = (error: unknown): void => {
          forget();
          reject(failure(error));
        };
        const done = (answer: unknown): void => {
          forget();
          try {
            resolve(respond(answer as FetchAnswer, asked.method));
          } catch (error) {
            reject(failure(error));
          }
        };
        try {
          then(resolved(send(asked)), done, failed);
        } catch (error) {
          failed(error);
        }
      });
    },
  };
}

/** A network failure is a TypeError (Fetch Standard section 5.6, step 12.3); what it was is its cause. */
function failure(error: unknown): TypeError {
  const message = typeof error === "object" && error !== null && "message" in error ? error.message : error;
  return new TypeError(`fetch failed: ${usvString(message)}`, { cause: error });
}
