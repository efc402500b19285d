# `make serve` and `make test` do all the set-up themselves. Variables: PYTHON (3.11 or newer),
# HOST, PORT, ARGS (more flags for serve), WORKERS (processes that run tests), TORCH_INDEX_URL (where
# CPU builds of torch come from).

VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
WORKERS ?= 2

.PHONY: serve test test-slow lint check bench-cpu bench-gpu perplexity clean help

serve: $(VENV)/.serve ## set up everything and serve the built-in model on 127.0.0.1:8000
	$(BIN)/nsa-serve serve --host $(HOST) --port $(PORT) $(ARGS)

test: $(VENV)/.test ## set up everything and run the tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.test ## run the long tests too
	$(BIN)/python -m pytest -m "slow or not slow" --timeout 3600

lint: $(VENV)/.test ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test ## all that a change must pass

perplexity: $(VENV)/.serve ## the built-in model, dense and NSA, on 4,096 tokens of text
	$(BIN)/python benchmarks/perplexity.py

bench-cpu: $(VENV)/.bench ## this engine beside transformers on this CPU
	$(BIN)/python benchmarks/cpu.py

bench-gpu: $(VENV)/.bench ## attention layers beside dense attention on this GPU, into docs/gpu.md
	$(BIN)/nsa-serve bench kernels --heads all --output benchmarks/results/gpu-kernels.json
	$(BIN)/python -m benchmarks.gpu_plots

$(VENV)/.python: scripts/make_venv.sh
	sh scripts/make_venv.sh $(VENV)
	touch $@

$(VENV)/.torch: $(VENV)/.python scripts/install_torch.py
	$(BIN)/python scripts/install_torch.py
	touch $@

$(VENV)/.serve: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	$(BIN)/python -m nsa_serve.model.loading.built_in
	$(BIN)/python -m nsa_serve.engine.set_up
	touch $@

$(VENV)/.test: $(VENV)/.serve
	$(BIN)/python -m pip install --quiet --editable '.[cpu,test]'
	touch $@

$(VENV)/.bench: $(VENV)/.serve
	$(BIN)/python -m pip install --quiet --editable '.[cpu,bench]'
	touch $@

clean: ## remove the virtual environment and all caches of tools
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
