# make demo    train a small model end to end          make test        the fast tests
# make check   format, lint and types                  make test-slow   the slow tests only
#
# Variables: PYTHON (the interpreter the virtual environment is made from), TORCH (what pip installs as torch),
# EXTRAS (what `make venv` installs), JOBS (pytest workers), ARGS (appended to the command of the target).

PYTHON ?= python3
# Pinned, because a plain `torch` resolves on Linux to the newest CUDA build and its gigabytes of libraries. For the
# CPU build from PyTorch's own index: make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" …
TORCH ?= torch==2.13.0
EXTRAS ?= dev
JOBS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# One thread per worker: pytest already runs JOBS of them.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
SOURCES := $(wildcard moeba moeba_command.py tests examples benchmarks)

.PHONY: help venv demo test test-slow check format clean

help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile

# Each stamp says what is installed; it is newer than setup.cfg and pyproject.toml, or the install runs again.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Moeba needs Python 3.10 or newer, \
	$(PYTHON) is " + sys.version.split()[0] + ": pass PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install $(TORCH)
	touch $@

$(VENV)/.installed-%: setup.cfg pyproject.toml | $(VENV)/.torch
	$(BIN)/python -m pip install -e ".[$*]"
	touch $@

venv: $(VENV)/.installed-$(EXTRAS)

demo: $(VENV)/.installed-train
	OMP_WAIT_POLICY=PASSIVE $(BIN)/moeba demo $(ARGS)

test: $(VENV)/.installed-test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: no test is slow

check: $(VENV)/.installed-check
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy $(ARGS)

format: $(VENV)/.installed-check
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
