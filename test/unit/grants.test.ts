import { PassThrough } from "node:stream";
import { describe, expect, test } from "vitest";
import { Capability } from "#hostapi/capability";
import { memoryStore } from "#hostapi/kv-store";
import { Secret } from "#hostapi/secret";
import { grantsFromFlags } from "#server/grant-flags";
import { grantsOf, hollowPowers, type GrantPowers } from "#server/grants";
import { parsePolicy, PolicyError, policyOf } from "#server/policy";
import { askPerson, eventJson, eventText, type Terminal } from "#server/terminal";
import { environmentTypes } from "#server/types";
import { callOn, fakeRun } from "../capability.js";

/** Powers of the test's own; what was opened and closed is counted. */
function fakePowers(more: Partial<GrantPowers> = {}) {
  const counts = { opened: 0, closed: 0 };
  const powers: GrantPowers = {
    ...hollowPowers(),
    env: { TOKEN: "the-token-itself" },
    readText: (file) => Promise.reject(new Error(`cannot read ${file}`)),
    async sqlite() {
      counts.opened++;
      return { ...memoryStore(), close: () => void counts.closed++ };
    },
    ...more,
  };
  return { powers, counts };
}

const policy = (grants: object) => policyOf({ grants }, "/srv");
const HTTP = { allow: ["https://a.example/*"] };

/** What was refused; fails if nothing was. */
async function refusal(grants: object, powers = fakePowers().powers): Promise<unknown> {
  try {
    (await grantsOf(policy(grants), powers)).close();
  } catch (error) {
    return error;
  }
  throw new Error("it was granted");
}
const problems = async (...given: Parameters<typeof refusal>) => {
  const error = await refusal(...given);
  if (!(error instanceof PolicyError)) throw error;
  return error.problems;
};

describe("the grants of a policy", () => {
  test("are what it names: capabilities, handles of secrets, changes of what every script has", async () => {
    const { powers } = fakePowers();
    const { grants, close } = await grantsOf(
      policy({
        kv: { readOnly: true },
        http: HTTP,
        token: { type: "secret", env: "TOKEN", hosts: ["a.example"] },
        events: true,
        approve: true,
        clock: { mode: "coarse", stepMs: 5 },
        random: { seed: "s" },
        log: { least: "warn" },
        timers: { most: 1 },
      }),
      powers,
    );
    close();
    expect(grants["kv"]).toBeInstanceOf(Capability);
    expect([...(grants["kv"] as Capability).methods.keys()]).not.toContain("set");
    expect(grants["token"]).toBeInstanceOf(Secret);
    expect(grants).toMatchObject({
      clock: { kind: "clock", setting: { mode: "coarse", stepMs: 5 } },
      random: { kind: "random" },
      log: { kind: "log", least: "warn" },
      timers: { kind: "timers", most: 1 },
    });
    expect(Object.isFrozen(grants)).toBe(true);
    expect(Object.getPrototypeOf(grants)).toBeNull();
  });

  test("hold a script to what the policy says of them", async () => {
    const { powers } = fakePowers();
    const bounds = { quotaBytes: 100, maxKeys: 2, prefix: "p/", only: ["set", "get"], budget: { calls: 4 } };
    const { grants } = await grantsOf(policy({ kv: { namespace: "n", ...bounds }, all: { type: "kv", namespace: "n" } }), powers); // prettier-ignore
    const [kv, all] = [grants["kv"] as Capability, grants["all"] as Capability];
    const run = fakeRun();
    await callOn(kv, "set", ["a", 1], { run });
    await callOn(kv, "set", ["b", 2], { run });
    expect(await callOn(all, "get", ["p/a"])).toBe(1); // the same store, without the prefix
    await expect(callOn(kv, "set", ["c", 3], { run })).rejects.toMatchObject({ code: "quota" });
    expect(() => kv.parse("kv", "delete", ["a"])).toThrow(/no such/);
    await callOn(kv, "get", ["a"], { run });
    await expect(callOn(kv, "get", ["a"], { run })).rejects.toMatchObject({ code: "budget" });
    await callOn(kv, "get", ["a"]); // another run has its own
  });

  test("of one file share one store, which is closed once", async () => {
    const { powers, counts } = fakePowers();
    const store = { sqlite: "a.db" };
    const { grants, close } = await grantsOf(policy({ kv: { store, namespace: "n" }, too: { type: "kv", store, namespace: "n" } }), powers); // prettier-ignore
    await callOn(grants["kv"] as Capability, "set", ["a", 1]);
    expect(await callOn(grants["too"] as Capability, "get", ["a"])).toBe(1);
    close();
    close();
    expect(counts).toEqual({ opened: 1, closed: 1 });
  });

  test("events and questions reach the powers, as the script's", async () => {
    const heard: unknown[] = [];
    const { powers } = fakePowers({
      onEvent: ({ name, data }) => void heard.push([name, data]),
      ask: (question) => Promise.resolve(question.text === "may I?"),
    });
    const { grants } = await grantsOf(policy({ events: { names: ["done"] }, approve: true }), powers);
    await callOn(grants["events"] as Capability, "emit", ["done", 1]);
    await expect(callOn(grants["events"] as Capability, "emit", ["other", 1])).rejects.toMatchObject({ code: "denied" }); // prettier-ignore
    expect(heard).toEqual([["done", 1]]);
    expect(await callOn(grants["approve"] as Capability, "ask", ["may I?"])).toBe(true);
    expect(await callOn(grants["approve"] as Capability, "ask", ["now?"])).toBe(false);
  });

  test("a secret's value is in the file without its last line end", async () => {
    const { powers } = fakePowers({
      readText: (file) => Promise.resolve(file === "/srv/t" ? "12345678\n" : ""),
    });
    const { grants } = await grantsOf(policy({ http: HTTP, t: { type: "secret", file: "t", hosts: ["a.example"] } }), powers); // prettier-ignore
    expect((grants["t"] as Secret).reveal()).toBe("12345678");
  });
});

