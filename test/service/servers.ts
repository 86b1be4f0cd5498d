/**
 * Real servers beside the tests: PostgreSQL and Redis of this machine, on loopback, their data in a temporary directory.
 * What a test file leaves running ends with its process.
 */
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import net, { type AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { Client } from "pg";
import { describe } from "vitest";

export interface Server {
  /** With the password. */
  readonly url: string;
  /** Ends it in order and removes its data. Idempotent. */
  stop(): Promise<void>;
  /** kill -9, of its helpers too; resolves when all of them are gone. */
  kill(): Promise<void>;
  /** After `kill`, on the same port and data. Resolves when it takes connections. */
  startAgain(): Promise<void>;
}
export interface Postgres extends Server {
  /** The address of a new, empty database on it. */
  database(): Promise<string>;
}

// ---- what this machine has --------------------------------------------------------------------------------------------

/** Debian keeps PostgreSQL's programs out of the PATH, in a directory for each version: the newest first. */
const DEBIAN = "/usr/lib/postgresql";
const versions = fs.existsSync(DEBIAN) ? fs.readdirSync(DEBIAN).sort((a, b) => Number(b) - Number(a)) : [];
const places = [
  ...versions.map((version) => path.join(DEBIAN, version, "bin")),
  ...(process.env["PATH"] ?? "").split(":"),
];
const found = (program: string): string | undefined =>
  places.map((dir) => path.join(dir, program)).find((file) => fs.existsSync(file));
function theProgram(program: string): string {
  const file = found(program);
  if (file === undefined) throw new Error(`there is no ${program} on this machine`);
  return file;
}

const PROGRAMS = { PostgreSQL: ["initdb", "postgres"], Redis: ["redis-server"] } as const;

/** Why there is none of it, in brackets for a test's name. Throws on a machine that is promised to have it. */
export function withoutServer(server: keyof typeof PROGRAMS): string | undefined {
  const missing = PROGRAMS[server].find((program) => found(program) === undefined);
  const why =
    missing !== undefined
      ? `this machine has no ${missing}, of ${server}`
      : server === "PostgreSQL" && isNameless()
        ? "this user has no name, which initdb asks for: an entry in /etc/passwd"
        : undefined;
  if (why === undefined) return undefined;
  if (process.env["DOUBLEHULL_CI"] !== undefined) throw new Error(why);
  return ` (skipped: ${why})`;
}

function isNameless(): boolean {
  try {
    return os.userInfo().username === "";
  } catch {
    return true; // getpwuid_r(3) knows none
  }
}

/** `describe` for what needs a server: skipped, in words, on a machine without. */
export function describeWith(
  server: keyof typeof PROGRAMS,
  name: string,
  body: () => void | Promise<void>,
): void {
  const why = withoutServer(server);
  describe.skipIf(why !== undefined)(name + (why ?? ""), body);
}

// ---- a server's process -----------------------------------------------------------------------------------------------

/** Servers that are running, by their temporary directory. */
const running = new Map<string, ChildProcess>();
process.once("exit", () => {
  for (const [dir, child] of running) {
    killAll(child);
    fs.rmSync(dir, { recursive: true, force: true });
  }
});

/** PostgreSQL refuses to be root: nobody is who it is then. */
const NOBODY = 65_534;
const identity = process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {};

function directoryOf(name: string): string {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), `doublehull-${name}-`));
  if (identity.uid !== undefined) fs.chownSync(dir, NOBODY, NOBODY);
  return dir;
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

/** Resolves when it has said that it takes connections. */
function launched(dir: string, program: string, args: readonly string[]): Promise<ChildProcess> {
  const child = spawn(program, args, { cwd: dir, stdio: ["ignore", "pipe", "pipe"], ...identity });
  running.set(dir, child);
  child.once("close", () => running.delete(dir));
  return new Promise((resolve, reject) => {
    let said = "";
    const hear = (text: string) => {
      if (said.length < 64 * 1024) said += text;
      if (/ready to accept connections/i.test(said)) resolve(child);
    };
    child.stdout.setEncoding("utf8").on("data", hear);
    child.stderr.setEncoding("utf8").on("data", hear);
    child.once("error", reject);
    child.once("close", () => reject(new Error(`${program} ended: ${said}`)));
  });
}

/** The process and its children, which it may not add to meanwhile. */
function killAll({ pid, exitCode, signalCode }: ChildProcess): void {
  if (pid === undefined || exitCode !== null || signalCode !== null) return;
  process.kill(pid, "SIGSTOP");
  const children = fs.readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ").filter(Boolean);
  for (const child of children) process.kill(Number(child), "SIGKILL");
  process.kill(pid, "SIGKILL");
}

async function served(dir: string, url: string, program: string, args: readonly string[]): Promise<Server> {
  let child = await launched(dir, program, args);
  const ended = async (end: (child: ChildProcess) => void) => {
    if (!running.has(dir)) return;
    const gone = once(child, "close"); // when nobody holds its outputs any more: its children are gone, too
    end(child);
    await gone;
  };
  return {
    url,
    async stop() {
      await ended((it) => it.kill("SIGINT")); // of PostgreSQL: end all connections, then in order
      fs.rmSync(dir, { recursive: true, force: true });
    },
    kill: () => ended(killAll),
    async startAgain() {
      child = await launched(dir, program, args);
    },
  };
}

// ---- PostgreSQL -------------------------------------------------------------------------------------------------------

const PASSWORD = "hush-of-the-test";

/**
 * A PostgreSQL whose texts are ordered by a language, as many are: what relies on the order of bytes has to say so.
 * `durable`: what was answered is on the disk.
 */
export async function startPostgres({ durable = false } = {}): Promise<Postgres> {
  const dir = directoryOf("postgres");
  const [data, secret] = [path.join(dir, "data"), path.join(dir, "secret")];
  fs.writeFileSync(secret, PASSWORD);
  await promisify(execFile)(
    theProgram("initdb"),
    ["--pgdata", data, "--username", "doublehull", "--pwfile", secret, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--locale-provider", "icu", "--icu-locale", "en-US", "--no-sync"], // prettier-ignore
    { cwd: dir, ...identity },
  );
  const port = await freePort();
  const settings = {
    listen_addresses: "127.0.0.1",
    port,
    unix_socket_directories: "",
    fsync: durable ? "on" : "off",
    shared_buffers: "16MB",
  };
  const args = Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
  const address = (database: string) => `postgres://doublehull:${PASSWORD}@127.0.0.1:${port}/${database}`;
  const server = await served(dir, address("postgres"), theProgram("postgres"), ["-D", data, ...args]);
  let databases = 0;
  return {
    ...server,
    async database() {
      const name = `test_${++databases}`;
      const client = new Client(server.url);
      await client.connect();
      await client.query(`CREATE DATABASE ${name}`);
      await client.end();
      return address(name);
    },
  };
}

// ---- Redis ------------------------------------------------------------------------------------------------------------

/** `durable`: each write is on the disk before it is answered. */
export async function startRedis({ durable = false } = {}): Promise<Server> {
  const dir = directoryOf("redis");
  const port = await freePort();
  const settings = {
    bind: "127.0.0.1",
    port,
    dir,
    save: "",
    appendonly: "yes",
    appendfsync: durable ? "always" : "no",
    requirepass: PASSWORD,
  };
  const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
  return served(dir, `redis://:${PASSWORD}@127.0.0.1:${port}`, theProgram("redis-server"), args);
}
