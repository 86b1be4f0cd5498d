import { describe, expect, test } from "vitest";
import {
  CapabilityError,
  asGuestFunction,
  capability,
  caretaker,
  type Capability,
  type GuestFunction,
} from "#hostapi/capability";
import { kv } from "#hostapi/kv";
import { compareKeys, entryBytes, memoryStore, type KvStore } from "#hostapi/kv-store";
import { callOn, fakeRun, type Told } from "../capability.js";
import { noSqlite, sqliteIsOwed, storeMakers } from "../kv.js";

async function refusal(answer: Promise<unknown>): Promise<CapabilityError> {
  const error = await answer.then(
    (value) => new Error(`it was answered: ${String(value)}`),
    (reason: unknown) => reason,
  );
  if (error instanceof CapabilityError) return error;
  throw error;
}
const codeOf = async (answer: Promise<unknown>) => (await refusal(answer)).code;

/** A capability's methods as a guest calls them. */
const guestOf =
  (target: Capability, options: Parameters<typeof callOn>[3] = {}) =>
  (method: string, ...args: unknown[]) =>
    callOn(target, method, args, options);

const clockAt = (start: number) => {
  const clock = { ms: start, now: () => clock.ms };
  return clock;
};

test("the suite has its SQLite where it was promised one", () => {
  if (sqliteIsOwed) expect(noSqlite).toBeUndefined();
});

