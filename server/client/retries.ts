/**
 * When the same may be asked again. The rule: only what cannot have run twice, that is a question, or a run with a key by
 * which the service knows it again; and never without an end.
 */
import { pause, ServiceError } from "./connection.js";

/** Times that a request is sent, and how long after the first that failed the last may begin, ms. */
const ATTEMPTS = 15;
const WITHIN_MS = 120_000;
/** The wait before the second, which doubles, if the service does not ask for more, ms. */
const FIRST_WAIT_MS = 200;
const LONGEST_WAIT_MS = 10_000;

/** Whether it is the network's, or of a node that is busy or being replaced. */
export const passing = ({ code, status }: ServiceError): boolean =>
  code === "no-answer" || [429, 502, 503, 504].includes(status);

/** Whether the header Idempotency-Key may hold it. Throws TypeError. */
export function checkKey(key: string): void {
  if (typeof key === "string" && /^[\x21-\x7e]{1,255}$/.test(key)) return;
  throw new TypeError("idempotencyKey must be 1 to 255 visible ASCII characters");
}

/**
 * What `send` resolves to, which sends the same each time. Rejects as it does: with what does not pass, with the last error
 * after 15 attempts, once the next would begin more than two minutes after the first failed, or with the signal's reason.
 */
export async function patiently<T>(send: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  let latest = Infinity;
  for (let attempt = 1; ; attempt++) {
    try {
      return await send();
    } catch (error) {
      const again = error instanceof ServiceError && (passing(error) || error.code === "idempotency-busy");
      if (!again || attempt === ATTEMPTS) throw error;
      latest = Math.min(latest, Date.now() + WITHIN_MS);
      const backoff = Math.min(FIRST_WAIT_MS * 2 ** (attempt - 1), LONGEST_WAIT_MS);
      // Some more by chance: those who were refused together do not all come again together.
      const wait = Math.max(backoff, (error.retryAfterS ?? 0) * 1000) * (1 + Math.random() / 4);
      if (Date.now() + wait > latest) throw error;
      await pause(wait, signal);
    }
  }
}
