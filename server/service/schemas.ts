/**
 * The one source of what crosses the HTTP API: from these schemas come the checks, the types (of the client too) and the
 * OpenAPI description. Strict everywhere: an unknown field is an error, for it is something that somebody thinks counts.
 */
import { z } from "zod";
import { SCRIPT_ENGINES } from "../engines.js";
import { limitsSchema } from "../options.js";
import { errorSchema, logLevelSchema, stopSchema, usageSchema } from "../outcome-schema.js";
import { weakeningSchema } from "../policy-schema.js";

const GRANT = /^(?!then$|__proto__$)[A-Za-z_$][\w$]{0,63}$/;
const grantName = z.string().regex(GRANT, "must be the name of a grant in the tenant's policy");
export const scriptName = z
  .string()
  .regex(
    /^[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?$/,
    "must be 1 to 100 lower-case letters, digits and . _ - inside",
  );
export const tenantId = z
  .string()
  .regex(
    /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/,
    "must be 1 to 63 lower-case letters, digits and hyphens inside",
  );
export const secretName = z
  .string()
  .regex(/^[A-Za-z_]\w{0,255}$/, "must be letters, digits and underscores, not beginning with a digit");

const type = z.enum(["module", "script"]);
const language = z.enum(["javascript", "typescript"]);

/** What of a run can be stored under a name. */
const code = {
  source: z
    .string()
    .max(4 * 1024 * 1024)
    .describe("A module whose default export is called with (input, env), or a script."),
  type: type.default("module"),
  language: language.default("javascript"),
  modules: z
    .record(z.string().min(1).max(200), z.string())
    .optional()
    .describe("Modules that may be imported, by name."),
};

/** What a run is asked for with, alone or as a job. */
export const runFields = {
  ...code,
  source: code.source.optional(),
  type: type.optional().describe("module, if absent."),
  language: language.optional().describe("javascript, if absent."),
  script: z
    .string()
    .regex(/^[a-z0-9._-]{1,100}(?:@[1-9]\d{0,9})?$/, 'must be "name" or "name@version"')
    .optional()
    .describe("A stored script in the place of `source`; its latest version unless one is named."),
  input: z.unknown().optional().describe("The first argument of the default export: any JSON value."),
  engine: z.enum(SCRIPT_ENGINES).optional().describe("The policy's, if absent."),
  limits: limitsSchema.optional().describe("At most the policy's."),
  grants: z
    .union([z.array(grantName), z.record(grantName, z.union([z.literal(true), weakeningSchema]))])
    .optional()
    .describe(
      "Which of the policy's grants the script gets, by name; narrowed further if you like. None, if absent.",
    ),
};
interface Code {
  source?: unknown;
  script?: unknown;
  type?: unknown;
  language?: unknown;
  modules?: unknown;
}
/** Either a source with its facts or a stored script. */
export const withCode = <T extends z.ZodType<Code>>(schema: T) =>
  schema
    .refine(({ source, script }) => (source === undefined) !== (script === undefined), {
      message: "must have either source or script",
      path: ["source"],
    })
    .refine(
      ({ script, type, language, modules }) =>
        script === undefined || (type === undefined && language === undefined && modules === undefined),
      { message: "is stored with its type, language and modules: give none beside it", path: ["script"] },
    );
export const runRequest = withCode(z.strictObject(runFields)).meta({ id: "RunRequest" });
export type RunRequest = z.output<typeof runRequest>;

export const logEntry = z
  .object({
    level: logLevelSchema,
    args: z.array(z.string()),
    timeMs: z.number(),
  })
  .meta({ id: "LogEntry" });
const facts = {
  logs: z.array(logEntry),
  usage: usageSchema,
  ledger: z.array(z.object({ capability: z.string(), method: z.string(), calls: z.number() }).loose()),
  layers: z.object({
    hull: z.enum(["double", "language-only"]),
    engine: z.string(),
    kernel: z.array(z.object({}).loose()),
  }),
};
export const outcome = z
  .discriminatedUnion("status", [
    z.object({ status: z.literal("ok"), value: z.unknown(), ...facts }),
    z.object({
      status: z.literal("threw"),
      error: errorSchema,
      ...facts,
    }),
    z.object({ status: z.literal("stopped"), stop: stopSchema, ...facts }),
    z.object({ status: z.literal("cancelled"), ...facts }),
  ])
  .meta({
    id: "Outcome",
    description:
      "What became of a run. Values that JSON lacks are objects with the key $type, as on the command line.",
  });
export const runResult = z.object({ id: z.string(), outcome }).meta({ id: "RunResult" });

export const approvalAnswer = z
  .strictObject({
    approved: z.boolean(),
    note: z.string().max(200).optional().describe("For the audit log; the script does not see it."),
  })
  .meta({ id: "ApprovalAnswer" });

export const scriptContent = z.strictObject(code).meta({ id: "ScriptContent" });
export type ScriptContent = z.output<typeof scriptContent>;
export const storedScript = z
  .object({
    name: z.string(),
    version: z.number(),
    hash: z.string(),
    bytes: z.number(),
    createdMs: z.number(),
  })
  .meta({ id: "StoredScript" });

/** Texts for people. One store keeps no U+0000, so none does. */
export const freeText = (most: number) =>
  z
    .string()
    .max(most)
    .refine((text) => !text.includes("\0"), "must not hold the character U+0000");
const count = (most: number) => z.int().min(0).max(most);
export const tenantSettings = z
  .strictObject({
    name: freeText(200).default("").describe("For people."),
    policy: z
      .record(z.string(), z.unknown())
      .default({})
      .describe(
        "engine, limits and grants, as in a policy file. Secrets are the tenant's stored ones, by `env`.",
      ),
    engines: z
      .array(z.enum(SCRIPT_ENGINES))
      .min(1)
      .default([...SCRIPT_ENGINES]),
    quotas: z
      .strictObject({
        runsPerDay: count(1e12).default(1e6).describe("Days are UTC."),
        cpuSecondsPerDay: count(1e9).default(86_400),
        storageBytes: count(2 ** 50)
          .default(64 * 1024 * 1024)
          .describe("Stored scripts, jobs with their outcomes, answers kept for an Idempotency-Key."),
        queuedJobs: count(1e6).default(10_000).describe("Jobs that wait, due or not."),
        schedules: count(10_000).default(100),
        concurrent: count(10_000).default(16).describe("Runs under way at once, on one node."),
        requestsPerMinute: count(1e9).min(1).default(6000).describe("On one node."),
      })
      .prefault({}),
    callbacks: z
      .strictObject({
        allow: z
          .array(z.string().max(2000))
          .min(1)
          .max(100)
          .optional()
          .describe("Rules such as https://api.example.com/hooks/*. Any https address, if absent."),
        open: z
          .array(z.string().max(100))
          .max(100)
          .default([])
          .describe("CIDRs of addresses that are not public and may be called all the same."),
      })
      .prefault({})
      .describe("Where the service may post that a job has ended."),
  })
  .meta({ id: "TenantSettings" });
export type TenantSettings = z.output<typeof tenantSettings>;
export const newKey = z
  .strictObject({
    name: freeText(200).default(""),
    expiresMs: z.int().positive().optional().describe("Milliseconds since 1970."),
  })
  .meta({ id: "NewKey" });
export const apiKey = z
  .object({ id: z.string(), name: z.string(), createdMs: z.number(), expiresMs: z.number().nullable() })
  .meta({ id: "ApiKey" });
export const madeKey = z.object({ id: z.string(), key: z.string() });
export const tenant = z.object({ id: z.string(), settings: tenantSettings });
export const storedSecret = z.object({ name: z.string(), updatedMs: z.number() });
export const tenantEntry = z.object({ id: z.string(), name: z.string(), createdMs: z.number() });
export const keyFacts = z
  .object({
    tenant: z.string(),
    version: z.string(),
    bodyBytes: z.number().describe("The most that a request may have."),
    engine: z.enum(SCRIPT_ENGINES),
    engines: z.array(z.enum(SCRIPT_ENGINES)),
    limits: limitsSchema.required(),
    grants: z.array(
      z.object({ name: z.string(), type: z.string(), what: z.string(), details: z.array(z.string()) }),
    ),
    quotas: tenantSettings.shape.quotas.unwrap(),
    today: z.object({ runs: z.number(), cpuSeconds: z.number() }),
  })
  .meta({ id: "KeyFacts" });
export const usageDay = z
  .object({
    day: z.string().describe("2030-01-31, UTC."),
    runs: z.number(),
    ok: z.number(),
    cpuMs: z.number(),
    wallMs: z.number(),
    hostCalls: z.number(),
    bytesIn: z.number(),
    bytesOut: z.number(),
  })
  .meta({ id: "UsageDay" });
export const problem = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.number(),
    detail: z.string(),
    code: z.string(),
    remedy: z.string(),
    instance: z.string().optional(),
    errors: z.array(z.object({ field: z.string(), message: z.string() })).optional(),
  })
  .meta({ id: "Problem", description: "RFC 9457" });

/** What a route answers besides what it is for; and of one that has nothing to say. */
export const problems = { "4xx": problem, "5xx": problem };
export const nothing = { 204: z.null().describe("Done."), ...problems };

const day = z.iso.date("must be a day such as 2030-01-31");
/** Of a question for usage, and its answers. */
export const usageRange = z.strictObject({ from: day.optional(), to: day.optional() });
export const usageAnswers = { 200: z.object({ days: z.array(usageDay) }), ...problems };
