/** Figures over time, drawn by uPlot on a canvas, with the same figures as a table for whoever cannot see it. */
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export interface Series {
  label: string;
  unit: string;
  /** Of the page's colours: the name of a custom property. */
  colour: string;
  values: readonly number[];
}

const fromZero = (_: uPlot, __: number, max: number): [number, number] => [0, max > 0 ? max * 1.1 : 1];
const isPower = (n: number): boolean => Number.isInteger(Math.round(Math.log10(n) * 1e6) / 1e6);

interface ChartProps {
  title: string;
  /** What the rows are: "run", "day". */
  of: string;
  names: readonly string[];
  series: readonly Series[];
  /** One scale by powers of ten, for what lies far apart; else bars and a line, each with its own scale. */
  powers?: boolean;
  /** Changes with the colours. */
  theme: string;
}

const HEIGHT = 190;
/** Below it a scale of powers has no place. */
const LEAST = 0.1;

export function Chart({ title, of, names, series, powers = false, theme }: ChartProps) {
  const host = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = host.current;
    if (element === null) return;
    const style = getComputedStyle(element);
    const colour = (name: string) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--muted"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    const marks = powers ? { filter: (_: uPlot, ticks: number[]) => ticks.map((at) => (isPower(at) ? at : null)) } : {}; // prettier-ignore
    const scale = (i: number) => (powers || i === 0 ? "y" : "z");
    const bars = uPlot.paths.bars?.({ size: [0.55, 28], radius: 0.2 });
    const plot = new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: false, range: (_, min, max) => [(min ?? 0) - 0.5, (max ?? 0) + 0.5] },
          y: powers ? { distr: 3, log: 10 } : { range: fromZero },
          z: { range: fromZero },
        },
        axes: [
          { ...axis, grid: { show: false }, values: (_, ticks) => ticks.map((at) => (Number.isInteger(at) ? (names[at] ?? "") : "")) }, // prettier-ignore
          {
            ...axis,
            size: 56,
            ...marks,
            grid: { ...axis.grid, ...marks },
            values: (_, ticks) => ticks.map((at) => (at === null ? "" : amount(at))),
          },
          ...(powers
            ? []
            : [{ ...axis, scale: "z", side: 1 as const, size: 48, grid: { show: false }, values: (_: uPlot, ticks: number[]) => ticks.map(amount) }]), // prettier-ignore
        ],
        series: [
          {},
          ...series.map(({ label, colour: name }, i) => {
            const filled = !powers && i === 0 && bars !== undefined;
            return {
              label,
              scale: scale(i),
              stroke: colour(name),
              width: 2,
              ...(filled ? { paths: bars, fill: colour(name), width: 0 } : {}),
              ...(i > 0 ? { dash: [5, 4] } : {}),
              points: { show: powers, size: 6, fill: colour(name) },
            };
          }),
        ],
      },
      [
        names.map((_, i) => i),
        ...series.map(({ values }) => values.map((value) => (powers ? Math.max(LEAST, value) : value))),
      ],
      element,
    );
    const sizes = new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height: HEIGHT }));
    sizes.observe(element);
    return () => {
      sizes.disconnect();
      plot.destroy();
    };
  }, [names, series, powers, theme]);
  const said = series.map(({ label, unit, values }) => `${label} ${amount(values.at(-1) ?? 0)} ${unit}`);
  return (
    <figure class="chart">
      <figcaption>
        <h3>{title}</h3>
        <ul class="key">
          {series.map(({ label, unit }, i) => (
            <li key={label} class={i === 0 ? "first" : "second"}>
              {label}, {unit}
            </li>
          ))}
        </ul>
      </figcaption>
      <div
        ref={host}
        class="plot"
        role="img"
        aria-label={`${title}: ${names.length} of them, the last with ${said.join(" and ")}`}
      />
      <details>
        <summary>{title} as a table</summary>
        <div class="scroll" tabIndex={0} role="region" aria-label={`${title}, table`}>
          <table>
            <thead>
              <tr>
                <th scope="col">{of}</th>
                {series.map(({ label, unit }) => (
                  <th scope="col" key={label}>
                    {label}, {unit}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {names.map((name, i) => (
                <tr key={name}>
                  <th scope="row">{name}</th>
                  {series.map(({ label, values }) => (
                    <td key={label}>{amount(values[i] ?? 0)}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}

/** Three digits that count, and two of what is below one. */
export const amount = (n: number): string =>
  n >= 100 ? Math.round(n).toLocaleString("en") : String(Number(n.toPrecision(n < 1 ? 2 : 3)));
