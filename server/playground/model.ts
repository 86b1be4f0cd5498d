/**
 * What the page knows and can do, without a document: signals for what is shown, and acts. Where it runs (storage, the
 * address, the clock) comes in as powers.
 */
import { computed, signal } from "@preact/signals";
import { Client, ServiceError, type ApprovalAnswer, type KeyFacts, type UsageDay } from "../client.js";
import { completeLimits, type Limits } from "../limits.js";
import { readDeclarations, type Offer } from "./declarations.js";
import { DraftError, requestOf, type Draft } from "./draft.js";
import { decodeLink, encodeLink, isLink, LinkError } from "./link.js";
import { follow, refusalOf, type Asked, type Refusal, type RunState } from "./run.js";
import { SAMPLES, type Sample } from "./samples.js";

export interface Powers {
  /** Of the service, without a slash at the end. */
  baseUrl: string;
  fetch: typeof globalThis.fetch;
  /** For the key alone; forgotten with the tab. */
  keys: Pick<Storage, "getItem" | "setItem" | "removeItem">;
  /** The page's address without its fragment. */
  page: string;
  /** Milliseconds since 1970. */
  now: () => number;
}

/** A run of this page, for the chart. */
export interface Past {
  number: number;
  status: string;
  cpuMs: number;
  wallMs: number;
}

const KEY = "doublehull-key";
/** Runs that the chart shows. */
const MAX_PAST = 100;
/** Between two drawings of a log that fills, ms. */
const DRAW_MS = 50;
const MAX_KEY = 1000;
/** The header Date has whole seconds: half of one is what it lacks on average. */
const HALF_SECOND_MS = 500;
/** As many as GET /v1/usage answers with. */
const DAYS = 30;

export class Model {
  readonly #powers: Powers;
  #client: Client | undefined;
  /** Of the run under way, once the service has named it; and whose run it is, whatever key comes meanwhile. */
  #run: string | undefined;
  #runner: Client | undefined;
  #abort: AbortController | undefined;
  /** How much the service's clock is ahead of this one's. */
  #aheadMs = 0;

  readonly facts = signal<KeyFacts | undefined>(undefined);
  readonly offers = signal<ReadonlyMap<string, Offer>>(new Map());
  readonly draft = signal<Draft>(draftOf(SAMPLES[0] as Sample));
  /** The sample that the draft began as. */
  readonly sample = signal<Sample | undefined>(SAMPLES[0]);
  /** Counts the drafts that came from elsewhere than the editor, which has to show them. */
  readonly loads = signal(0);
  readonly run = signal<RunState>({ phase: "idle" });
  /** What cannot be sent, by field. */
  readonly mistake = signal<{ field: string; message: string } | undefined>(undefined);
  readonly past = signal<readonly Past[]>([]);
  readonly days = signal<readonly UsageDay[]>([]);
  readonly notice = signal("");
  /** Whether a key is asked for, and what was wrong with the last one. */
  readonly asking = signal<{ refused: string } | undefined>(undefined);

  /** What the script may call, of what is granted. */
  readonly offered = computed(() => {
    const { grants } = this.draft.value;
    return new Map([...this.offers.value].filter(([name]) => grants.has(name)));
  });
  readonly running = computed(() => this.run.value.phase === "running");
  /** The samples that this key has the grants for. */
  readonly samples = computed(() => {
    const grants = this.facts.value?.grants ?? [];
    const has = (needed: string) => grants.some(({ name, type }) => name === needed && type === needed);
    return SAMPLES.filter(({ needs }) => needs === undefined || has(needs));
  });

  /** The question that was answered here, before the service says so. */
  readonly #answered = signal<Asked | undefined>(undefined);
  /** What the script waits for an answer to. */
  readonly question = computed(() => {
    const state = this.run.value;
    const open = state.phase === "running" ? state.question : undefined;
    return open === this.#answered.value ? undefined : open;
  });

