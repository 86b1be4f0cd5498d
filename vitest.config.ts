import { defineConfig } from "vitest/config";

// Forks, not threads: what locks a process down must not lock the runner. Two workers: the tests start processes of their own.
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});
