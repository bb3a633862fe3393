#!/usr/bin/env bash
# Builds dist/ringway_VERSION_ARCH.deb and dist/ringway-lab_VERSION_ARCH.deb with plain dpkg-deb: deb.sh VERSION
set -euo pipefail
cd "$(dirname "$0")/.."

arch=$(dpkg --print-architecture)
# Debian versions start with a digit: a tag v1.2.3 loses its v, a bare commit sorts before all releases.
version=${1#v}
[[ $version =~ ^[0-9] ]] && [[ $version == *.* ]] || version="0~git.$version"
version=${version//-/+}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/ringway" "$work/ringway-lab" dist
chmod 0755 "$work"/*
packaging/install.sh "$work/ringway" /usr appliance
packaging/install.sh "$work/ringway-lab" /usr lab
mkdir -p "$work"/{ringway,ringway-lab}/DEBIAN

# control NAME: the fields that both packages share; what differs follows on standard input.
control() {
  cat > "$work/$1/DEBIAN/control" <<C
Package: $1
Version: $version
Architecture: $arch
Section: net
Priority: optional
Maintainer: The Ringway authors <authors@ringway.invalid>
C
  cat >> "$work/$1/DEBIAN/control"
}
control ringway <<C
Depends: systemd | systemd-sysusers, iproute2
Recommends: nftables, wireguard-tools
Suggests: ringway-lab (= $version), ppp
Description: voice appliance for branch offices
 Ringway joins branch offices for voice: WireGuard tunnels that keep voice
 apart from data, priority queues on the WAN, and nothing that leaves
 unencrypted. One config file.
C
# Equal versions: the lab configures the appliance and reads its status.
control ringway-lab <<C
Depends: ringway (= $version), iproute2, nftables, iputils-ping, iperf3, sip-tester, wireguard-tools
Suggests: openvpn
Description: lab and benchmarks of the voice appliance Ringway
 Builds two branches out of network namespaces on one machine, places calls
 under load, and measures voice beside stock WireGuard and other tunnels.
C

cat > "$work/ringway/DEBIAN/postinst" <<'C'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
  systemd-sysusers ringway.conf || true
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    # An upgrade restarts the daemon and keeps its planes: no packet is lost.
    # `ringway upgrade-planes` replaces them when the operator chooses.
    if [ -n "$2" ]; then systemctl try-restart ringway.service || true; fi
  fi
fi
C
cat > "$work/ringway/DEBIAN/prerm" <<'C'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl stop ringway.service || true
fi
# Planes may run without the service (its config had a mistake when it was restarted).
if [ "$1" = remove ]; then ringway --defaults stop || true; fi
C
cat > "$work/ringway/DEBIAN/postrm" <<'C'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
# Keys and config are the operator's: purge removes only what the daemon stored itself.
if [ "$1" = purge ]; then rm -rf /var/lib/ringway; fi
C
chmod 0755 "$work"/ringway/DEBIAN/{postinst,prerm,postrm}

rm -f dist/ringway_*.deb dist/ringway-lab_*.deb
for name in ringway ringway-lab; do
  out="dist/${name}_${version}_$arch.deb"
  dpkg-deb --root-owner-group -Zxz --build "$work/$name" "$out" >/dev/null
  echo "$out"
done
