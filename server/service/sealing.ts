/**
 * The key that tenants' secrets are sealed with: a file of 32 bytes beside the database, never in it. Who copies the database
 * without it has no secret.
 *
 * The rule: a database has one key. It keeps a value that only this key makes, so a node with another one ends at its
 * start, and not at somebody's first secret.
 */
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import fs from "node:fs";
import { SandboxError } from "../errors.js";
import { first, type Database } from "./database.js";

const KEY_BYTES = 32;
const FACT = "sealing-check";

const REMEDY =
  "Put a copy of the key there that the other nodes have, or name it with --sealing-key. Where it is lost, so are the secrets: stop all nodes, then `DELETE FROM secrets; DELETE FROM service_facts WHERE name = 'sealing-check'` in the database.";

/**
 * The key in this file, which is made if it is not there and the database has none yet. Rejects with SandboxError
 * `host-cannot` and a remedy.
 */
export async function sealingKey(db: Database, file: string): Promise<Buffer> {
  const made = (await checkOf(db)) === undefined && make(file);
  const key = read(file);
  const check = createHmac("sha256", key).update("doublehull: check of a sealing key").digest("hex");
  await db.run("INSERT INTO service_facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", FACT, check); // prettier-ignore
  const known = await checkOf(db);
  if (known !== undefined && known.length === check.length && timingSafeEqual(Buffer.from(known), Buffer.from(check))) return key; // prettier-ignore
  if (made) fs.unlinkSync(file); // another node was first, and nothing has been sealed with it
  throw cannot(`${file} is another sealing key than the database's`, REMEDY);
}

const checkOf = async (db: Database): Promise<string | undefined> =>
  (await first<{ value: string }>(db, "SELECT value FROM service_facts WHERE name = ?", FACT))?.value;

/** Whether it was made now. Whole, or not there: another node may look for it at the same moment. */
function make(file: string): boolean {
  const beside = `${file}.${randomBytes(6).toString("hex")}`;
  try {
    fs.writeFileSync(beside, randomBytes(KEY_BYTES), { flag: "wx", mode: 0o600, flush: true });
    fs.linkSync(beside, file);
    return true;
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === "EEXIST" || fs.existsSync(file)) return false; // in a directory that is only read, say
    throw cannot(`the sealing key ${file} cannot be made (${code ?? message})`, "Check the directory that --sealing-key names.", cause); // prettier-ignore
  } finally {
    fs.rmSync(beside, { force: true });
  }
}

function read(file: string): Buffer {
  let fd: number | undefined;
  try {
    fd = fs.openSync(file, "r");
    if ((fs.fstatSync(fd).mode & 0o007) !== 0)
      throw cannot(`the sealing key ${file} is open to other users`, "chmod 600 it, or 640 for a group.");
    const bytes = Buffer.alloc(KEY_BYTES + 1); // one more tells whether there are more
    if (fs.readSync(fd, bytes) === KEY_BYTES) return bytes.subarray(0, KEY_BYTES);
  } catch (cause) {
    if (cause instanceof SandboxError) throw cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    throw cannot(`the sealing key ${file} cannot be read (${code ?? message})`, REMEDY, cause);
  } finally {
    if (fd !== undefined) fs.closeSync(fd);
  }
  throw cannot(`${file} is no sealing key: it must have ${KEY_BYTES} bytes`, REMEDY);
}

const cannot = (message: string, remedy: string, cause?: unknown): SandboxError =>
  new SandboxError("host-cannot", message, { remedy, cause, field: "sealing-key" });
