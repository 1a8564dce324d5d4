#!/usr/bin/env bash
# Starts a real Keystone on loopback (sqlite, Fernet tokens, TLS), makes projects, users and roles in it, and asks "ekko serve" with
# the tokens that it gives: who sees what, and who is refused. Then the same with an Apache httpd in front of Keystone, which refuses
# long headers.
#
# usage: EKKO=target/release/ekko tests/keystone.sh [FOLDER]
#        needs python3 with venv, openssl, curl, apache2 (Debian's, with its modules ssl, proxy and proxy_http), and pip's index;
#        VENV=PATH uses a virtual environment that has keystone already. No root.
set -euo pipefail

EKKO=$(realpath "${EKKO:-target/release/ekko}")
folder=$(realpath -m "${1:-$(mktemp -d)}")
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"
venv=${VENV:-$folder/venv}
[ -x "$venv/bin/keystone-manage" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet keystone; }
pids=()
stop() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; }
trap stop EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free_port)
url=https://127.0.0.1:$port/v3

cat >keystone.conf <<END
[DEFAULT]
log_file = $folder/keystone.log
[database]
connection = sqlite:///$folder/keystone.db
[fernet_tokens]
key_repository = $folder/fernet-keys
[credential]
key_repository = $folder/credential-keys
[token]
provider = fernet
END
export OS_KEYSTONE_CONFIG_DIR=$folder OS_KEYSTONE_CONFIG_FILES=keystone.conf PYTHONWARNINGS=ignore
manage() { "$venv/bin/keystone-manage" --config-file "$folder/keystone.conf" "$@" >>manage.log 2>&1; }
mkdir -m 700 fernet-keys credential-keys
who=(--keystone-user "$(id -un)" --keystone-group "$(id -gn)")
manage db_sync
manage fernet_setup "${who[@]}"
manage credential_setup "${who[@]}"
manage bootstrap --bootstrap-password boot --bootstrap-public-url "$url" --bootstrap-region-id one

for ca in ca other; do
    openssl req -x509 -newkey rsa:2048 -nodes -keyout $ca.key -out $ca.pem -subj /CN=$ca -days 2 2>>manage.log
done
openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=keystone 2>>manage.log
printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' >leaf.ext
openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -out cert.pem -days 2 -extfile leaf.ext 2>>manage.log
# Asks Keystone.
ask() { curl -sf --cacert "$folder/ca.pem" "$@"; }

start_keystone() {
    "$venv/bin/python" - "$port" >>server.log 2>&1 <<'END' &
import socketserver, ssl, sys
from wsgiref import simple_server
from keystone.server.wsgi import initialize_public_application
class Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True
port = int(sys.argv[1])
sys.argv = ["keystone"]
application = initialize_public_application()
server = simple_server.make_server("127.0.0.1", port, application, server_class=Server)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert.pem", "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
END
    keystone=$!
    pids+=("$keystone")
    for _ in $(seq 300); do ask "$url" >/dev/null && return; sleep 0.2; done
    echo "Keystone does not answer" >&2; tail -20 server.log >&2; exit 1
}
start_keystone
echo "Keystone $("$venv/bin/pip" list 2>/dev/null | awk '$1 == "keystone" { print $2 }') answers"

