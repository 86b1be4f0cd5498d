/**
 * When the same may be asked again, and for how long. The rule: only what cannot be done twice by it, that is a question,
 * or what has a key by which the service knows it again; and never without an end. It outlasts a node that is replaced.
 */
import { passing, pause, ServiceError } from "./connection.js";

/** Tries without an answer between them, and how long after the first that failed the last may begin, ms. */
const TRIES = 15;
const WITHIN_MS = 120_000;
/** The wait before the second, which doubles, if the service does not ask for more, ms. */
const FIRST_WAIT_MS = 200;
const LONGEST_WAIT_MS = 10_000;

/** The wait before the n-th try after the first, from 1 on, ms. */
export const waitBefore = (n: number): number => Math.min(FIRST_WAIT_MS * 2 ** (n - 1), LONGEST_WAIT_MS);

export class Patience {
  readonly #signal: AbortSignal | undefined;
  #failed = 0;
  #latest = 0;

  constructor(signal: AbortSignal | undefined) {
    this.#signal = signal;
  }

  /** Something was answered: tries are counted anew. */
  progress(): void {
    this.#failed = 0;
  }

  /**
   * Resolves when the next try is due. Rejects with `trouble` if it does not pass by itself, was one too many, or asks for
   * a wait beyond the time: whoever called decides then; with the signal's reason if that is aborted.
   */
  async outlast(trouble: unknown): Promise<void> {
    const passes =
      trouble instanceof ServiceError && (passing(trouble) || trouble.code === "idempotency-busy");
    if (!passes || ++this.#failed === TRIES) throw trouble;
    if (this.#failed === 1) this.#latest = Date.now() + WITHIN_MS;
    // Some more by chance: those who were refused together do not all come again together.
    const wait =
      Math.max(waitBefore(this.#failed), (trouble.retryAfterS ?? 0) * 1000) * (1 + Math.random() / 4);
    if (Date.now() + wait > this.#latest) throw trouble;
    await pause(wait, this.#signal);
  }
}

/** What `send` resolves to, which sends the same each time. Rejects as it does at last. */
export async function patiently<T>(send: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  const patience = new Patience(signal);
  for (;;) {
    try {
      return await send();
    } catch (error) {
      await patience.outlast(error);
    }
  }
}

/** Whether the header Idempotency-Key may hold it. Throws TypeError. */
export function checkKey(key: string): void {
  if (typeof key === "string" && /^[\x21-\x7e]{1,255}$/.test(key)) return;
  throw new TypeError("idempotencyKey must be 1 to 255 visible ASCII characters");
}
