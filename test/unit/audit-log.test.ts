import { spawn, spawnSync } from "node:child_process";
import { EventEmitter } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { AuditError, lockDirectory } from "#server/service/audit-directory";
import { callEvent, type AuditEvent } from "#server/service/audit-events";
import { GENESIS, MAX_LINE_BYTES } from "#server/service/audit-line";
import type { AuditOptions, WriteCalls } from "#server/service/audit-log";
import { verifyAudit, type VerifyOptions } from "#server/service/audit-verify";
import { call, EVERY_KIND, forged, linesIn, openLog, place, recordsIn } from "../audit.js";
import { descriptorsOf } from "../harness.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const [FIRST, SECOND, THIRD] = [1, 2, 3].map((n) => `audit-0000000${n}.jsonl`) as [string, string, string];

/** Writes the events and closes; the last line's head. */
function written(dir: string, events: readonly AuditEvent[], options: Partial<AuditOptions> = {}) {
  const log = openLog(dir, options);
  for (const event of events) log.append(event);
  log.close();
  return log.head;
}

/** Three segments or more, of some lines each. */
const SMALL = { segmentBytes: 1500 };

const thrownBy = (act: () => unknown): AuditError => {
  try {
    act();
  } catch (error) {
    if (error instanceof AuditError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
};

describe("an audit log", () => {
  test("has a line of every kind of event, each in the file when append returns, and is right", async () => {
    using at = place();
    const log = openLog(at.dir);
    for (const [i, event] of EVERY_KIND.entries()) {
      log.append(event);
      expect(linesIn(at.file(FIRST))).toHaveLength(i + 1);
    }
    const { head } = log;
    log.close();
    const records = recordsIn(at.dir);
    for (const [i, record] of records.entries()) {
      const { seq, time, node, prev, hash, ...event } = record;
      expect({ seq, time, node }).toEqual({ seq: i + 1, time: "2026-01-02T00:00:00.000Z", node: "test" });
      expect(prev).toBe(records[i - 1]?.["hash"] ?? GENESIS);
      expect(hash).toMatch(/^[0-9a-f]{64}$/);
      expect(event).toEqual(EVERY_KIND[i]);
    }
    expect(await verifyAudit(at.dir, { head })).toMatchObject({
      ok: true,
      lines: EVERY_KIND.length,
      segments: 1,
      head,
      named: head,
    });
  });

  test("is hashed as its format says: two texts and sha256sum", () => {
    using at = place();
    const { hash } = written(at.dir, EVERY_KIND);
    const script = `prev=\${LINE#*\\"prev\\":\\"} prev=\${prev%%\\"*}; printf '%s%s}' "$prev" "\${LINE%,\\"hash\\":*}" | sha256sum`;
    const LINE = linesIn(at.file(FIRST)).at(-1) ?? "";
    const summed = spawnSync("sh", ["-c", script], { env: { ...process.env, LINE }, encoding: "utf8" });
    expect(summed.stdout).toBe(`${hash}  -\n`);
  });

  test("goes on over segments, and over being closed and opened again, by another node too", async () => {
    using at = place();
    written(at.dir, EVERY_KIND, SMALL);
    const head = written(at.dir, EVERY_KIND, { ...SMALL, node: "other" });
    const names = fs.readdirSync(at.dir).sort();
    expect(names.length).toBeGreaterThan(3);
    expect(names.slice(0, 3)).toEqual([FIRST, SECOND, THIRD]);
    for (const name of names) expect(fs.statSync(at.file(name)).size).toBeLessThanOrEqual(1500);
    expect(head.seq).toBe(2 * EVERY_KIND.length);
    expect(await verifyAudit(at.dir, { head })).toMatchObject({ ok: true, head, segments: names.length });
    expect(await verifyAudit(at.file(SECOND))).toMatchObject({ ok: true, segments: 1 });
  });

  test("is for its owner's eyes only, whatever the umask", () => {
    using at = place();
    const before = process.umask(0);
    try {
      written(at.dir, EVERY_KIND, SMALL);
    } finally {
      process.umask(before);
    }
    expect(fs.statSync(at.dir).mode & 0o777).toBe(0o700);
    for (const name of fs.readdirSync(at.dir)) expect(fs.statSync(at.file(name)).mode & 0o777).toBe(0o600);
  });

  test("holds hostile text in printable ASCII and within bounds, and gives it back as it was", async () => {
    using at = place();
    const text = 'a"}\n{"seq":1}\r\x1b[2J\u0085\u2028\u2029\u202e\ufeff\ud800 \u00e9\u{1f600}\u{e0041}';
    const detail = { text, __proto__x: 1, long: "\u202e".repeat(10_000), nan: Number.NaN };
    written(at.dir, [call({ run: text, detail, error: "x".repeat(5000) })]);
    const bytes = fs.readFileSync(at.file(FIRST));
    expect(bytes.toString("latin1")).toMatch(/^[\x20-\x7e]+\n$/);
    const [record] = recordsIn(at.dir);
    expect(record).toMatchObject({ run: text, detail: { text, __proto__x: 1, nan: "NaN" } });
    expect(String(record?.["error"])).toBe(`${"x".repeat(1024)}... (5000 characters)`);
    expect(await verifyAudit(at.dir)).toMatchObject({ ok: true, lines: 1 });
  });

  test("takes the largest event that its bounds allow, and any keys of details", async () => {
    using at = place();
    const worst = "\u202e".repeat(100_000);
    const detail = Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`${i}${worst}`, worst]));
    const names = { run: worst, tenant: worst, capability: worst, type: worst, method: worst };
    const own: Record<string, string> = JSON.parse('{"__proto__":"x","constructor":"y","2":"z"}');
    written(at.dir, [call({ ...names, detail, error: worst }), call({ detail: own })]);
    expect(linesIn(at.file(FIRST))[0]?.length).toBeLessThan(MAX_LINE_BYTES);
    expect(recordsIn(at.dir)[0]?.["detail"]).toHaveProperty("(left out)", 984);
    expect(recordsIn(at.dir)[1]?.["detail"]).toEqual({ "2": "z", "__proto__ ": "x", constructor: "y" });
    expect(await verifyAudit(at.dir)).toMatchObject({ ok: true, lines: 2 });
  });

  test("writes what an event's kind has, not what else an object carries, and no secret that is taken out", () => {
    using at = place();
    const more = { source: "the script", input: "the input" };
    const started: AuditEvent = { ...EVERY_KIND[7]!, ...more };
    const redact = (text: string) => text.replaceAll("hunter22", "(secret)");
    const error = `${"x".repeat(1020)}hunter22`; // it would be cut in two
    written(at.dir, [started, call({ detail: { url: "https://h/hunter22" }, error })], { redact });
    const text = fs.readFileSync(at.file(FIRST), "latin1");
    expect(text).toContain("https://h/(secret)");
    expect(text).not.toMatch(/the script|the input|hunt/);
  });

  test("tells the broker's errors by name, code and message, whatever was thrown", () => {
    const broker = {
      timeMs: 0,
      runId: "r",
      tenant: "a",
      capability: "kv",
      kind: "kv",
      method: "get",
      bytes: 1,
    };
    const told = (error: unknown) => callEvent({ ...broker, decision: "failed", detail: {}, error }).error;
    expect(told(Object.assign(new TypeError("no"), { code: "EIO" }))).toBe("TypeError [EIO]: no");
    expect(told("words")).toBe("words");
    const thrower = new Proxy(new Error("x"), { get: () => { throw new Error("caught you"); }, getPrototypeOf: () => { throw new Error("again"); } }); // prettier-ignore
    expect(told(thrower)).toBe("(an error that cannot be read)");
    expect(told(undefined)).toBeUndefined();
  });
});

