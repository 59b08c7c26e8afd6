# The two main commands are `make run` (makes a picture) and `make test`. `make help` lists all.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
# Without an NVIDIA GPU the smaller build of torch is enough, if its server can be reached.
NODE_CLIENTS := tests/clients/node/node_modules/.package-lock.json
CPU_TORCH := https://download.pytorch.org/whl/cpu
PIP_FLAGS ?=
RUN_FLAGS ?=
UPGRADE ?=
LOCK = ../$(BIN)/uv pip compile --quiet --no-header --generate-hashes $(UPGRADE) \
  --python-platform x86_64-manylinux_2_36 --default-index https://pypi.org/simple

# The same as START in client.py, which starts the worker of `make run`.
serve: export ENGINE ?= embedded
serve: export MODELS_DIR ?= models
serve: export BAKED_MODELS_DIR ?= demo
serve: export DEFAULT_TEMPLATE ?= demo
serve: export OUTPUT_DIR ?= outputs
# As written: make would replace `$5` in "a $5 bill". It also exports a variable of its command line,
# replaced, under its own name, so these have other names.
run: export JOB_PROMPT = $(value PROMPT)
run: export JOB_CHECKPOINT = $(value CHECKPOINT)
run: export JOB_TEMPLATE = $(value TEMPLATE)

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/.ready  ## make a picture in outputs/ from test_input.json; PROMPT="a green star" TEMPLATE=demo_striped
	@[ "$${MODELS_DIR:-models}" != models ] || mkdir -p models/Stable-diffusion models/Lora
	@env -u OUTPUT_DIR $(BIN)/python client.py --start --job test_input.json \
	  --out "$${OUTPUT_DIR:-outputs}/" $(RUN_FLAGS) $${JOB_CHECKPOINT:+"--checkpoint=$$JOB_CHECKPOINT"} \
	  $${JOB_TEMPLATE:+"--template=$$JOB_TEMPLATE"} $${JOB_PROMPT:+-- "$$JOB_PROMPT"}

serve: $(VENV)/.ready  ## serve RunPod's, A1111's and OpenAI's API and a page on http://localhost:8000 (PORT=...)
	@[ "$$MODELS_DIR" != models ] || mkdir -p models/Stable-diffusion models/Lora
	./start.sh --rp_serve_api --rp_api_port $(PORT)

test: $(VENV)/.ready lint $(NODE_CLIENTS)  ## run all checks and tests of CI, except the long tests
	$(BIN)/pytest -n auto --dist loadfile

test-long: $(VENV)/.ready  ## run the tests that take minutes; CI does this nightly
	$(BIN)/pytest -m long -n auto --dist loadfile --timeout 3600

# atheris has no package for every Python; then the inputs are drawn at random.
fuzz: MINUTES ?= 20
fuzz: $(VENV)/.ready  ## fuzz every reader of outside data; MINUTES=20 TARGET=job-json, see docs/internals/fuzzing.md
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-fuzz.txt \
	  || echo 'atheris cannot be installed here: the inputs are drawn at random.'
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(TARGET:%=--target %) --out fuzz-results

lint: $(VENV)/.ready  ## check code, scripts, Dockerfile, requirements and YAML files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pip check
	$(BIN)/deptry . --config deptry.toml --requirements-files requirements.txt \
	  --exclude '\.venv|benchmarks|docs|engine|image|tests|training'
	$(BIN)/deptry . --config deptry.toml --requirements-files requirements-engine.txt,requirements-dev.txt,requirements-fuzz.txt \
	  --exclude '\.venv|image'
	$(BIN)/shellcheck start.sh .ci/run image/*.sh
	$(BIN)/hadolint --failure-threshold warning Dockerfile
	$(BIN)/check-jsonschema -q --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --quiet --offline --min-severity medium .github

# The programs that use these files, without a daemon. Not in `lint`, which also runs without Docker;
# CI runs both. BAKE_TARGETS are all targets of the file.
check-docker: BAKE_TARGETS = $(shell sed -n 's/^target "\([^"]*\)".*/\1/p' docker-bake.hcl)
check-docker:  ## check compose.yaml and docker-bake.hcl with docker itself; needs no daemon
	docker compose --profile '*' config --quiet
	docker buildx bake -f docker-bake.hcl --print $(BAKE_TARGETS) > /dev/null

fmt: $(VENV)/.ready  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.ready  ## update the generated parts of the documents
	$(BIN)/python -m docs.generate

