/**
 * The least policy that a script needs, proposed from what it did and what it asked for in vain. A proposal and no
 * more: the script chose every address and name in it, so a person reads it before it is used. Whatever the events do
 * not show is left out, and nothing is guessed wider than it was seen, but for one rule: many paths side by side become
 * the directory that they are in, and that is said.
 */
import path from "node:path";
import { Addresses, parseRules } from "../hostapi/http-rules.js";
import { hostWithin, plainRule } from "./policy.js";
import {
  defaultOf,
  isAmbientType,
  isGrantType,
  type GrantPolicy,
  type GrantType,
  type Policy,
} from "./policy-schema.js";

/** Of an audit event, what a proposal is made from. */
export interface Asked {
  /** The name in `env`. */
  readonly capability: string;
  readonly kind: string;
  readonly method: string;
  readonly detail: Readonly<Record<string, string | number | boolean>>;
}

export interface Proposal {
  /** A policy as it is written, JSON with line breaks; its paths are relative to the directory asked for. */
  readonly text: string;
  /** What a reader should know: guest text in it, to be escaped where it is printed. */
  readonly notes: readonly string[];
}

/** So many paths in one directory stand for the directory. */
const SIDE_BY_SIDE = 8;

type Fields = Record<string, unknown>;

/**
 * From the events of a run (or several) under `policy`, for a file in `dir`, absolute. `refused` are URLs that somebody
 * said no to, which no directory of addresses may take in. Limits and what every script has anyway (clock, randomness,
 * console, timers) stay as they are: events do not tell whether they were needed. So does asking a person.
 */
export function propose(
  events: readonly Asked[],
  policy: Policy,
  dir: string,
  refused: readonly string[] = [],
): Proposal {
  const notes: string[] = [];
  const seen = new Map<string, Asked[]>();
  for (const event of events) {
    if (!isGrantType(event.kind) || isAmbientType(event.kind)) continue; // a capability that another one handed out
    const list = seen.get(event.capability);
    if (list === undefined) seen.set(event.capability, [event]);
    else list.push(event);
  }
  const grants = new Map<string, Fields>();
  for (const [name, asked] of seen) {
    const type = (asked[0] as Asked).kind as GrantType;
    const granted = Object.hasOwn(policy.grants, name) ? policy.grants[name] : undefined;
    const base = granted?.type === type ? granted : undefined;
    const fields = needed(name, type, base, asked, refused, notes);
    if (fields === undefined) continue;
    const only = [...new Set(asked.map(({ method }) => method))].sort();
    grants.set(name, { ...(name === type ? {} : { type }), ...fields, only });
  }
  for (const [name, grant] of Object.entries(policy.grants)) {
    if (isAmbientType(grant.type) || grant.type === "approve") grants.set(name, written(name, grant));
    else if (grant.type === "secret") keepSecret(name, grant, grants, notes);
    else if (!grants.has(name)) notes.push(`${name} was not used and is left out`);
  }
  const shown = Object.fromEntries([...grants].map(([name, fields]) => [name, relative(fields, dir)]));
  const { limits } = policy;
  const whole = { ...(Object.keys(limits).length > 0 ? { limits } : {}), grants: shown };
  return { text: `${JSON.stringify(whole, null, 2)}\n`, notes };
}

/** What a grant needs to be, or undefined for none. */
function needed(
  name: string,
  type: GrantType,
  base: GrantPolicy | undefined,
  asked: readonly Asked[],
  refused: readonly string[],
  notes: string[],
): Fields | undefined {
  const kept = base === undefined ? {} : written(name, base);
  switch (type) {
    case "http":
      return httpNeeded(name, kept, asked, refused, notes);
    case "files": {
      const reading = asked.every(({ method }) => READING.has(method));
      const { mode, quotaBytes, maxFiles, maxFileBytes, root = rootOf(name, asked, notes), ...rest } = kept;
      return reading ? { root, ...rest } : { root, mode: mode ?? "rw", ...bounds({ quotaBytes, maxFiles, maxFileBytes }), ...rest }; // prettier-ignore
    }
    case "events": {
      const names = [...new Set(asked.flatMap(({ detail }) => (typeof detail["name"] === "string" ? [detail["name"]] : [])))]; // prettier-ignore
      return { ...kept, ...(names.length > 0 ? { names: names.sort() } : {}) };
    }
    default:
      return kept;
  }
}

/** Methods of files that leave the world as it was. */
const READING: ReadonlySet<string> = new Set(["read", "readText", "list", "stat", "exists"]);

/** Most directories that a note names. */
const NAMED = 10;

/** Of a grant that there is not yet: where the script's paths were taken from, or a guess. */
function rootOf(name: string, asked: readonly Asked[], notes: string[]): string {
  const root = asked.map(({ detail }) => detail["root"]).find((value) => typeof value === "string");
  if (root === undefined) {
    notes.push(`${name}: choose the directory; ./${name} is a guess`);
    return name;
  }
  const inside = (reading: boolean) => {
    const of = asked.filter(({ method }) => READING.has(method) === reading);
    const all = [...new Set(of.map(({ detail }) => String(detail["directory"])))].sort();
    const more = all.length > NAMED ? `, and ${all.length - NAMED} more` : "";
    return all.length === 0
      ? ""
      : ` to ${reading ? "read" : "write"} in ${all.slice(0, NAMED).join(", ")}${more};`;
  };
  notes.push(
    `${name}: the script names its files from ${root}, and so all below it is proposed. It asked${inside(true)}${inside(false)} a script that names them from there needs only that directory`,
  );
  return root;
}

const bounds = (fields: Fields): Fields =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

