/** What a tenant can do over HTTP: run, keep scripts, store secrets, see what it used. */
import { randomUUID } from "node:crypto";
import type { FastifyRequest } from "fastify";
import { z } from "zod";
import type { Policy } from "../policy-schema.js";
import { grantWords } from "../policy-words.js";
import { grantsOf, hollowPowers } from "../grants.js";
import { jsonable, jsonText, plainOutcome } from "../show.js";
import { environmentTypes } from "../types.js";
import type { ScriptChange } from "./audit-events.js";
import { sha256 } from "./audit-line.js";
import { idempotencyKey } from "./idempotency.js";
import { beginStream, goneWith, tenantOf, wholeNumber, type App, type ServiceParts } from "./app.js";
import { badField, Problem } from "./problems.js";
import { asProblem } from "./runner.js";
import type { ScriptFacts } from "./tenants.js";
import {
  approvalAnswer,
  freeText,
  keyFacts,
  nothing,
  problems,
  runRequest,
  runResult,
  scriptContent,
  scriptName,
  secretName,
  storedScript,
  storedSecret,
  usageAnswers,
  usageRange,
} from "./schemas.js";

/** A policy's grants in words, without what is this host's: the place of a file or directory. */
const grantsShown = ({ grants }: Policy) =>
  Object.entries(grants).map(([name, grant]) => {
    if (grant.type === "files") return grantWords(name, { ...grant, root: "a directory of the service" });
    const words = grantWords(name, grant);
    return grant.type === "kv" ? { ...words, what: "a key-value store, which the service keeps" } : words;
  });

/** Whether the client wants a stream: the plugin has read the header Accept, a list with qualities. */
const isStream = (reply: object): boolean => "sse" in reply;

