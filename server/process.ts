/**
 * This process, as the commands use it: its streams, its signals and its exit codes. Part of the entry: nothing but the
 * commands imports it.
 */
import fs from "node:fs";
import type { Readable } from "node:stream";
import { neutral } from "./show.js";

export const EXIT = {
  ok: 0,
  threw: 1,
  /** Of `policy diff`. */
  additions: 1,
  /** Of `audit`. */
  broken: 1,
  usage: 2,
  stopped: 3,
  hostCannot: 4,
  bug: 5,
  /** Of `replay`. */
  diverged: 6,
  interrupted: 130,
  terminated: 143,
};

export const EXIT_HELP = `
Exit codes:
  0    it finished              3    a layer stopped it
  1    the script threw         4    this host cannot (doublehull doctor)
  2    usage, unreadable file   5    a bug of doublehull
  6    the replay diverged from the recording
  130  interrupted (SIGINT)     143  terminated (SIGTERM)
`;

/** The caller's mistake; its message says what to write instead. */
export class UsageError extends Error {}

export const { stdout, stderr } = process;

/** Whether a stream takes colours: a terminal that nobody has told otherwise. no-color.org */
export const coloured = (stream: { isTTY?: boolean }): boolean =>
  stream.isTTY === true && !process.env["NO_COLOR"] && process.env["TERM"] !== "dumb";

/** The first failure to write that is no reader's leaving. */
let failure: Error | undefined;
export const outputFailure = (): Error | undefined => failure;
for (const stream of [stdout, stderr]) {
  // A reader that closes early (`| head -1`) has seen enough: no error. Anything else is told at the end.
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") failure ??= error;
  });
}

/** Settles when the text has left, or never will: nothing is lost by an exit after it. */
export const write = (stream: NodeJS.WriteStream, text: string): Promise<void> =>
  text === "" ? Promise.resolve() : new Promise((resolve) => stream.write(text, () => resolve()));

export const readFile = (file: string, mostBytes: number): Promise<string> =>
  readText(fs.createReadStream(file), file, mostBytes);

/** The whole text, as UTF-8; not more than the most and a byte, so that an endless file ends here. */
export async function readText(from: Readable, what: string, mostBytes: number): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  try {
    for await (const chunk of from as AsyncIterable<Uint8Array>) {
      chunks.push(chunk);
      bytes += chunk.byteLength;
      if (bytes > mostBytes) throw new UsageError(`${neutral(what)} is larger than ${mostBytes} bytes`);
    }
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError(`cannot read ${neutral(what)}: ${fileProblem(error, "file")}`, { cause: error });
  }
  const all = Buffer.concat(chunks);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(all);
  } catch (error) {
    throw new UsageError(`${neutral(what)} is not UTF-8 text`, { cause: error });
  }
}

/** Why a file cannot be read or written, in words. `missing`: what there is none of, when there is none. */
export function fileProblem(error: unknown, missing: "file" | "directory"): string {
  const problems: Record<string, string> = {
    ENOENT: `there is no such ${missing}`,
    EISDIR: "it is a directory",
    EACCES: "permission denied",
    EEXIST: "it exists already",
    ENOSPC: "the disk is full",
    ENOTDIR: "a part of its path is no directory",
    EROFS: "its file system is read-only",
  };
  if (!(error instanceof Error)) return neutral(String(error));
  return ("code" in error ? problems[String(error.code)] : undefined) ?? neutral(error.message);
}

export interface Interrupt {
  signal: AbortSignal;
  /** What the shell expects of a program that was ended so. */
  exitCode: number;
}

/** The first Ctrl-C or SIGTERM ends the run in order; a second one ends this process, and the keeper cleans up. */
export function onInterrupt(): Interrupt {
  const controller = new AbortController();
  const interrupt: Interrupt = { signal: controller.signal, exitCode: EXIT.interrupted };
  const hear = (exitCode: number) => () => {
    if (controller.signal.aborted) process.exit(exitCode);
    interrupt.exitCode = exitCode;
    controller.abort();
  };
  process.on("SIGINT", hear(EXIT.interrupted)).on("SIGTERM", hear(EXIT.terminated));
  return interrupt;
}

const SLOW_MS = 700;

/** A line on a terminal that waits long; gone when the returned function is called. */
export function noteWhenSlow(note: string): () => void {
  if (!stderr.isTTY) return () => {};
  let shown = false;
  const timer = setTimeout(() => {
    shown = true;
    stderr.write(note);
  }, SLOW_MS);
  return () => {
    clearTimeout(timer);
    if (shown) stderr.write("\r\x1b[K"); // back to the line's start, erase to its end: ECMA-48 EL
  };
}
