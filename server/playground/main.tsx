/** The entry: knows the document, the address and the storage, and hands them to those who need them. */
import { render } from "preact";
import { App } from "./app.tsx";
import { Model } from "./model.js";
import { themeOf } from "./theme.js";
import "./base.css";
import "./page.css";
import "./outcome.css";
import "./narrow.css";

const base = new URL("..", document.baseURI);
const page = new URL(location.pathname, location.origin).href;
const theme = themeOf(document.documentElement, matchMedia("(prefers-color-scheme: dark)"), localStorage);
const model = new Model({ baseUrl: base.href.replace(/\/$/, ""), fetch: (input, init) => fetch(input, init), keys: sessionStorage, page, now: Date.now }); // prettier-ignore

/** A key or a shared script in the address is taken out of it at once: neither is to stay in the history. */
function takeFragment(): string {
  const { hash } = location;
  if (hash !== "") history.replaceState(null, "", location.pathname + location.search);
  return hash;
}

const fragment = takeFragment();
const copy = isSecureContext ? (text: string) => navigator.clipboard.writeText(text) : undefined;
const root = document.getElementById("app");
if (root !== null)
  render(<App model={model} theme={theme} copy={copy} docs={new URL("docs", base).href} />, root);
void model.begin(fragment);
addEventListener("hashchange", () => {
  const next = takeFragment();
  if (next !== "") void model.begin(next);
});
