// node samples/capability.mjs
// A capability of one's own: it calls a function of the script's, hands out another capability, is granted weakened, and
// is revoked while the script uses it.
import { Sandbox, unwrap } from "doublehull";
import { callback, capability, caretaker, method } from "doublehull/hostapi";
import { z } from "zod";

const boxOf = (letters) =>
  capability("box", {
    count: method({
      doc: "How many letters `test` is true of.",
      params: { test: callback("(letter: string) => boolean") },
      returns: z.number(),
      effect: "read",
      run: async ({ test }) =>
        (await Promise.all(letters.map((letter) => test(letter)))).filter(Boolean).length,
    }),
    burn: method({ doc: "Burns them.", params: {}, effect: "write", run: () => void letters.splice(0) }),
  });

const letters = { ada: ["hello", "are you there?", "bye"], bob: ["for bob's eyes only"] };
const post = capability("post", {
  open: method({
    doc: "The box of a person.",
    params: { person: z.enum(["ada", "bob"]) },
    effect: "read",
    // Handed out as it is: weakening or revoking `post` weakens or revokes no box. So this one is weakened here.
    run: ({ person }) => boxOf(letters[person]).readOnly(),
  }),
});

// What a rule answers instead of true is what the script is told.
const forAda = post.where("ada's box", (_method, { person }) => person === "ada" || "that is private");
const { capability: granted, revoke } = caretaker(forAda);

const sandbox = await Sandbox.create();
try {
  const outcome = await sandbox.run(
    `export default async (input, { post }) => {
       const box = await post.open("ada");
       const questions = await box.count((letter) => letter.endsWith("?"));
       const bob = await post.open("bob").catch((error) => error.message);
       console.log("seen enough");
       const later = await post.open("ada").catch((error) => error.message);
       return { methods: Object.keys(box), questions, bob, later };
     }`,
    { grants: { post: granted }, onLog: revoke },
  );
  console.log(unwrap(outcome));
} finally {
  await sandbox.close();
}
