/** What a client answers with, for assertions. */
import { expect } from "vitest";
import { ServiceError } from "doublehull/client";

export async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const item of items) list.push(item);
  return list;
}

/** What it rejects with, which must be a ServiceError. */
export async function refusal(asked: Promise<unknown>): Promise<ServiceError> {
  const error: unknown = await asked.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(ServiceError);
  return error as ServiceError;
}
