# The front door. `make demo` shows what hami-dra does; `make test` proves it.
# Everything lands in .venv/, build/ and a cache outside the checkout; nothing is installed.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON  ?= python3
BIN     := .venv/bin
NATIVE  := build/libvgpu
ASAN    := build/libvgpu-asan
TSAN    := build/libvgpu-tsan
AARCH64 := build/libvgpu-aarch64
FUZZ    := build/libvgpu-fuzz
FUZZ_CC ?= clang-19
FUZZ_SECONDS ?= 60
LOCK    := $(shell cat requirements/dev.txt pyproject.toml | sha256sum | cut -c1-12)
VENV    := .venv/.locked-$(LOCK)
MATRIX_TESTS ?= tests/cluster/test_tables.py tests/cluster/test_simnodes.py tests/cluster/test_claim_status.py \
                tests/cluster/test_card_marks.py tests/cluster/test_recovery.py
C_FILES := $(wildcard libvgpu/src/*.c libvgpu/sim/*.c libvgpu/probe/*.c libvgpu/tests/*.c \
             libvgpu/bench/*.c libvgpu/bench/*/*.c)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export HAMI_DRA_BUILD_DIR := $(CURDIR)/$(NATIVE)

.PHONY: demo test preflight native tools lint unit contract oracle native-test cluster-test test-chaos \
        test-matrix test-nightly test-userlands test-aarch64 aarch64 fuzz sanitize bench bench-webhook bench-libvgpu bench-memory bench-compute \
        bench-node gpu-test gpu-bench lock proto clean help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: preflight $(VENV) native tools ## Run the main job on a real Kubernetes and explain it
	@python -m tests.cluster.demo

test: preflight $(VENV) native native-test unit contract oracle tools cluster-test ## Run every test but test-chaos

preflight: ## Say what this machine lacks, before any work
	@$(PYTHON) -m tests.cluster.preflight

$(VENV): requirements/dev.txt pyproject.toml
	@echo "==> Python environment: .venv from requirements/dev.txt (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -f .venv/.locked-* && touch $@

native: $(VENV) ## Build libvgpu and the simulated GPUs
	@echo "==> libvgpu and the simulated GPUs: $(NATIVE)"
	@test -f $(NATIVE)/build.ninja || meson setup $(NATIVE) libvgpu >/dev/null
	@ninja -C $(NATIVE) --quiet

tools: $(VENV) ## Build the pinned Kubernetes tools, once per machine
	@python -m tests.cluster build-tools

unit: $(VENV) ## Pure and faked: seconds
	@echo "==> unit tests"
	@pytest -q tests/unit

contract: $(VENV) native ## What other programs rely on: ABI, protocols, models, real clients
	@echo "==> contract tests"
	@pytest -q tests/contract

oracle: $(VENV) ## Our slices and claims before kube-scheduler's own allocators, without a cluster
	@echo "==> allocator oracle"
	@pytest -q tests/oracle

native-test: $(VENV) native ## The C library's own tests
	@echo "==> C tests"
	@meson test -C $(NATIVE) --print-errorlogs --no-rebuild

cluster-test: $(VENV) native tools ## The whole path on a real Kubernetes
	@echo "==> real-cluster tests"
	@pytest -q -m "cluster and not chaos" tests/cluster

test-chaos: preflight $(VENV) native tools ## Faults of the node under a real kubelet (10 minutes)
	@echo "==> faults on a real node"
	@pytest -q -m chaos tests/cluster

test-matrix: $(VENV) ## Admission, allocation, status and marks on each supported Kubernetes (not in CI)
	@for folder in kubernetes kubernetes-1.36; do \
	  echo "==> $$folder"; \
	  python -m tests.cluster build-tools --kubernetes $$folder >/dev/null; \
	  pytest -q -m cluster --kubernetes $$folder $(MATRIX_TESTS); \
	done

test-nightly: preflight $(VENV) native tools ## The laws of admission with 100000 pods, about an hour
	@echo "==> laws, with $${HAMI_DRA_EXAMPLES:-100000} pods"
	@HAMI_DRA_EXAMPLES=$${HAMI_DRA_EXAMPLES:-100000} pytest -q -s \
	  tests/unit/webhook/test_laws.py tests/cluster/test_properties.py

sanitize: $(VENV) native ## The C tests under the address, undefined behaviour and thread sanitizers
	@echo "==> C tests under ASan and UBSan: $(ASAN)"
	@test -f $(ASAN)/build.ninja || meson setup $(ASAN) libvgpu -Db_sanitize=address,undefined >/dev/null
	@ninja -C $(ASAN) --quiet
	@meson test -C $(ASAN) --print-errorlogs --no-rebuild
	@echo "==> C tests under TSan: $(TSAN)"
	@test -f $(TSAN)/build.ninja || meson setup $(TSAN) libvgpu -Db_sanitize=thread >/dev/null
	@ninja -C $(TSAN) --quiet
	@meson test -C $(TSAN) --print-errorlogs --no-rebuild
	@if command -v valgrind >/dev/null; then echo "==> Some of them under valgrind, of the plain build"; \
	  ninja -C $(NATIVE) --quiet; meson test -C $(NATIVE) --print-errorlogs --no-rebuild --timeout-multiplier 4 \
	    --wrapper 'valgrind -q --error-exitcode=9 --trace-children=yes' limit virtual arrays ipc; \
	  else echo "==> No valgrind here: left out"; fi

