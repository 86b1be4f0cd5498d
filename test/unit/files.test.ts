/**
 * The capability "files" over the real power, in directories made here: what a path is, what each method does, what
 * counts and what is left after a failure. What only the kernel can hold (races, mounts) is in kernel/beneath.test.ts.
 */
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { CapabilityError } from "#hostapi/capability";
import { type Beneath, type FilesCapability, type FilesOptions, filesWith } from "#hostapi/files";
import { beneath } from "#osjail/beneath";
import { callOn, fakeRun, type Told } from "../capability.js";

const power = beneath();
let base: string;
let root: string;
const opened: FilesCapability[] = [];

beforeEach(() => {
  base = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-files-"));
  root = path.join(base, "root");
  fs.mkdirSync(root);
  fs.writeFileSync(path.join(base, "secret"), "outside");
});
afterEach(() => {
  for (const capability of opened.splice(0)) capability.close();
  fs.rmSync(base, { recursive: true });
});

function files(options: Partial<FilesOptions> = {}, over: Beneath = power): FilesCapability {
  const made = filesWith(over)({ root, mode: "rw", ...options });
  opened.push(made);
  return made;
}
const inRoot = (name: string) => path.join(root, name);
const put = (name: string, content: string | Uint8Array) => fs.writeFileSync(inRoot(name), content);
const get = (name: string) => fs.readFileSync(inRoot(name), "utf8");

/** The code that a call failed with, or "ok". */
async function verdict(target: FilesCapability, method: string, ...args: unknown[]): Promise<string> {
  try {
    await callOn(target, method, args);
    return "ok";
  } catch (error) {
    if (!(error instanceof CapabilityError)) throw error;
    expect(error.message).not.toMatch(new RegExp(`${base}|\\bE[A-Z]{3,}\\b|openat2|node:`));
    return error.code;
  }
}

/** The real power with some functions exchanged. */
function but(changes: Partial<Beneath>): Beneath {
  return new Proxy(power, {
    get(target, key) {
      const changed: unknown = Reflect.get(changes, key);
      if (changed !== undefined) return changed;
      const own: unknown = Reflect.get(target, key, target);
      return typeof own === "function" ? own.bind(target) : own;
    },
  });
}
const failing = (code: string) => Object.assign(new Error(`made to fail: ${code}`), { code });
const descriptors = () => fs.readdirSync("/proc/self/fd").length;

