# `make demo` and `make test` need Python 3.11 to 3.13, make and a package index; nothing else, and no GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := torch==2.13.0
CPU_INDEX := https://download.pytorch.org/whl/cpu

NUMERIC := tests/train/test_slices.py tests/train/test_module.py tests/test_detector.py tests/models/test_diffusion.py \
	   tests/models/test_release.py tests/study/test_evaluate_cache.py

.PHONY: demo test test-kernels kernels-oldest kernels-others test-long test-faults lint docs format clean help

help:
	@echo "make demo    install into .venv, score the embedded scans, print the table"
	@echo "make test    install into .venv, run the tests"
	@echo "make test-kernels   run the numeric tests as on other processors"
	@echo "make test-long      tests that take long and are not likely to fail alone"
	@echo "make test-faults    kill commands, fill disks and so on, KILLS=200 times; docs/reliability.md"
	@echo "make lint    style, types and import rules"
	@echo "make docs    the site, into site/"
	@echo "make clean   remove .venv and caches"

demo: $(STAMP)
	$(BIN)/brainuad demo --output demo

# Two workers share the cores: idle OpenMP threads that spin would take them from each other. Each takes one file after
# another, in the order of tests/conftest.py.
test: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# Side by side: kernels for the oldest processors, with threads; and, as if by others, sums in another order for every
# shape, and bfloat16 where the precision is left to the device.
test-kernels: $(STAMP)
	$(MAKE) -j2 --output-sync kernels-oldest kernels-others

kernels-oldest: $(STAMP)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
	  $(BIN)/python -m pytest -q -p no:cacheprovider $(NUMERIC)

kernels-others: $(STAMP)
	PYTHONPATH=tests OMP_WAIT_POLICY=passive \
	  $(BIN)/python -m pytest -q -p no:cacheprovider -p other_sums -p native_bfloat16 $(NUMERIC)

# What takes long and is not likely to fail alone.
test-long: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 -m long

# Commands that are killed, full disks, folders that vanish: half an hour; KILLS=20 is less.
test-faults: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m faults tests/faults

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On Linux, PyTorch's wheel from the package index brings gigabytes of CUDA. Without an NVIDIA driver the CPU wheel of
# the same version is tried first; where its index cannot be reached, pip's own configuration decides.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  "brainuad needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || \
	  { [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && \
	    $(PIP) install -q --no-deps --retries 1 --timeout 15 --index-url $(CPU_INDEX) $(TORCH); } || \
	  $(PIP) install -q -c constraints.txt $(TORCH)
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
