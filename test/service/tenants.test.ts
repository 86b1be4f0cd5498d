/** Tenants and keys as the database knows them, without HTTP. */
import fs from "node:fs";
import path from "node:path";
import { expect, test } from "vitest";
import { completeLimits } from "#server/limits";
import { openDatabase, type Database } from "#server/service/database";
import { tenantSettings } from "#server/service/schemas";
import { Tenants } from "#server/service/tenants";
import { temporaryDirectory } from "./harness.js";

/** A database of its own, whose statements are counted. */
async function counted() {
  const dir = temporaryDirectory();
  fs.mkdirSync(dir);
  const db = await openDatabase(`sqlite:${path.join(dir, "service.db")}`);
  const asked: string[] = [];
  const counting: Database = {
    ...db,
    all: (sql, ...values) => (asked.push(sql), db.all(sql, ...values)),
    run: (sql, ...values) => (asked.push(sql), db.run(sql, ...values)),
  };
  const store = { removeSpaces: () => Promise.resolve() };
  const tenants = new Tenants(counting, { store, limits: completeLimits({}), sealing: Buffer.alloc(32), now: Date.now }); // prettier-ignore
  const close = async () => {
    await db.close();
    fs.rmSync(path.dirname(dir), { recursive: true });
  };
  return { tenants, asked, close };
}

test("whose key it is takes one question of the database, and an administrator's has no tenant", async () => {
  const { tenants, asked, close } = await counted();
  await tenants.put("a", tenantSettings.parse({ name: "A" }));
  const { id, key } = await tenants.addKey("a", { name: "" }, () => {});
  const admin = await tenants.addKey(null, { name: "" }, () => {});
  asked.length = 0;
  expect(await tenants.holder(`Bearer ${key}`)).toMatchObject({ key: id, tenant: { id: "a", settings: { name: "A" } } }); // prettier-ignore
  expect(asked).toHaveLength(1);
  expect(await tenants.holder(`Bearer ${admin.key}`)).toEqual({ key: admin.id, admin: true });
  expect(asked).toHaveLength(2);
  await close();
});
