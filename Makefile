# Two commands, each of which does all the set-up by itself:
#   make quickstart   the whole loop on a small generated world, ending with a report
#   make test         the tests
# Needs Python 3.11 or later. PYTHON=..., VENV=..., TORCH_SPEC=... override; see docs/install.md.

VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
export VENV PYTHON TORCH_SPEC
# Nothing here may phone home or wait for a terminal.
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false
export NO_MKDOCS_2_WARNING ?= 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test vllm check bench docs clean setup setup-dev

help:
	@echo "make quickstart   set up, then run the whole loop on a small generated world"
	@echo "make test         set up, then run the tests        (PYTEST_ARGS='-m \"not slow\"')"
	@echo "make vllm         install a CPU build of vLLM into an environment of its own"
	@echo
	@echo "For contributors:"
	@echo "make check        lint, types, import rules, documentation, house rules"
	@echo "make bench        run the benchmarks into docs/benchmarks.md   (BENCH=label_studio)"
	@echo "make docs         build the documentation into site/"
	@echo "make clean        remove caches and build products (not $(VENV), not runs/)"

setup:
	@sh scripts/setup.sh base

setup-dev:
	@sh scripts/setup.sh dev

quickstart: setup
	$(BIN)/align quickstart $(QUICKSTART_ARGS)

test: setup-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

vllm: setup
	$(BIN)/python -m align.rollout.vllm_environment

check: setup-dev
	$(BIN)/python scripts/check.py

bench: setup-dev
	$(BIN)/python -m benchmarks $(BENCH)

docs: setup-dev
	$(BIN)/mkdocs build --strict --site-dir site

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find align reward feedback tests scripts benchmarks examples -name __pycache__ \
		-type d -prune -exec rm -rf {} +
