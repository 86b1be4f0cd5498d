/**
 * Every asset is held by two layers that do not depend on each other. Each row leaves the filter out, and then one layer
 * after the other, and says by which errno the next one holds; its last line leaves out all that hold it, and the
 * attack works: so it was they that held. Errnos by name, "works" for a call that the kernel carried out.
 */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import net from "node:net";
import os from "node:os";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { AF, CLONE, errnoName, KEY_SPEC, KEYCTL, SOCK } from "#osjail/abi/linux";
import { Memory, sys, trySys } from "#osjail/libc.ffi";
import type { LayerName } from "#osjail/plan";
import { asRoot, attack, host, ownedHull, stopOf, valueOf, answerOf, type LabOptions } from "./harness.js";

const { facts } = host;
const FILTER = "seccomp" as const;
const MiB = 1 << 20;

interface Line {
  without: readonly LayerName[];
  /** The worker keeps the caller's own ids; an ordinary user's always does. */
  ownIds?: boolean;
  gives: string;
  /** What the line needs of the host; a line without it is left out. */
  needs?: boolean;
}

interface Asset {
  what: string;
  code: string;
  lines: Line[];
}

const netByLandlock = facts.landlockAbi >= 4;
const scopes = facts.landlockAbi >= 6;

const OPEN_FILE = 'return syscall("openat", -100, memory("/etc/passwd"), 0, 0)';
const OPEN_ROOT = 'return syscall("openat", -100, memory("/"), 0x10000, 0)';

/** Connects to a TCP port of the loopback device. Ports are in network order. */
const CONNECT = `const { ret: fd, errno } = syscall("socket", 2, 1, 0);
  if (fd < 0) return { ret: fd, errno };
  const to = memory(16); to.bytes.writeUInt16LE(2, 0); to.bytes.writeUInt16BE(input.port, 2); to.bytes.writeUInt32BE(0x7f000001, 4);
  return syscall("connect", fd, to, 16)`;
const DATAGRAM = `const { ret: fd, errno } = syscall("socket", 2, 2, 0);
  if (fd < 0) return { ret: fd, errno };
  const to = memory(16); to.bytes.writeUInt16LE(2, 0); to.bytes.writeUInt16BE(input.port, 2); to.bytes.writeUInt32BE(0x7f000001, 4);
  return syscall("sendto", fd, memory(8), 8, 0, to, 16)`;
const ABSTRACT = `const { ret: fd, errno } = syscall("socket", 1, 1, 0);
  if (fd < 0) return { ret: fd, errno };
  const to = memory(110); to.bytes.writeUInt16LE(1, 0); const length = to.bytes.write(input.name, 3);
  return syscall("connect", fd, to, 3 + length)`;
const SIGNAL = 'return syscall("kill", input.pid, 0)';
const FORK =
  'const made = syscall("clone", 17, 0, 0, 0, 0); if (made.ret === 0) syscall("exit_group", 0); return made';
const CODE = 'return syscall("mmap", 0, 4096, 7, 0x22, -1, 0)';
const SEAL = `const at = syscall("mmap", 0, 4096, 3, 0x22, -1, 0).ret; return syscall("mprotect", at, 4096, 5)`;
const SHARED_CODE = `const id = syscall("shmget", 0, 4096, 0o1700).ret; const at = syscall("shmat", id, 0, 0o100000);
  syscall("shmctl", id, 0, 0); return at`;
/** personality(READ_IMPLIES_EXEC). man 2 personality */
/** What it implies holds for V8's own memory as well, so it is taken back at once. man 2 personality */
const IMPLIED =
  'syscall("personality", 0x400000); const got = syscall("mmap", 0, 4096, 3, 0x22, -1, 0); syscall("personality", 0); return got';
const MOUNT =
  'return syscall("mount", memory("none"), memory("/"), memory("tmpfs"), 0x21, memory("size=4k"))';
const NAME = 'return syscall("sethostname", memory("taken"), 5)';

