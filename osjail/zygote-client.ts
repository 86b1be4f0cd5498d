/**
 * The supervisor's half of a zygote: starts it, asks it for workers, learns of their deaths, and can look at, limit and
 * kill each of them without asking anyone. It owns every descriptor that it makes until a method says otherwise.
 * Nothing here reads a byte that a worker wrote.
 */
import fs from "node:fs";
import net from "node:net";
import path from "node:path";
import { ERRNO, F, MSG, O, RLIMIT, SIG, WAIT } from "./abi/linux.js";
import { attest, filterCount, readProc, type Attested } from "./attest.js";
import { CgroupError } from "./cgroup.js";
import { KEPT_FILES, Slot, type SlotPaths } from "./cgroup-slot.js";
import { COMMAND, DescriptorSocket, socketPair } from "./descriptors.js";
import { JailError, JAIL_ERRORS, type JailErrorCode } from "./errors.js";
import { launch, type LaunchFrom } from "./launch.js";
import { KernelError, Memory, sys, trySys } from "./libc.ffi.js";
import { encodeSetup } from "./setup.js";
import type { JailPlan, LayerReport } from "./plan.js";
import { getLimit, setLimit } from "./rlimit.js";
import { buryForgottenKeepers, hold, release } from "./thread-end.js";
import type { Probes, ZygoteEvent } from "./zygote.js";
import type { Refusal } from "./seccomp.js";

/** How a worker's process ended, as the kernel told the zygote. */
export interface WorkerExit {
  /** Wait status (man 2 wait), or undefined when the zygote was lost and nobody could wait. */
  status: number | undefined;
  cpuMs: number;
  maxRssBytes: number;
  /** Number of the system call that was refused, where one was. */
  refusedCall: number | undefined;
}

export interface KeeperLaunch {
  /** The program: its first argument is `argument`, and `keep` is what it ends in. */
  main: string;
  argument: string;
  nodeFlags: readonly string[];
  launchFrom: LaunchFrom;
  /** Start inside an own delegated scope of the user's systemd. man 1 systemd-run */
  systemdScope: boolean;
  /** Environment that systemd-run needs to find the user's manager; the zygote itself gets none of it. */
  scopeEnv: Readonly<Record<string, string>>;
}

/**
 * A started keeper that waits for its setup. Whoever has it owns the descriptors, as `hold` gives them; if they close,
 * it ends.
 */
export interface LaunchedKeeper {
  pid: number;
  events: number;
  commands: number;
  /** The reading end of its standard error. */
  diagnostics: number;
}

/** V8 is told that it may use 3.9 MB of the stack (the engines' flags): with less it would die of SIGSEGV. */
const LEAST_STACK = 6 * 1024 * 1024;

const KEEPER_ENV = { TZ: "UTC" };

/** Starts the keeper's program, which boots while the caller finds out what it wants of it. Throws JailError. */
export async function launchKeeper(options: KeeperLaunch): Promise<LaunchedKeeper> {
  if (!path.basename(process.execPath).startsWith("node")) {
    throw new JailError("not-node", `${process.execPath} is not Node.js`);
  }
  const stack = getLimit(RLIMIT.STACK).soft; // the keeper inherits it
  if (stack < LEAST_STACK) throw new JailError("stack-limit", `the stack is limited to ${stack} bytes`);
  const held: number[] = [];
  const holdBoth = ([mine, theirs]: readonly [number, number]): [number, number] => {
    try {
      held.push(hold(mine));
    } catch (error) {
      sys("close", theirs);
      throw error;
    }
    held.push(hold(theirs));
    return held.slice(-2) as [number, number];
  };
  const pipe = new Memory(8);
  const node = [process.execPath, ...options.nodeFlags, options.main, options.argument];
  const scope = ["--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--"];
  const [command, ...args] = options.systemdScope
    ? [
        "systemd-run",
        ...scope,
        "/usr/bin/env",
        "-i",
        ...Object.entries(KEEPER_ENV).map(([name, value]) => `${name}=${value}`),
        ...node,
      ]
    : node;
  try {
    buryForgottenKeepers();
    const [events, keeperEvents] = holdBoth(socketPair());
    const [commands, keeperCommands] = holdBoth(socketPair());
    sys("pipe2", pipe, O.CLOEXEC);
    const [diagnostics, stderr] = holdBoth([pipe.bytes.readInt32LE(0), pipe.bytes.readInt32LE(4)]);
    sys("fcntl", diagnostics, F.SETFL, O.NONBLOCK); // on the reading end alone
    const pid = await launch(
      {
        command: command as string,
        args,
        env: options.systemdScope ? options.scopeEnv : KEEPER_ENV,
        stdio: ["ignore", "ignore", stderr, keeperEvents, keeperCommands],
      },
      options.launchFrom,
    );
    for (const fd of [keeperEvents, keeperCommands, stderr]) release(fd);
    return { pid, events, commands, diagnostics };
  } catch (error) {
    for (const fd of held) release(fd);
    throw new JailError("zygote-start", textOf(error), { cause: error });
  }
}

