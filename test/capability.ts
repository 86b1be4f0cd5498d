/** Calls a capability as the broker does, without a broker: arguments parsed, one call, its hooks run. */
import {
  Capability,
  type AuditDetail,
  type Call,
  type CapabilityError,
  type RunContext,
} from "#hostapi/capability";

export interface FakeRun extends RunContext {
  /** Moves the run's clock. */
  advance(ms: number): void;
  end(): void;
}

export function fakeRun(id = "run-1", tenant = ""): FakeRun {
  const controller = new AbortController();
  let elapsed = 0;
  return {
    id,
    tenant,
    signal: controller.signal,
    elapsedMs: () => elapsed,
    advance: (ms) => void (elapsed += ms),
    end: () => controller.abort(),
  };
}

export interface Told {
  notes: AuditDetail[];
  charged: number;
}

/** Resolves to the answer; rejects with what the handler threw or the call was cancelled with. */
export async function callOn(
  target: Capability,
  method: string,
  args: readonly unknown[] = [],
  options: {
    run?: RunContext;
    label?: string;
    told?: Told;
    maxAnswerBytes?: number;
    /** In place of the audit that lets everything pass. */
    admit?: (detail: AuditDetail) => void;
  } = {},
): Promise<unknown> {
  const { run = fakeRun(), label = target.name, told = { notes: [], charged: 0 } } = options;
  const meters: ((bytes: number) => void)[] = [];
  const ended: (() => void)[] = [];
  const controller = new AbortController();
  let fail: ((error: CapabilityError) => void) | undefined;
  const cancelled = new Promise<never>((_, reject) => (fail = reject));
  cancelled.catch(() => {});
  const call: Call = {
    run,
    label,
    method,
    argumentBytes:
      JSON.stringify(args, (_, item) => (typeof item === "bigint" ? `${item}` : item))?.length ?? 0,
    maxAnswerBytes: options.maxAnswerBytes ?? 1024 * 1024,
    signal: AbortSignal.any([controller.signal, run.signal]),
    charge(bytes) {
      told.charged += bytes;
      for (const meter of meters) meter(bytes);
    },
    meter(meter) {
      meters.push(meter);
      meter(this.argumentBytes);
    },
    admit: options.admit ?? ((detail) => void told.notes.push(detail)),
    note: (detail) => void told.notes.push(detail),
    cancel(error) {
      controller.abort(error);
      fail?.(error);
    },
    onEnd: (listener) => void ended.push(listener),
  };
  try {
    return await Promise.race([target.invoke(method, target.parse(label, method, args), call), cancelled]);
  } finally {
    for (const listener of ended) listener();
  }
}
