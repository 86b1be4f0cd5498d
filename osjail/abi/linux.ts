/**
 * The Linux ABI as data: the numbers and struct layouts that the rest of the jail names. Every group says where it
 * comes from; a kernel version is given where something is newer than 4.19. Nothing here acts, and nothing here is
 * measured on a running kernel. Values are those of x86-64 and arm64, one record per architecture where they differ.
 */
import type { Arch } from "./syscalls.js";

/** Flags of clone(2), clone3(2), unshare(2) and setns(2). linux/sched.h; PIDFD 5.2, NEWTIME 5.6, INTO_CGROUP 5.7. */
export const CLONE = {
  VM: 0x100,
  FS: 0x200,
  FILES: 0x400,
  SIGHAND: 0x800,
  PIDFD: 0x1000,
  PTRACE: 0x2000,
  VFORK: 0x4000,
  PARENT: 0x8000,
  THREAD: 0x10000,
  NEWNS: 0x20000,
  SYSVSEM: 0x40000,
  SETTLS: 0x80000,
  PARENT_SETTID: 0x100000,
  CHILD_CLEARTID: 0x200000,
  DETACHED: 0x400000,
  UNTRACED: 0x800000,
  CHILD_SETTID: 0x1000000,
  NEWCGROUP: 0x2000000,
  NEWUTS: 0x4000000,
  NEWIPC: 0x8000000,
  NEWUSER: 0x10000000,
  NEWPID: 0x20000000,
  NEWNET: 0x40000000,
  IO: 0x80000000,
  /** Shares its bits with the exit signal of clone(2): only unshare and clone3 take it. man 7 time_namespaces */
  NEWTIME: 0x80,
  /** clone3 only; beyond 32 bits, so it must not meet JavaScript's bit operators. */
  CLEAR_SIGHAND: 0x100000000,
  /** clone3 only; beyond 32 bits, so it must not meet JavaScript's bit operators. */
  INTO_CGROUP: 0x200000000,
} as const;

/** Byte offsets of `struct clone_args`, all 64-bit words, and its size as of 5.7. linux/sched.h, man 2 clone */
export const CLONE_ARGS = {
  flags: 0,
  pidfd: 8,
  child_tid: 16,
  parent_tid: 24,
  exit_signal: 32,
  stack: 40,
  stack_size: 48,
  tls: 56,
  set_tid: 64,
  set_tid_size: 72,
  cgroup: 80,
  size: 88,
} as const;

/** Flags of mount(2). linux/mount.h; NOSYMFOLLOW 5.10. */
export const MS = {
  RDONLY: 1,
  NOSUID: 2,
  NODEV: 4,
  NOEXEC: 8,
  SYNCHRONOUS: 0x10,
  REMOUNT: 0x20,
  MANDLOCK: 0x40,
  DIRSYNC: 0x80,
  NOSYMFOLLOW: 0x100,
  NOATIME: 0x400,
  NODIRATIME: 0x800,
  BIND: 0x1000,
  MOVE: 0x2000,
  REC: 0x4000,
  SILENT: 0x8000,
  UNBINDABLE: 0x20000,
  PRIVATE: 0x40000,
  SLAVE: 0x80000,
  SHARED: 0x100000,
  RELATIME: 0x200000,
  STRICTATIME: 0x1000000,
  LAZYTIME: 0x2000000,
} as const;

/** Flags of umount2(2). linux/fs.h */
export const MNT_FORCE = 1;
export const MNT_DETACH = 2;
export const MNT_EXPIRE = 4;
export const UMOUNT_NOFOLLOW = 8;

