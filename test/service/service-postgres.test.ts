/** The suite of the service once more, its state on PostgreSQL. */
import fs from "node:fs";
import path from "node:path";
import { afterAll, expect, test } from "vitest";
import { standOn, start } from "./harness.js";
import { describeWith, startPostgres, type Postgres } from "./servers.js";

describeWith("PostgreSQL", "on PostgreSQL", async () => {
  let server: Postgres | undefined;
  afterAll(() => server?.stop()); // after what the suite has to end
  standOn(async () => (server ??= await startPostgres()).database());
  await import("./service.test.js");

  test("the directory has nothing but what is the node's own", async () => {
    const one = await start();
    await one.service.close();
    expect(fs.readdirSync(one.dir).sort()).toEqual(["audit", "sealing.key"]);
    fs.rmSync(path.dirname(one.dir), { recursive: true });
  });
});
