/**
 * The command line. An entry file: environment and arguments are touched here and handed on. It decides nothing about
 * a run: it is the grammar, and whatever goes wrong in words. What `run` does not need at once is imported where it is
 * used: its start is somebody's waiting time.
 */
import fs from "node:fs";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import type { ShowFlags, VerifyFlags } from "./audit-commands.js";
import { isTypeScript, SCRIPT_ENGINES, type ScriptEngine } from "./engines.js";
import { SandboxError } from "./errors.js";
import type { PartialLimits } from "./limits.js";
import type { McpFlags } from "./mcp.js";
import type { PolicyFlags } from "./policy-commands.js";
import {
  coloured,
  EXIT,
  EXIT_HELP,
  noteWhenSlow,
  outputFailure,
  readFile,
  stderr,
  stdout,
  UsageError,
  write,
} from "./process.js";
import {
  completeForRun,
  replay,
  run,
  type LaunchedKeepers,
  type ReplayFlags,
  type RunFlags,
} from "./run-command.js";
import type { ServeFlags } from "./serve.js";
import { jsonText, neutral, painter } from "./show.js";

let ahead: LaunchedKeepers = new Map();

// ---- policies -------------------------------------------------------------------------------------------------------

const policyCommands = () => import("./policy-commands.js");

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

// ---- the audit log --------------------------------------------------------------------------------------------------

const auditCommands = () => import("./audit-commands.js");

async function verifyAuditLog(where: string, flags: VerifyFlags): Promise<number> {
  const { ok, text } = await (await auditCommands()).verify(where, flags);
  await write(stdout, text);
  return ok ? EXIT.ok : EXIT.broken;
}

async function showAuditLog(where: string, flags: ShowFlags): Promise<number> {
  const { unreadable } = await (await auditCommands()).show(where, flags);
  if (unreadable === 0) return EXIT.ok;
  await say(
    `${unreadable} line${unreadable === 1 ? "" : "s"} of it cannot be read and ${unreadable === 1 ? "is" : "are"} left out`,
    "Run doublehull audit verify on it: it says where the log is broken.",
  );
  return EXIT.broken;
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
  engine?: ScriptEngine;
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
  const engine = flags.engine ?? policy.engine;
  let plan;
  if (flags.hull === "double") {
    const [{ readHost }, { planJail }] = await Promise.all([
      import("../osjail/host.js"),
      import("../osjail/plan.js"),
    ]);
    plan = planJail(readHost(process.env).facts, {
      profile: engine,
      requireCgroup: flags.requireCgroup === true,
      slots: 1,
      maxMemoryBytes: (limits.memoryMb + WORKER_OVERHEAD_MB) * 1024 * 1024,
      coreScheduling: false,
      speculation: false,
      without: [],
    });
  }
  const explanation = explain({ engine, limits, grants, plan, filter: flags.filter === true });
  const text = flags.json ? `${jsonText(explanation)}\n` : neutral(explanationText(explanation));
  await write(stdout, text);
  return EXIT.ok;
}

// ---- mcp ------------------------------------------------------------------------------------------------------------

const serveMcp = async (flags: McpFlags): Promise<number> =>
  (await import("./mcp.js")).serveMcp(flags, version());

// ---- serve ----------------------------------------------------------------------------------------------------------

const serve = async (flags: ServeFlags): Promise<number> =>
  (await import("./serve.js")).serve(
    { ...flags, limit: (await completeForRun(flags.limit)).limits },
    version(),
    coloured(stdout),
  );

// ---- the command line's grammar -------------------------------------------------------------------------------------

function addLimit(text: string, before: PartialLimits): PartialLimits {
  const [, name, value] = /^([^=]+)=(.+)$/s.exec(text) ?? [];
  if (name === undefined || value === undefined) {
    throw new InvalidArgumentError("Write name=number, as in --limit wallMs=300.");
  }
  if (!/^\d{1,15}$/.test(value)) throw new InvalidArgumentError(`${name} must be a whole number.`);
  return { ...before, [name]: Number(value) };
}

