# `make` lists the recipes. All of them work on a machine with nothing but Python 3.11-3.13, git and GNU make.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
PYTHON ?= python3.13 python3.12 python3.11 python3
BIN := .venv/bin
LOCKS := requirements-uv.txt requirements.txt requirements-dev.txt
SEEDS ?= 2000
ACTIONS ?= 10000
STAMP := .venv/.locks-installed
# Where it is set, each process would compile all of Airflow anew: 8 seconds of work in every task.
unexport PYTHONDONTWRITEBYTECODE
# Processes that share the tests. Each needs about 1.5 GB; two leave a tenth of two cores idle.
WORKERS ?= 3

.PHONY: help demo stop env test test-long faults storm lint format lock docs screenshots bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## start everything on this machine, make one real run, print its funnel and the address
	@sandbox/ctl demo

stop: ## stop what `make demo` started
	@if [[ -x $(BIN)/python ]]; then sandbox/ctl stop; else echo "Nothing was running."; fi

env: $(STAMP) ## print the demo's addresses, connections and log-ins
	@sandbox/ctl env

test: $(STAMP) ## all tests that a change has to pass
	@$(BIN)/python -m pytest -n $(WORKERS)

test-long: $(STAMP) ## those that take minutes: long properties, a whole Airflow with faults
	@$(BIN)/python -m pytest -m "long or e2e" --timeout 3600

faults: $(STAMP) ## fault schedules: SEEDS=100000 of them, on both cores; prints the violations per invariant
	@$(BIN)/python -m tests.faults $(SEEDS)

storm: $(STAMP) ## play ACTIONS=… partner actions against an independent model
	@$(BIN)/python -m tests.faults.actions --actions $(ACTIONS) --seed 0

lint: $(STAMP) ## style, types, SQL, generated docs
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check
	@$(BIN)/python -m mypy $(wildcard plugins dags sandbox scripts)
	@if [[ -d include/sql ]]; then $(BIN)/python -m sqlfluff lint --disable-progress-bar include/sql; fi
	@if [[ -f scripts/generate_docs.py ]]; then $(BIN)/python scripts/generate_docs.py --check; fi

format: $(STAMP) ## let the tools put Python and SQL into form
	@$(BIN)/python -m ruff check --fix-only --quiet
	@$(BIN)/python -m ruff format
	@if [[ -d include/sql ]]; then $(BIN)/python -m sqlfluff fix --disable-progress-bar --quiet include/sql; fi

lock: $(STAMP) ## make the requirements' locks anew from their .in files
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes requirements.in -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes requirements-dev.in -o requirements-dev.txt
	cp requirements.txt requirements-deploy.txt
	for lock in requirements-deploy requirements-deploy-demo tests/deploy/requirements bench/requirements; do
	    $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes $$lock.in -o $$lock.txt
	done

docs: $(STAMP) ## generate the documents that are made from code
	@$(BIN)/python scripts/generate_docs.py

screenshots: $(STAMP) ## take the pictures of the documents from the running demo; wants Chromium
	@PYTHONPATH=. $(BIN)/python scripts/screenshots.py

bench: $(STAMP) ## compare speeds; takes more than an hour and a quiet machine
	@failed=
	# Each part is made, also where a figure of another one is not as it has to be.
	for part in bench.compare bench bench.looks bench.withdrawals bench.partner_actions bench.pages bench.scale; do
		$(BIN)/python -m $$part || failed="$$failed $$part"
	done
	$(BIN)/python -m bench.capacity
	if [ -n "$$failed" ]; then echo "Not as it has to be:$$failed" >&2; exit 1; fi

clean: stop ## stop everything, and remove the environment and all the demo's data
	rm -rf .venv .stack .cache/bench-venv .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The environment: made once, and brought to the locks whenever these change. Every file's hash is checked.
# Of the names in PYTHON the first is taken that runs and has a fitting version: one that is there need not run (pyenv).
$(STAMP): $(LOCKS)
	@fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
	if ! $(BIN)/python -c "import pip; $$fits" 2>/dev/null; then
	    for python in $(PYTHON) none; do if "$$python" -c "$$fits" 2>/dev/null; then break; fi; done
	    if [[ $$python == none ]]; then
	        echo "This needs Python 3.11, 3.12 or 3.13, and found none: install one, or name it with PYTHON=…" >&2
	        exit 1
	    fi
	    rm -rf .venv
	    "$$python" -m venv .venv
	fi
	echo "Installing the environment into .venv (a minute or more the first time) …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt -r requirements-dev.txt
	touch $@
