/**
 * One run for a tenant: what it may have, in the order in which it is refused; then the sandbox; then what is written
 * down. Everything that a run of the service is, however it was asked for, goes through here.
 *
 * The rule: the audit log has the line before the act, and a line that cannot be written stops the act. What a run may do
 * is the tenant's policy, narrowed by the request, never the request alone.
 */
import { trace } from "@opentelemetry/api";
import type { RunEvent } from "../../hostapi/events.js";
import type { KvStore } from "../../hostapi/kv-store.js";
import type { Approval } from "../../hostapi/approve.js";
import { Capability, CapabilityError } from "../../hostapi/capability.js";
import type { FilesCapability, FilesOptions } from "../../hostapi/files.js";
import type { ScriptEngine } from "../engines.js";
import { SandboxError } from "../errors.js";
import { grantsOf, weakened, type Weakening } from "../grants.js";
import { LIMITS, type LimitName, type Limits } from "../limits.js";
import type { Grant } from "../options.js";
import type { LogEntry, Outcome } from "../outcome.js";
import { PolicyError } from "../policy.js";
import type { GrantPolicy, Policy } from "../policy-schema.js";
import { Sandbox } from "../sandbox.js";
import type { Asked } from "./approvals.js";
import { callEvent } from "./audit-events.js";
import { AuditError } from "./audit-directory.js";
import { DatabaseError } from "./database.js";
import { sha256 } from "./audit-line.js";
import type { AuditLog } from "./audit-log.js";
import { badField, badFields, Problem } from "./problems.js";
import type { RunRequest } from "./schemas.js";
import type { Metrics } from "./metrics.js";
import type { Tenant, Tenants } from "./tenants.js";
import type { UsageMeter } from "./usage.js";

export interface RunnerParts {
  /** A sandbox for the engine, made at the first use; the runner's owner closes it. */
  sandbox(engine: ScriptEngine): Promise<Sandbox>;
  tenants: Tenants;
  usage: UsageMeter;
  audit: AuditLog;
  metrics: Metrics;
  store: KvStore;
  files(): Promise<(options: FilesOptions) => FilesCapability>;
  /** Hears why the line that a run has ended could not be written. */
  onUnwritten(error: unknown): void;
}

export interface RunContext {
  id: string;
  /** Id of the API key that asked. */
  key: string;
  /** Id of the job that it is an attempt of. */
  job?: string;
  signal: AbortSignal;
  onLog?: (entry: LogEntry) => void;
  onEvent?: (event: RunEvent) => void;
  /** Asks a person; nobody can be asked, if absent. */
  ask?: (asked: Asked, signal: AbortSignal) => Promise<Approval>;
}

/** An incarnation begins with the tenant's id and a slash, which no id has: so no other tenant's space is within it. */
const ofTenant = (store: KvStore, { incarnation }: Tenant): KvStore => {
  const space = (namespace: string) => `${incarnation}/${namespace}`;
  return {
    get: (namespace, ...rest) => store.get(space(namespace), ...rest),
    set: (namespace, ...rest) => store.set(space(namespace), ...rest),
    delete: (namespace, ...rest) => store.delete(space(namespace), ...rest),
    list: (namespace, ...rest) => store.list(space(namespace), ...rest),
    usage: (namespace, ...rest) => store.usage(space(namespace), ...rest),
  };
};

/** Longer than a request may take to arrive and to be admitted, ms. */
const ARRIVING_MS = 600_000;

const tracer = trace.getTracer("doublehull");

export class Runner {
  readonly #parts: RunnerParts;
  /** Runs under way, each by what cancels it, of each tenant's incarnation. */
  readonly #running = new Map<string, Set<AbortController>>();
  /** Incarnations that are gone, of which a request may still be arriving. */
  readonly #gone = new Set<string>();
  #draining = false;
  /** Those who wait for runs to end. */
  #waiting: (() => void)[] = [];

  constructor(parts: RunnerParts) {
    this.#parts = parts;
  }

