/**
 * What can go wrong with this host: one table, each with the next thing to do. These errors are for the embedder and
 * the operator; they carry kernel and path details and never reach a guest.
 */
export const JAIL_ERRORS = {
  "not-linux": 'The kernel hull needs Linux. Elsewhere, for development only, ask for hull: "language-only".',
  architecture:
    'x86-64 and arm64 are supported. On another machine use hull: "language-only" for development.',
  ffi: "Run the install again without --omit=optional: ffi-rs's builds (x86-64 and arm64 Linux, glibc or musl) are optional packages.",
  "not-node":
    "Run under Node.js 20.19 or later: the zygote is started from process.execPath with V8's own flags.",
  "user-namespace":
    "Allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces>0; on Ubuntu 24.04 an AppArmor profile with `userns,` or kernel.apparmor_restrict_unprivileged_userns=0), or start as root. `doublehull doctor` tells which.",
  namespace:
    "Check `doublehull doctor`: one of the pid, mount, net, ipc, uts or cgroup namespaces was refused.",
  "empty-root":
    "Mounting in an own mount namespace was refused: in a container allow mount(2), umount2(2) and pivot_root(2) in its seccomp profile, and mounts in its AppArmor profile.",
  landlock:
    "Landlock ABI 1 (Linux 5.13) is required: add landlock to the kernel's lsm= list and allow its three calls.",
  seccomp: "seccomp filters are required (CONFIG_SECCOMP_FILTER), and the container must allow seccomp(2).",
  capabilities:
    "Dropping capabilities failed, which no supported kernel does: please report this with doctor's output.",
  mdwe: "PR_SET_MDWE was refused though the kernel offers it: report this with doctor's output.",
  cgroup: "Run as root, or in a delegated scope: systemd-run --user --scope -p Delegate=yes COMMAND.",
  keyring:
    "A session keyring was refused though the kernel has keyrings: check the quota in /proc/key-users (kernel.keys.maxkeys).",
  "core-scheduling":
    "Core scheduling needs CONFIG_SCHED_CORE and SMT. Leave `coreScheduling` out where it is absent.",
  speculation: "The CPU or kernel refuses a speculation control. Leave `speculation` out where it is absent.",
  "confined-files":
    "Use Linux 5.6 or later, and in a container allow openat2(2) in its seccomp profile; or grant no files.",
  attestation:
    "A worker did not look locked down from outside and was killed. Run `doublehull doctor`; report the difference that the message names.",
  "stack-limit":
    "Raise the limit on the stack before starting: ulimit -s 8192 (or LimitSTACK=8M in a systemd unit).",
  "worker-start":
    "Raise the limits on open files and processes (ulimit -n, ulimit -u), or lower maxConcurrent and parked.",
  engine: "The engine could not be loaded under this Node: reinstall its package, or use the engine quickjs.",
  "open-files":
    "Raise the limit on open files before starting (ulimit -n, or LimitNOFILE= in a systemd unit), or lower parked and maxConcurrent.",
  "zygote-lost": "The zygote ended unexpectedly; it is started anew. If it repeats, run `doublehull doctor`.",
  "zygote-start": "The zygote could not be started. Run `doublehull doctor`.",
} as const;

/** The remedy where root lacks a capability that the uid of its zygotes takes. */
export const ROOT_NEEDS =
  "Root needs CAP_SETUID and CAP_SETGID to give workers an uid of their own, and CAP_DAC_OVERRIDE to look at them: add these, or start as another user.";

export type JailErrorCode = keyof typeof JAIL_ERRORS;

/** A layer that cannot be had, or a process of ours that failed. `remedy` is the next thing to do. */
export class JailError extends Error {
  override name = "JailError";
  readonly remedy: string;
  constructor(
    readonly code: JailErrorCode,
    message: string,
    options?: ErrorOptions & { remedy?: string },
  ) {
    super(message, options);
    this.remedy = options?.remedy ?? JAIL_ERRORS[code];
  }
}
