/** The meter of what tenants use, over a database whose answers come when the test says so. */
import { expect, test } from "vitest";
import type { Database, Value } from "#server/service/database";
import { UsageMeter } from "#server/service/usage";

const tenant = { id: "a", incarnation: "a/1" };
const outcome = { status: "ok", usage: { wallMs: 1, cpuMs: 1000, peakMemoryBytes: 0, hostCalls: 0, bytesIn: 0, bytesOut: 0 } } as const; // prettier-ignore

/** Holds one row of one tenant. Reads see it as it is when they are asked; each answer waits until it is let go. */
function slow() {
  const row = { runs: 0, cpu_us: 0 };
  const held: { what: "read" | "write"; go: () => void }[] = [];
  const later = <T>(what: "read" | "write", answer: T) =>
    new Promise<T>((resolve) => held.push({ what, go: () => resolve(answer) }));
  const db: Database = {
    all: <R>() => later("read", [{ ...row }] as R[]),
    run: (_sql: string, ..._values: readonly Value[]) => Promise.reject(new Error("not here")),
    async transaction(act) {
      let added: readonly Value[] = [];
      const result = await act({
        all: () => Promise.reject(new Error("not here")),
        run: (_sql, ...values) => ((added = values), Promise.resolve(1)),
      });
      await later("write", undefined);
      row.runs += Number(added[1]);
      row.cpu_us += Number(added[3]);
      await later("write", undefined); // it is there, and nobody has been told yet
      return result;
    },
    failure: undefined,
    close: () => Promise.resolve(),
  };
  const release = async (what: "read" | "write") => {
    for (;;) {
      const at = held.findIndex((one) => one.what === what);
      if (at >= 0) return held.splice(at, 1)[0]?.go();
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const settle = () => new Promise((resolve) => setImmediate(resolve));
  return { db, release, settle, reads: () => held.filter(({ what }) => what === "read").length };
}
const meterOf = (db: Database) => new UsageMeter(db, { now: () => 1_900_000_000_000, onFailure: () => {} });
const day = (runs: number) => ({ runs, cpuSeconds: runs, leftS: expect.any(Number) });

test("a read that a writing has overtaken is read again, and not kept", async () => {
  const { db, release, settle } = slow();
  const meter = meterOf(db);
  meter.add(tenant, outcome);
  const today = meter.today(tenant); // has read, and its answer is on its way
  const flushed = meter.flush();
  await release("write");
  await release("write");
  await flushed;
  await release("read");
  await settle();
  await release("read");
  expect(await today).toEqual(day(1));
  expect(await meter.today(tenant)).toEqual(day(1)); // what is kept is not the old row either
});

test("what is being written counts once, whether or not the row has it", async () => {
  const { db, release, settle, reads } = slow();
  const meter = meterOf(db);
  meter.add(tenant, outcome);
  const flushed = meter.flush();
  await release("write");
  const today = meter.today(tenant);
  await settle();
  if (reads() > 0) await release("read"); // of a row that has it, while the meter has it too
  await release("write");
  await flushed;
  await settle();
  if (reads() > 0) await release("read");
  expect(await today).toEqual(day(1));
});

test("a tenant that is made anew with the same id has used nothing", async () => {
  const { db, release } = slow();
  const meter = meterOf(db);
  meter.add(tenant, outcome);
  const today = async (incarnation: string) => {
    const asked = meter.today({ id: "a", incarnation });
    await release("read");
    return asked;
  };
  expect(await today("a/1")).toEqual(day(1)); // the control
  expect(await today("a/2")).toEqual(day(0));
});
