import fs from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { cli, folder, root, type Finished } from "./command.js";

const samples = path.join(root, "samples");
const read = (name: string): string => fs.readFileSync(path.join(samples, name), "utf8");

const prints =
  (stdout: string, stderr = "") =>
  (run: Finished) =>
    expect(run).toEqual({ code: 0, stdout, stderr });

/** What every sample must do when it is run as its first line says. */
const EXPECTED: Readonly<Record<string, (run: Finished) => void>> = {
  "hello.ts": prints("{ hello: 'world', letters: 5 }\n", "[log] greeting world\n"),
  "sum.js": prints("6\n"),
  "endless.js": (run) => {
    expect(run).toMatchObject({ code: 3, stdout: "" });
    expect(run.stderr).toMatch(/^stopped \(wall-time\): .*\n.*limit 200 ms/);
  },
  "library.mjs": prints("polite: hello, Ada\nfaulty: threw TypeError\nendless: stopped by wall-time\n"),
  "store.mjs": (run) => {
    expect(run).toMatchObject({ code: 0, stderr: "" });
    const [values, ledger = ""] = run.stdout.split("ledger: ");
    expect(values).toBe(`visits of ada: 2
visits of bob: undefined
below drafts/: { keys: [ 'x' ] }
all keys: [ 'drafts/x', 'visits' ]
a lost race: conflict
read-only: [ 'get', 'has', 'entry', 'list' ]
budget: kv: the budget of 2 calls is used up
`);
    expect(ledger).toMatch(/capability: 'kv',\s+method: 'get',\s+calls: 3,\s+refused: 1,\s+failed: 0,/);
  },
  "directory.mjs": prints(`{
  methodsThatWriteNotes: [],
  refused: [
    'notes.readText: path: must not have a ".." component',
    'notes.readText: path: must be relative, without a "/" in front',
    'notes: "link.txt" is not a regular file',
    'out: the quota of 100 bytes is used up'
  ]
}
on the disk: BUY STRING

`),
  "fetch.mjs": prints(`{
  status: 200,
  placeholder: 'secret-...',
  quotedBack: 'the placeholder',
  beyondTheRules: 'denied: http: no rule allows that request to that place',
  byRedirect: 'denied: http: no rule allows that request to that place'
}
`),
  "people.mjs": (run) => {
    expect(run).toMatchObject({ code: 0, stderr: "" });
    expect(run.stdout).toMatch(
      /^event 1, progress: \{ percent: 0 \}\nask\.ask asks: Is \\u\{1b\}\[2Jthis harmless\? -> yes\n/,
    );
    expect(run.stdout).toMatch(/\nkv\.set asks: set \| key: "report" \| value: .* -> yes\n/);
    expect(run.stdout).toMatch(/\nkv\.delete asks: delete \| key: "report" -> no\n/);
    expect(run.stdout).toMatch(
      /\nevent 2, progress: \{ percent: 100 \}\n\{ sure: true, refused: 'denied', report: \{ sure: true \} \}\n$/,
    );
  },
  "dice.js": (run) => {
    expect(run).toMatchObject({ code: 0, stderr: "" });
    expect(run.stdout.replace(/\s+/g, " ")).toBe("{ sleptMinutes: 60, rolls: [ 4, 6, 5, 5, 1, 5, 1, 6 ] } ");
  },
  "capability.mjs": prints(`{
  methods: [ 'count' ],
  questions: 1,
  bob: 'post: that is private',
  later: 'post: it was taken back'
}
`),
  "job.ts": prints(
    "{ lines: 20, outside: 'bad-argument' }\n",
    "[event counted] { name: 'hello.ts', lines: 17 }\n[event counted] { name: 'sum.js', lines: 3 }\n",
  ),
  "agent.mjs": prints(`run_code -> stopped
run_code -> ok
The dearest of 3 is the lamp, at 40.
`),
  "replay.mjs": prints(`identical: true visit 1
same lot, same time: [ true, true ]
other code: false { at: 1, expected: 'kv.increment("ada")', got: 'kv.get("ada")' }
`),
};

/** What samples are made of besides: tested below, and by the samples. */
const PARTS = ["policy.json", "env.d.ts"];

test("every sample has an expectation", () => {
  expect(fs.readdirSync(samples).toSorted()).toEqual([...Object.keys(EXPECTED), ...PARTS].toSorted());
});

test.each(Object.keys(EXPECTED))("%s does what its first line says", async (name) => {
  const [first = ""] = read(name).split("\n");
  const [, tool, words = ""] = /^\/\/ (npx doublehull|node) (.*)$/.exec(first) ?? [];
  expect(tool).toBeDefined();
  const args = (words.match(/'[^']*'|\S+/g) ?? []).map((word) => word.replace(/^'(.*)'$/, "$1"));
  expect(args).toContain(`samples/${name}`);
  EXPECTED[name]?.(await cli(args, tool === "node" ? { command: [process.execPath] } : {}));
});

describe("env.d.ts", () => {
  test("is what the command prints that job.ts names", async () => {
    const [, args = ""] =
      /^\/\/ npx doublehull (types .*) > samples\/env\.d\.ts$/m.exec(read("job.ts")) ?? [];
    expect(await cli(args.split(" "))).toEqual({ code: 0, stdout: read("env.d.ts"), stderr: "" });
  });

  test("lets a compiler accept job.ts, and not one with a misspelt method", async () => {
    const job = read("job.ts");
    using dir = folder({
      "env.d.ts": read("env.d.ts"),
      "job.ts": job,
      "misspelt.ts": job.replaceAll("readText", "readtext"),
      "tsconfig.json": `{ "compilerOptions": {
        "strict": true, "noEmit": true, "target": "es2023", "lib": ["es2023", "dom"], "types": [],
        "module": "nodenext", "verbatimModuleSyntax": true
      } }`,
      "package.json": '{ "type": "module" }',
    });
    const compiler = [process.execPath, path.join(root, "node_modules/typescript/bin/tsc")] as const;
    const { code, stdout } = await cli(["-p", dir.path, "--pretty", "false"], { command: compiler });
    expect(code).not.toBe(0);
    const errors = stdout.split("\n").filter((line) => /error TS/.test(line));
    expect(errors).toEqual([
      expect.stringMatching(/misspelt\.ts.*Did you mean 'readText'/),
      expect.stringMatching(/misspelt\.ts.*Did you mean 'readText'/),
    ]);
  });
});
