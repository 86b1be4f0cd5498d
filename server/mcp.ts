/**
 * `doublehull mcp`: a Model Context Protocol server on the standard streams, with one tool that runs code and one
 * resource that has the types of its env. Part of the entry; commands.ts keeps the grammar.
 *
 * The rule: the standard output is the protocol's alone, and whichever way the client leaves (the end of our input, a
 * signal, a pipe that breaks), every run ends with it. What the policy opens is shared by all calls, so that a store
 * remembers; what speaks to the client (questions, events) is made for each call, so that it is heard in that call.
 *
 * The client is served in the revision of the protocol that it opens with. A question goes to a person by elicitation:
 * as a request of ours (2025-06-18, elicitation/create), or, where servers make no requests, as a result that asks for
 * input, whose call goes on when the client calls again (2026-07-28, basic/patterns/mrtr). Its run waits meanwhile.
 */
import {
  CLIENT_CAPABILITIES_META_KEY,
  LOG_LEVEL_META_KEY,
  McpServer,
  type ClientCapabilities,
  type ElicitRequestFormParams,
  type LoggingLevel,
  type ProtocolEra,
  type ServerContext,
  type StandardSchemaWithJSON,
} from "@modelcontextprotocol/server";
import { serveStdio, StdioServerTransport } from "@modelcontextprotocol/server/stdio";
import type { ApprovalQuestion } from "../hostapi/approve.js";
import { Capability } from "../hostapi/capability.js";
import type { RunEvent } from "../hostapi/events.js";
import type { ScriptEngine } from "./engines.js";
import { grantsOf, hollowPowers } from "./grants.js";
import type { PartialLimits } from "./limits.js";
import { Calls, type Asked, type Call } from "./mcp-calls.js";
import type { Grant } from "./options.js";
import type { LogEntry } from "./outcome.js";
import { openGrants, policyFrom, type PolicyFlags } from "./policy-commands.js";
import type { Policy } from "./policy-schema.js";
import { EXIT, onInterrupt, readFile, stderr, write } from "./process.js";
import { completeForRun } from "./run-command.js";
import { Sandbox } from "./sandbox.js";
import { jsonable, logText, neutral, painter } from "./show.js";
import { Commentary } from "./terminal.js";
import { codeTool, type CodeAnswer, type CodeTool } from "./tools.js";
import { environmentTypes } from "./types.js";

export interface McpFlags extends PolicyFlags {
  /** Unsaid: the policy's. */
  engine?: ScriptEngine;
  limit: PartialLimits;
  hull: "double" | "language-only";
  requireCgroup?: true;
}

const TYPES_URI = "doublehull://env.d.ts";
/** Runs that wait for a slot; a client that starts more is told that it is too much. */
const MAX_QUEUE = 100;
/** Lines of a run's log, and events, that are told while it runs. The whole log is in the answer. */
const MAX_TOLD = 200;
const MAX_TOLD_CHARS = 500;

const tell = (text: string): void => void stderr.write(`doublehull mcp: ${neutral(text)}\n`);

/** Serves until the client leaves; the exit code. Rejects as `run` does for flags, a policy or a host that cannot. */
export async function serveMcp(flags: McpFlags, version: string): Promise<number> {
  const policy = await policyFrom(flags, readFile);
  const { limits } = await completeForRun({ ...policy.limits, ...flags.limit });
  const interrupt = onInterrupt();
  if (flags.hull === "language-only") {
    tell("warning: no kernel hull (language-only); for development, not for strangers' code");
  }
  const [speaking, silent] = [part(policy, speaks), part(policy, (type) => !speaks(type))];
  const shared = await openGrants(silent, readFile, new Commentary(tell), false);
  let sandbox: Sandbox | undefined;
  try {
    const { engine = policy.engine, hull, requireCgroup = false } = flags;
    sandbox = await Sandbox.create(
      { engine, limits, hull, requireCgroup, maxQueue: MAX_QUEUE, typescript: true },
      { launchFrom: "main", env: process.env },
    );
    const desk = await Desk.open(sandbox, speaking, shared.grants, limits);
    await untilGone(desk, version, interrupt.signal);
  } finally {
    await sandbox?.close();
    shared.close();
  }
  return interrupt.signal.aborted ? interrupt.exitCode : EXIT.ok;
}

/** Whether what this grants speaks to whoever waits for the run. */
const speaks = (type: string): boolean => type === "approve" || type === "events";

const part = (policy: Policy, want: (type: string) => boolean): Policy => ({
  ...policy,
  grants: Object.fromEntries(Object.entries(policy.grants).filter(([, { type }]) => want(type))),
});

/** The wire, which says when it is over: by the end of the input, a broken pipe, or a message beyond all bounds. */
class Wire extends StdioServerTransport {
  over!: () => void;
  readonly whenOver = new Promise<void>((resolve) => (this.over = resolve));

  override async close(): Promise<void> {
    await super.close();
    this.over();
  }
}

