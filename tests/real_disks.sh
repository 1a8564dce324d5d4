#!/usr/bin/env bash
# Backs up real filesystems and compares everything, bit for bit. Needs root, loop devices, debootstrap
# or an existing tree, and mkfs for ext4, xfs and btrfs; PostgreSQL's server is used where it is installed.
#
# usage: tests/real_disks.sh [WORK_FOLDER]      EKKO=path/to/ekko  TREE=folder to fill the disks with
#        KILLS=50  FLIPS=100  (how many kill -9 rounds, how many flipped bits per index file)
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
kills=${KILLS:-50}
flips=${FLIPS:-100}
repo=$work/repository
mnt=$work/mnt
mkdir -p "$mnt"
cd "$work"
rm -rf "$repo"
"$EKKO" -q -r "$repo" init

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
field() { python3 -c 'import json,sys; print(eval("json.load(sys.stdin)" + sys.argv[1]))' "$1"; }
tidy() { umount "$mnt" 2>/dev/null || true; [ -z "${loop:-}" ] || losetup -d "$loop" 2>/dev/null || true; }
trap tidy EXIT

hashes() { # what the original would list: SHA-1 of each 4 MiB, without the zero segment
    python3 - "$1" <<'PY'
import hashlib, sys
with open(sys.argv[1], "rb") as disk:
    while segment := disk.read(4 << 20):
        digest = hashlib.sha1(segment).hexdigest()
        if digest != "2bccbd2f38f15c13eb7d5a89fd9d85f595e23bc3":
            print(digest)
PY
}

check_restore() { # BACKUP SOURCE: restored equal, to a file and to a stream, and hash lists equal
    rm -f restored.raw
    "$EKKO" -q -r "$repo" restore "$1" restored.raw >/dev/null
    cmp restored.raw "$2" || fail "$1 differs from $2"
    "$EKKO" -q -r "$repo" restore "$1" - 2>/dev/null | cmp - "$2" || fail "$1 as a stream differs from $2"
    cmp <("$EKKO" -r "$repo" manifest dump "$1") <(hashes "$2") || fail "the hash list of $1"
}

if [ -z "${TREE:-}" ]; then
    TREE=$work/tree
    [ -d "$TREE/etc" ] || debootstrap --variant=minbase stable "$TREE" >debootstrap.log
fi

say "filesystems as files and as loop devices"
for fs in ext4 xfs btrfs; do
    disk=$fs.raw
    if [ ! -f "$disk" ]; then
        truncate -s 8G "$disk"
        case $fs in ext4) mkfs.ext4 -q "$disk" ;; *) "mkfs.$fs" -q "$disk" ;; esac
        mount -o loop "$disk" "$mnt"
        cp -a "$TREE/." "$mnt/"
        umount "$mnt"
    fi
    allocated=$(($(stat -c %b "$disk") * 512))
    json=$("$EKKO" -q --json -r "$repo" backup "$fs=$disk")
    read_bytes=$(field '["backups"][0]["read_bytes"]' <<<"$json")
    printf '%s: %s bytes allocated, %s read\n' "$fs" "$allocated" "$read_bytes"
    python3 -c "import sys; sys.exit(not $read_bytes <= 1.1 * $allocated)" || fail "$fs: holes were read"
    check_restore "$fs@0" "$disk"
    source_blocks=$(stat -c %b "$disk") target_blocks=$(stat -c %b restored.raw)
    printf '%s: source takes %s blocks, restored %s\n' "$fs" "$source_blocks" "$target_blocks"
    python3 -c "import sys; sys.exit(not $target_blocks <= 1.01 * $source_blocks)" || fail "$fs: not sparse"
    case $fs in
        ext4) e2fsck -fn restored.raw >/dev/null || fail "e2fsck" ;;
        xfs) xfs_repair -n restored.raw >/dev/null 2>&1 || fail "xfs_repair" ;;
        btrfs) btrfs check --readonly restored.raw >/dev/null 2>&1 || fail "btrfs check" ;;
    esac
    loop=$(losetup --show -f -r "$disk")
    json=$("$EKKO" -q --json -r "$repo" backup "$fs-loop=$loop")
    losetup -d "$loop"
    [ "$(field '["backups"][0]["new_segments"]' <<<"$json")" = 0 ] || fail "$fs-loop stored something anew"
    check_restore "$fs-loop@0" "$disk"
