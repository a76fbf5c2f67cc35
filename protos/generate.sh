#!/usr/bin/env bash
# Writes protos/python from the .proto files; with --check, only says whether it would change.
set -euo pipefail
cd "$(dirname "$0")"
out=python
if [ "${1:-}" = --check ]; then
  (cd .. && buf lint && buf format --diff --exit-code)
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
python -m grpc_tools.protoc -I. --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  specrouter/v1/*.proto
if [ "$out" != python ] && ! diff -r --exclude=__pycache__ python "$out"; then
  echo "protos/python is not what the .proto files generate: run make protos" >&2
  exit 1
fi
