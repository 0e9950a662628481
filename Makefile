# Everything runs in .venv, which is built once and rebuilt when pyproject.toml changes.
PYTHON ?= python3.11
ENGINE ?= cpu
BIN := .venv/bin
# torch's CPU build is not on PyPI; on GPUs the ordinary wheel is.
TORCH_INDEX := $(if $(filter cpu,$(ENGINE)),--extra-index-url https://download.pytorch.org/whl/cpu)
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: quickstart test test-fast lint bench clean

quickstart: .venv/ready
	$(BIN)/python -m orchestration.launch

test: .venv/ready
	.ci/lint
	$(BIN)/python -m pytest

test-fast: .venv/ready
	$(BIN)/python -m pytest -m "not integration and not gpu"

lint: .venv/ready
	.ci/lint

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(ENGINE),dev]' $(TORCH_INDEX)
	# Text needs none of these, and PyPI's builds do not match torch's CPU build: every transformers import would fail.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-bench