done

say "restore to a block device that holds old data"
rm -f device.raw
head -c $((9 << 30)) /dev/zero | tr '\0' '\245' >device.raw
loop=$(losetup --show -f device.raw)
"$EKKO" -q -r "$repo" restore ext4 "$loop" && fail "overwrote a device without --force"
"$EKKO" -q -r "$repo" restore --force ext4 "$loop"
losetup -d "$loop"
cmp -n $((8 << 30)) device.raw ext4.raw || fail "device differs"
[ "$(tail -c +$(((8 << 30) + 1)) device.raw | tr -d '\245' | wc -c)" = 0 ] || fail "bytes behind the disk changed"
rm -f device.raw
loop=$(losetup --show -f ext4.raw)
mount -o ro,noload "$loop" "$mnt"
"$EKKO" -q -r "$repo" restore --force xfs "$loop" 2>err.txt && fail "wrote to a mounted device"
grep -q 'in use' err.txt || fail "no clear line: $(cat err.txt)"
"$EKKO" -r "$repo" backup "mounted=$loop" 2>&1 >/dev/null | grep -q 'warning: .*mounted' || fail "no warning"
umount "$mnt"
losetup -d "$loop"

pg=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1 || true)
if [ -n "$pg" ] && [ -x "$pg/initdb" ]; then
    say "a database that works between three backups"
    truncate -s 4G db.raw
    mkfs.ext4 -q -F db.raw
    for day in 0 1 2; do
        mount -o loop db.raw "$mnt"
        if [ $day = 0 ]; then
            mkdir "$mnt/pg" && chown postgres "$mnt/pg" && chmod 711 "$work"
            su postgres -c "$pg/initdb -D $mnt/pg" >/dev/null
        fi
        su postgres -c "$pg/pg_ctl -D $mnt/pg -o '-k /tmp -p 5499 -c listen_addresses=' -l /tmp/ekko-pg.log -w start" >/dev/null
        [ $day != 0 ] || su postgres -c "pgbench -q -h /tmp -p 5499 -i -s 20 postgres" >/dev/null 2>&1
        su postgres -c "pgbench -h /tmp -p 5499 -T 10 -c 4 postgres" 2>/dev/null | grep 'number of transactions actually'
        su postgres -c "$pg/pg_ctl -D $mnt/pg -w stop" >/dev/null
        umount "$mnt"
        "$EKKO" -q -r "$repo" backup db=db.raw
        cp --sparse=always db.raw db.$day.raw
    done
    for day in 0 1 2; do check_restore "db@$day" "db.$day.raw"; done
    e2fsck -fn restored.raw >/dev/null || fail "e2fsck of the restored database disk"
    rm -f db.[012].raw
fi

say "qemu-img reads what was restored"
if command -v qemu-img >/dev/null; then
    rm -f restored.raw restored.qcow2
    "$EKKO" -q -r "$repo" restore ext4 restored.raw >/dev/null
    qemu-img convert -f raw -O qcow2 restored.raw restored.qcow2
    qemu-img compare -f qcow2 -F raw restored.qcow2 ext4.raw
    rm -f restored.qcow2
fi

say "kill -9 during a backup, $kills times"
rm -rf "$repo.kill"
"$EKKO" -q -r "$repo.kill" init
"$EKKO" -q -r "$repo.kill" backup base=xfs.raw >/dev/null
resumed=0 killed=0
for round in $(seq "$kills"); do
    # A disk that no backup holds, anew in every tenth round: noise, so that storing it takes its time.
    if [ $((round % 10)) = 1 ]; then
        python3 - "$round" <<'PY'
import random, sys
noise = random.Random(sys.argv[1])
with open("victim.raw", "wb") as out:
    for _ in range(900):
        out.write(noise.randbytes(1 << 20))
