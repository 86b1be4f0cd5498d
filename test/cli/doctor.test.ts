import { describe, expect, test } from "vitest";
import { judge, otherUid, type DoctorReport } from "#osjail/doctor";
import { ENGINES } from "../engines.js";
import { cli, folder } from "./command.js";

const root = process.getuid?.() === 0;
const unlessRoot = root ? "" : " (skipped: only root has capabilities to give up)";

describe("doctor on this host", () => {
  test("its verdict is that of the full proof, and its exit code says so", async () => {
    const { code, stdout, stderr } = await cli(["doctor", "--json"]);
    const report: DoctorReport = JSON.parse(stdout);
    expect(stderr).toBe("");
    expect(code).toBe(report.ok ? 0 : 4);
    expect(report.proofs.map(({ engine }) => engine)).toContain("quickjs");
    expect(report.ok).toBe(report.proofs.every(({ ok, extra }) => ok || extra));
    expect(report.proofs.filter(({ ok }) => ok).map(({ engine }) => engine)).toEqual(
      expect.arrayContaining([...ENGINES]),
    );
    const layers = report.findings.map(({ layer }) => layer);
    for (const layer of [
      "node",
      "ffi",
      "user-namespace",
      "empty-root",
      "landlock",
      "seccomp",
      "naming",
      "cgroup",
    ]) {
      expect(layers).toContain(layer);
    }
  });

  test("where a run stands behind a layer, its attempt succeeded", async () => {
    const report: DoctorReport = JSON.parse((await cli(["doctor", "--json"])).stdout);
    const on = (report.proofs[0]?.layers ?? [])
      .filter(({ state }) => state === "on")
      .map(({ layer }) => layer as string);
    const contradictions = report.findings.filter(({ layer, state }) => on.includes(layer) && state !== "ok");
    expect(contradictions).toEqual([]);
  });

  test("where namespaces are forbidden it says which, how to get them, and 4", async (context) => {
    // Our own limit, in a user namespace of our own: the host's is left alone. man 7 namespaces
    const inside = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"';
    const command = ["unshare", "-Ur", "sh", "-c", inside, "sh", process.execPath] as const;
    const control = await cli(["-e", "process.exit(42)"], { command }).catch(() => undefined);
    if (control?.code !== 42) context.skip("there is no unshare(1) that may make a user namespace here");
    const { code, stdout } = await cli(["dist/server/cli.js", "doctor", "--json"], { command });
    const report: DoctorReport = JSON.parse(stdout);
    expect({ code, ok: report.ok }).toEqual({ code: 4, ok: false });
    const finding = report.findings.find(({ layer }) => layer === "user-namespace");
    expect(finding).toMatchObject({ state: "missing", detail: expect.stringContaining("ENOSPC") });
    expect(finding?.fix).toContain("user.max_user_namespaces");
    expect(report.proofs.filter(({ ok }) => ok)).toEqual([]);
    const run = await cli(["dist/server/cli.js", "run", "-e", "1"], { command });
    expect(run).toMatchObject({ code: 4, stdout: "" });
  });

  test.skipIf(!root).each([
    ["no capability at all", "-all", /EPERM/],
    ["no CAP_SETGID", "-all,+setuid,+dac_override", /EPERM/],
    ["no CAP_DAC_OVERRIDE", "-all,+setuid,+setgid", /EACCES/],
    ["the least that it needs", "-all,+setuid,+setgid,+dac_override", undefined],
  ])(
    `to root with %s it says whether workers can have another uid, as a run finds it${unlessRoot}`,
    async (_name, set, refused) => {
      const command = ["setpriv", `--bounding-set=${set}`, `--inh-caps=${set}`, process.execPath] as const;
      const { code, stdout } = await cli(["dist/server/cli.js", "doctor", "--json"], { command });
      const report: DoctorReport = JSON.parse(stdout);
      const finding = report.findings.find(({ layer }) => layer === "other-uid");
      const run = await cli(["dist/server/cli.js", "run", "-e", "1"], { command });
      if (refused === undefined) {
        expect(report.findings.filter(({ state }) => state === "missing")).toEqual([]);
        expect(finding?.state).toBe("ok");
        expect({ code, ok: report.ok, run: run.code }).toEqual({ code: 0, ok: true, run: 0 });
      } else {
        expect(finding).toMatchObject({ state: "missing", detail: expect.stringMatching(refused) });
        expect(finding?.fix).toContain("CAP_DAC_OVERRIDE");
        expect({ code, ok: report.ok, run: run.code }).toEqual({ code: 4, ok: false, run: 4 });
      }
    },
  );

  test("an install without optional packages is told with its remedy by whatever needs the kernel, and by nothing else", async () => {
    using dir = folder({
      "without.cjs": `const Module = require("node:module");
        const { _resolveFilename: resolve } = Module;
        Module._resolveFilename = (name, ...rest) => resolve(name.startsWith("@yuuang/") ? "not-installed" : name, ...rest);`,
    });
    const command = [process.execPath, "--require", `${dir.path}/without.cjs`, "dist/server/cli.js"] as const;
    const { code, stdout } = await cli(["doctor", "--json"], { command });
    const report: DoctorReport = JSON.parse(stdout);
    expect({ code, ok: report.ok }).toEqual({ code: 4, ok: false });
    expect(report.findings.find(({ layer }) => layer === "ffi")).toMatchObject({
      state: "missing",
      detail: expect.stringContaining("not-installed"),
      fix: expect.stringContaining("--omit=optional"),
    });
    const needing = [["run", "-e", "1"], ["explain"], ["serve", "--data", `${dir.path}/data`]];
    for (const args of needing) {
      const told = await cli(args, { command });
      expect({ args, code: told.code, stdout: told.stdout }).toEqual({ args, code: 4, stdout: "" });
      expect(told.stderr).toContain("--omit=optional");
    }
    const run = await cli(["run", "--hull", "language-only", "-e", "6 * 7"], { command });
    expect(run).toMatchObject({ code: 0, stdout: "42\n" });
  });

  test("for people it is a table that ends with the verdict", async () => {
    const { stdout } = await cli(["doctor"]);
    expect(stdout).toMatch(/^Linux [^]*\n {2}node +ok [^]*The floor (?:stands|does not stand):/);
  });
});

