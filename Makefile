# Two commands for everyone: `make run` shows AIOS at work, `make test` checks all of it.
# Each sets up .venv first, which is quick when nothing changed. The rest is for those who work on it.
#
#     make PYTHON=python3.12 run              another interpreter
#     make test ARGS=tests/stores            some of the tests
#     make test JOBS=1                       one test at a time

PYTHON ?= python3
BIN := .venv/bin

# Daemons, workers, agents and commands are many short processes that import the same modules: they
# are compiled once, whatever the shell says, or each would take half as long again to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test check format bench soak man constraints clean setup-run setup-dev setup-bench

help:
	@echo "make run          set up, start the daemon, run the demo, then open aiosh on a terminal"
	@echo "make test         set up, then check and run every test"
	@echo "make check        set up, then ruff, mypy --strict and import-linter"
	@echo "make format       let ruff format the source"
	@echo "make bench        measure; a table on the terminal, JSON in tests/bench/out"
	@echo "make soak         kill the kernel and its worker KILLS times (1000), looking after each"
	@echo "make man          write section 2 of the manual and the SDK's methods from the table"
	@echo "make constraints  resolve the pinned versions of all dependencies anew"
	@echo "make clean        remove .venv, caches and the trial daemon's state"

run: setup-run
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh etc/first-boot

# Tests that wait for daemons and fake cores go side by side, two for each processor, as they mostly
# wait; files in their order, or those of few and long tests would come last and hold up the end. A
# real model wants the machine alone.
# Status 5 says that nothing was selected, which ARGS may well mean for one of the two.
JOBS ?= $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN))

test: check
	$(BIN)/python -m pytest -m "not model" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/python -m pytest -m model $(ARGS) || [ $$? -eq 5 ]

check: setup-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup-dev
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: setup-bench
	$(BIN)/python -m tests.bench $(ARGS)

KILLS ?= 1000

soak: setup-dev
	$(BIN)/python -u -m tests.soak $(KILLS) $(ARGS)

man: setup-run
	$(BIN)/python -m aiosd.abi.manual man/man2
	$(BIN)/python -m aiosd.abi.bindings > build.calls && mv build.calls sdk/aios/calls.py

constraints: setup-dev
	$(BIN)/python .ci/constraints.py

setup-run:
	@$(PYTHON) .ci/setup.py daemon llama demo gateway

setup-dev:
	@$(PYTHON) .ci/setup.py daemon llama demo dev

setup-bench:
	@$(PYTHON) .ci/setup.py daemon llama demo bench

clean:
	rm -rf .venv .aios .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -rf build dist tests/bench/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
