/**
 * What an attacker would try next after an escape from the language: each act first in a plain process, where it works
 * (or is refused for a reason that the row gives), then in a worker, where the call ends the process by its name.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SYSCALLS, type SyscallName } from "#osjail/abi/syscalls";
import { attack, control, host, inParallel, ownedHull, stopOf, valueOf, answerOf } from "./harness.js";

const TABLE = SYSCALLS[host.facts.arch] as Readonly<Record<string, number>>;
const [EPERM, ENOENT, EBADF, EAGAIN, ENOMEM, EACCES, EINVAL, ENOSYS, EOPNOTSUPP] = [
  1, 2, 9, 11, 12, 13, 22, 38, 95,
];

/** A process of ours beside the worker: the one that attacks on other processes aim at. */
let bystander: ChildProcess;
beforeAll(async () => {
  bystander = spawn("sleep", ["600"], { stdio: "ignore" });
  await once(bystander, "spawn");
});
afterAll(async () => {
  const ended = once(bystander, "exit");
  bystander.kill("SIGKILL");
  await ended;
});

interface Act {
  what: string;
  code: string;
  /** The call that the filter names; where the architecture lacks it, the row is left out. */
  named: SyscallName;
  /** Errnos that a plain process may get instead of success, and why. */
  outside?: { errnos: number[]; because: string };
  /** Other code for the plain process, where the attacker's would harm the test. */
  control?: string;
}

const needsRoot = { errnos: [EPERM, EACCES], because: "an ordinary user has no right to it" };
const mayBeLockedDown = (...more: number[]) => ({
  errnos: [EPERM, EACCES, ...more],
  because: "hosts lock this call down, or leave it out of the kernel",
});

const FILES: Act[] = [
  {
    what: "opens a file",
    named: "openat",
    code: 'return syscall("openat", -100, memory("/etc/passwd"), 0, 0)',
  },
  {
    what: "opens a file by the old call",
    named: "open",
    code: 'return syscall("open", memory("/etc/passwd"), 0, 0)',
  },
  {
    what: "opens a file by openat2",
    named: "openat2",
    code: 'return syscall("openat2", -100, memory("/etc/passwd"), memory(24), 24)',
  },
  {
    what: "opens the root directory",
    named: "openat",
    code: 'return syscall("openat", -100, memory("/"), 0x10000, 0)',
  },
  {
    what: "opens its own memory",
    named: "openat",
    code: 'return syscall("openat", -100, memory("/proc/self/mem"), 2, 0)',
  },
  {
    what: "makes a file",
    named: "openat",
    code: 'return syscall("openat", -100, memory("/tmp"), 0x410002, 0o600)', // O_TMPFILE: nothing is left behind
  },
  {
    what: "asks whether a file is there",
    named: "access",
    code: 'return syscall("access", memory("/etc/passwd"), 0)',
  },
  {
    what: "asks whether a file is there by faccessat2",
    named: "faccessat2",
    code: 'return syscall("faccessat2", -100, memory("/etc/passwd"), 0, 0)',
  },
  {
    what: "asks about a file",
    named: "statx",
    code: 'return syscall("statx", -100, memory("/etc/passwd"), 0, 0xfff, memory(256))',
  },
  {
    what: "asks about a file by the old call",
    named: "stat",
    code: 'return syscall("stat", memory("/etc/passwd"), memory(144))',
  },
  {
    what: "reads a link",
    named: "readlinkat",
    code: 'return syscall("readlinkat", -100, memory("/proc/self/exe"), memory(256), 256)',
  },
  {
    what: "reads a link by the old call",
    named: "readlink",
    code: 'return syscall("readlink", memory("/proc/self/exe"), memory(256), 256)',
  },
  { what: "asks where it stands", named: "getcwd", code: 'return syscall("getcwd", memory(4096), 4096)' },
  { what: "goes elsewhere", named: "chdir", code: 'return syscall("chdir", memory("/"))' },
  {
    what: "makes a handle of a file",
    named: "name_to_handle_at",
    code: 'const handle = memory(136); handle.bytes.writeUInt32LE(128, 0); return syscall("name_to_handle_at", -100, memory("/etc/passwd"), handle, memory(8), 0)',
    outside: { errnos: [EOPNOTSUPP], because: "some file systems have no handles" },
  },
  {
    what: "opens a file by a handle",
    named: "open_by_handle_at",
    code: 'return syscall("open_by_handle_at", -100, memory(136), 0)',
    outside: { errnos: [EPERM, EINVAL], because: "an empty handle is nobody's, and only root may ask" },
  },
  {
    what: "makes a file in memory",
    named: "memfd_create",
    code: 'return syscall("memfd_create", memory("x"), 0)',
  },
  {
    what: "makes a secret file in memory",
    named: "memfd_secret",
    code: 'return syscall("memfd_secret", 0)',
    outside: {
      errnos: [ENOSYS],
      because: "kernels before 6.5 need secretmem.enable, and hibernation forbids it",
    },
  },
  {
    what: "runs a program",
    named: "execve",
    code: 'return syscall("execve", memory("/nonexistent"), Memory.vector([]).vector, 0)',
    outside: { errnos: [ENOENT], because: "a program that is there would replace the control" },
  },
  {
    what: "runs a program by execveat",
    named: "execveat",
    code: 'return syscall("execveat", -100, memory("/nonexistent"), Memory.vector([]).vector, 0, 0)',
    outside: { errnos: [ENOENT], because: "a program that is there would replace the control" },
  },
  { what: "copies its descriptor", named: "dup", code: 'return syscall("dup", 3)' },
  { what: "copies its descriptor through fcntl", named: "fcntl", code: 'return syscall("fcntl", 3, 0, 100)' },
  { what: "watches files", named: "inotify_init1", code: 'return syscall("inotify_init1", 0)' },
  {
    what: "watches all files",
    named: "fanotify_init",
    code: 'return syscall("fanotify_init", 0, 0)',
    outside: mayBeLockedDown(ENOSYS),
  },
];