/** By the kernel's flag. man 2 unshare */
const unshare = (flag: number) => `return syscall("unshare", ${flag})`;
/** Containers have /proc/sys read-only; what is found by trying, as an ordinary user may too, is not the jail's word. */
const limitable =
  spawnSync("unshare", ["-Ur", "sh", "-c", "echo 0 > /proc/sys/user/max_user_namespaces"]).status === 0;

/** Another namespace of that kind takes a capability; with all of them the limits hold. */
const namespace = (what: string, flag: number): Asset => ({
  what: `a further ${what} namespace`,
  code: unshare(flag),
  lines: [
    { without: [FILTER], gives: "EPERM" },
    { without: [FILTER, "namespace-limits"], gives: "EPERM" },
    { without: [FILTER, "capabilities"], gives: "ENOSPC", needs: limitable },
    { without: [FILTER, "capabilities", "namespace-limits"], gives: "works" },
  ],
});

const ASSETS: Asset[] = [
  {
    what: "a user namespace of its own",
    code: unshare(CLONE.NEWUSER),
    lines: [
      { without: [FILTER], gives: "ENOSPC", needs: limitable },
      { without: [FILTER, "namespace-limits"], gives: "works" },
    ],
  },
  {
    what: "a process in a user namespace of its own",
    code: `const made = syscall("clone", ${CLONE.NEWUSER + 17}, 0, 0, 0, 0); if (made.ret === 0) syscall("exit_group", 0); return made`,
    lines: [
      { without: [FILTER, "rlimits", "cgroup"], gives: "ENOSPC", needs: limitable },
      { without: [FILTER, "rlimits", "cgroup", "namespace-limits"], gives: "works" },
    ],
  },
  namespace("mount", CLONE.NEWNS),
  namespace("net", CLONE.NEWNET),
  namespace("ipc", CLONE.NEWIPC),
  namespace("uts", CLONE.NEWUTS),
  namespace("cgroup", CLONE.NEWCGROUP),
  ...(facts.timeNamespace ? [namespace("time", CLONE.NEWTIME)] : []),
  {
    what: "a further pid namespace", // each worker is given one, so they are not limited
    code: unshare(CLONE.NEWPID),
    lines: [
      { without: [FILTER], gives: "EPERM" },
      { without: [FILTER, "capabilities"], gives: "works" },
    ],
  },
  {
    what: "a file of the host",
    code: OPEN_FILE,
    lines: [
      { without: [FILTER], gives: "EMFILE" },
      { without: [FILTER, "rlimits"], gives: "ENOENT" },
      { without: [FILTER, "rlimits", "landlock"], gives: "ENOENT" },
      { without: [FILTER, "rlimits", "empty-root"], gives: "EACCES" },
      { without: [FILTER, "landlock", "empty-root"], gives: "EMFILE" },
      { without: [FILTER, "rlimits", "landlock", "empty-root"], gives: "works" },
    ],
  },
  {
    what: "the root directory",
    code: OPEN_ROOT,
    lines: [
      { without: [FILTER, "rlimits"], gives: "EACCES" },
      { without: [FILTER, "rlimits", "landlock"], gives: "works" }, // and it is empty: the next row
    ],
  },
  {
    what: "the names of files of the host",
    code: 'return syscall("faccessat2", -100, memory("/etc/passwd"), 0, 0)',
    lines: [
      { without: [FILTER], gives: "ENOENT" },
      { without: [FILTER, "empty-root"], gives: "works" },
    ],
  },
  {
    what: "a file of its own, to be written",
    code: 'return syscall("openat", -100, memory("/x"), 0x42, 0o600)',
    lines: [
      { without: [FILTER], gives: "EMFILE" },
      { without: [FILTER, "rlimits", "landlock"], gives: "EROFS" },
    ],
  },
  {
    what: "a TCP service of the host",
    code: CONNECT,
    lines: [
      { without: [FILTER], gives: "EMFILE" },
      { without: [FILTER, "rlimits"], gives: netByLandlock ? "EACCES" : "ENETUNREACH" },
      { without: [FILTER, "rlimits", "landlock"], gives: "ENETUNREACH" },
      { without: [FILTER, "rlimits", "net-namespace"], gives: "EACCES", needs: netByLandlock },
      { without: [FILTER, "rlimits", "landlock", "net-namespace"], gives: "works" },
    ],
  },
  {
    what: "a UDP service of the host",
    code: DATAGRAM,
    lines: [
      { without: [FILTER], gives: "EMFILE" },
      { without: [FILTER, "rlimits"], gives: "ENETUNREACH" },
      { without: [FILTER, "net-namespace"], gives: "EMFILE" },
      { without: [FILTER, "rlimits", "net-namespace"], gives: "works" },
    ],
  },
  {
    what: "an abstract socket of the host",
    code: ABSTRACT,
    lines: [
      { without: [FILTER], gives: "EMFILE" },
      { without: [FILTER, "rlimits"], gives: "ECONNREFUSED" },
      { without: [FILTER, "rlimits", "net-namespace"], gives: "EPERM", needs: scopes },
      { without: [FILTER, "rlimits", "landlock", "net-namespace"], gives: "works" },
    ],
  },
  {
    what: "another process",
    code: SIGNAL,
    lines: [
      { without: [FILTER], gives: "ESRCH" },
      { without: [FILTER, "landlock"], gives: "ESRCH" },
      { without: [FILTER, "landlock", "pid-namespace"], gives: "EPERM", needs: asRoot }, // by its other uid
      { without: [FILTER, "pid-namespace"], ownIds: true, gives: "EPERM", needs: scopes },
      { without: [FILTER, "landlock", "pid-namespace"], ownIds: true, gives: "works" },
    ],
  },
  {
    what: "a process of its own",
    code: FORK,
    lines: [
      { without: [FILTER], gives: "EAGAIN" },
      { without: [FILTER, "cgroup"], gives: "EAGAIN" },
      { without: [FILTER, "rlimits"], gives: "EAGAIN", needs: facts.cgroups.available },
      { without: [FILTER, "rlimits", "cgroup"], gives: "works" },
    ],
  },
  {
    what: "memory to write and execute",
    code: CODE,
    lines: [
      { without: [FILTER], gives: "EACCES", needs: facts.mdwe },
      { without: [FILTER, "mdwe"], gives: "works" },
    ],
  },
  {
    what: "written memory, to be executed",
    code: SEAL,
    lines: [
      { without: [FILTER], gives: "EACCES", needs: facts.mdwe },
      { without: [FILTER, "mdwe"], gives: "works" },
    ],
  },
  {
    what: "shared memory, to be executed",
    code: SHARED_CODE,
    lines: [
      { without: [FILTER], gives: "EACCES", needs: facts.mdwe },
      { without: [FILTER, "mdwe"], gives: "works" },
    ],
  },
  {
    what: "memory that is executable because it is readable",
    code: IMPLIED,
    lines: [
      { without: [FILTER], gives: "EACCES", needs: facts.mdwe },
      { without: [FILTER, "mdwe"], gives: "works" },
    ],
  },
  {
    what: "a mount",
    code: MOUNT,
    lines: [
      { without: [FILTER], gives: "EPERM" },
      { without: [FILTER, "landlock"], gives: "EPERM" },
      { without: [FILTER, "capabilities"], gives: "EPERM" },
      { without: [FILTER, "landlock", "capabilities"], gives: "works" },
    ],
  },
  {
    what: "a key of the supervisor's session",
    code: 'return syscall("keyctl", 11, input.key, memory(16), 16, 0)',
    lines: [
      { without: [FILTER], gives: "EACCES", needs: facts.keyrings },
      { without: [FILTER, "session-keyring"], gives: "works", needs: facts.keyrings },
    ],
  },
  {
    what: "the host's name",
    code: NAME,
    lines: [
      { without: [FILTER], gives: "EPERM" },
      { without: [FILTER, "uts-namespace"], gives: "EPERM" },
      { without: [FILTER, "capabilities"], gives: "works" }, // in a namespace of its own: see below
    ],
  },
];

