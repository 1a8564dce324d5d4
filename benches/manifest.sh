#!/usr/bin/env bash
# Manifests at 2^24 segments through the binary: size, time and peak memory of every operation on them, beside the
# time that dd needs to write as many bytes. Needs python3 (its sqlite3 makes the manifest that differs in 1 %).
#
# usage: benches/manifest.sh      EKKO=path/to/ekko  WORK=folder on the disk to measure
#                                 STORED=1: also a stored backup of 2^20 segments (some minutes, 10 GiB)
set -euo pipefail

here=$(realpath "$(dirname "$0")/..")
if [ -z "${EKKO:-}" ]; then
    cargo build --release --manifest-path "$here/Cargo.toml"
    EKKO=$here/target/release/ekko
fi
EKKO=$(realpath "$EKKO")
work=$(mktemp -d -p "${WORK:-.}")
work=$(realpath "$work")
trap 'rm -rf "$work"' EXIT
cd "$work"

row() { # NAME COMMAND...: the median time of three rounds, and the peak memory of the last
    local name=$1
    shift
    rm -f times
    for _ in 1 2 3; do
        /usr/bin/time -a -o times -f '%e %M' "$@" >/dev/null 2>messages || { cat messages >&2; exit 1; }
    done
    printf '%-44s %8.2f s %8.1f MiB\n' "$name" "$(cut -d' ' -f1 times | sort -n | sed -n 2p)" \
        "$(tail -1 times | awk '{print $2 / 1024}')"
}
size() { # NAME FILE
    printf '%-44s %10d bytes %6.2f a segment\n' "$1" "$(stat -c %s "$2")" \
        "$(echo "$(stat -c %s "$2") 16777216" | awk '{print $1 / $2}')"
}

"$EKKO" --version
row "dd of as many bytes, conv=fsync" dd if=/dev/zero of=dd bs=1M count=320 conv=fsync
row "generate" "$EKKO" manifest generate --backupsize 65536 --seed 1 --force dense
row "generate --fragmented 10" "$EKKO" manifest generate --backupsize 65536 --seed 1 --fragmented 10 --force fragmented
rm dd
size "dense" dense
size "fragmented" fragmented
row "info: open and full validation, dense" "$EKKO" manifest info ./dense
row "info: open and full validation, fragmented" "$EKKO" manifest info ./fragmented
row "dump" "$EKKO" manifest dump ./dense
row "SQLite export" "$EKKO" manifest export ./dense sqlite --force
size "SQLite" sqlite
row "SQLite import" "$EKKO" manifest import sqlite --output imported --force
"$EKKO" diff ./dense ./imported | grep -q '^0 B hold other data, 0 B became zero$'
python3 - <<'P'
import os, sqlite3
c = sqlite3.connect('sqlite')
c.execute('PRAGMA journal_mode = OFF')
c.executemany('UPDATE segments SET segment_hash = ? WHERE segment = ?',
              ((os.urandom(20), n) for n in range(37, 1 << 24, 100)))
c.commit()
P
"$EKKO" -q manifest import sqlite --output changed >/dev/null
rm sqlite imported
row "diff of two that differ in 1 %" "$EKKO" --json diff ./dense ./changed
row "OSDK export" "$EKKO" manifest export ./dense osdk --format osdk --force
size "OSDK" osdk
row "OSDK import" "$EKKO" manifest import osdk --output imported --force
"$EKKO" diff ./dense ./imported | grep -q '^0 B hold other data, 0 B became zero$'
if [ -n "${STORED:-}" ]; then
    python3 - <<'P'
import os
f = os.open('many', os.O_CREAT | os.O_WRONLY, 0o600)
os.ftruncate(f, 1 << 36)
for n in range(1 << 20):
    os.pwrite(f, n.to_bytes(8, 'little'), n << 16)
P
    "$EKKO" -q -r store init --segment-size 64KiB >/dev/null
    "$EKKO" -q -r store backup many >/dev/null
    rm many
    row "SQLite export of a stored backup, 2^20" "$EKKO" -r store manifest export many stored --force
    row "OSDK export of a stored backup, 2^20" "$EKKO" -r store manifest export many osdk --format osdk --force
fi
