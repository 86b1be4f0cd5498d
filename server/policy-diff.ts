/**
 * What one policy allows and another does not. Sound, not complete: whatever B allows beyond A is listed, and where the
 * two cannot be compared (another directory, a rule that only several of A's cover together) it is listed as well. A
 * reviewer who is shown nothing may agree without reading.
 *
 * Grants are compared under their names in `env`: the same authority under a new name is new to a script.
 */
import ipaddr from "ipaddr.js";
import { permits, type Rule } from "../hostapi/http-rules.js";
import { completeLimits, type LimitName } from "./limits.js";
import { hostWithin, rulesOf } from "./policy.js";
import {
  isAmbientType,
  type AmbientType,
  type GrantPolicy,
  type GrantType,
  type Policy,
} from "./policy-schema.js";
import { grantWords, sourceWords } from "./policy-words.js";

/** One thing that B allows additionally. `field` is where it stands in B, or in A where B leaves a bound out. */
export interface Addition {
  readonly field: string;
  readonly words: string;
}

/**
 * Empty: B allows nothing that A does not. `realPath` resolves symbolic links of directories, which decides whether one
 * lies inside another; without it only equal paths are the same directory.
 */
export function policyDiff(a: Policy, b: Policy, realPath?: (path: string) => string): Addition[] {
  const found: Addition[] = [];
  const [before, after] = [completeLimits(a.limits), completeLimits(b.limits)];
  for (const name of Object.keys(after) as LimitName[]) {
    if (after[name] > before[name]) {
      found.push({ field: `limits.${name}`, words: `${name} ${after[name]} rather than ${before[name]}` });
    }
  }
  for (const [name, grant] of Object.entries(b.grants)) {
    const old = Object.hasOwn(a.grants, name) ? a.grants[name] : undefined;
    if (isAmbientGrant(grant)) continue; // below: they count when they are absent, too
    if (old?.type !== grant.type) {
      const { what, details } = grantWords(name, grant);
      found.push({ field: `grants.${name}`, words: [what, ...details].join("; ") });
      continue;
    }
    const list: Sink = (part, words) => void found.push({ field: `grants.${name}${part}`, words });
    wider(old, grant, list, { a, b, realPath });
    widerBounds(old, grant, list);
  }
  ambientDiff(a, b, (part, words) => void found.push({ field: `grants.${part}`, words }));
  return found;
}

type Sink = (part: string, words: string) => void;
interface Both {
  a: Policy;
  b: Policy;
  realPath: ((path: string) => string) | undefined;
}

/** A bound that B raises or leaves out. */
function more(
  list: Sink,
  part: string,
  unit: string,
  before: number | undefined,
  after: number | undefined,
): void {
  if (before === undefined || (after !== undefined && after <= before)) return;
  list(part, `${after === undefined ? "no bound on" : `${after}`} ${unit} rather than ${before}`);
}

/** What B's list has and A's has not; a list that is absent has everything. */
function beyond(
  list: Sink,
  part: string,
  what: string,
  before: readonly string[] | undefined,
  after: readonly string[] | undefined,
): void {
  if (before === undefined) return;
  if (after === undefined) return list(part, `every ${what} rather than only ${before.join(", ")}`);
  for (const item of after) if (!before.includes(item)) list(part, `${what} ${item}`);
}

/** The fields of a type; both grants have it. */
function wider(old: GrantPolicy, now: GrantPolicy, list: Sink, both: Both): void {
  switch (now.type) {
    case "kv":
      return widerStore(old as typeof now, now, list);
    case "files":
      return widerFiles(old as typeof now, now, list, both.realPath);
    case "http":
      return widerHttp(old as typeof now, now, list, both);
    case "secret":
      return widerSecret(old as typeof now, now, list);
    case "events":
      return widerEvents(old as typeof now, now, list);
    case "approve":
      return more(list, ".timeoutMs", "ms to wait", (old as typeof now).timeoutMs, now.timeoutMs);
    case "clock":
    case "random":
    case "log":
    case "timers":
      return undefined;
  }
}

function widerEvents(old: GrantPolicy<"events">, now: GrantPolicy<"events">, list: Sink): void {
  beyond(list, ".names", "event", old.names, now.names);
  more(list, ".maxEvents", "events", old.maxEvents, now.maxEvents);
  more(list, ".maxEventBytes", "bytes of an event", old.maxEventBytes, now.maxEventBytes);
}

