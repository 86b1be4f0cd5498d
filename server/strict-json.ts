/**
 * JSON as a configuration may be written: one meaning for every reader. A key that stands twice means one thing to a
 * person and another to a parser ("last one wins", RFC 8259 section 4, leaves it open), so it is refused; so is
 * `__proto__`, which some consumers take for an instruction. Size and depth are checked before anything is built.
 */

export const MAX_JSON_CHARACTERS = 256 * 1024;
export const MAX_JSON_DEPTH = 16;

/** Why a text is not accepted. `place` is "line 3, column 5", where there is one. */
export class StrictJsonError extends Error {
  override readonly name = "StrictJsonError";
  readonly place: string | undefined;
  constructor(problem: string, place?: string, options?: ErrorOptions) {
    super(place === undefined ? problem : `${place}: ${problem}`, options);
    this.place = place;
  }
}

function placeAt(text: string, index: number): string {
  const before = text.slice(0, index);
  return `line ${before.split("\n").length}, column ${index - before.lastIndexOf("\n")}`;
}

// Strings whole (an unterminated one to the end, so that no start is tried twice), with the colon that makes them keys.
const TOKEN = /"(?:[^"\\]|\\.)*(?:"(\s*:)?|\\?$)|[{}[\]]/gs;

/** The value of a JSON text. Throws StrictJsonError. */
export function parseStrict(text: string): unknown {
  if (text.length > MAX_JSON_CHARACTERS) {
    throw new StrictJsonError(`it is longer than ${MAX_JSON_CHARACTERS} characters`);
  }
  /** The keys seen in each object that is open; undefined for an array. */
  const open: (Set<string> | undefined)[] = [];
  for (const match of text.matchAll(TOKEN)) {
    const [token, colon] = match;
    if (token === "{" || token === "[") {
      if (open.length === MAX_JSON_DEPTH) {
        throw new StrictJsonError(
          `it is nested deeper than ${MAX_JSON_DEPTH} levels`,
          placeAt(text, match.index),
        );
      }
      open.push(token === "{" ? new Set() : undefined);
    } else if (token === "}" || token === "]") {
      open.pop();
    } else if (colon !== undefined) {
      const key = parsed(text, token.slice(0, -colon.length), match.index);
      if (key === "__proto__") {
        throw new StrictJsonError('the key "__proto__" is not accepted', placeAt(text, match.index));
      }
      const keys = open.at(-1);
      if (keys?.has(String(key))) {
        throw new StrictJsonError(`the key ${JSON.stringify(key)} stands twice`, placeAt(text, match.index));
      }
      keys?.add(String(key));
    }
  }
  return parsed(text, text, 0);
}

function parsed(whole: string, part: string, from: number): unknown {
  try {
    return JSON.parse(part);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const [, at] = /at position (\d+)/.exec(message) ?? [];
    // What V8 adds (a snippet, a position) is said by the place, in words that do not differ between its versions.
    const problem = message
      .replace(/,? (?:\.\.\.)?".*"(?:\.\.\.)? is not valid JSON$/s, "")
      .replace(/ in JSON at .*$/s, "");
    const place = at === undefined ? undefined : placeAt(whole, from + Number(at));
    throw new StrictJsonError(`it is not JSON: ${problem}`, place, { cause: error });
  }
}