for (const { name, skip, make } of storeMakers()) {
  describe.skipIf(skip)(`kv ${name}`, () => {
    describe("values", () => {
      test.each([
        ["null", null],
        ["undefined", undefined],
        ["a text with quotes, NUL and a lone surrogate", 'a"b\0c\u{1f6a2}\ud800'],
        ["numbers", [0, -0, 1.5, NaN, Infinity, -Infinity, Number.MAX_SAFE_INTEGER]],
        ["a bigint", -(10n ** 40n)],
        ["a Date", new Date(12_345)],
        ["a Map and a Set", new Map<unknown, unknown>([["a", new Set([1, "b"])], [2, {}]])], // prettier-ignore
        ["typed arrays, one after another", { a: new Uint8Array([1, 2, 3]), b: new Float64Array([0.5]), c: new Uint8Array(0) }], // prettier-ignore
        ["a nested object", { a: { b: [{ c: true }] }, toString: "mine" }],
      ])("come back as they were: %s", async (_what, value) => {
        const guest = guestOf(kv({ store: make() }));
        expect(await guest("set", "k", value)).toMatch(/^[\w-]{16}$/);
        expect(await guest("get", "k")).toStrictEqual(value);
        expect(await guest("entry", "k")).toStrictEqual({ value, version: expect.any(String) });
      });

      test("an Error comes back with name and message and without the stack", async () => {
        const guest = guestOf(kv({ store: make() }));
        await guest("set", "k", new RangeError("too far"));
        const back = (await guest("get", "k")) as Error;
        expect([back.name, back.message, back.stack]).toEqual(["RangeError", "too far", undefined]);
      });

      test("what was changed after it was stored or read is not changed in the store", async () => {
        const guest = guestOf(kv({ store: make() }));
        const bytes = new Uint8Array([1, 2, 3]);
        await guest("set", "k", bytes);
        bytes[0] = 9;
        const read = (await guest("get", "k")) as Uint8Array;
        read[1] = 9;
        expect(await guest("get", "k")).toEqual(new Uint8Array([1, 2, 3]));
      });

      test("functions, capabilities, promises and hostile keys are refused, and the place is named", async () => {
        const guest = guestOf(kv({ store: make() }));
        const f = asGuestFunction(Object.assign(async () => 1, { keep: () => f, release() {} }) as GuestFunction); // prettier-ignore
        for (const bad of [
          f,
          Symbol.iterator,
          Promise.resolve(1),
          kv(),
          JSON.parse('{"__proto__":{"x":1}}'),
        ]) {
          const error = await refusal(guest("set", "k", { deep: [bad] }));
          expect(error.code).toBe("bad-argument");
          expect(error.message).toMatch(/^kv\.set: value\.deep\[0\]/);
        }
        expect(await guest("has", "k")).toBe(false);
      });

      test("one that is nested too deep is refused", async () => {
        const guest = guestOf(kv({ store: make() }));
        let deep: unknown = 1;
        for (let i = 0; i < 65; i++) deep = [deep];
        expect(await codeOf(guest("set", "k", deep))).toBe("bad-argument");
        await guest("set", "k", (deep as unknown[])[0]);
      });
    });

    describe("versions", () => {
      test("a write over the version that was read succeeds, and over a stale one is a conflict", async () => {
        const guest = guestOf(kv({ store: make() }));
        const first = await guest("set", "k", 1);
        const second = await guest("set", "k", 2, { ifVersion: first });
        expect(second).not.toBe(first);
        expect(await codeOf(guest("set", "k", 3, { ifVersion: first }))).toBe("conflict");
        expect(await guest("entry", "k")).toEqual({ value: 2, version: second });
      });

      test("null writes only where nothing is", async () => {
        const guest = guestOf(kv({ store: make() }));
        await guest("set", "k", 1, { ifVersion: null });
        expect(await codeOf(guest("set", "k", 2, { ifVersion: null }))).toBe("conflict");
        expect(await guest("get", "k")).toBe(1);
      });

      test("a key that was removed and written again has none of its old versions", async () => {
        const guest = guestOf(kv({ store: make() }));
        const first = await guest("set", "k", 1);
        await guest("delete", "k");
        expect(await codeOf(guest("set", "k", 2, { ifVersion: first }))).toBe("conflict");
        await guest("set", "k", 1);
        expect(await codeOf(guest("set", "k", 2, { ifVersion: first }))).toBe("conflict");
      });

      test("of many writers at once with one version exactly one wins", async () => {
        const guest = guestOf(kv({ store: make() }));
        const version = await guest("set", "k", "old");
        const writers = Array.from({ length: 50 }, (_, i) => guest("set", "k", i, { ifVersion: version }));
        const results = await Promise.allSettled(writers);
        expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      });
    });

    describe("delete and has", () => {
      test("say whether there was something", async () => {
        const guest = guestOf(kv({ store: make() }));
        expect([await guest("has", "k"), await guest("delete", "k")]).toEqual([false, false]);
        await guest("set", "k", undefined);
        expect([await guest("has", "k"), await guest("delete", "k")]).toEqual([true, true]);
        expect([await guest("has", "k"), await guest("get", "k"), await guest("entry", "k")]).toEqual([false, undefined, undefined]); // prettier-ignore
      });
    });

    describe("list", () => {
      const filled = async (keys: string[]) => {
        const guest = guestOf(kv({ store: make() }));
        for (const key of keys) await guest("set", key, 1);
        return guest;
      };

      test("gives keys by code points, whatever the order of writing", async () => {
        const keys = ["b", "a", "\u{10000}", "\uffee", "é", "e\u0301", "A", "aa", "a b", "10", "9"];
        const guest = await filled(keys);
        const byBytes = keys.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
        expect(await guest("list")).toEqual({ keys: byBytes });
        expect(byBytes.indexOf("\uffee")).toBeLessThan(byBytes.indexOf("\u{10000}"));
      });

      test("gives those with a prefix, page by page, each once", async () => {
        const guest = await filled(["a", "b", "b/1", "b/2", "b/3", "b0", "c"]);
        expect(await guest("list", { prefix: "b/" })).toEqual({ keys: ["b/1", "b/2", "b/3"] });
        const first = await guest("list", { prefix: "b", limit: 2 });
        expect(first).toEqual({ keys: ["b", "b/1"], next: "b/1" });
        expect(await guest("list", { prefix: "b", limit: 2, after: "b/1" })).toEqual({ keys: ["b/2", "b/3"], next: "b/3" }); // prettier-ignore
        expect(await guest("list", { prefix: "b", limit: 2, after: "b/3" })).toEqual({ keys: ["b0"] });
        expect(await guest("list", { prefix: "b", after: "a" })).toMatchObject({ keys: { length: 5 } });
        expect(await guest("list", { prefix: "b", after: "c" })).toEqual({ keys: [] });
        expect(await guest("list", { prefix: "x" })).toEqual({ keys: [] });
      });

      test("goes on behind a key that was removed meanwhile", async () => {
        const guest = await filled(["a", "b", "c"]);
        await guest("list", { limit: 2 });
        await guest("delete", "b");
        expect(await guest("list", { after: "b" })).toEqual({ keys: ["c"] });
      });

      test("takes a wildcard of the store's for what it is: a character", async () => {
        const guest = await filled(["a%", "a_", "ab", "a*", "%"]);
        expect(await guest("list", { prefix: "a%" })).toEqual({ keys: ["a%"] });
        expect(await guest("list", { prefix: "%" })).toEqual({ keys: ["%"] });
        expect(await guest("list", { prefix: "a*" })).toEqual({ keys: ["a*"] });
      });

      test("gives at most 1000 keys, 100 unless asked", async () => {
        const guest = await filled(Array.from({ length: 102 }, (_, i) => String(i).padStart(4, "0")));
        expect(await guest("list")).toMatchObject({ keys: { length: 100 }, next: "0099" });
        expect(await guest("list", { limit: 102 })).toMatchObject({ keys: { length: 102 } });
        for (const limit of [0, -1, 1001, 1.5, "5", NaN, Infinity]) {
          expect(await codeOf(guest("list", { limit }))).toBe("bad-argument");
        }
      });
    });

    describe("increment", () => {
      test("counts from nothing, by one or by more, down too", async () => {
        const guest = guestOf(kv({ store: make() }));
        expect(await guest("increment", "n")).toBe(1);
        expect(await guest("increment", "n", 41)).toBe(42);
        expect(await guest("increment", "n", -50)).toBe(-8);
        expect(await guest("get", "n")).toBe(-8);
      });

      test("loses nothing when many come at once, over two capabilities of one namespace", async () => {
        const store = make();
        const guests = [guestOf(kv({ store })), guestOf(kv({ store }))];
        const answers = await Promise.all(Array.from({ length: 100 }, (_, i) => guests[i % 2]("increment", "n"))); // prettier-ignore
        expect(new Set(answers).size).toBe(100);
        expect(await guests[0]("get", "n")).toBe(100);
      });

      test("refuses what is no whole number, and a sum that would be none", async () => {
        const guest = guestOf(kv({ store: make() }));
        for (const value of ["1", 1.5, 1n, null, undefined, NaN, [1]]) {
          await guest("set", "n", value);
          expect(await codeOf(guest("increment", "n"))).toBe("bad-argument");
        }
        await guest("set", "n", Number.MAX_SAFE_INTEGER);
        expect(await codeOf(guest("increment", "n"))).toBe("bad-argument");
        expect(await guest("increment", "n", -1)).toBe(Number.MAX_SAFE_INTEGER - 1);
        for (const by of [1.5, NaN, Infinity, "1", 1n, 2 ** 53]) {
          expect(await codeOf(guest("increment", "n", by))).toBe("bad-argument");
        }
      });

      test("one that fails does not hold up the next", async () => {
        const guest = guestOf(kv({ store: make() }));
        await guest("set", "n", "text");
        const failed = await Promise.all([1, 2, 3].map((by) => codeOf(guest("increment", "n", by))));
        expect(failed).toEqual(["bad-argument", "bad-argument", "bad-argument"]);
        await guest("delete", "n");
        expect(await guest("increment", "n")).toBe(1);
      });

      test("leaves the time of expiry as it was", async () => {
        const clock = clockAt(1000);
        const guest = guestOf(kv({ store: make(), now: clock.now }));
        await guest("set", "n", 1, { ttlMs: 100 });
        await guest("increment", "n");
        expect(await guest("entry", "n")).toMatchObject({ value: 2, expiresMs: 1100 });
        clock.ms = 1100;
        expect(await guest("increment", "n")).toBe(1);
        expect(await guest("entry", "n")).not.toHaveProperty("expiresMs");
      });
    });

    describe("expiry", () => {
      test("an entry is gone at its moment, for every method, and its bytes are free", async () => {
        const clock = clockAt(1_000_000);
        const store = make();
        const guest = guestOf(kv({ store, now: clock.now }));
        const version = await guest("set", "k", "value", { ttlMs: 500 });
        await guest("set", "stays", 1);
        expect(await guest("entry", "k")).toEqual({ value: "value", version, expiresMs: 1_000_500 });
        clock.ms += 499;
        expect(await guest("get", "k")).toBe("value");
        const before = await store.usage("default", clock.ms);
        clock.ms += 1;
        expect(await guest("get", "k")).toBeUndefined();
        expect(await guest("entry", "k")).toBeUndefined();
        expect(await guest("has", "k")).toBe(false);
        expect(await guest("list")).toEqual({ keys: ["stays"] });
        expect(await guest("delete", "k")).toBe(false);
        expect(await codeOf(guest("set", "k", 1, { ifVersion: version }))).toBe("conflict");
        expect(await store.usage("default", clock.ms)).toEqual({ keys: before.keys - 1, bytes: before.bytes - 1 - 7 }); // prettier-ignore
        await guest("set", "k", 2, { ifVersion: null });
        expect(await guest("get", "k")).toBe(2);
      });

      test("usage leaves out what has expired and nobody has touched", async () => {
        const clock = clockAt(0);
        const store = make();
        const guest = guestOf(kv({ store, now: clock.now }));
        for (let i = 0; i < 20; i++) await guest("set", `k${i}`, i, { ttlMs: i + 1 });
        clock.ms = 10;
        expect(await store.usage("default", clock.ms)).toEqual({ keys: 10, bytes: 10 * (3 + 2) });
        clock.ms = 20;
        expect(await store.usage("default", clock.ms)).toEqual({ keys: 0, bytes: 0 });
      });

      test("a write without one takes the old one away", async () => {
        const clock = clockAt(0);
        const guest = guestOf(kv({ store: make(), now: clock.now }));
        await guest("set", "k", 1, { ttlMs: 10 });
        await guest("set", "k", 2);
        clock.ms = 1e12;
        expect(await guest("get", "k")).toBe(2);
      });

      test("one that has expired makes room at once", async () => {
        const clock = clockAt(0);
        const guest = guestOf(kv({ store: make(), now: clock.now, maxKeys: 1 }));
        await guest("set", "a", 1, { ttlMs: 10 });
        expect(await codeOf(guest("set", "b", 1))).toBe("quota");
        clock.ms = 10;
        await guest("set", "b", 1);
      });

      test.each([0, -1, 1.5, NaN, Infinity, "10", 2 ** 53, 1e15])(
        "a ttlMs of %s is refused",
        async (ttlMs) => {
          expect(await codeOf(guestOf(kv({ store: make() }))("set", "k", 1, { ttlMs }))).toBe("bad-argument");
        },
      );
    });

    describe("quotas", () => {
      test("are exact to the byte: key and value in UTF-8, blobs too", async () => {
        const store = make();
        // "é" is 2 bytes; the text "ü" with its quotes 4; ["b","Uint8Array",5] 20 and its blob 5.
        const guest = guestOf(kv({ store, quotaBytes: 2 + 4 + 1 + 20 + 5 }));
        await guest("set", "é", "ü");
        expect(await codeOf(guest("set", "b", new Uint8Array(6)))).toBe("quota");
        await guest("set", "b", new Uint8Array(5));
        expect(await store.usage("default", 0)).toEqual({ keys: 2, bytes: 32 });
        expect(await codeOf(guest("set", "c", 1))).toBe("quota");
        await guest("delete", "é");
        expect(await store.usage("default", 0)).toEqual({ keys: 1, bytes: 26 });
        await guest("set", "c", 12_345);
        expect(await codeOf(guest("increment", "c", 1e5))).toBe("quota");
        expect(await guest("get", "c")).toBe(12_345);
      });

      test("hold against writers at once: what fits only one by one does not squeeze in together", async () => {
        const store = make();
        const guest = guestOf(kv({ store, quotaBytes: 5 * 102 }));
        const value = "x".repeat(98); // 2 + 98 + 2
        const writers = Array.from({ length: 40 }, (_, i) => guest("set", String(i + 10), value));
        const results = await Promise.allSettled(writers);
        expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(5);
        expect(await store.usage("default", 0)).toEqual({ keys: 5, bytes: 5 * 102 });
      });

      test("a failed write changes nothing, the old value included", async () => {
        const store = make();
        const guest = guestOf(kv({ store, quotaBytes: 20 }));
        const version = await guest("set", "k", "0123456789");
        expect(await codeOf(guest("set", "k", "x".repeat(30)))).toBe("quota");
        expect(await guest("entry", "k")).toEqual({ value: "0123456789", version });
        expect(await store.usage("default", 0)).toEqual({ keys: 1, bytes: 13 });
      });

      test("a store that is over a lowered quota can be made smaller but not larger", async () => {
        const store = make();
        await guestOf(kv({ store }))("set", "k", "x".repeat(100));
        const guest = guestOf(kv({ store, quotaBytes: 10 }));
        expect(await codeOf(guest("set", "k", "x".repeat(101)))).toBe("quota");
        await guest("set", "k", "x".repeat(50));
        expect(await store.usage("default", 0)).toEqual({ keys: 1, bytes: 53 });
      });

      test("count keys, and replacing one is no new key", async () => {
        const guest = guestOf(kv({ store: make(), maxKeys: 2 }));
        await guest("set", "a", 1);
        await guest("set", "b", 1);
        expect(await codeOf(guest("set", "c", 1))).toBe("quota");
        expect(await codeOf(guest("increment", "c"))).toBe("quota");
        await guest("set", "a", 2);
        await guest("delete", "b");
        await guest("set", "c", 1);
      });

      test("are of the namespace: another one is not affected", async () => {
        const store = make();
        await guestOf(kv({ store, namespace: "a", quotaBytes: 10 }))("set", "k", "1234567");
        const other = guestOf(kv({ store, namespace: "b", quotaBytes: 10 }));
        await other("set", "k", "1234567");
        expect(await codeOf(other("set", "l", 1))).toBe("quota");
      });

      test("a value is bounded in bytes, not in characters", async () => {
        const guest = guestOf(kv({ store: make(), maxValueBytes: 100 }));
        await guest("set", "k", "x".repeat(98));
        expect(await codeOf(guest("set", "k", "x".repeat(99)))).toBe("too-large");
        await guest("set", "k", "é".repeat(49));
        expect(await codeOf(guest("set", "k", "é".repeat(50)))).toBe("too-large");
        expect(await codeOf(guest("set", "k", new Uint8Array(100)))).toBe("too-large");
        expect(
          await codeOf(
            guest(
              "set",
              "k",
              Array.from({ length: 100_000 }, () => 0),
            ),
          ),
        ).toBe("too-large");
        expect(await guest("get", "k")).toBe("é".repeat(49));
      });
    });

    describe("keys", () => {
      test.each([
        ["empty", ""],
        ["of 513 bytes", "x".repeat(513)],
        ["of 514 bytes in 257 characters", "é".repeat(257)],
        ["of 16 million characters", "x".repeat(1 << 24)],
        ["with NUL", "a\0b"],
        ["with a line end", "a\nb"],
        ["with DEL", "a\x7f"],
        ["with a C1 control", "a\x9bb"],
        ["with a lone high surrogate", "a\ud800"],
        ["with a lone low surrogate", "\udc00a"],
        ["a number", 1],
        ["an array that reads as a text", ["k"]],
        ["an object with toString", { toString: () => "k" }],
        ["a String object", Object("k")],
        ["null", null],
        ["absent", undefined],
      ])("%s are refused by every method", async (_what, key) => {
        const guest = guestOf(kv({ store: make() }));
        for (const [method, ...rest] of [
          ["get"],
          ["has"],
          ["entry"],
          ["set", 1],
          ["delete"],
          ["increment"],
        ]) {
          const error = await refusal(guest(method as string, key, ...rest));
          expect(error.code).toBe("bad-argument");
          expect(error.message.length).toBeLessThan(200);
        }
        if (key !== "" && key !== undefined) {
          expect(await codeOf(guest("list", { prefix: key }))).toBe("bad-argument");
          expect(await codeOf(guest("list", { after: key }))).toBe("bad-argument");
        }
        expect(await guest("list")).toEqual({ keys: [] });
      });

      test.each(["__proto__", "constructor", "toString", "hasOwnProperty", "then", "x".repeat(512), "é".repeat(256), " ", "\u{1f6a2}", "'; DROP TABLE entries; --", "../../etc", "a\u202eb"])(
        "%j is a key like any other",
        async (key) => {
          const guest = guestOf(kv({ store: make() }));
          expect([await guest("get", key), await guest("has", key)]).toEqual([undefined, false]);
          await guest("set", key, { polluted: true });
          expect(await guest("get", key)).toEqual({ polluted: true });
          expect(await guest("list")).toEqual({ keys: [key] });
          expect(({} as Record<string, unknown>)["polluted"]).toBeUndefined();
        },
      ); // prettier-ignore

      test("that look alike are not one: no normal form, no case", async () => {
        const guest = guestOf(kv({ store: make() }));
        const alike = ["é", "e\u0301", "É", "K", "\u212a", "k", "ﬁ", "fi", "a", "a ", " a"];
        for (const key of alike) await guest("set", key, key);
        for (const key of alike) expect(await guest("get", key)).toBe(key);
        expect(await guest("list")).toMatchObject({ keys: { length: alike.length } });
      });
    });

    describe("namespaces", () => {
      test("do not see each other, whatever the separators in their names and keys", async () => {
        const store = make();
        const names = [
          "a",
          "a:b",
          "a/b",
          "a/",
          "__proto__",
          "constructor",
          "é",
          "e\u0301",
          "A",
          "a%",
          "*",
          "'",
        ];
        const keys = ["c", "b:c", ":b:c", "b/c", "/b/c", "__proto__", "é", "e\u0301"];
        for (const namespace of names) {
          for (const key of keys) await guestOf(kv({ store, namespace }))("set", key, [namespace, key]);
        }
        for (const namespace of names) {
          const guest = guestOf(kv({ store, namespace }));
          for (const key of keys) expect(await guest("get", key)).toEqual([namespace, key]);
          expect(await guest("list")).toEqual({ keys: keys.toSorted(compareKeys) });
        }
        await guestOf(kv({ store, namespace: "a" }))("delete", "b:c");
        expect(await guestOf(kv({ store, namespace: "a:b" }))("get", "c")).toEqual(["a:b", "c"]);
      });
    });

    describe("prefix", () => {
      test("keeps every key below it and shows none of it", async () => {
        const root = kv({ store: make() });
        const [all, below] = [guestOf(root), guestOf(root.prefix("a/"))];
        await all("set", "secret", "root's");
        await all("set", "a/x", 1);
        await all("set", "b/x", "b's");
        expect(await below("get", "x")).toBe(1);
        expect(await below("has", "a/x")).toBe(false);
        await below("set", "y", 2);
        await below("increment", "z");
        expect(await all("get", "a/y")).toBe(2);
        expect(await below("list")).toEqual({ keys: ["x", "y", "z"] });
        expect(await below("list", { limit: 1 })).toEqual({ keys: ["x"], next: "x" });
        expect(await below("list", { limit: 1, after: "x" })).toEqual({ keys: ["y"], next: "y" });
        expect(await below("list", { prefix: "z" })).toEqual({ keys: ["z"] });
        expect(await below("delete", "x")).toBe(true);
        expect(await all("list")).toEqual({ keys: ["a/y", "a/z", "b/x", "secret"] });
      });

      test("cannot be climbed out of", async () => {
        const root = kv({ store: make() });
        await guestOf(root)("set", "secret", "root's");
        const below = guestOf(root.prefix("a/"));
        for (const key of [
          "../secret",
          "/secret",
          "secret",
          "a/../secret",
          "\u{10ffff}",
          "..",
          "./../secret",
        ]) {
          expect(await below("get", key)).toBeUndefined();
          expect(await below("list", { after: key })).toEqual({ keys: [] });
          expect(await below("list", { prefix: key })).toEqual({ keys: [] });
        }
        expect(await below("list", { prefix: "", after: "" })).toEqual({ keys: [] });
      });

      test("adds to a prefix, and shares the namespace's quota", async () => {
        const root = kv({ store: make(), maxKeys: 1 });
        const deep = guestOf(root.prefix("a/").prefix("b/"));
        await deep("set", "k", 1);
        expect(await guestOf(root)("list")).toEqual({ keys: ["a/b/k"] });
        expect(await codeOf(guestOf(root.prefix("c"))("set", "k", 1))).toBe("quota");
        expect(root.prefix("a/").prefix("b/").bounds).toEqual(['keys that begin with "a/b/"']);
      });

      test("takes nothing from the length of the guest's keys", async () => {
        const root = kv({ store: make() });
        const below = guestOf(root.prefix("p".repeat(512)));
        await below("set", "x".repeat(512), 1);
        expect(await below("list")).toEqual({ keys: ["x".repeat(512)] });
      });

      test("is no method of the guest's", async () => {
        const target = kv({ store: make() });
        for (const method of ["prefix", "close", "constructor", "__proto__", "then", "usage", "invoke"]) {
          expect(await codeOf(callOn(target, method, []))).toBe("denied");
        }
        expect([...target.methods.keys()]).toEqual(["get", "has", "entry", "set", "delete", "list", "increment"]); // prettier-ignore
      });
    });

    describe("the port", () => {
      const entry = (text: string, version: string) => ({ text, blob: new Uint8Array(), version, expiresMs: undefined }); // prettier-ignore
      const anything = { nowMs: 0, ifVersion: undefined, maxBytes: 1e9, maxKeys: 1e9 };

      test("answers a write with one word", async () => {
        const store = make();
        expect(await store.set("n", "k", entry("1", "v1"), anything)).toBe("stored");
        expect(await store.set("n", "k", entry("2", "v2"), { ...anything, ifVersion: "v0" })).toBe(
          "conflict",
        );
        expect(await store.set("n", "k", entry("2", "v2"), { ...anything, ifVersion: null })).toBe(
          "conflict",
        );
        expect(await store.set("n", "l", entry("2", "v2"), { ...anything, ifVersion: "v1" })).toBe(
          "conflict",
        );
        expect(await store.set("n", "l", entry("2", "v2"), { ...anything, maxKeys: 1 })).toBe(
          "too-many-keys",
        );
        expect(await store.set("n", "l", entry("2", "v2"), { ...anything, maxBytes: 3 })).toBe("too-many-bytes"); // prettier-ignore
        const kept = await store.get("n", "k", 0);
        expect({ ...kept, blob: new Uint8Array(kept?.blob ?? [9]) }).toEqual(entry("1", "v1"));
        expect(await store.usage("n", 0)).toEqual({ keys: 1, bytes: 2 });
      });

      test("counts what entryBytes says through any order of writes", async () => {
        const store = make();
        const model = new Map<string, number>();
        let state = 12_345;
        const random = (below: number) => {
          state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0; // ISO C's example of rand()
          return (state >>> 16) % below;
        };
        for (let i = 0; i < 400; i++) {
          const key = `key ${"ü".repeat(random(3))}${random(20)}`;
          if (random(4) === 0) {
            expect(await store.delete("n", key, 0)).toBe(model.delete(key));
            continue;
          }
          const value = { ...entry("é".repeat(random(30)), `v${i}`), blob: new Uint8Array(random(30)) };
          await store.set("n", key, value, anything);
          model.set(key, entryBytes(key, value));
        }
        const bytes = [...model.values()].reduce((sum, size) => sum + size, 0);
        expect(await store.usage("n", 0)).toEqual({ keys: model.size, bytes });
        expect(await store.list("n", { prefix: "", after: undefined, limit: 1000 }, 0)).toEqual([...model.keys()].sort(compareKeys)); // prettier-ignore
        expect(model.size).toBeGreaterThan(20);
      });
    });

    describe("weakening", () => {
      test("read-only leaves the reading methods, and the others are not there", async () => {
        const target = kv({ store: make() });
        await guestOf(target)("set", "k", 1);
        const guest = guestOf(target.readOnly());
        expect(await guest("get", "k")).toBe(1);
        expect(await guest("list")).toEqual({ keys: ["k"] });
        for (const [method, ...args] of [
          ["set", "k", 2],
          ["delete", "k"],
          ["increment", "k"],
        ]) {
          expect(await codeOf(guest(method as string, ...args))).toBe("denied");
        }
        expect(await guest("get", "k")).toBe(1);
      });

      test("a budget of bytes counts what the store moves, and one that is used up writes nothing", async () => {
        const target = kv({ store: make() });
        const guest = guestOf(target.budget({ bytes: 450 }), { run: fakeRun() });
        await guest("set", "k", "x".repeat(97)); // 100 bytes, and 105 of arguments
        await guest("get", "k");
        expect(await codeOf(guest("set", "l", "x".repeat(97)))).toBe("budget");
        expect(await guestOf(target)("has", "l")).toBe(false);
      });

      test("a caretaker takes it back while it is in use", async () => {
        const care = caretaker(kv({ store: make() }));
        const guest = guestOf(care.capability);
        await guest("set", "k", 1);
        care.weaken((now) => now.readOnly());
        expect(await codeOf(guest("set", "k", 2))).toBe("denied");
        expect(await guest("get", "k")).toBe(1);
        care.revoke();
        expect(await codeOf(guest("get", "k"))).toBe("revoked");
      });
    });
  });
}

