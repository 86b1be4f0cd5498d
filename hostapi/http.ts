/**
 * The http capability: a script's requests, made by this process for it, to what the rules name and to nothing else.
 * It keeps that every hop (the request and each redirect) is one walk over the same gates: rules, one resolution with
 * every address checked, secrets for that destination, a connection to those addresses only, limits on what comes back.
 *
 * The failures behind it: a redirect that nobody checks again, a second resolution at connect time, a header that makes
 * two requests of one, an answer that never ends or grows a thousandfold when unpacked, a connection that two tenants
 * share, a proxy or a switched-off certificate check taken from the environment.
 *
 * Nothing is kept but idle connections, and these by run: no cookies, no cache, no connection from run to run. HTTP/1.1
 * only. Answers come unpacked (gzip, br). What a script sends is seen by whoever serves the hosts it may reach: to let a
 * script read a thing and reach a host is to let it tell that host.
 */
import dns from "node:dns/promises";
import { promisify } from "node:util";
import zlib from "node:zlib";
import type { Dispatcher, Pool } from "undici";
import { z } from "zod";
import {
  bytes,
  capability,
  type Call,
  Capability,
  CapabilityError,
  type Method,
  method,
  type RunContext,
  stateOf,
} from "./capability.js";
import {
  Addresses,
  type Asked,
  canonical,
  type Header,
  type HttpRule,
  isForbiddenHeader,
  type Lookup,
  MAX_URL,
  parseRules,
  permits,
  readWish,
  type Rule,
  type Target,
  type Wish,
} from "./http-rules.js";
import { type Destination, type Injection, Secrets } from "./http-secrets.js";
import { aFunction, aList, checkOptions, type Checks, needed, wholeNumber } from "./options.js";
import type { Secret } from "./secret.js";

export type { HttpRule, Lookup, LookupAddress } from "./http-rules.js";
export type { Injection } from "./http-secrets.js";

export interface HttpOptions {
  /** What may be asked; at least one rule. A string is the `url` of a rule without more. */
  readonly allow: readonly (string | HttpRule)[];
  /** CIDRs of addresses that are not public and may be reached all the same: "127.0.0.1/32", "10.1.0.0/16". */
  readonly open?: readonly string[];
  /** Headers put on the requests to a host, which the script never sees. */
  readonly inject?: readonly Injection[];
  /**
   * Secrets whose placeholders the script may write into header values, the query or the body. Written in a form or
   * JSON body (by its content type) they are escaped as it needs. To another host the call fails with `denied`.
   */
  readonly secrets?: readonly Secret[];
  /** Of one call with all its redirects, ms. 30000: as long as the broker gives any call; a silent server holds a place among the run's calls in flight no longer. */
  readonly timeoutMs?: number;
  /** Of the body sent, secrets put in. 1 MiB: it is copied in this process. */
  readonly maxRequestBytes?: number;
  /** Of the body received, as sent and unpacked. 8 MiB: it is held in this process, once for each call in flight. What a call may answer is the limit if that is less. */
  readonly maxResponseBytes?: number;
  /** Of all headers together, in either direction. 16 KiB, Node's own limit. */
  readonly maxHeaderBytes?: number;
  /** 5: each is one more connection that a server chooses. */
  readonly maxRedirects?: number;
  /** Certificates (PEM) of authorities to trust, in place of this host's. */
  readonly ca?: string | Buffer;
  /** How names are resolved: this host's resolver (getaddrinfo) if absent. */
  readonly lookup?: Lookup;
}

/** What a call resolves to. */
export interface HttpAnswer {
  /** Of the last hop, without fragment. */
  url: string;
  status: number;
  statusText: string;
  /** Names in lower case, in the order received. Of a body that was packed they describe the packed one, as in fetch. */
  headers: Header[];
  body: Uint8Array;
  redirected: boolean;
}

type Undici = typeof import("undici");

/** Whether a hop may be made; what it throws fails the call. */
export type Permit = (url: URL, method: string, call: Call) => boolean | Promise<boolean>;

interface Client {
  readonly permit: Permit;
  readonly addresses: Addresses;
  readonly secrets: Secrets;
  readonly lookup: Lookup;
  readonly limits: Limits;
  /** To be used at once: another call may close it after what it has under way. */
  readonly pool: (undici: Undici, run: RunContext, origin: string, target: Target) => Pool;
}

