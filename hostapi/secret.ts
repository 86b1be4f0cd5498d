/**
 * A secret that a script can use but not read. The guest is handed a placeholder, a text that says nothing; a
 * capability that sends something out puts the value in its place, if the destination is one that the secret is for,
 * and the placeholder in the value's place in whatever comes back. The value never enters a worker.
 */
import { randomBytes } from "node:crypto";
import { anything, checkOptions, kindOf, needed } from "./options.js";

export interface SecretOptions {
  /** For messages and the audit: 1 to 64 letters, digits, dots, hyphens or underscores. */
  name: string;
  /** 8 to 8192 characters, no control characters. */
  value: string;
  /** At least one: exact ("api.example.com"), or "*.example.com" for every name below it. */
  hosts: readonly string[];
}

export class Secret {
  readonly name: string;
  /** Hosts that may be sent it: exact names ("api.example.com"), or "*.example.com" for every name below. */
  readonly hosts: readonly string[];
  /** What a guest sees, and what stands for the value in texts: cannot be guessed, the same for the secret's life. */
  readonly placeholder: string;
  readonly #value: string;

  /** Throws TypeError as `secret` does. */
  constructor(options: SecretOptions) {
    const { name, value, hosts } = checkSecret(options);
    this.name = name;
    this.hosts = Object.freeze([...hosts]);
    this.placeholder = `secret-${randomBytes(16).toString("hex")}`;
    this.#value = value;
    Object.freeze(this);
  }

  /** For the capability that sends it, after it has checked the destination against `hosts`. */
  reveal(): string {
    return this.#value;
  }

  toString(): string {
    return this.placeholder;
  }
  toJSON(): string {
    return this.placeholder;
  }
}

/**
 * A secret handle. Throws TypeError naming the option that is wrong: an empty value, one with line breaks, no hosts.
 */
export function secret(options: SecretOptions): Secret {
  return new Secret(options);
}

function checkSecret(options: SecretOptions): SecretOptions {
  const { name, value, hosts } = checkOptions("secret", options, {
    name: needed(anything),
    value: anything,
    hosts: needed(anything),
  });
  if (typeof name !== "string" || !/^[\w.-]{1,64}$/.test(name)) {
    throw new TypeError("secret: name must be 1 to 64 letters, digits, dots, hyphens or underscores");
  }
  if (value === undefined || value === null) {
    throw new TypeError(
      `secret ${name}: value is ${kindOf(value)}; if it comes from an environment variable, that may not be set`,
    );
  }
  if (typeof value !== "string" || value.length < 8 || value.length > 8192) {
    throw new TypeError(
      `secret ${name}: value must be a string of 8 to 8192 characters (a shorter one cannot be scrubbed)`,
    );
  }
  if (/[\0-\x1f\x7f]/.test(value))
    throw new TypeError(`secret ${name}: value must not hold control characters`);
  if (!Array.isArray(hosts) || hosts.length === 0) {
    throw new TypeError(`secret ${name}: hosts must name at least one host that may be sent it`);
  }
  for (const host of hosts) {
    if (
      typeof host !== "string" ||
      !/^(?:\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?$|^\[[0-9a-f:.]+\]$/.test(host)
    ) {
      throw new TypeError(
        `secret ${name}: "${String(host)}" is no host name (lower case, no port, no scheme)`,
      );
    }
  }
  return options;
}
