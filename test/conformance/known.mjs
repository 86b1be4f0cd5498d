// Failures that are known, as data that stays small: features that the engine lacks, by name, and of the rest what it
// fails, by area and directory; all of these fail on the bare engine, too. What is `ours` is to be nothing. A test that
// fails and is in none of them is news; so is one that stands there by its own name and passes.

/** A feature counts as absent when all but so few of its tests fail; those pass because they ask for an error. */
const ABSENT = 0.9;
const LEAST = 5;

/** Tests that a guest of ours fails where the bare engine would not, because it is to; each with what is meant by it. */
const DELIBERATE = {
  "language/expressions/dynamic-import/await-import-evaluation.js":
    "waits in a loop for the clock, which stands still while a guest computes (test/contract, clock)",
  "staging/sm/String/fromCodePoint.js":
    "passes 49,152 arguments at once, which take V8 more than the 256 KiB of stack that a run has (limits.stackKb)",
  "staging/sm/regress/regress-610026.js":
    "parses two million blocks, for which V8 takes about a gigabyte (limits.memoryMb)",
};

const directoryOf = (path) => path.slice(0, path.lastIndexOf("/"));
const fileOf = (path) => path.slice(path.lastIndexOf("/") + 1);
/** "built-ins/Array", "language/statements/for-of", "staging/sm/Array": what has a page of its own. */
const areaOf = (path) => directoryOf(path).split("/").slice(0, /^(?:language|staging|annexB)\//.test(path) ? 3 : 2).join("/"); // prettier-ignore

/** The entry of a test in its directory's list: its name, and the mode if it fails in one of two. */
const entriesOf = ({ path, modes, failures }) =>
  failures.length === modes ? [fileOf(path)] : failures.map(({ mode }) => `${fileOf(path)} ${mode}`);

/**
 * Whether it is known that a test fails in this mode.
 * @param known what `describeFailures` made, or undefined: nothing is known
 */
export function isKnown(known, { path, features }, mode) {
  if (DELIBERATE[path] !== undefined) return true;
  if (known === undefined) return false;
  if (features.some((feature) => known.engineLacks[feature] !== undefined)) return true;
  const listed = known.engineFails[areaOf(path)]?.tests[directoryOf(path)];
  if (listed === undefined) return false;
  return listed === "all" || listed.includes(fileOf(path)) || listed.includes(`${fileOf(path)} ${mode}`);
}

/** Whether a test stands in the data by its own name, so that it is news when it passes. */
export function isListed(known, { path, features }) {
  if (known === undefined || features.some((feature) => known.engineLacks[feature] !== undefined))
    return false;
  const listed = known.engineFails[areaOf(path)]?.tests[directoryOf(path)] ?? [];
  return listed !== "all" && listed.some((entry) => entry.split(" ")[0] === fileOf(path));
}

/**
 * The data of a run over the whole suite. Each result is `{ path, features, modes, failures: [{ mode, why, bare }] }`,
 * where `bare` is what the engine does by itself: the same is the engine's, anything else is ours.
 */
export function describeFailures(results, header) {
  const byFeature = new Map();
  for (const result of results) {
    for (const feature of result.features) {
      const row = byFeature.get(feature) ?? { failing: 0, of: 0 };
      row.of++;
      if (result.failures.length > 0) row.failing++;
      byFeature.set(feature, row);
    }
  }
  const isAbsent = ([, { failing, of }]) => failing >= LEAST && failing >= ABSENT * of;
  const absent = Object.fromEntries([...byFeature].filter(isAbsent).sort(byName));
  const rest = results.filter(
    ({ path, features }) =>
      DELIBERATE[path] === undefined && !features.some((feature) => absent[feature] !== undefined),
  );
  const areas = {};
  const whole = new Map();
  for (const result of rest) {
    const area = (areas[areaOf(result.path)] ??= { failing: 0, of: 0, tests: {} });
    area.of++;
    const dir = directoryOf(result.path);
    const seen = whole.get(dir) ?? { failing: 0, of: 0 };
    whole.set(dir, seen);
    seen.of++;
    if (result.failures.length === 0) continue;
    area.failing++;
    if (result.failures.length === result.modes) seen.failing++;
    (area.tests[dir] ??= []).push(...entriesOf(result));
  }
  for (const [name, area] of Object.entries(areas)) {
    if (area.failing === 0) delete areas[name];
    for (const dir of Object.keys(area.tests)) {
      const { failing, of } = whole.get(dir);
      if (failing === of && of >= LEAST) area.tests[dir] = "all";
    }
  }
  const failing = results.filter(({ failures }) => failures.length > 0);
  const deliberate = failing.flatMap(({ path }) => (DELIBERATE[path] === undefined ? [] : [[path, DELIBERATE[path]]])); // prettier-ignore
  return {
    ...header,
    deliberate: Object.fromEntries(deliberate),
    ours: failing.filter(({ path, failures }) => failures.some(({ bare }) => isOurs({ path, bare }))).map(({ path }) => path), // prettier-ignore
    engineLacks: absent,
    engineFails: Object.fromEntries(Object.entries(areas).sort(byName)),
  };
}

const byName = ([a], [b]) => (a < b ? -1 : 1);

export const isDeliberate = (path) => DELIBERATE[path] !== undefined;

/** Fails in the jail and not on the bare engine, and is not meant to. */
export const isOurs = ({ path, bare }) => bare === "passed" && !isDeliberate(path);
