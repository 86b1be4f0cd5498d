// test262 in the jail: npm run test262 -- --suite DIR [--engine quickjs|v8-jitless|v8] [--filter TEXT] [--sample N]
//   [--jobs N] [--json FILE] [--update]
// Every program of every test is a fresh forked worker. What fails there is run again on the bare engine, which tells
// whose fault it is. Failures that known/ENGINE.json does not hold, and failures of ours, make the exit code 1.
import fs from "node:fs";
import os from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { format } from "prettier";
import { openJail } from "./jail.mjs";
import { describeFailures } from "./known.mjs";
import { LAST_WALL_MS, compare, listTests, runTests } from "./runner.mjs";

const { values: args } = parseArgs({
  options: {
    suite: { type: "string", default: process.env.TEST262 },
    engine: { type: "string", default: "quickjs" },
    filter: { type: "string" },
    sample: { type: "string" },
    jobs: { type: "string", default: String(os.availableParallelism()) },
    json: { type: "string" },
    update: { type: "boolean", default: false },
  },
});
const usage = (message) => {
  console.error(message);
  process.exit(2);
};
if (args.suite === undefined) {
  console.log("skipped: no suite; give a checkout of github.com/tc39/test262 as --suite DIR or TEST262=DIR");
  process.exit(0);
}
if (!fs.existsSync(`${args.suite}/harness/assert.js`)) usage(`${args.suite} is no checkout of test262`);
if (args.update && (args.filter ?? args.sample) !== undefined) usage("--update needs the whole suite");
const jobs = Number(args.jobs);
const sample = args.sample === undefined ? undefined : Number(args.sample);
if (!(jobs >= 1) || (sample !== undefined && !(sample >= 1))) usage("--jobs and --sample are numbers from 1");

const dataFile = fileURLToPath(new URL(`known/${args.engine}.json`, import.meta.url));
const known = fs.existsSync(dataFile) ? JSON.parse(fs.readFileSync(dataFile, "utf8")) : undefined;
const paths = listTests(args.suite, { filter: args.filter, sample });
const { version } = JSON.parse(fs.readFileSync(`${args.suite}/package.json`, "utf8"));
const start = performance.now();
const seconds = () => (performance.now() - start) / 1000;

const jail = await openJail({ engine: args.engine, jobs, maxWallMs: LAST_WALL_MS });
let run;
try {
  run = await runTests(jail, {
    suite: args.suite,
    paths,
    jobs,
    engine: args.engine,
    onProgress: (count) => {
      if (count % 1000 === 0) console.error(`${count} of ${paths.length} tests, ${seconds().toFixed(0)} s`);
    },
  });
} finally {
  await jail.close();
}

const { results, skipped, programs } = run;
const failing = results.filter(({ failures }) => failures.length > 0).length;
const header = {
  engine: args.engine,
  suite: { version, files: paths.length },
  tests: results.length,
  passed: results.length - failing,
  outOfScope: skipped,
};
const news = compare(known, results);
const share = ((100 * header.passed) / Math.max(1, results.length)).toFixed(1);
console.log(`${results.length} tests, ${programs} programs in ${seconds().toFixed(0)} s: ${share} % pass`);
for (const [reason, count] of Object.entries(skipped)) console.log(`out of scope: ${count}: ${reason}`);
const differ = results
  .flatMap(({ failures }) => failures)
  .filter(({ why, bare }) => bare !== "passed" && bare !== why);
console.log(`${failing} fail; ${news.ours.length} programs of these pass on the bare engine, and ${differ.length} fail there in another way`); // prettier-ignore
if (args.json !== undefined) {
  const failures = results.filter((result) => result.failures.length > 0);
  fs.writeFileSync(args.json, `${JSON.stringify({ ...header, programs, failures }, undefined, 1)}\n`);
}
if (args.update) {
  const text = JSON.stringify(describeFailures(results, header));
  fs.writeFileSync(dataFile, await format(text, { parser: "json", printWidth: 110 }));
}

const show = (title, lines) => {
  if (lines.length > 0) console.log(`${title}: ${lines.length}`);
  for (const { path, mode = "", why = "" } of lines.slice(0, 40))
    console.log(`  ${path} ${mode} ${why}`.trimEnd());
};
show("ours: fail in the jail and pass on the bare engine", news.ours);
if (!args.update) {
  show("not known to fail", news.fresh);
  show("known to fail, and pass: --update", news.healed);
}
const isNews = news.ours.length > 0 || (!args.update && news.fresh.length + news.healed.length > 0);
process.exitCode = isNews ? 1 : 0;