const PROCESSES: Act[] = [
  { what: "signals another process", named: "kill", code: 'return syscall("kill", input.pid, 0)' },
  {
    what: "signals every process",
    named: "kill",
    code: 'return syscall("kill", -1, 9)',
    control: 'return syscall("kill", 0, 0)',
  },
  { what: "signals another thread", named: "tkill", code: 'return syscall("tkill", input.pid, 0)' },
  { what: "queues a signal", named: "rt_sigqueueinfo", code: 'const info = memory(128); info.bytes.writeInt32LE(-1, 8); return syscall("rt_sigqueueinfo", input.pid, 0, info)' }, // prettier-ignore
  { what: "traces another process", named: "ptrace", code: 'return syscall("ptrace", 0x4206, input.pid, 0, 0)', outside: { errnos: [EPERM], because: "Yama allows only descendants" } }, // prettier-ignore
  { what: "asks to be traced", named: "ptrace", code: 'return syscall("ptrace", 0, 0, 0, 0)' },
  {
    what: "reads memory through the kernel",
    named: "process_vm_readv",
    code: 'const to = memory(8), from = memory(8), a = memory(16), b = memory(16); for (const [v, m] of [[a, to], [b, from]]) { v.bytes.writeBigUInt64LE(BigInt(m.address), 0); v.bytes.writeBigUInt64LE(8n, 8); } return syscall("process_vm_readv", process.pid, a, 1, b, 1, 0)', // prettier-ignore
  },
  {
    what: "writes memory through the kernel",
    named: "process_vm_writev",
    code: 'const to = memory(8), from = memory(8), a = memory(16), b = memory(16); for (const [v, m] of [[a, to], [b, from]]) { v.bytes.writeBigUInt64LE(BigInt(m.address), 0); v.bytes.writeBigUInt64LE(8n, 8); } return syscall("process_vm_writev", process.pid, a, 1, b, 1, 0)', // prettier-ignore
  },
  {
    what: "takes a descriptor of a process",
    named: "pidfd_open",
    code: 'return syscall("pidfd_open", input.pid, 0)',
  },
  {
    what: "steals a descriptor of a process",
    named: "pidfd_getfd",
    code: 'return syscall("pidfd_getfd", 3, 0, 0)',
    outside: { errnos: [EBADF], because: "3 is no pidfd" },
  },
  {
    what: "signals through a descriptor",
    named: "pidfd_send_signal",
    code: 'return syscall("pidfd_send_signal", 3, 0, 0, 0)',
    control: 'return syscall("pidfd_send_signal", syscall("pidfd_open", input.pid, 0).ret, 0, 0, 0)',
  },
  {
    what: "asks for the limits of a process",
    named: "prlimit64",
    code: 'return syscall("prlimit64", input.pid, 7, 0, memory(16))',
  },
  { what: "asks for the name of its user", named: "getuid", code: 'return syscall("getuid")' },
  { what: "asks for the name of the host", named: "uname", code: 'return syscall("uname", memory(400))' },
  { what: "asks how the host is", named: "sysinfo", code: 'return syscall("sysinfo", memory(128))' },
  {
    what: "compares kernel objects",
    named: "kcmp",
    code: 'return syscall("kcmp", process.pid, process.pid, 1, 0, 0)',
  },
  {
    what: "becomes another user",
    named: "setresuid",
    code: 'return syscall("setresuid", 0, 0, 0)',
    outside: needsRoot,
  },
  { what: "gives itself capabilities", named: "capset", code: 'const head = memory(8); head.bytes.writeUInt32LE(0x20080522, 0); return syscall("capset", head, memory(24))' }, // prettier-ignore
  { what: "raises its limits", named: "setrlimit", code: 'return syscall("setrlimit", 7, memory(16))', control: 'const own = memory(16); syscall("prlimit64", 0, 7, 0, own); return syscall("setrlimit", 7, own)' }, // prettier-ignore
  {
    what: "handles a signal",
    named: "rt_sigaction",
    code: 'return syscall("rt_sigaction", 10, 0, memory(32), 8)',
  },
  { what: "sets a timer", named: "alarm", code: 'return syscall("alarm", 1000)' },
];

