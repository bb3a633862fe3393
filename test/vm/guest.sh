# What the scripts beside it share: a Debian kernel, and a root file system made of this machine's own tools. To be
# sourced at the top of the tree; needs no network in the guest. Takes kernel (a Debian package) and cache (its
# directory), and sets work (removed at exit), root and release.
cache=${cache:-dist/vm}
kernel=${kernel:-linux-image-cloud-amd64}
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The kernel: one Debian package (27 MB, the full one 68), downloaded once.
if [ ! -e "$cache/vmlinuz" ]; then
  echo "looking for the newest $kernel" >&2
  flock dist/apt.lock apt-get update -qq >&2 # others may install packages meanwhile
  pkg=$(apt-cache depends "$kernel" | awk '/Depends: linux-image-[0-9]/ && !n++ {print $2}')
  echo "downloading the Debian kernel package: $pkg" >&2
  (cd "$work" && apt-get -o APT::Sandbox::User=root download -qq "$pkg" >&2 && dpkg-deb -x "$pkg"_*.deb kernel)
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
echo 'root:x:0:0:root:/:/bin/sh' > "$root/etc/passwd"
printf 'root:x:0:\nringway:x:990:\n' > "$root/etc/group" # the package makes the group that the shipped configs name

# guest_tool copies a program of this machine and its libraries: the real tool, not busybox's, since tests read its
# output.
guest_tool() { # NAME [where, default /usr/bin]
  local path; path=$(command -v "$1") || { echo "missing tool: $1 (make vm-packages)" >&2; exit 1; }
  cp -L "$path" "$root${2:-/usr/bin}/$1"
  { ldd "$path" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | while read -r lib; do
    mkdir -p "$root$(dirname "$lib")" && cp -Ln "$lib" "$root$lib"; done
}
for tool in ip tc nft wg ping nsenter unshare sysctl; do guest_tool "$tool"; done
guest_tool modprobe /sbin # the kernel itself calls it for what nftables, tc and ip ask of it, as it would on a box
# Only what is loaded; emulation unpacks slowly.
mkdir -p "$root/lib/modules/$release"
(cd "$cache/modules/$release" && cp modules.* "$root/lib/modules/$release/" &&
  find kernel/net kernel/drivers/net/{wireguard,veth.ko,tun.ko,dummy.ko,ifb.ko} \
    kernel/drivers/{virtio,block/virtio_blk.ko} \
    kernel/crypto kernel/arch/x86/crypto kernel/lib -name '*.ko' | cpio -pdm --quiet "$root/lib/modules/$release")
cp bin/ringway "$root/usr/bin/ringway"

# The first lines of /init: a machine like any other, with TUN.
guest_init='#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/ TEST_VM=1
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts; mount -t devpts devpts /dev/pts
mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
modprobe tun # its device node is there already, and asks for nothing
ip link set lo up
'

# guest_boot boots it, and returns when the guest turns itself off. The guest's console is standard output. Emulation
# on purpose: KVM is absent or broken where this has to run. A processor whose kernel code gives way to nothing else for
# two minutes ends the guest with a panic, and what it ran is printed.
guest_boot() { # SECONDS [words for qemu]
  local limit=$1; shift
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet) > "$work/initrd"
  # In the group of this script: who ends that, ends the guest.
  timeout --foreground --kill-after=10 "$limit" qemu-system-x86_64 -cpu max -nodefaults -no-reboot -display none \
    -serial stdio \
    -rtc base=utc -kernel "$cache/vmlinuz" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet loglevel=5 panic=-1 watchdog_thresh=60 softlockup_panic=1 random.trust_cpu=on \
mitigations=off" "$@" < /dev/null
}
