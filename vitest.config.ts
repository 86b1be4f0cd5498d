import { defineConfig } from "vitest/config";
import type { Reporter, TestModule } from "vitest/node";

/** The last line of a run, in words that any log reader understands. */
const total: Reporter = {
  onTestRunEnd(modules: readonly TestModule[]) {
    const count = { passed: 0, failed: 0, skipped: 0 };
    for (const module of modules) {
      let broken = module.errors().length > 0;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        if (state !== "pending") count[state]++;
        if (state === "failed") broken = false;
      }
      if (broken) count.failed++;
    }
    console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
  },
};

// Forks, not threads: what locks a process down must not lock the runner. Two workers: the tests start processes of their own.
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000,
    reporters: ["default", total],
  },
});