function widerStore(old: GrantPolicy<"kv">, now: GrantPolicy<"kv">, list: Sink): void {
  const place = ({ store, namespace }: GrantPolicy<"kv">) =>
    `namespace ${namespace} ${store === "memory" ? "in memory" : `of ${store.sqlite}`}`;
  if (place(old) !== place(now)) list("", `${place(now)} rather than ${place(old)}`);
  if (old.prefix !== undefined && !(now.prefix ?? "").startsWith(old.prefix)) {
    const keys =
      now.prefix === undefined ? "every key" : `keys that begin with ${JSON.stringify(now.prefix)}`;
    list(".prefix", `${keys} rather than those that begin with ${JSON.stringify(old.prefix)}`);
  }
  more(list, ".quotaBytes", "bytes", old.quotaBytes, now.quotaBytes);
  more(list, ".maxKeys", "keys", old.maxKeys, now.maxKeys);
}

function widerFiles(
  old: GrantPolicy<"files">,
  now: GrantPolicy<"files">,
  list: Sink,
  realPath: Both["realPath"],
): void {
  const [outer, inner] =
    realPath === undefined ? [old.root, now.root] : [realPath(old.root), realPath(now.root)];
  const inside =
    inner === outer ||
    (realPath !== undefined && inner.startsWith(outer.endsWith("/") ? outer : `${outer}/`));
  if (!inside) list(".root", `files below ${now.root} rather than ${old.root}`);
  if (old.mode === "ro" && now.mode === "rw") list(".mode", `writing below ${now.root}`);
  more(list, ".quotaBytes", "bytes", old.quotaBytes, now.quotaBytes ?? 0);
  more(list, ".maxFiles", "files", old.maxFiles, now.maxFiles ?? 0);
  more(list, ".maxFileBytes", "bytes of a file", old.maxFileBytes, now.maxFileBytes ?? 0);
}

function widerHttp(old: GrantPolicy<"http">, now: GrantPolicy<"http">, list: Sink, { a, b }: Both): void {
  const [before, after] = [rulesOf(old.allow), rulesOf(now.allow)];
  for (const [i, rule] of after.entries()) {
    const methods = rule.methods === undefined ? [undefined] : [...rule.methods];
    const fresh = methods.filter((method) => !before.some((known) => ruleWithin(rule, known, method)));
    if (fresh.length === 0) continue;
    list(
      `.allow[${i}]`,
      `${fresh.map((method) => method ?? "every method").join(", ")} ${now.allow[i]?.url}`,
    );
  }
  for (const [i, range] of (now.open ?? []).entries()) {
    if (!(old.open ?? []).some((known) => rangeWithin(range, known)))
      list(`.open[${i}]`, `private addresses in ${range}`);
  }
  const known = injections(a, old);
  const fresh = injections(b, now);
  for (const [i, { host, header, from }] of fresh.entries()) {
    const same = known.some(
      (one) => hostWithin(host, one.host) && header === one.header && from === one.from,
    );
    if (!same) list(`.inject[${i}]`, `${from} in the header ${header} to ${host}`);
  }
  for (const [i, { host, header }] of known.entries()) {
    const replaced = fresh.some((one) => hostWithin(host, one.host) && header === one.header);
    const reached = after.some((rule) => hostWithin(rule.host, host) || hostWithin(host, rule.host));
    if (!replaced && reached) list(`.inject[${i}]`, `sets the header ${header} to ${host} itself`);
  }
  more(list, ".timeoutMs", "ms for a request", old.timeoutMs, now.timeoutMs);
  more(list, ".maxRequestBytes", "bytes sent", old.maxRequestBytes, now.maxRequestBytes);
  more(list, ".maxResponseBytes", "bytes received", old.maxResponseBytes, now.maxResponseBytes);
  more(list, ".maxRedirects", "redirects", old.maxRedirects, now.maxRedirects);
}

/** What goes where in which header, whatever name the policy gives the secret. */
function injections(policy: Policy, { inject = [] }: GrantPolicy<"http">) {
  return inject.map(({ host, header, secret, scheme }) => ({
    host,
    header: header.toLowerCase(),
    from: `${scheme === undefined ? "" : `${scheme} and `}${secretSource(policy, secret)}`,
  }));
}

type Inject = NonNullable<GrantPolicy<"http">["inject"]>[number];
function secretSource({ grants }: Policy, secret: Inject["secret"]): string {
  const source = typeof secret === "string" ? grants[secret] : secret;
  return sourceWords(source as GrantPolicy<"secret">);
}

/** Whether all that a rule allows with a method (undefined: with any) another allows. */
function ruleWithin(rule: Rule, other: Rule, method: string | undefined): boolean {
  if (method === undefined ? other.methods !== undefined : other.methods?.has(method) === false) return false;
  if (rule.protocol !== other.protocol || rule.port !== other.port) return false;
  if (!hostWithin(rule.host, other.host) || (rule.prefix && !other.prefix)) return false;
  if (rule.path === other.path && rule.prefix === other.prefix) return true;
  // What begins with a path that the other allows is allowed, too: both look for ambiguity behind their beginnings.
  const port = rule.port === "" ? "" : `:${rule.port}`;
  const url = new URL(`${rule.protocol}//${rule.host.replace(/^\*/, "x")}${port}${rule.path}`);
  return permits([other], url, method ?? "GET");
}

