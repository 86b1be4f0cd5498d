/**
 * A supervisor that has run out of descriptors or processes: whoever waits is told so in words, nothing hangs, and with
 * room again it serves on. Each program is a process of its own under `ulimit`, and eats what is left before it asks.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, test } from "vitest";
import { JAIL_ERRORS } from "#osjail/errors";

const LIBRARY = new URL("../../dist/server/index.js", import.meta.url).href;
const PROGRAM_MS = 60_000;

const TOOLS = `
  import fs from "node:fs";
  import { Sandbox } from ${JSON.stringify(LIBRARY)};
  const say = (value) => fs.writeSync(1, JSON.stringify(value) + "\\n");
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

/** What the program said, one JSON text a line, and how it ended: it must end by itself. */
async function limited(source: string, files = 128): Promise<{ ended: unknown; said: unknown[] }> {
  const command = `ulimit -n ${files} && exec "$0" "$@"`;
  const args = ["-c", command, process.execPath, "--input-type=module", "-e", `${TOOLS}\n${source}`];
  const child = spawn("/bin/sh", args, {
    stdio: ["ignore", "pipe", "inherit"],
    timeout: PROGRAM_MS,
    killSignal: "SIGKILL",
  });
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
  const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
  const lines = text.split("\n").filter((line) => line !== "");
  return { ended: signal ?? code, said: lines.map((line) => JSON.parse(line) as unknown) };
}

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
});
