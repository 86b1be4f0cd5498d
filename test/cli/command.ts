/** Runs the built command line as its users do: a process, its streams and its exit code. */
import { spawn, type ChildProcess } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));
const program = path.join(root, "dist/server/cli.js");

export interface Finished {
  code: number | null;
  stdout: string;
  stderr: string;
}

export interface CommandOptions {
  stdin?: string;
  /** The caller writes to its input, and ends it. */
  keepOpen?: true;
  env?: Readonly<Record<string, string>>;
  /** What to run instead of the built tree: a command and what stands before the arguments. */
  command?: readonly [string, ...string[]];
}

export function start(args: readonly string[], options: CommandOptions = {}): ChildProcess {
  const [command, ...first] = options.command ?? [process.execPath, program];
  const env = { PATH: process.env["PATH"], NO_COLOR: "1", ...options.env };
  const child = spawn(command, [...first, ...args], { cwd: root, env });
  child.stdin?.on("error", () => {}); // it may end without reading
  if (options.keepOpen === undefined) child.stdin?.end(options.stdin ?? "");
  return child;
}

export function finished(child: ChildProcess): Promise<Finished> {
  return new Promise((resolve, reject) => {
    let [stdout, stderr] = ["", ""];
    child.stdout?.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr?.setEncoding("utf8").on("data", (text: string) => (stderr += text));
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, stdout, stderr }));
  });
}

export const cli = (args: readonly string[], options: CommandOptions = {}): Promise<Finished> =>
  finished(start(args, options));

/** A directory of the test's own with these files; the caller disposes of it. */
export function folder(files: Readonly<Record<string, string | Uint8Array>>): { path: string } & Disposable {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-test-"));
  for (const [name, text] of Object.entries(files)) fs.writeFileSync(path.join(dir, name), text);
  return { path: dir, [Symbol.dispose]: () => fs.rmSync(dir, { recursive: true }) };
}

/** Flags of a service that is in nobody's way. */
export const anywhere = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-level", "error"];

/** `doublehull serve`, started, and what it said by then. Rejects with its words where it does not start. */
export async function startServing(args: readonly string[], env?: Readonly<Record<string, string>>) {
  const child = start(["serve", ...anywhere, ...args], env === undefined ? {} : { env });
  const ended = finished(child);
  const said = await new Promise<string>((resolve, reject) => {
    let text = "";
    child.stdout?.on("data", (chunk: string) => {
      text += chunk;
      if (/(?:'|new ones.*)\n$/.test(text)) resolve(text);
    });
    void ended.then(({ stderr }) => reject(new Error(stderr)));
  });
  return { child, ended, said };
}
