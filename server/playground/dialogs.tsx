/** The three dialogs: for the API key, for an address to share, and for what a script asks. */
import type { RefObject } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { neutral } from "../outcome-words.js";
import type { Model } from "./model.js";
import type { Asked } from "./run.js";

/**
 * Open as long as it is rendered; what it covers cannot be reached meanwhile. Then the focus is back where it was: the
 * browser gives it back only from a dialog that is closed before it is taken away.
 */
function useModal(first?: RefObject<HTMLElement | null>) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const before = focused();
    dialog.current?.showModal();
    first?.current?.focus();
    return () => before?.focus();
  }, []);
  return dialog;
}

/** In the editor's shadow root, too. */
function focused(): HTMLElement | null {
  let it = document.activeElement;
  while (it?.shadowRoot?.activeElement) it = it.shadowRoot.activeElement;
  return it instanceof HTMLElement ? it : null;
}

export function KeyDialog({ model, refused }: { model: Model; refused: string }) {
  const dialog = useModal();
  const [key, setKey] = useState("");
  const [busy, setBusy] = useState(false);
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    await model.enter(key);
    setBusy(false);
  };
  return (
    <dialog ref={dialog} aria-labelledby="key-title" onCancel={() => (model.asking.value = undefined)}>
      <form onSubmit={(event) => void submit(event)}>
        <h2 id="key-title">Your API key</h2>
        <p>
          The service printed one at its first start; an administrator makes more. It stays in this tab, and
          is forgotten with it.
        </p>
        <label for="key">API key</label>
        <input
          id="key"
          type="password"
          autocomplete="off"
          spellcheck={false}
          required
          value={key}
          onInput={(event) => setKey(event.currentTarget.value)}
          {...(refused === "" ? {} : { "aria-invalid": true, "aria-describedby": "key-refused" })}
        />
        {refused !== "" && (
          <p class="mistake" id="key-refused" role="alert">
            {refused}
          </p>
        )}
        <div class="acts">
          <button type="button" onClick={() => (model.asking.value = undefined)}>
            Not now
          </button>
          <button type="submit" class="primary" disabled={busy}>
            Use this key
          </button>
        </div>
      </form>
    </dialog>
  );
}

export function ShareDialog({
  link,
  copy,
  onClose,
}: {
  link: string;
  /** Undefined where the browser has no clipboard for pages of this address. */
  copy: ((text: string) => Promise<void>) | undefined;
  onClose: () => void;
}) {
  const dialog = useModal();
  const field = useRef<HTMLInputElement>(null);
  const [said, say] = useState("");
  const act = async () => {
    try {
      await copy?.(link);
      say("Copied.");
    } catch {
      field.current?.select(); // the person copies it
      say("The browser does not let this page copy: the link is selected, copy it yourself.");
    }
  };
  return (
    <dialog ref={dialog} aria-labelledby="share-title" onClose={onClose}>
      <h2 id="share-title">Share by link</h2>
      <p>
        The link itself holds the script, its input, language, engine, limits and the names of its grants. It
        does not hold your key, and whoever opens it reads before anything runs.
      </p>
      <label for="link">Link</label>
      <input id="link" ref={field} readOnly value={link} onFocus={(event) => event.currentTarget.select()} />
      <p role="status" class="quiet">
        {said}
      </p>
      <div class="acts">
        <button type="button" onClick={onClose}>
          Close
        </button>
        {copy !== undefined && (
          <button type="button" class="primary" onClick={() => void act()}>
            Copy the link
          </button>
        )}
      </div>
    </dialog>
  );
}

/** As long as the service takes a note, UTF-16 units. */
const MAX_NOTE = 200;
/** No yes counts before: a script could have its question come under a press that was meant for something else. */
const LOOK_MS = 500;
const SECOND_MS = 1000;

/** A script's question, in its words, which are text and set apart. Whatever closes it without a yes is a no. */
export function AskDialog({ model, question }: { model: Model; question: Asked }) {
  const no = useRef<HTMLButtonElement>(null);
  const dialog = useModal(no);
  const [note, setNote] = useState("");
  const [ready, setReady] = useState(false);
  const [busy, setBusy] = useState(false);
  const [failed, setFailed] = useState("");
  const [leftMs, setLeft] = useState(() => model.leftMs(question));
  useEffect(() => {
    const look = setTimeout(() => setReady(true), LOOK_MS);
    const clock = setInterval(() => setLeft(model.leftMs(question)), SECOND_MS / 4);
    return () => (clearTimeout(look), clearInterval(clock));
  }, [model, question]);
  const words = note.trim() === "" ? {} : { note: note.trim() };
  const refuse = () => {
    // A yes is under way: what becomes of it is told here.
    if (busy) dialog.current?.showModal();
    else void model.answer(question, { approved: false, ...words });
  };
  const approve = async () => {
    setBusy(true);
    setFailed(await model.answer(question, { approved: true, ...words }));
    setBusy(false);
  };
  return (
    <dialog
      ref={dialog}
      class="ask"
      role="alertdialog"
      aria-labelledby="ask-title"
      aria-describedby="ask-text ask-left"
      onClose={refuse}
    >
      <h2 id="ask-title">The script asks:</h2>
      <blockquote id="ask-text" tabIndex={0} role="group" aria-label="The script's words">
        <p dir="auto">{neutral(question.text)}</p>
        {question.details.length > 0 && <pre dir="auto">{neutral(question.details.join("\n"))}</pre>}
      </blockquote>
      <p class="quiet">
        {"These are its words, by "}
        <code>{neutral(`env.${question.capability}.${question.method}`)}</code>
        {", and not this page's. Your answer stands in the audit log."}
      </p>
      <label for="ask-note">Note for the audit log, if you like; the script does not see it</label>
      <input
        id="ask-note"
        autocomplete="off"
        maxLength={MAX_NOTE}
        value={note}
        onInput={(event) => setNote(event.currentTarget.value)}
      />
      {failed !== "" && (
        <p class="mistake" role="alert">
          {`The answer was not heard. ${failed}`}
        </p>
      )}
      <div class="acts">
        <p class="left" id="ask-left" role="timer">
          {`${timeWords(leftMs)} left, then it is a no`}
        </p>
        <button type="button" ref={no} disabled={busy} aria-keyshortcuts="Escape" onClick={refuse}>
          Refuse <kbd aria-hidden="true">Esc</kbd>
        </button>
        <button type="button" class="primary" disabled={!ready || busy} onClick={() => void approve()}>
          Approve
        </button>
      </div>
    </dialog>
  );
}

function timeWords(ms: number): string {
  const seconds = Math.ceil(ms / SECOND_MS);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}
