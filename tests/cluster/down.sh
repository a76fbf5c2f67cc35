#!/bin/bash
# Stop the cluster that up.sh started, with all its pods, and remove its state; $CACHE/bin and $CACHE/images stay.
# It also clears up after a cluster whose programs were killed. down.sh --keep leaves etcd's data and the certificates.
set -uo pipefail
. "$(dirname "$0")/env.sh"

# the kubelet first, or it starts its containers again
end kubelet
end $(ls "$PIDS" 2>/dev/null)
# a cluster of the control plane alone has no containers
if [ -d "$RUN/kubelet" ]; then
  # containers outlive containerd: end what runs in the pods' control groups, then the shims of this containerd
  for i in 1 2; do
    for p in $(find /sys/fs/cgroup/pids/kubepods -name cgroup.procs -exec cat {} + 2>/dev/null); do kill -9 "$p" 2>/dev/null; done
    for d in /proc/[0-9]*; do
      case "$(tr '\0' ' ' 2>/dev/null < "$d/cmdline")" in
        *containerd-shim-runc-v2*" $RUN/containerd.sock"*) kill -9 "${d#/proc/}" 2>/dev/null ;;
      esac
    done
    sleep 0.2
  done
  # pods' network namespaces, known by an address of the pods' range: their links go with them
  for n in $(ls /var/run/netns 2>/dev/null | grep '^cni-'); do
    [ -z "$(ip -n "$n" -4 -o addr show to "$POD_CIDR" 2>/dev/null)" ] || ip netns del "$n"
  done
  for f in /var/lib/cni/results/specrouter-*-eth0; do
    i="${f##*/specrouter-}"; rm -f "$f" "/var/lib/cni/results/cni-loopback-${i%-eth0}-lo"
  done
  # mounts under the state folder: pod volumes and overlays
  grep -o " $RUN/[^ ]*" /proc/self/mountinfo | sort -ru | while read -r m; do umount -l "$m" 2>/dev/null; done
  unrule
  nft delete table ip kube-proxy 2>/dev/null
  nft delete table ip6 kube-proxy 2>/dev/null
  find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} \; 2>/dev/null
fi
ip link del "$LINK" 2>/dev/null
[ ! -f "$RUN/sysctl" ] || sysctl -q -p "$RUN/sysctl" >/dev/null 2>&1
if [ "${1:-}" = --keep ]; then rm -rf "$RUN/sysctl" "$RUN/containerd" "$RUN/kubelet" "$RUN/cni-ipam"; else rm -rf "$RUN"; fi
say "down"
