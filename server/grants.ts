/**
 * A policy's grants as the things that a run is handed. Here a directory is opened, a store too, a secret is read: what
 * is not there is refused before the script starts, naming the field. Each kind's module is loaded when the policy has
 * one, for a script that only asks for a key need not wait for an HTTP client.
 *
 * The powers are arguments. With `hollowPowers` the same code makes grants of the same shape that can do nothing: for
 * `doublehull types` and `policy check`, which must not need a deployment's secrets and directories.
 */
import { clock, log, random, timers } from "../hostapi/ambient.js";
import type { Approval, ApprovalQuestion } from "../hostapi/approve.js";
import { Capability } from "../hostapi/capability.js";
import type { RunEvent } from "../hostapi/events.js";
import type { FilesCapability, FilesOptions } from "../hostapi/files.js";
import type { KvStore } from "../hostapi/kv-store.js";
import { secret, type Secret } from "../hostapi/secret.js";
import { didYouMean } from "./did-you-mean.js";
import { SandboxError } from "./errors.js";
import type { Grant } from "./options.js";
import { fieldName, plainRule, PolicyError } from "./policy.js";
import type { GrantPolicy, Policy } from "./policy-schema.js";

export interface GrantPowers {
  /** Of the host: where secrets are looked up. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** A file that holds a secret. Rejects with an Error that says why not. */
  readText(path: string): Promise<string>;
  /** The factory of files capabilities; asked for once there is such a grant. */
  files(): Promise<(options: FilesOptions) => FilesCapability>;
  /** A store in this file; asked for once per file. */
  sqlite(file: string): Promise<KvStore & { close(): void }>;
  /** The store where the policy names none; one in memory, gone with the grants, if absent. */
  memory?(): KvStore;
  ask(question: ApprovalQuestion, signal: AbortSignal): Promise<Approval>;
  onEvent(event: RunEvent): void;
}

/** What came of a policy. The caller closes it when no run uses it any more: descriptors and stores are given back. */
export interface Granted {
  /** By name in `env`. Has no prototype. */
  readonly grants: Readonly<Record<string, Grant>>;
  close(): void;
}

/** What was opened so far for one policy. */
interface Site {
  readonly powers: GrantPowers;
  readonly secrets: Map<string, Secret>;
  readonly stores: Map<string, KvStore>;
  readonly closers: (() => void)[];
}

/**
 * Opens what the policy grants. Rejects with PolicyError naming the field for what is not there or cannot be, with
 * SandboxError `host-cannot` where a driver is missing; nothing stays open then.
 */
export async function grantsOf(policy: Policy, powers: GrantPowers): Promise<Granted> {
  const site: Site = { powers, secrets: new Map(), stores: new Map(), closers: [] };
  const close = () => {
    for (const closer of site.closers.splice(0)) closer();
  };
  const grants = Object.create(null) as Record<string, Grant>;
  try {
    const all = Object.entries(policy.grants);
    for (const [name, grant] of all) {
      if (grant.type === "secret") site.secrets.set(name, await openSecret(name, grant, powers));
    }
    for (const [name, grant] of all) {
      grants[name] = await naming(name, () => make(name, grant, site));
    }
  } catch (error) {
    close();
    throw error;
  }
  return { grants: Object.freeze(grants), close };
}

/** Powers that give nothing: what is made with them has the right methods and types, and none of them may be called. */
export function hollowPowers(): GrantPowers {
  const nothing = (): never => {
    throw new Error("a grant of the shape only was called");
  };
  return {
    env: new Proxy<Record<string, string>>({}, { get: () => "no secret at all" }),
    readText: () => Promise.resolve("no secret at all"),
    async files() {
      const { filesWith } = await import("../hostapi/files.js");
      const beneath = { openRoot: () => -1, close: () => {} };
      return filesWith(beneath as unknown as Parameters<typeof filesWith>[0]);
    },
    async sqlite() {
      const { memoryStore } = await import("../hostapi/kv-store.js");
      return { ...memoryStore(), close: () => {} };
    },
    ask: nothing,
    onEvent: nothing,
  };
}