/** Operations of prctl(2) and their arguments. linux/prctl.h; SCHED_CORE 5.14, L1D_FLUSH 5.15, MDWE 6.3. */
export const PR = {
  SET_PDEATHSIG: 1,
  GET_PDEATHSIG: 2,
  GET_DUMPABLE: 3,
  SET_DUMPABLE: 4,
  SET_KEEPCAPS: 8,
  SET_NAME: 15,
  GET_NAME: 16,
  CAPBSET_READ: 23,
  CAPBSET_DROP: 24,
  GET_TSC: 25,
  SET_TSC: 26,
  /** arg2 of SET_TSC: RDTSC raises SIGSEGV. x86 only. */
  TSC_SIGSEGV: 2,
  GET_SECUREBITS: 27,
  SET_SECUREBITS: 28,
  SET_TIMERSLACK: 29,
  SET_CHILD_SUBREAPER: 36,
  SET_NO_NEW_PRIVS: 38,
  GET_NO_NEW_PRIVS: 39,
  SET_THP_DISABLE: 41,
  CAP_AMBIENT: 47,
  /** arg2 of CAP_AMBIENT. */
  CAP_AMBIENT_CLEAR_ALL: 4,
  GET_SPECULATION_CTRL: 52,
  SET_SPECULATION_CTRL: 53,
  /** arg2 of the two above. */
  SPEC_STORE_BYPASS: 0,
  SPEC_INDIRECT_BRANCH: 1,
  SPEC_L1D_FLUSH: 2,
  /** arg3 of SET_SPECULATION_CTRL, and bits of GET_SPECULATION_CTRL's answer. */
  SPEC_NOT_AFFECTED: 0,
  SPEC_PRCTL: 1,
  SPEC_ENABLE: 2,
  SPEC_DISABLE: 4,
  SPEC_FORCE_DISABLE: 8,
  SCHED_CORE: 62,
  /** arg2 of SCHED_CORE. */
  SCHED_CORE_GET: 0,
  SCHED_CORE_CREATE: 1,
  SCHED_CORE_SHARE_TO: 2,
  SCHED_CORE_SHARE_FROM: 3,
  /** arg4 of SCHED_CORE: which tasks. */
  SCHED_CORE_SCOPE_THREAD: 0,
  SCHED_CORE_SCOPE_THREAD_GROUP: 1,
  SCHED_CORE_SCOPE_PROCESS_GROUP: 2,
  SET_MDWE: 65,
  GET_MDWE: 66,
  /** arg2 of SET_MDWE. NO_INHERIT is 6.6. */
  MDWE_REFUSE_EXEC_GAIN: 1,
  MDWE_NO_INHERIT: 2,
} as const;

/** Bits of PR_SET_SECUREBITS. linux/securebits.h, man 7 capabilities "The securebits flags" */
export const SECUREBITS = {
  NOROOT: 0x01,
  NOROOT_LOCKED: 0x02,
  NO_SETUID_FIXUP: 0x04,
  NO_SETUID_FIXUP_LOCKED: 0x08,
  KEEP_CAPS: 0x10,
  KEEP_CAPS_LOCKED: 0x20,
  NO_CAP_AMBIENT_RAISE: 0x40,
  NO_CAP_AMBIENT_RAISE_LOCKED: 0x80,
  /** NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE on, KEEP_CAPS off, all four locked. */
  ALL_LOCKED: 0xef,
} as const;

/**
 * seccomp(2): operations, filter flags, and the actions in a filter's 32-bit answer (action in the high half, data in
 * the low). Where several filters answer, the lowest value as a signed number wins. linux/seccomp.h; NEW_LISTENER and
 * USER_NOTIF 5.0, TSYNC_ESRCH 5.7, WAIT_KILLABLE_RECV 5.19.
 */
export const SECCOMP = {
  SET_MODE_STRICT: 0,
  SET_MODE_FILTER: 1,
  GET_ACTION_AVAIL: 2,
  GET_NOTIF_SIZES: 3,
  FLAG_TSYNC: 1,
  FLAG_LOG: 2,
  FLAG_SPEC_ALLOW: 4,
  FLAG_NEW_LISTENER: 8,
  FLAG_TSYNC_ESRCH: 0x10,
  FLAG_WAIT_KILLABLE_RECV: 0x20,
  RET_KILL_PROCESS: 0x80000000,
  RET_KILL_THREAD: 0,
  RET_TRAP: 0x00030000,
  RET_ERRNO: 0x00050000,
  RET_USER_NOTIF: 0x7fc00000,
  RET_TRACE: 0x7ff00000,
  RET_LOG: 0x7ffc0000,
  RET_ALLOW: 0x7fff0000,
  RET_ACTION_FULL: 0xffff0000,
  RET_DATA: 0x0000ffff,
  /** Length of `struct sock_fprog` on a 64-bit machine: u16 len at 0, pointer at 8. */
  FPROG_SIZE: 16,
  FPROG_FILTER_AT: 8,
} as const;

