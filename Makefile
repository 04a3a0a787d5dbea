# `make run` makes the figures, `make test` runs the tests; both set up .venv first.
# `make run SCALE=smoke` runs everything at a tiny scale, below scales/smoke/ (see presets/).
PYTHON ?= python3
SCALE ?= default
CORES ?= $(shell env -u OMP_NUM_THREADS nproc)
BIN := .venv/bin
READY := .venv/ready
SITE := .venv/site/bin
VLLM := .venv/vllm/ready

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run claims test real lint status plan models animation site

run: $(READY)
	python -m snakemake --cores $(CORES) --config scale=$(SCALE) record=false first=headline
	python -m apr commit --scale $(SCALE)

claims: $(READY)
	python -m snakemake --cores $(CORES) -- claims
	python -m apr claims --readme README.md

status: $(READY)
	python -m apr status --scale $(SCALE)

plan: $(READY)
	python -m apr plan --scale $(SCALE)

models: $(READY)
	python -m apr publish --to . --only rl/apr --only sft/sos_plus

animation: $(READY)
	python -m workflow.animate

site: $(READY)
	test -x $(SITE)/mkdocs || (python -m venv .venv/site && $(SITE)/pip install --quiet mkdocs-material==9.8.1)
	python -m workflow.site
	NO_MKDOCS_2_WARNING=1 $(SITE)/mkdocs build --quiet --strict

test: $(READY)
	python -m pytest -n 3 --dist worksteal

real: $(READY) $(VLLM)
	python -m pytest -s -v -n 0 tests/real/vllm_on_cpu.py

lint: $(READY)
	ruff check .
	python -m mypy
	python -m snakefmt --check Snakefile workflow
	python workflow/lint.py

$(VLLM): tests/real/requirements.lock
	tests/real/install.sh $(PYTHON)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "apr: error: Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(READY)
