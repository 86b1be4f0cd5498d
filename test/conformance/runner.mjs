// A run over the suite: which tests, in the jail, and what fails there once more on the bare engine.
import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { runBare } from "./bare.mjs";
import { isDeliberate, isKnown, isListed, isOurs } from "./known.mjs";
import { outOfScope, programsOf, readFrontmatter, verdict } from "./suite.mjs";

export { openJail } from "./jail.mjs";
export { describeFailures } from "./known.mjs";

/** For one program; one that takes longer has a second chance at the end, with more time: the machine may be busy. */
const WALL_MS = 10_000;
export const LAST_WALL_MS = 60_000;

/** The suite's tests in the order of their paths, or so many of them: always the same, and of all parts. */
export function listTests(suite, { filter = "", sample } = {}) {
  const root = path.join(suite, "test");
  const paths = fs
    .readdirSync(root, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".js") && !name.includes("_FIXTURE") && name.includes(filter))
    .sort();
  if (sample === undefined || sample >= paths.length) return paths;
  const lot = (name) => createHash("sha1").update(name).digest("hex");
  const drawn = paths.map((name) => [lot(name), name]).sort(([a], [b]) => (a < b ? -1 : 1));
  return drawn
    .slice(0, sample)
    .map(([, name]) => name)
    .sort();
}

/** How a test's files are read: itself, those beside it, and the harness. */
function readersOf(suite) {
  const texts = new Map();
  const readFile = (...parts) => {
    const file = path.join(suite, ...parts);
    return fs.existsSync(file) ? fs.readFileSync(file, "utf8") : undefined;
  };
  return {
    harness: (name) => {
      if (!texts.has(name)) texts.set(name, readFile("harness", name));
      return texts.get(name);
    },
    beside: (name) => (wanted) => readFile("test", path.dirname(name), wanted),
    test: (name) => {
      const source = readFile("test", name);
      return { path: name, source, ...readFrontmatter(source) };
    },
  };
}

/**
 * Runs tests in the jail, `jobs` at a time, then what failed on the bare engine.
 * `results`: `{ path, features, modes, failures: [{ mode, why, bare }] }` in the order of the paths; `bare` is "passed" or
 * why it fails there. `skipped`: how many tests for which reason.
 */
export async function runTests(jail, { engine = "quickjs", suite, paths, jobs, onProgress = () => {} }) {
  const has = await jail.globals();
  const files = readersOf(suite);
  const [results, skipped, late] = [[], {}, []];
  const queue = paths.values();
  let programs = 0;
  const worker = async () => {
    for (const name of queue) {
      const test = files.test(name);
      const reason = outOfScope(test, has);
      if (reason !== undefined) {
        skipped[reason] = (skipped[reason] ?? 0) + 1;
        continue;
      }
      const wanted = programsOf(test, { read: files.beside(name), harness: files.harness });
      const result = { path: name, features: test.features, modes: wanted.length, failures: [] };
      for (const program of wanted) {
        programs++;
        const seen = await jail.run(program, WALL_MS);
        if (isLate(seen) && !isDeliberate(name)) late.push([result, program]);
        else note(result, program, seen);
      }
      results.push(result);
      onProgress(results.length);
    }
  };
  const inParallel = (work) => Promise.all(Array.from({ length: jobs }, work));
  await inParallel(worker);
  const again = late.values();
  await inParallel(async () => {
    for (const [result, program] of again) note(result, program, await jail.run(program, LAST_WALL_MS));
  });
  results.sort((a, b) => (a.path < b.path ? -1 : 1));
  const failures = new Map(results.flatMap((r) => r.failures.map((failure) => [failure.program, failure])));
  await runBare([...failures.keys()], { engine, jobs, wallMs: WALL_MS }, (program, seen) => {
    failures.get(program).bare = verdict(program, seen) ?? "passed";
  });
  const doubted = [...failures].flatMap(([program, { bare }]) => (bare === "passed" ? [program] : []));
  await runBare(doubted, { engine, jobs, wallMs: WALL_MS, alone: true }, (program, seen) => {
    failures.get(program).bare = verdict(program, seen) ?? "passed";
  });
  for (const failure of failures.values()) delete failure.program;
  return { results, skipped, programs };
}

const isLate = ({ status, reason }) => status === "stopped" && /^(?:wall-time|cpu-time|lost)$/.test(reason);

function note(result, program, seen) {
  const why = verdict(program, seen);
  if (why !== undefined) result.failures.push({ mode: program.mode, why, program });
}

/**
 * What a run tells that the known failures do not: `fresh` failures, `ours` among all failures (what passes on the bare
 * engine), and `healed`, tests that are listed and pass.
 */
export function compare(known, results) {
  const news = { fresh: [], ours: [], healed: [] };
  for (const { path, features, failures } of results) {
    for (const failure of failures) {
      const line = { path, ...failure };
      if (!isKnown(known, { path, features }, failure.mode)) news.fresh.push(line);
      if (isOurs(line)) news.ours.push(line);
    }
    if (failures.length === 0 && isListed(known, { path, features })) news.healed.push({ path });
  }
  return news;
}