/** Byte offsets of `struct seccomp_data`, what a filter may load: args are six 64-bit words. linux/seccomp.h */
export const SECCOMP_DATA = { nr: 0, arch: 4, instruction_pointer: 8, args: 16, size: 64 } as const;

/**
 * Landlock: flags, rule types, layouts and access rights. linux/landlock.h, man 7 landlock; 5.13 and later.
 * A right that a ruleset handles is refused wherever no rule grants it.
 */
export const LANDLOCK = {
  CREATE_RULESET_VERSION: 1,
  CREATE_RULESET_ERRATA: 2,
  RULE_PATH_BENEATH: 1,
  RULE_NET_PORT: 2,
  /** Flags of landlock_restrict_self, ABI 7. */
  RESTRICT_SELF_LOG_SAME_EXEC_OFF: 1,
  RESTRICT_SELF_LOG_NEW_EXEC_ON: 2,
  RESTRICT_SELF_LOG_SUBDOMAINS_OFF: 4,
  /** `struct landlock_ruleset_attr`: 64-bit words. The size passed must not exceed what the ABI knows: 8, 16, 24. */
  RULESET_ATTR: { handled_access_fs: 0, handled_access_net: 8, scoped: 16 },
  /** `struct landlock_path_beneath_attr`, packed: u64, then s32. */
  PATH_BENEATH_ATTR: { allowed_access: 0, parent_fd: 8, size: 12 },
  /** `struct landlock_net_port_attr`: two u64, the port in host byte order. */
  NET_PORT_ATTR: { allowed_access: 0, port: 8, size: 16 },
  ACCESS_FS: {
    EXECUTE: 1 << 0,
    WRITE_FILE: 1 << 1,
    READ_FILE: 1 << 2,
    READ_DIR: 1 << 3,
    REMOVE_DIR: 1 << 4,
    REMOVE_FILE: 1 << 5,
    MAKE_CHAR: 1 << 6,
    MAKE_DIR: 1 << 7,
    MAKE_REG: 1 << 8,
    MAKE_SOCK: 1 << 9,
    MAKE_FIFO: 1 << 10,
    MAKE_BLOCK: 1 << 11,
    MAKE_SYM: 1 << 12,
    /** ABI 2. Before it, linking and renaming across directories is always refused. */
    REFER: 1 << 13,
    /** ABI 3. */
    TRUNCATE: 1 << 14,
    /** ABI 5. */
    IOCTL_DEV: 1 << 15,
  },
  /** ABI 4. */
  ACCESS_NET: { BIND_TCP: 1, CONNECT_TCP: 2 },
  /** ABI 6. */
  SCOPE: { ABSTRACT_UNIX_SOCKET: 1, SIGNAL: 2 },
} as const;

/**
 * What each Landlock ABI can handle: the masks to put in a ruleset, and the kernel that brought the ABI. ABI 7 added
 * log flags, no right. man 7 landlock "VERSIONS", Documentation/userspace-api/landlock.rst
 */
export const LANDLOCK_ABI: readonly {
  abi: number;
  kernel: string;
  fs: number;
  net: number;
  scope: number;
}[] = [
  { abi: 1, kernel: "5.13", fs: 0x1fff, net: 0, scope: 0 },
  { abi: 2, kernel: "5.19", fs: 0x3fff, net: 0, scope: 0 },
  { abi: 3, kernel: "6.2", fs: 0x7fff, net: 0, scope: 0 },
  { abi: 4, kernel: "6.7", fs: 0x7fff, net: 3, scope: 0 },
  { abi: 5, kernel: "6.10", fs: 0xffff, net: 3, scope: 0 },
  { abi: 6, kernel: "6.12", fs: 0xffff, net: 3, scope: 3 },
  { abi: 7, kernel: "6.15", fs: 0xffff, net: 3, scope: 3 },
];

