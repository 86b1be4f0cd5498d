/** What only the store in a file can do, and what only it can suffer. The suite of all stores is kv.test.ts. */
import { spawn } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath, pathToFileURL } from "node:url";
import { describe, expect, test } from "vitest";
import { kv } from "#hostapi/kv";
import { STORE_ERRORS, StoreError, sqliteStore } from "#hostapi/kv-sqlite";
import { callOn } from "../capability.js";
import { noSqlite, temporaryDirectory } from "../kv.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const dir = temporaryDirectory();
let files = 0;
const newFile = () => path.join(dir, `${files++}.db`);

function storeError(act: () => unknown): StoreError {
  try {
    act();
  } catch (error) {
    if (error instanceof Error && error.name === "StoreError") return error as StoreError;
    throw error;
  }
  throw new Error("it was opened");
}

const PREAMBLE = `
  import { createInterface } from "node:readline";
  import { kv } from "#hostapi/kv";
  import { sqliteStore } from "#hostapi/kv-sqlite";
  // Calls without a broker and with idle hooks: a program of its own cannot load the tests' TypeScript.
  const hooks = { label: "kv", admit() {}, charge() {}, note() {}, signal: new AbortController().signal };
  const on = (target) => async (method, ...args) =>
    target.invoke(method, target.parse("kv", method, args), { ...hooks, method });
`;

interface Child {
  lines: AsyncIterator<string>;
  say(line: string): void;
  kill(): void;
  ended: Promise<{ code: number | null; signal: string | null; stderr: string }>;
}

/** Another process with the file open. `line()` in it is the next line that it is told. */
function child(file: string, program: string): Child {
  const source = `${PREAMBLE}
    const told = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
    const line = async () => (await told.next()).value;
    const file = process.argv[1];
    ${program}
    process.stdin.destroy();`;
  const started = spawn(process.execPath, ["--input-type=module", "-e", source, file], {
    cwd: root,
    stdio: ["pipe", "pipe", "pipe"],
  });
  let stderr = "";
  started.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  return {
    lines: createInterface({ input: started.stdout })[Symbol.asyncIterator](),
    say: (text) => void started.stdin.write(`${text}\n`),
    kill: () => void started.kill("SIGKILL"),
    ended: new Promise((resolve) => started.on("close", (code, signal) => resolve({ code, signal, stderr }))),
  };
}

/** Both at once: each says "ready", is told "go", and answers with one line of JSON. */
async function race<T>(file: string, program: string): Promise<T[]> {
  const children = [0, 1].map((id) =>
    child(
      file,
      `const id = ${id};
       const store = sqliteStore(file, { busyTimeoutMs: 20_000 });
       console.log("ready");
       await line();
       ${program}
       store.close();`,
    ),
  );
  for (const { lines, ended } of children) {
    const first = await lines.next();
    if (first.value !== "ready") throw new Error((await ended).stderr);
  }
  for (const { say } of children) say("go");
  const answers = await Promise.all(
    children.map(async ({ lines, ended }) => {
      const { value } = await lines.next();
      const { code, stderr } = await ended;
      if (code !== 0) throw new Error(stderr);
      return JSON.parse(value as string) as T;
    }),
  );
  return answers;
}

