/** The suite of jobs once more, on PostgreSQL. */
import { afterAll } from "vitest";
import { standOn } from "./harness.js";
import { describeWith, startPostgres, type Postgres } from "./servers.js";

describeWith("PostgreSQL", "on PostgreSQL", async () => {
  let server: Postgres | undefined;
  afterAll(() => server?.stop()); // after what the suite has to end
  standOn(async () => (server ??= await startPostgres()).database());
  await import("./jobs.test.js");
});
