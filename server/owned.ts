/**
 * The attacker's engine: the given code runs in the worker's own Node realm after lock-down and may make any system
 * call. It grades the kernel hull by itself, as if the language hull had fallen. For the lab and the tests; `Sandbox`
 * cannot name it.
 */
import { resultText, type Engine, type Image } from "../engine/engine.js";
import { codec } from "../engine/codec.js";
import { Memory, rawSyscall, syscallNumber } from "../osjail/libc.ffi.js";
import type { SyscallName } from "../osjail/abi/syscalls.js";

const { encode } = codec();

export interface OwnedTools {
  /** One raw system call; a negative answer of the kernel comes as ret -1 and errno, as in C. man 2 syscall */
  syscall(nr: number | SyscallName, ...args: (number | Memory)[]): { ret: number; errno: number };
  /** Bytes at a fixed address, to be passed in a call. */
  memory(content: number | string | Uint8Array): Memory;
  input: unknown;
  /** The entries of `env` as the job has them: with references, without stubs. */
  env: readonly unknown[];
}

export const owned: Engine = {
  boot: async (): Promise<Image> => ({
    rehearse: () => {},
    warm: () => void run("return input", undefined, []),
    load: (job, send) => ({
      outstanding: 0,
      reserve: () => undefined,
      step: () => {
        try {
          const value = run(job.source, job.input.wire, job.env);
          const limits = { maxBytes: job.maxResultBytes, maxDepth: 64, maxNodes: 1_000_000, root: "value" };
          const { text, blobs } = encode(value, limits);
          send({ kind: "result", text: resultText({ status: "ok", value: text }), blobs });
        } catch (error) {
          const { name, message, stack = "" } = error as Error;
          const text = resultText({ status: "threw", error: { name, message, stack } });
          send({ kind: "result", text, blobs: [] });
        }
      },
    }),
  }),
};

const syscall: OwnedTools["syscall"] = (nr, ...args) => {
  const ret = rawSyscall(typeof nr === "string" ? syscallNumber(nr) : nr, ...args);
  return ret < 0 && ret > -4096 ? { ret: -1, errno: -ret } : { ret, errno: 0 };
};

function run(source: string, input: unknown, env: readonly unknown[]): unknown {
  // oxlint-disable-next-line typescript/no-implied-eval, no-new-func -- the attacker's code is meant to run here
  const attack = new Function("syscall", "memory", "input", "Memory", "env", source) as (
    ...tools: unknown[]
  ) => unknown;
  return attack(syscall, (content: number | string | Uint8Array) => new Memory(content), input, Memory, env);
}
