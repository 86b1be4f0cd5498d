/** A service in this process, on loopback and in a directory of its own, and how to ask it. */
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll } from "vitest";
import { startServing } from "../cli/command.js";
import { startService, type Service, type ServiceOptions } from "#server/service/service";

export interface Answer {
  status: number;
  headers: Headers;
  // oxlint-disable-next-line typescript/no-explicit-any -- each test says with its assertions what it expects
  body: any;
}

export interface Running {
  service: Service;
  dir: string;
  /** Lines of its log. */
  log: string[];
  /** As the first tenant, unless `key` says otherwise; "" for none. */
  ask(method: string, route: string, options?: Ask): Promise<Answer>;
  admin(method: string, route: string, options?: Ask): Promise<Answer>;
  /** A tenant with these settings; resolves to its key. */
  tenant(id: string, settings?: object): Promise<string>;
}
export interface Ask {
  body?: unknown;
  key?: string;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export const temporaryDirectory = (): string => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "service-"));
  return path.join(dir, "data");
};

let newStore: () => Promise<string | undefined> = () => Promise.resolve(undefined);
/** From now on each new data directory has a store of its own of these, in the place of its files. */
export function standOn(store: () => Promise<string>): void {
  newStore = store;
}
const storeOf = new Map<string, string | undefined>();

export async function start(options: Partial<ServiceOptions> = {}, keys?: Keys): Promise<Running> {
  const log: string[] = [];
  const dir = options.dataDir ?? temporaryDirectory();
  const store = options.store ?? (storeOf.has(dir) ? storeOf.get(dir) : await newStore());
  storeOf.set(dir, store);
  const service = await startService({
    version: "0.0.0",
    dataDir: dir,
    node: "main",
    host: "127.0.0.1",
    port: 0,
    adminHost: "127.0.0.1",
    adminPort: 0,
    limits: { wallMs: 20_000, cpuMs: 20_000 },
    maxConcurrent: 4,
    maxQueue: 100,
    parked: 1,
    requireCgroup: false,
    graceMs: 10_000,
    busyMs: 30_000, // the machine may have more to do than this test
    logLevel: "info",
    logTo: { write: (line) => void log.push(line) },
    now: Date.now,
    ...(store === undefined ? {} : { store }),
    ...options,
  });
  const own = service.made ?? keys;
  if (own === undefined) throw new Error("whose keys?");
  return { service, dir, log, ...askers(service.address, service.adminAddress, own) };
}

export interface Keys {
  key: string;
  adminKey: string;
}

function askers(
  address: string,
  adminAddress: string,
  keys: Keys,
): Pick<Running, "ask" | "admin" | "tenant"> {
  const asker =
    (to: string, usual: string) =>
    async (method: string, route: string, ask: Ask = {}): Promise<Answer> => {
      const { body, key = usual, headers = {}, signal } = ask;
      const raw = typeof body === "string" || body instanceof Uint8Array;
      const response = await fetch(to + route, {
        method,
        headers: {
          ...(key === "" ? {} : { authorization: `Bearer ${key}` }),
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...headers,
        },
        ...(body === undefined ? {} : { body: raw ? (body as string) : JSON.stringify(body) }),
        ...(signal === undefined ? {} : { signal }),
      });
      const text = await response.text();
      const isJson = /json/.test(response.headers.get("content-type") ?? "");
      return {
        status: response.status,
        headers: response.headers,
        body: isJson && text !== "" ? JSON.parse(text) : text,
      };
    };
  const admin = asker(adminAddress, keys.adminKey);
  return {
    ask: asker(address, keys.key),
    admin,
    async tenant(id, settings = {}) {
      const put = await admin("PUT", `/admin/v1/tenants/${id}`, { body: settings });
      if (put.status !== 201) throw new Error(JSON.stringify(put.body));
      return (await admin("POST", `/admin/v1/tenants/${id}/keys`, { body: {} })).body.key as string;
    },
  };
}

/** One in a process of its own, as operators start it: `doublehull serve`. */
export interface Serving extends Pick<Running, "ask" | "admin" | "tenant"> {
  keys: Keys;
  pid: number;
  /** Resolves to the exit code when it has ended. */
  kill(signal: NodeJS.Signals): Promise<number | null>;
}

export async function serving(
  dir: string,
  args: readonly string[],
  keys?: Keys,
  env?: Record<string, string>,
): Promise<Serving> {
  const { child, ended, said } = await startServing(["--data", dir, ...args], env);
  const part = (pattern: RegExp): string => pattern.exec(said)?.[1] ?? "";
  const own = keys ?? { key: part(/^API key +(\S+)/m), adminKey: part(/^administrator +(\S+)/m) };
  return {
    keys: own,
    pid: child.pid ?? 0,
    ...askers(part(/^runs +(\S+)\/v1\/runs/m), part(/^administration +(\S+)\/docs/m), own),
    async kill(signal) {
      child.kill(signal);
      return (await ended).code;
    },
  };
}

/** Ends it, with its directory. */
export async function end({ service, dir }: Running): Promise<void> {
  await service.close();
  fs.rmSync(path.dirname(dir), { recursive: true });
}

/** One for all tests of a file: it is there once they run, and gone after them. */
export function shared(options: Partial<ServiceOptions> = {}): Running {
  const it = {} as Running;
  beforeAll(async () => void Object.assign(it, await start(options)));
  afterAll(() => end(it));
  return it;
}

/** What `look` finds, when it finds something. */
export async function until<T>(look: () => T | undefined): Promise<T> {
  for (;;) {
    const found = look();
    if (found !== undefined) return found;
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** A connection of its own, which has sent this. */
export async function sent(address: string, text: string): Promise<net.Socket> {
  const socket = net.connect(Number(new URL(address).port), "127.0.0.1");
  socket.on("error", () => {}); // a test may want it cut
  await new Promise<void>((resolve) => socket.write(text, () => resolve()));
  return socket;
}

/** The bytes of a request for a run, `headers` with their line ends. */
export const posted = (key: string, body: object, headers = ""): string => {
  const text = JSON.stringify(body);
  return `POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${key}\r\nContent-Type: application/json\r\n${headers}Content-Length: ${text.length}\r\n\r\n${text}`;
};

/** Lines of the audit log, parsed. */
export const audited = (dir: string): Record<string, unknown>[] =>
  fs
    .readdirSync(path.join(dir, "audit"))
    .sort()
    .flatMap((name) => fs.readFileSync(path.join(dir, "audit", name), "utf8").split("\n"))
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Record<string, unknown>);
