#!/usr/bin/env bash
# Looks for tests that do not always pass: runs what measures no time 20 times beside two busy loops, and timed tests
# 5 times alone; then prints how often each test failed. It takes hours, on an otherwise idle machine.
#
#   test/repeat.sh [PACKAGE...]    default ./...
#
# RUNS and TIMED_RUNS set other numbers. The output of failed tests is kept in dist/repeat.
set -uo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go}
packages=("${@:-./...}")
out=dist/repeat
rm -rf "$out"
mkdir -p "$out"

loops=()
stop() { [ ${#loops[@]} = 0 ] || kill "${loops[@]}" 2>/dev/null; loops=(); }
trap stop EXIT
for _ in 1 2; do
  while :; do :; done &
  loops+=($!)
done

# A run each, not -count: every run is a process of its own, and its tests come in another order.
for run in $(seq "${RUNS:-20}"); do
  echo "run $run of ${RUNS:-20}, beside two busy loops" >&2
  BENCH_AWAKE=no "$go" test -json -count=1 -shuffle=on -timeout 20m -p 2 \
    -skip '^Test(Timed|Long)' "${packages[@]}" > "$out/$run.json"
done
stop

mapfile -t timed < <("$go" list -f '{{.Dir}}' "${packages[@]}" |
  while read -r dir; do ! grep -qs '^func TestTimed' "$dir"/*_test.go || echo "$dir"; done)
for run in $(seq "${TIMED_RUNS:-5}"); do
  echo "timed run $run of ${TIMED_RUNS:-5}, alone" >&2
  "$go" test -json -count=1 -timeout 10m -p 1 -run '^TestTimed' "${timed[@]}" > "$out/timed-$run.json"
done

cat "$out"/*.json | jq -r 'select((.Action == "pass" or .Action == "fail") and .Test != null) |
  "\(.Package | ltrimstr("ringway/")) \(.Test) \(.Action)"' | awk '
  { key = $1 " " $2; runs[key]++; if ($3 == "fail") failed[key]++ }
  END {
    for (key in runs) all++
    for (key in failed) { unsteady++; printf "%d of %d  %s\n", failed[key], runs[key], key }
    printf "%d of %d tests failed at least once\n", unsteady, all
  }' | sort -rn