describe("verification finds", () => {
  /** The log, changed; a control first shows that it was right. */
  async function tampered(change: (file: (name: string) => string) => void, options: VerifyOptions = {}) {
    using at = place();
    const head = written(at.dir, [...EVERY_KIND, ...EVERY_KIND], SMALL);
    expect(await verifyAudit(at.dir, { head })).toMatchObject({ ok: true, head });
    change(at.file);
    const found = await verifyAudit(at.dir, options);
    return { head, ok: found.ok, ...found.problem, found };
  }
  const edit = (file: string, change: (lines: string[]) => string[]) =>
    fs.writeFileSync(file, `${change(linesIn(file)).join("\n")}\n`);

  test("a changed byte, even of the hash's own letter case", async () => {
    const changed = await tampered((file) =>
      edit(file(SECOND), (lines) => lines.with(1, lines[1]!.replace('"tenant":"', '"tenant":"x'))),
    );
    expect(changed).toMatchObject({
      ok: false,
      segment: SECOND,
      line: 2,
      what: expect.stringContaining("bytes"),
    });
    const upper = await tampered((file) =>
      edit(file(FIRST), (lines) =>
        lines.with(
          0,
          lines[0]!.replace(/[0-9a-f]{64}"\}$/, (h) => h.toUpperCase()),
        ),
      ),
    );
    expect(upper).toMatchObject({ ok: false, segment: FIRST, line: 1 });
  });

  test("a changed line whose hash was made anew, by the line after it", async () => {
    const found = await tampered((file) =>
      edit(file(FIRST), (lines) =>
        lines.with(
          1,
          forged(lines[1]!, (text) => text.replace("admin-1", "admin-2")),
        ),
      ),
    );
    expect(found).toMatchObject({
      ok: false,
      segment: FIRST,
      line: 3,
      what: expect.stringContaining("exchanged"),
    });
  });

  test("a removed line, also the first of a segment and of the log", async () => {
    const middle = await tampered((file) => edit(file(FIRST), (lines) => lines.toSpliced(1, 1)));
    expect(middle).toMatchObject({
      ok: false,
      segment: FIRST,
      line: 2,
      what: expect.stringContaining("line 2 is missing"),
    });
    expect(await tampered((file) => edit(file(SECOND), (lines) => lines.slice(1)))).toMatchObject({
      segment: SECOND,
      line: 1,
    });
    const first = await tampered((file) => edit(file(FIRST), (lines) => lines.slice(1)));
    expect(first).toMatchObject({
      ok: false,
      segment: FIRST,
      line: 1,
      what: expect.stringContaining("no first line"),
    });
  });

  test("swapped lines", async () => {
    const found = await tampered((file) => edit(file(FIRST), ([a, b, c, ...rest]) => [a!, c!, b!, ...rest]));
    expect(found).toMatchObject({
      ok: false,
      segment: FIRST,
      line: 2,
      what: expect.stringContaining("missing"),
    });
  });

  test("an inserted line: one of ours twice, one with a right hash, an empty one", async () => {
    const twice = await tampered((file) => edit(file(FIRST), (lines) => lines.toSpliced(2, 0, lines[1]!)));
    expect(twice).toMatchObject({ ok: false, line: 3, what: expect.stringContaining("doubled") });
    const made = await tampered((file) =>
      edit(file(FIRST), (lines) => {
        const prev = (JSON.parse(lines[1]!) as { hash: string }).hash;
        const more = forged(lines[2]!, (text) =>
          text.replace(/"prev":"\w+"/, `"prev":"${prev}"`).replace("a", "b"),
        );
        return lines.toSpliced(2, 0, more);
      }),
    );
    expect(made).toMatchObject({ ok: false, segment: FIRST });
    expect(await tampered((file) => edit(file(FIRST), (lines) => lines.toSpliced(1, 0, "")))).toMatchObject({
      ok: false,
      line: 2,
    });
  });

  test("a cut end only with a head or a seq that was noted elsewhere", async () => {
    const last = (file: (name: string) => string) => {
      const names = fs.readdirSync(path.dirname(file("x"))).sort();
      edit(file(names.at(-1)!), (lines) => lines.slice(0, -1));
    };
    expect((await tampered(last)).ok).toBe(true); // the chain alone cannot know
    expect(await tampered(last, { head: { seq: 2 * EVERY_KIND.length } })).toMatchObject({
      ok: false,
      what: expect.stringContaining(`line ${2 * EVERY_KIND.length} is not there`),
    });
    using at = place();
    const log = openLog(at.dir);
    for (const event of EVERY_KIND) log.append(event);
    const { hash, seq } = log.head;
    log.append(call());
    log.close();
    expect(await verifyAudit(at.dir, { head: { hash } })).toMatchObject({ ok: true, named: { hash, seq } });
    edit(at.file(FIRST), (lines) => lines.slice(0, -2));
    expect((await verifyAudit(at.dir, { head: { hash } })).problem?.what).toMatch(/no line has the hash/);
  });

  test("a whole log made anew, by the hash that was noted of one of its lines", async () => {
    using at = place();
    const { seq, hash } = written(at.dir, EVERY_KIND);
    fs.rmSync(at.dir, { recursive: true });
    written(at.dir, EVERY_KIND, { now: () => Date.UTC(2026, 0, 3) });
    expect((await verifyAudit(at.dir)).ok).toBe(true);
    expect((await verifyAudit(at.dir, { head: { seq, hash } })).problem?.what).toMatch(/not what was noted/);
  });

  test("a missing segment, a doubled one, one of another name, an emptied one", async () => {
    const missing = await tampered((file) => fs.rmSync(file(SECOND)));
    expect(missing).toMatchObject({ ok: false, segment: SECOND, line: 0, what: "it is missing" });
    expect(await tampered((file) => fs.rmSync(file(FIRST)))).toMatchObject({ ok: false, segment: FIRST });
    const doubled = await tampered((file) => fs.copyFileSync(file(FIRST), file(SECOND)));
    expect(doubled).toMatchObject({
      ok: false,
      segment: SECOND,
      line: 1,
      what: expect.stringContaining("doubled"),
    });
    const renamed = await tampered((file) => fs.renameSync(file(SECOND), file("audit-2.jsonl")));
    expect(renamed).toMatchObject({ ok: false, segment: "audit-2.jsonl" });
    const emptied = await tampered((file) => fs.truncateSync(file(FIRST)));
    expect(emptied).toMatchObject({ ok: false, segment: FIRST, what: expect.stringContaining("empty") });
  });

  test("earlier segments that are kept elsewhere, unless it is told where they ended", async () => {
    using at = place();
    const head = written(at.dir, [...EVERY_KIND, ...EVERY_KIND], SMALL);
    const { hash: from = "" } = (await verifyAudit(at.file(FIRST))).head ?? {};
    fs.rmSync(at.file(FIRST));
    expect((await verifyAudit(at.dir)).ok).toBe(false);
    expect(await verifyAudit(at.dir, { from, head })).toMatchObject({ ok: true, head });
    expect((await verifyAudit(at.dir, { from: GENESIS })).ok).toBe(false);
  });

  test("a key that stands twice, and another way to write the same, though the hashes are right", async () => {
    using at = place();
    written(at.dir, [call()]);
    const [line = ""] = linesIn(at.file(FIRST));
    const ways: [string, (text: string) => string, RegExp][] = [
      ["as it was", (text) => text, /^$/],
      ["a key twice", (text) => text.replace('"tenant":"a"', '"tenant":"b","tenant":"a"'), /stands twice/],
      ["an escape", (text) => text.replace('"tenant":"a"', '"tenant":"\\u0061"'), /as the log writes/],
      ["a space", (text) => text.replace('"tenant":', '"tenant": '), /as the log writes/],
      ["__proto__", (text) => text.replace('"tenant":', '"__proto__":'), /__proto__/],
      ["no kind", (text) => text.replace('"kind":', '"sort":'), /lacks a key/],
    ];
    for (const [way, change, what] of ways) {
      fs.writeFileSync(at.file(FIRST), `${forged(line, change)}\n`);
      const found = await verifyAudit(at.dir);
      expect([way, found.ok], way).toEqual([way, way === "as it was"]);
      expect(found.problem?.what ?? "", way).toMatch(what);
    }
  });

  test("a line without end, within bounded memory", async () => {
    using at = place();
    written(at.dir, [call()]);
    fs.truncateSync(at.file(FIRST), 4 * 1024 ** 3); // a hole: no disk is used
    const before = process.memoryUsage().rss;
    const found = await verifyAudit(at.dir);
    expect(found.problem?.what).toMatch(/longer than/);
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1024 ** 2);
  });

  test("any single byte that is changed, in a log with a line cut short too", async () => {
    using at = place();
    written(at.dir, EVERY_KIND, SMALL);
    const torn = fs.readdirSync(at.dir).sort().at(-1) ?? "";
    fs.appendFileSync(at.file(torn), '{"seq":13,"ti');
    written(at.dir, EVERY_KIND.slice(0, 3));
    expect((await verifyAudit(at.dir)).ok).toBe(true);
    const files = fs.readdirSync(at.dir).map((name) => at.file(name));
    const contents = files.map((file) => fs.readFileSync(file));
    const total = contents.reduce((sum, { length }) => sum + length, 0);
    const changes = fc.tuple(fc.nat(total - 1), fc.integer({ min: 1, max: 255 }));
    await fc.assert(
      fc.asyncProperty(changes, async ([place, flip]) => {
        let [which, offset] = [0, place];
        while (offset >= contents[which]!.length) offset -= contents[which++]!.length;
        const changed = Buffer.from(contents[which]!);
        changed[offset]! ^= flip;
        fs.writeFileSync(files[which]!, changed);
        const { ok } = await verifyAudit(at.dir);
        fs.writeFileSync(files[which]!, contents[which]!);
        expect(ok).toBe(false);
      }),
      { numRuns: 1000 },
    );
    expect((await verifyAudit(at.dir)).ok).toBe(true);
  });
});

