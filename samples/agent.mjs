// node samples/agent.mjs
// A language model's loop with one tool: it writes programs, and reads what became of them. The model here is a script
// of its own: where it answers, yours would be asked, with the same tool and the same messages.
import { Sandbox } from "doublehull";
import { capability, method } from "doublehull/hostapi";
import { codeTool } from "doublehull/tools";
import { z } from "zod";

const prices = { chair: 30, lamp: 40, mug: 5 };
const shop = capability("shop", {
  things: method({ doc: "All things.", params: {}, returns: z.array(z.string()), effect: "read", run: () => Object.keys(prices) }), // prettier-ignore
  price: method({ doc: "What a thing costs.", params: { thing: z.enum(["chair", "lamp", "mug"]) }, returns: z.number(), effect: "read", run: ({ thing }) => prices[thing] }), // prettier-ignore
});

/** Answers with a tool call, or with words for the user. The last message is a tool's, from the second turn on. */
function model({ messages, tools: [tool] }) {
  const turn = messages.filter(({ role }) => role === "tool").length;
  if (!tool.description.includes("price(thing:")) return { text: "I know no shop." };
  if (turn === 0) return { call: { code: "export default () => { for (;;); }" } };
  if (turn === 1 && messages.at(-1).text.includes("loop or a wait without end")) {
    const code = `export default async (input: { least: number }, env: Env) => {
      const things = await env.shop.things();
      const priced = await Promise.all(things.map(async (thing) => ({ thing, price: await env.shop.price(thing) })));
      const [dearest] = priced.filter(({ price }) => price >= input.least).sort((a, b) => b.price - a.price);
      return { of: things.length, ...dearest };
    }`;
    return { call: { code, input: { least: 10 } } };
  }
  const { of, thing, price } = JSON.parse(messages.at(-1).text.replace("Result:", ""));
  return { text: `The dearest of ${of} is the ${thing}, at ${price}.` };
}

const sandbox = await Sandbox.create({ limits: { wallMs: 500 } });
try {
  const tool = codeTool(sandbox, { grants: { shop } });
  const messages = [{ role: "user", text: "What is the dearest thing?" }];
  for (;;) {
    const { text, call } = model({ messages, tools: [tool] });
    if (call === undefined) {
      console.log(text);
      break;
    }
    const answer = await tool.execute(call);
    console.log(`${tool.name} -> ${answer.status}`);
    messages.push({ role: "tool", text: answer.text });
  }
} finally {
  await sandbox.close();
}