const DEFAULTS = {
  timeoutMs: 30_000,
  maxRequestBytes: 1024 * 1024,
  maxResponseBytes: 8 * 1024 * 1024,
  maxHeaderBytes: 16 * 1024,
  maxRedirects: 5,
} as const;
type Limits = Record<keyof typeof DEFAULTS, number>;

const MAX_INT32 = 2 ** 31 - 1;
const OPTIONS: Checks<HttpOptions> = {
  allow: needed(aList('at least one rule, such as "https://api.example.com/*"')),
  open: aList("CIDRs"),
  inject: aList("{ host, header, value }"),
  secrets: aList("what secret() makes"),
  timeoutMs: wholeNumber(1, MAX_INT32),
  maxRequestBytes: wholeNumber(1, MAX_INT32),
  maxResponseBytes: wholeNumber(1, MAX_INT32),
  maxHeaderBytes: wholeNumber(1, MAX_INT32),
  maxRedirects: wholeNumber(0, MAX_INT32),
  ca: (value) =>
    typeof value === "string" || Buffer.isBuffer(value)
      ? undefined
      : "must be certificates in PEM, as text or a Buffer",
  lookup: aFunction("of a host name that resolves to its addresses"),
};

/** Headers in either direction: the bytes limit alone would let through thousands of empty ones. */
const MAX_HEADERS = 256;
/** Origins that a run keeps connections to; a rule with a wildcard names any number. */
const MAX_POOLS = 8;
/** A connection that was idle for so long is closed, ms; servers' hints do not lengthen it. */
const KEEP_ALIVE_MS = 4000;

/**
 * The capability. `read` (GET and HEAD) counts as reading, so that `readOnly()` leaves it; `request` is any method. That
 * GET changes nothing is the servers' promise (RFC 9110, 9.2.1), not ours. Throws TypeError naming the option.
 */
export function http(options: HttpOptions): Capability {
  checkOptions("http", options, OPTIONS);
  const addresses = new Addresses("http: open", options.open ?? []);
  const rules = parseRules("http: allow", options.allow, addresses);
  const words = rules.map((rule) => rule.words);
  return clientOf(options, addresses, words, (url, method) => permits(rules, url, method));
}

/**
 * The same without rules: `permit` is asked of each hop, the request and every redirect, before anything else is done
 * for it. All that takes counts as time of the call (`timeoutMs`). Throws TypeError naming the option.
 */
export function httpByConsent(permit: Permit, options: Omit<HttpOptions, "allow">): Capability {
  const { allow: _allow, ...known } = OPTIONS;
  checkOptions("http", options, known);
  const addresses = new Addresses("http: open", options.open ?? []);
  return clientOf(options, addresses, ["each hop as it is permitted"], permit);
}

