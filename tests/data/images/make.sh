#!/usr/bin/env bash
# Makes the images of tests/images.rs with QEMU's own tools: each with what
# "qemu-img convert -O raw" makes of it (SHA-1), and how many bytes "qemu-img map" says are data.
# Made once, with qemu-img 10.0.2; what is made anew may differ in bytes and must not differ in meaning.
#
# usage: tests/data/images/make.sh [FOLDER]     needs qemu-img, qemu-io, xz, python3
set -euo pipefail
folder=$(realpath "${1:-$(dirname "$0")}")
cd "$(mktemp -d)"

size=$((9 * 1024 * 1024 + 512))
# Data, zeros that were written, zeros that were said, and what was never touched; across clusters and inside them.
fill() { # IMAGE FORMAT [OFFSET ADDED TO THE PATTERNS]
    local p=${3:-0}
    qemu-io -f "$2" \
        -c "write -P $((1 + p)) 0 64k" -c "write -P $((2 + p)) 65000 3000" -c "write -P $((3 + p)) 1M 700k" \
        -c "write -z 3M 128k" -c "write -P 0 4M 64k" -c "write -P $((4 + p)) 5000000 1" -c "write -z 1200k 4k" \
        -c "write -P $((5 + p)) $((size - 512)) 512" -c "write -P $((6 + p)) 8M 300k" -c "discard 8300k 64k" "$1" >/dev/null
}
make() { # NAME OPTIONS...
    local name=$1
    shift
    qemu-img create -q -f qcow2 "$@" "$name.qcow2" $size
    fill "$name.qcow2" qcow2
}

make v2 -o compat=0.10
make v3
make clusters-512 -o cluster_size=512
make clusters-2m -o cluster_size=2M
make extended -o extended_l2=on
make extended-2m -o extended_l2=on,cluster_size=2M
make preallocated -o preallocation=metadata
make lazy -o lazy_refcounts=on
make data-file -o data_file=data-file.raw
make data-file-raw -o data_file=data-file-raw.raw,data_file_raw=on
qemu-img convert -q -c -O qcow2 v3.qcow2 compressed.qcow2
qemu-img convert -q -c -O qcow2 -o compression_type=zstd v3.qcow2 compressed-zstd.qcow2
qemu-img convert -q -c -O qcow2 -o cluster_size=2M v3.qcow2 compressed-2m.qcow2
qemu-img convert -q -c -O qcow2 -o extended_l2=on v3.qcow2 compressed-extended.qcow2
# Compressed, then written to in part.
cp compressed.qcow2 compressed-mixed.qcow2
qemu-io -f qcow2 -c "write -P 9 100k 20k" compressed-mixed.qcow2 >/dev/null
# A chain of three, of which each is larger than what is below it; the middle one has parts of clusters of its own.
qemu-img create -q -f raw base.raw $((5 * 1024 * 1024 + 512))
qemu-io -f raw -c "write -P 20 0 2M" -c "write -P 21 5M 512" base.raw >/dev/null
qemu-img create -q -f qcow2 -o extended_l2=on -b base.raw -F raw middle.qcow2 $((7 * 1024 * 1024))
qemu-io -f qcow2 -c "write -P 22 500k 3k" -c "write -z 1M 64k" -c "write -P 23 6M 1M" middle.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 chain.qcow2 $size
qemu-io -f qcow2 -c "write -P 24 510k 100k" -c "discard 6200k 128k" -c "write -P 25 8M 1k" chain.qcow2 >/dev/null
# Internal snapshots: the disk was smaller at the first.
make snapshots
qemu-img snapshot -q -c first snapshots.qcow2
qemu-img convert -q -l snapshot.name=first -O raw snapshots.qcow2 snapshot-first.raw
qemu-io -f qcow2 -c "write -P 30 0 1M" -c "write -z 4M 1M" snapshots.qcow2 >/dev/null
qemu-img snapshot -q -c second snapshots.qcow2
qemu-img convert -q -l snapshot.name=second -O raw snapshots.qcow2 snapshot-second.raw
qemu-io -f qcow2 -c "write -P 31 0 64k" snapshots.qcow2 >/dev/null

rm -f "$folder"/*.xz
sum() { sha1sum "$1" | cut -d' ' -f1; }
data() { qemu-img map --output=json "$1" | python3 -c 'import json, sys; print(sum(it["length"] for it in json.load(sys.stdin) if it["data"]))'; }
for image in *.qcow2; do
    name=${image%.qcow2}
    qemu-img convert -q -O raw "$image" "$name.expected"
    printf '%s %s %s\n' "$name" "$(sum "$name.expected")" "$(data "$image")"
done >"$folder/expected"
for snapshot in first second; do
    printf 'snapshots@%s %s %s\n' $snapshot "$(sum snapshot-$snapshot.raw)" $size
done >>"$folder/expected"
for file in *.qcow2 base.raw data-file.raw data-file-raw.raw; do
    xz -9e --stdout "$file" >"$folder/$file.xz"
done
