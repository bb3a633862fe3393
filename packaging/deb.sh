#!/usr/bin/env bash
# Builds dist/ringway_VERSION_ARCH.deb with plain dpkg-deb: deb.sh VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
arch=$(dpkg --print-architecture)
# Debian versions start with a digit: a tag v1.2.3 loses its v, a bare commit is put before all releases.
version=${1#v}
[[ $version =~ ^[0-9] ]] && [[ $version == *.* ]] || version="0~git.$version"
version=${version//-/+}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"
packaging/install.sh "$root" /usr
mkdir -p "$root/DEBIAN" dist
cat > "$root/DEBIAN/control" <<C
Package: ringway
Version: $version
Architecture: $arch
Section: net
Priority: optional
Maintainer: The Ringway authors <authors@ringway.invalid>
Depends: systemd | systemd-sysusers, iproute2
Recommends: nftables, wireguard-tools
Suggests: sip-tester, iperf3
Description: voice appliance for branch offices
 Ringway joins branch offices for voice: WireGuard tunnels that keep voice
 apart from data, priority queues on the WAN, and nothing that leaves in
 clear. One binary, one config file.
C
cat > "$root/DEBIAN/postinst" <<'C'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
  systemd-sysusers ringway.conf || true
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    # An upgrade restarts the daemon and keeps its planes: not one packet is lost.
    # `ringway upgrade-planes` replaces them when it suits.
    if [ -n "$2" ]; then systemctl try-restart ringway.service || true; fi
  fi
fi
C
cat > "$root/DEBIAN/prerm" <<'C'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl stop ringway.service || true
fi
# Also when the service is not up, but planes of it are (its config had a mistake when it was restarted).
if [ "$1" = remove ]; then ringway stop || true; fi
C
cat > "$root/DEBIAN/postrm" <<'C'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
# Keys and config are the operator's: purge alone removes what the daemon itself kept.
if [ "$1" = purge ]; then rm -rf /var/lib/ringway; fi
C
chmod 0755 "$root"/DEBIAN/{postinst,prerm,postrm}
out="dist/ringway_${version}_$arch.deb"
rm -f dist/ringway_*.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$out" >/dev/null
echo "$out"
