# `make train` and `make test` on a fresh machine need only python3 with venv: every target installs first what it uses.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/quick

# One intra-op thread per process: a second one beside any busy process spins in barriers (docs/design.md).
export OMP_NUM_THREADS = 1

RUN := $(VENV)/bin/python
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help env train test test-slow test-loops campaign lint types docs results ci clean
.PRECIOUS: $(VENV)/.installed-%

help:
	@echo "make env        build $(VENV) (redone only when pyproject.toml or constraints.txt change)"
	@echo "make train      meta-train on mlp and cnn into $(OUT)"
	@echo "make test       the fast tests; ARGS=... goes to pytest"
	@echo "make test-slow  the slow tests"
	@echo "make test-loops the tests in transformers, accelerate, Lightning and peft, in .venv-loops"
	@echo "make campaign   20 kills of every program that goes on after one (about 10 minutes)"
	@echo "make lint       ruff"
	@echo "make types      mypy"
	@echo "make docs       the documentation site, build/site/index.html; warnings are errors"
	@echo "make results    the tables of docs/ from results/"
	@echo "make ci         test, lint, types, docs: what .ci/run does"
	@echo "make clean      remove caches and build products (neither $(VENV) nor runs)"

env: $(DEV)

# The stem is an extra of pyproject.toml: train, or dev with everything.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -c constraints.txt -e ".[$*]"
	touch $@

train: $(VENV)/.installed-train
	$(RUN) -m meta_train --optimizees mlp,cnn --out $(OUT) --resume

test: env
	$(RUN) -m pytest $(ARGS)

test-slow: env
	$(RUN) -m pytest -m slow $(ARGS)

# An environment of its own: what [loops] brings is heavy, and no other test needs it.
LOOPS := tests/integration tests/documents/test_loops.py tests/lo_framework/optim/test_loops.py

test-loops:
	$(MAKE) VENV=.venv-loops .venv-loops/.installed-loops
	.venv-loops/bin/python -m pytest -m "slow or not slow" $(LOOPS) $(ARGS)

campaign: env
	$(RUN) -m tests.campaign $(ARGS)

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: env
	$(RUN) -m mypy lo_framework benchmarks

docs: env
	$(RUN) -m sphinx -W --keep-going -q -b html docs build/site
	@echo "build/site/index.html"

results: env
	$(RUN) -m benchmarks.results

ci: test lint types docs

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
