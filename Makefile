# `make demo` and `make test` do all the set-up on a machine with Python >= 3.10 (and its venv module) and make.
#
#   make demo                       make .venv, install, run the demo
#   make test PYTEST_ARGS="-k key"  the test suite; PYTEST_ARGS go to pytest
#   make chaos SECONDS=600          tasks on a cluster whose processes are killed all the time; CHAOS_ARGS="--seed 7"
#   make demo PYTHON=python3.12     with another Python (remove .venv first)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Tests mostly wait for real processes: more at a time than there are cores. TEST_WORKERS= runs them one by one. One that
# crashes is not replaced: with files as units, pytest-xdist would wait for the new one for ever.
TEST_WORKERS := --numprocesses=4 --dist=loadfile --max-worker-restart=0

# Tests run notebooks in each of these versions of ipykernel, which differ in what a click does while a cell runs.
KERNELS := 6.31.0 7.3.0 7.4.0

# The first of these that is new enough; only looked for when .venv has to be made.
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.10
PYTHON ?= $(shell for each in $(CANDIDATES); do \
	if $$each -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then echo $$each; break; fi; done)

.PHONY: help demo test notebooks lint types bench chaos clean
.DEFAULT_GOAL := help

help:
	@echo "make demo | test | notebooks | lint | types | bench | chaos | clean"

demo: $(VENV)/.installed
	$(BIN)/gearmap demo $(DEMO_ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TEST_WORKERS) $(PYTEST_ARGS)

# Runs them all, and saves them with what they printed and drew.
notebooks: $(VENV)/.installed-test
	$(BIN)/python notebooks/save.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

# Other libraries are installed to compare with, about 100 MB; `make bench PEERS=` goes without.
PEERS := .installed-bench
bench: $(VENV)/.installed-test $(addprefix $(VENV)/,$(PEERS))
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

chaos: SECONDS ?= 600
chaos: $(VENV)/.installed-test
	cd tests/chaos && ../../$(BIN)/python -m chaos --seconds $(SECONDS) $(CHAOS_ARGS)

clean:
	rm -rf $(VENV) .venv-ci-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.10 with venv found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Editable, so that a changed source needs no new installation. The order-only python is not compared by its date:
# the interpreter behind the link may be younger than everything here.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[bench]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[test,test-frames,browser-test,notebooks]'
	for each in $(KERNELS); do \
		$(PIP) install --upgrade --no-deps --target $(VENV)/kernels/$$each ipykernel==$$each || exit 1; done
	@touch $@ $(VENV)/.installed