describe("a path", () => {
  const long = (bytes: number) => "x".repeat(bytes);
  /** Against a directory that holds `a`, `dir/b`, `dir/sub/c` and the odd names that are allowed. */
  const rows: [string, "ok" | "bad-argument" | "not-found" | "denied"][] = [
    ["a", "ok"],
    ["dir/b", "ok"],
    ["dir/sub/c", "ok"],
    ["with space", "ok"],
    [" lead", "ok"],
    ["trail ", "ok"],
    ["...", "ok"],
    ["..a", "ok"],
    ["a..", "ok"],
    [".hidden", "ok"],
    ["-rf", "ok"],
    ["~", "ok"],
    ["~root", "ok"],
    ["$HOME", "ok"],
    ["%2e%2e", "ok"],
    ["%2f", "ok"],
    ["C:", "ok"],
    ["file:", "ok"],
    ["a;b", "ok"],
    ["'quote'", "ok"],
    ['"', "ok"],
    ["*", "ok"],
    ["grün", "ok"],
    ["日本", "ok"],
    ["😀", "ok"],
    ["__proto__", "ok"],
    ["constructor", "ok"],
    ["CON", "ok"],
    [long(255), "ok"],
    ["é".repeat(127), "ok"],
    ["", "bad-argument"],
    [".", "bad-argument"],
    ["..", "bad-argument"],
    ["/", "bad-argument"],
    ["//", "bad-argument"],
    ["./a", "bad-argument"],
    ["a/.", "bad-argument"],
    ["a/", "bad-argument"],
    ["dir//b", "bad-argument"],
    ["dir/./b", "bad-argument"],
    ["dir/../a", "bad-argument"],
    ["dir/..", "bad-argument"],
    ["../secret", "bad-argument"],
    ["../root/a", "bad-argument"],
    ["../../../../../../etc/passwd", "bad-argument"],
    ["dir/../../secret", "bad-argument"],
    ["dir/sub/../../../secret", "bad-argument"],
    ["nothing/../../secret", "bad-argument"],
    ["/etc/passwd", "bad-argument"],
    ["//etc/passwd", "bad-argument"],
    ["/proc/self/root/etc/passwd", "bad-argument"],
    ["\\", "bad-argument"],
    ["..\\secret", "bad-argument"],
    ["dir\\b", "bad-argument"],
    ["\\\\host\\share", "bad-argument"],
    ["C:\\x", "bad-argument"],
    ["a\0", "bad-argument"],
    ["a\0.txt", "bad-argument"],
    ["\0", "bad-argument"],
    ["a\n", "bad-argument"],
    ["a\r", "bad-argument"],
    ["a\tb", "bad-argument"],
    ["\u001b[31m", "bad-argument"],
    ["a\u007f", "bad-argument"],
    ["a\u0085", "bad-argument"],
    ["a\u009b31m", "bad-argument"],
    ["gru\u0308n", "bad-argument"],
    ["\u212b", "bad-argument"],
    ["\u1100\u1161", "bad-argument"],
    ["\ud800", "bad-argument"],
    ["a\udc00", "bad-argument"],
    ["\udc00\ud800", "bad-argument"],
    [long(256), "bad-argument"],
    ["é".repeat(128), "bad-argument"],
    [`dir/${long(256)}`, "bad-argument"],
    [`${long(200)}/`.repeat(21) + "a", "bad-argument"],
    [long(5_000_000), "bad-argument"],
    ["é".repeat(2048), "bad-argument"],
    [Array.from({ length: 65 }, () => "d").join("/"), "bad-argument"],
    [".doublehull-0", "bad-argument"],
    ["dir/.doublehull-", "bad-argument"],
    [Array.from({ length: 64 }, () => "d").join("/"), "not-found"],
    ["A", "not-found"],
    ["a/b", "not-found"],
    ["a/b/c", "not-found"],
    ["etc/passwd", "not-found"],
    ["proc/self/environ", "not-found"],
    ["．．/secret", "not-found"],
    ["‥/secret", "not-found"],
    ["..／secret", "not-found"],
    ["%2e%2e/secret", "not-found"],
    ["..;/secret", "not-found"],
    ["....//secret", "bad-argument"],
    ["dir", "bad-argument"],
    ["link", "denied"],
    ["linked/secret", "denied"],
    ["up/secret", "denied"],
    ["dangling", "denied"],
    ["inside", "denied"],
    ["fifo", "denied"],
  ];

  test(`has one spelling, and leads nowhere else: ${rows.length} rows, no wrong verdict`, async () => {
    fs.mkdirSync(inRoot("dir/sub"), { recursive: true });
    put("dir/b", "inside");
    put("dir/sub/c", "inside");
    for (const [name, expected] of rows) if (expected === "ok" && !name.includes("/")) put(name, "inside");
    fs.symlinkSync("../secret", inRoot("link"));
    fs.symlinkSync(base, inRoot("linked"));
    fs.symlinkSync("..", inRoot("up"));
    fs.symlinkSync("nowhere", inRoot("dangling"));
    fs.symlinkSync("a", inRoot("inside"));
    execFileSync("mkfifo", [inRoot("fifo")]);
    // The control: an open by path follows them.
    for (const name of ["link", "linked/secret", "up/secret"]) expect(get(name)).toBe("outside");
    expect(get("inside")).toBe("inside");

    const target = files();
    const wrong: unknown[] = [];
    for (const [name, expected] of rows) {
      const seen = await verdict(target, "readText", name);
      if (seen !== expected) wrong.push({ name: name.slice(0, 40), expected, seen });
    }
    expect(wrong).toEqual([]);
    expect(rows.length).toBeGreaterThanOrEqual(80);
  });

  test("is refused by every method alike, in every place", async () => {
    const target = files();
    const wrong: unknown[] = [];
    for (const [name, expected] of rows.filter(([, expected]) => expected === "bad-argument")) {
      if (name === "dir") continue;
      for (const [method, args] of [
        ...["read", "readText", "list", "stat", "exists", "remove", "mkdir"].map((m) => [m, [name]] as const),
        ...["write", "append"].map((m) => [m, [name, "x"]] as const),
        ["rename", [name, "b"]] as const,
        ["rename", ["b", name]] as const,
      ]) {
        const seen = await verdict(target, method, ...args);
        if (seen !== expected) wrong.push({ method, name: name.slice(0, 40), seen });
      }
    }
    expect(wrong).toEqual([]);
    expect(fs.readdirSync(root)).toEqual([]);
    for (const bad of [undefined, null, 7, {}, [], ["a"], new String("a")]) {
      expect(await verdict(target, "read", bad)).toBe("bad-argument");
    }
  });
});

