/**
 * What attacks on the wire share: the attacker's tools, as source text that runs inside the jail, and a balance for the
 * supervisor's memory, which is what most of them are after.
 */
import v8 from "node:v8";
import vm from "node:vm";

/** Tools for the attacker: frames as hostapi/wire.ts describes them, and lies of all kinds. */
export const TOOLS = `
  const put = (bytes) => {
    const at = memory(bytes);
    for (let sent = 0; sent < bytes.length; ) {
      const { ret, errno } = syscall("write", 3, at.address + sent, bytes.length - sent);
      if (ret > 0) sent += ret; else if (errno !== 11 && errno !== 4) return errno;
    }
  };
  const header = (textBytes, blobBytes, kind) => {
    const head = Buffer.alloc(12);
    head.writeUInt32LE(textBytes, 0); head.writeUInt32LE(blobBytes, 4); head.writeUInt32LE(kind, 8);
    return head;
  };
  const frame = (kind, text, blob = Buffer.alloc(0)) => {
    const body = Buffer.from(text);
    return Buffer.concat([header(body.length, blob.length, kind), body, blob]);
  };
  const JOB = 1, CALL = 2, REPLY = 3, RELEASE = 4, LOG = 5, RESULT = 6, PARKED = 7;
  const call = (id, method = "x", args = '["a"]', ref = 0) => frame(CALL, '[[' + id + ',' + ref + ',' + JSON.stringify(method) + ',' + args + ']]');
  const hang = () => { for (;;) syscall("read", 3, memory(4096), 0); };
  /** Frames of the host's, one after the other: [kind, parsed text, bytes]. Blocks; undefined at the end. */
  const room = memory(65536);
  let [from, to] = [0, 0];
  const drop = (count, into) => {
    for (let done = 0; done < count; ) {
      if (from === to) {
        const { ret } = syscall("read", 3, room, 65536);
        if (ret === 0) return undefined;
        if (ret > 0) [from, to] = [0, ret];
        continue;
      }
      const part = Math.min(count - done, to - from);
      if (into !== undefined) room.bytes.copy(into, done, from, from + part);
      from += part;
      done += part;
    }
    return into;
  };
  const take = (count) => drop(count, Buffer.alloc(count));
  const hear = () => {
    const head = take(12);
    if (head === undefined) return undefined;
    const body = take(head.readUInt32LE(0) + head.readUInt32LE(4));
    return [head.readUInt32LE(8), JSON.parse(body.subarray(0, head.readUInt32LE(0)).toString()), body.subarray(head.readUInt32LE(0))];
  };
  /** What the owned engine tells of env: the references that this run was granted. */
  const ref = (name) => env.find((entry) => entry[0] === name)[2];
  const wireOf = (value) => Array.isArray(value) ? ["a", ...value.map(wireOf)] : value;
  const tell = (value) => { put(frame(RESULT, '["ok",' + JSON.stringify(wireOf(value)) + ']')); hang(); };
  const die = (code) => syscall("exit_group", code);
`;

v8.setFlagsFromString("--expose-gc");
const collect = vm.runInNewContext("gc") as () => void;

/** Bytes that are alive in the supervisor. */
export function heldBytes(): number {
  collect();
  const { external, heapUsed } = process.memoryUsage();
  return external + heapUsed;
}

/** Runs, and says the most that was held meanwhile: looked at now and then, since each look is a collection. */
export async function weighed<T>(run: () => Promise<T>): Promise<{ value: T; peakBytes: number }> {
  const before = heldBytes();
  let peakBytes = 0;
  const sampling = setInterval(() => (peakBytes = Math.max(peakBytes, heldBytes() - before)), 50);
  try {
    const value = await run();
    return { value, peakBytes: Math.max(peakBytes, heldBytes() - before) };
  } finally {
    clearInterval(sampling);
  }
}
