# make repro: raw rows to a measured answer.   make test, make lint: as CI runs them.
# Each builds .venv first, where it is missing or older than pyproject.toml or requirements.lock.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro export pr-report test lint memory base-model environment sweep compare doctor new

repro: environment
	@dvc repro
	@python -m stages.verdict.report

# Searches parameters on validation loss, as the file says; goes on where it was stopped. FINISH=1 then runs the pipeline with the best.
export SPACE
sweep: environment
	@test -n "$$SPACE" || { echo "error: which? make sweep SPACE=sweeps/learning_rate.yaml" >&2; exit 1; }
	@python -m stages.experiments.sweep "$$SPACE" $(if $(FINISH),--finish)

# One line for each experiment, and reports/compare.html: which differences are larger than their noise.
compare: environment
	@python -m stages.experiments.compare

# What is in order here and what is not, each with the command that mends it; builds nothing. Exit status 1 where there is a problem.
doctor:
	@$$(command -v $(VENV)/bin/python || echo $(PYTHON)) -m stages.doctor

# A project of its own for other data, without our results: make new DIR=../mine
export DIR
new: environment
	@python -m stages.new "$$DIR"

# The fine-tuned model as one folder for transformers, artifacts/merged, held against what was measured.
export: environment
	@python -m stages.export

# What this branch did to the result, as a comment for its pull request: make pr-report BASE=main
export BASE ?= main
pr-report: environment
	@python -m stages.pull_request --base "$$BASE"

test: environment
	@pytest

lint: environment
	@ruff check
	@ruff format --check
	@mypy

# What every model in models/ needs, by length and rows at a time; MEMORY_LIMIT_GIB=4 marks what a card of 4 GiB can't hold.
# FSDP=offload, or FSDP=full_shard PROCESSES=4, says what a card then holds.
export PROCESSES ?= 1
memory: environment
	@python -m stages.llm.preflight --processes "$$PROCESSES"

# Trains the embedded model anew, about 18 minutes on two cores with AVX512-BF16; goes on where it stopped. Needs a C++ compiler.
base-model: environment
	@python -m stages.llm.pretrain models/tiny/recipe.yaml models/tiny

environment: $(READY)

$(READY): pyproject.toml requirements.lock
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old; Python 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@echo "building $(VENV): about two minutes and 2.5 GB"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $(READY)
