#!/usr/bin/env bash
# What it costs to have many disks: 100 and 1,000 disks in one call, each with one changed segment, ten nights;
# 100 disks among 100 names and among 1,100; deleting most backups of a long history by policy.
#
# usage: benches/many_names.sh [FOLDER]      EKKO=path/to/ekko  NIGHTS=10  ROUNDS=5  HISTORY=1100
# Needs python3 and 8 GB in FOLDER, which should be on the disk that is to be measured.
set -euo pipefail

work=$(mktemp -d "${1:-.}/many-names.XXXXXX")
trap 'rm -rf "$work"' EXIT
EKKO=$(realpath "${EKKO:-target/release/ekko}")
nights=${NIGHTS:-10}
rounds=${ROUNDS:-5}
history=${HISTORY:-1100}
cd "$work"

# Disks of 16 MiB with holes; each night another 64 KiB of one segment are new.
change() { # COUNT
    python3 - "$1" <<'PY'
import os, sys

os.makedirs("disks", exist_ok=True)
for number in range(int(sys.argv[1])):
    with open(f"disks/{number}.raw", "ab"):
        pass
    with open(f"disks/{number}.raw", "r+b") as disk:
        disk.truncate(16 << 20)
        disk.seek(4 << 20)
        disk.write(os.urandom(65536))
PY
    sync
}

# Prints the seconds that a backup of the first COUNT disks takes, and the seconds of CPU.
backup() { # REPOSITORY COUNT
    local sources=()
    for ((number = 0; number < $2; number++)); do sources+=("n$number=disks/$number.raw"); done
    python3 - "$EKKO" -q -r "$1" backup "${sources[@]}" <<'PY'
import resource, subprocess, sys, time

began = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{time.monotonic() - began:.3f} {used.ru_utime + used.ru_stime:.3f} {used.ru_maxrss / 1024:.0f}")
PY
}
median() { sort -n | awk '{at[NR] = $1} END {print at[int((NR + 1) / 2)]}'; }

change 1100
for repository in few many crowd; do "$EKKO" -q -r "$repository" init >/dev/null; done
backup crowd 1100 >/dev/null

echo "seconds elapsed (of CPU), MiB of memory"
printf '%-6s %20s %20s %8s\n' night "100 disks" "1,000 disks" ratio
for ((night = 1; night <= nights; night++)); do
    change 1000
    read -r few few_cpu few_memory < <(backup few 100)
    read -r many many_cpu many_memory < <(backup many 1000)
    awk -v night="$night" -v few="$few ($few_cpu) $few_memory" -v many="$many ($many_cpu) $many_memory" -v ratio="$(bc -l <<<"$many / $few")" \
        'BEGIN {printf "%-6s %20s %20s %7.1fx\n", night, few, many, ratio}'
    echo "$few $many" >>nights
done
awk '{few += $1; many += $2} END {printf "all nights: %.2f s and %.2f s: %.1fx\n", few, many, many / few}' nights

for ((round = 1; round <= rounds; round++)); do
    change 100
    # In turn, each first once: whoever reads new bytes first may find them still being written.
    if ((round % 2)); then order="few crowd"; else order="crowd few"; fi
    for repository in $order; do backup "$repository" 100 | cut -d' ' -f1 >>"$repository.times"; done
done
few=$(median <few.times)
crowd=$(median <crowd.times)
awk -v few="$few" -v crowd="$crowd" -v rounds="$rounds" \
    'BEGIN {printf "100 disks among 100 names %.3f s, among 1,100 names %.3f s (medians of %d): %.2fx\n", few, crowd, rounds, crowd / few}'

"$EKKO" -q -r history init >/dev/null
for ((number = 0; number < history; number++)); do
    printf '%s' "$number" | dd of=disks/0.raw bs=1 seek=4194304 conv=notrunc status=none
    "$EKKO" -q -r history backup long=disks/0.raw
done >/dev/null
began=$(date +%s.%N)
"$EKKO" -q -r history forget --keep-last 10 long >/dev/null 2>&1
awk -v began="$began" -v ended="$(date +%s.%N)" -v count=$((history - 10)) \
    'BEGIN {printf "forget of %d backups of one name: %.2f s\n", count, ended - began}'
"$EKKO" --version
printf '%s cores, Linux %s, %s\n' "$(nproc)" "$(uname -r)" "$(stat -f -c %T .)"
