/**
 * The command line's side of policies: files and flags become a policy, a policy becomes grants that this process can
 * give, and what is asked about policies becomes text. An entry file: the environment, the terminal and the file
 * system are touched here. commands.ts, which keeps the grammar and the exit codes, prints what comes back.
 */
import fs from "node:fs";
import path from "node:path";
import tty from "node:tty";
import { grantsText } from "./explain.js";
import { grantsFromFlags } from "./grant-flags.js";
import { grantsOf, hollowPowers, type Granted, type GrantPowers } from "./grants.js";
import { parsePolicy, PolicyError } from "./policy.js";
import type { Learning, LearningPowers } from "./learning.js";
import { DEFAULT_LIMITS, type PartialLimits } from "./limits.js";
import { policyDiff } from "./policy-diff.js";
import { policyJsonSchema, type Policy } from "./policy-schema.js";
import { policyWords } from "./policy-words.js";
import { jsonText, neutral } from "./show.js";
import { askPerson, eventJson, eventText, type Commentary, type Terminal } from "./terminal.js";
import { environmentTypes } from "./types.js";

export interface PolicyFlags {
  policy?: string;
  grant: string[];
}

/** Reads a file of at most so many bytes; rejects with words that name it. */
type ReadText = (file: string, mostBytes: number) => Promise<string>;

const MAX_POLICY_BYTES = 1024 * 1024;
const MAX_SECRET_BYTES = 64 * 1024;

/** What the flags grant: a file's policy and the grants beside it. What is wrong with the file's text is told with its name. */
export async function policyFrom({ policy: file, grant }: PolicyFlags, readText: ReadText): Promise<Policy> {
  const text = file === undefined ? "{}" : await readText(file, MAX_POLICY_BYTES);
  const beside = { grants: grantsFromFlags(grant), dir: process.cwd() };
  try {
    return parsePolicy(text, path.dirname(path.resolve(file ?? "")), beside);
  } catch (error) {
    if (!(error instanceof PolicyError) || file === undefined) throw error;
    const problems = error.problems.map(({ field, message }) => ({
      field,
      message: field === "" ? `${file}: ${message}` : message,
    }));
    throw new PolicyError(problems, { cause: error });
  }
}

/** The grants, by what this process can give. Events are told in the commentary: a line of JSON each, or words. */
export function openGrants(
  policy: Policy,
  readText: ReadText,
  commentary: Commentary,
  json: boolean,
): Promise<Granted> {
  const powers: GrantPowers = {
    env: process.env,
    readText: (file) => readText(file, MAX_SECRET_BYTES),
    files: openFiles,
    async sqlite(file) {
      const { sqliteStore } = await import("../hostapi/kv-sqlite.js");
      return sqliteStore(file);
    },
    ask: (question, signal) => commentary.aside(() => askPerson(question, signal, openTerminal)),
    onEvent: (event) => commentary.say(json ? eventJson(event) : eventText(event)),
  };
  return grantsOf(policy, powers);
}

async function openFiles() {
  const [{ filesWith }, { beneath }] = await Promise.all([
    import("../hostapi/files.js"),
    import("../osjail/beneath.js"),
  ]);
  return filesWith(beneath());
}

/** Stand-ins for what the policy does not grant: they ask at the terminal, if there is one. */
export async function openLearning(policy: Policy, commentary: Commentary): Promise<Learning> {
  const { learn } = await import("./learning.js");
  const ask: LearningPowers["ask"] = (question, signal) =>
    commentary.aside(() => askPerson(question, signal, openTerminal));
  return learn(policy, { ask: hasTerminal() ? ask : undefined, files: openFiles, dir: process.cwd() });
}

/** Limits of a run that a person is asked in, where nobody says otherwise: it waits for answers, and computes no longer. */
export async function learningPatience(): Promise<PartialLimits> {
  if (!hasTerminal()) return {};
  const { ANSWER_MS } = await import("./learning.js");
  return { wallMs: DEFAULT_LIMITS.wallMs + ANSWER_MS, cpuMs: DEFAULT_LIMITS.cpuMs };
}

function hasTerminal(): boolean {
  try {
    fs.closeSync(fs.openSync("/dev/tty", "r+"));
    return true;
  } catch {
    return false; // ENXIO: this session has none. tty(4)
  }
}

/**
 * The terminal that this process was started from, whatever its standard streams are. Throws where there is none.
 * Lines that were typed before are thrown away: they answer no question that anybody has seen.
 */
function openTerminal(): Terminal {
  const ahead = fs.openSync("/dev/tty", fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  try {
    while (fs.readSync(ahead, Buffer.alloc(4096)) > 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
  } finally {
    fs.closeSync(ahead);
  }
  const input = new tty.ReadStream(fs.openSync("/dev/tty", "r"));
  const output = new tty.WriteStream(fs.openSync("/dev/tty", "w"));
  return { input, output, close: () => void (input.destroy(), output.destroy()) };
}

/** What a policy grants. Rejects with PolicyError for one that is wrong, but with `json` tells that, too. */
export async function checkPolicy(
  file: string,
  readText: ReadText,
  json: boolean,
): Promise<{ ok: boolean; text: string }> {
  try {
    const policy = await policyFrom({ policy: file, grant: [] }, readText);
    (await grantsOf(policy, hollowPowers())).close(); // methods that are not there
    const grants = policyWords(policy);
    const words = `${file} is a policy. It grants:\n${grantsText(grants)}`;
    return { ok: true, text: json ? `${jsonText({ ok: true, problems: [], grants })}\n` : neutral(words) };
  } catch (error) {
    if (!(error instanceof PolicyError) || !json) throw error;
    return { ok: false, text: `${jsonText({ ok: false, problems: error.problems, grants: [] })}\n` };
  }
}

/** What the policy in `b` allows and that in `a` does not. */
export async function diffPolicies(
  a: string,
  b: string,
  readText: ReadText,
  json: boolean,
): Promise<{ more: boolean; text: string }> {
  const [before, after] = [
    await policyFrom({ policy: a, grant: [] }, readText),
    await policyFrom({ policy: b, grant: [] }, readText),
  ];
  const additions = policyDiff(before, after, realPath);
  const more = additions.length > 0;
  if (json) return { more, text: `${jsonText({ additions })}\n` };
  const lines = additions.map(({ field, words }) => `  ${field}: ${words}\n`).join("");
  const text = more ? `${b} additionally allows:\n${lines}` : `${b} allows nothing that ${a} does not.\n`;
  return { more, text: neutral(text) };
}

/** Where a directory really is; one that is not there is where it says. */
function realPath(directory: string): string {
  try {
    return fs.realpathSync(directory);
  } catch {
    return directory; // nothing leads anywhere from it
  }
}

export const schemaText = (): string => `${JSON.stringify(policyJsonSchema(), null, 2)}\n`;

/** The declarations of the env that the flags make. Opens nothing. */
export async function typesText(flags: PolicyFlags, readText: ReadText): Promise<string> {
  const granted = await grantsOf(await policyFrom(flags, readText), hollowPowers());
  granted.close();
  return environmentTypes(granted.grants);
}