/** Requests, options and events of ptrace(2). linux/ptrace.h; GET_SYSCALL_INFO 5.3. An event is `status >> 16`. */
export const PTRACE = {
  CONT: 7,
  KILL: 8,
  DETACH: 17,
  SETOPTIONS: 0x4200,
  GETEVENTMSG: 0x4201,
  GETSIGINFO: 0x4202,
  SEIZE: 0x4206,
  INTERRUPT: 0x4207,
  LISTEN: 0x4208,
  GET_SYSCALL_INFO: 0x420e,
  O_TRACESECCOMP: 0x80,
  O_EXITKILL: 0x100000,
  EVENT_SECCOMP: 7,
  EVENT_STOP: 128,
  /**
   * `struct ptrace_syscall_info`: op u8, arch u32, then u64 words. At op SECCOMP: nr, args[6], ret_data u32.
   */
  SYSCALL_INFO: {
    op: 0,
    arch: 4,
    instruction_pointer: 8,
    stack_pointer: 16,
    nr: 24,
    args: 32,
    ret_data: 80,
    size: 88,
  },
  SYSCALL_INFO_SECCOMP: 3,
} as const;

/** Capability names; the index is the number. linux/capability.h; PERFMON and BPF 5.8, CHECKPOINT_RESTORE 5.9. */
export const CAP = [
  "CHOWN",
  "DAC_OVERRIDE",
  "DAC_READ_SEARCH",
  "FOWNER",
  "FSETID",
  "KILL",
  "SETGID",
  "SETUID",
  "SETPCAP",
  "LINUX_IMMUTABLE",
  "NET_BIND_SERVICE",
  "NET_BROADCAST",
  "NET_ADMIN",
  "NET_RAW",
  "IPC_LOCK",
  "IPC_OWNER",
  "SYS_MODULE",
  "SYS_RAWIO",
  "SYS_CHROOT",
  "SYS_PTRACE",
  "SYS_PACCT",
  "SYS_ADMIN",
  "SYS_BOOT",
  "SYS_NICE",
  "SYS_RESOURCE",
  "SYS_TIME",
  "SYS_TTY_CONFIG",
  "MKNOD",
  "LEASE",
  "AUDIT_WRITE",
  "AUDIT_CONTROL",
  "SETFCAP",
  "MAC_OVERRIDE",
  "MAC_ADMIN",
  "SYSLOG",
  "WAKE_ALARM",
  "BLOCK_SUSPEND",
  "AUDIT_READ",
  "PERFMON",
  "BPF",
  "CHECKPOINT_RESTORE",
] as const;

/** The highest capability known here. A later kernel may have more: /proc/sys/kernel/cap_last_cap. */
export const LAST_CAP = CAP.length - 1;

/**
 * capset(2) header version: 64 bits of capabilities in two data structs of three u32 (effective, permitted,
 * inheritable). linux/capability.h
 */
export const CAPABILITY_VERSION_3 = 0x20080522;

/** Resources of setrlimit(2) and prlimit(2). asm-generic/resource.h. Units: CPU s, RTTIME us, sizes bytes. */
export const RLIMIT = {
  CPU: 0,
  FSIZE: 1,
  DATA: 2,
  STACK: 3,
  CORE: 4,
  RSS: 5,
  NPROC: 6,
  NOFILE: 7,
  MEMLOCK: 8,
  AS: 9,
  LOCKS: 10,
  SIGPENDING: 11,
  MSGQUEUE: 12,
  NICE: 13,
  RTPRIO: 14,
  RTTIME: 15,
} as const;

/** No limit, as prlimit64 spells it. linux/resource.h */
export const RLIM64_INFINITY = 0xffff_ffff_ffff_ffffn;

/** Signal numbers. asm-generic/signal.h, man 7 signal */
export const SIG = {
  HUP: 1,
  INT: 2,
  QUIT: 3,
  ILL: 4,
  TRAP: 5,
  ABRT: 6,
  BUS: 7,
  FPE: 8,
  KILL: 9,
  USR1: 10,
  SEGV: 11,
  USR2: 12,
  PIPE: 13,
  ALRM: 14,
  TERM: 15,
  STKFLT: 16,
  CHLD: 17,
  CONT: 18,
  STOP: 19,
  TSTP: 20,
  TTIN: 21,
  TTOU: 22,
  URG: 23,
  XCPU: 24,
  XFSZ: 25,
  VTALRM: 26,
  PROF: 27,
  WINCH: 28,
  IO: 29,
  PWR: 30,
  SYS: 31,
} as const;

/** Signals run from 1 to 64; the real-time ones from 32. */
export const LAST_SIG = 64;

