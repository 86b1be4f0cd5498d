/**
 * Server-sent events from bytes, as the HTML standard has them (9.2.5 "Parsing an event stream", 9.2.6 "Interpreting an
 * event stream"). Knows no network: chunks go in as they arrive, whole events come out. What one event may hold is
 * bounded before it is kept, for a line without end would fill the reader's memory.
 */

export interface ServerSentEvent {
  /** The last id that the stream has named, "" before the first. */
  id: string;
  /** "message" where the stream names none. */
  event: string;
  data: string;
}

export class EventStreamParser {
  readonly #decoder = new TextDecoder(); // drops a byte order mark at the beginning, as it should
  readonly #most: number;
  /** Parts of the line that has not ended, whose characters and those of `#data` are counted. */
  #line: string[] = [];
  #length = 0;
  #data: string[] = [];
  #event = "";
  #id = "";
  /** The last chunk ended with CR: a line feed now belongs to it. */
  #afterReturn = false;

  /** `most`: UTF-16 units that one event, or one line, may have. */
  constructor(most: number) {
    this.#most = most;
  }

  /**
   * Events that this chunk completes. One that never ends in an empty line is never an event.
   *
   * @throws RangeError at an event over the bound; the parser is of no use then
   */
  push(chunk: Uint8Array): ServerSentEvent[] {
    let text = this.#decoder.decode(chunk, { stream: true });
    const events: ServerSentEvent[] = [];
    if (text === "") return events;
    if (this.#afterReturn && text.startsWith("\n")) text = text.slice(1);
    this.#afterReturn = text === "" ? false : text.endsWith("\r");
    let from = 0;
    for (const { 0: end, index } of text.matchAll(/\r\n|\n|\r/g)) {
      this.#keep(text.slice(from, index));
      from = index + end.length;
      const line = this.#line.join("");
      this.#line = [];
      this.#length -= line.length;
      const event = this.#interpret(line);
      if (event !== undefined) events.push(event);
    }
    this.#keep(text.slice(from));
    return events;
  }

  #keep(part: string): void {
    this.#length += part.length;
    if (this.#length > this.#most) throw new RangeError(`an event has more than ${this.#most} characters`);
    if (part !== "") this.#line.push(part);
  }

  #interpret(line: string): ServerSentEvent | undefined {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return undefined; // a comment
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (field === "data") {
      this.#data.push(value);
      this.#length += value.length + 1; // an empty line of data costs too
    } else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    return undefined;
  }

  #dispatch(): ServerSentEvent | undefined {
    const event = { id: this.#id, event: this.#event || "message", data: this.#data.join("\n") };
    const any = this.#data.length > 0;
    this.#data = [];
    this.#event = "";
    this.#length = 0;
    return any ? event : undefined;
  }
}
