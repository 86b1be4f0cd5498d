import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { EventStreamParser, type ServerSentEvent } from "#server/client/event-stream";

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const parse = (text: string, most = 1000): ServerSentEvent[] => new EventStreamParser(most).push(bytes(text));
/** Cut at these places, each once. */
function inChunks(whole: Uint8Array, cuts: readonly number[], most = 1e6): ServerSentEvent[] {
  const parser = new EventStreamParser(most);
  const places = [0, ...new Set(cuts.map((cut) => cut % (whole.length + 1))), whole.length].sort((a, b) => a - b); // prettier-ignore
  return places.slice(1).flatMap((to, i) => parser.push(whole.slice(places[i], to)));
}

describe("a stream of events", () => {
  test("has events with id, name and lines of data", () => {
    expect(parse("id: 1\nevent: log\ndata: a\ndata:  b\ndata\n\ndata:c\n\n")).toEqual([
      { id: "1", event: "log", data: "a\n b\n" },
      { id: "1", event: "message", data: "c" },
    ]);
  });

  test("may end its lines with CR, LF or both", () => {
    const text = "id: 7\nevent: x\ndata: a\ndata: b\n\n";
    for (const end of ["\r\n", "\r", "\n"])
      expect(parse(text.replaceAll("\n", end))).toEqual([{ id: "7", event: "x", data: "a\nb" }]);
  });

  test("has comments, unknown fields, a byte order mark and ids with NUL, which say nothing", () => {
    expect(parse("\ufeff: heartbeat\n\nretry: 5\nmore: x\nid: 1\nid: 2\0\ndata: a\n\n")).toEqual([
      { id: "1", event: "message", data: "a" },
    ]);
  });

  test("has no event that does not end, and none without data", () => {
    expect(parse("event: x\n\ndata: whole\n\ndata: half\n")).toEqual([
      { id: "", event: "message", data: "whole" },
    ]);
  });

  test("is refused at an event over the bound: in one line, in many, in empty ones, in a comment", () => {
    for (const flood of [
      `data: ${"x".repeat(200)}`,
      "data: xxxxxxxx\n".repeat(20),
      "data\n".repeat(200),
      `:${"x".repeat(200)}`,
    ])
      // prettier-ignore
      for (const cuts of [[], [1, 50, 99], [120]])
        expect(() => inChunks(bytes(flood), cuts, 100)).toThrow(/an event has more than 100 characters/);
    // The control: as much in many events, and in many comments.
    expect(inChunks(bytes("data: xxxxxxxx\n\n".repeat(200)), [3, 999], 100)).toHaveLength(200);
    expect(inChunks(bytes(`${":xxxxxxxx\n".repeat(200)}data: a\n\n`), [3, 999], 100)).toHaveLength(1);
  });

  test("says the same however it is cut", () => {
    const text = fc.string({ unit: "grapheme", maxLength: 20 }).map((it) => it.replaceAll(/[\r\n\0]/g, "").trimStart()); // prettier-ignore
    const end = fc.constantFrom("\n", "\r", "\r\n");
    const event = fc.record({ id: text, event: text, data: fc.array(text, { minLength: 1, maxLength: 3 }), comment: text, end }); // prettier-ignore
    fc.assert(
      fc.property(
        fc.array(event, { maxLength: 5 }),
        fc.array(fc.nat(), { maxLength: 40 }),
        (events, cuts) => {
          const written = events
            .map(({ id, event, data, comment, end }) =>
              [
                `:${comment}`,
                `id: ${id}`,
                `event: ${event}`,
                ...data.map((line) => `data: ${line}`),
                "",
                "",
              ].join(end),
            ) // prettier-ignore
            .join("");
          const meant = events.map(({ id, event, data }) => ({ id, event: event || "message", data: data.join("\n") })); // prettier-ignore
          const whole = bytes(written);
          expect(inChunks(whole, [])).toEqual(meant);
          expect(inChunks(whole, cuts)).toEqual(meant);
          expect(inChunks(whole, [...whole.keys()])).toEqual(meant);
        },
      ),
    );
  });

  test("says the same however it is cut, whatever its bytes are", () => {
    const likely = fc.constantFrom(...bytes("\n\r: data"), 0xc3, 0xa9, 0xff, 0xef, 0xbb, 0xbf);
    const any = fc.array(fc.oneof(likely, fc.constantFrom(...bytes("\n\r"))), { maxLength: 200 });
    const prefixed = any.map((more) => Uint8Array.from([...bytes("data: a\r"), ...more, ...bytes("\n\n")]));
    fc.assert(
      fc.property(prefixed, fc.array(fc.nat(), { maxLength: 40 }), (whole, cuts) => {
        expect(inChunks(whole, cuts)).toEqual(inChunks(whole, []));
      }),
    );
  });
});
