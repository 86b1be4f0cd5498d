/** The playground as a person uses it, in a real browser against a real service. */
import { deflateRawSync } from "node:zlib";
import type { Page } from "playwright-core";
import { describe, expect, test } from "vitest";
import { noBrowser } from "./chromium.js";
import { bench, choose, editor, ends, head, patientKey, run, write } from "./page.js";

const why = noBrowser === undefined ? "" : ` (skipped: ${noBrowser})`;
describe.skipIf(noBrowser !== undefined)(`the playground${why}`, { timeout: 90_000 }, () => {
  const it = bench();
  const { open } = it;

  describe("a run", () => {
    test("of a sample shows its value, what it used of its limits, and what its grants were asked for", async () => {
      const { page } = await open();
      await choose(page, "kv");
      expect(await page.getByLabel("env.kv").isChecked()).toBe(true);
      await run(page);
      await ends(page, "It finished");
      expect(await page.getByRole("region", { name: "Result" }).innerText()).toMatch(/visits: \d+,[^]*keys: \["last", "visits"\]/); // prettier-ignore
      expect(await page.locator(".usage").innerText()).toMatch(
        /CPU\s+[\d.]+ of 5,000 ms[^]*Host calls\s+4 of 1,000/,
      );
      expect(await page.getByRole("region", { name: "Ledger" }).innerText()).toMatch(/kv\s+increment\s+1/);
      expect(await page.getByTestId("live").innerText()).toMatch(/^It finished\. \d+ milliseconds\.$/);
      await page.getByRole("img", { name: /^Runs of this page: 1 of them/ }).waitFor();
      await page.getByRole("img", { name: /^The tenant's last 30 days: 30 of them/ }).waitFor();
    });

    test("shows its log while it is under way, and is cancelled by Escape", async () => {
      const { page } = await open(undefined, `#key=${await patientKey(it, "patient")}`);
      await choose(page, "endless");
      await run(page);
      await page.locator(".log li", { hasText: "round and round" }).waitFor();
      expect(await head(page).innerText()).toBe("It is running");
      await page.keyboard.press("Escape");
      await ends(page, "It was cancelled");
      expect(await page.locator(".usage").count()).toBe(1);
    });

    test("shows its events as they come", async () => {
      const { page } = await open();
      await choose(page, "events");
      await run(page);
      await ends(page, "It finished");
      expect(await page.locator(".log li.event").count()).toBe(8);
      expect(await page.locator(".log li").first().innerText()).toMatch(
        /event\s+progress \{ step: 1, of: 8 \}/,
      );
    });

    test("that throws says so, and marks its line in the editor until the script is another", async () => {
      const { page } = await open();
      await choose(page, "throw");
      await run(page);
      await ends(page, "It threw an error");
      expect(await page.locator(".outcome .more").innerText()).toBe(
        "RangeError: width must be above 0, not -1",
      );
      expect(await page.locator(".cm-line.wrong").innerText()).toContain("throw new RangeError");
      expect(await page.getByTestId("live").innerText()).toContain("line 2");
      await page.getByRole("button", { name: "Go to line 2, column" }).click();
      expect(await page.evaluate("document.activeElement.className")).toBe("editor");
      await choose(page, "compute");
      await page.locator(".cm-line.wrong").waitFor({ state: "detached" });
    });

    test("of TypeScript that cannot be parsed marks the line, too", async () => {
      const { page } = await open();
      await choose(page, "typescript");
      await write(page, "const a: number = 1;\nexport default () => a +;\n");
      await run(page);
      await ends(page, "It threw an error");
      expect(await page.locator(".cm-line.wrong").innerText()).toContain("a +;");
    });

    test("that a layer ends says which, by which limit and what can be done", async () => {
      const { page } = await open();
      await choose(page, "endless");
      await page.getByLabel(/^wallMs/).fill("100");
      await run(page);
      await ends(page, "it was still running at its deadline");
      expect(await page.locator(".outcome .more").innerText()).toContain("limit 100 ms");
      expect(await page.locator(".outcome .status").innerText()).toContain("raise wallMs under Limits");
    });

    test("on another engine, as the key may have it, is drawn with that engine's layers", async () => {
      const engines = ((await it.running.ask("GET", "/v1")).body as { engines: string[] }).engines;
      const { page } = await open();
      expect(await page.getByLabel("Engine", { exact: true }).locator("option").count()).toBe(
        engines.length + 1,
      );
      await page.getByLabel("Engine", { exact: true }).selectOption("quickjs");
      await run(page);
      await ends(page, "It finished");
      expect(await page.locator(".hulls").innerText()).toContain("language hull · quickjs");
    });

    test("does not begin with an input that is no JSON or a limit beyond the policy's, and the field says so", async () => {
      const { page } = await open();
      await page.getByLabel("Input, as JSON").fill("{oops}");
      await run(page);
      await page.getByRole("alert").filter({ hasText: "the input is no JSON" }).waitFor();
      expect(await page.getByLabel("Input, as JSON").getAttribute("aria-invalid")).toBe("true");
      await page.getByLabel("Input, as JSON").fill("{}");
      await page.getByLabel(/^memoryMb/).fill("100000");
      await run(page);
      await page
        .getByRole("alert")
        .filter({ hasText: "memoryMb must be a whole number from 16 to 64" })
        .waitFor();
      expect(await page.locator(".outcome .empty").count()).toBe(1);
    });
  });

  describe("the hulls", () => {
    test("show each layer of the outcome in words, by arrows from one to the next", async () => {
      const { page } = await open();
      await run(page);
      await ends(page, "It finished");
      const { body } = await it.running.ask("POST", "/v1/runs", { body: { source: "1", type: "script" } });
      const kernel = (body as { outcome: { layers: { kernel: { layer: string; state: string }[] } } }).outcome.layers.kernel; // prettier-ignore
      const options = page.getByRole("option");
      expect(await page.locator(".hulls [role=option]").count()).toBe(1 + kernel.length + 5);
      await page.getByRole("option", { name: /^supervisor/ }).focus();
      await page.keyboard.press("ArrowRight");
      const [first] = kernel;
      expect(await page.locator(".hulls .layer strong").innerText()).toBe(first?.layer);
      await page.keyboard.press("End");
      expect(await page.locator(".hulls .layer strong").innerText()).toBe("interrupt");
      for (const { layer, state } of kernel)
        expect(await options.filter({ has: page.locator("path") }).and(page.getByRole("option", { name: new RegExp(`^${layer}, kernel hull, ${state}`) })).count(), layer).toBe(1); // prettier-ignore
      const off = kernel.filter(({ state }) => state !== "on");
      const said = await page.locator(".hulls .sum").innerText();
      for (const { layer } of off) expect(said).toContain(layer);
      expect(said).toContain(`${kernel.length - off.length} of ${kernel.length} layers`);
    });

    test("show the layer that ended a run", async () => {
      const { page } = await open();
      await choose(page, "memory");
      await run(page);
      await ends(page, "more memory than it may have");
      expect(await page.locator(".plate.ended").getAttribute("aria-label")).toMatch(/This ended the run/);
      expect(await page.locator(".hulls .layer").innerText()).toContain("ended the run");
    });
  });

  describe("completion", () => {
    const options = (page: Page) => page.locator(".cm-tooltip-autocomplete li");

    test("offers of env what is granted, and of a grant its methods with signature and words", async () => {
      const { page } = await open();
      await page.getByLabel("env.events").check();
      await write(page, "export default (input, env) => ");
      await page.keyboard.type("env.");
      await options(page).filter({ hasText: "events" }).waitFor();
      expect((await options(page).allInnerTexts()).join()).not.toContain("kv");
      await page.keyboard.press("Escape");
      await page.getByLabel("env.kv").check();
      await write(page, "export default (input, env) => ");
      await page.keyboard.type("env.");
      await options(page).filter({ hasText: "kv" }).waitFor();
      await page.keyboard.type("kv.incr");
      await options(page).filter({ hasText: "increment" }).waitFor();
      await page
        .locator(".cm-completionInfo", { hasText: "(key: string, by?: number): Promise<number>" })
        .waitFor();
      expect(await page.locator(".cm-completionInfo").innerText()).toContain("Adds a whole number");
      await page.locator(".cm-tooltip-autocomplete li[aria-selected]").click();
      expect(await editor(page).innerText()).toContain("env.kv.increment");
    });
  });

  describe("a key", () => {
    test("in the fragment leaves the address at once, and is kept for this tab alone", async () => {
      const { page } = await open();
      expect(page.url()).toBe(`${it.running.service.address}/playground/`);
      expect(await page.evaluate("JSON.stringify(localStorage)")).not.toContain(it.key);
      expect(await page.evaluate("document.cookie")).toBe("");
      await page.reload();
      await page.getByText(/^Tenant default/).waitFor();
    });

    test("that is none is told, in a dialog that asks for another; Forget key asks, too", async () => {
      const { page } = await open(undefined, "");
      const dialog = page.getByRole("dialog", { name: "Your API key" });
      await dialog.getByLabel("API key").fill("dh_000000000000_wrong");
      await page.keyboard.press("Enter");
      await dialog.getByRole("alert").filter({ hasText: "The service does not know this key." }).waitFor();
      await dialog.getByLabel("API key").fill(it.key);
      await dialog.getByRole("button", { name: "Use this key" }).click();
      await page.getByText(/^Tenant default/).waitFor();
      await page.getByRole("button", { name: "Forget key" }).click();
      await dialog.waitFor();
      expect(await page.evaluate("JSON.stringify(sessionStorage)")).not.toContain(it.key);
    });

    test("that an address brings in the place of another is told; one that is none takes nothing away", async () => {
      const other = await it.running.tenant("visitor");
      const { page } = await open();
      const bring = (key: string) => page.goto(`${it.running.service.address}/playground/#key=${key}`);
      await bring("dh_000000000000_wrong");
      await page.getByRole("alert").filter({ hasText: "does not know this key" }).waitFor();
      await page.reload();
      await page.getByText(/^Tenant default/).waitFor();
      await bring(other);
      await page.getByText("from now on you run as the tenant visitor").waitFor();
      await page.getByText(/^Tenant visitor/).waitFor();
    });

    test("that is revoked meanwhile is told when it is used", async () => {
      const other = await it.running.tenant("guest");
      const { page } = await open(undefined, `#key=${other}`);
      await page.getByText(/^Tenant guest/).waitFor();
      await it.running.admin("DELETE", "/admin/v1/tenants/guest");
      await run(page);
      await page
        .getByRole("dialog")
        .getByRole("alert")
        .filter({ hasText: "does not know this key any more" })
        .waitFor();
    });
  });

  describe("a link", () => {
    const forged = (plain: unknown) =>
      `#share=${deflateRawSync(JSON.stringify(plain)).toString("base64url")}`;

    test("brings code, choices and input to another, holds no key, and runs nothing", async () => {
      const { page } = await open();
      await choose(page, "typescript");
      await write(page, "export default (who: string) => who;\n// <script>alert(1)</script>\n");
      await page.getByLabel("env.kv").check();
      await page.getByLabel("Input, as JSON").fill('"Ada"');
      await page.getByLabel(/^wallMs/).fill("300");
      await page.getByRole("button", { name: "Share" }).click();
      const link = await page.getByLabel("Link", { exact: true }).inputValue();
      expect(link).not.toContain(it.key);
      const there = await open(undefined, new URL(link).hash);
      await there.page.getByText(/came by a link/).waitFor();
      await there.page.getByRole("dialog").getByLabel("API key").fill(it.key);
      await there.page.keyboard.press("Enter");
      await there.page.getByText(/^Tenant default/).waitFor();
      expect(await editor(there.page).innerText()).toContain("// <script>alert(1)</script>");
      expect(await there.page.getByLabel("Language").inputValue()).toBe("typescript");
      expect(await there.page.getByLabel("env.kv").isChecked()).toBe(true);
      expect(await there.page.getByLabel("Input, as JSON").inputValue()).toBe('"Ada"');
      expect(await there.page.getByLabel(/^wallMs/).inputValue()).toBe("300");
      expect(there.page.url()).not.toContain("#");
      expect(there.asked.filter((url) => url.includes("/v1/runs"))).toEqual([]);
      await run(there.page); // the control: what it brought can be run, by who wants to
      await ends(there.page, "It finished");
      expect(await there.page.getByRole("region", { name: "Result" }).innerText()).toBe("Ada");
    });

    test.each([
      ["damaged text", "#share=***", /no base64url/],
      [
        "a deflate bomb",
        forged({ source: "a".repeat(40_000_000), type: "script", language: "javascript" }),
        /too large/,
      ],
      ["wrong types", forged({ source: 1, type: "script", language: "javascript" }), /its source is wrong/],
      [
        "something behind its end",
        `${forged({ source: "1", type: "script", language: "javascript" })}AAAA`,
        /inflated/,
      ],
    ])("with %s is refused with words, and the page goes on", async (_, fragment, said) => {
      const { page, complaints } = await open();
      await page.goto(`${it.running.service.address}/playground/${fragment}`);
      await page.getByText(/^Nothing was opened/).waitFor();
      expect(await page.locator(".notice").innerText()).toMatch(said);
      await run(page);
      await ends(page, "It finished");
      expect(complaints).toEqual([]);
    });
  });
});
