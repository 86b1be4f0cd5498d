/** What crosses the API of durable jobs: a part of the one source that ../schemas.ts is. */
import { z } from "zod";
import { outcome, problem, runFields, scriptName, secretName, withCode } from "../schemas.js";

/** Longest wait before a job is begun, and longest that a result is kept, in days. */
const MAX_DELAY_DAYS = 30;
const DAY_S = 86_400;

export const JOB_STATES = ["queued", "running", "done", "failed", "cancelled"] as const;
export type JobState = (typeof JOB_STATES)[number];
export const JOB_ENDS = ["done", "failed", "cancelled"] as const;
const jobState = z.enum(JOB_STATES);

const callback = z
  .strictObject({
    url: z
      .url({ protocol: /^https?$/, error: "must be a URL with https or http" })
      .max(2000)
      .describe("Where the service posts the ended job."),
    secret: z
      .union([secretName, z.array(secretName).min(1).max(3)])
      .describe("The stored secret that signs it (Standard Webhooks); several while one replaces another."),
    on: z
      .array(z.enum(JOB_ENDS))
      .min(1)
      .default([...JOB_ENDS]),
  })
  .meta({ id: "Callback" });

const retry = z
  .strictObject({
    attempts: z
      .int()
      .min(1)
      .max(20)
      .default(1)
      .describe("Runs at most, one that was lost with its node included."),
    backoffMs: z
      .int()
      .min(100)
      .max(3_600_000)
      .default(1000)
      .describe("Before the second one; doubled for each after it, up to an hour."),
    on: z
      .array(z.enum(["threw", "stopped", "lost"]))
      .min(1)
      .default(["threw", "stopped", "lost"])
      .describe("lost: its node died, nobody knows how far it came."),
  })
  .meta({ id: "Retry" });

const jobFields = {
  ...runFields,
  retry: retry.prefault({}),
  delayMs: z
    .int()
    .min(0)
    .max(MAX_DELAY_DAYS * DAY_S * 1000)
    .default(0)
    .describe("Not to be begun before so long from now."),
  keepS: z
    .int()
    .min(60)
    .max(MAX_DELAY_DAYS * DAY_S)
    .default(DAY_S)
    .describe("How long its result is kept after the end, seconds."),
  callback: callback.optional(),
};
export const jobRequest = withCode(z.strictObject(jobFields)).meta({ id: "JobRequest" });
export type JobRequest = z.output<typeof jobRequest>;

export const MAX_BATCH = 1000;
export const batchRequest = z
  .strictObject({ jobs: z.array(jobRequest).min(1).max(MAX_BATCH) })
  .meta({ id: "BatchRequest" });

export const job = z
  .object({
    id: z.string(),
    state: jobState,
    batch: z.string().optional(),
    schedule: z.string().optional(),
    createdMs: z.number(),
    dueMs: z.number().describe("Not to be begun before."),
    startedMs: z.number().optional().describe("The latest attempt's begin."),
    endedMs: z.number().optional(),
    expiresMs: z.number().optional().describe("When it is forgotten."),
    attempt: z.number().describe("Of the attempt under way, or the last one; 0 before the first."),
    attempts: z.number(),
    outcome: outcome.optional().describe("Of the last attempt; in lists it is left out."),
    problem: problem.optional().describe("Why there is no outcome, or why it waits once more."),
    callback: z
      .object({
        state: z.enum(["pending", "delivered", "failed"]),
        attempts: z.number(),
        detail: z.string().optional(),
      })
      .optional(),
  })
  .meta({ id: "Job" });
export type Job = z.output<typeof job>;
export const hasEnded = ({ state }: Job): boolean => state !== "queued" && state !== "running";

export const madeBatch = z.object({ id: z.string(), jobs: z.array(z.string()) });
export const batch = z
  .object({ id: z.string(), total: z.number(), counts: z.record(jobState, z.number()) })
  .meta({ id: "Batch" });

export const jobPage = z
  .object({
    jobs: z.array(job),
    next: z.string().optional().describe("`before` of the next page; absent on the last one."),
  })
  .meta({ id: "JobPage" });

export const scheduleSettings = z
  .strictObject({
    cron: z.string().max(200).describe("Minute, hour, day of month, month, day of week."),
    timeZone: z.string().max(100).default("UTC").describe("Of the IANA database: Europe/Berlin."),
    enabled: z.boolean().default(true),
    overlap: z
      .enum(["skip", "allow"])
      .default("skip")
      .describe("What happens when the job of the time before has not ended."),
    job: withCode(z.strictObject(jobFields)),
  })
  .meta({ id: "ScheduleSettings" });
export type ScheduleSettings = z.output<typeof scheduleSettings>;
export const schedule = z
  .object({
    name: scriptName,
    settings: scheduleSettings,
    nextMs: z.number().nullable(),
    lastMs: z.number().nullable().describe("The last time that it was due."),
    lastJob: z.string().nullable(),
    lastProblem: z.string().nullable().describe("Why no job was made then."),
  })
  .meta({ id: "Schedule" });
export const scheduleEntry = schedule
  .extend({ settings: scheduleSettings.omit({ job: true }) })
  .meta({ id: "ScheduleEntry" });
export type ScheduleEntry = z.output<typeof scheduleEntry>;
export type Schedule = z.output<typeof schedule>;
