/**
 * Durable jobs for programs. A job lives in the service, not in the connection: leaving, losing or aborting a request
 * changes nothing of it. So whatever only asks is asked again, and a job is sent again where an Idempotency-Key makes it
 * one.
 */
import type { z } from "zod";
import type * as schemas from "../service/jobs/schemas.js";
import type { logEntry } from "../service/schemas.js";
import { badAnswer, eventsOf, isObject, parsed, pause, ServiceError, type Call, type Connection } from "./connection.js"; // prettier-ignore
import type { ServerSentEvent } from "./event-stream.js";
import { outcomeOf, valueOf } from "./outcomes.js";
import { checkKey, Patience, patiently, waitBefore } from "./patience.js";

export type JobRequest = z.input<typeof schemas.jobRequest>;
/** A job as it is now; `outcome.value` is decoded: a Map is a Map. */
export type Job = z.output<typeof schemas.job>;
export type JobState = Job["state"];
export type BatchRequest = z.input<typeof schemas.batchRequest>;
export type MadeBatch = z.output<typeof schemas.madeBatch>;
export type Batch = z.output<typeof schemas.batch>;
export type ScheduleSettings = z.input<typeof schemas.scheduleSettings>;
export type Schedule = z.output<typeof schemas.schedule>;
/** As in a list: without its job. */
export type ScheduleEntry = z.output<typeof schemas.scheduleEntry>;

/** What a job's runs tell, in order, and at the end the job. Texts and data are the script's: escape them where you show them. */
export type JobEvent = { /** Its number; `after` takes it. */ id: number } & (
  | { type: "attempt"; attempt: number; /** As the audit log has it. */ run: string }
  | { type: "log"; entry: z.output<typeof logEntry> }
  | { type: "event"; name: string; data: unknown; seq: number }
  /** The job tells more than the service keeps: of what follows nothing is here, but for the end. */
  | { type: "full" }
  | { type: "job"; job: Job }
);

export interface JobCallOptions {
  /** Ends the request, which rejects with the signal's reason. The job goes on: `cancel` ends that. */
  signal?: AbortSignal | undefined;
}

export interface SubmitOptions extends JobCallOptions {
  /**
   * 1 to 255 visible ASCII characters, which stand for this request for a day: sent again, by this client where an answer
   * was lost or by yourself, it is accepted once. Without one it is sent once, and after `no-answer` may be accepted.
   */
  idempotencyKey?: string | undefined;
}

export interface WhichJobs extends JobCallOptions {
  state?: JobState | undefined;
  batch?: string | undefined;
  schedule?: string | undefined;
}

/** One look at a job waits so long for its end, s; an answer that takes longer than that and this, ms, is lost. */
const LOOK_S = 30;
const LATE_MS = 30_000;
/** An answer that names no end before so long came early: the next look waits. Streams that live so long are none in vain. */
const EARLY_MS = 10_000;
const PAGE = 100;

export type Jobs = ReturnType<typeof jobsOf>;
export const jobsOf = (service: Connection) => ({
  /**
   * Resolves when the job is accepted: on the service's disk. It runs whatever becomes of this program.
   *
   * @throws ServiceError for what is wrong with the request or the service; TypeError for a key that is none
   */
  submit: async (request: JobRequest, options: SubmitOptions = {}): Promise<Job> =>
    jobOf(await submitted(service, ["v1", "jobs"], request, options)),
  /** As it is now. */
  get: async (id: string): Promise<Job> =>
    jobOf(await service.json({ method: "GET", path: ["v1", "jobs", id] })),
  /**
   * The job when it has ended: done, failed or cancelled. Lost connections and a service that is busy or being replaced are
   * outlasted for about a minute at a time.
   *
   * @throws ServiceError `not-found`, also if it was removed meanwhile; `no-answer` or the service's refusal, after fifteen
   *   tries in vain
   */
  wait: (id: string, options: JobCallOptions = {}): Promise<Job> => waited(service, id, options),
  /**
   * The newest first, without outcomes; further pages are asked for when they are reached, and those that were read may be
   * removed on the way.
   */
  list: (which: WhichJobs = {}): AsyncGenerator<Job, void, undefined> => listed(service, which),
  /**
   * What the job's runs tell, from its first or the event after `after` on, and at the end the job. A connection that is lost
   * is made again, and each event comes once. Whoever leaves the loop leaves the job as it is.
   *
   * @throws ServiceError as `wait`
   */
  events: (
    id: string,
    options: JobCallOptions & { after?: number | undefined } = {},
  ): AsyncGenerator<JobEvent, void, undefined> => told(service, id, options),
  /** Ends one that has not ended. One that runs ends a moment later: `wait` for it. */
  cancel: async (id: string): Promise<Job> =>
    jobOf(await service.json({ method: "POST", path: ["v1", "jobs", id, "cancel"] })),
  /** Runs one again that failed or was cancelled; `conflict` if it did not. */
  retry: async (id: string): Promise<Job> =>
    jobOf(await service.json({ method: "POST", path: ["v1", "jobs", id, "retry"] })),
  /** Forgets one that has ended, before its time; `conflict` if it has not. */
  remove: (id: string): Promise<void> => service.done({ method: "DELETE", path: ["v1", "jobs", id] }),
});

