/**
 * Policies: what a run may do, as a text outside of code. One strict schema, from which the parser, the types and the
 * JSON schema for editors are made; parsed once into a frozen value that names every default it stands for.
 *
 * A policy that means less or more than its writer thinks is the failure behind every rule here: an unknown key is a
 * protection that was never on, a rule that cannot match is a script that fails at three in the morning, a key that
 * stands twice means two things. All of that is refused, naming the field, before any script starts. Nothing here opens
 * a file, a store or a secret: `grantsOf` does.
 */
import { isIP } from "node:net";
import path from "node:path";
import { z } from "zod";
import { didYouMean } from "./did-you-mean.js";
import { SandboxError } from "./errors.js";
import type { PartialLimits } from "./limits.js";
import { limitsSchema } from "./options.js";
import { parseStrict, StrictJsonError } from "./strict-json.js";
import { hostWithin, parseUrlRule, urlRuleProblem } from "./url-rule.js";

const whole = (min: number, max: number) => z.int().min(min).max(max);
const name = z
  .string()
  .regex(/^[\w.-]{1,64}$/, "must be 1 to 64 letters, digits, dots, hyphens or underscores");
const file = z
  .string()
  .min(1)
  .max(4096)
  .refine((text) => !text.includes("\0"), "must not hold a NUL character")
  .describe("Relative to the policy file.");
const variable = z
  .string()
  .regex(/^[A-Za-z_]\w{0,255}$/, "must be the name of an environment variable")
  .describe("Environment variable of the host that holds the value.");
const host = z
  .string()
  .regex(
    /^(?:\*\.)?[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?$|^\[[0-9a-f:.]+\]$/,
    'must be a host name in lower case without scheme and port, or "*.example.com" for every name below',
  )
  .max(255);
const unique = <T>(items: readonly T[]) => new Set(items).size === items.length;

/** Narrowings that every grant takes whose object a script can call. */
const WEAKENINGS = {
  readOnly: z.literal(true).optional().describe("Only methods that leave the world as it was."),
  only: z
    .array(z.string().min(1).max(64))
    .min(1)
    .refine(unique, "names a method twice")
    .optional()
    .describe("Only these methods."),
  budget: z
    .strictObject({
      calls: whole(1, 1e9).optional().describe("Calls in one run."),
      bytes: whole(1, 1e15)
        .optional()
        .describe("Bytes in arguments, answers and what the calls move, in one run."),
    })
    .refine(({ calls, bytes }) => calls !== undefined || bytes !== undefined, "must bound calls or bytes")
    .optional(),
  rate: z
    .strictObject({ calls: whole(1, 1e9), perMs: whole(1, 3_600_000) })
    .optional()
    .describe("At most so many calls in any so many milliseconds."),
  expiresMs: whole(1, 3_600_000)
    .optional()
    .describe("Milliseconds from the begin of the run; then it is over."),
};

const HTTP_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] as const;
const urlPattern = z
  .string()
  .max(2048)
  .superRefine((text, context) => {
    const problem = urlRuleProblem(text);
    if (problem !== undefined) context.addIssue({ code: "custom", message: problem });
  });
const cidr = z.string().refine(isCidr, "must be an address range, as 10.1.0.0/16 or fd00::/8");

function isCidr(text: string): boolean {
  const [address = "", bits = "", ...rest] = text.split("/");
  const family = isIP(address);
  return (
    rest.length === 0 && /^\d{1,3}$/.test(bits) && family !== 0 && Number(bits) <= (family === 4 ? 32 : 128)
  );
}

const secretSource = {
  env: variable.optional(),
  file: file.optional().describe("File that holds the value; a line feed at its end is left out."),
};
const oneSource = (given: { env?: unknown; file?: unknown }) =>
  (given.env === undefined) !== (given.file === undefined);

