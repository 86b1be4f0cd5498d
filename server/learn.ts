/**
 * The least policy that a script needs, proposed from what it did and what it asked for in vain. A proposal and no
 * more: the script chose every address and name in it, so a person reads it before it is used. Whatever the events do
 * not show is left out, and nothing is guessed wider than it was seen, but for one rule: many paths side by side become
 * the directory that they are in, and that is said.
 */
import path from "node:path";
import { parseRules } from "../hostapi/http-rules.js";
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
 * From the events of a run (or several) under `policy`, for a file in `dir`, absolute. Limits and what every script has
 * anyway (clock, randomness, console, timers) stay as they are: events do not tell whether they were needed.
 */
export function propose(events: readonly Asked[], policy: Policy, dir: string): Proposal {
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
    const fields = needed(name, type, base, asked, notes);
    if (fields === undefined) continue;
    const only = base === undefined ? [] : [...new Set(asked.map(({ method }) => method))].sort();
    grants.set(name, { ...(name === type ? {} : { type }), ...fields, ...(only.length > 0 ? { only } : {}) });
  }
  for (const [name, grant] of Object.entries(policy.grants)) {
    if (isAmbientType(grant.type)) grants.set(name, written(name, grant));
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
  notes: string[],
): Fields | undefined {
  const kept = base === undefined ? {} : written(name, base);
  switch (type) {
    case "http":
      return httpNeeded(name, kept, asked, notes);
    case "files": {
      const reading = asked.every(({ method }) => READING.has(method));
      if (base === undefined) notes.push(`${name}: choose the directory; ./${name} is a guess`);
      const { mode, quotaBytes, maxFiles, maxFileBytes, root = name, ...rest } = kept;
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

const bounds = (fields: Fields): Fields =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

/** Exact rules for what was asked, by method and path; the query is not a rule's matter. */
function httpNeeded(
  name: string,
  kept: Fields,
  asked: readonly Asked[],
  notes: string[],
): Fields | undefined {
  const methods = new Map<string, Set<string>>();
  for (const { url, method } of asked.flatMap(({ detail }) => placesOf(name, detail, notes))) {
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
    if (urls.length < SIDE_BY_SIDE)
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
function placesOf(name: string, detail: Asked["detail"], notes: string[]): Place[] {
  const method = typeof detail["method"] === "string" ? detail["method"].toUpperCase() : "GET";
  if (detail["refused"] === "address") {
    notes.push(
      `${name}: a host stands for an address that is not public; add the address to open if it is meant`,
    );
  }
  // Sent on, a request keeps its method or becomes a GET, by a status that the line does not have (RFC 9110, 15.4).
  const later = method === "GET" || method === "HEAD" ? [method] : [method, "GET"];
  return [
    ...validPlaces(name, detail["url"], [method], notes),
    ...validPlaces(name, detail["redirectedTo"], later, notes),
  ];
}

function validPlaces(name: string, text: unknown, methods: string[], notes: string[]): Place[] {
  if (typeof text !== "string" || !URL.canParse(text)) return [];
  const { origin, pathname } = new URL(text);
  const url = origin + pathname;
  try {
    parseRules(name, [{ url, methods }]);
  } catch (error) {
    notes.push(`left out: ${error instanceof Error ? error.message : String(error)}`);
    return [];
  }
  return methods.map((method) => ({ url, method }));
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
