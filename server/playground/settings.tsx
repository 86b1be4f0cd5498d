/** What a run is given: its input, the grants that it is handed, the engine and the limits. */
import type { KeyFacts } from "../client.js";
import { LIMITS, type LimitName } from "../limits.js";
import type { Offer } from "./declarations.js";
import { LIMIT_NAMES, limitRange } from "./draft.js";
import type { Model } from "./model.js";

/** Shown at once; the others are for those who look for them. */
const USUAL: readonly LimitName[] = ["wallMs", "cpuMs", "memoryMb"];
const ENGINES: Readonly<Record<string, string>> = {
  quickjs: "an interpreter in WebAssembly: the smallest surface",
  "v8-jitless": "V8 that only interprets: two or three times as fast",
  v8: "V8 with its compiler: fastest, two layers less",
};

export function Settings({ model }: { model: Model }) {
  return (
    <section class="panel settings" aria-labelledby="given">
      <h2 id="given">What it is given</h2>
      <Input model={model} />
      <Grants model={model} />
      <Limits model={model} />
    </section>
  );
}

function Mistake({ model, field }: { model: Model; field: string }) {
  const mistake = model.mistake.value;
  return mistake?.field === field ? (
    <p class="mistake" id={`mistake-${field}`} role="alert">
      {mistake.message}
    </p>
  ) : null;
}

const wrong = (model: Model, field: string) =>
  model.mistake.value?.field === field
    ? { "aria-invalid": true, "aria-describedby": `mistake-${field}` }
    : {};

function Input({ model }: { model: Model }) {
  return (
    <div class="field">
      <label for="input">Input, as JSON</label>
      <textarea
        id="input"
        rows={2}
        spellcheck={false}
        autocomplete="off"
        placeholder="none"
        value={model.draft.value.input}
        onInput={(event) => model.edit({ input: event.currentTarget.value })}
        {...wrong(model, "input")}
      />
      <Mistake model={model} field="input" />
    </div>
  );
}

function Grants({ model }: { model: Model }) {
  const grants = model.facts.value?.grants ?? [];
  const { grants: chosen } = model.draft.value;
  const toggle = (name: string, on: boolean) => {
    const next = new Set(chosen);
    if (on) next.add(name);
    else next.delete(name);
    model.edit({ grants: next });
  };
  const lacking = [...chosen].filter((name) => !grants.some((grant) => grant.name === name));
  return (
    <fieldset class="grants">
      <legend>Grants</legend>
      {grants.length === 0 && <p class="quiet">This key's policy grants nothing: scripts can compute.</p>}
      {grants.map(({ name, what, details }) => {
        const on = chosen.has(name);
        const offer = model.offers.value.get(name);
        return (
          <div class="grant" key={name}>
            <label class="check">
              <input
                type="checkbox"
                checked={on}
                onChange={(event) => toggle(name, event.currentTarget.checked)}
              />
              <span>
                <code>env.{name}</code> <span class="what">{what}</span>
              </span>
            </label>
            {details.length > 0 && <p class="quiet">{details.join(" · ")}</p>}
            {on && offer !== undefined && offer.methods.length > 0 && <Methods offer={offer} />}
          </div>
        );
      })}
      {model.facts.value !== undefined && lacking.length > 0 && (
        <p class="mistake">
          {`This key's policy has no grant ${lacking.join(", ")}: the script will not find it.`}
        </p>
      )}
    </fieldset>
  );
}

function Methods({ offer }: { offer: Offer }) {
  return (
    <details class="methods">
      <summary>{`Methods of ${offer.name}`}</summary>
      <dl>
        {offer.methods.map(({ name, signature, doc }) => (
          <div key={name}>
            <dt>
              <code>
                <b>{name}</b>
                {signature}
              </code>
            </dt>
            <dd>{doc}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}

function Limits({ model }: { model: Model }) {
  const facts = model.facts.value;
  const { engine } = model.draft.value;
  return (
    <>
      <div class="field">
        <label for="engine">Engine</label>
        <select
          id="engine"
          value={engine ?? ""}
          onChange={({ currentTarget: { value } }) =>
            model.edit({ engine: value === "" ? undefined : value })
          }
        >
          <option value="">{`the policy's${facts === undefined ? "" : `: ${facts.engine}`}`}</option>
          {facts?.engines.map((name) => (
            <option value={name} key={name}>
              {`${name}: ${ENGINES[name] ?? "an engine"}`}
            </option>
          ))}
        </select>
      </div>
      <fieldset class="limits">
        <legend>Limits</legend>
        <div class="row">
          {facts !== undefined &&
            USUAL.map((name) => <Limit model={model} facts={facts} name={name} key={name} />)}
        </div>
        <details>
          <summary>More limits</summary>
          <div class="row">
            {facts !== undefined &&
              LIMIT_NAMES.filter((name) => !USUAL.includes(name)).map((name) => (
                <Limit model={model} facts={facts} name={name} key={name} />
              ))}
          </div>
        </details>
        <Mistakes model={model} />
      </fieldset>
    </>
  );
}

function Mistakes({ model }: { model: Model }) {
  const field = model.mistake.value?.field ?? "";
  return field.startsWith("limits.") ? <Mistake model={model} field={field} /> : null;
}

function Limit({ model, facts, name }: { model: Model; facts: KeyFacts; name: LimitName }) {
  const { min, max } = limitRange(name, facts);
  return (
    <label class="limit" title={`Stops ${LIMITS[name].stops}. From ${min} to ${max}.`}>
      <span>{name}</span>
      <input
        type="text"
        inputMode="numeric"
        autocomplete="off"
        placeholder={String(facts.limits[name])}
        aria-label={`${name}: stops ${LIMITS[name].stops}; from ${min} to ${max}`}
        value={model.draft.value.limits.get(name) ?? ""}
        onInput={({ currentTarget: { value } }) =>
          model.edit({ limits: new Map([...model.draft.value.limits, [name, value]]) })
        }
        {...wrong(model, `limits.${name}`)}
      />
    </label>
  );
}
