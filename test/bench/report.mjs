// Figures into tables, and figures against the bars that this project has set itself. Pure: a report in, text out.
import { median, quantile } from "./measures.mjs";
import { HOST_CALLS, WORKLOADS } from "./workloads.mjs";

const ISOLATE = "isolated-vm, fresh isolate";
const BWRAP = "bwrap node -e";
const NODE = "node -e (no sandbox)";
const ECHO = "socket echo";

/** System calls that an engine may keep after lock-down. */
const CALLS = { quickjs: 15, "v8-jitless": 18, v8: 20 };

const rates = (windows) => windows?.map(({ done, seconds }) => done / seconds);
const cpuPerRun = (windows) => windows?.map(({ done, cpuMs }) => cpuMs / done);
const middle = (list) => (list?.length ? median(list) : undefined);

/**
 * One row for each bar and engine: what was measured, by what, and whether it is met. `met` is undefined where the host
 * was too busy or there was nothing to compare with, and `why` says so.
 */
export function judge({ figures, engines }, tooBusy) {
  const rows = [];
  const { latency, saturated, memory, cold, speed } = figures;
  const calls = figures["host-calls"];
  for (const [name, { engine, calls: callCount }] of Object.entries(engines)) {
    const row = (section, what, figure, most, bar, unit = "", doubt = section && tooBusy(section)) => {
      const known = figure !== undefined && Number.isFinite(figure);
      const why = known ? doubt && `no verdict: ${doubt}` : "nothing to compare with";
      const met = why ? undefined : most ? figure <= bar : figure >= bar;
      rows.push({ engine, what, figure: known ? figure : undefined, unit, most, bar, met, why });
    };
    if (latency) {
      const p50 = middle(latency.ms[name]);
      const tail = (who) => quantile(latency.tailMs[who], 0.99) / median(latency.tailMs[who]);
      row("latency", "parked latency / fresh isolate", p50 / middle(latency.ms[ISOLATE]), true, 0.4);
      row("latency", "p99/p50 of it / that of the socket echo", tail(name) / tail(ECHO), true, 2);
      row("latency", "latency of bwrap node -e / ours", middle(latency.ms[BWRAP]) / p50, false, 40);
    }
    if (saturated) {
      const rate = middle(rates(saturated[name]));
      const isolate = middle(rates(saturated[ISOLATE]));
      row("saturated", "runs per second / fresh isolates", rate / isolate, false, 1);
      row("saturated", "the same, the next goal", rate / isolate, false, 1.5);
      row("saturated", "runs per second / bwrap node -e", rate / middle(rates(saturated[BWRAP])), false, 15);
    }
    if (memory?.[name]) {
      // Whoever else computes does not change a size; who else takes or gives memory does change what the host has left.
      const { medianPrivateKb, totalKb, totalOffKb } = memory[name];
      row(undefined, "private memory of a parked worker", medianPrivateKb, true, 1024, " KiB");
      const moved = totalOffKb > 0.05 * totalKb ? "others took or gave memory" : undefined;
      row(
        undefined,
        "1000 parked, all that the host lost",
        (totalKb * 1000) / 2 ** 20,
        true,
        1.5,
        " GiB",
        moved,
      );
    }
    if (calls) {
      row("host-calls", "host call / socket echo", calls.us.oneByOne[name] / middle(calls.echoUs), true, 2.5);
      row("host-calls", `host call, ${HOST_CALLS} in parallel`, calls.us.parallel[name], true, 30, " us");
    }
    if (speed?.[name]) row("speed", "script in the jail / outside it", speed[name].ratio, true, 1.05);
    if (cold) row("cold", "cold start / node -e 1", middle(cold[name]) / middle(cold[NODE]), true, 5);
    row(undefined, "system calls left after lock-down", callCount, true, CALLS[engine]);
  }
  return rows;
}

/** Columns of the big table: a figure for each contender. `more: true` where more is better. */
function columns({ latency, workloads, saturated, memory, cold, ...figures }) {
  const calls = figures["host-calls"];
  return [
    latency && ["trivial p50 ms", (name) => middle(latency.ms[name])],
    latency && ["p99 ms", (name) => latency.ms[name]?.length && quantile(latency.ms[name], 0.99)],
    ...(workloads
      ? WORKLOADS.map((workload) => [`${workload.name} ms`, (name) => middle(workloads[workload.name][name])])
      : []),
    figures["at-once"] && ["50 at once ms", (name) => middle(figures["at-once"][name])],
    calls && ["host call us", (name) => calls.us.oneByOne[name]],
    calls && ["in parallel us", (name) => calls.us.parallel[name]],
    saturated && ["runs /s", (name) => middle(rates(saturated[name])), true],
    saturated && ["CPU ms /run", (name) => middle(cpuPerRun(saturated[name]))],
    memory && ["idle private MB", (name) => memory[name] && memory[name].privateKb / 1024],
    memory && ["idle PSS MB", (name) => memory[name] && memory[name].pssKb / 1024],
    memory && ["idle total MB", (name) => known(memory[name])?.totalKb / 1024],
    cold && ["cold start ms", (name) => middle(cold[name])],
  ].filter(Boolean);
}

