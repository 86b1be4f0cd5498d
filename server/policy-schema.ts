/**
 * What may stand in a policy: one strict schema, from which the parser, the types and the JSON schema for editors are
 * made. Every default is written here and handed to the capability as a number, so that a parsed policy says all that
 * it means, and two policies can be compared without knowing what a capability does with a field that is absent.
 *
 * The rule: an unknown field is an error, for it is a protection that somebody thinks is on. What one field cannot know
 * of another is in policy.ts.
 */
import { z } from "zod";
import { SCRIPT_ENGINES, type ScriptEngine } from "./engines.js";
import type { PartialLimits } from "./limits.js";
import { limitsSchema } from "./options.js";

const whole = (min: number, max: number) => z.int().min(min).max(max);
const MiB = 1024 * 1024;
/** Most of what one grant may be allowed: a petabyte, a billion. More is a slip of the keyboard. */
const [BYTES, COUNT, HOUR_MS] = [2 ** 50, 1e9, 3_600_000];

const unique = (items: readonly unknown[]) => new Set(items).size === items.length;
const list = <T extends z.ZodType>(item: T) => z.array(item).min(1).refine(unique, "names one twice");
const file = z
  .string()
  .min(1)
  .max(4095)
  .refine((text) => !text.includes("\0"), "must not hold a NUL character")
  .describe("Relative to the policy file.");
const host = z
  .string()
  .max(255)
  .regex(
    /^(?:\*\.)?[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?$|^\[[0-9a-f:.]+\]$/,
    'must be a host name in lower case without scheme and port, or "*.example.com" for every name below',
  );

/** Narrowings of every grant that a script can call. */
const WEAKENINGS = {
  readOnly: z.literal(true).optional().describe("Only methods that leave the world as it was."),
  only: list(z.string().min(1).max(64)).optional().describe("Only these methods."),
  budget: z
    .strictObject({
      calls: whole(1, COUNT).optional().describe("Calls in one run."),
      bytes: whole(1, BYTES)
        .optional()
        .describe("Bytes in arguments, answers and what the calls move, in one run."),
    })
    .refine(({ calls, bytes }) => calls !== undefined || bytes !== undefined, "must bound calls or bytes")
    .optional(),
  rate: z
    .strictObject({ calls: whole(1, COUNT), perMs: whole(1, HOUR_MS) })
    .optional()
    .describe("At most so many calls in any so many milliseconds."),
  expiresMs: whole(1, HOUR_MS)
    .optional()
    .describe("Milliseconds from the begin of the run; then it is over."),
};

const urlPattern = z.string().max(2048).describe('Such as "https://api.example.com/v1/*".');
const urlRule = z.strictObject({
  url: urlPattern,
  methods: list(z.string().max(32)).optional().describe("All, if absent."),
});

const secretSource = {
  env: z
    .string()
    .regex(/^[A-Za-z_]\w{0,255}$/, "must be the name of an environment variable")
    .optional()
    .describe("Environment variable of the host that holds the value."),
  file: file.optional().describe("File that holds the value; a line end at its end is left out."),
};
/** Whether a secret comes from one place. */
export const hasOneSource = (given: { env?: unknown; file?: unknown }): boolean =>
  (given.env === undefined) !== (given.file === undefined);

/** How a grant may be narrowed once more by whoever uses it. */
export const weakeningSchema = z.strictObject(WEAKENINGS);

/** The fields of every type of grant; `doc` says to editors what it is. */
const GRANT_FIELDS = {
  kv: {
    doc: "A key-value store.",
    fields: {
      namespace: z
        .string()
        .min(1)
        .max(512)
        .optional()
        .describe("Grants of one store and namespace share their keys; the grant's own name if absent."),
      store: z
        .union(
          [z.literal("memory"), z.strictObject({ sqlite: file })],
          'must be "memory" or { "sqlite": "file.db" }',
        )
        .default("memory")
        .describe("memory: gone when the process ends."),
      prefix: z
        .string()
        .min(1)
        .max(512)
        .optional()
        .describe("Only keys that begin so; the script does not see it."),
      quotaBytes: whole(1, BYTES).default(10 * MiB),
      maxKeys: whole(1, COUNT).default(10_000),
      ...WEAKENINGS,
    },
  },
  files: {
    doc: "A directory and what is below it.",
    fields: {
      root: file,
      mode: z.enum(["ro", "rw"]).default("ro"),
      quotaBytes: whole(0, BYTES)
        .optional()
        .describe(`With rw: bytes that may be added; ${64 * MiB} if absent.`),
      maxFiles: whole(0, COUNT).optional().describe("With rw: files that may be added; 1000 if absent."),
      maxFileBytes: whole(0, BYTES)
        .optional()
        .describe(`With rw, of one file; ${16 * MiB} if absent.`),
      ...WEAKENINGS,
    },
  },
  http: {
    doc: "Requests to the addresses of an allow-list; it brings fetch.",
    fields: {
      allow: z
        .array(
          z.union(
            [urlPattern.transform((url): z.output<typeof urlRule> => ({ url })), urlRule],
            'must be a URL pattern, or { "url": pattern, "methods": [...] }',
          ),
        )
        .min(1),
      open: list(z.string().max(64))
        .optional()
        .describe('Addresses that are not public and may be reached all the same: "10.1.0.0/16".'),
      inject: z
        .array(
          z.strictObject({
            host,
            header: z.string().regex(/^[A-Za-z0-9-]{1,128}$/, "must be the name of a header"),
            scheme: z
              .string()
              .regex(/^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}$/, "must be an authentication scheme")
              .optional()
              .describe('Stands before the value, as "Bearer" does.'),
            secret: z
              .union(
                [
                  z.string().max(64),
                  z.strictObject(secretSource).refine(hasOneSource, "must have either env or file"),
                ],
                'must be the name of a secret grant, or { "env": "NAME" }',
              )
              .describe("Name of a secret grant, or where the value is."),
          }),
        )
        .min(1)
        .optional()
        .describe("Headers put in on the way out; the script never sees them."),
      timeoutMs: whole(1, HOUR_MS).default(30_000),
      maxRequestBytes: whole(1, 2 ** 31 - 1).default(MiB),
      maxResponseBytes: whole(1, 2 ** 31 - 1).default(8 * MiB),
      maxRedirects: whole(0, 100).default(5),
      ...WEAKENINGS,
    },
  },
  secret: {
    doc: "A value that the script can send, through http, but not read.",
    fields: { ...secretSource, hosts: list(host).describe("Hosts that may be sent it.") },
  },
  events: {
    doc: "A stream of events to the caller.",
    fields: {
      names: list(z.string().max(64)).optional().describe("Any, if absent."),
      maxEvents: whole(1, COUNT).default(1000),
      maxEventBytes: whole(1, BYTES).default(64 * 1024),
      ...WEAKENINGS,
    },
  },
  approve: {
    doc: "Asks a person and waits.",
    fields: { timeoutMs: whole(1, 86_400_000).default(600_000), ...WEAKENINGS },
  },
  clock: {
    doc: "The script's clock.",
    fields: {
      mode: z.enum(["frozen", "real", "coarse", "virtual"]).default("real"),
      stepMs: whole(1, HOUR_MS).optional().describe("Of mode coarse."),
      startMs: z.number().min(-8.64e15).max(8.64e15).optional().describe("Milliseconds since 1970."),
    },
  },
  random: {
    doc: "The script's randomness.",
    fields: { seed: z.string().max(4096).optional().describe("The same numbers for every run.") },
  },
  log: {
    doc: "The script's console.",
    fields: { least: z.enum(["debug", "log", "info", "warn", "error"]).default("debug") },
  },
  timers: {
    doc: "The script's timers.",
    fields: { most: whole(0, 10_000).default(10_000).describe("Pending at once; 0: none.") },
  },
} as const satisfies Record<string, { doc: string; fields: z.ZodRawShape }>;

