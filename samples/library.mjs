// node samples/library.mjs
// The library in a service: one sandbox, many runs, each in a process of its own.
import { Sandbox } from "doublehull";

const sandbox = await Sandbox.create({ limits: { wallMs: 500, memoryMb: 32 } });
try {
  const scripts = {
    polite: "export default (input) => `hello, ${input.name}`",
    faulty: "export default () => { throw new TypeError('no') }",
    endless: "export default () => { for (;;); }",
  };
  const outcomes = await Promise.all(
    Object.values(scripts).map((source) => sandbox.run(source, { input: { name: "Ada" } })),
  );
  for (const [i, name] of Object.keys(scripts).entries()) {
    const outcome = outcomes[i];
    if (outcome.status === "ok") console.log(`${name}: ${outcome.value}`);
    else if (outcome.status === "threw") console.log(`${name}: threw ${outcome.error.name}`);
    else console.log(`${name}: ${outcome.status} by ${outcome.stop?.reason}`);
  }
} finally {
  await sandbox.close();
}
