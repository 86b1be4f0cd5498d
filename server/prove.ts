/**
 * The full proof for `doctor`: not one layer by itself but all of them at once, as a run would have them. Starts a
 * real zygote per engine kind and has a jailed worker compute something.
 */
import type { EngineProof } from "../osjail/doctor.js";
import { SCRIPT_ENGINES } from "./engines.js";
import { Sandbox } from "./sandbox.js";

/** The V8 engines are extras: a host without their package runs scripts all the same. */
const KINDS = [
  { engine: "quickjs", by: "quickjs", name: "proof.js", source: "export default () => 1 + 1", extra: false },
  {
    engine: "typescript",
    by: "quickjs",
    name: "proof.ts",
    source: "export default (): number => 1 + 1",
    extra: false,
  },
  {
    engine: "v8-jitless",
    by: "v8-jitless",
    name: "proof.js",
    source: "export default () => 1 + 1",
    extra: true,
  },
  { engine: "v8", by: "v8", name: "proof.js", source: "export default () => 1 + 1", extra: true },
] as const;

/** Never rejects: what went wrong is the proof's result. */
export async function proveEngines(
  env: Readonly<Record<string, string | undefined>>,
): Promise<EngineProof[]> {
  const proofs: EngineProof[] = [];
  for (const engine of SCRIPT_ENGINES) {
    const kinds = KINDS.filter(({ by }) => by === engine);
    let sandbox: Sandbox | undefined;
    let proved = 0;
    try {
      sandbox = await Sandbox.create(
        {
          engine,
          image: "fast-start",
          parked: 1,
          maxConcurrent: 1,
          typescript: kinds.some((kind) => kind.engine === "typescript"),
          limits: { wallMs: 5000, cpuMs: 5000 },
        },
        { launchFrom: "main", env },
      );
      for (; proved < kinds.length; proved++) {
        proofs.push(await prove(sandbox, kinds[proved] as (typeof KINDS)[number]));
      }
    } catch (error) {
      const remedy = error instanceof Error && "remedy" in error ? error.remedy : "";
      const failed = kinds[proved];
      proofs.push({
        engine: failed?.engine ?? engine,
        ok: false,
        extra: failed?.extra ?? false,
        detail: error instanceof Error ? error.message : String(error),
        remedy: typeof remedy === "string" ? remedy : "",
        layers: [],
      });
    } finally {
      await sandbox?.close();
    }
  }
  return proofs;
}

async function prove(
  sandbox: Sandbox,
  { engine, name, source, extra }: (typeof KINDS)[number],
): Promise<EngineProof> {
  const outcome = await sandbox.run(source, { name });
  const ok = outcome.status === "ok" && outcome.value === 2;
  return {
    engine,
    ok,
    extra,
    detail: ok ? "1 + 1 is 2 in a jailed worker" : `a jailed worker ended with: ${JSON.stringify(outcome)}`,
    remedy: ok ? "" : "Please report this with the whole report.",
    layers: outcome.layers.kernel,
  };
}
