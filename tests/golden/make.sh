#!/bin/sh
# Made the golden repository of the format that this release writes, once. A golden folder that is in the repository
# of the source is never made anew: it stands for what released versions wrote.
#
# usage: EKKO=path/to/ekko sh tests/golden/make.sh FOLDER
set -eu

here=$(cd "$(dirname "$0")" && pwd)
mkdir "$1"
cd "$1"
export EKKO_REPOSITORY=store

noise() { # SEED BYTES: bytes that follow from a seed
    python3 -c 'import random, sys; sys.stdout.buffer.write(random.Random(sys.argv[1]).randbytes(int(sys.argv[2])))' "$@"
}
text() { # BYTES: bytes that compress
    seq 1 1000000 | head -c "$1"
}
record() { # BACKUP FILE: what a restore must give
    printf '%s %s %s\n' "$1" "$(stat -c %s "$2")" "$(sha256sum <"$2" | cut -d' ' -f1)" >>expected
}

"$EKKO" init --segment-size 64KiB
# A segment of zeros, one that compresses, noise, and a short last one.
{ head -c 65536 /dev/zero; text 65536; noise a 20000; head -c 45536 /dev/zero; noise b 1000; } >web
"$EKKO" backup --compression zstd:3 web
record web@0 web
# Grown, with a changed segment and the two segments that share a SHA-1.
{ head -c 65536 web; text 130000 | tail -c 65536; tail -c +131073 web | head -c 65536
  for head in 1 2; do cat "$here/../data/shattered-$head.bin"; head -c 65216 /dev/zero | tr '\0' x; done; } >web.1
mv web.1 web
"$EKKO" backup --compression lzma:6 web
record web@1 web
# Shrunk to whole segments, which ends with 3.
head -c 131072 web >web.2
mv web.2 web
"$EKKO" backup web || test $? = 3
record web@2 web
{ text 200000 | tail -c 70000; head -c 65536 web; } >db
"$EKKO" backup --compression zlib db
record db@0 db
{ noise c 10000; text 65536; } >raw
"$EKKO" backup --compression none raw
record raw@0 raw
old=$("$EKKO" --json list web | sed -n 's/.*"backupset": "\(.*\)",/\1/p' | head -1)
"$EKKO" restore --force --over web web@0 web
printf 'after the restore' | dd of=web conv=notrunc bs=1 seek=70000 status=none
"$EKKO" backup web
record web@3 web
"$EKKO" manifest dump web >web@3.hashes
"$EKKO" manifest dump web@1 >web@1.hashes
printf '%s %s\n' "$old" "$(grep '^web@1 ' expected)" | sed 's/ web@1/@1/' >>expected
rm -r store/index store/lock store/reserve web db raw
