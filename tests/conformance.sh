#!/usr/bin/env bash
# Asks a running service everything that its OpenAPI document allows, and much that it does not, and compares every answer
# with the document: status, type, schema, no failure of the server, no hang.
#
# usage: tests/conformance.sh [SEED]      EKKO=path/to/ekko (built with cargo if it is not given), EXAMPLES=50 for each route
#
# Needs Python 3. Installs schemathesis from PyPI into a folder of its own. It asks with a token that may everything, and
# without one, and with wrong ones.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${EKKO:-}" ]; then
    cargo build --locked
    EKKO=${CARGO_TARGET_DIR:-target}/debug/ekko
fi
EKKO=$(realpath "$EKKO")
venv=${VENV:-/var/tmp/ekko-schemathesis}
if ! "$venv/bin/schemathesis" --version >/dev/null 2>&1; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'schemathesis>=4,<5'
fi

work=$(mktemp -d)
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -rf "$work"' EXIT
"$EKKO" -q -r "$work/store" init --segment-size 64KiB >/dev/null
for _ in 0 1 2 3; do
    head -c 299008 /dev/urandom >"$work/web.raw"
    "$EKKO" -q -r "$work/store" backup "p:web=$work/web.raw" "p:db/vda=$work/web.raw" "q:own=$work/web.raw" >/dev/null
done
for at in 0 1 2; do "$EKKO" -q -r "$work/store" protect "p:web@$at" >/dev/null; done
token=$("$EKKO" -q -r "$work/store" token create --project p --role admin)
port=$((20000 + RANDOM % 20000))
# Hundreds of requests a second, many with wrong tokens, are what it is about.
cat >"$work/ekko.toml" <<TOML
listen = ["127.0.0.1:$port"]
[limits]
requests_per_second = 100000
failures_per_minute = 100000
sessions_each = 100
TOML
"$EKKO" -r "$work/store" serve --config "$work/ekko.toml" --log-json 2>"$work/log" &
pids+=($!)
service=$!
until curl -fsS "http://127.0.0.1:$port/healthz" >/dev/null 2>&1; do sleep 0.05; done

cat >"$work/made-up.toml" <<'TOML'
# Rules that would keep nothing are refused, which no schema says.
[[operations]]
include-path = "/v1/jobs"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 429, 503]
# Names with a meaning of their own, and disks with more segments than can be numbered, are refused, which no schema says either;
# so is a second backup of an image.
[[operations]]
include-path = "/v1/sessions"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409, 429, 503]
TOML
cat "$work/made-up.toml" - >"$work/there.toml" <<'TOML'
# Names that are there, so that more than refusals is compared.
[parameters]
"path.backup" = "web@1"
"path.other" = "web@2"
TOML
# Left out: a job that is cancelled is still told of, and so is a backup that was only asked about.
left_out=use_after_free
status=0
for names in made-up there; do
    timeout 1200 "$venv/bin/schemathesis" --config-file "$work/$names.toml" run \
        "http://127.0.0.1:$port/v1/openapi.json" --url "http://127.0.0.1:$port" -H "Authorization: Bearer $token" --exclude-checks "$left_out" \
        --max-examples "${EXAMPLES:-50}" --seed "${1:-1}" --request-timeout 20 --max-failures 20 \
        --generation-database none --no-color || status=$?
done
kill -0 "$service" || { echo "the service has ended"; status=1; }
if grep -q '"level":"ERROR"' "$work/log"; then
    echo "the service met errors:"
    grep '"level":"ERROR"' "$work/log" | head -20
    status=1
fi
exit $status
