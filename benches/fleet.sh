#!/usr/bin/env bash
# Ekko beside every peer that is on the machine (borg, restic, rustic, bupstash), in turn in the same run, on the fleet that
# benches/make_fleet.sh makes: a first backup, the same again re-read, the next day, a restore to a new file, peak memory,
# and what six disks take. Prints medians as a table with the ratio of each row to the best peer and what it is to be.
#
# usage: benches/fleet.sh [FOLDER]      EKKO=path/to/ekko  ROUNDS=5  PEERS="borg restic rustic bupstash"  ONLY=rows|many|far
#        FOLDER holds the fleet and what is stored; 20 GB are needed. It is kept, so that a second run is shorter.
set -euo pipefail

here=$(realpath "$(dirname "$0")/..")
folder=${1:-fleet}
mkdir -p "$folder"
folder=$(realpath "$folder")
rounds=${ROUNDS:-5}
if [ -z "${EKKO:-}" ]; then
    cargo build --release --manifest-path "$here/Cargo.toml"
    EKKO=$here/target/release/ekko
fi
EKKO=$(realpath "$EKKO")
"$here/benches/make_fleet.sh" "$folder"
work=$folder/work
rm -rf "$work"
mkdir -p "$work/home" "$work/source"
cd "$work"
trap 'far_end; rm -rf "$work" "${room:-}"' EXIT

peers=
for peer in ${PEERS:-borg restic rustic bupstash}; do
    ! command -v "$peer" >/dev/null || peers="$peers $peer"
done
export HOME=$work/home
export BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
room=room
[ ! -w /dev/shm ] || room=$(mktemp /dev/shm/ekko-fleet.XXXXXX)
export RESTIC_PASSWORD=fleet RUSTIC_PASSWORD=fleet
disk=$work/source/disk.raw

# Each tool: how a repository is made, a disk backed up (always read in full), and restored to a new file "out".
ekko_init() { "$EKKO" -r ekko init "$@"; }
ekko_backup() { "$EKKO" -q -r ekko backup "$1=$disk"; }
ekko_restore() { "$EKKO" -q -r ekko restore --no-sync "$1" out; }
# The options that make borg do the same work: segments of 4 MiB, zstd at level 1, holes not read.
borg_init() { borg init -e none borg; }
borg_backup() { borg create --files-cache disabled --chunker-params fixed,4194304 --sparse --compression zstd,1 "borg::$1-$(date +%s%N)" "$disk"; }
borg_restore() {
    cd restored
    borg extract --sparse "../borg::$(borg list --short --glob-archives "$1-*" --last 1 ../borg)"
}
restic_init() { restic init -r restic; }
restic_backup() { restic -r restic backup --no-cache --force --tag "$1" "$disk"; }
restic_restore() { restic -r restic restore --no-cache $restic_sparse --tag "$1" latest --target restored; }
# Since 0.15.
restic_sparse=$(! restic restore --help 2>/dev/null | grep -q -e --sparse || echo --sparse)
rustic_init() { rustic -r rustic init; }
rustic_backup() { rustic -r rustic backup --no-cache --force --tag "$1" "$disk"; }
rustic_restore() { rustic -r rustic restore --no-cache latest restored; }
bupstash_init() {
    rm -f bupstash.key
    bupstash new-key -o bupstash.key
    bupstash init -r bupstash
}
bupstash_backup() { bupstash put -r bupstash -k bupstash.key --no-send-log --no-stat-caching "name=$1-$(date +%s%N)" "$disk"; }
bupstash_restore() { bupstash get -r bupstash -k bupstash.key -q "id=$(bupstash list -r bupstash -k bupstash.key --format jsonl1 "name=$1-*" | tail -1 | python3 -c 'import json,sys; print(json.load(sys.stdin)["id"])')" | dd bs=64K iflag=fullblock conv=sparse of=out; }

show() { ln -f "$folder/$1.raw" "$disk"; }
found() { # where a tool has put the disk
    if [ -f out ]; then echo out; else find restored -type f -name disk.raw; fi
}
quiet() { # COMMAND...: what it prints is shown if it fails
    "$@" >log.txt 2>&1 || { echo "$* failed:" >&2; cat log.txt >&2; exit 1; }
}
measure() { # TOOL WHAT FUNCTION ARGUMENT: wall, CPU seconds and peak memory of all its processes
    local tool=$1 what=$2 function=$3
    shift 3
    # Waits for what was deleted before, too: a filesystem that is mounted with "discard" tells the disk of it then.
    sync
    # A host may have taken free memory back: whoever needs a page first would pay for it.
    # Less will do where there is not as much room.
    head -c 3G /dev/zero >"$room" 2>/dev/null || true
    rm -f "$room"
    # What was not touched for some seconds may have left the page cache: whoever is first would read it again.
    [[ $function != *_backup ]] || warm "$disk"
    export -f "${function?}"
    /usr/bin/time -o time.txt -f '%e %U %S %M' bash -c 'eval "$0 \"\$@\""' "$function" "$@" >log.txt 2>&1 \
        || { echo "$tool: $what failed:" >&2; cat log.txt >&2; exit 1; }
    tail -1 time.txt >>"$tool.$what.times"
}
export EKKO disk restic_sparse

