/**
 * The editor: CodeMirror in a shadow root. There its styles are adopted style sheets, which a policy without
 * 'unsafe-inline' allows; in the document itself they would be a style element, which it refuses.
 */
import { completionStatus } from "@codemirror/autocomplete";
import { javascript } from "@codemirror/lang-javascript";
import { HighlightStyle, syntaxHighlighting } from "@codemirror/language";
import { forEachDiagnostic, setDiagnostics } from "@codemirror/lint";
import { Compartment, EditorState, Prec } from "@codemirror/state";
import { Decoration, EditorView, keymap } from "@codemirror/view";
import { indentWithTab } from "@codemirror/commands";
import { tags } from "@lezer/highlight";
import { basicSetup } from "codemirror";
import type { Place } from "../outcome-words.js";
import { completions, hovers, type Offers } from "./completion.js";

export interface Editor {
  show(source: string): void;
  language(name: "javascript" | "typescript"): void;
  /** Marks where an error came from, until the next edit of that line; nothing if undefined. */
  mark(place: Place | undefined, message: string): void;
  /** Puts the cursor there. */
  goTo(place: Place): void;
  focus(): void;
  close(): void;
}

export interface EditorOptions {
  label: string;
  offered: () => Offers;
  onChange: (source: string) => void;
  onRun: () => void;
  /** Whether it did something. */
  onEscape: () => boolean;
}

/** In an element of its own, whose shadow root it makes. */
export function openEditor(host: HTMLElement, options: EditorOptions): Editor {
  const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  const language = new Compartment();
  const offers = [{ autocomplete: completions(options.offered) }]; // one source: the editor knows it again by identity
  const view = new EditorView({
    root,
    parent: root,
    state: EditorState.create({
      extensions: [
        Prec.highest(
          keymap.of([
            { key: "Mod-Enter", preventDefault: true, run: () => (options.onRun(), true) },
            // What is offered is closed first.
            { key: "Escape", run: ({ state }) => completionStatus(state) !== "active" && options.onEscape() },
          ]),
        ),
        basicSetup,
        keymap.of([indentWithTab]),
        language.of(javascript()),
        EditorState.languageData.of(() => offers),
        EditorView.domEventHandlers({ beforeinput: replaceSelection }),
        hovers(options.offered),
        EditorView.lineWrapping,
        EditorView.contentAttributes.of({ "aria-label": options.label }),
        EditorView.updateListener.of(({ docChanged, state, transactions }) => {
          if (docChanged && !transactions.some((it) => it.isUserEvent("load")))
            options.onChange(state.doc.toString());
        }),
        EditorView.decorations.of(({ state }) => {
          const lines: number[] = [];
          forEachDiagnostic(state, (_, from) => void lines.push(state.doc.lineAt(from).from));
          return Decoration.set(lines.map((at) => Decoration.line({ class: "wrong" }).range(at)));
        }),
        syntaxHighlighting(colours),
        look,
      ],
    }),
  });
  const at = ({ line, column }: Place): { from: number; to: number } | undefined => {
    if (line < 1 || line > view.state.doc.lines) return undefined;
    const { from, to } = view.state.doc.line(line);
    const begin = Math.min(from + Math.max(0, column - 1), to);
    const word = view.state.wordAt(begin);
    return { from: begin, to: word !== null && word.to > begin ? word.to : Math.min(begin + 1, to) };
  };
  return {
    show(source) {
      if (source !== view.state.doc.toString())
        view.dispatch({
          changes: { from: 0, to: view.state.doc.length, insert: source },
          selection: { anchor: 0 },
          userEvent: "load",
          scrollIntoView: true,
        });
      view.dispatch(setDiagnostics(view.state, []));
    },
    language(name) {
      view.dispatch({ effects: language.reconfigure(javascript({ typescript: name === "typescript" })) });
    },
    mark(place, message) {
      const range = place && at(place);
      const found = range === undefined ? [] : [{ ...range, severity: "error" as const, message }];
      view.dispatch(setDiagnostics(view.state, found));
      if (range !== undefined) view.dispatch({ effects: EditorView.scrollIntoView(range.from, { y: "nearest", yMargin: 40 }) }); // prettier-ignore
    },
    goTo(place) {
      const range = at(place);
      if (range !== undefined) view.dispatch({ selection: { anchor: range.from }, scrollIntoView: true });
      view.focus();
    },
    focus: () => view.focus(),
    close: () => view.destroy(),
  };
}

/**
 * Typing over a selection: left to itself, the browser keeps the look of what it replaces in a style attribute, which the
 * policy refuses.
 */
function replaceSelection(event: InputEvent, view: EditorView): boolean {
  const { from, to, empty } = view.state.selection.main;
  const { data: text } = event;
  if (event.inputType !== "insertText" || text === null || empty || view.composing) return false;
  event.preventDefault();
  const insert = () =>
    view.state.update(view.state.replaceSelection(text), { userEvent: "input.type", scrollIntoView: true });
  const handled = view.state.facet(EditorView.inputHandler).some((it) => it(view, from, to, text, insert));
  if (!handled) view.dispatch(insert());
  return true;
}

