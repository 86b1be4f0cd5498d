/**
 * The service: opens what it stands on (a directory of its own with the database, the audit log and the sealing key; a
 * sandbox), starts the two applications, and ends all of it in order. Authority comes in as arguments; only the command
 * line (server/serve.ts) knows the process.
 */
import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import pino, { type DestinationStream } from "pino";
import { sqliteStore } from "../../hostapi/kv-sqlite.js";
import { StoreError } from "../../hostapi/sqlite.js";
import type { ScriptEngine } from "../engines.js";
import { SandboxError } from "../errors.js";
import { files } from "../hostapi.js";
import { completeLimits, type Limits, type PartialLimits } from "../limits.js";
import { Sandbox } from "../sandbox.js";
import { adminRoutes } from "./admin-routes.js";
import { createApp, type ServiceParts } from "./app.js";
import { AuditError } from "./audit-directory.js";
import { AuditLog } from "./audit-log.js";
import { openDatabase } from "./database.js";
import { Idempotency } from "./idempotency.js";
import { Metrics } from "./metrics.js";
import { Runner } from "./runner.js";
import { Streams } from "./streams.js";
import { tenantRoutes } from "./tenant-routes.js";
import { Tenants } from "./tenants.js";
import { tenantSettings } from "./schemas.js";
import { UsageMeter } from "./usage.js";

export interface ServiceOptions {
  version: string;
  /** Directory of the service's own, absolute; made if it is not there, for its user alone. */
  dataDir: string;
  host: string;
  /** 0: any that is free. */
  port: number;
  adminHost: string;
  adminPort: number;
  /** The most that a tenant's policy may give. */
  limits: PartialLimits;
  maxConcurrent?: number;
  maxQueue: number;
  parked: number;
  requireCgroup: boolean;
  /** How long runs may go on when the service ends, ms. */
  graceMs: number;
  logLevel: "debug" | "info" | "warn" | "error" | "silent";
  /** Where the log goes; the standard error of the process, if absent. */
  logTo?: DestinationStream;
  now: () => number;
}

export interface Service {
  address: string;
  adminAddress: string;
  /** Keys that were made now, at the first start, and are told nowhere else. */
  made: { tenant: string; key: string; adminKey: string } | undefined;
  /** Lets what is under way end, then ends everything. Idempotent. */
  close(): Promise<void>;
}

/** Bodies hold a source and an input, each with its own limit, and JSON's escapes. */
const BODY_BYTES = 16 * 1024 * 1024;
const SEALING_BYTES = 32;

