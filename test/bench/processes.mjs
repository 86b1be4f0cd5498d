// What /proc, the cgroups and the descriptors tell of a process and all that it started.
import fs from "node:fs";

const read = (path) => {
  try {
    return fs.readFileSync(path, "latin1");
  } catch {
    return ""; // it ended while it was looked at
  }
};

/** Children of each process. man 5 proc_pid_stat: the parent is the fourth field. */
function childrenByParent() {
  const children = new Map();
  for (const name of fs.readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const stat = read(`/proc/${name}/stat`);
    const parent = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(Number(name));
  }
  return children;
}

/** Keepers are our children, a zygote is a keeper's one child, workers are a zygote's. */
export function family(supervisor = process.pid) {
  const children = childrenByParent();
  const of = (pid) => children.get(pid) ?? [];
  const keepers = of(supervisor).filter((pid) => read(`/proc/${pid}/comm`).startsWith("doublehull-keep"));
  const zygotes = keepers.flatMap(of);
  return { keepers, zygotes, workers: zygotes.flatMap(of) };
}

const kib = (text, name) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1] ?? 0);

/** KiB; page tables are VmPTE. man 5 proc_pid_smaps, proc_pid_status */
export function memoryOf(pid) {
  const rollup = read(`/proc/${pid}/smaps_rollup`);
  return {
    private: kib(rollup, "Private_Dirty") + kib(rollup, "Private_Clean"),
    pss: kib(rollup, "Pss"),
    pageTables: kib(read(`/proc/${pid}/status`), "VmPTE"),
  };
}

export const availableKib = () => kib(read("/proc/meminfo"), "MemAvailable");

export const descriptors = (pid = "self") => {
  try {
    return fs.readdirSync(`/proc/${pid}/fd`).length;
  } catch {
    return 0;
  }
};

/** Our trees in every hierarchy: their names carry the keeper's pid. */
export function cgroupTrees(keepers) {
  const mounts = [...read("/proc/self/mountinfo").matchAll(/^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2? /gm)];
  const tops = new Set(mounts.map(([, point]) => point));
  const own = [...read("/proc/self/cgroup").matchAll(/^\d+:[^:]*:(\/.*)$/gm)].map(([, path]) => path);
  const found = new Set();
  for (const top of tops) {
    for (const path of new Set(["/", ...own])) {
      let names = [];
      try {
        names = fs.readdirSync(top + path);
      } catch {
        // not a path of this hierarchy
      }
      for (const name of names)
        if (keepers.some((pid) => name.startsWith(`doublehull-${pid}-`))) found.add(`${top}${path}/${name}`);
    }
  }
  return [...found];
}

export const quantile = (list, q) =>
  [...list].sort((a, b) => a - b)[Math.min(list.length - 1, Math.floor(list.length * q))];
