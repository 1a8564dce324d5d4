#!/usr/bin/env bash
# Thirty backups of six real disks; all but the last of each are deleted, and their space must come back: within 3 % of
# a new repository that only ever held those six. Needs root, loop devices, mkfs.ext4 and debootstrap or a tree.
#
# usage: tests/fleet_gc.sh [WORK_FOLDER]      EKKO=path/to/ekko  TREE=folder to fill the disks with  SEGMENT=4MiB
#        WORK_FOLDER on btrfs or XFS shows how it goes there
set -euo pipefail

work=${1:-$(mktemp -d)}
mkdir -p "$work"
work=$(realpath "$work")
here=$(realpath "$(dirname "$0")/..")
if [ -z "${EKKO:-}" ]; then
    cargo build --release --manifest-path "$here/Cargo.toml"
    EKKO=$here/target/release/ekko
fi
EKKO=$(realpath "$EKKO")
segment=${SEGMENT:-4MiB}
cd "$work"
rm -rf fleet fresh
mnt=$work/mnt
mkdir -p "$mnt"
trap 'umount "$mnt" 2>/dev/null || true' EXIT
if [ -z "${TREE:-}" ]; then
    TREE=$work/tree
    [ -d "$TREE/etc" ] || debootstrap --variant=minbase stable "$TREE" >debootstrap.log
fi
used() { du -s --block-size=1 "$1/packs" "$1/manifests" "$1/index" | awk '{ all += $1 } END { print all }'; }
now() { date +%s.%N; }
field() { python3 -c 'import json,sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

for disk in 1 2 3 4 5 6; do
    rm -f "disk$disk"
    truncate -s 4G "disk$disk"
    mkfs.ext4 -q "disk$disk"
    mount -o loop "disk$disk" "$mnt"
    cp -a "$TREE/." "$mnt/"
    # What one machine has and the others have not.
    mkdir "$mnt/srv/own"
    for file in $(seq 40); do head -c 1M /dev/urandom >"$mnt/srv/own/$file"; done
    umount "$mnt"
done
"$EKKO" -r fleet init --segment-size "$segment" >/dev/null
for day in 1 2 3 4 5; do
    for disk in 1 2 3 4 5 6; do
        mount -o loop "disk$disk" "$mnt"
        rm -f "$mnt/srv/own/$day" "$mnt/srv/own/$((day + 5))"
        for file in $(seq 10 15); do head -c 2M /dev/urandom >"$mnt/srv/own/$file"; done
        date >>"$mnt/var/log/today"
        umount "$mnt"
    done
    "$EKKO" -q -r fleet backup disk1 disk2 disk3 disk4 disk5 disk6 >/dev/null
done
before=$(used fleet)
planned=$("$EKKO" -q --json -r fleet forget --keep-last 1 --dry-run | field freed_bytes)
"$EKKO" -q -r fleet forget --keep-last 1 >/dev/null
begun=$(now)
"$EKKO" -q --json -r fleet gc --now >gc.json
took=$(python3 -c "print('%.2f' % ($(now) - $begun))")
freed=$(field freed_bytes <gc.json)
after=$(used fleet)
begun=$(now)
"$EKKO" -q --json -r fleet gc --now >gc.json
second=$(python3 -c "print('%.2f' % ($(now) - $begun))")
again=$(field freed_bytes <gc.json)
"$EKKO" -r fresh init --segment-size "$segment" >/dev/null
"$EKKO" -q -r fresh backup disk1 disk2 disk3 disk4 disk5 disk6 >/dev/null
fresh=$(used fresh)
for disk in 1 2 3 4 5 6; do
    "$EKKO" -q -r fleet restore "disk$disk" - 2>/dev/null | cmp - "disk$disk"
done
"$EKKO" -q -r fleet check --read-data >/dev/null
printf 'on %s, segments of %s: 30 backups took %s bytes; %s were to be freed, gc freed %s in %s s\n' \
    "$(stat -f -c %T .)" "$segment" "$before" "$planned" "$freed" "$took"
printf 'the fleet takes %s bytes now, a new repository of the same six disks %s: %s\n' "$after" "$fresh" \
    "$(python3 -c "print('%+.2f %%' % (100 * ($after / $fresh - 1)))")"
printf 'a second gc freed %s bytes in %s s; all six restore bit for bit\n' "$again" "$second"
[ "$planned" = "$freed" ] && [ "$again" = 0 ]
python3 -c "import sys; sys.exit(not $after <= 1.03 * $fresh)"