export type GrantType = keyof typeof GRANT_FIELDS;
export const GRANT_TYPES = Object.keys(GRANT_FIELDS) as readonly GrantType[];
export const isGrantType = (text: unknown): text is GrantType =>
  typeof text === "string" && Object.hasOwn(GRANT_FIELDS, text);

/** Kinds that change what every script has: one each, under their own name, and nothing in `env`. */
const AMBIENT = ["clock", "random", "log", "timers"] as const satisfies readonly GrantType[];
export type AmbientType = (typeof AMBIENT)[number];
export const isAmbientType = (type: GrantType): type is AmbientType =>
  (AMBIENT as readonly GrantType[]).includes(type);

type Fields<T extends GrantType> = z.output<z.ZodObject<(typeof GRANT_FIELDS)[T]["fields"]>>;
interface Filled {
  kv: { readonly namespace: string };
}
type GrantOf<T extends GrantType> = Readonly<Fields<T>> & { readonly type: T } & (T extends keyof Filled
    ? Filled[T]
    : unknown);
/** One grant: its paths absolute, its defaults filled in. */
export type GrantPolicy<T extends GrantType = GrantType> = { [K in T]: GrantOf<K> }[T];

export interface Policy {
  readonly engine: ScriptEngine;
  readonly limits: Readonly<PartialLimits>;
  /** By name in `env`. Has no prototype. */
  readonly grants: Readonly<Record<string, GrantPolicy>>;
}

/** Of each type; `type` may be left out where the grant's name says it. */
export const GRANT_SCHEMAS = Object.fromEntries(
  GRANT_TYPES.map((type) => {
    const { doc, fields } = GRANT_FIELDS[type];
    return [type, z.strictObject({ type: z.literal(type).optional(), ...fields }).describe(doc)];
  }),
) as unknown as Readonly<Record<GrantType, z.ZodObject>>;

/** What a field is when it is absent; undefined if that is not one value for all grants of the type. */
export function defaultOf(type: GrantType, field: string): unknown {
  const schema: unknown = GRANT_SCHEMAS[type].shape[field];
  return schema instanceof z.ZodDefault ? schema.def.defaultValue : undefined;
}

const outside = {
  $schema: z.string().optional().describe("For editors."),
  engine: z.enum(SCRIPT_ENGINES).default("quickjs"),
  limits: limitsSchema.optional(),
};
/** A policy but for its grants. */
export const outerSchema = z.strictObject({
  ...outside,
  grants: z.record(z.string(), z.unknown()).optional(),
});

/** JSON Schema, draft 2020-12, for editors. What it cannot say (rules, references) `parsePolicy` still checks. */
export function policyJsonSchema(): Record<string, unknown> {
  const named = GRANT_TYPES.map((type) => {
    const schema = GRANT_SCHEMAS[type];
    const orTrue = schema.safeParse({}).success ? z.union([z.literal(true), schema]) : schema;
    return [type, orTrue.optional()];
  });
  const others = GRANT_TYPES.filter((type) => !isAmbientType(type)).map((type) =>
    GRANT_SCHEMAS[type].required({ type: true }),
  );
  const grants = z
    .object(Object.fromEntries(named) as z.ZodRawShape)
    .catchall(z.union(others))
    .optional()
    .describe("By name in the script's env.");
  const { $schema, ...rest } = z.toJSONSchema(z.strictObject({ ...outside, grants }), { io: "input" });
  return { $schema, title: "doublehull policy", ...rest };
}