// The colours are the page's: custom properties reach into a shadow root.
const colours = HighlightStyle.define([
  {
    tag: [tags.keyword, tags.modifier, tags.operatorKeyword, tags.controlKeyword],
    color: "var(--code-keyword)",
  },
  { tag: [tags.string, tags.special(tags.string), tags.regexp], color: "var(--code-string)" },
  { tag: [tags.number, tags.bool, tags.null, tags.atom], color: "var(--code-number)" },
  { tag: [tags.function(tags.variableName), tags.function(tags.propertyName)], color: "var(--code-call)" },
  { tag: [tags.typeName, tags.className, tags.namespace], color: "var(--code-type)" },
  { tag: [tags.lineComment, tags.blockComment], color: "var(--muted)", fontStyle: "italic" },
]);

const look = EditorView.theme({
  "&": { height: "100%", fontSize: "var(--code-size)", color: "var(--ink)", backgroundColor: "transparent" },
  "&.cm-focused": { outline: "none" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.6" },
  ".cm-content": { caretColor: "var(--signal)", padding: "0.75rem 0" },
  ".cm-line": { padding: "0 1rem 0 0.5rem" },
  "&.cm-focused > .cm-scroller .cm-cursor, .cm-cursor": {
    borderLeftColor: "var(--signal)",
    borderLeftWidth: "2px",
  },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground, .cm-content ::selection":
    { background: "var(--selection) !important" },
  ".cm-gutters": {
    backgroundColor: "transparent",
    color: "var(--muted)",
    border: "none",
    paddingLeft: "0.5rem",
  },
  ".cm-activeLine, .cm-activeLineGutter": { backgroundColor: "transparent" },
  "&.cm-focused .cm-activeLine": { backgroundColor: "var(--line-soft)" },
  ".cm-activeLineGutter": { color: "var(--ink)" },
  ".cm-line.wrong": {
    backgroundColor: "var(--signal-soft) !important",
    boxShadow: "inset 3px 0 var(--signal)",
  },
  ".cm-lintRange-error": { backgroundImage: "none", borderBottom: "2px solid var(--signal)" },
  ".cm-matchingBracket, &.cm-focused .cm-matchingBracket": { backgroundColor: "var(--selection)" },
  ".cm-selectionMatch": { backgroundColor: "var(--line-soft)" },
  ".cm-foldPlaceholder": { backgroundColor: "var(--foam)", border: "none", color: "var(--muted)" },
  ".cm-tooltip": {
    backgroundColor: "var(--surface)",
    color: "var(--ink)",
    border: "1px solid var(--line)",
    borderRadius: "6px",
    boxShadow: "0 8px 24px rgb(0 20 40 / 0.18)",
    maxWidth: "min(34rem, 90vw)",
  },
  ".cm-tooltip.cm-tooltip-autocomplete > ul": {
    fontFamily: "var(--mono)",
    fontSize: "0.8125rem",
    maxHeight: "14rem",
  },
  ".cm-tooltip.cm-tooltip-autocomplete > ul > li": { padding: "0.25rem 0.6rem" },
  ".cm-tooltip.cm-tooltip-autocomplete > ul > li[aria-selected]": {
    backgroundColor: "var(--sea)",
    color: "var(--on-sea)",
  },
  ".cm-completionDetail": { fontStyle: "normal", opacity: "0.75" },
  ".cm-completionMatchedText": { textDecoration: "none", fontWeight: "700" },
  ".cm-tooltip.cm-completionInfo": { padding: "0" },
  ".card": { padding: "0.6rem 0.8rem", fontFamily: "var(--sans)", fontSize: "0.8125rem", lineHeight: "1.5" },
  ".card code": { fontFamily: "var(--mono)", fontSize: "0.75rem", overflowWrap: "anywhere" },
  ".card p": { margin: "0.4rem 0 0", color: "var(--muted)" },
  ".cm-tooltip-lint": { fontFamily: "var(--sans)", fontSize: "0.8125rem" },
  ".cm-diagnostic-error": { borderLeftColor: "var(--signal)" },
  ".cm-panels": { backgroundColor: "var(--foam)", color: "var(--ink)", borderColor: "var(--line)" },
  ".cm-panels input, .cm-panels button, .cm-panels label": { fontFamily: "var(--sans)" },
  ".cm-textfield": {
    backgroundColor: "var(--surface)",
    border: "1px solid var(--line)",
    color: "var(--ink)",
  },
  ".cm-button": {
    backgroundImage: "none",
    backgroundColor: "var(--surface)",
    border: "1px solid var(--line)",
    color: "var(--ink)",
  },
});
