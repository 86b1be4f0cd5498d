import type { Program, Seen } from "./suite.mjs";

export interface Failure {
  mode: Program["mode"];
  why: string;
  bare?: string;
}
export interface Result {
  path: string;
  features: string[];
  modes: number;
  failures: Failure[];
}
export interface Jail {
  globals(): Promise<string[]>;
  run(program: Pick<Program, "type" | "name" | "source" | "modules">, wallMs: number): Promise<Seen>;
  close(): Promise<void>;
}
export interface Known {
  engineLacks: Record<string, { failing: number; of: number }>;
  engineFails: Record<string, { failing: number; of: number; tests: Record<string, string[] | "all"> }>;
  ours: string[];
  deliberate: Record<string, string>;
}
export const LAST_WALL_MS: number;
export function openJail(options: {
  engine?: string;
  jobs: number;
  maxWallMs: number;
  image?: "fast-start" | "fast-run";
}): Promise<Jail>;
export function listTests(suite: string, choice?: { filter?: string; sample?: number }): string[];
export function runTests(
  jail: Jail,
  options: { engine?: string; suite: string; paths: readonly string[]; jobs: number },
): Promise<{ results: Result[]; skipped: Record<string, number>; programs: number }>;
export function describeFailures<H extends object>(results: readonly Result[], header: H): H & Known;
export function compare(
  known: Known | undefined,
  results: readonly Result[],
): Record<"fresh" | "ours" | "healed", ({ path: string } & Partial<Failure>)[]>;