describe("sqliteStore without its driver", () => {
  /** The store's own files, in a directory where better-sqlite3 is what the test says. */
  async function loadedBeside(driver: Record<string, string> | undefined): Promise<typeof sqliteStore> {
    const home = fs.mkdtempSync(path.join(dir, "beside-"));
    fs.writeFileSync(path.join(home, "package.json"), '{"type":"module"}');
    for (const name of ["kv-sqlite.js", "kv-store.js", "options.js", "sqlite.js"]) {
      fs.copyFileSync(path.join(root, "dist/hostapi", name), path.join(home, name));
    }
    for (const [name, text] of Object.entries(driver ?? {})) {
      const file = path.join(home, "node_modules/better-sqlite3", name);
      fs.mkdirSync(path.dirname(file), { recursive: true });
      fs.writeFileSync(file, text);
    }
    const loaded = (await import(pathToFileURL(path.join(home, "kv-sqlite.js")).href)) as {
      sqliteStore: typeof sqliteStore;
    };
    return loaded.sqliteStore;
  }

  test("loads, and says when asked for a store what to install", async () => {
    const open = await loadedBeside(undefined);
    const error = storeError(() => open(newFile()));
    expect(error.code).toBe("driver-missing");
    expect(error.message).toContain("better-sqlite3, which is not installed");
    expect(error.remedy).toContain("npm install better-sqlite3");
  });

  test("says that one which was built for another Node must be rebuilt", async () => {
    const fail = `throw Object.assign(new Error("was compiled against another"), { code: "ERR_DLOPEN_FAILED" })`;
    for (const index of [fail, `module.exports = class { constructor() { ${fail} } }`]) {
      const open = await loadedBeside({ "package.json": '{"version":"12.11.1"}', "index.js": index });
      expect(storeError(() => open(newFile())).code).toBe("driver-unusable");
    }
  });

  test.skipIf(Number(process.versions.node.split(".")[0]) >= 22)(
    "does not load one that would crash this Node",
    async () => {
      const index = `throw new Error("it was loaded")`;
      const open = await loadedBeside({ "package.json": '{"version":"13.2.0"}', "index.js": index });
      const error = storeError(() => open(newFile()));
      expect(error.code).toBe("driver-unusable");
      expect(error.message).not.toContain("it was loaded");
      expect(error.remedy).toContain("better-sqlite3@12.11.1");
    },
  );

  test("every code has a remedy that says what to do", () => {
    expect(Object.keys(STORE_ERRORS).length).toBeGreaterThan(2);
    for (const remedy of Object.values(STORE_ERRORS)) expect(remedy).toMatch(/\b(?:install|run|check)\b/i);
  });

  test("bad options are named before the driver is looked for", async () => {
    const open = await loadedBeside(undefined);
    for (const file of ["", ":memory:", " x.db", "x.db ", "a\0b", 7, undefined]) {
      expect(() => open(file as string)).toThrow(TypeError);
    }
    for (const busyTimeoutMs of [-1, 1.5, 1e6, "5"]) {
      expect(() => open(newFile(), { busyTimeoutMs: busyTimeoutMs as number })).toThrow(/busyTimeoutMs/);
    }
    for (const options of [{ timeout: 5 }, 5, null]) {
      expect(() => open(newFile(), options as object)).toThrow(/^sqliteStore: .*busyTimeoutMs/);
    }
  });
});

