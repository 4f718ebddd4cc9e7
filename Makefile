# make demo    train a small model end to end          make test        the fast tests
# make check   format, lint and types                  make test-slow   the slow tests only
# make test-full        every test, also the wide proofs of every family (an hour)
# make test-oldest      what touches the libraries, with the oldest set of them, in an environment of its own
# make test-wheel       what a user gets from the wheel, outside this folder
# make test-processors  comparisons with stock models, as lesser processors compute them
#
# Variables: PYTHON (the interpreter the virtual environment is made from), TORCH (what pip installs as torch),
# CONSTRAINTS (the versions of everything else), EXTRAS (what `make venv` installs), JOBS (pytest workers), ARGS
# (appended to the command of the target).

PYTHON ?= python3
# Pinned, because a plain `torch` resolves on Linux to the newest CUDA build and its gigabytes of libraries. For the
# CPU build from PyTorch's own index: make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" …
TORCH ?= torch==2.13.0
CONSTRAINTS ?= constraints/newest.txt
EXTRAS ?= dev
JOBS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# One thread per worker: pytest already runs JOBS of them.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
SOURCES := moeba moeba_command.py tests tools benchmarks

.PHONY: help venv demo test test-slow test-full test-oldest test-wheel test-processors test-unconstrained drift check format clean

help:
	@sed -n '1,10s/^# \{0,1\}//p' Makefile

# Each stamp says what is installed; it is newer than setup.cfg, pyproject.toml and the constraints, or the install
# runs again.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Moeba needs Python 3.11 or newer, \
	$(PYTHON) is " + sys.version.split()[0] + ": pass PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install $(TORCH)
	touch $@

# TORCH has chosen torch already: the constraint on it would undo another choice.
$(VENV)/.installed-%: setup.cfg pyproject.toml $(CONSTRAINTS) | $(VENV)/.torch
	sed '/^torch==/d' $(CONSTRAINTS) > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e ".[$*]"
	touch $@

venv: $(VENV)/.installed-$(EXTRAS)

demo: $(VENV)/.installed-train
	OMP_WAIT_POLICY=PASSIVE $(BIN)/moeba demo $(ARGS)

test: $(VENV)/.installed-test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -m "slow and not exhaustive" $(ARGS)

# Every test there is, also the wide proofs of every family.
test-full: $(VENV)/.installed-test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

# tests/selections.py chooses what runs. Hub folders are made with one set and loaded with the other.
test-oldest: $(VENV)/.installed-test
	$(MAKE) VENV=$(VENV)-oldest CONSTRAINTS=constraints/oldest.txt EXTRAS=test venv
	$(TEST_ENV) MOEBA_OTHER_PYTHON=$(abspath $(BIN)/python) $(VENV)-oldest/bin/python -m pytest -n $(JOBS) -m oldest $(ARGS)

test-wheel: $(VENV)/.installed-test
	tools/test_wheel.sh $(BIN)/python "$(TORCH)" $(CONSTRAINTS)

# What the libraries may use of the processor; Moeba's own kernels have tests at every vector width.
test-processors: $(VENV)/.installed-test
	$(TEST_ENV) ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
		$(BIN)/python -m pytest -n $(JOBS) -m processors $(ARGS)
	$(TEST_ENV) ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
		$(BIN)/python -m pytest -n $(JOBS) -m processors $(ARGS)

# What pip installs today where nothing holds it back: said, and never a failure.
test-unconstrained: $(VENV)/.installed-test
	$(BIN)/python tools/unconstrained.py

# What moved in the installed libraries since the recorded releases; ARGS=--record records them anew.
drift: $(VENV)/.installed-test
	$(BIN)/python tools/drift.py $(ARGS)

check: $(VENV)/.installed-check
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/lint-imports --no-logo setup.cfg
	$(BIN)/mypy $(ARGS)

format: $(VENV)/.installed-check
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
