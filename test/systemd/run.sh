#!/usr/bin/env bash
# Boots a Debian with the real systemd in a container, installs the package that `make deb` built, and runs
# systemd_test.go in there: start, stop, restart, crash, reload, watchdog, upgrade, removal, shutdown.
#
# The first run downloads a minimal Debian (about 60 MB of packages, by debootstrap) into dist/systemd/root and keeps
# it. Each run works on an overlay in memory over it, which goes with the container. Needs root; the container has a
# network of its own, with no way out.
#
#   test/systemd/run.sh [go test flags, like -test.run=Name]
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=dist/systemd
root=$cache/root
packages=systemd,systemd-sysv,dbus,iproute2,nftables,wireguard-tools,procps,iputils-ping
mkdir -p "$cache"

if [ ! -e "$cache/root.complete" ]; then
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $suite" | sed -n 1p)
  echo "downloading a minimal Debian $suite with $packages (about 60 MB) into $root"
  rm -rf "$root"
  debootstrap --variant=minbase --include="$packages" "$suite" "$root" ${mirror:+"$mirror"} \
    > "$cache/debootstrap.log" ||
    { tail -n 20 "$cache/debootstrap.log"; exit 1; }
  rm -rf "$root"/var/cache/apt/archives/*.deb
  touch "$cache/root.complete"
fi

# The package, and one more that differs in version and build: what an upgrade installs.
deb=$(ls dist/ringway_*.deb | head -n 1)
given=$cache/given results=$cache/results
rm -rf "$given" "$results"
mkdir -p "$given" "$results"
work=$(mktemp -d)
container=
cleanup() {
  # The container's own process ends last, when all in it is gone; TERM makes it kill what is left.
  if [ -n "$container" ] && kill -0 "$container" 2>/dev/null; then
    kill -TERM "$container"
    wait "$container" || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
cp "$deb" "$given/first.deb"
dpkg-deb -R "$deb" "$work/second"
sed -i 's/^Version: .*/&+upgraded/' "$work/second/DEBIAN/control"
export CGO_ENABLED=0
go build -trimpath -ldflags "-s -w -X main.version=upgraded" -o "$work/second/usr/bin/ringway" ./cmd/ringway
dpkg-deb --root-owner-group -Znone --build "$work/second" "$given/second.deb" > /dev/null
cp bin/ringway "$given/ringway" # the far end's: the package's goes in the course of the test
go test -c -o "$given/systemd.test" ./test/systemd

cat > "$given/ringway-test.service" <<U
[Unit]
Description=Tests of Ringway under systemd
After=multi-user.target
# A test isolates a target, and must outlive that.
IgnoreOnIsolate=yes
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
Environment=TEST_SYSTEMD=1 HOME=/root
WorkingDirectory=/ringway-results
StandardOutput=append:/ringway-results/test.log
StandardError=append:/ringway-results/test.log
ExecStart=/bin/sh -c '/ringway-test/systemd.test -test.v -test.timeout 5m $*; echo \$? > /ringway-results/code'
TimeoutStartSec=6min
U
sed -i '/^SuccessAction\|^FailureAction/d' "$given/ringway-test.service"
# An ordinary poweroff: how the unit ends at a shutdown is looked at, too.
cat >> "$given/ringway-test.service" <<U
ExecStartPost=/bin/systemctl --no-block poweroff
U

touch "$results/test.log"
# Not registered with a machined that may not run here. What the container may not do, the host is safe from:
# without CAP_SYS_TIME it cannot set the clock.
# --volatile=overlay: all changes are in memory, and every mount is in the container's own mount namespace.
# The mount namespace around it has a /run of its own: nspawn wants a tmpfs there, which not every host has.
timeout --kill-after=10 420 unshare --mount sh -c 'mount -t tmpfs tmpfs /run && exec "$@"' sh \
  systemd-nspawn -q -D "$root" --volatile=overlay --machine="ringway-test-$$" \
  --private-network --register=no --keep-unit \
  --bind=/dev/net/tun --bind-ro="$PWD/$given:/ringway-test" --bind="$PWD/$results:/ringway-results" \
  --bind-ro="$PWD/$given/ringway-test.service:/etc/systemd/system/ringway-test.service" --console=read-only \
  --boot systemd.wants=ringway-test.service systemd.mask=systemd-resolved.service \
  > "$results/console.log" 2>&1 < /dev/null &
container=$!
tail -n +1 -f --pid="$container" "$results/test.log" &
wait "$container" || echo "the container ended with code $?"
container=
wait
code=$(cat "$results/code" 2>/dev/null || echo none)
if [ "$code" != 0 ]; then
  echo "tests in the container failed (code $code); its console: $results/console.log"
  [ "$code" != none ] || tail -n 20 "$results/console.log"
  exit 1
fi
# What the test unit of the shutdown found after ringway.service had ended with the machine.
if [ "$(cat "$results/after-shutdown" 2>/dev/null)" != clean ]; then
  echo "after the shutdown: $(cat "$results/after-shutdown" 2>/dev/null || echo 'the unit did not report')"
  exit 1
fi
echo "after the shutdown: clean"