/** First argument of rt_sigprocmask(2); its fourth is the size of the kernel's set: 8 bytes. */
export const SIG_BLOCK = 0;
export const SIG_UNBLOCK = 1;
export const SIG_SETMASK = 2;
export const SIGSET_SIZE = 8;

/** Handlers of rt_sigaction(2): 0 default, 1 ignore. The kernel's struct sigaction is 32 bytes on x86-64 and arm64. */
export const SIG_DFL = 0;
export const SIG_IGN = 1;
export const SIGACTION_SIZE = 32;

/** Memory protection of mmap(2) and mprotect(2). asm-generic/mman-common.h */
export const PROT = { NONE: 0, READ: 1, WRITE: 2, EXEC: 4 } as const;

/** Flags of mmap(2). asm-generic/mman-common.h, asm-generic/mman.h; FIXED_NOREPLACE 4.17. */
export const MAP = {
  SHARED: 1,
  PRIVATE: 2,
  SHARED_VALIDATE: 3,
  /** Mask of the mapping's type. */
  TYPE: 0x0f,
  FIXED: 0x10,
  ANONYMOUS: 0x20,
  GROWSDOWN: 0x100,
  LOCKED: 0x2000,
  NORESERVE: 0x4000,
  POPULATE: 0x8000,
  NONBLOCK: 0x10000,
  STACK: 0x20000,
  HUGETLB: 0x40000,
  FIXED_NOREPLACE: 0x100000,
} as const;

/** Advice of madvise(2). asm-generic/mman-common.h; COLD, PAGEOUT 5.4, POPULATE_* 5.14, COLLAPSE 6.1. */
export const MADV = {
  NORMAL: 0,
  RANDOM: 1,
  SEQUENTIAL: 2,
  WILLNEED: 3,
  DONTNEED: 4,
  FREE: 8,
  REMOVE: 9,
  DONTFORK: 10,
  DOFORK: 11,
  MERGEABLE: 12,
  UNMERGEABLE: 13,
  HUGEPAGE: 14,
  NOHUGEPAGE: 15,
  DONTDUMP: 16,
  DODUMP: 17,
  WIPEONFORK: 18,
  KEEPONFORK: 19,
  COLD: 20,
  PAGEOUT: 21,
  POPULATE_READ: 22,
  POPULATE_WRITE: 23,
  COLLAPSE: 25,
} as const;

/** Operations of futex(2) and the two flags beside them. linux/futex.h */
export const FUTEX = {
  WAIT: 0,
  WAKE: 1,
  FD: 2,
  REQUEUE: 3,
  CMP_REQUEUE: 4,
  WAKE_OP: 5,
  LOCK_PI: 6,
  UNLOCK_PI: 7,
  TRYLOCK_PI: 8,
  WAIT_BITSET: 9,
  WAKE_BITSET: 10,
  WAIT_REQUEUE_PI: 11,
  CMP_REQUEUE_PI: 12,
  LOCK_PI2: 13,
  PRIVATE_FLAG: 128,
  CLOCK_REALTIME: 256,
} as const;

/** Clocks of clock_gettime(2). linux/time.h. Negative ids are dynamic: a device's descriptor, or a process's CPU. */
export const CLOCK = {
  REALTIME: 0,
  MONOTONIC: 1,
  PROCESS_CPUTIME_ID: 2,
  THREAD_CPUTIME_ID: 3,
  MONOTONIC_RAW: 4,
  REALTIME_COARSE: 5,
  MONOTONIC_COARSE: 6,
  BOOTTIME: 7,
  REALTIME_ALARM: 8,
  BOOTTIME_ALARM: 9,
  TAI: 11,
} as const;

/** Flags of send(2) and recv(2) and of a received msghdr. linux/socket.h */
export const MSG = {
  OOB: 1,
  PEEK: 2,
  CTRUNC: 8,
  TRUNC: 0x20,
  DONTWAIT: 0x40,
  WAITALL: 0x100,
  NOSIGNAL: 0x4000,
  CMSG_CLOEXEC: 0x40000000,
} as const;

/** Socket level and its options and messages. asm-generic/socket.h, linux/socket.h, man 7 unix */
export const SOL_SOCKET = 1;
export const SO = { SNDBUF: 7, RCVBUF: 8, PASSCRED: 16, PEERCRED: 17, PEERPIDFD: 77 } as const;
export const SCM_RIGHTS = 1;
export const SCM_CREDENTIALS = 2;

