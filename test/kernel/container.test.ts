/**
 * The jail under the seccomp profile that containers are given (server/deploy/seccomp.json): the profile is compiled and
 * installed in a process of its own, as a runtime would, and a sandbox is started there. Each call that the profile has
 * beyond a runtime's own is then left out, to see that it is needed.
 */
import { describe, expect, test } from "vitest";
import { encode } from "#osjail/bpf";
import { ENGINES } from "../engines.js";
import { containerFilter } from "./container-profile.js";
import { program, SAY } from "./program.js";

const module = (file: string) => JSON.stringify(new URL(`../../dist/${file}.js`, import.meta.url).href);

/**
 * Installs the filter, becomes a new Node under it, as a runtime does with what it starts, tries a call that no container
 * has, and starts a sandbox. A Node that ran before would have asked the kernel for what is refused then (io_uring).
 */
function contained(without: readonly string[], act: string) {
  const load = `
    const { Memory, sys, trySys } = await import(${module("osjail/libc.ffi")});
    const { ERRNO, SECCOMP } = await import(${module("osjail/abi/linux")});
    const isThere = () => trySys("keyctl", 0, -3, 0, 0, 0) !== -ERRNO.ENOSYS; // KEYCTL_GET_KEYRING_ID of the session`;
  const inside = `${SAY}${load}
    say({ keyctl: isThere() });
    const { Sandbox } = await import(${module("server/index")});
    const start = (engine) => Sandbox.create({ engine, image: "fast-start", parked: 1 });
    ${act}`;
  return program(`${load}
    say({ keyctl: isThere() });
    const filter = new Memory(Uint8Array.from(${JSON.stringify([...encode(containerFilter(without))])}));
    const header = new Memory(SECCOMP.FPROG_SIZE);
    header.bytes.writeUInt16LE(filter.bytes.length / 8, 0);
    header.bytes.writeBigUInt64LE(BigInt(filter.address), SECCOMP.FPROG_FILTER_AT);
    const args = Memory.vector([process.execPath, "--input-type=module", "-e", ${JSON.stringify(inside)}]);
    const env = Memory.vector(Object.entries(process.env).map(([name, value]) => name + "=" + value));
    const node = new Memory(process.execPath);
    sys("prctl", 38, 1, 0, 0, 0); // PR_SET_NO_NEW_PRIVS, as allowPrivilegeEscalation: false does
    sys("seccomp", SECCOMP.SET_MODE_FILTER, 0, header);
    for (const fd of [0, 1, 2]) sys("fcntl", fd, 2, 0); // F_SETFD: Node has them closed on exec
    sys("execve", node, args.vector, env.vector);`);
}

/** The filter is there: a call that it refuses is gone, and was there. */
const HELD = [{ keyctl: true }, { keyctl: false }] as const;

describe("under the profile that containers are given", () => {
  test.for(ENGINES)("%s runs scripts behind every namespace", async (engine) => {
    const act = `
      const sandbox = await start(${JSON.stringify(engine)});
      const { status, value, layers } = await sandbox.run("export default (n: number) => n * 7", { input: 6, language: "typescript" });
      say({ status, value, off: layers.kernel.filter(({ layer, state }) => state !== "on" && layer.endsWith("-namespace")) });
      await sandbox.close();`;
    expect(await contained([], act)).toEqual({
      ended: 0,
      said: [...HELD, { status: "ok", value: 42, off: [] }],
    });
  });

  test.for([
    ["clone3", "user-namespace"],
    ["mount", "empty-root"],
    ["umount2", "empty-root"],
    ["pivot_root", "empty-root"],
    ["sethostname", "namespace"],
    ["capset", "capabilities"],
    ["landlock_create_ruleset", "landlock"],
    ["landlock_restrict_self", "landlock"],
  ] as const)("without %s no sandbox starts, and the error is about %s", async ([call, code]) => {
    const act = `await start("quickjs").then((sandbox) => sandbox.close(), ({ code, cause, message, remedy }) => say({ code: cause?.code ?? code, remedy: remedy !== "" }));`;
    expect(await contained([call], act)).toEqual({ ended: 0, said: [...HELD, { code, remedy: true }] });
  });

  test("without unshare and ptrace scripts run, and what is lost is said", async () => {
    const act = `
      const sandbox = await start("quickjs");
      const { status, layers } = await sandbox.run("1", { type: "script" });
      say({ status, limits: layers.kernel.find(({ layer }) => layer === "namespace-limits").state });
      await sandbox.close();`;
    expect(await contained(["unshare", "ptrace"], act)).toEqual({
      ended: 0,
      said: [...HELD, { status: "ok", limits: "absent" }],
    });
  });
});
