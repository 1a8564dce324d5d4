#!/usr/bin/env bash
# Makes the fleet that benches/fleet.sh measures with: six disks of 8 GiB, sparse, about 1.4 GB of data each, copies of one
# golden image that have gone their own ways, as the virtual machines of one operator have:
#
#   base.raw  web.raw  app.raw           the golden image; with a web site; with a build in it
#   db-1.raw  db-2.raw  db-3.raw         a PostgreSQL server on three days, pgbench running in it between them
#
# Root with loop devices, mkfs.ext4 and debootstrap makes real filesystems; elsewhere, or with SYNTHETIC=1, files of the
# same shape are made: as much data, as compressible, as much of it in common, changed in as many places.
#
# usage: benches/make_fleet.sh FOLDER      TREE=folder of a Debian root with PostgreSQL in it  SYNTHETIC=1
set -euo pipefail

mkdir -p "$1"
cd "$1"
fleet="base web app db-1 db-2 db-3"
size=8G
mnt=$PWD/mnt

complete() { for disk in $fleet; do [ -f "$disk.raw" ] || return 1; done; }
copy() { cp --sparse=always "$1.raw" "$2.raw.new"; }
finish() { mv "$1.raw.new" "$1.raw"; }
tidy() {
    umount -R "$mnt" 2>/dev/null || true
    rm -f ./*.raw.new
}

real() {
    trap tidy EXIT
    if [ -z "${TREE:-}" ]; then
        TREE=$PWD/tree
        if [ ! -f tree.done ]; then
            rm -rf tree
            debootstrap --variant=minbase --include=systemd-sysv,openssh-server,python3,perl,git,vim,curl,nginx,postgresql,postgresql-contrib,build-essential,nodejs,default-jre-headless,man-db,cron,rsyslog \
                "${SUITE:-bookworm}" tree >debootstrap.log
            umount tree/proc tree/sys 2>/dev/null || true
            rm -rf tree/var/cache/apt/archives/*.deb
            touch tree.done
        fi
    fi
    mkdir -p "$mnt"
    if [ ! -f base.raw ]; then
        truncate -s "$size" base.raw.new
        mkfs.ext4 -q base.raw.new
        mount -o loop base.raw.new "$mnt"
        cp -ax "$TREE/." "$mnt/"
        umount "$mnt"
        finish base
    fi
    if [ ! -f web.raw ]; then
        copy base web
        mount -o loop web.raw.new "$mnt"
        # Pictures do not compress, pages and logs do.
        mkdir -p "$mnt/srv/www/pictures"
        for file in $(seq 50); do head -c 1M /dev/urandom >"$mnt/srv/www/pictures/$file.jpg"; done
        cp -r "$mnt/usr/share/doc" "$mnt/srv/www/pages"
        seq 1 2000000 | awk '{ printf "10.0.%d.%d - - [%d] \"GET /pages/%d.html HTTP/1.1\" 200 %d\n", $1 % 251, $1 % 13, 1700000000 + $1, ($1 * 7919) % 10007, ($1 * 104729) % 65537 }' >"$mnt/var/log/nginx/access.log"
        umount "$mnt"
        finish web
    fi
    if [ ! -f app.raw ]; then
        copy base app
        mount -o loop app.raw.new "$mnt"
        cp -r "$mnt/usr/lib/python3" "$mnt/usr/share/perl" "$mnt/srv/"
        head -c 40M /dev/urandom >"$mnt/srv/cache.bin"
        rm -rf "$mnt/usr/share/man" "$mnt/usr/share/locale"
        umount "$mnt"
        finish app
    fi
    day base db-1 "pgbench -q -i -s 10 bench && pgbench -c 2 -T 10 bench"
    day db-1 db-2 "pgbench -c 2 -T 10 bench"
    day db-2 db-3 "pgbench -c 2 -T 10 bench"
}

day() { # FROM TO COMMAND: what PostgreSQL does in the machine on that day
    [ ! -f "$2.raw" ] || return 0
    copy "$1" "$2"
    mount -o loop "$2.raw.new" "$mnt"
    mount --bind /dev "$mnt/dev"
    mount -t proc proc "$mnt/proc"
    local version
    version=$(ls "$mnt/usr/lib/postgresql")
    cat >"$mnt/tmp/day.sh" <<SH
set -e
export PATH=/usr/lib/postgresql/$version/bin:\$PATH PGHOST=/tmp
cd /var/lib/postgresql
data=/var/lib/postgresql/fleet
[ -d \$data ] || initdb -D \$data >/dev/null
pg_ctl -D \$data -w -o '-k /tmp -c listen_addresses= -c autovacuum_naptime=5s' -l /tmp/postgres.log start >/dev/null
psql -lqt postgres | cut -d'|' -f1 | grep -qw bench || createdb bench
$3 >/dev/null
pg_ctl -D \$data -w stop >/dev/null
rm /tmp/postgres.log
SH
    chmod 755 "$mnt/tmp/day.sh"
    chroot "$mnt" su postgres -c 'sh /tmp/day.sh' >>day.log 2>&1 || { cat day.log >&2; exit 1; }
    rm "$mnt/tmp/day.sh"
    umount "$mnt/proc" "$mnt/dev" "$mnt"
    finish "$2"
}

synthetic() {
    python3 - "$PWD" <<'PY'
# Pieces of 64 KiB, each of a third bytes that do not compress and two thirds words: about 2.9 to 1 with zstd at level 1, as
# a Debian root.
import hashlib, os, random, sys

PIECE, SIZE = 64 << 10, 8 << 30
words = [hashlib.sha1(b"%d" % number).hexdigest()[: 2 + number % 9].encode() for number in range(5000)]

def piece(seed):
    chance = random.Random(seed)
    text = b" ".join(chance.choices(words, k=6600))[: PIECE * 2 // 3]
    return text + chance.randbytes(PIECE - len(text))

def write(name, layers):
    """A disk of `layers`, later ones over earlier: (seed, places in pieces)."""
    path = os.path.join(sys.argv[1], name + ".raw")
    with open(path + ".new", "wb") as disk:
        disk.truncate(SIZE)
        for seed, places in layers:
            for place in places:
                disk.seek(place * PIECE)
                disk.write(piece(seed * 1_000_003 + place))
    os.rename(path + ".new", path)

# 1.25 GB in 40 stretches all over the disk, as the block groups of ext4 have it.
golden = [place for group in range(40) for place in range(group * 3200, group * 3200 + 480)]
chance = random.Random(1)
touched = lambda share: sorted(chance.sample(golden[: len(golden) // 3], int(len(golden) * share)))
own = lambda first, pieces: range(first, first + pieces)
base = [(1, golden)]
day1 = [*base, (4, own(2000, 2400)), (5, touched(0.01))]
day2 = [*day1, (6, own(2600, 300)), (7, touched(0.01))]
disks = {
    "base": base,
    "web": [*base, (2, own(1000, 1600)), (8, touched(0.005))],
    "app": [*base, (3, own(5600, 1200)), (9, touched(0.005))],
    "db-1": day1,
    "db-2": day2,
    "db-3": [*day2, (10, own(3300, 300)), (11, touched(0.01))],
}
for name, layers in disks.items():
    if not os.path.exists(os.path.join(sys.argv[1], name + ".raw")):
        write(name, layers)
PY
}

complete && exit 0
if [ -z "${SYNTHETIC:-}" ] && [ "$(id -u)" = 0 ] && command -v mkfs.ext4 >/dev/null \
    && { [ -n "${TREE:-}" ] || command -v debootstrap >/dev/null; } && losetup -f >/dev/null 2>&1; then
    real
else
    synthetic
fi