let bystander: ChildProcess;
let tcp: net.Server;
let abstract: number;
let input: { pid: number | undefined; port: number; name: string; key: number };
beforeAll(async () => {
  bystander = spawn("sleep", ["600"], { stdio: "ignore" });
  tcp = net.createServer((socket) => socket.on("error", () => {}).end()).listen(0, "127.0.0.1");
  const name = `doublehull-test-${process.pid}`;
  abstract = listenAbstract(name);
  await Promise.all([once(bystander, "spawn"), once(tcp, "listening")]);
  input = { pid: bystander.pid, port: (tcp.address() as net.AddressInfo).port, name, key: addKey(name) };
});
afterAll(async () => {
  const ended = once(bystander, "exit");
  bystander.kill("SIGKILL");
  tcp.close();
  trySys("keyctl", KEYCTL.INVALIDATE, input.key, 0, 0, 0);
  sys("close", abstract);
  await ended;
});

/** A key that only this session has, not its user; -1 where there are no keys. man 2 add_key */
function addKey(name: string): number {
  const secret = new Memory("secret");
  return facts.keyrings
    ? sys("add_key", new Memory("user"), new Memory(name), secret, 6, KEY_SPEC.SESSION_KEYRING)
    : -1;
}

/** Node's versions differ in how long an abstract name is, so this one is bound by hand. man 7 unix */
function listenAbstract(name: string): number {
  const address = new Memory(110);
  address.bytes.writeUInt16LE(AF.UNIX, 0);
  const length = 3 + address.bytes.write(name, 3);
  const fd = sys("socket", AF.UNIX, SOCK.STREAM | SOCK.CLOEXEC, 0);
  sys("bind", fd, address, length);
  sys("listen", fd, 8);
  return fd;
}