describe("reading", () => {
  test("gives bytes, and text that is UTF-8", async () => {
    const content = Buffer.from([0, 255, 1, 2, 254]);
    put("bytes", content);
    put("text", "\ufeffgrün");
    put("empty", "");
    const target = files({ mode: "ro" });
    const read = await callOn(target, "read", ["bytes"]);
    expect(read).toBeInstanceOf(Uint8Array);
    expect(Object.getPrototypeOf(read)).toBe(Uint8Array.prototype);
    expect([...(read as Uint8Array)]).toEqual([...content]);
    expect(await callOn(target, "readText", ["text"])).toBe("\ufeffgrün");
    expect(await callOn(target, "readText", ["empty"])).toBe("");
    expect(await verdict(target, "readText", "bytes")).toBe("bad-argument");
  });

  test("is told by charges and notes, and ended by a budget", async () => {
    put("a", "x".repeat(1000));
    const told: Told = { notes: [], charged: 0 };
    await callOn(files(), "read", ["a"], { told });
    expect(told).toEqual({ notes: [{ path: "a" }], charged: 1000 });
    await expect(callOn(files().budget({ bytes: 999 }), "read", ["a"])).rejects.toMatchObject({
      code: "budget",
    });
  });

  test("is audited before the act, by every method, and not begun when the audit refuses", async () => {
    put("a", "old");
    const target = files();
    const args: Record<string, unknown[]> = {
      read: ["a"],
      readText: ["a"],
      list: [],
      stat: ["a"],
      exists: ["a"],
      write: ["b", "new"],
      append: ["a", "new"],
      mkdir: ["b"],
      remove: ["a"],
      rename: ["a", "b"],
    };
    expect(Object.keys(args)).toEqual([...target.methods.keys()]);
    for (const [method, given] of Object.entries(args)) {
      const told: Told = { notes: [], charged: 0 };
      const refuse = () => {
        throw new CapabilityError("failed", "the audit refused");
      };
      const act = callOn(target, method, given, { told, admit: refuse });
      await expect(act, method).rejects.toThrow("the audit refused");
      expect(told, method).toEqual({ notes: [], charged: 0 });
    }
    expect(fs.readdirSync(root)).toEqual(["a"]);
    expect(get("a")).toBe("old");
    for (const [method, given] of Object.entries(args)) {
      const told: Told = { notes: [], charged: 0 };
      await callOn(files(), method, given, { told });
      const path = given[0] ?? ".";
      expect(told.notes[0], method).toEqual(method === "rename" ? { path, to: "b" } : { path });
      fs.rmSync(inRoot("b"), { recursive: true, force: true });
      put("a", "old");
    }
  });

  test("asks for the size before it makes room, to the byte", async () => {
    put("exact", "x".repeat(5000));
    let reads = 0;
    const counted = files({}, but({ read: (fd, into) => (reads++, power.read(fd, into)) }));
    expect(await callOn(counted, "read", ["exact"], { maxAnswerBytes: 5000 })).toHaveLength(5000);
    expect(reads).toBe(2);
    fs.truncateSync(inRoot("exact"), 2 ** 40);
    await expect(callOn(counted, "read", ["exact"], { maxAnswerBytes: 5000 })).rejects.toMatchObject({
      code: "too-large",
      message: 'files: "exact" is larger than the 5000 bytes of an answer',
    });
    expect(reads).toBe(2);
  });

  test("ends at the limit in a file that grows under its hands", async () => {
    put("log", "x".repeat(1000));
    let most = 0;
    const growing = but({
      read(fd, into) {
        most = Math.max(most, into.buffer.byteLength);
        fs.appendFileSync(inRoot("log"), "y".repeat(300_000));
        return power.read(fd, into);
      },
    });
    await expect(
      callOn(files({}, growing), "read", ["log"], { maxAnswerBytes: 1_000_000 }),
    ).rejects.toMatchObject({ code: "too-large" });
    expect(most).toBe(1_000_001);
    expect(fs.statSync(inRoot("log")).size).toBeLessThan(10_000_000);
  });

  test("is bounded in files that say they are empty, as those of /proc do", async () => {
    const kernel = files({ root: "/proc/sys/kernel", mode: "ro" });
    expect(await callOn(kernel, "stat", ["ostype"])).toMatchObject({ size: 0 });
    expect(await callOn(kernel, "readText", ["ostype"])).toBe("Linux\n");
    const proc = files({ root: "/proc", mode: "ro" });
    expect(fs.readFileSync("/proc/mounts").length).toBeGreaterThan(10);
    await expect(callOn(proc, "read", ["version"], { maxAnswerBytes: 10 })).rejects.toMatchObject({
      code: "too-large",
    });
  });

  test("lists by name what a script can spell, with types and sizes", async () => {
    put("b", "12345");
    put("a", "");
    put("Z", "1");
    put("new\nline", "");
    put("gru\u0308n", "");
    put(".doublehull-0", "");
    fs.writeFileSync(Buffer.concat([Buffer.from(inRoot("")), Buffer.from([0x66, 0xff])]), "");
    fs.mkdirSync(inRoot("dir"));
    fs.symlinkSync("b", inRoot("link"));
    const expected = [
      { name: "Z", type: "file", size: 1 },
      { name: "a", type: "file", size: 0 },
      { name: "b", type: "file", size: 5 },
      { name: "dir", type: "directory", size: 0 },
      { name: "link", type: "other", size: 0 },
    ];
    const target = files();
    expect(await callOn(target, "list")).toEqual(expected);
    expect(await callOn(target, "list", ["dir"])).toEqual([]);
    expect(await verdict(target, "list", "b")).toBe("not-found");
    expect(await verdict(target, "list", "link")).toBe("denied");
  });

  test("lists many entries whole, and too many not at all, without holding them", async () => {
    const names = Array.from({ length: 1500 }, (_, i) => `a name of some length, ${i}`).sort();
    for (const name of names) put(name, "");
    const entries = (await callOn(files(), "list")) as { name: string }[];
    expect(entries.map(({ name }) => name)).toEqual(names);

    const dir = power.openRoot(root);
    expect(power.names(dir, 1500)).toHaveLength(1500);
    expect(power.names(dir, 1499)).toBeUndefined();
    power.close(dir);
    const most: number[] = [];
    const crowded = files({}, but({ names: (_dir, bound) => void most.push(bound) }));
    expect(await verdict(crowded, "list")).toBe("too-large");
    expect(most).toEqual([10_000]);
  });

  test("tells what has a name, and never follows it", async () => {
    put("a", "12345");
    fs.utimesSync(inRoot("a"), 1, 1_700_000_000.5);
    fs.symlinkSync("../secret", inRoot("link"));
    fs.symlinkSync("..", inRoot("up"));
    const target = files();
    expect(await callOn(target, "stat", ["a"])).toEqual({
      type: "file",
      size: 5,
      modifiedMs: 1_700_000_000_500,
    });
    expect(await callOn(target, "stat", ["link"])).toMatchObject({ type: "other", size: 0 });
    const there = (name: string) => callOn(target, "exists", [name]);
    expect(await Promise.all(["a", "link", "up", "no", "up/secret", "a/b"].map(there))).toEqual([
      true,
      true,
      true,
      false,
      false,
      false,
    ]);
  });

  test("opens no fifo, socket or device, and does not wait for one", async () => {
    execFileSync("mkfifo", [inRoot("fifo")]);
    const server = net.createServer().listen(inRoot("socket"));
    await new Promise((resolve) => server.once("listening", resolve));
    const touched: string[] = [];
    const target = files(
      {},
      but({
        openFile(dir, name, access) {
          const fd = power.openFile(dir, name, access);
          touched.push(name);
          return fd;
        },
      }),
    );
    for (const name of ["fifo", "socket"]) {
      expect(await verdict(target, "read", name)).toBe("denied");
      expect(await verdict(target, "append", name, "x")).toBe("denied");
      expect(await verdict(target, "write", name, "x")).toBe("denied");
      expect(await verdict(target, "rename", name, "y")).toBe("denied");
      expect(await callOn(target, "stat", [name])).toMatchObject({ type: "other", size: 0 });
    }
    const dev = files({ root: "/dev", mode: "ro" });
    expect(fs.readFileSync("/dev/null")).toHaveLength(0); // the control
    for (const name of ["null", "zero", "full", "tty"]) {
      expect(await verdict(dev, "read", name)).toBe("denied");
    }
    expect(touched).toEqual([]);
    await new Promise((resolve) => server.close(resolve));
    for (const name of ["fifo"]) expect(await verdict(target, "remove", name)).toBe("ok");
  });
});

