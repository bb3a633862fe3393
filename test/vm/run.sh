#!/usr/bin/env bash
# Boots a Debian kernel in QEMU (no KVM needed) on an initramfs made of this machine's own tools, and runs the
# tests in it that need what a development kernel may lack: WireGuard, 802.1Q, fq_codel, cake, netem, and a clock that
# may be set.
#
#   test/vm/run.sh [go test flags, like -test.run=Clock; then ./test/vm and ./tunnel/kernel alone]
set -euo pipefail
cd "$(dirname "$0")/../.."
. test/vm/guest.sh
for tool in tcpdump timeout dnsmasq; do guest_tool "$tool"; done
cp -r configs "$root/test/configs"
export CGO_ENABLED=0
go test -c -o "$root/test/vm.test" ./test/vm
go test -c -o "$root/test/kernel.test" ./tunnel/kernel
go test -c -o "$root/test/realtime.test" ./tunnel/realtime
go test -c -o "$root/test/tc.test" ./qos/tc
go test -c -o "$root/test/nft.test" ./firewall/nft

echo "$*" > "$root/test/flags" # a file: a shell would take a | in them for its own
cat > "$root/init" <<I
$guest_init
cd /test
rc=0
./kernel.test -test.v -test.timeout 2m \$(cat flags) || rc=1
if [ -z "\$(cat flags)" ]; then
  ./realtime.test -test.v -test.timeout 5m -test.run Kernel -test.skip KernelRekey || rc=1
  # It waits for WireGuard's timer of two minutes: the next ones run meanwhile.
  ./realtime.test -test.v -test.timeout 5m -test.run KernelRekey > rekey.log 2>&1 &
  rekey=\$!
  # fq_codel, cake, VLANs: what a plan becomes here, and what tc makes of its words.
  ./tc.test -test.v -test.timeout 5m \
    -test.run 'Probe|Oracle/.*(site|cake|fq_codel|20mbit|ip)|Words|StopGives|CoDel' || rc=1
  # Elements of dynamic sets on a kernel that can neither update one nor delete one that may be gone.
  ./nft.test -test.v -test.timeout 5m \
    -test.run 'ElementsComeAndGo|RefreshWithTheSameLife|DeletionIsIdempotent|AHoleOpens' || rc=1
  wait \$rekey || rc=1
  cat rekey.log
fi
./vm.test -test.v -test.timeout 8m \$(cat flags) || rc=1
echo "guest exit: \$rc"
poweroff -f
I

log=$cache/guest.log
boot() { guest_boot 900 -accel tcg,thread=multi -smp 2 -m 1536 | sed -u 's/\r//g' | tee "$log"; }
boot || true
if grep -q 'Kernel panic - not syncing: softlockup' "$log"; then
  echo "the guest's kernel did not run any more (a lost interrupt of the emulated processors): booting it again, once"
  boot
fi
[ -n "$*" ] || ! grep 'no tests to run' "$log" || { echo "a name in $0 matches no test any more"; exit 1; }
grep -q '^guest exit: 0$' "$log" || { echo "tests in the guest failed, or did not finish; the log: $log"; exit 1; }
