/** Debian's chromium, driven by playwright-core, and a page of the playground that tells on itself. */
import fs from "node:fs";
import { chromium, type Browser, type BrowserContext, type Page } from "playwright-core";

const EXECUTABLE = "/usr/bin/chromium";

/** Why there is no browser here; undefined if there is one. .ci/run installs it: there, its absence fails the tests. */
export const noBrowser: string | undefined =
  fs.existsSync(EXECUTABLE) || process.env["DOUBLEHULL_CI"] !== undefined
    ? undefined
    : `there is no ${EXECUTABLE}: install Debian's package chromium`;

export const launch = (): Promise<Browser> =>
  chromium.launch({
    executablePath: EXECUTABLE,
    // Chromium's own sandbox does not start for root. The pages are ours, from loopback.
    args: process.getuid?.() === 0 ? ["--no-sandbox"] : [],
  });

export interface Watched {
  page: Page;
  /** What the policy refused, as "directive: what". */
  violations(): Promise<string[]>;
  /** Errors of the page, and all that it wrote to the console as errors and warnings. */
  complaints: string[];
  /** Addresses that it asked for. */
  asked: string[];
}

/** A new page, watched from before its first script on. */
export async function watched(context: BrowserContext): Promise<Watched> {
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const complaints: string[] = [];
  const asked: string[] = [];
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => asked.push(request.url()));
  await page.addInitScript(`
    globalThis.refusedByPolicy = [];
    addEventListener("securitypolicyviolation", (event) =>
      refusedByPolicy.push(event.effectiveDirective + ": " + (event.blockedURI || event.sample)));
  `);
  return { page, violations: () => page.evaluate("refusedByPolicy"), complaints, asked };
}
