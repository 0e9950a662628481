#!/usr/bin/env bash
# Does on a clean tree, without a container engine, what docker/Dockerfile.cpu and docker/compose.yaml do:
# clone, virtual environment, install, a head and a worker with token authentication, a submitted job, stop.
#   docker/rehearse.sh [command of the job]     default: python -m orchestration.launch dry_run=true
# PYTHON          the interpreter of the new environment (python3.11)
# REHEARSE_VENV   an environment that has the packages already: skips the install
# Needs git and g++; the committed state is what gets rehearsed. Every step has a deadline.
set -euo pipefail

job=("$@")
[ "${#job[@]}" -gt 0 ] || job=(python -m orchestration.launch dry_run=true)

repository="$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)"
place="$(mktemp -d /tmp/rehearse.XXXXXX)" # short: Ray puts Unix sockets below it
head_pid=""
worker_pid=""

say() { printf '\n== %s\n' "$*"; }

fail() {
    echo "docker/rehearse.sh: $*" >&2
    exit 1
}

stop_node() { # pid: ends a node by the signal that a container engine sends, in compose.yaml's time of grace
    [ -n "$1" ] || return 0
    kill -TERM "$1" 2>/dev/null || return 0
    for _ in $(seq 60); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 1
    done
    echo "node process $1 ignored SIGTERM for 60 s" >&2
    kill -KILL "$1" 2>/dev/null || true
    return 1
}

finish() {
    local status=$?
    trap - EXIT
    stop_node "$worker_pid" || status=1
    stop_node "$head_pid" || status=1
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$place"/head.log "$place"/worker.log >&2 2>/dev/null || true
    fi
    rm -rf "$place"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

clone_and_install() {
    say "clone of the committed state"
    git clone --quiet --depth 1 "file://$repository" "$place/tutelage"
    cd "$place/tutelage"
    if [ -n "${REHEARSE_VENV:-}" ]; then
        export PATH="$REHEARSE_VENV/bin:$PATH"
        return
    fi
    say "install, as in docker/Dockerfile.cpu"
    "${PYTHON:-python3.11}" -m venv "$place/venv"
    export PATH="$place/venv/bin:$PATH"
    timeout 1500 docker/install.sh cpu --quiet
}

refuse_without_token() {
    say "a head without a token is refused"
    if env -u RAY_AUTH_TOKEN -u RAY_AUTH_TOKEN_PATH HOME="$place/nobody" timeout 60 docker/start-head.sh; then
        fail "the head started without a token"
    fi
}

make_token() {
    unset RAY_AUTH_TOKEN
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$place/ray_token"
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH")
}

start_nodes() {
    say "a head and a worker"
    # Two nodes of one machine must not share ports, so that both get a range of their own.
    local base=$((20000 + RANDOM % 4000))
    export RAY_HEAD_PORT=$base RAY_HEAD_ADDRESS="127.0.0.1:$base"
    export RAY_API_SERVER_ADDRESS="http://127.0.0.1:$((base + 1))"
    local small=(--num-cpus=1 --object-store-memory=100000000 --node-ip-address=127.0.0.1)
    docker/start-head.sh "${small[@]}" --temp-dir="$place/h" --dashboard-port=$((base + 1)) \
        --ray-client-server-port=$((base + 2)) --dashboard-agent-listen-port=$((base + 3)) \
        --min-worker-port=$((base + 100)) --max-worker-port=$((base + 299)) >"$place/head.log" 2>&1 &
    head_pid=$!
    RAY_HEAD_WAIT_SECONDS=120 docker/start-worker.sh "${small[@]}" --temp-dir="$place/w" \
        --dashboard-agent-listen-port=$((base + 4)) \
        --min-worker-port=$((base + 300)) --max-worker-port=$((base + 499)) >"$place/worker.log" 2>&1 &
    worker_pid=$!
    await_nodes 2
}

await_nodes() { # how many
    local deadline=$((SECONDS + 180)) status=""
    while [ "$SECONDS" -lt "$deadline" ]; do
        kill -0 "$head_pid" 2>/dev/null || fail "the head ended"
        kill -0 "$worker_pid" 2>/dev/null || fail "the worker ended"
        status="$(timeout 60 ray status --address "$RAY_HEAD_ADDRESS" 2>&1 || true)"
        if [ "$(grep -c ' 1 node_' <<<"$status")" -eq "$1" ]; then
            grep -A 3 '^Active:' <<<"$status"
            return
        fi
        sleep 2
    done
    fail "after 180 s the cluster did not have $1 nodes: $status"
}

refuse_wrong_token() {
    say "a client with another token is refused"
    if RAY_AUTH_TOKEN=0123456789 timeout 120 ray job list >"$place/refusal.log" 2>&1; then
        fail "the job server answered a client with a wrong token"
    fi
    grep -i -m 1 'token' "$place/refusal.log" || fail "refused, but not for its token: $(tail -n 5 "$place/refusal.log")"
}

loopback_only() {
    say "the dashboard listens on loopback only"
    python - "$RAY_API_SERVER_ADDRESS" <<'PY'
import sys
from urllib.parse import urlparse

import psutil

port = urlparse(sys.argv[1]).port
hosts = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
print(f"port {port}: {sorted(hosts)}")
sys.exit(hosts != {"127.0.0.1"})
PY
}

submit() {
    say "ray job submit -- ${job[*]}"
    timeout 600 ray job submit -- "${job[@]}"
}

stop_nodes() {
    say "stop"
    stop_node "$worker_pid" || fail "the worker did not stop"
    worker_pid=""
    stop_node "$head_pid" || fail "the head did not stop"
    head_pid=""
    for _ in $(seq 30); do # the dashboard's own processes end a little after it
        pgrep -f -- "$place" >/dev/null || return 0
        sleep 1
    done
    fail "left behind: $(pgrep -af -- "$place" | cut -c1-200)"
}

clone_and_install
refuse_without_token
make_token
start_nodes
loopback_only
refuse_wrong_token
submit
stop_nodes
say "rehearsal passed"
