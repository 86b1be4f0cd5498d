/** What holds of the playground's page whatever is written there: its policy, hostile output, and that everybody can use it. */
import type { Page } from "playwright-core";
import { describe, expect, test } from "vitest";
import { noBrowser, type Watched } from "./chromium.js";
import { contrasts } from "./contrast.js";
import { bench, choose, ends, patientKey, run, widthOver, write } from "./page.js";

const why = noBrowser === undefined ? "" : ` (skipped: ${noBrowser})`;
describe.skipIf(noBrowser !== undefined)(`the playground's page${why}`, { timeout: 90_000 }, () => {
  const it = bench();
  const { open } = it;

  describe("what a script says", () => {
    test("stays text, whatever markup it is", async () => {
      const { page, violations } = await open();
      const markup = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>';
      await write(
        page,
        `console.log(${JSON.stringify(markup)}); throw new Error(${JSON.stringify(markup)});`,
      );
      await page.getByLabel("Kind").selectOption("script");
      await run(page);
      await ends(page, "It threw an error");
      expect(await page.locator(".log .text").innerText()).toBe(markup);
      expect(await page.locator(".outcome .more").innerText()).toContain(markup);
      expect(await page.locator(".outcome img, .outcome script").count()).toBe(0);
      expect(await page.evaluate("window.hit")).toBeUndefined();
      expect(await violations()).toEqual([]);
    });

    test("is bounded: of a flood the newest lines are shown, and the others counted", async () => {
      const { page } = await open(undefined, `#key=${await patientKey(it, "loud")}`);
      await write(page, 'for (let i = 0; i < 100_000; i++) console.log("line", i);');
      await page.getByLabel("Kind").selectOption("script");
      await run(page);
      await ends(page, /It (?:finished|was stopped)/);
      const left = await page.getByText(/earlier lines are left out/).innerText();
      expect(Number(left.replaceAll(/\D/g, ""))).toBeGreaterThan(1000);
      expect(await page.locator(".log li").count()).toBe(500);
      expect(await widthOver(page)).toBeLessThanOrEqual(0);
    });
  });

  describe("the policy of the pages", () => {
    test("is never met by the page itself, and all it asks for is the service's", async () => {
      const { page, violations, complaints, asked } = await open();
      for (const sample of ["kv", "throw", "memory"]) {
        await choose(page, sample);
        await run(page);
        await ends(page, /It (?:finished|threw|was stopped)/);
      }
      await write(page, "export default (input, env) => ");
      await page.keyboard.type("env.");
      await page.keyboard.press("Control+Space");
      await page.keyboard.press("Escape");
      await page.keyboard.press("Control+F");
      await page.locator(".cm-search").waitFor();
      await page.getByRole("button", { name: "Share" }).click();
      await page.getByRole("dialog").getByRole("button", { name: "Close" }).click();
      expect(await violations()).toEqual([]);
      expect(complaints).toEqual([]);
      expect(asked.filter((url) => !url.startsWith(`${it.running.service.address}/`))).toEqual([]);
    });

    /** The page with something inline in it, as a hole in the page would put it there. */
    async function withInline(policy: boolean): Promise<Watched> {
      const made = await it.blank();
      await made.page.route("**/playground/", async (route) => {
        const response = await route.fetch();
        const { "content-security-policy": kept = "", ...headers } = response.headers();
        const inline = "<script>window.hit = 1</script><style>body { --hit: 1 }</style>";
        const body = (await response.text()).replace("</head>", `${inline}</head>`);
        await route.fulfill({ response, body, headers: { ...headers, ...(policy ? { "content-security-policy": kept } : {}) } }); // prettier-ignore
      });
      await made.page.goto(`${it.running.service.address}/playground/`);
      await made.page.getByRole("dialog").waitFor();
      return made;
    }
    const hit = (page: Page) =>
      page.evaluate("[window.hit, getComputedStyle(document.body).getPropertyValue('--hit')]");

    test("refuses inline script and style, which would do something without it", async () => {
      const control = await withInline(false);
      expect(await hit(control.page)).toEqual([1, "1"]);
      const { page, violations } = await withInline(true);
      expect(await hit(page)).toEqual([undefined, ""]);
      expect(await violations()).toEqual(["script-src-elem: inline", "style-src-elem: inline"]);
    });

    test("refuses text that becomes markup or code", async () => {
      const { page } = await open();
      const attempt = (code: string) => page.evaluate<string>(`(() => { try { ${code}; return "done"; } catch (error) { return error.name; } })()`); // prettier-ignore
      expect(await attempt("document.body.append('text')")).toBe("done");
      expect(await attempt("document.body.insertAdjacentHTML('beforeend', '<b>markup</b>')")).toBe(
        "TypeError",
      );
      expect(await attempt("document.body.innerHTML = '<img src=x onerror=window.hit=1>'")).toBe("TypeError");
      expect(await attempt("setTimeout('window.hit = 1')")).toBe("TypeError");
      expect(await page.evaluate("window.hit")).toBeUndefined();
    });
  });

  describe("without a mouse, a large screen or the light on", () => {
    test("a script is written, run, cancelled and read by keyboard alone", async () => {
      const { page } = await open(undefined, `#key=${await patientKey(it, "patient")}`);
      const focused = () => page.evaluate<string>("(document.activeElement.shadowRoot?.activeElement ?? document.activeElement).getAttribute('aria-label') ?? document.activeElement.textContent"); // prettier-ignore
      await page.keyboard.press("Tab");
      expect(await focused()).toBe("To the editor");
      await page.keyboard.press("Enter");
      expect(await focused()).toMatch(/^Script\./);
      await page.keyboard.press("Control+A");
      await page.keyboard.type("export default () => {\nfor (;;);");
      await page.keyboard.press("Control+Enter");
      await ends(page, "It is running");
      await page.keyboard.press("Escape");
      await ends(page, "It was cancelled");
      await page.keyboard.press("Escape");
      await page.keyboard.press("Tab");
      expect(await focused()).toMatch(/^Run/);
      expect(await page.evaluate("document.activeElement.matches(':focus-visible')")).toBe(true);
      await page.keyboard.press("Shift+Tab");
      await page.keyboard.press("Control+A");
      await page.keyboard.type("export default () => 6 * 7");
      await page.keyboard.press("Control+Enter");
      await ends(page, "It finished");
      expect(await page.getByTestId("live").innerText()).toContain("It finished");
    });

    test("every control has a name, and every field of the page that scrolls can be reached", async () => {
      const { page } = await open();
      await choose(page, "kv");
      await run(page);
      await ends(page, "It finished");
      await page.getByText("More limits").click();
      const session = await page.context().newCDPSession(page);
      const { nodes } = await session.send("Accessibility.getFullAXTree");
      const controls = nodes.filter(({ ignored, properties }) => !ignored && properties?.some(({ name, value }) => name === "focusable" && value.value === true)); // prettier-ignore
      expect(controls.length).toBeGreaterThan(35);
      const nameless: string[] = [];
      for (const { role, name, backendDOMNodeId } of controls) {
        if (role?.value === "RootWebArea" || String(name?.value ?? "").trim() !== "") continue;
        const { node } = await session.send("DOM.describeNode", { backendNodeId: backendDOMNodeId ?? 0 });
        const { attributes = [] } = node;
        if (attributes[attributes.indexOf("tabindex") + 1] !== "-1") nameless.push(node.localName); // else no key reaches it
      }
      expect(nameless).toEqual([]);
      const images = nodes.filter(({ ignored, role }) => !ignored && role?.value === "image");
      expect(images.every(({ name }) => String(name?.value ?? "") !== "")).toBe(true);
      const unreachable = await page.evaluate<string[]>(`[...document.querySelectorAll("body *")]
        .filter((it) => it.scrollHeight > it.clientHeight + 1 && /auto|scroll/.test(getComputedStyle(it).overflowY))
        .filter((it) => it.tabIndex < 0)
        .map((it) => it.className)`);
      expect(unreachable).toEqual([]);
    });

    test("nothing is wider than a phone of 360 pixels, before and after a run", async () => {
      const { page } = await open({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
      expect(await widthOver(page)).toBeLessThanOrEqual(0);
      await choose(page, "kv");
      await run(page);
      await ends(page, "It finished");
      await page.getByText("Methods of kv").click();
      await page.getByText("More limits").click();
      await page.getByText("Runs of this page as a table").click();
      expect(await widthOver(page)).toBeLessThanOrEqual(0);
      await write(page, `export default () => "${"wide".repeat(500)}";`);
      await run(page);
      await page.getByRole("region", { name: "Result" }).filter({ hasText: "widewide" }).waitFor();
      expect(await widthOver(page)).toBeLessThanOrEqual(0);
    });

    test.each(["light", "dark"] as const)(
      "every text can be read in the %s: 4.5 to 1 or more",
      async (colorScheme) => {
        const { page } = await open({ colorScheme, reducedMotion: "reduce" });
        const faint: unknown[] = [];
        const look = async (when: string) => {
          const seen = await contrasts(page);
          expect(seen.checked).toBeGreaterThan(40);
          faint.push(...seen.faint.map((text) => ({ when, ...text })));
        };
        await look("before a run");
        await page.getByText("More limits").click();
        const endings = { compute: "It finished", events: "It finished", throw: "It threw", memory: "It was stopped", endless: "It was stopped" }; // prettier-ignore
        for (const [sample, end] of Object.entries(endings)) {
          await choose(page, sample);
          if (sample === "endless") await page.getByLabel(/^wallMs/).fill("100"); // the supervisor ends it
          await run(page);
          await ends(page, end);
          await look(`after ${sample}`);
        }
        await page.getByLabel(/^wallMs/).fill("no");
        await run(page);
        await page.getByRole("alert").waitFor();
        await look("with a mistake");
        await page.getByLabel(/^wallMs/).fill("");
        await choose(page, "ask");
        await run(page);
        await page.getByRole("alertdialog").locator("button.primary:enabled").waitFor();
        await look("with a question");
        await page.keyboard.press("Escape");
        await page.getByRole("button", { name: "Forget key" }).click();
        await page.getByRole("dialog").waitFor();
        await look("without a key");
        expect(faint).toEqual([]);
        // The control: what cannot be read is found, in a drawing, too.
        await page.evaluate(`
        document.querySelector("h1").style.color = "rgb(20, 60, 90)";
        document.querySelector(".words .bridge").style.fill = "rgb(20, 60, 90)";`);
        expect((await contrasts(page)).faint.map(({ text }) => text)).toEqual([
          "doublehull playground",
          "supervisor",
        ]);
      },
    );

    test("it is dark where the system is, unless the switch says otherwise, which stays", async () => {
      const { page } = await open({ colorScheme: "dark" });
      const background = () => page.evaluate<string>("getComputedStyle(document.body).backgroundColor");
      const dark = await background();
      await page.getByRole("button", { name: "Theme: system" }).click();
      await page.getByRole("button", { name: "Theme: light" }).waitFor();
      const light = await background();
      expect(light).not.toBe(dark);
      await page.reload();
      await page.getByRole("button", { name: "Theme: light" }).click();
      await page.getByRole("button", { name: "Theme: dark" }).waitFor();
      expect(await background()).toBe(dark);
    });
  });
});
