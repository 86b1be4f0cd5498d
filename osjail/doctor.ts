/**
 * What this host can do, layer by layer, each tried: forks of a probe program attempt the acts (attempts.ts), then the
 * caller's proof runs a script behind all layers at once. The floor stands when the proof does. Every line that is not
 * "ok" says the next thing to do. Nothing here loads the FFI library before it has been found to load.
 */
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import type { Attempt } from "./attempts.js";
import { REAL_FILES, type FileView } from "./cgroup.js";
import { JAIL_ERRORS, JailError, ROOT_NEEDS } from "./errors.js";
import type { Host } from "./host.js";
import type { HostFacts, LayerReport } from "./plan.js";

/** `missing`: the floor does not stand without it. `absent`: an extra that this host lacks. */
export interface Finding {
  layer: string;
  state: "ok" | "missing" | "absent";
  detail: string;
  /** The next thing to do; empty where nothing needs doing. */
  fix: string;
}

/** A real run of one engine kind behind all layers. */
export interface EngineProof {
  engine: string;
  ok: boolean;
  /** It may be absent: the floor stands without it. */
  extra: boolean;
  detail: string;
  remedy: string;
  layers: LayerReport[];
}

export interface DoctorReport {
  /** The floor stands: untrusted scripts may run here. */
  ok: boolean;
  host: { platform: string; kernel: string; arch: string; node: string; uid: number };
  findings: Finding[];
  proofs: EngineProof[];
}

export interface DoctorPowers {
  env: Readonly<Record<string, string | undefined>>;
  node: { version: string; execPath: string };
  /** Starts a real zygote per engine kind and runs a script. Never rejects. */
  prove(): Promise<EngineProof[]>;
}

const OLDEST_NODE = [20, 19] as const;

export async function examine(powers: DoctorPowers): Promise<DoctorReport> {
  const findings = [...nodeFindings(powers.node)];
  const loaded = await loadFfi();
  findings.push(loaded.finding);
  const host = loaded.finding.state === "ok" ? await hostOf(powers.env, findings) : undefined;
  const facts = host?.facts;
  const report: DoctorReport = {
    ok: false,
    host: {
      platform: facts?.platform ?? "unknown",
      kernel: facts?.kernel ?? "unknown",
      arch: facts?.arch ?? "unknown",
      node: powers.node.version,
      uid: facts?.uid ?? -1,
    },
    findings,
    proofs: [],
  };
  if (host === undefined || facts === undefined) return report;
  if (facts.platform !== "linux") {
    const fix = JAIL_ERRORS["not-linux"];
    findings.push({ layer: "linux", state: "missing", detail: `this is ${facts.platform}`, fix });
    return report;
  }
  const attempts = await attemptAll(powers.node.execPath);
  const circumstances = circumstancesOf(facts.uid);
  findings.push(...judge(attempts, circumstances), otherUid(facts, attempts), ...systemdScope(host));
  if (!facts.cgroups.available) {
    for (const finding of findings) if (finding.layer === "cgroup") finding.fix = facts.cgroups.remedy;
  }
  const missing = findings.filter(({ state }) => state === "missing").map(({ layer }) => layer);
  const first = `First get what is missing above: ${missing.join(", ")}.`;
  report.proofs = (await powers.prove()).map((proof) =>
    proof.ok || missing.length === 0 ? proof : { ...proof, remedy: first },
  );
  report.ok = report.proofs.length > 0 && report.proofs.every((proof) => proof.ok || proof.extra);
  return report;
}

// ---- what can be told without a fork --------------------------------------------------------------------------------

function nodeFindings({ version, execPath }: DoctorPowers["node"]): Finding[] {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  const recent = major > OLDEST_NODE[0] || (major === OLDEST_NODE[0] && minor >= OLDEST_NODE[1]);
  const isNode = path.basename(execPath).startsWith("node");
  return [
    {
      layer: "node",
      state: recent && isNode ? "ok" : "missing",
      detail: `${version} at ${execPath}`,
      fix: recent && isNode ? "" : JAIL_ERRORS["not-node"],
    },
  ];
}

