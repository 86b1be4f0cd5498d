/**
 * The command line. An entry file: process, environment, arguments and streams are touched here and handed on. It
 * decides nothing about a run; it turns words into options and outcomes into words, and keeps the table of exit codes.
 * What `run` does not need at once is imported where it is used: its start is somebody's waiting time.
 */
import fs from "node:fs";
import type { Readable } from "node:stream";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { SandboxError } from "./errors.js";
import type { Granted } from "./grants.js";
import type { LimitName, PartialLimits } from "./limits.js";
import type { PolicyFlags } from "./policy-commands.js";
import type { Policy } from "./policy-schema.js";
import type { SandboxPowers } from "./sandbox.js";
import { errorText, jsonText, logText, neutral, outcomeJson, painter, stopText, valueText } from "./show.js";

const EXIT = {
  ok: 0,
  threw: 1,
  /** Of `policy diff`. */
  additions: 1,
  usage: 2,
  stopped: 3,
  hostCannot: 4,
  bug: 5,
  interrupted: 130,
  terminated: 143,
};

const EXIT_HELP = `
Exit codes:
  0    it finished              3    a layer stopped it
  1    the script threw         4    this host cannot (doublehull doctor)
  2    usage, unreadable file   5    a bug of doublehull
  130  interrupted (SIGINT)     143  terminated (SIGTERM)
`;

/** The caller's mistake; its message says what to write instead. */
class UsageError extends Error {}

const { stdout, stderr } = process;

/** Whether a stream takes colours: a terminal that nobody has told otherwise. no-color.org */
const coloured = (stream: { isTTY?: boolean }): boolean =>
  stream.isTTY === true && !process.env["NO_COLOR"] && process.env["TERM"] !== "dumb";

type LaunchedKeepers = NonNullable<SandboxPowers["launched"]>;
let ahead: LaunchedKeepers = new Map();

let outputFailure: Error | undefined;
for (const stream of [stdout, stderr]) {
  // A reader that closes early (`| head -1`) has seen enough: no error. Anything else is told at the end.
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") outputFailure ??= error;
  });
}

/** Settles when the text has left, or never will: nothing is lost by an exit after it. */
const write = (stream: NodeJS.WriteStream, text: string): Promise<void> =>
  text === "" ? Promise.resolve() : new Promise((resolve) => stream.write(text, () => resolve()));

// ---- policies -------------------------------------------------------------------------------------------------------

const policyCommands = () => import("./policy-commands.js");
const readFile = (file: string, mostBytes: number): Promise<string> =>
  readText(fs.createReadStream(file), file, mostBytes);

async function checkPolicy(file: string, flags: { json?: true }): Promise<number> {
  const { ok, text } = await (await policyCommands()).checkPolicy(file, readFile, flags.json === true);
  await write(stdout, text);
  return ok ? EXIT.ok : EXIT.usage;
}

async function diffPolicies(a: string, b: string, flags: { json?: true }): Promise<number> {
  const { more, text } = await (await policyCommands()).diffPolicies(a, b, readFile, flags.json === true);
  await write(stdout, text);
  return more ? EXIT.additions : EXIT.ok;
}

async function printSchema(): Promise<number> {
  await write(stdout, (await policyCommands()).schemaText());
  return EXIT.ok;
}

async function printTypes(flags: PolicyFlags): Promise<number> {
  await write(stdout, await (await policyCommands()).typesText(flags, readFile));
  return EXIT.ok;
}

/** The grants of a run; nothing is loaded for a run that has none. */
async function openGrants(policy: Policy | undefined, json: boolean): Promise<Granted> {
  if (policy === undefined) return { grants: {}, close: () => {} };
  return (await policyCommands()).openGrants(policy, readFile, (text) => void stderr.write(text), json);
}

// ---- run ------------------------------------------------------------------------------------------------------------

interface RunFlags extends PolicyFlags {
  eval?: string;
  engine: "quickjs";
  limit: PartialLimits;
  input?: unknown;
  type?: "module" | "script";
  module: [name: string, file: string][];
  json?: true;
  hull: "double" | "language-only";
  requireCgroup?: true;
}

interface Script {
  name: string;
  source: string;
  type: "module" | "script";
}