describe("what is not there is refused before a script starts", () => {
  test("an environment variable that is not set, or empty", async () => {
    const token = { type: "secret", env: "MISSING", hosts: ["a.example"] };
    const unset = [
      { field: "grants.token.env", message: expect.stringContaining("MISSING is not set") as unknown },
    ];
    expect(await problems({ http: HTTP, token })).toEqual(unset);
    expect(await problems({ http: HTTP, token }, fakePowers({ env: { MISSING: "" } }).powers)).toMatchObject([{ message: /empty/ }].map(() => ({ field: "grants.token.env" }))); // prettier-ignore
  });

  test("one that is injected, too, with its place", async () => {
    const inject = [{ host: "a.example", header: "x-key", secret: { env: "MISSING" } }];
    expect(await problems({ http: { ...HTTP, inject } })).toMatchObject([{ field: "grants.http.inject[0].secret.env" }]); // prettier-ignore
  });

  test("a file of a secret", async () => {
    const token = { type: "secret", file: "t", hosts: ["a.example"] };
    expect(await problems({ http: HTTP, token })).toEqual([{ field: "grants.token.file", message: "cannot read /srv/t" }]); // prettier-ignore
  });

  test("a secret too short to be taken out of answers; its value is in no message", async () => {
    const token = { type: "secret", env: "SHORT", hosts: ["a.example"] };
    const error = await refusal({ http: HTTP, token }, fakePowers({ env: { SHORT: "hunter2" } }).powers);
    expect(error).toBeInstanceOf(PolicyError);
    expect(error).toMatchObject({ field: "grants.token" });
    expect((error as Error).message).not.toContain("hunter2");
  });

  test("a method to keep that is not there, with the one that was meant", async () => {
    expect(await problems({ kv: { only: ["get", "sett"] } })).toMatchObject([
      { field: "grants.kv.only", message: expect.stringMatching(/"sett".*did you mean set\?/) as unknown },
    ]);
    expect(await problems({ kv: { only: ["set"], readOnly: true } })).toMatchObject([
      { field: "grants.kv.only" },
    ]);
    expect(await problems({ events: { readOnly: true } })).toMatchObject([
      { field: "grants.events.readOnly" },
    ]);
  });

  test("a directory, by the factory's own words", async () => {
    const files = () => Promise.resolve(() => { throw new TypeError("files: root /srv/d is not a directory that can be opened (ENOENT)"); }); // prettier-ignore
    expect(await problems({ files: { root: "d" } }, fakePowers({ files }).powers)).toEqual([
      {
        field: "grants.files.root",
        message: expect.stringContaining("/srv/d is not a directory") as unknown,
      },
    ]);
  });

  test("a driver: that is this host's matter, not the policy's", async () => {
    const missing = Object.assign(new Error("no driver"), { name: "StoreError", code: "driver-missing", remedy: "npm install it" }); // prettier-ignore
    const sqlite = () => Promise.reject(missing);
    const error = await refusal({ kv: { store: { sqlite: "a.db" } } }, fakePowers({ sqlite }).powers);
    expect(error).toMatchObject({ code: "host-cannot", field: "grants.kv", remedy: "npm install it" });
  });

  test("and what had been opened by then is closed", async () => {
    const { powers, counts } = fakePowers();
    await refusal({ kv: { store: { sqlite: "a.db" } }, events: { readOnly: true } }, powers);
    expect(counts).toEqual({ opened: 1, closed: 1 });
  });

  test("a mistake of ours is not told as the policy's", async () => {
    const sqlite = () => Promise.reject(new TypeError("x is not a function"));
    expect(await refusal({ kv: { store: { sqlite: "a.db" } } }, fakePowers({ sqlite }).powers)).not.toBeInstanceOf(PolicyError); // prettier-ignore
  });
});