/** The fields of every type of grant; `doc` says to editors what it is. */
const SHAPES = {
  kv: {
    doc: "A key-value store.",
    shape: {
      namespace: name.optional().describe("Grants of the same store and namespace share their keys."),
      store: z
        .union(
          [z.literal("memory"), z.strictObject({ sqlite: file })],
          'must be "memory" or { "sqlite": "file.db" }',
        )
        .optional()
        .describe("memory (default): gone when the process ends."),
      prefix: z.string().min(1).max(256).optional().describe("Only keys that begin so."),
      quotaBytes: whole(1, 2 ** 40).optional(),
      maxKeys: whole(1, 1e9).optional(),
      ...WEAKENINGS,
    },
  },
  files: {
    doc: "A directory and what is below it.",
    shape: {
      root: file,
      mode: z.enum(["ro", "rw"]).optional().describe("ro (default): reading; rw: writing too."),
      quotaBytes: whole(1, 2 ** 50).optional(),
      ...WEAKENINGS,
    },
  },
  http: {
    doc: "Requests to addresses of an allow-list, and fetch.",
    shape: {
      allow: z
        .array(
          z.union(
            [
              urlPattern,
              z.strictObject({ url: urlPattern, methods: z.array(z.enum(HTTP_METHODS)).min(1).refine(unique, "names a method twice") }), // prettier-ignore
            ],
            'must be a URL pattern, or { "url": pattern, "methods": [...] }',
          ),
        )
        .min(1),
      open: z
        .array(cidr)
        .min(1)
        .optional()
        .describe("Private address ranges that may be reached all the same."),
      inject: z
        .array(
          z.strictObject({
            host,
            header: z.string().regex(/^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$/, "must be the name of a header"),
            secret: z
              .union(
                [z.string(), z.strictObject(secretSource).refine(oneSource, "must have env or file")],
                'must be the name of a secret grant, or { "env": "NAME" }',
              )
              .describe("Name of a secret grant, or where the value is."),
          }),
        )
        .min(1)
        .optional()
        .describe("Headers put in on the way out; the script never sees them."),
      ...WEAKENINGS,
    },
  },
  secret: {
    doc: "A value that the script can send, through http, but not read.",
    shape: { ...secretSource, hosts: z.array(host).min(1).describe("Hosts that may be sent it.") },
  },
  events: {
    doc: "A stream of events to the caller.",
    shape: { names: z.array(name).min(1).refine(unique, "names an event twice").optional(), ...WEAKENINGS },
  },
  approve: { doc: "Asks a person and waits.", shape: { ...WEAKENINGS } },
  clock: {
    doc: "The script's clock.",
    shape: {
      mode: z.enum(["frozen", "real", "coarse", "virtual"]).optional(),
      stepMs: whole(1, 3_600_000).optional().describe("Of mode coarse."),
      startMs: z.number().min(-8.64e15).max(8.64e15).optional().describe("Milliseconds since 1970."),
    },
  },
  random: {
    doc: "The script's randomness.",
    shape: { seed: z.string().max(4096).optional().describe("The same numbers for every run.") },
  },
  log: {
    doc: "The script's console.",
    shape: { least: z.enum(["debug", "log", "info", "warn", "error"]).optional() },
  },
  timers: {
    doc: "The script's timers.",
    shape: { most: whole(0, 10_000).optional().describe("Pending at once; 0: none.") },
  },
} as const satisfies Record<string, { doc: string; shape: z.ZodRawShape }>;

export type GrantType = keyof typeof SHAPES;
export const GRANT_TYPES = Object.keys(SHAPES) as GrantType[];
/** Kinds that change what every script has: one each, under their own name, and nothing in `env`. */
const AMBIENT = ["clock", "random", "log", "timers"] as const satisfies readonly GrantType[];
export type AmbientType = (typeof AMBIENT)[number];
export const isAmbient = (type: GrantType): type is AmbientType =>
  (AMBIENT as readonly string[]).includes(type);

type Fields<T extends GrantType> = z.output<z.ZodObject<(typeof SHAPES)[T]["shape"]>>;
/** One grant, its paths absolute. */
export type GrantPolicy<T extends GrantType = GrantType> = {
  [K in T]: Readonly<Fields<K>> & { readonly type: K };
}[T];

export interface Policy {
  readonly engine: "quickjs";
  readonly limits: Readonly<PartialLimits>;
  /** By name in `env`. Has no prototype. */
  readonly grants: Readonly<Record<string, GrantPolicy>>;
}

