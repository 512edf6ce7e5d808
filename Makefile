# `make test` on a fresh machine needs only python3 with venv: every target builds the environment first.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/quick

# One intra-op thread per process: a second one beside any busy process spins in barriers (docs/design.md).
export OMP_NUM_THREADS = 1

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.lo-framework-env

.DEFAULT_GOAL := help
.PHONY: help env train test test-slow lint types ci clean

help:
	@echo "make env        build $(VENV) (redone only when pyproject.toml or constraints.txt change)"
	@echo "make train      meta-train on mlp and cnn into $(OUT)"
	@echo "make test       the fast tests; ARGS=... goes to pytest"
	@echo "make test-slow  the slow tests"
	@echo "make lint       ruff"
	@echo "make types      mypy"
	@echo "make ci         test, lint, types: what .ci/run does"
	@echo "make clean      remove caches and build products (neither $(VENV) nor runs)"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -c constraints.txt -e ".[dev]"
	touch $@

train: env
	$(RUN) -m meta_train --optimizees mlp,cnn --out $(OUT) --resume

test: env
	$(RUN) -m pytest $(ARGS)

test-slow: env
	$(RUN) -m pytest -m slow $(ARGS)

lint: env
	$(RUN) -m ruff check .

types: env
	$(RUN) -m mypy lo_framework benchmarks

ci: test lint types

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
