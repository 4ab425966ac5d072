# Hilum: `make demo` shows it, `make up` serves it, `make test` proves it. Needs Python 3.11+ and make, nothing else.

.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP   := $(BIN)/python -m pip --disable-pip-version-check

# The pins of pyproject.toml's `torch` extra; a test holds them equal.
TORCH := torch==2.13.0 torchvision==0.28.0
# PyTorch's own index of CPU builds. `make install TORCH_INDEX=` takes the CUDA build that pip finds by itself.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
EXTRAS := worker,torch,train,embedded,dev

# The first interpreter that is new enough and whole (Debian splits venv off); PYTHON=... overrides.
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3.14 python3 python; do \
	$$p -c '$(SUITABLE)' >/dev/null 2>&1 && { command -v $$p; break; }; done)

.PHONY: help install demo up test check bench chaos sbom clean

help:  ## what can be made
	@echo "make TARGET:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12

install: $(STAMP)  ## install everything into .venv (the other targets do it by themselves)

demo: $(STAMP)  ## one radiograph travels the whole way; the results lie in demo-output/
	@$(BIN)/hilum demo

up: $(STAMP)  ## start the service and stay (PORT=9000 make up binds another port)
	@exec $(BIN)/hilum up

# The tests mostly wait, for processes and for leases that run out, so there are more of them at a time than two cores.
JOBS ?= 4
test: $(STAMP)  ## run the whole suite (ARGS="tests/api -x" runs a part of it, JOBS=0 one test at a time)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(STAMP)  ## lint, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)  ## run the benchmarks, or one of them (B=accept_cost), into docs/benchmarks.json
	@$(BIN)/python -m tests.benchmarks $(B)

N        ?= 10000
SEED     ?= 1
FAULTS   ?= 50
DATABASE ?= postgresql
BROKER   ?= redis
chaos: $(STAMP)  ## break everything at random and count what is lost (N=300 SEED=1 FAULTS=2 DATABASE=sqlite BROKER=amqp)
	@$(BIN)/python -m tests.chaos --jobs $(N) --seed $(SEED) --faults $(FAULTS) \
		--database $(DATABASE) --broker $(BROKER)

# Describes the environment from outside, so that it is no part of what it describes.
CYCLONEDX := cyclonedx-bom==7.5.0
sbom: $(STAMP)  ## write docs/sbom.cdx.json from what is installed (fetches the CycloneDX tool into .venv/sbom)
	@test -x $(VENV)/sbom/bin/cyclonedx-py || { $(BIN)/python -m venv $(VENV)/sbom && \
		$(VENV)/sbom/bin/python -m pip --disable-pip-version-check install -q $(CYCLONEDX); }
	@$(BIN)/python -m tests.sbom $(VENV)/sbom/bin/cyclonedx-py

clean:  ## remove caches and the demo's output; keeps .venv, and .hilum with its jobs
	rm -rf demo-output build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamp is written last, so that an install that broke off is taken up again.
$(STAMP): pyproject.toml Makefile
	@test -x $(BIN)/python && $(BIN)/python -c '$(SUITABLE)' && $(BIN)/python -m pip --version >/dev/null || { \
		test -n "$(PYTHON)" || { \
			echo "install: no Python 3.11 or newer with its venv module was found." >&2; \
			echo "         Debian, Ubuntu: apt install python3-venv; or say which: make install PYTHON=/path/to/python3" >&2; \
			exit 1; }; \
		echo "install: $(VENV) from $(PYTHON)"; \
		$(PYTHON) -m venv --clear $(VENV) || { echo "install: $(PYTHON) -m venv failed" >&2; exit 1; }; }
	@$(BIN)/python -c "$$TORCH_IS_THERE" || { \
		echo "install: PyTorch (the CPU build is about 200 MB) ..."; \
		$(TORCH_FROM_INDEX) $(PIP) install -q --no-deps $(TORCH) || { \
			echo "install: $(TORCH) could not be installed; pip's message above says why" >&2; exit 1; }; }
	@echo "install: hilum and what it needs ..."
	@$(PIP) install -q -e '.[$(EXTRAS)]' || { \
		echo "install: pip could not install .[$(EXTRAS)]; its message above says why. Run make again to go on." >&2; exit 1; }
	@$(BIN)/hilum --help >/dev/null || { echo "install: the hilum command does not start" >&2; exit 1; }
	@touch $(STAMP)
	@echo "install: done"

# Elsewhere than on Linux the ordinary wheel is the CPU build. The index may be out of reach: then what pip finds serves.
ifneq ($(TORCH_INDEX),)
ifeq ($(shell uname -s),Linux)
TORCH_FROM_INDEX = $(PIP) install -q --no-deps --timeout 5 --retries 0 --index-url $(TORCH_INDEX) $(TORCH) 2>/dev/null || {	\
	echo "install: $(TORCH_INDEX) is out of reach, taking the build that pip finds"; false; } ||
endif
endif

define TORCH_IS_THERE
from importlib.metadata import PackageNotFoundError, version
try:
    there = all(version(n).partition("+")[0] == v for n, v in (p.split("==") for p in "$(TORCH)".split()))
except PackageNotFoundError:
    there = False
raise SystemExit(not there)
endef
export TORCH_IS_THERE
