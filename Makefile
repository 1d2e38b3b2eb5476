# Every target sets up what it needs by itself: `make demo` and `make test` work on a fresh clone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp

.PHONY: help setup demo demo-rtx test test-gpu check format graphs readme clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(STAMP)  ## Create .venv and install the pinned environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hlap-export needs Python 3.11 or newer; set PYTHON=")'
	@echo "setting up $(VENV): torch, transformers, onnx and the tools, about 90 seconds"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --editable '.[cpu,genai,rtx,eval,dev]'
	@touch $@

demo: $(STAMP)  ## Run the whole pipeline on the reference model, into demo/
	@$(BIN)/hlap-export run --out demo --resume --bundle ort-genai

demo-rtx: $(STAMP)  ## The same with TensorRT-RTX's compiler, which needs no GPU, into demo-rtx/
	@$(BIN)/hlap-export run --engine tensorrt-rtx --out demo-rtx --resume

test: $(STAMP)  ## Run the tests, a process on each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs --numprocesses=auto --maxprocesses=8 --dist=worksteal

test-gpu: $(STAMP)  ## What needs an NVIDIA GPU, as one file in benchmarks/results/; for TensorRT first: .venv/bin/pip install '.[trt]'
	@mkdir -p build
	-$(BIN)/python -m pytest -m gpu -rs --junitxml=build/test-gpu.xml
	$(BIN)/python -m benchmarks.tensorrt --tests build/test-gpu.xml

check: $(STAMP)  ## Formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## Rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

graphs: $(STAMP)  ## Regenerate the golden graph structures
	$(BIN)/python -m tests.export.golden

readme: demo  ## Redraw the README's first screen from a new demo
	@$(BIN)/python -m tests.report.redraw demo

clean:  ## Remove what the other targets made
	rm -rf $(VENV) demo demo-rtx build .pytest_cache .ruff_cache
