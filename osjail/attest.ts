/**
 * What a worker looks like from outside, before it is given a job. Its own word does not count: /proc is the
 * kernel's. Landlock and MDWE do not show there; the zygote's probe attempted those acts. man 5 proc_pid_status
 */
import fs from "node:fs";
import { parseOwnCgroups } from "./cgroup.js";
import type { SlotPaths } from "./cgroup-slot.js";
import { JailError, ROOT_NEEDS } from "./errors.js";
import type { JailPlan } from "./plan.js";
import { WORKER_SOCKET_FD } from "./seccomp.js";

export interface Attested {
  /** What RLIMIT_DATA counts, bytes. */
  vmDataBytes: number;
  /** What RLIMIT_AS counts, bytes: mappings that can only be read are in no other limit, and cost page tables. */
  vmSizeBytes: number;
  /** Memory of the image that the worker began with: high-water mark, bytes. */
  vmPeakRssBytes: number;
  filters: number;
}

const SPACES = {
  user: "user",
  pid: "pid",
  mount: "mnt",
  net: "net",
  ipc: "ipc",
  uts: "uts",
  cgroup: "cgroup",
} as const;
let ownSpaces: Readonly<Record<string, string>> | undefined;

const space = (pid: number | "self", name: string): string => fs.readlinkSync(`/proc/${pid}/ns/${name}`);

/**
 * Reads the worker's status, namespaces, descriptors, cgroups (`slot` is where it was put, wherever the plan has
 * cgroups) and, when asked (once per zygote, forks being alike), its memory map. Throws JailError("attestation") naming
 * the first difference; the caller then kills the worker.
 */
export function attest(
  pid: number,
  plan: JailPlan,
  inherited: number,
  withMaps: boolean,
  slot: SlotPaths | undefined,
): Attested {
  const on = (layer: JailPlan["without"][number]) => !plan.without.includes(layer);
  const differs = (what: string): never => {
    throw new JailError("attestation", `worker ${pid}: ${what}`);
  };
  const status = readProc(`/proc/${pid}/status`);
  const field = (name: string): string => {
    const at = status.indexOf(`\n${name}:`);
    return at < 0 ? "" : status.slice(at + name.length + 2, status.indexOf("\n", at + 1)).trim();
  };
  const expect = (name: string, want: string) => {
    const got = field(name);
    if (got !== want) differs(`${name} is "${got}", not "${want}"`);
  };
  const filters = Number(field("Seccomp_filters"));
  if (on("seccomp") && filters !== inherited + 1) {
    differs(`it has ${filters} seccomp filters, not ${inherited + 1}`);
  }
  if (on("no-new-privs")) expect("NoNewPrivs", "1");
  if (on("capabilities")) {
    for (const set of ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]) expect(set, "0000000000000000");
  }
  expect("Threads", "1");
  if (plan.ids.kind === "high" && /^0\b|\s0\b/.test(field("Uid"))) differs("it has the host's uid 0");
  ownSpaces ??= Object.fromEntries(Object.values(SPACES).map((name) => [name, space("self", name)]));
  for (const [layer, name] of Object.entries(SPACES)) {
    if (on(`${layer as keyof typeof SPACES}-namespace`) && space(pid, name) === ownSpaces[name]) {
      differs(`it shares the host's ${layer} namespace`);
    }
  }
  const fds = descriptorsOf(pid);
  if (fds.length !== 1 || fds[0] !== String(WORKER_SOCKET_FD))
    differs(`its open descriptors are ${fds.join(", ")}`);
  if (plan.cgroup !== undefined && on("cgroup")) {
    const wrong = outsideOf(slot, readProc(`/proc/${pid}/cgroup`));
    if (wrong !== undefined) differs(wrong);
  }
  if (withMaps && on("sealed-code") && !plan.compiles) {
    for (const line of fs.readFileSync(`/proc/${pid}/maps`, "latin1").split("\n")) {
      if (/^[0-9a-f]+-[0-9a-f]+ .wx/.test(line)) differs("a page is writable and executable");
    }
  }
  const kib = (name: string) => Number.parseInt(field(name), 10) * 1024;
  return { vmDataBytes: kib("VmData"), vmSizeBytes: kib("VmSize"), vmPeakRssBytes: kib("VmHWM"), filters };
}

/** Of a worker with another uid, root may see them by CAP_DAC_OVERRIDE. man 5 proc_pid_fd */
function descriptorsOf(pid: number): string[] {
  try {
    return fs.readdirSync(`/proc/${pid}/fd`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EACCES") throw error;
    const remedy = ROOT_NEEDS;
    throw new JailError("attestation", `worker ${pid}: we may not see its descriptors`, { remedy, cause: error }); // prettier-ignore
  }
}

/**
 * What is wrong with the cgroups of a process, as /proc/PID/cgroup tells them, if it is to be in the slot; undefined
 * where nothing is. The paths there begin at the reader's cgroup namespace and the slot's at a mount point, so their
 * ends are compared: the tree's name, of which there is one at a time, and the slot's. man 7 cgroups
 */
export function outsideOf(slot: SlotPaths | undefined, text: string): string | undefined {
  if (slot === undefined) return "it was given no cgroup";
  const now = parseOwnCgroups(text);
  for (const controller of ["memory", "pids", "cpu"] as const) {
    const dir = slot[controller];
    if (dir === undefined) continue;
    const line = now.find(({ controllers }) =>
      slot.version === "v2" ? controllers.length === 0 : controllers.includes(controller),
    );
    const leaf = dir.split("/").slice(-2).join("/");
    if (line?.path.endsWith(`/${leaf}`) !== true)
      return `its ${controller} cgroup is ${line?.path ?? "none"}, not ${leaf}`;
  }
  return undefined;
}

const page = Buffer.alloc(64 * 1024);

/** A file of /proc that is smaller than a page of ours. Node's own reading takes new memory for each. */
export function readProc(path: string): string {
  const fd = fs.openSync(path, fs.constants.O_RDONLY);
  try {
    let length = 0;
    for (let got = -1; got !== 0; length += got)
      got = fs.readSync(fd, page, length, page.length - length, null);
    return page.toString("latin1", 0, length);
  } finally {
    fs.closeSync(fd);
  }
}

/** How many filters a process has: the zygote's count, that every worker must exceed by one. */
export function filterCount(pid: number | "self"): number {
  const match = /^Seccomp_filters:\s*(\d+)/m.exec(readProc(`/proc/${pid}/status`));
  if (match === null)
    throw new JailError("attestation", "this kernel does not tell Seccomp_filters (Linux 5.9)");
  return Number(match[1]);
}
