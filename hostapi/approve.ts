/**
 * Asking a person: the capability "approve", and `withApproval`, under which another capability's acts wait for a yes.
 *
 * The rule: what a person reads can only be read as what it is. Guest text comes in lines, bounded, with everything
 * escaped that is not seen where it stands: control characters, line ends, bidirectional overrides, invisible and
 * stacked characters. Whatever is no plain yes is a no. (The failures behind it: Deno's permission prompt showed
 * escape sequences of the program's own, which wiped and rewrote the question, CVE-2023-22499 and CVE-2023-28446; text
 * shown in another order than it is run, "Trojan Source", CVE-2021-42574; people who said yes to the tenth question.)
 *
 * A run has at most one question open, over all capabilities; up to eight more wait their turn, for honest scripts do
 * things in parallel, and the next is refused as `rate`.
 */
import { z } from "zod";
import {
  CapabilityError,
  DEFAULT_TIMEOUT_MS,
  MAX_TIMEOUT_MS,
  capability,
  checkCapability,
  method,
  stateOf,
  type Call,
  type Capability,
  type RunContext,
} from "./capability.js";
import { aFunction, checkOptions, type Checks, needed, wholeNumber } from "./options.js";
import { readable } from "./readable.js";

export interface ApprovalQuestion {
  readonly run: RunContext;
  /** The capability and method that ask, as the guest knows them: "files" and "write". */
  readonly label: string;
  readonly method: string;
  /** One line, escaped. Still the guest's words: show that they are. */
  readonly text: string;
  /** More lines, each escaped. */
  readonly details: readonly string[];
  /** When it is void, by the run's clock: `untilMs - run.elapsedMs()` milliseconds are left. */
  readonly untilMs: number;
}

export type Approval = boolean | { approved: boolean; note?: string };

export interface Approver {
  /**
   * Asks a person. Only `true` and `{ approved: true }` are a yes. The note goes to the audit, not to the guest. When
   * `signal` aborts (timeout, revocation, end of the run) the question is void: take it off the screen. A CapabilityError
   * reaches the guest as it is.
   */
  ask(question: ApprovalQuestion, signal: AbortSignal): Promise<Approval>;
  /** Milliseconds from the call on, the wait for other questions included; 600000. */
  timeoutMs?: number;
}

/** Of one line, before escaping. More could push the question off the screen. */
const MAX_LINE = 500;
const MAX_DETAILS = 4096;
const MAX_LINES = 40;
const MAX_WAITING = 8;
const MAX_NOTE = 200;

const TIMEOUT_MS = 600_000;
const APPROVER: Checks<Approver> = {
  ask: needed(aFunction("that asks a person")),
  timeoutMs: wholeNumber(1, 86_400_000),
};

/** Throws TypeError naming the option that is wrong. */
export function approve(options: Approver): Capability {
  const { timeoutMs = TIMEOUT_MS } = checkOptions("approve", options, APPROVER);
  return capability("approve", {
    ask: method({
      doc: `Asks a person and waits for the answer. \`text\` is one line of at most ${MAX_LINE} characters; \`details\` may have ${MAX_LINES}.`,
      params: {
        text: z.string().max(MAX_LINE).regex(/\S/, "must not be empty"),
        details: z.string().max(MAX_DETAILS).optional(),
      },
      returns: z.boolean(),
      effect: "write",
      timeoutMs,
      run({ text, details = "" }, call) {
        const lines = details === "" ? [] : details.split(/\r\n|[\n\r]/);
        if (lines.length > MAX_LINES || lines.some((line) => line.length > MAX_LINE)) {
          const most = `${MAX_LINES} lines of ${MAX_LINE} characters`;
          throw new CapabilityError("bad-argument", `${call.label}.ask: details: must be at most ${most}`);
        }
        return answered(options, timeoutMs, call, text, lines);
      },
    }),
  });
}

export interface ApprovalOptions extends Approver {
  /** At least one; all if absent. */
  methods?: readonly string[];
  /** Of the arguments that the act will be done with. */
  describe?: (method: string, args: Readonly<Record<string, unknown>>) => readonly string[];
}

const APPROVAL: Checks<ApprovalOptions> = {
  ...APPROVER,
  methods: (value) =>
    Array.isArray(value) && value.length > 0 && value.every((name) => typeof name === "string")
      ? undefined
      : "must be a list of at least one method, or absent for all",
  describe: aFunction("of a method and its arguments that returns lines"),
};

/** What the embedder's `describe` gave. Throws TypeError; the act is not done then. */
function linesOf(lines: unknown): readonly string[] {
  if (Array.isArray(lines) && lines.every((line) => typeof line === "string")) return lines as string[];
  throw new TypeError("withApproval: describe must return a list of lines");
}

/**
 * A weaker one: each call of `methods` waits for a yes, and is `denied` without. `describe` puts it into
 * words, of which the first line is the question; if absent that is the method, and the arguments follow, long ones cut
 * with a note of how much is missing. The act is done with the arguments that were shown.
 * Throws TypeError for a bad option or a method that the capability has not.
 */
