/**
 * The capability "files": a directory that a script may read, or write too. It is a reference to a directory, not to
 * a name: the root is opened once, and if somebody moves it the capability goes with it.
 *
 * The rule: no text is ever compared to find out where a path leads. The kernel is handed the path together with the
 * root's descriptor and refuses whatever leaves it, through `..`, a symbolic link, a mount or a race of either; from
 * then on there are only descriptors (THREATS 2.3: vm2, Deno and Node's permission model all fell to paths that were
 * checked and then opened). That power is an argument, `Beneath`, so that nothing here knows the kernel.
 *
 * What a script should know:
 * - Symbolic links are not followed, anywhere; as things they are `other`, and can only be removed. So are fifos,
 *   sockets and devices, which are never opened.
 * - `write` replaces: the new content stands whole in a file of its own before it takes the name, and a reader sees the
 *   old or the new. After a power failure it is one of the two. The new file has mode 0600 (a directory 0700), never
 *   more, whatever the old one had. `append` changes a file in place and is not whole in that sense.
 *
 * What an embedder should know:
 * - A hard link in the root to a file elsewhere *is* that file: it can be read. It cannot be written: `write` gives the
 *   name to a new file, and `append` refuses a file that has several names. No script can make one.
 * - The quota counts what this capability and those made of it by `sub` add, over all runs and for the life of the
 *   object: lengths of files, and files and directories by number. While a file is replaced the old and the new one
 *   both count, so the disk never holds more than was allowed; what is removed or replaced is given back, to zero at
 *   most. What a run may move in all is `Capability.budget`'s.
 * - A capability has at most 8 files open at once; further calls wait. It holds one descriptor until `close()`.
 */
import { z } from "zod";
import {
  bytes,
  type Call,
  Capability,
  capability,
  CapabilityError,
  type Method,
  method,
  type RunContext,
} from "./capability.js";
import { checkOptions, type Checks, needed, oneOf, wholeNumber } from "./options.js";
import { Account } from "./files-account.js";
import { about, type Beneath, Directory, failure, sizeOf } from "./files-directory.js";
import { guestPath, pathFault } from "./files-path.js";

export type { Beneath, FileFacts } from "./files-directory.js";

export interface FilesOptions {
  /** Path of an existing directory, opened once. */
  root: string;
  /** Default "ro": the methods that write do not exist. */
  mode?: "ro" | "rw";
  /** With rw, bytes that may be added to what is there. Default 64 MiB: a script must not fill the disk. */
  quotaBytes?: number;
  /** With rw, files and directories that may be added. Default 1000: nor use up its inodes. */
  maxFiles?: number;
  /** With rw, bytes of the largest file that may be written. Default 16 MiB. */
  maxFileBytes?: number;
}

const MODE = oneOf("ro", "rw");
const OPTIONS: Checks<FilesOptions> = {
  root: needed((value) =>
    typeof value === "string" && value !== "" && !value.includes("\0")
      ? undefined
      : "must be the path of a directory",
  ),
  mode: MODE,
  quotaBytes: wholeNumber(0),
  maxFiles: wholeNumber(0),
  maxFileBytes: wholeNumber(0),
};
const DEFAULTS = { quotaBytes: 64 << 20, maxFiles: 1000, maxFileBytes: 16 << 20 } as const;

/** Text that has no UTF-8 would be stored as something else. */
function encoded(data: string | Uint8Array, call: Call): Uint8Array {
  if (typeof data !== "string") return data;
  if (/\p{Surrogate}/u.test(data)) {
    throw new CapabilityError("bad-argument", `${call.label}: data holds a lone surrogate: it has no UTF-8`);
  }
  return Buffer.from(data, "utf8");
}

const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const kind = z.enum(["file", "directory", "other"]);
const nothing = z.void();

/** What the audit hears before the act. */
const audit = ({ path }: { path?: string | undefined }) => ({ path: path ?? "." });

