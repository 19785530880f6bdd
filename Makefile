PYTHON ?= python3
ifndef VENV
# Where root has made .venv, an ordinary user makes another, and the other way round.
VENV := $(shell test -e .venv && ! test -O .venv && echo .venv-$$(id -un) || echo .venv)
endif
FILE ?= README.md
# Through the environment: a name may hold what a shell would run.
export FILE
DEMO_DIR ?= .demo
PYTEST_ARGS ?=
BENCH ?=
OUT ?= .bench

BIN := $(VENV)/bin/python
# Not beside the tests: a directory that is another user's would make them fail.
CACHES := $(abspath $(VENV))/.caches

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A directory that was moved or copied, or whose Python has gone, needs a new environment.
ifneq ($(shell cat $(VENV)/.made 2>/dev/null && $(BIN) -c "" 2>/dev/null && echo sound),$(CURDIR) sound)
.PHONY: $(VENV)/.made
endif

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: readable $(VENV)/.has-demo ## run an agent on FILE=README.md, kill it, resume it
	@$(BIN) examples/demo "$$FILE" --dir "$(DEMO_DIR)"

# With bytecode: 3 workers and hundreds of children would compile the same again.
.PHONY: test
test: $(VENV)/.has-test ## run the tests; PYTEST_ARGS="-k sqlite -x" goes to pytest
	@PYTHONDONTWRITEBYTECODE= HYPOTHESIS_STORAGE_DIRECTORY="$(CACHES)/hypothesis" $(BIN) -m pytest -o cache_dir="$(CACHES)/pytest" \
	  -n 3 --dist loadgroup $(PYTEST_ARGS)

.PHONY: bench
bench: $(VENV)/.has-bench ## compare with other savers; BENCH="postgres steps" picks, URL= is a server of yours
	@$(BIN) benchmarks $(BENCH) --out "$(OUT)" $(if $(URL),--url "$(URL)") $(BENCH_ARGS)

.PHONY: check
check: lint test ## lint, format, types and tests

.PHONY: lint
lint: $(VENV)/.has-dev ## lint, format and types only
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy
	MYPYPATH=examples/demo $(BIN) -m mypy examples/demo/*.py

.PHONY: fmt
fmt: $(VENV)/.has-dev ## format, and fix what can be fixed
	$(BIN) -m ruff check --fix .
	$(BIN) -m ruff format .

.PHONY: build
build: $(VENV)/.made ## build the wheel into dist
	@rm -rf dist
	@$(BIN) -m pip wheel -qq --no-deps --wheel-dir dist .
	@ls dist/*.whl

.PHONY: clean
clean: ## remove what make has made
	rm -rf $(VENV) $(DEMO_DIR) .bench dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: python
python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: there is no $(PYTHON); install Python 3.10 or newer, or name one: make … PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $$($(PYTHON) --version 2>&1) is too old; name Python 3.10 or newer: make … PYTHON=python3.12" >&2; \
	  exit 1; }

.PHONY: readable
readable: | python
	@$(PYTHON) examples/demo/document.py "$$FILE"

$(VENV)/.made: | python
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	@mkdir -p $(VENV) 2>/dev/null && test -w $(VENV) || { \
	  echo "make: cannot write to $(VENV); name another place: make … VENV=/tmp/venv DEMO_DIR=/tmp/demo" >&2; \
	  exit 1; }
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@printf '%s\n' "$(CURDIR)" >$@

# An editable install, so only pyproject.toml can make it stale. pip before 21.3 cannot do one.
$(VENV)/.has-%: pyproject.toml $(VENV)/.made
	@echo "Installing .[$*] into $(VENV): about half a minute, once"
	@$(BIN) -m pip install -qq --disable-pip-version-check "pip>=21.3"
	@$(BIN) -m pip install -qq --disable-pip-version-check --editable ".[$*]"
	@touch $@
