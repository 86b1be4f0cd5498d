/** The service's database, where an operator gets its URL wrong. A server's own tests need one. */
import { expect, test } from "vitest";
import { openDatabase } from "#server/service/database";

test.each([
  "postgres://user:hush@127.0.0.1:1/x",
  "postgres://user:hu/sh@127.0.0.1:1/x",
  "postgres://user:hu@hush@127.0.0.1:1/x",
  "postgres://127.0.0.1:1/x?user=user&password=hush",
  "mysql://user:hu@hush@127.0.0.1/x",
])("no password stands in the refusal of %s", async (url) => {
  const error = await openDatabase(url).then(
    () => undefined,
    (refused: Error) => refused,
  );
  expect(error?.message).toMatch(/^(?:store: postgres:\/\/|the store must be .*"mysql:\/\/)/); // the control
  expect(error?.message).not.toMatch(/hush|hu\/sh/);
});