async function run(file: string | undefined, flags: RunFlags): Promise<number> {
  const asksForGrants = flags.policy !== undefined || flags.grant.length > 0;
  const policy = asksForGrants ? await (await policyCommands()).policyFrom(flags, readFile) : undefined;
  const { limits, largest } = await completeForRun({ ...policy?.limits, ...flags.limit });
  const script = await readScript(file, flags, largest);
  const modules: [string, string][] = [];
  for (const [name, path] of flags.module) {
    modules.push([name, await readText(fs.createReadStream(path), path, largest)]);
  }
  // Not before everything has been read: until here there is nothing to clean up, and a read of a pipe that nobody
  // writes to can be ended by nothing but the end of the process.
  const interrupt = onInterrupt();
  try {
    return await runScript(script, modules, limits, policy, flags, interrupt);
  } catch (error) {
    if (!interrupt.signal.aborted) throw error;
    return interrupt.exitCode; // whatever an interruption broke off is no news
  }
}

async function runScript(
  script: Script,
  modules: [string, string][],
  limits: PartialLimits,
  policy: Policy | undefined,
  flags: RunFlags,
  interrupt: Interrupt,
): Promise<number> {
  const { Sandbox } = await import("./sandbox.js");
  if (flags.hull === "language-only") {
    await write(
      stderr,
      "doublehull: warning: no kernel hull (language-only); for development, not for strangers' code\n",
    );
  }
  const granted = await openGrants(policy, flags.json === true);
  const endNote = noteWhenSlow("starting the sandbox...");
  const sandbox = await Sandbox.create(
    {
      engine: flags.engine,
      hull: flags.hull,
      limits,
      requireCgroup: flags.requireCgroup === true,
      image: "fast-start",
      parked: 1,
      maxConcurrent: 1,
      typescript: isTypeScript(script.name) || modules.some(([name]) => isTypeScript(name)),
    },
    { launchFrom: "main", env: process.env, launched: ahead },
  )
    .catch((error: unknown) => {
      granted.close();
      throw error;
    })
    .finally(endNote);
  let outcome;
  try {
    outcome = await sandbox.run(script.source, {
      name: script.name,
      type: script.type,
      input: flags.input,
      grants: granted.grants,
      modules: Object.fromEntries(modules),
      signal: interrupt.signal,
    });
  } finally {
    await sandbox.close();
    granted.close();
  }
  if (flags.json) {
    await write(stdout, `${outcomeJson(outcome)}\n`);
  } else {
    const paint = painter(coloured(stderr));
    await write(stderr, outcome.logs.map((entry) => logText(entry, paint)).join(""));
  }
  switch (outcome.status) {
    case "ok":
      if (!flags.json) await write(stdout, valueText(outcome.value, coloured(stdout)));
      return EXIT.ok;
    case "threw": {
      const sources = new Map([...modules, [script.name, script.source]]);
      if (!flags.json) await write(stderr, errorText(outcome.error, sources, painter(coloured(stderr))));
      return EXIT.threw;
    }
    case "stopped":
      if (!flags.json) await write(stderr, stopText(outcome.stop, sandbox.limits, painter(coloured(stderr))));
      return EXIT.stopped;
    case "cancelled":
      break;
  }
  if (!flags.json) await write(stderr, "doublehull: interrupted\n");
  return interrupt.exitCode;
}

const isTypeScript = (name: string): boolean => /\.[cm]?ts$/.test(name);

/** Limits as asked for. Who raises the wall clock alone wants to compute that long, too. */
async function completeForRun(asked: PartialLimits): Promise<{ limits: PartialLimits; largest: number }> {
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

/** The whole text, as UTF-8; not more than the largest source and a byte, so that an endless file ends here. */
async function readText(from: Readable, what: string, largest: number): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  try {
    for await (const chunk of from as AsyncIterable<Uint8Array>) {
      chunks.push(chunk);
      bytes += chunk.byteLength;
      if (bytes > largest) throw new UsageError(`${neutral(what)} is larger than ${largest} bytes`);
    }
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError(`cannot read ${neutral(what)}: ${readingProblem(error)}`, { cause: error });
  }
  const all = Buffer.concat(chunks);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(all);
  } catch (error) {
    throw new UsageError(`${neutral(what)} is not UTF-8 text`, { cause: error });
  }
}