json() { python3 -c 'import json, sys; it = json.load(sys.stdin)
for key in sys.argv[1].split("."): it = it[key]
print(it)' "$1"; }
# Takes user, password and project; prints a token.
token() {
    local scope=
    [ -z "${3:-}" ] || scope=',"scope":{"project":{"name":"'$3'","domain":{"id":"default"}}}'
    ask -D - -o /dev/null -H 'Content-Type: application/json' "$url/auth/tokens" -d '{"auth":{"identity":{"methods":["password"],
        "password":{"user":{"name":"'"$1"'","domain":{"id":"default"},"password":"'"$2"'"}}}'"$scope"'}}' |
        tr -d '\r' | awk 'tolower($1) == "x-subject-token:" { print $2 }'
}
admin=$(token admin boot admin)
keystone() { ask -H "X-Auth-Token: $admin" -H 'Content-Type: application/json' "$@"; }
new() { keystone "$url/$1s" -d "{\"$1\":$2}" | json "$1.id"; }
# The service's own user may look tokens up by its role "service", and nothing else.
role_id() { keystone "$url/roles?name=$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["roles"][0]["id"])'; }
grant() { keystone -X PUT "$url/projects/$2/users/$1/roles/$3"; }
blue=$(new project '{"name":"blue","domain_id":"default"}')
red=$(new project '{"name":"red","domain_id":"default"}')
services=$(new project '{"name":"services","domain_id":"default"}')
for role in ekko-backup ekko-operator ekko-admin unrelated; do new role "{\"name\":\"$role\"}" >/dev/null; done
for user in ekko host keeper chief stranger other; do
    declare "user_$user=$(new user "{\"name\":\"$user\",\"domain_id\":\"default\",\"password\":\"pass-$user\"}")"
done
grant "$user_ekko" "$services" "$(role_id service)"
grant "$user_host" "$blue" "$(role_id ekko-backup)"
grant "$user_host" "$red" "$(role_id unrelated)"
grant "$user_keeper" "$blue" "$(role_id ekko-operator)"
grant "$user_keeper" "$blue" "$(role_id ekko-backup)"
grant "$user_chief" "$blue" "$(role_id ekko-admin)"
grant "$user_stranger" "$blue" "$(role_id unrelated)"
grant "$user_other" "$red" "$(role_id ekko-backup)"

store=$folder/store
"$EKKO" -q -r "$store" init --segment-size 64KiB
head -c 300000 /dev/urandom >disk.raw
"$EKKO" -q -r "$store" backup "$blue:web=disk.raw" "$red:db=disk.raw" own=disk.raw

ca=ca.pem
settings() {
    cat >service.toml <<END
[limits]
failures_per_minute = ${failures:-1000}
[keystone]
url = "$url"
ca = "$ca"
cache_seconds = 2
project = "$1"
$2
[keystone.roles]
ekko-backup = "backup"
ekko-operator = "operator"
ekko-admin = "admin"
END
}
start_ekko() {
    "$EKKO" -r "$store" serve --listen 127.0.0.1:0 --config service.toml 2>ekko.log &
    ekko=$!
    pids+=("$ekko")
    for _ in $(seq 100); do
        address=$(sed -n 's/.*listening on \(http.*\)/\1/p' ekko.log | head -1)
        [ -z "$address" ] || return 0
        sleep 0.1
    done
    cat ekko.log >&2; exit 1
}
stop_ekko() { kill "$ekko"; wait "$ekko" 2>/dev/null || true; }
failed=0
# Takes what is tried, a token, a path, and the status that is to come; then a text that the answer is to hold.
try() {
    local status
    status=$(curl -s -o answer -w '%{http_code}' -H "X-Auth-Token: $2" "$address$3")
    if [ "$status" = "$4" ] && grep -qF -- "${5:-}" answer; then
        printf 'ok    %-68s %s\n' "$1" "$status"
    else
        printf 'WRONG %-68s %s, not %s %s\n' "$1" "$status" "$4" "$(cat answer)"
        failed=1
    fi
}

settings id 'user = "ekko"
password = "pass-ekko"
user_project = "services"'
start_ekko
host=$(token host pass-host blue)
try "a user with the role backup sees the project's images" "$host" /v1/images 200 '"web"'
[ "$(grep -c '"db"\|"own"' answer)" = 0 ] || { echo "WRONG another project's images were listed"; failed=1; }
try "and its backups" "$host" /v1/backups/web@0 200 '"web@0"'
try "another project's backup is not there" "$host" /v1/backups/db@0 404
try "nor by its full name" "$host" "/v1/backups/$red:db@0" 404
try "numbers of the whole service are not for backup" "$host" /v1/statistics 403
try "nor for operator" "$(token keeper pass-keeper blue)" /v1/statistics 403 "the token's is operator"
try "but for admin" "$(token chief pass-chief blue)" /v1/statistics 200
try "a user of the other project sees that one's" "$(token other pass-other red)" /v1/images 200 '"db"'
try "a role that is not mapped lets nobody in" "$(token stranger pass-stranger blue)" /v1/images 403
try "the same user in a project where the role is not mapped" "$(token host pass-host red)" /v1/images 403
try "a token of no project lets nobody in" "$(token host pass-host)" /v1/images 403
try "the service's own user has no way in" "$(token ekko pass-ekko services)" /v1/images 403
try "a token that was made up is refused" "gAAAAABmadeup" /v1/images 401
try "a token that was cut is refused" "${host:0:100}" /v1/images 401
try "who shows nothing is refused" "" /v1/images 401
revoked=$(token host pass-host blue)
try "a token is let in" "$revoked" /v1/images 200
ask -X DELETE -H "X-Auth-Token: $admin" -H "X-Subject-Token: $revoked" "$url/auth/tokens"
sleep 2.5
try "revoked, it is refused when the cache's two seconds are over" "$revoked" /v1/images 401
keystone -X PATCH "$url/users/$user_other" -d '{"user":{"enabled":false}}' >/dev/null
sleep 2.5
try "a user who was disabled is refused" "$(token other pass-other red || true)" /v1/images 401
fresh=$(token keeper pass-keeper blue)
kill "$keystone"; wait "$keystone" 2>/dev/null || true
sleep 2.5
try "without Keystone a token that is not cached is not let in" "$fresh" /v1/images 503
try "nor one whose two seconds are over" "$host" /v1/images 503
curl -sf "$address/healthz" >/dev/null && echo "ok    the service itself answers"
start_keystone
sleep 3
try "Keystone is back, and so is the user" "$host" /v1/images 200 '"web"'
stop_ekko

# By an application credential, and with projects by their names.
service=$(token ekko pass-ekko services)
credential=$(ask -H "X-Auth-Token: $service" -H 'Content-Type: application/json' "$url/users/$user_ekko/application_credentials" \
    -d '{"application_credential":{"name":"ekko","roles":[{"name":"service"}]}}')
head -c 100000 /dev/urandom >named.raw
"$EKKO" -q -r "$store" backup "blue:named=named.raw"
settings name "application_credential = \"$(echo "$credential" | json application_credential.id)\"
secret = \"$(echo "$credential" | json application_credential.secret)\""
start_ekko
try "by names of projects, through an application credential" "$host" /v1/images 200 '"named"'
elsewhere=$(new domain '{"name":"elsewhere"}')
twin=$(new project "{\"name\":\"blue\",\"domain_id\":\"$elsewhere\"}")
grant "$user_host" "$twin" "$(role_id ekko-backup)"
stolen=$(ask -D - -o /dev/null -H 'Content-Type: application/json' "$url/auth/tokens" -d '{"auth":{"identity":{"methods":["password"],
    "password":{"user":{"name":"host","domain":{"id":"default"},"password":"pass-host"}}},"scope":{"project":{"id":"'"$twin"'"}}}}' |
    tr -d '\r' | awk 'tolower($1) == "x-subject-token:" { print $2 }')
