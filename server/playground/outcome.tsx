/** What became of a run: in a headline, and in all that the service says of it. What the script said is text, never markup. */
import { useEffect, useMemo, useRef } from "preact/hooks";
import type { Outcome } from "../client.js";
import type { Limits } from "../limits.js";
import { neutral } from "../outcome-words.js";
import { amount } from "./chart.tsx";
import { HullsView } from "./hulls.tsx";
import { hullsOf } from "./hull-layers.js";
import type { Model } from "./model.js";
import { placeIn, words, type Line, type RunState } from "./run.js";
import { cut, valueText } from "./value-text.js";

const MARKS: Readonly<Record<string, string>> = { ok: "✓", threw: "!", stopped: "■", cancelled: "–", running: "●", refused: "×" }; // prettier-ignore

export function OutcomeView({ model, onGoTo }: { model: Model; onGoTo: () => void }) {
  const state = model.run.value;
  const status = state.phase === "ended" ? state.outcome.status : state.phase;
  return (
    <section class="panel outcome" aria-labelledby="outcome">
      <h2 id="outcome">Outcome</h2>
      {state.phase === "idle" ? (
        <p class="empty">
          Nothing has run yet. Press <kbd>Ctrl</kbd> <kbd>Enter</kbd>, and what the script logs, returns and
          uses stands here.
        </p>
      ) : (
        <>
          <div class={`status ${status}`}>
            <span class="mark" aria-hidden="true">
              {MARKS[status]}
            </span>
            <Headline state={state} onGoTo={onGoTo} />
          </div>
          {state.phase === "ended" && state.outcome.status === "ok" && (
            <pre class="value" tabIndex={0} role="region" aria-label="Result">
              {valueText(state.outcome.value)}
            </pre>
          )}
          <Log lines={state.lines} left={state.left} running={state.phase === "running"} />
          {state.phase === "ended" && <UsageView outcome={state.outcome} limits={state.limits} />}
          {state.phase === "ended" && <Ledger outcome={state.outcome} />}
        </>
      )}
    </section>
  );
}

function Headline({ state, onGoTo }: { state: Exclude<RunState, { phase: "idle" }>; onGoTo: () => void }) {
  if (state.phase === "running") return <p class="head">It is running</p>;
  if (state.phase === "refused") {
    const { title, detail, fields } = state.refusal;
    return (
      <div>
        <p class="head">It did not run: {title}</p>
        <p>{detail}</p>
        {fields.length > 0 && (
          <ul>
            {fields.map(({ field, message }) => (
              <li key={field}>
                <code>{field}</code> {message}
              </li>
            ))}
          </ul>
        )}
      </div>
    );
  }
  const { headline, more, hint } = words(state.outcome, state.limits);
  const place = placeIn(state.outcome);
  return (
    <div>
      <p class="head">
        {headline}{" "}
        <span class="short">
          {state.outcome.status === "stopped" ? state.outcome.stop.reason : state.outcome.status}
        </span>
      </p>
      {more.length > 0 && <p class="more">{more.join(", ")}</p>}
      {hint !== "" && <p class="quiet">{hint}</p>}
      {place !== undefined && (
        <button type="button" class="link" onClick={onGoTo}>
          {`Go to line ${place.line}, column ${place.column}`}
        </button>
      )}
      {state.outcome.status === "threw" && <Stack stack={state.outcome.error.stack} />}
    </div>
  );
}

function Stack({ stack }: { stack: string }) {
  return stack.trim() === "" ? null : (
    <details>
      <summary>Stack</summary>
      <pre class="stack" tabIndex={0} role="region" aria-label="Stack">
        {neutral(cut(stack, 5000))}
      </pre>
    </details>
  );
}

