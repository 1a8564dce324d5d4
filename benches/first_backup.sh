#!/usr/bin/env bash
# Backs one disk image up into a new repository, again unchanged, and restores it: with Ekko and, where it is
# installed, with borg, in turn in the same run. Prints the median of wall time and CPU time in seconds and the
# highest peak memory in MiB, as /usr/bin/time measures them.
#
# usage: benches/first_backup.sh IMAGE [ROUNDS]      EKKO=path/to/ekko  WORK=folder on the disk to measure
set -euo pipefail

image=$(realpath "$1")
rounds=${2:-5}
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
export BORG_BASE_DIR=$work/borg-home BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes BORG_RELOCATED_REPO_ACCESS_IS_OK=yes

measure() { # NAME COMMAND...: appends wall, CPU and memory to a file
    local name=$1
    shift
    /usr/bin/time -o time.txt -f '%e %U %S %M' "$@" >/dev/null 2>&1
    tail -1 time.txt >>"$name.times"
}

ekko_round() {
    rm -rf repository out.raw
    measure ekko-first "$EKKO" -q -r repository backup disk="$image"
    measure ekko-again "$EKKO" -q -r repository backup disk="$image"
    measure ekko-restore "$EKKO" -q -r repository restore --no-sync disk out.raw
    cmp out.raw "$image"
    rm -f out.raw
    measure ekko-restore-synced "$EKKO" -q -r repository restore disk out.raw
    du -sm --exclude=reserve repository | cut -f1 >ekko.size
}

borg_round() {
    rm -rf borg out && mkdir out
    borg init -e none borg
    measure borg-first borg create --chunker-params fixed,4194304 --sparse --compression zstd,1 borg::a "$image"
    # --files-cache disabled: the source is read again, as a changed disk would be.
    measure borg-again borg create --files-cache disabled --chunker-params fixed,4194304 --sparse --compression zstd,1 borg::b "$image"
    (cd out && measure ../borg-restore borg extract --sparse ../borg::a)
    cmp "out/${image#/}" "$image"
    du -sm borg | cut -f1 >borg.size
}

cat "$image" >/dev/null
for _ in $(seq "$rounds"); do
    ekko_round
    ! command -v borg >/dev/null || borg_round
done

printf '%s: %s MiB allocated of %s MiB; medians of %s rounds\n' "$(basename "$image")" \
    "$(du -m "$image" | cut -f1)" "$(du -m --apparent-size "$image" | cut -f1)" "$rounds"
"$EKKO" --version
! command -v borg >/dev/null || borg --version
printf '%-22s %8s %8s %10s\n' what 'wall s' 'CPU s' 'peak MiB'
for times in *.times; do
    python3 - "$times" <<'PY'
import statistics, sys
rows = [[float(field) for field in line.split()] for line in open(sys.argv[1])]
wall = statistics.median(row[0] for row in rows)
cpu = statistics.median(row[1] + row[2] for row in rows)
memory = max(row[3] for row in rows) / 1024
print(f"{sys.argv[1].removesuffix('.times'):22} {wall:8.2f} {cpu:8.2f} {memory:10.1f}")
PY
done
for size in *.size; do printf '%-22s %8s MiB stored\n' "${size%.size}" "$(cat "$size")"; done
