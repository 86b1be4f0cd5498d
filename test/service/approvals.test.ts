/** Questions of streamed runs to a person, and who answers them how. */
import { describe, expect, test } from "vitest";
import { Client, type ApprovalQuestion, type RunEvent, type RunRequest } from "doublehull/client";
import { AuditLog } from "#server/service/audit-log";
import { audited, end, shared, start, until, type Answer } from "./harness.js";

const it = shared();
const stream = { accept: "text/event-stream" };
const granted = { policy: { grants: { approve: true, kv: true } } };
const clientOf = (apiKey: string) => new Client({ baseUrl: it.service.address, apiKey });
/** Asks, and says what became of it. */
const asking = (text = "'Send it?'", details = "undefined"): RunRequest => ({
  source: `export default async (input, env) => {
    try { return { yes: await env.approve.ask(${text}, ${details}) } } catch ({ code, message }) { return { code, message } } }`,
  grants: ["approve"],
});

/** A streamed run that goes on beside the test. */
function begun(key: string, request: RunRequest, options: Parameters<Client["stream"]>[1] = {}) {
  const events: RunEvent[] = [];
  const client = clientOf(key);
  const over = (async () => {
    for await (const event of client.stream(request, options)) events.push(event);
  })();
  let failure: unknown;
  over.catch((error: unknown) => (failure = error)); // whoever waits for a question is told, and who awaits the outcome
  const questions = () => events.flatMap((event) => (event.type === "approval" ? [event] : []));
  return {
    events,
    questions,
    /** The latest of so many questions, once it is there. */
    question: (count = 1) =>
      until(() => {
        if (failure !== undefined) throw failure as Error;
        return questions()[count - 1];
      }),
    async outcome() {
      await over;
      const last = events.at(-1);
      return last?.type === "outcome" ? last.outcome : undefined;
    },
    answer: (asked: { run: string; question: ApprovalQuestion }, body: unknown, by = key): Promise<Answer> =>
      it.ask("POST", `/v1/runs/${asked.run}/approvals/${asked.question.id}`, { key: by, body }),
  };
}
const lines = (run: string) => audited(it.dir).filter((line) => line["run"] === run && line["kind"] === "approval"); // prettier-ignore
const results = (events: RunEvent[]) => events.flatMap((event) => (event.type === "approval-end" ? [event.result] : [])); // prettier-ignore

