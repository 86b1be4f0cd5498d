/**
 * The rules of the filter on the real kernel: for each, arguments that pass and arguments that end the worker by the
 * call's name. The values are written out by hand. The same rules on paper are in test/unit/seccomp.test.ts.
 */
import { describe, expect, it } from "vitest";
import { FUTEX, MADV, MAP, PROT } from "#osjail/abi/linux";
import type { SyscallName } from "#osjail/abi/syscalls";
import { PROFILES } from "#osjail/seccomp";
import { attack, control, inParallel, ownedHull, stopOf, valueOf } from "../escape/harness.js";

const RW = PROT.READ | PROT.WRITE;
const PRIVATE_ANONYMOUS = MAP.PRIVATE | MAP.ANONYMOUS;
const MANY = 2 ** 40; // a bit of the high half that no kernel reads of an int

const PAGE = `const page = syscall("mmap", 0, 4096, ${RW}, ${PRIVATE_ANONYMOUS}, -1, 0).ret;`;
const onPage = (call: SyscallName, third: number, ...more: number[]) =>
  `${PAGE} return syscall(${[`"${call}"`, "page", 4096, third, ...more].join(", ")})`;
const mmap = (prot: number, flags: number, fd = -1) =>
  `return syscall("mmap", 0, 4096, ${prot}, ${flags}, ${fd}, 0)`;
const futex = (op: number) => `return syscall("futex", memory(8), ${op}, 1, 0, 0, 0)`;
const clock = (id: number) => `return syscall("clock_gettime", ${id}, memory(16))`;

/** `wrong` by what it tries. `works`: errnos with which a plain process may answer it, 0 unless said. */
interface Row {
  right: string[];
  wrong: Record<string, string>;
  otherwise?: { wrong: string[]; errno: number };
}

const ROWS: Partial<Record<SyscallName, Row>> = {
  read: {
    right: ['return syscall("read", 3, memory(8), 0)'],
    wrong: Object.fromEntries(
      [0, 1, 2, 4, 5, 64, 1000, -1, -100, 3 + MANY].map((fd) => [
        `fd ${fd}`,
        `return syscall("read", ${fd}, memory(8), 0)`,
      ]),
    ),
  },
  write: {
    right: ['return syscall("write", 3, memory(8), 0)'],
    wrong: {},
    otherwise: {
      wrong: [0, 1, 2, 4, 5, 64, 1000, -1, -100, 3 + MANY].map(
        (fd) => `return syscall("write", ${fd}, memory(8), 8)`,
      ),
      errno: 11,
    },
  },
  futex: {
    right: [FUTEX.WAKE, FUTEX.WAKE | FUTEX.PRIVATE_FLAG].map(futex),
    wrong: {
      "a lock with priority inheritance": futex(FUTEX.LOCK_PI),
      "a private lock with priority inheritance": futex(FUTEX.LOCK_PI | FUTEX.PRIVATE_FLAG),
      "an unlock with priority inheritance": futex(FUTEX.UNLOCK_PI),
      "a wait that requeues to a lock with priority inheritance": futex(FUTEX.WAIT_REQUEUE_PI),
      "the second lock with priority inheritance": futex(13),
      "an operation on two words": futex(FUTEX.WAKE_OP),
      "a descriptor for a futex": futex(2),
      "a wake with a bit above the int": futex(FUTEX.WAKE + MANY),
    },
  },
  clock_gettime: {
    right: [0, 1, 4, 7].map(clock),
    wrong: {
      "the clock of a descriptor": clock((~3 << 3) | 3),
      "the CPU clock of process 1": clock((~1 << 3) | 2),
      "an alarm clock": clock(8),
      "the clock of a hardware device": clock(16),
      "a clock with a bit above the int": clock(1 + MANY),
    },
  },
  gettimeofday: { right: ['return syscall("gettimeofday", memory(16), 0)'], wrong: {} },
  madvise: {
    right: [MADV.DONTNEED, MADV.FREE, MADV.DONTFORK].map((advice) => onPage("madvise", advice)),
    wrong: {
      "pages to be merged with other processes'": onPage("madvise", 12),
      "huge pages": onPage("madvise", 14),
      "pages to be removed": onPage("madvise", 9),
      "a hardware fault": onPage("madvise", 100),
      "populated pages": onPage("madvise", 23),
      "pages wiped on fork": onPage("madvise", 18),
      "guard pages": onPage("madvise", 102),
      "an advice with a bit above the int": onPage("madvise", MADV.DONTNEED + MANY),
    },
  },
  mmap: {
    right: [PROT.NONE, PROT.READ, RW].map((prot) => mmap(prot, PRIVATE_ANONYMOUS)),
    wrong: {
      "memory to execute": mmap(PROT.READ | PROT.EXEC, PRIVATE_ANONYMOUS),
      "memory to write and execute": mmap(RW | PROT.EXEC, PRIVATE_ANONYMOUS),
      "protection with a bit above the int": mmap(RW + MANY, PRIVATE_ANONYMOUS),
      "shared memory": mmap(RW, MAP.SHARED | MAP.ANONYMOUS),
      "a stack that grows by itself": mmap(RW, PRIVATE_ANONYMOUS | MAP.GROWSDOWN),
      "the memory of a file": mmap(PROT.READ, MAP.PRIVATE, 3),
      "the shared memory of a file": mmap(PROT.READ, MAP.SHARED, 3),
      "locked memory": mmap(RW, PRIVATE_ANONYMOUS | MAP.LOCKED),
      "huge pages": mmap(RW, PRIVATE_ANONYMOUS | MAP.HUGETLB),
      "populated memory": mmap(RW, PRIVATE_ANONYMOUS | MAP.POPULATE),
      "memory in the low 2 GiB": mmap(RW, PRIVATE_ANONYMOUS | 0x40),
      "flags with a bit above the int": mmap(RW, PRIVATE_ANONYMOUS + MANY),
    },
  },
  munmap: { right: [`${PAGE} return syscall("munmap", page, 4096)`], wrong: {} },
  mprotect: {
    right: [PROT.NONE, PROT.READ, RW].map((prot) => onPage("mprotect", prot)),
    wrong: {
      execute: onPage("mprotect", PROT.EXEC),
      "read and execute": onPage("mprotect", PROT.READ | PROT.EXEC),
      "read, write and execute": onPage("mprotect", RW | PROT.EXEC),
      "a stack that grows down": onPage("mprotect", RW | 0x0100_0000),
      "an execute bit beside a bit above the int": onPage("mprotect", PROT.READ + PROT.EXEC + MANY),
      "a bit above the int": onPage("mprotect", RW + MANY),
    },
  },
  pkey_mprotect: {
    right: [PROT.READ, RW].map((prot) => onPage("pkey_mprotect", prot, -1)),
    wrong: {
      "read and execute": onPage("pkey_mprotect", PROT.READ | PROT.EXEC, -1),
      "execute under a key": onPage("pkey_mprotect", PROT.EXEC, 0),
      "a bit above the int": onPage("pkey_mprotect", RW + MANY, -1),
    },
  },
  brk: { right: ['return syscall("brk", 0)'], wrong: {} },
  getpid: { right: ['return syscall("getpid")'], wrong: {} },
};

