/**
 * A run that learns: in place of the grants that a policy does not have yet, stand-ins for kv, files and http, which ask
 * a person about each new thing that the script wants, do it after a yes, and keep account for a proposal.
 *
 * The rule: nothing is done that was not confirmed, and what was confirmed is exactly what is done. A thing is reading
 * or writing the store, reading or writing in one directory (not below it), one method at one place of the web, of each
 * redirect too. What no question can show whole, or no rule name exactly, is refused unasked. (The failures behind it:
 * a prompt that names a part and grants the whole, a URL that was cut in the question, a redirect that nobody confirmed,
 * `https://a.example/*` asked for literally, which as a rule would be every path.)
 */
import { printable, type Approval, type ApprovalQuestion } from "../hostapi/approve.js";
import type { AuditEvent } from "../hostapi/broker.js";
import { CapabilityError, DEFAULT_TIMEOUT_MS, type Call, type Capability } from "../hostapi/capability.js";
import type { FilesCapability, FilesOptions } from "../hostapi/files.js";
import { split } from "../hostapi/files-path.js";
import type { HttpOptions, Permit } from "../hostapi/http.js";
import { Addresses, parseRules, permits } from "../hostapi/http-rules.js";
import { exactPlace, propose, type Asked, type Proposal } from "./learn.js";
import type { Policy } from "./policy-schema.js";

export interface LearningPowers {
  /** Puts a question to a person. Absent: there is nobody, and everything is refused and accounted for. */
  readonly ask: ((question: ApprovalQuestion, signal: AbortSignal) => Promise<Approval>) | undefined;
  /** The factory of files capabilities. */
  files(): Promise<(options: FilesOptions) => FilesCapability>;
  /** Where the script's paths begin: an absolute path. */
  readonly dir: string;
  /** How the web is reached. */
  readonly http?: Pick<HttpOptions, "open" | "lookup" | "ca">;
}

/** Of one run. */
export interface Learning {
  /** The stand-ins by name in `env`, for what the policy has not. */
  readonly grants: Readonly<Record<string, Capability>>;
  /** For the run: hears what was asked of the grants that the policy has. */
  readonly audit: (event: AuditEvent) => void;
  /** The least policy for what was allowed, or asked for where nobody could be asked; its file is to be in `dir`, absolute. */
  propose(dir: string): Proposal;
  /** Whether it asked for anything. */
  heard(): boolean;
  close(): void;
}

/** For one answer, ms. */
export const ANSWER_MS = 600_000;
/** Different things that are asked about in one run: nobody reads more. */
const MAX_THINGS = 1000;
/** Different events of the policy's own grants that are kept. */
const MAX_EVENTS = 10_000;
/** Of one that is asked about, in characters as they are shown: what is longer is not read to its end. */
const MAX_WORDS = 500;

/** What a person says yes or no to, in words that name nothing else. */
interface Thing {
  readonly words: string;
  /** Of the call that asks first: guest text. */
  readonly details: readonly string[];
  /** What `propose` is told. */
  readonly asked: Omit<Asked, "method">;
}

type Answer = "yes" | "no" | "nobody";

/** One method's asking for one thing. */
interface Entry {
  readonly asked: Asked;
  readonly words: string;
  readonly answer: Answer;
}

/** Opens the current directory for the files stand-in; the caller closes what comes back. */
export async function learn(policy: Policy, powers: LearningPowers): Promise<Learning> {
  const account = new Account(powers.ask);
  const grants = Object.create(null) as Record<string, Capability>;
  const closers: (() => void)[] = [];
  const missing = (name: string) => !Object.hasOwn(policy.grants, name);
  if (missing("kv")) grants["kv"] = await kvStandIn(account);
  if (missing("files")) {
    const files = (await powers.files())({ root: powers.dir, mode: "rw" });
    closers.push(() => files.close());
    grants["files"] = filesStandIn(files, powers.dir, account);
  }
  if (missing("http")) grants["http"] = await httpStandIn(account, powers.http ?? {});
  return {
    grants: Object.freeze(grants),
    audit: (event) => {
      if (!Object.hasOwn(grants, event.capability)) account.hear(event);
      else if (event.detail["refused"] === "address") {
        const place = String(event.detail["redirectedTo"] ?? event.detail["url"]);
        account.remark(
          `http: ${place} stands for an address that is not public; add that to open if it is meant`,
        );
      }
    },
    propose(dir) {
      const conflict = filesRefused(account.things());
      const wanted = account
        .wanted()
        .filter((asked) => conflict === undefined || asked.capability !== "files");
      const { text, notes } = propose(wanted, policy, dir, account.refusedUrls());
      return { text, notes: [...account.notes(), ...(conflict === undefined ? [] : [conflict]), ...notes] };
    },
    heard: () => account.heard(),
    close() {
      for (const closer of closers.splice(0)) closer();
    },
  };
}

