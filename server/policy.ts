/**
 * Policies: what a run may do, as a text outside of code, parsed once, strictly, into a frozen value.
 *
 * A policy that means less or more than its writer thinks is the failure behind every rule here: a key that stands
 * twice means two things, a rule that cannot match is a script that fails at three in the morning, a secret that no
 * rule can send was meant for somewhere else. All of it is refused, all at once, each with its field, before any script
 * starts. Nothing here opens a file, a store or a secret: `grantsOf` does.
 */
import path from "node:path";
import { z } from "zod";
import { Addresses, parseRules, type HttpRule, type Rule } from "../hostapi/http-rules.js";
import { didYouMean } from "./did-you-mean.js";
import { SandboxError } from "./errors.js";
import { DEFAULT_LIMITS, LIMITS, type PartialLimits } from "./limits.js";
import {
  GRANT_SCHEMAS,
  GRANT_TYPES,
  hasOneSource,
  isAmbientType,
  isGrantType,
  outerSchema,
  type GrantPolicy,
  type Policy,
} from "./policy-schema.js";
import { parseStrict, StrictJsonError } from "./strict-json.js";

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
    const lines = problems.map(({ field, message }) => (field === "" ? message : `${field}: ${message}`));
    super("bad-option", lines.join("\n"), {
      ...options,
      ...(problems[0] === undefined ? {} : { field: problems[0].field }),
      remedy:
        "Correct the fields named; `doublehull policy schema` prints a schema that editors complete from.",
    });
  }
}

/**
 * The policy that a JSON text means. `dir`, absolute, is what its relative paths are relative to: the directory of its
 * file. Throws PolicyError.
 */
export function parsePolicy(text: string, dir: string, also?: { grants: object; dir: string }): Policy {
  let value: unknown;
  try {
    value = parseStrict(text);
  } catch (error) {
    if (!(error instanceof StrictJsonError)) throw error;
    throw new PolicyError([{ field: "", message: error.message }], { cause: error });
  }
  return policyOf(value, dir, also);
}

/**
 * The same from a value that JSON can hold. `also` are grants from elsewhere, with a directory of their own: a name
 * that both have is refused, for one of them would be without effect.
 */
export function policyOf(value: unknown, dir: string, also?: { grants: object; dir: string }): Policy {
  const problems: Problem[] = [];
  const outer = outerSchema.safeParse(value);
  if (!outer.success) problems.push(...problemsOf(outer.error, outerSchema, []));
  const grants = Object.create(null) as Record<string, GrantPolicy>;
  const take = (given: object, from: string) => {
    for (const [name, grant] of Object.entries(given)) {
      const parsed = parseGrant(name, grant, from);
      if (Array.isArray(parsed)) problems.push(...parsed);
      else if (Object.hasOwn(grants, name)) {
        problems.push({
          field: fieldName(["grants", name]),
          message: "is granted twice: by the policy and beside it",
        });
      } else grants[name] = parsed;
    }
  };
  take(grantsIn(value), dir);
  if (also !== undefined) take(also.grants, also.dir);
  if (problems.length === 0) problems.push(...crossCheck(grants));
  if (problems.length > 0 || !outer.success) throw new PolicyError(problems);
  const { engine, limits = {} } = outer.data;
  return deepFreeze({ engine, limits: { ...patience(limits, grants), ...limits }, grants });
}

/** Who may ask a person and says nothing of the wall clock waits as long as the person may take, and computes no longer. */
function patience({ wallMs }: PartialLimits, grants: Readonly<Record<string, GrantPolicy>>): PartialLimits {
  const waits = Object.values(grants).flatMap((grant) => (grant.type === "approve" ? [grant.timeoutMs] : []));
  if (wallMs !== undefined || waits.length === 0) return {};
  const { wallMs: computing, cpuMs } = DEFAULT_LIMITS;
  return { wallMs: Math.min(computing + Math.max(...waits), LIMITS.wallMs.max), cpuMs };
}

/** The grants even if something else is wrong: everything is to be told at once. */
function grantsIn(value: unknown): object {
  if (typeof value !== "object" || value === null || !Object.hasOwn(value, "grants")) return {};
  const { grants } = value as { grants: unknown };
  return typeof grants === "object" && grants !== null && !Array.isArray(grants) ? grants : {};
}

function parseGrant(name: string, given: unknown, dir: string): GrantPolicy | Problem[] {
  const field = fieldName(["grants", name]);
  const wrong = (message: string, at = ""): Problem[] => [{ field: field + at, message }];
  if (!/^[A-Za-z_$][\w$]{0,63}$/.test(name) || name === "then" || name in Object.prototype) {
    return wrong("cannot be a name in env: use 1 to 64 letters, digits, underscores or dollar signs");
  }
  const isObject = typeof given === "object" && given !== null && !Array.isArray(given);
  if (!isObject && given !== true) return wrong("must be an object, or true for a grant without fields");
  const said = isObject && Object.hasOwn(given, "type") ? (given as { type: unknown }).type : undefined;
  if (said !== undefined && !isGrantType(said)) {
    return wrong(
      `there is no grant ${JSON.stringify(said).slice(0, 80)}${didYouMean(said, GRANT_TYPES)}`,
      ".type",
    );
  }
  const type = said ?? name;
  if (!isGrantType(type)) {
    const own = 'a grant under a name of your own has a "type"';
    return wrong(`there is no grant "${name}"${didYouMean(name, GRANT_TYPES)}; ${own}`);
  }
  if (type !== name && isGrantType(name)) {
    return wrong(`${name} is a type of grant itself: choose another name for this ${type}`);
  }
  if (type !== name && isAmbientType(type)) {
    return wrong(`a script has one ${type}: name the grant ${type}`);
  }
  const result = GRANT_SCHEMAS[type].safeParse(given === true ? {} : given);
  if (!result.success) return problemsOf(result.error, GRANT_SCHEMAS[type], ["grants", name]);
  const grant = completed(name, { ...result.data, type } as GrantPolicy, dir);
  const problem = innerProblem(grant);
  return problem === undefined ? grant : wrong(problem.message, problem.at);
}

/** With the defaults that other fields decide, and with absolute paths. */
function completed(name: string, grant: GrantPolicy, dir: string): GrantPolicy {
  const from = (relative: string) => path.resolve(dir, relative);
  switch (grant.type) {
    case "kv": {
      const { namespace = name, store } = grant as Partial<typeof grant>;
      return {
        ...grant,
        namespace,
        ...(typeof store === "object" ? { store: { sqlite: from(store.sqlite) } } : {}),
      };
    }
    case "files": {
      const bounds = { quotaBytes: 64 * 1024 * 1024, maxFiles: 1000, maxFileBytes: 16 * 1024 * 1024 };
      return { ...(grant.mode === "rw" ? bounds : {}), ...grant, root: from(grant.root) };
    }
    case "secret":
      return grant.file === undefined ? grant : { ...grant, file: from(grant.file) };
    case "http": {
      if (grant.inject === undefined) return grant;
      const inject = grant.inject.map((entry) =>
        typeof entry.secret === "object" && entry.secret.file !== undefined
          ? { ...entry, secret: { file: from(entry.secret.file) } }
          : entry,
      );
      return { ...grant, inject };
    }
    default:
      return grant;
  }
}

interface Inner {
  /** Below the grant: ".stepMs". */
  at: string;
  message: string;
}

/** What a schema cannot say of one grant. */
function innerProblem(grant: GrantPolicy): Inner | undefined {
  switch (grant.type) {
    case "secret":
      return hasOneSource(grant) ? undefined : { at: "", message: "must have either env or file" };
    case "clock":
      return (grant.mode === "coarse") === (grant.stepMs !== undefined)
        ? undefined
        : { at: ".stepMs", message: 'goes with mode "coarse", and must stand there' };
    case "files": {
      const { mode, quotaBytes, maxFiles, maxFileBytes } = grant;
      const [idle] = Object.entries({ quotaBytes, maxFiles, maxFileBytes }).filter(
        ([, value]) => value !== undefined,
      );
      return mode === "rw" || idle === undefined
        ? undefined
        : { at: `.${idle[0]}`, message: 'goes with mode "rw"' };
    }
    case "http":
      return httpProblem(grant);
    default:
      return undefined;
  }
}

function httpProblem({ allow, open = [], inject = [] }: GrantPolicy<"http">): Inner | undefined {
  for (const [i, range] of open.entries()) {
    const message = wordsOf(() => new Addresses("", [range]));
    if (message !== undefined) return { at: `.open[${i}]`, message };
  }
  const addresses = new Addresses("", open);
  for (const [i, rule] of allow.entries()) {
    const message = wordsOf(() => parseRules("", [plainRule(rule)], addresses));
    if (message !== undefined) return { at: `.allow[${i}]`, message };
  }
  const rules = rulesOf(allow);
  for (const [i, { host }] of inject.entries()) {
    if (rules.some((rule) => hostsMeet(rule.host, host))) continue;
    return {
      at: `.inject[${i}].host`,
      message: `no rule in allow reaches ${host}: this could never be sent`,
    };
  }
  return undefined;
}

/** What a constructor of the host API says of options that it does not take. */
function wordsOf(construct: () => unknown): string | undefined {
  try {
    construct();
    return undefined;
  } catch (error) {
    if (error instanceof TypeError) return error.message.replace(/^: /, "");
    throw error;
  }
}

type AllowRule = GrantPolicy<"http">["allow"][number];
/** Without keys that are undefined. */
export const plainRule = ({ url, methods }: AllowRule): HttpRule =>
  methods === undefined ? { url } : { url, methods };

/** The rules of a grant that has been parsed. */
export const rulesOf = (allow: readonly AllowRule[]): readonly Rule[] =>
  parseRules("allow", allow.map(plainRule));

/** Whether every host that one pattern means is one that another means. */
export const hostWithin = (host: string, pattern: string): boolean =>
  host === pattern || (pattern.startsWith("*.") && host.endsWith(pattern.slice(1)));

/** Whether some host fits both patterns. */
const hostsMeet = (a: string, b: string): boolean => hostWithin(a, b) || hostWithin(b, a);

/** What holds between grants: references lead somewhere, and every secret can be sent where it is for. */
function crossCheck(grants: Readonly<Record<string, GrantPolicy>>): Problem[] {
  const problems: Problem[] = [];
  const all = Object.entries(grants);
  const reached = all.flatMap(([, grant]) => (grant.type === "http" ? rulesOf(grant.allow) : []));
  const secrets = all.filter(([, { type }]) => type === "secret").map(([name]) => name);
  for (const [name, grant] of all) {
    const field = fieldName(["grants", name]);
    if (grant.type === "secret") {
      for (const [i, host] of grant.hosts.entries()) {
        if (reached.some((rule) => hostsMeet(rule.host, host))) continue;
        const message = `no http grant reaches ${host}: the secret could never be sent there`;
        problems.push({ field: `${field}.hosts[${i}]`, message });
      }
    }
    if (grant.type !== "http") continue;
    for (const [i, { host, secret }] of (grant.inject ?? []).entries()) {
      if (typeof secret !== "string") continue;
      const at = `${field}.inject[${i}].secret`;
      const target = Object.hasOwn(grants, secret) ? grants[secret] : undefined;
      if (target?.type !== "secret") {
        problems.push({
          field: at,
          message: `there is no secret grant "${secret}"${didYouMean(secret, secrets)}`,
        });
      } else if (!target.hosts.some((allowed) => hostWithin(host, allowed))) {
        problems.push({
          field: at,
          message: `${secret} is not for ${host}: add it to grants.${secret}.hosts`,
        });
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

const problemsOf = (error: z.ZodError, schema: z.ZodType, above: readonly PropertyKey[]): Problem[] =>
  error.issues.flatMap((issue) => problemsOfIssue(issue, schema, above));

function problemsOfIssue(
  issue: z.core.$ZodIssue,
  schema: z.ZodType,
  above: readonly PropertyKey[],
): Problem[] {
  const at = [...above, ...issue.path];
  if (issue.code === "unrecognized_keys") {
    const known = keysAt(schema, issue.path);
    return issue.keys.map((key) => ({
      field: fieldName([...at, key]),
      message: `there is no such field${didYouMean(key, known)}`,
    }));
  }
  if (issue.code === "invalid_union") {
    // The branch that the value was meant for is the one that it fits on the outside.
    const meant = issue.errors.find(
      ([first]) =>
        first !== undefined && (first.path.length > 0 || !/^invalid_(?:type|value)$/.test(first.code)),
    );
    if (meant !== undefined) {
      return meant.flatMap((inner) =>
        problemsOfIssue({ ...inner, path: [...issue.path, ...inner.path] }, schema, above),
      );
    }
  }
  if (issue.code === "invalid_type" && issue.message.endsWith("received undefined")) {
    return [{ field: fieldName(at), message: `is missing: it must be ${article(issue.expected)}` }];
  }
  return [{ field: fieldName(at), message: issueWords(String(at.at(-1)), issue.message) }];
}

/** What an issue says beside its field's name: limits have theirs in the message, zod the kind of issue. */
export function issueWords(name: string, message: string): string {
  const words = message.startsWith(`${name} `) ? message.slice(name.length + 1) : message;
  return words.replace(/^(?:Invalid input|Invalid option|Too small|Too big): /, "");
}

const article = (noun: string): string => `${/^[aeiou]/.test(noun) ? "an" : "a"} ${noun}`;

/** The fields that an object somewhere inside a schema has. */
function keysAt(schema: unknown, path: readonly PropertyKey[]): string[] {
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodDefault) return keysAt(schema.unwrap(), path);
  if (schema instanceof z.ZodUnion) return schema.options.flatMap((option) => keysAt(option, path));
  if (schema instanceof z.ZodArray) return keysAt(schema.element, path.slice(1));
  if (!(schema instanceof z.ZodObject)) return [];
  const [next, ...rest] = path;
  return next === undefined ? Object.keys(schema.shape) : keysAt(schema.shape[String(next)], rest);
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}
