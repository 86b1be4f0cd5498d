/**
 * What the calls of one "files" capability share: the count of what they added, and how many of them work at a time.
 * The count stops a script that fills the disk or its inodes; the turns one that has all the host's descriptors open.
 *
 * The rule of the count: taken before the disk is touched, given back after; so at no time is more there than allowed,
 * whatever fails in between.
 */
import { type Call, CapabilityError } from "./capability.js";

/** Each costs the host a descriptor or two; libuv works on four at a time. */
const MAX_OPEN = 8;

/** A call that the broker has given up must not act any more. */
export function goOn(call: Call): void {
  if (call.signal.aborted) throw new CapabilityError("failed", `${call.label}: the call was ended`);
}

/** At most so many at a time, first come, first served. */
class Turns {
  readonly #waiting: (() => void)[] = [];
  #free: number;
  constructor(most: number) {
    this.#free = most;
  }
  async run<T>(call: Call, act: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      goOn(call);
      return await act();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free++;
      else next();
    }
  }
}

export interface Limits {
  readonly quotaBytes: number;
  readonly maxFiles: number;
  readonly maxFileBytes: number;
}

export interface Count {
  bytes: number;
  files: number;
}

/** What is shared by a capability and those that `sub` makes of it: the quota, and the turns. */
export class Account {
  readonly open = new Turns(MAX_OPEN);
  /** One after another, so that no two of them pass the check of a file's size together. */
  readonly appends = new Turns(1);
  readonly #used: Count = { bytes: 0, files: 0 };
  constructor(readonly limits: Limits) {}

  /** Before it is added. Throws CapabilityError `quota`. */
  take(call: Call, { bytes, files }: Count): void {
    const { quotaBytes, maxFiles } = this.limits;
    if (this.#used.bytes + bytes > quotaBytes) {
      throw new CapabilityError("quota", `${call.label}: the quota of ${quotaBytes} bytes is used up`);
    }
    if (this.#used.files + files > maxFiles) {
      throw new CapabilityError("quota", `${call.label}: the quota of ${maxFiles} files is used up`);
    }
    this.#used.bytes += bytes;
    this.#used.files += files;
  }

  /** After it is gone. */
  give({ bytes, files }: Count): void {
    this.#used.bytes = Math.max(0, this.#used.bytes - bytes);
    this.#used.files = Math.max(0, this.#used.files - files);
  }
}