function clientOf(
  options: Omit<HttpOptions, "allow">,
  addresses: Addresses,
  bounds: readonly string[],
  permit: Permit,
): Capability {
  const limits = limitsOf(options);
  const { inject = [], secrets = [], ca, lookup = systemLookup } = options;
  const pools = new WeakMap<RunContext, Map<string, Pool>>();
  const client: Client = {
    permit,
    addresses,
    secrets: new Secrets(secrets, inject, isForbiddenHeader),
    lookup,
    limits,
    pool(undici, run, origin, target) {
      const ofRun = stateOf(pools, run, () => new Map<string, Pool>());
      const key = [origin, ...target.addresses.map(({ address }) => canonical(address)).sort()].join(" ");
      const known = ofRun.get(key);
      if (known !== undefined) return known;
      const [oldest] = ofRun;
      if (oldest !== undefined && ofRun.size >= MAX_POOLS) {
        ofRun.delete(oldest[0]);
        void oldest[1].close(); // after its requests under way
      }
      const made = connections(undici, origin, target, limits, ca);
      ofRun.set(key, made);
      return made;
    },
  };

  const text = (max: number) => z.string().max(max);
  const common = {
    url: text(MAX_URL),
    headers: z
      .array(z.tuple([text(128), text(limits.maxHeaderBytes)]))
      .max(MAX_HEADERS)
      .optional(),
    redirect: z.enum(["follow", "manual", "error"]).optional(),
  };
  const returns = z.object({
    url: z.string(),
    status: z.number(),
    statusText: z.string(),
    headers: z.array(z.tuple([z.string(), z.string()])),
    body: bytes(),
    redirected: z.boolean(),
  });
  const methods = {
    read: method({
      doc: "Asks for what is at a URL (GET or HEAD).",
      params: { wish: z.strictObject({ ...common, method: z.enum(["GET", "HEAD"]).optional() }) },
      returns,
      effect: "read",
      timeoutMs: limits.timeoutMs,
      run: ({ wish }, call) => request(client, { method: "GET", body: null, ...wish }, call),
    }),
    request: method({
      doc: "Makes an HTTP request.",
      params: {
        wish: z.strictObject({
          ...common,
          method: text(128).optional(),
          body: bytes(limits.maxRequestBytes).nullish(),
        }),
      },
      returns,
      effect: "write",
      timeoutMs: limits.timeoutMs,
      run: ({ wish }, call) => request(client, wish, call),
    }),
  };
  for (const { run } of Object.values(methods)) narrowable.add(run);
  loadAhead();
  return capability("http", methods, {
    bounds,
    close(run) {
      for (const pool of pools.get(run)?.values() ?? []) void pool.destroy();
      pools.delete(run);
    },
  });
}

/** The acts that ask what `narrowHttp` has added. */
const narrowable = new WeakSet<Method["run"]>();
/** What `narrowHttp` adds for a call: the guards of a capability pass the same Call object on to its method. */
const narrowed = new WeakMap<Call, readonly (readonly Rule[])[]>();

/**
 * A weaker one: what both its rules and these allow, at redirects too (`where` sees only the first URL). Throws
 * TypeError for a rule that is wrong or a capability that is not made by `http`.
 */
export function narrowHttp(target: Capability, allow: readonly (string | HttpRule)[]): Capability {
  const isHttp =
    target instanceof Capability && [...target.methods.values()].every(({ run }) => narrowable.has(run));
  if (!isHttp) {
    const which = target instanceof Capability ? `, and this ${target.name} is not` : "";
    throw new TypeError(`narrowHttp: takes a capability made by http()${which}`);
  }
  const rules = parseRules("narrowHttp", allow);
  return target.guarded(
    `only ${rules.map(({ words }) => words).join(" or ")}`,
    (_name, _args, call, next) => {
      narrowed.set(call, [...(narrowed.get(call) ?? []), rules]);
      return next();
    },
  );
}

/**
 * Undici takes 0.3 s to load, which the first request of a run would pay out of the run's time: so it is loaded while
 * a worker starts. Not at once, and not so that the process waits for it: a program that only looks at a policy is over
 * by then and pays nothing. Where loading fails, the first request fails of the same.
 */
function loadAhead(): void {
  setTimeout(() => void import("undici").catch(() => {}), LOAD_AFTER_MS).unref();
}
const LOAD_AFTER_MS = 10;

const limitsOf = (options: Omit<HttpOptions, "allow">): Limits => ({
  timeoutMs: options.timeoutMs ?? DEFAULTS.timeoutMs,
  maxRequestBytes: options.maxRequestBytes ?? DEFAULTS.maxRequestBytes,
  maxResponseBytes: options.maxResponseBytes ?? DEFAULTS.maxResponseBytes,
  maxHeaderBytes: options.maxHeaderBytes ?? DEFAULTS.maxHeaderBytes,
  maxRedirects: options.maxRedirects ?? DEFAULTS.maxRedirects,
});

const systemLookup: Lookup = (hostname) => dns.lookup(hostname, { all: true });

