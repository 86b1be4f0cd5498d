/**
 * A supervisor that has run out of descriptors or processes: whoever waits is told so in words, nothing hangs, and with
 * room again it serves on. Each program is a process of its own under `ulimit`, and eats what is left before it asks.
 */
import { describe, expect, test } from "vitest";
import { JAIL_ERRORS } from "#osjail/errors";
import { program } from "./program.js";

const LIBRARY = new URL("../../dist/server/index.js", import.meta.url).href;

const TOOLS = `
  import { Sandbox } from ${JSON.stringify(LIBRARY)};
  const script = { type: "script" };
  const told = async (run) => {
    try {
      const { status, value, stop } = await run;
      return status === "ok" ? value : (stop ?? status);
    } catch (error) {
      return { code: error.code ?? null, message: error.message, remedy: error.remedy ?? null };
    }
  };
  /** Opens files until no descriptor is left, then gives some back. Answers what it still holds. */
  const eat = (leave) => {
    const held = [];
    try {
      for (;;) held.push(fs.openSync("/dev/null"));
    } catch (error) {
      if (error.code !== "EMFILE") throw error;
    }
    for (const fd of held.splice(held.length - leave)) fs.closeSync(fd);
    return held;
  };
  const give = (held) => held.forEach((fd) => fs.closeSync(fd));
`;

/** Few enough to be eaten, enough for Node and a sandbox. */
const limited = (source: string) => program(TOOLS + source, { files: 128 });

describe("a supervisor without a free descriptor", () => {
  test("and without a kernel hull tells whoever waits, serves on later, and closes", async () => {
    const { ended, said } = await limited(`
      const sandbox = await Sandbox.create({ hull: "language-only", parked: 0 });
      say(await told(sandbox.run("1", script)));
      for (const left of [0, 1, 2, 3]) { // more than one would be needed
        const held = eat(left);
        const during = await told(sandbox.run("2", script));
        give(held);
        say(during);
      }
      say(await told(sandbox.run("3", script)));
      eat(0);
      const last = sandbox.run("4", script).catch(() => "told");
      await sandbox.close();
      say(await last);
    `);
    const refused = {
      code: "host-cannot",
      message: expect.stringContaining("EMFILE") as string,
      remedy: JAIL_ERRORS["worker-start"],
    };
    expect({ ended, said }).toEqual({ ended: 0, said: [1, refused, refused, refused, refused, 3, "told"] });
  });

  test("of which too few can ever be had for its workers is told the number before any run", async () => {
    const { ended, said } = await limited(`
      const refused = () => told(Sandbox.create({ image: "fast-start", parked: 60 }).then(() => "created"));
      const open = () => fs.readdirSync("/proc/self/fd").length;
      say(await refused());
      const before = open();
      await refused();
      say(open() - before);
      const sandbox = await Sandbox.create({ image: "fast-start", parked: 2, maxConcurrent: 2 }); // the control
      say(await told(sandbox.run("1", script)));
      await sandbox.close();
    `);
    expect(ended).toBe(0);
    const refused = said[0] as { code: string; message: string; remedy: string };
    expect(refused).toMatchObject({ code: "host-cannot", remedy: JAIL_ERRORS["open-files"] });
    const [, needed] = /need (\d+) open files, and the limit is 128/.exec(refused.message) ?? [];
    expect(Number(needed)).toBeGreaterThan(128);
    expect(said.slice(1)).toEqual([0, 1]);
  });

  test("and with a kernel hull tells whoever waits, loses no place for a worker, and serves on", async () => {
    const { ended, said } = await limited(`
      // 128 descriptors in all are also fewer than any that a zygote may number as it likes.
      const sandbox = await Sandbox.create({ image: "fast-start", parked: 0, maxConcurrent: 2 });
      say(await told(sandbox.run("1", script)));
      const open = () => fs.readdirSync("/proc/self/fd").length;
      const before = open();
      for (let round = 0; round < 4; round++) {
        for (const left of [0, 1, 2, 3, 4, 5]) {
          const held = eat(left);
          const during = await told(sandbox.run("'ran'", script));
          give(held);
          say(during === "ran" ? during : during.code);
        }
      }
      const all = await Promise.all(Array.from({ length: 12 }, () => told(sandbox.run("2", script))));
      say(all.join(""));
      while (open() > before) await new Promise((go) => setTimeout(go, 5));
      eat(0);
      const last = sandbox.run("4", script).catch(() => "told");
      await sandbox.close();
      say(await last);
    `);
    expect(ended).toBe(0);
    expect(said[0]).toBe(1);
    const during = said.slice(1, -2);
    expect(during).toHaveLength(24);
    expect(new Set(during)).toContain("host-cannot");
    for (const one of during) expect(["host-cannot", "ran"]).toContain(one);
    expect(said.slice(-2)).toEqual(["2".repeat(12), "told"]);
  });
});