describe.skipIf(noSqlite !== undefined)(
  `the store in a file${noSqlite === undefined ? "" : ` (skipped: ${noSqlite})`}`,
  () => {
    interface Raw {
      exec(sql: string): void;
      close(): void;
    }
    /** The driver itself, for what the store would not do. */
    const raw = (file: string): Raw => {
      const Driver = createRequire(import.meta.url)("better-sqlite3") as new (file: string) => Raw;
      return new Driver(file);
    };

    const unavailable = async (answer: Promise<unknown>, file: string) => {
      await expect(answer).rejects.toMatchObject({ name: "CapabilityError", code: "unavailable" });
      await answer.catch((error: Error) => {
        expect(error.message).not.toContain(path.basename(file));
        expect(error.message).not.toMatch(/sqlite|database|\//i);
      });
    };

    test("keeps what was written when it is closed and opened again", async () => {
      const file = newFile();
      const first = sqliteStore(file);
      const version = await callOn(kv({ store: first }), "set", ["k", new Map([["a", new Uint8Array([7])]])]);
      first.close();
      first.close();
      const second = sqliteStore(file);
      expect(await callOn(kv({ store: second }), "entry", ["k"])).toEqual({ value: new Map([["a", new Uint8Array([7])]]), version }); // prettier-ignore
      expect(await second.usage("default", 0)).toMatchObject({ keys: 1 });
      second.close();
    });

    test("is its owner's alone, the journal too", async () => {
      const file = newFile();
      const store = sqliteStore(file);
      await callOn(kv({ store }), "set", ["k", 1]);
      for (const name of [file, `${file}-wal`, `${file}-shm`]) {
        expect((fs.statSync(name).mode & 0o777).toString(8)).toBe("600");
      }
      store.close();
      expect(() => sqliteStore(file).close()).not.toThrow();
    });

    test("a file that others can open is refused, and left as it was", () => {
      const file = newFile();
      sqliteStore(file).close();
      fs.chmodSync(file, 0o640);
      expect(storeError(() => sqliteStore(file)).message).toContain("other users can open it");
      expect(fs.statSync(file).mode & 0o777).toBe(0o640);
    });

    test("a file of somebody else's is refused, and left as it was", () => {
      const [garbage, foreign, later] = [newFile(), newFile(), newFile()];
      fs.writeFileSync(garbage, "no database at all, ".repeat(500), { mode: 0o600 });
      for (const [file, sql] of [
        [foreign, "CREATE TABLE theirs (x)"],
        [later, "PRAGMA user_version = 99"],
      ]) {
        // prettier-ignore
        fs.writeFileSync(file, "", { mode: 0o600 });
        const db = raw(file);
        db.exec(sql);
        db.close();
      }
      for (const file of [garbage, foreign, later]) {
        const before = fs.readFileSync(file);
        expect(storeError(() => sqliteStore(file)).code).toBe("store-unusable");
        expect(fs.readFileSync(file).equals(before)).toBe(true);
      }
    });

    test("a directory that is not there, or a directory, is an error with its remedy", () => {
      for (const file of [path.join(dir, "nowhere/x.db"), dir]) {
        const error = storeError(() => sqliteStore(file));
        expect(error.code).toBe("store-unusable");
        expect(error.remedy).toContain("directory exists");
      }
    });

    test("a store that is closed is unavailable", async () => {
      const file = newFile();
      const store = sqliteStore(file);
      const target = kv({ store });
      await callOn(target, "set", ["k", 1]);
      store.close();
      await unavailable(callOn(target, "get", ["k"]), file);
      await unavailable(callOn(target, "set", ["k", 1]), file);
    });

    test("a file that another writer holds is unavailable to writers, and still read", async () => {
      const file = newFile();
      const store = sqliteStore(file, { busyTimeoutMs: 0 });
      const target = kv({ store });
      await callOn(target, "set", ["k", 1]);
      const holder = raw(file);
      holder.exec("BEGIN IMMEDIATE");
      await unavailable(callOn(target, "set", ["k", 2]), file);
      await unavailable(callOn(target, "delete", ["k"]), file);
      expect(await callOn(target, "get", ["k"])).toBe(1);
      holder.exec("ROLLBACK");
      holder.close();
      await callOn(target, "set", ["k", 2]);
      store.close();
    });

    test("a file whose pages are damaged is unavailable", async () => {
      const file = newFile();
      const store = sqliteStore(file);
      for (let i = 0; i < 200; i++) await callOn(kv({ store }), "set", [`k${i}`, "x".repeat(200)]);
      store.close();
      const pages = fs.openSync(file, "r+");
      fs.writeSync(pages, Buffer.alloc(fs.statSync(file).size - 4096, 0xff), 0, undefined, 4096); // all but the schema's
      fs.closeSync(pages);
      const damaged = sqliteStore(file);
      const target = kv({ store: damaged });
      for (const [method, ...args] of [
        ["get", "k7"],
        ["set", "k7", 1],
        ["list"],
        ["delete", "k7"],
        ["increment", "n"],
      ]) {
        // prettier-ignore
        await unavailable(callOn(target, method as string, args), file);
      }
      damaged.close();
    });

    test("a row that somebody else wrote builds nothing", async () => {
      const file = newFile();
      const store = sqliteStore(file);
      const db = raw(file);
      const row = (text: string) => db.exec(`INSERT OR REPLACE INTO entries VALUES ('default', 'k', '${text}', x'', 'v', NULL, 1)`); // prettier-ignore
      for (const text of ['{"__proto__":{"polluted":1}}', '["o","__proto__",1]', "nonsense"]) {
        row(text);
        await unavailable(callOn(kv({ store }), "get", ["k"]), file);
      }
      row("7"); // the control: a good row is read
      expect(await callOn(kv({ store }), "get", ["k"])).toBe(7);
      db.close();
      store.close();
    });

    test("what a process was answered is there after kill -9, and the count is right", async () => {
      const file = newFile();
      const writer = child(
        file,
        `const set = on(kv({ store: sqliteStore(file) }));
         for (let i = 0; ; i++) { await set("set", "k" + i, { i, bytes: new Uint8Array(i % 500) }); console.log(i); }`,
      );
      let last = -1;
      while (last < 200) {
        const { value, done } = await writer.lines.next();
        if (done === true) throw new Error((await writer.ended).stderr);
        last = Number(value);
      }
      writer.kill();
      for (;;) {
        const { value, done } = await writer.lines.next();
        if (done === true) break;
        last = Number(value);
      }
      expect((await writer.ended).signal).toBe("SIGKILL");

      const store = sqliteStore(file);
      const target = kv({ store });
      for (let i = 0; i <= last; i++) expect(await callOn(target, "get", [`k${i}`])).toMatchObject({ i });
      const { keys, bytes } = await store.usage("default", 0);
      expect([last + 1, last + 2]).toContain(keys); // the one that was not yet answered may be there
      for (const key of await store.list("default", { prefix: "", after: undefined, limit: 1e6 }, 0)) {
        await store.delete("default", key, 0);
      }
      expect(bytes).toBeGreaterThan(10 * 200);
      expect(await store.usage("default", 0)).toEqual({ keys: 0, bytes: 0 });
      store.close();
    });

    test("of two processes that set one version exactly one wins, every time", async () => {
      const file = newFile();
      const won = await race<number[]>(
        file,
        `const call = on(kv({ store }));
         const won = [];
         for (let i = 0; i < 200; i++) {
           try { await call("set", "round" + i, id, { ifVersion: null }); won.push(i); }
           catch (error) { if (error.code !== "conflict") throw error; }
         }
         console.log(JSON.stringify(won));`,
      );
      expect(won.flat().toSorted((a, b) => a - b)).toEqual(Array.from({ length: 200 }, (_, i) => i));
      const store = sqliteStore(file);
      for (const [id, rounds] of won.entries()) {
        for (const round of rounds) expect(await callOn(kv({ store }), "get", [`round${round}`])).toBe(id);
      }
      store.close();
    });

    test("increments of two processes add up", async () => {
      const file = newFile();
      await race(
        file,
        `const call = on(kv({ store }));
         for (let i = 0; i < 50; i++) await Promise.all([call("increment", "n"), call("increment", "n", 2)]);
         console.log("0");`,
      );
      const store = sqliteStore(file);
      expect(await callOn(kv({ store }), "get", ["n"])).toBe(2 * 50 * 3);
      store.close();
    });

    test("two processes together do not get past one quota", async () => {
      const file = newFile();
      const kept = await race<number>(
        file,
        `const call = on(kv({ store, quotaBytes: 60 * 100 }));
         let kept = 0;
         for (let i = 0; i < 60; i++) {
           try { await call("set", id + "." + (100 + i), "x".repeat(93)); kept++; }
           catch (error) { if (error.code !== "quota") throw error; }
         }
         console.log(kept);`,
      );
      expect(kept[0] + kept[1]).toBe(60);
      const store = sqliteStore(file);
      expect(await store.usage("default", 0)).toEqual({ keys: 60, bytes: 60 * 100 });
      store.close();
    });

    test("processes that make the file at the same moment all get the same store", async () => {
      const file = newFile();
      const children = [0, 1, 2, 3].map((id) =>
        child(
          file,
          `console.log("ready");
           await line();
           const store = sqliteStore(file, { busyTimeoutMs: 20_000 });
           await on(kv({ store }))("set", "k${id}", ${id});
           store.close();`,
        ),
      );
      for (const { lines } of children) expect((await lines.next()).value).toBe("ready");
      for (const { say } of children) say("go");
      for (const { ended } of children) expect(await ended).toMatchObject({ code: 0, stderr: "" });
      const store = sqliteStore(file);
      expect(await store.usage("default", 0)).toEqual({ keys: 4, bytes: 4 * 3 });
      store.close();
    });
  },
);
