import { describe, expect, test } from "vitest";
import { propose, type Asked } from "#server/learn";
import { parsePolicy, policyOf } from "#server/policy";
import { policyDiff } from "#server/policy-diff";
import type { Policy } from "#server/policy-schema";

const policy = (grants: object, limits = {}): Policy => policyOf({ limits, grants }, "/srv");
const nothing = policy({});
const event = (capability: string, kind: string, method: string, detail: Asked["detail"] = {}): Asked =>
  ({ capability, kind, method, detail }); // prettier-ignore
const asks = (url: string, method = "GET", more: Asked["detail"] = {}) =>
  event("http", "http", "request", { url, method, ...more });

/** The proposal as it is written, which must be a policy. */
function proposed(events: readonly Asked[], under: Policy) {
  const { text, notes } = propose(events, under, "/srv");
  const written = JSON.parse(text) as { limits?: object; grants: Record<string, unknown> };
  return { ...written, notes, policy: parsePolicy(text, "/srv") };
}

describe("a proposal", () => {
  test("has what was used, by the methods that were used, and nothing else", () => {
    const generous = policy(
      {
        kv: { namespace: "tenant", quotaBytes: 1000, budget: { calls: 5 } },
        files: { root: "data", mode: "rw" },
        events: true,
        approve: true,
        timer: { type: "kv" },
        log: { least: "warn" },
      },
      { wallMs: 500 },
    );
    const used = [
      event("kv", "kv", "set", { key: "a" }),
      event("kv", "kv", "get", { key: "a" }),
      event("files", "files", "readText", { path: "a.txt" }),
      event("events", "events", "emit", { name: "done" }),
    ];
    const { grants, limits, notes, policy: least } = proposed(used, generous);
    expect(limits).toEqual({ wallMs: 500 });
    expect(grants).toEqual({
      kv: { namespace: "tenant", quotaBytes: 1000, budget: { calls: 5 }, only: ["get", "set"] },
      files: { root: "data", only: ["readText"] },
      events: { names: ["done"], only: ["emit"] },
      approve: {},
      log: { least: "warn" },
    });
    expect(notes).toEqual(["timer was not used and is left out"]);
    expect(policyDiff(generous, least)).toEqual([]);
    expect(policyDiff(least, generous).length).toBeGreaterThan(0);
  });

  test("of a run that asked for nothing grants nothing", () => {
    expect(proposed([], policy({ kv: true })).grants).toEqual({});
  });

  test("keeps writing where something was written", () => {
    const generous = policy({ files: { root: "/data", mode: "rw", quotaBytes: 5 } });
    const { grants } = proposed([event("files", "files", "write", { path: "a" })], generous);
    expect(grants["files"]).toMatchObject({ root: "../data", mode: "rw", quotaBytes: 5, only: ["write"] });
  });

  test("names exact addresses and methods, without queries", () => {
    const { grants } = proposed(
      [
        asks("https://a.example/v1/x?token=1"),
        asks("https://a.example/v1/x?token=2"),
        asks("https://a.example/v1/x", "POST"),
        asks("https://b.example:8443/"),
      ],
      nothing,
    );
    expect(grants).toMatchObject({
      http: {
        allow: [
          { url: "https://a.example/v1/x", methods: ["GET", "POST"] },
          { url: "https://b.example:8443/", methods: ["GET"] },
        ],
      },
    });
  });

  test("follows a redirect, by the method that it may have become", () => {
    const { grants } = proposed([asks("https://a.example/", "POST", { redirectedTo: "https://b.example/x" })], nothing); // prettier-ignore
    expect(grants).toMatchObject({
      http: {
        allow: [{ url: "https://a.example/" }, { url: "https://b.example/x", methods: ["GET", "POST"] }],
      },
    });
  });

  test("makes a directory of many paths beside each other, and says so", () => {
    const many = Array.from({ length: 8 }, (_, i) => asks(`https://a.example/users/${i}`));
    const { grants, notes } = proposed([...many, asks("https://a.example/status", "HEAD")], nothing);
    expect(grants).toMatchObject({
      http: {
        allow: [
          { url: "https://a.example/users/*", methods: ["GET"] },
          { url: "https://a.example/status", methods: ["HEAD"] },
        ],
      },
    });
    expect(notes).toEqual([expect.stringContaining("https://a.example/users/*")]);
    expect(proposed(many.slice(1), nothing).notes).toEqual([]); // one less stays exact
  });

  test("keeps headers and secrets for the hosts that were asked, and no others", () => {
    const generous = policy({
      http: {
        allow: ["https://*.example/*"],
        inject: [
          { host: "a.example", header: "authorization", secret: "token" },
          { host: "b.example", header: "x-key", secret: { env: "B" } },
        ],
      },
      token: { type: "secret", env: "A", hosts: ["a.example", "c.example"] },
      other: { type: "secret", env: "O", hosts: ["b.example"] },
    });
    const { grants, notes, policy: least } = proposed([asks("https://a.example/x")], generous);
    expect(grants).toEqual({
      http: {
        allow: [{ url: "https://a.example/x", methods: ["GET"] }],
        inject: [{ host: "a.example", header: "authorization", secret: "token" }],
        only: ["request"],
      },
      token: { type: "secret", env: "A", hosts: ["a.example"] },
    });
    expect(notes).toEqual([expect.stringMatching(/^other /)]);
    expect(policyDiff(generous, least).map(({ field }) => field)).toEqual([]);
  });

  test("of what was asked for in vain has the type's defaults, and leaves the directory to the reader", () => {
    const asked = [event("cache", "kv", "get"), event("files", "files", "read")];
    const { grants, notes } = proposed(asked, nothing);
    expect(grants).toEqual({
      cache: { type: "kv", only: ["get"] },
      files: { root: "files", only: ["read"] },
    });
    expect(notes).toEqual([expect.stringContaining("choose the directory")]);
  });

  test("widens nothing by a star that a script put into a URL, and names nothing that was cut", () => {
    const odd = [
      asks("https://a.example/*"),
      asks("https://a.example/v1/x*"),
      asks("https://*.example/"),
      asks("https://a.example/ok", "GET", { redirectedTo: "https://b.example/*" }),
      asks(`https://a.example/${"x".repeat(512)}`.slice(0, 512)),
    ];
    const { grants, notes } = proposed(odd, nothing);
    expect(grants).toMatchObject({ http: { allow: [{ url: "https://a.example/ok", methods: ["GET"] }] } });
    expect(notes).toHaveLength(5);
  });

  test("of an address that is not public has it only where the policy opens it", () => {
    const at = [asks("http://127.0.0.1:8080/x"), asks("https://a.example/")];
    const { grants, notes } = proposed(at, nothing);
    expect(grants).toMatchObject({ http: { allow: [{ url: "https://a.example/" }] } });
    expect(notes).toEqual([expect.stringMatching(/left out: .*not public/)]);
    const open = policy({ http: { allow: ["http://127.0.0.1:8080/*"], open: ["127.0.0.1/32"] } });
    expect(proposed(at, open).grants).toMatchObject({
      http: {
        allow: [{ url: "http://127.0.0.1:8080/x" }, { url: "https://a.example/" }],
        open: ["127.0.0.1/32"],
      },
    });
  });

  test("takes nothing from events that no policy could grant", () => {
    const odd = [
      event("(unknown)", "(unknown)", "(unknown)"),
      event("clock", "clock", "now"),
      asks("ftp://a.example/"),
      asks("not a URL"),
      asks("https://a.example/x", "TRACE"),
      event("http", "http", "request", { url: 5, method: true }),
    ];
    const { grants, notes } = proposed(odd, nothing);
    expect(grants).toEqual({});
    expect(notes).toHaveLength(3);
  });
});