const CREATION: Act[] = [
  { what: "forks", named: "fork", code: 'return syscall("fork")' },
  {
    what: "forks and shares its memory",
    named: "vfork",
    code: 'return syscall("vfork")',
    control: 'return syscall("fork")',
  },
  { what: "forks by clone", named: "clone", code: 'return syscall("clone", 17, 0, 0, 0, 0)' },
  {
    what: "forks by clone3",
    named: "clone3",
    code: 'const args = memory(88); args.bytes.writeBigUInt64LE(17n, 32); return syscall("clone3", args, 88)',
  },
  { what: "forks without end", named: "clone", code: 'for (;;) syscall("clone", 17, 0, 0, 0, 0)', control: 'return syscall("clone", 17, 0, 0, 0, 0)' }, // prettier-ignore
  { what: "starts a thread", named: "clone", code: 'return syscall("clone", 0x10f00, memory(65536).address + 65000, 0, 0, 0)', control: 'return syscall("clone", 17, 0, 0, 0, 0)' }, // prettier-ignore
];

const EXECUTABLE: Act[] = [
  {
    what: "maps memory to write and execute",
    named: "mmap",
    code: 'return syscall("mmap", 0, 4096, 7, 0x22, -1, 0)',
  },
  { what: "maps memory to execute", named: "mmap", code: 'return syscall("mmap", 0, 4096, 5, 0x22, -1, 0)' },
  { what: "makes written memory executable", named: "mprotect", code: 'const at = syscall("mmap", 0, 4096, 3, 0x22, -1, 0).ret; return syscall("mprotect", at, 4096, 5)' }, // prettier-ignore
  { what: "makes written memory executable under a key", named: "pkey_mprotect", code: 'const at = syscall("mmap", 0, 4096, 3, 0x22, -1, 0).ret; return syscall("pkey_mprotect", at, 4096, 5, -1)' }, // prettier-ignore
  { what: "makes its own code writable and executable", named: "mprotect", code: 'const at = syscall("mmap", 0, 4096, 3, 0x22, -1, 0).ret; return syscall("mprotect", at, 4096, 7)' }, // prettier-ignore
  {
    what: "lets reading imply executing",
    named: "personality",
    code: 'return syscall("personality", 0x400000)',
  },
  { what: "maps executable shared memory", named: "shmget", code: 'const id = syscall("shmget", 0, 4096, 0o1700).ret; const at = syscall("shmat", id, 0, 0o100000); syscall("shmctl", id, 0, 0); return at' }, // prettier-ignore
  { what: "attaches executable shared memory", named: "shmat", code: 'return syscall("shmat", 0, 0, 0o100000)', outside: { errnos: [EINVAL, EACCES, 43], because: "there is no segment 0" } }, // prettier-ignore
  { what: "maps a file in memory to execute", named: "memfd_create", code: 'const fd = syscall("memfd_create", memory("x"), 0).ret; syscall("ftruncate", fd, 4096); return syscall("mmap", 0, 4096, 5, 1, fd, 0)', outside: mayBeLockedDown() }, // prettier-ignore
  { what: "moves a mapping", named: "mremap", code: 'const at = syscall("mmap", 0, 4096, 3, 0x22, -1, 0).ret; return syscall("mremap", at, 4096, 8192, 1)' }, // prettier-ignore
  { what: "reorders the pages of a file", named: "remap_file_pages", code: 'return syscall("remap_file_pages", 0, 4096, 0, 0, 0)', outside: { errnos: [EINVAL], because: "page 0 is not mapped" } }, // prettier-ignore
  { what: "makes a protection key", named: "pkey_alloc", code: 'return syscall("pkey_alloc", 0, 0)', outside: { errnos: [EINVAL, 28, ENOSYS], because: "the CPU may have no keys" } }, // prettier-ignore
  { what: "loads a library", named: "uselib", code: 'return syscall("uselib", memory("/bin/true"))', outside: { errnos: [ENOSYS, EACCES], because: "kernels leave it out" } }, // prettier-ignore
  { what: "makes segments of its own", named: "modify_ldt", code: 'return syscall("modify_ldt", 0, memory(64), 64)', outside: { errnos: [ENOSYS], because: "CONFIG_MODIFY_LDT_SYSCALL" } }, // prettier-ignore
  {
    what: "moves its thread's segments",
    named: "arch_prctl",
    code: 'return syscall("arch_prctl", 0x1003, memory(8))',
  },
  { what: "advises another process", named: "process_madvise", code: 'return syscall("process_madvise", 3, 0, 0, 4, 0)', outside: { errnos: [EBADF, EINVAL], because: "3 is no pidfd" } }, // prettier-ignore
];

