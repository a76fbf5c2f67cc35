#!/bin/bash
# What a person types and sees, from install to uninstall, on a cluster ($KUBECONFIG, $MESH_GATEWAY): writes docs/transcript.md.
# The mesh is of stub levels, in a namespace of its own; .venv/bin has the clients.
set -uo pipefail
cd "$(dirname "$0")/../.."
. tests/cluster/env.sh
: "${MESH_GATEWAY:=$NODE_IP:$GATEWAY_PORT}"
export GATEWAY="$MESH_GATEWAY" PATH="$PWD/.venv/bin:$PATH"
values=tests/cluster/stub-values.yaml own="--set tls.mode=none --set gateway.rest.hostname=rest.shown.test --set gateway.grpc.hostname=grpc.shown.test"
out=docs/transcript.md
exec 3>&1 > "$out"
title() { printf '\n## %s\n\n' "$1"; echo "$1" >&3; }
shown() { # COMMAND: with what it prints
  printf '```console\n$ %s\n' "$1"
  timeout 240 bash -c "$1" 2>&1 | grep -v '^walk.go' | sed 's/[[:space:]]*$//' | cat -s
  printf '```\n\n'
}
python_shown() { # the standard input: a program, with what it prints
  local text; text="$(cat)"
  printf '```python\n%s\n```\n\n```text\n' "$text"
  python -c "$text" 2>&1
  printf '```\n\n'
}
cat <<'T'
# A mesh from install to uninstall

What a person types and sees, on the throwaway cluster of `make cluster` with levels that need no weights (`tests/cluster/stub-values.yaml`).
`tests/cluster/transcript.sh` wrote this page; `$GATEWAY` is the address of the cluster's Gateway.
T
title "Install"
kubectl create namespace shown >/dev/null
kubectl label namespace shown pod-security.kubernetes.io/enforce=restricted >/dev/null
shown "helm install mesh charts/specrouter -n shown -f $values $own"
shown "kubectl -n shown wait --for=condition=Ready --timeout=4m mf/stub rpol/stub"
kubectl -n shown rollout status deploy/mesh-specrouter-router --timeout=120s >/dev/null
shown "kubectl -n shown get mf,rpol,isvc,pods"
shown "helm test mesh -n shown --hide-notes"
title "The first token"
shown "curl -s http://\$GATEWAY/v1/completions -H 'Host: rest.shown.test' -H 'Content-Type: application/json' -d '{\"model\": \"stub\", \"prompt\": \"Name three rivers.\", \"max_tokens\": 24, \"seed\": 7, \"temperature\": 0.8}'"
shown "curl -sN http://\$GATEWAY/v1/completions -H 'Host: rest.shown.test' -H 'Content-Type: application/json' -d '{\"model\": \"stub\", \"prompt\": \"Name three rivers.\", \"max_tokens\": 24, \"seed\": 7, \"temperature\": 0.8, \"stream\": true}' | head -n 6"
echo 'By the `openai` package:'; echo
python_shown <<'P'
import os, openai

client = openai.OpenAI(
    base_url=f"http://{os.environ['GATEWAY']}/v1", api_key="none", default_headers={"Host": "rest.shown.test"}
)
for chunk in client.completions.create(
    model="stub", prompt="Name three rivers.", max_tokens=24, seed=7, temperature=0.8, stream=True
):
    print(repr(chunk.choices[0].text), end=" ")
print()
P
echo 'By gRPC:'; echo
python_shown <<'P'
import os, grpc
from specrouter.v1 import router_pb2, router_pb2_grpc

channel = grpc.insecure_channel(os.environ["GATEWAY"], options=[("grpc.default_authority", "grpc.shown.test")])
request = router_pb2.GenerateRequest(model="stub", text="Name three rivers.", max_tokens=24)
request.sampling.seed, request.sampling.temperature = 7, 0.8
for event in router_pb2_grpc.RouterServiceStub(channel).Generate(request, timeout=60):
    print(event.offset, repr(event.text), end=" ")
print()
P
title "A policy, edited"
shown "kubectl -n shown patch rpol stub --type=merge -p '{\"spec\": {\"weights\": {\"pins\": {\"mid\": 0}}}}'"
sleep 2 # routers look every second
shown "kubectl -n shown get rpol stub"
shown "kubectl -n shown exec deploy/mesh-specrouter-router -c router -- python -c 'import urllib.request; print(urllib.request.urlopen(\"http://127.0.0.1:8000/metrics\").read().decode())' | grep '^specrouter_weight\|^specrouter_policy_version'"
shown "kubectl -n shown exec deploy/mesh-specrouter-operator -- specrouter-operator explain-policy stub"
shown "kubectl -n shown patch rpol stub --type=merge -p '{\"spec\": {\"weights\": {\"pins\": {\"middle\": 0}}}}'"
kubectl -n shown patch rpol stub --type=merge -p '{"spec": {"weights": null}}' >/dev/null
title "A router, drained under a stream"
victim='$(kubectl -n shown get pods -l app.kubernetes.io/component=router -o name | head -n 1)'
shown "(sleep 1; kubectl -n shown delete $victim --wait=false) & curl -sN http://\$GATEWAY/v1/completions -H 'Host: rest.shown.test' -H 'Content-Type: application/json' -d '{\"model\": \"stub\", \"prompt\": \"Name three rivers.\", \"max_tokens\": 200, \"seed\": 7, \"temperature\": 0.8, \"stream\": true}' | grep -c '^data: {'; wait"
kubectl -n shown rollout status deploy/mesh-specrouter-router --timeout=120s >/dev/null
shown "kubectl -n shown get events --field-selector involvedObject.kind=ModelFamily -o custom-columns=REASON:.reason,MESSAGE:.message | tail -n 5"
title "An upgrade, and back"
shown "helm upgrade mesh charts/specrouter -n shown -f $values $own --set family.spec.levels[1].slots=24 --set router.podAnnotations.changed=yes | head -n 6"
shown "kubectl -n shown rollout status deploy/mesh-specrouter-router --timeout=3m; kubectl -n shown rollout status deploy/stub-mid-predictor --timeout=3m"
shown "helm rollback mesh 1 -n shown; helm history mesh -n shown"
shown "kubectl -n shown rollout status deploy/mesh-specrouter-router --timeout=3m; kubectl -n shown wait --for=condition=Ready --timeout=2m mf/stub"
title "Uninstall"
shown "helm uninstall mesh -n shown --wait --timeout 4m"
sleep 25 # routers drain
shown "kubectl -n shown get all,cm,secrets,pvc,mf,rpol,isvc; kubectl get crd -o name | grep specrouter"
kubectl delete namespace shown --wait=false >/dev/null
