/**
 * What the audit log holds: the events, and what of them is written. Pure: knows no file and no clock.
 *
 * Only what `fields` names can reach the file, whatever else an object carries: no script, no input, no value of a
 * secret. Text that a guest or a client chose is cut at its bound, with a mark that says so.
 */
import type { AuditEvent as BrokerEvent } from "../../hostapi/broker.js";
import type { AuditDetail, CapabilityErrorCode } from "../../hostapi/capability.js";
import type { EngineKind } from "../engines.js";
import type { Outcome, Stop, Usage } from "../outcome.js";

// ---- the events -----------------------------------------------------------------------------------------------------

/** A guest's wish, as the broker tells it; `callEvent` makes one. */
export interface CallEvent {
  kind: "call";
  decision: BrokerEvent["decision"];
  run: string;
  tenant: string;
  /** The name in `env`. */
  capability: string;
  /** What it is: "kv", "http", ... */
  type: string;
  method: string;
  code?: CapabilityErrorCode;
  bytes: number;
  detail: AuditDetail;
  /** What the host's handler threw. */
  error?: string;
}

export interface RunStarted {
  kind: "run";
  act: "started";
  run: string;
  tenant: string;
  engine: EngineKind;
  /** SHA-256 of the script's text, hex. */
  script: string;
  /** Id of the API key that asked for it. */
  key?: string;
  /** Id of the job that it belongs to. */
  job?: string;
}

export interface RunFinished {
  kind: "run";
  act: "finished";
  run: string;
  tenant: string;
  engine: EngineKind;
  script: string;
  status: Outcome["status"];
  stop?: Stop;
  usage: Usage;
}

/** Begun, and then not: nothing of it has run. */
export interface RunRefused {
  kind: "run";
  act: "refused";
  run: string;
  tenant: string;
  engine: EngineKind;
  script: string;
  /** Of the problem that the client was told. */
  code: string;
}

/** What a run asked a person, and the answer that counted. One that was never given is in the line of the call. */
export type ApprovalLine = {
  kind: "approval";
  run: string;
  tenant: string;
  /** Its number in the run. */
  approval: string;
} & (
  | { act: "asked"; capability: string; method: string; question: string; details: readonly string[] }
  | { act: "approved" | "refused"; by: string; note?: string | undefined }
);

export interface JobEvent {
  kind: "job";
  act: "submitted" | "started" | "finished" | "failed" | "cancelled" | "given-up" | "told";
  job: string;
  tenant: string;
  /** Id of the key or the schedule that caused it. */
  by?: string;
  /** The run that this attempt is. */
  run?: string;
  /** From 1. */
  attempt?: number;
}

interface Change {
  act: "created" | "changed" | "removed";
  /** Id of the key that asked for it, an administrator's or the tenant's own. */
  by: string;
  /** Absent: nobody's, as an administrator's key. */
  tenant?: string;
}
export interface TenantChange extends Change {
  kind: "tenant";
}
export interface KeyChange extends Change {
  kind: "key";
  /** Its id, never the key. */
  key: string;
}
export interface ScriptChange extends Change {
  kind: "script";
  name: string;
  /** The new one; of a script that is removed the latest. */
  version: number;
  /** SHA-256 of all that is stored (source, type, language, modules), hex, as the service tells it. */
  content: string;
  /** SHA-256 of the source alone, hex, as the lines of its runs have it. */
  script: string;
}
export interface PolicyChange extends Change {
  kind: "policy";
  /** The key that it belongs to; absent: the tenant's own. */
  key?: string;
  /** SHA-256 of the new policy, hex; absent when it was removed. */
  policy?: string;
}
export interface SecretChange extends Change {
  kind: "secret";
  /** Its name. Not even a hash of its value: that could be searched for. */
  secret: string;
}

export interface ScheduleChange extends Change {
  kind: "schedule";
  schedule: string;
}

