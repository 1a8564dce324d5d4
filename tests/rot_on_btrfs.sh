#!/usr/bin/env bash
# Rot as filesystems with checksums show it: the disk does not give a block at all. A repository on btrfs, on a loop device in
# whose backing file bytes are changed. Wants root, btrfs-progs and python3.
#
# usage: tests/rot_on_btrfs.sh [EKKO]
set -euo pipefail

ekko=$(realpath "${1:-target/release/ekko}")
work=$(mktemp -d)
cd "$work"
trap 'umount fs 2>/dev/null || true; rm -rf "$work"' EXIT

head -c 20M /dev/urandom >web.raw
head -c 20M /dev/urandom >db.raw
mkdir fs

fresh() { # two disks, backed up; nothing of an older repository is left on the device
    umount fs 2>/dev/null || true
    rm -f disk
    truncate -s 256M disk
    mkfs.btrfs -q --data single --metadata dup disk >mkfs.txt 2>&1 || { cat mkfs.txt >&2; exit 1; }
    mount -o loop,max_inline=0,compress=no disk fs
    "$ekko" -q -r fs/R init --segment-size 64KiB >/dev/null
    "$ekko" -q -r fs/R backup --jobs 1 --compression none web=web.raw >/dev/null
    "$ekko" -q -r fs/R backup --jobs 1 --compression none db=db.raw >/dev/null
}
rot() { # FILE OFFSET: changes a byte of it below the filesystem
    sync
    python3 - "$1" "$2" <<'PY'
import sys

name, offset = sys.argv[1], int(sys.argv[2])
with open(name, "rb") as file:
    file.seek(offset // 4096 * 4096)
    block = file.read(4096)
with open("disk", "r+b") as disk:
    whole = disk.read()
    at = whole.find(block)
    assert at >= 0 and whole.find(block, at + 1) < 0, "the block is to be on the disk once"
    disk.seek(at + offset % 4096)
    disk.write(bytes([whole[at + offset % 4096] ^ 1]))
PY
    umount fs
    mount -o loop,max_inline=0,compress=no disk fs
    if dd if="$1" of=/dev/null bs=4096 skip=$(($2 / 4096)) count=1 status=none 2>/dev/null; then
        echo "$1 can be read" >&2
        exit 1
    fi
}
expect() { # CODE WORDS COMMAND...: how a command ends, and what it says
    local code=$1 words=$2 got=0 first
    shift 2
    "$ekko" -r fs/R "$@" >said.txt 2>&1 || got=$?
    if [ "$got" != "$code" ] || ! grep -q -e "$words" said.txt; then
        echo "ekko $* ended with $got, not $code, and said:" >&2
        cat said.txt >&2
        exit 1
    fi
    first=$(grep -m 1 -e "$words" said.txt)
    echo "ekko $*: $got, $first"
}
whole() { # NAME DISK
    "$ekko" -q -r fs/R restore --force "$1" out >/dev/null
    cmp out "$2"
}
pack() { ls fs/R/packs/*.pack | head -1; }

echo "== a stored segment"
fresh
rot "$(pack)" $((10 << 20))
expect 3 'Input/output error' restore web out
expect 3 'Input/output error' check --read-data --repair
expect 0 '' backup --compression none web=web.raw db=db.raw
whole web web.raw
whole db db.raw
expect 0 '' gc --now

echo "== a segment that nobody names, in a pack of which half lives"
fresh
{ head -c 10M /dev/urandom; tail -c 10M web.raw; } >later.raw
"$ekko" -q -r fs/R backup --compression none web=later.raw >/dev/null
"$ekko" -q -r fs/R delete web@0 >/dev/null 2>&1
rot "$(pack)" "$(grep -abo EKKOREC1 "$(pack)" | sed -n 80p | cut -d: -f1)"
expect 3 'not given back' gc --now
expect 3 'not given back' gc --now
whole web later.raw
whole db db.raw
expect 0 '' backup --compression none old=web.raw
whole old web.raw

echo "== a manifest"
fresh
set=$(grep -l '"web"' fs/R/manifests/*/set.toml)
rot "$(dirname "$set")/0" 200
expect 1 'Input/output error' restore web out
expect 3 'cannot be restored.*Input/output error' check
expect 3 'Input/output error' status
whole db db.raw
expect 0 '' backup --compression none web=web.raw
whole web web.raw
"$ekko" -q -r fs/R delete db@all >/dev/null 2>&1
expect 3 'Input/output error' gc --now
