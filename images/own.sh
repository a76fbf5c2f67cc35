#!/bin/sh
# Our own wheel, and a list (CycloneDX) of all that is in the image with it, under /own, for over /app: own.sh COMMAND, which must start.
set -eu
python3 -m pip --python /app/bin/python install -q --no-compile --no-deps --no-index --prefix /own /wheel/*.whl
/app/bin/python -m compileall -q --invalidation-mode unchecked-hash /own/lib
cp -r /own/. /app/
mkdir -p /own/share/sbom
/tools/bin/cyclonedx-py environment --output-reproducible --output-format JSON --output-file "/own/share/sbom/$1.cdx.json" /app/bin/python
"/app/bin/$1" --help >/dev/null
