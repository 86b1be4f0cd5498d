/** What a caller may say: one strict schema for the sandbox and one for a run. Unknown keys are errors. */
import { z } from "zod";
import { AMBIENT_KINDS, type Ambient } from "../hostapi/ambient.js";
import type { AuditEvent } from "../hostapi/broker.js";
import { Capability } from "../hostapi/capability.js";
import { Secret } from "../hostapi/secret.js";
import { SandboxError } from "./errors.js";
import { SCRIPT_ENGINES } from "./engines.js";
import { LIMITS, type LimitName } from "./limits.js";
import type { LogEntry } from "./outcome.js";

const row = (name: LimitName) => {
  const { min, max } = LIMITS[name];
  return z
    .number(`${name} must be a number`)
    .int(`${name} must be a whole number`)
    .min(min, `${name} must be at least ${min}`)
    .max(max, `${name} must be at most ${max}`)
    .optional();
};

/** Unknown names and values out of range are errors that name the field. */
export const limitsSchema = z.strictObject({
  wallMs: row("wallMs"),
  cpuMs: row("cpuMs"),
  memoryMb: row("memoryMb"),
  fuel: row("fuel"),
  stackKb: row("stackKb"),
  sourceBytes: row("sourceBytes"),
  resultBytes: row("resultBytes"),
  logBytes: row("logBytes"),
  hostCalls: row("hostCalls"),
  hostCallsInFlight: row("hostCallsInFlight"),
  callBytes: row("callBytes"),
  references: row("references"),
} satisfies Record<LimitName, unknown>);

const count = (name: string, min: number, max: number) =>
  z.number(`${name} must be a number`).int(`${name} must be a whole number`).min(min).max(max).optional();

const engineWords = `engine must be ${SCRIPT_ENGINES.map((name) => `"${name}"`).join(", ")}`;

export const createSchema = z.strictObject({
  /**
   * `quickjs` (default): an interpreter in WebAssembly, the smallest surface. `v8-jitless`: V8 without a compiler, two or
   * three times as fast. `v8`: with its compiler; fastest, and memory may be writable and executable. The V8 engines need
   * the optional package isolated-vm.
   */
  engine: z.enum(SCRIPT_ENGINES, engineWords).optional(),
  /** `double`: language and kernel. `language-only`: no kernel hull, for development; never chosen automatically. */
  hull: z.enum(["double", "language-only"], 'hull must be "double" or "language-only"').optional(),
  /** The most that a run may ask for, and what it gets when it does not ask. */
  limits: limitsSchema.optional(),
  /** Refuse to start where no cgroup can be had (the resource layer would be rlimits alone). */
  requireCgroup: z.boolean().optional(),
  /** Workers kept ready: up to 64 of them at once, the others as a reserve that takes half the memory and 0.3 ms more. */
  parked: count("parked", 0, 1000),
  /** Runs at once. What one tenant may have of them: see `tenant`. */
  maxConcurrent: count("maxConcurrent", 1, 1000),
  maxQueue: count("maxQueue", 0, 1_000_000),
  /** Replace the zygote after so many forks, and after so many minutes. */
  recycleForks: count("recycleForks", 1, 1_000_000_000),
  recycleMinutes: z.number("recycleMinutes must be a number").min(0.01).max(10_000).optional(),
  /** A zygote of its own for every tenant: no shared address-space layout between them. */
  zygotePerTenant: z.boolean().optional(),
  /** `fast-start` compiles WebAssembly in 0.05 s, `fast-run` in 0.6 s to code twice as fast; `auto` begins with one and goes on with the other. */
  image: z
    .enum(["auto", "fast-start", "fast-run"], 'image must be "auto", "fast-start" or "fast-run"')
    .optional(),
  /** Start the TypeScript stripper now rather than at the first .ts source. */
  typescript: z.boolean().optional(),
  /** Give each worker a core-scheduling cookie of its own: no hyper-thread is shared with it. */
  coreScheduling: z.boolean().optional(),
  /** Force speculative-execution controls on for workers. */
  speculation: z.boolean().optional(),
});

/** What a run can be handed: an object of its `env`, a secret's handle, or a change of what every run has. */
export type Grant = Capability | Secret | Ambient;