function readingProblem(error: unknown): string {
  const problems: Record<string, string> = {
    ENOENT: "there is no such file",
    EISDIR: "it is a directory",
    EACCES: "permission denied",
    ENOTDIR: "a part of its path is no directory",
  };
  if (!(error instanceof Error)) return neutral(String(error));
  return ("code" in error ? problems[String(error.code)] : undefined) ?? neutral(error.message);
}

interface Interrupt {
  signal: AbortSignal;
  /** Of the signal that came. */
  exitCode: number;
}

/** The first Ctrl-C or SIGTERM ends the run in order; a second one ends this process, and the keeper cleans up. */
function onInterrupt(): Interrupt {
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
function noteWhenSlow(note: string): () => void {
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

// ---- doctor, explain ------------------------------------------------------------------------------------------------

async function doctor(flags: { json?: true }): Promise<number> {
  const [{ examine, reportText }, { proveEngines }] = await Promise.all([
    import("../osjail/doctor.js"),
    import("./prove.js"),
  ]);
  const endNote = noteWhenSlow("trying every layer...");
  const report = await examine({
    env: process.env,
    node: { version: process.versions.node, execPath: process.execPath },
    prove: () => proveEngines(process.env),
  }).finally(endNote);
  await write(
    stdout,
    flags.json ? `${JSON.stringify(report)}\n` : reportText(report, painter(coloured(stdout))),
  );
  return report.ok ? EXIT.ok : EXIT.hostCannot;
}

interface ExplainFlags extends PolicyFlags {
  engine: "quickjs";
  limit: PartialLimits;
  hull: "double" | "language-only";
  requireCgroup?: true;
  filter?: true;
  json?: true;
}

async function explainRun(flags: ExplainFlags): Promise<number> {
  const [{ explain, explanationText }, { completeLimits, WORKER_OVERHEAD_MB }, { policyWords }, policy] =
    await Promise.all([
      import("./explain.js"),
      import("./limits.js"),
      import("./policy-words.js"),
      policyCommands().then(({ policyFrom }) => policyFrom(flags, readFile)),
    ]);
  const limits = completeLimits((await completeForRun({ ...policy.limits, ...flags.limit })).limits);
  const grants = policyWords(policy);
  let plan;
  if (flags.hull === "double") {
    const [{ readHost }, { planJail }] = await Promise.all([
      import("../osjail/host.js"),
      import("../osjail/plan.js"),
    ]);
    plan = planJail(readHost(process.env).facts, {
      profile: flags.engine,
      requireCgroup: flags.requireCgroup === true,
      slots: 1,
      maxMemoryBytes: (limits.memoryMb + WORKER_OVERHEAD_MB) * 1024 * 1024,
      coreScheduling: false,
      speculation: false,
      without: [],
    });
  }
  const explanation = explain({ engine: flags.engine, limits, grants, plan, filter: flags.filter === true });
  const text = flags.json ? `${jsonText(explanation)}\n` : neutral(explanationText(explanation));
  await write(stdout, text);
  return EXIT.ok;
}

// ---- the command line's grammar -------------------------------------------------------------------------------------

function addLimit(text: string, before: PartialLimits): PartialLimits {
  const [, name, value] = /^([^=]+)=(.+)$/s.exec(text) ?? [];
  if (name === undefined || value === undefined) {
    throw new InvalidArgumentError("Write name=number, as in --limit wallMs=300.");
  }
  if (!/^\d{1,15}$/.test(value)) throw new InvalidArgumentError(`${name} must be a whole number.`);
  return { ...before, [name]: Number(value) };
}

function addModule(text: string, before: [string, string][]): [string, string][] {
  const at = text.indexOf("=");
  const [name, file] = [text.slice(0, at), text.slice(at + 1)];
  if (at < 1 || file === "") throw new InvalidArgumentError("Write NAME=FILE, as in --module lib=./lib.js.");
  if (isTypeScript(file) && !isTypeScript(name)) {
    throw new InvalidArgumentError(`A TypeScript module's name ends like its file: ${name}.ts=${file}.`);
  }
  if (before.some(([other]) => other === name)) throw new InvalidArgumentError(`${name} is given twice.`);
  return [...before, [name, file]];
}

function parseInput(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new InvalidArgumentError(`It is not JSON: ${neutral(String(error))}`);
  }
}

const engineOption = () =>
  new Option("--engine <name>", "language engine").choices(["quickjs"]).default("quickjs");
const hullOption = () =>
  new Option("--hull <kind>", "language-only: no kernel hull, for development only")
    .choices(["double", "language-only"])
    .default("double");
const limitOption = () =>
  new Option("--limit <name=number>", "a limit of the run, by the library's name; repeatable")
    .argParser(addLimit)
    .default({}, "the defaults below");

const policyOption = () => new Option("--policy <file>", "what the script may do, as JSON");
const grantOption = () =>
  new Option("--grant <NAME=VALUE>", "one thing that the script may do; repeatable")
    .argParser((text: string, before: string[]) => [...before, text])
    .default([], "none");

const RUN_EXAMPLES = `
Examples:
  $ doublehull run script.ts
  $ doublehull run -e '1 + 1'
  $ doublehull run sum.js --input '{"numbers":[1,2,3]}' --limit wallMs=300 --limit memoryMb=32
  $ echo 'export default () => 42' | doublehull run -
  $ doublehull run main.js --module lib=./lib.js --json
  $ doublehull run main.js --grant kv --grant files=./data:ro --grant 'http=https://api.example.com/*'

A module's default export is called with (input, env). Results go to the standard output, the script's logs and
errors to the standard error. In --json, values that JSON lacks are objects with the key "$type": undefined, number
(NaN, Infinity, -0), bigint, Date, Map, Set, Error, and typed arrays in base64.
`;

function version(): string {
  const file = new URL("../../package.json", import.meta.url);
  const { version: number }: { version: string } = JSON.parse(fs.readFileSync(file, "utf8"));
  return number;
}

function grammar(done: (code: number) => void): Command {
  const program = new Command("doublehull")
    .description("Runs untrusted JavaScript behind two hulls: a language sandbox inside a Linux kernel jail.")
    .version(version(), "-V, --version")
    .exitOverride()
    .showHelpAfterError("(doublehull --help tells more)")
    .addHelpText("after", `${EXIT_HELP}\nBegin with: doublehull run -e '1 + 1'\n`);

  program
    .command("run [FILE]")
    .summary("run a script in a jailed process of its own")
    .description("Runs a script (FILE, -e CODE, or - for the standard input) in a jailed process of its own.")
    .option("-e, --eval <code>", "run this code; a script unless --type says otherwise")
    .addOption(engineOption())
    .addOption(limitOption())
    .addOption(new Option("--input <json>", "the first argument of the default export").argParser(parseInput))
    .addOption(new Option("--type <kind>", "a file is a module, -e a script").choices(["module", "script"]))
    .addOption(
      new Option("--module <NAME=FILE>", "a module that may be imported by this name; repeatable")
        .argParser(addModule)
        .default([], "none"),
    )
    .option("--json", "print the outcome as one JSON object, and nothing else, on the standard output")
    .addOption(hullOption())
    .option("--require-cgroup", "refuse to run where no cgroup can be had")
    .addOption(policyOption())
    .addOption(grantOption())
    .addHelpText("after", RUN_EXAMPLES + EXIT_HELP)
    .action(async (file: string | undefined, flags: RunFlags) => done(await run(file, flags)));

  program
    .command("doctor")
    .summary("try every layer on this host and say how to get what is missing")
    .description(
      "Tries every layer on this host, then runs a script behind all of them. Exit code 4: it cannot.",
    )
    .option("--json", "print the report as one JSON object")
    .action(async (flags: { json?: true }) => done(await doctor(flags)));

  program
    .command("explain")
    .summary("say what a run may do on this host, layer by layer")
    .description("Says what a run may do on this host: limits, layers, system calls. Starts nothing.")
    .addOption(engineOption())
    .addOption(limitOption())
    .addOption(hullOption())
    .option("--require-cgroup", "refuse where no cgroup can be had")
    .addOption(policyOption())
    .addOption(grantOption())
    .option("--filter", "print the seccomp filter, disassembled")
    .option("--json", "print it as one JSON object")
    .action(async (flags: ExplainFlags) => done(await explainRun(flags)));

  program
    .command("types")
    .summary("write the TypeScript declarations of a script's env")
    .description("Writes a .d.ts of what a script may call with these grants. Opens nothing.")
    .addOption(policyOption())
    .addOption(grantOption())
    .action(async (flags: PolicyFlags) => done(await printTypes(flags)));

  const policies = program
    .command("policy")
    .summary("check and compare policies")
    .description("Policies: what a script may do, in a JSON file.");
  policies
    .command("check <FILE>")
    .description(
      "Says what a policy grants, or what is wrong with it. Opens nothing. Exit code 2: it is wrong.",
    )
    .option("--json", "print it as one JSON object")
    .action(async (file: string, flags: { json?: true }) => done(await checkPolicy(file, flags)));
  policies
    .command("diff <A> <B>")
    .description("Says what B allows and A does not. Exit code 1: something, 0: nothing.")
    .option("--json", "print it as one JSON object")
    .action(async (a: string, b: string, flags: { json?: true }) => done(await diffPolicies(a, b, flags)));
  policies
    .command("schema")
    .description("Prints the JSON schema of policies, for editors.")
    .action(async () => done(await printSchema()));
  return program;
}

/** After the help of a command that takes limits: their table, which costs an import that a run need not pay here. */
async function limitsHelp(): Promise<string> {
  const [{ LIMITS }, { table }, { GRANT_USAGE }] = await Promise.all([
    import("./limits.js"),
    import("./explain.js"),
    import("./grant-flags.js"),
  ]);
  const rows = Object.entries(LIMITS).map(([name, row]) => [
    name,
    `${row.default}`,
    `${row.min} to ${row.max}`,
    row.stops,
  ]);
  const grants = GRANT_USAGE.map((usage) => `  ${usage}\n`).join("");
  return `\nLimits:\n${table([["name", "default", "range", "stops"], ...rows])}\nGrants (--grant):\n${grants}`;
}

async function main(args: readonly string[]): Promise<number> {
  let code: number = EXIT.ok;
  try {
    await grammar((c) => (code = c)).parseAsync(args);
    return code;
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.code === "commander.helpDisplayed" && /^(run|explain)$/.test(args[2] ?? "")) {
        await write(stdout, await limitsHelp());
      }
      return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    }
    return tell(error);
  }
}

