#!/usr/bin/env bash
# Boots Debian's full kernel in QEMU (the cloud kernel has no PPP) and runs the tests that dial: the real pppd against
# the real pppoe-server. The kernel has a cache of its own, dist/vm-full.
#
#   test/vm/pppoe.sh [go test flags, like -test.run=PPPoE]
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=dist/vm-full kernel=linux-image-amd64
. test/vm/guest.sh
for tool in pppd pppoe-server pppoe; do guest_tool "$tool" /usr/sbin; done
for tool in tcpdump timeout; do guest_tool "$tool"; done
plugins=$(dirname "$(find /usr/lib/pppd -name pppoe.so)")
mkdir -p "$root$plugins" "$root/etc/ppp"
cp "$plugins/pppoe.so" "$root$plugins/"
(cd "$cache/modules/$release" &&
  find kernel/drivers/net/ppp kernel/drivers/net/slip -name '*.ko' | cpio -pdm --quiet "$root/lib/modules/$release")
cp -r configs "$root/test/configs"
CGO_ENABLED=0 go test -c -o "$root/test/vm.test" ./test/vm

echo "${*:--test.run=PPPoE}" > "$root/test/flags" # a file: a shell would take a | in it for its own
cat > "$root/init" <<I
$guest_init
export TEST_VM_PPPOE=1
[ -e /dev/ppp ] || mknod /dev/ppp c 108 0 # as systemd does for a module that is not loaded yet
cd /test
rc=0
./vm.test -test.v -test.timeout 12m \$(cat flags) || rc=1
echo "guest exit: \$rc"
poweroff -f
I

log=$cache/guest.log
guest_boot 900 -accel tcg,thread=multi -smp 2 -m 1024 | sed -u 's/\r//g' | tee "$log"
! grep 'no tests to run' "$log" || { echo "a name in $0 matches no test any more"; exit 1; }
grep -q '^guest exit: 0$' "$log" || { echo "tests in the guest failed, or did not finish; the log: $log"; exit 1; }