export type Batches = ReturnType<typeof batchesOf>;
export const batchesOf = (service: Connection) => ({
  /** All of them are accepted or none. Their ids, in order. */
  submit: async (request: BatchRequest, options: SubmitOptions = {}): Promise<MadeBatch> => {
    const made = await submitted<MadeBatch>(service, ["v1", "batches"], request, options);
    if (typeof made.id !== "string" || !Array.isArray(made.jobs)) throw badAnswer("the answer is no batch");
    return made;
  },
  /** How many are in which state; the jobs are those of `jobs.list({ batch })`. */
  get: (id: string): Promise<Batch> => service.json({ method: "GET", path: ["v1", "batches", id] }),
  /** Ends those that have not ended. */
  cancel: (id: string): Promise<Batch> =>
    service.json({ method: "POST", path: ["v1", "batches", id, "cancel"] }),
});

export type Schedules = ReturnType<typeof schedulesOf>;
export const schedulesOf = (service: Connection) => ({
  /** Makes or changes one. */
  put: (name: string, settings: ScheduleSettings): Promise<Schedule> =>
    service.json({ method: "PUT", path: ["v1", "schedules", name], body: settings }),
  get: (name: string): Promise<Schedule> => service.json({ method: "GET", path: ["v1", "schedules", name] }),
  /** By name, without their jobs. */
  list: async (): Promise<ScheduleEntry[]> => {
    const { schedules } = await service.json<{ schedules: ScheduleEntry[] }>({ method: "GET", path: ["v1", "schedules"] }); // prettier-ignore
    if (!Array.isArray(schedules)) throw badAnswer("the answer is no list of schedules");
    return schedules;
  },
  /** Jobs that it made stay. */
  remove: (name: string): Promise<void> =>
    service.done({ method: "DELETE", path: ["v1", "schedules", name] }),
});

/** With a key it is sent until it is answered; without one it is sent once, for it may have been accepted. */
async function submitted<Answer extends object>(
  service: Connection,
  path: string[],
  body: object,
  { idempotencyKey, signal }: SubmitOptions,
): Promise<Answer> {
  const call: Call = { method: "POST", path, body, signal };
  if (idempotencyKey === undefined) return service.json<Answer>(call);
  checkKey(idempotencyKey);
  const headers = { "idempotency-key": idempotencyKey };
  return patiently(() => service.json<Answer>({ ...call, headers }), signal);
}

async function waited(service: Connection, id: string, { signal }: JobCallOptions): Promise<Job> {
  const patience = new Patience(signal);
  for (let early = 0; ;) {
    const asked = performance.now();
    let job: Job;
    try {
      job = jobOf(await lookedAt(service, id, signal));
    } catch (error) {
      await patience.outlast(error);
      continue;
    }
    if (hasEnded(job)) return job;
    patience.progress();
    // A node that is being replaced answers at once: it is not asked as often as it can answer.
    early = performance.now() - asked < EARLY_MS ? early + 1 : 0;
    if (early > 0) await pause(waitBefore(early), signal);
  }
}

