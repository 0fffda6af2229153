# Each target does its own set-up; a second run starts in seconds.
#   make demo          a Transformer trained in torch.nn, then after pyflash.replace: same curve, faster   (QUICK=1: a minute)
#                      installs only what it needs and builds this processor's instruction set alone
#   make test          what a change must pass: all but the tests marked slow, and a few cases of each that are for a GPU or another instruction set
#   make test-all      those too: everything CI holds               make quick   a few cases of each test, under a minute
#   make sanitize      the CUDA C++ kernels' tests under AddressSanitizer and UBSan, and under ThreadSanitizer (LANE=address|thread
#                      one of them; ARGS="tests/conv"): docs/cuda-on-host.md
#   make lint          ruff, clang-format, types, generated files    make generate   render the activation table, and that of operations
#   make bench OPS=... all of the benchmark suite, or some      make inspect   Triton's registers and spills, no GPU needed
#   make gpu           tests, benchmarks and tuning on this machine's GPU, with the Python that is there: docs/gpu.md
#                      PART=smoke|tests|bench|tune|profile OP="attention" TIME=900 (seconds) DEVICE=interpreter (without a GPU)
#   make gpu-cache     kernels compiled without a GPU, to be carried to one; PYTHON= with its Python, torch and Triton
#   make build         the native module, and CUDA C++ on the host for tests; ISA=avx512 for one instruction set; ARCHS=90 or
#                      ARCHS=all: by nvcc for GPUs, too
#   make PYTHON=python3.12 <target>   an interpreter whose torch is already there: nothing of it is reinstalled

ifdef PYTHON
VENV := .venv-$(notdir $(PYTHON))
BASE := $(PYTHON) -m venv --system-site-packages
PINS :=
else
VENV := .venv
BASE := python3 -m venv
PINS := -c constraints.txt
endif

# Without a GPU, torch without CUDA's libraries (gigabytes), where its index can be reached; only asked when installing.
CPU_INDEX := https://download.pytorch.org/whl/cpu
CPU_TORCH = $(if $(PYTHON)$(wildcard /dev/nvidiactl),,$(shell python3 -c 'import urllib.request as u; \
    u.urlopen("$(CPU_INDEX)/torch/", timeout=5); print("--extra-index-url $(CPU_INDEX)")' 2>/dev/null))

# The instruction set that this processor's kernels are built for, where one is enough; empty: all there are.
has = $(shell grep -qw $(1) /proc/cpuinfo 2>/dev/null && echo $(1))
BEST := $(or $(if $(call has,avx512vl),$(if $(call has,avx512_bf16),avx512_bf16,avx512)),$(call has,avx2))

PY := $(VENV)/bin/python
INSTALL := $(VENV)/bin/python -m pip install -q --disable-pip-version-check
NATIVE := $(shell find csrc -type f) setup.py
# The native module of this Python. It is optional: a build that failed leaves none (setup.py), and is tried and said again.
MODULE = pyflash/_cpu$$($(PY) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
WORKERS ?= auto

.PHONY: demo test test-all quick sanitize lint generate bench inspect gpu gpu-cache build clean

$(VENV)/.venv: constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "python3 is older than 3.10"; exit 1; }
	test -x $(PY) || $(BASE) $(VENV)
ifdef PYTHON
	@# An interpreter of a virtual environment: what is installed there is not the system's.
	@$(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth
endif
	$(INSTALL) $(PINS) "setuptools>=77" wheel pybind11
	@touch $@

# What the demo computes and draws with; the kernels are built meanwhile.
$(VENV)/.torch: $(VENV)/.venv
	$(INSTALL) $(PINS) $(CPU_TORCH) torch numpy matplotlib
	@touch $@

# kernels/ is imported as pyflash.kernels, which only an installation says.
$(VENV)/.editable: $(VENV)/.torch pyproject.toml
	PYFLASH_NO_NATIVE=1 $(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	$(INSTALL) $(PINS) torch numpy triton pybind11 pytest pytest-xdist hypothesis expecttest rich matplotlib ruff clang-format
	PYFLASH_NO_NATIVE=1 $(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.built: $(VENV)/.ready $(NATIVE)
	PYFLASH_BUILD_ISA=$(ISA) PYFLASH_CUDA_ARCHS="$(or $(PYFLASH_CUDA_ARCHS),host $(ARCHS))" $(PY) setup.py -q build_ext --inplace
	@rm -f $(VENV)/.built-one
	@# A build of one instruction set is none for the next target, and one that failed none at all.
	@$(if $(ISA),rm -f $@,test ! -e "$(MODULE)" || touch $@)

# One instruction set, unless all of them are there already.
$(VENV)/.built-one: $(VENV)/.venv $(NATIVE)
	@test -e $(VENV)/.built && test -z "$$(find csrc setup.py -newer $(VENV)/.built)" || \
	    { rm -f $(VENV)/.built; PYFLASH_CUDA_ARCHS=none PYFLASH_BUILD_ISA=$(BEST) $(PY) setup.py -q build_ext --inplace; }
	@test ! -e "$(MODULE)" || touch $@

build: $(VENV)/.built

demo:
	@$(MAKE) --no-print-directory -j2 $(VENV)/.torch $(VENV)/.built-one
	@$(MAKE) --no-print-directory $(VENV)/.editable
	OMP_PROC_BIND=true $(PY) -m pyflash demo $(if $(QUICK),--quick) $(ARGS)

# One OpenMP thread a worker: tests that need more ask for them.
test: WHICH := -m "not slow"
test test-all: build
	$(PY) tools/generate.py --check
	$(PY) tools/operations.py --check
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) $(WHICH) $(ARGS)

quick: build
	OMP_NUM_THREADS=1 PYFLASH_TEST_ISA=best $(PY) -m pytest -n $(WORKERS) --quick $(ARGS)

sanitize: build
	for lane in $(or $(LANE),address thread); do $(PY) -m tools.sanitize $$lane -n $(WORKERS) $(ARGS) || exit 1; done

# What a type checker passes: the package, and its public functions and classes as a user calls them.
TYPED := pyflash tests/frame/typed_use.py

lint: $(VENV)/.ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
	@$(PY) -m mypy --version > /dev/null 2>&1 || $(INSTALL) $(PINS) mypy
	$(PY) -m mypy $(TYPED)
	$(PY) tools/generate.py --check
	$(PY) tools/operations.py --check

generate: $(VENV)/.ready
	$(PY) tools/generate.py
	$(PY) tools/operations.py

bench: build
	$(PY) -m benchmarks run $(OPS) $(ARGS)

inspect: build
	$(PY) -m benchmarks inspect $(or $(ARGS),--full)

# No environment is made and nothing is installed: what is missing is left out, and said.
gpu:
	$(or $(PYTHON),python3) -m tools.gpu $(if $(PART),--part $(PART)) $(if $(OP),--op "$(OP)") $(if $(TIME),--time $(TIME)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

gpu-cache:
	$(or $(PYTHON),python3) -m tools.gpu.compile --archive build/gpu/triton-cache.tar.xz $(ARGS)

clean:
	rm -rf build *.egg-info pyflash/*.so .venv .venv-*