/** Rejects with SandboxError (`host-cannot`, `bad-option`) and a remedy; nothing is left open then. */
export async function startService(options: ServiceOptions): Promise<Service> {
  const closers: (() => void | Promise<void>)[] = [];
  const closeAll = async () => {
    // One that fails keeps no other from closing.
    const failures: unknown[] = [];
    for (let closer = closers.pop(); closer !== undefined; closer = closers.pop()) {
      try {
        await closer();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  };
  try {
    return await start(options, closers, closeAll);
  } catch (error) {
    await closeAll().catch(() => {}); // what went wrong first is what is told
    throw told(error);
  }
}

async function start(
  options: ServiceOptions,
  closers: (() => void | Promise<void>)[],
  closeAll: () => Promise<void>,
): Promise<Service> {
  const { version, dataDir, now, graceMs } = options;
  const inData = (name: string) => path.join(dataDir, name);
  ownDirectory(dataDir);
  // The audit log's lock is the service's: a second service on the same directory ends here.
  const audit = AuditLog.open({ dir: inData("audit"), node: "main", now });
  closers.push(() => audit.close());
  audit.append({ kind: "server", act: "started", version, pid: process.pid });
  closers.push(() => void audit.append({ kind: "server", act: "stopped", version, pid: process.pid }));
  const db = await openDatabase(`sqlite:${inData("service.db")}`);
  closers.push(() => db.close());
  const store = sqliteStore(inData("kv.db"));
  closers.push(() => store.close());

  const limits = completeLimits(options.limits);
  const logger = pino({ level: options.logLevel, base: null }, options.logTo ?? pino.destination({ fd: 2, sync: true })); // prettier-ignore
  const tenants = new Tenants(db, { store, limits, sealing: sealingKey(inData("sealing.key")), now });
  const usage = new UsageMeter(db, {
    now,
    onFailure: (err) => logger.error({ err }, "usage could not be written"),
  });
  closers.push(() => usage.close());
  const idempotency = new Idempotency(db, { now, onFailure: (err) => logger.error({ err }, "old answers could not be removed") }); // prettier-ignore
  closers.push(() => idempotency.close());

  const sandboxes = new Map<ScriptEngine, Promise<Sandbox>>();
  const sandbox = (engine: ScriptEngine): Promise<Sandbox> => {
    let made = sandboxes.get(engine);
    if (made === undefined) {
      const { parked, maxQueue, maxConcurrent, requireCgroup } = options;
      made = Sandbox.create({ engine, limits, parked, maxQueue, requireCgroup, ...(maxConcurrent === undefined ? {} : { maxConcurrent }) }); // prettier-ignore
      made.catch(() => sandboxes.delete(engine)); // told to who asked; the next one tries again
      sandboxes.set(engine, made);
    }
    return made;
  };
  closers.push(async () => {
    const all = await Promise.allSettled(sandboxes.values());
    await Promise.all(all.flatMap((made) => (made.status === "fulfilled" ? [made.value.close()] : [])));
  });
  await sandbox("quickjs");
  const metrics = new Metrics(async () => {
    const sum = { running: 0, waiting: 0, parked: 0 };
    const all = await Promise.allSettled(sandboxes.values());
    for (const made of all) {
      if (made.status === "rejected") continue;
      for (const pool of await made.value.state()) {
        sum.running += pool.running;
        sum.waiting += pool.waiting;
        sum.parked += pool.parked;
      }
    }
    return sum;
  });
  const runner = new Runner({
    sandbox,
    tenants,
    usage,
    audit,
    metrics,
    store,
    files: () => Promise.resolve(files),
  });
  const parts: ServiceParts = {
    version,
    bodyBytes: BODY_BYTES,
    tenants,
    runner,
    streams: new Streams({ now }),
    idempotency,
    usage,
    audit,
    metrics,
    logger,
    now,
    unready: () => (runner.draining ? "shutting down" : audit.failure === undefined ? undefined : "the audit log cannot be written"), // prettier-ignore
  };

  const app = createApp("tenant", parts);
  const admin = createApp("admin", parts);
  // Routes come after the plugins: their hooks, the description's too, then see them.
  app.after(() => tenantRoutes(app, parts));
  admin.after(() => adminRoutes(admin, parts));
  closers.push(() => closed(admin));
  closers.push(async () => {
    await runner.drain(graceMs);
    await closed(app);
  });
  const address = await listen(app, options.host, options.port);
  const adminAddress = await listen(admin, options.adminHost, options.adminPort);
  // When nothing can fail any more: keys that were made and not told would be lost, and the directory with them.
  const made = (await tenants.hasAdmin()) ? undefined : await firstKeys(tenants, audit, limits);
  let closing: Promise<void> | undefined;
  return { address, adminAddress, made, close: () => (closing ??= closeAll()) };
}

async function listen(app: ReturnType<typeof createApp>, host: string, port: number): Promise<string> {
  try {
    return await app.listen({ host, port });
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== "EADDRINUSE" && code !== "EADDRNOTAVAIL" && code !== "EACCES" && code !== "ENOTFOUND")
      throw cause;
    const remedy = "Choose another with --listen or --admin-listen.";
    throw new SandboxError("host-cannot", `cannot listen on ${host}:${port} (${code})`, { cause, remedy });
  }
}

/** For answers to leave when the service ends, ms. */
const LAST_ANSWERS_MS = 2000;

/** A client that does not read its answer, or sends its body for ever, is waited for no longer than that. */
async function closed(app: ReturnType<typeof createApp>): Promise<void> {
  const timer = setTimeout(() => app.server.closeAllConnections(), LAST_ANSWERS_MS);
  try {
    await app.close();
  } finally {
    clearTimeout(timer);
  }
}

/** Of the first tenant, as far as the service has as much. */
const FIRST_WALL_MS = 5000;

/** The first start's tenant, which may do all that needs no authority, and the administrator's key. */
async function firstKeys(tenants: Tenants, audit: AuditLog, most: Limits) {
  const tenant = "default";
  const by = "first-start";
  const limits = { wallMs: Math.min(FIRST_WALL_MS, most.wallMs), cpuMs: Math.min(FIRST_WALL_MS, most.cpuMs) };
  const settings = tenantSettings.parse({ policy: { limits, grants: { kv: true, events: true } } });
  audit.append({ kind: "tenant", act: "created", by, tenant });
  await tenants.put(tenant, settings);
  const { key } = await tenants.addKey(tenant, { name: "first key" }, (id) =>
    audit.append({ kind: "key", act: "created", by, tenant, key: id }),
  );
  const { key: adminKey } = await tenants.addKey(null, { name: "first administrator" }, (id) =>
    audit.append({ kind: "key", act: "created", by, key: id }),
  );
  return { tenant, key, adminKey };
}

function ownDirectory(dir: string): void {
  fs.mkdirSync(dir, { recursive: true, mode: 0o700 });
  const { mode, uid } = fs.statSync(dir);
  if ((mode & 0o077) === 0 && uid === process.geteuid?.()) return;
  const remedy = `Give it to the service's user alone: chown and chmod 700, or name another with --data.`;
  throw new SandboxError("host-cannot", `the directory ${dir} is open to other users`, {
    field: "data",
    remedy,
  });
}

/** Made at the first start. Who copies the database without it has no secret. */
function sealingKey(file: string): Buffer {
  try {
    fs.writeFileSync(file, randomBytes(SEALING_BYTES), { flag: "wx", mode: 0o600, flush: true });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
  const key = fs.readFileSync(file);
  if (key.length === SEALING_BYTES) return key;
  const remedy = "Put the key back from a copy, or remove the file and store all secrets anew.";
  throw new SandboxError("host-cannot", `${file} is no sealing key: it must have ${SEALING_BYTES} bytes`, {
    remedy,
  });
}

function told(error: unknown): unknown {
  if (error instanceof AuditError || error instanceof StoreError)
    return new SandboxError("host-cannot", error.message, { cause: error, remedy: error.remedy });
  return error;
}
