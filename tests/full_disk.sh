#!/usr/bin/env bash
# A service whose disk becomes full, and whose filesystem is then unmounted: every step works as soon as it can, and the
# service is never started again.
#
# usage: tests/full_disk.sh      EKKO=path/to/ekko (built with cargo if it is not given)
#
# Needs root, a loop device and e2fsprogs.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${EKKO:-}" ]; then
    cargo build --locked --release
    EKKO=${CARGO_TARGET_DIR:-target}/release/ekko
fi
EKKO=$(realpath "$EKKO")
work=$(mktemp -d)
service=
device=
end() {
    [ -z "$service" ] || kill "$service" 2>/dev/null || true
    [ -z "$service" ] || wait "$service" 2>/dev/null || true
    umount -l "$work/disk" 2>/dev/null || true
    [ -z "$device" ] || losetup -d "$device" || true
    rm -rf "$work"
}
trap end EXIT

truncate -s 256M "$work/image"
mkfs.ext4 -q -F "$work/image"
mkdir "$work/disk"
device=$(losetup -f --show "$work/image")
mount "$device" "$work/disk"
store=$work/disk/store
"$EKKO" -q -r "$store" init --segment-size 1MiB
head -c 220M /dev/urandom >"$work/noise.raw"
head -c 3M /dev/urandom >"$work/small.raw"
a=$("$EKKO" -q -r "$store" token create --project a --role backup)
b=$("$EKKO" -q -r "$store" token create --project b --role operator)
port=$((20000 + RANDOM % 20000))
"$EKKO" -r "$store" serve --listen 127.0.0.1:$port 2>"$work/log" &
service=$!
url=http://127.0.0.1:$port
until curl -sf "$url/healthz" >/dev/null; do sleep 0.1; done

as() { EKKO_TOKEN=$1 EKKO_REPOSITORY=$url/ "$EKKO" "${@:2}"; }
ready() { curl -s -o "$work/answer" -w '%{http_code}' "$url/readyz"; }
failed() { echo "FAILED: $*"; cat "$work/log"; exit 1; }
step() { echo "ok    $*"; }

as "$b" -q backup b="$work/small.raw" || failed "the first small backup"
step "a small backup of project b, before"
if as "$a" -q backup a="$work/noise.raw" 2>"$work/said"; then failed "220 MB fit into 256 MB"; fi
grep -q "disk is full" "$work/said" || failed "it was not told why: $(cat "$work/said")"
step "220 MB of project a do not fit: $(tail -1 "$work/said")"
head -c 3M /dev/urandom >"$work/small.raw"
as "$b" -q backup b="$work/small.raw" || failed "a small backup of project b"
step "a small backup of project b, at once"
as "$b" -q delete b@0 || failed "delete"
as "$b" -q gc || failed "gc"
step "delete and gc of project b, at once"
"$EKKO" -q -r "$store" gc --now --keep-unfinished 0s || failed "gc by the socket"
step "gc of the owner by the socket"
[ "$(ready)" = 200 ] || failed "not ready: $(cat "$work/answer")"
step "/readyz is 200"
as "$b" -q restore b@latest "$work/out.raw" && cmp "$work/out.raw" "$work/small.raw" || failed "restore"
step "what was backed up comes back as it was"

# No room at all, not even for what says that the repository is open: then there is some again.
rm -f "$store/reserve"
dd if=/dev/zero of="$work/disk/fill" bs=1M status=none 2>/dev/null || true
head -c 9M /dev/urandom >"$work/small.raw"
if as "$b" -q backup b="$work/small.raw" 2>"$work/said"; then failed "a backup on a full disk"; fi
step "a disk without a free byte: $(tail -1 "$work/said")"
rm "$work/disk/fill"
as "$b" -q backup b="$work/small.raw" || failed "a backup after there was room"
step "a backup as soon as there is room"
[ "$(ready)" = 200 ] || failed "not ready: $(cat "$work/answer")"

# The filesystem goes away and comes back.
umount -l "$work/disk"
[ "$(ready)" = 503 ] || failed "ready without a filesystem"
step "unmounted: $(grep -o '"detail":"[^"]*"' "$work/answer")"
said=$(curl -s -H "Authorization: Bearer $b" "$url/v1/images")
grep -q unavailable <<<"$said" || failed "it was told: $said"
step "a client is told: $(grep -o '"detail":"[^"]*"' <<<"$said")"
[ -z "$(ls -A "$work/disk")" ] || failed "something was made in the empty mount point"
mount "$device" "$work/disk"
for _ in $(seq 100); do [ "$(ready)" = 200 ] && break; sleep 0.1; done
[ "$(ready)" = 200 ] || failed "not ready after it was mounted: $(cat "$work/answer")"
as "$b" -q backup b="$work/small.raw" || failed "a backup after it was mounted"
step "mounted again: ready, and backups work"
kill -0 "$service" || failed "the service has ended"
kill "$service"
wait "$service" || failed "it did not end in order"
service=
"$EKKO" -r "$store" check --read-data || failed "check"
step "it ended in order, and all is whole"
