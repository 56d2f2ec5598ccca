PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup journey test lint gpu-check bench clean

# torch comes first and by itself: its exact version decides which build pip finds (a CPU build where one is offered)
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

setup: $(VENV)/.ready
	@echo "ready: $(BIN)/fledge --help"

journey: $(VENV)/.ready
	$(BIN)/fledge journey --out runs/journey

test: $(VENV)/.ready
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/preference.py
	$(BIN)/python benchmarks/serve.py

# On a machine with CUDA: tests marked gpu, then training and rollout benchmarks against transformers there.
# PY=python3 uses that machine's own torch instead of the .venv.
PY ?= $(BIN)/python
gpu-check:
	PYTHONPATH=src $(PY) -m pytest -m gpu -q
	PYTHONPATH=src $(PY) benchmarks/train.py --device cuda
	PYTHONPATH=src $(PY) benchmarks/rollout.py --device cuda

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache
