/** What the page holds of a run before it is one, and how it becomes a request: pure, and each mistake names its field. */
import type { KeyFacts, RunRequest } from "../client.js";
import { LIMITS, type LimitName } from "../limits.js";

export interface Draft {
  source: string;
  type: "module" | "script";
  language: "javascript" | "typescript";
  /** By name; the policy's own if undefined. */
  engine: string | undefined;
  /** As they are typed; what is absent or empty is the policy's. */
  limits: ReadonlyMap<LimitName, string>;
  grants: ReadonlySet<string>;
  /** JSON as it is typed; empty: none. */
  input: string;
}

export const LIMIT_NAMES = Object.keys(LIMITS) as LimitName[];

/** A field of the draft that cannot be sent. `field` is "input" or "limits.NAME". */
export class DraftError extends Error {
  override readonly name = "DraftError";
  constructor(
    readonly field: string,
    message: string,
  ) {
    super(message);
  }
}

/** The most and the least that a key's policy lets a run ask for. Of fuel 0 is no bound at all. */
export function limitRange(name: LimitName, facts: KeyFacts): { min: number; max: number } {
  const { min, max } = LIMITS[name];
  const most = facts.limits[name];
  if (name !== "fuel") return { min, max: most };
  return most === 0 ? { min: 0, max } : { min: 1, max: most };
}

/** @throws DraftError for an input that is no JSON, and a limit that the policy does not allow */
export function requestOf(draft: Draft, facts: KeyFacts): RunRequest {
  const { source, type, language, engine } = draft;
  const limits: NonNullable<RunRequest["limits"]> = {};
  for (const [name, text] of draft.limits) {
    if (text.trim() === "") continue;
    const { min, max } = limitRange(name, facts);
    const value = /^\d{1,15}$/.test(text.trim()) ? Number(text) : NaN;
    if (!(value >= min && value <= max))
      throw new DraftError(`limits.${name}`, `${name} must be a whole number from ${min} to ${max}`);
    limits[name] = value;
  }
  const known = new Set(facts.grants.map(({ name }) => name));
  const grants = [...draft.grants].filter((name) => known.has(name));
  const chosen = facts.engines.find((name) => name === engine);
  return {
    source,
    type,
    language,
    ...(chosen === undefined ? {} : { engine: chosen }),
    ...(Object.keys(limits).length === 0 ? {} : { limits }),
    ...(grants.length === 0 ? {} : { grants }),
    ...(draft.input.trim() === "" ? {} : { input: inputOf(draft.input) }),
  };
}

function inputOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new DraftError("input", `the input is no JSON: ${why}`);
  }
}
