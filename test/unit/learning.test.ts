/** Learning, with a person that a test plays and the web on loopback. */
import { once } from "node:events";
import fs from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { ApprovalQuestion } from "#hostapi/approve";
import { pathFault } from "#hostapi/files-path";
import { files } from "#server/hostapi";
import { learn, type Learning, type LearningPowers } from "#server/learning";
import { PendingFile } from "#server/pending-file";
import { parsePolicy, policyOf } from "#server/policy";
import { Commentary } from "#server/terminal";
import { callOn, fakeRun, type FakeRun } from "../capability.js";

let dir: string;
let run: FakeRun;
let questions: ApprovalQuestion[];
const opened: Learning[] = [];

beforeEach(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-learn-"));
  run = fakeRun();
  questions = [];
});
afterEach(() => {
  for (const learning of opened.splice(0)) {
    for (const capability of Object.values(learning.grants)) capability.close(run);
    learning.close();
  }
  fs.rmSync(dir, { recursive: true });
});

type Person = (text: string, signal: AbortSignal) => Promise<boolean> | boolean;

/** Learning under a policy, and `env` as a script has it. */
async function learning(
  person: Person | undefined,
  more: Partial<LearningPowers> & { grants?: object } = {},
) {
  const { grants = {}, ...powers } = more;
  const ask: LearningPowers["ask"] =
    person === undefined
      ? undefined
      : async (question, signal) => {
          questions.push(question);
          return person(question.text, signal);
        };
  const learned = await learn(policyOf({ grants }, dir), { ask, files: async () => files, dir, ...powers });
  opened.push(learned);
  const env = (name: string, method: string, ...args: unknown[]) => {
    const capability = learned.grants[name];
    if (capability === undefined) throw new Error(`there is no ${name}`);
    return callOn(capability, method, args, { run, label: name });
  };
  const proposal = () => {
    const { text, notes } = learned.propose(dir);
    parsePolicy(text, dir); // whatever was asked for, it is a policy
    return {
      grants: (JSON.parse(text) as { grants: Record<string, unknown> }).grants,
      notes: notes.join("\n"),
    };
  };
  return { env, proposal, learned };
}

const texts = () => questions.map(({ text }) => text);
/** An audit line of http. */
const EVENT = { timeMs: 0, runId: "", tenant: "", bytes: 0, kind: "http", capability: "http" };
const denied = { code: "denied" };

describe("a thing that is asked about", () => {
  test("is done after a yes, asked once, and proposed with the methods that were used", async () => {
    const { env, proposal, learned } = await learning(() => true);
    await env("kv", "set", "a", [1]);
    await env("kv", "set", "b", [2]);
    expect(await env("kv", "get", "a")).toEqual([1]);
    expect(texts()).toEqual([expect.stringMatching(/^change values/), expect.stringMatching(/^read values/)]);
    expect(proposal().grants).toEqual({ kv: { only: ["get", "set"] } });
    expect(learned.heard()).toBe(true);
  });

  test("is denied after a no, asked once, and left out of the proposal, which says so", async () => {
    const { env, proposal } = await learning((text) => !text.startsWith("change"));
    await expect(env("kv", "set", "a", 1)).rejects.toMatchObject({
      ...denied,
      message: "kv.set: the person who was asked did not allow it",
    });
    await expect(env("kv", "delete", "a")).rejects.toMatchObject(denied);
    expect(await env("kv", "get", "a")).toBeUndefined();
    expect(questions).toHaveLength(2);
    expect(proposal().grants).toEqual({ kv: { only: ["get"] } });
    expect(proposal().notes).toMatch(/you refused it: change values/);
  });

  test("is denied where there is nobody, and proposed, which is said", async () => {
    const { env, proposal } = await learning(undefined);
    await expect(env("files", "readText", "a.txt")).rejects.toMatchObject({
      ...denied,
      message: "files.readText: nobody could be asked to allow it",
    });
    expect(proposal().grants).toEqual({ files: { root: ".", only: ["readText"] } });
    expect(proposal().notes).toMatch(/nobody to ask[\s\S]*not confirmed by anybody, and proposed: read files in the current directory/); // prettier-ignore
  });

  test("is denied when asking fails, and when the run ends before the answer", async () => {
    const broken = await learning(() => Promise.reject(new Error("/dev/tty is gone")));
    await expect(broken.env("kv", "get", "a")).rejects.toMatchObject({ message: "kv.get: nobody could be asked to allow it" }); // prettier-ignore
    let withdrawn = false;
    const slow = await learning(
      (_text, signal) =>
        new Promise((resolve) => signal.addEventListener("abort", () => resolve((withdrawn = true)))),
    );
    const call = slow.env("files", "write", "a.txt", "x");
    await expect.poll(() => questions.length).toBe(2);
    run.end();
    await expect(call).rejects.toMatchObject(denied); // though the answer that comes too late is a yes
    expect(withdrawn).toBe(true);
    expect(fs.readdirSync(dir)).toEqual([]);
  });

  test("is one question at a time, which calls in parallel share", async () => {
    let open = 0;
    const most: number[] = [];
    const { env } = await learning(async () => {
      most.push(++open);
      await new Promise((resolve) => setImmediate(resolve));
      open--;
      return true;
    });
    const calls = Array.from({ length: 30 }, (_, i) =>
      i % 2 === 0 ? env("kv", "has", `${i}`) : env("kv", "set", `${i}`, i),
    );
    expect(new Set((await Promise.all(calls)).map((answer) => typeof answer))).toEqual(
      new Set(["boolean", "string"]),
    );
    expect(most).toEqual([1, 1]);
  });

  test("is the last thing on the screen: what the script says meanwhile is told after the answer", async () => {
    const told: string[] = [];
    const commentary = new Commentary((text) => void told.push(text));
    commentary.say("before");
    const answer = commentary.aside(async () => {
      commentary.say("doublehull: the script asks");
      await new Promise((resolve) => setImmediate(resolve));
      expect(told).toEqual(["before"]);
      return true;
    });
    expect(await answer).toBe(true);
    expect(told).toEqual(["before", "doublehull: the script asks"]);
    commentary.say("after");
    expect(told).toHaveLength(3);
  });
});

