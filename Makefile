# The commands of this project; `make help` lists them. Each builds .venv first if it is missing or
# older than pyproject.toml or requirements.lock.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.ready-docs
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro embed help test lint doctor memory export compare learning-curve sample-size judge \
	sweep pr-report new docs base-model environment model-named space-named folder-named

repro: environment  ## run the pipeline and print the verdict
	@dvc repro
	@python -m commands.verdict

embed: environment  ## the same for an embedding model: does tuning it help retrieval?
	@dvc repro embedding/dvc.yaml

help:  ## list these commands
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-22s %s\n", $$1, $$2 }'

test: environment  ## run the fast tests
	@pytest

lint: environment  ## check style, types, imports between packages, and GitHub workflows
	@ruff check
	@ruff format --check
	@mypy
	@lint-imports --no-logo
	@if [ -d .github/workflows ]; then zizmor --offline --quiet --persona=pedantic .github/workflows; fi

# Works without .venv. Exit status 1 if there is a problem.
doctor:  ## check this machine and repository; each problem comes with its fix
	@$$(command -v $(VENV)/bin/python || echo $(PYTHON)) -m commands.doctor

# MEMORY_LIMIT_GIB=4 marks what does not fit a 4 GiB GPU. FSDP=offload, or FSDP=full_shard
# PROCESSES=4, shows what each GPU holds then.
export PROCESSES ?= 1
memory: environment  ## print the memory that each model needs: make memory MEMORY_LIMIT_GIB=4
	@python -m commands.memory --processes "$$PROCESSES"

# LLAMA_CPP=../llama.cpp also makes a GGUF file, artifacts/gguf: of GGUF=bf16, f16 or q8_0.
# SYSTEM=dpo merges the adapter after DPO instead of sft's.
export LLAMA_CPP GGUF
export SYSTEM ?= sft
export: environment  ## merge base and adapter into artifacts/merged, for transformers, vLLM and Ollama
	@python -m commands.export --system "$$SYSTEM"

compare: environment  ## compare experiments: which differences are larger than noise?
	@python -m commands.compare

learning-curve: environment  ## would more rows help? Train on 12.5%, 25% and 50% of them
	@python -m commands.learning_curve

sample-size: environment  ## how many test rows or votes would show a difference: make sample-size DIFFERENCE=0.02
	@python -m commands.sample_size $$DIFFERENCE

# Asks the server of OPENAI_BASE_URL, with the key of OPENAI_API_KEY. ALL=1 judges every test row.
export JUDGE
judge: model-named environment  ## let a language model judge the review's pairs: make judge JUDGE=qwen2.5:7b
	@python -m commands.judge "$$JUDGE" $(if $(ALL),--all)

# Resumes where it was stopped. FINISH=1 then runs the pipeline with the best parameters.
export SPACE
sweep: space-named environment  ## search parameters by validation loss: make sweep SPACE=sweeps/learning_rate.yaml
	@python -m commands.sweep "$$SPACE" $(if $(FINISH),--finish)

export BASE ?= main
pr-report: environment  ## say what this branch changed in the result: make pr-report BASE=main
	@python -m commands.pull_request --base "$$BASE"

export DIR
new: folder-named environment  ## start a new project for other data: make new DIR=../mine
	@python -m commands.new "$$DIR"

# The site opens without a server or a network: site/index.html.
docs: $(DOCS_READY)  ## build docs/ as a site in site/, and check every link
	@sphinx-build --quiet --fresh-env --fail-on-warning --keep-going docs site

# About 18 minutes on two cores with AVX512-BF16; resumes where it was stopped. Needs a C++ compiler.
base-model: environment  ## train the built-in model again
	@python -m standin.pretrain models/tiny/recipe.yaml models/tiny

# fail before .venv is built
model-named:
	@test -n "$$JUDGE" || { echo "error: which model? make judge JUDGE=qwen2.5:7b" >&2; exit 1; }

space-named:
	@test -n "$$SPACE" || { echo "error: which? make sweep SPACE=sweeps/learning_rate.yaml" >&2; exit 1; }

folder-named:
	@test -n "$$DIR" || { echo "error: where? make new DIR=../mine" >&2; exit 1; }

environment: $(READY)  ## build .venv only

$(READY): pyproject.toml requirements.lock
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old; Python 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@test ! -L $(VENV) || { echo "error: $(VENV) is a link to $$(readlink $(VENV)), and building would empty that folder; remove the link first: rm $(VENV)" >&2; exit 1; }
	@echo "building $(VENV): two to four minutes and 2.5 GB"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $(READY)

$(DOCS_READY): $(READY)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[docs]'
	@touch $(DOCS_READY)
