#!/usr/bin/env bash
# Fails if a test was skipped that test/skips.txt does not list.
#
#   test/skips.sh EVENTS    the output of go test -json
set -euo pipefail
list=$(dirname "$0")/skips.txt
unexpected=$(jq -r 'select(.Action == "skip" and .Test != null) | "\(.Package) \(.Test)"' "$1" | sort -u |
  awk -v list="$list" '
    BEGIN {
      while ((getline line < list) > 0)
        if (line !~ /^(#|$)/) { split(line, field); expected[field[1] " " field[2]] = 1 }
    }
    { sub(/^ringway\//, ""); test = $0; sub(/\/[^ ]*$/, "", $2) } # a test that is listed covers its subtests
    !($1 " " $2 in expected) { print test }')
if [ -n "$unexpected" ]; then
  printf 'skipped, but not listed in %s:\n%s\n' "$list" "$unexpected"
  exit 1
fi
