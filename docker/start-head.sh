#!/usr/bin/env bash
# Starts the head node of a Ray cluster and stays in the foreground; SIGTERM stops the node.
#   docker/start-head.sh [options of ray start]
# The same script serves the containers and a bare machine. Later options win over the ones given here.
set -euo pipefail

# shellcheck source=docker/require-token.sh
. "$(dirname "${BASH_SOURCE[0]}")/require-token.sh"
require_token

# The dashboard is also the job server: only this machine may reach it (use an SSH tunnel from others).
exec ray start --head --block --disable-usage-stats \
    --port="${RAY_HEAD_PORT:-6379}" \
    --dashboard-host=127.0.0.1 \
    "$@"
