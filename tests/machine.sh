#!/usr/bin/env bash
# Backs up a machine of two disks, a filesystem on each, while a program writes to both: --before freezes them, --after thaws
# them. What comes back is of one moment, whatever happens. Needs root, loop devices and mkfs.ext4.
#
# usage: tests/machine.sh [WORK_FOLDER]      EKKO=path/to/ekko
set -euo pipefail

EKKO=$(realpath "${EKKO:-target/release/ekko}")
work=$(realpath "${1:-$(mktemp -d)}")
cd "$work"
rm -rf store out
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
tidy() {
    [ -z "${writer:-}" ] || kill "$writer" 2>/dev/null || true
    for disk in a b r; do
        fsfreeze -u "mnt-$disk" 2>/dev/null || true
        umount "mnt-$disk" 2>/dev/null || true
    done
    for device in ${devices:-}; do losetup -d "$device" 2>/dev/null || true; done
}
trap tidy EXIT

devices=
for disk in a b; do
    rm -f $disk.raw
    truncate -s 1G $disk.raw
    mkfs.ext4 -q $disk.raw
    device=$(losetup -f --show $disk.raw)
    devices="$devices $device"
    mkdir -p mnt-$disk
    mount "$device" mnt-$disk
    head -c $((60 << 20)) /dev/urandom >mnt-$disk/data
done
read -r vda vdb <<<"$devices"

# The number on the second disk follows that on the first: together they are the same, or one apart.
cat >write.py <<'PY'
import os, sys
number = 0
while True:
    number += 1
    for disk in "ab":
        with open(f"mnt-{disk}/number", "w") as file:
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())
PY
python3 write.py &
writer=$!
sleep 1

cat >before <<'SH'
#!/bin/sh -e
echo "<domain><name>$EKKO_MACHINE</name></domain>" > domain.xml
fsfreeze -f mnt-a
fsfreeze -f mnt-b
echo "frozen"
SH
cat >after <<'SH'
#!/bin/sh
fsfreeze -u mnt-b
fsfreeze -u mnt-a
echo "thawed: $EKKO_RESULT"
SH
chmod +x before after

is_written() { # the numbers grow again
    local first second
    first=$(cat mnt-b/number)
    sleep 0.5
    second=$(cat mnt-b/number)
    [ "$second" -gt "$first" ] || fail "$1: the disks are frozen still"
}
machine() { "$EKKO" -r store backup --machine web "web/vda=$vda" "web/vdb=$vdb" --attach domain.xml --before ./before --after ./after "$@"; }

"$EKKO" -r store init
for moment in 0 1 2; do
    machine
    is_written "after moment $moment"
done
"$EKKO" -r store show web
for moment in 0 1 2; do
    rm -rf out
    "$EKKO" -r store restore --machine "web@$moment" out
    numbers=
    for disk in vda vdb; do
        e2fsck -fn out/$disk.raw >e2fsck.log 2>&1 || fail "$disk: $(cat e2fsck.log)"
        mkdir -p mnt-r
        mount -o ro,loop out/$disk.raw mnt-r
        cmp mnt-r/data "mnt-$([ $disk = vda ] && echo a || echo b)/data" || fail "$disk of moment $moment"
        numbers="$numbers $(cat mnt-r/number)"
        umount mnt-r
    done
    read -r first second <<<"$numbers"
    [ "$first" -eq "$second" ] || [ "$first" -eq $((second + 1)) ] || fail "two moments: $numbers"
    grep -q '<name>web</name>' out/domain.xml || fail "what lay beside the disks"
    echo "moment $moment: both filesystems whole, the numbers on them are$numbers"
done

for signal in INT TERM HUP; do
    "$EKKO" -r store backup --machine web "web/vda=$vda" "web/vdb=$vdb" --limit-rate 4MiB --before ./before --after ./after &
    running=$!
    sleep 2
    kill -$signal $running
    code=0
    wait $running || code=$?
    [ $code -eq 1 ] || fail "SIG$signal: exit $code"
    is_written "SIG$signal"
done
code=0
machine web/vdc=/nowhere || code=$?
[ $code -eq 1 ] || fail "a source that is not there: exit $code"
is_written "a source that is not there"
[ "$("$EKKO" -r store list | grep -c 'web')" -eq 9 ] || fail "something half-made is listed"
"$EKKO" -r store check --read-data
echo "all as it should be"
