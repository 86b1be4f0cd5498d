/** Makes the playground's pages: `npm run build` puts them into dist/server/playground, which the service serves. */
import { fileURLToPath } from "node:url";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

export default {
  root: here("."),
  base: "./", // wherever a proxy puts it
  build: {
    outDir: here("../../dist/server/playground"),
    emptyOutDir: true,
    target: "es2023",
    sourcemap: false, // they would hold this machine's paths
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 1000,
    reportCompressedSize: false,
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
};
