#!/bin/sh
# The chart as one manifest for kubectl, with the custom resource definitions: charts/manifest.sh NAMESPACE [options of helm template].
#
#   charts/manifest.sh specrouter -f my-values.yaml > mesh.yaml
#   kubectl apply --server-side -f mesh.yaml      # again where it says that a kind is not known yet
#
# Without Helm nothing keeps the bundled Redis' password: set redis.bundled.password, or use another Redis. Before deleting it all:
# kubectl -n NAMESPACE delete mf --all, which the operator must see.
set -eu
namespace="$1"; shift
exec helm template specrouter "$(dirname "$0")/specrouter" --namespace "$namespace" --include-crds --no-hooks "$@"
