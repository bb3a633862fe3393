#!/usr/bin/env bash
# Boots a Debian kernel in QEMU (no KVM needed) on an initramfs made of this machine's own tools, and runs the
# tests in there that want what a development kernel may lack: WireGuard, 802.1Q, fq_codel, cake, netem, a clock that may be set.
#
#   test/vm/run.sh [go test flags, like -test.run=Clock; then ./test/vm and ./tunnel/kernel alone]
set -euo pipefail
cd "$(dirname "$0")/../.."
. test/vm/guest.sh
cp -r configs "$root/test/configs"
export CGO_ENABLED=0
go test -c -o "$root/test/vm.test" ./test/vm
go test -c -o "$root/test/kernel.test" ./tunnel/kernel
go test -c -o "$root/test/realtime.test" ./tunnel/realtime
go test -c -o "$root/test/tc.test" ./qos/tc

echo "$*" > "$root/test/flags" # a file: a shell would take a | in them for its own
cat > "$root/init" <<I
$guest_init
cd /test
rc=0
./kernel.test -test.v -test.timeout 2m \$(cat flags) || rc=1
if [ -z "\$(cat flags)" ]; then
  ./realtime.test -test.v -test.timeout 5m -test.run Kernel || rc=1
  # fq_codel, cake, VLANs: what a plan becomes here, and what tc makes of its words.
  ./tc.test -test.v -test.timeout 5m -test.run 'Probe|Oracle/.*(site|cake|fq_codel|20mbit|ip)|Words|StopGives|CoDel' || rc=1
fi
./vm.test -test.v -test.timeout 8m \$(cat flags) || rc=1
echo "guest exit: \$rc"
poweroff -f
I

log=$cache/guest.log
guest_boot 900 -accel tcg,thread=multi -smp 2 -m 1536 | sed -u 's/\r//g' | tee "$log"
grep -q '^guest exit: 0$' "$log" || { echo "tests in the guest failed, or it did not end in order; all it said: $log"; exit 1; }