/** A store whose calls wait until they are let through. */
function slow(store: KvStore): { store: KvStore; calls: string[]; go(): void } {
  let open!: () => void;
  let gate = new Promise<void>((resolve) => (open = resolve));
  const calls: string[] = [];
  const held =
    <A extends unknown[], R>(name: string, act: (...args: A) => Promise<R>) =>
    async (...args: A) => {
      calls.push(name);
      await gate;
      return act(...args);
    };
  return {
    calls,
    store: {
      get: held("get", store.get),
      set: held("set", store.set),
      delete: held("delete", store.delete),
      list: held("list", store.list),
      usage: held("usage", store.usage),
    },
    go() {
      open();
      gate = Promise.resolve();
    },
  };
}

describe("kv over a store that is slow or broken", () => {
  test("a call under way is revoked at once, and an increment then writes no more", async () => {
    const memory = memoryStore();
    const { store, calls, go } = slow(memory);
    const care = caretaker(kv({ store }));
    const guest = guestOf(care.capability);
    const reading = guest("get", "k");
    const [first, second] = [guest("increment", "n"), guest("increment", "n")];
    const outcomes = Promise.all([reading, first, second].map(codeOf));
    await Promise.resolve();
    care.revoke();
    expect(await outcomes).toEqual(["revoked", "revoked", "revoked"]);
    go();
    // What comes after both in the queue of the counter has seen what they did.
    expect(await callOn(kv({ store }), "increment", ["n", 0])).toBeTypeOf("number");
    expect(calls.filter((call) => call === "get").length).toBeLessThanOrEqual(3);
    expect(await callOn(kv({ store: memory }), "get", ["n"])).toBeLessThanOrEqual(1);
  });

  test("another writer between the reading and the writing of an increment costs a round and no count", async () => {
    const memory = memoryStore();
    let stolen = 0;
    const other = kv({ store: { ...memory } });
    const store: KvStore = {
      ...memory,
      async set(namespace, key, entry, conditions) {
        if (stolen++ < 3) await callOn(other, "increment", [key, 10]);
        return memory.set(namespace, key, entry, conditions);
      },
    };
    expect(await callOn(kv({ store }), "increment", ["n"])).toBe(31);
  });

  test("the guest hears that it is unavailable and nothing of why", async () => {
    const broken = async (): Promise<never> => {
      throw Object.assign(new Error("EACCES: /var/lib/secret.db at 10.0.0.7"), { code: "EACCES" });
    };
    const store: KvStore = { get: broken, set: broken, delete: broken, list: broken, usage: broken };
    const guest = guestOf(kv({ store }), { label: "data" });
    for (const [method, ...args] of [
      ["get", "k"],
      ["has", "k"],
      ["entry", "k"],
      ["set", "k", 1],
      ["delete", "k"],
      ["list"],
      ["increment", "k"],
    ]) {
      // prettier-ignore
      const error = await refusal(guest(method as string, ...args));
      expect(error.code).toBe("unavailable");
      expect(error.message).toBe(`data.${String(method)}: the store cannot be reached`);
      expect((error.cause as Error).message).toContain("EACCES"); // for the host
    }
  });

  test("a stored text that we did not write builds nothing", async () => {
    const memory = memoryStore();
    const target = kv({ store: memory });
    const conditions = { nowMs: 0, ifVersion: undefined, maxBytes: 1e9, maxKeys: 1e9 };
    for (const text of [
      '{"__proto__":{"polluted":1}}',
      '["o","__proto__",1]',
      "[",
      '["r","function",1]',
      "[".repeat(1e5),
      '["b","Uint8Array",9]',
    ]) {
      // prettier-ignore
      const entry = { text, blob: new Uint8Array(), version: "v", expiresMs: undefined };
      await memory.set("default", "k", entry, conditions);
      expect(await codeOf(callOn(target, "get", ["k"]))).toBe("unavailable");
    }
    expect(({} as Record<string, unknown>)["polluted"]).toBeUndefined();
  });
});

