export interface Test {
  path: string;
  source: string;
  flags: string[];
  includes: string[];
  features: string[];
  locale: string[];
  negative: { phase: string; type: string } | undefined;
}
export interface Program {
  path: string;
  mode: "sloppy" | "strict" | "raw" | "module";
  negative: Test["negative"];
  isAsync: boolean;
  type: "script" | "module";
  name: string;
  source: string;
  modules: Record<string, string>;
}
export type Seen =
  | { status: "ok"; value?: unknown }
  | { status: "threw"; name: string; message: string }
  | { status: "stopped"; reason: string };

export function readFrontmatter(source: string): Omit<Test, "path" | "source">;
export const SCOPE: Readonly<Record<string, string>>;
export function outOfScope(test: Test, has: readonly string[]): string | undefined;
export function programsOf(
  test: Test,
  files: { read(name: string): string | undefined; harness(name: string): string | undefined },
): Program[];
export function verdict(program: Pick<Program, "negative" | "isAsync">, seen: Seen): string | undefined;
export function besideOf(from: string, wanted: string): string;
