#!/bin/bash
# Start a one-node cluster: up.sh [control] [node] [kserve] [gateway] [envoy] [policies] [certificates] [metrics]. Without arguments:
# the first four. Run it again to start what is missing.
#   control: etcd, kube-apiserver, kube-controller-manager, kube-scheduler    node: containerd, kubelet, kube-proxy, CoreDNS
#   kserve:  its CRDs, ConfigMap, RBAC, webhooks and manager; KSERVE_MODE=pod runs the manager in the cluster, KSERVE_MODE=host
#            beside it, with its service account's rights (this needs no node)
#   gateway: the Gateway API's CRDs (standard channel), its class "traefik", Traefik on $NODE_IP:$GATEWAY_PORT
#   envoy:   Envoy Gateway in the cluster, after gateway (its CRDs)
#   policies: kube-router beside the cluster, which enforces NetworkPolicies; no_policies ends it and takes its rules away
#   certificates: cert-manager in the cluster
#   metrics: Prometheus and prometheus-adapter beside the cluster, which serve routers' own metrics to autoscalers
# build.sh with the same names builds the last ones.
# Then: export KUBECONFIG=$RUN/admin.kubeconfig
set -euo pipefail
. "$(dirname "$0")/env.sh"
: "${KSERVE_MODE:=pod}"
mkdir -p "$PKI" "$LOG" "$PIDS"