try "a project of the same name in another domain is another one" "$stolen" /v1/images 403
stop_ekko

# Behind Apache's httpd. By itself it takes headers up to 8190 bytes, more than any token that Ekko asks about. With a limit of 1000
# it refuses tokens that Ekko takes for possible.
modules=${APACHE_MODULES:-/usr/lib/apache2/modules}
front=$(free_port)
direct=$url
{
    for module in mpm_event authz_core socache_shmcb ssl proxy proxy_http; do
        echo "LoadModule ${module}_module $modules/mod_$module.so"
    done
    cat <<END
ServerRoot $folder
ServerName 127.0.0.1
Listen 127.0.0.1:$front
PidFile $folder/httpd.pid
ErrorLog $folder/httpd.log
CustomLog $folder/access.log "%>s %r"
LimitRequestFieldSize 1000
SSLEngine on
SSLCertificateFile $folder/cert.pem
SSLCertificateKeyFile $folder/key.pem
SSLProxyEngine on
SSLProxyCACertificateFile $folder/ca.pem
SSLProxyCheckPeerName off
ProxyPass / https://127.0.0.1:$port/
END
    [ "$(id -u)" != 0 ] || printf 'User nobody\nGroup nogroup\n'
} >httpd.conf
PATH=$PATH:/usr/sbin apache2 -f "$folder/httpd.conf" -DFOREGROUND >>httpd.log 2>&1 &
pids+=($!)
url=https://127.0.0.1:$front/v3
for _ in $(seq 100); do ask "$url" >/dev/null && break; sleep 0.1; done
# A token that is longer than Apache takes, or than Ekko asks about.
too_long() { printf '%s' "$1"; head -c "$2" /dev/zero | tr '\0' a; }
status_of() { curl -s -o /dev/null -w '%{http_code}\n' -H "X-Auth-Token: $1" "$address/v1/images"; }
settings id 'user = "ekko"
password = "pass-ekko"
user_project = "services"'
start_ekko
try "behind Apache a user sees the project's images" "$host" /v1/images 200 '"web"'
try "a token longer than Ekko asks about is refused" "$(too_long 0 8191)" /v1/images 401
if grep -q '^400 ' access.log; then echo "WRONG Apache was asked about it"; failed=1; fi
try "one that Apache refuses is refused" "$(too_long 0 1500)" /v1/images 401
grep -q '^400 ' access.log || { echo "WRONG Apache has not refused it"; failed=1; }
kept_out=0
for round in $(seq 10); do
    for one in 1 2 3; do status_of "$(too_long "$round-$one" 1500)" >/dev/null; done
    fresh=$(url=$direct token keeper pass-keeper blue)
    [ "$(status_of "$fresh")" = 200 ] || kept_out=$((kept_out + 1))
done
if [ "$kept_out" = 0 ]; then
    echo "ok    10 users whose tokens were not cached are let in beside 30 such tokens"
else
    echo "WRONG $kept_out of 10 users were kept out by such tokens"; failed=1
fi
stop_ekko
failures=20
settings id 'user = "ekko"
password = "pass-ekko"
user_project = "services"'
failures=
start_ekko
counts=$(for number in $(seq 25); do status_of "$(too_long "$number" 1500)"; done | sort | uniq -c | tr -s ' \n' ' ')
if grep -qE '^ 2[0-2] 401 [3-5] 429 $' <<<"$counts"; then
    echo "ok    such tokens count as failures: after 20 in a minute they are answered 429"
else
    echo "WRONG 25 such tokens were answered:$counts"; failed=1
fi
stop_ekko

url=$direct
ca=other.pem
settings id 'user = "ekko"
password = "pass-ekko"
user_project = "services"'
start_ekko
try "a Keystone with a certificate of somebody else is not believed" "$host" /v1/images 503
stop_ekko
if grep -qF -e "$host" -e pass-ekko ekko.log; then echo "WRONG the log holds a secret"; failed=1; fi
[ "$failed" = 0 ] && echo "all as it should be"
exit "$failed"