describe("kv's hooks", () => {
  test("tell the audit the key, prefix included, and the bytes, and never the value", async () => {
    const told: Told = { notes: [], charged: 0 };
    const target = kv().prefix("a/");
    await callOn(target, "set", ["k", "hidden"], { told });
    await callOn(target, "get", ["k"], { told });
    const about = [{ key: "a/k" }, { bytes: 11 }];
    expect(told).toEqual({ notes: [...about, ...about], charged: 22 });
  });

  test.each([
    [{ unknown: 1 }],
    [null],
    [[]],
    ["ttlMs"],
    [{ ifVersion: 1 }],
    [{ ifVersion: "x".repeat(65) }],
    [JSON.parse('{"__proto__":{"ttlMs":1}}')],
  ])("options of a write that are not what they should be are refused: %j", async (options) => {
    const target = kv();
    expect(await codeOf(callOn(target, "set", ["k", 1, options]))).toBe("bad-argument");
    expect(await callOn(target, "has", ["k"])).toBe(false);
  });

  test("two capabilities without a store share nothing", async () => {
    await callOn(kv(), "set", ["k", 1]);
    expect(await callOn(kv(), "get", ["k"])).toBeUndefined();
  });

  test("bad options are named at construction", () => {
    const wrong: [string, unknown][] = [
      ["namespace", ""],
      ["namespace", 7],
      ["namespace", "a\nb"],
      ["namespace", "\ud800"],
      ["namespace", "x".repeat(513)],
      ["store", {}],
      ["store", null],
      ["quotaBytes", 0],
      ["quotaBytes", Infinity],
      ["maxKeys", 1.5],
      ["maxKeyBytes", 5000],
      ["maxValueBytes", "1"],
      ["now", 5],
    ];
    for (const [option, value] of wrong) {
      expect(() => kv({ [option]: value })).toThrow(new RegExp(`^kv: ${option} `));
      expect(() => kv({ [option]: value })).toThrow(TypeError);
    }
    for (const prefix of ["", "a\n", "\ud800", "x".repeat(513), 5]) {
      expect(() => kv().prefix(prefix as string)).toThrow(TypeError);
    }
    expect(() => capability("control", {})).not.toThrow();
  });
});
