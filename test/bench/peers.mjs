// The peers as contenders. Each is used as its own documentation would have it, in the form that is fastest for one
// fresh sandbox a request, and rejects at its start where it cannot be had here. Nothing is loaded before it is started.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));
const home = path.join(here, "peers");
const modules = path.join(home, "node_modules");

/** Once, beside the bench: `npm ci` of the package knows nothing of the peers. Says what goes wrong, and goes on. */
export function installPeers() {
  const wanted = fs.readFileSync(path.join(home, "package.json"), "utf8");
  const stamp = path.join(modules, ".installed-for");
  const key = `${process.version}\n${wanted}`;
  if (fs.existsSync(stamp) && fs.readFileSync(stamp, "utf8") === key) return;
  console.error("Installing the peers beside the bench (isolated-vm may have to compile: minutes) ...");
  const { status, stderr } = spawnSync("npm", ["install", "--no-audit", "--no-fund", "--no-package-lock"], {
    cwd: home,
    encoding: "utf8",
  });
  if (status === 0) fs.writeFileSync(stamp, key);
  else console.error(`npm install failed, what is not there is left out:\n${stderr}`);
}

function installed(name) {
  const dir = path.join(modules, name);
  if (!fs.existsSync(dir)) throw new Error(`the package ${name} could not be installed`);
  return dir;
}

const importFrom = (file) => import(pathToFileURL(file).href);

function onPath(program, debian) {
  const found = (process.env.PATH ?? "").split(":").find((dir) => fs.existsSync(path.join(dir, program)));
  if (found === undefined) throw new Error(`no ${program} on PATH: apt-get install ${debian}`);
  return path.join(found, program);
}

/** Cold start of what lives in a Node process: one that loads it, runs one script and ends. */
const coldNode = (key) => [process.execPath, "--no-node-snapshot", path.join(here, "once.mjs"), key];

// -- in the host process -----------------------------------------------------------------------------------------------

async function loadIsolatedVm() {
  if (!process.execArgv.includes("--no-node-snapshot")) {
    throw new Error("isolated-vm needs node --no-node-snapshot: start with npm run bench");
  }
  return createRequire(path.join(installed("isolated-vm"), "package.json"))("isolated-vm");
}

/** Values go in and come back as JSON: the cheapest way that isolated-vm has for a whole tree. */
function runInContext(ivm, isolate, context, { body, input }) {
  const given = input === undefined ? "" : JSON.stringify(input);
  if (given !== "") context.global.setSync("given", given);
  if (body.includes("host(")) context.global.setSync("host", new ivm.Callback((value) => value));
  const source = `JSON.stringify(((input) => { ${body} })(${given === "" ? "" : "JSON.parse(given)"}))`;
  const script = isolate.compileScriptSync(source);
  return JSON.parse(script.runSync(context));
}

async function isolatedVmIsolate() {
  const ivm = await loadIsolatedVm();
  const make = () => {
    const isolate = new ivm.Isolate({ memoryLimit: 64 });
    return { isolate, context: isolate.createContextSync() };
  };
  return {
    name: "isolated-vm, fresh isolate",
    run: async (workload) => {
      const { isolate, context } = make();
      try {
        return runInContext(ivm, isolate, context, workload);
      } finally {
        isolate.dispose();
      }
    },
    hostCalls: { oneByOne: "host(i)" },
    idle: {
      many: 50,
      async start(count) {
        const all = Array.from({ length: count }, make);
        return async () => all.forEach(({ isolate }) => isolate.dispose());
      },
    },
    cold: coldNode("isolatedVmIsolate"),
    stop: async () => {},
  };
}

async function isolatedVmContext() {
  const ivm = await loadIsolatedVm();
  const isolate = new ivm.Isolate({ memoryLimit: 256 });
  return {
    name: "isolated-vm, fresh context",
    run: async (workload) => {
      const context = isolate.createContextSync();
      try {
        return runInContext(ivm, isolate, context, workload);
      } finally {
        context.release();
      }
    },
    hostCalls: { oneByOne: "host(i)" },
    idle: {
      many: 50,
      async start(count) {
        const all = Array.from({ length: count }, () => isolate.createContextSync());
        return async () => all.forEach((context) => context.release());
      },
    },
    stop: async () => isolate.dispose(),
  };
}

function runInQuickJs(vm, { body, input }) {
  if (input !== undefined) {
    const text = vm.newString(JSON.stringify(input));
    vm.setProp(vm.global, "given", text);
    text.dispose();
  }
  if (body.includes("host(")) {
    const host = vm.newFunction("host", (value) => value.dup());
    vm.setProp(vm.global, "host", host);
    host.dispose();
  }
  const given = input === undefined ? "" : "JSON.parse(given)";
  const value = vm.unwrapResult(vm.evalCode(`JSON.stringify(((input) => { ${body} })(${given}))`));
  const text = vm.getString(value);
  value.dispose();
  return JSON.parse(text);
}

