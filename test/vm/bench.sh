#!/usr/bin/env bash
# Runs `ringway bench link` on a Debian kernel in QEMU, which has fq_codel and cake. Report, plots and log go to
# bench-out/vm.
#
#   test/vm/bench.sh [words for ringway bench link]
set -euo pipefail
cd "$(dirname "$0")/../.."
. test/vm/guest.sh
out=${OUT:-bench-out/vm}
for tool in ss iperf3 timeout; do guest_tool "$tool"; done # busybox's timeout would run busybox's ping
cp bin/wireguard-go "$root/usr/bin/wireguard-go"
mkdir -p "$root/usr/lib/ringway" && cp bin/ringway-lab "$root/usr/lib/ringway/ringway-lab"

cat > "$root/init" <<I
$guest_init
modprobe -a virtio_pci virtio_blk
for q in htb tbf fq_codel cake; do modprobe sch_\$q; done
mkdir -p /tmp/out && cd /tmp/out && touch progress.txt
/usr/bin/ringway bench link --plot /tmp/out --json $* > link.json 2> progress.txt &
pid=\$!
tail -f progress.txt & watcher=\$!
wait \$pid; rc=\$?
kill \$watcher
[ \$rc = 0 ] || tail -n 30 progress.txt
head -1 /proc/stat
tar -cf /dev/vda -C /tmp/out . && sync
echo "guest exit: \$rc"
poweroff -f
I

truncate -s 64M "$work/out.img" # a disk that holds one tar, and nothing else
mkdir -p "$out"
log=$out/guest.log
# The guest's clock counts instructions, one per nanosecond: it stops while this machine does something else, and runs
# ahead while the guest is idle. So a busy machine makes a run longer and changes no figure. It uses one processor.
accel=${ACCEL:--accel tcg -icount shift=0,sleep=off -smp 1}
began=$SECONDS
# shellcheck disable=SC2086 # words for qemu
guest_boot "${LIMIT:-3000}" $accel -m 2048 -drive file="$work/out.img",if=virtio,format=raw |
  sed -u 's/\r//g' | tee "$log"
echo "$((SECONDS - began)) s of this machine's time"
grep -q '^guest exit: 0$' "$log" || { echo "the run in the guest failed, or did not finish; its log: $log"; exit 1; }
tar -xf "$work/out.img" -C "$out"
echo "report, tables and plots: $out"