/**
 * `struct msghdr` and `struct cmsghdr` on a 64-bit machine, byte offsets. Control messages are aligned to 8; the data
 * of one begins 16 bytes after its start. man 3 cmsg
 */
export const MSGHDR = {
  name: 0,
  namelen: 8,
  iov: 16,
  iovlen: 24,
  control: 32,
  controllen: 40,
  flags: 48,
  size: 56,
} as const;
export const CMSGHDR = { len: 0, level: 8, type: 12, data: 16 } as const;
export const IOVEC = { base: 0, len: 8, size: 16 } as const;

/** Address families by name. linux/socket.h; XDP 4.18, MCTP 5.15. */
export const AF = {
  UNSPEC: 0,
  UNIX: 1,
  INET: 2,
  AX25: 3,
  IPX: 4,
  APPLETALK: 5,
  NETROM: 6,
  BRIDGE: 7,
  ATMPVC: 8,
  X25: 9,
  INET6: 10,
  ROSE: 11,
  DECnet: 12,
  NETBEUI: 13,
  SECURITY: 14,
  KEY: 15,
  NETLINK: 16,
  PACKET: 17,
  ASH: 18,
  ECONET: 19,
  ATMSVC: 20,
  RDS: 21,
  SNA: 22,
  IRDA: 23,
  PPPOX: 24,
  WANPIPE: 25,
  LLC: 26,
  IB: 27,
  MPLS: 28,
  CAN: 29,
  TIPC: 30,
  BLUETOOTH: 31,
  IUCV: 32,
  RXRPC: 33,
  ISDN: 34,
  PHONET: 35,
  IEEE802154: 36,
  CAIF: 37,
  ALG: 38,
  NFC: 39,
  VSOCK: 40,
  KCM: 41,
  QIPCRTR: 42,
  SMC: 43,
  XDP: 44,
  MCTP: 45,
} as const;

/** Socket types and the flags beside them. linux/net.h, man 2 socket */
export const SOCK = {
  STREAM: 1,
  DGRAM: 2,
  RAW: 3,
  SEQPACKET: 5,
  NONBLOCK: 0x800,
  CLOEXEC: 0x80000,
} as const;

/** Event bits of poll(2), and `struct pollfd`: s32 fd at 0, s16 events at 4, s16 revents at 6. asm-generic/poll.h */
export const POLL = { IN: 1, PRI: 2, OUT: 4, ERR: 8, HUP: 0x10, NVAL: 0x20, RDHUP: 0x2000 } as const;
export const POLLFD = { fd: 0, events: 4, revents: 6, size: 8 } as const;

/**
 * Flags of open(2), those that are the same on both architectures: asm-generic/fcntl.h. See `O_ARCH` for the rest.
 */
export const O = {
  RDONLY: 0,
  WRONLY: 1,
  RDWR: 2,
  CREAT: 0x40,
  EXCL: 0x80,
  NOCTTY: 0x100,
  TRUNC: 0x200,
  APPEND: 0x400,
  NONBLOCK: 0x800,
  NOATIME: 0x40000,
  CLOEXEC: 0x80000,
  PATH: 0x200000,
} as const;

/** Flags of open(2) that arm64 numbers differently. arch/arm64/include/uapi/asm/fcntl.h, asm-generic/fcntl.h */
export const O_ARCH: Readonly<
  Record<Arch, { DIRECTORY: number; NOFOLLOW: number; DIRECT: number; TMPFILE: number }>
> = {
  x86_64: { DIRECTORY: 0x10000, NOFOLLOW: 0x20000, DIRECT: 0x4000, TMPFILE: 0x410000 },
  aarch64: { DIRECTORY: 0x4000, NOFOLLOW: 0x8000, DIRECT: 0x10000, TMPFILE: 0x404000 },
};

/** Directory-relative calls. linux/fcntl.h */
export const AT = {
  FDCWD: -100,
  SYMLINK_NOFOLLOW: 0x100,
  REMOVEDIR: 0x200,
  NO_AUTOMOUNT: 0x800,
  EMPTY_PATH: 0x1000,
} as const;

/** Flags of renameat2(2). linux/fs.h */
export const RENAME = { NOREPLACE: 1, EXCHANGE: 2, WHITEOUT: 4 } as const;

