/** The two dialogs: for the API key, and for an address to share. */
import { useEffect, useRef, useState } from "preact/hooks";
import type { Model } from "./model.js";

/** Open as long as it is rendered; what it covers cannot be reached meanwhile. */
function useModal() {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const element = dialog.current;
    element?.showModal();
    return () => element?.close();
  }, []);
  return dialog;
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
