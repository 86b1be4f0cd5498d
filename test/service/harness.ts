/** A service in this process, on loopback and in a directory of its own, and how to ask it. */
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
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

export async function start(
  options: Partial<ServiceOptions> = {},
  keys?: { key: string; adminKey: string },
): Promise<Running> {
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
    logLevel: "info",
    logTo: { write: (line) => void log.push(line) },
    now: Date.now,
    ...(store === undefined ? {} : { store }),
    ...options,
  });
  const own = service.made ?? keys;
  if (own === undefined) throw new Error("whose keys?");
  const asker =
    (address: string, usual: string) =>
    async (method: string, route: string, ask: Ask = {}): Promise<Answer> => {
      const { body, key = usual, headers = {}, signal } = ask;
      const raw = typeof body === "string" || body instanceof Uint8Array;
      const response = await fetch(address + route, {
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
  const admin = asker(service.adminAddress, own.adminKey);
  return {
    service,
    dir,
    log,
    ask: asker(service.address, own.key),
    admin,
    async tenant(id, settings = {}) {
      const put = await admin("PUT", `/admin/v1/tenants/${id}`, { body: settings });
      if (put.status !== 201) throw new Error(JSON.stringify(put.body));
      return (await admin("POST", `/admin/v1/tenants/${id}/keys`, { body: {} })).body.key as string;
    },
  };
}

/** Lines of the audit log, parsed. */
export const audited = (dir: string): Record<string, unknown>[] =>
  fs
    .readdirSync(path.join(dir, "audit"))
    .sort()
    .flatMap((name) => fs.readFileSync(path.join(dir, "audit", name), "utf8").split("\n"))
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Record<string, unknown>);