async function tries(code: string, options: LabOptions): Promise<string> {
  const { ret, errno } = answerOf(await attack(await ownedHull(options), code, input));
  return ret >= 0 ? "works" : errnoName(errno);
}

describe("with every layer on", () => {
  it.each(ASSETS)("the filter ends whoever reaches for $what", async ({ code }) => {
    expect(stopOf(await attack(await ownedHull(), code, input))).toMatchObject({
      reason: "syscall",
      layer: "seccomp",
    });
  });
});

describe.each(ASSETS)("$what", ({ code, lines }) => {
  for (const { without, ownIds, gives, needs } of lines) {
    if (needs === false) continue;
    const left = [...without, ...(ownIds ? ["other-uid"] : [])].join(", ");
    it(`${gives === "works" ? "is reached" : `answers ${gives}`} without ${left}`, async () => {
      expect(await tries(code, { without, ...(ownIds && { ownIds }) })).toBe(gives);
    });
  }
});

describe("the host", () => {
  it("keeps its name when a worker with capabilities changes its own", async () => {
    const before = os.hostname();
    expect(await tries(NAME, { without: [FILTER, "capabilities"] })).toBe("works");
    expect(os.hostname()).toBe(before);
  });

  it("shows an empty root to a worker that may read it", async () => {
    const hull = await ownedHull({ without: [FILTER, "rlimits", "landlock"] });
    const list = `const { ret: fd } = syscall("openat", -100, memory("/"), 0x10000, 0);
      const names = memory(4096); return syscall("getdents64", fd, names, 4096).ret;`;
    expect(valueOf(await attack(hull, list))).toBe(48); // "." and ".."
  });
});

