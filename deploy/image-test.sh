#!/usr/bin/env bash
# Builds the container image, runs it as a hospital would (no root, no capabilities, read-only root), and streams a scan through it.
# usage: image-test.sh [TAG]. Takes docker when an engine answers, else the script named by BUILD_AND_RUN (CONTEXT TAG [run arguments]).
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
tag=${1:-echotrain:test}
bin=${BIN:-$top/.venv/bin}
out=$(mktemp -d)
name=echotrain-image-test
port=${PORT:-19002} admin=${ADMIN_PORT:-19090}
run=(--detach --name "$name" --env "ECHOTRAIN_LISTEN__PORT=$port" --env "ECHOTRAIN_ADMIN__PORT=$admin")

if docker info >/dev/null 2>&1; then
  engine=(docker)
  docker build --tag "$tag" "$top"
  start() { docker run --network=host --read-only --tmpfs /tmp --cap-drop=ALL --security-opt no-new-privileges "${run[@]}" "$tag"; }
else
  build_and_run=${BUILD_AND_RUN:-$top/../shared/tools/container/build-and-run.sh}
  [ -x "$build_and_run" ] || { echo "image-test: no docker engine answers and BUILD_AND_RUN names no script" >&2; exit 2; }
  store=${W:-/var/tmp/container-ci}
  engine=(podman --root "$store/store" --runroot "$store/run" --storage-driver overlay --cgroup-manager cgroupfs
          --runtime "$(dirname "$build_and_run")/runc")
  export BUILDAH_FORMAT=docker   # the OCI format has no health checks
  "${engine[@]}" rm --force --ignore "$name" >/dev/null 2>&1 || true
  start() { "$build_and_run" "$top" "$tag" "${run[@]}"; }
fi
finish() { "${engine[@]}" logs "$name" >"$out/log" 2>&1 || true; "${engine[@]}" rm --force "$name" >/dev/null 2>&1 || true; }
trap finish EXIT

started=$(date +%s.%N)
start >/dev/null
for _ in $(seq 600); do
  if "$bin/python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$admin/readyz', timeout=2)" 2>/dev/null; then ready=yes; break; fi
  sleep 0.2
done
[ "${ready:-no}" = yes ] || { echo "image-test: the container was not ready within two minutes" >&2; "${engine[@]}" logs "$name" >&2; exit 1; }
echo "ready $(echo "$(date +%s.%N) - $started" | bc 2>/dev/null || echo '?') s after the build began"

inside() { "${engine[@]}" exec "$name" "$@"; }
[ "$(inside id -u)" = 10001 ] || { echo "image-test: not running as uid 10001" >&2; exit 1; }
if inside touch /opt/echotrain/written 2>/dev/null; then echo "image-test: the root file system can be written" >&2; exit 1; fi
inside python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$admin/livez', timeout=2)"
[ -z "$(inside find / -xdev -perm /6000 -type f 2>/dev/null)" ] || { echo "image-test: set-user-id files in the image" >&2; exit 1; }

"$bin/echotrain" simulate --slices 3 --acceleration 2 --output "$out/scan.h5"
"$bin/echotrain" send "$out/scan.h5" --host 127.0.0.1 --port "$port" --pipeline sense --output "$out/images.h5"
"$bin/python" - "$out/images.h5" <<'P'
import sys
import h5py
with h5py.File(sys.argv[1]) as file:
    found = {f"{group}/{series}": file[group][series]["data"].shape for group in file for series in file[group] if "image" in series}
print(found)
if len(found) != 2 or any(shape[0] != 3 for shape in found.values()):
    sys.exit("image-test: expected three images and three uncertainty maps")
P
stop=$(date +%s.%N)
"${engine[@]}" stop --time 30 "$name" >/dev/null
echo "stopped in $(echo "$(date +%s.%N) - $stop" | bc 2>/dev/null || echo '?') s"
echo "image-test: passed"
