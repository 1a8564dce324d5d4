#!/usr/bin/env bash
# Backs up an RBD image of a one-node Ceph, in memory: a snapshot in full, then the next snapshot by what
# "rbd diff" says of both, as JSON and as text, and compares what is restored with what "rbd export" gives.
#
# usage: EKKO=target/release/ekko tests/ceph.sh [FOLDER]
#        needs ceph-mon, ceph-mgr, ceph-osd, ceph-common, qemu-utils, qemu-block-extra; no root. Says what it did.
set -euo pipefail

EKKO=$(realpath "${EKKO:-target/release/ekko}")
folder=$(realpath -m "${1:-$(mktemp -d)}")
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"
port=36789
export CEPH_CONF=$folder/ceph.conf
cat >ceph.conf <<EOF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$port]
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
osd objectstore = memstore
memstore device bytes = 2147483648
run dir = $folder
admin socket = $folder/\$name.asok
log file = $folder/\$name.log
pid file = $folder/\$name.pid
mon data = $folder/mon
mgr data = $folder/mgr
osd data = $folder/osd
keyring = $folder/keyring
EOF
stop() {
    for pid in "$folder"/*.pid; do [ ! -f "$pid" ] || kill "$(cat "$pid")" 2>/dev/null || true; done
}
trap stop EXIT
mkdir mon mgr osd
ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *' >/dev/null
monmaptool --create --addv a "[v2:127.0.0.1:$port]" --fsid "$(sed -n 's/^fsid = //p' ceph.conf)" monmap >/dev/null
ceph-mon --mkfs -i a --monmap monmap --keyring keyring
ceph-mon -i a
ceph-mgr -i x
ceph osd create >/dev/null
ceph-osd -i 0 --mkfs >/dev/null 2>&1
ceph-osd -i 0
ceph osd pool create vms 8 >/dev/null 2>&1
rbd pool init vms
ceph --version
rbd create vms/web --size 256M
write() { # OFFSET LENGTH SEED: as a guest does
    openssl enc -aes-128-ctr -pass "pass:$3" -nosalt -pbkdf2 </dev/zero 2>/dev/null | head -c "$2" >part || true
    qemu-io -f raw "rbd:vms/web:conf=$CEPH_CONF" -c "write -q -s part $1 $2" >/dev/null
}
write 0 10M a
write 100M 20M b
rbd snap create --no-progress vms/web@monday
write 3M 4k c
write 200M 1M d
qemu-io -f raw -d unmap "rbd:vms/web:conf=$CEPH_CONF" -c "discard 104M 8M" >/dev/null
rbd snap create --no-progress vms/web@tuesday
write 250M 64k e
rbd snap create --no-progress vms/web@wednesday

backup() { # SNAPSHOT ARGUMENTS...
    local snapshot=$1
    shift
    "$EKKO" -q -r store --json backup "$@" "web=rbd:vms/web@$snapshot:conf=$CEPH_CONF" >result.json
    rm -f reference.raw out.raw
    rbd export --no-progress "vms/web@$snapshot" reference.raw
    "$EKKO" -q -r store restore web out.raw >/dev/null
    cmp reference.raw out.raw
    python3 - "$snapshot" <<'PY'
import json, sys

done = json.load(open("result.json"))["backups"][0]
print(f"{sys.argv[1]}: {done['read_bytes'] >> 20} MiB read, {done['new_segments']} segments new, {done['zero_segments']} zero,"
      f" {done.get('cbt', {}).get('audited_segments', 0)} audited; restored as rbd exports it")
PY
}
"$EKKO" -r store init >/dev/null
backup monday
rbd diff --from-snap monday --format json vms/web@tuesday >tuesday.json
backup tuesday --cbt tuesday.json --cbt-id tuesday --cbt-base web@0
rbd diff --from-snap tuesday vms/web@wednesday >wednesday.txt
backup wednesday --cbt wednesday.txt --cbt-id wednesday --cbt-base web@1
cat tuesday.json
echo
cat wednesday.txt