row_round() {
    local tool=$1
    rm -rf "$tool" out restored .cache home/.cache
    mkdir restored
    quiet "${tool}_init"
    show db-1
    measure "$tool" first "${tool}_backup" db
    # What the cores can do, and how fast memory comes, changes by the minute where a machine has neighbours.
    [ "$tool" != ekko ] || "$EKKO" --json benchmark "$disk" >"benchmark.$(wc -l <ekko.first.times).json"
    measure "$tool" again "${tool}_backup" db
    show db-2
    measure "$tool" next "${tool}_backup" db
    measure "$tool" restore "${tool}_restore" db
    cmp "$(found)" "$folder/db-2.raw"
    if [ "$tool" = ekko ]; then
        # What filling the page cache costs here, now.
        rm -f out
        measure ekko copy ekko_copy
        # As it is by default: durable when it ends.
        rm -f out
        measure ekko restore-synced ekko_synced db
        cmp out "$folder/db-2.raw"
    fi
    rm -rf "$tool" out restored
}
ekko_copy() { cp --reflink=never "$disk" out; }
ekko_synced() { "$EKKO" -q -r ekko restore "$1" out; }

stored() { du -s --block-size=1 --exclude=reserve "$1" | cut -f1; }
fleet_of() { for name in base web app db-1 db-2 db-3; do printf '%s\n' "$name"; done; }
fleet_stored() {
    for tool in $peers; do
        rm -rf "$tool"
        quiet "${tool}_init"
        for name in $(fleet_of); do
            show "$name"
            quiet "${tool}_backup" "${name%-*}"
        done
        stored "$tool" >"$tool.stored"
        rm -rf "$tool"
    done
    for segment in 4MiB 256KiB; do
        rm -rf ekko
        ekko_init --segment-size "$segment" >/dev/null
        for name in $(fleet_of); do
            show "$name"
            ekko_backup "${name%-*}" >/dev/null
        done
        stored ekko >"ekko-$segment.stored"
        rm -rf ekko
    done
}

# Six machines in one call, beside six calls.
ekko_together() { (cd "$folder" && "$EKKO" -q -r "$work/ekko" backup base=base.raw web=web.raw app=app.raw db1=db-1.raw db2=db-2.raw db3=db-3.raw); }
ekko_in_turn() { (cd "$folder" && for name in base web app db-1 db-2 db-3; do "$EKKO" -q -r "$work/ekko" backup "${name/-/}=$name.raw"; done); }
export folder work
many_round() {
    for way in together in_turn; do
        warm "$folder"/*.raw
        rm -rf ekko
        ekko_init >/dev/null
        measure ekko "$way-first" "ekko_$way" x
        measure ekko "$way-again" "ekko_$way" x
    done
    rm -rf ekko
}

# The same, of disks that are far away: NBD servers (nbdkit) whose every reply takes 20 ms.
far_servers() {
    mkdir -p far
    for name in $(fleet_of); do
        nbdkit --unix "$work/far/$name" --pidfile "$work/far/$name.pid" --readonly --filter=delay file "$folder/$name.raw" rdelay=20ms
    done
    for name in $(fleet_of); do
        until [ -s "far/$name.pid" ]; do sleep 0.1; done
    done
}
far_end() {
    cat far/*.pid 2>/dev/null | xargs -r kill || true
    rm -rf far
}
far_sources() { for name in "$@"; do printf '%s=nbd+unix:///?socket=%s\n' "${name/-/}" "$work/far/$name"; done; }
ekko_far_together() { far_sources base web app db-1 db-2 db-3 | xargs "$EKKO" -q -r ekko backup; }
ekko_far_in_turn() { far_sources base web app db-1 db-2 db-3 | xargs -n 1 "$EKKO" -q -r ekko backup; }
export -f far_sources
far_round() {
    for way in far_together far_in_turn; do
        warm "$folder"/*.raw
        rm -rf ekko
        ekko_init >/dev/null
        measure ekko "$way-first" "ekko_$way" x
        measure ekko "$way-again" "ekko_$way" x
    done
    rm -rf ekko
}

# Disks into the page cache, but for their holes.
warm() {
    python3 - "$@" <<'PY'
import os, sys

for name in sys.argv[1:]:
    with open(name, "rb", buffering=0) as disk:
        at = 0
        while True:
            try:
                at = os.lseek(disk.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(disk.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += len(os.pread(disk.fileno(), min(1 << 20, end - at), at))
PY
}

case ${ONLY:-all} in all | rows)
    for _ in $(seq "$rounds"); do
        for tool in ekko $peers; do
            row_round "$tool"
        done
    done
    fleet_stored
esac
case ${ONLY:-all} in all | many)
    for _ in $(seq "$rounds"); do many_round; done
esac
case ${ONLY:-all} in all | far)
    if command -v nbdkit >/dev/null; then
        far_servers
        for _ in $(seq "$rounds"); do far_round; done
        far_end
    fi
esac

"$EKKO" --version
for peer in $peers; do "$peer" --version 2>/dev/null || restic version; done
printf '%s cores, Linux %s, %s\n' "$(nproc)" "$(uname -r)" "$(stat -f -c %T .)"
for name in $(fleet_of); do
    printf '%-5s %5s MiB allocated of %s MiB\n' "$name" "$(du -m "$folder/$name.raw" | cut -f1)" "$(du -m --apparent-size "$folder/$name.raw" | cut -f1)"
done
python3 "$here/benches/fleet_table.py" .
