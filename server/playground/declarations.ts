/**
 * Reads what GET /v1/types writes (server/types.ts): which names `env` has, and of each its methods with signature and
 * words. It knows the form of that text and not the language of declarations; what it does not know it leaves out, and
 * it ends on any text. Pure.
 */

export interface Method {
  name: string;
  /** "(key: string, by?: number): Promise<number>" */
  signature: string;
  doc: string;
}

export interface Offer {
  /** In `env`. */
  name: string;
  doc: string;
  /** Of one that is no object with methods: "string", or a function's type. */
  type: string | undefined;
  methods: Method[];
}

/** The grants that are objects, functions or strings of `env`, by name. */
export function readDeclarations(text: string): Map<string, Offer> {
  const reader = new Reader(text);
  const offers = new Map<string, Offer>();
  if (!reader.skipPast("export interface Env {")) return offers;
  for (;;) {
    const doc = reader.comment();
    if (!reader.take("readonly ")) return offers;
    const name = reader.name();
    if (name === undefined || !reader.take(":")) return offers;
    if (reader.take("{")) {
      offers.set(name, { name, doc, type: undefined, methods: methods(reader) });
      reader.take(";");
    } else {
      offers.set(name, { name, doc, type: reader.upTo(";"), methods: [] });
    }
  }
}

function methods(reader: Reader): Method[] {
  const found: Method[] = [];
  for (;;) {
    const doc = reader.comment();
    if (reader.take("}")) return found;
    const name = reader.name();
    if (name === undefined) return found;
    found.push({ name, signature: reader.upTo(";"), doc });
  }
}

const OPEN = "([{";
const CLOSED = ")]}";

class Reader {
  #at = 0;
  constructor(readonly text: string) {}

  #space(): void {
    while (/\s/.test(this.text[this.#at] ?? "")) this.#at++;
  }

  skipPast(what: string): boolean {
    const found = this.text.indexOf(what);
    if (found >= 0) this.#at = found + what.length;
    return found >= 0;
  }

  take(what: string): boolean {
    this.#space();
    const there = this.text.startsWith(what, this.#at);
    if (there) this.#at += what.length;
    return there;
  }

  /** The words of comments that stand here, "" if there are none. */
  comment(): string {
    const words: string[] = [];
    while (this.take("/**")) {
      const end = this.text.indexOf("*/", this.#at);
      const inside = this.text.slice(this.#at, end < 0 ? undefined : end);
      this.#at = end < 0 ? this.text.length : end + 2;
      words.push(...inside.split("\n").map((line) => line.replace(/^\s*\*? ?/, "").replaceAll("*\\/", "*/").trim())); // prettier-ignore
    }
    return words.filter((line) => line !== "").join(" ");
  }

  name(): string | undefined {
    this.#space();
    const [found] = /^[A-Za-z_$][\w$]*/.exec(this.text.slice(this.#at, this.#at + 1000)) ?? [];
    this.#at += found?.length ?? 0;
    return found;
  }

  /** The text up to this character outside brackets and strings, without it; past it then. */
  upTo(end: string): string {
    this.#space();
    const from = this.#at;
    for (let depth = 0; this.#at < this.text.length; this.#at++) {
      const char = this.text[this.#at] ?? "";
      if (char === '"') this.#string();
      else if (OPEN.includes(char)) depth++;
      else if (CLOSED.includes(char)) depth--;
      else if (char === end && depth <= 0) break;
    }
    return this.text.slice(from, this.#at++).trim();
  }

  #string(): void {
    for (this.#at++; this.#at < this.text.length && this.text[this.#at] !== '"'; this.#at++)
      if (this.text[this.#at] === "\\") this.#at++;
  }
}
