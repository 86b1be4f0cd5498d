/**
 * Grants as they are typed: `--grant kv`, `--grant files=./data:rw`, `--grant 'http=GET https://api.example.com/*'`. Each
 * is a short way to write what could stand in a policy, and is read as that: the schema has the last word.
 */
import { PolicyError } from "./policy.js";
import { GRANT_TYPES, isGrantType, type GrantType } from "./policy-schema.js";

type Fields = Record<string, unknown>;

/** Each short form: how it is written, for the help, and what it means. `undefined`: it is written otherwise. */
const FORMS: Readonly<Record<GrantType, { usage: string; read(value: string): Fields | undefined }>> = {
  kv: {
    usage: "kv, kv=NAMESPACE, kv=sqlite:FILE",
    read: (value) =>
      value.startsWith("sqlite:") ? { store: { sqlite: value.slice(7) } } : { namespace: value },
  },
  files: {
    usage: "files=DIRECTORY, files=DIRECTORY:rw",
    read(value) {
      const [, root = "", mode = "ro"] = /^(.*?)(?::(ro|rw))?$/s.exec(value) ?? [];
      return root === "" ? undefined : { root, mode };
    },
  },
  http: {
    usage: "http=URL, http='GET,POST URL'; again for another URL",
    read(value) {
      const [, methods, url = value] = /^([A-Z,]+) +(.+)$/s.exec(value) ?? [];
      return { allow: [methods === undefined ? url : { url, methods: methods.split(",") }] };
    },
  },
  secret: {
    usage: "NAME=secret:VARIABLE@HOST,...",
    read(value) {
      const [, env, hosts] = /^([^@]+)@(.+)$/s.exec(value) ?? [];
      return env === undefined || hosts === undefined ? undefined : { env, hosts: hosts.split(",") };
    },
  },
  events: { usage: "events, events=NAME,...", read: (value) => ({ names: value.split(",") }) },
  approve: { usage: "approve", read: () => undefined },
  clock: {
    usage: "clock=real|frozen|virtual|coarse:MS",
    read(value) {
      const [, stepMs] = /^coarse:(\d{1,9})$/.exec(value) ?? [];
      return stepMs === undefined ? { mode: value } : { mode: "coarse", stepMs: Number(stepMs) };
    },
  },
  random: { usage: "random=SEED", read: (value) => ({ seed: value }) },
  log: { usage: "log=LEVEL", read: (value) => ({ least: value }) },
  timers: {
    usage: "timers=NUMBER",
    read: (value) => (/^\d{1,9}$/.test(value) ? { most: Number(value) } : undefined),
  },
};

export const GRANT_USAGE: readonly string[] = [
  ...GRANT_TYPES.map((type) => FORMS[type].usage),
  "NAME=TYPE, NAME=TYPE:VALUE for another name than the type's",
];

/** The grants as a policy has them, for `policyOf`. Throws PolicyError for what is no short form. */
export function grantsFromFlags(flags: readonly string[]): Record<string, unknown> {
  const grants = Object.create(null) as Record<string, Fields>;
  for (const flag of flags) {
    const [, name = "", value] = /^([^=]*)(?:=(.*))?$/s.exec(flag) ?? [];
    const refuse = (message: string) => new PolicyError([{ field: `--grant ${name}`, message }]);
    const fields = isGrantType(name) ? fieldsOf(name, value) : ofOwnName(name, value);
    if (typeof fields === "string") throw refuse(fields);
    const before = grants[name];
    if (before === undefined) grants[name] = fields;
    else if (before["type"] === "http" && fields["type"] === "http" && Array.isArray(before["allow"])) {
      before["allow"].push(...(fields["allow"] as unknown[]));
    } else throw refuse("is given twice; only http grants add up");
  }
  return grants;
}

/** The fields, or what is wrong. */
function fieldsOf(type: GrantType, value: string | undefined): Fields | string {
  const fields = value === undefined ? {} : FORMS[type].read(value);
  return fields === undefined ? `write ${FORMS[type].usage}` : { type, ...fields };
}

/** `cache=kv:sqlite:cache.db`. A type that is not known is left to the schema, which knows what may have been meant. */
function ofOwnName(name: string, value: string | undefined): Fields | string {
  if (name === "") return "write NAME or NAME=VALUE, as in --grant kv";
  if (value === undefined) return {};
  const [, type, rest] = /^([^:]*)(?::(.*))?$/s.exec(value) ?? [];
  return isGrantType(type) ? fieldsOf(type, rest) : { type };
}
