/**
 * What a jail will be, as a value: made by a pure function from what the host offers and what was asked for, printed
 * by `explain`, carried to the keeper as JSON, applied there in order. A layer of the floor that is missing is an
 * error here, before any process exists; an extra that is missing is reported.
 */
import type { Arch } from "./abi/syscalls.js";
import type { CgroupSupport } from "./cgroup.js";
import { JailError } from "./errors.js";
import type { JailIds } from "./ids.js";
import { explainLandlock, landlockRules, type LandlockRules } from "./landlock.js";
import { COMPILES, PROFILES, type ProfileName } from "./seccomp.js";

export type LayerName =
  | "user-namespace"
  | "pid-namespace"
  | "mount-namespace"
  | "net-namespace"
  | "ipc-namespace"
  | "uts-namespace"
  | "cgroup-namespace"
  | "time-namespace"
  | "namespace-limits"
  | "session-keyring"
  | "empty-root"
  | "other-uid"
  | "capabilities"
  | "no-new-privs"
  | "landlock"
  | "sealed-code"
  | "mdwe"
  | "not-dumpable"
  | "rlimits"
  | "cgroup"
  | "seccomp"
  | "core-scheduling"
  | "speculation";

/** `on`: enforced. `absent`: this host cannot. `off`: not asked for, not to be had with this engine, or (in the lab only) switched off. */
export interface LayerReport {
  layer: LayerName;
  state: "on" | "absent" | "off";
  detail: string;
}

/** What was found out about this host, by trying. */
export interface HostFacts {
  platform: string;
  arch: Arch;
  kernel: string;
  uid: number;
  gid: number;
  /** Root with ids to give away: not so in a user namespace that maps one id alone. */
  spareIds: boolean;
  /** CAP_SYS_PTRACE over every process: may look at a process that is not dumpable. */
  maySeeUndumpable: boolean;
  landlockAbi: number;
  mdwe: boolean;
  timeNamespace: boolean;
  /** keyctl(2) answers: not so in most containers, nor in a kernel without CONFIG_KEYS. */
  keyrings: boolean;
  cgroups: CgroupSupport;
}

export interface JailRequest {
  profile: ProfileName;
  requireCgroup: boolean;
  /** Workers that may exist at once, parked ones included. */
  slots: number;
  /** Most memory that one worker's cgroup ever allows, bytes. */
  maxMemoryBytes: number;
  coreScheduling: boolean;
  speculation: boolean;
  /** Layers to leave out. The lab's and its tests' only; nothing that serves a caller sets it. */
  without: readonly LayerName[];
}

export interface JailPlan {
  arch: Arch;
  profile: ProfileName;
  /** Whether workers may make code at run time: then no page is sealed, and MDWE is not asked for. */
  compiles: boolean;
  /** `high` where the caller is root with ids to give away. */
  ids: JailIds;
  landlock: LandlockRules;
  mdwe: boolean;
  timeNamespace: boolean;
  keyrings: boolean;
  dumpable: boolean;
  cgroup: { slots: number; maxMemoryBytes: number } | undefined;
  slots: number;
  coreScheduling: boolean;
  speculation: boolean;
  without: readonly LayerName[];
  layers: LayerReport[];
}

const NAMESPACES = ["user", "pid", "mount", "net", "ipc", "uts", "cgroup"] as const;

/** Throws JailError naming the missing floor layer. Pure. */
export function planJail(host: HostFacts, request: JailRequest): JailPlan {
  if (host.platform !== "linux") throw new JailError("not-linux", `this is ${host.platform}, not Linux`);
  const landlock = landlockRules(host.landlockAbi);
  if (landlock === undefined) throw new JailError("landlock", "this kernel offers no Landlock");
  if (request.requireCgroup && !host.cgroups.available) {
    throw new JailError("cgroup", `no usable cgroup: ${host.cgroups.reason}`, {
      remedy: host.cgroups.remedy,
    });
  }
  const compiles = COMPILES.has(request.profile);
  const NOT_HELD = `not held: ${request.profile} compiles scripts to machine code`;
  const root = host.uid === 0 && host.spareIds;
  const without = new Set(request.without);
  const layers: LayerReport[] = [];
  const add = (layer: LayerName, state: LayerReport["state"], detail: string) =>
    layers.push({ layer, state: without.has(layer) ? "off" : state, detail });

  for (const name of NAMESPACES) add(`${name}-namespace`, "on", "own, made with the zygote");
  add("time-namespace", host.timeNamespace ? "on" : "absent", host.timeNamespace ? "own" : "needs Linux 5.6");
  add("namespace-limits", "on", "no further ones, where /proc/sys/user can be written: each zygote tries");
  add(
    "session-keyring",
    host.keyrings ? "on" : "absent",
    host.keyrings ? "an own and empty one; the caller's keys stay behind" : "keyctl is refused here to all",
  );
  add("empty-root", "on", "pivot_root to an empty read-only tmpfs");
  add(
    "other-uid",
    root ? "on" : "absent",
    root ? "an own high uid per zygote" : "this caller has no other id to give",
  );
  add("capabilities", "on", "every set empty, bounding set dropped, securebits locked");
  add("no-new-privs", "on", "set before Node starts");
  add("landlock", "on", explainLandlock(landlock));
  if (compiles) for (const layer of ["sealed-code", "mdwe"] as const) add(layer, "off", NOT_HELD);
  else {
    add("sealed-code", "on", "no page is writable and executable");
    add("mdwe", host.mdwe ? "on" : "absent", host.mdwe ? "no page becomes executable" : "needs Linux 6.3");
  }
  add(
    "not-dumpable",
    host.maySeeUndumpable ? "on" : "absent",
    host.maySeeUndumpable ? "PR_SET_DUMPABLE 0" : "the supervisor could not attest the worker",
  );
  add("rlimits", "on", "data, cpu, processes, files, core, locked memory");
  if (host.cgroups.available) add("cgroup", "on", `${host.cgroups.version}: memory, pids`);
  else add("cgroup", "absent", host.cgroups.reason);
  add("seccomp", "on", `${callCount(request.profile)} system calls, all others end the worker`);
  add(
    "core-scheduling",
    request.coreScheduling ? "on" : "off",
    request.coreScheduling ? "an own cookie" : "not asked for",
  );
  add(
    "speculation",
    request.speculation ? "on" : "off",
    request.speculation ? "restricted" : "not asked for",
  );
  return {
    arch: host.arch,
    profile: request.profile,
    compiles,
    ids: root ? { kind: "high" } : { kind: "own", uid: host.uid, gid: host.gid },
    landlock,
    mdwe: host.mdwe && !compiles,
    timeNamespace: host.timeNamespace,
    keyrings: host.keyrings,
    dumpable: !host.maySeeUndumpable,
    cgroup:
      host.cgroups.available && !without.has("cgroup")
        ? { slots: request.slots, maxMemoryBytes: request.maxMemoryBytes }
        : undefined,
    slots: request.slots,
    coreScheduling: request.coreScheduling,
    speculation: request.speculation,
    without: request.without,
    layers,
  };
}

/** Distinct system calls that a profile lets through. */
export function callCount(profile: ProfileName): number {
  return new Set(PROFILES[profile].rules.map((rule) => rule.call)).size;
}