describe("writing", () => {
  test("does not exist in a read-only capability", async () => {
    put("a", "old");
    const target = files({ mode: "ro" });
    expect([...target.methods.keys()]).toEqual(["read", "readText", "list", "stat", "exists"]);
    expect([...files().readOnly().methods.keys()]).toEqual([...target.methods.keys()]);
    for (const method of ["write", "append", "mkdir", "remove", "rename"]) {
      expect(files().methods.get(method)?.effect).toBe("write");
      expect(await verdict(target, method, "a", "b")).toBe("denied");
    }
    expect(get("a")).toBe("old");
  });

  test("replaces whole, by a file of its own with no more than mode 0600", async () => {
    put("a", "old and longer");
    fs.chmodSync(inRoot("a"), 0o4777);
    fs.linkSync(inRoot("a"), inRoot("other name"));
    const before = process.umask(0);
    try {
      await callOn(files(), "write", ["a", "new"]);
      await callOn(files(), "mkdir", ["d"]);
      await callOn(files(), "append", ["d/b", new Uint8Array([104, 105])]);
    } finally {
      process.umask(before);
    }
    expect([get("a"), get("d/b"), get("other name")]).toEqual(["new", "hi", "old and longer"]);
    const modeOf = (name: string) => fs.statSync(inRoot(name)).mode & 0o7777;
    expect([modeOf("a"), modeOf("d"), modeOf("d/b")]).toEqual([0o600, 0o700, 0o600]);
    expect(fs.readdirSync(root).sort()).toEqual(["a", "d", "other name"]);
  });

  test("with ifAbsent replaces nothing, whoever comes first", async () => {
    const target = files();
    const all = await Promise.all(
      Array.from({ length: 20 }, (_, i) => verdict(target, "write", "a", String(i), { ifAbsent: true })),
    );
    expect(all.filter((one) => one === "ok")).toHaveLength(1);
    expect(all.filter((one) => one === "conflict")).toHaveLength(19);
    expect(get("a")).toBe(String(all.indexOf("ok")));
    expect(fs.readdirSync(root)).toEqual(["a"]);
  });

  test("goes over no symbolic link, and through none", async () => {
    fs.symlinkSync("../secret", inRoot("link"));
    fs.symlinkSync("..", inRoot("up"));
    const target = files();
    for (const name of ["link", "up/secret", "up/new"]) {
      expect(await verdict(target, "write", name, "x")).toBe("denied");
      expect(await verdict(target, "append", name, "x")).toBe("denied");
      if (name !== "link") expect(await verdict(target, "remove", name)).toBe("denied");
      expect(await verdict(target, "rename", name, "b")).toBe("denied");
      if (name !== "link") expect(await verdict(target, "mkdir", `${name}/d`)).toBe("denied");
    }
    expect(await verdict(target, "mkdir", "up/d/e", { recursive: true })).toBe("denied");
    expect(fs.readdirSync(base).sort()).toEqual(["root", "secret"]);
    expect(await verdict(target, "remove", "link")).toBe("ok");
    expect(fs.readFileSync(path.join(base, "secret"), "utf8")).toBe("outside");
  });

  test("does not reach a file elsewhere by a hard link", async () => {
    fs.linkSync(path.join(base, "secret"), inRoot("a"));
    const target = files();
    expect(await callOn(target, "readText", ["a"])).toBe("outside"); // it is that file
    expect(await verdict(target, "append", "a", "x")).toBe("denied");
    expect(await verdict(target, "write", "a", "mine")).toBe("ok");
    expect(fs.readFileSync(path.join(base, "secret"), "utf8")).toBe("outside");
  });

  test("makes, renames and removes", async () => {
    const target = files();
    expect(await verdict(target, "mkdir", "a/b/c")).toBe("not-found");
    expect(await verdict(target, "mkdir", "a/b/c", { recursive: true })).toBe("ok");
    expect(await verdict(target, "mkdir", "a/b/c", { recursive: true })).toBe("ok");
    expect(await verdict(target, "mkdir", "a/b/c")).toBe("conflict");
    await callOn(target, "append", ["a/b/f", "one"]);
    await callOn(target, "append", ["a/b/f", " two"]);
    expect(get("a/b/f")).toBe("one two");
    expect(await verdict(target, "mkdir", "a/b/f/g", { recursive: true })).toBe("not-found");
    expect(await verdict(target, "mkdir", "a/b/f", { recursive: true })).toBe("conflict");
    expect(await verdict(target, "write", "a/b", "x")).toBe("bad-argument");
    expect(await verdict(target, "append", "a/b", "x")).toBe("bad-argument");
    expect(await verdict(target, "remove", "a/b")).toBe("conflict");
    expect(await verdict(target, "rename", "a", "a/b/d")).toBe("bad-argument");
    expect(await verdict(target, "rename", "a/b/f", "a/b/c")).toBe("conflict");
    expect(await verdict(target, "rename", "a/b/f", "a/b/f")).toBe("conflict");
    expect(await verdict(target, "rename", "a/b/f", "no/f")).toBe("not-found");
    expect(await verdict(target, "rename", "a/b/x", "y")).toBe("not-found");
    expect(await verdict(target, "rename", "a/b", "z")).toBe("ok");
    expect(get("z/f")).toBe("one two");
    for (const name of ["z/f", "z/c", "z", "a"]) expect(await verdict(target, "remove", name)).toBe("ok");
    expect(await verdict(target, "remove", "a")).toBe("not-found");
    expect(fs.readdirSync(root)).toEqual([]);
  });

  test("stores no text that is not what was given", async () => {
    expect(await verdict(files(), "write", "a", "\ud800")).toBe("bad-argument");
    expect(await verdict(files(), "append", "a", "\ud800")).toBe("bad-argument");
    expect(await verdict(files(), "write", "a", 7)).toBe("bad-argument");
    expect(await verdict(files(), "write", "a", "x", { ifabsent: true })).toBe("bad-argument");
    expect(fs.readdirSync(root)).toEqual([]);
  });

  test("speaks of the path that is at fault, and of no host's", async () => {
    await expect(callOn(files(), "write", ["no/b", "x"])).rejects.toThrow('files: "no" does not exist');
    put("a", "");
    put("b", "");
    await expect(callOn(files(), "rename", ["a", "b"])).rejects.toThrow('files: "b" exists already');
  });

  test("that a filter of the embedder's looks at sees the one spelling that there is", async () => {
    put("open", "1");
    put("closed", "2");
    const target = files().where("not closed", (_method, { path }) => path !== "closed" || "closed");
    expect(await callOn(target, "readText", ["open"])).toBe("1");
    for (const name of ["closed", "./closed", "closed/", "x/../closed", "//closed", "closed\0"]) {
      await expect(callOn(target, "readText", [name])).rejects.toThrow(CapabilityError);
    }
  });
});

