# Two commands do everything: `make demo` and `make test`. Neither needs root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS := $(if $(KEEP),--keep,)

.PHONY: demo test lint setup bench lock protocol deb clean
.DEFAULT_GOAL := help

help:
	@echo "make demo          the whole loop on real data (KEEP=1 leaves the control plane up)"
	@echo "make test          unit, integration and acceptance tests"
	@echo "make lint          ruff, mypy, import contracts"
	@echo "make setup         the virtual environment in .venv"
	@echo "make deb           Debian packages of the agent and of ONNX Runtime, in dist/"
	@echo "make bench B=NAME  one benchmark of bench/ (Q=1 for the quick run)"

setup: $(STAMP)

$(STAMP): locks/dev.txt pyproject.toml
	@echo "== setting up $(VENV) from locks/dev.txt"
	@$(PYTHON) -c 'import sys; sys.exit("expected Python 3.11 or newer, got %d.%d: set PYTHON=python3.11" % sys.version_info[:2]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "expected Python's venv module, got none: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: setup
	@$(BIN)/python -m demo $(DEMO_ARGS)

test: setup
	@$(BIN)/python -m pytest -n 3 --dist loadfile $(T)

lint: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check . packaging/deb/build
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup
	@$(BIN)/python -m bench.$(B) $(if $(Q),--quick,)

protocol: setup
	@$(BIN)/python docs/generate_protocol.py
	@$(BIN)/python docs/generate_lifecycle.py

deb: setup
	@$(BIN)/python packaging/deb/build --out dist

lock:
	uv pip compile --universal --generate-hashes --python-version 3.11 --extra dev -c locks/constraints.txt --no-header \
		--no-annotate pyproject.toml -o locks/dev.txt

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