const wholeFrom =
  (min: number, max: number) =>
  (text: string): number => {
    const value = Number(text);
    if (/^\d{1,9}$/.test(text) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${min} to ${max}.`);
  };

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

function addOrigin(text: string, before: string[] = []): string[] {
  const origin = URL.canParse(text) ? new URL(text).origin : "";
  if (text !== origin || origin === "null")
    throw new InvalidArgumentError(
      "Give a scheme and a host, as in https://app.example.com, without a path.",
    );
  return [...before, text];
}

function parseNode(text: string): string {
  if (/^[\w.:-]{1,64}$/.test(text)) return text;
  throw new InvalidArgumentError("Give 1 to 64 letters, digits, dots, colons, hyphens or underscores.");
}

function parseHash(text: string): string {
  if (!/^[0-9a-f]{64}$/.test(text)) throw new InvalidArgumentError("Give 64 hex digits, in lower case.");
  return text;
}

function parseSeq(text: string): number {
  if (!/^[1-9]\d{0,14}$/.test(text)) throw new InvalidArgumentError("Give a line's number, from 1.");
  return Number(text);
}

function parseInput(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new InvalidArgumentError(`It is not JSON: ${neutral(String(error))}`);
  }
}

const engineOption = () =>
  new Option("--engine <name>", "language engine (default: the policy's, or quickjs)").choices(
    SCRIPT_ENGINES,
  );

function parseEngines(text: string): ScriptEngine[] {
  const names = text.split(",");
  const known = (name: string): name is ScriptEngine => SCRIPT_ENGINES.some((engine) => engine === name);
  if (!names.every(known)) throw new InvalidArgumentError(`Known are ${SCRIPT_ENGINES.join(", ")}.`);
  if (new Set(names).size < names.length) throw new InvalidArgumentError("An engine is named twice.");
  return names;
}
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
  $ doublehull run main.js --grant kv --record run.json
  $ doublehull run main.js --learn policy.json

A module's default export is called with (input, env). Results go to the standard output, the script's logs and
errors to the standard error. In --json, values that JSON lacks are objects with the key "$type": undefined, number
(NaN, Infinity, -0), bigint, Date, Map, Set, Error, and typed arrays in base64.

With --learn the script finds env.kv, env.files (the current directory) and env.http (and fetch), as far as no grant of
yours has these names. Each new thing that it wants to do with them is asked at the terminal, and done after a yes;
without a terminal it is refused. What was allowed, or asked for where nobody could answer, is proposed as a policy:
in the file, which must not be there yet, or on the standard output.
`;

const REPLAY_EXAMPLES = `
Examples:
  $ doublehull run main.js --grant kv --record run.json && doublehull replay run.json
  $ doublehull replay run.json --script changed.js

The same script gives the identical outcome, and the exit code of the run. Where another one first does something else
is told on the standard error. TypeScript was recorded without its types.
`;

const MCP_HELP = `
In the configuration of a client:
  { "mcpServers": { "sandbox": { "command": "doublehull", "args": ["mcp", "--grant", "kv"] } } }

The tool run_code runs a module of the client's model, whose default export is called with (input, env). Its description
has the types of what the grants give. Stores are kept from call to call, variables are not. What approve asks is put to
the client's person, if the client has elicitation; else it is refused.

Exit codes: 0 when the client leaves; 2, 4 and 5 as those of run; 130 and 143 after a signal.
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
    .addOption(
      new Option(
        "--engine <name[,name...]>",
        "language engine (default: the policy's, or quickjs); of several, where their outcomes part",
      ).argParser(parseEngines),
    )
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
    .option(
      "--record <file>",
      "write a recording of the run, for doublehull replay; as secret as its answers",
    )
    .option("--learn [file]", "ask about each thing that no grant covers, and propose the least policy")
    .addHelpText("after", RUN_EXAMPLES + EXIT_HELP)
    .action(async (file: string | undefined, flags: RunFlags) => done(await run(file, flags, ahead)));

  program
    .command("replay <FILE>")
    .summary("run a recorded run again, with nothing granted")
    .description(
      "Runs a run again that run --record has written: its calls are answered from the recording, and nothing is granted.",
    )
    .option("--script <file>", "run this code in the recorded one's place, and say where it goes another way")
    .addOption(
      new Option("--module <NAME=FILE>", "with --script, a module in place of the recorded one; repeatable")
        .argParser(addModule)
        .default([], "the recorded ones"),
    )
    .option("--json", "print { outcome, identical, divergence } as one JSON object on the standard output")
    .addOption(hullOption())
    .option("--require-cgroup", "refuse to run where no cgroup can be had")
    .addHelpText("after", REPLAY_EXAMPLES + EXIT_HELP)
    .action(async (file: string, flags: ReplayFlags) => done(await replay(file, flags, ahead)));

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
    .command("serve")
    .summary("run the HTTP service")
    .description(
      "Runs the HTTP service on this host. The first start makes a tenant and prints its API key and the administrator's.",
    )
    .option("--listen <host:port>", "where tenants' requests come in", "127.0.0.1:7070")
    .option("--admin-listen <host:port>", "where administrators' do", "127.0.0.1:7071")
    .option(
      "--cors-origin <origin>",
      "whose pages may ask, as in https://app.example.com; may be given again",
      addOrigin,
    )
    .option(
      "--data <dir>",
      "the service's own directory: database, audit log, sealing key",
      "doublehull-data",
    )
    .addOption(
      new Option(
        "--store <url>",
        "postgres://..., which several nodes may share (default: files in --data)",
      ).env("DOUBLEHULL_STORE"),
    )
    .addOption(
      new Option(
        "--queue <url>",
        "redis://... or postgres://..., which hands jobs to several nodes (default: within this process)",
      ).env("DOUBLEHULL_QUEUE"),
    )
    .option(
      "--sealing-key <file>",
      "what secrets are sealed with, the same for all nodes (default: in --data)",
    )
    .option("--node <name>", "which node this is, in the audit log (default: the host's name)", parseNode)
    .addOption(limitOption().default({}, "wallMs=30000, cpuMs=30000, and the defaults below"))
    .option("--max-concurrent <n>", "runs at once (default: 2 for each CPU, at least 4)", wholeFrom(1, 1000))
    .option("--max-queue <n>", "runs that may wait for one of these", wholeFrom(0, 1_000_000), 1000)
    .option("--parked <n>", "workers kept ready", wholeFrom(0, 1000), 4)
    .option("--grace <seconds>", "how long runs may go on after SIGTERM", wholeFrom(0, 3600), 30)
    .addOption(
      new Option("--log-level <level>", "of the log on the standard error")
        .choices(["debug", "info", "warn", "error", "silent"])
        .default("info"),
    ) // prettier-ignore
    .option("--require-cgroup", "refuse to start where no cgroup can be had")
    .action(async (flags: ServeFlags) => done(await serve(flags)));

  program
    .command("types")
    .summary("write the TypeScript declarations of a script's env")
    .description("Writes a .d.ts of what a script may call with these grants. Opens nothing.")
    .addOption(policyOption())
    .addOption(grantOption())
    .action(async (flags: PolicyFlags) => done(await printTypes(flags)));

  program
    .command("mcp")
    .summary("serve language models: a tool that runs code, by the Model Context Protocol")
    .description("Serves the Model Context Protocol on the standard streams, with a tool that runs code.")
    .addOption(engineOption())
    .addOption(limitOption())
    .addOption(hullOption())
    .option("--require-cgroup", "refuse to start where no cgroup can be had")
    .addOption(policyOption())
    .addOption(grantOption())
    .addHelpText("after", MCP_HELP)
    .action(async (flags: McpFlags) => done(await serveMcp(flags)));

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

  const audit = program
    .command("audit")
    .summary("verify and show the audit log of a service")
    .description("The audit log of a service: a directory of segments, or one of them. Changes nothing.");
  audit
    .command("verify <DIR>")
    .description("Says whether every line is as it was written and in its place. Exit code 1: it is not.")
    .addOption(new Option("--head <hash>", "a line with this hash must be there").argParser(parseHash))
    .addOption(new Option("--seq <number>", "a line of this number must be there").argParser(parseSeq))
    .addOption(
      new Option(
        "--from <hash>",
        "the log begins behind the line of this hash: what stood before is kept elsewhere",
      ).argParser(parseHash),
    )
    .option("--json", "print it as one JSON object")
    .action(async (where: string, flags: VerifyFlags) => done(await verifyAuditLog(where, flags)));
  audit
    .command("show <DIR>")
    .description("Prints the lines. Does not verify them: exit code 1 only where one cannot be read.")
    .option("--tenant <name>", "only what concerns this tenant")
    .option("--run <id>", "only what concerns this run")
    .option(
      "--kind <kind>",
      "only this kind: call, run, approval, job, tenant, key, policy, script, secret, schedule, auth, server, recovered",
    )
    .option("--json", "print each as the JSON object that it is")
    .action(async (where: string, flags: ShowFlags) => done(await showAuditLog(where, flags)));
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
      if (error.code === "commander.helpDisplayed" && /^(run|explain|mcp)$/.test(args[2] ?? "")) {
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
    if (usage || error.code === "host-cannot" || error.code === "no-engine" || error.code === "overloaded") {
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
  const failure = outputFailure();
  if (failure !== undefined) {
    exitCode = exitCode === EXIT.ok ? EXIT.usage : exitCode;
    await write(stderr, `doublehull: cannot write the output: ${failure.message}\n`);
  }
  process.exitCode = exitCode;
}