describe("what is left after a failure", () => {
  const stages: Record<string, Partial<Beneath>> = {
    "the disk is full at the second chunk": {
      async write(fd, bytes) {
        if (fs.fstatSync(fd).size > 0) throw failing("ENOSPC");
        return power.write(fd, bytes);
      },
    },
    "the disk does not take it": { sync: () => Promise.reject(failing("EIO")) },
    "the name is refused": {
      rename() {
        throw failing("EACCES");
      },
    },
  };
  test.each(Object.entries(stages))("is the old file, alone: %s", async (_what, changes) => {
    put("a", "old");
    const before = descriptors();
    const target = files({ quotaBytes: 1_000_000, maxFiles: 1 }, but(changes));
    for (let i = 0; i < 5; i++) {
      await expect(callOn(target, "write", ["a", "x".repeat(1_000_000)])).rejects.toThrow();
    }
    expect(fs.readdirSync(root)).toEqual(["a"]);
    expect(get("a")).toBe("old");
    expect(descriptors()).toBe(before + 1);
  });

  test("is the old file where the call was ended in the middle", async () => {
    put("a", "old");
    const run = fakeRun();
    const ending = but({
      sync(fd) {
        run.end();
        return power.sync(fd);
      },
    });
    await expect(callOn(files({}, ending), "write", ["a", "new"], { run })).rejects.toMatchObject({
      code: "failed",
    });
    expect(fs.readdirSync(root)).toEqual(["a"]);
    expect(get("a")).toBe("old");
  });

  test("is no descriptor, whatever was asked", async () => {
    put("a", "x");
    put("bad", new Uint8Array([255]));
    fs.mkdirSync(inRoot("d"));
    fs.symlinkSync("..", inRoot("up"));
    execFileSync("mkfifo", [inRoot("fifo")]);
    const target = files({ quotaBytes: 1000, maxFiles: 3, maxFileBytes: 100 });
    const names = ["a", "bad", "d", "up", "up/secret", "fifo", "no", "no/no", "a/b", "d/e"];
    await callOn(target, "list"); // what libuv opens for itself is open now
    await callOn(target, "read", ["a"]);
    const before = descriptors();
    for (let round = 0; round < 5; round++) {
      await Promise.all(
        names.flatMap((name) => [
          ...["read", "readText", "list", "stat", "exists", "mkdir", "remove"].map((m) =>
            verdict(target, m, name),
          ),
          ...["write", "append"].flatMap((m) => [
            verdict(target, m, name, "text"),
            verdict(target, m, name, "x".repeat(101)),
          ]),
          ...names.map((to) => verdict(target, "rename", name, to)),
        ]),
      );
    }
    expect(descriptors()).toBe(before);
  });
});

