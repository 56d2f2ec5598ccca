PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup journey test lint docs guide gpu-check bench clean

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

# files of tests run side by side; WORKERS=0 runs them one after another
WORKERS ?= 2
test: $(VENV)/.ready
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.ready
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks

# the site, in build/docs; its search needs a server, the rest does not
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/docs/index.html; with search: $(BIN)/python -m http.server -d build/docs"

# runs the notebook anew, and writes the stub that lets editors complete fledge.api
guide: $(VENV)/.ready
	$(BIN)/python docs/execute_guide.py
	$(BIN)/python -m fledge.api_stub

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