export interface AuthRefusal {
  kind: "auth";
  reason: "missing" | "unknown" | "revoked" | "expired" | "forbidden";
  /** The id in the key that was shown, as far as it had one. */
  key?: string;
  /** What was asked for: the route's pattern, not the address. */
  route: string;
}

export interface ServerEvent {
  kind: "server";
  act: "started" | "stopped";
  version: string;
  pid: number;
}

/** Bytes at the end of a segment that are no whole line. */
export interface Cut {
  /** The segment's file name. */
  segment: string;
  bytes: number;
  /** SHA-256 of these bytes, hex. */
  sha256: string;
}

/** The log's own: lines that were cut short (a kill or a full disk in mid-write) and count for nothing. */
export interface Recovered {
  kind: "recovered";
  cuts: readonly Cut[];
}

export type AuditEvent =
  | CallEvent
  | RunStarted
  | RunFinished
  | RunRefused
  | ApprovalLine
  | JobEvent
  | TenantChange
  | KeyChange
  | PolicyChange
  | ScriptChange
  | SecretChange
  | ScheduleChange
  | AuthRefusal
  | ServerEvent;

export type Logged = AuditEvent | Recovered;

const KINDS: Readonly<Record<Logged["kind"], true>> = {
  call: true,
  run: true,
  approval: true,
  job: true,
  tenant: true,
  key: true,
  policy: true,
  script: true,
  secret: true,
  schedule: true,
  auth: true,
  server: true,
  recovered: true,
};
export const AUDIT_KINDS: readonly string[] = Object.keys(KINDS);

/** The broker's event as one of the log's. Never throws, whatever the error is. */
export function callEvent(event: BrokerEvent): CallEvent {
  return {
    kind: "call",
    decision: event.decision,
    run: event.runId,
    tenant: event.tenant,
    capability: event.capability,
    type: event.kind,
    method: event.method,
    ...(event.code === undefined ? {} : { code: event.code }),
    bytes: event.bytes,
    detail: event.detail,
    ...(event.error === undefined ? {} : { error: errorText(event.error) }),
  };
}

/** Name, code and message: a stack says where our files lie, and tells an auditor nothing. */
function errorText(error: unknown): string {
  try {
    if (!(error instanceof Error)) return String(error);
    const code = "code" in error ? ` [${String(error.code)}]` : "";
    return `${error.name}${code}: ${error.message}`;
  } catch {
    return "(an error that cannot be read)"; // a getter or a proxy of the handler's threw
  }
}

// ---- what of them is written ---------------------------------------------------------------------------------------------

/** Bounds of strings, characters: of names and ids, and of texts that tell something. */
const MAX_NAME = 256;
const MAX_TEXT = 1024;
const MAX_DETAIL_KEY = 64;
/** Facts in one detail. What a capability notes is a handful. */
const MAX_DETAILS = 16;
/** Cut lines that one `recovered` can tell of. */
export const MAX_CUTS = 256;

/** What an event is written with: takes values that must not be written (secrets) out of a text. */
export type Redact = (text: string) => string;

type Field = string | number | boolean | object | undefined;

