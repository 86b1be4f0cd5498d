/** Runs a program in a process of its own: for what a wrong answer would crash, hang or starve this one. */
import { spawn } from "node:child_process";
import { once } from "node:events";

/** Less than a test may take: a program that hangs must not outlive the one who counts. */
const PROGRAM_MS = 25_000;

/** What it said on standard output, one JSON text a line, and its exit code or the signal that ended it. */
export interface Ended {
  ended: number | NodeJS.Signals | null;
  said: unknown[];
}

/** What a program begins with. */
export const SAY = `import fs from "node:fs"; const say = (value) => fs.writeSync(1, JSON.stringify(value) + "\\n");`;

/** `source` is a module and calls `say(value)`; `files` is its limit on open files. It is killed after 25 s. */
export async function program(source: string, options: { files?: number } = {}): Promise<Ended> {
  const limit = options.files === undefined ? "" : `ulimit -n ${options.files} && `;
  const args = ["-c", `${limit}exec "$0" "$@"`, process.execPath, "--input-type=module", "-e", SAY + source];
  const child = spawn("/bin/sh", args, {
    stdio: ["ignore", "pipe", "inherit"],
    timeout: PROGRAM_MS,
    killSignal: "SIGKILL",
  });
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
  const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
  const lines = text.split("\n").filter((line) => line !== "");
  return { ended: signal ?? code, said: lines.map((line) => JSON.parse(line) as unknown) };
}
