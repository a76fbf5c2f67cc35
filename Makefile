PY ?= python3.11
BIN := .venv/bin
# Pick another package index (for example one with CPU builds of torch) with PIP_INDEX_URL or PIP_EXTRA_INDEX_URL.
STAMP := .venv/.installed

.PHONY: demo up test lint protos crds bench setup lock cluster cluster-down test-cluster chaos

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PY) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/specrouter demo

up: $(STAMP)
	$(BIN)/specrouter up

test: $(STAMP)
	$(BIN)/specrouter models pull demo
	$(BIN)/python -m pytest --ignore=tests/cluster

# The chart on a real cluster: the one that $KUBECONFIG names (with $MESH_GATEWAY, host:port of its Gateway), else a throwaway one.
test-cluster: $(STAMP)
	$(BIN)/python -m pytest tests/cluster

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for conftest in tests/*/conftest.py; do $(BIN)/mypy $$conftest || exit 1; done
	PATH=$(CURDIR)/$(BIN):$$PATH protos/generate.sh --check
	$(BIN)/python -m specrouter_operator.crd --check
	$(BIN)/python charts/document.py --check

protos: $(STAMP)
	PATH=$(CURDIR)/$(BIN):$$PATH protos/generate.sh

# Write the custom resource definitions anew from the operator's types, and the chart's schema and page from them and its values.
crds: $(STAMP)
	$(BIN)/python -m specrouter_operator.crd
	$(BIN)/python charts/document.py

# Faults on purpose until 2,000 sequences were hit: docs/chaos.md.
chaos: $(STAMP)
	$(BIN)/python tests/chaos/run.py --sequences 2000

bench: $(STAMP)
	$(BIN)/python benchmarks/chain.py
	$(BIN)/python benchmarks/router.py

# Write the lock files anew from pyproject.toml (needs `pip install uv`): one for development, one for each image.
LOCK = uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
  --no-header --no-emit-index-url --no-emit-find-links
lock:
	$(LOCK) --extra dev -o requirements.lock pyproject.toml
	for role in router operator level image; do \
	  $(LOCK) --no-annotate --constraint requirements.lock --extra $$role -o requirements/$$role.lock pyproject.toml || exit 1; \
	done

# A throwaway one-node cluster: see tests/cluster/README.md.
cluster:
	tests/cluster/build.sh
	for image in operator router level; do \
	  tests/cluster/dockerfile.sh docker.io/specrouter/$$image:0.1.0 . --target $$image || exit 1; \
	done
	tests/cluster/up.sh

cluster-down:
	tests/cluster/down.sh
