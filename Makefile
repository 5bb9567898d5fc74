# Everything a developer runs. `make` alone lists the targets.
PYTHON ?= python3
TEXT ?=
TESTS ?= tests
# Tests that run side by side; 0: one after the other, in one process.
JOBS ?= auto
# Tests of make test-versions. They meet the library, NumPy and Python where versions differ.
VERSION_TESTS ?= tests/api tests/ops/test_operators.py tests/data/test_tokenizer.py
PIP_FLAGS ?= --quiet --disable-pip-version-check
# Address of a package index to install PyTorch from, such as an index of CPU-only builds. Empty: the default index.
TORCH_INDEX ?=
# How long fuzz and faults run, their seed (empty: another one each time), and a Python that has mom and the test packages
# (empty: a fresh .venv-test).
SECONDS ?= 60
SEED ?=
WITH_PYTHON ?=

VENV := .venv
TEST_VENV := .venv-test
ECOSYSTEM_VENV := .venv-ecosystem
DOCS_VENV := .venv-docs
ECOSYSTEM_TESTS ?= tests/api/test_hugging_face.py tests/data tests/docs/test_benchmarks.py tests/evaluate tests/parity
# Each kind of build has an environment of its own, so that builds never mix. The second argument changes the build.
build_in = $(PYTHON) -m venv --clear $(1) && $(2) $(1)/bin/python -m pip install $(PIP_FLAGS) '.[test]'

# Tests of documents, of the NumPy twin and of recorded training runs call nothing of the extension that other tests do not
# call. Slow builds leave them out.
NO_NEW_CALLS := --ignore tests/docs --ignore tests/reference --ignore tests/model/test_curves.py

.DEFAULT_GOAL := help
.PHONY: help demo dev core core-aarch64 test test-ecosystem test-levels test-versions test-no-openmp test-amx-emulated \
	test-debug test-asan notebooks docs fuzz faults coverage lint stubs bench dist wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## install into .venv and train a small model on the spot (TEXT=path: on your own text)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) '.[plots]'
	$(VENV)/bin/mom demo $(if $(TEXT),--text "$(TEXT)")

dev: ## editable install into .venv with everything that tests need, warnings as errors
	$(PYTHON) -m venv $(VENV)
	MOM_WERROR=1 $(VENV)/bin/python -m pip install $(PIP_FLAGS) -e '.[test]'

core: ## build the C core with a C compiler alone and test it, under sanitizers too; train its example (no Python)
	$(MAKE) -C mom_c

core-aarch64: ## build the C core for AArch64 with a cross-compiler and test it in QEMU at every level (no Python)
	$(MAKE) -C mom_c aarch64

