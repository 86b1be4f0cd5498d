/**
 * The service: opens what it stands on (a directory of its own with the database, the audit log and the sealing key; a
 * sandbox), starts the two applications, and ends all of it in order. Authority comes in as arguments; only the command
 * line (server/serve.ts) knows the process.
 */
import { randomUUID } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import pino, { type DestinationStream } from "pino";
import { sqliteStore } from "../../hostapi/kv-sqlite.js";
import type { SpacesStore } from "../../hostapi/kv-store.js";
import { StoreError } from "../../hostapi/sqlite.js";
import type { ScriptEngine } from "../engines.js";
import { SandboxError } from "../errors.js";
import { files } from "../hostapi.js";
import { completeLimits, type Limits, type PartialLimits } from "../limits.js";
import { asSandboxError } from "../pool.js";
import { Sandbox, usualConcurrent } from "../sandbox.js";
import { adminRoutes } from "./admin-routes.js";
import { createApp, type ServiceParts } from "./app.js";
import { AuditError } from "./audit-directory.js";
import { AuditLog } from "./audit-log.js";
import { openDatabase, type Database } from "./database.js";
import { Idempotency } from "./idempotency.js";
import { openQueue } from "./jobs/bullmq.js";
import { Callbacks } from "./jobs/callbacks.js";
import { Jobs } from "./jobs/jobs.js";
import { LocalQueue } from "./jobs/queue.js";
import { jobRoutes } from "./jobs/routes.js";
import { Schedules } from "./jobs/schedules.js";
import { JobTable } from "./jobs/table.js";
import { postgresStore } from "./kv-postgres.js";
import { Metrics } from "./metrics.js";
import { PLAYGROUND, playgroundRoutes } from "./playground.js";
import { Runner } from "./runner.js";
import { sealingKey } from "./sealing.js";
import { Streams } from "./streams.js";
import { tenantRoutes } from "./tenant-routes.js";
import { Tenants } from "./tenants.js";
import { tenantSettings } from "./schemas.js";
import { UsageMeter } from "./usage.js";

export interface ServiceOptions {
  version: string;
  /** Directory of the service's own, absolute; made if it is not there, for its user alone. */
  dataDir: string;
  /** `postgres://...`, which several nodes may share; files in the data directory, if absent. */
  store?: string;
  /** The file that secrets are sealed with, the same for all nodes of a store; in the data directory, if absent. */
  sealingKey?: string;
  /** Which node this is, for the audit log: 1 to 64 letters, digits, dots, colons, hyphens or underscores. */
  node: string;
  host: string;
  /** 0: any that is free. */
  port: number;
  /** How far the event loop may be behind before requests are refused, ms; 2000 if absent. */
  busyMs?: number;
  /** Origins whose pages may ask the tenants' address: "https://app.example.com". */
  corsOrigins?: readonly string[];
  adminHost: string;
  adminPort: number;
  /** The most that a tenant's policy may give. */
  limits: PartialLimits;
  maxConcurrent?: number;
  maxQueue: number;
  /** `redis://` or `postgres://`: hands jobs out to several nodes. Within this process, if absent. */
  queue?: string;
  parked: number;
  requireCgroup: boolean;
  /** How long runs may go on when the service ends, ms. */
  graceMs: number;
  logLevel: "debug" | "info" | "warn" | "error" | "silent";
  /** Where the log goes; the standard error of the process, if absent. */
  logTo?: DestinationStream;
  now: () => number;
  /** Where the playground's pages are, absolute; those that were built with this package, if absent. */
  playground?: string;
}

export interface Service {
  address: string;
  adminAddress: string;
  /** Keys that were made now, at the first start, and are told nowhere else. */
  made: { tenant: string; key: string; adminKey: string } | undefined;
  /** Lets what is under way end, then ends everything. Idempotent. */
  close(): Promise<void>;
}

