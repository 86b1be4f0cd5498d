/**
 * Rules of an allow-list as a policy sees them: which addresses a pattern means, and whether one means no more than
 * another. `https://*.example.com:8443/v1/*`: a scheme, a host or every name below one, a port, and a path, which is
 * exact or, with `*` at its end, a beginning.
 */

export interface UrlRule {
  readonly scheme: "https" | "http";
  /** In lower case; "*.example.com" for every name below. */
  readonly host: string;
  readonly port: number;
  /** Without the `*`. */
  readonly path: string;
  readonly prefix: boolean;
}

const PATTERN =
  /^(https?):\/\/((?:\*\.)?[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(\d{1,5}))?(\/[^?#*\s\\]*)(\*)?$/;

/** What keeps a pattern from meaning something: words, or undefined. */
export function urlRuleProblem(pattern: string): string | undefined {
  const match = PATTERN.exec(pattern);
  if (match === null) {
    if (/^https?:\/\/[^/]+$/.test(pattern)) return `must say which paths: "${pattern}/*" for all of them`;
    return 'must be a pattern as "https://api.example.com/v1/*": http or https, a host in lower case (or "*.example.com"), a path that may end in *';
  }
  const [, , host = "", port, path = ""] = match;
  if (port !== undefined && (Number(port) < 1 || Number(port) > 65535))
    return "must have a port from 1 to 65535";
  if (host.includes("..")) return "must have a host name without empty labels";
  // A request's path has been through the URL parser, so a pattern that has not would never match.
  const url = new URL(`http://h${path}`);
  if (url.pathname !== path) return `could never match: write the path as requests have it, ${url.pathname}`;
  return undefined;
}

/** Of a pattern without a problem. */
export function parseUrlRule(pattern: string): UrlRule {
  const [, scheme = "https", host = "", port, path = "/", star] = PATTERN.exec(pattern) ?? [];
  const fallback = scheme === "https" ? 443 : 80;
  return {
    scheme: scheme as UrlRule["scheme"],
    host,
    port: port === undefined ? fallback : Number(port),
    path,
    prefix: star !== undefined,
  };
}

/** Whether every host that `host` means is one that `pattern` means. */
export function hostWithin(host: string, pattern: string): boolean {
  return host === pattern || (pattern.startsWith("*.") && host.endsWith(pattern.slice(1)));
}

/** Whether every address that `rule` means is one that `other` means. */
export function ruleWithin(rule: UrlRule, other: UrlRule): boolean {
  if (rule.scheme !== other.scheme || rule.port !== other.port || !hostWithin(rule.host, other.host))
    return false;
  return other.prefix ? rule.path.startsWith(other.path) : !rule.prefix && rule.path === other.path;
}
