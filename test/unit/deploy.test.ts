/** The files of server/deploy are what they claim: they agree with the program, with each other and with the jail. */
import fs from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { parseAllDocuments } from "yaml";
import { SYSCALLS } from "#osjail/abi/syscalls";
import { PROFILES } from "#osjail/seccomp";
import { cli, root } from "../cli/command.js";

const HERE = "server/deploy";
const read = (file: string) => fs.readFileSync(path.join(root, file), "utf8");
const filesIn = (dir: string): string[] =>
  fs
    .readdirSync(path.join(root, dir), { recursive: true, withFileTypes: true })
    .flatMap((entry) =>
      entry.isFile() ? [path.relative(root, path.join(entry.parentPath, entry.name))] : [],
    );

const files = filesIn(HERE);
const yamlFiles = files.filter((file) => file.endsWith(".yaml"));
const documents = new Map(
  yamlFiles.map((file) => [
    file,
    parseAllDocuments(read(file), { merge: true }).map((document) => {
      if (document.errors.length > 0) throw document.errors[0] as Error;
      return document.toJS() as Record<string, unknown>;
    }),
  ]),
);

interface ComposeService {
  image: string;
  command?: string[];
  environment?: Record<string, string>;
  ports?: string[];
  user?: string;
  stop_grace_period?: string;
  [key: string]: unknown;
}
const compose = documents.get(`${HERE}/compose.yaml`)?.[0] as {
  services: Record<string, ComposeService>;
};
const nodes = Object.values(compose.services).filter(({ image }) => image === "doublehull");

interface Container {
  args: string[];
  env: { name: string }[];
  ports: { name: string; containerPort: number }[];
  securityContext: Record<string, unknown>;
  lifecycle: { preStop: { sleep: { seconds: number } } };
  [probe: string]: unknown;
}
const kinds = new Map([...documents.values()].flat().map((document) => [document["kind"], document]));
const pods = kinds.get("StatefulSet") as {
  spec: {
    template: {
      spec: {
        terminationGracePeriodSeconds: number;
        securityContext: Record<string, unknown>;
        containers: [Container];
      };
    };
  };
};
const pod = pods.spec.template.spec;
const [container] = pod.containers;

const unit = read(`${HERE}/systemd/doublehull.service`);
/** All values of one setting of the unit. */
const setting = (name: string) =>
  [...unit.matchAll(new RegExp(`^${name}=(.*)$`, "gm"))].map(([, value]) => value as string);

const dockerfile = read(`${HERE}/Dockerfile`).replaceAll(/\\\n\s*/g, "");
/** What an instruction says, which must be in the form without a shell. */
const execForm = (instruction: "CMD" | "ENTRYPOINT" | "HEALTHCHECK"): string[] => {
  const text = new RegExp(`^${instruction} (?:--.* CMD )?(\\[.*\\])$`, "m").exec(dockerfile)?.[1];
  return JSON.parse(text ?? "null") as string[];
};

/** `serve` as each file starts it. */
const commands: Readonly<Record<string, readonly string[]>> = {
  Dockerfile: execForm("CMD"),
  ...Object.fromEntries(Object.entries(compose.services).flatMap(([name, { command, image }]) => (image === "doublehull" ? [[name, command ?? []]] : []))), // prettier-ignore
  StatefulSet: container.args,
  unit: (setting("ExecStart")[0] ?? "").split(" ").slice(2),
};
/** The value of a flag, written with a space or with "=". */
function flag(command: readonly string[], name: string): string | undefined {
  const at = command.findIndex((word) => word === name || word.startsWith(`${name}=`));
  const word = command[at];
  return word === name ? command[at + 1] : word?.slice(name.length + 1);
}

/** One line for each flag. */
const help = (await cli(["serve", "--help"])).stdout.replaceAll(/\n {10,}/g, " ");
const defaultOf = (name: string) => new RegExp(`${name} .*?\\(default: "?([^")]*)`).exec(help)?.[1];