/** A look that waits for the end; on a connection that has died unnoticed it does not wait for ever. */
async function lookedAt(service: Connection, id: string, signal: AbortSignal | undefined): Promise<object> {
  const ended = new AbortController();
  const stop = () => ended.abort(signal?.reason);
  const late = setTimeout(() => ended.abort(), LOOK_S * 1000 + LATE_MS);
  if (signal?.aborted === true) stop();
  else signal?.addEventListener("abort", stop, { once: true });
  try {
    return await service.json({ method: "GET", path: ["v1", "jobs", id], query: { wait: LOOK_S }, signal: ended.signal }); // prettier-ignore
  } catch (cause) {
    if (!ended.signal.aborted || signal?.aborted === true) throw cause;
    throw new ServiceError("no-answer", "the job was asked for, and nothing came", { cause });
  } finally {
    clearTimeout(late);
    signal?.removeEventListener("abort", stop);
  }
}

async function* listed(
  service: Connection,
  { signal, state, batch, schedule }: WhichJobs,
): AsyncGenerator<Job, void, undefined> {
  for (let before: string | undefined, last: Job | undefined; ;) {
    const query = { state, batch, schedule, before, limit: PAGE };
    const { jobs, next } = await service.json<{ jobs?: unknown; next?: unknown }>({ method: "GET", path: ["v1", "jobs"], query, signal }); // prettier-ignore
    if (!Array.isArray(jobs) || !["string", "undefined"].includes(typeof next))
      throw badAnswer("the answer is no page of jobs");
    for (const job of jobs.map(jobOf)) {
      // So that it comes to an end, whatever the pages hold.
      if (last !== undefined && !isOlder(job, last))
        throw badAnswer("a page of jobs goes back to newer ones");
      last = job;
      yield job;
    }
    if (next === undefined) return;
    if (jobs.length === 0) throw badAnswer("a page of jobs is empty, and not the last one");
    before = next as string;
  }
}

/** In the order of lists. */
const isOlder = (one: Job, other: Job): boolean =>
  one.createdMs < other.createdMs || (one.createdMs === other.createdMs && one.id < other.id);

async function* told(
  service: Connection,
  id: string,
  { after = 0, signal }: JobCallOptions & { after?: number | undefined },
): AsyncGenerator<JobEvent, void, undefined> {
  const patience = new Patience(signal);
  for (let last = after; ;) {
    const asked = performance.now();
    let trouble: unknown = new ServiceError("no-answer", "the stream ended before its job did");
    try {
      const headers = { accept: "text/event-stream", "last-event-id": String(last) };
      const response = await service.send({ method: "GET", path: ["v1", "jobs", id, "events"], headers, signal }); // prettier-ignore
      for await (const sent of eventsOf(response, signal)) {
        const ends = sent.event === "job"; // and has no number of its own
        const at = numberOf(sent);
        if (at <= last && !ends) continue;
        last = at;
        patience.progress();
        const event = jobEvent(at, sent);
        if (event !== undefined) yield event;
        if (ends) return;
      }
    } catch (error) {
      trouble = error;
    }
    if (performance.now() - asked >= EARLY_MS) patience.progress(); // a quiet job
    await patience.outlast(trouble);
  }
}

function numberOf({ id }: ServerSentEvent): number {
  if (!/^\d{1,15}$/.test(id)) throw badAnswer("the events of the stream are not numbered");
  return Number(id);
}

/** Undefined for a kind that a newer service has. */
function jobEvent(id: number, { event: type, data: text }: ServerSentEvent): JobEvent | undefined {
  const data = parsed(text);
  if (!isObject(data)) throw badAnswer("an event of the stream is no JSON object");
  switch (type) {
    case "attempt": {
      const { attempt, run } = data as { attempt: number; run: string };
      return { id, type, attempt, run };
    }
    case "log":
      return { id, type, entry: data as z.output<typeof logEntry> };
    case "event": {
      const { name, data: value, seq } = data as { name: string; data: unknown; seq: number };
      return { id, type, name, data: valueOf(value), seq };
    }
    case "full":
      return { id, type };
    case "job":
      return { id, type, job: jobOf(data) };
    default:
      return undefined;
  }
}

const hasEnded = ({ state }: Job): boolean => state !== "queued" && state !== "running";

/** A job with its outcome decoded. Throws ServiceError `bad-answer` if it is none. */
export function jobOf(plain: unknown): Job {
  if (
    !isObject(plain) ||
    typeof plain["id"] !== "string" ||
    typeof plain["state"] !== "string" ||
    typeof plain["createdMs"] !== "number"
  )
    throw badAnswer("the answer is no job: is this the service?");
  const { outcome } = plain;
  return (outcome === undefined ? plain : { ...plain, outcome: outcomeOf(outcome) }) as unknown as Job;
}