test: ## install into a fresh .venv-test and run all tests
	$(call build_in,$(TEST_VENV))
	$(TEST_VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

# The packages are imported first, because tests are skipped, and do not fail, if a package is missing.
test-ecosystem: ## run the tests that need PyTorch, transformers, datasets and lm-eval (a large download)
	$(PYTHON) -m venv --clear $(ECOSYSTEM_VENV)
	$(ECOSYSTEM_VENV)/bin/python -m pip install $(PIP_FLAGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(ECOSYSTEM_VENV)/bin/python -m pip install $(PIP_FLAGS) '.[test,ecosystem]'
	$(ECOSYSTEM_VENV)/bin/python -c 'import datasets, lm_eval, torch, transformers'
	$(ECOSYSTEM_VENV)/bin/python -m pytest $(ECOSYSTEM_TESTS)

test-levels: ## run the tests of operators and kernels with each instruction-set level as the default
	$(call build_in,$(TEST_VENV))
	set -e; for level in $$($(TEST_VENV)/bin/python -c 'import mom; print(*mom.cpu_info()["levels"])'); do \
		echo "level $$level"; MOM_CPU=$$level $(TEST_VENV)/bin/python -m pytest -q $(TESTS); done

test-versions: ## run some tests with the oldest and the newest Python and packages that are allowed (OLDEST_PYTHON, NEWEST_PYTHON)
	$(PYTHON) tests/try_versions.py $(VERSION_TESTS)

test-no-openmp: ## run the tests of a build without threads
	$(call build_in,.venv-serial,MOM_OPENMP=0)
	.venv-serial/bin/python -c 'import mom; assert not mom.cpu_info()["openmp"]'
	.venv-serial/bin/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

# Level amx is the best level of this build, so tests that do not run at all levels use it.
test-amx-emulated: ## run the tests of a build whose level amx runs on any processor with AVX-512, its instructions in plain C
	$(call build_in,.venv-amx,MOM_AMX_EMULATED=1)
	.venv-amx/bin/python -c 'import mom; assert mom.cpu_info()["level"] == "amx" and "emulated" in mom.cpu_info()["gemm_bf16"]'
	.venv-amx/bin/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

notebooks: ## run all notebooks whole, with the assertions on what they say (STORE=1: keep what they show)
	$(call build_in,$(TEST_VENV))
	MOM_NOTEBOOKS=$(if $(STORE),store,whole) $(TEST_VENV)/bin/python -m pytest -q tests/docs/test_notebooks.py -k clean_kernel

# The pages of names in docs/api are written anew, so that no name stays that is gone.
docs: ## build the documentation site in docs/_build/html in a fresh .venv-docs, warnings as errors
	$(PYTHON) -m venv --clear $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install $(PIP_FLAGS) '.[docs]'
	rm -rf docs/_build docs/api
	$(DOCS_VENV)/bin/python -m sphinx -q -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html
	@echo "open docs/_build/html/index.html"

test-debug: ## run the tests of a build with assertions and all warnings as errors
	$(call build_in,.venv-debug,MOM_DEBUG=1)
	grep -q __assert .venv-debug/lib/python*/site-packages/mom/_core*.so
	.venv-debug/bin/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

# The sanitizer's library must be loaded before Python. Python keeps memory until it exits, so the tests look for leaks
# (live bytes, reference counts) and the sanitizer does not. Allocations of impossible sizes must return NULL, as the C
# library does, and not end the process. The build has no OpenMP, since the OpenMP runtime is not built with the
# sanitizer. Reports go to files, because pytest captures the output and would lose it when the process ends.
test-asan: ## run the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call build_in,.venv-asan,MOM_SANITIZE=1 MOM_DEBUG=1 MOM_OPENMP=0)
	grep -q __asan_init .venv-asan/lib/python*/site-packages/mom/_core*.so
	rm -f .venv-asan/report.*
	LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so) $$($${CC:-cc} -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_path=$(CURDIR)/.venv-asan/report \
		UBSAN_OPTIONS=print_stacktrace=1:log_path=$(CURDIR)/.venv-asan/report \
		.venv-asan/bin/python -m pytest -q -n $(JOBS) --dist worksteal $(NO_NEW_CALLS) $(TESTS) \
		|| { cat .venv-asan/report.* 2>/dev/null; exit 1; }

# The part readers also reads Parquet where pyarrow is there, so the environment is that of the tests.
fuzz: ## look for faults with mutated files, random calls and random sequences, for SECONDS=60
	$(if $(WITH_PYTHON),,$(call build_in,$(TEST_VENV)))
	$(or $(WITH_PYTHON),$(TEST_VENV)/bin/python) tests/fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

faults: ## fail and kill at every call to the system of saves and runs, for SECONDS=60 (SEED=1: repeat that order)
	$(if $(WITH_PYTHON),,$(call build_in,$(TEST_VENV)))
	$(or $(WITH_PYTHON),$(TEST_VENV)/bin/python) tests/faults --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# Goals of `coverage`, in percent of the C core.
COVERAGE_LINES ?= 97
COVERAGE_BRANCHES ?= 90

# The counters lie beside the objects in build/. Level amx is emulated where the processor has AVX-512 without AMX.
coverage: ## run the tests and show which lines and branches of the C core they reach; needs GCC
	$(call build_in,.venv-coverage,MOM_COVERAGE=1 \
		MOM_AMX_EMULATED=$(shell awk '/^flags/ { print /avx512f/ && !/amx_bf16/; exit }' /proc/cpuinfo 2>/dev/null))
	find build -name '*.gcda' -delete
	.venv-coverage/bin/python -m pytest -q -n $(JOBS) --dist worksteal $(NO_NEW_CALLS) $(TESTS)
	.venv-coverage/bin/python tests/core_coverage.py build --lines $(COVERAGE_LINES) --branches $(COVERAGE_BRANCHES)

lint: ## check formatting, names and types, with the tools in .venv (VENV=.venv-test: with those of make test)
	$(VENV)/bin/python -m ruff check python tests setup.py
	$(VENV)/bin/python -m mypy

stubs: ## compare the extension's stubs with the compiled module (VENV as for lint)
	$(VENV)/bin/python -m mypy.stubtest mom._core

bench: ## measure train steps and operators
	$(VENV)/bin/python benchmarks/bench_train_step.py

dist: ## source distribution and wheel in dist/
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) build
	$(VENV)/bin/python -m build

# PYTHON=python3.12 builds for another Python. The tests run from the source distribution, which is in dist/ afterwards, too.
wheel: ## build a wheel for other Linux machines, with OpenMP inside, and run its tests without a compiler
	$(PYTHON) tests/try_wheel.py -n $(JOBS) --dist worksteal $(TESTS)

clean: ## remove everything that was built
	rm -rf build dist docs/_build docs/api .venv .venv-test .venv-serial .venv-amx .venv-debug .venv-asan .venv-coverage $(ECOSYSTEM_VENV) $(DOCS_VENV) .pytest_cache .mypy_cache .ruff_cache
	rm -rf python/*.egg-info python/mom/_core*.so .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
