# Everything runs in .venv, which is made here from hash-pinned requirements.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip

.DEFAULT_GOAL := help
.PHONY: help demo test long fuzz lint bench lock clean

help: ## Show what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 14

demo: .venv/ready ## Digits to a proven, published artifact, which then classifies a few images
	$(BIN)/edgeline run --data digits --demo

test: .venv/ready ## Run the whole test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0

long: .venv/ready ## Run what is too long for the test suite: compilers, emulators, other runtimes, a real schedule
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 -m long

fuzz: .venv/ready ## Run the fuzzing that is too long for the test suite
	$(BIN)/python -m pytest -m nightly

lint: .venv/ready ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready ## Run the benchmarks; each ends in one JSON line
	$(BIN)/python benchmarks/head_training.py
	$(BIN)/python benchmarks/feature_extraction.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/strategies.py
	$(BIN)/python benchmarks/base_install.py
	$(BIN)/python benchmarks/second_run.py
	$(BIN)/python benchmarks/device.py
	$(BIN)/python benchmarks/int8.py
	$(BIN)/python benchmarks/int8_rivals.py
	$(BIN)/python benchmarks/variants.py
	$(BIN)/python benchmarks/exports.py
	$(BIN)/python benchmarks/qat.py
	$(BIN)/python benchmarks/serving/decode.py
	for script in throughput tail overload idle photos reload stops quota; do $(BIN)/python benchmarks/serving/$$script.py || exit 1; done
	$(BIN)/python benchmarks/serving/overload.py --stalled 1000 --seconds 10

lock: .venv/ready ## Compile the pinned requirements again, to the newest that fit pyproject.toml
	$(UV) compile $(COMPILE) --extra all --group dev pyproject.toml --output-file requirements/dev.txt --upgrade
	$(UV) compile $(COMPILE) pyproject.toml --output-file requirements/device.txt --upgrade
	$(UV) compile $(COMPILE) --extra http pyproject.toml --output-file requirements/http.txt --upgrade
	echo uv | $(UV) compile $(COMPILE) - --output-file requirements/uv.txt --upgrade

COMPILE := --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 --quiet

clean: ## Remove the environment and caches; artifacts/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build *.egg-info

.venv/ready: pyproject.toml requirements/dev.txt requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgeline needs Python 3.11 or newer; say make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(UV) install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(UV) install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
