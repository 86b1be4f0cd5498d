/**
 * `doublehull/tools`: the sandbox as one tool of a language model, in the plain shape that every framework takes. The
 * model writes a program against the types of what is granted, and is told in words what became of it: one call that
 * reads, filters and writes, where a tool per function would need a turn of the model for each.
 *
 * The rule: what the model reads is bounded, and a guest can only say it as a guest. Values are JSON, logs have a
 * margin, and nothing stands in them that a terminal would obey; for what a tool fetched from a stranger comes back
 * through here, and a model, too, believes a line that looks like ours.
 */
import { z } from "zod";
import { Capability } from "../hostapi/capability.js";
import { SandboxError } from "./errors.js";
import type { Limits, PartialLimits } from "./limits.js";
import { parse, runSchema, type Grant, type RunOptions } from "./options.js";
import { errorSchema, logLevelSchema, stopSchema, usageSchema } from "./outcome-schema.js";
import type { LogEntry, Outcome, ScriptError, Stop, StopReason, Usage } from "./outcome.js";
import type { Sandbox } from "./sandbox.js";
import { errorText, jsonable, logText, neutral, painter, safeJson, stopText } from "./show.js";
import { environmentTypes } from "./types.js";

const toolSchema = runSchema.pick({ limits: true, tenant: true, audit: true }).extend({
  grants: runSchema.shape.grants.unwrap(),
  name: z
    .string()
    .regex(/^[A-Za-z0-9_-]{1,64}$/, "name must be 1 to 64 letters, digits, _ or -")
    .optional(),
  description: z.string("description must be a string").max(4000).optional(),
});

export interface CodeToolOptions {
  /** What the code may call: `{ kv: kv() }` is `env.kv` to it. The model reads their types. */
  grants: Readonly<Record<string, Grant>>;
  /**
   * Of each run, below the sandbox's. Unsaid, a result may have 64 KiB and a log 16 KiB, if the sandbox allows as much:
   * whatever is more is too long for a model to read.
   */
  limits?: PartialLimits;
  /** What the model calls it; "run_code". */
  name?: string;
  /** What it is for, in words that come first. What a program looks like, and the types, always follow. */
  description?: string;
  tenant?: string;
  audit?: RunOptions["audit"];
}

/** Of the second argument of `execute`, which frameworks fill with more. */
export interface CodeCall {
  /** Ends the run. AI SDKs call it `abortSignal`. */
  signal?: AbortSignal | undefined;
  abortSignal?: AbortSignal | undefined;
  /** Hears each line of the log as it comes. Guest text: escape it where you show it. */
  onLog?: ((entry: LogEntry) => void) | undefined;
}

export interface AnswerLog {
  level: LogEntry["level"];
  text: string;
}

interface Ran {
  logs: AnswerLog[];
  usage: Usage;
}

/**
 * What became of a call. `text` says it all to a model, within 16,000 characters. `value` is JSON, in which what JSON
 * lacks is written as `doublehull run --json` writes it. `refused`: the arguments were wrong, nothing ran.
 * `unavailable`: this host could not run it.
 */
export type CodeAnswer = { text: string } & (
  | ({ status: "ok"; value: unknown } & Ran)
  | ({ status: "threw"; error: ScriptError } & Ran)
  | ({ status: "stopped"; stop: Stop } & Ran)
  | ({ status: "cancelled" } & Ran)
  | { status: "refused" | "unavailable"; problem: string }
);

export interface CodeTool {
  name: string;
  description: string;
  /** JSON Schema of the arguments. */
  inputSchema: Record<string, unknown>;
  /** JSON Schema of the answer without its `text`. */
  outputSchema: Record<string, unknown>;
  /**
   * Resolves whatever the code does, and whatever the arguments are. Rejects with SandboxError `bad-option` or
   * `over-limit` for a mistake in the tool's own options that shows only now.
   */
  execute(args: unknown, call?: CodeCall): Promise<CodeAnswer>;
}

const argumentsSchema = z.strictObject({
  code: z
    .string()
    .min(1)
    .describe(
      "An ES module in TypeScript or JavaScript. Its default export is called with (input, env) and awaited; what it returns is the result.",
    ),
  input: z.unknown().optional().describe("Any JSON: the first argument of the default export."),
});

const logSchema = z.object({ level: logLevelSchema, text: z.string() });

/** One flat object, for a tool's output must be one; which fields it has depends on `status`. */
const answerSchema = z.object({
  status: z.enum(["ok", "threw", "stopped", "cancelled", "refused", "unavailable"]),
  value: z.unknown().optional().describe("With ok: what the code returned."),
  error: errorSchema.optional().describe("With threw: the code's own error."),
  stop: stopSchema.optional().describe("With stopped: which limit or layer ended the run."),
  problem: z.string().optional().describe("With refused and unavailable: why nothing ran."),
  logs: z.array(logSchema).optional(),
  usage: usageSchema.optional(),
});

