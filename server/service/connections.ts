/**
 * What a connection does to its requests, below the routes: it may end while many of them wait on it, and what arrives on
 * it may be no request at all. Hostile bytes come first here: nothing of them is quoted, in an answer or in the log.
 */
import { STATUS_CODES, type IncomingMessage, type ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import { Problem, type ProblemCode } from "./problems.js";

/** Of each connection, what waits for its end: one listener, however many requests are under way (pipelining). */
const waiting = new WeakMap<object, Set<() => void>>();

/**
 * Calls `act` once: when the answer has left, or when its connection has ended. An answer that waits behind another on the
 * same connection hears nothing of that end, only the socket does.
 */
export function whenOver(request: IncomingMessage, answer: ServerResponse, act: () => void): void {
  const { socket } = request;
  let acts = waiting.get(socket);
  if (acts === undefined) {
    const all = new Set<() => void>();
    waiting.set(socket, (acts = all));
    socket.once("close", () => {
      for (const over of all) over();
    });
  }
  const mine = acts;
  const over = () => {
    if (mine.delete(over)) act();
  };
  mine.add(over);
  answer.once("close", over);
  if (socket.destroyed) over(); // its end has been told already
}

/** Codes of Node's (nodejs.org/api/errors.html, and llhttp's names) that are not simply bytes that are no HTTP. */
const BROKEN: Readonly<Record<string, ProblemCode>> = {
  ERR_HTTP_REQUEST_TIMEOUT: "request-timeout",
  HPE_HEADER_OVERFLOW: "headers-too-large",
  HPE_CHUNK_EXTENSIONS_OVERFLOW: "too-large",
};
const WORDS: Partial<Record<ProblemCode, string>> = {
  "request-timeout": "the request did not arrive in time",
  "headers-too-large": "the request's first line and headers have more bytes than are taken",
  "too-large": "the body's chunks have more extensions than are taken",
};

/**
 * Answers what is no request, as Node's "clientError" tells of it, and ends the connection. Where an answer has begun on
 * it, nothing is said: it would stand in the middle of that one. Returns the problem that was told, if one was.
 */
export function answerBroken(error: NodeJS.ErrnoException, socket: Duplex): Problem | undefined {
  // What Node itself looks at before it answers such a request (lib/_http_server.js, socketOnError).
  const { _httpMessage: current } = socket as { _httpMessage?: { headersSent: boolean } | null };
  if (error.code === "ECONNRESET" || !socket.writable || current?.headersSent === true) {
    socket.destroy();
    return undefined;
  }
  const code = BROKEN[error.code ?? ""] ?? "bad-http";
  const problem = new Problem(code, WORDS[code] ?? "what arrived is no HTTP request");
  const body = JSON.stringify(problem.document());
  const head = [
    `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status]}`,
    "content-type: application/problem+json",
    `content-length: ${Buffer.byteLength(body)}`,
    "cache-control: no-store",
    "connection: close",
  ];
  socket.write(`${head.join("\r\n")}\r\n\r\n${body}`);
  socket.destroy(); // whoever sends such things is not waited for, not even until it has read this
  return problem;
}
