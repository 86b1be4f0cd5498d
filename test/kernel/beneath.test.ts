/**
 * Files beneath a directory on the real kernel: what openat2 refuses when it is handed what no guest could send, and
 * races against a process that exchanges names as fast as it can. Each race is first lost by a naive opener.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { filesWith } from "#hostapi/files";
import { beneath } from "#osjail/beneath";
import { callOn } from "../capability.js";

const power = beneath();
const dist = (file: string) => JSON.stringify(new URL(`../../dist/${file}.js`, import.meta.url).href);

/** base/secret and base/outside/f say "outside"; base/root/f and base/root/d/f say "inside". */
let base: string;
let root: string;
let top: number;
const children: ChildProcess[] = [];

beforeEach(() => {
  base = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-beneath-")));
  root = path.join(base, "root");
  fs.mkdirSync(path.join(root, "d"), { recursive: true });
  fs.mkdirSync(path.join(base, "outside"));
  fs.writeFileSync(path.join(base, "secret"), "outside");
  fs.writeFileSync(path.join(base, "outside", "f"), "outside");
  for (const name of ["f", "d/f"]) fs.writeFileSync(path.join(root, name), "inside");
  top = power.openRoot(root);
});
afterEach(async () => {
  for (const child of children.splice(0)) await ended(child);
  power.close(top);
  fs.rmSync(base, { recursive: true });
});

function ended(child: ChildProcess): Promise<void> {
  return new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) return resolve();
    child.once("exit", () => resolve());
    child.kill("SIGKILL");
  });
}

/** A process of this source, with `sys` and the constants at hand; resolves when it has written. `wanted` until our end. */
async function started(source: string): Promise<ChildProcess> {
  const head = `import fs from "node:fs";
    import { sys, Memory } from ${dist("osjail/libc.ffi")};
    import { AT, RENAME } from ${dist("osjail/abi/linux")};
    const parent = process.ppid;
    const wanted = () => process.ppid === parent;`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", `${head}\n${source}`], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  children.push(child);
  await new Promise<void>((resolve, reject) => {
    child.stdout.once("data", () => resolve());
    child.once("exit", (code) => reject(new Error(`it ended before it was ready: ${code}`)));
  });
  return child;
}

/** Exchanges two names for ever, in one step each time, so that both always exist. man 2 renameat2 */
const swapping = (a: string, b: string) =>
  started(`const [a, b] = [${JSON.stringify(a)}, ${JSON.stringify(b)}].map((name) => new Memory(name));
    const swap = () => sys("renameat2", AT.FDCWD, a, AT.FDCWD, b, RENAME.EXCHANGE);
    swap();
    fs.writeSync(1, "ready");
    while (wanted()) swap();`);

const contentOf = (fd: number): string => {
  const into = Buffer.alloc(100);
  return into.toString("latin1", 0, fs.readSync(fd, into, 0, 100, 0));
};