/** So far behind nobody is served well; who comes later is better off with another node. */
const BUSY_MS = 2000;
/** Bodies hold a source and an input, each with its own limit, and JSON's escapes. */
const BODY_BYTES = 16 * 1024 * 1024;

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
  const audit = AuditLog.open({ dir: inData("audit"), node: options.node, now });
  closers.push(() => audit.close());
  audit.append({ kind: "server", act: "started", version, pid: process.pid });
  closers.push(() => void audit.append({ kind: "server", act: "stopped", version, pid: process.pid }));
  const { db, store, shared } = await openStores(options, closers);

  const limits = completeLimits(options.limits);
  const logger = pino({ level: options.logLevel, base: null }, options.logTo ?? pino.destination({ fd: 2, sync: true })); // prettier-ignore
  const sealing = await sealingKey(db, options.sealingKey ?? inData("sealing.key"));
  const tenants = new Tenants(db, { store, limits, sealing, now });
  const unwritten = (err: unknown) => logger.error({ err }, "usage could not be written");
  const usage = new UsageMeter(db, { now, onFailure: unwritten });
  closers.push(() => usage.close().catch(unwritten)); // the audit log has the runs
  const idempotency = new Idempotency(db, { shared, now, onFailure: (err) => logger.error({ err }, "what an Idempotency-Key needs could not be written") }); // prettier-ignore
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
  const table = new JobTable(db, now);
  const metrics = new Metrics(
    async () => {
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
    },
    () => table.counts(),
  );
  const runner = new Runner({
    sandbox,
    tenants,
    usage,
    audit,
    metrics,
    store,
    files: () => Promise.resolve(files),
    onUnwritten: (err) => logger.error({ err }, "the end of a run could not be written to the audit log"),
  });
  const callbacks = new Callbacks({ db, table, tenants, audit, metrics, logger, now });
  const queue = options.queue === undefined ? new LocalQueue() : await openQueue(options.queue, logger);
  closers.push(() => queue.stop());
  const jobs = new Jobs({
    db,
    table,
    tenants,
    runner,
    audit,
    metrics,
    queue,
    callbacks,
    logger,
    now,
    node: randomUUID(),
    nodeName: options.node,
    alone: !shared,
    concurrency: jobsAtOnce(options.maxConcurrent ?? usualConcurrent()),
  });
  const schedules = new Schedules({ db, tenants, table, jobs, audit, logger, now });
  const parts: ServiceParts = {
    version,
    bodyBytes: BODY_BYTES,
    busyMs: options.busyMs ?? BUSY_MS,
    corsOrigins: options.corsOrigins ?? [],
    tenants,
    runner,
    streams: new Streams({ now }),
    idempotency,
    db,
    table,
    jobs,
    schedules,
    usage,
    audit,
    metrics,
    logger,
    now,
    unready: () =>
      runner.draining
        ? "shutting down"
        : audit.failure !== undefined
          ? "the audit log cannot be written"
          : db.failure?.message,
  };

  const app = createApp("tenant", parts);
  const admin = createApp("admin", parts);
  // Routes come after the plugins: their hooks, the description's too, then see them.
  app.after(() => {
    tenantRoutes(app, parts);
    jobRoutes(app, parts);
    playgroundRoutes(app, options.playground ?? PLAYGROUND);
  });
  admin.after(() => adminRoutes(admin, parts));
  closers.push(() => closed(admin));
  closers.push(async () => {
    await Promise.all([runner.drain(graceMs), schedules.stop(), jobs.stop()]);
    await callbacks.stop();
    await closed(app);
  });
  const address = await listen(app, options.host, options.port);
  const adminAddress = await listen(admin, options.adminHost, options.adminPort);
  await jobs.start();
  schedules.start();
  callbacks.start();
  // When nothing can fail any more: keys that were made and not told would be lost, and the directory with them.
  const made = await firstKeys(tenants, audit, limits);
  let closing: Promise<void> | undefined;
  return { address, adminAddress, made, close: () => (closing ??= closeAll()) };
}

