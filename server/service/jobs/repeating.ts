/** An act again and again, never twice at once: at the end of each the wait begins. Or sooner, when woken. */
export class Repeating {
  readonly #act: () => Promise<void>;
  readonly #everyMs: number;
  #timer: NodeJS.Timeout | undefined;
  #acting: Promise<void> | undefined;
  #again = false;
  #stopped = false;

  /** `act` does not reject. */
  constructor(everyMs: number, act: () => Promise<void>) {
    this.#everyMs = everyMs;
    this.#act = act;
  }

  /** Acts now, or once more if it does just now. */
  wake(): void {
    if (this.#stopped) return;
    if (this.#acting !== undefined) {
      this.#again = true;
      return;
    }
    clearTimeout(this.#timer);
    this.#acting = this.#act().finally(() => {
      this.#acting = undefined;
      if (this.#stopped) return;
      if (this.#again) {
        this.#again = false;
        this.wake();
      } else this.#timer = setTimeout(() => this.wake(), this.#everyMs).unref();
    });
  }

  /** Resolves when it acts no more. Idempotent. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#acting;
  }
}