async function quickJsContext() {
  const { getQuickJS } = await import("quickjs-emscripten");
  const module = await getQuickJS();
  return {
    name: "quickjs-emscripten, fresh context",
    run: async (workload) => {
      const vm = module.newContext();
      try {
        return runInQuickJs(vm, workload);
      } finally {
        vm.dispose();
      }
    },
    hostCalls: { oneByOne: "host(i)" },
    idle: {
      many: 50,
      async start(count) {
        const all = Array.from({ length: count }, () => module.newContext());
        return async () => all.forEach((vm) => vm.dispose());
      },
    },
    cold: coldNode("quickJsContext"),
    stop: async () => {},
  };
}

/** The form that bounds the guest's memory: a module of its own, over a memory that has a maximum. */
async function quickJsInstance() {
  const { newQuickJSWASMModuleFromVariant, newVariant, RELEASE_SYNC } = await import("quickjs-emscripten");
  const make = async () => {
    const wasmMemory = new WebAssembly.Memory({ initial: 256, maximum: 1024 });
    const module = await newQuickJSWASMModuleFromVariant(newVariant(RELEASE_SYNC, { wasmMemory }));
    return module.newContext();
  };
  return {
    name: "quickjs-emscripten, fresh instance",
    run: async (workload) => {
      const vm = await make();
      try {
        return runInQuickJs(vm, workload);
      } finally {
        vm.dispose();
      }
    },
    hostCalls: { oneByOne: "host(i)" },
    idle: {
      many: 20,
      async start(count) {
        const all = [];
        for (let i = 0; i < count; i++) all.push(await make());
        return async () => all.forEach((vm) => vm.dispose());
      },
    },
    stop: async () => {},
  };
}

/** Vercel's `run`: a fresh QuickJS in a thread of the host process. */
async function vercelRun() {
  const { createRunner, setMaxWorkers } = await importFrom(path.join(installed("run"), "dist/index.js"));
  setMaxWorkers(64); // its default refuses 50 at once
  const limits = { timeoutMs: 60_000, maxBridgeRequests: 2000, maxConcurrentBridgeRequests: 1000 };
  const runner = createRunner({ limits });
  const hostFunctions = { host: { back: (value) => value } };
  return {
    name: "run (vercel-labs), fresh context",
    run: async ({ body, input }) => {
      const given = input === undefined ? "" : `const input = ${JSON.stringify(input)};`;
      const functions = body.includes("host.back") ? { hostFunctions } : {};
      return (await runner.run({ source: given + body, ...functions })).value;
    },
    atOnce: 8,
    hostCalls: { oneByOne: "await host.back(i)", parallel: "host.back(i)" },
    cold: coldNode("vercelRun"),
    stop: async () => {},
  };
}

// -- one process for all -----------------------------------------------------------------------------------------------

const WORKERD_CONFIG = `
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [(name = "loader.js", esModule = embed "loader.js")],
    compatibilityDate = "2026-01-01",
    compatibilityFlags = ["experimental"],
    bindings = [(name = "LOADER", workerLoader = ())],
  ))],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);`;

const WORKERD_LOADER = `
import { WorkerEntrypoint } from "cloudflare:workers";
export class Back extends WorkerEntrypoint { answer(value) { return value; } }
export default { async fetch(request, env, ctx) {
  const { source, input, keep } = await request.json();
  const code = { compatibilityDate: "2026-01-01", mainModule: "guest.js", modules: { "guest.js": source },
    env: { host: ctx.exports.Back({}) }, globalOutbound: null };
  const worker = keep === undefined ? env.LOADER.load(code) : env.LOADER.get(keep, () => code);
  return worker.getEntrypoint().fetch("http://guest/", { method: "POST", body: JSON.stringify(input ?? null) });
} };`;

/** Its dynamic loader behind HTTP on the loopback interface, which is the way in that it offers. */
async function workerd() {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-bench-"));
  fs.writeFileSync(path.join(dir, "config.capnp"), WORKERD_CONFIG);
  fs.writeFileSync(path.join(dir, "loader.js"), WORKERD_LOADER);
  const program = createRequire(path.join(installed("workerd"), "package.json"))("workerd").default;
  const args = ["serve", path.join(dir, "config.capnp"), "--experimental", "--control-fd=3"];
  const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe", "pipe"] });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text) => (said += text));
  const listening = await new Promise((resolve, reject) => {
    child.once("error", reject).once("exit", () => reject(new Error(said.split("\n", 1)[0])));
    child.stdio[3].setEncoding("utf8").once("data", (text) => resolve(JSON.parse(text.split("\n", 1)[0])));
  });
  const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
  const { port } = listening;
  const post = (message) =>
    new Promise((resolve, reject) => {
      const request = http.request({ host: "127.0.0.1", port, method: "POST", agent }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk) => (text += chunk));
        response.on("error", reject).on("end", () => {
          if (response.statusCode === 200) resolve(JSON.parse(text));
          else reject(new Error(`workerd answered ${response.statusCode}: ${said || text}`));
        });
      });
      request.on("error", reject).end(JSON.stringify(message));
    });
  const source = (body) => `export default { async fetch(request, { host }) {
    const input = await request.json();
    return Response.json(await (async () => { ${body} })());
  } }`;
  return {
    name: "workerd, dynamic worker",
    run: ({ body, input }) => post({ source: source(body), input }),
    atOnce: 8,
    hostCalls: { oneByOne: "await host.answer(i)", parallel: "host.answer(i)" },
    idle: {
      many: 20,
      async start(count) {
        for (let i = 0; i < count; i++) await post({ source: source("return 1"), keep: `${count}-${i}` });
        return async () => {}; // it forgets them itself, when it likes
      },
    },
    cold: coldNode("workerd"),
    stop: async () => {
      agent.destroy();
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGKILL");
      await ended;
      fs.rmSync(dir, { recursive: true });
    },
  };
}

