#!/usr/bin/env bash
# Restores a disk with curl alone, by ranges, through nginx in front of the service, over TLS; and compares it with the
# source, bit for bit. The proxy is set up as contrib/nginx.conf has it.
#
# usage: tests/proxy.sh [MIB]      EKKO=path/to/ekko (built with cargo if it is not given)
#
# Needs nginx, openssl and curl (Debian: nginx-light openssl curl).
set -euo pipefail
cd "$(dirname "$0")/.."
mib=${1:-512}
if [ -z "${EKKO:-}" ]; then
    cargo build --locked --release
    EKKO=${CARGO_TARGET_DIR:-target}/release/ekko
fi
EKKO=$(realpath "$EKKO")
work=$(mktemp -d)
chmod 755 "$work"
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -rf "$work"' EXIT

# A disk with files, noise and holes, whose size is no multiple of anything.
truncate -s $((mib * 1048576 + 512)) "$work/web.raw"
seq 1 3000000 | dd of="$work/web.raw" conv=notrunc bs=1M status=none
head -c $((mib * 1048576 / 3)) /dev/urandom | dd of="$work/web.raw" conv=notrunc bs=1M seek=$((mib / 3)) status=none
printf 'the end' | dd of="$work/web.raw" conv=notrunc bs=1 seek=$((mib * 1048576 + 400)) status=none
"$EKKO" -q -r "$work/store" init
"$EKKO" -q -r "$work/store" backup "web=$work/web.raw"

"$EKKO" -r "$work/store" serve --listen 127.0.0.1:0 2>"$work/log" &
pids+=($!)
until [ -S "$work/store/ekko.sock" ]; do sleep 0.05; done

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
port=$((20000 + RANDOM % 20000))
# The repository's owner asks, by the socket in it: so no token is needed here.
sed -e "s|server 127.0.0.1:6800;|server unix:$work/store/ekko.sock;|" -e "s|listen 443 ssl|listen 127.0.0.1:$port ssl|" \
    -e "s|/etc/ekko/|$work/|" contrib/nginx.conf >"$work/site.conf"
cat >"$work/nginx.conf" <<CONF
daemon off;
user root;
pid $work/nginx.pid;
error_log $work/nginx.log;
events {}
http {
    access_log off;
    client_body_temp_path $work/body;
    proxy_temp_path $work/proxy;
    fastcgi_temp_path $work/fastcgi;
    uwsgi_temp_path $work/uwsgi;
    scgi_temp_path $work/scgi;
    include $work/site.conf;
}
CONF
nginx -e "$work/nginx.log" -c "$work/nginx.conf" &
pids+=($!)
curl=(curl --silent --show-error --fail --cacert "$work/cert.pem" --retry 5 --retry-connrefused)
url="https://localhost:$port/v1/backups/web@0/data"
until "${curl[@]}" "https://localhost:$port/healthz" >/dev/null 2>&1; do sleep 0.1; done

"${curl[@]}" --head "$url" | tr -d '\r' | grep -iE '^(http|content-length|etag|accept-ranges|content-type)'
size=$("${curl[@]}" --head "$url" | tr -d '\r' | sed -n 's/^content-length: //Ip')
tag=$("${curl[@]}" --head "$url" | tr -d '\r' | sed -n 's/^etag: //Ip')
[ "$size" = "$(stat -c %s "$work/web.raw")" ]

echo "== pieces of 16 MiB less 7 bytes, four at a time"
piece=$((16 * 1048576 - 7))
begun=$(date +%s.%N)
fetch() {
    last=$(($1 + piece - 1))
    "${curl[@]}" --header "If-Range: $tag" --range "$1-$last" "$url" |
        dd of="$work/restored.raw" conv=notrunc oflag=seek_bytes seek="$1" bs=1M iflag=fullblock status=none
}
truncate -s "$size" "$work/restored.raw"
running=0
for ((at = 0; at < size; at += piece)); do
    fetch "$at" &
    running=$((running + 1))
    if [ $running -ge 4 ]; then wait -n -p _ || exit 1; running=$((running - 1)); fi
done
# The service and the proxy go on: each piece is waited for by itself.
while [ $running -gt 0 ]; do wait -n || exit 1; running=$((running - 1)); done
printf '%s bytes in %.1f s\n' "$size" "$(echo "$(date +%s.%N) - $begun" | bc)"
cmp "$work/web.raw" "$work/restored.raw" && echo "identical to the source"

echo "== whole, cut off once and gone on with"
"${curl[@]}" --max-time 0.15 "$url" --output "$work/again.raw" 2>/dev/null || true
had=$(stat -c %s "$work/again.raw" 2>/dev/null || echo 0)
"${curl[@]}" --continue-at - "$url" --output "$work/again.raw"
echo "gone on with after $had bytes"
cmp "$work/web.raw" "$work/again.raw" && echo "identical to the source"

echo "== what must be refused"
code() { curl --silent --cacert "$work/cert.pem" --output /dev/null --write-out '%{http_code}\n' "$@"; }
[ "$(code --range "$size-" "$url")" = 416 ]
[ "$(code --header "If-None-Match: $tag" "$url")" = 304 ]
[ "$(code "https://localhost:$port/metrics")" = 404 ]
[ "$(code "https://localhost:$port/v1/backups/web@1/data")" = 404 ]
echo "ranges behind the end, what the client has, and the numbers of the service: as they should"