/** A worker is a socket and a pidfd to us, its slot the control files that are kept open. */
const DESCRIPTORS = { worker: 2, slot: KEPT_FILES };

/**
 * Too few descriptors are an error now rather than one in the middle of a run. Node has raised the soft limit to the
 * hard one when it started, so there is nothing left to raise. man 2 getrlimit RLIMIT_NOFILE
 */
function descriptorShortage(plan: JailPlan): JailError | undefined {
  const each = DESCRIPTORS.worker + (plan.cgroup === undefined ? 0 : DESCRIPTORS.slot);
  const needed = fs.readdirSync("/proc/self/fd").length + each * plan.slots;
  const limit = getLimit(RLIMIT.NOFILE).soft;
  if (needed <= limit) return undefined;
  const workers = `${plan.slots} workers (parked, running and ending) need ${needed} open files`;
  return new JailError("open-files", `${workers}, and the limit is ${limit}`);
}

/** man 2 setpriority */
const PRIO_PROCESS = 0;

/** man 2 shutdown */
const SHUT_WR = 1;

const textOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

/** An extra that only trying can tell: whether /proc/sys/user could be written. */
function asProbed(report: LayerReport, probes: Probes): LayerReport {
  const refused = probes.userNamespaceAfterLimits === -ERRNO.ENOSPC;
  if (report.layer !== "namespace-limits" || report.state !== "on" || refused) return report;
  return { ...report, state: "absent", detail: "/proc/sys/user cannot be written here" };
}

export class Zygote {
  readonly plan: JailPlan;
  /** Settles when keeper and zygote are gone and their cgroups removed. Never rejects. */
  readonly ended: Promise<void>;
  refusal: Refusal = "trace";
  probes: Probes | undefined;
  /** What is on, as planned and as the probes found it. */
  layers: LayerReport[];
  alive = true;
  /** Workers ever forked. */
  forks = 0;
  /** Called when a worker has been buried and there is room for another. */
  onFree: (() => void) | undefined;
  readonly #events: net.Socket;
  readonly #commands: DescriptorSocket;
  readonly #diagnostics: number;
  readonly #pid: number;
  readonly #workers = new Map<number, JailedWorker>();
  readonly #waitingForPidfd = new Map<number, JailedWorker>();
  readonly #slots: Slot[] = [];
  readonly #slotBytes: number[] = [];
  #freeSlots: number[] = [];
  #inheritedFilters = 0;
  #mapsAttested = false;
  #failure: JailError | undefined;
  #ready!: { resolve: () => void; reject: (error: Error) => void };
  #end!: () => void;

