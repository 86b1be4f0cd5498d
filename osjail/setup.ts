/**
 * What the supervisor tells a keeper before anything else, on the commands' socket: a length of 4 bytes, little
 * endian, and a JSON text. It does not come as an argument, which every process on the host may read.
 */
import fs from "node:fs";

/** The frame for `sendto`. */
export function encodeSetup(setup: Readonly<Record<string, unknown>>): Uint8Array {
  const text = Buffer.from(JSON.stringify(setup));
  const frame = Buffer.alloc(4 + text.length);
  frame.writeUInt32LE(text.length, 0);
  text.copy(frame, 4);
  return frame;
}

/** Blocks until the setup is there; undefined when the supervisor has gone instead. */
export function readSetup(fd: number): unknown {
  const exactly = (bytes: Buffer): boolean => {
    for (let at = 0; at < bytes.length;) {
      const got = fs.readSync(fd, bytes, at, bytes.length - at, null);
      if (got === 0) return false;
      at += got;
    }
    return true;
  };
  const length = Buffer.alloc(4);
  if (!exactly(length)) return undefined;
  const text = Buffer.alloc(length.readUInt32LE(0));
  return exactly(text) ? JSON.parse(text.toString()) : undefined;
}