describe("the quota", () => {
  const x = (count: number) => "x".repeat(count);

  test("is exact in bytes, and given back", async () => {
    put("theirs", x(500));
    const target = files({ quotaBytes: 100 });
    expect(await verdict(target, "write", "a", x(60))).toBe("ok");
    expect(await verdict(target, "append", "b", x(40))).toBe("ok");
    expect(await verdict(target, "append", "b", x(1))).toBe("quota");
    expect(await verdict(target, "write", "c", x(1))).toBe("quota");
    expect(await verdict(target, "write", "c", "")).toBe("ok");
    expect(await verdict(target, "write", "a", x(1))).toBe("quota"); // both stand while it is replaced
    expect(await verdict(target, "remove", "b")).toBe("ok");
    expect(await verdict(target, "write", "a", x(40))).toBe("ok");
    expect(await verdict(target, "append", "c", x(61))).toBe("quota");
    expect(await verdict(target, "append", "c", x(60))).toBe("ok");
    expect(await verdict(target, "remove", "theirs")).toBe("ok"); // to zero at most: no credit for what was there
    expect(await verdict(target, "write", "d", x(101))).toBe("quota");
    expect(await verdict(target, "write", "d", x(100))).toBe("ok");
  });

  test("is exact in files and directories", async () => {
    const target = files({ maxFiles: 3 });
    expect(await verdict(target, "mkdir", "d/e", { recursive: true })).toBe("ok");
    expect(await verdict(target, "append", "a", "x")).toBe("ok");
    for (const [method, ...args] of [
      ["append", "b", "x"],
      ["write", "b", "x"],
      ["mkdir", "f"],
    ] as const) {
      expect(await verdict(target, method, ...args)).toBe("quota");
    }
    expect(await verdict(target, "append", "a", "y")).toBe("ok");
    expect(await verdict(target, "remove", "d/e")).toBe("ok");
    expect(await verdict(target, "write", "a", "x")).toBe("ok"); // replaced: one more for a moment, then one less
    expect(await verdict(target, "write", "b", "x")).toBe("ok");
    expect(await verdict(target, "write", "c", "x")).toBe("quota");
    expect(fs.readdirSync(root).sort()).toEqual(["a", "b", "d"]);
  });

  test("is not passed by calls that come together, nor by more runs, nor through a subdirectory", async () => {
    const target = files({ quotaBytes: 100 });
    const wrote = await Promise.all(
      Array.from({ length: 10 }, (_, i) => verdict(target, i % 2 ? "write" : "append", `f${i}`, x(20))),
    );
    expect(wrote.filter((one) => one === "ok")).toHaveLength(5);
    expect(wrote.filter((one) => one === "quota")).toHaveLength(5);
    fs.mkdirSync(inRoot("d"));
    const sub = target.sub("d");
    opened.push(sub);
    expect(await verdict(sub, "write", "g", x(1))).toBe("quota");
  });

  test("of a file's size holds for appends that come together", async () => {
    const target = files({ maxFileBytes: 100 });
    expect(await verdict(target, "write", "a", x(101))).toBe("too-large");
    expect(await verdict(target, "append", "a", x(101))).toBe("too-large");
    const wrote = await Promise.all(Array.from({ length: 10 }, () => verdict(target, "append", "a", x(30))));
    expect(wrote.filter((one) => one === "ok")).toHaveLength(3);
    expect(wrote.filter((one) => one === "too-large")).toHaveLength(7);
    expect(get("a")).toBe(x(90));
  });

  test("counts what an append that failed half-way left behind", async () => {
    const half = but({
      async write(fd, bytes) {
        if (fs.fstatSync(fd).size > 0) throw failing("ENOSPC");
        return power.write(fd, bytes.subarray(0, 30));
      },
    });
    const target = files({ quotaBytes: 100 }, half);
    expect(await verdict(target, "append", "a", x(100))).toBe("quota");
    expect(get("a")).toBe(x(30));
    await expect(callOn(target, "append", ["b", x(71)])).rejects.toThrow("the quota of 100 bytes is used up");
    await expect(callOn(target, "append", ["a", x(70)])).rejects.toThrow("the disk is full");
  });

  test("gives no credit twice for a file that many replace at once", async () => {
    const target = files({ quotaBytes: 1000 });
    await Promise.all(Array.from({ length: 10 }, () => verdict(target, "write", "a", x(100))));
    const rest = await Promise.all(
      Array.from({ length: 10 }, (_, i) => verdict(target, "write", `f${i}`, x(100))),
    );
    expect(rest.filter((one) => one === "ok")).toHaveLength(9);
  });
});