describe("every file that starts the service", () => {
  test("names the command and flags that it has", () => {
    const unknown = Object.entries(commands).flatMap(([where, [command, ...words]]) => {
      expect(command, where).toBe("serve");
      const flags = words.flatMap((word) => /^--[a-z-]+/.exec(word) ?? []);
      expect(flags.length, where).toBeGreaterThan(0);
      return flags.filter((name) => !new RegExp(`^\\s*${name}\\b`, "m").test(help));
    });
    expect([...new Set(unknown)]).toEqual([]);
  });

  test("sets environment variables that it reads", () => {
    const named = new Set(files.flatMap((file) => read(file).match(/DOUBLEHULL_[A-Z_]+/g) ?? []));
    expect([...named].sort()).toEqual(["DOUBLEHULL_QUEUE", "DOUBLEHULL_STORE"]);
    expect([...named].filter((name) => !help.includes(name))).toEqual([]);
  });

  test("gives it the time that its runs have, and 10 s to leave", () => {
    const graceSeconds = (command: readonly string[]) =>
      Number(flag(command, "--grace") ?? defaultOf("--grace <seconds>"));
    for (const { command = [], stop_grace_period: period } of nodes) {
      expect(period).toMatch(/^\d+s$/);
      expect(Number.parseInt(period ?? "")).toBeGreaterThanOrEqual(graceSeconds(command) + 10);
    }
    const { preStop } = container.lifecycle;
    expect(pod.terminationGracePeriodSeconds).toBeGreaterThanOrEqual(
      graceSeconds(container.args) + preStop.sleep.seconds + 5,
    );
    expect(Number(setting("TimeoutStopSec")[0])).toBeGreaterThanOrEqual(
      graceSeconds(commands["unit"] ?? []) + 10,
    );
    expect(setting("KillMode")).toEqual(["mixed"]);
    expect(dockerfile).toMatch(/^STOPSIGNAL SIGTERM$/m);
  });
});

describe("ports", () => {
  test("of containers are those that the service listens on, and administrators' are on loopback or published there", () => {
    const [, port] = (flag(commands["Dockerfile"] ?? [], "--listen") ?? "").split(":");
    const admin = defaultOf("--admin-listen <host:port>") ?? "";
    expect(admin).toMatch(/^127\.0\.0\.1:\d+$/);
    const [, adminPort] = admin.split(":");
    expect(dockerfile).toMatch(new RegExp(`^EXPOSE ${port}$`, "m"));
    expect(execForm("HEALTHCHECK").join(" ")).toContain(`http://127.0.0.1:${port}/healthz`);
    for (const { command = [], ports = [] } of nodes) {
      expect(flag(command, "--listen")).toBe(`0.0.0.0:${port}`);
      expect(flag(command, "--admin-listen")).toBe(`0.0.0.0:${adminPort}`);
      for (const published of ports)
        expect(published).toMatch(new RegExp(`^127\\.0\\.0\\.1:\\d+:(${port}|${adminPort})$`));
    }
    expect(flag(container.args, "--listen")).toBe(`0.0.0.0:${port}`);
    expect(flag(container.args, "--admin-listen")).toBeUndefined();
    expect(container.ports).toEqual([{ name: "http", containerPort: Number(port) }]);
    for (const file of [`${HERE}/kubernetes/service.yaml`, `${HERE}/kubernetes/networkpolicy.yaml`]) {
      expect(read(file)).not.toContain(adminPort);
    }
  });

  test("are no two services' on the host, but for what only one of two ways uses", () => {
    const published = (services: ComposeService[]) =>
      services.flatMap(({ ports = [] }) => ports.map((port) => port.split(":").slice(0, 2).join(":")));
    const cluster = published(nodes.filter((node) => node["profiles"] !== undefined));
    expect(new Set(cluster).size).toBe(cluster.length);
  });
});

describe("what a container may do", () => {
  test("is never everything", () => {
    expect(yamlFiles.length).toBeGreaterThan(4);
    for (const file of files)
      expect(read(file), file).not.toMatch(
        /privileged["']?\s*[:=]\s*["']?true|seccomp[=:]unconfined|cap_add/i,
      );
  });

  test("is nothing but what the jail needs", () => {
    const user = /^USER (\d+:\d+)$/m.exec(dockerfile)?.[1];
    expect(nodes.length).toBeGreaterThan(2);
    for (const node of nodes) {
      expect(node).toMatchObject({ user, cap_drop: ["ALL"], read_only: true });
      expect(node["cap_add"]).toBeUndefined();
      expect(node["security_opt"]).toEqual([
        "no-new-privileges:true",
        "seccomp=./seccomp.json",
        "apparmor=unconfined",
      ]);
    }
    expect(pod.securityContext).toMatchObject({ runAsNonRoot: true, seccompProfile: { type: "Localhost" } });
    expect(`${String(pod.securityContext["runAsUser"])}:${String(pod.securityContext["runAsGroup"])}`).toBe(
      user,
    );
    expect(container.securityContext).toEqual({
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ["ALL"] },
    });
  });

  test("is nothing in systemd's unit that takes a layer away", () => {
    for (const name of [
      "RestrictNamespaces",
      "ProtectHostname",
      "ProtectControlGroups",
      "ProtectKernelTunables",
      "ProcSubset",
      "MemoryDenyWriteExecute",
      "PrivateUsers",
    ])
      // prettier-ignore
      expect(setting(name), name).toEqual([]);
    expect(setting("NoNewPrivileges")).toEqual(["yes"]);
    expect(setting("Delegate")[0]?.split(" ")).toEqual(expect.arrayContaining(["memory", "pids", "cpu"]));
  });
});

