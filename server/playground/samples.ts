/** Short programs to begin with: each shows one thing, and says which. All are run as tests. */
import type { Draft } from "./draft.js";

export interface Sample {
  id: string;
  title: string;
  /** What to look for. */
  shows: string;
  /** A grant, of that name and kind, without which it is not offered. */
  needs?: "approve";
  draft: Pick<Draft, "source" | "type" | "language"> & { input?: string; grants?: readonly string[] };
}

const js = (source: string, more: { input?: string; grants?: readonly string[] } = {}): Sample["draft"] => ({
  source,
  type: "module",
  language: "javascript",
  ...more,
});

export const SAMPLES: readonly Sample[] = [
  {
    id: "compute",
    title: "Pure computing",
    shows: "A module gets its input and returns a value. It has no grants, so all it can do is compute.",
    draft: js(
      `export default ({ upTo }) => {
  const primes = [];
  for (let n = 2; n <= upTo; n++) {
    if (primes.every((prime) => n % prime !== 0)) primes.push(n);
  }
  console.log(\`\${primes.length} primes up to \${upTo}\`);
  return { largest: primes.at(-1), twins: primes.filter((p) => primes.includes(p + 2)).length };
};
`,
      { input: '{ "upTo": 2000 }' },
    ),
  },
  {
    id: "kv",
    title: "A key-value store",
    shows: "The grant kv is the only way to what outlasts a run. Run it twice: the visits go on counting.",
    draft: js(
      `export default async (who, env) => {
  const visits = await env.kv.increment("visits");
  const before = await env.kv.get("last");
  await env.kv.set("last", { who, visit: visits }, { ttlMs: 3_600_000 });
  const { keys } = await env.kv.list();
  return { visits, before, keys };
};
`,
      { input: '"Ada"', grants: ["kv"] },
    ),
  },
  {
    id: "events",
    title: "Events with progress",
    shows: "The grant events tells you of a run while it is under way: watch the log fill.",
    draft: js(
      `const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export default async (steps, env) => {
  for (let step = 1; step <= steps; step++) {
    await pause(150);
    await env.events.emit("progress", { step, of: steps });
    console.log("step", step, "is done");
  }
  return "all done";
};
`,
      { input: "8", grants: ["events"] },
    ),
  },
  {
    id: "ask",
    title: "Ask a person",
    shows: "The grant approve puts a question to you, and the script waits. No answer in time is a no.",
    needs: "approve",
    draft: js(
      `export default async ({ to, text }, env) => {
  console.log("the letter is written, but not sent");
  const yes = await env.approve.ask("Send this letter to " + to + "?", text);
  return yes ? "sent, if a grant for letters were here" : "kept back";
};
`,
      {
        input: '{ "to": "ada@example.com", "text": "Dear Ada,\\nthe engine is ready." }',
        grants: ["approve"],
      },
    ),
  },
  {
    id: "typescript",
    title: "TypeScript",
    shows: "Types are stripped in a jailed process of their own; lines and columns stay where they are.",
    draft: {
      type: "module",
      language: "typescript",
      input: '{ "name": "Ada", "born": 1815 }',
      source: `interface Person {
  name: string;
  born: number;
}

const initials = (text: string): string => text.replaceAll(/[^A-Z]/g, "");

export default function greet({ name, born }: Person) {
  const seen: Map<string, Date> = new Map([[initials(name), new Date(Date.UTC(born, 11, 10))]]);
  return { hello: name, seen, big: 2n ** 100n };
}
`,
    },
  },
  {
    id: "throw",
    title: "An error",
    shows: "What a script throws is an outcome, with the script's own line, which the editor marks.",
    draft: js(
      `const area = ({ width, height }) => {
  if (!(width > 0)) throw new RangeError("width must be above 0, not " + width);
  return width * height;
};

export default (boxes) => boxes.map(area);
`,
      { input: '[{ "width": 2, "height": 3 }, { "width": -1, "height": 4 }]' },
    ),
  },
  {
    id: "endless",
    title: "An endless loop",
    shows:
      "Its limits of time end it, from outside if the language does not. Cancel it with Escape if you like.",
    draft: js(`export default () => {
  console.log("round and round");
  for (;;);
};
`),
  },
  {
    id: "memory",
    title: "A memory hog",
    shows: "Memory is bounded by the engine and, around it, by the kernel. See which one ends it.",
    draft: js(`export default () => {
  const kept = [];
  for (;;) kept.push(new Array(10_000).fill(kept.length));
};
`),
  },
  {
    id: "denied",
    title: "What is not there",
    shows: "No process, no require, no files, no network: the errors say what there is instead.",
    draft: js(`const tries = {
  process: () => process.env,
  require: () => require,
  fetch: () => fetch("http://169.254.169.254/"),
  escape: () => (() => {}).constructor("return this")().process,
};

export default async (input, env) => {
  const found = { env: Object.keys(env) };
  for (const [name, attempt] of Object.entries(tries)) {
    try {
      found[name] = (await attempt()) ?? "nothing there";
    } catch (error) {
      found[name] = error.message;
    }
  }
  return found;
};
`),
  },
];
