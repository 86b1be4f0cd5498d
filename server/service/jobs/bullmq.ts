/**
 * The queue beyond one process: BullMQ on Redis or PostgreSQL. The one file that knows it. What it holds can be lost:
 * the table has every job, and offers it again.
 */
import type { Queue, Worker } from "bullmq";
import type { FastifyBaseLogger } from "fastify";
import { SandboxError } from "../../errors.js";
import { withoutPassword } from "../database.js";
import { BUSY_MS, type JobQueue, type Ticket, type Work } from "./queue.js";

const NAME = "jobs";
/** Of keys in Redis, and the schema in PostgreSQL. */
const PREFIX = "doublehull";
/** For the server to answer at the start, and for each addition, ms. */
const READY_MS = 10_000;
const ADD_MS = 3000;
/** BullMQ's bound; those beyond it are in line as they came. */
const MAX_PRIORITY = 2 ** 21 - 1;
/** A worker that has not renewed its lock for so long has lost its job, ms. */
const LOCK_MS = 30_000;

/** Rejects with SandboxError (`bad-option`, `host-cannot`), and a remedy; nothing is left open then. */
export async function openQueue(url: string, logger: FastifyBaseLogger): Promise<JobQueue> {
  if (!/^(?:rediss?|postgres(?:ql)?):\/\//.test(url)) {
    const message = `the queue must be "redis://..." or "postgres://...", not "${withoutPassword(url)}"`;
    throw new SandboxError("bad-option", message, { field: "queue" });
  }
  const opened = url.startsWith("redis") ? await onRedis(url) : await onPostgres(url);
  const { queue, worker: makeWorker, close } = opened;
  const heard = (err: Error) => logger.debug({ err }, "queue");
  queue.on("error", heard);
  try {
    await within(READY_MS, queue.waitUntilReady());
  } catch (cause) {
    await Promise.allSettled([within(ADD_MS, queue.close()), close()]);
    const message = `queue: ${withoutPassword(url)} cannot be used (${(cause as Error).message})`;
    throw new SandboxError("host-cannot", message, { cause, remedy: "Check that the server runs and lets this user in." }); // prettier-ignore
  }
  return new DistributedQueue(queue, makeWorker, close, heard);
}

type Processor = (job: { id?: string; data: Ticket; moveToDelayed(timestamp: number, token?: string): Promise<void> }, token?: string) => Promise<void>; // prettier-ignore
interface Opened {
  queue: Queue<Ticket>;
  worker: (concurrency: number, process: Processor) => Worker<Ticket>;
  close: () => Promise<void>;
}

async function loaded<T>(what: string, load: () => Promise<T>): Promise<T> {
  try {
    return await load();
  } catch (cause) {
    const remedy = `Install them beside doublehull: \`npm install ${what}\`.`;
    throw new SandboxError("host-cannot", `queue: it needs the packages ${what.replace(" ", " and ")}`, { cause, remedy }); // prettier-ignore
  }
}

const WORKER = { lockDuration: LOCK_MS, stalledInterval: LOCK_MS / 2, removeOnComplete: { count: 0 }, removeOnFail: { count: 0 } }; // prettier-ignore

async function onRedis(url: string): Promise<Opened> {
  const [bullmq, ioredis] = await loaded("bullmq ioredis", () =>
    Promise.all([import("bullmq"), import("ioredis")]),
  );
  // Who adds is told at once that the server is gone; who waits for work waits for it to come back.
  const adding = new ioredis.Redis(url, {
    maxRetriesPerRequest: 1,
    connectTimeout: ADD_MS,
    lazyConnect: true,
  });
  const taking = new ioredis.Redis(url, { maxRetriesPerRequest: null, lazyConnect: true });
  for (const connection of [adding, taking]) connection.on("error", () => {}); // heard through the queue and worker
  return {
    queue: new bullmq.Queue<Ticket>(NAME, { connection: adding, prefix: PREFIX }),
    worker: (concurrency, process) => new bullmq.Worker<Ticket>(NAME, process, { ...WORKER, connection: taking, prefix: PREFIX, concurrency }), // prettier-ignore
    close: () => {
      adding.disconnect();
      taking.disconnect();
      return Promise.resolve();
    },
  };
}

async function onPostgres(url: string): Promise<Opened> {
  const [bullmq] = await loaded("bullmq pg", () => Promise.all([import("bullmq"), import("pg")]));
  const { Queue, Worker } = bullmq.withBackend(bullmq.createPostgresBackend);
  const connection = {
    connectionString: url,
    schema: PREFIX,
    migrate: true,
    connectionTimeoutMillis: ADD_MS,
  };
  return {
    queue: new Queue<Ticket>(NAME, { connection }) as unknown as Queue<Ticket>,
    worker: (concurrency, process) => new Worker<Ticket>(NAME, process, { ...WORKER, connection, concurrency }) as unknown as Worker<Ticket>, // prettier-ignore
    close: () => Promise.resolve(),
  };
}

class DistributedQueue implements JobQueue {
  #worker: Worker<Ticket> | undefined;
  /** Handed out, and not over. */
  #out = 0;
  #idle: (() => void) | undefined;
  #stopped: Promise<void> | undefined;

  constructor(
    private readonly queue: Queue<Ticket>,
    private readonly makeWorker: Opened["worker"],
    private readonly closeConnections: Opened["close"],
    private readonly heard: (error: Error) => void,
  ) {}

  async add(tickets: readonly Ticket[]): Promise<void> {
    await within(
      ADD_MS,
      this.queue.addBulk(
        tickets.map((ticket) => ({
          name: NAME,
          data: ticket,
          opts: {
            jobId: `${ticket.job}.${ticket.attempt}`, // there once, however often it is added
            priority: Math.min(ticket.turn + 1, MAX_PRIORITY),
            removeOnComplete: true,
            removeOnFail: true,
          },
        })),
      ),
    );
  }

  start(concurrency: number, work: Work): void {
    this.#worker = this.makeWorker(concurrency, async (job, token) => {
      this.#out++;
      const result = await work(job.data);
      this.#out--;
      if (this.#out === 0) this.#idle?.();
      if (result === "over") return;
      const { DelayedError } = await import("bullmq");
      await job.moveToDelayed(Date.now() + BUSY_MS, token);
      throw new DelayedError();
    });
    this.#worker.on("error", this.heard);
  }

  stop(): Promise<void> {
    return (this.#stopped ??= this.#stop());
  }

  async #stop(): Promise<void> {
    const worker = this.#worker;
    const closing = worker?.close(); // from now on it hands out nothing
    if (this.#out > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
    // Where the server is gone it cannot be told, and that does not hold up the end.
    try {
      await within(ADD_MS, Promise.all([closing, this.queue.close()]));
    } catch (error) {
      this.heard(error as Error);
      void worker?.disconnect().catch(this.heard);
    }
    await this.closeConnections();
  }
}

/** Rejects after so long. */
async function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms / 1000} s`)), ms);
  });
  promise.catch(() => {}); // it may come after
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
