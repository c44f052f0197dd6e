# `make demo` and `make test` each work as the only command on a fresh clone: they create .venv and install into it once.

PYTHON ?= python3
VENV ?= .venv
# Extra arguments of pip, for example: make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=
# Extra arguments of pytest, for example: make test PYTEST_FLAGS="-k zoo"
PYTEST_FLAGS ?=
JOBS ?= 2

BIN := $(VENV)/bin
READY := $(VENV)/.sb3-erl-installed
PACKAGE := sb3_erl
SOURCES := $(PACKAGE) $(wildcard tests examples benchmarks)
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS)

# $(call given,NAME,--flag): the flag if NAME was typed after make (not if it merely stands in the environment)
given = $(if $(filter command,$(origin $(1))),$(2) $($(1)))

.DEFAULT_GOAL := help
.PHONY: help install demo test faults soak smoke campaign campaign-report check lint format types bench docs clean distclean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(READY)  ## create .venv and install the package with its development tools

# The start-up files are copied even by an editable install, hence they belong to the stamp.
$(READY): pyproject.toml constraints.txt $(wildcard $(PACKAGE)/zoo/startup/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "sb3_erl needs Python 3.11 or newer; choose one with: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { echo "$(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## train ERL-Re2 on a MuJoCo task and show what it learned [ENV=Ant-v4] [STEPS=1000000]
	MPLBACKEND=Agg $(BIN)/python -m examples.demo $(call given,ENV,--env) $(call given,STEPS,--steps)

test: $(READY)  ## run the tests [JOBS=2] [PYTEST_FLAGS=...]
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(PYTEST_FLAGS)

smoke:  ## install without anything for developers into build/smoke, train, load, use the Zoo [PYTHON=python3.12]
	rm -rf build/smoke && $(PYTHON) -m venv build/smoke
	build/smoke/bin/pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt torch==2.13.0
	build/smoke/bin/pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt .
	cd build && OMP_NUM_THREADS=1 smoke/bin/python ../tests/zoo/smoke.py

soak: $(READY)  ## two hours with workers that are killed, for each back-end [SOAK_FLAGS=--minutes=120]
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak $(SOAK_FLAGS)

check: lint  ## format, lint, types, tests and doctests: run before every commit
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup \
		--doctest-modules $(PACKAGE) tests $(PYTEST_FLAGS)

docs: $(READY)  ## the documentation site, in docs/_build/html; warnings are errors
	$(PIP) -q -c constraints.txt -e '.[docs]'
	MPLBACKEND=Agg OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## measure speed [BENCH_FLAGS="--threads 1 2 --only updates stepping"]
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench $(BENCH_FLAGS)

faults: $(READY)  ## kill runs and resume them, inject faults, damage files [KILL_FLAGS=--kills=50] [FAULT_FLAGS=...] [FUZZ_FLAGS=...]
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m benchmarks.kill_resume $(KILL_FLAGS)
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m benchmarks.faults $(FAULT_FLAGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.file_fuzz $(FUZZ_FLAGS)

campaign: $(READY)  ## make the missing runs of the campaign at idle priority, until interrupted [JOBS=2]
	$(BIN)/python -m benchmarks.campaign run --jobs $(JOBS)

campaign-report: $(READY)  ## tables and figures of the campaign's curves
	MPLBACKEND=Agg $(BIN)/python -m benchmarks.campaign report
	MPLBACKEND=Agg $(BIN)/python -m benchmarks.campaign report --plan ideas

clean:  ## remove build results and caches
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache MUJOCO_LOG.TXT
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv as well
	rm -rf $(VENV)