async function untilGone(desk: Desk, version: string, interrupted: AbortSignal): Promise<void> {
  if (interrupted.aborted) return;
  if (process.stdin.isTTY) await write(stderr, "doublehull mcp speaks the Model Context Protocol here: let a client start it.\n"); // prettier-ignore
  const wire = new Wire();
  interrupted.addEventListener("abort", () => wire.over(), { once: true });
  const served = serveStdio(({ era }) => desk.server(era, version), {
    transport: wire,
    onerror: ({ message }) => tell(message.slice(0, MAX_TOLD_CHARS)),
  });
  await wire.whenOver;
  desk.calls.close();
  await served.close();
}

/** Shows a JSON Schema as it is and lets everything pass: the tool checks its arguments itself, and says it better. */
const shown = (schema: Record<string, unknown>): StandardSchemaWithJSON<unknown, unknown> => ({
  "~standard": {
    version: 1,
    vendor: "doublehull",
    validate: (value) => ({ value }),
    jsonSchema: { input: () => schema, output: () => schema },
  },
});

/** What the server is made of, whichever revision it is served in. */
class Desk {
  readonly calls = new Calls();

  private constructor(
    readonly sandbox: Sandbox,
    readonly speaking: Policy,
    readonly shared: Readonly<Record<string, Grant>>,
    readonly limits: PartialLimits,
    /** With grants that have the right shape; those that speak may not be called. */
    readonly tool: CodeTool,
    readonly shape: Readonly<Record<string, Grant>>,
  ) {}

  static async open(
    sandbox: Sandbox,
    speaking: Policy,
    shared: Readonly<Record<string, Grant>>,
    asked: PartialLimits,
  ): Promise<Desk> {
    const shape = { ...shared, ...(await grantsOf(speaking, hollowPowers())).grants };
    // What was asked for by name is no default of the tool's.
    const limits: PartialLimits = {};
    for (const name of ["resultBytes", "logBytes"] as const) {
      if (asked[name] !== undefined) limits[name] = asked[name];
    }
    return new Desk(sandbox, speaking, shared, limits, codeTool(sandbox, { grants: shape, limits }), shape);
  }

  server(era: ProtocolEra, version: string): McpServer {
    const server = new McpServer({ name: "doublehull", version }, { capabilities: { logging: {} } });
    const client = new Client(era, server);
    const methods = Object.values(this.shape).flatMap((grant) =>
      grant instanceof Capability ? [...grant.methods.values()] : [],
    );
    const acts = methods.some(({ effect }) => effect === "write");
    const web = Object.values(this.shape).some(
      (grant) => grant instanceof Capability && grant.name === "http",
    );
    server.registerTool(
      this.tool.name,
      {
        title: "Run code in a sandbox",
        description: this.tool.description,
        inputSchema: shown(this.tool.inputSchema),
        outputSchema: shown(this.tool.outputSchema),
        annotations: {
          readOnlyHint: !acts,
          destructiveHint: acts,
          idempotentHint: !acts,
          openWorldHint: web,
        },
      },
      async (args, ctx) => this.#handle(client, args, ctx),
    );
    const types = environmentTypes(this.shape);
    server.registerResource(
      "env.d.ts",
      TYPES_URI,
      { title: "Types of env", description: "What the code may call.", mimeType: "application/typescript" },
      ({ href }) => ({ contents: [{ uri: href, mimeType: "application/typescript", text: types }] }),
    );
    return server;
  }

  async #handle(client: Client, args: unknown, ctx: ServerContext) {
    try {
      const state = ctx.mcpReq.requestState<string>();
      const call =
        state === undefined
          ? this.calls.begin((begun) => this.#run(client, begun, args))
          : this.calls.resume(state, ctx.mcpReq.inputResponses);
      if (call === undefined) return failed("That call is over. Call the tool again, without a state.");
      const news = await call.next(ctx);
      return "question" in news ? inputRequired(news) : resultOf(news.answer, client.notes(call));
    } catch (error) {
      tell(error instanceof Error ? (error.stack ?? error.message) : String(error));
      return failed(
        "doublehull failed; its operator finds why in its standard error. Nothing is known of the run.",
      );
    }
  }

  async #run(client: Client, call: Call, args: unknown): Promise<CodeAnswer> {
    let tool = this.tool;
    if (Object.keys(this.speaking.grants).length > 0) {
      const own = await grantsOf(this.speaking, {
        ...hollowPowers(),
        ask: (question, signal) => client.ask(call, question, signal),
        onEvent: (event) => client.tellEvent(call, event),
      });
      tool = codeTool(this.sandbox, { grants: { ...this.shared, ...own.grants }, limits: this.limits });
    }
    return tool.execute(args, { signal: call.signal, onLog: (entry) => client.tellLog(call, entry) });
  }
}

const failed = (text: string) => ({ content: [{ type: "text" as const, text }], isError: true });

