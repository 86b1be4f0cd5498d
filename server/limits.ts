/**
 * Every limit of a run in one table: its unit is in its name, `stops` is the attack behind it. The schema, the help
 * texts and the documentation are made from this table.
 */
interface LimitRow {
  default: number;
  min: number;
  max: number;
  stops: string;
}

export const LIMITS = {
  wallMs: { default: 1000, min: 10, max: 3_600_000, stops: "waiting and computing without end" },
  cpuMs: { default: 1000, min: 10, max: 3_600_000, stops: "burning CPU while the wall clock is generous" },
  memoryMb: { default: 64, min: 16, max: 1024, stops: "allocating until the host swaps (MiB)" },
  fuel: {
    default: 0,
    min: 0,
    max: 1e12,
    stops: "computing that another run would not repeat; steps of quickjs, 0: not counted",
  },
  stackKb: { default: 256, min: 16, max: 1024, stops: "recursion without end (KiB of the engine's stack)" },
  sourceBytes: { default: 1_048_576, min: 1, max: 4_194_304, stops: "sources that take for ever to parse" },
  resultBytes: {
    default: 1_048_576,
    min: 16,
    max: 4_194_304,
    stops: "results that fill the supervisor's memory",
  },
  logBytes: {
    default: 65_536,
    min: 0,
    max: 524_288,
    stops: "log floods; what is over is cut, not killed",
  },
  hostCalls: { default: 1000, min: 0, max: 10_000_000, stops: "hammering capabilities" },
  hostCallsInFlight: { default: 64, min: 1, max: 10_000, stops: "unanswered calls without end" },
  references: {
    default: 1000,
    min: 1,
    max: 100_000,
    stops: "holding capabilities and callbacks without end",
  },
  callBytes: {
    default: 1_048_576,
    min: 16,
    max: 4_194_304,
    stops: "arguments that fill the supervisor's memory",
  },
} as const satisfies Record<string, LimitRow>;

export type LimitName = keyof typeof LIMITS;
export type Limits = Record<LimitName, number>;

/** Fixed for every worker and not for sale: attempts end the run, whatever the limits say. */
export const FIXED_LIMITS = {
  processes: { value: 1, held: "seccomp, pids cgroup, RLIMIT_NPROC" },
  openFiles: { value: 1, held: "seccomp, RLIMIT_NOFILE, empty root" },
} as const;

/** Most bytes of a run's input, as the codec writes it: the caller's own, so it is no limit to be asked for. */
export const INPUT_BYTES = 2 * 1024 * 1024;

/**
 * Memory of a worker that is not the guest's, MiB: pages of the image that it writes, and the copies of source, input
 * and result on their way (the text, its parsed form, its UTF-16 form, the frame). The largest of those limits fit in.
 */
export const WORKER_OVERHEAD_MB = 24;

export const DEFAULT_LIMITS = Object.fromEntries(
  Object.entries(LIMITS).map(([name, row]) => [name, row.default]),
) as Limits;

export type PartialLimits = { [K in LimitName]?: number | undefined };

/** Fills in what was not said; without `base`, a `wallMs` above the default raises an unsaid `cpuMs` with it. */
export function completeLimits(given: PartialLimits, base?: Limits): Limits {
  const limits = { ...(base ?? DEFAULT_LIMITS) };
  if (base === undefined) limits.cpuMs = Math.max(limits.cpuMs, given.wallMs ?? 0);
  for (const name of Object.keys(LIMITS) as LimitName[]) limits[name] = given[name] ?? limits[name];
  return limits;
}
