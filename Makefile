# Everything runs in .venv, which is built once and rebuilt when pyproject.toml changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ENGINE ?= cpu
# Files of tests run side by side: most of an engine's start is work of one core.
TEST_PROCESSES ?= 2
BIN := .venv/bin
BENCHMARKS ?= objectives scoring weight_sync pipeline against_trl monitors boundaries
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: quickstart test test-fast faults lint bench clean

quickstart: .venv/ready
	$(BIN)/python -m orchestration.launch

test: .venv/ready
	.ci/lint
	$(BIN)/python -m pytest -m "not faults" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-fast: .venv/ready
	$(BIN)/python -m pytest -m "not integration and not gpu"

# Every fault, each in a run of its own, or the second third of them with FAULT_PART=2/3; writes docs/reliability.md.
# Three nodes on two cores have no room for a neighbour.
NODES := tests/faults/test_nodes.py tests/faults/test_head.py
faults: export FAULT_MATRIX := docs/reliability.md
faults: .venv/ready
	$(BIN)/python -m pytest -m faults tests/faults tests/integration -n $(TEST_PROCESSES) --dist loadfile \
		$(NODES:%=--ignore=%)
	$(BIN)/python -m pytest -m faults $(NODES)

lint: .venv/ready
	.ci/lint

bench: .venv/ready .venv-bench/ready
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

.venv/ready: pyproject.toml docker/install.sh
	$(PYTHON) -m venv .venv
	PATH="$(CURDIR)/$(BIN):$$PATH" docker/install.sh $(ENGINE),dev --quiet --editable
	touch $@

# What only benchmarks compare with, on top of what .venv has: it reads .venv and never writes to it.
.venv-bench/ready: .venv/ready
	$(BIN)/python -m venv --clear .venv-bench
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		> "$$(.venv-bench/bin/python -c 'import site; print(site.getsitepackages()[0])')/product.pth"
	.venv-bench/bin/python -m pip install --quiet --no-deps trl==1.16.0 verl==0.9.1 \
		tensordict==0.15.3 pyvers==0.2.3 codetiming==1.4.0 orjson==3.13.0
	touch $@

clean:
	rm -rf .venv .venv-bench