const KERNEL: Act[] = [
  {
    what: "leaves its mount namespace",
    named: "unshare",
    code: 'return syscall("unshare", 0x20000)',
    outside: needsRoot,
  },
  { what: "makes a user namespace", named: "clone", code: 'return syscall("clone", 0x10000011, 0, 0, 0, 0)', outside: mayBeLockedDown(28) }, // prettier-ignore
  { what: "makes a user namespace by unshare", named: "unshare", code: 'return syscall("unshare", 0x10000000)', outside: { errnos: [EINVAL, EPERM], because: "a process of many threads cannot" } }, // prettier-ignore
  { what: "enters a namespace", named: "setns", code: 'return syscall("setns", 3, 0)', outside: { errnos: [EINVAL, EBADF], because: "3 is no namespace" } }, // prettier-ignore
  { what: "mounts", named: "mount", code: 'return syscall("mount", memory("none"), memory("/"), memory("tmpfs"), 0x21, memory("size=4k"))', control: 'return syscall("mount", memory("none"), memory("/nonexistent"), memory("tmpfs"), 0, 0)', outside: { errnos: [ENOENT, EPERM], because: "it would change this host: the matrix of layers has it in a namespace" } }, // prettier-ignore
  {
    what: "opens a file system",
    named: "fsopen",
    code: 'return syscall("fsopen", memory("tmpfs"), 0)',
    outside: needsRoot,
  },
  {
    what: "picks a tree of mounts",
    named: "open_tree",
    code: 'return syscall("open_tree", -100, memory("/"), 0)',
  },
  { what: "moves a mount", named: "move_mount", code: 'return syscall("move_mount", -100, memory("/x"), -100, memory("/y"), 0)', outside: { errnos: [ENOENT, EPERM], because: "neither path is there" } }, // prettier-ignore
  { what: "sets attributes of mounts", named: "mount_setattr", code: 'return syscall("mount_setattr", -100, memory("/x"), 0, memory(32), 32)', outside: { errnos: [0, ENOENT, EPERM], because: "there is no such mount" } }, // prettier-ignore
  { what: "swaps its root", named: "pivot_root", code: 'return syscall("pivot_root", memory("/x"), memory("/y"))', outside: { errnos: [ENOENT, EPERM], because: "neither path is there" } }, // prettier-ignore
  {
    what: "changes its root",
    named: "chroot",
    code: 'return syscall("chroot", memory("/"))',
    outside: needsRoot,
  },
  { what: "unmounts", named: "umount2", code: 'return syscall("umount2", memory("/nonexistent"), 2)', outside: { errnos: [ENOENT, EPERM], because: "there is no such mount" } }, // prettier-ignore
  { what: "makes a ring of calls that no filter sees", named: "io_uring_setup", code: 'return syscall("io_uring_setup", 1, memory(120))', outside: mayBeLockedDown(ENOMEM, ENOSYS) }, // prettier-ignore
  { what: "enters a ring of calls", named: "io_uring_enter", code: 'return syscall("io_uring_enter", 3, 0, 0, 0, 0)', outside: { errnos: [EOPNOTSUPP, EBADF, ENOSYS], because: "3 is no ring" } }, // prettier-ignore
  { what: "loads a program into the kernel", named: "bpf", code: 'const attr = memory(128); attr.bytes.writeUInt32LE(2, 0); attr.bytes.writeUInt32LE(4, 4); attr.bytes.writeUInt32LE(4, 8); attr.bytes.writeUInt32LE(1, 12); return syscall("bpf", 0, attr, 72)', outside: mayBeLockedDown(ENOSYS) }, // prettier-ignore
  {
    what: "uses a keyring",
    named: "keyctl",
    code: 'return syscall("keyctl", 0, -3, 1)',
    outside: mayBeLockedDown(ENOSYS),
  },
  { what: "adds a key", named: "add_key", code: 'return syscall("add_key", memory("user"), memory("x"), memory("y"), 1, -2)', outside: mayBeLockedDown(ENOSYS) }, // prettier-ignore
  { what: "asks for a key", named: "request_key", code: 'return syscall("request_key", memory("user"), memory("doublehull-none"), 0, -2)', outside: { errnos: [126, ENOSYS], because: "there is no such key" } }, // prettier-ignore
  {
    what: "handles page faults",
    named: "userfaultfd",
    code: 'return syscall("userfaultfd", 1)',
    outside: mayBeLockedDown(ENOSYS),
  },
  { what: "counts the CPU's events", named: "perf_event_open", code: 'const attr = memory(136); attr.bytes.writeUInt32LE(1, 0); attr.bytes.writeUInt32LE(136, 4); attr.bytes.writeBigUInt64LE(0x60n, 40); return syscall("perf_event_open", attr, 0, -1, -1, 0)', outside: mayBeLockedDown(ENOSYS, ENOENT) }, // prettier-ignore
  { what: "loads a module", named: "init_module", code: 'return syscall("init_module", memory(8), 8, memory(""))', outside: { errnos: [EPERM, ENOSYS, 8], because: "it is no module" } }, // prettier-ignore
  { what: "boots another kernel", named: "kexec_load", code: 'return syscall("kexec_load", 0, 0, 0, 0)', control: "return { ret: 0, errno: 0 }" }, // prettier-ignore
  { what: "restarts the machine", named: "reboot", code: 'return syscall("reboot", 0, 0, 0, 0)', outside: { errnos: [EPERM, EINVAL], because: "the magic numbers are missing" } }, // prettier-ignore
  {
    what: "reads the kernel's log",
    named: "syslog",
    code: 'return syscall("syslog", 10, 0, 0)',
    outside: needsRoot,
  },
  { what: "changes the clock", named: "clock_settime", code: 'return syscall("clock_settime", 0, 0)', outside: { errnos: [14, EPERM], because: "there is no time to set" } }, // prettier-ignore
  { what: "changes how it is seen", named: "prctl", code: 'return syscall("prctl", 4, 1, 0, 0, 0)' },
  { what: "adds a filter that allows", named: "seccomp", code: 'return syscall("seccomp", 2, 0, memory(4))', outside: { errnos: [EOPNOTSUPP], because: "0 is no action that can be asked for" } }, // prettier-ignore
  {
    what: "adds a Landlock domain",
    named: "landlock_create_ruleset",
    code: 'return syscall("landlock_create_ruleset", 0, 0, 1)',
  },
  { what: "asks for device control", named: "ioctl", code: 'return syscall("ioctl", 3, 0x541b, memory(8))' },
  { what: "makes a message queue", named: "mq_open", code: 'return syscall("mq_open", memory("doublehull-none"), 0, 0, 0)', outside: { errnos: [ENOENT, ENOSYS], because: "there is no such queue" } }, // prettier-ignore
  { what: "makes a semaphore", named: "semget", code: 'const id = syscall("semget", 0, 1, 0o600); syscall("semctl", id.ret, 0, 0, 0); return id' }, // prettier-ignore
  { what: "pins itself to a CPU", named: "sched_setaffinity", code: 'const all = memory(128); all.bytes.fill(255); return syscall("sched_setaffinity", 0, 128, all)' }, // prettier-ignore
  {
    what: "asks for the kernel's random numbers",
    named: "getrandom",
    code: 'return syscall("getrandom", memory(8), 8, 0)',
  },
];

