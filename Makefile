# The front door. `make` alone lists what there is.
# Each target sets up what it needs: a virtual environment in .venv, from the locks in requirements/.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c 'import sys; print("yes" if (3, 11) <= sys.version_info < (3, 14) else "")' 2>/dev/null),$(p))))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SIGD := $(BIN)/sigd
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

# pip with a line for each package, so that a minute is not silent; all of its words where it fails.
install = { $(BIN)/python -m pip --disable-pip-version-check --no-color install --progress-bar off $(1) 2>&1; echo "exit $$?"; } \
	| awk '/^exit [0-9]+$$/ {code = $$2; next} {said = said $$0 "\n"} \
	/^Collecting / {print "  " $$2; fflush()} /^Installing collected/ {print "  unpacking them"; fflush()} \
	END {if (code) printf "%s", said; exit code}'

# Without its compiled modules each start of sigd compiles 150 files once more, and the tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE
# The extensions are built once for the checkout, the wheel and the machine of test-systemd.
export SIGD_OBJECTS := $(CURDIR)/build/objects

COMPARED := lob-mlp mlp_295k gbt_a
MICRO := tests/wire/test_codec_benchmark.py tests/models/features/test_features_speed.py tests/models/test_onnxrt_speed.py
MICRO_BASELINES := $(CURDIR)/.benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-slow pages test-simcuda test-gpu test-cuda test-rtx test-oracles test-convert test-systemd check format lint types imports bench bench-connections bench-floor bench-growth bench-micro bench-observe bench-reload bench-tunnel profile fuzz soak soak-sessions train models-table lock wheel deb clean pictures test-live

help:  ## this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.base  ## start a daemon, feed it a synthetic market, see signals and latencies
	@$(SIGD) demo

test: $(VENV)/.dev  ## the tests that take seconds
	$(BIN)/pytest -m "not slow" -n auto --dist worksteal

test-slow: $(VENV)/.dev  ## the others that need no GPU: they start daemons and compilers (WORKERS=2: by two workers)
	$(BIN)/pytest -m slow $(if $(WORKERS),-n $(WORKERS) --dist worksteal)

test-all: $(VENV)/.dev  ## both
	$(BIN)/pytest

test-live: $(VENV)/.dev  ## tests that measure this machine: it has to be quiet
	SIGD_LIVE=1 $(BIN)/pytest tests/bench/neighbour tests/fuzz/test_fuzz_rings.py -k "whole_of_it or a_against_a or hostile or sanitizers"

pictures: $(VENV)/.dev  ## take the pictures of the README (needs tmux)
	$(BIN)/python -m tests.pictures

pages: $(VENV)/.dev  ## write what README and docs/benchmarks.md show of docs/benchmarks.json
	$(BIN)/python -m tests.pages

test-simcuda: $(VENV)/.dev  ## the tests of the GPU path, on a simulated CUDA driver (the first time: two minutes more)
	SIGD_GPU_QUICK=1 $(BIN)/python tests/simcuda/prepare.py -- $(BIN)/pytest tests/simcuda tests/gpu tests/conformance -k "simcuda or gpu or tensorrt"

test-gpu: $(VENV)/.dev  ## the tests for a machine with an NVIDIA GPU
	$(BIN)/pytest -m gpu -rs

test-cuda: $(VENV)/.dev  ## the same without TensorRT, with kernels of our own in its place (pip install pycuda cuda-bindings nvidia-cuda-nvrtc)
	PYTHONPATH=tests/simcuda/standin $(BIN)/pytest -m gpu -rs tests/gpu -k "not int8"

test-rtx: $(VENV)/.dev build/rtx/.ready  ## the real TensorRT-RTX builder, on the CPU (fetches 95 MB, once)
	PYTHONPATH=build/rtx/site $(BIN)/pytest tests/rtx

test-oracles: $(VENV)/.dev build/oracles/.ready  ## the workstation's plan against two other estimators (fetches 1 MB, once)
	PYTHONPATH=build/oracles/site $(BIN)/pytest tests/oracles

test-convert: $(VENV)/.dev build/convert/.ready  ## `sigd convert` with the converters that it needs (fetches 500 MB, once)
	PYTHONPATH=build/convert/site $(BIN)/pytest tests/models/test_convert.py

test-systemd: $(VENV)/.fleet  ## as root: the units on a machine with systemd, booted for each test (the first time: a minute more; SUITE=trixie)
	$(BIN)/python tests/systemd/prepare.py $(if $(SUITE),--suite $(SUITE)) -- $(BIN)/pytest -o faulthandler_timeout=1000 -m systemd tests/systemd

check: $(VENV)/.dev lint types imports test  ## format, lint, types, import contracts, tests

format: $(VENV)/.dev  ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/mypy tests

imports: $(VENV)/.dev
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## sigd beside what teams use instead, as a table and build/compare.html (needs a C++ compiler; fetches 2 GB, once)
	@mkdir -p build
	$(SIGD) bench compare --prepare
	$(SIGD) bench compare --rounds 2 $(COMPARED:%=--model %) --html build/compare.html

bench-floor: $(VENV)/.base  ## prove the budget: closed loop, beside the machine's own floor
	$(SIGD) bench --p99 --closed-loop --floor --idle spin