describe("grants that can do nothing", () => {
  const all = {
    kv: { store: { sqlite: "/nowhere/a.db" } },
    files: { root: "/nowhere", mode: "rw" },
    http: { ...HTTP, inject: [{ host: "a.example", header: "x-key", secret: "token" }] },
    token: { type: "secret", env: "MISSING", hosts: ["a.example"] },
    events: true,
    approve: true,
  };

  test("have the types of the real ones, and need nothing of this host", async () => {
    const { grants, close } = await grantsOf(policy(all), hollowPowers());
    const types = environmentTypes(grants);
    close();
    for (const part of [
      "set(key: string",
      "readText(path: string)",
      "function fetch(",
      "emit(name: string",
      "ask(text: string",
    ]) {
      expect(types).toContain(part);
    }
  });

  test("still tell what the real ones would refuse", async () => {
    const wrong = { ...all, files: { root: "/nowhere", only: ["write"] } };
    expect(await problems(wrong, hollowPowers())).toMatchObject([{ field: "grants.files.only" }]);
  });
});

describe("--grant", () => {
  const read = (...flags: string[]) =>
    policyOf({}, "/", { grants: grantsFromFlags(flags), dir: "/srv" }).grants;

  test.each<[string, string, object]>([
    ["kv", "kv", { type: "kv", namespace: "kv", store: "memory" }],
    ["kv=tenant-7", "kv", { namespace: "tenant-7" }],
    ["kv=sqlite:a.db", "kv", { store: { sqlite: "/srv/a.db" } }],
    ["cache=kv:sqlite:a.db", "cache", { type: "kv", namespace: "cache", store: { sqlite: "/srv/a.db" } }],
    ["files=./data", "files", { root: "/srv/data", mode: "ro" }],
    ["files=./data:ro", "files", { root: "/srv/data", mode: "ro" }],
    ["out=files:./a:b:rw", "out", { root: "/srv/a:b", mode: "rw" }],
    ["http=https://a.example/*", "http", { allow: [{ url: "https://a.example/*" }] }],
    ["http=GET,PUT https://a.example/*", "http", { allow: [{ url: "https://a.example/*", methods: ["GET", "PUT"] }] }],
    ["events=a,b", "events", { names: ["a", "b"] }],
    ["clock=coarse:100", "clock", { mode: "coarse", stepMs: 100 }],
    ["clock=frozen", "clock", { mode: "frozen" }],
    ["random=s", "random", { seed: "s" }],
    ["log=warn", "log", { least: "warn" }],
    ["timers=0", "timers", { most: 0 }],
    ["approve", "approve", { type: "approve" }],
  ])("%s", (flag, name, grant) => {
    expect(read(flag)[name]).toMatchObject(grant);
  }); // prettier-ignore

  test("http grants of one name add up, and a secret finds them", () => {
    const grants = read(
      "http=https://a.example/*",
      "http=https://b.example/*",
      "t=secret:T@a.example,b.example",
    );
    expect(grants).toMatchObject({
      http: { allow: [{ url: "https://a.example/*" }, { url: "https://b.example/*" }] },
      t: { type: "secret", env: "T", hosts: ["a.example", "b.example"] },
    });
  });

  test.each([
    ["kvv", /did you mean kv/],
    ["x=kvv", /did you mean kv/],
    ["", /NAME=VALUE/],
    ["=kv", /NAME=VALUE/],
    ["files", /missing/],
    ["files=", /files=DIRECTORY/],
    ["timers=many", /timers=NUMBER/],
    ["approve=yes", /approve/],
    ["t=secret:T", /VARIABLE@HOST/],
    ["http=a.example", /https?:/],
    ["clock=fast", /mode/],
  ])("%s is refused", (flag, message) => {
    expect(() => read(flag)).toThrow(message);
  });

  test("a name twice is refused, on the line and beside a policy", () => {
    expect(() => read("kv", "kv=other")).toThrow(/twice/);
    const beside = { grants: grantsFromFlags(["kv"]), dir: "/" };
    expect(() => parsePolicy('{"grants":{"kv":true}}', "/", beside)).toThrow(/twice/);
    expect(Object.keys(parsePolicy('{"grants":{"events":true}}', "/", beside).grants)).toEqual([
      "events",
      "kv",
    ]);
  });
});

