#!/usr/bin/env bash
# The main job, from a fresh clone: install what is missing, build, import the bundled model, answer a
# question with three quarters of the experts not in memory, then serve it on 127.0.0.1:8080.
set -euo pipefail
cd "$(dirname "$0")"

scripts/install-dependencies.sh
cmake --preset release >/dev/null
cmake --build build/release --target moraine

moraine=build/release/moraine
store=build/demo-store
"$moraine" import models/demo "$store"  # finishes one that was interrupted; nothing, if it is there
"$moraine" inspect "$store"

echo
echo "> What is 247 + 6?        (25 % of the experts fit in memory, the rest is read as it is needed)"
"$moraine" run "$store" "What is 247 + 6?" --ram-budget 25% --temperature 0

echo
exec "$moraine" serve "$store" --ram-budget 25% "$@"
