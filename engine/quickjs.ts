/**
 * QuickJS in WebAssembly. One instance, one run, one process: the instance's linear memory has a hard maximum (the
 * engine's own memory limit counts almost nothing under Emscripten's allocator), the guest's world is made before the
 * fork, and any exception that leaves the WASM call without being a guest value means that the instance is broken.
 * Never the asyncify builds, never guest bytecode.
 */
import {
  RELEASE_SYNC,
  newQuickJSWASMModuleFromVariant,
  newVariant,
  type EmscriptenModuleLoader,
  type QuickJSContext,
  type QuickJSEmscriptenModule,
  type QuickJSHandle,
  type QuickJSWASMModule,
  type QuickJSRuntime,
} from "quickjs-emscripten";
import { codec } from "./codec.js";
import {
  SLEEP,
  type BootOptions,
  type Engine,
  type Guest,
  type GuestEvent,
  type HostEvent,
  type Image,
  type InnerStop,
  type Job,
  type LogLevel,
} from "./engine.js";
import { NO_TIMER, RAN_ONE, world, type WorldControl, type WorldHost } from "./world.js";

/** Pages that the module demands at least, 16 MiB: Emscripten's INITIAL_MEMORY, fixed when it was built. */
const MODULE_PAGES = 256;
const PAGE_BYTES = 65536;
const OWN_FILE = "doublehull:world";
const WARM_JOB = {
  name: OWN_FILE,
  type: "module",
  seed: new Uint8Array(32),
  nowMs: 0,
  maxResultBytes: 4096,
  maxLogBytes: 4096,
} as const;

type Send = (event: GuestEvent) => void;
/** In the instance's own heap; 0 when it is exhausted. */
type Malloc = (bytes: number) => number;

/**
 * All of it is there from the start: growing in the worker would make V8 collect garbage, which writes to sealed pages.
 * Pages that nobody touched cost nothing. Knows whether it ever refused to grow: an exhausted QuickJS can only throw null, which a script may do as well. */
class BoundedMemory extends WebAssembly.Memory {
  refused = false;
  override grow(pages: number): number {
    try {
      return super.grow(pages);
    } catch (error) {
      this.refused = true;
      throw error;
    }
  }
}

class QuickJSImage implements Image {
  readonly #runtime: QuickJSRuntime;
  readonly #context: QuickJSContext;
  readonly #control: Record<keyof WorldControl, QuickJSHandle>;
  #now = 0;
  #deadline = Infinity;
  #interrupted = false;
  #send: Send = () => {};
  readonly #memory: BoundedMemory;
  readonly #malloc: Malloc;
  readonly #module: QuickJSWASMModule;
  #spare: QuickJSImage | undefined;

  constructor(module: QuickJSWASMModule, memory: BoundedMemory, malloc: Malloc) {
    this.#module = module;
    this.#memory = memory;
    this.#malloc = malloc;
    // QuickJS reads its clock through Date.now of this realm: from here on it is the guest's, and stands still.
    Date.now = () => this.#now;
    this.#runtime = module.newRuntime();
    this.#runtime.setInterruptHandler(() => {
      if (performance.now() < this.#deadline) return false;
      this.#interrupted = true;
      return true;
    });
    this.#context = this.#runtime.newContext();
    const context = this.#context;
    const source = `(${String(world)})`;
    const make = context.unwrapResult(context.evalCode(source, OWN_FILE));
    const codecMaker = context.unwrapResult(context.evalCode(`(${String(codec)})`, OWN_FILE));
    const control = context.unwrapResult(
      context.callFunction(make, context.undefined, this.#host(), codecMaker),
    );
    const names = ["begin", "settleModule", "settleScript", "fail", "runTimer"] as const;
    this.#control = Object.fromEntries(names.map((name) => [name, context.getProp(control, name)])) as never;
  }