describe.each([
  ["files", FILES],
  ["processes", PROCESSES],
  ["new processes", CREATION],
  ["executable memory", EXECUTABLE],
  ["the kernel's other doors", KERNEL],
] as const)("%s:", (_, acts) => {
  it.each(acts.filter(({ named }) => named in TABLE))("code that $what ends by $named", async (act) => {
    const input = { pid: bystander.pid };
    const outside = answerOf(await control(act.control ?? act.code, input));
    const allowed = [0, ...(act.outside?.errnos ?? [])];
    expect(allowed, `in a plain process: errno ${outside.errno}`).toContain(outside.errno);

    const stop = stopOf(await attack(await ownedHull(), act.code, input));
    expect(stop).toMatchObject({ layer: "seccomp", syscall: act.named });
    expect(["syscall", "crash"]).toContain(stop.reason);
    expect(bystander.exitCode).toBe(null);
    expect(bystander.signalCode).toBe(null);
  });
});

describe("sockets", () => {
  const FAMILIES = Array.from({ length: 48 }, (_, family) => family);

  it("of every family and type are refused before there is one", async () => {
    const all = `const got = {};
      for (const family of input) for (const type of [1, 2, 3, 5]) {
        const { ret, errno } = syscall("socket", family, type, 0);
        if (ret >= 0) { syscall("close", ret); (got[family] ??= []).push(type); }
      }
      return got;`;
    const outside = valueOf(await control(all, FAMILIES)) as Record<string, number[]>;
    for (const family of [1, 2, 10, 16]) expect(outside[family], `family ${family}`).toBeDefined();

    const hull = await ownedHull({ slots: 16 });
    const stops = await inParallel(FAMILIES, 12, async (family) =>
      stopOf(await attack(hull, `return syscall("socket", ${family}, ${family % 2 === 0 ? 1 : 2}, 0)`)),
    );
    for (const stop of stops)
      expect(stop).toEqual({ reason: "syscall", layer: "seccomp", syscall: "socket" });
  });

  it("cannot be made of the one that is there", async () => {
    const hull = await ownedHull({ slots: 16 });
    const calls: Record<string, string> = {
      socketpair: "1, 1, 0, memory(8)",
      connect: "3, memory(16), 16",
      bind: "3, memory(16), 16",
      listen: "3, 1",
      accept4: "3, 0, 0, 0",
      sendto: "3, memory(8), 8, 0, 0, 0",
      sendmsg: "3, memory(56), 0",
      recvmsg: "3, memory(56), 0",
      recvfrom: "3, memory(8), 8, 0, 0, 0",
      getpeername: "3, memory(128), memory(4)",
      setsockopt: "3, 1, 8, memory(4), 4",
      getsockopt: "3, 1, 17, memory(12), memory(4)",
      shutdown: "3, 2",
      readv: "3, memory(16), 0",
      sendfile: "3, 3, 0, 1",
      splice: "3, 0, 3, 0, 1, 0",
    };
    const stops = await inParallel(Object.entries(calls), 12, async ([call, args]) =>
      stopOf(await attack(hull, `return syscall("${call}", ${args})`)),
    );
    expect(stops.map(({ syscall }) => syscall)).toEqual(Object.keys(calls));
  });
});

