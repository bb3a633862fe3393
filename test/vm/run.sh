#!/usr/bin/env bash
# Boots a Debian kernel in QEMU (no KVM needed) on an initramfs made of this machine's own tools, and runs the
# tests in there that want what a development kernel may lack: WireGuard, 802.1Q, a clock that may be set.
# Downloads one Debian package (the kernel, about 27 MB) into dist/vm and keeps it. Needs no network in the guest.
#
#   test/vm/run.sh [go test flags, like -test.run=Clock]
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=dist/vm
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -e "$cache/vmlinuz" ]; then
  echo "looking for the newest Debian cloud kernel"
  apt-get update -qq
  pkg=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-[0-9]/ && !n++ {print $2}')
  echo "downloading the Debian kernel package: $pkg"
  (cd "$work" && apt-get -o APT::Sandbox::User=root download -qq "$pkg" && dpkg-deb -x "$pkg"_*.deb kernel)
  rm -rf "$cache/modules"
  cp -r "$work/kernel/lib/modules" "$cache/modules"
  mkdir -p "$work/kernel/lib" && depmod -b "$work/kernel" "$(ls "$cache/modules")"
  cp -r "$work/kernel/lib/modules/." "$cache/modules/"
  cp "$work"/kernel/boot/vmlinuz-* "$cache/vmlinuz" # last: its presence says that the cache is whole
fi
release=$(ls "$cache/modules")

root=$work/root
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,lib,lib64,proc,sys,dev,tmp,run,etc,var/lib,test}
ln -s ../run "$root/var/run"
cp /bin/busybox "$root/bin/busybox"
# Whole tools, not busybox's: the tests read the output of the real ones.
for tool in ip tc nft wg ping nsenter unshare sysctl; do
  path=$(command -v "$tool") || { echo "missing tool: $tool (make test-packages)"; exit 1; }
  cp -L "$path" "$root/usr/bin/$tool"
  ldd "$path" 2>/dev/null | grep -o '/[^ ]*' | while read -r lib; do
    mkdir -p "$root$(dirname "$lib")" && cp -Ln "$lib" "$root$lib"; done
done
# The kernel itself calls this one for what nftables, tc and ip ask of it, as it would on a box.
cp -L "$(command -v modprobe)" "$root/sbin/modprobe"
ldd "$(command -v modprobe)" | grep -o '/[^ ]*' | while read -r lib; do mkdir -p "$root$(dirname "$lib")" && cp -Ln "$lib" "$root$lib"; done
mkdir -p "$root/lib/modules/$release"
# Only what the tests load; TCG unpacks slowly.
(cd "$cache/modules/$release" && cp modules.* "$root/lib/modules/$release/" &&
  find kernel/net kernel/drivers/net/{wireguard,veth.ko,tun.ko,dummy.ko,ifb.ko} kernel/crypto kernel/arch/x86/crypto kernel/lib -name '*.ko' \
    | cpio -pdm --quiet "$root/lib/modules/$release")
cp bin/ringway "$root/usr/bin/ringway"
cp -r configs "$root/test/configs"
export CGO_ENABLED=0
go test -c -o "$root/test/vm.test" ./test/vm
go test -c -o "$root/test/kernel.test" ./tunnel/kernel
go test -c -o "$root/test/realtime.test" ./tunnel/realtime
go test -c -o "$root/test/tc.test" ./qos/tc
cat > "$root/etc/passwd" <<'P'
root:x:0:0:root:/:/bin/sh
P
printf 'root:x:0:\n' > "$root/etc/group"

cat > "$root/init" <<'I'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/ RINGWAY_VM=1
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp
mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
modprobe tun # its device node is there already, and asks for nothing
cd /test
rc=0
ip link set lo up
./kernel.test -test.v -test.timeout 2m $(cat flags) || rc=1
./realtime.test -test.v -test.timeout 5m -test.run Kernel || rc=1
# fq_codel, cake, VLANs: what a plan becomes here, and what tc makes of its words.
./tc.test -test.v -test.timeout 5m -test.run 'Probe|Oracle/.*(site|cake|fq_codel|20mbit|ip)|Words|StopGives|CoDel' || rc=1
./vm.test -test.v -test.timeout 8m $(cat flags) || rc=1
echo "guest exit: $rc"
poweroff -f
I
echo "$*" > "$root/test/flags"
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) > "$work/initrd"

log=$cache/guest.log
# TCG on purpose: nested KVM is absent or broken where this has to run, and the tests are not about speed.
timeout --kill-after=10 900 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1536 -nodefaults -no-reboot -display none -serial stdio \
  -rtc base=utc -kernel "$cache/vmlinuz" -initrd "$work/initrd" \
  -append 'console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off' < /dev/null | tr -d '\r' | tee "$log"
grep -q '^guest exit: 0$' "$log" || { echo "tests in the guest failed, or it did not end in order; all it said: $log"; exit 1; }
