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
  type ArgsOf,
  type AuditDetail,
  type Call,
  type CapabilityErrorCode,
  type CapabilityOptions,
  type Caretaker,
  type Effect,
  type Guard,
  type GuestFunction,
  type Method,
  type Params,
  type RunContext,
} from "../hostapi/capability.js";
export {
  clock,
  log,
  random,
  timers,
  type Ambient,
  type ClockMode,
  type ClockSetting,
  type LogLevel,
} from "../hostapi/ambient.js";
export {
  approve,
  withApproval,
  type Approval,
  type ApprovalOptions,
  type ApprovalQuestion,
  type Approver,
} from "../hostapi/approve.js";
export { events, type EventsOptions, type RunEvent } from "../hostapi/events.js";
export {
  http,
  narrowHttp,
  type HttpAnswer,
  type HttpOptions,
  type HttpRule,
  type Injection,
  type Lookup,
  type LookupAddress,
} from "../hostapi/http.js";
export { kv, type KvCapability, type KvOptions } from "../hostapi/kv.js";
export {
  memoryStore,
  type KvConditions,
  type KvEntry,
  type KvRange,
  type KvSetResult,
  type KvStore,
  type KvUsage,
} from "../hostapi/kv-store.js";
export { sqliteStore, StoreError, type SqliteStore, type StoreErrorCode } from "../hostapi/kv-sqlite.js";
export { Secret, secret, type SecretOptions } from "../hostapi/secret.js";
export type { FilesCapability, FilesOptions };

/**
 * A directory, opened now: the script reaches what is below it and nothing else (openat2(2), RESOLVE_BENEATH). Throws
 * TypeError naming the option that is wrong. The caller owns it and closes it.
 */
export const files = (options: FilesOptions): FilesCapability => filesWith(beneath())(options);