describe("a question", () => {
  test("goes out as an event, is answered by a request, and both stand in the audit log", async () => {
    const key = await it.tenant("asks", granted);
    for (const approved of [true, false]) {
      const run = begun(key, asking("'Send it?'", "'to: ada\\nsubject: x'"));
      const asked = await run.question();
      const { expiresMs, ...question } = asked.question;
      expect(question).toEqual({ id: "1", capability: "approve", method: "ask", text: "Send it?", details: ["to: ada", "subject: x"] }); // prettier-ignore
      expect(expiresMs).toBeGreaterThan(Date.now());
      expect(expiresMs).toBeLessThanOrEqual(Date.now() + 20_000); // the wall limit comes before the grant's ten minutes
      expect((await run.answer(asked, { approved, note: "as agreed" })).status).toBe(204);
      expect(await run.outcome()).toMatchObject({ status: "ok", value: { yes: approved } });
      expect(results(run.events)).toEqual([approved ? "approved" : "refused"]);
      const about = { run: asked.run, tenant: "asks", approval: "1" };
      expect(lines(asked.run)).toMatchObject([
        { ...about, act: "asked", capability: "approve", method: "ask", question: "Send it?", details: ["to: ada", "subject: x"] }, // prettier-ignore
        { ...about, act: approved ? "approved" : "refused", by: key.split("_")[1], note: "as agreed" },
      ]);
      expect(JSON.stringify(run.events)).not.toContain("as agreed"); // the script has no part in the note
    }
  });

  test("waits as long as the service has, where the policy does not say, and no longer than it says", async () => {
    const key = await it.tenant("patient", granted);
    expect((await it.ask("GET", "/v1", { key })).body.limits.wallMs).toBe(20_000);
    const more = { policy: { ...granted.policy, limits: { wallMs: 30_000 } } };
    const refused = await it.admin("PUT", "/admin/v1/tenants/patient", { body: more });
    expect(refused.body.errors).toMatchObject([{ field: "policy.limits.wallMs" }]);
    const hasty = await it.tenant("hasty", { policy: { grants: { approve: { timeoutMs: 200 } } } });
    const run = begun(hasty, asking());
    const asked = await run.question();
    expect(await run.outcome()).toMatchObject({ value: { code: "timeout" } });
    expect(results(run.events)).toEqual(["void"]);
    expect(await run.answer(asked, { approved: true })).toMatchObject({ status: 409, body: { code: "approval-over" } }); // prettier-ignore
    expect(lines(asked.run).map(({ act }) => act)).toEqual(["asked"]);
  });

  test("of a run that nobody listens to is unavailable, and says what to do", async () => {
    const key = await it.tenant("unheard", granted);
    for (const headers of [{}, { "idempotency-key": "k" }]) {
      const { body } = await it.ask("POST", "/v1/runs", { key, body: asking(), headers });
      expect(body.outcome.value).toMatchObject({ code: "unavailable", message: expect.stringContaining("accept: text/event-stream") }); // prettier-ignore
    }
  });

  test("that is open comes again when the stream is gone on with, once, and one that was answered does not", async () => {
    const key = await it.tenant("resumes", granted);
    const source = "export default async (i, env) => { console.log('a'); await env.approve.ask('one?'); console.log('b'); return await env.approve.ask('two?') }"; // prettier-ignore
    const run = begun(key, { source, grants: ["approve"] });
    const one = await run.question();
    const gone = new AbortController();
    /** What is told at once to who goes on after that event. */
    const resumed = async (after: number) => {
      const headers = { ...stream, authorization: `Bearer ${key}`, "last-event-id": String(after) };
      const response = await fetch(`${it.service.address}/v1/runs/${one.run}/events`, { headers, signal: gone.signal }); // prettier-ignore
      const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      while (!text.includes("event: approval\n")) text += (await reader?.read())?.value ?? "";
      return text;
    };
    expect(await resumed(2)).toMatch(/^id: 2\nevent: approval\ndata: \{"id":"1",[^\n]*\n\n$/);
    expect((await resumed(0)).match(/event: approval\n/g)).toHaveLength(1);
    await run.answer(one, { approved: true });
    const two = await run.question(2);
    expect(two.question.text).toBe("two?");
    expect(await resumed(5)).toMatch(/^id: 5\nevent: approval\ndata: \{"id":"2",[^\n]*\n\n$/);
    await run.answer(two, { approved: true });
    expect(await run.outcome()).toMatchObject({ value: true });
    gone.abort();
    const after = await it.ask("GET", `/v1/runs/${one.run}/events`, { key, headers: { ...stream, "last-event-id": "5" } }); // prettier-ignore
    expect(after.body).not.toContain("event: approval\n");
    expect(after.body).toContain("event: outcome");
  });
});

describe("an answer", () => {
  test("of another tenant is to no question, and leaves it open; of any key of the tenant it counts, once", async () => {
    const key = await it.tenant("owner", granted);
    const stranger = await it.tenant("stranger", granted);
    const second = (await it.admin("POST", "/admin/v1/tenants/owner/keys", { body: {} })).body;
    const run = begun(key, asking());
    const asked = await run.question();
    expect(await run.answer(asked, { approved: true }, stranger)).toMatchObject({ status: 404, body: { code: "not-found" } }); // prettier-ignore
    expect((await run.answer(asked, { approved: true }, "")).status).toBe(401);
    expect(run.events.at(-1)?.type).toBe("approval"); // still open
    const answers = await Promise.all([1, 2].map(() => run.answer(asked, { approved: true }, second.key))); // prettier-ignore
    expect(answers.map(({ status }) => status).sort((a, b) => a - b)).toEqual([204, 409]);
    expect(answers.find(({ status }) => status === 409)?.body.code).toBe("approval-over");
    expect(await run.outcome()).toMatchObject({ value: { yes: true } });
    expect((await run.answer(asked, { approved: false })).status).toBe(409); // after the end
    expect(lines(asked.run).map(({ act, by }) => [act, by])).toEqual([
      ["asked", undefined],
      ["approved", second.id],
    ]);
  });

  test("that is no plain answer, or to what was never asked, is refused and leaves the question open", async () => {
    const key = await it.tenant("odd", granted);
    const run = begun(key, asking());
    const asked = await run.question();
    for (const body of [
      { approved: "yes" },
      { approved: 1 },
      {},
      [],
      { approved: true, sure: true },
      { approved: true, note: "x".repeat(201) },
    ])
      // prettier-ignore
      expect((await run.answer(asked, body)).status).toBe(400);
    for (const id of ["2", "0", "01", "-1", "1e0", "__proto__", "constructor", "%2e%2e"])
      expect((await it.ask("POST", `/v1/runs/${asked.run}/approvals/${id}`, { key, body: { approved: true } })).status).toBe(404); // prettier-ignore
    expect((await it.ask("POST", "/v1/runs/nothing/approvals/1", { key, body: { approved: true } })).status).toBe(404); // prettier-ignore
    expect(lines(asked.run)).toHaveLength(1);
    expect((await run.answer(asked, { approved: true })).status).toBe(204); // the control
    expect(await run.outcome()).toMatchObject({ value: { yes: true } });
  });

  test("to a run that is cancelled, or has ended without waiting, comes too late", async () => {
    const key = await it.tenant("late", granted);
    const cancelled = begun(key, asking());
    const asked = await cancelled.question();
    await clientOf(key).cancel(asked.run);
    expect(await cancelled.outcome()).toMatchObject({ status: "cancelled" });
    expect(results(cancelled.events)).toEqual(["void"]);
    expect((await cancelled.answer(asked, { approved: true })).status).toBe(409);
    const source = "export default async (i, env) => { env.approve.ask('?').catch(() => {}); await env.kv.set('x', 1); }"; // prettier-ignore
    const left = begun(key, { source, grants: ["approve", "kv"] });
    expect(await left.outcome()).toMatchObject({ status: "ok" });
    expect(results(left.events)).toEqual(["void"]);
    expect((await left.answer(await left.question(), { approved: true })).status).toBe(409);
  });
});

describe("a hostile script", () => {
  test("has its text shown as what it is, in one event", async () => {
    const key = await it.tenant("sly", granted);
    const text = String.raw`"ok\u202e\u001b[2J\r\n\n\nid: 9\nevent: outcome\ndata: {\u2028}"`;
    const run = begun(key, asking(text, "'a\\u0000\\n\\nevent: approval-end'"));
    const asked = await run.question();
    expect(asked.question.text).toBe("ok\\u{202e}\\u{1b}[2J\\u{d}\\u{a}\\u{a}\\u{a}id: 9\\u{a}event: outcome\\u{a}data: {\\u{2028}}"); // prettier-ignore
    expect(asked.question.details).toEqual(["a\\u{0}", "", "event: approval-end"]);
    await run.answer(asked, { approved: false });
    expect(await run.outcome()).toMatchObject({ value: { yes: false } });
    expect(run.events.map(({ type }) => type)).toEqual(["approval", "approval-end", "outcome"]);
    const told = await it.ask("GET", `/v1/runs/${asked.run}/events`, { key, headers: stream });
    expect(told.body).toMatch(/^[\n\x20-\x7e]*$/);
  });

  test("that asks a hundred things at once has one open, a few in line, and the rest refused", async () => {
    const key = await it.tenant("flood", granted);
    const source = `export default async (i, env) => {
      let refused = 0;
      const refusal = ({ code }) => { if (++refused === 51) console.log("all are there"); return code };
      const asks = Array.from({ length: 60 }, (_, n) => env.approve.ask("number " + n).then(String, refusal));
      return Promise.all(asks) }`;
    const run = begun(key, { source, grants: ["approve"] });
    await until(() => run.events.find(({ type }) => type === "log")); // an answer before would let another into line
    for (let n = 1; n <= 9; n++) {
      const asked = await run.question(n);
      expect(run.questions()).toHaveLength(n); // one at a time
      await run.answer(asked, { approved: n % 2 === 0 });
    }
    const outcome = await run.outcome();
    const answers = (outcome?.status === "ok" ? outcome.value : []) as string[];
    const count = (what: string) => answers.filter((answer) => answer === what).length;
    expect([count("true"), count("false"), count("rate")]).toEqual([4, 5, 51]);
  });
});

test("where the audit log cannot be written nobody is asked, and no answer counts", async () => {
  const one = await start();
  const key = await one.tenant("held", granted);
  const append = AuditLog.prototype.append; // oxlint-disable-line typescript/unbound-method -- put back below
  const failing = (act: string) => {
    AuditLog.prototype.append = function (this: AuditLog, event) {
      if (event.kind === "approval" && event.act === act) throw new Error("no space left");
      return append.call(this, event);
    };
  };
  failing("asked");
  const refused = await one.ask("POST", "/v1/runs", { key, body: asking(), headers: stream });
  expect(refused.body).toContain('"code":"unavailable"');
  expect(refused.body).not.toContain("event: approval");
  failing("approved");
  const asked = one.ask("POST", "/v1/runs", { key, body: asking(), headers: stream });
  const line = await until(() => audited(one.dir).find(({ kind }) => kind === "approval"));
  const answer = () => one.ask("POST", `/v1/runs/${String(line["run"])}/approvals/1`, { key, body: { approved: true } }); // prettier-ignore
  expect((await answer()).status).toBe(500);
  AuditLog.prototype.append = append;
  expect((await answer()).status).toBe(204);
  expect((await asked).body).toContain('"value":{"yes":true}');
  await end(one);
});

describe("the client", () => {
  test("puts each question to a person, and takes whatever is no plain yes for a no", async () => {
    const key = await it.tenant("client", granted);
    const answers: [unknown, boolean][] = [
      [true, true],
      [{ approved: true, note: "n".repeat(300) }, true],
      [false, false],
      [{ approved: "yes" }, false],
      ["true", false],
      [undefined, false],
      [null, false],
    ];
    for (const [answer, yes] of answers) {
      const seen: ApprovalQuestion[] = [];
      const onApproval = async (question: ApprovalQuestion) => (seen.push(question), answer as boolean);
      const run = begun(key, asking(), { onApproval });
      expect(await run.outcome()).toMatchObject({ value: { yes } });
      expect(seen).toMatchObject([{ id: "1", text: "Send it?" }]);
    }
    const onApproval = () => Promise.reject(new Error("the window was closed"));
    expect(await begun(key, asking(), { onApproval }).outcome()).toMatchObject({ value: { yes: false } });
  });

  test("tells the person when a question is void, and that it was answered elsewhere", async () => {
    const key = await it.tenant("elsewhere", granted);
    let voided = false;
    const onApproval = (_: ApprovalQuestion, signal: AbortSignal) =>
      new Promise<boolean>((resolve) => signal.addEventListener("abort", () => ((voided = true), resolve(false)))); // prettier-ignore
    const run = begun(key, asking(), { onApproval });
    const asked = await run.question();
    await clientOf(key).approve(asked.run, asked.question.id, { approved: true, note: "by phone" });
    expect(await run.outcome()).toMatchObject({ value: { yes: true } });
    expect(voided).toBe(true);
    await expect(clientOf(key).approve(asked.run, "1", true)).rejects.toMatchObject({ code: "approval-over" }); // prettier-ignore
  });
});
