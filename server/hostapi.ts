/**
 * `doublehull/hostapi`: what a run can be granted, and how to define more of it. This is the place where a capability
 * that needs the kernel is handed it: hostapi/ itself knows none.
 */
import { filesWith, type FilesCapability, type FilesOptions } from "../hostapi/files.js";
import { beneath } from "../osjail/beneath.js";

export {
  bytes,
  callback,
  Capability,
  capability,
  CAPABILITY_ERRORS,
  CapabilityError,
  caretaker,
  GuestError,
  hostFunction,
  method,
  type AuditDetail,
  type Call,
  type CapabilityErrorCode,
  type Caretaker,
  type Guard,
  type GuestFunction,
  type Method,
  type RunContext,
} from "../hostapi/capability.js";
export { clock, log, random, timers, type Ambient, type ClockMode } from "../hostapi/ambient.js";
export { approve, withApproval, type Approver, type ApprovalQuestion } from "../hostapi/approve.js";
export { events, type EventsOptions, type RunEvent } from "../hostapi/events.js";
export { http, narrowHttp, type HttpOptions, type HttpRule } from "../hostapi/http.js";
export { kv, type KvOptions } from "../hostapi/kv.js";
export { memoryStore, type KvStore } from "../hostapi/kv-store.js";
export { sqliteStore, type SqliteStore } from "../hostapi/kv-sqlite.js";
export { Secret, secret } from "../hostapi/secret.js";
export type { FilesOptions };

/**
 * A directory, opened now: the script reaches what is below it and nothing else (openat2(2), RESOLVE_BENEATH). Throws
 * TypeError naming the option that is wrong. The caller owns it and closes it.
 */
export const files = (options: FilesOptions): FilesCapability => filesWith(beneath())(options);