describe("descriptors", () => {
  it("that a worker has are one, and no other number answers a read", async () => {
    const hull = await ownedHull({ slots: 16 });
    const victim = await hull.fork();
    expect(fs.readdirSync(`/proc/${victim.worker.pid}/fd`)).toEqual(["3"]);
    expect(fs.readlinkSync(`/proc/${victim.worker.pid}/fd/3`)).toMatch(/^socket:/);
    const numbers = Array.from({ length: 65 }, (_, fd) => fd).filter((fd) => fd !== 3);
    const code = `return ${JSON.stringify(numbers)}.map((fd) => syscall("write", fd, memory(1), 1).errno)`;
    expect(valueOf(await hull.attack(victim, code))).toEqual(numbers.map(() => EAGAIN));
    const stops = await inParallel(numbers, 12, async (fd) =>
      stopOf(await attack(hull, `return syscall("read", ${fd}, memory(1), 1)`)),
    );
    expect(new Set(stops.map(({ syscall }) => syscall))).toEqual(new Set(["read"]));
    // The control: a plain process has more, and reads of them get as far as the descriptor.
    const plain = valueOf(
      await control('return [0, 1, 2].map((fd) => syscall("write", fd, memory(1), 0).errno)'),
    );
    expect(plain).toEqual([EBADF, 0, 0]);
  });

  it("and secrets of the supervisor are not in a worker's environment or arguments", async () => {
    const hull = await ownedHull();
    const seen = valueOf(await attack(hull, "return { ...process.env }")) as object;
    expect(Object.keys(seen).filter((name) => name !== "TZ")).toEqual([]);
    const outside = valueOf(await control("return Object.keys(process.env)"));
    expect(outside).toContain("TZ");
  });
});