// ---- the stand-ins --------------------------------------------------------------------------------------------------

async function kvStandIn(account: Account): Promise<Capability> {
  const { kv } = await import("../hostapi/kv.js");
  const store = kv({ namespace: "kv" });
  return confirmed(store, account, (name, args) => {
    const reading = store.methods.get(name)?.effect === "read";
    const key = args["key"] ?? (args["options"] as { prefix?: string } | undefined)?.prefix;
    const words = `${reading ? "read" : "change"} values in a key-value store (empty, in memory, gone with this run)`;
    const details = typeof key === "string" ? [`the first key: ${key}`] : [];
    return [{ words, details, asked: { capability: "kv", kind: "kv", detail: {} } }];
  });
}

function filesStandIn(files: FilesCapability, dir: string, account: Account): Capability {
  return confirmed(files, account, (name, args) => {
    const effect = files.methods.get(name)?.effect === "read" ? "read" : "write";
    return directoriesOf(name, args).map((directory): Thing => {
      const where =
        directory === "." ? "the current directory" : `the directory ${JSON.stringify(directory)}`;
      return {
        words: `${effect === "read" ? "read" : "write, replace and remove"} files in ${where}, not below it`,
        details: [`current directory: ${dir}`, `the first: ${name} ${pathsOf(args).join(" to ")}`],
        asked: { capability: "files", kind: "files", detail: { root: dir, directory, effect } },
      };
    });
  });
}

/**
 * Why no files grant can be proposed: what it has is one directory, from which the script names its files, with all that
 * is below it. That would be what somebody just said no to, if it is read or written at all.
 */
function filesRefused(things: readonly Entry[]): string | undefined {
  const files = things.filter(({ asked }) => asked.capability === "files");
  const allowed = new Set(
    files.flatMap(({ asked, answer }) => (answer === "no" ? [] : [asked.detail["effect"]])),
  );
  const against = files.find(({ asked, answer }) => answer === "no" && allowed.has(asked.detail["effect"]));
  return against === undefined
    ? undefined
    : `files are left out: a grant has all below one directory, and so what you refused (${against.words}); grant the parts by hand, each under a name of its own`;
}

const pathsOf = (args: Readonly<Record<string, unknown>>): string[] =>
  ["path", "from", "to"].flatMap((name) => (typeof args[name] === "string" ? [args[name]] : []));

/** The directories that a call reads or changes; what makes one is about that one. */
function directoriesOf(name: string, args: Readonly<Record<string, unknown>>): string[] {
  const paths = pathsOf(args);
  if (name === "list") return paths.length === 0 ? ["."] : paths;
  return name === "mkdir" ? paths : [...new Set(paths.map((path) => split(path).parent))];
}

async function httpStandIn(
  account: Account,
  options: NonNullable<LearningPowers["http"]>,
): Promise<Capability> {
  const { httpByConsent } = await import("../hostapi/http.js");
  const addresses = new Addresses("http: open", options.open ?? []);
  const permit: Permit = async (url, method, call) => {
    let place: string;
    try {
      place = exactPlace(url.href);
      if (!permits(parseRules("http", [{ url: place, methods: [method] }], addresses), url, method))
        return false;
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      account.remark(`left out: ${error.message}`);
      return false;
    }
    const asked = { capability: "http", kind: "http", detail: { url: place, method } };
    await account.confirm(
      { words: `${method} ${place}`, details: ["with any query, headers and body"], asked },
      call,
    );
    return true;
  };
  return httpByConsent(permit, { ...options, timeoutMs: ANSWER_MS + DEFAULT_TIMEOUT_MS });
}

/** A weaker one: each thing that a call wants is confirmed before the act. */
function confirmed(
  target: Capability,
  account: Account,
  thingsOf: (method: string, args: Readonly<Record<string, unknown>>) => readonly Thing[],
): Capability {
  const patient = [...target.methods].map(([name, method]) => {
    const timeoutMs = ANSWER_MS + (method.timeoutMs ?? DEFAULT_TIMEOUT_MS); // the act has its own time after the yes
    return [name, { ...method, timeoutMs }] as const;
  });
  return target.guarded(
    "a person confirms each new thing",
    async (name, args, call, next) => {
      for (const thing of thingsOf(name, args)) await account.confirm(thing, call);
      call.signal.throwIfAborted(); // the run ended in the moment after the yes
      return next();
    },
    new Map(patient),
  );
}

// ---- the account ----------------------------------------------------------------------------------------------------

/** What was asked for and what became of it. One question at a time, each thing once. */
class Account {
  readonly #answers = new Map<string, Promise<Answer>>();
  readonly #asked = new Map<string, Entry>();
  readonly #events = new Map<string, Asked>();
  readonly #remarks = new Set<string>();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(readonly ask: LearningPowers["ask"]) {}

