#!/usr/bin/env python3
"""Make an OCI image archive from plain folders and files, with the standard library only (no registry, no daemon).

  mkimage.py --name docker.io/library/x:dev --out x.tar --layer ROOTFS [--layer SRC=/dest ...]
             [--user UID] [--entrypoint ARG ...]

Each --layer becomes one layer: SRC is a folder (its contents) or a file; /dest defaults to /.
Format: OCI image specification 1.1, image layout in a tar.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
EPOCH = "1970-01-01T00:00:00Z"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Layer(NamedTuple):
    """A layer's tar."""

    path: Path
    digest: str
    size: int  # bytes


def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Root's, of no time, and nothing but files, folders and links."""
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
    return entry if entry.isfile() or entry.isdir() or entry.issym() or entry.islnk() else None


def layer(spec: str, out: Path) -> Layer:
    """Write a layer's tar. Not compressed: it never leaves this machine."""
    source, _, target = spec.partition("=")
    given, target = Path(source), target.strip("/")
    with tarfile.open(out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        if given.is_dir():
            for entry in sorted(given.iterdir()):
                tar.add(entry, str(Path(target) / entry.name), filter=plain)
        else:
            tar.add(given, target or given.name, filter=plain)
    with out.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Layer(out, digest, out.stat().st_size)


def blob(value: Any, media: str) -> tuple[bytes, dict[str, Any]]:
    """A document as bytes, and what refers to it."""
    data = json.dumps(value).encode()
    return data, {"mediaType": media, "digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}


def write(out: Path, name: str, layers: list[Layer], run: dict[str, Any]) -> None:
    """Write the archive; ``run`` is the image's config."""
    described = {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + one.digest for one in layers]},
        "history": [{"created": EPOCH, "created_by": "mkimage"} for _ in layers],
    }
    config, of_config = blob(described, CONFIG)
    of_layers = [{"mediaType": LAYER, "digest": "sha256:" + one.digest, "size": one.size} for one in layers]
    manifest, of_manifest = blob(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": of_config, "layers": of_layers}, MANIFEST
    )
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    of_manifest |= {"platform": {"architecture": "amd64", "os": "linux"}, "annotations": names}
    index, _ = blob({"schemaVersion": 2, "manifests": [of_manifest]}, "")
    with tarfile.open(out, "w") as tar:
        for path, data in (
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
            ("index.json", index),
            ("blobs/sha256/" + of_manifest["digest"][7:], manifest),
            ("blobs/sha256/" + of_config["digest"][7:], config),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for one in layers:
            tar.add(one.path, "blobs/sha256/" + one.digest)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layer", action="append", default=[])
    parser.add_argument("--user", default="")
    parser.add_argument("--entrypoint", nargs=argparse.REMAINDER, default=[])  # the last option: it takes the rest
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out.parent) as folder:
        layers = [layer(spec, Path(folder) / f"{i}.tar") for i, spec in enumerate(given.layer)]
        run = {"Entrypoint": given.entrypoint, "User": given.user, "WorkingDir": "/", "Env": [PATH]}
        part = given.out.with_name(given.out.name + ".part")
        write(part, given.name, layers, run)
        part.replace(given.out)


main()