export function withApproval(target: Capability, options: ApprovalOptions): Capability {
  checkCapability("withApproval", target);
  checkOptions("withApproval", options, APPROVAL);
  const { timeoutMs = TIMEOUT_MS } = options;
  const { methods = [...target.methods.keys()], describe = describeArguments } = options;
  const table = new Map(target.methods);
  for (const name of methods) {
    const known = target.methods.get(name);
    if (known === undefined) {
      throw new TypeError(
        `withApproval: ${target.name} has no method "${name}"; it has ${[...target.methods.keys()].join(", ")}`,
      );
    }
    // The act still has its own time once it may begin.
    const both = timeoutMs + (known.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    table.set(name, { ...known, timeoutMs: Math.min(both, MAX_TIMEOUT_MS) });
  }
  const asking = new Set(methods);
  return target.guarded(
    `a person approves each ${methods.join(", ")}`,
    async (name, args, call, next) => {
      if (asking.has(name)) {
        const [text = name, ...details] = linesOf(describe(name, args));
        const lines = details.slice(0, MAX_LINES).map(cut);
        if (details.length > MAX_LINES) lines.push(`... (${details.length - MAX_LINES} lines more)`);
        if (!(await answered(options, timeoutMs, call, cut(text), lines))) {
          throw new CapabilityError("denied", `${call.label}.${name}: it was not approved`);
        }
        call.signal.throwIfAborted(); // taken back in the moment after the yes
      }
      return next();
    },
    table,
  );
}

/** The last turn taken, and how many have not ended. */
interface Desk {
  turn: Promise<void>;
  waiting: number;
}
const desks = new WeakMap<RunContext, Desk>();

/** The person's answer. Throws CapabilityError `rate`, `timeout`, or `unavailable` if nobody could be asked. */
async function answered(
  { ask }: Approver,
  timeoutMs: number,
  call: Call,
  text: string,
  details: readonly string[],
): Promise<boolean> {
  const { run, label, method } = call;
  const desk = stateOf(desks, run, () => ({ turn: Promise.resolve(), waiting: 0 }));
  if (desk.waiting > MAX_WAITING) {
    throw new CapabilityError("rate", `${label}.${method}: too many questions wait for an answer`);
  }
  const question = Object.freeze<ApprovalQuestion>({
    run,
    label,
    method,
    text: printable(text),
    details: Object.freeze(details.map(printable)),
    untilMs: run.elapsedMs() + timeoutMs,
  });
  call.charge(Buffer.byteLength(text) + details.reduce((sum, line) => sum + Buffer.byteLength(line), 0));

  const turn = desk.turn;
  let leave!: () => void;
  desk.turn = new Promise((resolve) => (leave = resolve));
  desk.waiting++;
  const open = new AbortController();
  const tooLate = new CapabilityError("timeout", `${label}.${method}: nobody answered in time`);
  const stop = () => open.abort(tooLate);
  const timer = setTimeout(stop, timeoutMs);
  call.signal.addEventListener("abort", stop, { once: true });
  if (call.signal.aborted) stop();
  try {
    const put = turn.then(() => (open.signal.aborted ? false : ask(question, open.signal)));
    const approval = readApproval(await Promise.race([put, aborted(open.signal)]));
    call.note({ question: question.text, ...approval });
    return approval.approved;
  } catch (error) {
    if (open.signal.aborted) throw tooLate;
    if (error instanceof CapabilityError) throw error;
    throw new CapabilityError("unavailable", `${label}.${method}: nobody could be asked`, { cause: error });
  } finally {
    clearTimeout(timer);
    call.signal.removeEventListener("abort", stop);
    desk.waiting--;
    void turn.then(leave); // one that gave up while it waited still lets the one before it finish
  }
}

/** Rejects when it does. */
const aborted = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => {
    const end = () => reject(signal.reason as Error);
    if (signal.aborted) end();
    else signal.addEventListener("abort", end, { once: true });
  });

/** Reads what an embedder's function answered, which may be anything. */
function readApproval(answer: unknown): { approved: boolean; note?: string } {
  if (typeof answer !== "object" || answer === null) return { approved: answer === true };
  const { approved, note } = answer as { approved?: unknown; note?: unknown };
  const words = typeof note === "string" ? { note: printable(note.slice(0, MAX_NOTE)) } : {};
  return { approved: approved === true, ...words };
}

/** Control, format, unassigned and the like, line and paragraph separators, and what a font leaves out (UAX 44, DI). */
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
/** More marks on one letter than a script needs paint over the lines above and below (UTS 39, 5.4). */
const STACKED = /(?<=\p{M}{4})\p{M}/gu;

/** One line that shows what it holds: `\u{202e}` stands for what would not be seen. */
export function printable(text: string): string {
  const escape = (character: string) => `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`;
  return text.replaceAll(STACKED, escape).replaceAll(UNSEEN, escape);
}

const cut = (line: string): string =>
  line.length <= MAX_LINE
    ? line
    : `${line.slice(0, MAX_LINE)}... (${line.length - MAX_LINE} characters more)`;

/** The method and its arguments, a line each. */
function describeArguments(name: string, args: Readonly<Record<string, unknown>>): string[] {
  const given = Object.entries(args).filter(([, value]) => value !== undefined);
  const most = MAX_LINE - 200; // leaves room for the name and for the notes of what is missing
  return [name, ...given.map(([param, value]) => `${param}: ${readable(value, most)}`)];
}
