/**
 * The commands that run a script: `run`, and `replay`, which runs a recorded one again. Words become options here, and
 * outcomes words. Part of the entry. What a plain run does not need at once is imported where it is used: its start is
 * somebody's waiting time.
 */
import fs from "node:fs";
import path from "node:path";
import { isTypeScript, type ScriptEngine } from "./engines.js";
import { SandboxError } from "./errors.js";
import type { Granted } from "./grants.js";
import type { Learning } from "./learning.js";
import type { LimitName, PartialLimits } from "./limits.js";
import type { Outcome } from "./outcome.js";
import type { PendingFile } from "./pending-file.js";
import type { PolicyFlags } from "./policy-commands.js";
import type { Policy } from "./policy-schema.js";
import {
  coloured,
  EXIT,
  fileProblem,
  noteWhenSlow,
  onInterrupt,
  readFile,
  readText,
  stderr,
  stdout,
  UsageError,
  write,
  type Interrupt,
} from "./process.js";
import type { Recording, Replay } from "./recording.js";
import type { Sandbox, SandboxPowers } from "./sandbox.js";
import {
  comparisonsJson,
  comparisonText,
  type Comparison,
  divergenceText,
  errorText,
  logText,
  neutral,
  outcomeJson,
  painter,
  replayJson,
  safeJson,
  stopText,
  valueText,
} from "./show.js";
import { Commentary } from "./terminal.js";

export type LaunchedKeepers = NonNullable<SandboxPowers["launched"]>;

interface HullFlags {
  hull: "double" | "language-only";
  requireCgroup?: true;
}

export interface RunFlags extends PolicyFlags, HullFlags {
  eval?: string;
  /** Unsaid: the policy's. The outcomes of several are compared. */
  engine?: ScriptEngine[];
  limit: PartialLimits;
  input?: unknown;
  type?: "module" | "script";
  module: [name: string, file: string][];
  json?: true;
  record?: string;
  /** True: to the standard output. */
  learn?: string | true;
}

export interface ReplayFlags extends HullFlags {
  script?: string;
  module: [name: string, file: string][];
  json?: true;
}

interface Script {
  name: string;
  source: string;
  type: "module" | "script";
}

/** Of a recording, as it is written and read. A run's answers are all in it, so it is held in memory at its end. */
const MAX_RECORDING_BYTES = 64 * 1024 * 1024;

const policyCommands = () => import("./policy-commands.js");

// ---- run ------------------------------------------------------------------------------------------------------------

export async function run(
  file: string | undefined,
  flags: RunFlags,
  launched: LaunchedKeepers,
): Promise<number> {
  checkOutputs(file, flags);
  const asksForGrants = flags.policy !== undefined || flags.grant.length > 0 || flags.learn !== undefined;
  const policy = asksForGrants ? await (await policyCommands()).policyFrom(flags, readFile) : undefined;
  const patience = flags.learn === undefined ? {} : await (await policyCommands()).learningPatience();
  const { limits, largest } = await completeForRun({ ...patience, ...policy?.limits, ...flags.limit });
  const script = await readScript(file, flags, largest);
  const modules = await readModules(flags.module, largest);
  // Not before everything has been read: until here there is nothing to clean up, and a read of a pipe that nobody
  // writes to can be ended by nothing but the end of the process.
  const interrupt = onInterrupt();
  const files: PendingFile[] = [];
  const discard = () => files.forEach((pending) => pending.discard());
  process.once("exit", discard);
  try {
    const recordTo =
      flags.record === undefined ? undefined : await pendingFile(flags.record, 0o600, true, files);
    const learnTo =
      typeof flags.learn === "string" ? await pendingFile(flags.learn, 0o666, false, files) : undefined;
    return await runScript(
      { script, modules, limits, policy, flags, recordTo, learnTo, launched },
      interrupt,
    );
  } catch (error) {
    if (!interrupt.signal.aborted) throw error;
    return interrupt.exitCode; // whatever an interruption broke off is no news
  } finally {
    discard();
  }
}

function checkOutputs(file: string | undefined, { eval: code, record, learn, json }: RunFlags): void {
  if (learn === true && json === true) {
    throw new UsageError("with --json the standard output has the outcome alone: write --learn OUT.json");
  }
  if (file === undefined && code === undefined && typeof learn === "string") {
    throw new UsageError(
      `--learn takes ${neutral(learn)} for the file to write: put the FILE to run before --learn`,
    );
  }
  if (record !== undefined && typeof learn === "string" && path.resolve(record) === path.resolve(learn)) {
    throw new UsageError("--record and --learn name the same file");
  }
}

