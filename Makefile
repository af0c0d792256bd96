# The commands of the workshop. `make` alone lists them.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS   += --no-builtin-rules --no-print-directory

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TOOLS  := .tools/uv
# uv from PATH when there is one; the pinned one in .tools otherwise.
UV     := $(or $(shell command -v uv 2>/dev/null),$(TOOLS)/bin/uv)
# Trust what the machine trusts, its institute's own authority among it; uv brings a list of its own otherwise.
export UV_SYSTEM_CERTS ?= 1

# The stamp's name carries what the environment is made from; other names mean it is out of date.
KEY    := $(shell { cat requirements/dev.lock requirements/uv.txt; sed '/^\[tool\.ruff\]/,$$d' pyproject.toml; } | sha256sum | cut -c1-16)
STAMP  := $(VENV)/.ready-$(KEY)

COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes \
           --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'
PYTEST  := $(BIN)/python -m pytest

.PHONY: help
help: ## list what can be made
	@echo 'Ground Control. Usage: make <target> [NAME=value]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# ---------------------------------------------------------------------------------------------- environment

.PHONY: setup
setup: $(STAMP) ## make .venv from the lock files (nothing to do when they are unchanged)

$(STAMP): | $(UV)
	@[ -x $(BIN)/python ] || $(UV) venv --quiet --python "$$(command -v $(PYTHON))" $(VENV)
	@VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet --require-hashes requirements/dev.lock
	@VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.ready-*
	@touch $@
	@echo 'ready: $(BIN)/ground'

# PEP 668 machines refuse pip without --break-system-packages, which older pips do not know; with --target
# nothing of the system is touched either way.
$(TOOLS)/bin/uv: requirements/uv.txt
	@command -v $(PYTHON) >/dev/null || { echo 'Python 3.11 or newer is missing; on Debian: apt-get install python3' >&2; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 \
	  || { echo 'pip is missing; on Debian: apt-get install python3-pip (or put uv on your PATH)' >&2; exit 1; }
	@rm -rf $(TOOLS)
	@flag=; if $(PYTHON) -m pip install --help | grep -q -- --break-system-packages; then flag=--break-system-packages; fi; \
	  PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --disable-pip-version-check $$flag \
	    --require-hashes --no-deps --target $(TOOLS) -r requirements/uv.txt
	@touch $@

.PHONY: lock
lock: | $(UV) ## write the lock files anew from requirements/*.in (UPGRADE=1: newest versions)
	@$(UV) $(COMPILE) $(if $(UPGRADE),--upgrade) requirements/runtime.in --output-file requirements/runtime.lock
	@$(UV) $(COMPILE) $(if $(UPGRADE),--upgrade) requirements/openstack.in --output-file requirements/openstack.lock
	@$(UV) $(COMPILE) $(if $(UPGRADE),--upgrade) requirements/dev.in --output-file requirements/dev.lock
	@! grep -nE '(https?|file)://|--(extra-)?index-url|--find-links' requirements/*.lock requirements/uv.txt \
	  || { echo 'a lock file names a registry' >&2; exit 1; }

# For one Python only: OpenStack is run by the 3.11 of Debian 12. Lines that say who needs what would double the files.
.PHONY: lock-testbed
lock-testbed: | $(UV) ## write the lock files of the test bed anew
	@for file in testbed/openstack/requirements/*.in; do \
	  $(UV) $(subst --universal,--no-annotate,$(subst 'make lock','make lock-testbed',$(COMPILE))) $$file \
	    --output-file $${file%.in}.lock; done

.PHONY: lock-uv
lock-uv: | $(UV) ## pin the newest uv
	@echo uv | $(UV) $(COMPILE:'make lock'='make lock-uv') --no-annotate --upgrade - --output-file requirements/uv.txt

# ---------------------------------------------------------------------------------------------- use

.PHONY: demo
demo: $(STAMP) ## run the demonstration (ONCE=1: once through, then stop)
	@$(BIN)/ground demo $(if $(ONCE),--once)

.PHONY: docs
docs: $(STAMP) ## write docs/reference anew from the kinds
	@$(BIN)/ground admin reference

.PHONY: bench
bench: $(STAMP) ## run the workloads and print the figures (ONLY=w1,w4)
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY))

# ---------------------------------------------------------------------------------------------- test bed

.PHONY: testbed-openstack
testbed-openstack: | $(UV) ## bring up two OpenStack clouds on this machine, as root (docs/guides/testbed.md)
	@UV=$(UV) $(PYTHON) -m testbed.openstack up

.PHONY: testbed-down
testbed-down: ## take the clouds down (PURGE=1: and remove their files)
	@$(PYTHON) -m testbed.openstack down $(if $(PURGE),--purge)

# ---------------------------------------------------------------------------------------------- checks

.PHONY: test
test: $(STAMP) ## run the tests (T=tests/kernel or T='-k word'; SLOW=1: the slow ones too)
	@$(PYTEST) $(if $(SLOW),-m 'not acceptance') $(T)

.PHONY: acceptance
acceptance: $(STAMP) ## run the tests against real parts (PART=name: only those; PART=openstack brings up the test bed)
	@$(PYTEST) -m '' -o timeout=900 $(or $(if $(PART),$(wildcard tests/acceptance/test_$(PART).py tests/parts/$(PART)), \
	  tests/acceptance),tests/acceptance/test_$(PART).py)

.PHONY: lint
lint: $(STAMP) ## ruff, mypy and import-linter only
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: $(STAMP) ## let ruff repair and format what it can
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

.PHONY: check
check: lint test docs-fresh ## what CI runs: lint, tests, and that docs/reference is fresh

.PHONY: docs-fresh
docs-fresh: docs ## fail when docs/reference is not what the kinds say
	@[ -z "$$(git status --porcelain -- docs/reference)" ] \
	  || { git status --short -- docs/reference; echo 'docs/reference is stale: run `make docs` and commit it' >&2; exit 1; }

.PHONY: clean
clean: ## remove what the tools made (ALL=1: .venv and .tools too)
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .schemathesis
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@$(if $(ALL),rm -rf $(VENV) .tools)