/** What an act came to: what it returns, or the name of the error. */
function outcome(act: () => string | number): string {
  try {
    return String(act());
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}
const reading = (dir: number, name: string) =>
  outcome(() => {
    const fd = power.openFile(dir, name, "read");
    try {
      return contentOf(fd);
    } finally {
      power.close(fd);
    }
  });
const naively = (name: string) => outcome(() => fs.readFileSync(name, "latin1"));

/** How often each outcome was seen in so many acts, or in as many as fit into ten seconds. */
function tally(attempts: number, act: () => string): Map<string, number> {
  const seen = new Map<string, number>();
  const giveUp = performance.now() + 10_000;
  for (let i = 0; i < attempts && performance.now() < giveUp; i++) {
    const one = act();
    seen.set(one, (seen.get(one) ?? 0) + 1);
  }
  return seen;
}

/** Whether it happens within a bounded number of tries; what throws did not. */
function happens(act: () => boolean): boolean {
  for (let i = 0; i < 400_000; i++) if (outcome(() => String(act())) === "true") return true;
  return false;
}

const descriptors = () => fs.readdirSync("/proc/self/fd").length;

describe("a path that no guest could send", () => {
  const rows: [string, string][] = [
    ["f", "inside"],
    ["d/f", "inside"],
    ["./f", "inside"],
    ["d/../f", "inside"],
    ["d//f", "inside"],
    ["hard", "outside"], // a hard link is the file
    ["", "ENOENT"],
    [".", "EISDIR"],
    ["d", "EISDIR"],
    ["d/", "EISDIR"],
    ["d/..", "EISDIR"],
    ["f/", "ENOTDIR"],
    ["f/.", "ENOTDIR"],
    ["f/..", "ENOTDIR"],
    ["f/../f", "ENOTDIR"],
    ["no", "ENOENT"],
    ["no/../../secret", "ENOENT"],
    ["..", "EXDEV"],
    ["../secret", "EXDEV"],
    ["../root/f", "EXDEV"],
    ["d/../../secret", "EXDEV"],
    ["d/../../root/f", "EXDEV"],
    ["./../secret", "EXDEV"],
    ["../../../../../../../../../../etc/passwd", "EXDEV"],
    ["/", "EXDEV"],
    ["/etc/passwd", "EXDEV"],
    ["//etc/passwd", "EXDEV"],
    ["/proc/self/root/etc/passwd", "EXDEV"],
    ["relative", "EOPNOTSUPP"],
    ["absolute", "EOPNOTSUPP"],
    ["harmless", "EOPNOTSUPP"],
    ["dangling", "EOPNOTSUPP"],
    ["loop", "EOPNOTSUPP"],
    ["magic", "EOPNOTSUPP"],
    ["up", "EOPNOTSUPP"],
    ["relative/", "ELOOP"],
    ["up/", "ELOOP"],
    ["up/secret", "ELOOP"],
    ["up/root/f", "ELOOP"],
    ["across/f", "ELOOP"],
    ["here/f", "ELOOP"],
    ["here/up/secret", "ELOOP"],
    ["d/deep/secret", "ELOOP"],
    ["dangling/f", "ELOOP"],
    ["loop/f", "ELOOP"],
    ["magic/f", "ELOOP"],
    ["magic/etc/passwd", "ELOOP"],
    ["fifo", "EOPNOTSUPP"],
    ["fifo/x", "ENOTDIR"],
    ["f\0", "EINVAL"],
    ["f\0/../../secret", "EINVAL"],
    ["x".repeat(256), "ENAMETOOLONG"],
    ["x".repeat(5000), "ENAMETOOLONG"],
    ["d/../".repeat(900), "ENAMETOOLONG"],
    [`${"d/../".repeat(700)}f`, "inside"],
    [`${"d/../".repeat(700)}../secret`, "EXDEV"],
  ];

  test(`is refused by the kernel if it leads anywhere else: ${rows.length} rows`, () => {
    const link = (to: string, name: string) => fs.symlinkSync(to, path.join(root, name));
    link("../secret", "relative");
    link(path.join(base, "secret"), "absolute");
    link("f", "harmless");
    link("nowhere", "dangling");
    link("loop", "loop");
    link("/proc/self/root", "magic");
    link("..", "up");
    link(path.join(base, "outside"), "across");
    link(".", "here");
    link("../..", "d/deep");
    fs.linkSync(path.join(base, "secret"), path.join(root, "hard"));
    execFileSync("mkfifo", [path.join(root, "fifo")]);
    // The control: an ordinary open goes through every one of them.
    for (const name of ["../secret", "relative", "absolute", "up/secret", "across/f", "here/up/secret"]) {
      expect(naively(`${root}/${name}`)).toBe("outside");
    }
    expect(naively(`${root}/d/deep/secret`)).toBe("outside");
    expect(naively(`${root}/magic/etc/passwd`)).toContain("root:");

    const before = descriptors();
    const seen = rows.map(([name]) => [name, reading(top, name)]);
    expect(seen).toEqual(rows);
    expect(descriptors()).toBe(before);
  });

  test("is refused as a name, where the kernel would have walked it", () => {
    const bad = ["", ".", "..", "../x", "d/x", "/tmp/x", "d/../../x", "x\0y", "x".repeat(256)];
    const acts: Record<string, (name: string) => void> = {
      createFile: (name) => power.close(power.createFile(top, name)),
      makeDirectory: (name) => power.makeDirectory(top, name),
      removeFile: (name) => power.removeFile(top, name),
      removeDirectory: (name) => power.removeDirectory(top, name),
      statName: (name) => void power.statName(top, name),
      "rename from": (name) => power.rename(top, name, top, "y", true),
      "rename to": (name) => power.rename(top, "f", top, name, true),
    };
    for (const [what, act] of Object.entries(acts)) {
      for (const name of bad) {
        expect(() => act(name), `${what} ${name.slice(0, 20)}`).toThrow(
          expect.objectContaining({ code: name.length === 256 ? "ENAMETOOLONG" : "EINVAL" }),
        );
      }
    }
    expect(fs.readdirSync(base).sort()).toEqual(["outside", "root", "secret"]);
    expect(fs.readdirSync(root).sort()).toEqual(["d", "f"]);
  });

  test("crosses no mount and follows no magic link", () => {
    const slash = power.openRoot("/");
    const self = power.openRoot("/proc/self");
    try {
      expect(fs.readFileSync("/proc/version", "utf8")).toMatch(/Linux/);
      expect(reading(slash, "proc/version")).toBe("EXDEV");
      expect(outcome(() => power.openDirectory(slash, "proc"))).toBe("EXDEV");
      expect(reading(self, "comm")).not.toMatch(/^E/);
      expect(naively("/proc/self/root/etc/passwd")).toContain("root:");
      for (const name of ["root/etc/passwd", "cwd/package.json", `fd/${top}/f`]) {
        expect(reading(self, name)).toBe("ELOOP");
      }
      expect(reading(self, "exe")).toBe("EOPNOTSUPP");
    } finally {
      power.close(slash);
      power.close(self);
    }
  });
});

describe("a race", () => {
  const ATTEMPTS = 20_000;

  test(`of a directory with a symbolic link to outside is never lost in ${ATTEMPTS} reads`, async () => {
    fs.symlinkSync(path.join(base, "outside"), path.join(root, "l"));
    const swapper = await swapping(path.join(root, "d"), path.join(root, "l"));
    const target = path.join(root, "d", "f");
    // The control: what is resolved and compared first, and opened then, is something else by then.
    const checked = () => fs.realpathSync(target).startsWith(`${root}/`) && naively(target) === "outside";
    expect(happens(checked)).toBe(true);

    const before = descriptors();
    const seen = tally(ATTEMPTS, () => reading(top, "d/f"));
    expect(seen.get("outside")).toBeUndefined();
    expect([...seen.keys()].sort()).toEqual(["ELOOP", "inside"]); // both were met
    expect(descriptors()).toBe(before);
    await ended(swapper);
  }, 60_000);

  test.each(["symbolic link", "fifo"])(
    `of a file with a %s is never lost in ${ATTEMPTS} opens`,
    async (what) => {
      const [target, other] = [path.join(root, "f"), path.join(root, "other")];
      if (what === "fifo") execFileSync("mkfifo", [other]);
      else fs.symlinkSync("../secret", other);
      const swapper = await swapping(target, other);
      // The control: what was looked at first is something else when it is opened.
      const looked = () => fs.lstatSync(target).isFile();
      const naive = () => {
        if (what !== "fifo") return naively(target) === "outside";
        const fd = fs.openSync(target, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
        const seen = fs.fstatSync(fd).isFIFO();
        fs.closeSync(fd);
        return seen;
      };
      expect(happens(() => looked() && naive())).toBe(true);

      let append = false;
      const seen = tally(ATTEMPTS, () => {
        append = !append;
        if (!append) return reading(top, "f");
        return outcome(() => {
          const fd = power.openFile(top, "f", "append");
          try {
            return power.stat(fd).type;
          } finally {
            power.close(fd);
          }
        });
      });
      // ELOOP, and ENXIO for a fifo that nobody reads: exchanged between the look and the open.
      const refused = ["EOPNOTSUPP", "ELOOP", "ENXIO"];
      expect([...seen.keys()].filter((one) => !refused.includes(one)).sort()).toEqual(["file", "inside"]);
      expect(seen.get("EOPNOTSUPP")).toBeGreaterThan(0);
      await ended(swapper);
    },
    60_000,
  );

  test(`leaves nothing outside in ${ATTEMPTS} makings, renamings and removals`, async () => {
    const outside = path.join(base, "outside");
    const target = path.join(root, "d");
    fs.symlinkSync(outside, path.join(root, "l"));
    const swapper = await swapping(target, path.join(root, "l"));
    const naive = () => {
      if (fs.realpathSync(target).startsWith(`${root}/`)) fs.writeFileSync(path.join(target, "n"), "");
      return fs.existsSync(path.join(outside, "n"));
    };
    expect(happens(naive)).toBe(true);
    fs.rmSync(path.join(outside, "n"));

    const seen = tally(ATTEMPTS / 5, () =>
      outcome(() => {
        const dir = power.openDirectory(top, "d");
        try {
          power.close(power.createFile(dir, "a"));
          power.makeDirectory(dir, "b");
          power.rename(dir, "a", dir, "c", false);
          power.removeFile(dir, "c");
          power.removeDirectory(dir, "b");
          return "done";
        } finally {
          power.close(dir);
        }
      }),
    );
    expect([...seen.keys()].sort()).toEqual(["ELOOP", "done"]);

    const files = filesWith(power)({ root, mode: "rw" });
    try {
      const call = (method: string, ...args: unknown[]) => callOn(files, method, args).then(() => "done");
      for (let i = 0; i < 100; i++) {
        await Promise.allSettled([
          call("write", "d/a", "x"),
          call("append", "d/f", "x"),
          call("append", "d/b", "x"),
          call("mkdir", "d/c/e", { recursive: true }),
          call("rename", "d/a", "d/g"),
          call("rename", "f", "d/f2"),
          call("rename", "d/f2", "f"),
          call("remove", "d/g"),
          call("remove", "d/f"),
        ]);
      }
      await ended(swapper);
      if (fs.lstatSync(target).isSymbolicLink()) {
        fs.rmSync(target);
        fs.renameSync(path.join(root, "l"), target);
      }
      expect((await callOn(files, "list", ["d"])) as unknown[]).not.toEqual([]); // it did act
    } finally {
      files.close();
    }
    expect(fs.readdirSync(outside)).toEqual(["f"]);
    expect(fs.readFileSync(path.join(outside, "f"), "utf8")).toBe("outside");
  }, 60_000);

  test(`of a directory that leaves the root while it is walked is never lost in ${ATTEMPTS} reads`, async () => {
    // From base/root/d/y two steps up is the root; from base/outside/y it is base, where another f is.
    for (const dir of [path.join(root, "d/y"), path.join(base, "outside/y")]) fs.mkdirSync(dir);
    fs.writeFileSync(path.join(base, "f"), "outside");
    const walk = `d/y${"/../y".repeat(100)}/../../f`; // long, for the control to be met on the way
    const swapper = await swapping(path.join(root, "d/y"), path.join(base, "outside/y"));
    expect(happens(() => naively(`${root}/${walk}`) === "outside")).toBe(true);
    const seen = tally(ATTEMPTS, () => reading(top, walk));
    expect(seen.get("inside")).toBeGreaterThan(0);
    // In a short walk the kernel is rarely unsure, and asked again it is sure: man 2 openat2 EAGAIN.
    expect([...tally(ATTEMPTS, () => reading(top, "d/y/../../f")).keys()]).toEqual(["inside"]);
    expect([...seen.keys()].filter((one) => !["inside", "EAGAIN", "EXDEV"].includes(one))).toEqual([]);
    await ended(swapper);
  }, 60_000);
});

test("a directory that was opened goes with its descriptor, and what is above it stays out of reach", () => {
  const dir = power.openDirectory(top, "d");
  fs.renameSync(path.join(root, "d"), path.join(base, "outside", "d"));
  expect(reading(dir, "f")).toBe("inside");
  expect(reading(dir, "../f")).toBe("EXDEV");
  expect(reading(top, "d/f")).toBe("ENOENT");
  fs.rmSync(path.join(base, "outside", "d"), { recursive: true });
  expect(reading(dir, "f")).toBe("ENOENT");
  expect(outcome(() => power.createFile(dir, "new"))).toBe("ENOENT");
  power.close(dir);
});

describe("a reader that reads all the time", () => {
  const SIZE = 1 << 20;
  /** Says for each complete reading what was in it: one letter throughout and of the full size, or "torn". */
  const reader = () =>
    started(`const file = ${JSON.stringify(path.join(root, "whole"))};
      const whole = [97, 98].map((letter) => Buffer.alloc(${SIZE}, letter));
      while (wanted()) {
        const seen = fs.readFileSync(file);
        fs.writeSync(1, whole.some((one) => one.equals(seen)) ? "." : "!");
      }`);
  const letters = (i: number) => (i % 2 === 0 ? "a" : "b").repeat(SIZE);

  async function watched(write: (i: number) => Promise<unknown>, until: (said: string) => boolean) {
    fs.writeFileSync(path.join(root, "whole"), letters(0));
    const child = await reader();
    let said = "";
    child.stdout?.on("data", (data: Buffer) => (said += data.toString()));
    for (let i = 0; i < 2000 && !until(said); i++) await write(i);
    await ended(child);
    return said;
  }

  test("sees the old or the new content, never a part of one", async () => {
    const torn = await watched(
      (i) => fs.promises.writeFile(path.join(root, "whole"), letters(i)),
      (said) => said.includes("!"),
    );
    expect(torn).toContain("!"); // the control: written in place it is seen in parts

    const files = filesWith(power)({ root, mode: "rw" });
    const whole = await watched(
      (i) => callOn(files, "write", ["whole", letters(i)]),
      (said) => said.length >= 200,
    );
    files.close();
    expect(whole.length).toBeGreaterThanOrEqual(200);
    expect(whole).toMatch(/^\.+$/);
    expect(fs.readdirSync(root).sort()).toEqual(["d", "f", "whole"]);
  }, 60_000);
});

/** Runs a module's source in a process of its own; what it wrote. */
function said(source: string): string {
  return execFileSync(process.execPath, ["--input-type=module", "-e", source], { encoding: "utf8" });
}

describe("an ordinary user", () => {
  test("has the same confinement, and the kernel's permissions besides", ({ skip }) => {
    if (process.getuid?.() !== 0) return skip("the other tests have run as one");
    fs.writeFileSync(path.join(root, "closed"), "closed", { mode: 0o600 });
    fs.mkdirSync(path.join(root, "own"));
    fs.chownSync(path.join(root, "own"), 12_345, 12_345);
    fs.chmodSync(base, 0o755);
    fs.symlinkSync(base, path.join(root, "up"));
    expect(reading(top, "closed")).toBe("closed"); // the control: root may
    const answers = said(`
      import { beneath } from ${dist("osjail/beneath")};
      import { filesWith } from ${dist("hostapi/files")};
      import { randomUUID } from "node:crypto";
      process.setgroups([]);
      process.setgid(12345);
      process.setuid(12345);
      const files = filesWith(beneath())({ root: ${JSON.stringify(root)}, mode: "rw" });
      const call = { label: "files", maxAnswerBytes: 1000, signal: new AbortController().signal,
        charge() {}, note() {}, admit() {} };
      const tried = async (method, ...args) => {
        try {
          return await files.invoke(method, files.parse("files", method, args), { ...call, method });
        } catch (error) { return error.code; }
      };
      console.log(JSON.stringify([
        process.getuid(),
        await tried("readText", "f"),
        await tried("readText", "closed"),
        await tried("readText", "up/secret"),
        await tried("write", "new", "x"),
        await tried("write", "own/new", "x") ?? "done",
        await tried("append", "own/new", "y") ?? "done",
        await tried("rename", "own/new", "own/newer") ?? "done",
        await tried("readText", "own/newer"),
        (await tried("list", "own")).length,
        await tried("remove", "own/newer") ?? "done",
      ]));`);
    expect(JSON.parse(answers)).toEqual([
      12_345,
      "inside",
      "denied",
      "denied",
      "denied",
      "done",
      "done",
      "done",
      "xy",
      1,
      "done",
    ]);
  });
});

describe("where openat2 is missing", () => {
  /** A filter as a container's, that answers openat2 with an errno. */
  const filtered = (errno: number) => `
    import { AT, O, PR, SECCOMP, SECCOMP_DATA } from ${dist("osjail/abi/linux")};
    import { answer, assemble, encode, label, load, test } from ${dist("osjail/bpf")};
    import { Memory, sys, syscallNumber } from ${dist("osjail/libc.ffi")};
    import { beneath } from ${dist("osjail/beneath")};
    const rows = assemble([
      load(SECCOMP_DATA.nr),
      test("EQUAL", syscallNumber("openat2"), { yes: "refuse" }),
      answer(SECCOMP.RET_ALLOW),
      label("refuse"),
      answer(SECCOMP.RET_ERRNO | ${errno}),
    ]);
    const before = beneath(); // the control: it is there
    const root = before.openRoot("/");
    const instructions = new Memory(encode(rows));
    const program = new Memory(SECCOMP.FPROG_SIZE);
    program.bytes.writeUInt16LE(rows.length, 0);
    program.bytes.writeBigUInt64LE(BigInt(instructions.address), SECCOMP.FPROG_FILTER_AT);
    sys("prctl", PR.SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    sys("seccomp", SECCOMP.SET_MODE_FILTER, 0, program);
    const tried = (act) => { try { act(); return "ok"; } catch ({ name, code, message }) { return { name, code, message }; } };
    console.log(JSON.stringify([tried(() => beneath()), tried(() => before.openFile(root, "etc/passwd", "read"))]));`;

  test.each([
    ["ENOSYS", 38],
    ["EPERM", 1],
  ])("nothing is opened in another way, and the error says what to do (%s)", (name, errno) => {
    const [made, opened] = JSON.parse(said(filtered(errno))) as [Error, Error];
    expect(made).toEqual({
      name: "JailError",
      code: "confined-files",
      message: `files cannot be confined to a directory: openat2: ${name}`,
    });
    expect(opened).toMatchObject({ name: "KernelError", code: name });
  });
});
