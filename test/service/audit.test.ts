/** What the service's audit log says of changes: what was done, and nothing that was not. */
import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { AuditLog } from "#server/service/audit-log";
import { audited, shared } from "./harness.js";

const it = shared();
const changes = (kind: string, tenant?: string) =>
  audited(it.dir).filter((line) => line["kind"] === kind && line["tenant"] === tenant);
const acts = (kind: string, tenant: string) => changes(kind, tenant).map(({ act }) => act);
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

test("what is not there is not removed, and no line says so", async () => {
  const key = await it.tenant("tidy");
  for (const [asker, route] of [
    [it.admin, "/admin/v1/tenants/nobody"],
    [it.admin, "/admin/v1/tenants/tidy/keys/0123456789ab"],
    [it.ask, "/v1/secrets/NOTHING"],
    [it.ask, "/v1/scripts/nothing"],
  ] as const) {
    const options = asker === it.ask ? { key } : {};
    expect((await asker("DELETE", route, options)).status).toBe(404);
  }
  const removed = () => audited(it.dir).filter(({ act }) => act === "removed");
  expect(removed()).toEqual([]);
  await it.ask("PUT", "/v1/secrets/SOMETHING", { key, body: { value: "x" } });
  expect((await it.ask("DELETE", "/v1/secrets/SOMETHING", { key })).status).toBe(204);
  expect((await it.admin("DELETE", "/admin/v1/tenants/tidy")).status).toBe(204);
  expect(removed()).toMatchObject([
    { kind: "secret", secret: "SOMETHING", tenant: "tidy" }, // the control
    { kind: "tenant", tenant: "tidy" },
  ]);
});

test("scripts that are stored, changed and removed have lines, by which a run's script is found", async () => {
  const key = await it.tenant("author");
  const put = (source: string) => it.ask("PUT", "/v1/scripts/greet", { key, body: { source } });
  const [one, two] = ["export default () => 1", "export default () => 2"];
  const first = await put(one);
  await put(one); // the same again is no change
  const second = await put(two);
  await it.ask("POST", "/v1/runs", { key, body: { script: "greet" } });
  await it.ask("DELETE", "/v1/scripts/greet", { key });
  const by = key.split("_")[1];
  const line = (act: string, version: number, { body }: typeof first, source: string) =>
    expect.objectContaining({ act, by, tenant: "author", name: "greet", version, content: body.hash, script: sha256(source) }); // prettier-ignore
  expect(changes("script", "author")).toEqual([
    line("created", 1, first, one),
    line("changed", 2, second, two),
    line("removed", 2, second, two),
  ]);
  const run = audited(it.dir).find((line) => line["kind"] === "run" && line["tenant"] === "author");
  expect(run?.["script"]).toBe(sha256(two));
  expect(JSON.stringify(audited(it.dir))).not.toContain("export default");
});

test("every key has a line, the first administrator's too", () => {
  const first = it.service.made?.adminKey.split("_")[1];
  expect(changes("key").map(({ act, key }) => [act, key])).toEqual([["created", first]]);
  expect(acts("key", "default")).toEqual(["created"]);
});

test("where no line can be written, nothing is stored or removed", async () => {
  const key = await it.tenant("held");
  const id = key.split("_")[1] ?? "";
  await it.ask("PUT", "/v1/scripts/kept", { key, body: { source: "1" } });
  await it.ask("PUT", "/v1/secrets/KEPT", { key, body: { value: "x" } });
  const append = AuditLog.prototype.append; // oxlint-disable-line typescript/unbound-method -- put back below
  AuditLog.prototype.append = () => {
    throw new Error("no space left");
  };
  const answers = [
    await it.ask("DELETE", "/v1/scripts/kept", { key }),
    await it.ask("PUT", "/v1/scripts/kept", { key, body: { source: "2" } }),
    await it.ask("DELETE", "/v1/secrets/KEPT", { key }),
    await it.admin("DELETE", `/admin/v1/tenants/held/keys/${id}`),
    await it.admin("DELETE", "/admin/v1/tenants/held"),
  ];
  AuditLog.prototype.append = append;
  expect(answers.map(({ status }) => status)).toEqual([500, 500, 500, 500, 500]);
  expect((await it.ask("GET", "/v1/scripts/kept", { key })).body).toMatchObject({ version: 1 });
  expect((await it.ask("GET", "/v1/secrets", { key })).body.secrets).toHaveLength(1);
  expect((await it.ask("DELETE", "/v1/scripts/kept", { key })).status).toBe(204); // the control
});
