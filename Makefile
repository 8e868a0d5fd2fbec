# `make demo` and `make test` are all a new user needs; CONTRIBUTING.md explains the rest.
PYTHON   ?= python3
VENV     ?= .venv
# What `pip install` gets where no torch >= 2.10 is installed. PyTorch keeps wheels for the CPU alone, far smaller, at an index of their own:
#     make test TORCH='torch --index-url <the address that pytorch.org gives for CPU>'
TORCH    ?= torch==2.13.0
# Added to every `pip install`.
PIP_ARGS ?=
DEMO_DIR ?= reports/demo
DEMO_ARGS ?=
# Only these, one after the other. By default all: first file by file in two of pytest's, then one at a time what counts bytes at an interface, makes links, or takes the whole machine.
TESTS    ?=
TESTS_ALONE := tests/distributed/test_auto.py tests/distributed/test_cluster_kills.py tests/distributed/test_cluster_links.py \
    tests/distributed/test_cluster_run.py tests/distributed/test_demo_bytes.py tests/distributed/test_fsdp2_bars.py \
    tests/distributed/test_hierarchical_ranks.py tests/distributed/test_ways.py tests/distributed/test_wire_bytes.py
PYTEST_ARGS ?=
BIN      := $(VENV)/bin
PIP      := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS)
SOURCES  := $(wildcard csrc/*.cpp csrc/*.h csrc/kernels/*)

.PHONY: all demo test bench docs lint format cpptest cudatest gpu clean
.DELETE_ON_ERROR:

all: $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/python -m commpress demo --out $(DEMO_DIR) $(DEMO_ARGS)

test: $(VENV)/.built $(VENV)/.dev
ifneq ($(TESTS),)
	$(BIN)/python -m pytest -q $(PYTEST_ARGS) $(TESTS)
else
	@status=0; \
	$(BIN)/python -m pytest -q $(PYTEST_ARGS) --numprocesses 2 --dist loadfile tests $(TESTS_ALONE:%=--ignore=%) || status=1; \
	$(BIN)/python -m pytest -q $(PYTEST_ARGS) $(TESTS_ALONE) || status=1; \
	exit $$status
endif

bench: $(VENV)/.built $(VENV)/.dev
	$(BIN)/python -m benchmarks

# The pages of docs/ and the API as a site in build/docs.
docs: $(VENV)/.built $(VENV)/.dev
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

lint: $(VENV)/.built $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/mypy
	$(BIN)/torch-abi-audit commpress/_C.abi3.so --check torch

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# The kernels alone, without torch or Python: every instruction set here, sanitizers, arm64 under emulation.
cpptest:
	$(MAKE) -j2 -C tests/cpp check

# The kernels' source for CUDA devices, run on the CPU: plain, under sanitizers, under ThreadSanitizer.
cudatest:
	$(MAKE) -C tests/cuda check

# On a machine with a GPU: its tests, the speed of every kernel, and a report in GPU_DIR. PYTHON_GPU: another Python that has torch and this checkout's extension.
GPU_DIR    ?= reports/gpu
PYTHON_GPU ?= $(BIN)/python
gpu:
ifeq ($(PYTHON_GPU),$(BIN)/python)
	COMMPRESS_CUDA=1 $(MAKE) $(VENV)/.built $(VENV)/.dev
endif
	$(PYTHON_GPU) -m pytest -q tests/gpu
	$(PYTHON_GPU) -m benchmarks.bench_cuda --out $(GPU_DIR)

clean:
	rm -rf build $(VENV) commpress/*.so

$(VENV)/.made: tools/venv.py
	@$(PYTHON) tools/venv.py $(VENV) --torch "$(TORCH)" --pip "$(PIP_ARGS)"
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml commpress/_version.py
	$(PIP) --no-build-isolation --editable '.[plot]'
	@touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
