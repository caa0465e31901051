# Everything that one does with this repository. `make help` lists it.
#
# Each Python has an environment of its own, .venv/3.11, .venv/3.13, ..., so that the JAX that
# still supports 3.11 and the newest JAX live side by side.

PYTHON  ?= python3
WORKERS ?= auto
ARGS    ?=
BENCH   ?=

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV    := .venv/$(VERSION)
BIN     := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: help demo test test-all bench lint ruff-check ruff-format pyright format loc coverage-table \
  picture docs notebooks lab wheel clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PYTHON=python3.13   the interpreter to use (3.11 or later; now: $(PYTHON))'
	@echo '  ARGS="..."          further arguments for demo, test, test-all and docs'
	@echo '  BENCH=lstm          one workload, or those whose names begin so, for bench'
	@echo '  WORKERS=auto        the number of processes that run the tests'

demo: $(VENV)/.installed-demo  ## install if needed, train and cross-check a real model
	$(BIN)/python -m functrans $(ARGS)

# All tests run with the oldest JAX. With another one each primitive has one row in each test of the
# table of rules, and other tables are shorter too: tests/repeated.py.
REPEATED := $(if $(filter 3.11,$(VERSION)),,-m "not repeated")

test: $(VENV)/.installed-test  ## install if needed, run the tests
	$(BIN)/python -m pytest -n $(WORKERS) $(REPEATED) $(ARGS)

test-all: $(VENV)/.installed-test  ## the same, with every row of every table on any Python
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

bench: $(VENV)/.installed-bench  ## install if needed, measure against JAX, write docs/benchmarks.md
	$(BIN)/python -m benchmarks $(BENCH)

lint: ruff-check ruff-format pyright  ## check style and types

ruff-check: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .

ruff-format: $(VENV)/.installed-dev
	$(BIN)/python -m ruff format --check .

pyright: $(VENV)/.installed-dev
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev  ## sort the imports, format the code
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

loc:  ## count the lines of code, and check them against the budgets
	@$(PYTHON) tools/loc.py

coverage-table: $(VENV)/.installed-test  ## write docs/primitives.md, with the newest JAX
	$(BIN)/python tools/coverage_table.py

picture: $(VENV)/.installed-test  ## draw what imports what, for docs/architecture.md
	$(BIN)/python tools/imports.py

docs: $(VENV)/.installed-docs  ## build the documentation
	$(BIN)/python -m sphinx -W docs docs/_build/html $(ARGS)
	@! grep -rlE '(src|href)="https?://[^"]+\.(js|css)"' docs/_build/html --include='*.html' || { \
	  echo 'these pages need a network for a script or a style' >&2; exit 1; }

notebooks: $(VENV)/.installed-docs $(VENV)/.installed-colab  ## run the notebooks
	JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyter execute --timeout=600 colab/*.ipynb

lab: $(VENV)/.installed-lab  ## install if needed, open the tutorials in JupyterLab
	JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyter lab colab $(ARGS)

wheel: $(BIN)/python  ## build a wheel in dist/
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .

clean:  ## delete the environments, the caches and what was built
	rm -rf .venv .hypothesis .pytest_cache .ruff_cache build dist docs/_build docs/tutorials
	find benchmarks colab docs functrans tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A failed `venv` leaves a folder without pip behind: it is removed, so that the
# next `make` begins anew.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'functrans needs Python 3.11 or later; $(PYTHON) is $(or $(VERSION),not a Python that runs).'; \
	  echo 'Name another one, for example: make $(MAKECMDGOALS) PYTHON=python3.13'; exit 1; } >&2
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One stamp for each extra of pyproject.toml; a change there installs again.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[$*]'
	@touch $@