async function loadFfi(): Promise<{ finding: Finding }> {
  const finding = (state: Finding["state"], detail: string, fix: string) => ({
    finding: { layer: "ffi", state, detail, fix },
  });
  try {
    const { sys } = await import("./libc.ffi.js");
    return sys("getpid") > 0
      ? finding("ok", "the system-call library loads and answers", "")
      : finding("missing", "getpid gave no pid", "Please report this.");
  } catch (error) {
    if (!(error instanceof JailError) || error.code !== "ffi") throw error;
    return finding("missing", error.message, error.remedy);
  }
}

async function hostOf(env: DoctorPowers["env"], findings: Finding[]): Promise<Host | undefined> {
  const { readHost } = await import("./host.js");
  try {
    return readHost(env);
  } catch (error) {
    findings.push({
      layer: "architecture",
      state: "missing",
      detail: error instanceof Error ? error.message : String(error),
      fix: JAIL_ERRORS.architecture,
    });
    return undefined;
  }
}

/** Whether workers have an uid of their own: what root alone can give, and must then be able to. Pure. */
export function otherUid(
  { uid, spareIds }: Pick<HostFacts, "uid" | "spareIds">,
  attempts: readonly Attempt[],
): Finding {
  const layer = "other-uid";
  if (uid !== 0) {
    const fix = "Start as root where a worker must have another uid than its supervisor.";
    return { layer, state: "absent", detail: `workers share uid ${uid}`, fix };
  }
  if (!spareIds) {
    const fix =
      "Where a worker must have another uid give the container a range of ids (/etc/subuid, newuidmap).";
    return { layer, state: "absent", detail: "this container has no id but root's to give to a worker", fix };
  }
  const attempt = attempts.find((tried) => tried.layer === layer);
  return attempt?.ok
    ? { layer, state: "ok", detail: attempt.detail, fix: "" }
    : { layer, state: "missing", detail: attempt?.detail ?? UNTRIED, fix: ROOT_NEEDS };
}

function systemdScope({ facts, systemdScope: asked }: Host): Finding[] {
  if (facts.uid === 0) return [];
  const layer = "systemd-scope";
  return facts.cgroups.available && asked
    ? [{ layer, state: "ok", detail: "the user's manager is asked for a delegated scope", fix: "" }]
    : [{ layer, state: "absent", detail: "not needed, or no user manager", fix: "" }];
}

// ---- the attempts ---------------------------------------------------------------------------------------------------

const PATIENCE_MS = 20_000;

/** Runs the probe program under the filter that lets Node fork, and reads what it tells until it ends. */
async function attemptAll(execPath: string): Promise<Attempt[]> {
  const [{ launch }, { Memory, sys, trySys }, { SIG, WAIT }] = await Promise.all([
    import("./launch.js"),
    import("./libc.ffi.js"),
    import("./abi/linux.js"),
  ]);
  const pipe = new Memory(8);
  sys("pipe2", pipe, 0x80000); // O_CLOEXEC
  const [reader, writer] = [pipe.bytes.readInt32LE(0), pipe.bytes.readInt32LE(4)];
  const program = fileURLToPath(new URL("./attempts.js", import.meta.url));
  // One thread, as in a zygote: V8's others do not survive a fork.
  const flags = ["--single-threaded", "--v8-pool-size=0", "--no-warnings"];
  let pid: number;
  try {
    const stdio = ["ignore", writer, "ignore"] as const;
    pid = await launch({ command: execPath, args: [...flags, program], env: { TZ: "UTC" }, stdio }, "thread");
  } finally {
    sys("close", writer);
  }
  const impatience = setTimeout(() => trySys("kill", pid, SIG.KILL), PATIENCE_MS);
  let text = "";
  for await (const chunk of fs.createReadStream("", { fd: reader, encoding: "utf8" })) text += String(chunk);
  clearTimeout(impatience);
  trySys("wait4", pid, 0, WAIT.WNOHANG, 0);
  const lines = text.split("\n").slice(0, -1); // what follows the last line break was cut off
  return lines.map((line): Attempt => JSON.parse(line));
}