image-test: export BASES ?=
image-test: export SOURCES ?=
# Without overlay each layer would be a whole copy of the image.
image-test: export STORAGE_DRIVER ?= overlay
image-test: $(VENV)/.ready  ## build the images with buildah and run them; SOURCES=/srv/git, see image/tests
	$(BIN)/pytest image/tests -o pythonpath=". tests image/tests" --timeout 3600 -v -s

bench: $(VENV)/.ready  ## measure every row of docs/benchmarks.md and write that page; about 30 minutes
	$(BIN)/python -m benchmarks.suite

# The options of the long runs: SEED=7 becomes --seed 7.
CAMPAIGN = $(foreach name,$(1),$(if $($(name)),--$(shell echo $(name) | tr A-Z a-z) $($(name))))
campaign: $(VENV)/.ready  ## random jobs and faults against whole workers; SEED= JOBS= FAULTS= MINUTES= ENGINE= STEP=
	PYTHONPATH=.:tests $(BIN)/python -m campaign $(if $(DOCS),--docs) \
	  $(call CAMPAIGN,SEED JOBS FAULTS MINUTES ENGINE STEP ONLY FOLDER)

soak: $(VENV)/.ready  ## hours of mixed jobs on one worker, and what grows; MINUTES=120 ENGINE=embedded DOCS=1
	PYTHONPATH=.:tests $(BIN)/python -m campaign.soak $(if $(DOCS),--docs) \
	  $(call CAMPAIGN,SEED MINUTES ENGINE FOLDER)

gpu-proof: $(VENV)/.ready  ## show on a machine with a GPU what works and how fast: 10 minutes; gpu-report.md
	$(BIN)/python -m benchmarks.gpu --out gpu-report.md

lock: $(VENV)/.ready  ## update image/*.lock; UPGRADE=--upgrade takes newer versions
	cd image && $(LOCK) --python-version 3.10 build.in -o build.lock
	cd image && $(LOCK) --python-version 3.10 --override a1111.overrides --override torch.overrides a1111.in -o a1111.lock
	cd image && for name in controlnet adetailer; do \
	  sed -n 's/^\([a-z].*==.*\) \\$$/\1/p' a1111.lock >constraints.tmp && \
	  $(LOCK) --python-version 3.10 --constraint constraints.tmp --override a1111.overrides \
	    --override torch.overrides --override extensions.overrides $$name.in -o $$name.lock && \
	  ../$(BIN)/python split_lock.py --beyond a1111.lock $$name.lock || exit 1; \
	done; rm -f constraints.tmp
	cd image && $(LOCK) --python-version 3.10 ../requirements.txt -o worker.lock
	cd image && $(LOCK) --python-version 3.12 --override torch.overrides ../requirements-engine.txt -o embedded.lock

audit: $(VENV)/.ready  ## look for known vulnerabilities of the packages in image/*.lock, at PyPI
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python image/audit.py

mutants: $(VENV)/.ready  ## remove each defence of docs/security.md in a copy and run its test: all must fail
	$(BIN)/pytest -m long tests/project/test_mutants.py -n auto --dist load --timeout 3600

demo-model: $(VENV)/.ready  ## train the demo model again: two hours on two cores
	$(BIN)/python -m training

clean:  ## remove the environment and the embedded engine's data; keep models and pictures
	rm -rf $(VENV) webui-data .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.ready: requirements-bridge.txt requirements.txt requirements-engine.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'The embedded engine needs Python 3.11 or newer: make PYTHON=python3.12 ...'; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo 'Installing into $(VENV): 2 to 5 minutes; 1.7 GB with the CPU build of torch, 8 GB with CUDA.'
	flags='$(PIP_FLAGS)'; \
	if [ -z "$$flags" ] && [ ! -e /dev/nvidiactl ] \
	  && ! (PATH="$$PATH:/usr/lib/wsl/lib" && command -v nvidia-smi >/dev/null) \
	  && curl -sfI --max-time 5 -o /dev/null $(CPU_TORCH)/torch/; \
	then flags='--extra-index-url $(CPU_TORCH)'; fi; \
	$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check $$flags \
	  -r requirements-engine.txt -r requirements-dev.txt
	touch $@

# The JavaScript clients that the tests run. Without Node or npm's registry those tests are skipped.
$(NODE_CLIENTS): tests/clients/node/package-lock.json
	@cd tests/clients/node && npm ci --ignore-scripts --no-audit --no-fund --fetch-retries=1 \
	  || echo 'npm cannot install the JavaScript clients: their tests are skipped.'

.PHONY: help run serve test test-long campaign soak fuzz lint check-docker fmt docs image-test bench audit mutants gpu-proof lock demo-model clean