export function tenantRoutes(app: App, parts: ServiceParts): void {
  const { runner, streams, tenants, usage, idempotency, audit } = parts;

  // A monitor that is refused takes a node that is merely busy for a dead one, and whoever shares its address could see to that.
  app.get(
    "/healthz",
    {
      config: { open: true, rateLimit: false, pressureHandler: () => {} },
      schema: { summary: "Whether the process lives", security: [] },
    },
    () => ({ ok: true }),
  );
  app.get(
    "/readyz",
    {
      config: { open: true, rateLimit: false },
      schema: { summary: "Whether it takes requests: not when it is busy, either", security: [] },
    },
    () => {
      const why = parts.unready();
      if (why !== undefined)
        throw new Problem(runner.draining ? "draining" : "host-cannot", why, { retryAfterS: 5 });
      return { ok: true };
    },
  );

  app.get(
    "/v1",
    {
      schema: { summary: "What this key may do", tags: ["policy"], response: { 200: keyFacts, ...problems } },
    },
    async (request) => {
      const tenant = tenantOf(request);
      const { runs, cpuSeconds } = await usage.today(tenant);
      return {
        tenant: tenant.id,
        version: parts.version,
        bodyBytes: parts.bodyBytes,
        engine: tenant.policy.engine,
        engines: tenant.settings.engines,
        limits: tenant.limits,
        grants: grantsShown(tenant.policy),
        quotas: tenant.settings.quotas,
        today: { runs, cpuSeconds },
      };
    },
  );
  app.get(
    "/v1/types",
    { schema: { summary: "The declarations of env, with all of the policy's grants", tags: ["policy"] } },
    async (request, reply) => {
      // prettier-ignore
      const granted = await grantsOf(tenantOf(request).policy, hollowPowers());
      void reply.type("text/plain; charset=utf-8").serializer((text: string) => text);
      return environmentTypes(granted.grants);
    },
  );

  // ---- runs -----------------------------------------------------------------------------------------------------------

  app.post(
    "/v1/runs",
    {
      sse: "dual",
      schema: {
        summary: "Run a script and wait",
        description:
          "Answers with the outcome. With `accept: text/event-stream` it streams events named log, event and, at the end, outcome; what the grant approve asks is an event approval, to be answered with POST /v1/runs/ID/approvals/APPROVAL, and approval-end when it is open no more; a connection that was lost goes on with GET /v1/runs/ID/events. With the header Idempotency-Key the same request is run once: its answer is kept for a day.",
        tags: ["runs"],
        body: runRequest,
        response: { 200: runResult, ...problems },
      },
    },
    async (request, reply) => {
      const tenant = tenantOf(request);
      const { key } = request.holder;
      const id = randomUUID();
      void reply.header("x-run-id", id);
      const gone = goneWith(reply);
      const once = idempotencyKey(request.headers["idempotency-key"]);
      if (isStream(reply)) {
        if (once !== undefined)
          throw badField("idempotency-key", "is for an answer at once; a stream goes on with Last-Event-ID");
        const stream = streams.open(id, tenant.incarnation);
        void runner
          .run(tenant, request.body, {
            id,
            key,
            signal: stream.abort.signal,
            onLog: (entry) => void stream.push("log", entry),
            onEvent: ({ name, data, seq }) => void stream.push("event", { name, data: jsonable(data), seq }),
            ask: (asked, voided) =>
              stream.questions.ask(asked, voided, (approval) => {
                const { capability, method, text: question, details } = asked;
                audit.append({ kind: "approval", act: "asked", run: id, tenant: tenant.id, approval, capability, method, question, details }); // prettier-ignore
              }),
          })
          .then(
            (outcome) => stream.push("outcome", { id, outcome: plainOutcome(outcome) }),
            (error: unknown) => stream.push("problem", asProblem(error).document()),
          );
        beginStream(reply);
        await reply.sse.send(stream.listen(0, gone));
        return;
      }
      // Whoever can ask for the answer again has not gone for good.
      const signal = once === undefined ? gone : new AbortController().signal;
      const run = async () => {
        const outcome = await runner.run(tenant, request.body, { id, key, signal });
        return jsonText({ id, outcome: plainOutcome(outcome) });
      };
      const { answer, again } = once === undefined ? { answer: await run(), again: false } : await idempotency.once(tenant, once, request.body, run); // prettier-ignore
      if (again) void reply.header("idempotency-replayed", "true");
      void reply.type("application/json; charset=utf-8").serializer((text: string) => text);
      return answer as unknown as z.output<typeof runResult>;
    },
  );
  app.get(
    "/v1/runs/:id/events",
    {
      sse: "only",
      schema: {
        summary: "Go on with a stream, after the event that Last-Event-ID names",
        tags: ["runs"],
        params: z.object({ id: z.string().max(64) }),
        response: problems,
      },
    },
    async (request, reply) => {
      const stream = streams.get(request.params.id, tenantOf(request).incarnation);
      const header = request.headers["last-event-id"];
      const after = wholeNumber("last-event-id", typeof header === "string" ? header : undefined, 0, 2 ** 40);
      beginStream(reply);
      await reply.sse.send(stream.listen(after, goneWith(reply)));
    },
  );
  app.delete(
    "/v1/runs/:id",
    { schema: { summary: "Cancel a streamed run", tags: ["runs"], params: z.object({ id: z.string().max(64) }), response: nothing } }, // prettier-ignore
    async (request, reply) => {
      streams.get(request.params.id, tenantOf(request).incarnation).abort.abort();
      return reply.code(204).send(null);
    },
  );

  app.post(
    "/v1/runs/:id/approvals/:approval",
    {
      schema: {
        summary: "Answer what a streamed run asks a person, once",
        description: "Any key of the tenant may answer, the one that asked for the run too.",
        tags: ["runs"],
        params: z.object({ id: z.string().max(64), approval: z.string().max(16) }),
        body: approvalAnswer,
        response: nothing,
      },
    },
    async (request, reply) => {
      const { id, approval } = request.params;
      const { id: tenant, incarnation } = tenantOf(request);
      const { approved, note } = request.body;
      const by = request.holder.key;
      streams.get(id, incarnation).questions.answer(
        approval,
        request.body,
        () =>
        audit.append({ kind: "approval", act: approved ? "approved" : "refused", run: id, tenant, approval, by, note }), // prettier-ignore
      );
      return reply.code(204).send(null);
    },
  );

  // ---- scripts --------------------------------------------------------------------------------------------------------

  const named = z.object({ name: scriptName });
  app.put(
    "/v1/scripts/:name",
    {
      schema: {
        summary: "Store a script: a new version, or the latest one if nothing changed",
        tags: ["scripts"],
        params: named,
        body: scriptContent,
        response: { 200: storedScript, 201: storedScript, ...problems },
      },
    },
    async (request, reply) => {
      const { name } = request.params;
      const tenant = tenantOf(request);
      const { created, version } = await tenants.putScript(tenant, name, request.body, (facts) =>
        audit.append(scriptChange(facts.version === 1 ? "created" : "changed", request, name, facts)),
      );
      void reply.code(created ? 201 : 200);
      const { content: _, ...stored } = await tenants.script(tenant, `${name}@${version}`);
      return stored;
    },
  );
  app.get(
    "/v1/scripts",
    {
      schema: {
        summary: "Stored scripts, by name",
        tags: ["scripts"],
        querystring: z.strictObject({ after: freeText(100).default(""), limit: z.string().optional() }),
        response: { 200: z.object({ scripts: z.array(storedScript) }), ...problems },
      },
    },
    async (request) => ({
      scripts: await tenants.scripts(tenantOf(request), request.query.after, wholeNumber("limit", request.query.limit, 100, 1000)), // prettier-ignore
    }),
  );
  app.get(
    "/v1/scripts/:name",
    {
      schema: {
        summary: "A stored script, its latest version or the one named",
        tags: ["scripts"],
        params: named,
        querystring: z.strictObject({ version: z.string().optional() }),
        response: { 200: storedScript.extend({ content: scriptContent }), ...problems },
      },
    },
    (request) => {
      const version = wholeNumber("version", request.query.version, 0, 2 ** 31);
      return tenants.script(tenantOf(request), request.params.name + (version === 0 ? "" : `@${version}`));
    },
  );
  app.delete(
    "/v1/scripts/:name",
    {
      schema: {
        summary: "Remove a script with all its versions",
        tags: ["scripts"],
        params: named,
        response: nothing,
      },
    },
    async (request, reply) => {
      const { name } = request.params;
      await tenants.removeScript(tenantOf(request), name, (latest) =>
        audit.append(scriptChange("removed", request, name, latest)),
      );
      return reply.code(204).send(null);
    },
  );

  // ---- secrets --------------------------------------------------------------------------------------------------------

  const secret = z.object({ name: secretName });
  app.get(
    "/v1/secrets",
    {
      schema: {
        summary: "Names of stored secrets",
        tags: ["secrets"],
        response: { 200: z.object({ secrets: z.array(storedSecret) }), ...problems },
      },
    },
    async (request) => ({
      secrets: await tenants.secretNames(tenantOf(request).id),
    }),
  );
  app.put(
    "/v1/secrets/:name",
    {
      schema: {
        summary: "Store a secret, which nothing reads back: grants of the policy name it by `env`",
        tags: ["secrets"],
        params: secret,
        body: z.strictObject({
          value: z
            .string()
            .min(1)
            .max(64 * 1024),
        }),
        response: nothing,
      },
    },
    async (request, reply) => {
      const { id } = tenantOf(request);
      const { name } = request.params;
      audit.append({ kind: "secret", act: "changed", by: request.holder.key, tenant: id, secret: name });
      await tenants.putSecret(id, name, request.body.value);
      return reply.code(204).send(null);
    },
  );
  app.delete(
    "/v1/secrets/:name",
    { schema: { summary: "Remove a secret", tags: ["secrets"], params: secret, response: nothing } },
    async (request, reply) => {
      const { id } = tenantOf(request);
      const { name } = request.params;
      await tenants.removeSecret(id, name, () =>
        audit.append({ kind: "secret", act: "removed", by: request.holder.key, tenant: id, secret: name }),
      );
      return reply.code(204).send(null);
    },
  );

  // ---- usage ----------------------------------------------------------------------------------------------------------

  app.get(
    "/v1/usage",
    {
      schema: {
        summary: "What was used, by day",
        tags: ["usage"],
        querystring: usageRange,
        response: usageAnswers,
      },
    },
    async (request) => ({ days: await daysOf(parts, tenantOf(request).id, request.query) }),
  );
}

const scriptChange = (
  act: ScriptChange["act"],
  request: FastifyRequest,
  name: string,
  { version, hash, content }: ScriptFacts,
): ScriptChange => ({
  kind: "script",
  act,
  by: request.holder.key,
  tenant: tenantOf(request).id,
  name,
  version,
  content: hash,
  script: sha256(content.source),
});

/** The last 30 days unless said otherwise. */
export function daysOf(
  { usage, now }: ServiceParts,
  tenant: string,
  { from, to }: { from?: string | undefined; to?: string | undefined },
) {
  const text = (ms: number) => new Date(ms).toISOString().slice(0, 10);
  const [first, last] = [from ?? text(now() - 29 * 86_400_000), to ?? text(now())];
  if (first > last) throw badField("from", "is after to");
  return usage.days(tenant, first, last);
}
