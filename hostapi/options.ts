/**
 * How what an embedder passes is checked: by all of the host API in the same words, once, where the thing is made.
 *
 * The rule: what is not understood is refused, never left out. TypeScript finds a slip while it is typed, JavaScript
 * finds none. (The failures behind it: a budget of `{ call: 5 }` that bounded nothing, a rule whose `method` was read as
 * no rule about methods, a namespace in `namepsace` that put every tenant into the same one. All of them ran.)
 */

/** What is wrong with a value, in words that follow the option's name: "must be a function". Undefined: nothing. */
export type Check = (value: unknown) => string | undefined;

/** A check for each option there is: whoever adds one to the type has to add it here. */
export type Checks<T> = { readonly [K in keyof T]-?: Check };

/**
 * `given` itself, if it is a plain object whose keys are all known and whose values pass their checks. One that is
 * undefined is as absent as one that is not there, and left to its default, unless its check is `needed`. `who` begins
 * the message. Throws TypeError naming the option that is wrong.
 */
export function checkOptions<T extends object>(who: string, given: T, checks: Checks<T>): T {
  const known = Object.keys(checks);
  if (!isPlainObject(given)) {
    throw new TypeError(`${who}: takes an object with ${known.join(", ")}, and got ${kindOf(given)}`);
  }
  for (const key of Reflect.ownKeys(given)) {
    if (typeof key === "string" && known.includes(key)) continue;
    const shown = JSON.stringify(String(key).slice(0, 64));
    throw new TypeError(`${who}: there is no option ${shown}; known are ${known.join(", ")}`);
  }
  for (const [key, check] of Object.entries<Check>(checks)) {
    const value = (given as Record<string, unknown>)[key];
    const fault = value === undefined && !requiring.has(check) ? undefined : check(value);
    if (fault !== undefined) throw new TypeError(`${who}: ${key} ${fault}`);
  }
  return given;
}

const requiring = new WeakSet<Check>();

/** The option must be there. */
export function needed(check: Check): Check {
  const strict: Check = (value) => check(value);
  requiring.add(strict);
  return strict;
}

/** A number, and no text that looks like one. */
export const wholeNumber =
  (least: number, most = Number.MAX_SAFE_INTEGER): Check =>
  (value) => {
    if (typeof value === "number" && Number.isSafeInteger(value) && value >= least && value <= most) return;
    const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
    return `must be a whole number ${range}`;
  };

export const aFunction =
  (what: string): Check =>
  (value) =>
    typeof value === "function" ? undefined : `must be a function ${what}`;

/** `what`: "regular expressions". */
export const aList =
  (what: string): Check =>
  (value) =>
    Array.isArray(value) ? undefined : `must be a list of ${what}`;

export const oneOf =
  (...words: readonly string[]): Check =>
  (value) =>
    words.includes(value as string)
      ? undefined
      : `must be ${words.map((word) => JSON.stringify(word)).join(" or ")}`;

/** Whoever takes it looks at it more closely, and says what is wrong with it. */
export const anything: Check = () => undefined;

/** Made by `{ ... }`, in whatever realm: an instance of a class could hold what no key shows, as a Date or a Map does. */
export function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

/** In a word, for messages; no value stands in it, for it may be a secret. */
export function kindOf(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (Array.isArray(value)) return "a list";
  if (typeof value !== "object") return `a ${typeof value}`;
  const { constructor: maker } = value as { constructor?: unknown };
  return typeof maker === "function" && maker.name !== "Object" ? `a ${maker.name}` : "an object";
}
