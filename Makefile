# Everything runs in .venv, which is created from hash-pinned requirements.
PYTHON ?= python3
BIN := .venv/bin
# Containers often set this. Without bytecode, every process compiles PyTorch and Prefect from source, for ten seconds.
unexport PYTHONDONTWRITEBYTECODE
UV := $(BIN)/uv pip

.DEFAULT_GOAL := help
.PHONY: help demo test long fuzz lint docs bench lock clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 14

demo: .venv/ready ## Digits -> trained, verified, published; then classify a few held-out images
	$(BIN)/edgeline run --data digits --demo

PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: .venv/ready ## Run the tests, in minutes
	$(PYTEST)

long: .venv/ready ## Run the long tests: compilers, emulators, other runtimes, a real schedule
	$(PYTEST) -m long

fuzz: .venv/ready ## Run the long fuzzing
	$(BIN)/python -m pytest -m nightly

lint: .venv/ready ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready ## Write the generated pages, and build the documentation site into build/site
	$(BIN)/python -m edgeline.pipeline.config_reference > docs/config.md
	$(BIN)/python docs/make_commands.py > docs/commands.md
	NO_MKDOCS_2_WARNING=true DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

bench: .venv/ready ## Run the benchmarks; each ends in one JSON line
	for script in $(BENCHMARKS); do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/graph_cache.py artifacts/store/digits
	$(BIN)/python benchmarks/drift_alarms.py artifacts/store/digits
	$(BIN)/python benchmarks/serving/overload.py --stalled 1000 --seconds 10

# base_install makes the artifact of the digits, which graph_cache reads.
BENCHMARKS := head_training fine_tune training_loop feature_extraction accuracy strategies sweep few_shot label_errors \
	false_promotions labeling chaos engines scale base_install \
	second_run prefect_overhead teach near_duplicates device int8 int8_backbones \
	int8_rivals variants exports qat explain $(addprefix serving/, decode throughput tail overload idle photos reload stops quota token_timing \
	conformance_mlserver soak)

lock: .venv/ready ## Compile the pinned requirements again, to the newest versions that fit pyproject.toml
	$(UV) compile $(COMPILE) --extra all --group dev pyproject.toml --output-file requirements/dev.txt --upgrade
	$(UV) compile $(COMPILE) pyproject.toml --output-file requirements/device.txt --upgrade
	$(UV) compile $(COMPILE) --extra http pyproject.toml --output-file requirements/http.txt --upgrade
	echo uv | $(UV) compile $(COMPILE) - --output-file requirements/uv.txt --upgrade

COMPILE := --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 --quiet

clean: ## Remove the environment and caches; artifacts/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build *.egg-info

.venv/ready: pyproject.toml requirements/dev.txt requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgeline needs Python 3.11 or newer; run make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(UV) install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(UV) install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