/** Connections to one origin at the addresses of `target`. Nothing of the environment is asked, certificates are checked. */
function connections(
  undici: Undici,
  origin: string,
  target: Target,
  limits: Limits,
  ca: string | Buffer | undefined,
): Pool {
  const pinned = target.addresses.map(({ address, family }) => ({ address, family }));
  const allowed = new Set(pinned.map(({ address }) => canonical(address)));
  const [first] = pinned;
  const connect = undici.buildConnector({
    ...(ca === undefined ? {} : { ca }),
    rejectUnauthorized: true,
    allowH2: false,
    timeout: limits.timeoutMs,
    autoSelectFamily: true, // one address after the other, of those given (RFC 8305)
    lookup: (_hostname, { all }, done) => {
      if (all === true) done(null, pinned);
      else done(null, first?.address ?? "", first?.family);
    },
  });
  return new undici.Pool(origin, {
    connect: (options, done) =>
      connect(options, (error, socket) => {
        if (error !== null) return done(error, null);
        // The promise of the lines above, checked on the kernel's word.
        if (!allowed.has(canonical(socket.remoteAddress ?? ""))) {
          socket.destroy();
          return done(Object.assign(new Error("connected to another address"), { code: "PEER" }), null);
        }
        return done(null, socket);
      }),
    pipelining: 1,
    maxHeaderSize: limits.maxHeaderBytes,
    headersTimeout: 0, // the call's own deadline covers both
    bodyTimeout: 0,
    keepAliveTimeout: KEEP_ALIVE_MS,
    keepAliveMaxTimeout: KEEP_ALIVE_MS,
  });
}

/** One call: its deadline, its end, and the guest's words for whatever went wrong. */
async function request(client: Client, asked: Asked, call: Call): Promise<HttpAnswer> {
  const { timeoutMs, maxHeaderBytes } = client.limits;
  const wish = readWish(asked, call.label, maxHeaderBytes);
  if (client.secrets.carries(wish.url.hostname + wish.url.pathname)) {
    throw new CapabilityError(
      "bad-argument",
      `${call.label}: a secret may stand in the query, in a header or in the body, but not in the path`,
    );
  }
  const abort = new AbortController();
  const stop = () => abort.abort(new CapabilityError("unavailable", `${call.label}: the call is over`));
  const timer = setTimeout(() => {
    abort.abort(new CapabilityError("timeout", `${call.label}: no answer within ${timeoutMs} ms`));
  }, timeoutMs);
  call.signal.addEventListener("abort", stop, { once: true });
  if (call.signal.aborted) stop();
  try {
    return await untilAborted(abort.signal, follow(client, wish, asked.redirect, call, abort.signal));
  } catch (error) {
    const why: unknown = abort.signal.aborted ? abort.signal.reason : error;
    abort.abort(); // whatever of it still runs
    throw why;
  } finally {
    clearTimeout(timer);
    call.signal.removeEventListener("abort", stop);
  }
}

/** Neither a name server nor undici's connecting listens to a signal. */
function untilAborted<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  const aborted = new Promise<never>((_, reject) => {
    const fail = () => reject(signal.reason as Error);
    if (signal.aborted) fail();
    else signal.addEventListener("abort", fail, { once: true });
  });
  aborted.catch(() => {}); // it may come after the work is done
  return Promise.race([work, aborted]);
}

const tooLarge = (call: Call, what: string, most: number) =>
  new CapabilityError("too-large", `${call.label}: the ${what} are over ${most} bytes`);

const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

async function follow(
  client: Client,
  first: Wish,
  redirect: Asked["redirect"],
  call: Call,
  signal: AbortSignal,
): Promise<HttpAnswer> {
  let wish = first;
  for (let hops = 0; ; hops++) {
    const { sent, response } = await send(client, wish, call, signal);
    const { statusCode: status } = response;
    const headers = pairs(response);
    call.note({ status, redirects: hops });
    const locations = headers.filter(([name]) => name === "location");
    if (!REDIRECTS.has(status) || locations.length === 0 || redirect === "manual") {
      const body = await receive(client, wish.method, response, headers, call);
      return answer(client, { url: sent.href, status, headers, body, redirected: hops > 0 }, response);
    }
    // Not waited for: a short one frees the connection for the next hop, a long one costs it.
    response.body.dump({ limit: 16 * 1024, signal }).catch(() => {});
    if (redirect === "error") {
      throw new CapabilityError("denied", `${call.label}: the server redirects, which the request forbids`);
    }
    if (hops === client.limits.maxRedirects) {
      throw new CapabilityError("unavailable", `${call.label}: more than ${hops} redirects`);
    }
    wish = redirected(client, wish, sent, status, locations, call);
  }
}

