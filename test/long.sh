#!/usr/bin/env bash
# Runs the tests of whole branches that take long. Up to two that fail run once more, alone, and are named at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
code=0
"${GO:-go}" tool gotestsum --format standard-verbose --hide-summary=skipped --jsonfile "$dir/events" \
  --rerun-fails=1 --rerun-fails-max-failures=2 --rerun-fails-report="$dir/again" \
  --packages="./test/e2e ./test/bench ./tunnel/realtime ./srtp/media" -- \
  -count=1 -timeout 25m -p 1 -run '^TestLong' || code=$?
test/complete.sh "$dir/events" || code=1
if [ -s "$dir/again" ]; then
  echo "tests that ran again:"
  cat "$dir/again"
fi
exit $code
