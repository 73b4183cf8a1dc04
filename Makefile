# Two commands: `make serve` starts the service, `make test` sets up and passes the tests. Both are quick the second time.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
TARGETS ?= 127.0.0.1:8000
OBSERVE_PORT ?= 9090
.DEFAULT_GOAL := help
.PHONY: help serve test lint format coverage bench bench-peers bench-gpu models loadtest observe prove-dockerfile lock clean system env env-test env-build env-build-test env-clients python

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

serve: models  ## Make the environment, build the example models, serve them on 127.0.0.1:8000 (HOST=, PORT=)
	@exec .venv/bin/samegraph serve --repository models --host $(HOST) --port $(PORT)

test: system env-test env-build-test env-clients  ## Install what is missing, then format check, lint, types and every test
	@.venv/bin/python scripts/check.py

lint: env-test  ## Format check, lint and types only
	@.venv/bin/python scripts/check.py format lint types dockerfile

format: env-test  ## Let ruff format the code and fix what it safely can
	@.venv/bin/ruff check --fix . && .venv/bin/ruff format .

coverage: env-test models  ## Run the tests under coverage (branches, tests included) and print what is not covered
	@.venv/bin/coverage erase
	@.venv/bin/coverage run -m pytest --ignore=tests/training && .venv/bin/coverage combine -q && .venv/bin/coverage report

bench: system env-test models  ## Measure the server beside other servers and this machine's own limit; writes benchmarks/results/
	@.venv-build/bin/python benchmarks/packages.py
	@.venv/bin/python benchmarks/peers/install.py || echo "The table will say which peers are missing, and why." >&2
	@.venv/bin/python benchmarks/run.py $(BENCH)

bench-peers: env-test  ## Install the servers that `make bench` compares with, each in an environment of its own (NAME=mosec: that one)
	@.venv/bin/python benchmarks/peers/install.py $(NAME)

bench-gpu: env-test  ## Measure the GPU executor against plain session.run on this machine's GPU; writes benchmarks/results/
	@.venv/bin/python benchmarks/gpu.py $(BENCH)

loadtest: system env-test models  ## Send bursts of 300 frames to the imagenet example and check every answer (SCENARIO=, OPTIONS=); writes a page
	@.venv/bin/python -m loadtest $(or $(SCENARIO),burst) $(OPTIONS)

observe: env  ## Watch running services with Prometheus on 127.0.0.1:9090 (TARGETS="host:port …", OBSERVE_PORT=)
	@scripts/system-packages prometheus
	@exec .venv/bin/python scripts/observe.py --port $(OBSERVE_PORT) $(TARGETS)

models: env env-build  ## Build the example model packages
	@.venv-build/bin/python models/build.py

prove-dockerfile: env-test  ## Run the Dockerfile's install steps in a clean directory (no container engine needed)
	@.venv/bin/python scripts/prove_dockerfile.py

lock: env-test  ## Resolve the constraints files anew after a change of dependencies (UPGRADE=1: newest versions)
	@.venv/bin/python scripts/lock.py $(if $(UPGRADE),--upgrade)

clean:  ## Remove environments, caches and built packages (downloads are kept)
	rm -rf .venv .venv-build .venv-clients benchmarks/.peers benchmarks/.packages benchmarks/.compiled .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov build dist
	rm -rf models/*/[0-9]* models/.heldout
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

system:
	@scripts/system-packages

env: python
	@$(PYTHON) scripts/environment.py serve

env-test: python
	@$(PYTHON) scripts/environment.py test

env-build: python
	@$(PYTHON) scripts/environment.py build

env-build-test: python
	@$(PYTHON) scripts/environment.py build-test

env-clients: python
	@$(PYTHON) scripts/environment.py clients

python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) on PATH: install Python 3.11 or newer, or set PYTHON=/path/to/python" >&2; exit 1; }
