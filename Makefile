# Two commands: `make run` (prompt in, picture file out) and `make test`. `make help` lists all.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
PIP_FLAGS ?=

MODELS_DIR ?= models
DEMO_MODEL := $(MODELS_DIR)/Stable-diffusion/tiny-sd15.safetensors

export ENGINE ?= embedded
export MODELS_DIR

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.ready $(DEMO_MODEL)  ## run test_input.json on the embedded engine; the picture goes to outputs/
	OUTPUT_DIR=outputs RUNPOD_LOG_LEVEL=WARN ./start.sh --test_input "$$(cat test_input.json)"

serve: $(VENV)/.ready $(DEMO_MODEL)  ## RunPod's local API on http://localhost:8000 (PORT=...) for curl
	./start.sh --rp_serve_api --rp_api_port $(PORT)

test: $(VENV)/.ready lint  ## everything that CI checks
	$(BIN)/pytest

lint: $(VENV)/.ready  ## ruff, mypy, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck start.sh .ci/run

fmt: $(VENV)/.ready  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, the embedded engine's data and the pictures; models stay
	rm -rf $(VENV) webui-data outputs .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.ready: requirements.txt requirements-engine.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'The embedded engine needs Python 3.11 or newer: make PYTHON=python3.12 ...'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r requirements-engine.txt -r requirements-dev.txt
	touch $@

$(DEMO_MODEL): | $(VENV)/.ready
	$(BIN)/python -m engine.tiny $(@D)

.PHONY: help run serve test lint fmt clean