/** Exact rules for what was asked, by method and path; the query is not a rule's matter. */
function httpNeeded(
  name: string,
  kept: Fields,
  asked: readonly Asked[],
  refused: readonly string[],
  notes: string[],
): Fields | undefined {
  const methods = new Map<string, Set<string>>();
  const addresses = new Addresses(name, (kept["open"] as readonly string[] | undefined) ?? []);
  const check = (place: string, methods: string[]) => placesAt(name, place, methods, addresses, notes);
  for (const { url, method } of asked.flatMap(({ detail }) => placesOf(name, detail, check, notes))) {
    const known = methods.get(url);
    if (known === undefined) methods.set(url, new Set([method]));
    else known.add(method);
  }
  if (methods.size === 0) return undefined;
  const folders = new Map<string, string[]>();
  for (const url of methods.keys()) {
    const folder = url.slice(0, url.lastIndexOf("/") + 1);
    folders.set(folder, [...(folders.get(folder) ?? []), url]);
  }
  const allow = [...folders].flatMap(([folder, urls]) => {
    if (urls.length < SIDE_BY_SIDE || refused.some((url) => url.startsWith(folder)))
      return urls.map((url) => ({ url, methods: [...(methods.get(url) ?? [])].sort() }));
    notes.push(`${name}: ${urls.length} paths were asked for, and so all of ${folder}* are proposed`);
    return [
      {
        url: `${folder}*`,
        methods: [...new Set(urls.flatMap((url) => [...(methods.get(url) ?? [])]))].sort(),
      },
    ];
  });
  const rules = parseRules(name, allow);
  const { inject, ...rest } = kept as { inject?: GrantPolicy<"http">["inject"] };
  const still = inject?.filter(({ host }) => rules.some((rule) => hostWithin(rule.host, host)));
  return { ...rest, allow, ...(still === undefined || still.length === 0 ? {} : { inject: still }) };
}

interface Place {
  url: string;
  method: string;
}

/** What an audit line of http names: the URL asked for, and the last one that it was sent on to. */
function placesOf(
  name: string,
  detail: Asked["detail"],
  check: (text: string, methods: string[]) => Place[],
  notes: string[],
): Place[] {
  const method = typeof detail["method"] === "string" ? detail["method"].toUpperCase() : "GET";
  if (detail["refused"] === "address") {
    notes.push(
      `${name}: a host stands for an address that is not public; add the address to open if it is meant`,
    );
  }
  const { url, redirectedTo } = detail;
  // Sent on, a request keeps its method or becomes a GET, by a status that the line does not have (RFC 9110, 15.4).
  const later = method === "GET" || method === "HEAD" ? [method] : [method, "GET"];
  return [
    ...(typeof url === "string" ? check(url, [method]) : []),
    ...(typeof redirectedTo === "string" ? check(redirectedTo, later) : []),
  ];
}

/** An audit line has no more of a URL: one of this length may have been cut. */
const CUT = 512;

function placesAt(
  name: string,
  text: string,
  methods: string[],
  addresses: Addresses,
  notes: string[],
): Place[] {
  try {
    const url = exactPlace(text);
    parseRules(name, [{ url, methods }], addresses);
    return methods.map((method) => ({ url, method }));
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    notes.push(`left out: ${error.message}`);
    return [];
  }
}

/**
 * The `url` of a rule for just this place. Throws TypeError where no rule can say it: a star that a script put into a
 * host or a path (URLs may have them) would mean all hosts below, all paths that begin so.
 */
export function exactPlace(text: string): string {
  const parsed = URL.canParse(text) ? new URL(text) : undefined;
  if (parsed === undefined || !/^https?:$/.test(parsed.protocol)) {
    throw new TypeError(`"${text.slice(0, 100)}" is no URL that can be fetched`);
  }
  const url = parsed.origin + parsed.pathname;
  if (url.length >= CUT) throw new TypeError(`"${url.slice(0, 100)}..." is too long`);
  if (url.includes("*")) throw new TypeError(`"${url}" has a * in it, which in a rule would stand for more`);
  return url;
}

/** For the hosts that are still asked. */
function keepSecret(
  name: string,
  grant: GrantPolicy<"secret">,
  grants: Map<string, Fields>,
  notes: string[],
): void {
  const reached = [...grants.values()].flatMap(({ allow }) =>
    Array.isArray(allow) ? parseRules(name, allow.map(plainRule)).map(({ host }) => host) : [],
  );
  const hosts = grant.hosts.filter((pattern) => reached.some((host) => hostWithin(host, pattern)));
  if (hosts.length === 0) notes.push(`${name} could not be sent anywhere and is left out`);
  else grants.set(name, { ...written(name, grant), hosts });
}

/** A parsed grant as somebody would write it: without what is so anyway. */
function written(name: string, grant: GrantPolicy): Fields {
  const given = Object.entries(grant).filter(([field, value]) => {
    if (field === "type") return name !== grant.type;
    if (field === "namespace") return value !== name;
    return value !== undefined && value !== defaultOf(grant.type, field);
  });
  return Object.fromEntries(given);
}

/** With paths as they look from a directory. */
function relative(fields: Fields, dir: string): Fields {
  const from = (absolute: string) => {
    if (!path.isAbsolute(absolute)) return absolute;
    const short = path.relative(dir, absolute);
    return short === "" ? "." : short;
  };
  const changed: Fields = {};
  for (const [field, value] of Object.entries(fields)) {
    const isPath = (field === "root" || field === "file") && typeof value === "string";
    const store = field === "store" && typeof value === "object" ? (value as { sqlite: string }) : undefined;
    changed[field] = isPath ? from(value) : store === undefined ? value : { sqlite: from(store.sqlite) };
  }
  return changed;
}
