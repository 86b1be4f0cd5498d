/**
 * What a client is told that did something wrong, or met something: problem documents (RFC 9457) from one table. A row
 * says the status, the title and the next thing to do; whoever raises one names the field. No row and no detail carries a
 * path of this host, a stack or another tenant's name.
 */
export const PROBLEMS = {
  "bad-json": {
    status: 400,
    title: "The body is not JSON",
    remedy: "Send one JSON value in UTF-8, no key of it __proto__.",
  },
  "bad-request": {
    status: 400,
    title: "A field of the request is wrong",
    remedy: "Correct the fields that `errors` names.",
  },
  "bad-http": {
    status: 400,
    title: "What was sent is not HTTP/1.1 as it should be",
    remedy: "Send it by an HTTP library; the connection is closed.",
  },
  "request-timeout": {
    status: 408,
    title: "The request took too long to arrive",
    remedy: "Send it again, all of it at once.",
  },
  "headers-too-large": {
    status: 431,
    title: "The headers are too large",
    remedy: "Send fewer or shorter ones, and what is long in the body.",
  },
  "not-acceptable": {
    status: 406,
    title: "The answer is a stream, which the request does not take",
    remedy: "Send accept: text/event-stream.",
  },
  "bad-media-type": {
    status: 415,
    title: "The body is of another type",
    remedy: "Send content-type: application/json.",
  },
  unauthorized: {
    status: 401,
    title: "No valid API key",
    remedy: "Send the header Authorization: Bearer KEY.",
  },
  forbidden: {
    status: 403,
    title: "The tenant's policy does not allow it",
    remedy: "Ask for less, or have the policy changed.",
  },
  "not-found": {
    status: 404,
    title: "There is no such thing",
    remedy: "Check the name; another tenant's things are not there either.",
  },
  conflict: {
    status: 409,
    title: "Its state does not allow that",
    remedy: "Look at it again: it has changed, or must be ended first.",
  },
  "job-lost": {
    status: 500,
    title: "The job was lost with its node",
    remedy: "Find out what it did. With retry.attempts above 1 such a job is run again.",
  },
  "approval-over": {
    status: 409,
    title: "The question is not open any more",
    remedy: "Take it off the screen: each is answered once, in its time.",
  },
  "idempotency-busy": {
    status: 409,
    title: "The first request with this Idempotency-Key is still under way",
    remedy: "Wait, then send the same request again.",
  },
  "idempotency-lost": {
    status: 409,
    title: "The answer to the first request with this Idempotency-Key is not there",
    remedy: "It may have run: find out by what it does, then use a new key.",
  },
  "idempotency-reused": {
    status: 422,
    title: "The Idempotency-Key belongs to another request",
    remedy: "Use a new key for a new request.",
  },
  "too-large": {
    status: 413,
    title: "The body is too large",
    remedy: "Send less; GET /v1 says how much is taken.",
  },
  "rate-limited": { status: 429, title: "Too many requests", remedy: "Wait as long as Retry-After says." },
  "quota-exceeded": {
    status: 429,
    title: "A quota of the tenant is used up",
    remedy: "Wait as long as Retry-After says, or have the quota raised.",
  },
  "tenant-busy": {
    status: 429,
    title: "The tenant has as much under way as it may have",
    remedy: "Wait for something to end: Retry-After is a guess.",
  },
  "storage-full": {
    status: 507,
    title: "The tenant's storage is full",
    remedy: "Delete scripts or finished jobs, or have the quota raised.",
  },
  overloaded: {
    status: 503,
    title: "The service has no room for more now",
    remedy: "Try again after Retry-After.",
  },
  draining: {
    status: 503,
    title: "This node is shutting down",
    remedy: "Try again: another node or the next start will answer.",
  },
  "host-cannot": {
    status: 503,
    title: "This host cannot run it",
    remedy: "Tell the operator: the server's log says what is missing.",
  },
  internal: {
    status: 500,
    title: "A mistake of the service",
    remedy: "Tell the operator the request's id: the server's log has the rest.",
  },
} as const satisfies Record<string, { status: number; title: string; remedy: string }>;

export type ProblemCode = keyof typeof PROBLEMS;

export interface FieldError {
  /** "limits.wallMs", "jobs[3].source"; a header by its name. */
  field: string;
  message: string;
}

/** RFC 9457, section 3.1, and members of our own. */
export interface ProblemDocument {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: ProblemCode;
  remedy: string;
  /** The request's id, as the server's log has it. */
  instance?: string;
  errors?: FieldError[];
}

export class Problem extends Error {
  override readonly name = "Problem";
  readonly status: number;
  /** `retryAfterS`: seconds, for the header Retry-After (RFC 9110, 10.2.3). */
  constructor(
    readonly code: ProblemCode,
    detail: string,
    readonly more: { errors?: FieldError[]; retryAfterS?: number; cause?: unknown } = {},
  ) {
    super(detail, { cause: more.cause });
    this.status = PROBLEMS[code].status;
  }

  document(instance?: string): ProblemDocument {
    const { title, status, remedy } = PROBLEMS[this.code];
    return {
      type: `urn:doublehull:problem:${this.code}`,
      title,
      status,
      detail: this.message,
      code: this.code,
      remedy,
      ...(instance === undefined ? {} : { instance }),
      ...(this.more.errors === undefined ? {} : { errors: this.more.errors }),
    };
  }
}

/** Fields that are wrong, as one problem that tells of each. */
export const badFields = (
  errors: FieldError[],
  { code = "bad-request", cause }: { code?: ProblemCode; cause?: unknown } = {},
): Problem =>
  new Problem(code, errors.map(({ field, message }) => `${field}: ${message}`).join("; "), { errors, cause });

export const badField = (field: string, message: string, code?: ProblemCode): Problem =>
  badFields([{ field, message }], code === undefined ? {} : { code });