const refused = (layer: "user-namespace" | "mount-namespace" | "landlock", how: string) =>
  [{ layer, ok: false, detail: "refused", refused: how }] as const;
const fixOf = (layer: string, ...args: Parameters<typeof judge>) =>
  judge(...args).find((finding) => finding.layer === layer)?.fix;

describe("what doctor advises", () => {
  const plain = {
    root: false,
    container: false,
    apparmorRestricts: false,
    usernsClone: undefined,
    maxUserNamespaces: undefined,
  };
  test.each([
    [
      "Ubuntu 24.04",
      { ...plain, apparmorRestricts: true },
      "id-map EPERM",
      /AppArmor.*apparmor_restrict_unprivileged_userns=0/,
    ],
    [
      "Debian's old switch",
      { ...plain, usernsClone: "0" },
      "clone EPERM",
      /kernel\.unprivileged_userns_clone=1/,
    ],
    ["a limit of none", { ...plain, maxUserNamespaces: "0" }, "clone ENOSPC", /user\.max_user_namespaces/],
    ["Docker", { ...plain, root: true, container: true }, "clone ENOSYS", /seccomp=/],
    [
      "a container's root without capabilities",
      { ...plain, root: true, container: true },
      "id-map EPERM",
      /CAP_SETUID.*another user/,
    ],
    ["an unknown reason", plain, "clone EPERM", /unprivileged user namespaces/],
  ])("on %s", (_name, circumstances, how, advice) => {
    expect(fixOf("user-namespace", refused("user-namespace", how), circumstances)).toMatch(advice);
  });

  test("Landlock has its own advice, whatever is said of namespaces", () => {
    expect(
      fixOf("landlock", refused("landlock", "act ENOSYS"), { ...plain, apparmorRestricts: true }),
    ).toMatch(/lsm=/);
  });

  test("another uid is what root gives: tried where it can, and absent where there is no id to give", () => {
    const tried = (ok: boolean) => [{ layer: "other-uid", ok, detail: "as tried", refused: "" }] as const;
    const rich = { uid: 0, spareIds: true };
    expect(otherUid(rich, tried(true))).toEqual({
      layer: "other-uid",
      state: "ok",
      detail: "as tried",
      fix: "",
    });
    expect(otherUid(rich, tried(false))).toMatchObject({ state: "missing", detail: "as tried" });
    expect(otherUid(rich, [])).toMatchObject({
      state: "missing",
      detail: expect.stringMatching(/not tried/),
    });
    expect(otherUid({ uid: 0, spareIds: false }, [])).toMatchObject({ state: "absent" });
    expect(otherUid({ uid: 1000, spareIds: true }, [])).toMatchObject({ state: "absent" });
  });

  test("a layer that was not tried is not ok, and every one that is not ok has an advice", () => {
    const findings = judge([], plain);
    expect(findings.length).toBeGreaterThan(15);
    expect(findings.filter(({ state, fix }) => state === "ok" || fix === "")).toEqual([]);
    expect(findings.find(({ layer }) => layer === "seccomp")?.state).toBe("missing");
    expect(findings.find(({ layer }) => layer === "mdwe")?.state).toBe("absent");
  });
});
