/** The seccomp profile that containers are given, as the program that a container's runtime makes of it. */
import fs from "node:fs";
import { SECCOMP, SECCOMP_DATA } from "#osjail/abi/linux";
import { AUDIT_ARCH, SYSCALLS, X32_SYSCALL_BIT } from "#osjail/abi/syscalls";
import { answer, argumentWords, assemble, label, load, test, type Instruction, type Line } from "#osjail/bpf";
import { hostArch } from "#osjail/libc.ffi";

/** As much of a profile as this one uses: one condition for a rule at most. Open Container Initiative, runtime-spec config-linux.md "Seccomp" */
interface ContainerProfile {
  defaultErrnoRet: number;
  syscalls: { names: string[]; args?: [{ index: number; value: number; op: "SCMP_CMP_EQ" }] }[];
}

const PROFILE: ContainerProfile = JSON.parse(
  fs.readFileSync(new URL("../../server/deploy/seccomp.json", import.meta.url), "utf8"),
);

/**
 * The program that a runtime installs for the profile, without the calls named and with further ones. Other
 * architectures' calls are killed.
 */
export function containerFilter(
  without: readonly string[] = [],
  further: readonly string[] = [],
): Instruction[] {
  const arch = hostArch();
  const numbers: Readonly<Record<string, number>> = SYSCALLS[arch];
  const refused = answer(SECCOMP.RET_ERRNO + PROFILE.defaultErrnoRet);
  const lines: Line[] = [
    load(SECCOMP_DATA.arch),
    test("EQUAL", AUDIT_ARCH[arch], { yes: "native" }),
    answer(SECCOMP.RET_KILL_PROCESS),
    label("native"),
    load(SECCOMP_DATA.nr),
    test("ANY_BIT", X32_SYSCALL_BIT, { no: "one by one" }),
    answer(SECCOMP.RET_KILL_PROCESS),
    label("one by one"),
  ];
  const names = new Set([...further, ...PROFILE.syscalls.flatMap((rule) => rule.names)]);
  for (const name of names) {
    const nr = numbers[name];
    if (nr === undefined || without.includes(name)) continue; // the other architecture's
    lines.push(test("EQUAL", nr, { no: `past ${name}` }));
    const rules = PROFILE.syscalls.filter((rule) => rule.names.includes(name));
    if (!further.includes(name) && rules.every((rule) => rule.args !== undefined)) {
      for (const { index, value } of rules.flatMap((rule) => rule.args ?? [])) {
        lines.push(load(argumentWords(index).low), test("EQUAL", value, { yes: `allowed ${name}` }));
      }
      lines.push(refused, label(`allowed ${name}`));
    }
    lines.push(answer(SECCOMP.RET_ALLOW), label(`past ${name}`));
  }
  return assemble([...lines, refused]);
}