function resultOf({ text, ...structured }: CodeAnswer, notes: readonly string[]) {
  const content = [text, ...notes].map((part) => ({ type: "text" as const, text: part }));
  return { content, structuredContent: structured, isError: structured.status !== "ok" };
}

const inputRequired = ({ question, state }: Asked) => ({
  resultType: "input_required" as const,
  inputRequests: {
    answer: { method: "elicitation/create" as const, params: { mode: "form" as const, ...question } },
  },
  requestState: state,
});

const LEVELS: readonly LoggingLevel[] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]; // prettier-ignore
const levelOf = {
  debug: "debug",
  log: "info",
  info: "info",
  warn: "warning",
  error: "error",
} as const satisfies Record<LogEntry["level"], LoggingLevel>;

const plain = painter(false);

/** What the client can do and wants to hear, by the revision that it speaks. */
class Client {
  /** By logging/setLevel. Until then it has not asked for any. */
  #level: LoggingLevel | undefined;

  constructor(
    readonly era: ProtocolEra,
    readonly server: McpServer,
  ) {
    server.server.setRequestHandler("logging/setLevel", ({ params }) => {
      this.#level = params.level;
      return {};
    });
  }

  tellLog(call: Call, entry: LogEntry): void {
    const text = logText(entry, plain).trimEnd().slice(0, MAX_TOLD_CHARS);
    const words = neutral(entry.args.join(" ")).slice(0, MAX_TOLD_CHARS);
    this.#tell(call, levelOf[entry.level], "code", words, text);
  }

  tellEvent(call: Call, { name, data, seq }: RunEvent): void {
    this.#tell(call, "info", "event", { name, seq, data: jsonable(data) }, `[event ${neutral(name)}]`);
  }

  /** As a log message and as progress, each if the client has asked for it. What falls between two rounds is not told. */
  #tell(call: Call, level: LoggingLevel, logger: string, data: unknown, message: string): void {
    const { round } = call;
    if (round === undefined || call.told >= MAX_TOLD) return;
    call.told++;
    const { mcpReq } = round;
    // Whom it does not reach is gone, and the end of the wire says so.
    const notify = (method: string, params: Record<string, unknown>) =>
      void mcpReq.notify({ method, params }).catch(() => {});
    const asked = this.#isModern ? mcpReq.envelope?.[LOG_LEVEL_META_KEY as keyof object] : this.#level;
    if (asked !== undefined && LEVELS.indexOf(level) >= LEVELS.indexOf(asked)) {
      notify("notifications/message", { level, logger, data });
    }
    const progressToken = mcpReq._meta?.progressToken;
    if (progressToken !== undefined) {
      notify("notifications/progress", { progressToken, progress: call.told, message });
    }
  }

  get #isModern(): boolean {
    return this.era === "modern";
  }

  #canAsk({ mcpReq }: ServerContext): boolean {
    const capabilities: ClientCapabilities | undefined = this.#isModern
      ? mcpReq.envelope?.[CLIENT_CAPABILITIES_META_KEY as keyof object]
      : this.server.server.getClientCapabilities();
    const { elicitation } = capabilities ?? {};
    // Forms are what a client means that names no mode.
    return elicitation !== undefined && ("form" in elicitation || !("url" in elicitation));
  }

  /** Rejects where nobody can be asked, which is a no. */
  async ask(call: Call, asked: ApprovalQuestion, signal: AbortSignal): Promise<boolean> {
    const { round } = call;
    if (round === undefined) throw new Error("the client has not come back from the last question");
    if (!this.#canAsk(round)) {
      call.unasked = true;
      throw new Error("the client has no elicitation");
    }
    const question = formOf(asked);
    const answer = this.#isModern
      ? await call.ask(question, signal)
      : await round.mcpReq.elicitInput(question, { signal, timeout: 2 ** 31 - 1 });
    return isYes(answer);
  }

  /** What whoever reads the answer should know besides. */
  notes({ unasked }: Call): string[] {
    return unasked ? ["The code wanted to ask a person, and this client cannot: it lacks MCP elicitation. That counts as a no.\n"] : []; // prettier-ignore
  }
}

function formOf({ label, method, text, details }: ApprovalQuestion): ElicitRequestFormParams {
  const lines = [text, ...details].map((line) => `    | ${neutral(line).replaceAll("\n", " ")}`);
  const who = `${neutral(label)}.${neutral(method)}`;
  return {
    message: `Code in the sandbox asks, by ${who}:\n${lines.join("\n")}\nThe lines with a margin are the code's words.`,
    requestedSchema: {
      type: "object",
      properties: { allow: { type: "boolean", title: "Allow it", default: false } },
      required: ["allow"],
    },
  };
}

/** Client data: only an accepted form that says `allow: true` is a yes. */
function isYes(answer: unknown): boolean {
  if (typeof answer !== "object" || answer === null) return false;
  const { action, content } = answer as { action?: unknown; content?: { allow?: unknown } };
  return action === "accept" && typeof content === "object" && content?.allow === true;
}
