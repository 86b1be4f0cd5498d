/**
 * Headers (Fetch Standard section 5.1). Names are kept in lower case. A value may be any object with toString: a
 * secret's handle gives its placeholder. No name is forbidden here, as in other servers' fetch: what may be sent is for
 * whoever sends it to say.
 */
import { domString, dress, iterable, need, pairsOf } from "./realm.js";

// oxlint-disable typescript/no-useless-default-assignment -- the default keeps the parameter out of `length`

/** RFC 9110 section 5.6.2, token. */
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
type Entry = [name: string, value: string];

/** The entries in the order in which they came. */
export let listOf: (headers: Headers) => readonly Readonly<Entry>[];
/** Headers that nobody may change any more. */
export let freezeHeaders: (headers: Headers) => void;
export let isHeaders: (value: object) => value is Headers;

function nameOf(value: unknown): string {
  const name = domString(value);
  if (!TOKEN.test(name))
    throw new TypeError(`Headers: ${JSON.stringify(name.slice(0, 80))} is not a header name`);
  return name.toLowerCase();
}

function valueOf(name: string, value: unknown): string {
  const text = domString(value).replace(/^[\t\n\r ]+|[\t\n\r ]+$/g, "");
  // The value is not told: it may be a credential.
  if (/[\0\n\r]/.test(text)) throw new TypeError(`Headers: the value of ${name} holds a line break or a NUL`);
  if (/[^\0-\xff]/.test(text))
    throw new TypeError(`Headers: the value of ${name} holds a character above U+00FF`);
  return text;
}

export class Headers {
  #list: Entry[] = [];
  /** The combined list, sorted, until the next change. */
  #sorted: readonly Entry[] | undefined;
  #immutable = false;

  constructor(init: unknown = undefined) {
    if (init === undefined) return;
    if (init === null || (typeof init !== "object" && typeof init !== "function")) {
      throw new TypeError("Headers: the argument must be an object, an iterable of pairs, or Headers");
    }
    const pairs = isHeaders(init) ? init.#list : pairsOf(init, domString, "Headers");
    for (const [name, value] of pairs) this.append(name, value);
  }
  append(name: unknown, value: unknown): void {
    need(2, arguments, "Headers.append");
    const key = nameOf(name);
    const text = valueOf(key, value);
    this.#mayChange();
    this.#list.push([key, text]);
  }
  delete(name: unknown): void {
    need(1, arguments, "Headers.delete");
    const key = nameOf(name);
    this.#mayChange();
    this.#list = this.#list.filter(([one]) => one !== key);
  }
  get(name: unknown): string | null {
    need(1, arguments, "Headers.get");
    return this.#get(nameOf(name));
  }
  getSetCookie(): string[] {
    return this.#list.filter(([one]) => one === "set-cookie").map(([, value]) => value);
  }
  has(name: unknown): boolean {
    need(1, arguments, "Headers.has");
    const key = nameOf(name);
    return this.#list.some(([one]) => one === key);
  }
  set(name: unknown, value: unknown): void {
    need(2, arguments, "Headers.set");
    const key = nameOf(name);
    const text = valueOf(key, value);
    this.#mayChange();
    const at = this.#list.findIndex(([one]) => one === key);
    if (at < 0) this.#list.push([key, text]);
    else {
      this.#list[at] = [key, text];
      this.#list = this.#list.filter(([one], i) => i <= at || one !== key);
    }
  }
  forEach(run: (value: string, name: string, headers: Headers) => void, self: unknown = undefined): void {
    need(1, arguments, "Headers.forEach");
    if (typeof run !== "function") throw new TypeError("Headers.forEach: the argument must be a function");
    for (const [name, value] of this) Reflect.apply(run, self, [value, name, this]);
  }
  *entries(): Generator<Entry> {
    for (let i = 0; i < this.#all().length; i++) {
      const [name, value] = this.#all()[i] as Entry;
      yield [name, value];
    }
  }
  *keys(): Generator<string> {
    for (let i = 0; i < this.#all().length; i++) yield (this.#all()[i] as Entry)[0];
  }
  *values(): Generator<string> {
    for (let i = 0; i < this.#all().length; i++) yield (this.#all()[i] as Entry)[1];
  }
  declare [Symbol.iterator]: () => Generator<Entry>;

  #get(key: string): string | null {
    const values = this.#list.filter(([one]) => one === key).map(([, value]) => value);
    return values.length === 0 ? null : values.join(", ");
  }
  /** Sorted by name, values of one name combined, but for set-cookie (section 5.1, "sort and combine"). */
  #all(): readonly Entry[] {
    return (this.#sorted ??= [...new Set(this.#list.map(([name]) => name))]
      .sort()
      .flatMap((name): Entry[] =>
        name === "set-cookie"
          ? this.getSetCookie().map((value): Entry => [name, value])
          : [[name, this.#get(name) as string]],
      ));
  }
  #mayChange(): void {
    if (this.#immutable) throw new TypeError("Headers: these cannot be changed; make new Headers of them");
    this.#sorted = undefined;
  }

  static {
    listOf = (headers) => headers.#list;
    freezeHeaders = (headers) => void (headers.#immutable = true);
    isHeaders = (value): value is Headers => #list in value;
  }
}
dress(Headers, "Headers");
iterable(Headers.prototype);
