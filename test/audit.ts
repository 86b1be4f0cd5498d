/** Audit logs for tests: directories of the test's own, events of every kind, and lines changed with their hashes made right. */
import { createHash } from "node:crypto";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import type { AuditEvent, CallEvent } from "#server/service/audit-events";
import { AuditLog, type AuditOptions } from "#server/service/audit-log";

/** A place for a log, which is not there yet. */
export function place(): { dir: string; file: (name: string) => string } & Disposable {
  const parent = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-test-"));
  const dir = path.join(parent, "audit");
  return {
    dir,
    file: (name) => path.join(dir, name),
    [Symbol.dispose]: () => fs.rmSync(parent, { recursive: true }),
  };
}

export const openLog = (dir: string, options: Partial<AuditOptions> = {}): AuditLog =>
  AuditLog.open({ dir, node: "test", now: () => Date.UTC(2026, 0, 2), ...options });

export const call = (more: Partial<CallEvent> = {}): CallEvent => ({
  kind: "call",
  decision: "allowed",
  run: "r1",
  tenant: "a",
  capability: "kv",
  type: "kv",
  method: "get",
  bytes: 12,
  detail: { key: "k" },
  ...more,
});

const usage = { wallMs: 1.5, cpuMs: 1, peakMemoryBytes: 4096, hostCalls: 1, bytesIn: 10, bytesOut: 20 };
const run = { run: "r1", tenant: "a", engine: "quickjs", script: "ab".repeat(32) } as const;
const by = { by: "admin-1", tenant: "a" };

export const EVERY_KIND: readonly AuditEvent[] = [
  { kind: "server", act: "started", version: "0.1.0", pid: 7 },
  { kind: "tenant", act: "created", ...by },
  { kind: "key", act: "created", ...by, key: "k1" },
  { kind: "policy", act: "changed", ...by, key: "k1", policy: "cd".repeat(32) },
  {
    kind: "script",
    act: "created",
    ...by,
    name: "greet",
    version: 1,
    content: "ef".repeat(32),
    script: "ab".repeat(32),
  },
  { kind: "secret", act: "changed", ...by, secret: "token" },
  { kind: "auth", reason: "unknown", key: "k9", route: "POST /v1/runs" },
  { kind: "job", act: "submitted", job: "j1", tenant: "b", by: "k1", attempt: 1 },
  { kind: "run", act: "started", ...run, key: "k1" },
  call(),
  call({ decision: "failed", code: "failed", error: "Error: no" }),
  {
    kind: "run",
    act: "finished",
    ...run,
    status: "stopped",
    stop: { reason: "syscall", layer: "seccomp", syscall: "openat" },
    usage,
  },
  {
    kind: "approval",
    act: "asked",
    run: "r1",
    tenant: "a",
    approval: "1",
    capability: "approve",
    method: "ask",
    question: "?",
    details: ["x"],
  },
  { kind: "approval", act: "approved", run: "r1", tenant: "a", approval: "1", by: "k1", note: "y" },
  { kind: "server", act: "stopped", version: "0.1.0", pid: 7 },
];

/** The lines of a segment, without their line feeds. */
export const linesIn = (file: string): string[] => fs.readFileSync(file, "utf8").trimEnd().split("\n");

export const recordsIn = (dir: string): Record<string, unknown>[] =>
  fs
    .readdirSync(dir)
    .sort()
    .flatMap((name) => linesIn(path.join(dir, name)))
    .map((line): Record<string, unknown> => JSON.parse(line));

/** A line with other bytes before its hash, and the hash that belongs to these. */
export function forged(line: string, change: (record: string) => string): string {
  const record = change(`${line.slice(0, line.indexOf(',"hash":"'))}}`);
  const prev = /"prev":"([^"]*)"/.exec(record)?.[1] ?? "";
  const hash = createHash("sha256").update(prev).update(record).digest("hex");
  return `${record.slice(0, -1)},"hash":"${hash}"}`;
}
