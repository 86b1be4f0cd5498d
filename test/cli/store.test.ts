/** `doublehull serve --store` where something is wrong with it: told with its remedy, and without the password. */
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { describeWith, startPostgres, type Postgres } from "../service/servers.js";
import { cli, folder, type CommandOptions } from "./command.js";

const anywhere = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-level", "silent"];
async function served(args: readonly string[], options: CommandOptions = {}) {
  using dir = folder({});
  const data = path.join(dir.path, "data");
  const { code, stdout, stderr } = await cli(["serve", ...anywhere, "--data", data, ...args], options);
  expect(stdout + stderr).not.toMatch(/hush|hu%2Fsh/);
  return { code, stderr };
}
const says = (code: number, words: RegExp) => ({ code, stderr: expect.stringMatching(words) });

test("a URL that is none, or of something else, is the caller's mistake", async () => {
  expect(await served(["--store", "mysql://user:hush@127.0.0.1/x"])).toMatchObject(says(2, /postgres:\/\//));
  expect(await served(["--store", "user:hush@127.0.0.1/x"])).toMatchObject(says(2, /postgres:\/\//));
  expect(await served([], { env: { DOUBLEHULL_STORE: "" } })).toMatchObject(says(2, /postgres:\/\//));
  // Unescaped, a part of the password would be the name of a host or database.
  for (const password of ["12/hush", "12?hush", "12#hush", "hu/sh"]) {
    const url = `postgres://user:${password}@127.0.0.1:1/x`;
    expect(await served(["--store", url])).toMatchObject(says(2, /is no URL[^]*%2F/));
  }
  expect(await served(["--node", "a b"])).toMatchObject(says(2, /letters, digits/));
});

test("no server, or no package to speak with one, is this host's", async () => {
  const store = ["--store", "postgres://user:hush@127.0.0.1:1/x"];
  expect(await served(store)).toMatchObject(says(4, /ECONNREFUSED[^]*Start the server/));
  const hooks = `export const resolve = (what, context, next) => {
    if (what === "pg") throw Object.assign(new Error("Cannot find package"), { code: "ERR_MODULE_NOT_FOUND" });
    return next(what, context); }`;
  const asModule = (source: string) => `data:text/javascript,${encodeURIComponent(source)}`;
  const preload = asModule(
    `import { register } from "node:module"; register(${JSON.stringify(asModule(hooks))});`,
  );
  const env = { NODE_OPTIONS: `--import ${preload}` };
  expect(await served(store, { env })).toMatchObject(says(4, /needs the package pg[^]*npm install pg/));
});

describeWith("PostgreSQL", "a server", () => {
  let server: Postgres;
  beforeAll(async () => {
    server = await startPostgres();
  });
  afterAll(() => server.stop());

  test("that refuses the password or has no such database says so", async () => {
    const wrong = server.url.replace(/:[^:@]+@/, ":hush-hush@");
    expect(await served(["--store", wrong])).toMatchObject(says(4, /password authentication failed[^]*password/)); // prettier-ignore
    expect(await served(["--store", server.url.replace(/postgres$/, "absent")])).toMatchObject(says(4, /"absent" does not exist[^]*Create the database/)); // prettier-ignore
    // A flag is before the environment.
    expect(await served(["--store", wrong], { env: { DOUBLEHULL_STORE: server.url } })).toMatchObject(says(4, /password authentication/)); // prettier-ignore
    expect(await served([], { env: { DOUBLEHULL_STORE: wrong } })).toMatchObject(says(4, /password authentication/)); // prettier-ignore
  });
});
