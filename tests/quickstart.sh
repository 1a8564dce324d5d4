#!/bin/sh
# Makes a small disk, backs it up, changes it, backs it up again, and restores both days, bit for bit.
#
# usage: sh tests/quickstart.sh      EKKO=path/to/ekko (built with cargo if it is not given)
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${EKKO:-}" ]; then
    cargo build --release --manifest-path "$here/Cargo.toml"
    EKKO=${CARGO_TARGET_DIR:-$here/target}/release/ekko
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

run() {
    printf '\n$ ekko %s\n' "$*"
    "$EKKO" "$@"
}

# A disk of 64 MiB: a filesystem's worth of files in front, some noise, the rest empty.
truncate -s 64M web.raw
seq 1 2000000 | dd of=web.raw conv=notrunc bs=1M status=none
dd if=/dev/urandom of=web.raw conv=notrunc bs=1M seek=24 count=8 status=none
cp web.raw monday.raw

run -r store init
run -r store backup web=web.raw
# A day's work: a few bytes change in two places.
printf 'changed on tuesday' | dd of=web.raw conv=notrunc bs=1 seek=5000000 status=none
printf 'and here as well' | dd of=web.raw conv=notrunc bs=1 seek=30000000 status=none
run -r store backup web=web.raw
run -r store list
run -r store stats
run -r store restore web@0 restored-monday.raw
run -r store restore web@latest restored-tuesday.raw

cmp restored-monday.raw monday.raw
cmp restored-tuesday.raw web.raw
printf '\nBoth days came back bit for bit.\n'
