/**
 * The HTTP service for programs: `doublehull/client`. Its types are those of the service's schemas, and only the types: at
 * run time it loads nothing of the service, of Node or of a package, so that it works wherever there is a global fetch.
 * A request that may have begun something is never sent twice, unless it has a key by which the service knows it again; a
 * stream is gone on with where it was.
 */
import type { z } from "zod";
import { Asker, type ApprovalAnswer, type ApprovalQuestion, type OnApproval } from "./client/approvals.js";
import {
  asProblem,
  badAnswer,
  Connection,
  eventsOf,
  isObject,
  parsed,
  passing,
  pause,
  ServiceError,
  type ClientOptions,
} from "./client/connection.js";
import type { ServerSentEvent } from "./client/event-stream.js";
import { batchesOf, jobsOf, schedulesOf, type Batches, type Jobs, type Schedules } from "./client/jobs.js";
import { checkKey, patiently } from "./client/patience.js";
import { outcomeOf, valueOf, type Outcome } from "./client/outcomes.js";
import type { ApprovalEnd } from "./service/approvals.js";
import type * as schemas from "./service/schemas.js";

export type { ApprovalAnswer, ApprovalQuestion, OnApproval } from "./client/approvals.js";
export {
  CallbackError,
  verifyCallback,
  type CallbackErrorCode,
  type CallbackEvent,
  type CallbackHeaders,
  type VerifyOptions,
} from "./client/callbacks.js";
export {
  AnswerLostError,
  ServiceError,
  type ClientOptions,
  type ServiceErrorCode,
} from "./client/connection.js";
export type {
  Batch,
  Batches,
  BatchRequest,
  Job,
  JobCallOptions,
  JobEvent,
  JobRequest,
  Jobs,
  JobState,
  MadeBatch,
  Schedule,
  ScheduleEntry,
  Schedules,
  ScheduleSettings,
  SubmitOptions,
  WhichJobs,
} from "./client/jobs.js";
export type { Outcome } from "./client/outcomes.js";
export { decodeValue, ValueError } from "./client/values.js";
export type { ProblemDocument } from "./service/problems.js";

export type RunRequest = z.input<typeof schemas.runRequest>;
export type LogEntry = z.output<typeof schemas.logEntry>;
export type ScriptContent = z.input<typeof schemas.scriptContent>;
export type StoredScript = z.output<typeof schemas.storedScript>;
export type StoredSecret = z.output<typeof schemas.storedSecret>;
export type UsageDay = z.output<typeof schemas.usageDay>;
export type KeyFacts = z.output<typeof schemas.keyFacts>;
export type TenantSettings = z.input<typeof schemas.tenantSettings>;
export type Tenant = z.output<typeof schemas.tenant>;
export type TenantEntry = z.output<typeof schemas.tenantEntry>;
export type ApiKey = z.output<typeof schemas.apiKey>;
export type NewKey = z.input<typeof schemas.newKey>;
export type MadeKey = z.output<typeof schemas.madeKey>;

export interface RunResult {
  id: string;
  outcome: Outcome;
}

/** What a stream tells, in order. Texts and data are the script's: escape them where you show them. */
export type RunEvent = { /** The run's id, for `cancel`. */ run: string } & (
  | { type: "log"; entry: LogEntry }
  | { type: "event"; name: string; data: unknown; seq: number }
  /** What the grant `approve` asks: `onApproval` is put it, or answer it with `approve`. */
  | { type: "approval"; question: ApprovalQuestion }
  /** It is not open any more. */
  | { type: "approval-end"; id: string; result: "approved" | "refused" | "void" }
  /** So many events are lost: this reader was further behind than the service keeps. */
  | { type: "gap"; missed: number }
  | { type: "outcome"; outcome: Outcome }
);

export interface CallOptions {
  /** Ends the request, which rejects with the signal's reason. A run that it began is cancelled. */
  signal?: AbortSignal | undefined;
}