start() { # NAME COMMAND...: in the background, in a session of its own
  local n="$1"; shift
  alive "$n" && return
  setsid nohup "$@" >>"$LOG/$n.log" 2>&1 </dev/null &
  echo "$! $(birth $!)" > "$PIDS/$n"
}
wait_for() { # WHAT SECONDS COMMAND...: until the command succeeds
  local what="$1" n="$2" t0=$SECONDS; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $((SECONDS - t0)) -lt "$n" ] || { say "no $what after ${n}s; see $LOG"; tail -n 5 "$LOG"/*.log >&2; return 1; }
    sleep 0.3
  done
  say "$what after $((SECONDS - t0))s"
}

put() { # FILE: write the standard input there if it differs (kube-proxy ends itself when its file is touched)
  cat > "$1.new"
  if cmp -s "$1.new" "$1"; then rm -f "$1.new"; else mv "$1.new" "$1"; fi
}

cert() { # NAME SUBJECT [SAN]: a key and a certificate signed by the cluster's CA
  [ -f "$PKI/$1.crt" ] && return
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$2" \
    -keyout "$PKI/$1.key" -out "$PKI/$1.csr" 2>/dev/null
  { echo "basicConstraints=CA:FALSE"; echo "keyUsage=digitalSignature"; echo "extendedKeyUsage=serverAuth,clientAuth"
    [ -z "${3:-}" ] || echo "subjectAltName=$3"; } > "$PKI/$1.ext"
  openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 365 \
    -extfile "$PKI/$1.ext" -out "$PKI/$1.crt" 2>/dev/null
}
kubeconfig() { # NAME SUBJECT: a kubeconfig with a client certificate of that subject
  [ -f "$RUN/$1.kubeconfig" ] && return
  cert "$1" "$2"
  cat > "$RUN/$1.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://$NODE_IP:$API_PORT", certificate-authority: "$PKI/ca.crt"}}]
users: [{name: u, user: {client-certificate: "$PKI/$1.crt", client-key: "$PKI/$1.key"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
K
}

network() {
  # a bridge without ports serves as the node's interface: no traffic of the cluster touches the machine's own interfaces
  ip link show "$LINK" >/dev/null 2>&1 || ip link add "$LINK" type bridge
  ip addr replace "$NODE_IP/32" dev "$LINK"
  ip link set "$LINK" up
  ip route replace "$SVC_CIDR" dev "$LINK" src "$NODE_IP"
}

control() {
  network
  [ -f "$PKI/ca.crt" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
    -subj "/CN=specrouter-cluster" -keyout "$PKI/ca.key" -out "$PKI/ca.crt" 2>/dev/null
  [ -f "$PKI/sa.key" ] || { openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null
                            openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2>/dev/null; }
  cert apiserver "/CN=kube-apiserver" "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$NODE_IP,IP:$SVC_API_IP"
  cert kubelet-client "/O=system:masters/CN=kube-apiserver-kubelet-client"
  cert front-proxy "/CN=front-proxy"
  kubeconfig admin "/O=system:masters/CN=admin"
  kubeconfig controller-manager "/CN=system:kube-controller-manager"
  kubeconfig scheduler "/CN=system:kube-scheduler"

  start etcd "$BIN/etcd" --name one --data-dir "$RUN/etcd" --unsafe-no-fsync \
    --listen-client-urls "http://127.0.0.1:$ETCD_PORT" --advertise-client-urls "http://127.0.0.1:$ETCD_PORT" \
    --listen-peer-urls "http://127.0.0.1:$((ETCD_PORT + 1))" --initial-advertise-peer-urls "http://127.0.0.1:$((ETCD_PORT + 1))" \
    --initial-cluster "one=http://127.0.0.1:$((ETCD_PORT + 1))" --log-level warn
  start apiserver "$BIN/kube-apiserver" --etcd-servers "http://127.0.0.1:$ETCD_PORT" \
    --bind-address "$NODE_IP" --advertise-address "$NODE_IP" --secure-port "$API_PORT" \
    --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" --client-ca-file "$PKI/ca.crt" \
    --kubelet-client-certificate "$PKI/kubelet-client.crt" --kubelet-client-key "$PKI/kubelet-client.key" \
    --requestheader-client-ca-file "$PKI/ca.crt" --requestheader-allowed-names front-proxy \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
    --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file "$PKI/front-proxy.crt" --proxy-client-key-file "$PKI/front-proxy.key" \
    --kubelet-certificate-authority "$PKI/ca.crt" --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$PKI/sa.pub" \
    --service-account-signing-key-file "$PKI/sa.key" --service-cluster-ip-range "$SVC_CIDR" \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged=true --profiling=false
  wait_for "API server ready" 120 kubectl get --raw /readyz
  start controller-manager "$BIN/kube-controller-manager" --kubeconfig "$RUN/controller-manager.kubeconfig" \
    --secure-port "$MANAGER_PORT" --cert-dir "$RUN/controller-manager" \
    --use-service-account-credentials --root-ca-file "$PKI/ca.crt" --service-account-private-key-file "$PKI/sa.key" \
    --leader-elect=false --bind-address 127.0.0.1 --profiling=false
  start scheduler "$BIN/kube-scheduler" --kubeconfig "$RUN/scheduler.kubeconfig" --leader-elect=false \
    --secure-port "$((MANAGER_PORT + 1))" --bind-address 127.0.0.1
  wait_for "default service account" 60 kubectl get serviceaccount default
}

ctr_() { ctr -a "$RUN/containerd.sock" -n k8s.io "$@"; }

node() {
  # the kubelet sets three kernel values and the cluster needs forwarding: note what they were, for down.sh
  [ -f "$RUN/sysctl" ] ||
    sysctl net.ipv4.ip_forward vm.overcommit_memory kernel.panic kernel.panic_on_oops | tr -d ' ' > "$RUN/sysctl"
  sysctl -qw net.ipv4.ip_forward=1
  mkdir -p "$RUN/containerd" "$RUN/cni" "$RUN/kubelet"
  put "$RUN/cni/10-specrouter.conflist" <<C
{"cniVersion": "0.4.0", "name": "specrouter", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "$RUN/cni-ipam",
   "ranges": [[{"subnet": "$POD_CIDR"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
C
  put "$RUN/containerd.toml" <<C
version = 2
root = "$RUN/containerd/root"
state = "$RUN/containerd/state"
[grpc]
  address = "$RUN/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$RUN/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "specrouter.local/pause:1"
  # the machine's root may not lower the score (it has no CAP_SYS_RESOURCE), so keep to containerd's own
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$RUN/cni"
C
  start containerd containerd --config "$RUN/containerd.toml"
  wait_for "containerd ready" 30 ctr_ version
  local i
  for i in "$IMG"/*.tar; do ctr_ images import "$i" >/dev/null; done
  say "images imported"

  cert kubelet-server "/O=system:nodes/CN=system:node:$NODE_NAME" "DNS:$NODE_NAME,IP:$NODE_IP,IP:127.0.0.1"
  kubeconfig kubelet "/O=system:nodes/CN=system:node:$NODE_NAME"
  kubeconfig kube-proxy "/CN=system:kube-proxy"
  kubeconfig coredns "/O=system:masters/CN=coredns"
  # names outside the cluster do not resolve in pods, on purpose
  : > "$RUN/resolv.conf"
  put "$RUN/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_IP
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$PKI/ca.crt"}}
authorization: {mode: Webhook}
tlsCertFile: "$PKI/kubelet-server.crt"
tlsPrivateKeyFile: "$PKI/kubelet-server.key"
containerRuntimeEndpoint: "unix://$RUN/containerd.sock"
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
clusterDomain: cluster.local
clusterDNS: ["$NODE_IP"]
resolvConf: "$RUN/resolv.conf"
registerNode: true
# a nearly full disk of the machine must not evict the tests' pods
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", nodefs.inodesFree: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
shutdownGracePeriod: 0s
podLogsDir: "$RUN/pod-logs"
C
  start kubelet "$BIN/kubelet" --config "$RUN/kubelet.yaml" --kubeconfig "$RUN/kubelet.kubeconfig" --root-dir "$RUN/kubelet" \
    --hostname-override "$NODE_NAME" --node-ip "$NODE_IP" --cert-dir "$RUN/kubelet/pki"
  put "$RUN/kube-proxy.yaml" <<C
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $NODE_NAME
clusterCIDR: $POD_CIDR
bindAddress: $NODE_IP
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
clientConnection: {kubeconfig: "$RUN/kube-proxy.kubeconfig"}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
C
  start kube-proxy "$BIN/kube-proxy" --config "$RUN/kube-proxy.yaml"
  # cluster DNS runs beside the cluster, on the node's address: no image and no service needed
  put "$RUN/Corefile" <<C
.:53 {
  bind $NODE_IP
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $RUN/coredns.kubeconfig
    pods insecure
    ttl 5
  }
}
C
  [ ! -x "$BIN/coredns" ] || start coredns "$BIN/coredns" -conf "$RUN/Corefile"
  wait_for "node ready" 120 kubectl wait --for=condition=Ready "node/$NODE_NAME" --timeout=5s
}

kserve() {
  local dir conf="$RUN/kserve"
  dir="$(moddir "github.com/kserve/kserve@$KSERVE_VERSION")"
  rm -rf "$conf"; mkdir -p "$conf"; cp -r --no-preserve=mode "$dir/config" "$conf/config"
  kubectl create namespace kserve --dry-run=client -o yaml | kubectl apply -f - >/dev/null
  # server-side: the CRDs are too large for the annotation of a client-side apply
  kubectl apply --server-side --force-conflicts -k "$conf/config/crd/full" >/dev/null
  wait_for "KServe CRDs" 60 kubectl wait --for=condition=Established --timeout=5s crd/inferenceservices.serving.kserve.io
  cert kserve-webhook "/CN=kserve-webhook-server-service.kserve.svc" "DNS:kserve-webhook-server-service.kserve.svc,\
DNS:kserve-webhook-server-service.kserve.svc.cluster.local,DNS:localhost,IP:127.0.0.1"
  printf 'namespace: kserve\nresources: [config/rbac, config/webhook%s]\n' \
    "$([ "$KSERVE_MODE" = pod ] && echo ', config/manager')" > "$conf/kustomization.yaml"
  { kubectl kustomize "$conf"; echo ---; cat "$conf/config/configmap/inferenceservice.yaml"; } > "$conf/all.yaml"
  kubectl create --dry-run=client -o json -f "$conf/all.yaml" > "$conf/all.json"
  python3 "$HERE/kserve_patch.py" --ca "$PKI/ca.crt" --version "$KSERVE_VERSION" \
    $([ "$KSERVE_MODE" = pod ] || echo --webhook-port $((KSERVE_PORT + 2))) < "$conf/all.json" > "$conf/patched.json"
  kubectl create secret tls kserve-webhook-server-cert -n kserve \
    --cert "$PKI/kserve-webhook.crt" --key "$PKI/kserve-webhook.key" --dry-run=client -o yaml | kubectl apply -f - >/dev/null
  kubectl apply --server-side --force-conflicts -f "$conf/patched.json" >/dev/null
  if [ "$KSERVE_MODE" = host ]; then
    # the manager finds its serving certificate under $TMPDIR; it has the rights of its service account, no more
    mkdir -p "$RUN/kserve-tmp/k8s-webhook-server/serving-certs"
    cp "$PKI/kserve-webhook.crt" "$RUN/kserve-tmp/k8s-webhook-server/serving-certs/tls.crt"
    cp "$PKI/kserve-webhook.key" "$RUN/kserve-tmp/k8s-webhook-server/serving-certs/tls.key"
    kubeconfig kserve-manager \
      "/O=system:serviceaccounts/O=system:serviceaccounts:kserve/CN=system:serviceaccount:kserve:kserve-controller-manager"
    start kserve-manager env TMPDIR="$RUN/kserve-tmp" POD_NAMESPACE=kserve "$BIN/kserve-manager" \
      --kubeconfig "$RUN/kserve-manager.kubeconfig" --metrics-addr "127.0.0.1:$KSERVE_PORT" \
      --health-probe-addr "127.0.0.1:$((KSERVE_PORT + 1))" --webhook-port "$((KSERVE_PORT + 2))"
    wait_for "KServe manager ready" 90 curl -fsS --noproxy '*' "http://127.0.0.1:$((KSERVE_PORT + 1))/readyz"
  else
    wait_for "KServe manager ready" 150 kubectl -n kserve rollout status deploy/kserve-controller-manager --timeout=5s
  fi
}

gateway() {
  local dir
  dir="$(moddir "sigs.k8s.io/gateway-api@$GATEWAY_API_VERSION")"
  kubectl apply --server-side --force-conflicts -f "$dir/config/crd/standard" >/dev/null
  wait_for "Gateway API CRDs" 60 kubectl wait --for=condition=Established --timeout=5s crd/httproutes.gateway.networking.k8s.io \
    crd/grpcroutes.gateway.networking.k8s.io
  kubectl apply -f - >/dev/null <<C
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: traefik}
spec: {controllerName: traefik.io/gateway-controller}
C
  # a Gateway's listener must name the port of an entry point, here $GATEWAY_PORT
  start traefik env KUBECONFIG="$RUN/admin.kubeconfig" "$BIN/traefik" --providers.kubernetesgateway=true \
    --entrypoints.web.address="$NODE_IP:$GATEWAY_PORT" --global.checknewversion=false --global.sendanonymoususage=false
  wait_for "gateway class accepted" 60 kubectl wait --for=condition=Accepted gatewayclass/traefik --timeout=5s
}

envoy() { # by its own chart; its class is "envoy", each Gateway gets a service of type ClusterIP
  local dir n=envoy-gateway-system
  dir="$(moddir "github.com/envoyproxy/gateway@$ENVOY_GATEWAY_VERSION")/charts/gateway-helm"
  rm -rf "$RUN/envoy"; cp -r --no-preserve=mode "$dir" "$RUN/envoy"
  # the chart's values come as a template
  sed -e "s#\${GatewayImage}#docker.io/envoyproxy/gateway:$ENVOY_GATEWAY_VERSION#; s#\${GatewayImagePullPolicy}#IfNotPresent#" \
    "$dir/values.tmpl.yaml" > "$RUN/envoy/values.yaml"
  kubectl apply --server-side --force-conflicts -f "$RUN/envoy/charts/crds/crds/generated" >/dev/null
  helm upgrade --install eg "$RUN/envoy" -n "$n" --create-namespace --skip-crds --wait --timeout 180s >/dev/null
  kubectl apply -f - >/dev/null <<C
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyProxy
metadata: {name: local, namespace: $n}
spec:
  provider:
    type: Kubernetes
    kubernetes:
      envoyService: {type: ClusterIP}
      envoyDeployment: {container: {image: "docker.io/envoyproxy/envoy:v$ENVOY_VERSION"}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: envoy}
spec:
  controllerName: gateway.envoyproxy.io/gatewayclass-controller
  parametersRef: {group: gateway.envoyproxy.io, kind: EnvoyProxy, name: local, namespace: $n}
C
  wait_for "Envoy Gateway's class accepted" 60 kubectl wait --for=condition=Accepted gatewayclass/envoy --timeout=5s
}

policies() { # of all of kube-router the firewall alone; traffic from the node itself (probes, Traefik) is always let through
  kubeconfig kube-router "/O=system:masters/CN=kube-router"
  start kube-router "$BIN/kube-router" --kubeconfig "$RUN/kube-router.kubeconfig" --hostname-override "$NODE_NAME" \
    --run-firewall=true --run-router=false --run-service-proxy=false --enable-cni=false --service-cluster-ip-range "$SVC_CIDR" \
    --health-port "$((KSERVE_PORT + 3))"
  wait_for "rules of NetworkPolicies" 60 iptables -S KUBE-NWPLCY-DEFAULT
}
no_policies() {
  end kube-router
  unrule
}

certificates() { # cert-manager by its own chart, which its release tool completes
  local dir n=cert-manager c="$RUN/cert-manager" p
  dir="$(moddir "github.com/cert-manager/cert-manager@$CERT_MANAGER_VERSION")/deploy"
  rm -rf "$c"; cp -r --no-preserve=mode "$dir/charts/cert-manager" "$c"
  sed "s/^\(version\|appVersion\): .*/\1: $CERT_MANAGER_VERSION/" "$c/Chart.template.yaml" > "$c/Chart.yaml"
  cp "$dir"/crds/*.yaml "$c/templates/"
  for p in controller webhook cainjector; do
    ctr_ images import "$IMG/cert-manager-$p.tar" >/dev/null
  done
  helm upgrade --install cert-manager "$c" -n "$n" --create-namespace --set startupapicheck.enabled=false \
    --set "global.leaderElection.namespace=$n" --wait --timeout 180s >/dev/null
  wait_for "cert-manager's webhook" 60 kubectl create --dry-run=server -f - <<C
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: probe}
spec: {selfSigned: {}}
C
}

metrics() { # the adapter is reached by the API server as a Service without pods
  local port=$((KSERVE_PORT + 4)) n=kube-system name=prometheus-adapter
  # Debian's Prometheus does not look for pods itself: a loop tells it of them
  put "$RUN/prometheus.yaml" <<C
global: {scrape_interval: 2s}
scrape_configs: [{job_name: routers, file_sd_configs: [{files: ["$RUN/routers.yaml"], refresh_interval: 2s}]}]
C
  put "$RUN/routers.template" <<'C'
{{range .items}}{{if .status.podIP}}- {targets: ["{{.status.podIP}}:8000"], labels: {namespace: {{.metadata.namespace}}, pod: {{.metadata.name}}}}
{{end}}{{end}}
C
  start routers bash -c "while sleep 3; do kubectl get pods -A -l app.kubernetes.io/component=router -o go-template-file='$RUN/routers.template' \
    > '$RUN/routers.new' && mv '$RUN/routers.new' '$RUN/routers.yaml'; done"
  start prometheus prometheus --config.file "$RUN/prometheus.yaml" --storage.tsdb.path "$RUN/prometheus" \
    --web.listen-address "127.0.0.1:$((port + 1))"
  put "$RUN/adapter.yaml" <<'C'
rules:
  - seriesQuery: 'specrouter_sequences{namespace!="",pod!=""}'
    resources: {overrides: {namespace: {resource: namespace}, pod: {resource: pod}}}
    metricsQuery: 'sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)'
C
  cert adapter-server "/CN=$name.$n.svc" "DNS:$name.$n.svc"
  kubeconfig adapter "/O=system:masters/CN=$name"
  start adapter "$BIN/prometheus-adapter" --config "$RUN/adapter.yaml" --prometheus-url "http://127.0.0.1:$((port + 1))" \
    --metrics-relist-interval 5s --lister-kubeconfig "$RUN/adapter.kubeconfig" \
    --authentication-kubeconfig "$RUN/adapter.kubeconfig" --authorization-kubeconfig "$RUN/adapter.kubeconfig" \
    --bind-address "$NODE_IP" --secure-port "$port" --tls-cert-file "$PKI/adapter-server.crt" \
    --tls-private-key-file "$PKI/adapter-server.key"
  kubectl apply -f - >/dev/null <<C
apiVersion: v1
kind: Service
metadata: {name: $name, namespace: $n}
spec: {ports: [{name: https, port: 443, targetPort: $port}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: $name, namespace: $n, labels: {kubernetes.io/service-name: $name}}
addressType: IPv4
endpoints: [{addresses: [$NODE_IP], conditions: {ready: true}}]
ports: [{name: https, port: $port, protocol: TCP}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta2.custom.metrics.k8s.io}
spec:
  group: custom.metrics.k8s.io
  version: v1beta2
  groupPriorityMinimum: 100
  versionPriority: 200
  caBundle: $(base64 -w0 < "$PKI/ca.crt")
  service: {name: $name, namespace: $n}
C
  wait_for "routers' metrics served" 90 kubectl wait --for=condition=Available --timeout=5s apiservice/v1beta2.custom.metrics.k8s.io
}

[ $# -gt 0 ] || set -- control node kserve gateway
{ for t in "$@"; do "$t"; done; exit; } # one block: the script may be edited while it runs