/** Without arguments to check, and the end of the process that calls them: the sweep of all numbers has them. */
const ENDS: readonly SyscallName[] = ["rt_sigreturn", "exit_group"];

it("every rule of the profile has a row here", () => {
  expect([...Object.keys(ROWS), ...ENDS].sort()).toEqual(
    PROFILES.quickjs.rules.map(({ call }) => call).sort(),
  );
  for (const { call, when, otherwise } of PROFILES.quickjs.rules) {
    const wrong =
      otherwise === undefined ? Object.keys(ROWS[call]?.wrong ?? {}) : (ROWS[call]?.otherwise?.wrong ?? []);
    expect(wrong.length > 0, call).toBe(when !== undefined);
  }
});

describe.each(Object.entries(ROWS))("%s, once the filter is on,", (call, { right, wrong, otherwise }) => {
  it("answers its right arguments, as it does in a plain process", async () => {
    const hull = await ownedHull({ slots: 16 });
    for (const code of right) {
      expect(valueOf(await control(code)), code).toMatchObject({ errno: 0 });
      expect(valueOf(await attack(hull, code)), code).toMatchObject({ errno: 0 });
    }
  });

  if (otherwise !== undefined) {
    it("is not made with other arguments, and says so by its errno", async () => {
      const hull = await ownedHull({ slots: 16 });
      for (const code of otherwise.wrong) {
        expect(valueOf(await attack(hull, code)), code).toEqual({ ret: -1, errno: otherwise.errno });
      }
    });
  }

  if (Object.keys(wrong).length === 0) return;
  it("ends the worker with arguments that no rule describes", async () => {
    const hull = await ownedHull({ slots: 16 });
    const stops = await inParallel(Object.entries(wrong), 12, async ([what, code]) => {
      const { reason, syscall } = stopOf(await attack(hull, code));
      return [what, reason, syscall];
    });
    expect(stops).toEqual(Object.keys(wrong).map((what) => [what, "syscall", call]));
  });
});

describe("what the filter refuses by an argument", () => {
  it("does work in a plain process", async () => {
    const { mmap: maps, madvise, mprotect, futex: futexes } = ROWS;
    const codes = [
      maps?.wrong["memory to write and execute"],
      maps?.wrong["memory to execute"],
      maps?.wrong["shared memory"],
      maps?.wrong["a stack that grows by itself"],
      maps?.wrong["populated memory"],
      mprotect?.wrong["read and execute"],
      madvise?.wrong["huge pages"],
      futexes?.wrong["a wake with a bit above the int"],
    ];
    for (const code of codes)
      expect(valueOf(await control(code ?? "throw 0")), code).toMatchObject({ errno: 0 });
  });
});
