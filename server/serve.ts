/** `doublehull serve`: the service on this host. An entry file: it knows the process, its signals and its terminal. */
import os from "node:os";
import path from "node:path";
import closeWithGrace from "close-with-grace";
import type { PartialLimits } from "./limits.js";
import { EXIT, stderr, stdout, UsageError, write } from "./process.js";
import { startService } from "./service/service.js";
import { painter, type Paint } from "./show.js";

export interface ServeFlags {
  listen: string;
  adminListen: string;
  corsOrigin?: string[];
  data: string;
  store?: string;
  sealingKey?: string;
  node?: string;
  queue?: string;
  limit: PartialLimits;
  maxConcurrent?: number;
  maxQueue: number;
  parked: number;
  grace: number;
  logLevel: "debug" | "info" | "warn" | "error" | "silent";
  requireCgroup?: true;
}

/** What a run of the service may have at most, unless --limit says otherwise. */
const LIMITS: PartialLimits = { wallMs: 30_000, cpuMs: 30_000 };
/** Beyond the grace that runs have: for the answers to leave and workers to be buried, ms. */
const LAST_MS = 10_000;

/** Resolves when the service has ended, with the exit code. */
export async function serve(flags: ServeFlags, version: string, colours: boolean): Promise<number> {
  const [host, port] = addressIn("--listen", flags.listen);
  const [adminHost, adminPort] = addressIn("--admin-listen", flags.adminListen);
  const graceMs = flags.grace * 1000;
  const starting = startService({
    version,
    dataDir: path.resolve(flags.data),
    ...(flags.store === undefined ? {} : { store: flags.store }),
    ...(flags.sealingKey === undefined ? {} : { sealingKey: path.resolve(flags.sealingKey) }),
    node: flags.node ?? nodeName(os.hostname()),
    ...(flags.queue === undefined ? {} : { queue: flags.queue }),
    host,
    port,
    ...(flags.corsOrigin === undefined ? {} : { corsOrigins: flags.corsOrigin }),
    adminHost,
    adminPort,
    limits: { ...LIMITS, ...flags.limit },
    ...(flags.maxConcurrent === undefined ? {} : { maxConcurrent: flags.maxConcurrent }),
    maxQueue: flags.maxQueue,
    parked: flags.parked,
    requireCgroup: flags.requireCgroup === true,
    graceMs,
    logLevel: flags.logLevel,
    now: Date.now,
  });
  // Heard from now on: a signal while it starts ends it in order, too.
  let resolve = (_code: number) => {};
  const ended = new Promise<number>((done) => (resolve = done));
  const { uninstall } = closeWithGrace(
    { delay: graceMs + LAST_MS, logger: false },
    async ({ err, signal }) => {
      const words = err === undefined ? `${signal ?? "end"}: finishing what is under way` : err.message;
      await write(stderr, `doublehull: ${words}\n`);
      await starting.then(
        (service) => service.close(),
        () => {}, // told where it is awaited
      );
      resolve(err === undefined ? EXIT.ok : EXIT.bug);
    },
  );
  try {
    await write(stdout, greeting(await starting, painter(colours)));
  } catch (error) {
    uninstall(); // there is nothing to end
    throw error;
  }
  return ended;
}

function greeting(
  { address, adminAddress, made }: Awaited<ReturnType<typeof startService>>,
  paint: Paint,
): string {
  const keys =
    made === undefined
      ? ["Keys were told at the first start; an administrator makes new ones: see the description."]
      : [`API key        ${made.key}   (tenant ${made.tenant})`, `administrator  ${made.adminKey}`, "These keys are told now and never again."]; // prettier-ignore
  const lines = [
    paint("bold", "doublehull serves"),
    `playground     ${address}/playground/${made === undefined ? "" : `#key=${made.key}`}`,
    `runs           ${address}/v1/runs`,
    `description    ${address}/docs`,
    `administration ${adminAddress}/docs`,
    ...keys,
    ...(made === undefined
      ? []
      : [
          "",
          `curl ${address}/v1/runs -H 'authorization: Bearer ${made.key}' \\`,
          `  -H 'content-type: application/json' -d '{"source":"6 * 7","type":"script"}'`,
        ]),
  ];
  return `${lines.join("\n")}\n`;
}

/** The host's name, as far as the audit log takes it. */
const nodeName = (host: string): string => host.replaceAll(/[^\w.:-]/g, "-").slice(0, 64) || "node";

/** "127.0.0.1:7070", "[::1]:7070", "7070". */
function addressIn(flag: string, text: string): [string, number] {
  const [, bracketed, plain, port] = /^(?:(?:\[([0-9a-f:.]+)\]|([\w.-]+)):)?(\d{1,5})$/i.exec(text) ?? [];
  if (port === undefined || Number(port) > 65_535)
    throw new UsageError(`${flag} must be HOST:PORT, as in 127.0.0.1:7070, not "${text}"`);
  return [bracketed ?? plain ?? "127.0.0.1", Number(port)];
}
