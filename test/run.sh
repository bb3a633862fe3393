#!/usr/bin/env bash
# Runs every test once and writes what `go test -json` says to standard output, for gotestsum (make test).
#
# A test that measures time has a name that begins with TestTimed. Such tests run last and alone: no other package
# beside them, and no other test. All others run before, SIDE packages side by side, where no benchmark keeps the cores
# awake. TestLong… takes so long that it does not run here: make test-long. There are no other marks.
#
# A skipped test has to be in test/skips.txt, and what began has to end (test/complete.sh); else the exit code is 2,
# after which gotestsum runs nothing again.
#
# With arguments, a pattern and a package, it runs that test alone: gotestsum calls it so for one that failed.
set -uo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go}
events=$(mktemp)
trap 'rm -f "$events"' EXIT
if [ $# -gt 0 ]; then
  case $1 in *TestTimed*) ;; *) export BENCH_AWAKE=no ;; esac
  "$go" test -json -count=1 -vet=off -timeout 8m "$@" | tee "$events" || exit 1
  test/skips.sh "$events" >&2 || exit 2
  exit 0
fi

# timed lists the packages that have a test with the mark.
timed() {
  grep -rl --include='*_test.go' '^func TestTimed' . | xargs -r dirname | sort -u
}

# All is compiled first: a compiler beside calls takes the time of both cores. `make lint` vets.
"$go" list -export -test -deps ./... > /dev/null

# The package that takes longest comes first, so that the others run beside it.
failed=0
flags=(-json -count=1 -vet=off -ldflags='-s -w')
BENCH_AWAKE=no "$go" test "${flags[@]}" -timeout 8m -p "${SIDE:-2}" -skip '^Test(Timed|Long)' ./test/e2e ./... |
  tee "$events" || failed=1
mapfile -t packages < <(timed)
"$go" test "${flags[@]}" -timeout 4m -p 1 -run '^TestTimed' "${packages[@]}" | tee -a "$events" || failed=1
test/skips.sh "$events" >&2 || failed=2
test/complete.sh "$events" >&2 || failed=2
exit $failed
