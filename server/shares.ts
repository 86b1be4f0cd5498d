/**
 * What each tenant holds of something that all share, and how much of it one may hold. Nobody who holds nothing is kept
 * in memory.
 */

/**
 * Places that one tenant may hold for each that stays free: of 4 it gets 3, of 16 it gets 12, and two that want all get
 * 6 each of 16. So whoever holds nothing finds a place, as long as the tenants are no more than the places allow.
 * Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998, with alpha = 3.
 */
const HELD_PER_FREE = 3;

export class Shares {
  readonly #held = new Map<string, number>();

  of(tenant: string): number {
    return this.#held.get(tenant) ?? 0;
  }

  add(tenant: string, amount = 1): void {
    this.#held.set(tenant, this.of(tenant) + amount);
  }

  giveBack(tenant: string, amount = 1): void {
    const left = this.of(tenant) - amount;
    if (left > 0) this.#held.set(tenant, left);
    else this.#held.delete(tenant);
  }

  /** Those who hold more than so much. */
  above(amount: number): string[] {
    return [...this.#held].flatMap(([tenant, held]) => (held > amount ? [tenant] : []));
  }

  /** Whether the tenant may have one more of so many that are free. */
  mayHoldOneMore(tenant: string, free: number): boolean {
    const held = this.of(tenant);
    return held === 0 || held + 1 <= HELD_PER_FREE * (free - 1);
  }
}
