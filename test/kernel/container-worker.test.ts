/**
 * What a container's filter changes for a worker inside. This file's own process is put under it, for good, so nothing
 * else is tested here.
 */
import { beforeAll, describe, expect, it } from "vitest";
import { ERRNO, PR } from "#osjail/abi/linux";
import { FilterProgram, installFilter } from "#osjail/filter";
import { sys, trySys } from "#osjail/libc.ffi";
import { answerOf, attack, ownedHull, stopOf } from "../escape/harness.js";
import { containerFilter } from "./container-profile.js";

/** The host was looked at before it was filtered: what it finds there then is left out. */
const hull = () => ownedHull({ without: ["session-keyring"] });

describe("a worker in a container", () => {
  beforeAll(() => {
    expect(trySys("keyctl", 0, -3, 0, 0, 0)).not.toBe(-ERRNO.ENOSYS); // the control: the host has it
    sys("prctl", PR.SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    // This Node may have a ring already, which one that begins in a container never gets: without it libuv would abort.
    installFilter(new FilterProgram(containerFilter([], ["io_uring_enter"])));
    expect(trySys("keyctl", 0, -3, 0, 0, 0)).toBe(-ERRNO.ENOSYS);
  });

  it("is ended by a call that the container has and its own filter refuses, by the call's name", async () => {
    for (const call of ["openat", "socketpair", "clone3", "mount", "unshare"]) {
      const stop = stopOf(await attack(await hull(), `return syscall("${call}", 0, 0, 0, 0)`));
      expect(stop).toMatchObject({ reason: "syscall", layer: "seccomp", syscall: call });
    }
  });

  it("gets an error, and nothing else, from one that the container's filter refuses too", async () => {
    // Of two filters' answers the kernel takes an error before a stop in the tracer. man 2 seccomp, "the first-seen
    // action value of highest precedence"
    for (const call of ["keyctl", "bpf", "setns", "process_vm_readv", "io_uring_setup"]) {
      const outcome = await attack(await hull(), `return syscall("${call}", 0, 0, 0, 0)`);
      expect(answerOf(outcome), call).toEqual({ ret: -1, errno: ERRNO.ENOSYS });
    }
  });
});
