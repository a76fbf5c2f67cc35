PY ?= python3.11
BIN := .venv/bin
# Pick another package index (for example one with CPU builds of torch) with PIP_INDEX_URL or PIP_EXTRA_INDEX_URL.
STAMP := .venv/.installed

.PHONY: demo up test lint protos bench setup lock

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
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH=$(CURDIR)/$(BIN):$$PATH protos/generate.sh --check

protos: $(STAMP)
	PATH=$(CURDIR)/$(BIN):$$PATH protos/generate.sh

bench: $(STAMP)
	$(BIN)/python benchmarks/chain.py
	$(BIN)/python benchmarks/router.py

# Write requirements.lock anew from pyproject.toml (needs `pip install uv`).
lock:
	uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --extra dev \
	  --generate-hashes --no-header --no-emit-index-url --no-emit-find-links -o requirements.lock pyproject.toml
