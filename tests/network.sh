#!/usr/bin/env bash
# Long runs of a client over real time, with the default settings of the service: hours of zeros, an unchanged disk that is
# read slowly, and a proxy that pauses and cuts. Needs nbdkit and Python. Takes twenty minutes; QUICK=1 takes three.
#
# usage: EKKO=target/release/ekko tests/network.sh
set -euo pipefail

EKKO=$(realpath "${EKKO:-target/release/ekko}")
work=$(mktemp -d)
cleanup() {
    jobs -p | xargs -r kill 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
if [ -n "${QUICK:-}" ]; then
    zeros=4G slow=8M seconds=20
else
    zeros=75G slow=900KiB seconds=900
fi

"$EKKO" -q -r store init
"$EKKO" -r store serve --listen 127.0.0.1:0 2>log &
until grep -q 'listening on http' log; do sleep 0.1; done
export EKKO_REPOSITORY EKKO_TOKEN
EKKO_REPOSITORY=$(sed -n 's/.*listening on \(http[^ ]*\).*/\1/p' log | head -1)
EKKO_TOKEN=$("$EKKO" -q -r store token create --project blue --role backup)
service=$EKKO_REPOSITORY

sessions() {
    curl -s --unix-socket store/ekko.sock http://ekko/metrics |
        sed -n 's/^ekko_http_requests_total{method="POST",route="\/v1\/sessions",status="201"} //p'
}
echo "== a proxy that pauses 90 s once, and cuts every connection after 10 MB"
head -c 200000000 /dev/urandom >noise.raw
proxy() { # PAUSE
    python3 - "${service#http://}" "$1" proxy.port <<'PY' &
import socket, sys, threading, time, os
host, port = sys.argv[1].split(':')
pause, passed, lock, cuts = float(sys.argv[2]), 0, threading.Lock(), 0
until = 0.0
def pump(source, sink, own):
    global passed, until
    try:
        while data := source.recv(65536):
            with lock:
                if passed <= 5_000_000 < passed + len(data):
                    until = time.monotonic() + pause
                passed += len(data)
                own[0] += len(data)
            while time.monotonic() < until:
                time.sleep(0.05)
            if own[0] > 10_000_000:
                break
            sink.sendall(data)
    except OSError:
        pass
    for one in (source, sink):
        try:
            one.shutdown(socket.SHUT_RDWR if own[0] > 10_000_000 else socket.SHUT_WR)
        except OSError:
            pass
listener = socket.create_server(('127.0.0.1', 0), backlog=64)
with open(sys.argv[3] + '.new', 'w') as file:
    file.write(str(listener.getsockname()[1]))
os.rename(sys.argv[3] + '.new', sys.argv[3])
while True:
    client, _ = listener.accept()
    try:
        server = socket.create_connection((host, int(port)))
    except OSError:
        client.close()
        continue
    own = [0]
    for pair in ((client, server), (server, client)):
        threading.Thread(target=pump, args=(*pair, own), daemon=True).start()
PY
    until [ -e proxy.port ]; do sleep 0.1; done
    EKKO_REPOSITORY=http://127.0.0.1:$(cat proxy.port)
    rm proxy.port
}
proxy "$([ -n "${QUICK:-}" ] && echo 40 || echo 90)"
"$EKKO" backup noise=noise.raw
proxy "$([ -n "${QUICK:-}" ] && echo 40 || echo 90)"
"$EKKO" restore noise out.raw
cmp noise.raw out.raw
proxy 0
"$EKKO" restore noise - | cmp noise.raw -
echo "identical, to a file and to stdout"
EKKO_REPOSITORY=$service

echo "== at once: an unchanged disk that is read slowly, and zeros at 100 MB/s that no hole tells of"
head -c $((seconds * 900 * 1024)) /dev/urandom >disk.raw
[ -z "${QUICK:-}" ] || head -c $((seconds * 8000000)) /dev/urandom >disk.raw
"$EKKO" backup web=disk.raw
nbdkit -f -U z.sock --filter=noextents --filter=rate null "$zeros" rate=800M &
until [ -S z.sock ]; do sleep 0.1; done
before=$(sessions)
"$EKKO" backup thick="nbd+unix:///?socket=$work/z.sock" &
zeros=$!
"$EKKO" backup --limit-rate "$slow" web=disk.raw
wait "$zeros"
taken=$(($(sessions) - before))
echo "$taken sessions for two backups"
[ "$taken" = 2 ]
echo "all as it should be"