  get running(): number {
    return [...this.#running.values()].reduce((sum, { size }) => sum + size, 0);
  }

  get draining(): boolean {
    return this.#draining;
  }

  /** No run begins any more. Those under way may end by themselves for so long, then they are cancelled. */
  async drain(graceMs: number): Promise<void> {
    this.#draining = true;
    const timer = setTimeout(() => {
      for (const runs of this.#running.values()) for (const run of runs) run.abort();
    }, graceMs);
    while (this.running > 0) await this.#oneEnds();
    clearTimeout(timer);
  }

  /** Cancels the runs of a tenant that is gone, and lets no other begin; resolves when they have ended. */
  async end(incarnation: string): Promise<void> {
    this.#gone.add(incarnation);
    setTimeout(() => this.#gone.delete(incarnation), ARRIVING_MS).unref();
    for (const run of this.#running.get(incarnation) ?? []) run.abort();
    while (this.#running.has(incarnation)) await this.#oneEnds();
  }

  #oneEnds(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /**
   * Resolves to the outcome, whatever the script does. Rejects with Problem: what the tenant may not, has no quota for, or
   * this service cannot now. Nothing has run then.
   */
  async run(tenant: Tenant, request: RunRequest, context: RunContext): Promise<Outcome> {
    const { metrics } = this.#parts;
    try {
      return await this.#admitted(tenant, request, context);
    } catch (error) {
      const problem = asProblem(error);
      metrics.refused(problem.code);
      throw problem;
    }
  }

  /** Throws Problem for what the tenant's policy does not allow. Nothing is opened. */
  check(tenant: Tenant, request: RunRequest): { engine: ScriptEngine; limits: Limits; policy: ChosenPolicy } {
    const engine = request.engine ?? tenant.policy.engine;
    if (!tenant.settings.engines.includes(engine))
      throw badField("engine", `${engine} is none of the tenant's engines`, "forbidden");
    return { engine, limits: limitsOf(tenant, request), policy: chosen(tenant, request) };
  }

  /** Whether one more run may be under way. */
  hasRoom({ incarnation, settings }: Tenant): boolean {
    return (this.#running.get(incarnation)?.size ?? 0) < settings.quotas.concurrent;
  }

  async #admitted(tenant: Tenant, request: RunRequest, context: RunContext): Promise<Outcome> {
    const { engine, limits, policy } = this.check(tenant, request);
    const today = await this.#parts.usage.today(tenant);
    // From here to the count of this run nothing is awaited: no other run slips in between.
    if (this.#draining)
      throw new Problem("draining", "no run begins on this node any more", { retryAfterS: 5 });
    if (this.#gone.has(tenant.incarnation)) throw new Problem("unauthorized", "the tenant is gone");
    const under = this.#running.get(tenant.incarnation) ?? new Set();
    const count = under.size;
    withinDay(tenant, today, count);
    const { concurrent } = tenant.settings.quotas;
    if (count >= concurrent)
      throw new Problem("tenant-busy", `${count} runs are under way, and the tenant may have ${concurrent}`, { retryAfterS: 1 }); // prettier-ignore
    const cancel = new AbortController();
    this.#running.set(tenant.incarnation, under.add(cancel));
    try {
      return await tracer.startActiveSpan("doublehull.run", async (span) => {
        span.setAttributes({
          "doublehull.run": context.id,
          "doublehull.tenant": tenant.id,
          "doublehull.engine": engine,
        });
        try {
          const signal = AbortSignal.any([context.signal, cancel.signal]);
          const outcome = await this.#execute(tenant, request, { engine, limits, policy }, { ...context, signal }); // prettier-ignore
          span.setAttributes({
            "doublehull.status": outcome.status,
            "doublehull.cpu_ms": outcome.usage.cpuMs,
          });
          return outcome;
        } finally {
          span.end();
        }
      });
    } finally {
      under.delete(cancel);
      if (under.size === 0) this.#running.delete(tenant.incarnation);
      for (const wake of this.#waiting.splice(0)) wake();
    }
  }

  async #execute(
    tenant: Tenant,
    request: RunRequest,
    { engine, limits, policy }: { engine: ScriptEngine; limits: Limits; policy: ChosenPolicy },
    { id, key, job, signal, onLog, onEvent, ask }: RunContext,
  ): Promise<Outcome> {
    const { tenants, usage, audit, metrics } = this.#parts;
    const stored = request.script === undefined ? undefined : await tenants.script(tenant, request.script);
    const { source = "", type, language, modules } = stored?.content ?? request;
    const script = sha256(source);
    const sandbox = await this.#parts.sandbox(engine);
    const needsSecrets = Object.values(policy.opened.grants).some(({ type: kind }) => kind === "secret" || kind === "http"); // prettier-ignore
    const granted = await grantsOf(policy.opened, {
      env: needsSecrets ? await tenants.secrets(tenant.id) : {},
      readText: () => Promise.reject(new Error("a tenant's secrets are stored ones")),
      files: this.#parts.files,
      sqlite: () => Promise.reject(new Error("a tenant's store is the service's")),
      memory: () => ofTenant(this.#parts.store, tenant),
      ask: ({ run, label, method, text, details, untilMs }, voided) => {
        if (ask === undefined) return Promise.reject(unheard(label, method));
        const leftMs = Math.min(untilMs, limits.wallMs) - run.elapsedMs();
        return ask({ capability: label, method, text, details, leftMs }, voided);
      },
      onEvent: (event) => onEvent?.(event),
    });
    try {
      const grants = handed(granted.grants, policy);
      audit.append({
        kind: "run",
        act: "started",
        run: id,
        tenant: tenant.id,
        engine,
        script,
        key,
        ...(job === undefined ? {} : { job }),
      });
      const running = sandbox.run(source, {
        ...(type === undefined ? {} : { type }),
        ...(language === undefined ? {} : { language }),
        ...(modules === undefined ? {} : { modules }),
        ...(stored === undefined
          ? {}
          : { name: `${stored.name}.${language === "typescript" ? "ts" : "js"}` }),
        input: request.input,
        limits,
        grants,
        tenant: tenant.id,
        signal,
        audit: (event) => audit.append({ ...callEvent(event), run: id }),
        ...(onLog === undefined ? {} : { onLog }),
      });
      const outcome = await running.catch((error: unknown) => {
        // A source over its limit, no worker to be had: every line that begins a run has one that ends it.
        audit.append({ kind: "run", act: "refused", run: id, tenant: tenant.id, engine, script, code: asProblem(error).code }); // prettier-ignore
        throw error;
      });
      usage.add(tenant, outcome);
      metrics.ran(engine, outcome);
      // It has run, and whoever asked is told so, even where this line cannot be written: a refusal would have it run again.
      try {
        audit.append({
          kind: "run",
          act: "finished",
          run: id,
          tenant: tenant.id,
          engine,
          script,
          status: outcome.status,
          ...(outcome.status === "stopped" ? { stop: outcome.stop } : {}),
          usage: outcome.usage,
        });
      } catch (error) {
        this.#parts.onUnwritten(error);
      }
      return outcome;
    } finally {
      granted.close();
    }
  }
}

const unheard = (label: string, method: string) =>
  new CapabilityError("unavailable", `${label}.${method}: nobody can be asked, for nobody listens to this run: it must be asked for as a stream (accept: text/event-stream)`); // prettier-ignore

/** Throws Problem `quota-exceeded`. Runs under way count as if they had ended. */
function withinDay(
  { settings: { quotas } }: Tenant,
  { runs, cpuSeconds, leftS }: { runs: number; cpuSeconds: number; leftS: number },
  underWay: number,
): void {
  const { runsPerDay, cpuSecondsPerDay } = quotas;
  const over = runs + underWay >= runsPerDay ? `${runsPerDay} runs` : cpuSeconds >= cpuSecondsPerDay ? `${cpuSecondsPerDay} CPU seconds` : undefined; // prettier-ignore
  if (over !== undefined)
    throw new Problem("quota-exceeded", `today's ${over} are used up`, { retryAfterS: leftS });
}

function limitsOf(tenant: Tenant, { limits = {} }: RunRequest): Limits {
  const all = { ...tenant.limits };
  for (const name of Object.keys(LIMITS) as LimitName[]) {
    const [wanted, most] = [limits[name], tenant.limits[name]];
    if (wanted === undefined) continue;
    // Of fuel 0 is no bound at all.
    const more =
      name === "fuel" && most > 0 ? wanted === 0 || wanted > most : name !== "fuel" && wanted > most;
    if (more) throw badField(`limits.${name}`, `is ${wanted}, more than the tenant's ${most}`, "forbidden");
    all[name] = wanted;
  }
  return all;
}

/** What is opened for a run, and what of it the script is handed, with its narrowings. */
interface ChosenPolicy {
  opened: Policy;
  handed: ReadonlyMap<string, Omit<Weakening, "type"> | true>;
}

function chosen(tenant: Tenant, { grants = [] }: RunRequest): ChosenPolicy {
  const handed = new Map(
    Array.isArray(grants) ? grants.map((name) => [name, true] as const) : Object.entries(grants),
  );
  const all = tenant.policy.grants;
  const opened = Object.create(null) as Record<string, GrantPolicy>;
  for (const name of handed.keys()) {
    const grant = Object.hasOwn(all, name) ? all[name] : undefined;
    if (grant === undefined)
      throw badField(`grants.${name}`, "the tenant's policy has no such grant", "forbidden");
    opened[name] = grant;
    // The secrets that it puts in by name are opened with it, but not handed out.
    for (const { secret } of grant.type === "http" ? (grant.inject ?? []) : []) {
      const target = typeof secret === "string" && Object.hasOwn(all, secret) ? all[secret] : undefined;
      if (target !== undefined) opened[secret as string] = target;
    }
  }
  return { opened: { ...tenant.policy, grants: opened }, handed };
}

function handed(
  granted: Readonly<Record<string, Grant>>,
  { opened, handed: names }: ChosenPolicy,
): Record<string, Grant> {
  const grants = Object.create(null) as Record<string, Grant>;
  for (const [name, less] of names) {
    const [grant, policy] = [granted[name], opened.grants[name]];
    if (grant === undefined || policy === undefined) continue;
    if (less === true) grants[name] = grant;
    else if (grant instanceof Capability)
      grants[name] = weakened(grant, name, { ...less, type: policy.type } as Weakening);
    else throw badField(`grants.${name}`, `a ${policy.type} cannot be narrowed`);
  }
  return { ...grants };
}

/** Whatever went wrong, as what a client may know of it. */
export function asProblem(error: unknown): Problem {
  if (error instanceof Problem) return error;
  if (error instanceof PolicyError) {
    if (error.problems.some(({ field }) => field.endsWith(".root")))
      return new Problem("host-cannot", "a directory of the tenant's policy cannot be opened", { retryAfterS: 30, cause: error }); // prettier-ignore
    const errors = error.problems.map(({ field, message }) => ({ field, message }));
    // A stored secret that is not there: told by field.
    return badFields(errors, { cause: error });
  }
  if (error instanceof SandboxError) {
    switch (error.code) {
      case "bad-option":
      case "bad-input":
      case "over-limit":
        return error.field === undefined
          ? new Problem("bad-request", error.message, { cause: error })
          : badField(error.field, error.message);
      case "overloaded":
        return new Problem("overloaded", "as many runs are waiting as this service lets wait", { retryAfterS: 1, cause: error }); // prettier-ignore
      case "closed":
        return new Problem("draining", "this node is shutting down", { retryAfterS: 5, cause: error });
      case "no-engine":
      case "host-cannot":
        return new Problem("host-cannot", "this host cannot run it now", { retryAfterS: 30, cause: error });
    }
  }
  if (error instanceof DatabaseError) {
    if (error.code === "gone")
      return new Problem("not-found", "what it belongs to was removed meanwhile", { cause: error });
    return new Problem("host-cannot", "the service's database cannot be reached", { retryAfterS: 5, cause: error }); // prettier-ignore
  }
  if (error instanceof AuditError)
    return new Problem("host-cannot", "the audit log cannot be written, and nothing runs without it", { retryAfterS: 30, cause: error }); // prettier-ignore
  return new Problem("internal", "something went wrong here", { cause: error });
}