async function pendingFile(
  file: string,
  mode: number,
  replace: boolean,
  files: PendingFile[],
): Promise<PendingFile> {
  const { PendingFile } = await import("./pending-file.js");
  try {
    const pending = new PendingFile(file, { mode, replace });
    files.push(pending);
    return pending;
  } catch (cause) {
    const remedy = replace ? "" : "; name one that is not there yet";
    const problem = fileProblem(cause, "directory");
    throw new UsageError(`cannot write ${neutral(file)}: ${problem}${remedy}`, { cause });
  }
}

interface RunPlan {
  script: Script;
  modules: [string, string][];
  limits: PartialLimits;
  policy: Policy | undefined;
  flags: RunFlags;
  recordTo: PendingFile | undefined;
  learnTo: PendingFile | undefined;
  launched: LaunchedKeepers;
}

async function runScript(plan: RunPlan, interrupt: Interrupt): Promise<number> {
  const { script, modules, limits, policy, flags, recordTo } = plan;
  const teller = new Teller(flags.json === true);
  let granted: Granted | undefined;
  let learning: Learning | undefined;
  let sandbox: Sandbox | undefined;
  let outcome: Outcome & { recording?: Recording };
  const [engine = policy?.engine ?? "quickjs", ...others] = flags.engine ?? [];
  const comparisons: Comparison[] = [];
  try {
    if (policy !== undefined) {
      const { openGrants, openLearning } = await policyCommands();
      granted = await openGrants(policy, readFile, teller.commentary, flags.json === true);
      if (flags.learn !== undefined) learning = await openLearning(policy, teller.commentary);
    }
    const typescript = isTypeScript(script.name) || modules.some(([name]) => isTypeScript(name));
    sandbox = await startSandbox({ engine, limits, typescript }, flags, plan.launched);
    outcome = await sandbox.run(script.source, {
      name: script.name,
      type: script.type,
      input: flags.input,
      grants: { ...granted?.grants, ...learning?.grants },
      modules: Object.fromEntries(modules),
      signal: interrupt.signal,
      onLog: teller.onLog,
      record: recordTo !== undefined || others.length > 0,
      ...(learning === undefined ? {} : { audit: learning.audit }),
    });
    for (const other of outcome.recording === undefined ? [] : others) {
      comparisons.push(await compare(outcome.recording as Recording, other, limits, flags, interrupt));
    }
  } finally {
    await sandbox?.close();
    granted?.close();
    learning?.close();
  }
  const { recording, ...told } = outcome;
  const saved = recordTo === undefined || (await saveRecording(recordTo, told, recording));
  if (flags.json) {
    const text = others.length === 0 ? outcomeJson(told) : comparisonsJson(engine, told, comparisons);
    await write(stdout, `${text}\n`);
  }
  const sources = new Map([...modules, [script.name, script.source]]);
  const code = await teller.tell(told, sources, sandbox.limits, interrupt);
  if (!flags.json) {
    for (const it of comparisons) await write(stderr, comparisonText(engine, it, painter(coloured(stderr))));
  }
  if (comparisons.some(({ identical }) => !identical) && !interrupt.signal.aborted) return EXIT.diverged;
  const proposed = learning === undefined || (await tellProposal(learning, told, plan));
  return code === EXIT.ok && !(saved && proposed) ? EXIT.usage : code;
}

/** The same run on another engine: the same input, seed, clock and answers, from the recording. */
async function compare(
  recording: Recording,
  engine: ScriptEngine,
  limits: PartialLimits,
  flags: RunFlags,
  { signal }: Interrupt,
): Promise<Comparison> {
  const sandbox = await startSandbox({ engine, limits, typescript: false }, flags, new Map());
  try {
    const replayed = await sandbox.replay(recording, { otherEngine: true, signal });
    return { engine, calls: recording.said.length, ...replayed };
  } finally {
    await sandbox.close();
  }
}

/** Whether it was written, or need not be. */
async function saveRecording(
  to: PendingFile,
  { status }: Outcome,
  recording: Recording | undefined,
): Promise<boolean> {
  const none = (why: string) => write(stderr, `doublehull: ${why}: no recording was written\n`);
  if (status === "cancelled") await none("the run was interrupted");
  else if (recording === undefined) await none("the run never began");
  else {
    try {
      const text = JSON.stringify(recording);
      if (Buffer.byteLength(text) <= MAX_RECORDING_BYTES) return commit(to, text);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error; // longer than any string can be
    }
    await none(`the recording is larger than ${MAX_RECORDING_BYTES} bytes`);
    return false;
  }
  return true;
}

async function commit(to: PendingFile, text: string): Promise<boolean> {
  try {
    to.commit(text);
    return true;
  } catch (error) {
    const problem = fileProblem(error, "directory");
    await write(stderr, `doublehull: cannot write ${neutral(to.target)}: ${problem}\n`);
    return false;
  }
}

