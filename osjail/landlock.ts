/**
 * Landlock: a domain with no right at all. The root is empty and the network namespace too; Landlock says the same
 * thing by another mechanism, so that one of them may fail. man 7 landlock
 */
import { LANDLOCK, LANDLOCK_ABI } from "./abi/linux.js";
import { Memory, sys, trySys } from "./libc.ffi.js";

export interface LandlockRules {
  abi: number;
  fs: number;
  net: number;
  scope: number;
}

/** The highest ABI of the running kernel; 0 where Landlock is absent or disabled. man 2 landlock_create_ruleset */
export function landlockAbi(): number {
  return Math.max(0, trySys("landlock_create_ruleset", 0, 0, LANDLOCK.CREATE_RULESET_VERSION));
}

/** Everything that the kernel's ABI can handle, and nothing that it cannot: the downgrade is this table look-up. */
export function landlockRules(kernelAbi: number): LandlockRules | undefined {
  const known = LANDLOCK_ABI.findLast((row) => row.abi <= kernelAbi);
  return known && { abi: known.abi, fs: known.fs, net: known.net, scope: known.scope };
}

/** What the rules refuse, in words. */
export function explainLandlock(rules: LandlockRules): string {
  const parts = ["every file access"];
  if (rules.net) parts.push("TCP bind and connect");
  if (rules.scope) parts.push("abstract sockets and signals beyond the domain");
  return `ABI ${rules.abi}: ${parts.join(", ")}`;
}

/** Puts the calling thread and all its future children into a domain without any right. Needs no_new_privs. */
export function restrictSelf(rules: LandlockRules): void {
  const layout = LANDLOCK.RULESET_ATTR;
  const size = rules.scope ? 24 : rules.net ? 16 : 8;
  const attr = new Memory(24);
  attr.bytes.writeBigUInt64LE(BigInt(rules.fs), layout.handled_access_fs);
  attr.bytes.writeBigUInt64LE(BigInt(rules.net), layout.handled_access_net);
  attr.bytes.writeBigUInt64LE(BigInt(rules.scope), layout.scoped);
  const ruleset = sys("landlock_create_ruleset", attr, size, 0);
  sys("landlock_restrict_self", ruleset, 0);
  sys("close", ruleset);
}
