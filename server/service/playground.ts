/**
 * Serves the playground's pages, which hold no secret and are open: what they ask of the API needs a key. A script's words
 * are shown there, so the pages have a policy of their own, stricter than that of the API's description: nothing inline,
 * nothing from elsewhere, no text made into markup.
 */
import fs from "node:fs";
import { fileURLToPath } from "node:url";
import fastifyStatic from "@fastify/static";
import type { App } from "./app.js";
import { Problem } from "./problems.js";

/** Content Security Policy Level 3, and Trusted Types: https://w3c.github.io/trusted-types/dist/spec/ */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "connect-src 'self'",
  "img-src 'self' data:",
  "font-src 'none'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join("; ");

/** Where `npm run build` puts it. */
export const PLAYGROUND = fileURLToPath(new URL("../playground", import.meta.url));

const open = { config: { open: true }, schema: { hide: true } };

/** The pages in `directory` at /playground/, and a way there from /. */
export function playgroundRoutes(app: App, directory: string): void {
  app.get("/", open, (_, reply) => reply.redirect("playground/"));
  app.get("/playground", open, (_, reply) => reply.redirect("playground/"));
  if (!fs.existsSync(`${directory}/index.html`)) {
    app.get("/playground/*", open, () => {
      throw new Problem("not-found", "the playground is not built here: the operator runs npm run build");
    });
    return;
  }
  void app.register(async (pages) => {
    pages.addHook("onRoute", (route) => {
      route.config = { ...route.config, open: true };
    });
    pages.addHook("onRequest", async (_, reply) => {
      reply.header("content-security-policy", POLICY);
    });
    await pages.register(fastifyStatic, {
      root: directory,
      prefix: "/playground/",
      cacheControl: false, // said below
      dotfiles: "ignore",
      preCompressed: true, // as the build made them: nothing is compressed for a request
      setHeaders: (reply, file) => {
        // The name of what is below assets changes with its bytes.
        const kept = file.startsWith(`${directory}/assets/`)
          ? "public, max-age=31536000, immutable"
          : "no-cache";
        reply.header("cache-control", kept);
      },
    });
  });
}