/** Nothing where others moved more of the host's memory than the sandboxes did. */
const known = (memory) => (memory && memory.totalOffKb < 0.2 * memory.totalKb ? memory : undefined);

const WIDTH = 34;
const CELL = 9;

function shown(value) {
  if (value === undefined || !Number.isFinite(value)) return "-";
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** A heading of two or three short lines, and a line for each name. */
function table(names, wanted, cell, print) {
  const words = wanted.map(([heading]) => heading.split(" "));
  const height = Math.max(...words.map((list) => list.length));
  for (let line = 0; line < height; line++) {
    const heading = words.map((list) => (list[line - height + list.length] ?? "").padStart(CELL));
    print(`${"".padEnd(WIDTH)}${heading.join("")}`.trimEnd());
  }
  for (const name of names) {
    print(`${name.padEnd(WIDTH)}${wanted.map((column) => cell(name, column).padStart(CELL)).join("")}`);
  }
}

export function printTables({ host, figures, absent, bars, engines, noise }, names, print = console.log) {
  const { cpus, model, kernel, node, date, load } = host;
  print(
    `\n${date}, ${cpus} CPUs (${model}), Linux ${kernel}, Node ${node}, load ${load.map(shown).join(" ")}\n`,
  );
  const wanted = columns(figures);
  if (wanted.length > 0) {
    print("Medians. One fresh sandbox for each run; CPU and memory are those of the whole process tree.");
    if (figures.cold) {
      print("Cold: with nothing running, a library in a Node process of its own, doublehull by its command.");
    }
    print("");
    table(names, wanted, (name, [, figure]) => shown(figure(name)), print);
    if (figures.latency)
      print(`${ECHO.padEnd(WIDTH)}${shown(middle(figures.latency.ms[ECHO])).padStart(CELL)}`);
    const [base] = Object.keys(engines);
    const others = names.filter((name) => name !== base);
    if (base !== undefined && others.length > 0) {
      print(`\nThe same as ratios: how many times ${base}'s it is (in runs per second: how few).\n`);
      const ratio = (name, [, figure, more]) =>
        shown(more ? figure(base) / figure(name) : figure(name) / figure(base));
      table(others, wanted, ratio, print);
    }
  }
  for (const { name, why } of absent) print(`${name.padEnd(WIDTH)} not available: ${why}`);
  const large = figures["host-calls"]?.largeMs ?? {};
  for (const [name, list] of Object.entries(large)) {
    print(`\n4 MB there and back in one host call, ${name}: ${shown(median(list))} ms`);
  }
  for (const [name, { ratio, low, high, jail, outside }] of Object.entries(figures.speed ?? {})) {
    print(
      `\nA script in the jail, ${name}: ${shown(median(jail))} ms, outside it ${shown(median(outside))} ms, ` +
        `ratio ${ratio.toFixed(3)} (${low.toFixed(3)} .. ${high.toFixed(3)} with 95 %)`,
    );
  }
  print("\nThe bars");
  for (const { engine, what, figure, unit, most, bar, met, why } of bars) {
    const verdict = why ?? (met ? "met" : "NOT MET");
    const limit = `${most ? "<=" : ">="} ${bar}${unit}`;
    print(
      `${engine.padEnd(11)} ${what.padEnd(42)} ${(shown(figure) + unit).padStart(11)}  bar ${limit.padEnd(12)} ${verdict}`,
    );
  }
  print(
    "\nThe host meanwhile: share of the CPUs that others used, that was stolen; spread of a fixed loop, of the echo",
  );
  for (const [section, { foreign, stolen, loop, echo, why, seconds }] of Object.entries(noise)) {
    const share = (value) => `${(value * 100).toFixed(0)} %`.padStart(6);
    print(
      `${section.padEnd(11)} ${share(foreign)} ${share(stolen)} ${loop.toFixed(2).padStart(6)} ${echo.toFixed(2).padStart(6)}` +
        `  ${why.length === 0 ? "quiet" : `too busy to judge: ${why.join(", ")}`} (${seconds.toFixed(0)} s)`,
    );
  }
}
