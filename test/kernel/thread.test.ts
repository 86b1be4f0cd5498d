/**
 * The library inside a thread (worker_threads) that is ended at any moment: the process survives it and is left with no
 * descriptor, no keeper and no cgroup of it. Each program here is a process of its own, because a wrong answer is a crash.
 */
import { describe, expect, test } from "vitest";
import { program } from "./program.js";

const LIBC = new URL("../../dist/osjail/libc.ffi.js", import.meta.url).href;
const LIBRARY = new URL("../../dist/server/index.js", import.meta.url).href;
const THREAD_END = new URL("../../dist/osjail/thread-end.js", import.meta.url).href;
const FFI = import.meta.resolve("ffi-rs");

/** What a program sees of itself: descriptors, and children with their states. */
const TOOLS = `
  import { once } from "node:events";
  import { Worker } from "node:worker_threads";
  const descriptors = () => fs.readdirSync("/proc/self/fd").length;
  const stat = (pid) => { try { return fs.readFileSync("/proc/" + pid + "/stat", "latin1"); } catch { return ""; } };
  /** Ours, whichever thread made them: state by pid. */
  const children = () => Object.fromEntries(fs.readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name)).flatMap((pid) => {
    const text = stat(pid), [state, parent] = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return Number(parent) === process.pid ? [[pid, state]] : [];
  }));
  const until = async (isSo) => { while (!isSo()) await new Promise((go) => setTimeout(go, 5)); };
  /** A thread that does this, says so, and would live for ever. */
  const thread = async (source) => {
    const made = new Worker("const { parentPort } = require('node:worker_threads'); setInterval(() => {}, 1000); (async () => { " + source + " })().then(() => parentPort.postMessage('done'));", { eval: true, execArgv: [] });
    const [said] = await once(made, "message");
    if (said !== "done") throw new Error("it said " + said);
    return made;
  };
`;

const endThreads = (source: string, count: number) => `
  for (let i = 0; i < ${count}; i++) {
    const made = await thread(${JSON.stringify(source)});
    await made.terminate();
    say(i);
  }`;

describe("a thread that is terminated", () => {
  test("would take the process with it, had it loaded the FFI library by itself", async () => {
    const { ended } = await program(TOOLS + endThreads(`await import(${JSON.stringify(FFI)});`, 8));
    expect(ended).toBe("SIGSEGV");
  });

  test("and has made system calls leaves the process alive", async () => {
    const call = `const { sys } = await import(${JSON.stringify(LIBC)}); if (sys("getpid") !== process.pid) throw new Error();`;
    expect(await program(TOOLS + endThreads(call, 8))).toEqual({ ended: 0, said: [0, 1, 2, 3, 4, 5, 6, 7] });
  });

  test("and has only imported the library leaves the process alive", async () => {
    const { ended, said } = await program(TOOLS + endThreads(`await import(${JSON.stringify(LIBRARY)});`, 4));
    expect({ ended, said }).toEqual({ ended: 0, said: [0, 1, 2, 3] });
  });

  test("and had a sandbox leaves no keeper, no descriptor and, after the next start, no zombie", async () => {
    const make = `const { Sandbox } = await import(${JSON.stringify(LIBRARY)});
      const sandbox = await Sandbox.create({ image: "fast-start", parked: 1 });
      const { value } = await sandbox.run("6 * 7", { type: "script" });
      if (value !== 42) throw new Error("no run");`;
    const { ended, said } = await program(`${TOOLS}
      await (await thread("")).terminate(); // whatever Node keeps of a first thread
      const before = descriptors();
      for (let i = 0; i < 4; i++) {
        const made = await thread(${JSON.stringify(make)});
        const during = { keepers: Object.values(children()).filter((state) => state !== "Z").length, more: descriptors() > before + 8 };
        const zombies = Object.values(children()).filter((state) => state === "Z").length;
        await made.terminate();
        await until(() => Object.values(children()).every((state) => state === "Z"));
        say({ ...during, zombies, left: descriptors() - before });
      }
    `);
    const round = { keepers: 1, more: true, zombies: 0, left: 0 };
    expect({ ended, said }).toEqual({ ended: 0, said: [round, round, round, round] });
  });

  test("while its sandbox is starting leaves no keeper", async () => {
    const begin = `const { Sandbox } = await import(${JSON.stringify(LIBRARY)}); void Sandbox.create({ image: "fast-start" });`;
    const { ended, said } = await program(`${TOOLS}
      for (let i = 0; i < 3; i++) {
        const made = await thread(${JSON.stringify(begin)});
        await until(() => Object.values(children()).some((state) => state !== "Z"));
        say("a keeper");
        await made.terminate();
        await until(() => Object.values(children()).every((state) => state === "Z"));
        say("none");
      }
    `);
    const expected = Array.from({ length: 3 }, () => ["a keeper", "none"]).flat();
    expect({ ended, said }).toEqual({ ended: 0, said: expected });
  });
});

test("a start waits for no child but a keeper: the exit of another is the embedder's to learn", async () => {
  const { ended, said } = await program(`${TOOLS}
    import { spawn } from "node:child_process";
    const { buryForgottenKeepers } = await import(${JSON.stringify(THREAD_END)});
    const child = spawn("/bin/sh", ["-c", "exit 7"]);
    const exited = once(child, "exit");
    while (children()[child.pid] !== "Z"); // no turn of the event loop: nobody has waited for it yet
    buryForgottenKeepers();
    say(children()[child.pid]);
    say((await exited)[0]);
  `);
  expect({ ended, said }).toEqual({ ended: 0, said: ["Z", 7] });
});
