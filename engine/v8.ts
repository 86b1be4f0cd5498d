/**
 * V8 isolates of isolated-vm, for `v8-jitless` and `v8` alike: whether scripts are compiled to machine code is a flag of
 * the process. One isolate, one run, one process. Isolate and context are made before the fork and everything after it
 * is synchronous on the one thread: neither isolated-vm's own timeout nor its asynchronous functions are used, for both
 * start threads. What holds a loop is the deadline outside.
 *
 * No object of isolated-vm reaches a guest, and no host function that a guest can call ever throws: its error would
 * carry the host's stack.
 */
import { createRequire } from "node:module";
import v8 from "node:v8";
import { runInNewContext } from "node:vm";
import {
  EngineUnavailable,
  resultText,
  type BootOptions,
  type Engine,
  type Guest,
  type GuestMessage,
  type HostMessageKind,
  type Image,
  type InnerStop,
  type Job,
} from "./engine.js";
import type { Context, Isolate, IsolatedVm, Module, Reference } from "./isolated-vm.js";
import { codecSource, v8RealmSource, worldSource } from "./guest.js";
import { beginning, GuestClock, notProvided, OWN_FILE, resolveModule, WARM_JOB } from "./job.js";
import type { V8Control } from "./v8-realm.js";
import { JUMP, RAN_ONE } from "./world.js";

type Send = (message: GuestMessage) => void;

const CONTROLS = [
  "begin",
  "fail",
  "deliver",
  "turn",
  "due",
  "failAs",
  "settleModule",
  "settleScript",
] as const satisfies readonly (keyof V8Control)[];
const KINDS: readonly GuestMessage["kind"][] = ["call", "reply", "release", "log", "result"];
const HOOK = "doublehull:hook";
const ROOT = "doublehull:root";
const MAIN = "main";

const HOST =
  "(collect, call, reply, release, log, result) => ({ __proto__: null, collect, call, reply, release, log, result })";

/** Stack between the place where the isolate is made, from which V8 counts, and the guest's own, bytes. */
const STACK_MARGIN_BYTES = 48 * 1024;
/** On x86-64 and arm64 an argument of a call takes so much of the stack. */
const ARGUMENT_BYTES = 8;

type Controls = Record<(typeof CONTROLS)[number], Reference>;

/** isolated-vm's own words for a place in no file, and for what is thrown and is neither an error nor a primitive. */
const NOWHERE = / \[<isolated-vm>:\d+:\d+\]$/;
const INDESCRIBABLE = /^An object was thrown from supplied code within isolated-vm/;

interface V8Options extends BootOptions {
  /** A function of that isolate which collects its garbage, and the same of ours. */
  collect: Reference;
  collectOurs: () => void;
  beforeFork: () => number;
}

/**
 * Of messages, what may lie about as garbage in both isolates, bytes: bytes outside V8's heaps hurry no collection of
 * theirs before the worker's cgroup is full.
 */
const COLLECT_BYTES = 8 * 1024 * 1024;

class V8Image implements Image {
  readonly #ivm: IsolatedVm;
  readonly #isolate: Isolate;
  readonly #options: V8Options;
  readonly #context: Context;
  readonly #control: Controls;
  /** A function of the guest's realm that calls `#act`: what that does happens inside one call of the guest's. */
  readonly #enter: Reference;
  #act: () => void = () => {};
  /** What the modules' root imports first: it hands over the settling function and is evaluated already. */
  readonly #hook: Module;
  readonly #takeBallast: Reference;
  readonly #stackBytes: number;
  readonly #memoryBytes: number;
  readonly #clock = new GuestClock();
  #finished = false;
  #send: Send = () => {};
  #unsent: unknown;
  #uncompiled: unknown;
  /** Bytes of messages since the last collection. */
  #copied = 0;
  /** The main module is being evaluated: a rejection that nobody handled may be its own. */
  #evaluating: { job: Job; root: Module } | undefined;