function reading(directory: Directory): Record<string, Method> {
  return {
    read: method({
      doc: "The bytes of a file.",
      params: { path: guestPath },
      returns: bytes(),
      effect: "read",
      audit,
      run: ({ path }, call) => about(call, path, () => directory.read(path, call)),
    }),
    readText: method({
      doc: "The text of a file, which must be UTF-8; a byte-order mark is part of it.",
      params: { path: guestPath },
      returns: z.string(),
      effect: "read",
      audit,
      run: ({ path }, call) =>
        about(call, path, async () => {
          const content = await directory.read(path, call);
          try {
            return text.decode(content);
          } catch (error) {
            throw failure(call, "bad-argument", path, "is not UTF-8: use read", error);
          }
        }),
    }),
    list: method({
      doc: "What is in a directory, without a path in the granted one, sorted by name. The size is in bytes, 0 for what is no file.",
      params: { path: guestPath.optional() },
      returns: z.array(z.object({ name: z.string(), type: kind, size: z.number() })),
      effect: "read",
      audit,
      run: ({ path }, call) => about(call, path ?? ".", () => directory.list(path ?? ".", call)),
    }),
    stat: method({
      doc: "What has that name, its size in bytes and when it was changed, in milliseconds since 1970.",
      params: { path: guestPath },
      returns: z.object({ type: kind, size: z.number(), modifiedMs: z.number() }),
      effect: "read",
      audit,
      run: ({ path }, call) =>
        about(call, path, () => {
          const facts = directory.stat(path);
          return { type: facts.type, size: sizeOf(facts), modifiedMs: facts.modifiedMs };
        }),
    }),
    exists: method({
      doc: "Whether anything has that name, and can be asked about.",
      params: { path: guestPath },
      returns: z.boolean(),
      effect: "read",
      audit,
      run: async ({ path }, call) => {
        try {
          await about(call, path, () => directory.stat(path));
          return true;
        } catch (error) {
          const known = error instanceof CapabilityError && ["not-found", "denied"].includes(error.code);
          if (known) return false;
          throw error;
        }
      },
    }),
  };
}

function writing(directory: Directory): Record<string, Method> {
  const data = z.union([z.string(), bytes()], "must be a string or a Uint8Array");
  return {
    write: method({
      doc: "Makes a file of exactly this content, in place of the one there may be. With ifAbsent it fails if there is one.",
      params: {
        path: guestPath,
        data,
        options: z.strictObject({ ifAbsent: z.boolean().optional() }).optional(),
      },
      returns: nothing,
      effect: "write",
      audit,
      run: ({ path, data, options }, call) =>
        about(call, path, () => directory.write(path, encoded(data, call), options?.ifAbsent ?? false, call)),
    }),
    append: method({
      doc: "Adds to the end of a file, which is made if there is none.",
      params: { path: guestPath, data },
      returns: nothing,
      effect: "write",
      audit,
      run: ({ path, data }, call) =>
        about(call, path, () => directory.append(path, encoded(data, call), call)),
    }),
    mkdir: method({
      doc: "Makes a directory. With recursive also those above it, and it may exist already.",
      params: {
        path: guestPath,
        options: z.strictObject({ recursive: z.boolean().optional() }).optional(),
      },
      returns: nothing,
      effect: "write",
      audit,
      run: ({ path, options }, call) =>
        about(call, path, () => directory.makeDirectory(path, options?.recursive ?? false, call)),
    }),
    remove: method({
      doc: "Removes a file or an empty directory.",
      params: { path: guestPath },
      returns: nothing,
      effect: "write",
      audit,
      run: ({ path }, call) => about(call, path, () => directory.remove(path, call)),
    }),
    rename: method({
      doc: "Gives a file or directory another name, which nothing may have yet.",
      params: { from: guestPath, to: guestPath },
      returns: nothing,
      effect: "write",
      audit: ({ from, to }) => ({ path: from, to }),
      run: ({ from, to }, call) => about(call, from, () => directory.rename(from, to, call)),
    }),
  };
}