const top = {
  $schema: z.string().optional().describe("For editors."),
  engine: z.enum(["quickjs"]).optional(),
  limits: limitsSchema.optional(),
};
const GRANTS = Object.fromEntries(
  GRANT_TYPES.map((type) => [
    type,
    z.strictObject({ type: z.literal(type).optional(), ...SHAPES[type].shape }).describe(SHAPES[type].doc),
  ]),
) as unknown as Record<GrantType, z.ZodObject>;

/** For editors: JSON Schema, draft 2020-12. What it cannot say (references between grants) `parsePolicy` still checks. */
export function policyJsonSchema(): Record<string, unknown> {
  const named = GRANT_TYPES.map((type) => {
    const needsNothing = GRANTS[type].safeParse({}).success;
    return [type, (needsNothing ? z.union([z.literal(true), GRANTS[type]]) : GRANTS[type]).optional()];
  });
  const others = GRANT_TYPES.filter((type) => !isAmbient(type)).map((type) =>
    GRANTS[type].required({ type: true }),
  );
  const schema = z.strictObject({
    ...top,
    grants: z
      .object(Object.fromEntries(named) as z.ZodRawShape)
      .catchall(z.union(others))
      .optional()
      .describe("By name in the script's env."),
  });
  return { ...z.toJSONSchema(schema), title: "doublehull policy" };
}

// ---- parsing --------------------------------------------------------------------------------------------------------

/** One thing that is wrong: the field ("grants.http.allow[1]", empty for the whole) and what to do. */
export interface Problem {
  readonly field: string;
  readonly message: string;
}

/** A policy that is not accepted, with everything that is wrong with it. */
export class PolicyError extends SandboxError {
  override name = "PolicyError";
  constructor(
    readonly problems: readonly Problem[],
    options: ErrorOptions = {},
  ) {
    const text = problems
      .map(({ field, message }) => (field === "" ? message : `${field}: ${message}`))
      .join("\n");
    const [first] = problems;
    super("bad-option", text, {
      ...options,
      ...(first === undefined ? {} : { field: first.field }),
      remedy: "Correct the policy; `doublehull policy schema` prints its schema for editors.",
    });
  }
}

/**
 * The policy that a JSON text means. `dir`, absolute, is what its relative paths are relative to: the file's own
 * directory. Throws PolicyError.
 */
export function parsePolicy(text: string, dir: string): Policy {
  let value: unknown;
  try {
    value = parseStrict(text);
  } catch (error) {
    if (!(error instanceof StrictJsonError)) throw error;
    throw new PolicyError([{ field: "", message: error.message }], { cause: error });
  }
  return policyOf(value, dir);
}

const topSchema = z.strictObject({ ...top, grants: z.record(z.string(), z.unknown()).optional() });

/** The same from a value that JSON can hold. */
export function policyOf(value: unknown, dir: string): Policy {
  const problems: Problem[] = [];
  const outer = topSchema.safeParse(value);
  if (!outer.success) problems.push(...problemsOf(outer.error, topSchema, []));
  const grants = Object.create(null) as Record<string, GrantPolicy>;
  for (const [name, given] of Object.entries(grantsIn(value))) {
    const parsed = parseGrant(name, given, dir);
    if (Array.isArray(parsed)) problems.push(...parsed);
    else grants[name] = parsed;
  }
  if (problems.length === 0) problems.push(...crossCheck(grants));
  if (problems.length > 0 || !outer.success) throw new PolicyError(problems);
  const { engine = "quickjs", limits = {} } = outer.data;
  return deepFreeze({ engine, limits, grants });
}

/** The grants even if something else is wrong: everything is to be told at once. */
function grantsIn(value: unknown): object {
  if (typeof value !== "object" || value === null || !Object.hasOwn(value, "grants")) return {};
  const { grants } = value as { grants: unknown };
  return typeof grants === "object" && grants !== null && !Array.isArray(grants) ? grants : {};
}

