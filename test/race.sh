#!/usr/bin/env bash
# Runs the tests under the race detector and prints the coverage. cgo is for test programs only: what ships has none.
#
# Left out are tests that measure time or allocations, and packages whose tests run the shipped program, which the
# detector does not see.
set -euo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go}
outside='^ringway/test/(bench|e2e|interop|lab|oracle|systemd|vm|words|imports)$'
# Those that take longest come first.
slow=(ringway/{tunnel/realtime,sip/relay,firewall/nft,srtp/plane,appliance/commit})
mapfile -t packages < <(
  printf '%s\n' "${slow[@]}"
  "$go" list ./... | grep -vE "$outside" | grep -vxF -f <(printf '%s\n' "${slow[@]}")
)

# Measure time, memory or rates without being TestTimed, or compute for minutes under the detector.
measures='HugeInput|MemoryOfManySites|DeadPeersAreBounded|ForgedPacketsAreBounded|LostSessionsDoNotWedge'
measures+='|ACallOverPlanesThatComeAndGo|BurstsOfHandshakes.*|TheRateIsTheMeters|RelayKeepsTimeInABusyProcess'
measures+='|ManySitesStayUnderTheirShare|EveryPairCounts'
crossing='^TestSuite$/^BothEndsStartTogether$' # how often handshakes cross depends on how long they take
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# A child that the tests start gets GORACE as well. Without atexit_sleep_ms each child would sleep for a second when
# it ends; with halt_on_error a race in a child ends the child, which fails the test.
export CGO_ENABLED=1 GORACE='atexit_sleep_ms=0 halt_on_error=1'
code=0
# Everything takes ten times as long, so that a limit of time may be passed: up to five tests that fail run once more,
# alone, and are named at the end. After a race none does.
"$go" tool gotestsum --format pkgname --hide-summary=skipped --jsonfile "$dir/events" \
  --rerun-fails=1 --rerun-fails-max-failures=5 --rerun-fails-abort-on-data-race --rerun-fails-report="$dir/again" \
  --packages="${packages[*]}" -- \
  -race -vet=off -ldflags='-s -w' -covermode=atomic -coverprofile="$dir/profile" -count=1 -timeout 5m -p "${SIDE:-2}" \
  -skip "^Test(Timed|Long)|Alloc|^Test($measures)\$|$crossing" || code=$?
test/skips.sh "$dir/events" || code=1
test/complete.sh "$dir/events" || code=1
if [ -s "$dir/again" ]; then
  echo "tests that ran again:"
  cat "$dir/again"
elif [ -s "$dir/profile" ]; then
  echo "coverage by these tests, of all statements: $("$go" tool cover -func="$dir/profile" | awk 'END { print $NF }')"
fi
exit $code
