#!/usr/bin/env bash
# Makes the certificates of the tests of encrypted links: an authority, and a server and a client of it. They are good for a
# hundred years and for nothing else.
set -euo pipefail
cd "$(dirname "$0")"
days=36500
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
openssl req -x509 "${key[@]}" -days $days -subj /CN=ekko-tests -addext keyUsage=critical,keyCertSign -keyout authority.pem -out ca-cert.pem
for side in server client; do
    openssl req -new "${key[@]}" -subj "/CN=$side" -keyout $side-key.pem -out request.pem
    printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=%sAuth\nkeyUsage=digitalSignature\nbasicConstraints=CA:FALSE\n' $side >extensions
    openssl x509 -req -in request.pem -CA ca-cert.pem -CAkey authority.pem -CAcreateserial -days $days -extfile extensions -out $side-cert.pem
done
rm -f authority.pem request.pem extensions ca-cert.srl
