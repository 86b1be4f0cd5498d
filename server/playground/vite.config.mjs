/** Makes the playground's pages: `npm run build` puts them into dist/server/playground, which the service serves. */
import fs from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { brotliCompress, constants, gzip } from "node:zlib";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

const brotli = promisify(brotliCompress);
const gzipped = promisify(gzip);
const best = { params: { [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY } };
/** Smaller forms beside each file, for the service to choose from: it compresses nothing itself. */
const forms = {
  ".br": (bytes) => brotli(bytes, best),
  ".gz": (bytes) => gzipped(bytes, { level: constants.Z_BEST_COMPRESSION }),
};
const smallerForms = {
  name: "smaller-forms",
  async writeBundle({ dir }, bundle) {
    for (const name of Object.keys(bundle)) {
      const plain = await fs.readFile(path.join(dir, name));
      for (const [suffix, compress] of Object.entries(forms)) {
        const bytes = await compress(plain);
        if (bytes.length < plain.length) await fs.writeFile(path.join(dir, name + suffix), bytes);
      }
    }
  },
};

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
    rolldownOptions: { checks: { bundlerTimings: false } }, // the smaller forms take most of it
  },
  plugins: [smallerForms],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
};
