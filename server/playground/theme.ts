/** Light or dark: the system's, unless the switch says otherwise. The style sheet reads it from the root element. */
import { signal, type ReadonlySignal } from "@preact/signals";

export type ThemeName = "system" | "light" | "dark";

export interface Theme {
  chosen: ReadonlySignal<ThemeName>;
  /** What is seen, for what is drawn on a canvas. */
  shown: ReadonlySignal<"light" | "dark">;
  set(name: ThemeName): void;
}

const NAMES: readonly ThemeName[] = ["system", "light", "dark"];
const KEY = "doublehull-theme";

export const nextTheme = (name: ThemeName): ThemeName =>
  NAMES[(NAMES.indexOf(name) + 1) % NAMES.length] ?? "system";

export function themeOf(
  root: HTMLElement,
  dark: Pick<MediaQueryList, "matches" | "addEventListener">,
  kept: Pick<Storage, "getItem" | "setItem">,
): Theme {
  const chosen = signal<ThemeName>(NAMES.find((name) => name === kept.getItem(KEY)) ?? "system");
  const shown = signal<"light" | "dark">("light");
  const apply = () => {
    root.dataset["theme"] = chosen.value;
    shown.value = chosen.value === "system" ? (dark.matches ? "dark" : "light") : chosen.value;
  };
  apply();
  dark.addEventListener("change", apply);
  return {
    chosen,
    shown,
    set(name) {
      chosen.value = name;
      kept.setItem(KEY, name);
      apply();
    },
  };
}
