// node samples/fetch.mjs
// http and secret: fetch, to what the rules allow. The script uses a token that it cannot read: the placeholder in its
// hands becomes the value on the way out, and the value becomes the placeholder in whatever comes back.
import { createServer } from "node:http";
import { Sandbox, unwrap } from "doublehull";
import { http, secret } from "doublehull/hostapi";

// The service: it greets whoever has the token, quotes it back, and knows a way to somewhere else.
const server = createServer((request, response) => {
  if (request.url === "/v1/moved") return response.writeHead(302, { location: "/admin" }).end();
  const known = request.headers.authorization === "Bearer correct-horse-battery";
  response.writeHead(known ? 200 : 401).end(`you sent ${request.headers.authorization}`);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const service = `http://127.0.0.1:${server.address().port}`;

const token = secret({ name: "token", value: "correct-horse-battery", hosts: ["127.0.0.1"] });
const grants = {
  // Addresses that are not public are closed unless opened. Here it is the only one there is.
  http: http({ allow: [`${service}/v1/*`], open: ["127.0.0.1/32"], secrets: [token] }),
  token,
};

const sandbox = await Sandbox.create({ limits: { wallMs: 10_000 } }); // waiting for a server counts
try {
  const outcome = await sandbox.run(
    `export default async (service, { token }) => {
       const headers = { authorization: "Bearer " + token };
       const answer = await fetch(service + "/v1/me", { headers });
       const text = await answer.text();
       const why = (error) => error.cause.code + ": " + error.cause.message;
       return {
         status: answer.status,
         placeholder: token.replace(/[0-9a-f]{32}/, "..."),
         quotedBack: text === "you sent Bearer " + token ? "the placeholder" : text,
         beyondTheRules: await fetch(service + "/admin", { headers }).catch(why),
         byRedirect: await fetch(service + "/v1/moved", { headers }).catch(why),
       };
     }`,
    { input: service, grants },
  );
  console.log(unwrap(outcome));
} finally {
  await sandbox.close();
  server.close();
}