describe("a line that was cut short", () => {
  test("stays, and the next line of all tells of it; what ends so is not right before", async () => {
    using at = place();
    const head = written(at.dir, EVERY_KIND);
    fs.appendFileSync(at.file(FIRST), '{"seq":');
    expect((await verifyAudit(at.dir)).problem).toMatchObject({ line: EVERY_KIND.length + 1, what: expect.stringContaining("7 bytes") }); // prettier-ignore
    const log = openLog(at.dir);
    expect(log.head.seq).toBe(head.seq + 1);
    log.append(call());
    log.close();
    const recovered = JSON.parse(linesIn(at.file(SECOND))[0] ?? "") as Record<string, unknown>;
    expect(recovered).toMatchObject({
      kind: "recovered",
      prev: head.hash,
      cuts: [{ segment: FIRST, bytes: 7 }],
    });
    expect(fs.readFileSync(at.file(FIRST), "utf8").endsWith('{"seq":')).toBe(true);
    expect(await verifyAudit(at.dir)).toMatchObject({ ok: true, lines: head.seq + 2 });
    fs.truncateSync(at.file(FIRST), fs.statSync(at.file(FIRST)).size - 7);
    expect((await verifyAudit(at.dir)).problem).toMatchObject({ segment: SECOND, line: 1 });
  });

  test("is told of also when the telling was cut short, and when the log never had a whole line", async () => {
    for (const before of [EVERY_KIND, []]) {
      using at = place();
      written(at.dir, before);
      fs.appendFileSync(at.file(FIRST), "{");
      fs.writeFileSync(at.file(SECOND), '{"seq":1', { mode: 0o600 });
      fs.writeFileSync(at.file(THIRD), "", { mode: 0o600 });
      expect((await verifyAudit(at.dir)).ok).toBe(false);
      written(at.dir, [call()]);
      const lines = before.length + 2;
      expect(await verifyAudit(at.dir)).toMatchObject({ ok: true, lines, segments: 3 });
    }
  });

  /** A child that appends as fast as it can and says what was acknowledged. */
  const APPENDER = `
    import fs from "node:fs";
    import { AuditLog } from "#server/service/audit-log";
    const log = AuditLog.open({ dir: process.argv[1], node: "child", now: Date.now, segmentBytes: 20_000 });
    for (;;) {
      log.append({ kind: "job", act: "submitted", job: "j".repeat(200), tenant: "a" });
      fs.writeSync(1, log.head.seq + "\\n");
    }`;

  test("loses no acknowledged line to kill -9, as often as that happens", async () => {
    using at = place();
    let acknowledged = 0;
    for (let round = 0; round < 5; round++) {
      const child = spawn(process.execPath, ["--input-type=module", "-e", APPENDER, at.dir], { cwd: root });
      let heard = "";
      child.stdout.setEncoding("utf8").on("data", (text: string) => {
        heard += text;
        if (heard.length > 2000) child.kill("SIGKILL");
      });
      let problems = "";
      child.stderr.setEncoding("utf8").on("data", (text: string) => (problems += text));
      const signal = await new Promise((resolve) => child.once("close", (_, by) => resolve(by)));
      expect([signal, problems]).toEqual(["SIGKILL", ""]);
      acknowledged = Number(heard.slice(0, heard.lastIndexOf("\n")).split("\n").at(-1));
    }
    const log = openLog(at.dir);
    log.close();
    expect(acknowledged).toBeGreaterThan(500);
    expect(log.head.seq).toBeGreaterThanOrEqual(acknowledged);
    expect(await verifyAudit(at.dir, { head: { seq: acknowledged } })).toMatchObject({
      ok: true,
      head: log.head,
    });
  });

  test("by the kernel's limit on a file is an error, and the line after it stands in the next segment", async () => {
    using at = place();
    const program = `
      import { AuditLog } from "#server/service/audit-log";
      const log = AuditLog.open({ dir: process.argv[1], node: "child", now: Date.now });
      const event = { kind: "job", act: "submitted", job: "j".repeat(100), tenant: "a" };
      const seen = [];
      while (seen.length < 2) {
        try {
          log.append(event);
          if (seen.length === 1) seen.push("written again");
        } catch (error) {
          seen.push(error.code);
        }
      }
      const { head } = log;
      log.close();
      console.log(JSON.stringify({ seen, head }));`;
    const limited = ["--fsize=2500", process.execPath, "--input-type=module", "-e", program, at.dir];
    const ran = spawnSync("prlimit", limited, { cwd: root, encoding: "utf8" });
    expect(ran.stderr).toBe("");
    const { seen, head } = JSON.parse(ran.stdout) as { seen: string[]; head: { seq: number } };
    expect(seen).toEqual(["audit-unwritable", "written again"]);
    expect(fs.statSync(at.file(FIRST)).size).toBe(2500);
    expect(JSON.parse(linesIn(at.file(SECOND))[0] ?? "")).toMatchObject({ kind: "recovered" });
    expect(await verifyAudit(at.dir, { head })).toMatchObject({ ok: true, head, segments: 2 });
  });
});