/** File types in a mode, and their mask. linux/stat.h, man 7 inode "The file type and mode" */
export const S_IF = {
  MT: 0o170000,
  SOCK: 0o140000,
  LNK: 0o120000,
  REG: 0o100000,
  BLK: 0o060000,
  DIR: 0o040000,
  CHR: 0o020000,
  IFO: 0o010000,
} as const;

/**
 * statx(2): the mask that asks for what stat(2) tells, and byte offsets of `struct statx`: nlink u32, mode u16, size
 * u64, mtime an s64 of seconds and a u32 of nanoseconds. linux/stat.h
 */
export const STATX_BASIC_STATS = 0x7ff;
export const STATX = { nlink: 16, mode: 28, size: 40, mtime_sec: 112, mtime_nsec: 120, bytes: 256 } as const;

/** Byte offsets of `struct linux_dirent64`: u16 reclen, u8 type, a NUL-terminated name. man 2 getdents64 */
export const DIRENT64 = { reclen: 16, type: 18, name: 19 } as const;

/** `resolve` of openat2(2), 5.6, and `struct open_how`: u64 flags, mode, resolve. linux/openat2.h; CACHED 5.12. */
export const RESOLVE = {
  NO_XDEV: 1,
  NO_MAGICLINKS: 2,
  NO_SYMLINKS: 4,
  BENEATH: 8,
  IN_ROOT: 0x10,
  CACHED: 0x20,
} as const;
export const OPEN_HOW = { flags: 0, mode: 8, resolve: 16, size: 24 } as const;

/** Commands of fcntl(2). linux/fcntl.h, asm-generic/fcntl.h */
export const F = { DUPFD: 0, GETFD: 1, SETFD: 2, GETFL: 3, SETFL: 4, DUPFD_CLOEXEC: 1030 } as const;
export const FD_CLOEXEC = 1;

/** Operations of keyctl(2), and the ids of special keyrings. linux/keyctl.h */
export const KEYCTL = { GET_KEYRING_ID: 0, JOIN_SESSION_KEYRING: 1, READ: 11, INVALIDATE: 21 } as const;
export const KEY_SPEC = { PROCESS_KEYRING: -2, SESSION_KEYRING: -3 } as const;

/** Operations of flock(2). asm-generic/fcntl.h */
export const LOCK = { SH: 1, EX: 2, NB: 4, UN: 8 } as const;

/** close_range(2), 5.9; CLOEXEC 5.11. The range is inclusive and `LAST` means "all that are open". linux/close_range.h */
export const CLOSE_RANGE = { UNSHARE: 2, CLOEXEC: 4, LAST: 0xffffffff } as const;

/** Options of wait4(2) and waitid(2). linux/wait.h */
export const WAIT = {
  WNOHANG: 1,
  WUNTRACED: 2,
  WEXITED: 4,
  WCONTINUED: 8,
  WNOWAIT: 0x1000000,
  __WNOTHREAD: 0x20000000,
  __WALL: 0x40000000,
  __WCLONE: 0x80000000,
} as const;

/** The exit code (0 to 255) that a wait status tells, or undefined where the process did not exit. man 2 wait */
export function exited(status: number): number | undefined {
  return (status & 0x7f) === 0 ? (status >> 8) & 0xff : undefined;
}

/** The signal that ended the process, or undefined where none did. man 2 wait WTERMSIG */
export function termSignal(status: number): number | undefined {
  const signal = status & 0x7f;
  return signal !== 0 && signal !== 0x7f ? signal : undefined;
}

/** The signal of a stop, or undefined where the process is not stopped. A ptrace event is `status >> 16` beside it. */
export function stopSignal(status: number): number | undefined {
  return (status & 0xff) === 0x7f ? (status >> 8) & 0xff : undefined;
}

/** `struct rusage`, 64-bit: two timevals (s, us), ru_maxrss in KiB, thirteen longs more. man 2 getrusage */
export const RUSAGE = {
  ru_utime: 0,
  ru_stime: 16,
  ru_maxrss: 32,
  ru_minflt: 64,
  ru_majflt: 72,
  ru_nvcsw: 128,
  ru_nivcsw: 136,
  size: 144,
} as const;

