/**
 * What `run` and `create` reject with: the caller's mistake or this host's, never anything that a script does. One
 * table; each row says the next thing to do.
 */
export const SANDBOX_ERRORS = {
  "bad-option": { blame: "caller", remedy: "Correct the option that the message names." },
  "bad-input": {
    blame: "caller",
    remedy: "Pass structured data: JSON types, undefined, Date, BigInt, Map, Set, typed arrays, Error.",
  },
  "over-limit": {
    blame: "caller",
    remedy: "Ask for less, or create the sandbox with a larger limit: a run can only ask for less.",
  },
  overloaded: { blame: "host", remedy: "Try again later, or raise maxConcurrent or maxQueue." },
  closed: { blame: "caller", remedy: "Create a new sandbox: this one was closed." },
  "no-engine": {
    blame: "host",
    remedy:
      "Install the optional package isolated-vm in the version for this Node, or use the engine quickjs.",
  },
  "host-cannot": {
    blame: "host",
    remedy: "Run `doublehull doctor`: it says what is missing and how to get it.",
  },
} as const;

export type SandboxErrorCode = keyof typeof SANDBOX_ERRORS;

export class SandboxError extends Error {
  override name = "SandboxError";
  readonly remedy: string;
  /** `field` is the option that is wrong, where one is. */
  readonly field: string | undefined;
  constructor(
    readonly code: SandboxErrorCode,
    message: string,
    options: ErrorOptions & { remedy?: string; field?: string } = {},
  ) {
    super(message, options);
    this.remedy = options.remedy ?? SANDBOX_ERRORS[code].remedy;
    this.field = options.field;
  }
}