  /** Resolves after a yes. Throws CapabilityError `denied` after anything else, `rate` when too much was asked. */
  async confirm({ words, details, asked }: Thing, call: Call): Promise<void> {
    const refuse = (why: string) => new CapabilityError("denied", `${call.label}.${call.method}: ${why}`);
    const text = printable(words);
    if (text.length > MAX_WORDS) {
      this.remark(`left out: ${call.label}.${call.method} of something that is too long to be asked about`);
      throw refuse("it is too long to be asked about");
    }
    let pending = this.#answers.get(words);
    if (pending === undefined) {
      if (this.#answers.size >= MAX_THINGS) {
        throw new CapabilityError("rate", `${call.label}: too many different things were asked for`);
      }
      const lines = details.map((line) => {
        const whole = printable(line);
        return whole.length > MAX_WORDS ? `${whole.slice(0, MAX_WORDS)}... (cut)` : whole;
      });
      const { run, label, method } = call;
      const untilMs = run.elapsedMs() + ANSWER_MS;
      const question = Object.freeze({ run, label, method, text, details: Object.freeze(lines), untilMs });
      pending = this.#turn.then(() => this.#put(question));
      this.#turn = pending;
      this.#answers.set(words, pending);
    }
    // In the account at once: a run that ends before the answer has asked for it all the same.
    const key = `${words}\n${call.method}`;
    const entry: Entry = { asked: { ...asked, method: call.method }, words, answer: "nobody" };
    if (!this.#asked.has(key)) this.#asked.set(key, entry);
    const answer = await pending;
    this.#asked.set(key, { ...entry, answer });
    call.note({ learned: answer });
    if (answer === "no") throw refuse("the person who was asked did not allow it");
    if (answer === "nobody") throw refuse("nobody could be asked to allow it");
  }

  /** Never rejects. */
  async #put(question: ApprovalQuestion): Promise<Answer> {
    const { signal: over } = question.run;
    if (this.ask === undefined || over.aborted) return "nobody";
    const open = new AbortController();
    const stop = () => open.abort();
    const timer = setTimeout(stop, ANSWER_MS);
    over.addEventListener("abort", stop, { once: true });
    try {
      const approval = await this.ask(question, open.signal);
      const yes = typeof approval === "object" ? approval.approved : approval;
      return open.signal.aborted ? "nobody" : yes ? "yes" : "no";
    } catch {
      return "nobody"; // the terminal is gone: the notes say that nobody could be asked
    } finally {
      clearTimeout(timer);
      over.removeEventListener("abort", stop);
    }
  }

  /** For the notes. */
  remark(words: string): void {
    if (this.#remarks.size < MAX_THINGS) this.#remarks.add(words);
  }

  /** Of a grant that the policy has. What no grant would have accepted needs none. */
  hear({ capability, kind, method, decision, code, detail }: AuditEvent): void {
    if (decision === "allowed" || code === "bad-argument") return; // how it ended comes with all that is known of it
    const { url, method: verb, redirectedTo, refused, name } = detail;
    const known = Object.entries({ url, method: verb, redirectedTo, refused, name });
    const asked: Asked = {
      capability,
      kind,
      method,
      detail: Object.fromEntries(known.filter((pair): pair is [string, string] => pair[1] !== undefined)),
    };
    const key = JSON.stringify(asked);
    if (this.#events.size < MAX_EVENTS) this.#events.set(key, asked);
    else if (!this.#events.has(key)) this.remark("more was asked for than is kept");
  }

  heard(): boolean {
    return this.#asked.size + this.#events.size + this.#remarks.size > 0;
  }

  things(): Entry[] {
    return [...this.#asked.values()];
  }

  refusedUrls(): string[] {
    const refused = this.things().filter(({ answer }) => answer === "no");
    return refused.flatMap(({ asked: { detail } }) =>
      typeof detail["url"] === "string" ? [detail["url"]] : [],
    );
  }

  /** What was allowed, or not answered. */
  wanted(): Asked[] {
    const open = this.things().filter(({ answer }) => answer !== "no");
    return [...this.#events.values(), ...open.map(({ asked }) => asked)];
  }

  notes(): string[] {
    const all = this.things();
    const refused = new Set(all.filter(({ answer }) => answer === "no").map(({ words }) => words));
    const open = new Set(all.filter(({ answer }) => answer === "nobody").map(({ words }) => words));
    return [
      ...this.#remarks,
      ...[...refused].map((words) => `left out, for you refused it: ${words}`),
      ...(open.size === 0
        ? []
        : [
            "there was nobody to ask, and so it was refused: what comes next may be missing, for a script goes another way when it is refused",
            ...[...open].map((words) => `not confirmed by anybody, and proposed: ${words}`),
          ]),
    ];
  }
}
