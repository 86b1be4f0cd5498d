/** Durable jobs, batches and schedules over HTTP. */
import { randomUUID } from "node:crypto";
import { z } from "zod";
import { jsonText } from "../../show.js";
import { beginStream, goneWith, tenantOf, wholeNumber, type App, type ServiceParts } from "../app.js";
import { idempotencyKey } from "../idempotency.js";
import { Problem } from "../problems.js";
import { freeText, nothing, problems, scriptName } from "../schemas.js";
import type { Tenant } from "../tenants.js";
import { batch, batchRequest, job, JOB_STATES, jobPage, jobRequest, madeBatch, schedule, scheduleEntry, scheduleSettings, type Job, type JobRequest } from "./schemas.js"; // prettier-ignore

const MAX_PAGE = 1000;
const seconds = z.string().max(10).optional().describe("Seconds to wait for the end, up to 60.");

export function jobRoutes(app: App, parts: ServiceParts): void {
  const { jobs, schedules, idempotency, db, table } = parts;
  const tags = ["jobs"];
  const one = z.object({ id: freeText(64) });
  const jobAnswers = { 200: job, ...problems };
  /** Up to a minute. */
  const waitOf = (text: string | undefined) => wholeNumber("wait", text, 0, 60) * 1000;

  /** All accepted in one transaction; with an Idempotency-Key once, however often it is sent. */
  async function accepted(
    tenant: Tenant,
    key: string,
    { once, requests, batch, answer }: { once: string | undefined; requests: JobRequest[]; batch?: string; answer: (ids: string[]) => object }, // prettier-ignore
  ): Promise<{ text: string; again: boolean }> {
    await jobs.check(tenant, requests, (i) => (batch === undefined ? "" : `jobs[${i}].`));
    let offer = () => Promise.resolve();
    const write: Parameters<typeof idempotency.written>[3] = async (queries) => {
      const taken = await jobs.accept(queries, tenant, {
        key,
        requests,
        ...(batch === undefined ? {} : { batch }),
      });
      offer = taken.offer;
      return jsonText(answer(taken.ids));
    };
    const result = once === undefined ? { answer: await db.transaction(write), again: false } : await idempotency.written(tenant, once, batch === undefined ? requests[0] : { jobs: requests }, write); // prettier-ignore
    await offer();
    return { text: result.answer, again: result.again };
  }

  app.post(
    "/v1/jobs",
    {
      schema: {
        summary: "Accept a job, which runs whatever becomes of this connection",
        description:
          "Answers when it is on the disk. It is run once, or tried again as `retry` says; what became of it is asked for with GET /v1/jobs/ID, streamed by GET /v1/jobs/ID/events, or posted to `callback`, signed as Standard Webhooks says. With the header Idempotency-Key the same request is accepted once.",
        tags,
        body: jobRequest,
        response: { 202: job, ...problems },
      },
    },
    async (request, reply) => {
      const tenant = tenantOf(request);
      const once = idempotencyKey(request.headers["idempotency-key"]);
      const now = parts.now();
      const { body } = request;
      const answer = ([id = ""]: string[]): Job => ({ id, state: "queued", createdMs: now, dueMs: now + body.delayMs, attempt: 0, attempts: body.retry.attempts }); // prettier-ignore
      const { text, again } = await accepted(tenant, request.holder.key, { once, requests: [body], answer });
      const { id } = JSON.parse(text) as Job;
      if (again) void reply.header("idempotency-replayed", "true");
      void reply.code(202).header("location", `/v1/jobs/${id}`);
      return JSON.parse(text) as Job;
    },
  );
  app.get(
    "/v1/jobs",
    {
      schema: {
        summary: "Jobs, the newest first, without their outcomes",
        tags,
        querystring: z.strictObject({
          state: z.enum(JOB_STATES).optional(),
          batch: freeText(64).optional(),
          schedule: scriptName.optional(),
          before: z
            .string()
            .regex(/^\d{1,15}_[\w-]{1,64}$/, "must be the `next` of a page")
            .optional(),
          limit: z.string().optional(),
        }),
        response: { 200: jobPage, ...problems },
      },
    },
    (request) => {
      const { limit, ...which } = request.query;
      return table.list(tenantOf(request).id, { ...which, limit: wholeNumber("limit", limit, 100, MAX_PAGE) }); // prettier-ignore
    },
  );
  app.get(
    "/v1/jobs/:id",
    { schema: { summary: "A job; with ?wait=30 when it has ended, or as it is after so many seconds", tags, params: one, querystring: z.strictObject({ wait: seconds }), response: jobAnswers } }, // prettier-ignore
    (request, reply) =>
      jobs.wait(tenantOf(request).id, request.params.id, waitOf(request.query.wait), goneWith(reply)),
  );
  app.get(
    "/v1/jobs/:id/events",
    { sse: "only", schema: { summary: "What a job's runs tell, then the job itself; goes on after Last-Event-ID", tags, params: one, response: problems } }, // prettier-ignore
    async (request, reply) => {
      const { id } = tenantOf(request);
      const header = request.headers["last-event-id"];
      const after = wholeNumber("last-event-id", typeof header === "string" ? header : undefined, 0, 2 ** 40);
      await jobs.get(id, request.params.id);
      const events = jobs.events(id, request.params.id, after, goneWith(reply));
      beginStream(reply);
      await reply.sse.send(events);
    },
  );
  app.post(
    "/v1/jobs/:id/cancel",
    { schema: { summary: "Cancel a job that has not ended", tags, params: one, response: jobAnswers } },
    (request) => jobs.cancel(tenantOf(request).id, request.params.id, request.holder.key),
  );
  app.post(
    "/v1/jobs/:id/retry",
    { schema: { summary: "Run a job again that failed or was cancelled", tags, params: one, response: jobAnswers } }, // prettier-ignore
    (request) => jobs.again(tenantOf(request), request.params.id, request.holder.key),
  );
  app.delete(
    "/v1/jobs/:id",
    { schema: { summary: "Forget a job that has ended", tags, params: one, response: nothing } },
    async (request, reply) => {
      await jobs.remove(tenantOf(request).id, request.params.id);
      return reply.code(204).send(null);
    },
  );

  // ---- batches --------------------------------------------------------------------------------------------------------

  const countsOf = async (tenant: string, id: string) => {
    const counts = await table.counts({ tenant, batch: id });
    const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
    if (total === 0)
      throw new Problem("not-found", "there is no such batch, or its results are kept no longer");
    return { id, total, counts };
  };
  app.post(
    "/v1/batches",
    {
      schema: {
        summary: "Accept many jobs, all of them or none",
        tags,
        body: batchRequest,
        response: { 202: madeBatch, ...problems },
      },
    },
    async (request, reply) => {
      const tenant = tenantOf(request);
      const once = idempotencyKey(request.headers["idempotency-key"]);
      const id = randomUUID();
      const { text, again } = await accepted(tenant, request.holder.key, {
        once,
        requests: request.body.jobs,
        batch: id,
        answer: (ids) => ({ id, jobs: ids }),
      });
      const made = JSON.parse(text) as { id: string; jobs: string[] };
      if (again) void reply.header("idempotency-replayed", "true");
      void reply.code(202).header("location", `/v1/batches/${made.id}`);
      return made;
    },
  );
  app.get(
    "/v1/batches/:id",
    { schema: { summary: "How many of a batch's jobs are in which state; the jobs are GET /v1/jobs?batch=ID", tags, params: one, response: { 200: batch, ...problems } } }, // prettier-ignore
    (request) => countsOf(tenantOf(request).id, request.params.id),
  );
  app.post(
    "/v1/batches/:id/cancel",
    { schema: { summary: "Cancel those of a batch that have not ended", tags, params: one, response: { 200: batch, ...problems } } }, // prettier-ignore
    async (request) => {
      const { id } = tenantOf(request);
      await countsOf(id, request.params.id);
      for (const state of ["queued", "running"] as const)
        for (const { id: one } of (await table.list(id, { state, batch: request.params.id, limit: MAX_PAGE }))
          .jobs)
          await jobs.cancel(id, one, request.holder.key);
      return countsOf(id, request.params.id);
    },
  );

  // ---- schedules ------------------------------------------------------------------------------------------------------

  const named = z.object({ name: scriptName });
  const scheduleAnswers = { 200: schedule, ...problems };
  app.put(
    "/v1/schedules/:name",
    { schema: { summary: "Make or change a schedule: a job that begins by the clock", tags, params: named, body: scheduleSettings, response: scheduleAnswers } }, // prettier-ignore
    (request) => schedules.put(tenantOf(request), request.params.name, request.body, request.holder.key),
  );
  app.get(
    "/v1/schedules",
    { schema: { summary: "Schedules, by name, without their jobs", tags, response: { 200: z.object({ schedules: z.array(scheduleEntry) }), ...problems } } }, // prettier-ignore
    async (request) => ({ schedules: await schedules.list(tenantOf(request).id) }),
  );
  app.get(
    "/v1/schedules/:name",
    { schema: { summary: "A schedule; its jobs are GET /v1/jobs?schedule=NAME", tags, params: named, response: scheduleAnswers } }, // prettier-ignore
    (request) => schedules.get(tenantOf(request).id, request.params.name),
  );
  app.delete(
    "/v1/schedules/:name",
    {
      schema: {
        summary: "Remove a schedule; jobs that it made stay",
        tags,
        params: named,
        response: nothing,
      },
    },
    async (request, reply) => {
      await schedules.remove(tenantOf(request).id, request.params.name, request.holder.key);
      return reply.code(204).send(null);
    },
  );
}