/** Of the text, in UTF-16 units: what a model can read at once, by parts. Together they stay below 16,000. */
const MAX_VALUE_TEXT = 10_000;
const MAX_ERROR_TEXT = 3_000;
const MAX_LOG_TEXT = 4_000;
/** Of a value that is written on several lines. */
const MAX_PRETTY = 2_000;

const MODEL_LIMITS = { resultBytes: 64 * 1024, logBytes: 16 * 1024 } as const;

/** What stacks show. */
const FILE = "code.ts";

/**
 * A tool that runs a model's code in the sandbox, with these grants. It depends on no framework; the sandbox remains the
 * caller's to close. Throws SandboxError `bad-option` naming the option that is wrong.
 */
export function codeTool(sandbox: Sandbox, options: CodeToolOptions): CodeTool {
  const given = parse(toolSchema, options);
  const { grants, tenant, audit, name = "run_code" } = given;
  const most = sandbox.limits;
  const asked = {
    resultBytes: Math.min(MODEL_LIMITS.resultBytes, most.resultBytes),
    logBytes: Math.min(MODEL_LIMITS.logBytes, most.logBytes),
    ...given.limits,
  };
  const limits: Limits = { ...most, ...withoutUnsaid(asked) };
  return {
    name,
    description: describe(given.description, limits, grants),
    inputSchema: jsonSchema(argumentsSchema),
    outputSchema: jsonSchema(answerSchema),
    async execute(args, call = {}) {
      const parsed = argumentsSchema.safeParse(args);
      if (!parsed.success) return refused(argumentProblem(parsed.error, args));
      const { code, input } = parsed.data;
      const { signal, abortSignal = signal, onLog } = call;
      try {
        const outcome = await sandbox.run(code, {
          name: FILE,
          input,
          grants,
          limits: asked,
          ...(tenant === undefined ? {} : { tenant }),
          ...(audit === undefined ? {} : { audit }),
          ...(signal === undefined && abortSignal === undefined
            ? {}
            : { signal: anyOf(signal, abortSignal) }),
          ...(onLog === undefined ? {} : { onLog }),
        });
        return answerOf(outcome, code, limits);
      } catch (error) {
        return hostProblem(error);
      }
    },
  };
}

const withoutUnsaid = (limits: PartialLimits): Partial<Limits> =>
  Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== undefined));

function anyOf(a: AbortSignal | undefined, b: AbortSignal | undefined): AbortSignal {
  return AbortSignal.any([a, b].filter((signal) => signal !== undefined));
}

function jsonSchema(schema: z.ZodType): Record<string, unknown> {
  const { $schema: _, ...plain } = z.toJSONSchema(schema, { io: "input" });
  return plain;
}

// ---- what the model is told before ----------------------------------------------------------------------------------

function describe(
  words = "Runs a program in a sandboxed process of its own, and gives its result.",
  limits: Limits,
  grants: Readonly<Record<string, Grant>>,
): string {
  const nothing = !Object.values(grants).some((grant) => grant instanceof Capability);
  return `${words}

\`code\` is an ES module in TypeScript or JavaScript, whose default export is called and awaited:

    export default async (input: any, env: Env) => {
      // ... call what is in env, loop, filter, compute ...
      return { found: 2 };
    };

- ${nothing ? "It computes: nothing is granted, so there is nothing to call." : "`env` has all that it may call, with the types below. One program may make many calls: prefer it to many programs."}
- Return what you need and no more, as JSON-like data: at most ${limits.resultBytes} bytes. console.log is shown, too.
- It has the standard language, URL, TextEncoder, structuredClone and timers; no process, require, file or network but
  what \`env\` gives, and nothing to import. Of TypeScript: types alone, no enum.
- It has ${limits.wallMs} ms and ${limits.memoryMb} MiB. No variable outlives the call.
- A call of \`env\` that fails rejects with a CapabilityError: its \`code\` and message say why.

\`\`\`ts
${environmentTypes(grants).trim()}
\`\`\``;
}

// ---- what it is told after ------------------------------------------------------------------------------------------

/** What a model can do about each stop. */
const ADVICE: Readonly<Record<StopReason, string>> = {
  "wall-time":
    "Look for a loop or a wait without end; do less in one call, or split the work over several calls.",
  "cpu-time": "Look for a loop without end; use a cheaper algorithm, or split the work over several calls.",
  fuel: "Look for a loop without end; use a cheaper algorithm, or split the work over several calls.",
  memory: "Hold less at once: work in pieces, and keep no more than what is needed.",
  stack: "Look for a recursion without end; write deep recursion as a loop.",
  output: "Return less: a count, a summary, or a part. What the code did until then is done.",
  source: "Write shorter code, and pass data as `input` rather than in the code.",
  "host-calls": "Call less often: fetch several things with one call, or split the work over several calls.",
  deadlock: "Look for a promise that nothing ever settles.",
  idle: "Run it again.",
  syscall: "Do not run this code again: it did what no program in this language does.",
  crash: "Do not run this code again as it is; write it in a simpler way.",
  protocol: "Do not run this code again: it did what no program in this language does.",
  lost: "Run it again: its process was lost, and that was no fault of the code.",
};