  private constructor(plan: JailPlan, { pid, events, commands, diagnostics }: LaunchedKeeper) {
    this.plan = plan;
    this.layers = plan.layers;
    this.#pid = pid;
    this.#commands = new DescriptorSocket(commands);
    this.#diagnostics = diagnostics;
    this.ended = new Promise((resolve) => (this.#end = resolve));
    // Node closes a socket's descriptor itself, so it must be none of those that are held.
    const stream = sys("fcntl", events, F.DUPFD_CLOEXEC, 0);
    release(events);
    this.#events = new net.Socket({ fd: stream, readable: true, writable: false });
    let rest = "";
    this.#events.setEncoding("utf8").on("data", (chunk: string) => {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.#hear(JSON.parse(line) as ZygoteEvent);
    });
    this.#events.on("error", () => {}); // a reset is followed by close, which says all there is to say
    this.#events.on("close", () => this.#gone());
  }

  /**
   * Tells a keeper what to become and waits until the probes have passed. `setup` is what its program reads by
   * `readSetup`. Takes the keeper over, also when it throws (JailError): nothing is left behind then.
   */
  static async start(
    plan: JailPlan,
    setup: Readonly<Record<string, unknown>>,
    keeper: LaunchedKeeper,
  ): Promise<Zygote> {
    const zygote = new Zygote(plan, keeper);
    const shortage = descriptorShortage(plan);
    if (shortage !== undefined) {
      await zygote.stop();
      throw shortage;
    }
    const ready = new Promise<void>((resolve, reject) => (zygote.#ready = { resolve, reject }));
    const text = new Memory(encodeSetup(setup));
    const sent = trySys("sendto", keeper.commands, text, text.bytes.length, MSG.NOSIGNAL, 0, 0);
    if (sent !== text.bytes.length && sent !== -ERRNO.EPIPE) throw new KernelError("sendto", -sent);
    await ready;
    zygote.#events.unref(); // an idle zygote keeps nobody's process alive: its end is ours, by EOF
    return zygote;
  }

  /** Why it ended by itself, where it is known. */
  get failure(): JailError | undefined {
    return this.#failure;
  }

  /** Room for another worker. */
  get free(): number {
    return this.alive ? this.#freeSlots.length : 0;
  }

  get pid(): number {
    return this.#pid;
  }

  /**
   * Asks for a worker; `undefined` when no slot is free or the zygote is gone. Its socket is usable at once. The note
   * reaches the worker's main: 32 bits.
   */
  fork(note = 0): JailedWorker | undefined {
    if (!this.alive || this.#freeSlots.length === 0) return undefined;
    const [mine, theirs] = socketPair();
    const slot = this.#freeSlots.pop() as number;
    const id = ++this.forks;
    let sent = false;
    try {
      sent = this.#commands.send({ command: COMMAND.FORK, id, slot, note, fd: theirs }, false);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error; // EPIPE: the zygote is going; close will be heard
    } finally {
      sys("close", theirs);
    }
    if (!sent) {
      sys("close", mine);
      this.#freeSlots.push(slot);
      return undefined;
    }
    const worker = new JailedWorker(this, id, slot, mine, this.#slots[slot]);
    this.#workers.set(id, worker);
    this.#waitingForPidfd.set(id, worker);
    return worker;
  }

  /** Checks a parked worker from outside, arms its limits, and says what it measured. Throws JailError. */
  attest(worker: JailedWorker, limits: WorkerLimits): Attested {
    this.#claim(worker);
    if (worker.pid === 0) throw new JailError("zygote-lost", worker.whyNot);
    const slot = worker.cgroup?.paths;
    const seen = attest(worker.pid, this.plan, this.#inheritedFilters, !this.#mapsAttested, slot);
    this.#mapsAttested = true;
    worker.attested = true;
    worker.arm(seen, limits);
    return seen;
  }

  /** A slot keeps its limit from worker to worker: it is written, and read back, only when it changes. */
  limitSlot(slot: number, memoryBytes: number): void {
    const cgroup = this.#slots[slot];
    if (cgroup === undefined || this.#slotBytes[slot] === memoryBytes) return;
    cgroup.setLimits({ memoryBytes, pids: 1 });
    this.#slotBytes[slot] = memoryBytes;
  }

  /** Fallback of the pidfd, should the kernel refuse us the signal. */
  killByZygote(id: number): void {
    try {
      this.#commands.send({ command: COMMAND.KILL, id, slot: 0, fd: undefined }, false);
    } catch {
      // the zygote is gone, and its workers with it
    }
  }

  /** Ends the zygote and every worker, and waits until nothing of them is left. */
  async stop(): Promise<void> {
    if (this.alive) {
      this.alive = false;
      this.#events.ref();
      for (const worker of this.#workers.values()) worker.kill();
      // The end of the stream is the order to stop: it reaches the zygote behind any number of queued commands.
      trySys("shutdown", this.#commands.fd, SHUT_WR);
    }
    await this.ended;
  }

  #hear(event: ZygoteEvent): void {
    switch (event.event) {
      case "tree":
        try {
          for (const paths of event.cgroups as SlotPaths[]) this.#slots.push(Slot.open(paths));
        } catch (error) {
          // A keeper that failed next has removed its cgroups already: its own words, if they come, are the better ones.
          this.#failure = new JailError("cgroup", textOf(error), { cause: error });
        }
        this.#freeSlots = Array.from({ length: this.plan.slots }, (_, i) => this.plan.slots - 1 - i);
        return;
      case "ready":
        if (this.#failure !== undefined) return void this.stop();
        this.refusal = event.refusal;
        this.probes = event.probes;
        this.layers = this.plan.layers.map((report) => asProbed(report, event.probes));
        try {
          this.#inheritedFilters = filterCount(this.#pid);
        } catch (error) {
          this.#failure = new JailError("attestation", textOf(error), { cause: error });
          return void this.stop();
        }
        return this.#ready.resolve();
      case "exit": {
        const worker = this.#workers.get(event.id);
        if (worker === undefined) return;
        this.#claim(worker);
        this.#forget(worker, {
          status: event.status,
          cpuMs: (event.userUs + event.systemUs) / 1000,
          maxRssBytes: event.maxRssKb * 1024,
          refusedCall: event.nr,
        });
        return;
      }
      case "failed":
        this.#failure = new JailError(
          event.code in JAIL_ERRORS ? (event.code as JailErrorCode) : "zygote-start",
          event.message,
        );
    }
  }

  /** The zygote sends a worker's pidfd before it lets the worker go: who has heard of it finds the pidfd here. */
  #claim(worker: JailedWorker): void {
    while (this.#waitingForPidfd.has(worker.id)) {
      const record = this.#commands.receive(false);
      if (record === undefined) return;
      const owner = this.#waitingForPidfd.get(record.id);
      this.#waitingForPidfd.delete(record.id);
      // Without a descriptor we are out of them: a worker that we could not kill or look at is none of ours.
      if (record.fd === undefined) owner?.refuse();
      else if (owner === undefined) sys("close", record.fd);
      else owner.adopt(record.fd);
    }
  }

  #forget(worker: JailedWorker, exit: WorkerExit): void {
    this.#workers.delete(worker.id);
    if (this.alive && !worker.attested && worker.cgroup?.exists() === false) {
      // No later worker could join it either, and without it none may run.
      const message = `the cgroup ${worker.cgroup.paths.memory} has vanished`;
      this.#failure = new JailError("cgroup", message, {
        remedy: "Leave the cgroups named doublehull-* alone.",
      });
      this.alive = false; // not `stop`: runs that it takes with it are lost, nobody has killed them
      trySys("shutdown", this.#commands.fd, SHUT_WR);
    }
    worker.finish(exit);
    if (!this.alive) return;
    this.#freeSlots.push(worker.slot);
    this.onFree?.();
  }

  #gone(): void {
    const orderly = !this.alive;
    this.alive = false;
    const said = orderly ? "" : this.#lastWords();
    release(this.#commands.fd);
    release(this.#diagnostics);
    this.#ready?.reject(
      this.#failure ?? new JailError("zygote-start", `the zygote did not start. ${said}`.trim()),
    );
    for (const worker of this.#workers.values()) {
      worker.finish({ status: undefined, cpuMs: 0, maxRssBytes: 0, refusedCall: undefined });
    }
    this.#workers.clear();
    for (const slot of this.#slots) slot.close();
    this.#bury(1000);
  }

  /** Its descriptors are closed, its exit is a matter of moments; nobody else waits for it. */
  #bury(tries: number): void {
    const stillThere = trySys("wait4", this.#pid, 0, WAIT.WNOHANG, 0) === 0;
    if (stillThere && tries > 0) setTimeout(() => this.#bury(tries - 1), 1);
    else this.#end();
  }

  /** What the keeper wrote to its standard error, should it have crashed: at most 4 KiB. */
  #lastWords(): string {
    const buffer = new Memory(4096);
    const got = trySys("read", this.#diagnostics, buffer, 4096);
    return got > 0 ? `Its last words: ${buffer.bytes.toString("utf8", 0, got)}` : "";
  }
}

/** What a parked worker is held to until a job asks for less. */
export interface WorkerLimits {
  /** Memory that it may add to the image it began with, bytes. */
  dataBytes: number;
  /** Memory charged to its cgroup, bytes. */
  cgroupBytes: number;
  /** Seconds of CPU after which the kernel kills it, whatever the supervisor does. */
  cpuSeconds: number;
}

/** struct timespec, filled and read at once. */
const TIME = new Memory(16);

/** One forked process. `kill` and the clocks work from outside; nothing needs the worker's cooperation. */
export class JailedWorker {
  readonly socket: net.Socket;
  readonly exited: Promise<WorkerExit>;
  /** Host pid; 0 until the worker has parked and its pidfd was claimed. */
  pid = 0;
  /** CPU time used when it was armed, ms. */
  parkedCpuMs = 0;
  dead = false;
  /** It was found locked down, in its cgroup. */
  attested = false;
  #vmDataBytes = 0;
  #vmSizeBytes = 0;
  #armed: WorkerLimits | undefined;
  #imageRssBytes = 0;
  #pidfd = -1;
  #peakReset = false;
  #oomKillsBefore = 0;
  #finish!: (exit: WorkerExit) => void;

  constructor(
    readonly zygote: Zygote,
    readonly id: number,
    readonly slot: number,
    fd: number,
    readonly cgroup: Slot | undefined,
  ) {
    this.socket = new net.Socket({ fd, readable: true, writable: true });
    this.socket.unref();
    this.exited = new Promise((resolve) => (this.#finish = resolve));
  }

  /** Takes over the pidfd that the zygote sent. */
  adopt(raw: number): void {
    if (this.dead) return void sys("close", raw); // it has ended meanwhile
    let info: string;
    try {
      const pidfd = hold(raw);
      this.#pidfd = pidfd; // whatever follows, the worker's end closes it
      info = readProc(`/proc/self/fdinfo/${pidfd}`);
    } catch {
      return this.refuse();
    }
    this.pid = Number(/^Pid:\s*(-?\d+)/m.exec(info)?.[1] ?? 0);
  }

  /** Gives a worker up that we have no hold of. */
  refuse(): void {
    this.zygote.killByZygote(this.id);
  }

  /** In words, when `pid` is not known. */
  get whyNot(): string {
    return this.dead
      ? "the worker ended before it was ready"
      : "a worker's descriptor could not be taken: too many open files?";
  }

  /** Remembers what the image weighs and sets the limits from outside. man 2 prlimit */
  arm(seen: Attested, limits: WorkerLimits): void {
    this.#vmDataBytes = seen.vmDataBytes;
    this.#vmSizeBytes = seen.vmSizeBytes;
    this.#imageRssBytes = seen.vmPeakRssBytes;
    this.limit(limits);
    this.parkedCpuMs = this.cpuMs() ?? 0;
    if (this.cgroup !== undefined) {
      this.cgroup.setShare(100);
      this.#peakReset = this.cgroup.resetPeak();
      this.#oomKillsBefore = this.cgroup.oomKills();
    }
  }

  /** Sets what differs from what is armed already. */
  limit(limits: WorkerLimits): void {
    if (!this.zygote.plan.without.includes("rlimits")) {
      if (this.#armed?.dataBytes !== limits.dataBytes) {
        setLimit(this.pid, RLIMIT.DATA, this.#vmDataBytes + limits.dataBytes);
        setLimit(this.pid, RLIMIT.AS, this.#vmSizeBytes + limits.dataBytes);
      }
      if (this.#armed?.cpuSeconds !== limits.cpuSeconds) setLimit(this.pid, RLIMIT.CPU, limits.cpuSeconds);
    }
    this.zygote.limitSlot(this.slot, limits.cgroupBytes);
    this.#armed = limits;
  }

  /** Whether it has ended and been waited for; the news of that may still be on the way. man 2 kill "sig is 0" */
  get gone(): boolean {
    try {
      return this.dead || !process.kill(this.pid, 0);
    } catch (error) {
      return (error as NodeJS.ErrnoException).code === "ESRCH";
    }
  }

  /**
   * Lets others go first, for the rest of its life: it has a tenth of what a worker has that has just begun, against its
   * siblings where there is a cpu controller, else against every process. man 2 setpriority: nice 10 is a tenth
   */
  giveWay(): void {
    if (this.dead || this.pid === 0) return;
    try {
      if (this.cgroup?.setShare(10) !== true) trySys("setpriority", PRIO_PROCESS, this.pid, 10);
    } catch (error) {
      if (!(error instanceof CgroupError)) throw error; // its cgroup has gone, and it with it
    }
  }

  /** CPU time used since the fork, ms, by the kernel's clock of that process; undefined once it is gone. */
  cpuMs(): number | undefined {
    // CLOCK of another process: the complement of its pid, shifted, with CPUCLOCK_SCHED. man 3 clock_getcpuclockid
    if (this.pid === 0 || trySys("clock_gettime", (~this.pid << 3) | 2, TIME) < 0) return undefined;
    return Number(TIME.bytes.readBigInt64LE(0)) * 1000 + Number(TIME.bytes.readBigInt64LE(8)) / 1e6;
  }

  /**
   * Most memory that the run held, bytes: the cgroup's peak where it can be reset between workers, else the process's
   * high-water mark less that of the image (`exit` needed once the process is gone).
   */
  peakBytes(exit?: WorkerExit): number {
    if (this.#peakReset) {
      const peak = this.#ofCgroup((slot) => slot.peakBytes());
      if (peak !== undefined) return peak;
    }
    const rss = exit?.maxRssBytes ?? this.#highWaterMark();
    return Math.max(0, rss - this.#imageRssBytes);
  }

  #highWaterMark(): number {
    try {
      const match = /^VmHWM:\s*(\d+)/m.exec(fs.readFileSync(`/proc/${this.pid}/status`, "latin1"));
      return match === null ? 0 : Number(match[1]) * 1024;
    } catch {
      return 0; // it ended meanwhile: its exit tells
    }
  }

  /** Whether the cgroup killed for memory since this worker was armed. */
  oomKilled(): boolean {
    return (this.#ofCgroup((slot) => slot.oomKills()) ?? 0) > this.#oomKillsBefore;
  }

  /** With the zygote its keeper goes, and with that the cgroup: then there is nothing left to read. */
  #ofCgroup<T>(ask: (slot: Slot) => T): T | undefined {
    try {
      return this.cgroup === undefined ? undefined : ask(this.cgroup);
    } catch (error) {
      if (error instanceof CgroupError && error.code === "cgroup-read") return undefined;
      throw error;
    }
  }

  /** SIGKILL by pidfd: never another process of the same number. Harmless when it has ended. man 2 pidfd_send_signal */
  kill(): void {
    if (this.dead) return;
    if (this.#pidfd < 0 || trySys("pidfd_send_signal", this.#pidfd, SIG.KILL, 0, 0) === -1) {
      this.zygote.killByZygote(this.id);
    }
  }

  /** The zygote's word that the process ended. Closes what we hold of it. */
  finish(exit: WorkerExit): void {
    if (this.dead) return;
    this.dead = true;
    if (this.#pidfd >= 0) release(this.#pidfd);
    this.#finish(exit);
  }
}