/** The next hop (Fetch, 4.4, "HTTP-redirect fetch"). What the script meant for one origin does not go to another. */
function redirected(
  { secrets }: Client,
  wish: Wish,
  from: URL,
  status: number,
  locations: readonly Header[],
  call: Call,
): Wish {
  const [location] = locations;
  const nowhere = new CapabilityError("unavailable", `${call.label}: the server redirects to no usable URL`);
  if (location === undefined || locations.length > 1) throw nowhere;
  let url: URL;
  try {
    url = new URL(location[1], from);
  } catch {
    throw nowhere;
  }
  if (url.href.length > MAX_URL) throw nowhere;
  url.hash = "";
  const toGet =
    (status === 303 && wish.method !== "GET" && wish.method !== "HEAD") ||
    ((status === 301 || status === 302) && wish.method === "POST");
  const away = url.origin !== from.origin;
  const headers = wish.headers.filter(
    ([name, value]) =>
      !(toGet && /^content-(?:encoding|language|location|type)$/.test(name)) &&
      !(away && (name === "authorization" || name === "cookie" || secrets.carries(value))),
  );
  return {
    url,
    method: toGet ? "GET" : wish.method,
    headers,
    body: toGet ? Buffer.alloc(0) : wish.body,
    own: false,
  };
}

/** One hop through all the gates. */
async function send(
  client: Client,
  wish: Wish,
  call: Call,
  signal: AbortSignal,
): Promise<{ sent: URL; response: Dispatcher.ResponseData }> {
  const { secrets, limits } = client;
  // One text for whatever forbids it: a script learns nothing of the network from the difference.
  const denied = (by: "rule" | "address" | "secret") => {
    call.note({ refused: by });
    return new CapabilityError("denied", `${call.label}: no rule allows that request to that place`);
  };
  const place = secrets.scrub(wish.url.origin + wish.url.pathname).slice(0, 512);
  call.note(wish.own ? { method: wish.method, url: place } : { redirectedTo: place });
  for (const rules of narrowed.get(call) ?? []) {
    if (!permits(rules, wish.url, wish.method)) throw denied("rule");
  }
  if (!(await client.permit(new URL(wish.url), wish.method, call))) throw denied("rule");
  const target = await client.addresses.resolve(wish.url, client.lookup);
  if (target === "denied") throw denied("address");
  if (target === "unavailable") throw unavailable(call);

  const to: Destination = {
    host: wish.url.hostname,
    confidential: target.opened || wish.url.protocol === "https:",
  };
  const sent = new URL(wish.url);
  if (wish.own) sent.search = secrets.substitute(sent.search, to, encodeURIComponent, MAX_URL);
  if (secrets.strays(sent.href, to)) throw denied("secret");
  const body = secrets.substituteBody(wish.body, wish.headers, to, limits.maxRequestBytes);
  if (body.length > limits.maxRequestBytes) throw tooLarge(call, "bytes of the body", limits.maxRequestBytes);
  const inHeader = (value: string) => {
    // Other characters would go as Latin-1 bytes, in which nobody looks for it on the way back.
    if (/^[\x20-\x7e]*$/.test(value)) return value;
    throw new CapabilityError(
      "bad-argument",
      `${call.label}: a secret that is not ASCII can stand in no header`,
    );
  };
  const headers = secrets
    .inject(wish.headers, to)
    .map(([name, value]): Header => [name, secrets.substitute(value, to, inHeader, limits.maxHeaderBytes)]);
  call.charge(body.length);
  try {
    const undici = await import("undici"); // see loadAhead
    signal.throwIfAborted();
    const response = await client.pool(undici, call.run, sent.origin, target).request({
      path: sent.pathname + sent.search,
      method: wish.method,
      headers: [...defaults(headers), ...headers].flat(),
      body: body.length > 0 ? body : null,
      signal,
      responseHeaders: "raw",
    });
    response.body.on("error", () => {}); // whoever reads it hears of it; nobody may be reading
    return { sent, response };
  } catch (error) {
    throw failure(error, call, limits);
  }
}

