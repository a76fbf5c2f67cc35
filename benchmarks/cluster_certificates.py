"""An authority for the time being, and certificates of it as Secrets: what the chart's tls.mode secrets wants."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from pathlib import Path

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def secrets(names: dict[str, str]) -> list[str]:
    """A manifest of each Secret (tls.crt, tls.key, ca.crt). ``names``: Secret -> DNS names in its certificate, with
    commas between."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        _openssl(there, "req", "-x509", *EC, "-days", "30", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
        return [_secret(there, secret, host) for secret, host in names.items()]


def _secret(there: Path, secret: str, host: str) -> str:
    names = ",".join(f"DNS:{name}" for name in host.split(","))
    (there / "ext").write_text(f"basicConstraints=CA:FALSE\nsubjectAltName={names}\n")
    _openssl(there, "req", "-new", *EC, "-subj", f"/CN={host[:60]}", "-keyout", "tls.key", "-out", "tls.csr")
    authority = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "ext")
    _openssl(there, "x509", "-req", "-in", "tls.csr", *authority, "-out", "tls.crt")
    files = ("tls.crt", "tls.key", "ca.crt")
    data = {name: base64.b64encode((there / name).read_bytes()).decode() for name in files}
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}, "data": data})


def _openssl(there: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=there, check=True, capture_output=True, timeout=60)
