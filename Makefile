# Every target sets up what it needs by itself: a virtual environment, CPU torch, the pinned versions, this package.
PYTHON ?= python3
VENV ?= .venv
# CPU torch for people on Linux, where PyPI's wheel is the CUDA build (2 GB more). Out of reach: the usual index serves.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

QUESTION = $(shell cat examples/question.txt)
RESULTS = $(sort $(wildcard benchmarks/results/*.json)) benchmarks/published.json

.PHONY: help demo test lint check results clean

help:
	@echo "make demo    answer a question about examples/scene.png, with and without pruning; writes demo/overlay.png"
	@echo "make test    the test suite"
	@echo "make lint    ruff and mypy"
	@echo "make check   lint and test"
	@echo "make results docs/results.md and its plots, from the files in benchmarks/"

demo: $(INSTALLED)
	@mkdir -p demo
	$(BIN)/ptprune run examples/scene.png -q "$(QUESTION)" --compare --overlay demo/overlay.png

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --maxprocesses 8

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

results: $(INSTALLED)
	$(BIN)/ptprune bench report $(RESULTS) --out docs/results.md

# torch goes first and alone: once it is there, nothing later draws in another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null \
	  || $(PIP) install --quiet --no-deps --retries 0 --timeout 10 --index-url $(TORCH_INDEX) $(TORCH) 2>/dev/null \
	  || $(PIP) install $(TORCH)
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist
