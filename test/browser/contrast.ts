/** What of a page cannot be read well: WCAG 2.2, 1.4.3, computed by the browser from what it shows. */
import type { Page } from "playwright-core";

export interface Faint {
  text: string;
  /** Of 21, at most. */
  ratio: number;
  colours: string;
}

/** WCAG 2.2 AA; the lower bar for large text is not used. */
const LEAST = 4.5;

/**
 * Every text that is shown (of the document, of shadow roots, of drawings, values and placeholders of fields) on what is
 * painted behind it, see-through colours and opacity included. Controls that are disabled are exempt, as are texts on a
 * canvas, which are not seen here. Throws if a colour is written in a way that is not known here.
 */
export async function contrasts(page: Page): Promise<{ checked: number; faint: Faint[] }> {
  return page.evaluate<{ checked: number; faint: Faint[] }>(`(() => {
    const colour = (text) => {
      const [, parts] = /^rgba?\\(([\\d., ]+)\\)$/.exec(text) ?? [];
      if (parts === undefined) throw new Error("what colour is " + text + "?");
      const [r, g, b, a = 1] = parts.split(",").map(Number);
      return [r, g, b, a];
    };
    const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
    const luminance = (rgb) => {
      const [r, g, b] = rgb.slice(0, 3).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => {
      const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
      return (high + 0.05) / (low + 0.05);
    };
    const parent = (it) => it.parentElement ?? it.getRootNode().host;
    /** Painted behind the content of an element; a drawing's shapes are its own. */
    const behind = (it) => {
      if (it === undefined || it === null) return [255, 255, 255, 1];
      const { backgroundColor, opacity } = getComputedStyle(it);
      const below = it.matches("dialog[open]") ? [255, 255, 255, 1] : behind(parent(it)); // it lies on top of all
      const [r, g, b, a] = colour(backgroundColor);
      return over([r, g, b, a * Number(opacity)], below);
    };
    const opacityOf = (it) => (it === undefined || it === null ? 1 : Number(getComputedStyle(it).opacity) * opacityOf(parent(it)));
    /** The topmost shape that was painted before a text of a drawing, where the middle of the text is. */
    const shapeBehind = (text) => {
      const drawing = text.ownerSVGElement;
      const { x, y, width, height } = text.getBBox();
      const middle = Object.assign(drawing.createSVGPoint(), { x: x + width / 2, y: y + height / 2 });
      let found = behind(drawing);
      for (const shape of drawing.querySelectorAll("path, rect")) {
        if ((text.compareDocumentPosition(shape) & Node.DOCUMENT_POSITION_PRECEDING) === 0) continue;
        const { fill } = getComputedStyle(shape);
        if (fill !== "none" && shape.isPointInFill(middle)) found = over(colour(fill), found);
      }
      return found;
    };
    const faint = [];
    let checked = 0;
    const check = (text, it, style, isDrawn) => {
      checked++;
      const back = isDrawn ? shapeBehind(it) : behind(it);
      const [r, g, b, a] = colour(isDrawn ? style.fill : style.color);
      const front = over([r, g, b, a * opacityOf(it)], back);
      const measured = ratio(front, back);
      if (measured >= ${LEAST}) return;
      const words = [front, back].map((rgb) => rgb.slice(0, 3).map(Math.round).join(" "));
      faint.push({ text: text.trim().slice(0, 60), ratio: Math.round(measured * 100) / 100, colours: words.join(" on ") });
    };
    const walk = (root) => {
      for (const it of root.querySelectorAll("*")) {
        if (it.shadowRoot !== null) walk(it.shadowRoot);
        if (!it.checkVisibility({ visibilityProperty: true }) || it.closest(":disabled, [aria-disabled=true], noscript, style, script, .unseen, .skip, option") !== null) continue;
        const style = getComputedStyle(it);
        if (it.matches("input:not([type=checkbox]), textarea")) {
          check(it.value === "" ? it.placeholder : it.value, it, it.value === "" ? getComputedStyle(it, "::placeholder") : style, false);
        } else if (it.matches("select")) {
          check(it.selectedOptions[0]?.textContent ?? "", it, style, false);
        } else if ([...it.childNodes].some(({ nodeType, data }) => nodeType === Node.TEXT_NODE && data.trim() !== "")) {
          check(it.textContent, it, style, it.ownerSVGElement !== undefined && it.ownerSVGElement !== null);
        }
      }
    };
    walk(document);
    return { checked, faint };
  })()`);
}
