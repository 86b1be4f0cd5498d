// Reads test262 (https://github.com/tc39/test262, INTERPRETING.md): what a test file demands, the programs that it means,
// and whether an engine that runs one script in one realm could be asked at all. Everything here is a function of texts;
// how a file is read is an argument, so the runner's own tests need no suite.

/**
 * A test's frontmatter: the YAML between the marks, as far as the suite uses it: lists in brackets (over several lines,
 * too) or with dashes, and the two words of `negative`.
 */
export function readFrontmatter(source) {
  const text = /\/\*---([^]*?)---\*\//.exec(source)?.[1] ?? "";
  const lines = text.split(/\r\n|\r|\n/);
  const found = { flags: [], includes: [], features: [], locale: [], negative: undefined };
  for (let at = 0; at < lines.length; at++) {
    const [, key, rest] = /^(flags|includes|features|locale|negative):\s*(.*)$/.exec(lines[at]) ?? [];
    if (key === undefined) continue;
    let body = rest;
    // A top-level key of YAML stands at the margin: what is indented, or a dash, belongs to the key above.
    while (at + 1 < lines.length && /^(?:\s+\S|- |\])/.test(lines[at + 1])) body += `\n${lines[++at]}`;
    if (key === "negative") {
      const word = (name) => new RegExp(`\\b${name}:\\s*(\\w+)`).exec(body)?.[1];
      found.negative = { phase: word("phase"), type: word("type") };
    } else
      found[key] =
        body
          .replaceAll(/#.*$/gm, "")
          .match(/[^\s,[\]"']+/g)
          ?.filter((w) => w !== "-") ?? [];
  }
  return found;
}

/** What each mode of a test is called, and whether "use strict" goes before it. */
function modesOf(flags) {
  if (flags.includes("module")) return ["module"];
  if (flags.includes("raw")) return ["raw"];
  if (flags.includes("noStrict")) return ["sloppy"];
  if (flags.includes("onlyStrict")) return ["strict"];
  return ["sloppy", "strict"];
}

/**
 * Why a guest of ours cannot be asked, or undefined. `has` is what it says of itself: names of globals. Not failures:
 * each is something that a run has not by design, or that the suite demands of a host and no script can have.
 */
export function outOfScope({ path, source, features, flags }, has) {
  const needs = (...names) => names.some((name) => features.includes(name));
  const asks = (name) => source.includes(`$262.${name}`);
  if (!has.includes("SharedArrayBuffer") && needs("SharedArrayBuffer")) return SCOPE.memory;
  if (!has.includes("Atomics") && needs("Atomics", "Atomics.pause", "Atomics.waitAsync")) return SCOPE.memory;
  if (asks("agent") || flags.includes("CanBlockIsTrue") || flags.includes("CanBlockIsFalse"))
    return SCOPE.agents;
  if (needs("cross-realm") || asks("createRealm")) return SCOPE.realms;
  if (asks("evalScript")) return SCOPE.scripts;
  if (needs("host-gc-required") || asks("gc")) return SCOPE.gc;
  if (needs("IsHTMLDDA") || asks("IsHTMLDDA")) return SCOPE.htmldda;
  if (!has.includes("import()") && (needs("dynamic-import") || /\bimport\s*\(/.test(source)))
    return SCOPE.import;
  if (asks("AbstractModuleSource") || source.includes("<module source>")) return SCOPE.source;
  if (!has.includes("Intl") && /^(?:staging\/)?intl402\//.test(path)) return SCOPE.intl;
  return undefined;
}

export const SCOPE = {
  memory: "needs shared memory, which a guest has not: it is a clock and a way between threads",
  agents: "needs further agents, or one that may block: a run is one thread",
  realms: "needs a second realm: a run is one realm in one process",
  scripts: "needs a second script in the same realm: a run is one script",
  gc: "needs to force a collection, which no guest can",
  htmldda: "needs document.all, which only a browser has",
  source: "needs a compiled module as a value: modules come as text",
  import: "needs import(), which isolated-vm has no way to answer (README, Engines)",
  intl: "needs ECMA-402: this guest has no Intl, and the suite says to skip these then",
};

/** Names of files beside the test that it, or a file that it names, could import. */
function fixturesOf(name, source, read) {
  const found = new Map();
  const look = (text, from) => {
    for (const [, , wanted] of text.matchAll(/(["'`])(\.{1,2}\/[^"'`\n\\]+)\1/g)) {
      const file = besideOf(from, wanted);
      if (found.has(file)) continue;
      const content = file === name ? source : read(file);
      if (content === undefined) continue;
      found.set(file, content);
      look(content, file);
    }
  };
  look(source, name);
  return found;
}

/** The file that `wanted`, a relative name, means in the file `from`. */
export function besideOf(from, wanted) {
  const parts = from.split("/").slice(0, -1);
  for (const part of wanted.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "." && part !== "") parts.push(part);
  }
  return parts.join("/");
}

/**
 * What the suite wants of a host, written in the language itself and before the harness: `print`, and of `$262` what one
 * realm can give. `done` settles with the first text that was printed. It looks nothing up that a test could have
 * changed, and is one line, so that it moves no line but by one.
 */
const HOST = `(() => {
  const { defineProperty } = Object, { apply } = Reflect, { transfer } = ArrayBuffer.prototype, toText = String;
  const clone = globalThis.structuredClone;
  let heard, waiting;
  const detach = transfer ? (buffer) => void apply(transfer, buffer, []) : (buffer) => void clone(buffer, { transfer: [buffer] });
  const hidden = (value) => ({ __proto__: null, value, writable: true, enumerable: false, configurable: true });
  defineProperty(globalThis, "print", hidden((text) => {
    if (heard !== undefined) return;
    heard = toText(text);
    if (waiting !== undefined) waiting(heard);
  }));
  defineProperty(globalThis, "$262", hidden({
    global: globalThis,
    detachArrayBuffer: (buffer) => detach(buffer),
    gc: () => { throw new Error("a guest cannot force a collection"); },
    done: { __proto__: null, then: (settle) => void (heard === undefined ? (waiting = settle) : settle(heard)) },
  }));
})();`.replaceAll(/\n\s*/g, " ");

/** The harness gives its error no name of its own, by which the host could tell it from others. */
const NAME_ERROR = `Object.defineProperty(Test262Error.prototype, "name", { value: "Test262Error", writable: true, configurable: true });`;

const SETUP = "test262:setup";

/**
 * The programs that a test means, each for a fresh realm: `{ mode, type, name, source, modules }` as \`Sandbox.run\`
 * takes them. `read(name)` gives a file beside the test, `harness(name)` one of the harness; undefined: there is none.
 */
export function programsOf(test, { read, harness }) {
  const { flags, includes, negative, source } = test;
  const name = test.path.slice(test.path.lastIndexOf("/") + 1);
  const isAsync = flags.includes("async");
  const files = flags.includes("raw")
    ? []
    : ["assert.js", "sta.js", ...(isAsync ? ["doneprintHandle.js"] : []), ...includes];
  const texts = files.map((file) => {
    const text = harness(file);
    if (text === undefined) throw new Error(`${test.path}: there is no harness file ${file}`);
    return file === "sta.js" ? `${text}\n${NAME_ERROR}` : text;
  });
  const fixtures = fixturesOf(name, source, read);
  // A completion value would be the run's result: what must settle instead. Where an error is wanted, nothing is added
  // that could heal the source.
  const last = negative !== undefined ? "" : isAsync ? "\n;$262.done;" : "\n;void 0;";
  return modesOf(flags).map((mode) => {
    const base = { path: test.path, mode, negative, isAsync };
    if (mode === "module") {
      // An indirect eval makes its functions and variables global, and keeps let and const to itself.
      const script = [HOST, ...texts].join("\n").replaceAll(/^(?:const|let) /gm, "var ");
      const modules = Object.fromEntries(fixtures);
      modules[SETUP] = `(0, eval)(${JSON.stringify(script)});`;
      modules[name] = source;
      const main = `import "${SETUP}"; import "./${name}"; export default () => ${isAsync ? "$262.done" : "undefined"};`;
      return { ...base, type: "module", name: "main", source: main, modules };
    }
    const parts = mode === "raw" ? [source] : [HOST, ...texts, source];
    const before = mode === "strict" ? '"use strict";\n' : "";
    return {
      ...base,
      type: "script",
      name,
      source: before + parts.join("\n") + last,
      modules: Object.fromEntries(fixtures),
    };
  });
}

/**
 * Why what was seen is not what the test demands, or undefined. `seen` is `{ status: "ok", value }`, `{ status: "threw",
 * name, message }` or `{ status: "stopped", reason }`.
 */
export function verdict({ negative, isAsync }, seen) {
  if (seen.status === "stopped") return `stopped: ${seen.reason}`;
  if (negative !== undefined) {
    if (seen.status === "ok") return `should have thrown a ${negative.type} (${negative.phase})`;
    // Of an early error nothing has run yet: what throws first thing in such a test is a text, and no SyntaxError.
    return seen.name === negative.type ? undefined : `threw another error: ${describe(seen)}`;
  }
  if (seen.status === "threw") return describe(seen);
  if (isAsync && seen.value !== "Test262:AsyncTestComplete") return String(seen.value);
  return undefined;
}

const describe = ({ name, message }) => `${name}: ${message}`.slice(0, 300);
