/**
 * The web platform's part once more, as a run of the whole sandbox meets it, on every engine: a few facts of each
 * interface. What each of them does in full, web.test.ts and its neighbours ask in bare realms.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Sandbox } from "doublehull";
import { ENGINES } from "../engines.js";
import { makeSandbox, valueOf } from "../harness.js";

/** Of each interface: what its facts say, as expressions of an async function, and what they are worth. */
const GROUPS: Record<string, [expression: string, value: unknown][]> = {
  "URL and URLSearchParams": [
    [
      "new URL('../b?q=ä#f', 'http://u:p@EXAMPLE.com:80/a/x/y').href",
      "http://u:p@example.com/a/b?q=%C3%A4#f",
    ],
    ["new URL('http://bücher.example').host", "xn--bcher-kva.example"],
    ["[...new URLSearchParams('a=1&b=2&a=%20+')].join('|')", "a,1|b,2|a,  "],
    ["(() => { const u = new URL('http://h/'); u.searchParams.append('k', 'v w'); return u.search })()", "?k=v+w"], // prettier-ignore
    ["(() => { try { new URL('http://[') } catch (e) { return e instanceof TypeError } })()", true],
  ],
  "TextEncoder and TextDecoder": [
    ["[...new TextEncoder().encode('é\\ud800')].join()", "195,169,239,191,189"],
    ["new TextEncoder().encodeInto('€uro', new Uint8Array(4)).read", 2],
    [
      "new TextDecoder().decode(new Uint8Array([0xef, 0xbb, 0xbf, 0xf0, 0x9f, 0x98, 0x80, 0xff]))",
      "😀\ufffd",
    ],
    ["new TextDecoder('utf-16le').decode(new Uint8Array([0x61, 0, 0x62, 0]))", "ab"],
    ["(() => { try { new TextDecoder('utf-8', { fatal: true }).decode(new Uint8Array([0xff])) } catch (e) { return e instanceof TypeError } })()", true], // prettier-ignore
  ],
  "atob and btoa": [
    ["btoa(String.fromCharCode(0, 255)) + atob(' aGk = ')", "AP8=hi"],
    ["(() => { try { btoa('€') } catch (e) { return [e.name, e instanceof DOMException, e.code] } })()", ["InvalidCharacterError", true, 5]], // prettier-ignore
  ],
  "Event, EventTarget and AbortController": [
    ["(() => { const t = new EventTarget(), seen = []; t.addEventListener('x', (e) => seen.push(e.type, e.detail), { once: true }); t.dispatchEvent(new CustomEvent('x', { detail: 7 })); t.dispatchEvent(new CustomEvent('x')); return seen })()", ["x", 7]], // prettier-ignore
    ["(() => { const c = new AbortController(); let heard = 0; c.signal.onabort = () => heard++; c.abort(); return [heard, c.signal.aborted, c.signal.reason.name] })()", [1, true, "AbortError"]], // prettier-ignore
    ["await new Promise((go) => AbortSignal.timeout(5).addEventListener('abort', (e) => go(e.target.reason.name)))", "TimeoutError"], // prettier-ignore
    ["AbortSignal.any([new AbortController().signal, AbortSignal.abort(3)]).reason", 3],
  ],
  "Headers, Request and Response": [
    ["[...new Headers([['B', '2'], ['a', ' 1 '], ['b', '3']])].join('|')", "a,1|b,2, 3"],
    [
      "await new Request('http://h/p', { method: 'post', body: new URLSearchParams({ q: 'ü' }) }).text()",
      "q=%C3%BC",
    ],
    ["(await Response.json({ a: [1] }, { status: 201 }).json()).a[0]", 1],
    ["[...new Uint8Array(await new Response(new Uint8Array([1, 2]).buffer).arrayBuffer())].join()", "1,2"],
    ["(() => { const r = new Response('x'); const c = r.clone(); return Promise.all([r.text(), c.text()]) })()", ["x", "x"]], // prettier-ignore
    ["await fetch('http://h/').catch((e) => e instanceof TypeError)", true],
  ],
  structuredClone: [
    ["(() => { const v = { m: new Map([[1, new Set([2])]]), d: new Date(5), r: /a/g, e: new RangeError('m') }; v.self = v; const c = structuredClone(v); return [c.self === c, [...c.m.get(1)][0], +c.d, String(c.r), c.e.name, c !== v] })()", [true, 2, 5, "/a/g", "RangeError", true]], // prettier-ignore
    ["(() => { const b = new Uint8Array([1, 2, 3, 4]); const c = structuredClone([b.subarray(1), new DataView(b.buffer, 2), b.buffer]); return [[...c[0]].join(), c[1].getUint8(0), c[0].buffer === c[2]] })()", ["2,3,4", 3, true]], // prettier-ignore
    ["(() => { try { structuredClone(() => {}) } catch (e) { return e.name } })()", "DataCloneError"],
  ],
  "crypto, performance and timers": [
    ["crypto.getRandomValues(new Uint8Array(8)).length", 8],
    ["typeof performance.now()", "number"],
    ["await new Promise((go) => setTimeout(queueMicrotask, 1, () => go('later')))", "later"],
  ],
};

describe.each(ENGINES)("what a run finds of the web platform on %s", (engine) => {
  let sandbox: Sandbox;
  beforeAll(async () => {
    sandbox = await makeSandbox({ engine, limits: { wallMs: 20_000, cpuMs: 20_000 } });
  });
  afterAll(() => sandbox.close());

  test.each(Object.entries(GROUPS))("%s", async (_name, facts) => {
    const asked = facts.map(([expression]) => `async () => ${expression}`).join(",\n");
    const source = `export default async () => {
      const said = [];
      for (const ask of [${asked}]) said.push(await ask().catch((error) => "threw " + error));
      return said;
    }`;
    const said = valueOf(await sandbox.run(source)) as unknown[];
    expect(said.map((value, i) => [facts[i]?.[0], value])).toEqual(facts);
  });
});