  /** What the world may call. Results leave through `send` at once, so that a killed run keeps its logs. */
  #host(): QuickJSHandle {
    const context = this.#context;
    const functions: Record<keyof WorldHost, (...args: QuickJSHandle[]) => QuickJSHandle> = {
      log: (level, texts) => {
        this.#send({
          kind: "log",
          level: context.getString(level as QuickJSHandle) as LogLevel,
          timeMs: this.#now,
          texts: JSON.parse(context.getString(texts as QuickJSHandle)) as string[],
        });
        return context.undefined;
      },
      ok: (text, ...buffers) => {
        if (this.#wasInterrupted()) return context.undefined;
        const blobs = buffers.map((handle) => context.getArrayBuffer(handle).value.slice());
        const value = { text: context.getString(text as QuickJSHandle), blobs };
        this.#send({ kind: "result", status: "ok", value });
        return context.undefined;
      },
      fail: (ending) => {
        // An interrupted async function rejects like any other: it is the deadline all the same.
        if (this.#wasInterrupted()) return context.undefined;
        const [status, ...parts] = JSON.parse(context.getString(ending as QuickJSHandle)) as string[];
        const [name = "", message = "", stack = ""] = parts;
        if (status !== "threw") this.#stop(status as InnerStop, name);
        else if (name === "Error" && message === "null" && this.#memory.refused)
          this.#stop("memory", "out of memory");
        else this.#send({ kind: "result", status: "threw", error: { name, message, stack } });
        return context.undefined;
      },
    };
    const host = context.newObject();
    for (const [name, run] of Object.entries(functions)) {
      const handle = context.newFunction(name, run);
      context.setProp(host, name, handle);
      handle.dispose();
    }
    return host;
  }

  #stop(reason: InnerStop, detail: string): void {
    this.#send({ kind: "result", status: "stopped", reason, detail });
  }

  rehearse(spend: (spare: Image) => void): void {
    this.#spare ??= new QuickJSImage(this.#module, this.#memory, this.#malloc);
    spend(this.#spare);
    Date.now = () => this.#now;
  }

  /** The way of a job through the real context; what it leaves there, the real job's `begin` overwrites. */
  warm(): void {
    const input = { wire: null, blob: new Uint8Array(0) };
    const source = "export default () => [1, { a: 'b' }]";
    this.#start({ ...WARM_JOB, source, input });
    this.#drain();
    this.#runTimer();
  }

  load(job: Job, send: Send): Guest {
    let finished = false;
    this.#send = (event) => {
      if (finished) return;
      if (event.kind === "result") finished = true;
      send(event);
    };
    this.#now = job.nowMs;
    this.#deadline = performance.now() + job.wallMs;
    this.#runtime.setMaxStackSize(job.maxStackBytes);
    // A run that may have less than the image: the rest is taken away in one block that nobody touches.
    const surplus = this.#memory.buffer.byteLength - Math.max(job.maxMemoryBytes, MODULE_PAGES * PAGE_BYTES);
    if (surplus > 0 && this.#malloc(surplus) === 0) throw new Error("the engine's heap could not be limited");
    this.#installLoader(job);
    let started = false;
    let calls = 0;
    const sleeping = new Map<number, number>(); // call id -> when it is due
    const guest = {
      get outstanding() {
        return sleeping.size;
      },
      step: (event?: HostEvent): void => {
        if (!started) {
          started = true;
          this.#start(job);
        }
        if (event?.kind === "reply" && sleeping.delete(event.id))
          this.#now = Math.max(this.#now, event.nowMs);
        let due: number;
        do {
          if (!this.#drain() || finished) return;
          due = this.#runTimer();
          if (finished) return;
        } while (due === RAN_ONE);
        if (due === NO_TIMER) return;
        for (const wake of sleeping.values()) if (wake <= due) return;
        sleeping.set(++calls, due);
        const text = `["a",${Math.max(0, due - this.#now)}]`;
        send({ kind: "call", id: calls, ref: 0, method: SLEEP, args: { text, blobs: [] } });
      },
    };
    return guest;
  }

  #start(
    job: Pick<
      Job,
      "name" | "source" | "type" | "seed" | "input" | "nowMs" | "maxResultBytes" | "maxLogBytes"
    >,
  ): void {
    const context = this.#context;
    const { blob } = job.input;
    const bytes = new ArrayBuffer(job.seed.length + blob.length);
    new Uint8Array(bytes).set(job.seed);
    new Uint8Array(bytes).set(blob, job.seed.length);
    const buffer = context.newArrayBuffer(bytes);
    const text = context.newString(
      JSON.stringify([job.maxResultBytes, job.maxLogBytes, job.nowMs, job.input.wire]),
    );
    const begun = this.#invoke("begin", text, buffer);
    text.dispose();
    buffer.dispose();
    if (!begun) return;
    const result = context.evalCode(job.source, job.name, {
      type: job.type === "module" ? "module" : "global",
    });
    if (result.error) return this.#failed(result.error);
    this.#invoke(job.type === "module" ? "settleModule" : "settleScript", result.value);
    result.value.dispose();
  }

  /** Runs the job queue dry. False when the run is over (interrupted or broken). */
  #drain(): boolean {
    // Again while there are jobs: one that throws a number (a finalizer may) is taken for a count, and ends the loop.
    do {
      const result = this.#runtime.executePendingJobs();
      if (result.error) {
        this.#failed(result.error);
        return false;
      }
      if (this.#wasInterrupted()) return false;
    } while (this.#runtime.hasPendingJob());
    return true;
  }

  #wasInterrupted(): boolean {
    if (this.#interrupted) this.#stop("interrupted", "");
    return this.#interrupted;
  }

  /** Calls the world; an error that comes back is the guest's. False when the run is over. */
  #invoke(name: keyof WorldControl, ...args: QuickJSHandle[]): boolean {
    const result = this.#context.callFunction(this.#control[name], this.#context.undefined, ...args);
    if (result.error) {
      this.#failed(result.error);
      return false;
    }
    result.value.dispose();
    return true;
  }

  /** What the world answers; a callback's own exception ends the run like any other. */
  #runTimer(): number {
    const context = this.#context;
    const now = context.newNumber(this.#now);
    const result = context.callFunction(this.#control.runTimer, context.undefined, now);
    now.dispose();
    if (result.error) {
      this.#failed(result.error);
      return NO_TIMER;
    }
    const answer = context.getNumber(result.value);
    result.value.dispose();
    return answer;
  }

  #failed(error: QuickJSHandle): void {
    if (this.#wasInterrupted()) return;
    // An exhausted heap cannot even make its error object: QuickJS then throws null.
    if (this.#memory.refused && this.#context.sameValue(error, this.#context.null)) {
      return this.#stop("memory", "out of memory");
    }
    const result = this.#context.callFunction(this.#control.fail, this.#context.undefined, error);
    if (!result.error) return;
    if (this.#wasInterrupted()) return;
    this.#stop("memory", "the error could not be described: no memory left");
  }

  #installLoader(job: Job): void {
    const modules = new Map(job.modules);
    this.#runtime.setModuleLoader(
      (name) => {
        const source = modules.get(name);
        if (source !== undefined) return source;
        const known =
          modules.size === 0 ? "none were provided" : `provided are ${[...modules.keys()].join(", ")}`;
        return { error: new Error(`module "${name.slice(0, 200)}" was not provided (${known})`) };
      },
      (base, requested) => resolveModule(base, requested, modules),
    );
  }
}

