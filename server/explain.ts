/**
 * What a run may do on this host, in words and as data: made from the same tables that the jail, the filter and the
 * limits are made from, so it cannot say something else than they do. Pure: the host has been read and the jail
 * planned by the caller; nothing is started and nothing is tried (that is `doctor`).
 */
import { LANDLOCK } from "../osjail/abi/linux.js";
import { disassemble } from "../osjail/bpf.js";
import { explainLandlock } from "../osjail/landlock.js";
import type { JailPlan, LayerReport } from "../osjail/plan.js";
import { compile, explainProfile, PROFILES, type ExplainedRule } from "../osjail/seccomp.js";
import { FIXED_LIMITS, LIMITS, type LimitName, type Limits } from "./limits.js";
import type { GrantWords } from "./policy-words.js";

export interface LimitLine {
  name: LimitName;
  value: number;
  default: number;
  min: number;
  max: number;
  /** The attack behind it. */
  stops: string;
}

export interface Explanation {
  hull: "double" | "language-only";
  engine: string;
  limits: LimitLine[];
  /** Not for sale, with who holds them. */
  fixed: { name: string; value: number; held: string }[];
  /** What it may do through the broker. */
  grants: readonly GrantWords[];
  /** Empty without a kernel hull; the three below are then absent. */
  layers: LayerReport[];
  systemCalls?: ExplainedRule[];
  /** Rights that the ruleset handles. None of them is granted. */
  landlock?: { abi: number; refused: string[]; summary: string };
  /** The seccomp program, disassembled; only if asked for. */
  filter?: string;
}

export interface ExplainRequest {
  engine: string;
  limits: Readonly<Limits>;
  grants: readonly GrantWords[];
  /** Absent: hull "language-only". */
  plan: JailPlan | undefined;
  filter: boolean;
}

export function explain({ engine, limits, grants, plan, filter }: ExplainRequest): Explanation {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- keys of a table that is const
  const rows = (Object.keys(LIMITS) as LimitName[]).map((name) => ({
    name,
    value: limits[name],
    ...LIMITS[name],
  }));
  const fixed = Object.entries(FIXED_LIMITS).map(([name, row]) => ({ name, ...row }));
  if (plan === undefined)
    return { hull: "language-only", engine, limits: rows, fixed: [], grants, layers: [] };
  const profile = PROFILES[plan.profile];
  return {
    hull: "double",
    engine,
    limits: rows,
    fixed,
    grants,
    layers: plan.layers,
    systemCalls: explainProfile(profile, plan.arch),
    landlock: {
      abi: plan.landlock.abi,
      refused: refusedRights(plan),
      summary: explainLandlock(plan.landlock),
    },
    ...(filter
      ? { filter: disassemble(compile(profile, { arch: plan.arch, refusal: "trace" }), { arch: plan.arch }) }
      : {}),
  };
}

const named = (kind: string, mask: number, bits: Readonly<Record<string, number>>): string[] =>
  Object.entries(bits).flatMap(([name, bit]) =>
    (mask & bit) !== 0 ? [`${kind}: ${name.toLowerCase().replaceAll("_", " ")}`] : [],
  );

/** The names of the bits that the ruleset handles, by kind. */
function refusedRights({ landlock }: JailPlan): string[] {
  return [
    ...named("file", landlock.fs, LANDLOCK.ACCESS_FS),
    ...named("net", landlock.net, LANDLOCK.ACCESS_NET),
    ...named("scope", landlock.scope, LANDLOCK.SCOPE),
  ];
}

/** Columns as wide as their widest cell; the last one is as long as it is. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows.reduce<number[]>(
    (w, row) => row.map((cell, i) => Math.max(w[i] ?? 0, cell.length)),
    [],
  );
  return rows
    .map((row) =>
      row.map((cell, i) => (i === row.length - 1 ? cell : cell.padEnd(widths[i] ?? 0))).join("  "),
    )
    .map((line) => `  ${line.trimEnd()}\n`)
    .join("");
}

/** Each grant and what bounds it. The texts of a policy's writer in it are for the caller to escape. */
export function grantsText(grants: readonly GrantWords[]): string {
  if (grants.length === 0) return "  nothing: it computes, and reaches nothing outside its process\n";
  return grants
    .map(({ name, what, details }) =>
      [`  ${name}: ${what}\n`, ...details.map((line) => `      ${line}\n`)].join(""),
    )
    .join("");
}

export function explanationText(explanation: Explanation): string {
  const { hull, engine, limits, fixed, grants, layers, systemCalls, landlock, filter } = explanation;
  const parts = [
    `A run gets a new process that has never served anyone, the ${engine} engine in it, and these limits:\n`,
    table([
      ["limit", "value", "default", "from", "to", "stops"],
      ...limits.map((row) => [
        row.name,
        ...[row.value, row.default, row.min, row.max].map(String),
        row.stops,
      ]),
    ]),
  ];
  parts.push("\nGranted, through the capability broker:\n", grantsText(grants));
  if (hull === "language-only") {
    parts.push(
      "\nThere is NO kernel hull (language-only): a hole in the engine is a hole in this machine. For development.\n",
    );
    return parts.join("");
  }
  parts.push(
    "\nFixed for every run:\n",
    table([["limit", "value", "held by"], ...fixed.map((row) => [row.name, String(row.value), row.held])]),
    "\nLayers of the kernel hull (`doublehull doctor` tries each of them):\n",
    table([["layer", "state", "detail"], ...layers.map((row) => [row.layer, row.state, row.detail])]),
  );
  if (landlock !== undefined) {
    parts.push(
      `\nLandlock ${landlock.summary}. Handled, and granted nowhere:\n`,
      ...landlock.refused.map((right) => `  ${right}\n`),
    );
  }
  if (systemCalls !== undefined) {
    parts.push(
      `\nThe ${systemCalls.length} system calls that are left; any other ends the run and is named:\n`,
    );
    for (const { call, nr, reason, conditions } of systemCalls) {
      parts.push(`  ${call} (${nr}): ${reason}\n`, ...conditions.map((condition) => `      ${condition}\n`));
    }
  }
  if (filter !== undefined) parts.push("\nThe seccomp filter, as the kernel runs it:\n", `${filter}\n`);
  return parts.join("");
}
