// What every contender runs: function bodies that see `input` and return something, so that each can wrap them as it
// likes, and a check of the answer, so that nobody wins by failing. `share`: how many of the rounds, for the slower ones.
const rows = Array.from({ length: 100 }, (_, id) => ({
  id,
  name: `customer ${id}`,
  mail: `customer-${id}@example.com`,
  tags: ["new", "eu"],
  total: id * 1.25,
}));

const fib = "const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));";

export const TRIVIAL = { name: "trivial", body: "return 1 + 1", share: 1, right: (value) => value === 2 };

export const WORKLOADS = [
  {
    name: "10 KB JSON",
    body: "return { rows: input.rows.map((row) => ({ ...row, seen: true })) }",
    input: { rows },
    share: 0.2,
    right: (value) => value?.rows?.length === rows.length && value.rows[99].seen === true,
  },
  {
    name: "200k loop",
    body: "let x = 1; for (let i = 0; i < 200000; i++) x = (x * 31 + i) % 65521; return x",
    share: 0.1,
    right: (value) => value > 0 && value < 65521,
  },
  { name: "fib(27)", body: `${fib} return fib(27)`, share: 0.03, right: (value) => value === 196_418 },
];

export const HOST_CALLS = 1000;

/** Calls of a function of the host's that returns its argument; `call` is how this contender's guest writes one. */
export const hostCallWorkloads = ({ oneByOne, parallel }) => ({
  none: { name: "no host call", body: "return 499500", right: (value) => value === 499_500 },
  ...(oneByOne && {
    oneByOne: {
      name: "host calls",
      body: `let sum = 0; for (let i = 0; i < ${HOST_CALLS}; i++) sum += ${oneByOne}; return sum`,
      right: (value) => value === 499_500,
    },
  }),
  ...(parallel && {
    parallel: {
      name: "host calls in parallel",
      body: `const all = Array.from({ length: ${HOST_CALLS} }, (_, i) => ${parallel});
        return (await Promise.all(all)).reduce((a, b) => a + b)`,
      right: (value) => value === 499_500,
    },
  }),
});

/** About 100 ms of calls for each engine: what the jail must not slow down. */
export const speedSource = (n) => `${fib}
  export default () => { const start = performance.now(); fib(${n}); return performance.now() - start; }`;
export const SPEED_N = { quickjs: 28, "v8-jitless": 29, v8: 32 };

/** Runs it once and throws unless the answer is right. */
export async function runRight(contender, workload) {
  const value = await contender.run(workload);
  if (!workload.right(value)) {
    throw new Error(`${workload.name} gave ${JSON.stringify({ value }).slice(0, 80)}`);
  }
}