/** Headers that a request has unless it says otherwise. */
function defaults(headers: readonly Header[]): Header[] {
  const given = new Set(headers.map(([name]) => name));
  const all: Header[] = [
    ["accept", "*/*"],
    ["user-agent", "doublehull"],
    ["accept-encoding", "gzip, br"],
  ];
  return all.filter(([name]) => !given.has(name));
}

const unavailable = (call: Call) =>
  new CapabilityError("unavailable", `${call.label}: no answer came from the server`);

/** Undici's and the kernel's errors, for the guest without a word of theirs; the audit has the code. */
function failure(error: unknown, call: Call, limits: Limits): CapabilityError {
  if (error instanceof CapabilityError) return error;
  const { code } = error as NodeJS.ErrnoException;
  if (code === "UND_ERR_HEADERS_OVERFLOW") return tooLarge(call, "headers", limits.maxHeaderBytes);
  call.note({ cause: code ?? (error instanceof Error ? error.name : "unknown") });
  return unavailable(call);
}

function pairs({ headers }: Dispatcher.ResponseData): Header[] {
  const flat = headers as unknown as string[]; // responseHeaders: "raw"
  const all: Header[] = [];
  for (let at = 0; at + 1 < flat.length; at += 2) {
    all.push([(flat[at] as string).toLowerCase(), flat[at + 1] as string]);
  }
  return all;
}

/** Reads the body to its end, or stops and lets go of the connection. Resolves to it unpacked. */
async function receive(
  { limits }: Client,
  method: string,
  response: Dispatcher.ResponseData,
  headers: readonly Header[],
  call: Call,
): Promise<Buffer> {
  const { body } = response;
  const most = Math.min(limits.maxResponseBytes, call.maxAnswerBytes);
  const over = () => tooLarge(call, "bytes of the answer", most);
  try {
    if (headers.length > MAX_HEADERS) throw tooLarge(call, "headers of the answer", limits.maxHeaderBytes);
    const announced = headers.find(([name]) => name === "content-length")?.[1];
    if (method !== "HEAD" && announced !== undefined && Number(announced) > most) throw over();
    const chunks: Buffer[] = [];
    let length = 0;
    for await (const chunk of body as AsyncIterable<Buffer>) {
      length += chunk.length;
      call.charge(chunk.length);
      if (length > most) throw over();
      chunks.push(chunk);
    }
    return await unpacked(Buffer.concat(chunks), headers, most);
  } catch (error) {
    body.destroy();
    if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw over();
    throw failure(error, call, limits);
  }
}

const gunzip = promisify(zlib.gunzip);
const brotli = promisify(zlib.brotliDecompress);

/** Only what was asked for, and once: a body packed in another way would pass the search for secrets unread. */
async function unpacked(body: Buffer, headers: readonly Header[], most: number): Promise<Buffer> {
  const codings = headers
    .filter(([name]) => name === "content-encoding")
    .flatMap(([, value]) => value.toLowerCase().split(","))
    .map((coding) => coding.trim())
    .filter((coding) => coding !== "" && coding !== "identity");
  const [coding] = codings;
  if (coding === undefined || body.length === 0) return body;
  if (codings.length === 1 && (coding === "gzip" || coding === "x-gzip")) {
    return gunzip(body, { maxOutputLength: most });
  }
  if (codings.length === 1 && coding === "br") return brotli(body, { maxOutputLength: most });
  throw Object.assign(new Error("a content coding that was not asked for"), { code: "CONTENT_CODING" });
}

/** What the guest gets: no value of a secret in any part of it. */
function answer(
  { secrets }: Client,
  parts: Omit<HttpAnswer, "statusText" | "body"> & { body: Buffer },
  { statusText }: Dispatcher.ResponseData,
): HttpAnswer {
  return {
    url: secrets.scrub(parts.url),
    status: parts.status,
    statusText: secrets.scrub(Buffer.from(statusText, "utf8").toString("latin1")).slice(0, 256),
    // A name with a value in it has no honest reason.
    headers: parts.headers
      .filter(([name]) => secrets.scrub(name) === name)
      .map(([name, value]): Header => [name, secrets.scrub(value)]),
    body: new Uint8Array(secrets.scrubBytes(parts.body)),
    redirected: parts.redirected,
  };
}
