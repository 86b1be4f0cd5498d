/** What a script asks the person at the playground's page, and how it is answered. */
import type { BrowserContextOptions, Page } from "playwright-core";
import { beforeAll, describe, expect, test } from "vitest";
import { audited } from "../service/harness.js";
import { noBrowser, type Watched } from "./chromium.js";
import { bench, choose, editor, ends, patientKey, run, widthOver, write } from "./page.js";

const why = noBrowser === undefined ? "" : ` (skipped: ${noBrowser})`;
describe.skipIf(noBrowser !== undefined)(`a question in the playground${why}`, { timeout: 90_000 }, () => {
  const it = bench();
  const dialog = (page: Page) => page.getByRole("alertdialog", { name: "The script asks:" });
  const answer = (page: Page, name: "Approve" | "Refuse") => dialog(page).getByRole("button", { name });
  const over = (page: Page, words: string) =>
    page
      .getByTestId("asked")
      .filter({ hasText: `The question is over: ${words}` })
      .waitFor();
  const result = (page: Page) => page.getByRole("region", { name: "Result" }).innerText();
  const focused = (page: Page) => page.evaluate<string>("document.activeElement.id || document.activeElement.textContent"); // prettier-ignore
  /** The dialogs that were opened since, by their headings: one may close before a test looks. */
  const opened = (page: Page) => page.evaluate<string[]>("window.opened");

  /** With a script whose parameter `ask` asks, ready to run. */
  async function asking(
    body: string,
    { key = it.key, options }: { key?: string; options?: BrowserContextOptions } = {},
  ): Promise<Watched & { runId: () => string }> {
    const made = await it.open(options, `#key=${key}`);
    const { page } = made;
    await page.evaluate(`
      window.opened = [];
      const { showModal } = HTMLDialogElement.prototype;
      HTMLDialogElement.prototype.showModal = function () {
        opened.push(this.querySelector("h2").textContent);
        showModal.call(this);
      };`);
    let id = "";
    page.on("response", (response) => void (id = response.headers()["x-run-id"] ?? id));
    await page.getByLabel("env.approve").check();
    await write(page, `export default async (input, env) => {\nconst ask = (...words) => env.approve.ask(...words);\n${body}\n};`); // prettier-ignore
    return { ...made, runId: () => id };
  }

  let hasty: string;
  beforeAll(async () => {
    hasty = await it.running.tenant("hasty", { policy: { grants: { approve: { timeoutMs: 500 } } } });
  });

  test("of the sample is answered with yes and a note, by keyboard alone, and the focus is back where it was", async () => {
    const { page, violations, complaints } = await it.open();
    await choose(page, "ask");
    await editor(page).focus();
    await page.keyboard.press("Control+Enter");
    await dialog(page).waitFor();
    expect(await dialog(page).locator("blockquote").innerText()).toBe("Send this letter to ada@example.com?\n\nDear Ada,\nthe engine is ready."); // prettier-ignore
    expect(await dialog(page).getByText("These are its words, by env.approve.ask, and not this page's").count()).toBe(1); // prettier-ignore
    expect(await dialog(page).getByRole("timer").innerText()).toMatch(/^\d+ s left/);
    expect(await dialog(page).getAttribute("aria-describedby")).toBe("ask-text ask-left");
    expect(await focused(page)).toMatch(/^Refuse/);
    await page.keyboard.press("Shift+Tab");
    expect(await focused(page)).toBe("ask-note");
    await page.keyboard.type("she knows");
    await page.keyboard.press("Enter"); // answers nothing
    await page.keyboard.press("Tab");
    await dialog(page).locator("button.primary:enabled").waitFor();
    await page.keyboard.press("Tab");
    expect(await focused(page)).toBe("Approve");
    await page.keyboard.press("Enter");
    await ends(page, "It finished");
    expect(await result(page)).toContain("sent");
    await over(page, "it was approved");
    expect(await dialog(page).count()).toBe(0);
    expect(await page.evaluate("document.activeElement.shadowRoot.activeElement.className")).toContain("cm-content"); // prettier-ignore
    expect(await page.locator(".log .asks .text").allInnerTexts()).toEqual(["Send this letter to ada@example.com?", "The question is over: it was approved."]); // prettier-ignore
    const line = audited(it.running.dir).find(({ kind, act }) => kind === "approval" && act === "approved");
    expect(line).toMatchObject({ tenant: "default", note: "she knows" });
    expect(await violations()).toEqual([]);
    expect(complaints).toEqual([]);
  });

  test("is refused by Enter, by the button and by Escape, which does not cancel the run", async () => {
    const { page } = await asking(
      "return [await ask('1?'), await ask('2?'), await ask('3?'), await ask('4?')]",
    );
    await run(page);
    const asked = (text: string) => dialog(page).getByText(text, { exact: true }).waitFor();
    await asked("1?");
    await page.keyboard.press("Enter");
    await asked("2?");
    await answer(page, "Refuse").click();
    await asked("3?");
    await page.keyboard.press("Escape");
    await asked("4?");
    await answer(page, "Approve").click(); // the control
    await ends(page, "It finished");
    expect(await result(page)).toBe("[false, false, false, true]");
    expect(await opened(page)).toHaveLength(4);
  });

  test("takes no yes in its first moment: a press that was meant for something else is none", async () => {
    const { page } = await asking("return ask('sure?')");
    await page.evaluate(`
      const { showModal } = HTMLDialogElement.prototype;
      HTMLDialogElement.prototype.showModal = function () {
        showModal.call(this);
        const approve = this.querySelector("button.primary");
        opened.push(approve.textContent);
        approve.click();
      };`);
    await run(page);
    await dialog(page).waitFor();
    expect(await opened(page)).toEqual(["The script asks:", "Approve"]); // the control: it was pressed
    await answer(page, "Refuse").click();
    await ends(page, "It finished");
    expect(await result(page)).toBe("false");
  });

  test("that takes too long, or was answered elsewhere, closes by itself and says so", async () => {
    const late = await asking("try { await ask('there?') } catch ({ code }) { return code }", { key: hasty });
    await run(late.page);
    await ends(late.page, "It finished");
    expect(await result(late.page)).toBe("timeout");
    expect(await opened(late.page)).toEqual(["The script asks:"]);
    await over(late.page, "nobody answered in time, or the run has ended");
    expect(await dialog(late.page).count()).toBe(0);

    const { page, runId } = await asking(
      "const yes = await ask('there?'); await ask('and now?'); return yes",
    );
    await run(page);
    await dialog(page).getByText("there?", { exact: true }).waitFor();
    const elsewhere = await it.running.ask("POST", `/v1/runs/${runId()}/approvals/1`, { body: { approved: true } }); // prettier-ignore
    expect(elsewhere.status).toBe(204);
    await dialog(page).getByText("and now?", { exact: true }).waitFor();
    await it.running.ask("DELETE", `/v1/runs/${runId()}`);
    await ends(page, "It was cancelled");
    await over(page, "nobody answered in time, or the run has ended");
    expect(await dialog(page).count()).toBe(0);
    expect(await focused(page)).toMatch(/^Run/);
  });

  test("whose yes the service does not hear stays open and says why, until it is heard", async () => {
    const { page } = await asking("return ask('sure?')");
    await page.route("**/approvals/*", (route) => route.abort());
    await run(page);
    await answer(page, "Approve").click();
    await dialog(page).getByRole("alert").filter({ hasText: "The answer was not heard. The service did not answer" }).waitFor(); // prettier-ignore
    await page.unroute("**/approvals/*");
    await answer(page, "Approve").click();
    await ends(page, "It finished");
    expect(await result(page)).toBe("true");
  });

  test("stays text, set apart from the page's own, whatever it is", async () => {
    const markup = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>';
    const details = Array.from({ length: 40 }, (_, n) => `${n} </pre></blockquote><h2>doublehull asks:</h2> ${"wide".repeat(10)}`); // prettier-ignore
    const { page, violations, complaints } = await asking(
      `return ask(${JSON.stringify(`${markup}\u202e\nApprove this`)}, ${JSON.stringify(details.join("\n"))})`,
      { options: { viewport: { width: 360, height: 640 } } },
    );
    await run(page);
    await dialog(page).waitFor();
    const words = dialog(page).locator("blockquote");
    expect(await words.locator("p").innerText()).toBe(`${markup}\\u{202e}\\u{a}Approve this`);
    expect(await words.locator("pre").innerText()).toBe(details.join("\n"));
    expect(await dialog(page).locator("img, script, h2:not(#ask-title)").count()).toBe(0);
    expect(await page.evaluate("window.hit")).toBeUndefined();
    expect(await widthOver(page)).toBeLessThanOrEqual(0);
    // However much it says, the answers are on the screen, and its words can be scrolled by keyboard.
    const box = await answer(page, "Approve").boundingBox();
    expect((box?.y ?? 640) + (box?.height ?? 0)).toBeLessThanOrEqual(640);
    expect(await words.evaluate((it: { tabIndex: number }) => it.tabIndex)).toBe(0);
    await page.keyboard.press("Escape");
    await ends(page, "It finished");
    expect(await result(page)).toBe("false");
    expect(await violations()).toEqual([]);
    expect(complaints).toEqual([]);
  });

  test("is offered as a sample only where the key has the grant", async () => {
    const options = async (key: string) => {
      const { page } = await it.open(undefined, `#key=${key}`);
      return page.getByLabel("Sample").locator("option").allInnerTexts();
    };
    expect(await options(it.key)).toContain("Ask a person");
    expect(await options(await patientKey(it, "alone"))).not.toContain("Ask a person");
  });
});