/** The policy, on the standard output or in its file, and what its reader should know. Whether it is there, or need not be. */
async function tellProposal(learning: Learning, outcome: Outcome, { learnTo }: RunPlan): Promise<boolean> {
  const none = async (why: string) => {
    await write(stderr, `doublehull: ${why}: no policy is proposed\n`);
    return true;
  };
  if (outcome.status === "cancelled") return none("the run was interrupted");
  if (outcome.status !== "ok" && !learning.heard()) return none("it ended before it asked for anything");
  const dir = learnTo === undefined ? process.cwd() : path.dirname(path.resolve(learnTo.target));
  const { text, notes } = learning.propose(dir);
  const lines = notes.map((note) => `note: ${neutral(note).replaceAll("\n", " ")}\n`);
  if (learnTo !== undefined) {
    if (!(await commit(learnTo, safeJson(text)))) return false;
    lines.push(`The proposed policy is in ${neutral(learnTo.target)}. Read it before it is used.\n`);
  }
  await write(stderr, lines.join(""));
  if (learnTo === undefined) await write(stdout, safeJson(text));
  return true;
}

// ---- replay ---------------------------------------------------------------------------------------------------------

export async function replay(file: string, flags: ReplayFlags, launched: LaunchedKeepers): Promise<number> {
  if (flags.module.length > 0 && flags.script === undefined) {
    throw new UsageError("--module goes with --script: a recording has its modules in it");
  }
  const recording = await readRecording(file);
  const { job, limits } = recording;
  const { LIMITS } = await import("./limits.js");
  const largest = LIMITS.sourceBytes.max;
  const source = flags.script === undefined ? undefined : await readFile(flags.script, largest);
  const modules = new Map([...job.modules, ...(await readModules(flags.module, largest))]);
  const interrupt = onInterrupt();
  const teller = new Teller(flags.json === true);
  let sandbox: Sandbox | undefined;
  let result: Replay;
  try {
    const typescript = source !== undefined && [flags.script ?? "", ...modules.keys()].some(isTypeScript);
    sandbox = await startSandbox({ engine: recording.engine, limits, typescript }, flags, launched);
    result = await sandbox.replay(recording, {
      signal: interrupt.signal,
      onLog: teller.onLog,
      // Under the recorded name, for stacks are a part of what is compared.
      ...(source === undefined
        ? {}
        : {
            source,
            name: job.name,
            language: isTypeScript(flags.script ?? "") ? "typescript" : "javascript",
            modules: Object.fromEntries(modules),
          }),
    });
  } catch (error) {
    if (interrupt.signal.aborted) return interrupt.exitCode;
    if (!(error instanceof SandboxError && error.field?.startsWith("limits."))) throw error;
    throw new UsageError(`${neutral(file)}: ${error.message}`, { cause: error });
  } finally {
    await sandbox?.close();
  }
  const { outcome, identical, divergence } = result;
  if (flags.json) await write(stdout, `${replayJson(result)}\n`);
  const sources = new Map([...modules, [job.name, source ?? job.source]]);
  if (outcome.status === "cancelled" && !interrupt.signal.aborted) await teller.tellLogs(outcome);
  else {
    const code = await teller.tell(outcome, sources, sandbox.limits, interrupt);
    if (identical || interrupt.signal.aborted) return code;
  }
  if (!flags.json) {
    await write(stderr, divergenceText(divergence, recording.said.length, painter(coloured(stderr))));
  }
  return EXIT.diverged;
}

async function readRecording(file: string): Promise<Recording> {
  const text = await readFile(file, MAX_RECORDING_BYTES);
  const { parseRecording } = await import("./recording.js");
  try {
    return parseRecording(text);
  } catch (cause) {
    if (!(cause instanceof SandboxError)) throw cause;
    const remedy = cause.field === undefined ? "Make one with run --record." : cause.remedy;
    throw new UsageError(`${neutral(file)}: ${cause.message}\n    ${remedy}`, { cause });
  }
}

// ---- what both do ---------------------------------------------------------------------------------------------------

async function startSandbox(
  run: { engine: ScriptEngine; limits: PartialLimits; typescript: boolean },
  flags: HullFlags,
  launched: LaunchedKeepers,
): Promise<Sandbox> {
  const { Sandbox } = await import("./sandbox.js");
  if (flags.hull === "language-only") {
    await write(
      stderr,
      "doublehull: warning: no kernel hull (language-only); for development, not for strangers' code\n",
    );
  }
  const endNote = noteWhenSlow("starting the sandbox...");
  const { hull, requireCgroup } = flags;
  return Sandbox.create(
    { ...run, hull, requireCgroup: requireCgroup === true, image: "fast-start", parked: 1, maxConcurrent: 1 },
    { launchFrom: "main", env: process.env, launched },
  ).finally(endNote);
}

