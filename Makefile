# Everything runs in .venv, which is built once and rebuilt when pyproject.toml changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ENGINE ?= cpu
BIN := .venv/bin
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

.venv/ready: pyproject.toml docker/install.sh
	$(PYTHON) -m venv .venv
	PATH="$(CURDIR)/$(BIN):$$PATH" docker/install.sh $(ENGINE),dev --quiet --editable
	touch $@

clean:
	rm -rf .venv .venv-bench