const isAmbient = (value: unknown): value is Ambient =>
  typeof value === "object" &&
  value !== null &&
  "kind" in value &&
  AMBIENT_KINDS.some((kind) => kind === value.kind);

const grant = z.custom<Grant>(
  (value) => value instanceof Capability || value instanceof Secret || isAmbient(value),
  "is no grant: give a capability, a secret, or one of clock, random, log and timers",
);

const listener = <F extends (value: never) => void>(name: string) =>
  z.custom<F>((value) => typeof value === "function", `${name} must be a function`).optional();

const GRANT_NAME = "a grant's name must be an identifier of at most 64 letters, and not then";

export const runSchema = z.strictObject({
  input: z.unknown().optional(),
  type: z.enum(["module", "script"], 'type must be "module" or "script"').optional(),
  /** File name that stacks show; a name that ends in .ts or .mts means TypeScript. */
  name: z
    .string("name must be a string")
    .min(1)
    .max(200)
    .regex(/^[^\0-\x1f]*$/, "name must not hold control characters")
    .optional(),
  language: z.enum(["javascript", "typescript"], 'language must be "javascript" or "typescript"').optional(),
  modules: z.record(z.string().min(1).max(200), z.string("a module's source must be a string")).optional(),
  limits: limitsSchema.optional(),
  signal: z.instanceof(AbortSignal, { message: "signal must be an AbortSignal" }).optional(),
  /**
   * On whose behalf: tenants take turns in the queue, and one that has a name holds at most three slots of
   * `maxConcurrent` for each that is left free (of 4 it gets 3), so that another's run need not wait for one of its own to
   * end. A run that gives no tenant may have all slots.
   */
  tenant: z.string("tenant must be a string").max(200).optional(),
  /** What the script may do besides computing: `{ kv: kv() }` is `env.kv` to it. */
  grants: z
    .record(
      z.string().regex(/^(?!then$)[A-Za-z_$][\w$]{0,63}$/, GRANT_NAME),
      grant,
      "grants must be an object: { name: grant }",
    )
    .optional(),
  /** Hears of each decision about a call, before the act; one that throws stops it. */
  audit: listener<(event: AuditEvent) => void>("audit").refine(
    (audit) => audit?.constructor.name !== "AsyncFunction",
    "audit must not be asynchronous: it has to have written the line when it returns",
  ),
  /** Keep what a replay needs; the outcome then has a `recording`. */
  record: z.boolean("record must be true or false").optional(),
  /** Hears each line of the script's log as it comes. */
  onLog: listener<(entry: LogEntry) => void>("onLog"),
});

/** Code that is to run in the recorded one's place: where it goes another way, the replay says so. */
export const replaySchema = runSchema
  .pick({ name: true, language: true, modules: true, signal: true, onLog: true })
  .extend({
    source: z.string("source must be a string").optional(),
    /** Replay on another engine than the recording's, too: then stacks and the engines' own wording are not compared. */
    otherEngine: z.boolean("otherEngine must be true or false").optional(),
  });

export type ReplayOptions = z.input<typeof replaySchema>;
export type SandboxOptions = z.input<typeof createSchema>;
export type RunOptions = z.input<typeof runSchema>;

export type ParsedOptions = z.output<typeof createSchema>;

/** Strict: unknown keys and wrong types are errors that name the field. */
export function parse<T extends z.ZodType>(schema: T, options: unknown): z.output<T> {
  const result = schema.safeParse(options);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const path = issue?.path.join(".") ?? "";
  if (issue?.code === "unrecognized_keys") {
    const field = [...issue.path, issue.keys[0]].join(".");
    throw new SandboxError(
      "bad-option",
      `${field} is no option; known are ${knownKeys(schema, issue.path)}`,
      { field },
    );
  }
  // Of a record's keys zod keeps the words apart.
  const words = issue?.code === "invalid_key" ? issue.issues[0]?.message : undefined;
  const message = words ?? issue?.message ?? "invalid options";
  throw new SandboxError(
    "bad-option",
    path === "" || message.includes(path) ? message : `${path}: ${message}`,
    {
      field: path,
    },
  );
}

function knownKeys(schema: z.ZodType, path: readonly PropertyKey[]): string {
  const shape = path[0] === "limits" ? limitsSchema.shape : (schema as z.ZodObject).shape;
  return Object.keys(shape).join(", ");
}
