/**
 * The two HTTP applications: the tenants' and, apart from it on an address of its own, the administrators'. Both are
 * assembled here from the same parts: authentication first, then bounds, then the routes; every refusal is a problem
 * document, and no text of a script, secret or key is in the server's log.
 */
import { randomUUID } from "node:crypto";
import cors from "@fastify/cors";
import helmet from "@fastify/helmet";
import rateLimit from "@fastify/rate-limit";
import sse from "@fastify/sse";
import swagger from "@fastify/swagger";
import swaggerUi from "@fastify/swagger-ui";
import underPressure from "@fastify/under-pressure";
import Fastify, {
  LogController,
  type FastifyBaseLogger,
  type FastifyError,
  type FastifyReply,
  type FastifyRequest,
} from "fastify";
import {
  hasZodFastifySchemaValidationErrors,
  jsonSchemaTransform,
  jsonSchemaTransformObject,
  validatorCompiler,
  type ZodFastifySchemaValidationError,
  type ZodTypeProvider,
} from "fastify-type-provider-zod";
import { issueWords } from "../policy.js";
import { Shares } from "../shares.js";
import { jsonText } from "../show.js";
import type { AuditLog } from "./audit-log.js";
import { answerBroken, whenOver } from "./connections.js";
import type { Database } from "./database.js";
import type { Idempotency } from "./idempotency.js";
import type { Jobs } from "./jobs/jobs.js";
import type { Schedules } from "./jobs/schedules.js";
import type { JobTable } from "./jobs/table.js";
import type { Metrics } from "./metrics.js";
import { badField, badFields, Problem, type FieldError, type ProblemCode } from "./problems.js";
import { asProblem, type Runner } from "./runner.js";
import type { Streams } from "./streams.js";
import type { Tenant, Tenants } from "./tenants.js";
import type { UsageMeter } from "./usage.js";

export interface ServiceParts {
  version: string;
  /** Most bytes of a body. */
  bodyBytes: number;
  /** Requests are refused while the event loop is behind by more than that, on average of a second. */
  busyMs: number;
  /** Whose pages may ask, beside the service's own. */
  corsOrigins: readonly string[];
  tenants: Tenants;
  runner: Runner;
  streams: Streams;
  idempotency: Idempotency;
  db: Database;
  table: JobTable;
  jobs: Jobs;
  schedules: Schedules;
  usage: UsageMeter;
  audit: AuditLog;
  metrics: Metrics;
  logger: FastifyBaseLogger;
  now: () => number;
  /** Why this node should get no requests now, if so. */
  unready: () => string | undefined;
}

declare module "fastify" {
  interface FastifyRequest {
    /** Set by authentication, before anything else sees the request. */
    holder: { key: string; tenant: Tenant | undefined };
  }
  interface FastifyContextConfig {
    /** Answered without a key. */
    open?: boolean;
  }
}

export type App = ReturnType<typeof createApp>;
export type Audience = "tenant" | "admin";

/** Of pages that may ask (Fetch, 3.3). Keys come in a header and never in a cookie, so that no page has one by itself. */
const CORS = {
  methods: ["GET", "POST", "PUT", "DELETE"],
  allowedHeaders: ["accept", "authorization", "content-type", "idempotency-key", "last-event-id"],
  exposedHeaders: ["idempotency-replayed", "location", "retry-after", "x-request-id", "x-run-id"],
  maxAge: 3600,
  strictPreflight: false,
};

/** Fastify's own errors that are a client's mistake. */
const CLIENT_ERRORS: Readonly<Record<string, ProblemCode>> = {
  FST_ERR_CTP_INVALID_JSON_BODY: "bad-json",
  FST_ERR_CTP_EMPTY_JSON_BODY: "bad-json",
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: "bad-json",
  FST_ERR_CTP_BODY_TOO_LARGE: "too-large",
  FST_ERR_CTP_INVALID_MEDIA_TYPE: "bad-media-type",
};

