/**
 * Fixed records with a descriptor beside them. Node can neither send nor receive descriptors, so these sockets are
 * used raw, on both ends, and libuv never reads them. A record is 16 bytes, written and read in one call: the kernel
 * does not join a message that carries a descriptor with the next one. man 7 unix "SCM_RIGHTS", man 3 cmsg
 */
import { AF, CMSGHDR, IOVEC, MSG, MSGHDR, SCM_RIGHTS, SOCK, SOL_SOCKET } from "./abi/linux.js";
import { KernelError, Memory, sys, trySys } from "./libc.ffi.js";

export const RECORD_BYTES = 16;
const CONTROL_BYTES = 24; // CMSG_SPACE(sizeof(int))
const EAGAIN = 11;

/** What the supervisor asks of the zygote. A fork carries the worker's socket. */
export const COMMAND = { FORK: 1, KILL: 2, STOP: 3 } as const;

export interface CommandRecord {
  command: number;
  id: number;
  slot: number;
  /** Of a fork: what its main is told, 32 bits. */
  note?: number;
  fd: number | undefined;
}

const PAIR = new Memory(8);

/** A connected pair of stream sockets, both close-on-exec. The caller owns both. */
export function socketPair(): [number, number] {
  sys("socketpair", AF.UNIX, SOCK.STREAM | SOCK.CLOEXEC, 0, PAIR);
  return [PAIR.bytes.readInt32LE(0), PAIR.bytes.readInt32LE(4)];
}

export class DescriptorSocket {
  readonly #record = new Memory(RECORD_BYTES);
  readonly #control = new Memory(CONTROL_BYTES);
  readonly #message = new Memory(MSGHDR.size);
  readonly #vector = new Memory(IOVEC.size);

  constructor(readonly fd: number) {
    this.#vector.bytes.writeBigUInt64LE(BigInt(this.#record.address), IOVEC.base);
    this.#vector.bytes.writeBigUInt64LE(BigInt(RECORD_BYTES), IOVEC.len);
    this.#message.bytes.writeBigUInt64LE(BigInt(this.#vector.address), MSGHDR.iov);
    this.#message.bytes.writeBigUInt64LE(1n, MSGHDR.iovlen);
  }

  /** Sends one record; `false` if the socket is full and `wait` is not asked for. Throws KernelError (EPIPE, …). */
  send(record: CommandRecord, wait: boolean): boolean {
    const { bytes } = this.#record;
    bytes.writeUInt32LE(record.command, 0);
    bytes.writeUInt32LE(record.id, 4);
    bytes.writeUInt32LE(record.slot, 8);
    bytes.writeUInt32LE(record.note ?? 0, 12);
    if (record.fd !== undefined) {
      const control = this.#control.bytes;
      control.writeBigUInt64LE(BigInt(CMSGHDR.data + 4), CMSGHDR.len);
      control.writeInt32LE(SOL_SOCKET, CMSGHDR.level);
      control.writeInt32LE(SCM_RIGHTS, CMSGHDR.type);
      control.writeInt32LE(record.fd, CMSGHDR.data);
    }
    this.#aim(record.fd === undefined ? 0 : CONTROL_BYTES);
    const sent = trySys("sendmsg", this.fd, this.#message, MSG.NOSIGNAL | (wait ? 0 : MSG.DONTWAIT));
    if (sent === -EAGAIN) return false;
    if (sent < 0) throw new KernelError("sendmsg", -sent);
    return true;
  }

  /** One record, or undefined at the end of the stream (or, without `wait`, when there is none). The caller owns fd. */
  receive(wait: boolean): CommandRecord | undefined {
    this.#aim(CONTROL_BYTES);
    const flags = MSG.CMSG_CLOEXEC | (wait ? MSG.WAITALL : MSG.DONTWAIT);
    const got = trySys("recvmsg", this.fd, this.#message, flags);
    if (got === 0 || got === -EAGAIN) return undefined;
    if (got < 0) throw new KernelError("recvmsg", -got);
    if (got !== RECORD_BYTES) throw new Error(`a torn record of ${got} bytes`);
    const carried = this.#message.bytes.readBigUInt64LE(MSGHDR.controllen) >= BigInt(CMSGHDR.data + 4);
    const { bytes } = this.#record;
    return {
      command: bytes.readUInt32LE(0),
      id: bytes.readUInt32LE(4),
      slot: bytes.readUInt32LE(8),
      note: bytes.readUInt32LE(12),
      fd: carried ? this.#control.bytes.readInt32LE(CMSGHDR.data) : undefined,
    };
  }

  #aim(controlBytes: number): void {
    const message = this.#message.bytes;
    message.writeBigUInt64LE(controlBytes === 0 ? 0n : BigInt(this.#control.address), MSGHDR.control);
    message.writeBigUInt64LE(BigInt(controlBytes), MSGHDR.controllen);
    message.writeInt32LE(0, MSGHDR.flags);
  }
}