/** What the kernel's answers depend on, for the remedies. */
export interface Circumstances {
  root: boolean;
  container: boolean;
  /** As in /proc/sys; undefined where the kernel has no such switch. */
  apparmorRestricts: boolean;
  usernsClone: string | undefined;
  maxUserNamespaces: string | undefined;
}

export function circumstancesOf(uid: number, files: FileView = REAL_FILES): Circumstances {
  const read = (name: string) => files.readFile(`/proc/sys/${name}`)?.trim();
  const marks = ["/.dockerenv", "/run/.containerenv"];
  return {
    root: uid === 0,
    container: marks.some((mark) => files.readFile(mark) !== undefined),
    apparmorRestricts: read("kernel/apparmor_restrict_unprivileged_userns") === "1",
    usernsClone: read("kernel/unprivileged_userns_clone"),
    maxUserNamespaces: read("user/max_user_namespaces"),
  };
}

type Tried = Attempt["layer"];

const UNTRIED = "not tried: the probe program ended before it";

/** Every layer that is tried: whether the floor needs it, and what helps where it is refused. */
const TRIED: Readonly<Record<string, { floor: boolean; fix: string }>> = {
  "user-namespace": { floor: true, fix: JAIL_ERRORS["user-namespace"] },
  "pid-namespace": { floor: true, fix: JAIL_ERRORS.namespace },
  "mount-namespace": { floor: true, fix: JAIL_ERRORS.namespace },
  "net-namespace": { floor: true, fix: JAIL_ERRORS.namespace },
  "ipc-namespace": { floor: true, fix: JAIL_ERRORS.namespace },
  "uts-namespace": { floor: true, fix: JAIL_ERRORS.namespace },
  "cgroup-namespace": { floor: true, fix: JAIL_ERRORS.namespace },
  "time-namespace": { floor: false, fix: "Linux 5.6 has it (CONFIG_TIME_NS)." },
  "namespace-limits": {
    floor: false,
    fix: "/proc/sys is read-only, as containers have it: the filter alone refuses further user namespaces.",
  },
  "session-keyring": {
    floor: false,
    fix: "Where keyctl is refused to all, as in most containers, or the kernel has no CONFIG_KEYS, nothing is lost.",
  },
  "empty-root": { floor: true, fix: JAIL_ERRORS["empty-root"] },
  capabilities: { floor: true, fix: JAIL_ERRORS.capabilities },
  "no-new-privs": { floor: true, fix: JAIL_ERRORS.seccomp },
  landlock: { floor: true, fix: JAIL_ERRORS.landlock },
  mdwe: { floor: false, fix: "Linux 6.3 has it." },
  rlimits: { floor: true, fix: "Please report this with the whole report: every kernel has RLIMIT_DATA." },
  "not-dumpable": { floor: false, fix: "Needs CAP_SYS_PTRACE: start as root that has it." },
  seccomp: { floor: true, fix: JAIL_ERRORS.seccomp },
  naming: {
    floor: false,
    fix: "Refused calls end the run without a name: ptrace is refused (kernel.yama.ptrace_scope=3, or a container).",
  },
  "core-scheduling": { floor: false, fix: JAIL_ERRORS["core-scheduling"] },
  speculation: { floor: false, fix: JAIL_ERRORS.speculation },
  cgroup: { floor: false, fix: JAIL_ERRORS.cgroup },
} satisfies Partial<Record<Tried, { floor: boolean; fix: string }>>;

/** Attempts as findings. Pure. A layer of which nothing was heard was not tried, because the program ended early. */
export function judge(attempts: readonly Attempt[], circumstances: Circumstances): Finding[] {
  return Object.entries(TRIED).map(([layer, { floor, fix }]) => {
    const attempt = attempts.find((tried) => tried.layer === layer);
    if (attempt?.ok) return { layer, state: "ok", detail: attempt.detail, fix: "" };
    return {
      layer,
      state: floor ? "missing" : "absent",
      detail: attempt?.detail ?? UNTRIED,
      fix: (attempt && namespaceFix(attempt, circumstances)) ?? fix,
    };
  });
}