PY
    fi
    "$EKKO" -q -r "$repo.kill" backup victim=victim.raw >/dev/null 2>&1 &
    pid=$!
    sleep "$(python3 -c 'import random; print(random.uniform(0.0, 0.8))')"
    kill -9 $pid 2>/dev/null || true
    status=0
    wait $pid 2>/dev/null || status=$?
    # 137 is a process that the signal ended; one that was done by then has its own exit code.
    [ $status != 137 ] || killed=$((killed + 1))
    if [ $((round % 10)) = 0 ]; then
        json=$("$EKKO" -q --json -r "$repo.kill" backup victim=victim.raw)
        reused=$(field '["backups"][0]["deduplicated_segments"]' <<<"$json")
        reused=$((reused + $(field '["backups"][0]["unchanged_segments"]' <<<"$json")))
        resumed=$((resumed + reused))
        rm -f out.raw
        "$EKKO" -q -r "$repo.kill" restore victim out.raw >/dev/null
        cmp out.raw victim.raw || fail "round $round: the victim"
        rm -f out.raw
        "$EKKO" -q -r "$repo.kill" restore base@0 out.raw >/dev/null
        cmp out.raw xfs.raw || fail "round $round: an earlier backup"
        printf 'round %s: all earlier backups whole, %s segments re-used\n' "$round" "$reused"
    fi
done
for backup in $("$EKKO" --json -r "$repo.kill" list | python3 -c 'import json,sys; [print(b["backup"]) for b in json.load(sys.stdin)["backups"]]'); do
    "$EKKO" -q -r "$repo.kill" restore "$backup" - >/dev/null 2>&1 || fail "$backup does not restore"
done
printf '%s of %s backups were killed before they were done; %s segments were re-used after them\n' "$killed" "$kills" "$resumed"
rm -rf "$repo.kill" victim.raw out.raw

say "a damaged index: $flips flipped bits in each file, an older copy, cut short, gone"
small=$repo.small
rm -rf "$small" "$small".*
"$EKKO" -q -r "$small" init --segment-size 64KiB >/dev/null
head -c 20M ext4.raw >a.raw
head -c 30M btrfs.raw >b.raw
"$EKKO" -q -r "$small" backup a=a.raw >/dev/null
cp -a "$small/index" "$small.old-index"
"$EKKO" -q -r "$small" backup b=b.raw >/dev/null
cp -a "$small" "$small.good"
rebuilt=0 rounds=0
attempt() { # after some damage: list, restores and the next backup are right
    rounds=$((rounds + 1))
    timeout 60 "$EKKO" -r "$small" list >/dev/null
    timeout 60 "$EKKO" -q -r "$small" restore a - 2>/dev/null | cmp - a.raw || fail "a after $1"
    timeout 60 "$EKKO" -q -r "$small" restore b - 2>/dev/null | cmp - b.raw || fail "b after $1"
    timeout 60 "$EKKO" -r "$small" backup a=b.raw >out.txt 2>err.txt || fail "backup after $1: $(cat err.txt)"
    if grep -q 'index was rebuilt' err.txt; then rebuilt=$((rebuilt + 1)); fi
    timeout 60 "$EKKO" -q -r "$small" restore a@1 - 2>/dev/null | cmp - b.raw || fail "a@1 after $1"
    rm -rf "$small"
    cp -a "$small.good" "$small"
}
while IFS= read -r file; do
    for _ in $(seq "$flips"); do
        python3 - "$file" <<'PY'
import os, random, sys
size = os.path.getsize(sys.argv[1])
if size:
    with open(sys.argv[1], "r+b") as file:
        at = random.randrange(size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << random.randrange(8)]))
PY
        attempt "a flipped bit in $file"
    done
done < <(find "$small/index" -type f)
printf '%s flips, %s rebuilt\n' "$rounds" "$rebuilt"
[ "$rebuilt" = "$rounds" ] || fail "a flipped bit was not seen"
for cut in 0 1 100 5000 100000; do
    find "$small/index" -type f -size +"$((cut / 512 + 1))" -exec truncate -s "$cut" {} +
    attempt "cutting at $cut"
done
rm -rf "$small/index" && cp -a "$small.old-index" "$small/index"
attempt "an older copy"
rm -rf "$small/index"
attempt "removing it"
printf '%s rounds in all, %s rebuilt\n' "$rounds" "$rebuilt"
rm -rf "$small" "$small".* a.raw b.raw restored.raw
say "all of it holds"
