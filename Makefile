# Every target sets up what it needs; a second call reuses it. `make` alone lists them.
#   PYTHON  the interpreter to start from (3.11 or newer); if it has PyTorch 2.11 or newer, that one is used
#   TORCH   what pip installs where there is none
#   JOBS    processes that share the tests; each takes 1 GB
#   ARGS    goes on to the command behind the target: make report ARGS=--full, make test ARGS='-k digits'
PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
SETUP = $(PYTHON) build_support/environment.py --venv $(VENV) --torch '$(TORCH)' --extras
CPP = $$(git ls-files 'csrc/**.h' 'csrc/**.cpp' 'csrc/**.cu' 'csrc/**.cuh')

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help report test lint gpu wheel clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

report:  ## train the demo, run the benchmarks, write report/index.html
	@$(SETUP) all
	$(VENV)/bin/vidgen report $(ARGS)

test:  ## build, then run the tests
	@$(SETUP) test
	$(RUN) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint:  ## ruff, mypy and clang-format, changing nothing
	@$(SETUP) test,lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -c 'import clang_format; clang_format.clang_format()' --dry-run -Werror $(CPP)

gpu:  ## with PYTHON as it is (no .venv, no downloads): build, test and measure on its GPU
	$(PYTHON) benchmarks/gpu.py $(ARGS)

wheel:  ## a wheel in dist/
	@$(SETUP) ''
	rm -rf build/lib.* build/bdist.*
	$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

clean:  ## remove what was built and written; .venv stays, for it was a long download
	rm -rf build dist report *.egg-info vidgen/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