async function make(name: string, grant: GrantPolicy, site: Site): Promise<Grant> {
  switch (grant.type) {
    case "kv":
      return weakened(await openStore(grant, site), name, grant);
    case "files": {
      const { root, mode, quotaBytes, maxFiles, maxFileBytes } = grant;
      const files = await site.powers.files();
      const opened = files({ root, mode, ...defined({ quotaBytes, maxFiles, maxFileBytes }) });
      site.closers.push(() => opened.close());
      return weakened(opened, name, grant);
    }
    case "http":
      return weakened(await openHttp(name, grant, site), name, grant);
    case "secret":
      return site.secrets.get(name) as Secret; // opened before anything that may send it
    case "events": {
      const { events } = await import("../hostapi/events.js");
      const { names, maxEvents, maxEventBytes } = grant;
      const onEvent = (event: RunEvent) => site.powers.onEvent(event);
      return weakened(events({ onEvent, maxEvents, maxEventBytes, ...defined({ names }) }), name, grant);
    }
    case "approve": {
      const { approve } = await import("../hostapi/approve.js");
      const ask: GrantPowers["ask"] = (question, signal) => site.powers.ask(question, signal);
      return weakened(approve({ ask, timeoutMs: grant.timeoutMs }), name, grant);
    }
    case "clock":
      return clock(defined({ mode: grant.mode, stepMs: grant.stepMs, startMs: grant.startMs }));
    case "random":
      return random(defined({ seed: grant.seed }));
    case "log":
      return log({ least: grant.least });
    case "timers":
      return timers({ most: grant.most });
  }
}

async function openStore(grant: GrantPolicy<"kv">, { powers, stores, closers }: Site): Promise<Capability> {
  const [{ kv }, { memoryStore }] = await Promise.all([
    import("../hostapi/kv.js"),
    import("../hostapi/kv-store.js"),
  ]);
  const place = grant.store === "memory" ? "" : grant.store.sqlite;
  let store = stores.get(place);
  if (store === undefined) {
    if (place === "") store = powers.memory?.() ?? memoryStore();
    else {
      const opened = await powers.sqlite(place);
      closers.push(() => opened.close());
      store = opened;
    }
    stores.set(place, store);
  }
  const { namespace, quotaBytes, maxKeys, prefix } = grant;
  const whole = kv({ namespace, store, quotaBytes, maxKeys });
  return prefix === undefined ? whole : whole.prefix(prefix);
}

async function openHttp(name: string, grant: GrantPolicy<"http">, site: Site): Promise<Capability> {
  const { http } = await import("../hostapi/http.js");
  const inject = [];
  for (const [i, { host, header, scheme, secret: from }] of (grant.inject ?? []).entries()) {
    const path = ["grants", name, "inject", i, "secret"];
    const value =
      typeof from === "string" ? site.secrets.get(from)?.reveal() : await readSecret(path, from, site.powers);
    inject.push({ host, header, value: scheme === undefined ? `${value}` : `${scheme} ${value}` });
  }
  const { allow, open, timeoutMs, maxRequestBytes, maxResponseBytes, maxRedirects } = grant;
  return http({
    allow: allow.map(plainRule),
    inject,
    secrets: [...site.secrets.values()],
    timeoutMs,
    maxRequestBytes,
    maxResponseBytes,
    maxRedirects,
    ...defined({ open }),
  });
}

async function openSecret(name: string, grant: GrantPolicy<"secret">, powers: GrantPowers): Promise<Secret> {
  const value = await readSecret(["grants", name], grant, powers);
  return naming(name, () => Promise.resolve(secret({ name, value, hosts: grant.hosts })));
}

