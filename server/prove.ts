/**
 * The full proof for `doctor`: not one layer by itself but all of them at once, as a run would have them. Starts a
 * real zygote per engine kind and has a jailed worker compute something.
 */
import type { EngineProof } from "../osjail/doctor.js";
import { Sandbox } from "./sandbox.js";

const KINDS = [
  { engine: "quickjs", name: "proof.js", source: "export default () => 1 + 1" },
  { engine: "typescript", name: "proof.ts", source: "export default (): number => 1 + 1" },
] as const;

/** Never rejects: what went wrong is the proof's result. */
export async function proveEngines(
  env: Readonly<Record<string, string | undefined>>,
): Promise<EngineProof[]> {
  const proofs: EngineProof[] = [];
  let sandbox: Sandbox | undefined;
  try {
    sandbox = await Sandbox.create(
      {
        image: "fast-start",
        parked: 1,
        maxConcurrent: 1,
        typescript: true,
        limits: { wallMs: 5000, cpuMs: 5000 },
      },
      { launchFrom: "main", env },
    );
    for (const { engine, name, source } of KINDS) {
      const outcome = await sandbox.run(source, { name });
      const ok = outcome.status === "ok" && outcome.value === 2;
      proofs.push({
        engine,
        ok,
        detail: ok
          ? "1 + 1 is 2 in a jailed worker"
          : `a jailed worker ended with: ${JSON.stringify(outcome)}`,
        remedy: ok ? "" : "Please report this with the whole report.",
        layers: outcome.layers.kernel,
      });
    }
  } catch (error) {
    const remedy = error instanceof Error && "remedy" in error ? error.remedy : "";
    proofs.push({
      engine: KINDS[proofs.length]?.engine ?? "quickjs",
      ok: false,
      detail: error instanceof Error ? error.message : String(error),
      remedy: typeof remedy === "string" ? remedy : "",
      layers: [],
    });
  } finally {
    await sandbox?.close();
  }
  return proofs;
}
