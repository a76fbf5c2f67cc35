#!/bin/sh
# Install a level's packages into /app: level.sh cpu|cuda.
set -eu
lock=/src/requirements/level.lock
case "$1" in
  cuda) ;;
  cpu)
    # Without NVIDIA's libraries, but for the two small ones that torch calls on every start, and without the GPU compiler.
    python3 - "$lock" > /tmp/level.lock <<'P'
import re, sys
for package in re.split(r"\n(?=[a-z0-9])", open(sys.argv[1]).read()):
    if not re.match("nvidia-|cuda-|triton==", package) or re.match("nvidia-cuda-(runtime|cupti)==", package):
        print(package)
P
    lock=/tmp/level.lock ;;
  *) echo "ACCELERATOR: cpu or cuda, not $1" >&2; exit 2 ;;
esac
sh /src/images/packages.sh "$lock"
site="$(/app/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
if [ "$1" = cpu ]; then /tools/bin/python /src/images/hollow_cuda.py "$site"; fi
# For building extensions and testing torch itself; levels do neither.
rm -rf "$site"/torch/include "$site"/torch/test "$site"/torch/share
/app/bin/python -c 'import torch; (torch.ones(8, 8) @ torch.ones(8, 8)).sum().item()'
