#!/usr/bin/env bash
# Installs what `make build` made: install.sh DESTDIR PREFIX [appliance|lab], without the last both.
set -euo pipefail
cd "$(dirname "$0")/.."
dest=$1 prefix=$2 part=${3:-both}

# file MODE SOURCE TARGET
file() { install -D -m "$1" "$2" "$dest$prefix/$3"; }
manual() { file 0644 "docs/$1" "share/man/man8/$1"; gzip -9nf "$dest$prefix/share/man/man8/$1"; }

if [ "$part" != lab ]; then
  file 0755 bin/ringway bin/ringway
  file 0644 packaging/ringway.service lib/systemd/system/ringway.service
  file 0644 packaging/ringway.sysusers lib/sysusers.d/ringway.conf
  file 0644 LICENSE share/doc/ringway/copyright
  for f in configs/*.yaml; do file 0644 "$f" "share/doc/ringway/$f"; done
  manual ringway.8
  bin/ringway completion bash | file 0644 /dev/stdin share/bash-completion/completions/ringway
  install -d -m 0755 "$dest/etc/ringway"
fi

if [ "$part" != appliance ]; then
  # Not in PATH: `ringway lab` and `ringway bench` run it.
  file 0755 bin/ringway-lab lib/ringway/ringway-lab
  file 0644 LICENSE share/doc/ringway-lab/copyright
  manual ringway-lab.8
fi