export function createApp(audience: Audience, parts: ServiceParts) {
  const { tenants, audit, metrics, bodyBytes, version, corsOrigins } = parts;
  const app = Fastify({
    loggerInstance: parts.logger,
    logController: new LogController({ disableRequestLogging: true }), // it would log addresses with their queries
    bodyLimit: bodyBytes,
    genReqId: () => randomUUID(),
    requestTimeout: 120_000, // for the whole request to arrive: a body that drips holds a connection
    forceCloseConnections: "idle",
    routerOptions: { maxParamLength: 200 },
    http: { requireHostHeader: false }, // Node's refusal has no body: the first hook sees to it
    // An address that no route can be looked up for: no hook has seen it.
    frameworkErrors: (error, request, reply: FastifyReply) => void refuse(error, request, reply),
    clientErrorHandler: (error, socket) => {
      const problem = answerBroken(error, socket);
      if (problem === undefined) return;
      metrics.answered("none", problem.status);
      parts.logger.info({ route: "none", status: problem.status, code: problem.code }, "answered");
    },
  }).withTypeProvider<ZodTypeProvider>();
  app.removeContentTypeParser("text/plain"); // JSON and nothing else
  const parse = app.getDefaultJsonParser("error", "error");
  app.addContentTypeParser("application/json", { parseAs: "string" }, (request, body, done) => {
    if (isDeep(String(body))) done(new Problem("bad-json", `the body is nested more than ${MAX_DEPTH} deep`));
    else void parse(request, String(body), done);
  });
  app.setValidatorCompiler(validatorCompiler);
  // What is answered is ours: the schemas describe it, and need not check it once more.
  app.setSerializerCompiler(() => (data) => jsonText(data));
  app.decorateRequest("holder", null as unknown as FastifyRequest["holder"]);

  const strangers = new Strangers(parts.now);
  const room = new BodyRoom();
  // First, so that a page is told why it was refused, too.
  if (corsOrigins.length > 0 && audience === "tenant")
    void app.register(cors, { ...CORS, origin: [...corsOrigins] });
  app.after(() =>
    app.addHook("onRequest", async (request, reply) => {
      answerHeaders(request, reply);
      // RFC 9112, 3.2: a request without a host may be meant for anybody.
      if (request.headers.host === undefined && request.raw.httpVersion === "1.1")
        throw new Problem("bad-http", "the request has no header Host");
      if (request.routeOptions.config.open === true || request.is404) return;
      const holder = await tenants.holder(request.headers.authorization);
      const route = request.routeOptions.url ?? "";
      const refuse = (reason: "missing" | "unknown" | "expired" | "forbidden", key: string | undefined) => {
        // Of one that was somebody's each line is kept.
        if ((reason === "missing" || reason === "unknown") && strangers.flood())
          return new Problem("rate-limited", "too many requests without a valid API key", {
            retryAfterS: 60,
          });
        audit.append({ kind: "auth", reason, route, ...(key === undefined ? {} : { key }) });
        return new Problem("unauthorized", reason === "expired" ? "the API key has expired" : "the request has no valid API key"); // prettier-ignore
      };
      if ("refused" in holder) throw refuse(holder.refused, holder.key);
      if (holder.admin !== (audience === "admin")) throw refuse("forbidden", holder.key);
      request.holder = { key: holder.key, tenant: holder.admin ? undefined : holder.tenant };
      const { "content-length": length, "transfer-encoding": coding } = request.headers;
      const declared = coding === undefined ? Number(length ?? 0) : bodyBytes;
      const release = room.reserve(request.holder.tenant?.id ?? "", Math.min(declared, bodyBytes));
      if (release === undefined)
        throw new Problem("overloaded", "as many bytes of bodies are under way as are taken", {
          retryAfterS: 1,
        });
      whenOver(request.raw, reply.raw, release);
    }),
  );

  app.setErrorHandler(refuse);
  // The streams' plugin answers by itself where a client takes no stream.
  app.addHook("preSerialization", (_request, reply, payload, done) => {
    if (reply.statusCode !== 406) return done(null, payload);
    done(new Problem("not-acceptable", "this route answers with text/event-stream and nothing else"));
  });
  app.setNotFoundHandler(() => {
    throw new Problem("not-found", "there is no such route; see /docs");
  });
  app.addHook("onResponse", (request, reply, done) => {
    const route = request.routeOptions.url ?? "none";
    metrics.answered(route, reply.statusCode);
    request.log.info(
      { method: request.method, route, status: reply.statusCode, ms: Math.round(reply.elapsedTime * 10) / 10, tenant: request.holder?.tenant?.id }, // prettier-ignore
      "answered",
    );
    done();
  });

  void app.register(helmet, {
    contentSecurityPolicy: {
      directives: { defaultSrc: ["'self'"], scriptSrc: ["'self'"], styleSrc: ["'self'", "'unsafe-inline'"], imgSrc: ["'self'", "data:"], upgradeInsecureRequests: null }, // prettier-ignore
    },
    strictTransportSecurity: false, // whoever ends TLS before us says so
  });
  if (audience === "tenant") {
    void app.register(underPressure, {
      maxEventLoopDelay: parts.busyMs,
      pressureHandler: () => {
        throw new Problem("overloaded", "this node is busy", { retryAfterS: 2 });
      },
    });
    void app.register(rateLimit, {
      hook: "preValidation",
      timeWindow: "1 minute",
      max: (request) => request.holder?.tenant?.settings.quotas.requestsPerMinute ?? 6000,
      keyGenerator: (request) => request.holder?.tenant?.incarnation ?? request.ip,
      errorResponseBuilder: (_request, { ttl, max }) =>
        new Problem("rate-limited", `more than ${max} requests a minute`, { retryAfterS: ttl / 1000 }),
    });
    void app.register(sse.default, { serializer: String }); // streams hold JSON already
  }
  void app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: { title: audience === "admin" ? "doublehull, administration" : "doublehull", version },
      components: { securitySchemes: { key: { type: "http", scheme: "bearer" } } },
      security: [{ key: [] }],
    },
    transform: jsonSchemaTransform,
    transformObject: jsonSchemaTransformObject,
  });
  void app.register(swaggerUi, { routePrefix: "/docs" });
  app.addHook("onRoute", (route) => {
    if (route.url.startsWith("/docs")) route.config = { ...route.config, open: true };
  });
  return app;
}

