import fs from "node:fs";
import path from "node:path";
import { expect, test } from "vitest";
import { AUDIT_KINDS } from "#server/service/audit-events";
import { call, EVERY_KIND, linesIn, openLog, place } from "../audit.js";
import { cli, folder } from "./command.js";

const SEGMENT = "audit-00000001.jsonl";

function written() {
  const at = place();
  const log = openLog(at.dir);
  for (const event of EVERY_KIND) log.append(event);
  const noted = log.head;
  log.append(call({ run: "r2", tenant: "b" }));
  log.close();
  return { ...at, noted, head: log.head, [Symbol.dispose]: at[Symbol.dispose] };
}

test("audit verify says that a log is right, where it ends, and what it cannot know", async () => {
  using at = written();
  const plain = await cli(["audit", "verify", at.dir]);
  expect(plain).toMatchObject({ code: 0, stderr: "" });
  expect(plain.stdout).toContain(`ok: ${at.head.seq} lines in 1 segment`);
  expect(plain.stdout).toContain(at.head.hash);
  expect(plain.stdout).toMatch(/missing at the end cannot be said/);
  const named = await cli(["audit", "verify", at.dir, "--head", at.head.hash]);
  expect(named.code).toBe(0);
  expect(named.stdout).not.toMatch(/cannot be said/);
  const older = await cli(["audit", "verify", at.dir, "--head", at.noted.hash, "--seq", `${at.noted.seq}`]);
  expect(older.stdout).toMatch(/of 1 line behind it the chain alone speaks/);
  expect((await cli(["audit", "verify", path.join(at.dir, SEGMENT)])).code).toBe(0);
});

test("audit verify --json is one object", async () => {
  using at = written();
  const { code, stdout } = await cli(["audit", "verify", at.dir, "--json", "--seq", "3"]);
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({
    ok: true,
    lines: at.head.seq,
    segments: 1,
    first: { seq: 1 },
    head: at.head,
    named: { seq: 3 },
    problem: null,
  });
});

test("audit verify ends with 1 for a broken log, and names the place", async () => {
  using at = written();
  const file = at.file(SEGMENT);
  const before = fs.readFileSync(file, "utf8");
  const cut = linesIn(file).slice(0, -1).join("\n");
  fs.writeFileSync(file, `${cut}\n`);
  expect((await cli(["audit", "verify", at.dir])).code).toBe(0);
  const short = await cli(["audit", "verify", at.dir, "--head", at.head.hash]);
  expect(short).toMatchObject({ code: 1, stderr: "" });
  expect(short.stdout).toMatch(/BROKEN: .*no line has the hash/);
  fs.writeFileSync(file, before.replace("admin-1", "admin-2"));
  expect((await cli(["audit", "verify", at.dir])).stdout).toContain(`BROKEN: ${SEGMENT}, line 2: `);
  const json = await cli(["audit", "verify", at.dir, "--json"]);
  expect(json.code).toBe(1);
  expect(JSON.parse(json.stdout)).toMatchObject({
    ok: false,
    lines: 1,
    problem: { segment: SEGMENT, line: 2 },
  });
});

test("an empty directory, or one of other things, holds no audit log", async () => {
  using empty = folder({});
  using other = folder({ "a\x1b[31m.txt": "x" });
  for (const { path: dir } of [empty, other]) {
    const verified = await cli(["audit", "verify", dir]);
    expect(verified).toMatchObject({ code: 1, stderr: "" });
    expect(verified.stdout).toMatch(/BROKEN: .*no audit log/);
    expect(await cli(["audit", "show", dir])).toMatchObject({ code: 2, stdout: "" });
  }
  using at = written();
  fs.writeFileSync(at.file("b\x1b[31m.txt"), "x");
  const mixed = await cli(["audit", "verify", at.dir]);
  expect(mixed.stdout).toContain("b\\x1b[31m.txt");
  expect(mixed.code).toBe(1);
});

test("what is wrong with the command line is told with exit code 2", async () => {
  using at = written();
  const wrong: [string[], RegExp][] = [
    [["verify", "/nowhere/at/all"], /there is no such directory/],
    [["verify", "/dev/null"], /no regular file/],
    [["verify"], /missing required argument/],
    [["verify", at.dir, "--head", "ABC"], /64 hex digits/],
    [["verify", at.dir, "--seq", "0"], /from 1/],
    [["verify", at.dir, "--from", ""], /64 hex digits/],
    [["verify", at.dir, "--tenant", "a"], /unknown option/],
    [["show", "/nowhere/at/all"], /there is no such directory/],
    [["show", at.dir, "--kind", "cal"], /did you mean call\?/],
    [["show", at.dir, "more"], /too many arguments/],
  ];
  for (const [args, words] of wrong) {
    const { code, stdout, stderr } = await cli(["audit", ...args]);
    expect([args, code, stdout]).toEqual([args, 2, ""]);
    expect(stderr).toMatch(words);
  }
});

test("audit show prints the lines that are chosen, as words or as they are", async () => {
  using at = written();
  const all = await cli(["audit", "show", at.dir]);
  expect(all).toMatchObject({ code: 0, stderr: "" });
  expect(all.stdout.trimEnd().split("\n")).toHaveLength(at.head.seq);
  expect(all.stdout).toContain("2026-01-02T00:00:00.000Z test #1 server started version=0.1.0 pid=7\n");
  const json = await cli(["audit", "show", at.dir, "--json"]);
  expect(json.stdout).toBe(fs.readFileSync(at.file(SEGMENT), "utf8"));
  const seqs = async (...flags: string[]) => {
    const { stdout } = await cli(["audit", "show", at.dir, "--json", ...flags]);
    return stdout.trimEnd().split("\n").map((line) => (JSON.parse(line) as { seq: number }).seq); // prettier-ignore
  };
  expect(await seqs("--kind", "run")).toEqual([9, 12]);
  expect(await seqs("--kind", "script")).toEqual([5]);
  expect(await seqs("--run", "r1")).toEqual([9, 10, 11, 12, 13, 14]);
  expect(await seqs("--tenant", "b")).toEqual([8, 16]);
  expect(await seqs("--tenant", "b", "--kind", "call")).toEqual([16]);
  expect((await cli(["audit", "show", "--help"])).stdout.replaceAll(/\s+/g, " ")).toContain(
    AUDIT_KINDS.join(", "),
  );
});

test("audit show makes a guest's text harmless, and no text of it looks like a field", async () => {
  using at = place();
  const log = openLog(at.dir);
  log.append(call({ tenant: "a run=r9 \x1b]0;x\x07\u202e\n", detail: { "k=1 y": "\x9b31m" } }));
  log.close();
  const { stdout } = await cli(["audit", "show", at.dir]);
  expect(stdout).toMatch(/^[^\0-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]*$/);
  expect(stdout).toContain('tenant="a run=r9 \\u001b]0;x\\u0007\\u202e\\n"');
  expect(stdout.trimEnd().split("\n")).toHaveLength(1);
});

test("audit show leaves out what cannot be read, and says so", async () => {
  using at = written();
  fs.appendFileSync(at.file(SEGMENT), "\x1b[2Jno line\n{");
  const { code, stdout, stderr } = await cli(["audit", "show", at.dir]);
  expect(code).toBe(1);
  expect(stdout.trimEnd().split("\n")).toHaveLength(at.head.seq);
  expect(stderr).toMatch(/2 lines of it cannot be read/);
});
