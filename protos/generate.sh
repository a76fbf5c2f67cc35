#!/usr/bin/env bash
# Writes protos/python from the .proto files; with --check, only says whether it would change.
set -euo pipefail
cd "$(dirname "$0")"
out=python
if [ "${1:-}" = --check ]; then
  # previous.binpb: the contracts of the version before (buf build -o protos/previous.binpb), whose parts must still be understood
  (cd .. && buf lint && buf format --diff --exit-code && buf breaking --against protos/previous.binpb)
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
python -m grpc_tools.protoc -I. --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  specrouter/v1/*.proto
if [ "$out" != python ] && ! diff -r --exclude=__pycache__ python "$out"; then
  echo "protos/python is not what the .proto files generate: run make protos" >&2
  exit 1
fi
