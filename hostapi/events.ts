/**
 * The capability "events": a stream of named values from the script to whoever started the run.
 *
 * The rule: the script's act ends at the listener. What the listener throws or takes its time for is the host's matter
 * and never an answer, and how much a script may say is counted before it is heard. (The failures behind it: a host
 * error that carried the host's stack into the sandbox; a listener that wrote to a socket which nobody read.)
 */
import { z } from "zod";
import { codec } from "../engine/codec.js";
import { aFunction, checkOptions, type Checks, needed, wholeNumber } from "./options.js";
import {
  CapabilityError,
  capability,
  method,
  stateOf,
  type Capability,
  type RunContext,
} from "./capability.js";

export interface RunEvent {
  /** 1 to 64 letters, digits and `_ . : / -`. */
  readonly name: string;
  /** Guest data: what can cross, but no function and no capability. */
  readonly data: unknown;
  readonly run: RunContext;
  /** Counts up from 1 in each run, without gaps. */
  readonly seq: number;
}

export interface EventsOptions {
  /** Called once per event, in the order in which the script emitted them, before `emit` is answered. */
  onEvent(event: RunEvent): void;
  /** The only names; any if absent. */
  names?: readonly string[];
  /** Events of one run; 1000. Stops a script that fills what the events are kept in. */
  maxEvents?: number;
  /** Bytes of one event's data as the codec writes it; 64 KiB. Stops the same with one. */
  maxEventBytes?: number;
}

const NAME = /^[\w.:/-]{1,64}$/;
const { encode, isCodecError } = codec();

const OPTIONS: Checks<EventsOptions> = {
  onEvent: needed(aFunction("of one event")),
  names(value) {
    if (!Array.isArray(value) || value.length === 0) {
      return "must be a list of at least one name, or absent for any";
    }
    return value.every((name) => typeof name === "string" && NAME.test(name))
      ? undefined
      : "must be 1 to 64 letters, digits and _ . : / - each";
  },
  maxEvents: wholeNumber(1),
  maxEventBytes: wholeNumber(1),
};

/**
 * Throws TypeError naming the option that is wrong. What the listener throws is noted in the audit as a fact and goes
 * nowhere else: a listener that can fail handles its own errors.
 */
export function events(options: EventsOptions): Capability {
  checkOptions("events", options, OPTIONS);
  const { onEvent, names, maxEvents = 1000, maxEventBytes = 64 * 1024 } = options;
  const allowed = names === undefined ? undefined : new Set(names);
  const emitted = new WeakMap<RunContext, { count: number }>();

  return capability("events", {
    emit: method({
      doc: "Tells the host of something: a name (letters, digits and _ . : / -) and any data.",
      params: {
        name: z.string().max(64).regex(NAME, "must be 1 to 64 letters, digits and _ . : / -"),
        data: z.unknown(),
      },
      effect: "write",
      audit: ({ name }) => ({ name }),
      run({ name, data }, call) {
        const shown = `${call.label}.emit`;
        if (allowed?.has(name) === false) {
          throw new CapabilityError("denied", `${shown}: only the events ${[...allowed].join(", ")}`);
        }
        const bytes = measure(data, maxEventBytes, shown);
        const state = stateOf(emitted, call.run, () => ({ count: 0 }));
        if (state.count >= maxEvents) {
          throw new CapabilityError("budget", `${shown}: at most ${maxEvents} events a run`);
        }
        call.charge(bytes);
        const seq = ++state.count;
        call.note({ seq, bytes });
        try {
          const answer: unknown = onEvent({ name, data, run: call.run, seq });
          // For TypeScript an async function will do, too. Its rejection comes when the call is long over, and must
          // not end the host's process as unhandled.
          void Promise.resolve(answer).catch(() => {});
        } catch {
          call.note({ listener: "threw" }); // the host's error is not the guest's to see
        }
      },
    }),
  });
}

/** Bytes of the data. Throws CapabilityError `too-large`, or `bad-argument` for what is more than data. */
function measure(data: unknown, maxBytes: number, shown: string): number {
  try {
    const { text, blobs } = encode(data, { maxBytes, maxNodes: maxBytes, root: "data", omitStacks: true });
    const bytes = blobs.reduce((sum, { byteLength }) => sum + byteLength, Buffer.byteLength(text));
    if (bytes <= maxBytes) return bytes;
  } catch (error) {
    if (!isCodecError(error)) throw error;
    if (error.code !== "too-large") throw new CapabilityError("bad-argument", `${shown}: ${error.message}`);
  }
  throw new CapabilityError("too-large", `${shown}: the data of an event is at most ${maxBytes} bytes`);
}
