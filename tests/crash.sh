#!/usr/bin/env bash
# Runs the whole crash sweep: every job of tests/crash/jobs.rs, at every changing system call.
#
# usage: tests/crash.sh [JOB...]
#
# It takes about half an hour on two cores with nothing else to do. What is done is written to target/crash.log: run it again and it goes on from
# there. Remove the file to begin from the start. The seed is 1 unless EKKO_CRASH_SEED gives another.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p target
export EKKO_CRASH_ALL=1 EKKO_CRASH_SEED="${EKKO_CRASH_SEED:-1}"
export EKKO_CRASH_LOG="${EKKO_CRASH_LOG:-target/crash.log}"
exec nice cargo test --locked --test crash -- "$@"
