/** doublehull: untrusted JavaScript behind two hulls. */
export { Sandbox } from "./sandbox.js";
export type { Grant, ReplayOptions, RunOptions, SandboxOptions } from "./options.js";
export type { AuditEvent } from "../hostapi/broker.js";
export { parseRecording, type Divergence, type Recording, type Replay } from "./recording.js";
export { SandboxError, SANDBOX_ERRORS, type SandboxErrorCode } from "./errors.js";
export {
  describeStop,
  RunCancelled,
  RunError,
  RunStopped,
  ScriptThrew,
  unwrap,
  type Layers,
  type LedgerEntry,
  type LogEntry,
  type Outcome,
  type ScriptError,
  type Stop,
  type StopLayer,
  type StopReason,
  type Usage,
} from "./outcome.js";
export { DEFAULT_LIMITS, FIXED_LIMITS, LIMITS, type LimitName, type Limits } from "./limits.js";
export { parsePolicy, PolicyError } from "./policy.js";
export { policyJsonSchema, type Policy } from "./policy-schema.js";
export { grantsOf, type Granted, type GrantPowers } from "./grants.js";