/** What of an event is written, in this order. */
export function fields(event: Logged, redact: Redact): Record<string, Field> {
  const { kind } = event;
  const name = (text: string | undefined) => cutAt(text, MAX_NAME, redact);
  switch (kind) {
    case "call": {
      const { decision, code, bytes } = event;
      return {
        kind,
        decision,
        run: name(event.run),
        tenant: name(event.tenant),
        capability: name(event.capability),
        type: name(event.type),
        method: name(event.method),
        code,
        bytes: finite(bytes),
        detail: detailOf(event.detail, redact),
        error: cutAt(event.error, MAX_TEXT, redact),
      };
    }
    case "run": {
      const about = {
        kind,
        act: event.act,
        run: name(event.run),
        tenant: name(event.tenant),
        engine: event.engine,
        script: name(event.script),
      };
      if (event.act === "started") return { ...about, key: name(event.key), job: name(event.job) };
      if (event.act === "refused") return { ...about, code: name(event.code) };
      return {
        ...about,
        status: event.status,
        stop: event.stop && stopOf(event.stop, redact),
        usage: usageOf(event.usage),
      };
    }
    case "approval": {
      const { act } = event;
      const about = { kind, act, run: name(event.run), tenant: name(event.tenant), approval: name(event.approval) }; // prettier-ignore
      if (act !== "asked") return { ...about, by: name(event.by), note: cutAt(event.note, MAX_TEXT, redact) };
      return {
        ...about,
        capability: name(event.capability),
        method: name(event.method),
        question: cutAt(event.question, MAX_TEXT, redact),
        details: event.details.map((line) => cutAt(line, MAX_TEXT, redact)),
      };
    }
    case "job":
      return {
        kind,
        act: event.act,
        job: name(event.job),
        tenant: name(event.tenant),
        by: name(event.by),
        run: name(event.run),
        attempt: event.attempt,
      };
    case "tenant":
      return change(event, name);
    case "key":
      return { ...change(event, name), key: name(event.key) };
    case "policy":
      return { ...change(event, name), key: name(event.key), policy: name(event.policy) };
    case "script":
      return {
        ...change(event, name),
        name: name(event.name),
        version: event.version,
        content: name(event.content),
        script: name(event.script),
      };
    case "secret":
      return { ...change(event, name), secret: name(event.secret) };
    case "schedule":
      return { ...change(event, name), schedule: name(event.schedule) };
    case "auth":
      return { kind, reason: event.reason, key: name(event.key), route: name(event.route) };
    case "server":
      return { kind, act: event.act, version: name(event.version), pid: event.pid };
    case "recovered":
      return { kind, cuts: event.cuts.map(({ segment, bytes, sha256 }) => ({ segment, bytes, sha256 })) };
  }
}

const change = (
  {
    kind,
    act,
    by,
    tenant,
  }: TenantChange | KeyChange | PolicyChange | ScriptChange | SecretChange | ScheduleChange,
  name: (text: string | undefined) => Field,
) => ({ kind, act, by: name(by), tenant: name(tenant) });

function cutAt(text: string | undefined, most: number, redact: Redact): string | undefined {
  if (text === undefined) return undefined;
  const whole = redact(text); // before it is cut: half a secret is not found
  return whole.length <= most ? whole : `${whole.slice(0, most)}... (${whole.length} characters)`;
}

/** JSON writes a number that it lacks as null, which would hide what it was. */
const finite = (value: number): number | string => (Number.isFinite(value) ? value : String(value));

function detailOf(detail: AuditDetail, redact: Redact): object {
  const facts = Object.entries(detail);
  const shown = new Map<string, Field>();
  for (const [key, value] of facts.slice(0, MAX_DETAILS)) {
    // "key " stands apart from "__proto__" and from no key that anybody writes.
    const said = key === "__proto__" ? "__proto__ " : key;
    shown.set(cutAt(said, MAX_DETAIL_KEY, redact) ?? "", factOf(value, redact));
  }
  if (facts.length > MAX_DETAILS) shown.set("(left out)", facts.length - MAX_DETAILS);
  return Object.fromEntries(shown);
}

/** A capability of somebody's own may note what the types forbid; it is named, not written. */
function factOf(value: unknown, redact: Redact): Field {
  if (typeof value === "string") return cutAt(value, MAX_TEXT, redact);
  if (typeof value === "number") return finite(value);
  return typeof value === "boolean" ? value : `(${typeof value})`;
}

function stopOf({ reason, layer, limit, measured, syscall, detail }: Stop, redact: Redact): object {
  return {
    reason,
    layer,
    limit,
    measured,
    syscall: cutAt(syscall, MAX_NAME, redact),
    detail: cutAt(detail, MAX_TEXT, redact),
  };
}

function usageOf({ wallMs, cpuMs, peakMemoryBytes, hostCalls, bytesIn, bytesOut }: Usage): object {
  return { wallMs, cpuMs, peakMemoryBytes, hostCalls, bytesIn, bytesOut };
}
