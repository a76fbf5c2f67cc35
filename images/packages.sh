#!/bin/sh
# Install the packages of a lock file, and no others, into /app: packages.sh LOCK.
set -eu
[ -x /app/bin/python ] || python3 -m venv --without-pip /app
python3 -m pip --python /app/bin/python install -q --no-compile --no-deps --require-hashes -r "$1"
# No times of files in the byte code, so that the same packages give the same image. Some ship sources for other Pythons.
/app/bin/python -m compileall -q --invalidation-mode unchecked-hash /app/lib || true