/**
 * Most of the log that is told while the script runs, in UTF-16 units; the rest comes after it. Half of what a pipe
 * holds: a reader that waits would stop this process in the middle of a write, and with it the run's deadlines. pipe(7)
 */
const LIVE_LOG = 32 * 1024;

/** Tells a run: its log as it comes, and how it ended. With `json` somebody else tells the outcome. */
class Teller {
  readonly commentary = new Commentary((text) => void stderr.write(text));
  readonly onLog: ((entry: Outcome["logs"][number]) => void) | undefined;
  readonly #paint = painter(coloured(stderr));
  #toldEntries = 0;
  #told = 0;

  constructor(readonly json: boolean) {
    if (json) return;
    this.onLog = (entry) => {
      if (this.#told > LIVE_LOG) return;
      const text = logText(entry, this.#paint);
      this.#told += text.length;
      if (this.#told > LIVE_LOG) return;
      this.#toldEntries++;
      this.commentary.say(text);
    };
  }

  /** What has not been told of the log. */
  async tellLogs({ logs }: Outcome): Promise<void> {
    if (this.json) return;
    const rest = logs.slice(this.#toldEntries);
    await write(stderr, rest.map((entry) => logText(entry, this.#paint)).join(""));
  }

  /** The exit code. `sources` by the names that stacks show. */
  async tell(
    outcome: Outcome,
    sources: ReadonlyMap<string, string>,
    limits: Sandbox["limits"],
    interrupt: Interrupt,
  ): Promise<number> {
    await this.tellLogs(outcome);
    const say = (text: () => string, stream: NodeJS.WriteStream = stderr) =>
      this.json ? undefined : write(stream, text());
    switch (outcome.status) {
      case "ok":
        await say(() => valueText(outcome.value, coloured(stdout)), stdout);
        return EXIT.ok;
      case "threw":
        await say(() => errorText(outcome.error, sources, this.#paint));
        return EXIT.threw;
      case "stopped":
        await say(() => stopText(outcome.stop, limits, this.#paint));
        return EXIT.stopped;
      case "cancelled":
        await say(() => "doublehull: interrupted\n");
        return interrupt.exitCode;
    }
  }
}

/** Limits as asked for. Who raises the wall clock alone wants to compute that long, too. */
export async function completeForRun(
  asked: PartialLimits,
): Promise<{ limits: PartialLimits; largest: number }> {
  const { LIMITS, DEFAULT_LIMITS } = await import("./limits.js");
  const isLimit = (name: string): name is LimitName => Object.hasOwn(LIMITS, name);
  const limits = { ...asked };
  const known = Object.keys(LIMITS);
  for (const [name, value = NaN] of Object.entries(asked)) {
    if (!isLimit(name)) {
      const meant = known.find((limit) => limit.toLowerCase().startsWith(name.toLowerCase().slice(0, 3)));
      const hint = meant === undefined ? "" : ` Did you mean ${meant}?`;
      throw new UsageError(`--limit: there is no limit "${name}".${hint} Known are ${known.join(", ")}.`);
    }
    const row = LIMITS[name];
    if (!(Number.isInteger(value) && value >= row.min && value <= row.max)) {
      throw new UsageError(`--limit: ${name} must be a whole number from ${row.min} to ${row.max}`);
    }
  }
  const { wallMs, cpuMs } = asked;
  if (wallMs !== undefined && wallMs > DEFAULT_LIMITS.cpuMs && cpuMs === undefined) limits.cpuMs = wallMs;
  return { limits, largest: LIMITS.sourceBytes.max };
}

async function readScript(file: string | undefined, flags: RunFlags, largest: number): Promise<Script> {
  if (flags.eval !== undefined) {
    if (file !== undefined) throw new UsageError("give a FILE or -e CODE, not both");
    return { name: "[eval]", source: flags.eval, type: flags.type ?? "script" };
  }
  if (file === undefined) throw new UsageError("give a FILE, -e CODE, or - for the standard input");
  const type = flags.type ?? "module";
  if (file === "-") {
    return { name: "[stdin]", source: await readText(process.stdin, "standard input", largest), type };
  }
  // Stacks show the name as it was typed, but for what a terminal would obey.
  return {
    name: neutral(file).slice(-200),
    source: await readText(fs.createReadStream(file), file, largest),
    type,
  };
}

async function readModules(files: RunFlags["module"], largest: number): Promise<[string, string][]> {
  const modules: [string, string][] = [];
  for (const [name, file] of files) modules.push([name, await readFile(file, largest)]);
  return modules;
}