describe("a disk that refuses", () => {
  const noSpace = () => Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });

  /** The calls that write, on a disk with so much room. */
  function disk(room: number) {
    const state = { room };
    const calls: WriteCalls = {
      ...fs,
      writeSync: ((fd: number, bytes: Buffer, from: number) => {
        if (state.room === 0) throw noSpace();
        const some = bytes.subarray(from, from + state.room);
        state.room -= some.length;
        return fs.writeSync(fd, some);
      }) as typeof fs.writeSync,
    };
    return { state, calls };
  }

  test("for want of room makes every append throw with a remedy, until there is some", async () => {
    using at = place();
    const { state, calls } = disk(1000);
    const log = openLog(at.dir, { calls });
    let acknowledged = 0;
    const failed = thrownBy(() => {
      for (;;) {
        log.append(call());
        acknowledged++;
      }
    });
    expect(failed).toMatchObject({ code: "audit-unwritable", remedy: expect.stringMatching(/Make room/) });
    expect(acknowledged).toBeGreaterThan(1);
    for (let i = 0; i < 3; i++) expect(thrownBy(() => log.append(call())).code).toBe("audit-unwritable");
    expect(log.head.seq).toBe(acknowledged);
    expect(log.failure).toBeUndefined();
    state.room = Infinity;
    log.append(call());
    log.close();
    expect(log.head.seq).toBe(acknowledged + 2);
    expect(await verifyAudit(at.dir, { head: log.head })).toMatchObject({ ok: true, segments: 2 });
  });

  test("to sync ends the log: what it did not keep would be forgotten", async () => {
    using at = place();
    const calls = { ...fs, fdatasyncSync: () => { throw new Error("EIO: i/o error"); } }; // prettier-ignore
    const log = openLog(at.dir, { calls });
    log.append(call());
    expect(thrownBy(() => log.sync()).code).toBe("audit-unwritable");
    expect(thrownBy(() => log.append(call()))).toBe(log.failure);
    log.close();
    expect(written(at.dir, [call()]).seq).toBe(2);
    expect((await verifyAudit(at.dir)).ok).toBe(true);
  });

  test("to sync in the background ends it too; a timer sees to that by itself", async () => {
    using at = place();
    const once = new EventEmitter();
    const synced = new Promise((resolve) => once.once("synced", resolve));
    const calls = {
      ...fs,
      fdatasync: (_fd: number, done: (error: Error | null) => void) => {
        done(new Error("EIO: i/o error"));
        once.emit("synced");
      },
    };
    const log = openLog(at.dir, { calls: calls as unknown as WriteCalls });
    log.append(call());
    expect(log.failure).toBeUndefined();
    await synced;
    expect(thrownBy(() => log.append(call())).code).toBe("audit-unwritable");
    log.close();
  });

  test("in name only: a segment that was moved away is noticed at the next sync", () => {
    using at = place();
    const log = openLog(at.dir);
    log.append(call());
    log.sync(); // the control
    fs.renameSync(at.file(FIRST), at.file("away"));
    fs.copyFileSync(at.file("away"), at.file(FIRST));
    log.append(call());
    expect(thrownBy(() => log.sync()).message).toMatch(/was replaced/);
    log.close();
  });

  test("takes nothing after close", () => {
    using at = place();
    const log = openLog(at.dir);
    log.close();
    log.close();
    expect(thrownBy(() => log.append(call())).code).toBe("audit-closed");
    expect(thrownBy(() => log.sync()).code).toBe("audit-closed");
  });
});

