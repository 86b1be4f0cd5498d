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
import {
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
import { codecSource, worldSource } from "./guest.js";
import { beginning, GuestClock, notProvided, OWN_FILE, resolveModule, WARM_JOB } from "./job.js";
import { JUMP, RAN_ONE, type WorldControl } from "./world.js";

/** Pages that the module demands at least, 16 MiB: Emscripten's INITIAL_MEMORY, fixed when it was built. */
const MODULE_PAGES = 256;
const PAGE_BYTES = 65536;
type Send = (message: GuestMessage) => void;
/** C calls a function of ours: with addresses of the context, of `this` and of the arguments, and the function's number. */
type CallFunction = (
  asyncify: undefined,
  context: number,
  self: number,
  argc: number,
  argv: number,
  id: number,
) => number;

/**
 * What the package's own classes do for a call costs a kilobyte of objects each, which a worker that may not collect
 * its garbage cannot afford: on the way of every message we call the module's C functions ourselves. Values are
 * addresses of JSValues in linear memory.
 */
interface Native {
  callbacks: { callFunction: CallFunction };
  _malloc(bytes: number): number;
  _free(pointer: number): void;
  _QTS_Call(context: number, f: number, self: number, argc: number, argv: number): number;
  _QTS_ResolveException(context: number, value: number): number;
  _QTS_FreeValuePointer(context: number, value: number): void;
  _QTS_NewString(context: number, text: number): number;
  _QTS_NewArrayBuffer(context: number, bytes: number, length: number): number;
  _QTS_NewFunction(context: number, name: number, length: number, constructor: number, id: number): number;
  _QTS_GetString(context: number, value: number): number;
  _QTS_FreeCString(context: number, text: number): void;
  _QTS_GetFloat64(context: number, value: number): number;
  _QTS_GetArrayBuffer(context: number, value: number): number;
  _QTS_GetArrayBufferLength(context: number, value: number): number;
  _QTS_ArgvGetJSValueConstPointer(argv: number, index: number): number;
  _QTS_IsJobPending(runtime: number): number;
  _QTS_ExecutePendingJob(runtime: number, most: number, contextOut: number): number;
  _QTS_GetUndefined(): number;
}

/** A JSValue in linear memory: 8 bytes, NaN-boxed on 32 bits; the high word of an integer is 0 (quickjs.h, JS_TAG_INT). */
const VALUE_BYTES = 8;
const INTEGER_TAG = 0;

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

/** What every image of one module shares. */
interface Instance {
  module: QuickJSWASMModule;
  memory: BoundedMemory;
  native: Native;
  /** The linear memory, which never moves. */
  bytes: Uint8Array;
  words: Int32Array;
  guest: BootOptions["guest"];
  /** Functions of ours that guests' realms were given; their numbers follow those of the package. */
  functions: ((argc: number, argv: number) => number)[];
}

/** Calls and backward jumps after which QuickJS asks whether to go on. quickjs.c, JS_INTERRUPT_COUNTER_INIT */
const STEPS_PER_QUESTION = 10_000;
const FIRST_OWN_FUNCTION = 1_000_000;

const CONTROLS = [
  "begin",
  "settleModule",
  "settleScript",
  "fail",
  "deliver",
  "turn",
  "due",
] as const satisfies readonly (keyof WorldControl)[];
type Kind = GuestMessage["kind"];
const HOST_KINDS: readonly HostMessageKind[] = ["call", "reply", "release"];
const KINDS: readonly Kind[] = [...HOST_KINDS, "log", "result"];
/** Messages of up to so many bytes lie in a block of their own that is never given back. */
const ROOM_BYTES = 4096;

class QuickJSImage implements Image {
  readonly #instance: Instance;
  readonly #native: Native;
  readonly #runtime: QuickJSRuntime;
  readonly #context: QuickJSContext;
  /** The context's address. */
  readonly #ctx: number;
  readonly #control: Record<(typeof CONTROLS)[number], QuickJSHandle>;
  readonly #clock = new GuestClock();
  #deadline = Infinity;
  /** Times that QuickJS may still ask whether to go on. */
  #fuel = Infinity;
  #interrupted: "interrupted" | "fuel" | undefined;
  #finished = false;
  #send: Send = () => {};
  #spare: QuickJSImage | undefined;
  /**
   * Addresses: of the texts that name the kinds of the host's messages, of room for three arguments and what a drained
   * queue leaves, of room for small messages, of an empty buffer.
   */
  readonly #kinds: ReadonlyMap<HostMessageKind, number>;
  readonly #argv: number;
  readonly #room: number;
  readonly #noBytes: number;
  readonly #undefined: number;
  /** The runtime's address. */
  readonly #rt: number;

  constructor(instance: Instance) {
    this.#instance = instance;
    const { module, native, guest } = instance;
    this.#native = native;
    this.#undefined = native._QTS_GetUndefined();
    this.#useClock();
    this.#runtime = module.newRuntime();
    this.#runtime.setInterruptHandler(() => {
      if (--this.#fuel < 0) this.#interrupted = "fuel";
      else if (performance.now() >= this.#deadline) this.#interrupted = "interrupted";
      return this.#interrupted !== undefined;
    });
    const context = this.#runtime.newContext();
    this.#context = context;
    this.#ctx = (context as unknown as { ctx: { value: number } }).ctx.value;
    this.#rt = (this.#runtime as unknown as { rt: { value: number } }).rt.value;
    const evaluate = (source: string) => context.unwrapResult(context.evalCode(`(${source})`, OWN_FILE));
    const parts = [codecSource, guest.stubs, guest.web].map(evaluate);
    const make = evaluate(worldSource);
    const control = context.unwrapResult(
      context.callFunction(make, context.undefined, this.#host(), ...parts),
    );
    this.#control = Object.fromEntries(
      CONTROLS.map((name) => [name, context.getProp(control, name)]),
    ) as Record<(typeof CONTROLS)[number], QuickJSHandle>;
    this.#kinds = new Map(HOST_KINDS.map((kind) => [kind, addressOf(context.newString(kind))]));
    this.#argv = native._malloc(4 * 4);
    this.#room = native._malloc(ROOM_BYTES + 1);
    this.#noBytes = addressOf(context.newArrayBuffer(new ArrayBuffer(0)));
  }

  /** QuickJS reads its clock through Date.now of this realm: from here on it is the guest's. */
  #useClock(): void {
    Date.now = () => this.#clock.read();
  }

  // -- what the world may call --------------------------------------------------------------------------------------

  #host(): QuickJSHandle {
    const { native, functions, bytes } = this.#instance;
    const context = this.#context;
    const host = context.newObject();
    const empty = native._malloc(1);
    bytes[empty] = 0;
    const add = (name: string, run: (argc: number, argv: number) => number) => {
      const id = FIRST_OWN_FUNCTION + functions.push(run) - 1;
      const address = native._QTS_NewFunction(this.#ctx, empty, 0, 0, id);
      const handle = this.#handleOf(address);
      context.setProp(host, name, handle);
      handle.dispose();
    };
    for (const kind of KINDS) add(kind, (argc, argv) => this.#emit(kind, argc, argv));
    return host;
  }

  /** Messages leave at once, so that a killed run keeps its logs. Arguments: text, buffer... */
  #emit(kind: Kind, argc: number, argv: number): number {
    const native = this.#native;
    // An interrupted async function rejects like any other: it is the deadline all the same.
    if (this.#finished || (kind === "result" && this.#wasInterrupted())) return this.#undefined;
    const { bytes } = this.#instance;
    const address = native._QTS_GetString(this.#ctx, argv);
    if (address === 0) return this.#undefined; // no memory left for the text: what follows will tell
    const text = bytes.subarray(address, bytes.indexOf(0, address)); // protocol texts are JSON and hold no NUL
    let blobs = NO_BLOBS;
    for (let i = 1; i < argc; i++) {
      const buffer = argv + i * VALUE_BYTES;
      const start = native._QTS_GetArrayBuffer(this.#ctx, buffer);
      blobs = [...blobs, bytes.subarray(start, start + native._QTS_GetArrayBufferLength(this.#ctx, buffer))];
    }
    if (kind === "result" && this.#isExhaustion(text)) this.#stop("memory", "out of memory");
    else this.#tell({ kind, text, blobs });
    native._QTS_FreeCString(this.#ctx, address);
    return this.#undefined;
  }

  /** An exhausted heap cannot even make its error object: QuickJS then throws null. */
  #isExhaustion(text: Uint8Array): boolean {
    if (!this.#instance.memory.refused || text.length > 40) return false;
    return Buffer.from(text).toString().startsWith('["threw","Error","null"');
  }

  #tell(message: GuestMessage): void {
    if (this.#finished) return;
    if (message.kind === "result") this.#finished = true;
    this.#send(message);
  }

  #stop(reason: InnerStop, detail: string): void {
    this.#tell({ kind: "result", text: resultText({ status: "stopped", reason, detail }), blobs: [] });
  }

  // -- one job ------------------------------------------------------------------------------------------------------

  rehearse(spend: (spare: Image) => void): void {
    this.#spare ??= new QuickJSImage(this.#instance);
    this.#spare.#useClock();
    spend(this.#spare);
    this.#useClock();
  }

  /** The way of a job through the real context; what it leaves there, the real job's `begin` overwrites. */
  warm(): void {
    this.load(WARM_JOB, () => {}).step();
  }

  load(job: Job, send: Send): Guest {
    this.#finished = false;
    this.#interrupted = undefined;
    this.#fuel = job.fuel === 0 ? Infinity : Math.ceil(job.fuel / STEPS_PER_QUESTION) - 1;
    this.#send = send;
    this.#clock.start(job);
    this.#deadline = performance.now() + job.wallMs;
    this.#runtime.setMaxStackSize(job.maxStackBytes);
    // A run that may have less than the image: the rest is taken away in one block that nobody touches.
    const most = Math.max(job.maxMemoryBytes, MODULE_PAGES * PAGE_BYTES);
    const surplus = this.#instance.bytes.length - most;
    if (surplus > 0 && this.#native._malloc(surplus) === 0)
      throw new Error("the engine's heap could not be limited");
    this.#installLoader(job);
    let started = false;
    let outstanding = 0;
    let room: Room | undefined;
    return {
      get outstanding() {
        return outstanding;
      },
      reserve: (textBytes, blobBytes) => {
        const small = textBytes <= ROOM_BYTES;
        const text = small ? this.#room : this.#native._malloc(textBytes + 1);
        const blob = blobBytes === 0 ? 0 : this.#native._malloc(blobBytes);
        if (text === 0 || (blob === 0 && blobBytes > 0)) return undefined;
        room = { text, textBytes, small, blob, blobBytes };
        const { bytes } = this.#instance;
        return {
          text: bytes.subarray(text, text + textBytes),
          blob: blobBytes === 0 ? NO_BYTES : bytes.subarray(blob, blob + blobBytes),
        };
      },
      step: (kind) => {
        if (!started) {
          started = true;
          this.#start(job);
        }
        if (kind !== undefined && room !== undefined) {
          this.#deliver(kind, room);
          room = undefined;
        }
        outstanding = this.#turns();
      },
    };
  }

  #start(job: Job): void {
    const context = this.#context;
    const begin = beginning(job);
    const buffer = context.newArrayBuffer(begin.bytes);
    const text = context.newString(begin.text);
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

  /** The host's message lies in linear memory: the text becomes a string there, the bytes an ArrayBuffer as they are. */
  #deliver(kind: HostMessageKind, room: Room): void {
    const native = this.#native;
    const { bytes, words } = this.#instance;
    this.#clock.hear(bytes, room.text);
    bytes[room.text + room.textBytes] = 0;
    const text = native._QTS_NewString(this.#ctx, room.text);
    if (!room.small) native._free(room.text);
    // Takes the block over.
    const buffer =
      room.blob === 0 ? this.#noBytes : native._QTS_NewArrayBuffer(this.#ctx, room.blob, room.blobBytes);
    const at = this.#argv / 4;
    words[at] = this.#kinds.get(kind) as number;
    words[at + 1] = text;
    words[at + 2] = buffer;
    const f = addressOf(this.#control.deliver);
    const result = native._QTS_Call(this.#ctx, f, this.#undefined, 3, this.#argv);
    native._QTS_FreeValuePointer(this.#ctx, text);
    if (buffer !== this.#noBytes) native._QTS_FreeValuePointer(this.#ctx, buffer);
    if (this.#settled(result)) native._QTS_FreeValuePointer(this.#ctx, result);
  }

  /** Runs jobs and timers until the guest can only wait; what may still bring it to life. */
  #turns(): number {
    while (this.#drain() && !this.#finished) {
      const answer = this.#call("turn");
      if (this.#finished) break;
      if (answer === JUMP) this.#clock.jump(this.#call("due"));
      else if (answer !== RAN_ONE) return answer;
    }
    return 0;
  }

  /** Runs the job queue dry. False when the run is over (interrupted or broken). */
  #drain(): boolean {
    const native = this.#native;
    // Again while there are jobs: one that throws a number (a finalizer may) is taken for a count, and ends the loop.
    while (native._QTS_IsJobPending(this.#rt) !== 0) {
      const ran = native._QTS_ExecutePendingJob(this.#rt, -1, this.#argv + 12);
      // How many, or what the last one threw.
      if (this.#instance.words[ran / 4 + 1] !== INTEGER_TAG) {
        this.#failed(this.#handleOf(ran));
        return false;
      }
      native._QTS_FreeValuePointer(this.#ctx, ran);
      if (this.#wasInterrupted()) return false;
    }
    return !this.#wasInterrupted();
  }

  #wasInterrupted(): boolean {
    if (this.#interrupted !== undefined) this.#stop(this.#interrupted, "");
    return this.#interrupted !== undefined;
  }

  /** Calls the world; an error that comes back is the guest's. False when the run is over. */
  #invoke(name: (typeof CONTROLS)[number], ...args: QuickJSHandle[]): boolean {
    const result = this.#context.callFunction(this.#control[name], this.#context.undefined, ...args);
    if (result.error) {
      this.#failed(result.error);
      return false;
    }
    result.value.dispose();
    return true;
  }

  /** Calls the world for a number. A callback's own exception ends the run like any other. */
  #call(name: "turn" | "due"): number {
    const f = addressOf(this.#control[name]);
    const result = this.#native._QTS_Call(this.#ctx, f, this.#undefined, 0, 0);
    return this.#settled(result) ? this.#numberOf(result) : 0;
  }

  #numberOf(value: number): number {
    const { words } = this.#instance;
    const number =
      words[value / 4 + 1] === INTEGER_TAG
        ? (words[value / 4] as number)
        : this.#native._QTS_GetFloat64(this.#ctx, value);
    this.#native._QTS_FreeValuePointer(this.#ctx, value);
    return number;
  }

  /** False when what C gave back is an exception; the guest has failed of it then. */
  #settled(value: number): boolean {
    const error = this.#native._QTS_ResolveException(this.#ctx, value);
    if (error === 0) return true;
    // The way of an error is the package's: it happens once a run.
    this.#failed(this.#handleOf(error));
    return false;
  }

  /** A handle of the package's for an address of ours. */
  #handleOf(address: number): QuickJSHandle {
    return this.#context.getMemory(this.#rt as never).heapValueHandle(address as never);
  }

  #failed(error: QuickJSHandle): void {
    if (this.#wasInterrupted()) return;
    if (this.#instance.memory.refused && this.#context.sameValue(error, this.#context.null)) {
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
        return { error: notProvided(name, modules) };
      },
      (base, requested) => resolveModule(base, requested, modules),
    );
  }
}

/** Where a message of the host's lies in linear memory. */
interface Room {
  text: number;
  textBytes: number;
  /** In the block that is never given back. */
  small: boolean;
  /** 0: no bytes. */
  blob: number;
  blobBytes: number;
}

const NO_BLOBS: readonly Uint8Array[] = [];
const NO_BYTES = new Uint8Array(0);

const addressOf = (handle: QuickJSHandle): number => handle.value as unknown as number;

export const quickjs: Engine = {
  async boot({ memoryMb, guest }: BootOptions): Promise<Image> {
    const pages = Math.max(MODULE_PAGES, Math.floor((memoryMb * 1024 * 1024) / PAGE_BYTES));
    const memory = new BoundedMemory({ initial: pages, maximum: pages });
    const variant = newVariant(RELEASE_SYNC, { wasmMemory: memory });
    let emscripten: unknown;
    const module = await newQuickJSWASMModuleFromVariant({
      ...variant,
      importModuleLoader: async () => {
        // The package wraps its loader in a module, which a bundler may wrap once more.
        let load: unknown = await variant.importModuleLoader();
        while (typeof load !== "function") load = (load as { default: unknown }).default;
        const make = load as EmscriptenModuleLoader<QuickJSEmscriptenModule>;
        return async (options) => {
          const made = await make(options);
          emscripten = made;
          return made;
        };
      },
    });
    const native = emscripten as Native;
    const functions: Instance["functions"] = [];
    const { callbacks } = native;
    const packages = callbacks.callFunction;
    callbacks.callFunction = (asyncify, context, self, argc, argv, id) => {
      const own = functions[id - FIRST_OWN_FUNCTION];
      return own === undefined ? packages(asyncify, context, self, argc, argv, id) : own(argc, argv);
    };
    const bytes = new Uint8Array(memory.buffer);
    const words = new Int32Array(memory.buffer);
    if (native._QTS_ArgvGetJSValueConstPointer(64, 1) !== 64 + VALUE_BYTES)
      throw new Error("this build of QuickJS lays its values out in another way");
    return new QuickJSImage({ module, memory, native, bytes, words, guest, functions });
  },
};