const plain = painter(false);

function answerOf(outcome: Outcome, code: string, limits: Limits): CodeAnswer {
  const logs = outcome.logs.map(({ level, args }) => ({ level, text: neutral(args.join(" ")) }));
  const { wallMs, cpuMs, ...counts } = outcome.usage;
  const ran: Ran = { logs, usage: { wallMs: tenth(wallMs), cpuMs: tenth(cpuMs), ...counts } };
  const log = logsText(outcome.logs);
  switch (outcome.status) {
    case "ok": {
      const value = jsonable(outcome.value);
      return { status: "ok", text: `${resultText(outcome.value, value)}${log}`, value, ...ran };
    }
    case "threw": {
      const error = boundedError(outcome.error);
      const words = cut(errorText(error, new Map([[FILE, code]]), plain).trimEnd(), MAX_ERROR_TEXT);
      return { status: "threw", text: `The code threw:\n${words}\n${log}`, error, ...ran };
    }
    case "stopped": {
      const { stop } = outcome;
      return { status: "stopped", text: `The code was ${stopText(stop, limits, plain, ADVICE[stop.reason])}${log}`, stop, ...ran }; // prettier-ignore
    }
    case "cancelled":
      return { status: "cancelled", text: `The call was cancelled.\n${log}`, ...ran };
  }
}

const tenth = (ms: number): number => Math.round(ms * 10) / 10;

function resultText(value: unknown, json: unknown): string {
  if (value === undefined) return "Result: nothing (undefined). Return a value to see it.\n";
  const compact = JSON.stringify(json);
  const text = compact.length > MAX_PRETTY ? compact : JSON.stringify(json, null, 2);
  return `Result:\n${cut(safeJson(text), MAX_VALUE_TEXT)}\n`;
}

function logsText(logs: readonly LogEntry[]): string {
  if (logs.length === 0) return "";
  return `\nLog:\n${cut(logs.map((entry) => logText(entry, plain)).join("").trimEnd(), MAX_LOG_TEXT)}\n`; // prettier-ignore
}

/** Beginning and end of a text that is too long, and how much is missing. */
function cut(text: string, most: number): string {
  if (text.length <= most) return text;
  const [head, tail] = [Math.floor(most * 0.75), Math.floor(most * 0.25)];
  const missing = text.length - head - tail;
  // Cut between the halves of a pair, neutral writes what is left of it as an escape.
  return neutral(
    `${text.slice(0, head)}\n... (${missing} characters are left out here) ...\n${text.slice(-tail)}`,
  );
}

const boundedError = ({ name, message, stack }: ScriptError): ScriptError => ({
  name: neutral(name.slice(0, 200)),
  message: cut(neutral(message), MAX_ERROR_TEXT),
  stack: cut(neutral(stack), MAX_ERROR_TEXT),
});

const refused = (problem: string): CodeAnswer => ({
  status: "refused",
  problem,
  text: `The arguments were refused, and nothing ran: ${problem}\n`,
});

const unavailable = (problem: string): CodeAnswer => ({
  status: "unavailable",
  problem,
  text: `The code could not be run: ${problem}\n`,
});

function argumentProblem({ issues: [issue] }: z.ZodError, args: unknown): string {
  if (issue?.code === "unrecognized_keys") {
    const name = neutral(JSON.stringify(issue.keys[0] ?? "").slice(0, 100));
    return `${name} is no argument; known are code and input.`;
  }
  if (issue?.path[0] === "code") {
    const what = typeof args === "object" && args !== null && !("code" in args) ? "is missing" : "is wrong";
    return `code ${what}: give the text of an ES module, as in "export default async (input, env) => 6 * 7".`;
  }
  return "give an object with code, and input if the code wants any.";
}

/** Of this host, in words that say nothing of it. The embedder's own mistakes are thrown. */
function hostProblem(error: unknown): CodeAnswer {
  if (!(error instanceof SandboxError)) throw error;
  switch (error.code) {
    case "bad-input":
      return refused(`${neutral(error.message.slice(0, 500))}. Pass JSON.`);
    case "overloaded":
      return unavailable("too much is running already. Try again in a moment.");
    case "closed":
      return unavailable("the sandbox has been closed. Go on without it.");
    case "host-cannot":
    case "no-engine":
      return unavailable(
        "this host has a problem that its operator must see to. Go on without running code.",
      );
    case "bad-option":
    case "over-limit":
      throw error;
  }
}