describe("the seccomp profile", () => {
  const profile = JSON.parse(read(`${HERE}/seccomp.json`)) as {
    defaultAction: string;
    architectures: string[];
    syscalls: { names: string[]; action: string; args?: unknown[]; comment: string }[];
  };
  const allowed = profile.syscalls.flatMap(({ names }) => names);
  /** Calls by name in the jail's source, and those that its filters let through. */
  const made = new Set([
    ...filesIn("osjail").flatMap((file) =>
      [...read(file).matchAll(/\b(?:sys|trySys|call)\(\s*"([a-z0-9_]+)"/g)].map(([, name]) => name as string),
    ),
    ...Object.values(PROFILES).flatMap(({ rules }) => rules.map(({ call }) => call as string)),
  ]);

  test("allows every call that the jail makes, but the one whose layer containers lack anyway", () => {
    expect(made.size).toBeGreaterThan(50);
    expect([...made].filter((name) => !allowed.includes(name))).toEqual(["keyctl"]);
  });

  test("refuses all that it does not name, calls of 32 bits among them", () => {
    expect(profile.defaultAction).toBe("SCMP_ACT_ERRNO");
    expect(profile.architectures).toEqual(["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]);
    for (const { action, comment } of profile.syscalls) {
      expect(action).toBe("SCMP_ACT_ALLOW");
      expect(comment).not.toBe("");
    }
  });

  test("names calls that exist, each once, sockets by their families", () => {
    const known = new Set(Object.values(SYSCALLS).flatMap((table) => Object.keys(table)));
    expect(allowed.filter((name) => !known.has(name))).toEqual([]);
    const twice = allowed.filter((name, i) => allowed.indexOf(name) !== i);
    expect([...new Set(twice)]).toEqual(["socket"]);
    expect(profile.syscalls.filter(({ args }) => args !== undefined).flatMap(({ names }) => names)).toEqual(["socket", "socket", "socket", "socket"]); // prettier-ignore
  });

  test("leaves out what changes the host, what reaches other processes' memory, and where kernels broke", () => {
    const never = "add_key bpf delete_module finit_module init_module io_setup io_uring_enter io_uring_register io_uring_setup iopl kexec_file_load kexec_load keyctl modify_ldt move_mount name_to_handle_at open_by_handle_at open_tree perf_event_open personality process_madvise process_vm_readv process_vm_writev quotactl reboot request_key setns settimeofday swapon syslog userfaultfd vmsplice"; // prettier-ignore
    expect(never.split(" ").filter((name) => allowed.includes(name))).toEqual([]);
  });

  test("allows in systemd's unit, too, what is beyond its services' set", () => {
    const extra = setting("SystemCallFilter").join(" ").split(" ").slice(1);
    expect(extra).toEqual(expect.arrayContaining(["mount", "umount2", "pivot_root", "sethostname", "landlock_create_ruleset", "landlock_restrict_self", "seccomp"])); // prettier-ignore
    expect(extra.filter((name) => !allowed.includes(name))).toEqual([]);
  });
});

describe("the image", () => {
  const manifest = JSON.parse(read("package.json")) as Record<string, Record<string, string>>;

  test("is built from one base, by a tag and not by a digest", () => {
    const bases = [...dockerfile.matchAll(/^FROM (\S+)/gm)].map(([, base]) => base as string);
    expect(new Set(bases).size).toBe(1);
    expect(bases[0]).toMatch(/^node:\d+-\w+-slim$/);
  });

  test("starts the service, and asks after it, without a shell", () => {
    expect(execForm("ENTRYPOINT")).toEqual(["node", "dist/server/cli.js"]);
    expect(execForm("HEALTHCHECK")[0]).toBe("node");
    expect(manifest["bin"]?.["doublehull"]).toBe(execForm("ENTRYPOINT")[1]);
  });

  test("has the versions that are tested here, and of native packages ones that are allowed", () => {
    const installed = new Map([...dockerfile.matchAll(/\s([a-z0-9-]+)@(\d+\.\d+\.\d+)/g)].map(([, name, version]) => [name as string, version as string])); // prettier-ignore
    for (const name of ["pg", "ioredis", "bullmq"])
      expect(installed.get(name), name).toBe(manifest["devDependencies"]?.[name]);
    for (const [name, range] of Object.entries(manifest["optionalDependencies"] ?? {})) {
      const [major] = (installed.get(name) ?? "").split(".");
      expect(range, name).toMatch(new RegExp(`\\^${major}\\.`));
    }
  });

  test("is built from all that the compiler reads, and from nothing else", () => {
    const { include } = JSON.parse(read("tsconfig.json")) as { include: string[] };
    const admitted = [...read(".dockerignore").matchAll(/^!(\S+)$/gm)].map(([, name]) => name as string);
    expect([...admitted].sort()).toEqual(
      [...include, "package-lock.json", "package.json", "tsconfig.json"].sort(),
    );
    expect(read(".dockerignore").split("\n")).toContain("*");
  });
});