const answerHeaders = (request: FastifyRequest, reply: FastifyReply) =>
  reply.header("cache-control", "no-store").header("x-request-id", request.id);

/** Every refusal, whoever found the reason: the one place where an error becomes an answer. */
function refuse(error: FastifyError | Error, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const problem = problemOf(error);
  if (problem.status >= 500)
    request.log.error({ err: problem.more.cause ?? error, code: problem.code, route: request.routeOptions.url }, "refused"); // prettier-ignore
  const { retryAfterS } = problem.more;
  if (retryAfterS !== undefined) reply.header("retry-after", Math.max(1, Math.ceil(retryAfterS)));
  if (problem.code === "unauthorized") reply.header("www-authenticate", "Bearer");
  return answerHeaders(request, reply)
    .code(problem.status)
    .type("application/problem+json")
    .serializer(String)
    .send(jsonText(problem.document(`urn:uuid:${request.id}`)));
}

/** Of one application, of all addresses together. */
const STRANGERS_A_MINUTE = 600;

/** Counts requests that no key belongs to: whoever has none could fill the disk with lines of the audit log. */
class Strangers {
  readonly #now: () => number;
  #minute = 0;
  #count = 0;

  constructor(now: () => number) {
    this.#now = now;
  }

  /** Counts one more; whether it is one too many. */
  flood(): boolean {
    const minute = Math.floor(this.#now() / 60_000);
    if (minute !== this.#minute) [this.#minute, this.#count] = [minute, 0];
    return ++this.#count > STRANGERS_A_MINUTE;
  }
}

/** Most bytes of bodies under way, of one tenant and of all. */
const TENANT_BODY_BYTES = 64 * 1024 * 1024;
const ALL_BODY_BYTES = 256 * 1024 * 1024;

/** Room for bodies: they are read before rates and quotas can refuse them, so what they declare is counted before that. */
class BodyRoom {
  #all = 0;
  readonly #of = new Shares();

  /** What gives the room back; undefined if there is none. */
  reserve(tenant: string, bytes: number): (() => void) | undefined {
    if (this.#of.of(tenant) + bytes > TENANT_BODY_BYTES || this.#all + bytes > ALL_BODY_BYTES)
      return undefined;
    this.#all += bytes;
    this.#of.add(tenant, bytes);
    return () => {
      this.#all -= bytes;
      this.#of.giveBack(tenant, bytes);
    };
  }
}

/** Fields that one answer names: a body may have a million that are wrong. */
const MAX_ERRORS = 100;

/** Arrays and objects within each other. Of a body that is nothing else the parser would hold this process for seconds. */
const MAX_DEPTH = 1000;

function isDeep(json: string): boolean {
  let depth = 0;
  for (let at = 0; at < json.length; at++) {
    const code = json.charCodeAt(at);
    if (code === 0x22) {
      for (at++; at < json.length && json.charCodeAt(at) !== 0x22; at++)
        if (json.charCodeAt(at) === 0x5c) at++;
    } else if (code === 0x5b || code === 0x7b) {
      if (++depth > MAX_DEPTH) return true;
    } else if (code === 0x5d || code === 0x7d) depth--;
  }
  return false;
}

function problemOf(error: FastifyError | Error): Problem {
  if (hasZodFastifySchemaValidationErrors(error)) {
    return badFields(
      error.validation
        .slice(0, MAX_ERRORS)
        .flatMap((issue) => fieldErrors(issue))
        .slice(0, MAX_ERRORS),
    );
  }
  const code = "code" in error ? CLIENT_ERRORS[error.code] : undefined;
  if (code !== undefined) return new Problem(code, WORDS[code] ?? "the body cannot be read");
  if (
    "statusCode" in error &&
    error.statusCode !== undefined &&
    error.statusCode >= 400 &&
    error.statusCode < 500
  )
    return new Problem("bad-request", "the request cannot be read");
  return asProblem(error);
}

const WORDS: Partial<Record<ProblemCode, string>> = {
  "bad-json": "the body is not one JSON value",
  "too-large": "the body has more bytes than this service takes",
  "bad-media-type": "the body must be application/json",
};

/** An issue of zod's, by the name that the field has in the request. */
function fieldErrors({
  instancePath,
  message = "is wrong",
  params,
}: ZodFastifySchemaValidationError): FieldError[] {
  const field = instancePath
    .split("/")
    .filter((part) => part !== "")
    .map((part, i) => (/^\d+$/.test(part) ? `[${part}]` : `${i > 0 ? "." : ""}${part}`))
    .join("")
    .slice(0, 200);
  const { keys } = params as { keys?: unknown };
  if (Array.isArray(keys))
    return keys.slice(0, MAX_ERRORS).map((key) => ({ field: `${field}${field === "" ? "" : "."}${String(key).slice(0, 100)}`, message: "there is no such field" })); // prettier-ignore
  const words = issueWords(field.split(".").at(-1) ?? "", message);
  return [{ field: field === "" ? "body" : field, message: words.slice(0, 500) }];
}

/** The tenant of a request to the tenants' application. */
export function tenantOf({ holder }: FastifyRequest): Tenant {
  if (holder?.tenant === undefined) throw new Problem("unauthorized", "the request has no valid API key");
  return holder.tenant;
}

/** The head at once, not with the first event: a client needs the run's id to go on, however quiet the run is. */
export function beginStream(reply: FastifyReply): void {
  reply.sse.sendHeaders();
  reply.raw.flushHeaders();
}

/** Aborts when the answer is over or its connection has ended. */
export function goneWith({ raw }: FastifyReply): AbortSignal {
  const gone = new AbortController();
  whenOver(raw.req, raw, () => gone.abort());
  return gone.signal;
}

/** A whole number in a query or header. */
export function wholeNumber(name: string, text: string | undefined, otherwise: number, max: number): number {
  if (text === undefined || text === "") return otherwise;
  if (!/^\d{1,15}$/.test(text) || Number(text) > max)
    throw badField(name, `must be a whole number up to ${max}`);
  return Number(text);
}
