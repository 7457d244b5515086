# Few verbs: demo, test, test-runtime, test-lowest, test-gpu, test-arm64, test-fleet, test-ros, lint, format, docs, dist, bench, clean.
# PYTHON chooses the interpreter, VENV the environment, TESTS what pytest is given.
PYTHON ?= python3
VENV ?= .venv
# ONNX Runtime for CPUs and the one for GPUs exclude each other, so test-gpu has an environment of its own.
GPU ?= .venv-gpu
LOWEST ?= .venv-lowest
# Each ROS distribution has an environment of its own: its wheels set the library path of every Python started in it.
ROS ?= .venv-ros
ROS_WHEELS = rclpy rmw-fastrtps-cpp sensor-msgs std-srvs diagnostic-msgs
JAZZY ?= 7.1.6
KILTED ?= 9.1.2
SIZES ?= speed
# Tests run in several processes, each test file in one of them; tests/conftest.py gives each process its own cores.
PYTEST = python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet

.PHONY: demo test test-runtime test-lowest test-gpu test-arm64 test-fleet test-ros lint format docs dist bench clean

demo: $(VENV)/.runtime  ## the torch-free runtime, on pictures of a made-up town
	$(BIN)/pairvpr demo --out demo-out

test: $(VENV)/.all  ## everything; installs torch (several GB)
	$(BIN)/$(PYTEST) $(TESTS)

test-runtime: $(VENV)/.runtime  ## what the robot runs, without torch
	$(PIP) -e ".[cpu,video,bags,serve,viz,test]"
	$(BIN)/$(PYTEST) $(TESTS)

test-lowest:  ## the same with the lowest versions that pyproject.toml allows, on Python 3.10
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint .ci/lowest.txt -e ".[cpu,video,bags,serve,test]"
	$(LOWEST)/bin/$(PYTEST) $(TESTS)

test-gpu: $(GPU)/.gpu  ## what needs an NVIDIA GPU, then its benchmark: a table, and figures in gpu.json
	$(GPU)/bin/python -m pytest -m gpu
	$(GPU)/bin/python -m benchmarks.gpu --sizes $(SIZES) --out gpu.json

test-arm64: $(VENV)/.all  ## answers on an emulated 64-bit Arm processor; needs Debian and qemu-user-static
	.ci/arm64 $(BIN)/python

test-fleet: $(VENV)/.runtime  ## fleets on local Ray clusters
	$(PIP) -e ".[cpu,serve,fleet,test]"
# A process each: Ray loses actors in a process that has left one cluster and joined another.
	set -e; for file in tests/runtime/fleet/test_*.py; do $(BIN)/python -m pytest $$file; done

test-ros: $(ROS)/jazzy/.ros $(ROS)/kilted/.ros  ## the ROS 2 node under real ROS 2, Jazzy and Kilted; needs no ROS
	$(ROS)/jazzy/bin/python -m pytest tests/ros2
	$(ROS)/kilted/bin/python -m pytest tests/ros2/real --ignore tests/ros2/real/test_endurance.py

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.all  ## the site of docs/ and of the Python reference, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/.all  ## wheel and source distribution in dist/, checked
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/.all  ## pair scoring against plain PyTorch, a few minutes
	$(BIN)/python -m benchmarks.pairs --bundles models --presets nano

clean:
	rm -rf $(VENV) $(GPU) $(LOWEST) $(ROS) build dist site *.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(ROS)/%/.ros: pyproject.toml Makefile
	test -x $(ROS)/$*/bin/python || $(PYTHON) -m venv $(ROS)/$*
	$(ROS)/$*/bin/python -m pip install --quiet $(patsubst %,ros-$*-%,$(filter-out rclpy,$(ROS_WHEELS))) ros-$*-rclpy==$($(shell echo $* | tr a-z A-Z))
	$(ROS)/$*/bin/python -m pip install --quiet -e ".[cpu,bags]" pytest setuptools
	touch $@

$(GPU)/.gpu: pyproject.toml
	test -x $(GPU)/bin/python || $(PYTHON) -m venv --system-site-packages $(GPU)  # a Jetson's TensorRT is the system's
	$(GPU)/bin/python -m pip install --quiet -e ".[gpu,export,dev]"
	touch $@

$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[cpu]"
	touch $@

$(VENV)/.all: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(CONSTRAINTS) -e ".[cpu,openvino,video,bags,serve,viz,export,train,dev]"
	touch $@ $(VENV)/.runtime