export interface RunOptions extends CallOptions {
  /**
   * 1 to 255 visible ASCII characters, new for each new run. With it the run happens once, though the request is sent again
   * where the connection was lost or the service is busy: up to 15 times, within two minutes of the first failure. The run
   * goes on when `signal` ends the request.
   */
  idempotencyKey?: string | undefined;
}

export interface StreamOptions extends CallOptions {
  /** Asks a person what the run asks. Whatever is no plain yes is a no. */
  onApproval?: OnApproval | undefined;
}

/** Days such as "2030-01-31", UTC; the last 30 if absent. */
export interface Days {
  from?: string | undefined;
  to?: string | undefined;
}

/** Tries to go on with a stream, without an event between them, and the wait before the first, which doubles, ms. */
const TRIES = 6;
const FIRST_WAIT_MS = 100; // 6.3 s in all: the service gives up a run that nobody hears after 10
const LONGEST_WAIT_MS = 10_000;
const PAGE = 100;

/** What a tenant can do. */
export class Client {
  readonly #service: Connection;
  /** Runs that outlive connections. */
  readonly jobs: Jobs;
  readonly batches: Batches;
  /** Jobs that begin by the clock. */
  readonly schedules: Schedules;

  /** Throws TypeError naming the option that is wrong. */
  constructor(options: ClientOptions) {
    this.#service = new Connection(options);
    this.jobs = jobsOf(this.#service);
    this.batches = batchesOf(this.#service);
    this.schedules = schedulesOf(this.#service);
  }

  /** What this key may do: limits, grants, quotas. */
  whoami(): Promise<KeyFacts> {
    return this.#service.json({ method: "GET", path: ["v1"] });
  }

  /** The declarations of `env`, with all of the policy's grants: the text of a `.d.ts`. */
  types(): Promise<string> {
    return this.#service.text({
      method: "GET",
      path: ["v1", "types"],
      headers: { accept: "text/plain, application/json" },
    });
  }

  /**
   * Runs a script and waits. `input` is written by JSON.stringify.
   *
   * @throws ServiceError for what is wrong with the request or the service, never for what the script does; with code
   *   `no-answer` it may have run; AnswerLostError if it is not known what became of one with an `idempotencyKey`
   */
  async run(request: RunRequest, { signal, idempotencyKey }: RunOptions = {}): Promise<RunResult> {
    const call = { method: "POST", path: ["v1", "runs"], body: request, signal } as const;
    if (idempotencyKey === undefined) return resultOf(await this.#service.json(call));
    checkKey(idempotencyKey);
    const headers = { "idempotency-key": idempotencyKey };
    return resultOf(await patiently(() => this.#service.json({ ...call, headers }), signal));
  }

  /**
   * Runs a script, from the first `next` on, and tells what it does while it does it, up to the outcome. A connection that
   * is lost is made again, and each event comes once. Whoever leaves the loop before the outcome cancels the run.
   *
   * @throws ServiceError as `run` does; `no-answer` also if the stream cannot be gone on with after six tries
   */
  async *stream(
    request: RunRequest,
    { signal, onApproval }: StreamOptions = {},
  ): AsyncGenerator<RunEvent, void, undefined> {
    const headers = { accept: "text/event-stream" };
    let response: Response | undefined = await this.#service.send({ method: "POST", path: ["v1", "runs"], body: request, headers, signal }); // prettier-ignore
    const run = response.headers.get("x-run-id");
    if (run === null) {
      response.body?.cancel().catch(() => {}); // nothing of it is wanted
      throw badAnswer("the answer does not name its run: is this the service?");
    }
    const questions = new Asker(onApproval, (id, answer) => this.approve(run, id, answer));
    let [last, tries, ended] = [0, 0, false];
    try {
      for (;;) {
        let trouble = new ServiceError("no-answer", "the stream ended before its outcome");
        try {
          response ??= await this.#service.send({ method: "GET", path: ["v1", "runs", run, "events"], headers: { ...headers, "last-event-id": String(last) }, signal }); // prettier-ignore
          for await (const sent of eventsOf(response, signal)) {
            const at = numberOf(sent, last);
            // A question that is still open comes again, under the number of what was read last.
            if (at <= last && sent.event !== "approval") continue;
            if (at > last) [last, tries] = [at, 0];
            ended = sent.event === "outcome" || sent.event === "problem";
            const event = runEvent(run, sent);
            if (event?.type === "approval" && !questions.put(event.question)) continue;
            if (event?.type === "approval-end") questions.end(event.id);
            if (event !== undefined) yield event;
            if (ended) return;
          }
        } catch (error) {
          if (!(error instanceof ServiceError) || !passing(error)) throw error;
          trouble = error;
        }
        if (tries === TRIES) throw trouble;
        const wait = Math.max(FIRST_WAIT_MS * 2 ** tries++, (trouble.retryAfterS ?? 0) * 1000);
        await pause(Math.min(wait, LONGEST_WAIT_MS), signal);
        response = undefined;
      }
    } finally {
      questions.endAll();
      // Nobody waits for it: a service that does not hear this cancels a run without listeners by itself.
      if (!ended) this.cancel(run).catch(() => {});
    }
  }

  /**
   * Answers what a streamed run asks, once. The note is for the audit log.
   *
   * @throws ServiceError `approval-over` if it is not open any more, `not-found` if it never was
   */
  approve(run: string, question: string, answer: ApprovalAnswer): Promise<void> {
    const body = typeof answer === "boolean" ? { approved: answer } : answer;
    return this.#service.done({ method: "POST", path: ["v1", "runs", run, "approvals", question], body });
  }

  /** Cancels a streamed run; its stream ends with the outcome "cancelled". */
  cancel(id: string): Promise<void> {
    return this.#service.done({ method: "DELETE", path: ["v1", "runs", id] });
  }

  readonly scripts = {
    /** A new version, or the latest one if nothing changed. */
    put: (name: string, content: ScriptContent): Promise<StoredScript> =>
      this.#service.json({ method: "PUT", path: ["v1", "scripts", name], body: content }),
    /** The latest version, unless one is named. */
    get: (
      name: string,
      version?: number,
    ): Promise<
      StoredScript & {
        content: Required<Pick<ScriptContent, "source" | "type" | "language">> &
          Pick<ScriptContent, "modules">;
      }
    > =>
      // prettier-ignore
      this.#service.json({ method: "GET", path: ["v1", "scripts", name], query: { version } }),
    /** All, by name; further pages are asked for when they are reached. */
    list: (options: CallOptions = {}): AsyncGenerator<StoredScript, void, undefined> =>
      this.#scripts(options),
    /** With all its versions. */
    remove: (name: string): Promise<void> =>
      this.#service.done({ method: "DELETE", path: ["v1", "scripts", name] }),
  };

  async *#scripts({ signal }: CallOptions): AsyncGenerator<StoredScript, void, undefined> {
    for (let after: string | undefined; ;) {
      const query = { after, limit: PAGE };
      const { scripts } = await this.#service.json<{ scripts: StoredScript[] }>({ method: "GET", path: ["v1", "scripts"], query, signal }); // prettier-ignore
      yield* scripts;
      const next = scripts.at(-1)?.name;
      if (next === undefined || scripts.length < PAGE) return;
      if (after !== undefined && next <= after)
        throw badAnswer("a page of scripts goes back to earlier names");
      after = next;
    }
  }

  readonly secrets = {
    /** Nothing reads it back: grants of the policy name it by `env`. */
    put: (name: string, value: string): Promise<void> =>
      this.#service.done({ method: "PUT", path: ["v1", "secrets", name], body: { value } }),
    /** Their names, and when they were stored. */
    list: async (): Promise<StoredSecret[]> =>
      (await this.#service.json<{ secrets: StoredSecret[] }>({ method: "GET", path: ["v1", "secrets"] }))
        .secrets,
    remove: (name: string): Promise<void> =>
      this.#service.done({ method: "DELETE", path: ["v1", "secrets", name] }),
  };

  /** What was used, by day. */
  usage(days: Days = {}): Promise<UsageDay[]> {
    return usageOf(this.#service, ["v1", "usage"], days);
  }
}

/** What an administrator can do, at the administrators' address and with a key of theirs. */
export class AdminClient {
  readonly #service: Connection;

  /** Throws TypeError naming the option that is wrong. */
  constructor(options: ClientOptions) {
    this.#service = new Connection(options);
  }

  readonly tenants = {
    /** Makes or changes one: what is not said is as the service has it by default. */
    put: (id: string, settings: TenantSettings = {}): Promise<Tenant> =>
      this.#service.json({ method: "PUT", path: tenantPath(id), body: settings }),
    get: (id: string): Promise<Tenant> => this.#service.json({ method: "GET", path: tenantPath(id) }),
    list: async (): Promise<TenantEntry[]> =>
      (await this.#service.json<{ tenants: TenantEntry[] }>({ method: "GET", path: ["admin", "v1", "tenants"] })).tenants, // prettier-ignore
    /** With its keys, scripts, secrets and usage. */
    remove: (id: string): Promise<void> => this.#service.done({ method: "DELETE", path: tenantPath(id) }),
  };

  readonly keys = {
    /** The key is told in this answer and never again. */
    create: (tenant: string, key: NewKey = {}): Promise<MadeKey> =>
      this.#service.json({ method: "POST", path: [...tenantPath(tenant), "keys"], body: key }),
    list: async (tenant: string): Promise<ApiKey[]> =>
      (await this.#service.json<{ keys: ApiKey[] }>({ method: "GET", path: [...tenantPath(tenant), "keys"] })).keys, // prettier-ignore
    /** `id` is the key's id, not the key. At once. */
    revoke: (tenant: string, id: string): Promise<void> =>
      this.#service.done({ method: "DELETE", path: [...tenantPath(tenant), "keys", id] }),
  };

  /** What a tenant used, by day. */
  usage(tenant: string, days: Days = {}): Promise<UsageDay[]> {
    return usageOf(this.#service, [...tenantPath(tenant), "usage"], days);
  }
}

const tenantPath = (id: string): string[] => ["admin", "v1", "tenants", id];

async function usageOf(service: Connection, path: string[], { from, to }: Days): Promise<UsageDay[]> {
  return (await service.json<{ days: UsageDay[] }>({ method: "GET", path, query: { from, to } })).days;
}

/** An event's number. They count up by one, but for a gap, which names the last that is missing. */
function numberOf({ id, event }: ServerSentEvent, last: number): number {
  const at = /^\d{1,15}$/.test(id) ? Number(id) : NaN;
  if (Number.isNaN(at) || (at > last + 1 && event !== "gap"))
    throw badAnswer("the events of the stream are not numbered one after the other");
  return at;
}

/** Undefined for a kind that a newer service has. */
function runEvent(run: string, { event: type, data: text }: ServerSentEvent): RunEvent | undefined {
  const data = parsed(text);
  if (!isObject(data)) throw badAnswer("an event of the stream is no JSON object");
  switch (type) {
    case "log":
      return { run, type, entry: data as LogEntry };
    case "event": {
      const { name, data: value, seq } = data as { name: string; data: unknown; seq: number };
      return { run, type, name, data: valueOf(value), seq };
    }
    case "approval":
      return { run, type, question: data as unknown as ApprovalQuestion };
    case "approval-end":
      return { run, type, ...(data as unknown as ApprovalEnd) };
    case "gap":
      return { run, type, missed: Number(data["missed"]) };
    case "outcome":
      return { run, type, outcome: resultOf(data).outcome };
    case "problem": {
      const problem = asProblem(data);
      throw problem === undefined ? badAnswer("the stream ends with no problem document") : ServiceError.of(problem); // prettier-ignore
    }
    default:
      return undefined;
  }
}

function resultOf({ id, outcome }: { id?: unknown; outcome?: unknown }): RunResult {
  if (typeof id !== "string") throw badAnswer("the answer does not name its run: is this the service?");
  return { id, outcome: outcomeOf(outcome) };
}