describe("the host's descriptors", () => {
  test("are at most eight files of one capability at a time; the others wait and are served", async () => {
    for (let i = 0; i < 100; i++) put(`f${i}`, String(i));
    let open = 0;
    let most = 0;
    const counting = but({
      openFile(...args) {
        const fd = power.openFile(...args);
        most = Math.max(most, ++open);
        return fd;
      },
      close(fd) {
        open--;
        power.close(fd);
      },
    });
    const target = files({ mode: "ro" }, counting);
    const all = await Promise.all(
      Array.from({ length: 100 }, (_, i) => callOn(target, "readText", [`f${i}`])),
    );
    expect(all).toEqual(Array.from({ length: 100 }, (_, i) => String(i)));
    expect(most).toBe(8);
    expect(open).toBe(0);
  });

  test("are given back by close, once, and what begins later is revoked", async () => {
    put("a", "x");
    const before = descriptors();
    const target = files();
    const late = callOn(target, "readText", ["a"]);
    target.close();
    target.close();
    expect(await late).toBe("x");
    expect(descriptors()).toBe(before);
    for (const [method, ...args] of [
      ["read", "a"],
      ["list"],
      ["stat", "a"],
      ["write", "a", "y"],
      ["append", "a", "y"],
      ["mkdir", "d"],
      ["remove", "a"],
      ["rename", "a", "b"],
    ] as const) {
      expect(await verdict(target, method, ...args)).toBe("revoked");
    }
    expect(() => target.sub("d")).toThrow(TypeError);
    expect(get("a")).toBe("x");
  });

  test("stay where a run is over: the capability may be granted to the next", async () => {
    put("a", "x");
    const target = files();
    target.close(fakeRun());
    expect(await callOn(target, "readText", ["a"])).toBe("x");
  });
});