test-userlands: $(VENV) native ## Programs of four Debian releases with libvgpu and without; needs debootstrap (8 minutes, 2 after that)
	@python -m tests.userlands
	@python -m tests.userlands.clients

aarch64: $(VENV) ## Build libvgpu for aarch64 and check what it needs; needs gcc-aarch64-linux-gnu
	@echo "==> libvgpu for aarch64: $(AARCH64)"
	@test -f $(AARCH64)/build.ninja || \
	  meson setup $(AARCH64) libvgpu --cross-file libvgpu/cross/aarch64.ini >/dev/null
	@ninja -C $(AARCH64) --quiet src/libvgpu.so
	@meson test -C $(AARCH64) --print-errorlogs --no-rebuild symbols

test-aarch64: aarch64 ## The C tests of the aarch64 build; needs qemu-user-static (5 minutes)
	@ninja -C $(AARCH64) --quiet
	@meson test -C $(AARCH64) --print-errorlogs --no-rebuild --timeout-multiplier 4

fuzz: $(VENV) ## libFuzzer on what tenants can write, FUZZ_SECONDS=60 for each kind; needs clang-19 libclang-rt-19-dev
	@test -f $(FUZZ)/build.ninja || \
	  CC=$(FUZZ_CC) meson setup $(FUZZ) libvgpu -Db_sanitize=address,undefined -Db_lundef=false >/dev/null
	@ninja -C $(FUZZ) --quiet tests/fuzz-files tests/fuzz-files-for-ever tests/fuzz-limits-for-ever
	@python libvgpu/tests/fuzz.py $(FUZZ) $(FUZZ_SECONDS)

lint: $(VENV) native ## ruff, mypy, import-linter, clang-format, clang-tidy
	@echo "==> lint"
	@ruff check
	@ruff format --check
	@mypy
	@lint-imports
	@clang-format --dry-run -Werror $(C_FILES) $(wildcard libvgpu/*/*.h libvgpu/*/*/*.h)
	@clang-tidy -p $(NATIVE) --quiet $(C_FILES)

bench: $(VENV) native tools ## Time from nothing to a running pod
	@python -m tests.cluster bench

bench-webhook: $(VENV) tools ## Speed and memory of admission, beside their targets (8 minutes)
	@python -m tests.cluster.webhookbench

bench-libvgpu: $(VENV) native ## What libvgpu adds to calls and starts; with valgrind, instructions too
	@python libvgpu/bench/calls.py $(NATIVE) \
	  $$(command -v valgrind >/dev/null && echo --instructions || true)

bench-memory: $(VENV) native ## 11,000 kills and 300 starts at once, beside their targets; a million operations of the models (20 minutes)
	@LD_LIBRARY_PATH=$(NATIVE)/sim:$(NATIVE)/src LD_PRELOAD=$(NATIVE)/src/libvgpu-test.so $(NATIVE)/bench/kills 10000
	@LD_LIBRARY_PATH=$(NATIVE)/sim:$(NATIVE)/src LD_PRELOAD=$(NATIVE)/src/libvgpu-test.so $(NATIVE)/bench/kills 1000 64
	@python libvgpu/bench/calls.py $(NATIVE) --starts
	@VGPU_MODEL_OPERATIONS=1000000 meson test -C $(NATIVE) --no-rebuild --timeout-multiplier 60 model exchange spill_model

bench-compute: $(VENV) native ## The compute limit: the whole grid in virtual time, and what a launch costs (3 minutes)
	@$(NATIVE)/bench/controller
	@python libvgpu/bench/launch.py $(NATIVE)

bench-node: $(VENV) native tools ## Speed and memory of the node process, beside their targets
	@python -m tests.cluster.nodebench

gpu-test: $(VENV) native ## Memory limits on a card, into docs/measurements.md; says what is missing
	@python -m tests.gpu test

gpu-bench: $(VENV) native ## The compute limit on a card, into docs/measurements.md; LIBVGPU_OTHER=library beside it
	@LIBVGPU_OTHER=$(LIBVGPU_OTHER) python -m tests.gpu bench

lock: ## Resolve the requirement files anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --no-emit-find-links --all-extras pyproject.toml \
	  -o requirements/runtime.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --no-emit-find-links --all-extras --group dev pyproject.toml \
	  -o requirements/dev.txt

proto: $(VENV) ## Generate hami_dra/_pb from proto/
	@python proto/generate.py

clean: ## Remove what was built in the checkout (not the tool cache)
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
