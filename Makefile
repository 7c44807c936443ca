# Every command of this project; `make help` lists them. Each builds .venv first, where it is missing
# or older than pyproject.toml or requirements.lock.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.ready-docs
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro embed help test lint doctor memory export compare learning-curve sample-size judge \
	sweep pr-report new docs base-model environment model-named space-named folder-named

repro: environment  ## raw rows to a measured answer, and the verdict printed
	@dvc repro
	@python -m commands.verdict

embed: environment  ## the same rows for an embedding model: does tuning it help retrieval?
	@dvc repro embedding/dvc.yaml

help:  ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-20s %s\n", $$1, $$2 }'

test: environment  ## the fast tests
	@pytest

lint: environment  ## style, types, imports between packages, and the safety of workflows
	@ruff check
	@ruff format --check
	@mypy
	@lint-imports --no-logo
	@if [ -d .github/workflows ]; then zizmor --offline --quiet --persona=pedantic .github/workflows; fi

# Builds nothing. Exit status 1 where there is a problem.
doctor:  ## what is in order here and what is not, each with the command that mends it
	@$$(command -v $(VENV)/bin/python || echo $(PYTHON)) -m commands.doctor

# MEMORY_LIMIT_GIB=4 marks what a card of 4 GiB can't hold. FSDP=offload, or FSDP=full_shard
# PROCESSES=4, says what a card then holds.
export PROCESSES ?= 1
memory: environment  ## what every model in models/ needs, by length and batch size
	@python -m commands.memory --processes "$$PROCESSES"

export: environment  ## the fine-tuned model as one folder for transformers, artifacts/merged
	@python -m commands.export

compare: environment  ## a line for each experiment, and which differences are larger than their noise
	@python -m commands.compare

learning-curve: environment  ## would more rows help? Smaller shares of them, as experiments
	@python -m commands.learning_curve

sample-size: environment  ## how many test rows or votes would show a difference: make sample-size DIFFERENCE=0.02
	@python -m commands.sample_size $$DIFFERENCE

# Asks the server of OPENAI_BASE_URL, with the key of OPENAI_API_KEY. ALL=1 judges every test row.
export JUDGE
judge: model-named environment  ## a language model votes on the review's pairs: make judge JUDGE=qwen2.5:7b
	@python -m commands.judge "$$JUDGE" $(if $(ALL),--all)

# Goes on where it was stopped. FINISH=1 then runs the pipeline with the best.
export SPACE
sweep: space-named environment  ## search parameters on validation loss: make sweep SPACE=sweeps/learning_rate.yaml
	@python -m commands.sweep "$$SPACE" $(if $(FINISH),--finish)

export BASE ?= main
pr-report: environment  ## what this branch did to the result, as a comment: make pr-report BASE=main
	@python -m commands.pull_request --base "$$BASE"

export DIR
new: folder-named environment  ## a project of its own for other data, without our results: make new DIR=../mine
	@python -m commands.new "$$DIR"

# The site opens without a server or a network: site/index.html.
docs: $(DOCS_READY)  ## docs/ as a site in site/, every link checked
	@sphinx-build --quiet --fresh-env --fail-on-warning --keep-going docs site

# About 18 minutes on two cores with AVX512-BF16; goes on where it stopped. Needs a C++ compiler.
base-model: environment  ## the embedded model, trained anew
	@python -m standin.pretrain models/tiny/recipe.yaml models/tiny

# before .venv is built for nothing
model-named:
	@test -n "$$JUDGE" || { echo "error: which model? make judge JUDGE=qwen2.5:7b" >&2; exit 1; }

space-named:
	@test -n "$$SPACE" || { echo "error: which? make sweep SPACE=sweeps/learning_rate.yaml" >&2; exit 1; }

folder-named:
	@test -n "$$DIR" || { echo "error: where? make new DIR=../mine" >&2; exit 1; }

environment: $(READY)  ## .venv alone

$(READY): pyproject.toml requirements.lock
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old; Python 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@echo "building $(VENV): two to four minutes and 2.5 GB"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $(READY)

$(DOCS_READY): $(READY)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[docs]'
	@touch $(DOCS_READY)
