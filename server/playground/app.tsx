/** The page: what is where, and which key does what. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Outcome } from "../client.js";
import { Chart } from "./chart.tsx";
import { AskDialog, KeyDialog, ShareDialog } from "./dialogs.tsx";
import { openEditor, type Editor } from "./editor.js";
import { LinkError } from "./link.js";
import type { Model } from "./model.js";
import { HullsPanel, OutcomeView } from "./outcome.tsx";
import { ASKED_END, placeIn, words, type RunState } from "./run.js";
import { SAMPLES } from "./samples.js";
import { Settings } from "./settings.tsx";
import { nextTheme, type Theme } from "./theme.js";

export interface AppProps {
  model: Model;
  theme: Theme;
  copy: ((text: string) => Promise<void>) | undefined;
  /** Of the API's description. */
  docs: string;
}

export function App({ model, theme, copy, docs }: AppProps) {
  const [link, setLink] = useState<string | undefined>(undefined);
  const editor = useRef<Editor | null>(null);
  const state = model.run.value;
  const last = useLast(state);
  const asking = model.asking.value;
  const question = model.question.value;
  const share = async () => {
    try {
      setLink(await model.link());
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      model.notice.value = `No link was made: ${error.message}.`;
    }
  };
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.defaultPrevented || document.querySelector("dialog[open]") !== null) return;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        void model.start();
      } else if (event.key === "Escape" && model.running.value && !inEditor(event)) {
        model.cancel();
      }
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [model]);
  const goTo = () => {
    const place = last === undefined ? undefined : placeIn(last);
    if (place !== undefined) editor.current?.goTo(place);
  };
  return (
    <>
      <a class="skip" href="#script" onClick={(event) => (event.preventDefault(), editor.current?.focus())}>
        To the editor
      </a>
      <Header model={model} theme={theme} docs={docs} onShare={() => void share()} />
      <main>
        <p class="notice" role="status">
          {model.notice.value}
        </p>
        <p class="unseen" role="status" aria-live="polite" data-testid="live">
          {spoken(state)}
        </p>
        <p class="unseen" role="status" aria-live="polite" data-testid="asked">
          {state.phase === "idle" || state.over === undefined ? "" : ASKED_END[state.over]}
        </p>
        <div class="columns">
          <Script model={model} editor={editor} state={state} />
          <div class="side">
            <OutcomeView model={model} onGoTo={goTo} />
            <HullsPanel model={model} last={last} />
          </div>
          <Settings model={model} />
        </div>
        <Charts model={model} theme={theme.shown.value} />
      </main>
      {asking !== undefined && <KeyDialog model={model} refused={asking.refused} />}
      {question !== undefined && (
        <AskDialog key={`${question.run} ${question.id}`} model={model} question={question} />
      )}
      {link !== undefined && <ShareDialog link={link} copy={copy} onClose={() => setLink(undefined)} />}
    </>
  );
}

/** There Escape closes what is offered first. */
const inEditor = ({ target }: Event): boolean => target instanceof Element && target.shadowRoot !== null;

/** Of the last run that ended. */
function useLast(state: RunState): Outcome | undefined {
  const last = useRef<Outcome | undefined>(undefined);
  if (state.phase === "ended") last.current = state.outcome;
  return last.current;
}

/** For those who do not see the page: once as it begins, once as it ends. */
function spoken(state: RunState): string {
  if (state.phase === "idle") return "";
  if (state.phase === "running") return "It is running.";
  if (state.phase === "refused") return `It did not run: ${state.refusal.title}. ${state.refusal.detail}`;
  const { headline, more } = words(state.outcome, state.limits);
  const place = placeIn(state.outcome);
  const where = place === undefined ? "" : `, line ${place.line}`;
  return `${[headline, ...more].join(", ")}${where}. ${Math.round(state.outcome.usage.wallMs)} milliseconds.`;
}

function Header({
  model,
  theme,
  docs,
  onShare,
}: {
  model: Model;
  theme: Theme;
  docs: string;
  onShare: () => void;
}) {
  const facts = model.facts.value;
  return (
    <header>
      <div class="brand">
        <svg viewBox="0 0 32 32" aria-hidden="true">
          <path class="outer" d="M3 5v10a13 12 0 0 0 26 0V5h-4v10a9 8 0 0 1 -18 0V5Z" />
          <path class="inner" d="M10 5v9a6 6 0 0 0 12 0V5h-3v9a3 3 0 0 1 -6 0V5Z" />
        </svg>
        <h1>
          doublehull <span>playground</span>
        </h1>
      </div>
      <p class="who">
        {facts === undefined
          ? "No key yet"
          : `Tenant ${facts.tenant} · ${facts.today.runs + model.past.value.length} of ${facts.quotas.runsPerDay.toLocaleString("en")} runs today`}
      </p>
      <nav aria-label="Page">
        <a href={docs}>API</a>
        <button type="button" onClick={onShare}>
          Share
        </button>
        <button
          type="button"
          onClick={() => (facts === undefined ? (model.asking.value = { refused: "" }) : model.forget())}
        >
          {facts === undefined ? "Enter a key" : "Forget key"}
        </button>
        <button type="button" onClick={() => theme.set(nextTheme(theme.chosen.value))}>
          {`Theme: ${theme.chosen.value}`}
        </button>
      </nav>
    </header>
  );
}

