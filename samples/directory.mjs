// node samples/directory.mjs
// files: one directory, to read or to write. Nothing leads out of it: no "..", no absolute path, no symbolic link.
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Sandbox, unwrap } from "doublehull";
import { files } from "doublehull/hostapi";

const root = fs.mkdtempSync(path.join(os.tmpdir(), "doublehull-sample-"));
fs.mkdirSync(path.join(root, "notes"));
fs.mkdirSync(path.join(root, "out"));
fs.writeFileSync(path.join(root, "notes/today.txt"), "buy string\n");
fs.symlinkSync("/etc/passwd", path.join(root, "notes/link.txt"));

const notes = files({ root: path.join(root, "notes") }); // opened now; closed below
const out = files({ root: path.join(root, "out"), mode: "rw", quotaBytes: 100 });
const sandbox = await Sandbox.create();
try {
  const outcome = await sandbox.run(
    `export default async (input, env) => {
       const text = await env.notes.readText("today.txt");
       await env.out.write("today.txt", text.toUpperCase());

       const refused = [];
       for (const attempt of [
         () => env.notes.readText("../out/today.txt"),
         () => env.notes.readText("/etc/passwd"),
         () => env.notes.readText("link.txt"),
         () => env.out.write("big.txt", "x".repeat(101)),
       ]) {
         await attempt().then(() => refused.push("DONE"), (error) => refused.push(error.message));
       }
       return { methodsThatWriteNotes: ["write", "append", "remove"].filter((name) => name in env.notes), refused };
     }`,
    { grants: { notes, out } },
  );
  console.log(unwrap(outcome));
  console.log("on the disk:", fs.readFileSync(path.join(root, "out/today.txt"), "utf8"));
} finally {
  await sandbox.close();
  notes.close();
  out.close();
  fs.rmSync(root, { recursive: true });
}