/** "./x" and "../x" are taken relative to the importing module's name; anything else is a name of its own. */
function resolveModule(base: string, requested: string, modules: ReadonlyMap<string, string>): string {
  if (modules.has(requested) || !/^\.\.?\//.test(requested)) return requested;
  const path = base.split("/").slice(0, -1);
  for (const part of requested.split("/")) {
    if (part === "..") path.pop();
    else if (part !== "." && part !== "") path.push(part);
  }
  return path.join("/");
}

export const quickjs: Engine = {
  async boot({ memoryMb }: BootOptions): Promise<Image> {
    const pages = Math.max(MODULE_PAGES, Math.floor((memoryMb * 1024 * 1024) / PAGE_BYTES));
    const wasmMemory = new BoundedMemory({ initial: pages, maximum: pages });
    const variant = newVariant(RELEASE_SYNC, { wasmMemory });
    let malloc: Malloc | undefined;
    const module = await newQuickJSWASMModuleFromVariant({
      ...variant,
      importModuleLoader: async () => {
        // The package wraps its loader in a module, which a bundler may wrap once more.
        let load: unknown = await variant.importModuleLoader();
        while (typeof load !== "function") load = (load as { default: unknown }).default;
        const make = load as EmscriptenModuleLoader<QuickJSEmscriptenModule>;
        return async (options) => {
          const emscripten = await make(options);
          malloc = (bytes) => emscripten._malloc(bytes);
          return emscripten;
        };
      },
    });
    return new QuickJSImage(module, wasmMemory, malloc as Malloc);
  },
};