function Log({ lines, left, running }: { lines: readonly Line[]; left: number; running: boolean }) {
  const list = useRef<HTMLOListElement>(null);
  const follows = useRef(true);
  useEffect(() => {
    // Only who is at the end already is taken along.
    if (list.current !== null && follows.current) list.current.scrollTop = list.current.scrollHeight;
  }, [lines]);
  const onScroll = ({ currentTarget: it }: { currentTarget: HTMLElement }) => {
    follows.current = it.scrollHeight - it.scrollTop - it.clientHeight < 24;
  };
  return (
    <>
      <h3>Log and events</h3>
      {lines.length === 0 ? (
        <p class="quiet">{running ? "Nothing yet." : "It logged nothing."}</p>
      ) : (
        <>
          {left > 0 && <p class="quiet">{`${left.toLocaleString("en")} earlier lines are left out here.`}</p>}
          <ol class="log" ref={list} onScroll={onScroll} tabIndex={0} aria-label="Log and events of the run">
            {lines.map(({ seq, kind, text }) => (
              <li key={seq} class={kind}>
                <span class="kind">{kind}</span>
                <span class="text">{text}</span>
              </li>
            ))}
          </ol>
        </>
      )}
    </>
  );
}

function UsageView({ outcome: { usage }, limits }: { outcome: Outcome; limits: Limits }) {
  const mib = (bytes: number) => bytes / 1024 / 1024;
  const rows = [
    { name: "CPU", used: usage.cpuMs, most: limits.cpuMs, unit: "ms" },
    { name: "Wall clock", used: usage.wallMs, most: limits.wallMs, unit: "ms" },
    { name: "Memory, peak", used: mib(usage.peakMemoryBytes), most: limits.memoryMb, unit: "MiB" },
    { name: "Host calls", used: usage.hostCalls, most: limits.hostCalls, unit: "" },
  ];
  return (
    <>
      <h3>Used, of its limits</h3>
      <dl class="usage">
        {rows.map(({ name, used, most, unit }) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>
              <b>{amount(used)}</b> of {amount(most)} {unit}
            </dd>
            <Bar part={most === 0 ? 0 : used / most} />
          </div>
        ))}
      </dl>
    </>
  );
}

/** What the figures beside it say. */
function Bar({ part }: { part: number }) {
  const full = Math.min(1, Math.max(0, part));
  return (
    <svg
      class={`bar ${full >= 0.95 ? "full" : ""}`}
      viewBox="0 0 100 4"
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      <rect width="100" height="4" class="all" />
      <rect width={Math.max(full > 0 ? 0.8 : 0, full * 100).toFixed(2)} height="4" class="part" />
    </svg>
  );
}

function Ledger({ outcome: { ledger } }: { outcome: Outcome }) {
  return (
    <>
      <h3>Ledger of grants</h3>
      {ledger.length === 0 ? (
        <p class="quiet">It asked its grants for nothing.</p>
      ) : (
        <div class="scroll" tabIndex={0} role="region" aria-label="Ledger">
          <table>
            <thead>
              <tr>
                <th scope="col">Grant</th>
                <th scope="col">Method</th>
                <th scope="col">Calls</th>
                <th scope="col">Refused</th>
                <th scope="col">Failed</th>
              </tr>
            </thead>
            <tbody>
              {ledger.map(({ capability, method, calls, refused, failed }) => (
                <tr key={`${capability}.${method}`}>
                  <th scope="row">{neutral(capability)}</th>
                  <td>{neutral(method)}</td>
                  <td>{calls}</td>
                  <td>{count(refused)}</td>
                  <td>{count(failed)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </>
  );
}

const count = (n: unknown): string => (typeof n === "number" ? String(n) : "");

/** Around the last run that ended; while the next one is under way, too. */
export function HullsPanel({ model, last }: { model: Model; last: Outcome | undefined }) {
  const running = model.running.value;
  const hulls = useMemo(() => last && hullsOf(last), [last]);
  return (
    <section class="panel around" aria-labelledby="hulls">
      <h2 id="hulls">The two hulls around it</h2>
      {last === undefined || hulls === undefined ? (
        <p class="empty">
          After a run, the layers that were really on are drawn here: the kernel's hull, and in it the
          language's.
        </p>
      ) : (
        <HullsView hulls={hulls} status={running ? "running" : last.status} />
      )}
    </section>
  );
}