function parseGrant(name: string, given: unknown, dir: string): GrantPolicy | Problem[] {
  const field = fieldName(["grants", name]);
  const wrong = (message: string, at = field): Problem[] => [{ field: at, message }];
  if (!/^[A-Za-z_$][\w$]{0,63}$/.test(name) || name === "then" || name in Object.prototype) {
    return wrong("cannot be a name in env: use 1 to 64 letters, digits, underscores or dollar signs");
  }
  const isType = (text: unknown): text is GrantType =>
    typeof text === "string" && Object.hasOwn(SHAPES, text);
  const isObject = typeof given === "object" && given !== null && !Array.isArray(given);
  if (!isObject && given !== true) return wrong("must be an object, or true for a grant without fields");
  const said = isObject && Object.hasOwn(given, "type") ? (given as { type: unknown }).type : undefined;
  if (said !== undefined && !isType(said)) {
    return wrong(`there is no grant ${shown(said)}${didYouMean(said, GRANT_TYPES)}`, `${field}.type`);
  }
  const type = said ?? name;
  if (!isType(type)) {
    return wrong(
      `there is no grant "${name}"${didYouMean(name, GRANT_TYPES)} (for a grant under a name of your own, say its "type")`,
    );
  }
  if (isType(name) && name !== type)
    return wrong(`${name} is a type of grant itself: choose another name for this ${type}`);
  if (isAmbient(type) && name !== type)
    return wrong(`there is one ${type} for the whole script: name the grant ${type}`);
  const result = GRANTS[type].safeParse(given === true ? {} : given);
  if (!result.success) return problemsOf(result.error, GRANTS[type], ["grants", name]);
  const grant = { ...result.data, type } as GrantPolicy;
  const problem = innerProblem(grant);
  if (problem !== undefined) return wrong(problem[1], `${field}${problem[0]}`);
  return withAbsolutePaths(grant, dir);
}

/** What a schema cannot say of one grant: where, and what. */
function innerProblem(grant: GrantPolicy): [at: string, message: string] | undefined {
  if (grant.type === "secret" && !oneSource(grant)) return ["", "must have either env or file"];
  if (grant.type === "clock" && (grant.mode === "coarse") !== (grant.stepMs !== undefined)) {
    return [".stepMs", 'goes with mode "coarse", and must stand there'];
  }
  if (grant.type === "kv" && typeof grant.store === "object" && grant.store.sqlite.startsWith(":")) {
    return [".store.sqlite", 'must be a file; a store in memory is "store": "memory"'];
  }
  if (grant.type !== "http") return undefined;
  const rules = grant.allow.map((rule) => parseUrlRule(typeof rule === "string" ? rule : rule.url));
  for (const [i, { host }] of (grant.inject ?? []).entries()) {
    if (!rules.some((rule) => hostsMeet(rule.host, host))) {
      return [`.inject[${i}].host`, `no rule in allow reaches ${host}: this could never be sent`];
    }
  }
  return undefined;
}

/** Whether some host fits both patterns. */
const hostsMeet = (a: string, b: string): boolean => hostWithin(a, b) || hostWithin(b, a);

function withAbsolutePaths(grant: GrantPolicy, dir: string): GrantPolicy {
  const from = (relative: string) => path.resolve(dir, relative);
  switch (grant.type) {
    case "files":
      return { ...grant, root: from(grant.root) };
    case "kv":
      return typeof grant.store === "object"
        ? { ...grant, store: { sqlite: from(grant.store.sqlite) } }
        : grant;
    case "secret":
      return grant.file === undefined ? grant : { ...grant, file: from(grant.file) };
    case "http": {
      const inject = grant.inject?.map((entry) =>
        typeof entry.secret === "object" && entry.secret.file !== undefined
          ? { ...entry, secret: { ...entry.secret, file: from(entry.secret.file) } }
          : entry,
      );
      return inject === undefined ? grant : { ...grant, inject };
    }
    default:
      return grant;
  }
}

