#!/usr/bin/env bash
# Fails if a package failed though none of its tests did, as when its TestMain or a leak check fails, or if a test began
# and did not end, as when its process is killed: the tests behind it did not run. Where gotestsum runs tests that
# failed once more, it would not see those.
#
#   test/complete.sh EVENTS    the output of go test -json
set -euo pipefail
jq -rs '
  (map(select(.Action == "fail" and .Test != null) | .Package) | unique) as $tests |
  (map(select(.Action == "fail" and .Test == null and .Package != null) | .Package) | unique) - $tests |
  map("package \(.) failed, and none of its tests")[]' "$1" > "$1.incomplete"
jq -r 'select(.Test != null and (.Action | IN("run", "pass", "fail", "skip"))) |
  "\(.Action) \(.Package) \(.Test)"' "$1" |
  awk '$1 == "run" { began[$2 " " $3]++; next } { began[$2 " " $3]-- }
       END { for (test in began) if (began[test] > 0) print test " began and did not end" }' >> "$1.incomplete"
code=0
if [ -s "$1.incomplete" ]; then
  cat "$1.incomplete"
  code=1
fi
rm -f "$1.incomplete"
exit $code