/** The value, from where the policy says. It is in no message. */
async function readSecret(
  path: readonly PropertyKey[],
  { env, file }: { readonly env?: string | undefined; readonly file?: string | undefined },
  powers: GrantPowers,
): Promise<string> {
  if (env !== undefined) {
    const value = powers.env[env];
    if (value !== undefined && value !== "") return value;
    const message = `the environment variable ${env} is ${value === "" ? "empty" : "not set"}: set it to the secret`;
    throw new PolicyError([{ field: fieldName([...path, "env"]), message }]);
  }
  try {
    return (await powers.readText(file as string)).replace(/\r?\n$/, "");
  } catch (cause) {
    const field = fieldName([...path, "file"]);
    throw new PolicyError([{ field, message: cause instanceof Error ? cause.message : String(cause) }], {
      cause,
    });
  }
}

/** What a grant may say that is less than all of it. */
export type Weakening = Pick<
  GrantPolicy<"kv" | "files" | "http" | "events" | "approve">,
  "type" | "readOnly" | "only" | "budget" | "rate" | "expiresMs"
>;

/** The bounds that every capability takes, in the order in which a call should meet them: what is not there first. */
export function weakened(whole: Capability, name: string, grant: Weakening): Capability {
  let now = whole;
  const refuse = (field: string, message: string) => {
    throw new PolicyError([{ field: fieldName(["grants", name, field]), message }]);
  };
  if (grant.readOnly === true) {
    const reads = [...whole.methods.values()].some(({ effect }) => effect === "read");
    if (!reads) refuse("readOnly", `leaves nothing: every method of ${grant.type} changes something`);
    now = now.readOnly();
  }
  const known = [...now.methods.keys()];
  const stray = grant.only?.findIndex((method) => !known.includes(method)) ?? -1;
  if (stray >= 0)
    refuse(
      "only",
      `there is no method "${grant.only?.[stray]}" to keep${didYouMean(grant.only?.[stray], known)}`,
    );
  if (grant.only !== undefined) now = now.only(...grant.only);
  if (grant.budget !== undefined) now = now.budget(defined(grant.budget));
  if (grant.rate !== undefined) now = now.rate(grant.rate.calls, grant.rate.perMs);
  if (grant.expiresMs !== undefined) now = now.expires({ afterMs: grant.expiresMs });
  return now;
}

type Defined<T> = { [K in keyof T]?: Exclude<T[K], undefined> };
/** Without the keys that are undefined: what is absent has the default of whoever takes it. */
const defined = <T extends object>(fields: T): Defined<T> =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Defined<T>;

/** What a constructor of the host API refuses, by the name of the grant and, where it says so, the field. */
async function naming<T>(name: string, act: () => Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (cause) {
    const missing = cause instanceof Error && "code" in cause && String(cause.code).startsWith("driver-");
    // A TypeError that does not begin with the name of its constructor is a bug of ours.
    const refused = cause instanceof Error && (cause.name === "StoreError" || (cause instanceof TypeError && OURS.test(cause.message))); // prettier-ignore
    if (!refused) throw cause;
    const [, option, words] = /^\w+: (\w+) (.*)$/s.exec(cause.message) ?? [];
    const known = option !== undefined && FIELDS.has(option) ? option : undefined;
    const field = fieldName(["grants", name, ...(known === undefined ? [] : [known])]);
    const message = known === undefined ? cause.message : (words ?? cause.message);
    if (missing) {
      const { remedy } = cause as Error & { remedy?: string };
      throw new SandboxError("host-cannot", `${field}: ${message}`, { field, cause, ...defined({ remedy }) });
    }
    throw new PolicyError([{ field, message }], { cause });
  }
}

const OURS = /^(?:kv|files|http|events|approve|secret|clock|random|log|timers|sqliteStore)\b/;
/** Options of capabilities that a policy has under the same name. */
const FIELDS: ReadonlySet<string> = new Set([
  "root",
  "mode",
  "namespace",
  "prefix",
  "allow",
  "open",
  "inject",
  "names",
]);