describe("a subdirectory", () => {
  test("is all that its capability reaches, and no stronger", async () => {
    fs.mkdirSync(inRoot("d/e"), { recursive: true });
    put("a", "above");
    put("d/b", "below");
    const target = files();
    const sub = target.sub("d", { mode: "ro" });
    const lower = target.sub("d").sub("e");
    opened.push(sub, lower);
    expect(await callOn(sub, "readText", ["b"])).toBe("below");
    expect(await verdict(sub, "readText", "a")).toBe("not-found");
    expect(await verdict(sub, "readText", "../a")).toBe("bad-argument");
    expect(sub.methods.has("write")).toBe(false);
    expect(() => sub.sub("e", { mode: "rw" })).toThrow(TypeError);
    await callOn(lower, "write", ["c", "deep"]);
    expect(get("d/e/c")).toBe("deep");
    expect(sub.bounds.slice(-2)).toEqual(['only beneath "d"', "read-only"]);
    target.close();
    expect(await callOn(sub, "readText", ["b"])).toBe("below");
  });

  test("goes with its directory, wherever that is moved", async () => {
    fs.mkdirSync(inRoot("d"));
    put("d/b", "moved");
    const target = files();
    const sub = target.sub("d");
    opened.push(sub);
    fs.renameSync(inRoot("d"), path.join(base, "elsewhere"));
    expect(await callOn(sub, "readText", ["b"])).toBe("moved");
    expect(await verdict(target, "readText", "d/b")).toBe("not-found");
    expect(await verdict(sub, "readText", "../secret")).toBe("bad-argument");
  });
});

test("a mistake of the embedder's is told at once, by the option's name", () => {
  put("a", "");
  fs.symlinkSync("..", inRoot("up"));
  const make = filesWith(power);
  const before = descriptors();
  for (const [options, message] of [
    [{ root: inRoot("no") }, /root .* is not a directory/],
    [{ root: inRoot("a") }, /root .* is not a directory/],
    [{ root: "" }, /root must be/],
    [{ root: "/tmp\0/x" }, /root must be/],
    [{ root: 7 as never }, /root must be/],
    [{ root, mode: "write" as never }, /mode must be/],
    [{ root, quotaBytes: 5 }, /quotaBytes goes with mode "rw"/],
    [{ root, mode: "rw", quotaBytes: -1 }, /quotaBytes must be/],
    [{ root, mode: "rw", maxFiles: 1.5 }, /maxFiles must be/],
    [{ root, mode: "rw", maxFileBytes: Infinity }, /maxFileBytes must be/],
    [{ root, readOnly: true } as never, /no option "readOnly"; known are root, mode, quotaBytes/],
    [undefined as never, /^files: takes an object with root, mode/],
    [root as never, /^files: takes an object with root, mode.* and got a string/],
  ] as [FilesOptions, RegExp][]) {
    expect(() => make(options)).toThrow(TypeError);
    expect(() => make(options)).toThrow(message);
  }
  const target = files();
  for (const options of ["ro", null, { mod: "ro" }, { mode: "r" }]) {
    expect(() => target.sub(".", options as never)).toThrow(/^files\.sub: /);
  }
  for (const dir of ["no", "a", "up", "..", "/", "", 7 as never]) {
    expect(() => target.sub(dir)).toThrow(TypeError);
  }
  expect(descriptors()).toBe(before + 1);
});