function Script({
  model,
  editor,
  state,
}: {
  model: Model;
  editor: { current: Editor | null };
  state: RunState;
}) {
  const host = useRef<HTMLDivElement>(null);
  const { language, type } = model.draft.value;
  const sample = model.sample.value;
  const offered = SAMPLES.filter((it) => it === sample || model.samples.value.includes(it));
  const running = model.running.value;
  useEffect(() => {
    if (host.current === null) return;
    const opened = openEditor(host.current, {
      label: "Script. Escape, then Tab, leaves the editor.",
      offered: () => model.offered.peek(),
      onChange: (source) => model.edit({ source }),
      onRun: () => void model.start(),
      onEscape: () => {
        if (model.running.peek()) model.cancel();
        return false; // it means other things to the editor, too: so does Tab after it
      },
    });
    editor.current = opened;
    return () => opened.close();
  }, [model, editor]);
  const loads = model.loads.value;
  useEffect(() => editor.current?.show(model.draft.peek().source), [editor, model, loads]);
  useEffect(() => editor.current?.language(language), [editor, language]);
  useEffect(() => {
    const place = state.phase === "ended" ? placeIn(state.outcome) : undefined;
    const said = state.phase === "ended" ? words(state.outcome, state.limits).more.join(", ") : "";
    editor.current?.mark(place, said);
  }, [editor, state]);
  return (
    <section class="panel script" aria-labelledby="script">
      <h2 id="script" class="unseen">
        Script
      </h2>
      <div class="tools">
        <label>
          <span>Sample</span>
          <select
            value={sample?.id ?? ""}
            onChange={({ currentTarget: { value } }) => {
              const chosen = model.samples.value.find(({ id }) => id === value);
              if (chosen !== undefined) model.loadSample(chosen);
            }}
          >
            {sample === undefined && <option value="">from a link</option>}
            {offered.map(({ id, title }) => (
              <option value={id} key={id}>
                {title}
              </option>
            ))}
          </select>
        </label>
        <label>
          <span>Language</span>
          <select
            value={language}
            onChange={({ currentTarget: { value } }) =>
              model.edit({ language: value === "typescript" ? "typescript" : "javascript" })
            }
          >
            <option value="javascript">JavaScript</option>
            <option value="typescript">TypeScript</option>
          </select>
        </label>
        <label>
          <span>Kind</span>
          <select
            value={type}
            onChange={({ currentTarget: { value } }) =>
              model.edit({ type: value === "script" ? "script" : "module" })
            }
          >
            <option value="module">Module</option>
            <option value="script">Script</option>
          </select>
        </label>
      </div>
      {sample !== undefined && <p class="shows">{sample.shows}</p>}
      <div class="editor" ref={host} />
      {/* A button that is disabled would lose the focus, and a dialog could not give it back. */}
      <div class="run">
        <button
          type="button"
          class="primary"
          aria-disabled={running}
          aria-keyshortcuts="Control+Enter"
          onClick={() => void model.start()}
        >
          Run <kbd aria-hidden="true">Ctrl Enter</kbd>
        </button>
        <button
          type="button"
          aria-disabled={!running}
          aria-keyshortcuts="Escape"
          onClick={() => running && model.cancel()}
        >
          Cancel <kbd aria-hidden="true">Esc</kbd>
        </button>
        <p class="quiet">
          <kbd>Esc</kbd> then <kbd>Tab</kbd> leaves the editor.
        </p>
      </div>
    </section>
  );
}

function Charts({ model, theme }: { model: Model; theme: string }) {
  const past = model.past.value;
  const days = model.days.value;
  const runs = useMemo(
    () => ({
      names: past.map(({ number }) => String(number)),
      series: [
        { label: "wall clock", unit: "ms", colour: "--sea", values: past.map(({ wallMs }) => wallMs) },
        { label: "CPU", unit: "ms", colour: "--signal", values: past.map(({ cpuMs }) => cpuMs) },
      ],
    }),
    [past],
  );
  const daily = useMemo(
    () => ({
      names: days.map(({ day }) => day.slice(5)),
      series: [
        { label: "runs", unit: "a day", colour: "--sea", values: days.map((day) => day.runs) },
        { label: "CPU", unit: "s", colour: "--signal", values: days.map(({ cpuMs }) => cpuMs / 1000) },
      ],
    }),
    [days],
  );
  return (
    <section class="panel charts" aria-labelledby="charts">
      <h2 id="charts">What was used</h2>
      <div class="pair">
        {past.length === 0 ? (
          <p class="empty">The runs of this page, as they come.</p>
        ) : (
          <Chart title="Runs of this page" of="run" powers {...runs} theme={theme} />
        )}
        {days.length === 0 ? (
          <p class="empty">The tenant's days, once there is one.</p>
        ) : (
          <Chart title="The tenant's last 30 days" of="day, UTC" {...daily} theme={theme} />
        )}
      </div>
    </section>
  );
}