/**
 * Error numbers by name, 1 to 133. Where two names share a number the kernel's own stands: EAGAIN (not EWOULDBLOCK),
 * EDEADLK (not EDEADLOCK), EOPNOTSUPP (not ENOTSUP). asm-generic/errno-base.h, asm-generic/errno.h
 */
// prettier-ignore
export const ERRNO = {
  EPERM: 1, ENOENT: 2, ESRCH: 3, EINTR: 4, EIO: 5, ENXIO: 6, E2BIG: 7, ENOEXEC: 8, EBADF: 9, ECHILD: 10,
  EAGAIN: 11, ENOMEM: 12, EACCES: 13, EFAULT: 14, ENOTBLK: 15, EBUSY: 16, EEXIST: 17, EXDEV: 18, ENODEV: 19,
  ENOTDIR: 20, EISDIR: 21, EINVAL: 22, ENFILE: 23, EMFILE: 24, ENOTTY: 25, ETXTBSY: 26, EFBIG: 27, ENOSPC: 28,
  ESPIPE: 29, EROFS: 30, EMLINK: 31, EPIPE: 32, EDOM: 33, ERANGE: 34, EDEADLK: 35, ENAMETOOLONG: 36,
  ENOLCK: 37, ENOSYS: 38, ENOTEMPTY: 39, ELOOP: 40, ENOMSG: 42, EIDRM: 43, ECHRNG: 44, EL2NSYNC: 45,
  EL3HLT: 46, EL3RST: 47, ELNRNG: 48, EUNATCH: 49, ENOCSI: 50, EL2HLT: 51, EBADE: 52, EBADR: 53, EXFULL: 54,
  ENOANO: 55, EBADRQC: 56, EBADSLT: 57, EBFONT: 59, ENOSTR: 60, ENODATA: 61, ETIME: 62, ENOSR: 63, ENONET: 64,
  ENOPKG: 65, EREMOTE: 66, ENOLINK: 67, EADV: 68, ESRMNT: 69, ECOMM: 70, EPROTO: 71, EMULTIHOP: 72,
  EDOTDOT: 73, EBADMSG: 74, EOVERFLOW: 75, ENOTUNIQ: 76, EBADFD: 77, EREMCHG: 78, ELIBACC: 79, ELIBBAD: 80,
  ELIBSCN: 81, ELIBMAX: 82, ELIBEXEC: 83, EILSEQ: 84, ERESTART: 85, ESTRPIPE: 86, EUSERS: 87, ENOTSOCK: 88,
  EDESTADDRREQ: 89, EMSGSIZE: 90, EPROTOTYPE: 91, ENOPROTOOPT: 92, EPROTONOSUPPORT: 93, ESOCKTNOSUPPORT: 94,
  EOPNOTSUPP: 95, EPFNOSUPPORT: 96, EAFNOSUPPORT: 97, EADDRINUSE: 98, EADDRNOTAVAIL: 99, ENETDOWN: 100,
  ENETUNREACH: 101, ENETRESET: 102, ECONNABORTED: 103, ECONNRESET: 104, ENOBUFS: 105, EISCONN: 106,
  ENOTCONN: 107, ESHUTDOWN: 108, ETOOMANYREFS: 109, ETIMEDOUT: 110, ECONNREFUSED: 111, EHOSTDOWN: 112,
  EHOSTUNREACH: 113, EALREADY: 114, EINPROGRESS: 115, ESTALE: 116, EUCLEAN: 117, ENOTNAM: 118, ENAVAIL: 119,
  EISNAM: 120, EREMOTEIO: 121, EDQUOT: 122, ENOMEDIUM: 123, EMEDIUMTYPE: 124, ECANCELED: 125, ENOKEY: 126,
  EKEYEXPIRED: 127, EKEYREVOKED: 128, EKEYREJECTED: 129, EOWNERDEAD: 130, ENOTRECOVERABLE: 131, ERFKILL: 132,
  EHWPOISON: 133,
} as const;

/** An error's name. */
export type ErrnoName = keyof typeof ERRNO;

const errnoNames: ReadonlyMap<number, string> = new Map(Object.entries(ERRNO).map(([name, n]) => [n, name]));

/** The name of a positive error number: errnoName(1) is "EPERM"; "errno N" for one that Linux does not have. */
export function errnoName(n: number): string {
  return errnoNames.get(n) ?? `errno ${n}`;
}
