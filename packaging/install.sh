#!/usr/bin/env bash
# Installs what `make build` made: install.sh DESTDIR PREFIX
set -euo pipefail
cd "$(dirname "$0")/.."
dest=$1 prefix=$2
install -D -m 0755 bin/ringway "$dest$prefix/bin/ringway"
install -D -m 0644 packaging/ringway.service "$dest$prefix/lib/systemd/system/ringway.service"
install -D -m 0644 packaging/ringway.sysusers "$dest$prefix/lib/sysusers.d/ringway.conf"
install -D -m 0644 docs/ringway.8 "$dest$prefix/share/man/man8/ringway.8"
gzip -9nf "$dest$prefix/share/man/man8/ringway.8"
for f in configs/*.yaml; do install -D -m 0644 "$f" "$dest$prefix/share/doc/ringway/$f"; done
install -D -m 0644 LICENSE "$dest$prefix/share/doc/ringway/copyright"
bin/ringway completion bash | install -D -m 0644 /dev/stdin "$dest$prefix/share/bash-completion/completions/ringway"
install -d -m 0755 "$dest/etc/ringway"
