/** The playground in a browser, against a service of its own, and what a person does there. */
import fs from "node:fs";
import path from "node:path";
import type { Browser, BrowserContext, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll } from "vitest";
import { start, type Running } from "../service/harness.js";
import { launch, watched, type Watched } from "./chromium.js";

export interface Bench {
  running: Running;
  browser: Browser;
  /** Of the first tenant. */
  key: string;
  /**
   * At the beginning of the page; with that key unless the fragment says otherwise. Closed after the test. Those without
   * options share a context, which has its files already: a tab of its own has a key of its own nevertheless.
   */
  open(options?: BrowserContextOptions, fragment?: string): Promise<Watched>;
  /** Not gone anywhere yet. */
  blank(options?: BrowserContextOptions): Promise<Watched>;
}

/** For the suite that calls it; its parts are there when its tests run. */
export function bench(): Bench {
  const opened: Watched[] = [];
  let shared: BrowserContext;
  const it: Bench = {
    running: undefined as unknown as Running,
    browser: undefined as unknown as Browser,
    key: "",
    async blank(options) {
      const made = await watched(options === undefined ? shared : await it.browser.newContext(options));
      opened.push(made);
      return made;
    },
    async open(options, fragment = `#key=${it.key}`) {
      const made = await it.blank(options);
      await made.page.goto(`${it.running.service.address}/playground/${fragment}`);
      if (fragment.startsWith("#key=")) await made.page.getByText(/^Tenant /).waitFor();
      return made;
    },
  };
  beforeAll(async () => {
    const starting = start({ limits: { wallMs: 20_000, cpuMs: 20_000, logBytes: 524_288 } });
    [it.running, it.browser] = await Promise.all([starting, launch()]);
    it.key = it.running.service.made?.key ?? "";
    shared = await it.browser.newContext();
  });
  afterAll(async () => {
    await it.browser.close();
    await it.running.service.close();
    fs.rmSync(path.dirname(it.running.dir), { recursive: true });
  });
  afterEach(async () => {
    const close = ({ page }: Watched) => (page.context() === shared ? page : page.context()).close();
    await Promise.all(opened.splice(0).map(close));
  });
  return it;
}

/** Of a tenant whose runs may go on for long enough to be cancelled, however busy this machine is. */
export const patientKey = ({ running }: Bench, id: string): Promise<string> =>
  running.tenant(id, { policy: { limits: { wallMs: 20_000, cpuMs: 20_000, logBytes: 524_288 } } });

export const editor = (page: Page) => page.locator(".cm-content");

/** In the place of the whole script. */
export async function write(page: Page, source: string): Promise<void> {
  await editor(page).click();
  await page.keyboard.press("Control+A");
  await page.keyboard.insertText(source);
}

export const choose = (page: Page, sample: string) => page.getByLabel("Sample").selectOption(sample);
export const run = (page: Page) => page.getByRole("button", { name: "Run", exact: true }).click();

/** The outcome's headline. */
export const head = (page: Page) => page.locator(".outcome .head");
export async function ends(page: Page, words: string | RegExp): Promise<void> {
  await head(page).filter({ hasText: words }).waitFor();
}

/** Pixels that the page is wider than the screen. */
export const widthOver = (page: Page) =>
  page.evaluate<number>("document.documentElement.scrollWidth - innerWidth");
