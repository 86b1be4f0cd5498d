/**
 * A file that is written when a run is over, and must be known to be writable before it begins: a run whose result
 * cannot be kept need not be made. The text stands whole in a file beside it before it takes the name, so a reader sees
 * all of it or what was there before; and what is no regular file (a device, a link to elsewhere) is never replaced.
 *
 * The file beside it has a name that no script can spell or list: one that may write in that directory could put a
 * policy or a recording of its own in its place.
 */
import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { TEMPORARY_PREFIX } from "../hostapi/files-path.js";

export class PendingFile {
  readonly #target: string;
  readonly #temporary: string;
  readonly #replace: boolean;
  #fd: number | undefined;

  /**
   * Makes the file beside `target`. `replace`: whether an older one may give way. The caller commits or discards it.
   * Throws Error, with the errno's name in `code` where the kernel refused.
   */
  constructor(
    readonly target: string,
    { mode, replace }: { mode: number; replace: boolean },
  ) {
    const there = fs.lstatSync(target, { throwIfNoEntry: false });
    if (there !== undefined && !replace) throw new Error("it exists already");
    if (there?.isDirectory() === true) throw new Error("it is a directory");
    if (there?.isFile() === false) throw new Error("it is no regular file");
    this.#target = path.resolve(target);
    this.#replace = replace;
    const name = TEMPORARY_PREFIX + randomBytes(16).toString("hex");
    this.#temporary = path.join(path.dirname(this.#target), name);
    this.#fd = fs.openSync(this.#temporary, "wx", mode);
  }

  /** Gives the text its name, at once. Throws Error as the constructor does; then nothing stays. */
  commit(text: string): void {
    if (this.#fd === undefined) throw new Error("it was given up");
    try {
      fs.writeFileSync(this.#fd, text);
      fs.fsyncSync(this.#fd);
      // link(2) fails if the name was taken meanwhile; rename(2) replaces what has it.
      if (this.#replace) fs.renameSync(this.#temporary, this.#target);
      else fs.linkSync(this.#temporary, this.#target);
    } finally {
      this.discard();
    }
  }

  /** Leaves everything as it was. Idempotent. */
  discard(): void {
    if (this.#fd === undefined) return;
    fs.closeSync(this.#fd);
    this.#fd = undefined;
    fs.rmSync(this.#temporary, { force: true }); // after a rename there is none
  }
}
