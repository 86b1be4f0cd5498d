/**
 * The web platform's part of the guest's world: what scripts expect to find beside their language, with no authority.
 * Evaluated inside the guest's realm before any guest code, bundled with its parts into one expression. It refers to
 * nothing but the language and `host`: the type check of this folder knows no other globals.
 *
 * Rule: nothing here guards anything. All of it stands in the guest's own realm, where a script may patch whatever it
 * likes and harms only itself; what leaves, the request of a `fetch`, is judged by whoever receives it.
 *
 * Not provided, because the guest has no use for them or no bytes to feed them: Blob, File, FormData, streams (a body
 * is null or can be iterated once with `for await`), Intl, WebSocket, Worker, localStorage.
 */
import { atob, btoa } from "./base64.js";
import { makeStructuredClone } from "./clone.js";
import { DOMException } from "./dom-exception.js";
import { makeEvents, type EventPowers } from "./events.js";
import { makeFetch, type RequestFunction } from "./fetch.js";
import { Headers } from "./headers.js";
import { TextDecoder, TextEncoder } from "./text.js";
import { URL, URLSearchParams } from "./url.js";

/** What the world around lends to it. */
export interface WebHost extends EventPowers {
  /** Makes a global that is writable and configurable and not enumerable. */
  define(name: string, value: unknown): void;
}

export interface WebControl {
  /**
   * What `fetch` asks from now on. With undefined, as at first, it rejects with a TypeError that names the grant.
   * The answer's parts are taken over as they are.
   */
  bindFetch(request: RequestFunction | undefined): void;
}

export default function web(host: WebHost): WebControl {
  // Taken once, and called without their object: what is looked up later, a guest may have changed.
  const { define, now, setTimeout } = host;
  const events = makeEvents({ now, setTimeout });
  const { classes, fetch, bindFetch } = makeFetch(events);
  const platform = {
    ...events.classes,
    ...classes,
    Headers,
    TextDecoder,
    TextEncoder,
    URL,
    URLSearchParams,
  };
  const structuredClone = makeStructuredClone(Object.values(platform));
  const globals = { ...platform, DOMException, atob, btoa, fetch, structuredClone };
  for (const [name, value] of Object.entries(globals)) define(name, value);
  return Object.freeze({ bindFetch });
}
