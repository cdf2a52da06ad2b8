# make train    train 256 seeds of CartPole-v1 and draw their learning curve (needs no torch)
# make test     the test suite, with the PyTorch reference beside it
# make help     the rest
#
# Each target does its own set-up in .venv: Debian with python3 (3.11 to 3.14), python3-venv, make and
# git is enough. Another interpreter, PYTHON=python3.13, has an environment of its own beside it.
# Where pip's index has only a CUDA build of torch, name PyTorch's CPU index in PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
VENV := .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# Backwards: the longest of them, the README's, is begun first, and no worker waits for it at the end.
OPTIMIZED = XLA_FLAGS= $(PYTEST) $$(grep -rl as_users_run tests --include 'test_*.py' | sort -r)
# Modules are compiled as they are imported: of all that is installed that is the least part.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
OUT ?= runs/cartpole
DIST := dist
MEASURED := train presets reference throughput ppo scaling roofline time_to_solve compile memory gpu \
    invariance article family trust_region optimum race audit cluster

.PHONY: help dev train test test-slow torture lint docs smoke minima newest wheel check figures certificate clean dist
.DEFAULT_GOAL := help

help:
	@echo "make train       train 256 seeds of CartPole-v1 into $(OUT)"
	@echo "make test        the test suite"
	@echo "make test-slow   the tests that CI has no time for: every combination, whole runs: an hour"
	@echo "make torture     training runs killed 200 times over, and the other faults: an hour"
	@echo "make dev         the environment of tests, lint and docs, which they make for themselves, too"
	@echo "make lint        formatting, lint and types"
	@echo "make docs        the documentation, into docs/_build/html; a warning is an error"
	@echo "make smoke       a tiny training run, end to end"
	@echo "make minima      every command, with the smallest versions that pyproject.toml declares: minutes"
	@echo "make newest      every command, with the newest versions that it allows; deprecations are errors"
	@echo "make wheel       builds the wheel into dist/; every command of it, where there is nothing else"
	@echo "make check       lint, docs, test and smoke: what CI runs"
	@echo "make figures     measure again what README.md, benchmarks/README.md and docs report"
	@echo "make certificate whole runs of both packages, compared bit by bit: hours"
	@echo "make clean       remove the environments and caches"
	@echo "PYTHON=python3.13 makes any of it with another Python, in an environment of its own;"
	@echo "WORKERS=8 has the tests on 8 cores, with up to 2 GB of memory for each"

dev: $(VENV)/dev.done

train: $(VENV)/run.done
	$(BIN)/jaxpg train vpg --seeds 256 --out $(OUT)

test: $(VENV)/dev.done
	$(PYTEST) -m "not slow and not optimized"
	$(OPTIMIZED) -m "not slow and optimized"

test-slow: $(VENV)/dev.done
	$(PIP_INSTALL) -c constraints.txt -e ".[brax,craftax,jumanji,navix,playground]"  # the suites, which are trained
	$(PYTEST) -m "slow and not optimized" --ignore tests/test_speed.py
	$(OPTIMIZED) -m "slow and optimized"
	$(BIN)/python -m pytest -m slow tests/test_speed.py  # alone: it measures

torture: $(VENV)/dev.done
	XLA_FLAGS= JAXPG_KILLS=200 $(BIN)/python -m pytest -s tests/runs/test_faults.py tests/runs/test_runs.py \
	    tests/runs/test_clusters.py
	XLA_FLAGS=--xla_backend_optimization_level=3 JAXPG_SOAK_SEEDS=4096 \
	    $(BIN)/python -m pytest -s tests/runs/test_soak.py

lint: $(VENV)/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/dev.done
	$(BIN)/sphinx-build -q -W -n --keep-going -d docs/_build/doctrees docs docs/_build/html

smoke: $(VENV)/run.done
	rm -rf $(VENV)/smoke
	$(BIN)/jaxpg train vpg --seeds 4 --lanes 2 --total-steps 20000 --out $(VENV)/smoke
	$(BIN)/python -c "import json; s = json.load(open('$(VENV)/smoke/summary.json')); assert s['final_return']['iqm'] > 20, s"

minima: INSTALLED = -c $(VENV)/least.txt ".[export,optuna,tensorboard]"
newest: INSTALLED = --upgrade ".[export,optuna,tensorboard]"
newest: WARNINGS = error::DeprecationWarning
wheel: INSTALLED = -c constraints.txt $(DIST)/*.whl
minima: $(VENV)/least.txt
wheel: dist
minima newest wheel:
	rm -rf $(VENV)/$@
	$(PYTHON) -m venv $(VENV)/$@
	$(VENV)/$@/bin/python -m pip --disable-pip-version-check --quiet install $(INSTALLED)
	$(VENV)/$@/bin/python -m pip check
	cd $(VENV)/$@ && PYTHONWARNINGS=$(WARNINGS) bin/python $(CURDIR)/tests/every_command.py

$(VENV)/least.txt: pyproject.toml tests/minima.py
	mkdir -p $(VENV)
	$(PYTHON) tests/minima.py > $@

dist:
	rm -rf $(VENV)/build $(DIST)
	$(PYTHON) -m venv $(VENV)/build
	$(VENV)/build/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt build twine
	$(VENV)/build/bin/python -m build --outdir $(DIST)
	$(VENV)/build/bin/python -m twine check --strict $(DIST)/*

check: lint docs test smoke

figures: $(VENV)/dev.done
	$(PIP_INSTALL) -c constraints.txt -e ".[dev,bench]"
	for name in $(MEASURED); do $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/jaxpg parity --full --json benchmarks/results/parity-cpu.json
	$(BIN)/python -m benchmarks.readme

certificate: $(VENV)/dev.done
	$(BIN)/python -m benchmarks.certificate

clean:
	rm -rf .venv .venv-* $(DIST) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.done: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) -c constraints.txt -e .
	touch $@

# torch first and alone: a resolver that sees `torch` as a dependency may pick a CUDA build.
$(VENV)/dev.done: $(VENV)/run.done
	$(PIP_INSTALL) -c constraints.txt torch
	$(PIP_INSTALL) -c constraints.txt -e ".[dev]"
	touch $@