  constructor(powers: Powers) {
    this.#powers = powers;
  }

  /** With the fragment of the page's address, which may hold a key or a shared draft, and is to be forgotten then. */
  async begin(fragment: string): Promise<void> {
    const [, given] = /^#key=([\x21-\x7e]+)$/.exec(fragment.length > MAX_KEY ? "" : fragment) ?? [];
    if (isLink(fragment)) await this.open(fragment);
    const held = this.#powers.keys.getItem(KEY);
    const key = given === undefined ? held : decoded(given);
    if (key === null) this.asking.value = { refused: "" };
    else await this.enter(key);
    // Whoever sends a link could have others run for a tenant of theirs.
    const tenant = this.facts.value?.tenant;
    if (held !== null && key !== held && tenant !== undefined && this.asking.value === undefined)
      this.notice.value = `The address brought another key: from now on you run as the tenant ${tenant}.`;
  }

  /** A shared draft. It is shown, and nothing of it runs. */
  async open(fragment: string): Promise<void> {
    try {
      this.load(await decodeLink(fragment), undefined);
      this.notice.value = "This script came by a link. Read it before you run it: it runs with your key and your grants."; // prettier-ignore
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      this.notice.value = `Nothing was opened: ${error.message}.`;
    }
  }

  /** The address of the draft. Throws LinkError if it is too large for one. */
  async link(): Promise<string> {
    return this.#powers.page + (await encodeLink(this.draft.value));
  }

