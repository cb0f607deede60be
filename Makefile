# make bench | test | lint, each in .venv, which is made on first use. After that the program is .venv/bin/roobench.
#   make bench ARGS="--limit 1 --out DIR"   more flags for the run
#   make test ARGS="tests/test_docs.py"     these tests alone, in one process; all tests run on all cores
#   make bench PYTHON=python3.12            another interpreter (3.11 or later)
#   make bench PIP_ARGS="..."               more flags for pip, such as an index with CPU builds of torch

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
READY := .venv/.installed

.PHONY: bench test lint clean

bench: $(READY)
	.venv/bin/roobench --method kangaroo --tasks all $(ARGS)

test: $(READY)
	.venv/bin/python -m pytest $(or $(ARGS),-n auto --dist worksteal)

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 11) or sys.exit("Roobench needs Python 3.11 or later, but $(PYTHON) is " + v + ": make PYTHON=python3.12 ...")'
	@echo "installing into .venv (once; a few minutes)"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r requirements.txt
	# As a path: a module that another commit lacks must not be found here when the gate runs that commit.
	.venv/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) --no-deps \
		--config-settings editable_mode=compat --editable .
	@touch $@
