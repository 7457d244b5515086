# Few verbs: demo, test, test-runtime, test-gpu, test-ros, lint, format, clean. PYTHON chooses the interpreter, VENV the environment.
PYTHON ?= python3
VENV ?= .venv
# ONNX Runtime for CPUs and the one for GPUs exclude each other, so test-gpu has an environment of its own.
GPU ?= .venv-gpu
# Each ROS distribution has an environment of its own: its wheels set the library path of every Python started in it.
ROS ?= .venv-ros
ROS_WHEELS = rclpy rmw-fastrtps-cpp sensor-msgs std-srvs diagnostic-msgs
JAZZY ?= 7.1.6
KILTED ?= 9.1.2
SIZES ?= speed
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet

.PHONY: demo test test-runtime test-gpu test-ros lint format bench clean

demo: $(VENV)/.runtime  ## the torch-free runtime, on pictures of a made-up town
	$(BIN)/pairvpr demo --out demo-out

test: $(VENV)/.all  ## everything; installs torch (several GB)
	$(BIN)/python -m pytest

test-runtime: $(VENV)/.runtime  ## what the robot runs, without torch
	$(PIP) -e ".[cpu,video,bags,serve,viz,test]"
	$(BIN)/python -m pytest

test-gpu: $(GPU)/.gpu  ## what needs an NVIDIA GPU, then its benchmark: a table, and figures in gpu.json
	$(GPU)/bin/python -m pytest -m gpu
	$(GPU)/bin/python -m benchmarks.gpu --sizes $(SIZES) --out gpu.json

test-ros: $(ROS)/jazzy/.ros $(ROS)/kilted/.ros  ## the ROS 2 node under real ROS 2, Jazzy and Kilted; needs no ROS
	$(ROS)/jazzy/bin/python -m pytest tests/ros2
	$(ROS)/kilted/bin/python -m pytest tests/ros2/real

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.all  ## pair scoring against plain PyTorch, a few minutes
	$(BIN)/python -m benchmarks.pairs --bundles models --presets nano

clean:
	rm -rf $(VENV) $(GPU) $(ROS) build *.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(ROS)/%/.ros: pyproject.toml Makefile
	test -x $(ROS)/$*/bin/python || $(PYTHON) -m venv $(ROS)/$*
	$(ROS)/$*/bin/python -m pip install --quiet $(patsubst %,ros-$*-%,$(filter-out rclpy,$(ROS_WHEELS))) ros-$*-rclpy==$($(shell echo $* | tr a-z A-Z))
	$(ROS)/$*/bin/python -m pip install --quiet -e ".[cpu,bags]" pytest setuptools
	touch $@

$(GPU)/.gpu: pyproject.toml
	test -x $(GPU)/bin/python || $(PYTHON) -m venv --system-site-packages $(GPU)  # a Jetson's TensorRT is the system's
	$(GPU)/bin/python -m pip install --quiet -e ".[gpu,tensorrt,export,dev]"
	touch $@

$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[cpu]"
	touch $@

$(VENV)/.all: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(CONSTRAINTS) -e ".[cpu,openvino,tensorrt,video,bags,serve,viz,export,train,dev]"
	touch $@ $(VENV)/.runtime
