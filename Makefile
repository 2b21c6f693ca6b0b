# Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= openvino,onnx,report,plc,gentl,test,lint
PIP_ARGS ?=

.PHONY: help demo test lint format install clean

help:
	@echo "make demo    set up, calibrate on simulated good parts and watch 300 parts being judged"
	@echo "make test    set up and run the tests"
	@echo "make lint    ruff and mypy"
	@echo "make install set up only: $(BIN)/edge and $(BIN)/calibrate"
	@echo "make clean   remove $(VENV)"

demo: install
	$(BIN)/edge demo --out demo

# Each part in a process of its own: the native libraries of cameras, PLCs and engines are not made to share one.
TESTS := tests/calibration tests/pipelines tests/edge/capture tests/edge/plc \
	"tests/edge --ignore=tests/edge/capture --ignore=tests/edge/plc" tests/line

test: install
	@status=0; for part in $(TESTS); do $(BIN)/python -m pytest $$part || status=$$?; done; exit $$status

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed

# Without ensurepip (Debian and Ubuntu split it off) python3 -m venv fails half-way: say what to install instead.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: Python 3.10 or newer is needed, found $$($(PYTHON) --version); set PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -q && apt-get install -qy python3-venv; \
	  else echo "error: Python's venv module is missing; run: sudo apt-get install python3-venv"; exit 1; fi
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that no other package's range can choose another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV)
