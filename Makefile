# Every target sets up what it needs by itself: a virtual environment, CPU torch, the pinned versions, this package.
PYTHON ?= python3
VENV ?= .venv
# CPU torch for people on Linux, where PyPI's wheel is the CUDA build (2 GB more). Out of reach: the usual index serves.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

QUESTION = $(shell cat examples/question.txt)

# lmms-eval and what it draws in (2.5 GB) live apart: nothing else here needs them.
EVAL_VENV ?= .venv-eval

.PHONY: help demo test test-eval lint check clean

help:
	@echo "make demo       answer a question about examples/scene.png, with and without pruning; writes demo/overlay.png"
	@echo "make test       the test suite"
	@echo "make test-eval  the tests of ptprune eval, with lmms-eval in an environment of its own"
	@echo "make lint       ruff and mypy"
	@echo "make check      lint and test"

demo: $(INSTALLED)
	@mkdir -p demo
	$(BIN)/ptprune run examples/scene.png -q "$(QUESTION)" --compare --overlay demo/overlay.png

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-eval: $(EVAL_VENV)/.installed
	OMP_NUM_THREADS=1 $(EVAL_VENV)/bin/python -m pytest -n auto --maxprocesses 2 tests_eval

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# torch goes first and alone: once it is there, nothing later draws in another build of it.
define install_torch
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -c "import torch" 2>/dev/null \
	  || $(1)/bin/$(PIP) install --quiet --no-deps --retries 0 --timeout 10 --index-url $(TORCH_INDEX) $(TORCH) 2>/dev/null \
	  || $(1)/bin/$(PIP) install $(TORCH)
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call install_torch,$(VENV))
	$(BIN)/$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# PyPI's torchvision is linked to CUDA and cannot be imported beside a CPU torch, nor can timm, which imports it.
# lmms-eval asks for both; only models that are not used here need them.
$(EVAL_VENV)/.installed: pyproject.toml constraints.txt
	$(call install_torch,$(EVAL_VENV))
	$(EVAL_VENV)/bin/$(PIP) install --quiet -c constraints.txt -e '.[eval]' pytest pytest-xdist
	$(EVAL_VENV)/bin/python -c "import torchvision" 2>/dev/null \
	  || $(EVAL_VENV)/bin/$(PIP) uninstall --quiet --yes torchvision timm
	@touch $@

clean:
	rm -rf $(VENV) $(EVAL_VENV) demo build dist