bench-micro: $(VENV)/.dev  ## time the parts, and show what moved since `make bench-micro SAVE=1` on this machine
	$(BIN)/pytest $(MICRO) --benchmark-enable --benchmark-only --benchmark-storage file://$(MICRO_BASELINES) --benchmark-columns median,iqr,ops \
		--benchmark-sort fullname $(if $(SAVE),--benchmark-save baseline,$(if $(wildcard $(MICRO_BASELINES)/*/*.json),--benchmark-compare))

bench-growth: $(VENV)/.base  ## how the cost of a request grows with connections, instruments, features, rows, parameters
	$(SIGD) bench growth

bench-connections: $(VENV)/.base  ## 1,000 connections: what silent ones cost, and how evenly talking ones are served
	$(SIGD) bench connections

bench-observe: $(VENV)/.base  ## what metrics and the flight recorder cost a request, on against off (needs a C++ compiler)
	$(SIGD) bench observe

bench-reload: $(VENV)/.base  ## what a hundred reloads cost the requests that come meanwhile (needs a C++ compiler)
	$(SIGD) bench reload

bench-tunnel: $(VENV)/.base  ## what an SSH tunnel costs, over loopback (needs OpenSSH)
	$(SIGD) bench tunnel

profile: $(VENV)/.base  ## where the daemon's time for a request goes, stage by stage
	$(SIGD) bench profile

fuzz: $(VENV)/.dev  ## a million hostile frames and more against the decoder and a live daemon
	$(BIN)/python -m tests.fuzz.fuzz_stream
	$(BIN)/python -m tests.fuzz.fuzz_rings
	$(BIN)/python -m tests.fuzz.fuzz_plans

soak: $(VENV)/.dev  ## a hundred million requests over both transports, over daemons that are killed (needs a C++ compiler)
	$(BIN)/python -m tests.soak.soak

soak-sessions: $(VENV)/.dev  ## a hundred thousand sessions in shared memory come and go, and leave nothing behind
	$(BIN)/python -m tests.soak.sessions

TRAIN = $(BIN)/python -m sigd.models.training $(if $(SIGD_DATA),--data "$(SIGD_DATA)") $(if $(CAPTURE),--capture "$(CAPTURE)") $(if $(DEVICE),--device "$(DEVICE)") --out "$(or $(OUT),models/zoo)"
train: $(VENV)/.base  ## train the shipped model anew: make train SIGD_DATA=FOLDER (or CAPTURE=FILE, OUT=FOLDER, DEVICE=cuda:1)
	@$(TRAIN) --dry-run
	@$(MAKE) --no-print-directory $(VENV)/.train
	$(TRAIN)

EXPORTERS := skl2onnx scikit-learn onnxmltools lightgbm xgboost catboost torch==2.13.0 onnxscript keras onnxconverter-common onnxruntime pandas
models-table: $(VENV)/.dev build/exporters/.ready  ## serve what the usual exporters write, and say so in docs/models.md
	rm -rf build/exported
	build/exporters/bin/python -m tests.exporters.make_models build/exported
	$(BIN)/python -m tests.exporters.table build/exported docs/models.md

build/exporters/.ready:
	@echo "installing the exporters"
	@$(PYTHON) -m venv build/exporters
	@build/exporters/bin/pip --disable-pip-version-check --quiet install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(EXPORTERS)
	@touch $@

lock:  ## write requirements/*.lock anew (needs uv)
	$(LOCK) pyproject.toml --output-file requirements/base.lock
	$(LOCK) pyproject.toml --extra dev --output-file requirements/dev.lock
	$(LOCK) pyproject.toml --extra convert --output-file requirements/convert.lock
	$(LOCK) requirements/build.in --output-file requirements/build.lock
	$(LOCK) requirements/fleet.in --output-file requirements/fleet.lock
	$(LOCK) bench/alternatives/locks/servers.in --output-file bench/alternatives/locks/servers.lock

wheel: $(VENV)/.dev  ## build the wheel into dist/
	rm -rf dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

deb: wheel  ## build a Debian package into dist/ (needs debhelper and python3-venv)
	systemd/deb/build

clean:  ## remove what these targets made
	rm -rf $(VENV) dist build out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

build/oracles/.ready: tests/oracles/requirements.lock | $(VENV)/.dev
	@echo "fetching what tests/oracles/requirements.lock names"
	@rm -rf build/oracles
	@$(PIP) install --require-hashes --no-deps --only-binary :all: --target build/oracles/site -r $<
	@touch $@

build/convert/.ready: requirements/convert.lock | $(VENV)/.dev
	@echo "fetching what requirements/convert.lock names"
	@rm -rf build/convert
	@$(PIP) install --require-hashes --no-deps --only-binary :all: --target build/convert/site -r $<
	@touch $@

build/rtx/.ready: tests/rtx/requirements.lock | $(VENV)/.dev
	@echo "fetching what tests/rtx/requirements.lock names"
	@rm -rf build/rtx
	@$(PIP) install --require-hashes --no-deps --no-build-isolation --target build/rtx/site -r $<
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "sigd needs Python 3.11, 3.12 or 3.13 on PATH, and found none: install one or run make PYTHON=/path/to/python3" >&2; exit 3; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.base: requirements/base.lock requirements/build.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing what requirements/base.lock names (a minute the first time)"
	@$(call install,--require-hashes -r requirements/base.lock -r requirements/build.lock)
	@echo "installing sigd"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.base
	@echo "installing what requirements/dev.lock names"
	@$(call install,--require-hashes -r requirements/dev.lock)
	@touch $@

$(VENV)/.fleet: requirements/fleet.lock $(VENV)/.dev
	@echo "installing what requirements/fleet.lock names"
	@$(PIP) install --require-hashes -r requirements/fleet.lock
	@touch $@

# On its own the index's default build of PyTorch may bring gigabytes of CUDA; for the small one give TORCH_INDEX the
# address of an index of CPU builds.
$(VENV)/.train: $(VENV)/.base
	@echo "installing PyTorch"
	@$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --no-build-isolation --editable '.[train]'
	@touch $@
