# Few verbs: demo, test, test-runtime, lint, format, clean. PYTHON chooses the interpreter, VENV the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet

.PHONY: demo test test-runtime lint format bench clean

demo: $(VENV)/.runtime  ## the torch-free runtime, on pictures of a made-up town
	$(BIN)/pairvpr demo --out demo-out

test: $(VENV)/.all  ## everything; installs torch (several GB)
	$(BIN)/python -m pytest

test-runtime: $(VENV)/.runtime  ## what the robot runs, without torch
	$(PIP) -e ".[cpu,video,bags,serve,viz,test]"
	$(BIN)/python -m pytest

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.all  ## pair scoring against plain PyTorch, a few minutes
	$(BIN)/python -m benchmarks.pairs --preset nano --pairs 8

clean:
	rm -rf $(VENV) build *.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[cpu]"
	touch $@

$(VENV)/.all: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(CONSTRAINTS) -e ".[cpu,openvino,video,bags,serve,viz,export,train,dev]"
	touch $@ $(VENV)/.runtime