/** Half of what runs at once, and one, for no tenant alone gets all of these; whoever waits for an answer finds a place beside them. */
const jobsAtOnce = (runs: number): number => Math.max(1, Math.min(Math.floor(runs / 2) + 1, runs - 1));

/** The database of the service and the tenants' key-value store; `closers` get what closes them. */
async function openStores(
  { dataDir, store: url }: ServiceOptions,
  closers: (() => void | Promise<void>)[],
): Promise<{ db: Database; store: SpacesStore; shared: boolean }> {
  if (url !== undefined && !/^postgres(?:ql)?:\/\//.test(url)) {
    const remedy = `Give --store postgres://USER:PASSWORD@HOST/DATABASE, or leave it out: then it is a file in the data directory.`;
    throw new SandboxError("bad-option", "store must be a URL that begins with postgres://", { field: "store", remedy }); // prettier-ignore
  }
  const db = await openDatabase(url ?? `sqlite:${path.join(dataDir, "service.db")}`);
  closers.push(() => db.close());
  if (url !== undefined) return { db, store: postgresStore(db), shared: true };
  const store = sqliteStore(path.join(dataDir, "kv.db"));
  closers.push(() => store.close());
  return { db, store, shared: false };
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

/** Of the first tenant, as far as the service has as much: to compute, and to wait for a person who is asked. */
const FIRST_CPU_MS = 5000;
const FIRST_WALL_MS = 60_000;
/** Nobody reads and answers a question in less. */
const LEAST_ASK_MS = 5000;

/** The first start's tenant, which may do all that needs no authority but its own people's, and the administrator's key. */
async function firstKeys(tenants: Tenants, audit: AuditLog, most: Limits) {
  const tenant = "default";
  const by = "first-start";
  const limits = { wallMs: Math.min(FIRST_WALL_MS, most.wallMs), cpuMs: Math.min(FIRST_CPU_MS, most.cpuMs) };
  const asks = most.wallMs >= LEAST_ASK_MS ? { approve: true } : {};
  const settings = tenantSettings.parse({ policy: { limits, grants: { kv: true, events: true, ...asks } } });
  const made = await tenants.makeFirst(
    { id: tenant, settings },
    {
      tenant: () => audit.append({ kind: "tenant", act: "created", by, tenant }),
      key: (key, of) =>
        audit.append({ kind: "key", act: "created", by, key, ...(of === null ? {} : { tenant: of }) }),
    },
  );
  return made === undefined ? undefined : { tenant, ...made };
}

/** One after the other: mkdir(2) in /proc answers ENOENT, on which Node's recursive one tries for ever. */
function makeDirectory(dir: string): void {
  const missing: string[] = [];
  for (let at = dir; !fs.existsSync(at); at = path.dirname(at)) missing.unshift(at);
  for (const at of missing) fs.mkdirSync(at, { mode: 0o700 });
}

function ownDirectory(dir: string): void {
  try {
    makeDirectory(dir);
  } catch (cause) {
    const { code = "" } = cause as NodeJS.ErrnoException;
    const remedy = "Name one that the service's user may make or has, with --data.";
    throw new SandboxError("host-cannot", `the directory ${dir} cannot be made (${code})`, { field: "data", remedy, cause }); // prettier-ignore
  }
  const { mode, uid } = fs.statSync(dir);
  if ((mode & 0o077) === 0 && uid === process.geteuid?.()) return;
  const remedy = `Give it to the service's user alone: chown and chmod 700, or name another with --data.`;
  throw new SandboxError("host-cannot", `the directory ${dir} is open to other users`, {
    field: "data",
    remedy,
  });
}

function told(error: unknown): Error {
  if (error instanceof AuditError || error instanceof StoreError)
    return new SandboxError("host-cannot", error.message, { cause: error, remedy: error.remedy });
  return asSandboxError(error);
}