describe("files", () => {
  beforeEach(() => {
    fs.mkdirSync(path.join(dir, "data/deep"), { recursive: true });
    fs.writeFileSync(path.join(dir, "data/a.txt"), "hello");
    fs.writeFileSync(path.join(dir, "data/deep/b.txt"), "deeper");
    fs.writeFileSync(path.join(dir, ".env"), "SECRET");
  });

  test("are confirmed by directory and direction: not what is above, not what is below", async () => {
    const { env, proposal } = await learning((text) => text.includes('"data"') && text.startsWith("read"));
    expect(await env("files", "readText", "data/a.txt")).toBe("hello");
    expect(await env("files", "list", "data")).toHaveLength(2);
    for (const [method, ...args] of [
      ["readText", ".env"],
      ["readText", "data/deep/b.txt"],
      ["list"],
      ["write", "data/a.txt", "gone"],
      ["remove", "data/a.txt"],
      ["rename", "data/a.txt", "a.txt"],
      ["mkdir", "out"],
    ]) {
      await expect(env("files", method as string, ...args)).rejects.toMatchObject(denied);
    }
    expect(fs.readFileSync(path.join(dir, "data/a.txt"), "utf8")).toBe("hello");
    // A grant of the directory that the script's paths begin in would be what was refused.
    expect(proposal().grants).toEqual({});
    expect(proposal().notes).toMatch(
      /files are left out: .*you refused \(read files in the current directory/,
    );
  });

  test("are proposed as the one directory that paths begin in, read-only where no writing was allowed", async () => {
    const { env, proposal } = await learning((text) => text.startsWith("read"));
    await env("files", "list", "data");
    await env("files", "readText", "data/deep/b.txt");
    await expect(env("files", "remove", "data/a.txt")).rejects.toMatchObject(denied);
    expect(proposal().grants).toEqual({ files: { root: ".", only: ["list", "readText"] } });
    expect(proposal().notes).toMatch(/all below it is proposed\. It asked to read in data, data\/deep;/);
  });

  test("that are renamed need both directories; a directory that is made is confirmed by its name", async () => {
    const { env } = await learning((text) => text.startsWith("write"));
    await env("files", "mkdir", "out");
    await env("files", "write", "out/x.txt", "x");
    expect(questions).toHaveLength(1);
    await env("files", "rename", "out/x.txt", "data/x.txt");
    expect(texts().slice(1)).toEqual([expect.stringContaining('"data"')]);
    expect(fs.existsSync(path.join(dir, "data/x.txt"))).toBe(true);
  });

  test("above the directory, and by links, are not asked about or not reached", async () => {
    fs.symlinkSync("/etc/passwd", path.join(dir, "data/link"));
    const { env } = await learning(() => true);
    await expect(env("files", "readText", "../x")).rejects.toMatchObject({ code: "bad-argument" });
    expect(questions).toEqual([]);
    await expect(env("files", "readText", "data/link")).rejects.toMatchObject(denied);
  });

  test("are asked about in words that show what is there", async () => {
    const { env, proposal } = await learning(() => true);
    const odd = "a\u202eb\u200bc";
    await expect(env("files", "readText", `${odd}/", not below it | x`)).rejects.toThrow();
    expect(texts()[0]).toContain('"a\\u{202e}b\\u{200b}c"');
    expect(JSON.stringify(questions)).not.toMatch(/[\u202e\u200b]/);
    const long = `${"d".repeat(200)}/`.repeat(3);
    await expect(env("files", "readText", `${long}x`)).rejects.toMatchObject({ message: expect.stringContaining("too long to be asked about") as string }); // prettier-ignore
    expect(questions).toHaveLength(1);
    expect(proposal().notes).toContain("too long to be asked about");
  });
});

describe("the web", () => {
  const seen: string[] = [];
  let server: http.Server;
  let origin: string;
  const options: LearningPowers["http"] = {
    open: ["127.0.0.1/32"],
    lookup: async (name) =>
      name === "inner.example" ? [{ address: "10.0.0.1", family: 4 }] : [{ address: "127.0.0.1", family: 4 }],
  };

  beforeAll(async () => {
    server = http.createServer((request, response) => {
      seen.push(`${request.method} ${request.url}`);
      const to = /^\/(30\d)/.exec(request.url ?? "")?.[1];
      if (to !== undefined) response.writeHead(Number(to), { location: "http://other.example:" + port + "/secret?x=1" }); // prettier-ignore
      response.end("hello");
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    origin = `http://web.example:${port}`;
  });
  afterAll(() => server.close());
  beforeEach(() => void (seen.length = 0));

  test("is confirmed by method and address, whatever the query is", async () => {
    const { env, proposal } = await learning((text) => text === `GET ${origin}/a`, { http: options });
    for (const query of ["", "?x=1"]) {
      expect(await env("http", "read", { url: `${origin}/a${query}` })).toMatchObject({ status: 200 });
    }
    expect(questions).toHaveLength(1);
    for (const [method, url] of [["POST", "/a"], ["GET", "/b"], ["GET", "/a/"]]) {
      await expect(env("http", "request", { url: origin + url, method })).rejects.toMatchObject(denied);
    } // prettier-ignore
    expect(seen).toEqual(["GET /a", "GET /a?x=1"]);
    expect(proposal().grants).toEqual({
      http: { allow: [{ url: `${origin}/a`, methods: ["GET"] }], only: ["read"] },
    });
  });

  test.each([
    ["302", "GET"],
    ["307", "POST"],
  ])("asks about where a POST is sent on to by %s, and sends nothing twice", async (status, becomes) => {
    const to = `${becomes} ${origin.replace("web", "other")}/secret`;
    const body = new Uint8Array([1]);
    const refusing = await learning((text) => text !== to, { http: options });
    await expect(refusing.env("http", "request", { url: `${origin}/${status}`, method: "POST", body })).rejects.toMatchObject(denied); // prettier-ignore
    expect(texts()).toEqual([`POST ${origin}/${status}`, to]);
    expect(seen).toEqual([`POST /${status}`]);
    expect(refusing.proposal().grants).toEqual({
      http: { allow: [{ url: `${origin}/${status}`, methods: ["POST"] }], only: ["request"] },
    });
    const allowing = await learning(() => true, { http: options });
    const answer = await allowing.env("http", "request", {
      url: `${origin}/${status}`,
      method: "POST",
      body,
    });
    expect(answer).toMatchObject({ status: 200, redirected: true });
    expect(seen.slice(1)).toEqual([`POST /${status}`, `${becomes} /secret?x=1`]);
    expect(allowing.proposal().grants).toMatchObject({
      http: { allow: [{ methods: ["POST"] }, { url: to.split(" ")[1], methods: [becomes] }] },
    });
  });

  test("is proposed by exact addresses where a directory of them would hold one that was refused", async () => {
    const { env, proposal } = await learning((text) => !text.endsWith("/u/admin"), { http: options });
    for (let i = 0; i < 8; i++) await env("http", "read", { url: `${origin}/u/${i}` });
    expect(proposal().grants).toMatchObject({ http: { allow: [{ url: `${origin}/u/*` }] } });
    await expect(env("http", "read", { url: `${origin}/u/admin` })).rejects.toMatchObject(denied);
    const { allow } = proposal().grants["http"] as { allow: { url: string }[] };
    expect(allow.map(({ url }) => url)).toEqual(Array.from({ length: 8 }, (_, i) => `${origin}/u/${i}`));
  });

  test("is not asked about where no rule could name just that place", async () => {
    const { env, proposal } = await learning(() => true, { http: options });
    for (const url of [
      `${origin}/*`,
      `${origin}/a*`,
      origin.replace("web", "*") + "/",
      `http://user@${new URL(origin).host}/`,
      "http://10.0.0.1/",
      `${origin}/${"x".repeat(600)}`,
    ]) {
      await expect(env("http", "read", { url })).rejects.toThrow();
    }
    expect({ asked: texts(), seen }).toEqual({ asked: [], seen: [] });
    expect(proposal().grants).toEqual({});
    expect(proposal().notes).toContain("has a * in it");
  });

  test("stays closed where it is not public, whatever the person says", async () => {
    const { env, learned } = await learning(() => true, { http: options });
    await expect(env("http", "read", { url: "http://inner.example/" })).rejects.toMatchObject(denied);
    expect(texts()).toEqual(["GET http://inner.example/"]);
    const detail = { method: "GET", url: "http://inner.example/", refused: "address" };
    learned.audit({ ...EVENT, method: "read", decision: "failed", code: "denied", detail });
    expect(learned.propose(dir).notes.join()).toContain(
      "inner.example/ stands for an address that is not public",
    );
  });
});

describe("a policy's own grants", () => {
  test("have no stand-in, and what was done with them is proposed beside what was learned", async () => {
    const grants = { kv: { namespace: "mine" }, http: { allow: ["https://a.example/*"] }, approve: true };
    const { env, proposal, learned } = await learning(() => true, { grants });
    expect(Object.keys(learned.grants)).toEqual(["files"]);
    expect(learned.heard()).toBe(false);
    fs.writeFileSync(path.join(dir, "a.txt"), "x");
    await env("files", "read", "a.txt");
    const detail = { method: "GET", url: "https://a.example/v1" };
    learned.audit({ ...EVENT, method: "read", decision: "allowed", detail: {} });
    learned.audit({ ...EVENT, method: "read", decision: "done", detail });
    learned.audit({ ...EVENT, method: "request", decision: "refused", code: "bad-argument", detail: {} });
    expect(proposal().grants).toEqual({
      http: { allow: [{ url: "https://a.example/v1", methods: ["GET"] }], only: ["read"] },
      files: { root: ".", only: ["read"] },
      approve: {},
    });
    expect(proposal().notes).toContain("kv was not used");
  });

  test("of another name do not take a stand-in's place", async () => {
    const { learned } = await learning(undefined, { grants: { cache: { type: "kv" } } });
    expect(Object.keys(learned.grants)).toEqual(["kv", "files", "http"]);
  });
});

describe("a file that is written when the run is over", () => {
  const target = () => path.join(dir, "policy.json");

  test("stands beside its name meanwhile, where no script can name it", () => {
    const pending = new PendingFile(target(), { mode: 0o600, replace: false });
    const [beside = ""] = fs.readdirSync(dir);
    expect(pathFault(beside)).toMatch(/must not use names/);
    expect(pathFault("policy.json")).toBeUndefined();
    pending.commit("text");
    expect(fs.readdirSync(dir)).toEqual(["policy.json"]);
    expect(fs.readFileSync(target(), "utf8")).toBe("text");
    expect(fs.statSync(target()).mode & 0o777).toBe(0o600);
    expect(() => pending.commit("again")).toThrow("it was given up");
  });

  test("does not take a name that was taken meanwhile, unless it may replace", () => {
    const pending = new PendingFile(target(), { mode: 0o600, replace: false });
    fs.writeFileSync(target(), "the script's");
    expect(() => pending.commit("ours")).toThrow(expect.objectContaining({ code: "EEXIST" }));
    expect(() => new PendingFile(target(), { mode: 0o600, replace: false })).toThrow("it exists already");
    expect(fs.readFileSync(target(), "utf8")).toBe("the script's");
    new PendingFile(target(), { mode: 0o600, replace: true }).commit("ours");
    expect(fs.readFileSync(target(), "utf8")).toBe("ours");
    expect(fs.readdirSync(dir)).toEqual(["policy.json"]);
  });

  test("leaves everything as it was when it is given up", () => {
    const pending = new PendingFile(target(), { mode: 0o600, replace: false });
    pending.discard();
    pending.discard();
    expect(fs.readdirSync(dir)).toEqual([]);
  });
});
