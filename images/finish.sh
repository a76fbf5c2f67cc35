#!/bin/sh
# Add our own wheel to /app, compile, and list what is in it: finish.sh COMMAND, which must start.
set -eu
python3 -m pip --python /app/bin/python install -q --no-compile --no-deps --no-index /wheel/*.whl
# No build-time paths and times in the byte code, so that the same sources give the same image.
/app/bin/python -m compileall -q --invalidation-mode unchecked-hash /app/lib || true # some packages ship sources for other Pythons
mkdir -p /app/share/sbom
/tools/bin/cyclonedx-py environment --output-reproducible --output-format JSON --output-file "/app/share/sbom/$1.cdx.json" /app/bin/python
"/app/bin/$1" --help >/dev/null