describe("the person at the terminal", () => {
  const question = {
    run: fakeRun(),
    label: "approve",
    method: "ask",
    text: "may I?",
    details: ["one\x1b[2J", "two\nthree"],
    untilMs: 600_000,
  };

  function terminal() {
    const [input, output] = [new PassThrough(), new PassThrough()];
    let closed = 0;
    const open = (): Terminal => ({ input, output, close: () => void closed++ });
    return { input, open, shown: () => String(output.read() ?? ""), closed: () => closed };
  }

  test.each([
    ["y\n", true],
    ["Yes \n", true],
    ["n\n", false],
    ["\n", false],
    ["yesterday\n", false],
    [`y${" ".repeat(200)}es\n`, false],
  ])("%j means %s", async (typed, approved) => {
    const { input, open, closed } = terminal();
    input.write(typed);
    expect(await askPerson(question, new AbortController().signal, open)).toEqual({ approved });
    expect(closed()).toBe(1);
  });

  test("a terminal that ends is a no", async () => {
    const { input, open } = terminal();
    input.end("y");
    expect(await askPerson(question, new AbortController().signal, open)).toEqual({ approved: false });
  });

  test("sees the script's words behind a margin, and nothing that a terminal obeys", async () => {
    const { input, open, shown } = terminal();
    input.write("n\n");
    await askPerson(question, new AbortController().signal, open);
    expect(shown()).toBe(
      "doublehull: the script asks, by approve.ask:\n    | may I?\n    | one\\x1b[2J\n    | two three\nAllow it? [y/N] ",
    );
  });

  test("is no longer asked when the run is over", async () => {
    const { open, shown, closed } = terminal();
    const controller = new AbortController();
    const answer = askPerson(question, controller.signal, open);
    controller.abort();
    expect(await answer).toEqual({ approved: false });
    expect(shown()).toContain("no longer asked");
    expect(closed()).toBe(1);
  });

  test("is told of events behind a margin, by lines that cannot pass for ours, and as JSON in one line", () => {
    const event = { name: "done", data: "a\ndoublehull: all is well\x1b[2J", seq: 1, run: fakeRun() };
    expect(eventText(event)).toBe("[event done] a\n             doublehull: all is well\\x1b[2J\n");
    expect(eventJson(event).trimEnd()).not.toContain("\n");
    expect(JSON.parse(eventJson({ ...event, data: ["\x9b\u202e", 1n] }))).toEqual({
      event: "done",
      seq: 1,
      data: ["\x9b\u202e", { $type: "bigint", value: "1" }],
    });
    expect(eventJson({ ...event, data: "\x9b\u202e" })).not.toMatch(/[\x9b\u202e]/);
  });
});
