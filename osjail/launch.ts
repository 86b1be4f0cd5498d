/**
 * Starting a keeper under the filter that lets Node fork. The filter and no_new_privs are set before execve and survive
 * it, and both belong to a thread: so a thread of its own sets them, starts the keeper and ends, and the caller's
 * process stays what it was. A program that is ours alone (the command line) may do it on its main thread and save
 * the thread's start. man 2 seccomp, man 2 prctl PR_SET_NO_NEW_PRIVS, man 2 execve
 */
import { spawn, type StdioOptions } from "node:child_process";
import { once } from "node:events";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { PR } from "./abi/linux.js";
import { installForkFilter } from "./filter.js";
import { sys } from "./libc.ffi.js";

export interface Launch {
  command: string;
  args: readonly string[];
  env: Readonly<Record<string, string>>;
  stdio: readonly (number | "ignore")[];
}

/** Where the filter is installed: in a thread made for it, or for good in the calling main thread. */
export type LaunchFrom = "thread" | "main";

/** Starts the process in a session of its own, so that a terminal's Ctrl-C does not reach it; its pid. */
export async function launch(what: Launch, from: LaunchFrom): Promise<number> {
  if (from === "main") return await start(what);
  const thread = new Worker(new URL("./launch.js", import.meta.url), {
    workerData: { doublehullLaunch: what },
    execArgv: [],
    env: {},
  });
  const [answer] = (await once(thread, "message")) as [{ pid: number } | { error: string }];
  if ("error" in answer) throw new Error(answer.error);
  return answer.pid;
}

let filtered = false;

async function start(what: Launch): Promise<number> {
  if (!filtered) {
    sys("prctl", PR.SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    installForkFilter();
    filtered = true;
  }
  const child = spawn(what.command, what.args, {
    env: what.env,
    stdio: [...what.stdio] as StdioOptions,
    detached: true,
    cwd: "/", // a keeper pins no directory
  });
  await once(child, "spawn"); // rejects with the reason when the program cannot be started
  child.unref();
  return child.pid as number;
}

const job = (workerData as { doublehullLaunch?: Launch } | null)?.doublehullLaunch;
if (!isMainThread && job !== undefined) {
  start(job).then(
    (pid) => parentPort?.postMessage({ pid }),
    (error: unknown) => parentPort?.postMessage({ error: String(error) }),
  );
}