const say = (message: string, remedy?: string): Promise<void> =>
  write(stderr, `doublehull: ${neutral(message)}\n${remedy === undefined ? "" : `    ${remedy}\n`}`);

/** An error in words, and the exit code that it means. */
async function tell(error: unknown): Promise<number> {
  if (error instanceof UsageError) {
    await say(error.message);
    return EXIT.usage;
  }
  if (error instanceof SandboxError) {
    const usage = error.code === "bad-option" || error.code === "bad-input" || error.code === "over-limit";
    if (usage || error.code === "host-cannot" || error.code === "overloaded") {
      await say(usage ? error.message : `this host cannot: ${error.message}`, error.remedy);
      return usage ? EXIT.usage : EXIT.hostCannot;
    }
  }
  if (error instanceof Error && error.name === "JailError") {
    await say(`this host cannot: ${error.message}`, (error as Error & { remedy?: string }).remedy);
    return EXIT.hostCannot;
  }
  const { code } = error as NodeJS.ErrnoException;
  if (code === "EMFILE" || code === "ENFILE") {
    await say("this host cannot: too many open files", "Raise the limit: ulimit -n 1024");
    return EXIT.hostCannot;
  }
  const detail = error instanceof Error ? (error.stack ?? error.message) : String(error);
  await say(`this is a bug of doublehull; please report it with these lines:\n${detail}`);
  return EXIT.bug;
}

async function crash(error: unknown): Promise<void> {
  await tell(error);
  process.exit(EXIT.bug);
}
/** Runs the command that the arguments name and sets the exit code. `launched` are keepers on their way already. */
export async function commandLine(launched: LaunchedKeepers): Promise<void> {
  process.on("uncaughtException", (error) => void crash(error));
  process.on("unhandledRejection", (error) => void crash(error));
  ahead = launched;
  process.exitCode = EXIT.bug; // what stays should the event loop run dry before we are done
  let exitCode = await main(process.argv);
  if (outputFailure !== undefined) {
    exitCode = exitCode === EXIT.ok ? EXIT.usage : exitCode;
    await write(stderr, `doublehull: cannot write the output: ${outputFailure.message}\n`);
  }
  process.exitCode = exitCode;
}
