/** URL and URLSearchParams (URL Standard section 6): the classes upon the parser. */
import { parseForm, serializeForm } from "./percent.js";
import { dress, iterable, need, pairsOf, usvString } from "./realm.js";
import * as parser from "./url-parser.js";

// oxlint-disable typescript/no-useless-default-assignment -- the default keeps the parameter out of `length`
// oxlint-disable prefer-rest-params -- how many arguments there were is the question, and `length` must stay

type Pair = [name: string, value: string];

/** The params of a URL: without the stripping of a question mark, and telling `changed` of each change. */
let paramsOf: (query: string, changed: (query: string | null) => void) => URLSearchParams;
let setParams: (params: URLSearchParams, query: string) => void;

export class URLSearchParams {
  #list: Pair[] = [];
  #changed: ((query: string | null) => void) | undefined;

  constructor(init: unknown = "") {
    if ((typeof init === "object" && init !== null) || typeof init === "function") {
      this.#list = pairsOf(init, usvString, "URLSearchParams");
      // A record's names may be the same once they are well-formed: the last one counts.
      if (!(Symbol.iterator in init)) this.#list = [...new Map(this.#list)];
    } else {
      const text = usvString(init);
      this.#list = parseForm(text[0] === "?" ? text.slice(1) : text);
    }
  }
  get size(): number {
    return this.#list.length;
  }
  append(name: unknown, value: unknown): void {
    need(2, arguments, "URLSearchParams.append");
    this.#list.push([usvString(name), usvString(value)]);
    this.#update();
  }
  delete(name: unknown, value: unknown = undefined): void {
    need(1, arguments, "URLSearchParams.delete");
    const isOne = matcher(name, value);
    this.#list = this.#list.filter((pair) => !isOne(pair));
    this.#update();
  }
  get(name: unknown): string | null {
    need(1, arguments, "URLSearchParams.get");
    return this.#list.find(matcher(name))?.[1] ?? null;
  }
  getAll(name: unknown): string[] {
    need(1, arguments, "URLSearchParams.getAll");
    return this.#list.filter(matcher(name)).map(([, value]) => value);
  }
  has(name: unknown, value: unknown = undefined): boolean {
    need(1, arguments, "URLSearchParams.has");
    return this.#list.some(matcher(name, value));
  }
  set(name: unknown, value: unknown): void {
    need(2, arguments, "URLSearchParams.set");
    const pair: Pair = [usvString(name), usvString(value)];
    const isOne = matcher(pair[0]);
    const at = this.#list.findIndex(isOne);
    if (at < 0) this.#list.push(pair);
    else {
      this.#list[at] = pair;
      this.#list = this.#list.filter((one, i) => i <= at || !isOne(one));
    }
    this.#update();
  }
  /** By code units, stable. */
  sort(): void {
    this.#list.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    this.#update();
  }
  forEach(
    run: (value: string, name: string, params: URLSearchParams) => void,
    self: unknown = undefined,
  ): void {
    need(1, arguments, "URLSearchParams.forEach");
    if (typeof run !== "function")
      throw new TypeError("URLSearchParams.forEach: the argument must be a function");
    for (const [name, value] of this) Reflect.apply(run, self, [value, name, this]);
  }
  *entries(): Generator<Pair> {
    for (let i = 0; i < this.#list.length; i++) {
      const [name, value] = this.#list[i] as Pair;
      yield [name, value];
    }
  }
  *keys(): Generator<string> {
    for (let i = 0; i < this.#list.length; i++) yield (this.#list[i] as Pair)[0];
  }
  *values(): Generator<string> {
    for (let i = 0; i < this.#list.length; i++) yield (this.#list[i] as Pair)[1];
  }
  declare [Symbol.iterator]: () => Generator<Pair>;
  toString(): string {
    return serializeForm(this.#list);
  }

  #update(): void {
    if (this.#changed === undefined) return;
    const query = this.toString();
    this.#changed(query === "" ? null : query);
  }
  static {
    paramsOf = (query, changed) => {
      const params = new URLSearchParams();
      params.#list = parseForm(query);
      params.#changed = changed;
      return params;
    };
    setParams = (params, query) => void (params.#list = parseForm(query));
  }
}

function matcher(name: unknown, value: unknown = undefined): (pair: Pair) => boolean {
  const wanted = usvString(name);
  if (value === undefined) return (pair) => pair[0] === wanted;
  const also = usvString(value);
  return (pair) => pair[0] === wanted && pair[1] === also;
}

/** Undefined: not a URL. */
function parse(url: string, base: unknown): parser.UrlRecord | undefined {
  const against = base === undefined ? null : parser.parseUrl(usvString(base), null);
  if (base !== undefined && against === null) return undefined;
  return parser.parseUrl(url, against) ?? undefined;
}

const withoutFirst = (text: string, first: string) => (text[0] === first ? text.slice(1) : text);

/** What a request is sent to: the URL without its fragment. */
export let withoutFragment: (url: URL) => string;
export let isURL: (value: object) => value is URL;

export class URL {
  #url: parser.UrlRecord;
  /** Made when first asked for: most URLs are only read. */
  #params: URLSearchParams | undefined;

  constructor(url: unknown, base: unknown = undefined) {
    need(1, arguments, "URL");
    const text = usvString(url);
    const record = parse(text, base);
    if (record === undefined) throw invalid(text);
    this.#url = record;
  }
  static canParse(url: unknown, base: unknown = undefined): boolean {
    need(1, arguments, "URL.canParse");
    return parse(usvString(url), base) !== undefined;
  }
  static parse(url: unknown, base: unknown = undefined): URL | null {
    need(1, arguments, "URL.parse");
    const text = usvString(url);
    return parse(text, base) === undefined ? null : new URL(text, base);
  }
  get href(): string {
    return parser.serializeUrl(this.#url);
  }
  set href(value: unknown) {
    const text = usvString(value);
    const record = parse(text, undefined);
    if (record === undefined) throw invalid(text);
    this.#url = record;
    this.#queryChanged(record.query ?? "");
  }
  get origin(): string {
    return parser.originOf(this.#url);
  }
  get protocol(): string {
    return `${this.#url.scheme}:`;
  }
  set protocol(value: unknown) {
    parser.overrideScheme(this.#url, usvString(value));
  }
  get username(): string {
    return this.#url.username;
  }
  set username(value: unknown) {
    const text = usvString(value);
    if (!parser.cannotHaveCredentials(this.#url)) parser.setUsername(this.#url, text);
  }
  get password(): string {
    return this.#url.password;
  }
  set password(value: unknown) {
    const text = usvString(value);
    if (!parser.cannotHaveCredentials(this.#url)) parser.setPassword(this.#url, text);
  }
  get host(): string {
    const { port } = this.#url;
    return this.hostname + (port === null ? "" : `:${port}`);
  }
  set host(value: unknown) {
    const text = usvString(value);
    if (!parser.hasOpaquePath(this.#url)) parser.overrideHost(this.#url, text, false);
  }
  get hostname(): string {
    return this.#url.host ?? "";
  }
  set hostname(value: unknown) {
    const text = usvString(value);
    if (!parser.hasOpaquePath(this.#url)) parser.overrideHost(this.#url, text, true);
  }
  get port(): string {
    const { port } = this.#url;
    return port === null ? "" : `${port}`;
  }
  set port(value: unknown) {
    const text = usvString(value);
    if (!parser.cannotHaveCredentials(this.#url)) parser.overridePort(this.#url, text);
  }
  get pathname(): string {
    return parser.serializePath(this.#url);
  }
  set pathname(value: unknown) {
    const text = usvString(value);
    if (!parser.hasOpaquePath(this.#url)) parser.overridePath(this.#url, text);
  }
  get search(): string {
    const { query } = this.#url;
    return query === null || query === "" ? "" : `?${query}`;
  }
  set search(value: unknown) {
    const text = usvString(value);
    if (text === "") this.#url.query = null;
    else parser.setQuery(this.#url, withoutFirst(text, "?"));
    this.#queryChanged(withoutFirst(text, "?"));
  }
  get searchParams(): URLSearchParams {
    return (this.#params ??= paramsOf(this.#url.query ?? "", (query) => {
      this.#url.query = query;
    }));
  }
  get hash(): string {
    const { fragment } = this.#url;
    return fragment === null || fragment === "" ? "" : `#${fragment}`;
  }
  set hash(value: unknown) {
    const text = usvString(value);
    if (text === "") this.#url.fragment = null;
    else parser.setFragment(this.#url, withoutFirst(text, "#"));
  }
  toString(): string {
    return this.href;
  }
  toJSON(): string {
    return this.href;
  }

  #queryChanged(query: string): void {
    if (this.#params !== undefined) setParams(this.#params, query);
  }
  static {
    withoutFragment = (url) => parser.serializeUrl(url.#url, false);
    isURL = (value): value is URL => #url in value;
  }
}

const invalid = (text: string): TypeError => new TypeError(`Invalid URL: ${text.slice(0, 200)}`);

dress(URLSearchParams, "URLSearchParams");
iterable(URLSearchParams.prototype);
dress(URL, "URL");
