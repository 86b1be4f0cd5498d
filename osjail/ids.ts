/**
 * Who a zygote is outside its user namespace, and how the kernel is told. Inside it is root. Root gives it an
 * unprivileged id that nobody else has; whoever has no other id to give, an ordinary user or a root that is alone in
 * its container, gives its own. man 7 user_namespaces
 */
import fs from "node:fs";

/** `high`: an own unprivileged id, by the pid of who gives it. `own`: the caller's. */
export type JailIds = { kind: "high" } | { kind: "own"; uid: number; gid: number };

/** Root with ids to give away: not so in a user namespace that maps one id alone. man 7 user_namespaces "uid_map" */
export function spareIds(): boolean {
  return rangesOf("/proc/self/uid_map").reduce((sum, [, count]) => sum + count, 0) > 2;
}

/**
 * Maps root inside the user namespace of `pid`, a child that waits for it. setgroups is denied first: with it a process
 * could drop a group that a file's mode excludes. Throws Node's error of the write (EPERM), or one that says that there
 * is no id to give.
 */
export function writeIdMaps(ids: JailIds, pid: number): void {
  const [uid, gid] =
    ids.kind === "own"
      ? [ids.uid, ids.gid]
      : [unusedId("/proc/self/uid_map"), unusedId("/proc/self/gid_map")];
  fs.writeFileSync(`/proc/${pid}/setgroups`, "deny");
  fs.writeFileSync(`/proc/${pid}/uid_map`, `0 ${uid} 1`);
  fs.writeFileSync(`/proc/${pid}/gid_map`, `0 ${gid} 1`);
}

const HIGH_IDS = 0x7000_0000;

/** An id of our own, by our pid; inside a container the top of the ids that it has. */
function unusedId(map: string): number {
  const wanted = HIGH_IDS + process.pid;
  let top = 0;
  for (const [first, count] of rangesOf(map)) {
    if (wanted >= first && wanted < first + count) return wanted;
    if (first + count > top) top = first + count;
  }
  const spread = Math.min(top - 1, 16_384);
  if (spread < 2) throw new Error("this container has no id but root's to give to a jail");
  return top - 2 - (process.pid % (spread - 1));
}

/** The ids that we have: the first of each range, and how many. */
function rangesOf(map: string): [first: number, count: number][] {
  const lines = fs.readFileSync(map, "latin1").trim().split("\n");
  return lines.map((line) => {
    const [first = NaN, , count = 0] = line.trim().split(/\s+/).map(Number);
    return [first, count];
  });
}