/** Whether every address of a range (CIDR) is in another. */
function rangeWithin(range: string, other: string): boolean {
  const [[address, bits], [otherAddress, otherBits]] = [ipaddr.parseCIDR(range), ipaddr.parseCIDR(other)];
  return (
    address.kind() === otherAddress.kind() && bits >= otherBits && address.match(otherAddress, otherBits)
  );
}

function widerSecret(old: GrantPolicy<"secret">, now: GrantPolicy<"secret">, list: Sink): void {
  if (sourceWords(old) !== sourceWords(now))
    list("", `the secret of ${sourceWords(now)} rather than of ${sourceWords(old)}`);
  for (const [i, host] of now.hosts.entries()) {
    if (!old.hosts.some((known) => hostWithin(host, known))) list(`.hosts[${i}]`, `may be sent to ${host}`);
  }
}

type Weakened = GrantPolicy<"kv" | "files" | "http" | "events" | "approve">;
const isWeakened = (grant: GrantPolicy): grant is Weakened =>
  (["kv", "files", "http", "events", "approve"] as GrantType[]).includes(grant.type);

function widerBounds(old: GrantPolicy, now: GrantPolicy, list: Sink): void {
  if (!isWeakened(old) || !isWeakened(now)) return;
  if (old.readOnly === true && now.readOnly !== true) list(".readOnly", "methods that change the world");
  beyond(list, ".only", "method", old.only, now.only);
  more(list, ".budget.calls", "calls a run", old.budget?.calls, now.budget?.calls);
  more(list, ".budget.bytes", "bytes a run", old.budget?.bytes, now.budget?.bytes);
  more(list, ".expiresMs", "ms of the run", old.expiresMs, now.expiresMs);
  const [before, after] = [old.rate, now.rate];
  // A token bucket allows no more than another if neither its burst nor its refill is larger.
  const slower =
    after !== undefined &&
    before !== undefined &&
    after.calls <= before.calls &&
    after.calls * before.perMs <= before.calls * after.perMs;
  if (before !== undefined && !slower) {
    const rate = after === undefined ? "any rate" : `${after.calls} calls in ${after.perMs} ms`;
    list(".rate", `${rate} rather than ${before.calls} calls in ${before.perMs} ms`);
  }
}

// ---- what every script has anyway -----------------------------------------------------------------------------------

type AmbientGrant = GrantPolicy<AmbientType>;
const isAmbientGrant = (grant: GrantPolicy): grant is AmbientGrant => isAmbientType(grant.type);

/** What a script has that was granted nothing. */
const UNGRANTED = {
  clock: { type: "clock", mode: "frozen" },
  random: { type: "random" },
  log: { type: "log", least: "debug" },
  timers: { type: "timers", most: 10_000 },
} as const satisfies { [T in AmbientType]: GrantPolicy<T> };

const ambientOf = <T extends AmbientType>({ grants }: Policy, type: T): GrantPolicy<T> =>
  (grants[type] ?? UNGRANTED[type]) as GrantPolicy<T>;

const LEVELS = ["debug", "log", "info", "warn", "error"];

function ambientDiff(a: Policy, b: Policy, list: Sink): void {
  const [oldClock, clock] = [ambientOf(a, "clock"), ambientOf(b, "clock")];
  const [before, after] = [precision(oldClock), precision(clock)];
  const told = [
    after.computing < before.computing ? "times its own computing more finely" : "",
    after.answers < before.answers ? "times the answers of the host more finely" : "",
    oldClock.startMs !== undefined && clock.startMs === undefined ? "learns this host's date" : "",
  ].filter((words) => words !== "");
  if (told.length > 0) list("clock", told.join(", "));
  if (ambientOf(a, "random").seed !== undefined && ambientOf(b, "random").seed === undefined) {
    list("random", "random numbers that nobody can foresee");
  }
  const [oldLog, log] = [ambientOf(a, "log"), ambientOf(b, "log")];
  if (LEVELS.indexOf(log.least) < LEVELS.indexOf(oldLog.least))
    list("log", `console from the level ${log.least} on`);
  more(list, "timers", "timers pending", ambientOf(a, "timers").most, ambientOf(b, "timers").most);
}

/** How finely, in ms, a script can time its own computing, and the host's answers; Infinity: not at all. */
function precision({ mode, stepMs }: GrantPolicy<"clock">): { computing: number; answers: number } {
  switch (mode) {
    case "virtual":
      return { computing: Infinity, answers: Infinity };
    case "frozen":
      return { computing: Infinity, answers: 1 };
    case "coarse":
      return { computing: stepMs ?? 1, answers: stepMs ?? 1 };
    case "real":
      return { computing: 1, answers: 1 };
  }
}
