/**
 * A policy in words: for `explain`, for `policy check`, and for what `policy diff` says is new. Made from the parsed
 * value, so it cannot leave out a field that counts; exhaustive over the types of grants. Its texts hold what the
 * policy's writer wrote: escape them where they are printed.
 */
import { rulesOf } from "./policy.js";
import type { GrantPolicy, GrantType, Policy } from "./policy-schema.js";

/** One grant, in a headline and what bounds it. */
export interface GrantWords {
  name: string;
  type: GrantType;
  what: string;
  details: string[];
}

export function policyWords(policy: Policy): GrantWords[] {
  return Object.entries(policy.grants).map(([name, grant]) => grantWords(name, grant));
}

export function grantWords(name: string, grant: GrantPolicy): GrantWords {
  return {
    name,
    type: grant.type,
    what: headline(grant),
    details: [...particulars(grant), ...bounds(grant)],
  };
}

function headline(grant: GrantPolicy): string {
  switch (grant.type) {
    case "kv":
      return `a key-value store, namespace ${grant.namespace}, ${storeWords(grant.store)}`;
    case "files":
      return `${grant.mode === "ro" ? "reads" : "reads and writes"} files below ${grant.root}`;
    case "http":
      return "sends requests, by env and by fetch, to these addresses only";
    case "secret":
      return `sends, but cannot read, the secret of ${sourceWords(grant)}`;
    case "events":
      return grant.names === undefined
        ? "sends events to the caller"
        : `sends the events ${grant.names.join(", ")} to the caller`;
    case "approve":
      return "asks a person and waits for the answer";
    case "clock":
      return clockWords(grant);
    case "random":
      return grant.seed === undefined
        ? "random numbers that nobody can foresee"
        : "the same random numbers in every run";
    case "log":
      return `console keeps the level ${grant.least} and what is above`;
    case "timers":
      return grant.most === 0 ? "no timers" : `at most ${grant.most} timers pending`;
  }
}

const storeWords = (store: GrantPolicy<"kv">["store"]): string =>
  store === "memory" ? "in memory until the process ends" : `kept in ${store.sqlite}`;

export const sourceWords = (source: { env?: string | undefined; file?: string | undefined }): string =>
  source.env === undefined ? `the file ${source.file}` : `the environment variable ${source.env}`;

function clockWords({ mode, stepMs, startMs }: GrantPolicy<"clock">): string {
  const ways = {
    frozen: "a clock that stands still between answers of the host",
    real: "a clock that runs, in milliseconds: the script can time itself and, coarsely, this host",
    coarse: `a clock in steps of ${stepMs} ms`,
    virtual: "a clock that moves only when a timer is due, and then at once",
  };
  return ways[mode] + (startMs === undefined ? "" : `, beginning at ${new Date(startMs).toISOString()}`);
}

function particulars(grant: GrantPolicy): string[] {
  switch (grant.type) {
    case "kv":
      return [
        ...(grant.prefix === undefined ? [] : [`only keys that begin with ${JSON.stringify(grant.prefix)}`]),
        `holds at most ${grant.quotaBytes} bytes and ${grant.maxKeys} keys`,
      ];
    case "files":
      return grant.mode === "ro"
        ? []
        : [
            `may add ${grant.quotaBytes} bytes and ${grant.maxFiles} files, the largest of ${grant.maxFileBytes} bytes`,
          ];
    case "http":
      return [
        ...rulesOf(grant.allow).map(({ words }) => words),
        ...(grant.open ?? []).map((range) => `private addresses in ${range} are open`),
        ...(grant.inject ?? []).map(
          ({ host, header, secret }) =>
            `puts the header ${header} into requests to ${host}, from ${typeof secret === "string" ? `the secret ${secret}` : sourceWords(secret)}`,
        ),
        `in ${grant.timeoutMs} ms, ${grant.maxRequestBytes} bytes out, ${grant.maxResponseBytes} bytes in, ${grant.maxRedirects} redirects`,
      ];
    case "secret":
      return grant.hosts.map((host) => `may be sent to ${host}`);
    case "events":
      return [`at most ${grant.maxEvents} a run, of ${grant.maxEventBytes} bytes each`];
    case "approve":
      return [`waits at most ${grant.timeoutMs} ms`];
    case "clock":
    case "random":
    case "log":
    case "timers":
      return [];
  }
}

function bounds(grant: GrantPolicy): string[] {
  if (!(
    "readOnly" in grant ||
    "only" in grant ||
    "budget" in grant ||
    "rate" in grant ||
    "expiresMs" in grant
  )) {
    return [];
  }
  const { readOnly, only, budget, rate, expiresMs } = grant;
  return [
    ...(readOnly === undefined ? [] : ["only methods that leave the world as it was"]),
    ...(only === undefined ? [] : [`only ${only.join(", ")}`]),
    ...(budget?.calls === undefined ? [] : [`at most ${budget.calls} calls a run`]),
    ...(budget?.bytes === undefined ? [] : [`at most ${budget.bytes} bytes a run`]),
    ...(rate === undefined ? [] : [`at most ${rate.calls} calls in ${rate.perMs} ms`]),
    ...(expiresMs === undefined ? [] : [`for the first ${expiresMs} ms of the run`]),
  ];
}
