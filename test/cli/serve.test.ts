/** `doublehull serve` as an operator meets it. */
import { execFile } from "node:child_process";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { anywhere, cli, folder, startServing as serving } from "./command.js";

test("the first start prints keys and a request that works as printed; SIGTERM ends it in order; the next start keeps them", async () => {
  using dir = folder({});
  const data = path.join(dir.path, "data");
  const first = await serving(["--data", data]);
  const request = /^curl [^]*$/m.exec(first.said)?.[0] ?? "";
  const { stdout } = await promisify(execFile)("bash", ["-euc", request]);
  expect(JSON.parse(stdout)).toMatchObject({ outcome: { status: "ok", value: 42 } });
  const [, page = "", key] = /^playground +(\S+)#key=(\S+)$/m.exec(first.said) ?? [];
  expect(request).toContain(`Bearer ${key}'`);
  expect(await (await fetch(page)).text()).toContain("<title>doublehull playground</title>");
  first.child.kill("SIGTERM");
  const { code, stderr } = await first.ended;
  expect({ code, stderr }).toEqual({ code: 0, stderr: "doublehull: SIGTERM: finishing what is under way\n" });
  const second = await serving(["--data", data]);
  expect(second.said).not.toContain("dh_");
  expect(second.said).toMatch(/^playground +http:\S+\/playground\/$/m);
  const address = /http:\S+?(?=\/v1)/.exec(second.said)?.[0] ?? "";
  const old = /https?:\S+?(?=\/v1\/runs -H)/.exec(request)?.[0] ?? "";
  const again = await promisify(execFile)("bash", ["-euc", request.replace(old, address)]);
  expect(JSON.parse(again.stdout)).toMatchObject({ outcome: { status: "ok", value: 42 } });
  second.child.kill("SIGINT");
  expect((await second.ended).code).toBe(0);
});

test("one that was killed leaves nothing that keeps the next from starting", async () => {
  using dir = folder({});
  const data = path.join(dir.path, "data");
  const first = await serving(["--data", data]);
  first.child.kill("SIGKILL");
  await first.ended;
  const second = await serving(["--data", data]);
  second.child.kill("SIGTERM");
  expect((await second.ended).code).toBe(0);
});

test("what an operator does wrong is told with its remedy", async () => {
  using dir = folder({});
  const data = path.join(dir.path, "data");
  const wrong = async (...args: string[]) => {
    const { code, stderr } = await cli(["serve", "--data", data, ...args]);
    return { code, stderr };
  };
  expect(await wrong("--listen", "nowhere")).toMatchObject({ code: 2, stderr: expect.stringContaining("--listen must be HOST:PORT") }); // prettier-ignore
  expect(await wrong("--parked", "-1")).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("whole number"),
  });
  expect(await wrong("--limit", "wallms=1")).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("wallMs"),
  });
  for (const nowhere of ["/proc/nowhere", "/proc/nowhere/data", "/dev/null/data"]) {
    const { code, stderr } = await cli(["serve", ...anywhere, "--data", nowhere]);
    expect({ code, stderr }).toMatchObject({ code: 4, stderr: expect.stringMatching(/cannot be made[^]*--data/) }); // prettier-ignore
  }
  const server = net.createServer().listen(0, "127.0.0.1");
  await new Promise((ready) => server.once("listening", ready));
  const { port } = server.address() as net.AddressInfo;
  const taken = await wrong("--listen", `127.0.0.1:${port}`, "--admin-listen", "0");
  server.close();
  expect(taken).toMatchObject({ code: 4, stderr: expect.stringMatching(/EADDRINUSE[^]*--listen/) });
  fs.chmodSync(data, 0o755);
  expect(await wrong(...anywhere)).toMatchObject({ code: 4, stderr: expect.stringMatching(/open to other users[^]*chmod 700/) }); // prettier-ignore
  fs.chmodSync(data, 0o700);
  const one = await serving(["--data", data]);
  expect(await wrong(...anywhere)).toMatchObject({ code: 4, stderr: expect.stringContaining("another") });
  one.child.kill("SIGTERM");
  await one.ended;
});
