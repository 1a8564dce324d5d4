#!/bin/sh
# Made most of fuzz/seeds: a few inputs for each target to start from, in the form that the target reads. Kept in the
# repository, small; what a fuzzer finds beyond them goes to fuzz/corpus, which is not. The seeds of changes and image are
# what other programs wrote, and stay as they are.
#
# usage: EKKO=path/to/ekko sh fuzz/seeds.sh
set -eu

cd "$(dirname "$0")/.."
for target in client codec manifest model osdk pack sqlite; do
    rm -rf "fuzz/seeds/$target"
    mkdir -p "fuzz/seeds/$target"
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
seed() { # TARGET NAME PREFIX [FILE]: the fields before the bytes, and the bytes
    { printf "$3"; [ $# -lt 4 ] || cat "$4"; } >"fuzz/seeds/$1/$2"
}

number=0
for manifest in tests/golden/format-1/store/manifests/*/[0-9]; do
    number=$((number + 1))
    seed manifest "golden-$number" '\000\000' "$manifest"
    tail -c +129 "$manifest" >"$work/body"
    seed manifest "body-$number" '\001\000' "$work/body"
done
"$EKKO" manifest generate --backupsize 1 --segment-size 64MiB --seed 1 --fragmented 30 "$work/ekko"
seed manifest generated '\000\000' "$work/ekko"
"$EKKO" manifest export "$work/ekko" "$work/osdk" --format osdk
seed osdk generated '\000\000' "$work/osdk"
tail -c +29 "$work/osdk" >"$work/behind"
seed osdk behind-checksums '\001\000' "$work/behind"
seed osdk changed '\002\001\034\000\001\001\100\000\377\000'
"$EKKO" manifest export "$work/ekko" "$work/sqlite"
seed sqlite generated '\001\000' "$work/sqlite"
seed sqlite original '\001\000' tests/data/original/manifest.sqlite
seed sqlite changed '\000\001\000\020\001\001\000\040\377\000'
for kind in 0 1 2 3; do
    seed pack "kind-$kind" "\\00$kind\\001\\000\\041\\377\\000EKKOREC1"
done
for which in 0 1 2; do
    seed client "changed-$which" "\\00$which\\002\\100\\000\\000\\000\\377"
    seed client "cut-$which" "\\00$which\\001\\000\\001\\000\\000\\001"
    seed client "other-$which" "\\00$which\\000HTTP/1.1 302 X\\r\\nLocation: http://other/\\r\\n\\r\\n"
done
seed codec zlib '\001\000\350\003\040\000' tests/data/original/segments/85cbfeed-0de8-4294-a298-3b97f4d08385/0/5
seed codec text '\003\000\020\000\000\000' docs/glossary.md
# Steps of five bytes: what, image, place, and a number of two.
for number in 1 2 3 4; do
    awk -v seed="$number" 'BEGIN { srand(seed); for (n = 0; n < 150; n++) printf "\\%03o", int(rand() * 256) }' >"$work/steps"
    seed model "steps-$number" "$(cat "$work/steps")"
done
