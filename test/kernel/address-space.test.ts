/** Where memory lies after the addresses that V8 asks for were taken. A program of its own: it changes its whole process. */
import { expect, test } from "vitest";
import { program } from "./program.js";

const ADDRESS_SPACE = new URL("../../dist/osjail/address-space.js", import.meta.url).href;

const SOURCE = `
  const { keepTogether } = await import(${JSON.stringify(ADDRESS_SPACE)});
  const maps = () => fs.readFileSync("/proc/self/maps", "latin1").trim().split("\\n").map((line) => {
    const [range, mode] = line.split(" ");
    const [start, end] = range.split("-").map((hex) => parseInt(hex, 16));
    return { start, end, mode };
  });
  /** Writable memory at V8's addresses: above the heap, below the libraries. */
  const scattered = () => maps().filter(({ start, mode }) => mode === "rw-p" && start > 2 ** 36 && start < 2 ** 46).length;
  const reserved = () => maps().reduce((sum, { start, end, mode }) => sum + (mode === "---p" ? end - start : 0), 0);
  const kept = [];
  const fill = () => { for (let i = 0; i < 40; i++) kept.push(Array.from({ length: 30_000 }, (_, at) => ({ at }))); };
  const all = () => maps().reduce((sum, { start, end }) => sum + end - start, 0);
`;

test("memory comes together while the addresses are taken, and they are given back whole", async () => {
  const { ended, said } = await program(`${SOURCE}
    const before = reserved();
    const giveBack = keepTogether();
    say(reserved() - before > 2 ** 45);
    const meanwhile = scattered();
    fill();
    say(scattered() - meanwhile);
    giveBack();
    say(reserved() - before < 2 ** 40);
    fill(); // the control: without it V8 scatters
    say(scattered() - meanwhile > 20);
    say(kept.length);
  `);
  expect({ ended, said }).toEqual({ ended: 0, said: [true, 0, true, true, 80] });
});
