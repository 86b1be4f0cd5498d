/**
 * The layers of a run for the drawing of the two hulls: what each one is for, in words, and which one ended a run. The
 * kernel's are the outcome's own report; the language's follow from the engine. Pure.
 */
import type { Outcome } from "../client.js";
import type { LayerName } from "../../osjail/plan.js";
import type { StopLayer } from "../outcome.js";

export interface Plate {
  name: string;
  state: "on" | "absent" | "off";
  /** As it was found or set up here. */
  detail: string;
  /** What it is for. */
  does: string;
}

export interface Hulls {
  kernel: Plate[];
  language: Plate[];
  /** Without it the kernel's plates are empty. */
  double: boolean;
  engine: string;
  /** Name of the plate that ended the run, "supervisor", or none. */
  ended: string | undefined;
}

/** What a layer is for. The details of an outcome say how it was set up. */
const DOES: Readonly<Record<LayerName, string>> = {
  "user-namespace": "Ids of its own: what is privileged inside is nobody outside.",
  "pid-namespace": "It sees no other process, so it can signal and inspect none.",
  "mount-namespace": "Mounts of its own: nothing that happens to them is seen outside.",
  "net-namespace": "A network without a way out: there is nobody to talk to.",
  "ipc-namespace": "No shared memory, semaphores or message queues of others.",
  "uts-namespace": "A host name of its own: it does not learn this one's.",
  "cgroup-namespace": "It cannot see its place in the host's tree of cgroups.",
  "time-namespace": "A time since boot of its own: it does not learn how long this host is up.",
  "namespace-limits": "No further namespaces, behind which much of the kernel's less tried code is.",
  "session-keyring": "None of the caller's kernel keys came along.",
  "empty-root": "The whole file system is an empty directory that cannot be written.",
  "other-uid": "It runs under a user id that owns nothing on this host.",
  capabilities: "None of root's powers are left, and none can come back.",
  "no-new-privs": "Nothing that it might start could gain rights.",
  landlock: "The kernel refuses files, TCP and signals once more, whatever path were found.",
  "sealed-code": "No page of memory is writable and executable: no injected machine code.",
  mdwe: "No page can be made executable later.",
  "not-dumpable": "No process of the same user can look into its memory.",
  rlimits: "Bounds on memory, CPU, processes and files that hold without a cgroup, too.",
  cgroup: "The kernel counts and bounds its memory and processes from outside.",
  seccomp: "The few system calls that it needs, with checked arguments; any other ends it.",
  "core-scheduling": "No other process computes on its core at the same time.",
  speculation: "The processor's speculation is restrained, against leaks as by Spectre.",
};

/** Of the language hull. A layer that an engine does not have is said to be off, not left out. */
function languagePlates(engine: string): Plate[] {
  const v8 = engine.startsWith("v8");
  const compiles = engine === "v8";
  const stripper = engine === "typescript";
  return [
    {
      name: "no-host-api",
      state: "on",
      detail: "no file, network or process API",
      does: "The language has nothing to reach the host with: all that a script can ask for is in env.",
    },
    {
      name: "interpreter",
      state: compiles ? "off" : "on",
      detail: compiles ? "v8 compiles scripts to machine code" : "no script becomes machine code",
      does: "A bug of a compiler cannot be met where nothing is compiled.",
    },
    v8
      ? {
          name: "isolate",
          state: "on",
          detail: "an isolate of V8 of its own",
          does: "A heap apart from that of the program around it.",
        }
      : {
          name: "webassembly",
          state: "on",
          detail: stripper ? "the stripper of types runs in WebAssembly" : "QuickJS runs in WebAssembly",
          does: "The engine itself can address its own memory and nothing else, even when a bug of it is met.",
        },
    {
      name: "heap-limit",
      state: "on",
      detail: "heap and stack",
      does: "The engine refuses memory and recursion beyond the run's limits.",
    },
    {
      name: "interrupt",
      state: v8 ? "off" : "on",
      detail: v8 ? "with V8 the supervisor does it" : "asked between the engine's steps",
      does: "The engine itself ends a loop at the deadline.",
    },
  ];
}

export function hullsOf(outcome: Outcome): Hulls {
  const { hull, engine, kernel } = outcome.layers;
  return {
    kernel: kernel.map((row) => plateOf(row)),
    language: languagePlates(engine),
    double: hull === "double",
    engine,
    ended: outcome.status === "stopped" ? endedBy(outcome.stop) : undefined,
  };
}

function plateOf(row: Readonly<Record<string, unknown>>): Plate {
  const name = String(row["layer"]);
  const state = row["state"] === "on" || row["state"] === "off" ? row["state"] : "absent";
  const does = Object.hasOwn(DOES, name) ? DOES[name as LayerName] : "A layer that is newer than this page.";
  return { name, state, detail: String(row["detail"]), does };
}

/** The kernel's own refusals come by its filter, its limits or its cgroup; what else it does is no plate of the hull. */
const ENDS: Readonly<Record<StopLayer, string | undefined>> = {
  language: "interrupt",
  broker: "supervisor",
  supervisor: "supervisor",
  seccomp: "seccomp",
  rlimit: "rlimits",
  cgroup: "cgroup",
  kernel: undefined,
};

function endedBy({ layer, reason }: { layer: string; reason: string }): string | undefined {
  if (layer === "language" && (reason === "memory" || reason === "stack")) return "heap-limit";
  return Object.hasOwn(ENDS, layer) ? ENDS[layer as StopLayer] : undefined;
}

/** One line: how many were on, and of those that were not, which and why. */
export function hullWords({ kernel, double, engine }: Hulls): string {
  if (!double) return `There was no kernel hull: this run had the language hull (${engine}) alone.`;
  const lacking = kernel.filter(({ state }) => state !== "on");
  const on = `${kernel.length - lacking.length} of ${kernel.length} layers of the kernel hull were on`;
  if (lacking.length === 0) return `${on}.`;
  return `${on}. Not on: ${lacking.map(({ name, state, detail }) => `${name} (${state}: ${detail})`).join(", ")}.`;
}
