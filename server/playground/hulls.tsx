/**
 * The two hulls of a run, drawn as a ship's midship section: plates of the outer and the inner hull, the script in the
 * hold, the supervisor on the bridge. It is one list to the keyboard: Tab reaches it, arrows go from layer to layer.
 */
import { useEffect, useRef, useState } from "preact/hooks";
import { hullWords, type Hulls, type Plate } from "./hull-layers.js";

const WIDTH = 480;
const HEIGHT = 318;
const TOP = 74;

/** Half a section: down the side, round the bilge, to the middle of the bottom; `inset` from the outside, in units. */
function section(inset: number): { length: number; at: (s: number) => [number, number] } {
  const radius = 110 - inset;
  const left = 24 + inset;
  const bottom = HEIGHT - 40 - inset;
  const side = bottom - radius - TOP;
  const floor = WIDTH / 2 - left - radius;
  const bend = (Math.PI / 2) * radius;
  const length = 2 * (side + bend + floor);
  const half = (s: number): [number, number] => {
    if (s <= side) return [left, TOP + s];
    if (s <= side + bend) {
      const angle = (s - side) / radius;
      return [left + radius * (1 - Math.cos(angle)), bottom - radius * (1 - Math.sin(angle))];
    }
    return [left + radius + (s - side - bend), bottom];
  };
  return {
    length,
    at: (s) => {
      if (s <= length / 2) return half(s);
      const [x, y] = half(length - s);
      return [WIDTH - x, y];
    },
  };
}

/** A plate between two insets, from one part of the section's length to another (0 to 1). */
function plate(outer: number, inner: number, from: number, to: number): string {
  const [outside, inside] = [section(outer), section(inner)];
  const steps = 14;
  const points: [number, number][] = [];
  for (let i = 0; i <= steps; i++)
    points.push(outside.at((from + ((to - from) * i) / steps) * outside.length));
  for (let i = steps; i >= 0; i--) points.push(inside.at((from + ((to - from) * i) / steps) * inside.length));
  return `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`;
}

interface Drawn extends Plate {
  hull: "kernel hull" | "language hull" | "outside";
  path: string;
}

const SUPERVISOR: Plate = {
  name: "supervisor",
  state: "on",
  detail: "outside, with the broker of capabilities",
  does: "Decides from outside what became of the run, holds its deadlines, and checks each call of a grant.",
};

function drawn({ kernel, language }: Hulls): Drawn[] {
  const ring = (
    plates: readonly Plate[],
    hull: Drawn["hull"],
    outer: number,
    inner: number,
    gap: number,
  ): Drawn[] =>
    plates.map((it, i) => {
      const from = i / plates.length + gap / 2;
      return { ...it, hull, path: plate(outer, inner, from, (i + 1) / plates.length - gap / 2) };
    });
  const bridge = `M${WIDTH / 2 - 62} 10h124a8 8 0 0 1 8 8v20a8 8 0 0 1 -8 8h-124a8 8 0 0 1 -8 -8v-20a8 8 0 0 1 8 -8Z`;
  return [
    { ...SUPERVISOR, hull: "outside", path: bridge },
    ...ring(kernel, "kernel hull", 0, 25, 0.0045),
    ...ring(language, "language hull", 36, 58, 0.008),
  ];
}

const STATE = { on: "on", absent: "absent: this host cannot", off: "off" } as const;

export function HullsView({ hulls, status }: { hulls: Hulls; status: string }) {
  const [chosen, choose] = useState<string | undefined>(undefined);
  const list = useRef<SVGSVGElement>(null);
  useEffect(() => choose(undefined), [hulls]); // another run
  const plates = drawn(hulls);
  const shown = plates.find(({ name }) => name === (chosen ?? hulls.ended)) ?? plates[0];
  const go = (by: number | "first" | "last") => {
    const at = plates.findIndex((it) => it === shown);
    const next =
      by === "first" ? 0 : by === "last" ? plates.length - 1 : (at + by + plates.length) % plates.length;
    choose(plates[next]?.name);
    (list.current?.querySelectorAll("[role=option]")[next] as SVGElement | undefined)?.focus();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const by = {
      ArrowRight: 1,
      ArrowDown: 1,
      ArrowLeft: -1,
      ArrowUp: -1,
      Home: "first",
      End: "last",
    } as const;
    if (!Object.hasOwn(by, event.key)) return;
    event.preventDefault();
    go(by[event.key as keyof typeof by]);
  };
  return (
    <figure class="hulls">
      <svg
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        ref={list}
        role="listbox"
        aria-label="Layers around the run"
        onKeyDown={onKeyDown}
      >
        <g aria-hidden="true" class="water">
          <path d={`M0 128q6 -5 12 0t12 0M${WIDTH - 24} 128q6 -5 12 0t12 0`} />
          <path d={`M2 138q5 -4 10 0t10 0M${WIDTH - 22} 138q5 -4 10 0t10 0`} />
          <path class="line" d={`M${WIDTH / 2} 46V${TOP + 62}`} />
          {!hulls.double && <path class="no-hull" d={plate(0, 25, 0, 1)} />}
        </g>
        {plates.map((it) => (
          <g
            key={it.name}
            role="option"
            aria-selected={it === shown}
            aria-label={`${it.name}, ${it.hull}, ${STATE[it.state]}. ${it.does}${it.name === hulls.ended ? " This ended the run." : ""}`}
            tabIndex={it === shown ? 0 : -1}
            class={`plate ${it.state} ${it.hull === "language hull" ? "inner" : ""} ${it.name === hulls.ended ? "ended" : ""}`}
            onClick={() => choose(it.name)}
            onMouseEnter={() => choose(it.name)}
            onFocus={() => choose(it.name)}
          >
            <path d={it.path} />
          </g>
        ))}
        <g aria-hidden="true" class="words">
          <text x={WIDTH / 2} y="33" class={`bridge ${hulls.ended === SUPERVISOR.name ? "ended" : ""}`}>
            supervisor
          </text>
          <text x={WIDTH / 2 + 8} y="64" class="small start">
            one socket
          </text>
          <text x={WIDTH / 2} y={HEIGHT - 22} class="name">
            {hulls.double ? "kernel hull" : "no kernel hull"}
          </text>
          <text x={WIDTH / 2} y={HEIGHT - 112} class="name">
            {`language hull · ${hulls.engine}`}
          </text>
          <rect x={WIDTH / 2 - 62} y={TOP + 62} width="124" height="48" rx="8" class={`script ${status}`} />
          <text x={WIDTH / 2} y={TOP + 83}>
            your script
          </text>
          <text x={WIDTH / 2} y={TOP + 100} class="small">
            {status}
          </text>
        </g>
      </svg>
      <figcaption>
        {shown !== undefined && (
          <p class="layer">
            <strong>{shown.name}</strong>{" "}
            <span class="where">
              {shown.hull} · {STATE[shown.state]}
              {shown.name === hulls.ended ? " · ended the run" : ""}
            </span>
            <br />
            {shown.does} <span class="detail">({shown.detail})</span>
          </p>
        )}
        <p class="sum">{hullWords(hulls)}</p>
        <ul class="legend">
          <li class="on">on</li>
          <li class="lacking">off or absent</li>
          <li class="ended">ended the run</li>
        </ul>
      </figcaption>
    </figure>
  );
}
