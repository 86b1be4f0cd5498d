/**
 * How long the client goes on with what can be asked again without harm: reading, and sending what an Idempotency-Key
 * makes one. It outlasts a node that is replaced, about a minute in all, and no longer: what never answers is told.
 */
import { passing, pause, ServiceError } from "./connection.js";

/** Tries without an answer between them, and the wait before the first, which doubles, ms. */
const TRIES = 16;
const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5000;
/** A service that asks for a longer wait is not waited for: whoever called decides. */
const LONGEST_RETRY_AFTER_S = 60;

/** The wait before the n-th try in a row, from 1 on, ms. */
export const waitBefore = (n: number): number => Math.min(FIRST_WAIT_MS * 2 ** (n - 1), LONGEST_WAIT_MS);

export class Patience {
  readonly #signal: AbortSignal | undefined;
  #tries = 0;

  constructor(signal: AbortSignal | undefined) {
    this.#signal = signal;
  }

  /** Something was answered: tries are counted anew. */
  progress(): void {
    this.#tries = 0;
  }

  /**
   * Resolves when the next try is due. Rejects with `trouble` if it does not pass by itself, or was one too many; with the
   * signal's reason if that is aborted.
   */
  async outlast(trouble: unknown, passes: (error: ServiceError) => boolean = passing): Promise<void> {
    if (!(trouble instanceof ServiceError) || !passes(trouble) || this.#tries === TRIES) throw trouble;
    const asked = trouble.retryAfterS ?? 0;
    if (asked > LONGEST_RETRY_AFTER_S) throw trouble;
    await pause(Math.max(waitBefore(++this.#tries), asked * 1000), this.#signal);
  }
}