// -- a process for each run --------------------------------------------------------------------------------------------

function capture([command, ...args], stdin) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: [stdin === undefined ? "ignore" : "pipe", "pipe", "pipe"] });
    let [out, said] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text) => (out += text));
    child.stderr.setEncoding("utf8").on("data", (text) => (said += text));
    child.once("error", reject).once("close", (code) => {
      if (code === 0) resolve(out);
      else
        reject(new Error(`${path.basename(command)} ended with ${code}: ${said.trim().split("\n", 1)[0]}`));
    });
    if (stdin !== undefined) child.stdin.end(stdin);
  });
}

/** A process that has started, runs a script of ours that says so, and then waits for ever. */
function startIdle([command, ...args]) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "ignore"] });
  const end = () => new Promise((resolve) => child.once("close", resolve).kill("SIGTERM"));
  return new Promise((resolve, reject) => {
    child.once("error", reject).once("exit", () => reject(new Error("it ended")));
    child.stdout.once("data", () => resolve(end));
  });
}

const printing = ({ body, input }) =>
  `const input = ${JSON.stringify(input ?? null)}; console.log(JSON.stringify((() => { ${body} })()))`;
const WAITING = "console.log(1); setInterval(() => {}, 1e6)";

/** `argv(source)` is the command that runs a program given as text; it may take its time to be made. */
function processPeer(name, argv, more) {
  const resolved = async (source) => await argv(source);
  return {
    name,
    every: 10,
    run: async (workload) => JSON.parse(await capture(await resolved(printing(workload)))),
    atOnce: 4,
    idle: {
      many: 5,
      async start(count) {
        const ends = [];
        for (let i = 0; i < count; i++) ends.push(await startIdle(await resolved(WAITING)));
        return async () => void (await Promise.all(ends.map((end) => end())));
      },
    },
    stop: async () => {},
    ...more,
  };
}

async function denoRun() {
  const program = path.join(installed("deno"), "deno");
  if (!fs.existsSync(program)) throw new Error("the package deno has no binary for this platform");
  execFileSync(program, ["--version"], { stdio: "ignore" });
  // `deno eval` grants everything: a program with no permission comes as a data: address.
  const argv = (source) => [
    program,
    "run",
    "--quiet",
    "--no-prompt",
    "--no-config",
    "--no-lock",
    `data:text/javascript,${encodeURIComponent(source)}`,
  ];
  return processPeer("deno run, no permission", argv, { cold: argv("console.log(1 + 1)") });
}

async function bubblewrap() {
  const program = onPath("bwrap", "bubblewrap");
  const jail =
    "--unshare-all --die-with-parent --new-session --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp";
  const argv = (source) => [program, ...jail.split(" "), process.execPath, "-e", source];
  await capture(argv("1"));
  return processPeer("bwrap node -e", argv, { cold: argv("console.log(1 + 1)") });
}

/** Anthropic's sandbox runtime as a library: set up once, then a wrapped command for each run. */
async function srt() {
  onPath("bwrap", "bubblewrap");
  onPath("socat", "socat");
  onPath("rg", "ripgrep");
  const dir = installed("@anthropic-ai/sandbox-runtime");
  const { SandboxManager } = await importFrom(path.join(dir, "dist/index.js"));
  await SandboxManager.initialize({
    network: { allowedDomains: [], deniedDomains: [] },
    filesystem: { denyRead: [], allowWrite: [], denyWrite: [] },
  });
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const argv = async (source) => {
    const command = `${quoted(process.execPath)} -e ${quoted(source)}`;
    return ["/bin/sh", "-c", await SandboxManager.wrapWithSandbox(command)];
  };
  await capture(await argv("1"));
  const stop = () => SandboxManager.reset();
  return processPeer("srt node -e", argv, { every: 20, cold: coldNode("srt"), stop });
}

async function plainNode() {
  const argv = (source) => [process.execPath, "-e", source];
  return processPeer("node -e (no sandbox)", argv, { cold: argv("1") });
}

/** In the order of the tables. The keys are what `once.mjs` takes. */
export const PEERS = {
  isolatedVmIsolate,
  isolatedVmContext,
  quickJsContext,
  quickJsInstance,
  vercelRun,
  workerd,
  denoRun,
  bubblewrap,
  srt,
  plainNode,
};