describe("opening", () => {
  test("is for one at a time, in one process and in two, and free again when the holder ends or dies", async () => {
    using at = place();
    const log = openLog(at.dir);
    expect(thrownBy(() => openLog(at.dir)).code).toBe("audit-in-use");
    const program = `
      import { AuditLog } from "#server/service/audit-log";
      const open = () => AuditLog.open({ dir: process.argv[1], node: "child", now: Date.now });
      try { globalThis.log = open(); console.log("open"); setInterval(() => {}, 1000); } catch (error) { console.log(error.code); }`;
    const start = () =>
      spawn(process.execPath, ["--input-type=module", "-e", program, at.dir], { cwd: root });
    const firstWord = (child: ReturnType<typeof start>) =>
      new Promise<string>((resolve) => child.stdout.setEncoding("utf8").once("data", (text: string) => resolve(text.trim()))); // prettier-ignore
    expect(await firstWord(start())).toBe("audit-in-use");
    log.close();
    const child = start();
    expect(await firstWord(child)).toBe("open");
    expect(thrownBy(() => openLog(at.dir)).code).toBe("audit-in-use");
    const over = new Promise((resolve) => child.once("close", resolve));
    child.kill("SIGKILL");
    await over;
    expect(written(at.dir, [call()]).seq).toBe(1);
  });

  test("is free at once after close, whoever is starting a process at that moment and has a copy of the lock", async () => {
    using at = place();
    /** A process with this descriptor, as any has between fork and execve. */
    const copying = (fd: number) => {
      const child = spawn("cat", { stdio: ["pipe", "ignore", "ignore", fd] });
      expect(fs.readlinkSync(`/proc/${child.pid}/fd/3`)).toBe(at.dir);
      return { ends: () => new Promise((resolve) => child.once("close", resolve).stdin?.end()) };
    };
    const bare = lockDirectory(at.dir);
    const first = copying(bare);
    fs.closeSync(bare);
    expect(thrownBy(() => openLog(at.dir)).code).toBe("audit-in-use"); // the control: the copy holds it
    await first.ends();

    const log = openLog(at.dir);
    const copy = copying(descriptorsOf("self").find(({ target }) => target === at.dir)?.fd ?? -1);
    expect(thrownBy(() => openLog(at.dir)).code).toBe("audit-in-use");
    log.close();
    openLog(at.dir).close();
    await copy.ends();
  });

  test("refuses a directory or a file that is not the log's alone", () => {
    const spoilt: [string, (dir: string, file: (name: string) => string) => void, string][] = [
      ["a directory for all", (dir) => fs.chmodSync(dir, 0o755), "audit-unsafe"],
      ["a file for the group", (_, file) => fs.chmodSync(file(FIRST), 0o640), "audit-unsafe"],
      ["a file of another name", (_, file) => fs.writeFileSync(file("notes.txt"), "x"), "audit-unsafe"],
      ["a second name", (dir, file) => fs.linkSync(file(FIRST), `${dir}-link`), "audit-unsafe"],
      ["a FIFO", (_, file) => void spawnSync("mkfifo", ["-m", "600", file(SECOND)]), "audit-unsafe"],
      ["a link", (dir, file) => (fs.renameSync(file(FIRST), `${dir}-a`), fs.symlinkSync(`${dir}-a`, file(FIRST))), "audit-unwritable"], // prettier-ignore
      ["a linked directory", (dir) => (fs.renameSync(dir, `${dir}-a`), fs.symlinkSync(`${dir}-a`, dir)), "audit-unsafe"], // prettier-ignore
      ["a file for a directory", (dir) => (fs.rmSync(dir, { recursive: true }), fs.writeFileSync(dir, "")), "audit-unsafe"], // prettier-ignore
      ["an end that is not ours", (_, file) => fs.appendFileSync(file(FIRST), "hello\n"), "audit-broken"],
      ["an endless end", (_, file) => fs.appendFileSync(file(FIRST), "x".repeat(300_000)), "audit-broken"],
      ["no beginning", (_, file) => (fs.rmSync(file(FIRST)), fs.writeFileSync(file(SECOND), "", { mode: 0o600 })), "audit-broken"], // prettier-ignore
    ];
    for (const [what, spoil, code] of spoilt) {
      using at = place();
      written(at.dir, [call()]);
      written(at.dir, [call()]); // the control
      spoil(at.dir, at.file);
      expect(thrownBy(() => openLog(at.dir)).code, what).toBe(code);
    }
    expect(thrownBy(() => openLog("/nowhere/at/all")).code).toBe("audit-unwritable");
    expect(() => openLog("/nowhere", { node: "a b" })).toThrow(/node must be/);
  });
});
