#!/usr/bin/env bash
# Joins this machine to a Ray cluster and stays in the foreground; SIGTERM stops the node.
#   RAY_HEAD_ADDRESS=host:port docker/start-worker.sh [options of ray start]
# Waits up to RAY_HEAD_WAIT_SECONDS (300) for the head, then gives up with exit code 1.
set -euo pipefail

# shellcheck source=docker/require-token.sh
. "$(dirname "${BASH_SOURCE[0]}")/require-token.sh"
require_token

head_address="${RAY_HEAD_ADDRESS:?set RAY_HEAD_ADDRESS to the host:port of the head node}"
wait_seconds="${RAY_HEAD_WAIT_SECONDS:-300}"

deadline=$((SECONDS + wait_seconds))
until probe="$(timeout 30 ray health-check --address "$head_address" 2>&1)"; do
    if [ "$SECONDS" -ge "$deadline" ]; then
        echo "No healthy Ray head at $head_address after $wait_seconds s; the last probe said:" >&2
        echo "${probe:-nothing}" | tail -n 5 >&2
        exit 1
    fi
    sleep 2
done

exec ray start --block --disable-usage-stats --address="$head_address" "$@"
