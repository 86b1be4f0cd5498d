/** What this host offers to a jail, found out by asking the kernel; a few system calls, no process started. */
import fs from "node:fs";
import os from "node:os";
import { ERRNO, KEY_SPEC, KEYCTL, PR } from "./abi/linux.js";
import { detectCgroups, REAL_FILES } from "./cgroup.js";
import { spareIds } from "./ids.js";
import { landlockAbi } from "./landlock.js";
import { hostArch, trySys } from "./libc.ffi.js";
import type { HostFacts } from "./plan.js";

/** Facts, and whether the user's systemd must be asked for a delegated scope to have a cgroup at all. */
export interface Host {
  facts: HostFacts;
  systemdScope: boolean;
  /** What systemd-run needs to reach the user's manager. */
  scopeEnv: Readonly<Record<string, string>>;
}

/** Reads the host. `env` is where PATH and XDG_RUNTIME_DIR are looked up. Throws only on an unknown architecture. */
export function readHost(env: Readonly<Record<string, string | undefined>>): Host {
  const uid = process.getuid?.() ?? -1;
  const gid = process.getgid?.() ?? -1;
  if (process.platform !== "linux") {
    const cgroups = { available: false, reason: "not Linux", remedy: "Linux only" } as const;
    const facts: HostFacts = {
      platform: process.platform,
      arch: "x86_64",
      kernel: os.release(),
      uid,
      gid,
      spareIds: false,
      maySeeUndumpable: false,
      landlockAbi: 0,
      mdwe: false,
      timeNamespace: false,
      keyrings: false,
      cgroups,
    };
    return { facts, systemdScope: false, scopeEnv: {} };
  }
  const cgroups = detectCgroups(REAL_FILES, [process.pid]);
  const scope = cgroups.available ? undefined : userScope(uid, env);
  return {
    facts: {
      platform: "linux",
      arch: hostArch(),
      kernel: os.release(),
      uid,
      gid,
      spareIds: spareIds(),
      maySeeUndumpable: maySeeUndumpable(),
      landlockAbi: landlockAbi(),
      mdwe: trySys("prctl", PR.GET_MDWE, 0, 0, 0, 0) >= 0,
      keyrings: keyrings(),
      timeNamespace: fs.existsSync("/proc/self/ns/time"),
      cgroups:
        scope === undefined
          ? cgroups
          : {
              available: true,
              version: "v2",
              base: { dir: "a delegated scope" },
              cpu: true,
              enable: true,
              move: [],
            },
    },
    systemdScope: scope !== undefined,
    scopeEnv: scope ?? {},
  };
}

/** An ordinary user with a running systemd user manager can have a delegated scope. man 1 systemd-run "--scope" */
function userScope(
  uid: number,
  env: Readonly<Record<string, string | undefined>>,
): Record<string, string> | undefined {
  const runtime = env["XDG_RUNTIME_DIR"] ?? `/run/user/${uid}`;
  const path = env["PATH"] ?? "/usr/bin:/bin";
  if (uid === 0 || !fs.existsSync(`${runtime}/systemd/private`)) return undefined;
  if (!path.split(":").some((dir) => fs.existsSync(`${dir}/systemd-run`))) return undefined;
  const bus = env["DBUS_SESSION_BUS_ADDRESS"] ?? `unix:path=${runtime}/bus`;
  return { PATH: path, XDG_RUNTIME_DIR: runtime, DBUS_SESSION_BUS_ADDRESS: bus };
}

/** Whether keyctl(2) answers; a session without a keyring (ENOKEY) is an answer too. */
function keyrings(): boolean {
  const ret = trySys("keyctl", KEYCTL.GET_KEYRING_ID, KEY_SPEC.SESSION_KEYRING, 0, 0, 0);
  return ret !== -ERRNO.ENOSYS && ret !== -ERRNO.EPERM;
}

/** Whether this process may look at undumpable ones: CAP_SYS_PTRACE, bit 19 of CapEff. man 7 capabilities */
function maySeeUndumpable(): boolean {
  const match = /^CapEff:\s*([0-9a-f]+)/m.exec(fs.readFileSync("/proc/self/status", "latin1"));
  return match !== null && (BigInt(`0x${match[1]}`) & (1n << 19n)) !== 0n;
}