describe("memory beyond the limit", () => {
  /** MAP_POPULATE: the kernel itself writes the pages. */
  const PRIVATE = `let mib = 0; while (mib < 512 && syscall("mmap", 0, ${MiB}, 3, 0x8022, -1, 0).ret !== -1) mib++; return mib;`;

  it("is refused by RLIMIT_DATA where there is no cgroup and no filter", async () => {
    const hull = await ownedHull({ without: [FILTER, "cgroup"] });
    expect(valueOf(await attack(hull, PRIVATE))).toBeLessThanOrEqual(64 + 24 + 16);
  });

  it("is ended by the cgroup where there is no RLIMIT_DATA", async ({ skip }) => {
    if (!facts.cgroups.available) skip(facts.cgroups.reason);
    const hull = await ownedHull({ without: [FILTER, "rlimits"] });
    expect(stopOf(await attack(hull, PRIVATE))).toMatchObject({ reason: "memory", layer: "cgroup" });
  });

  it("is had where neither holds", async () => {
    const hull = await ownedHull({ without: [FILTER, "rlimits", "cgroup"] });
    expect(valueOf(await attack(hull, PRIVATE.replace("512", "160")))).toBe(160);
  });

  it("is ended by the cgroup when it is shared and no limit counts it", async ({ skip }) => {
    if (!facts.cgroups.available) skip(facts.cgroups.reason);
    const hull = await ownedHull({ without: [FILTER] });
    const shared = PRIVATE.replace("0x8022", "0x8021");
    expect(stopOf(await attack(hull, shared))).toMatchObject({ reason: "memory", layer: "cgroup" });
  });
});

describe("memory for page tables, by one read in every 2 MiB of a mapping that may only be read,", () => {
  /** The kernel reads for the attacker: a wait for a value that is not there. No RLIMIT_DATA counts such a mapping. */
  const READ = `const at = syscall("mmap", 0, 2 ** 40, 1, 0x4022, -1, 0).ret;
    if (at === -1) return 0;
    for (let i = 0; i < 30000; i++) syscall("futex", at + i * 2 ** 21, 128, 1, 0, 0, 0);
    return 30000;`;

  it("is ended by the cgroup", async ({ skip }) => {
    if (!facts.cgroups.available) skip(facts.cgroups.reason);
    expect(stopOf(await attack(await ownedHull({ without: ["rlimits"] }), READ))).toMatchObject({
      reason: "memory",
      layer: "cgroup",
    });
  });

  it("is refused by the limit on the address space where there is no cgroup", async () => {
    expect(valueOf(await attack(await ownedHull({ without: ["cgroup"] }), READ))).toBe(0);
  });
});

describe("a user namespace of its own, where neither the filter nor the limits refuse it,", () => {
  it("opens no mount, no file, no socket and no name", async () => {
    const code = `const made = syscall("unshare", ${CLONE.NEWUSER});
      const spaces = syscall("unshare", ${CLONE.NEWNS});
      return [made, spaces, syscall("mount", memory("none"), memory("/"), memory("tmpfs"), 0x21, memory("size=4k")),
        syscall("openat", -100, memory("/"), 0x10000, 0), syscall("socket", 2, 1, 0), syscall("sethostname", memory("x"), 1),
      ].map(({ errno }) => errno);`;
    const hull = await ownedHull({ without: [FILTER, "namespace-limits"] });
    const errnos = valueOf(await attack(hull, code)) as number[];
    expect(errnos[0]).toBe(0);
    expect(errnos.slice(2).map(errnoName)).toEqual(["EPERM", "EMFILE", "EMFILE", "EPERM"]);
  });
});

describe("what the filter alone refuses", () => {
  const HELD_BY_IT_ALONE: [what: string, code: string, exists: boolean][] = [
    ["a segment in the processor's descriptor table", 'return syscall("modify_ldt", 0, memory(64), 64)', facts.arch === "x86_64"], // prettier-ignore
    ["a key of its own", 'return syscall("add_key", memory("user"), memory("k"), memory("v"), 1, -2)', true],
  ];
  it.for(HELD_BY_IT_ALONE)("is %s", async ([, code, exists], { skip }) => {
    if (!exists) skip("another machine");
    expect(stopOf(await attack(await ownedHull(), code))).toMatchObject({ reason: "syscall" });
    const answer = await tries(code, { without: [FILTER] });
    if (answer === "ENOSYS") skip("this kernel has no such call");
    expect(answer).toBe("works");
  });
});

describe("a process bomb with no filter", () => {
  it("makes not one process", async () => {
    const hull = await ownedHull({ without: [FILTER] });
    const bomb = `let made = 0; for (let i = 0; i < 1000; i++) if (syscall("clone", 17, 0, 0, 0, 0).ret >= 0) made++; return made;`;
    expect(valueOf(await attack(hull, bomb))).toBe(0);
  });
});
