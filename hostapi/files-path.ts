/**
 * How a script may spell a file: relative, with "/", in exactly one way. The kernel decides where a path leads; this
 * decides what a path is, so that a rule of the embedder's (`where`), the audit line and the kernel all speak of the
 * same file. Two spellings of one name are how rules by name were walked around (Deno CVE-2026-49401: Unicode forms).
 *
 * Refused, although Linux would take some: empty and "." components (hence "a//b", "a/", "./a"), "..", a leading "/",
 * a backslash (a separator wherever the files go next: Windows, SMB, archives), control characters C0 and C1 with DEL
 * (they forge terminals and logs; NUL ends a C string), text that is not in Unicode's normal form C, lone surrogates
 * (they have no UTF-8), components over 255 bytes and paths over 4095 (NAME_MAX, PATH_MAX), more than 64 components,
 * and names that begin like our own temporary files. Upper and lower case are left alone: on a file system that folds
 * case, a rule by name must do so as well.
 */
import { z } from "zod";

/** Of files that are being written; a killed host may leave one, which anyone may then delete. */
export const TEMPORARY_PREFIX = ".doublehull-";

const MAX_PATH_BYTES = 4095;
const MAX_NAME_BYTES = 255;
const MAX_COMPONENTS = 64;

/** What is wrong with a path, to follow the word "path"; undefined if nothing is. */
export function pathFault(path: string): string | undefined {
  // In UTF-16 units first: nothing below may be handed a text of any length.
  if (path.length > MAX_PATH_BYTES || Buffer.byteLength(path) > MAX_PATH_BYTES) {
    return `must be at most ${MAX_PATH_BYTES} bytes`;
  }
  if (path === "") return "must not be empty";
  if (path.startsWith("/")) return 'must be relative, without a "/" in front';
  const components = path.split("/");
  if (components.length > MAX_COMPONENTS) return `must have at most ${MAX_COMPONENTS} components`;
  for (const name of components) {
    const fault = nameFault(name);
    if (fault !== undefined) return fault;
  }
  return undefined;
}

/** The same of one component. */
export function nameFault(name: string): string | undefined {
  if (name === "") return 'must not have an empty component ("a//b", "a/")';
  if (name === "." || name === "..") return `must not have a "${name}" component`;
  if (name.includes("\\")) return 'must not hold a backslash: "/" separates';
  if (/[\u0000-\u001f\u007f-\u009f]/.test(name)) return "must not hold control characters";
  if (/\p{Surrogate}/u.test(name)) return "must not hold a lone surrogate";
  if (name.normalize("NFC") !== name) return "must be in Unicode normal form C";
  if (Buffer.byteLength(name) > MAX_NAME_BYTES) {
    return `must have components of at most ${MAX_NAME_BYTES} bytes`;
  }
  if (name.startsWith(TEMPORARY_PREFIX)) return `must not use names that begin with ${TEMPORARY_PREFIX}`;
  return undefined;
}

/** The directory that a path names its last component in ("." for the first one's), and that component. */
export function split(path: string): { parent: string; name: string } {
  const at = path.lastIndexOf("/");
  return at < 0 ? { parent: ".", name: path } : { parent: path.slice(0, at), name: path.slice(at + 1) };
}

export const guestPath = z.string().superRefine((path, context) => {
  const fault = pathFault(path);
  if (fault !== undefined) context.addIssue({ code: "custom", message: fault });
});
