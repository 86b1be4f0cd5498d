// node samples/people.mjs
// events: what a script tells whoever started it. approve and withApproval: what it does only if a person says yes.
import { Sandbox, unwrap } from "doublehull";
import { approve, events, kv, withApproval } from "doublehull/hostapi";

const progress = events({
  names: ["progress"],
  onEvent: ({ name, data, seq }) => console.log(`event ${seq}, ${name}:`, data),
});

// In place of a person. The words are the script's own, made harmless: they can be shown, and mean nothing else.
const person = {
  async ask({ label, method, text, details }) {
    const yes = text !== "delete";
    console.log(`${label}.${method} asks: ${[text, ...details].join(" | ")} -> ${yes ? "yes" : "no"}`);
    return yes;
  },
};

const grants = {
  progress,
  ask: approve(person),
  kv: withApproval(kv(), { ...person, methods: ["set", "delete"] }),
};

// A run waits for its people: give it their time, and no more time to compute.
const sandbox = await Sandbox.create({ limits: { wallMs: 60_000, cpuMs: 1000 } });
try {
  const outcome = await sandbox.run(
    `export default async (input, env) => {
       await env.progress.emit("progress", { percent: 0 });
       const sure = await env.ask.ask("Is \\x1b[2Jthis harmless?");
       await env.kv.set("report", { sure });
       const refused = await env.kv.delete("report").catch((error) => error.code);
       await env.progress.emit("progress", { percent: 100 });
       return { sure, refused, report: await env.kv.get("report") };
     }`,
    { grants },
  );
  console.log(unwrap(outcome));
} finally {
  await sandbox.close();
}
