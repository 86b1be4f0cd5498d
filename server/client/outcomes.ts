/** Outcomes as the service writes them, made what a program wants: the value decoded. */
import type { z } from "zod";
import type * as schemas from "../service/schemas.js";
import { badAnswer, isObject } from "./connection.js";
import { decodeValue, ValueError } from "./values.js";

/** What became of a run; `value` is decoded: a Map is a Map. */
export type Outcome = z.output<typeof schemas.outcome>;

/** Throws ServiceError `bad-answer` if it is none. */
export function outcomeOf(plain: unknown): Outcome {
  if (!isObject(plain) || typeof plain["status"] !== "string")
    throw badAnswer("the answer holds no outcome: is this the service?");
  const whole = plain["status"] === "ok" ? { ...plain, value: valueOf(plain["value"]) } : plain;
  return whole as Outcome;
}

/** Throws ServiceError `bad-answer` if it is not as the service writes values. */
export function valueOf(plain: unknown): unknown {
  try {
    return decodeValue(plain);
  } catch (cause) {
    throw cause instanceof ValueError ? badAnswer(cause.message, 200, cause) : cause;
  }
}
