#!/bin/sh
# Makes what a backup host needs, where it is not there yet: a repository, a certificate for this host, and a token with which
# hypervisors of a project may back up. Then serves, and says what to run on a hypervisor.
#
# usage: setup.sh NAME-OF-THIS-HOST PROJECT [FOLDER]      LISTEN=0.0.0.0:6800  EKKO=ekko
set -eu

host=$1
project=$2
folder=${3:-/var/lib/ekko}
listen=${LISTEN:-0.0.0.0:6800}
ekko=${EKKO:-ekko}

umask 077
mkdir -p "$folder"
[ -e "$folder/store/ekko.toml" ] || "$ekko" -q -r "$folder/store" init
# One that signs itself and is no authority: a client that is given it believes this host, and nobody else by it.
[ -e "$folder/cert.pem" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
    -subj "/CN=$host" -addext "subjectAltName=DNS:$host" -addext basicConstraints=critical,CA:FALSE \
    -keyout "$folder/key.pem" -out "$folder/cert.pem" 2>"$folder/openssl.log"
if [ ! -e "$folder/token" ]; then
    "$ekko" -q -r "$folder/store" token create --project "$project" --role backup >"$folder/token.new"
    mv "$folder/token.new" "$folder/token"
fi
echo "on a hypervisor, with copies of $folder/cert.pem and $folder/token:"
echo "EKKO_REPOSITORY=https://$host:${listen##*:}/ EKKO_CACERT=$folder/cert.pem EKKO_TOKEN_FILE=$folder/token ekko backup NAME=DISK"
exec "$ekko" -r "$folder/store" serve --listen "$listen" --tls-certificate "$folder/cert.pem" --tls-key "$folder/key.pem"