  /** Tries a key and keeps it if it is one. */
  async enter(key: string): Promise<void> {
    const { baseUrl, keys } = this.#powers;
    let client: Client;
    try {
      client = new Client({ baseUrl, apiKey: key.trim(), fetch: this.#fetch });
    } catch {
      this.asking.value = { refused: "A key is text without spaces, as the service gave it." };
      return;
    }
    try {
      const [facts, types] = await Promise.all([client.whoami(), client.types()]);
      this.#client = client;
      this.offers.value = readDeclarations(types);
      this.facts.value = facts;
    } catch (error) {
      const { title, detail, unauthorized } = refusalOf(error);
      if (unauthorized && keys.getItem(KEY) === key.trim()) keys.removeItem(KEY);
      this.asking.value = { refused: unauthorized ? "The service does not know this key." : `${title}: ${detail}` }; // prettier-ignore
      return;
    }
    keys.setItem(KEY, key.trim());
    this.asking.value = undefined;
    await this.#refreshDays();
  }

  forget(): void {
    this.cancel();
    this.#powers.keys.removeItem(KEY);
    this.#client = undefined;
    this.facts.value = undefined;
    this.offers.value = new Map();
    this.days.value = [];
    this.asking.value = { refused: "" };
  }

  edit(change: Partial<Draft>): void {
    this.draft.value = { ...this.draft.value, ...change };
    this.mistake.value = undefined;
  }

  load(draft: Draft, sample: Sample | undefined): void {
    this.edit(draft);
    this.sample.value = sample;
    this.notice.value = "";
    this.loads.value++;
  }

  /** Grants that the policy does not have stay out. */
  loadSample(sample: Sample): void {
    const { engine, limits } = this.draft.value;
    this.load({ ...draftOf(sample), engine, limits }, sample);
  }

  async start(): Promise<void> {
    const facts = this.facts.value;
    const client = this.#client;
    if (this.running.value) return;
    if (facts === undefined || client === undefined) {
      this.asking.value ??= { refused: "" };
      return;
    }
    let request;
    try {
      request = requestOf(this.draft.value, facts);
    } catch (error) {
      if (!(error instanceof DraftError)) throw error;
      this.mistake.value = { field: error.field, message: error.message };
      return;
    }
    this.notice.value = "";
    this.#abort = new AbortController();
    this.#run = undefined;
    this.#runner = client;
    const limits: Limits = completeLimits(request.limits ?? {}, facts.limits);
    await follow(client, request, {
      limits,
      signal: this.#abort.signal,
      everyMs: DRAW_MS,
      tell: (state) => (this.run.value = state),
    });
    this.#abort = undefined;
    this.#remember(this.run.value);
    await this.#refreshDays();
  }

  /** The stream goes on to the outcome that the service makes of it; before the service has named the run, there is none. */
  cancel(): void {
    if (this.#run === undefined || this.#runner === undefined) return this.#abort?.abort("it was cancelled before it began"); // prettier-ignore
    this.#runner.cancel(this.#run).catch(() => {}); // it has ended already, or the stream tells what is wrong
  }

  /** Milliseconds that are left to answer, by the service's clock, as far as its answers have told it. */
  leftMs({ expiresMs }: Asked): number {
    return Math.max(0, expiresMs - this.#powers.now() - this.#aheadMs);
  }

  /** Resolves to why the answer was not heard; the question is still open then. To "" when it is over, whoever ended it. */
  async answer(question: Asked, answer: Exclude<ApprovalAnswer, boolean>): Promise<string> {
    if (this.question.value !== question || this.#runner === undefined) return "";
    // A no that is not heard is one nevertheless, when the time is over: nobody needs to wait for it.
    if (!answer.approved) this.#answered.value = question;
    try {
      await this.#runner.approve(question.run, question.id, answer);
    } catch (error) {
      const late = error instanceof ServiceError && (error.code === "approval-over" || error.code === "not-found"); // prettier-ignore
      const { title, detail } = refusalOf(error);
      if (!late) return `${title}: ${detail}`;
    }
    this.#answered.value = question;
    return "";
  }

  /** The client tells of a run with its first event; to cancel one that says nothing its id is read from the head. */
  readonly #fetch: typeof globalThis.fetch = async (input, init) => {
    const response = await this.#powers.fetch(input, init);
    this.#run = response.headers.get("x-run-id") ?? this.#run;
    const said = Date.parse(response.headers.get("date") ?? "");
    if (!Number.isNaN(said)) this.#aheadMs = said + HALF_SECOND_MS - this.#powers.now();
    return response;
  };

  #remember(state: RunState): void {
    if (state.phase === "refused") this.#lost(state.refusal);
    if (state.phase !== "ended") return;
    const { status, usage } = state.outcome;
    const number = (this.past.value.at(-1)?.number ?? 0) + 1;
    this.past.value = [...this.past.value, { number, status, cpuMs: usage.cpuMs, wallMs: usage.wallMs }].slice(-MAX_PAST); // prettier-ignore
  }

  /** A key that was revoked meanwhile. */
  #lost({ unauthorized }: Refusal): void {
    if (!unauthorized) return;
    this.forget();
    this.asking.value = { refused: "The service does not know this key any more." };
  }

  async #refreshDays(): Promise<void> {
    try {
      this.days.value = everyDay((await this.#client?.usage()) ?? [], this.#powers.now());
    } catch {
      // The chart is beside the point: what is wrong with the service the next run tells.
    }
  }
}

/** The service tells of days with runs; a chart has those without, too. */
function everyDay(days: readonly UsageDay[], now: number): UsageDay[] {
  const known = new Map(days.map((day) => [day.day, day]));
  return Array.from({ length: DAYS }, (_, i) => {
    const day = new Date(now - (DAYS - 1 - i) * 86_400_000).toISOString().slice(0, 10);
    return (
      known.get(day) ?? { day, runs: 0, ok: 0, cpuMs: 0, wallMs: 0, hostCalls: 0, bytesIn: 0, bytesOut: 0 }
    );
  });
}

const decoded = (text: string): string => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // the service says that it is no key
  }
};

function draftOf({ draft }: Sample): Draft {
  const { input = "", grants = [], ...code } = draft;
  return { ...code, input, grants: new Set(grants), engine: undefined, limits: new Map() };
}