/** Namespaces are refused for one of a few known reasons, and each has its own way out. */
function namespaceFix({ layer, refused }: Attempt, host: Circumstances): string | undefined {
  const aboutNamespaces = layer.endsWith("-namespace") || layer === "empty-root" || layer === "capabilities";
  if (!aboutNamespaces || refused === "") return undefined;
  if (host.usernsClone === "0" && !host.root) return "sysctl kernel.unprivileged_userns_clone=1";
  if (host.maxUserNamespaces === "0" || refused === "clone ENOSPC") {
    return "Raise the number of namespaces: sysctl user.max_user_namespaces=15000 (and user.max_*_namespaces).";
  }
  if (host.apparmorRestricts && !host.root) {
    return (
      "AppArmor restricts user namespaces (Ubuntu 24.04): give node a profile with `userns,` in /etc/apparmor.d, " +
      "or sysctl kernel.apparmor_restrict_unprivileged_userns=0, or start as root."
    );
  }
  if (host.root && refused === "id-map EPERM") return ROOT_NEEDS;
  if (refused.startsWith("clone ENOSYS") || host.container || host.root) {
    return (
      "A container's seccomp profile or AppArmor refuses it: Docker: --security-opt seccomp=PROFILE that allows " +
      "clone3, mount, umount2, pivot_root and sethostname, and --security-opt apparmor=unconfined; Kubernetes: a " +
      "seccompProfile of type Localhost. The repository has profiles in server/deploy."
    );
  }
  return undefined;
}

// ---- for people -----------------------------------------------------------------------------------------------------

/** Colours a word of ours. */
export type PaintState = (style: "red" | "yellow" | "green" | "dim" | "bold", text: string) => string;

export function reportText(report: DoctorReport, paint: PaintState): string {
  const { host, findings, proofs } = report;
  const style = { ok: "green", missing: "red", absent: "yellow" } as const;
  const words = { ok: "ok", missing: "missing", absent: "extra absent" } as const;
  const [layerWidth, stateWidth] = [Math.max(...findings.map(({ layer }) => layer.length)), 12];
  const row = (layer: string, state: Finding["state"], detail: string, fix: string): string => {
    const head = `  ${layer.padEnd(layerWidth)}  ${paint(style[state], words[state].padEnd(stateWidth))}  ${detail}\n`;
    return fix === "" ? head : `${head}${" ".repeat(layerWidth + 4)}fix: ${fix}\n`;
  };
  const lines = [
    `Linux ${host.kernel} on ${host.arch}, Node ${host.node}, ${host.uid === 0 ? "as root" : `as uid ${host.uid}`}\n\n`,
    ...findings.map(
      ({ layer, state, detail, fix }, i) =>
        row(layer, state, detail, fix === findings[i + 1]?.fix ? "" : fix), // one advice for several in a row
    ),
    "\nAll layers at once:\n",
    ...proofs.map(({ engine, ok, extra, detail, remedy }) =>
      row(engine, ok ? "ok" : extra ? "absent" : "missing", detail, remedy),
    ),
  ];
  const layers = proofs.find(({ ok }) => ok)?.layers ?? [];
  const off = layers.filter(({ state }) => state !== "on").map(({ layer, state }) => `${layer} (${state})`);
  if (layers.length > 0) {
    lines.push(`  on: ${layers.flatMap(({ layer, state }) => (state === "on" ? [layer] : [])).join(", ")}\n`);
    if (off.length > 0) lines.push(`  not on: ${off.join(", ")}\n`);
  }
  lines.push(
    report.ok
      ? `\n${paint("green", "The floor stands:")} untrusted scripts can run here.\n`
      : `\n${paint("red", "The floor does not stand:")} scripts are refused here until what is missing is there.\n`,
  );
  return lines.join("");
}
