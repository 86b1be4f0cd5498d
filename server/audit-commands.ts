/**
 * The command line's side of the audit log: verifies one and shows what is in it. An entry file: paths and streams are
 * touched here; commands.ts keeps the grammar and the exit codes. What a line holds may be a guest's, and the line
 * itself anybody's who could write to the file: nothing of it reaches a terminal as it is.
 */
import fs from "node:fs";
import path from "node:path";
import { didYouMean } from "./did-you-mean.js";
import { fileProblem, stdout, UsageError, write } from "./process.js";
import { AUDIT_KINDS } from "./service/audit-events.js";
import { readLine, segmentName, type ReadLine } from "./service/audit-line.js";
import {
  linesOf,
  segmentsOf,
  verifyAudit,
  type Verification,
  type VerifyOptions,
} from "./service/audit-verify.js";
import { jsonText, neutral, safeJson } from "./show.js";

export interface VerifyFlags {
  head?: string;
  seq?: number;
  from?: string;
  json?: true;
}

export interface ShowFlags {
  tenant?: string;
  run?: string;
  kind?: string;
  json?: true;
}

/** Verifies and says what was found. Throws UsageError for what cannot be read. */
export async function verify(where: string, flags: VerifyFlags): Promise<{ ok: boolean; text: string }> {
  const { head: hash, seq, from } = flags;
  const sought = { ...(hash === undefined ? {} : { hash }), ...(seq === undefined ? {} : { seq }) };
  const isSought = hash !== undefined || seq !== undefined;
  const options: VerifyOptions = {
    ...(isSought ? { head: sought } : {}),
    ...(from === undefined ? {} : { from }),
  };
  const found = await verifyAudit(where, options).catch((error: unknown) => unreadable(where, error));
  const { ok } = found;
  if (flags.json === true) {
    const { lines, segments, first = null, head = null, named = null, problem = null } = found;
    return { ok, text: `${jsonText({ ok, lines, segments, first, head, named, problem })}\n` };
  }
  return { ok, text: neutral(verificationText(where, found, options)) };
}

function verificationText(where: string, found: Verification, { head: sought }: VerifyOptions): string {
  const { ok, lines, segments, first, head, named, problem } = found;
  if (!ok) {
    const { segment = "", line = 0, what = "" } = problem ?? {};
    const place = [segment, line === 0 ? "" : `line ${line}`].filter((part) => part !== "").join(", ");
    const upTo =
      head === undefined ? "no line before it is right" : `right up to line ${head.seq}, hash ${head.hash}`;
    return `BROKEN: ${place === "" ? where : place}: ${inOneLine(what)}\n    ${upTo}\n`;
  }
  const size = `${count(lines, "line")} in ${count(segments, "segment")}`;
  const span = head === undefined ? "" : `    line ${first?.seq} to line ${head.seq}, hash ${head.hash}\n`;
  return `ok: ${size}, each as it was written\n${span}    ${endText(head?.seq ?? 0, named?.seq, sought !== undefined)}\n`;
}

function endText(last: number, named: number | undefined, isSought: boolean): string {
  if (!isSought || named === undefined)
    return "Whether lines are missing at the end cannot be said without --head or --seq, noted elsewhere before.";
  if (named === last) return "It ends with the line that you named, or none behind it is left.";
  return `The line that you named is there (${named}); of ${count(last - named, "line")} behind it the chain alone speaks.`;
}

const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? "" : "s"}`;
const inOneLine = (text: string): string => neutral(text).replaceAll("\n", "\\n").replaceAll("\t", "\\t");

/**
 * Prints the lines that the flags choose, as they come. Resolves to the number of lines that cannot be read, which are
 * left out. Throws UsageError for what is no audit log.
 */
export async function show(where: string, flags: ShowFlags): Promise<{ unreadable: number }> {
  const { kind } = flags;
  if (kind !== undefined && !AUDIT_KINDS.includes(kind))
    throw new UsageError(`--kind: there is no kind ${neutral(kind)}${didYouMean(kind, AUDIT_KINDS)}`);
  let wrong = 0;
  try {
    for (const file of await filesOf(where)) {
      for await (const { lines, rest } of linesOf(file)) {
        const shown: string[] = [];
        for (const bytes of lines) {
          const line = readLine(bytes);
          if (typeof line === "string") wrong++;
          else if (chosen(line, flags)) shown.push(lineText(line, bytes, flags.json === true));
        }
        if (rest !== undefined && rest.length > 0) wrong++;
        await write(stdout, shown.join(""));
        if (stdout.destroyed) return { unreadable: wrong }; // its reader has seen enough
      }
    }
  } catch (error) {
    unreadable(where, error);
  }
  return { unreadable: wrong };
}

async function filesOf(where: string): Promise<string[]> {
  if (!(await fs.promises.stat(where)).isDirectory()) return [where];
  const { ordinals } = await segmentsOf(where);
  if (ordinals.length === 0) throw new UsageError(`${neutral(where)} holds no audit log`);
  return ordinals.map((ordinal) => path.join(where, segmentName(ordinal)));
}

function unreadable(where: string, error: unknown): never {
  if (error instanceof UsageError) throw error;
  if (!(error instanceof Error) || !("code" in error || /regular file/.test(error.message))) throw error;
  throw new UsageError(`cannot read ${neutral(where)}: ${fileProblem(error, "directory")}`, { cause: error });
}

const chosen = ({ kind, record }: ReadLine, flags: ShowFlags): boolean =>
  (flags.kind === undefined || kind === flags.kind) &&
  (flags.tenant === undefined || record["tenant"] === flags.tenant) &&
  (flags.run === undefined || record["run"] === flags.run);

/** Words that are shown first, without their names: what happened. */
const LEADING = new Set(["act", "decision", "reason"]);
const HEAD = new Set(["seq", "time", "node", "prev", "kind"]);

function lineText({ record, kind, seq }: ReadLine, bytes: Uint8Array, json: boolean): string {
  if (json) return `${safeJson(Buffer.from(bytes).toString("latin1"))}\n`;
  const all = Object.entries(record).filter(([key]) => !HEAD.has(key));
  const what = all.filter(([key]) => LEADING.has(key)).map(([, value]) => word(value));
  const rest = all.filter(([key]) => !LEADING.has(key)).map(([key, value]) => `${word(key)}=${word(value)}`);
  const head = [word(record["time"]), word(record["node"]), `#${seq}`, word(kind), ...what];
  return `${[...head, ...rest].join(" ")}\n`;
}

/** Plain words as they are, the rest as JSON: a text with a space or a sign in it cannot be taken for two fields. */
const word = (value: unknown): string =>
  typeof value === "string" && /^[\w.:/-]+$/.test(value) ? value : jsonText(value);