  constructor(ivm: IsolatedVm, isolate: Isolate, options: V8Options) {
    this.#ivm = ivm;
    this.#isolate = isolate;
    this.#options = options;
    this.#stackBytes = options.stackKb * 1024;
    this.#memoryBytes = options.memoryMb * 1024 * 1024;
    this.#context = isolate.createContextSync();
    const evaluate = (source: string): Reference =>
      isolate
        .compileScriptSync(`"use strict";(${source})`, { filename: OWN_FILE })
        .runSync(this.#context, { reference: true });
    const call = (f: Reference, ...args: unknown[]): Reference =>
      f.applySync(undefined, args, { result: { reference: true } }) as Reference;
    const callback = (f: (...args: unknown[]) => unknown) => new ivm.Callback(f);

    const guard = call(
      evaluate(v8RealmSource),
      callback(() => this.#clock.read()),
    );
    const host = call(
      evaluate(HOST),
      options.collect.derefInto(),
      ...KINDS.map((kind) => callback((...parts) => this.#emit(kind, parts))),
    );
    const parts = [codecSource, options.guest.stubs, options.guest.web].map(evaluate);
    const world = evaluate(worldSource);
    const raw = call(world, ...[host, ...parts].map((part) => part.derefInto()));
    const control = call(guard, raw.derefInto());
    this.#control = Object.fromEntries(
      CONTROLS.map((name) => [name, control.getSync(name, { reference: true })]),
    ) as Controls;
    this.#enter = call(
      evaluate("(act) => () => { act() }"),
      callback(() => this.#act()),
    );
    this.#takeBallast = evaluate(
      "(() => { const Buffer = ArrayBuffer; let ballast; return (bytes) => { ballast = new Buffer(bytes); return ballast.byteLength === bytes } })()",
    );
    const loaded = callback(() => void (this.#evaluating = undefined));
    const settle = evaluate("(loaded, settle) => (all) => { loaded(); settle(all) }");
    this.#hook = this.#makeHook(call(settle, loaded, this.#control.settleModule.derefInto()));
  }

  /** No guest code has run yet: a global may carry the function for as long as the module takes it. */
  #makeHook(settle: Reference): Module {
    const { global } = this.#context;
    global.setSync(HOOK, settle.derefInto());
    const source = `export const settle = globalThis["${HOOK}"]`;
    const hook = this.#isolate.compileModuleSync(source, { filename: HOOK });
    hook.instantiateSync(this.#context, () => hook);
    hook.evaluateSync();
    global.deleteSync(HOOK);
    return hook;
  }

  // -- what the world may call --------------------------------------------------------------------------------------

  /**
   * Messages leave at once, so that a killed run keeps its logs. A guest that finds this function may call it with
   * anything: the host's side of the wire checks what it hears, and here only what is no message is dropped.
   */
  #emit(kind: GuestMessage["kind"], [text, ...buffers]: unknown[]): void {
    if (typeof text !== "string" || this.#finished) return;
    const blobs = buffers.flatMap((buffer) =>
      buffer instanceof ArrayBuffer ? [new Uint8Array(buffer)] : [],
    );
    this.#copied += text.length;
    for (const blob of blobs) this.#copied += blob.length;
    this.#tell({ kind, text, blobs });
  }

  #tell(message: GuestMessage): void {
    if (this.#finished) return;
    if (message.kind === "result") this.#finished = true;
    try {
      this.#send(message);
    } catch (error) {
      this.#unsent = error; // must not come to the guest: told when it has returned
      this.#finished = true;
    }
  }

  #stop(reason: InnerStop, detail: string): void {
    this.#tell({ kind: "result", text: resultText({ status: "stopped", reason, detail }), blobs: [] });
  }

  // -- one job ------------------------------------------------------------------------------------------------------

  rehearse(spend: (spare: Image) => void): void {
    // In the same isolate: what is compiled there once, the real context has too.
    const spare = new V8Image(this.#ivm, this.#isolate, this.#options);
    spend(spare);
    spare.#context.release();
  }

  beforeFork(): number {
    return this.#options.beforeFork();
  }

  /** The way of a job through the real context; what it leaves there, the real job's `begin` overwrites. */
  warm(): void {
    this.#finished = false;
    this.#start(WARM_JOB);
    this.#turns();
    this.#finished = false;
  }

  load(job: Job, send: Send): Guest {
    this.#finished = false;
    this.#send = send;
    this.#clock.start(job);
    // A run that may have less than the isolate: the rest is taken away in one block that nobody touches.
    const surplus = this.#memoryBytes - job.maxMemoryBytes;
    if (surplus > 0 && this.#takeBallast.applySync(undefined, [surplus]) !== true)
      throw new Error("the engine's heap could not be limited");
    // V8 sets a stack's end once. A run that may have less begins further down it: below arguments that nobody reads.
    const deeper = Math.max(0, this.#stackBytes - Math.max(job.maxStackBytes, 1));
    const filler: unknown[] = Array.from({ length: Math.floor(deeper / ARGUMENT_BYTES) }, () => 0);
    let started = false;
    let outstanding = 0;
    let room: { text: Buffer; blob: Uint8Array } | undefined;
    const step = (kind?: HostMessageKind) => {
      if (!started) {
        started = true;
        this.#start(job);
      }
      if (kind !== undefined && room !== undefined) {
        this.#clock.hear(room.text);
        const { blob } = room;
        const bytes = new this.#ivm.ExternalCopy(blob.buffer as ArrayBuffer, { transferOut: true });
        const args = [kind, room.text.toString(), bytes.copyInto({ release: true, transferIn: true })];
        room = undefined;
        this.#call(() => this.#control.deliver.applySync(undefined, args));
      }
      outstanding = this.#turns();
    };
    return {
      get outstanding() {
        return outstanding;
      },
      reserve: (textBytes, blobBytes) => {
        this.#copied += textBytes + blobBytes;
        room = { text: Buffer.allocUnsafeSlow(textBytes), blob: new Uint8Array(blobBytes) };
        return room;
      },
      step: (kind) => {
        if (filler.length === 0) step(kind);
        else Reflect.apply(() => step(kind), undefined, filler);
        if (this.#unsent !== undefined) throw this.#unsent;
        if (this.#copied > COLLECT_BYTES && !this.#finished) this.#collect();
      },
    };
  }

  #collect(): void {
    this.#copied = 0;
    this.#options.collect.applySync(undefined, []);
    this.#options.collectOurs();
  }

  #start(job: Job): void {
    const { text, bytes } = beginning(job);
    const copy = new this.#ivm.ExternalCopy(bytes, { transferOut: true });
    const args = [text, copy.copyInto({ release: true, transferIn: true })];
    this.#call(() => this.#control.begin.applySync(undefined, args));
    if (this.#finished) return;
    this.#evaluating = undefined;
    try {
      if (job.type === "module") this.#startModule(job);
      else this.#startScript(job);
    } catch (error) {
      this.#failed(error, job); // it does not compile, or imports what is not there
    }
  }

  /** Remembers an error of compiling: only such a one has its place behind its message. */
  #compiled<T>(compile: () => T): T {
    try {
      return compile();
    } catch (error) {
      this.#uncompiled = error;
      throw error;
    }
  }

  #startScript(job: Job): void {
    const script = this.#compiled(() => this.#isolate.compileScriptSync(job.source, { filename: job.name }));
    this.#call(() => {
      try {
        const value = script.runSync(this.#context, { reference: true });
        this.#control.settleScript.applySync(undefined, [value.derefInto()]);
      } catch (error) {
        this.#failed(error, job);
      }
    });
  }

  #startModule(job: Job): void {
    const sources = new Map(job.modules);
    const names = new Map<Module, string>();
    const modules = new Map<string, Module>();
    const compile = (name: string, source: string): Module => {
      const module = this.#compiled(() => this.#isolate.compileModuleSync(source, { filename: name }));
      names.set(module, name);
      modules.set(name, module);
      return module;
    };
    const main = compile(job.name, job.source);
    modules.delete(job.name); // not to be imported
    const root = this.#isolate.compileModuleSync(ROOT_SOURCE, { filename: ROOT });
    root.instantiateSync(this.#context, (specifier, referrer) => {
      if (referrer === root) return specifier === HOOK ? this.#hook : main;
      const name = resolveModule(names.get(referrer) ?? "", specifier, sources);
      const source = sources.get(name);
      if (source === undefined) throw notProvided(name, sources);
      return modules.get(name) ?? compile(name, source);
    });
    this.#evaluating = { job, root };
    this.#call(() => root.evaluateSync());
  }

  /** Runs timers until the guest can only wait; what may still bring it to life. V8 itself runs the jobs, after each call. */
  #turns(): number {
    while (!this.#finished) {
      const answer = this.#call(() => this.#control.turn.applySync(undefined, []));
      if (this.#finished) break;
      if (answer === JUMP)
        this.#clock.jump(this.#call(() => this.#control.due.applySync(undefined, [])) as number);
      else if (typeof answer !== "number") throw new Error("the world broke");
      else if (answer !== RAN_ONE) return answer;
    }
    return 0;
  }

  /**
   * What `act` returns, inside one call of the guest's. At the end of that call, when V8 has run all jobs, isolated-vm
   * throws the first rejection that nobody handled: to a guest that is nothing, unless its main module failed so.
   */
  #call<T>(act: () => T): T | undefined {
    let answer: T | undefined;
    this.#act = () => void (answer = act());
    try {
      this.#enter.applySync(undefined, []);
    } catch {
      if (this.#isolate.isDisposed) this.#stop("memory", "out of memory");
      else if (this.#evaluating !== undefined) this.#lookAtMain(this.#evaluating);
    }
    return answer;
  }

  /** Evaluating another module that needs the root tells: it throws what the root failed of, and else does nothing. */
  #lookAtMain({ job, root }: { job: Job; root: Module }): void {
    const probe = this.#isolate.compileModuleSync(`import "${ROOT}"`, { filename: ROOT });
    probe.instantiateSync(this.#context, () => root);
    try {
      probe.evaluateSync();
    } catch (error) {
      this.#evaluating = undefined;
      this.#failed(error, job);
    }
  }

  /** An error that has left the guest's realm, as a copy: the guest's own, V8's, or ours of an import. */
  #failed(error: unknown, job: Job): void {
    if (this.#isolate.isDisposed) return this.#stop("memory", "out of memory");
    if (!(error instanceof Error)) return void this.#control.fail.applySync(undefined, [error]);
    const { name, message, stack } = describe(
      error,
      [job.name, ...job.modules.map(([module]) => module)],
      error === this.#uncompiled,
    );
    const engineError = error instanceof RangeError || error instanceof SyntaxError;
    this.#control.failAs.applySync(undefined, [name, message, stack, engineError]);
  }
}

const ROOT_SOURCE = `import { settle } from "${HOOK}"; import * as all from "${MAIN}"; settle(all);`;

/** Of a stack only what lies in the guest's own files is told: the rest of it is this process's. */
function describe(
  error: Error,
  files: readonly string[],
  uncompiled: boolean,
): { name: string; message: string; stack: string } {
  const { name, stack = "" } = error;
  let { message } = error;
  // A stack begins with the message, which may look like one; what looks so isolated-vm takes for frames, once more.
  const looksSo = message.indexOf("\n    at ");
  const ours = without(without(stack, `${name}: ${message}`), looksSo < 0 ? "" : message.slice(looksSo));
  const [own = ""] = ours.split(BOUNDARY);
  const frames = own.split("\n").filter((line) => files.some((file) => inFile(line, file)));
  if (uncompiled) {
    message = message.replace(NOWHERE, "");
    const file = files.find((it) => /^:\d+:\d+\]$/.test(afterLast(message, ` [${it}`)));
    if (file !== undefined) {
      const at = message.lastIndexOf(` [${file}`);
      frames.unshift(`    at ${message.slice(at + 2, -1)}`);
      message = message.slice(0, at);
    }
  }
  if (INDESCRIBABLE.test(message)) message = "something that is no error was thrown";
  return { name, message, stack: frames.join("\n") };
}

const BOUNDARY = "\n    at (<isolated-vm boundary>)";

const without = (text: string, head: string): string =>
  text.startsWith(head) ? text.slice(head.length) : text;

/** What follows the last `part` in a text, which is nothing if it is not in it. */
function afterLast(text: string, part: string): string {
  const at = text.lastIndexOf(part);
  return at < 0 ? "" : text.slice(at + part.length);
}

const inFile = (line: string, file: string): boolean =>
  line.startsWith("    at ") && (line.includes(`(${file}:`) || line.startsWith(`    at ${file}:`));

/** Longer than a fork takes. */
const TIMER_MS = 100;

function loadIsolatedVm(): IsolatedVm {
  try {
    return createRequire(import.meta.url)("isolated-vm") as IsolatedVm;
  } catch (cause) {
    const [why = ""] = cause instanceof Error ? cause.message.split("\n") : [];
    throw new EngineUnavailable(`isolated-vm does not load: ${why}`, {
      cause,
    });
  }
}

export const v8Engine: Engine = {
  async boot(options: BootOptions): Promise<Image> {
    const ivm = loadIsolatedVm();
    // Counted by V8 from where the isolate is made, and never again.
    v8.setFlagsFromString(`--stack-size=${Math.ceil(options.stackKb + STACK_MARGIN_BYTES / 1024)}`);
    const isolate = new ivm.Isolate({ memoryLimit: options.memoryMb });
    // Whether a realm has this function is decided when it is made: guests' realms have none.
    v8.setFlagsFromString("--expose-gc");
    const context = isolate.createContextSync();
    const collectOurs = runInNewContext("gc") as () => void;
    v8.setFlagsFromString("--no-expose-gc");
    const collect = context.global.getSync("gc", { reference: true });
    // isolated-vm hands the tasks that V8 posts to a thread of its pool, and delayed ones to a timer's. Where it has such
    // a thread it starts none, and after the fork it believes that it still has those: the tasks stay where they are put.
    const script = await isolate.compileScript("0"); // its thread waits in the pool from now on
    const beforeFork = () => {
      script.runSync(context, { timeout: TIMER_MS }); // its timer's thread sleeps that long, and then ends
      return performance.now() + TIMER_MS - 1;
    };
    return new V8Image(ivm, isolate, { ...options, collect, collectOurs, beforeFork });
  },
};
