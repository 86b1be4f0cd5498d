/** The command line with a person before it: a pseudo-terminal of its own, by script(1) of util-linux. */
import { spawn, spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { folder, root, type Finished } from "./command.js";

const program = path.join(root, "dist/server/cli.js");

/** Why there is no pseudo-terminal here; undefined if there is. */
export const noTerminal: string | undefined = /util-linux/.test(
  spawnSync("script", ["--version"], { encoding: "utf8" }).stdout ?? "",
)
  ? undefined
  : "there is no script(1) of util-linux to make a terminal";

export interface AtTerminal extends Finished {
  /** What stood on the terminal itself: the questions, and what was typed. */
  screen: string;
}

const quoted = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`;

/**
 * Runs it in `cwd` and types `answers[n]` when the n-th question stands there, followed by a return; a control
 * character as it is. `before` is typed at once.
 */
export async function atTerminal(
  args: readonly string[],
  answers: readonly string[],
  { cwd, before = "" }: { cwd: string; before?: string },
): Promise<AtTerminal> {
  using streams = folder({ out: "", err: "" });
  const [out, err] = ["out", "err"].map((name) => path.join(streams.path, name)) as [string, string];
  const command = [process.execPath, program, ...args].map(quoted).join(" ");
  const child = spawn("script", ["-qfec", `exec ${command} >${quoted(out)} 2>${quoted(err)}`, "/dev/null"], {
    cwd,
    env: { PATH: process.env["PATH"], NO_COLOR: "1", SHELL: "/bin/sh" },
  });
  child.stdin.on("error", () => {}); // it may end without reading
  child.stdin.write(before);
  let [screen, given] = ["", 0];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    screen += text;
    for (; given < answers.length && screen.split("[y/N] ").length - 1 > given; given++) {
      const answer = answers[given] ?? "";
      // oxlint-disable-next-line no-control-regex -- a control character is a key, and ends no line
      child.stdin.write(/^[\0-\x1f]$/.test(answer) ? answer : `${answer}\n`);
    }
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  const [stdout, stderr] = [fs.readFileSync(out, "utf8"), fs.readFileSync(err, "utf8")];
  return { code, stdout, stderr, screen };
}
