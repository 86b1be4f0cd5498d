/**
 * The shape of the house, read from the source text: who may import whom. The rules are DESIGN's; a change of them is
 * a change of this file.
 */
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { CGROUP_ERRORS } from "#osjail/cgroup";
import { JAIL_ERRORS } from "#osjail/errors";
import { SANDBOX_ERRORS } from "#server/errors";
import { AUDIT_ERRORS } from "#server/service/audit-directory";

const root = fileURLToPath(new URL("../..", import.meta.url));
const FOLDERS = ["engine", "hostapi", "osjail", "server"] as const;

interface Import {
  /** As written. */
  what: string;
  /** Path from the root if it is a file of ours, else undefined. */
  file: string | undefined;
  typeOnly: boolean;
}

function sources(dir: string): string[] {
  return fs.readdirSync(path.join(root, dir), { withFileTypes: true }).flatMap((entry) => {
    const file = `${dir}/${entry.name}`;
    if (entry.isDirectory()) return sources(file);
    return /\.tsx?$/.test(file) && !file.endsWith(".d.ts") ? [file] : [];
  });
}

/** Static and dynamic imports, re-exports, `require`, and modules started as threads or processes of their own. */
function importsOf(file: string): Import[] {
  const text = fs
    .readFileSync(path.join(root, file), "utf8")
    .replaceAll(/\/\*[\s\S]*?\*\/|(?<=^|\s)\/\/.*$/gm, "");
  const found: Import[] = [];
  const add = (what: string, typeOnly: boolean) => {
    const local = what.startsWith(".");
    const target = local
      ? path.posix.join(path.posix.dirname(file), what).replace(/\.js$/, ".ts")
      : undefined;
    found.push({ what, file: target, typeOnly });
  };
  for (const match of text.matchAll(
    /^\s*(?:import|export)\s+(type\s)?([^;"']*?)\s*from\s*["']([^"']+)["']/gm,
  )) {
    const [, type, names = "", what = ""] = match;
    const inBraces = /^\{([\s\S]*)\}$/.exec(names.trim())?.[1];
    const named = inBraces?.split(",").map((name) => name.trim());
    const allTypes = named?.every((name) => name === "" || name.startsWith("type ")) ?? false;
    add(what, type !== undefined || allTypes);
  }
  for (const [, what = ""] of text.matchAll(/^\s*import\s+["']([^"']+)["']/gm)) add(what, false);
  for (const [, what = ""] of text.matchAll(
    /\b(?:import|require|createRequire\([^)]*\))\s*\(\s*["']([^"']+)["']/g,
  )) {
    add(what, false);
  }
  for (const [, what = ""] of text.matchAll(/new URL\(\s*["'](\.[^"']+\.js)["']/g)) add(what, false);
  return found;
}

const files = FOLDERS.flatMap((folder) => sources(folder));
const graph = new Map(files.map((file) => [file, importsOf(file)]));
const importsIn = (folder: string) =>
  files.filter((file) => file.startsWith(`${folder}/`)).flatMap((file) => (graph.get(file) ?? []).map((i) => ({ ...i, from: file }))); // prettier-ignore
const shown = (imports: { from: string; what: string }[]) =>
  imports.map(({ from, what }) => `${from} -> ${what}`);

/** Every file that loads when `start` does. Type imports load nothing; a module in a thread or process of its own is another program. */
function reached(start: string): Set<string> {
  const seen = new Set<string>();
  const visit = (file: string) => {
    if (seen.has(file)) return;
    seen.add(file);
    for (const { file: next, typeOnly } of graph.get(file) ?? [])
      if (next !== undefined && !typeOnly) visit(next);
  };
  visit(start);
  return seen;
}

describe("the walk itself", () => {
  test("every import of a file of ours leads to a file that exists", () => {
    const dangling = [...graph].flatMap(
      ([from, imports]) =>
      imports.filter(({ file }) => file !== undefined && !graph.has(file) && !fs.existsSync(path.join(root, file.replace(/\.ts$/, ".d.ts")))).map(({ what }) => ({ from, what })), // prettier-ignore
    );
    expect(shown(dangling)).toEqual([]);
  });

  test("it sees static, dynamic, type and created-require imports", () => {
    const seen = (from: string, what: string) => graph.get(from)?.find((found) => found.what === what);
    expect(seen("server/sandbox.ts", "./pool.js")).toMatchObject({ typeOnly: false, file: "server/pool.ts" });
    expect(seen("server/hull.ts", "../osjail/zygote-client.js")).toBeDefined();
    expect(graph.get("server/hull.ts")?.filter(({ what }) => what === "../osjail/zygote-client.js")).toEqual([
      expect.objectContaining({ typeOnly: true }),
      expect.objectContaining({ typeOnly: false }),
    ]);
    expect(seen("engine/typescript.ts", "@swc/wasm-typescript")).toBeDefined();
    expect(reached("server/index.ts")).toContain("server/conversation.ts");
  });
});

describe("who may import whom", () => {
  test("osjail knows no engine, no host API and no server", () => {
    const wrong = importsIn("osjail").filter(({ file }) => file !== undefined && !file.startsWith("osjail/"));
    expect(shown(wrong)).toEqual([]);
  });

  test("engine knows nothing of ours but itself", () => {
    const wrong = importsIn("engine").filter(({ file }) => file !== undefined && !file.startsWith("engine/"));
    expect(shown(wrong)).toEqual([]);
  });

  test("engine knows no operating system: of Node it imports the module loader's door and V8's own switches", () => {
    const ofNode = importsIn("engine").filter(({ what }) =>
      /^(?:node:|fs$|net$|os$|process$|child_process$)/.test(what),
    );
    expect(shown(ofNode)).toEqual([
      "engine/typescript.ts -> node:module",
      "engine/v8.ts -> node:module",
      "engine/v8.ts -> node:v8",
      "engine/v8.ts -> node:vm",
    ]);
  });

  test("engine reaches for no process by its global name", () => {
    const using = sources("engine").filter((file) =>
      /(?<![.\w"'])process\.\w/.test(
        fs.readFileSync(path.join(root, file), "utf8").replaceAll(/\/\*[\s\S]*?\*\//g, ""),
      ),
    );
    expect(using).toEqual([]);
  });

  test("hostapi knows no server and no jail", () => {
    const wrong = importsIn("hostapi").filter(
      ({ file }) => file !== undefined && /^(?:server|osjail)\//.test(file),
    );
    expect(shown(wrong)).toEqual([]);
  });

  test("the service's client loads nothing of the service, of Node or of a package", () => {
    const loaded = [...reached("server/client.ts")];
    expect(loaded.every((file) => /^server\/client[./]/.test(file))).toBe(true);
    const all = loaded.flatMap((file) => graph.get(file) ?? []);
    expect(all.filter(({ typeOnly }) => typeOnly).map(({ what }) => what)).toContain("zod"); // the control
    expect(all.filter(({ typeOnly, file }) => !typeOnly && file === undefined)).toEqual([]);
    const text = loaded.map((file) => fs.readFileSync(path.join(root, file), "utf8")).join("\n");
    expect(text).not.toMatch(/\b(?:process|Buffer|require)\b[.(]/);
  });

  test("the playground's pages load the client, pure tables of the server's and browser packages, and nothing of Node", () => {
    const loaded = [...reached("server/playground/main.tsx")];
    const ofServer = loaded.filter((file) => !/^server\/(?:playground\/|client[./])/.test(file)).sort();
    expect(ofServer).toEqual(["server/limits.ts", "server/outcome-words.ts"]);
    const packages = loaded.flatMap((file) => (graph.get(file) ?? []).filter(({ typeOnly, file }) => !typeOnly && file === undefined)); // prettier-ignore
    expect([...new Set(packages.map(({ what }) => what))].filter((what) => !/^(?:@codemirror\/|@lezer\/|@preact\/|codemirror$|preact|uplot|zod\/mini$)/.test(what))).toEqual([]); // prettier-ignore
    expect(packages.map(({ what }) => what)).toContain("codemirror"); // the control
    const elsewhere = files.filter((file) => !file.startsWith("server/playground/"));
    expect(elsewhere.filter((file) => (graph.get(file) ?? []).some((found) => found.file?.startsWith("server/playground/")))).toEqual([]); // prettier-ignore
  });

  test("nothing of the product imports a test or a sample", () => {
    const all = FOLDERS.flatMap((folder) => importsIn(folder));
    expect(all.length).toBeGreaterThan(50);
    expect(shown(all.filter(({ what, file }) => /(?:^|\/)(?:test|samples)\//.test(file ?? what)))).toEqual(
      [],
    );
  });

  test("only files named *.ffi.ts load the FFI library", () => {
    const loading = FOLDERS.flatMap((folder) => importsIn(folder)).filter(({ what }) =>
      /^ffi-rs|koffi|ffi-napi/.test(what),
    );
    expect([...new Set(loading.map(({ from }) => from))]).toEqual(["osjail/libc.ffi.ts"]);
  });

  test("what runs inside the jail never loads the supervisor's side", () => {
    const inside = [...reached("server/keeper-main.ts")];
    expect(inside).toContain("osjail/zygote.ts");
    expect(inside).toContain("server/worker.ts");
    expect(inside).toContain("engine/quickjs.ts");
    const outside = [
      "sandbox",
      "pool",
      "hull",
      "conversation",
      "verdict",
      "outcome",
      "cli",
      "index",
      "limits",
    ];
    expect(inside.filter((file) => outside.some((name) => file === `server/${name}.ts`))).toEqual([]);
    expect(inside.filter((file) => /^osjail\/(?:zygote-client|attest|launch|host)\.ts$/.test(file))).toEqual(
      [],
    );
  });

  test("what runs inside the jail loads no network, no HTTP and no process starter of Node's", () => {
    const inside = [...reached("server/keeper-main.ts")].flatMap((file) => graph.get(file) ?? []);
    const wanted = inside.filter(({ typeOnly }) => !typeOnly).map(({ what }) => what);
    expect(wanted).toContain("node:fs"); // the control: the list is not empty
    expect(wanted.filter((what) => /^(?:node:)?(?:net|http|https|http2|dgram|tls|child_process|worker_threads|inspector)$/.test(what))).toEqual([]); // prettier-ignore
  });

  test("there is no import cycle, types included", () => {
    const cycles: string[] = [];
    const done = new Set<string>();
    const visit = (file: string, way: readonly string[]) => {
      const at = way.indexOf(file);
      if (at >= 0) return void cycles.push([...way.slice(at), file].join(" -> "));
      if (done.has(file)) return;
      for (const { file: next } of graph.get(file) ?? []) {
        // A file that starts itself anew in a thread does not wait for itself.
        if (next !== undefined && next !== file) visit(next, [...way, file]);
      }
      done.add(file);
    };
    for (const file of files) visit(file, []);
    expect(cycles).toEqual([]);
  });
});

const IMPERATIVES =
  /\b(?:add|allow|ask|call|check|correct|create|do not|give|leave|make|mount|pass|raise|remove|report|run|try|use)\b/i;

describe("the error tables", () => {
  const remedies: Record<string, Record<string, string>> = {
    SANDBOX_ERRORS: Object.fromEntries(
      Object.entries(SANDBOX_ERRORS).map(([code, row]) => [code, row.remedy]),
    ),
    JAIL_ERRORS,
    CGROUP_ERRORS,
    AUDIT_ERRORS,
  };

  test("a code stands in one table only", () => {
    const codes = Object.values(remedies).flatMap((table) => Object.keys(table));
    expect(codes.length).toBeGreaterThan(15);
    expect(codes.filter((code, i) => codes.indexOf(code) !== i)).toEqual([]);
    expect(codes.filter((code) => !/^[a-z]+(?:-[a-z]+)*$/.test(code))).toEqual([]);
  });

  test.each(Object.entries(remedies))(
    "every code of %s has a remedy that says what to do",
    (_name, table) => {
      for (const [code, remedy] of Object.entries(table)) {
        expect(remedy.length, code).toBeGreaterThan(20);
        expect(remedy, code).toMatch(IMPERATIVES);
      }
    },
  );
});