interface Held {
  readonly directory: Directory;
  readonly mode: "ro" | "rw";
}

/** Beside the objects, for their base class freezes them. */
const held = new WeakMap<FilesCapability, Held>();

export class FilesCapability extends Capability {
  /** Made by `filesWith` and `sub`. */
  constructor(opened: Held, bounds: readonly string[]) {
    const { directory, mode } = opened;
    const base = capability("files", {
      ...reading(directory),
      ...(mode === "rw" ? writing(directory) : {}),
    });
    // By way of `base`, which has the audit line written before the act.
    const invoke = (name: string, args: Readonly<Record<string, unknown>>, call: Call) =>
      base.invoke(name, args, call);
    super({ name: base.name, methods: base.methods, bounds, invoke });
    held.set(this, opened);
  }

  /**
   * A weaker one: a directory in this one, and, if so asked, only to read. It shares the quota, holds a descriptor of
   * its own until its own `close`, and goes on when this one is closed. Throws TypeError for a path that is no
   * directory in this one, for a mode beyond this one's, and when this one is closed.
   */
  sub(dir: string, options: { mode?: "ro" | "rw" } = {}): FilesCapability {
    const { directory, mode: own } = held.get(this) as Held;
    const { mode = own } = checkOptions("files.sub", options, { mode: MODE });
    if (mode === "rw" && own === "ro") {
      throw new TypeError('files.sub: mode cannot be "rw" where the capability is read-only');
    }
    const fault = typeof dir === "string" ? pathFault(dir) : "must be a string";
    if (fault !== undefined) throw new TypeError(`files.sub: the path ${fault}`);
    let root: number;
    try {
      root = directory.power.openDirectory(directory.root, dir);
    } catch (cause) {
      throw new TypeError(`files.sub: "${dir}" is not a directory that can be opened (${reason(cause)})`, {
        cause,
      });
    }
    const weakened = mode === own ? [] : ["read-only"];
    return new FilesCapability({ directory: new Directory(directory.power, root, directory.account), mode }, [
      ...this.bounds,
      `only beneath "${dir}"`,
      ...weakened,
    ]);
  }

  /**
   * Without a run: gives the directory back, for good; calls that begin later fail with `revoked`, calls under way
   * finish. With a run, it is the broker's word that the run is over, and nothing is kept by run here.
   */
  override close(run?: RunContext): void {
    if (run === undefined) (held.get(this) as Held).directory.close();
    else super.close(run);
  }
}

/**
 * Makes the capability out of the power to open files, which it is no business of this file to have. What comes back
 * throws TypeError naming the option that is wrong; a root that is absent or no directory is one. The caller closes it.
 */
export function filesWith(power: Beneath): (options: FilesOptions) => FilesCapability {
  return (options) => {
    checkOptions("files", options, OPTIONS);
    const { root, mode = "ro", quotaBytes, maxFiles, maxFileBytes } = options;
    const [idle] = Object.entries({ quotaBytes, maxFiles, maxFileBytes }).filter(
      ([, value]) => value !== undefined,
    );
    if (mode === "ro" && idle !== undefined) throw new TypeError(`files: ${idle[0]} goes with mode "rw"`);
    let fd: number;
    try {
      fd = power.openRoot(root);
    } catch (cause) {
      throw new TypeError(`files: root ${root} is not a directory that can be opened (${reason(cause)})`, {
        cause,
      });
    }
    const account = new Account({
      quotaBytes: quotaBytes ?? DEFAULTS.quotaBytes,
      maxFiles: maxFiles ?? DEFAULTS.maxFiles,
      maxFileBytes: maxFileBytes ?? DEFAULTS.maxFileBytes,
    });
    const bound = `at most ${account.limits.quotaBytes} bytes and ${account.limits.maxFiles} files more`;
    return new FilesCapability({ directory: new Directory(power, fd, account), mode }, [
      mode === "ro" ? "read-only" : bound,
    ]);
  };
}

const reason = (error: unknown): string => (error instanceof Error ? error.message : String(error));
