/** What an administrator can do: tenants, their keys, what they used; metrics for the monitoring beside it. */
import { z } from "zod";
import type { App, ServiceParts } from "./app.js";
import { sha256 } from "./audit-line.js";
import {
  apiKey,
  freeText,
  madeKey,
  newKey,
  nothing,
  problems,
  tenant,
  tenantEntry,
  tenantId,
  tenantSettings,
  usageAnswers,
  usageRange,
} from "./schemas.js";
import { daysOf } from "./tenant-routes.js";

export function adminRoutes(app: App, parts: ServiceParts): void {
  const { tenants, audit, metrics, runner } = parts;
  const one = z.object({ tenant: tenantId });
  const tags = ["tenants"];

  app.get(
    "/metrics",
    { config: { open: true }, schema: { summary: "For Prometheus", security: [] } },
    async (_request, reply) => {
      // prettier-ignore
      const { type, body } = await metrics.text();
      void reply.type(type).serializer((text: string) => text);
      return body;
    },
  );
  app.get("/admin/v1/audit", { schema: { summary: "The head of the audit log's chain: note it elsewhere" } }, () => audit.head); // prettier-ignore

  app.get("/admin/v1/tenants", { schema: { summary: "All tenants", tags, response: { 200: z.object({ tenants: z.array(tenantEntry) }), ...problems } } }, async () => ({ tenants: await tenants.list() })); // prettier-ignore
  app.put(
    "/admin/v1/tenants/:tenant",
    {
      schema: {
        summary: "Make or change a tenant",
        tags,
        params: one,
        body: tenantSettings,
        response: { 200: tenant, ...problems },
      },
    },
    async (request, reply) => {
      const { tenant } = request.params;
      const act = await tenants.check(tenant, request.body);
      const policy = sha256(JSON.stringify(request.body));
      audit.append({ kind: "policy", act, by: request.holder.key, tenant, policy });
      await tenants.put(tenant, request.body);
      void reply.code(act === "created" ? 201 : 200);
      return { id: tenant, settings: request.body };
    },
  );
  app.get(
    "/admin/v1/tenants/:tenant",
    { schema: { summary: "One tenant", tags, params: one, response: { 200: tenant, ...problems } } }, // prettier-ignore
    async (request) => {
      const { id, settings } = await tenants.get(request.params.tenant);
      return { id, settings };
    },
  );
  app.delete(
    "/admin/v1/tenants/:tenant",
    {
      schema: {
        summary: "Remove a tenant with its keys, scripts, secrets and usage; its runs are cancelled",
        tags,
        params: one,
        response: nothing,
      },
    },
    async (request, reply) => {
      // prettier-ignore
      const { tenant } = request.params;
      const by = request.holder.key;
      const before = () => audit.append({ kind: "tenant", act: "removed", by, tenant });
      await tenants.remove(tenant, before, (incarnation) => runner.end(incarnation));
      return reply.code(204).send(null);
    },
  );

  app.post(
    "/admin/v1/tenants/:tenant/keys",
    {
      schema: {
        summary: "A new API key, told in this answer and never again",
        tags,
        params: one,
        body: newKey,
        response: { 201: madeKey, ...problems },
      },
    },
    async (request, reply) => {
      const { tenant } = request.params;
      const made = await tenants.addKey(tenant, request.body, (key) =>
        audit.append({ kind: "key", act: "created", by: request.holder.key, tenant, key }),
      );
      return reply.code(201).send(made);
    },
  );
  app.get(
    "/admin/v1/tenants/:tenant/keys",
    { schema: { summary: "A tenant's keys, without their secret part", tags, params: one, response: { 200: z.object({ keys: z.array(apiKey) }), ...problems } } }, // prettier-ignore
    async (request) => {
      await tenants.get(request.params.tenant);
      return { keys: await tenants.keys(request.params.tenant) };
    },
  );
  app.delete(
    "/admin/v1/tenants/:tenant/keys/:key",
    { schema: { summary: "Revoke a key, at once", tags, params: one.extend({ key: freeText(64) }), response: nothing } }, // prettier-ignore
    async (request, reply) => {
      const { tenant, key } = request.params;
      await tenants.removeKey(tenant, key, () =>
        audit.append({ kind: "key", act: "removed", by: request.holder.key, tenant, key }),
      );
      return reply.code(204).send(null);
    },
  );
  app.get(
    "/admin/v1/tenants/:tenant/usage",
    {
      schema: {
        summary: "What a tenant used, by day",
        tags: ["usage"],
        params: one,
        querystring: usageRange,
        response: usageAnswers,
      },
    },
    async (request) => {
      await tenants.get(request.params.tenant);
      return { days: await daysOf(parts, request.params.tenant, request.query) };
    },
  );
}