/** What holds between grants: references lead somewhere, and every secret can be sent somewhere. */
function crossCheck(grants: Readonly<Record<string, GrantPolicy>>): Problem[] {
  const problems: Problem[] = [];
  const all = Object.entries(grants);
  const https = all.flatMap(([, grant]) => (grant.type === "http" ? [grant] : []));
  for (const [name, grant] of all) {
    if (grant.type === "secret") {
      for (const [i, host] of grant.hosts.entries()) {
        const reached = https.some(({ allow }) =>
          allow.some((rule) =>
            hostsMeet(parseUrlRule(typeof rule === "string" ? rule : rule.url).host, host),
          ),
        );
        if (reached) continue;
        const message = `no http grant reaches ${host}: the secret could never be sent there`;
        problems.push({ field: `${fieldName(["grants", name])}.hosts[${i}]`, message });
      }
    }
    if (grant.type !== "http") continue;
    for (const [i, { host, secret }] of (grant.inject ?? []).entries()) {
      if (typeof secret !== "string") continue;
      const field = `${fieldName(["grants", name])}.inject[${i}].secret`;
      const target = Object.hasOwn(grants, secret) ? grants[secret] : undefined;
      if (target?.type !== "secret") {
        const secrets = all.filter(([, { type }]) => type === "secret").map(([known]) => known);
        problems.push({
          field,
          message: `there is no secret grant "${secret}"${didYouMean(secret, secrets)}`,
        });
      } else if (!target.hosts.some((allowed) => hostWithin(host, allowed))) {
        problems.push({ field, message: `${secret} is not for ${host}: add it to grants.${secret}.hosts` });
      }
    }
  }
  return problems;
}

// ---- what is wrong, in words ----------------------------------------------------------------------------------------

/** "grants.http.allow[1]" */
export const fieldName = (path: readonly PropertyKey[]): string =>
  path
    .map((part, i) => {
      if (typeof part === "number") return `[${part}]`;
      const text = String(part);
      return /^[\w$]+$/.test(text) ? (i === 0 ? text : `.${text}`) : `[${JSON.stringify(text)}]`;
    })
    .join("");

const shown = (value: unknown): string => JSON.stringify(value)?.slice(0, 80) ?? String(value);

function problemsOf(error: z.ZodError, schema: z.ZodType, above: readonly PropertyKey[]): Problem[] {
  return error.issues.flatMap((issue) => problemsOfIssue(issue, schema, above));
}

function problemsOfIssue(
  issue: z.core.$ZodIssue,
  schema: z.ZodType,
  above: readonly PropertyKey[],
): Problem[] {
  const at = [...above, ...issue.path];
  if (issue.code === "unrecognized_keys") {
    const known =
      issue.path.length === 0 && schema instanceof z.ZodObject
        ? Object.keys(schema.shape)
        : keysAt(schema, issue.path);
    return issue.keys.map((key) => ({
      field: fieldName([...at, key]),
      message: `there is no such field${didYouMean(key, known)}`,
    }));
  }
  if (issue.code === "invalid_union") {
    // The branch that the value was meant for is the one that it fits on the outside.
    const branch = issue.errors.find(([first]) => first !== undefined && (first.path.length > 0 || !/^invalid_(?:type|value)$/.test(first.code))); // prettier-ignore
    if (branch !== undefined) {
      return branch.flatMap((inner) =>
        problemsOfIssue({ ...inner, path: [...issue.path, ...inner.path] }, schema, above),
      );
    }
  }
  const field = fieldName(at);
  const last = `${String(at.at(-1))} `;
  const message = issue.message.startsWith(last) ? issue.message.slice(last.length) : issue.message;
  return [{ field, message: message.replace(/^Invalid input: |^Too (?:big|small): |^Invalid option: /, "") }];
}

/** The fields that an object somewhere inside a schema has. */
function keysAt(schema: z.ZodType | undefined, path: readonly PropertyKey[]): string[] {
  if (schema instanceof z.ZodOptional) return keysAt(schema.unwrap() as z.ZodType, path);
  if (schema instanceof z.ZodUnion)
    return (schema.options as z.ZodType[]).flatMap((option) => keysAt(option, path));
  if (schema instanceof z.ZodArray) return keysAt(schema.element as z.ZodType, path.slice(1));
  if (!(schema instanceof z.ZodObject)) return [];
  const [next, ...rest] = path;
  return next === undefined
    ? Object.keys(schema.shape)
    : keysAt((schema.shape as z.ZodRawShape)[String(next)] as z.ZodType, rest);
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}