describe("bombs", () => {
  it("of private memory end at the limit, with an error for whoever asks and none for the host", async () => {
    const hull = await ownedHull();
    // The last one is given back: with nothing left V8 may find no room to tell the answer, and ends the worker itself.
    const ask = `let mib = 0, last = 0;
      while (mib < input) { const { ret } = syscall("mmap", 0, ${1 << 20}, 3, 0x22, -1, 0); if (ret === -1) break; last = ret; mib++; }
      syscall("munmap", last, ${1 << 20}); return mib;`;
    expect(valueOf(await control(ask, 1024))).toBe(1024);
    const got = valueOf(await attack(hull, ask, 1024)) as number;
    expect(got).toBeGreaterThan(16);
    // The limit, and what the worker held of the image and gave back meanwhile.
    expect(got).toBeLessThanOrEqual(64 + 24 + 16);
  });

  it("of memory that is really written end as memory, or as the engine's own error", async () => {
    const hull = await ownedHull();
    const write = `const kept = []; for (let i = 0; i < input; i++) kept.push(memory(new Uint8Array(${4 << 20}).fill(i))); return kept.length;`;
    expect(valueOf(await control(write, 64))).toBe(64);
    const outcome = await attack(hull, write, 64);
    expect(["threw", "stopped"]).toContain(outcome.status);
    if (outcome.status === "stopped") expect(["memory", "crash"]).toContain(outcome.stop.reason);
    if (outcome.status === "threw") expect(outcome.error.message).toMatch(/allocation/i);
    expect(outcome.usage.peakMemoryBytes).toBeLessThanOrEqual((64 + 24) * 1.1 * (1 << 20));
  });

  it("of CPU time are ended by the kernel when nobody else does", async () => {
    const hull = await ownedHull();
    const generous = { wallMs: 20_000, cpuMs: 20_000 };
    const victim = await hull.fork();
    const running = hull.attack(victim, "for (;;);", undefined, generous);
    // The supervisor's own deadlines stay far away; only the kernel's limit is lowered, in its unit of whole seconds.
    victim.parked.cpuSeconds = 1;
    const MiB = 1 << 20;
    victim.worker.limit({ dataBytes: 88 * MiB, cgroupBytes: 88 * MiB, cpuSeconds: 1 });
    expect(stopOf(await running)).toMatchObject({ reason: "cpu-time", layer: "rlimit" });
  });

  it("of CPU time are ended by the supervisor at the run's own limit", async () => {
    const hull = await ownedHull();
    const stop = stopOf(await attack(hull, "for (;;);", undefined, { wallMs: 20_000, cpuMs: 100 }));
    expect(stop).toMatchObject({ reason: "cpu-time", layer: "supervisor", limit: 100 });
  });
});
