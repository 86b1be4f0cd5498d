/** Where a tenant's callbacks may go, and the gate that they go through. */
import type { Capability } from "../../../hostapi/capability.js";
import { http, httpByConsent } from "../../../hostapi/http.js";
import { Addresses, parseRules, permits } from "../../../hostapi/http-rules.js";
import type { TenantSettings } from "../schemas.js";

type Rules = TenantSettings["callbacks"];

/** For a server to answer, ms. */
const TIMEOUT_MS = 15_000;
/** An answer's body is read and dropped; one that has more counts as none. Bytes. */
export const MAX_ANSWER = 256 * 1024;

/** What is wrong with a tenant's rules for callbacks: field and message, if anything. */
export function callbackRulesProblem({ allow, open }: Rules): { field: string; message: string } | undefined {
  try {
    const addresses = new Addresses("callbacks.open", open);
    if (allow !== undefined) parseRules("callbacks.allow", allow, addresses);
    return undefined;
  } catch (error) {
    const { message } = error as Error;
    const field = message.startsWith("callbacks.open") ? "callbacks.open" : "callbacks.allow";
    return { field, message: message.slice(field.length).replace(/^:? /, "") };
  }
}

export const permitted = ({ allow }: Rules, url: URL): boolean =>
  allow === undefined
    ? url.protocol === "https:" && url.username === "" && url.password === ""
    : permits(parseRules("callbacks.allow", allow), url, "POST");

export function capabilityFor({ allow, open }: Rules): Capability {
  const options = { open, timeoutMs: TIMEOUT_MS, maxRequestBytes: 2 ** 30, maxResponseBytes: MAX_ANSWER, maxRedirects: 0 }; // prettier-ignore
  return allow === undefined
    ? httpByConsent((url) => permitted({ open }, url), options)
    : http({ ...options, allow });
}
