# shellcheck shell=bash
# Sourced by the start scripts: turns Ray's token authentication on and refuses to go on without a token.
# Ray looks for one in RAY_AUTH_TOKEN, then in the file RAY_AUTH_TOKEN_PATH, then in ~/.ray/auth_token.

require_token() {
    export RAY_AUTH_MODE=token
    local file="${RAY_AUTH_TOKEN_PATH:-${HOME:-}/.ray/auth_token}"
    if [ -n "${RAY_AUTH_TOKEN:-}" ]; then
        return
    fi
    if [ -r "$file" ] && grep -q '[^[:space:]]' "$file"; then
        # Ray's own command writes it for all to read; a mounted one is as it was mounted.
        if [ -O "$file" ] && [ -w "$file" ]; then
            chmod 600 "$file"
        fi
        return
    fi
    {
        echo "No Ray token in RAY_AUTH_TOKEN or in a readable, non-empty file $file: refusing to start."
        echo "Whoever reaches a Ray cluster without one can run any code on it."
        echo "Make one with '(umask 077 && ray get-auth-token --generate)', give every node the same, and name it with RAY_AUTH_TOKEN_PATH."
    } >&2
    exit 1
}
