#!/usr/bin/env python3
"""Hollow copies of NVIDIA's libraries, so that torch's CUDA build runs where only a CPU is.

torch as PyPI has it links against 2.9 GB of libraries that a CPU never calls. The loader wants them all the same: each
name, and each symbol that torch refers to. This writes shared objects with just those, a few kilobytes each; a call of
one of them ends the process, and none is called without a CUDA device. The CUDA runtime and CUPTI are called on every
start, to find that there is no device, and must be the real ones.

    hollow_cuda.py SITE_PACKAGES
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TypeVar

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection

REAL = ("libcudart.so.", "libcupti.so.")
# Libraries whose symbols bear no version, by the beginning of the symbols' names.
UNVERSIONED = {"nccl": "libnccl.so.", "cuFile": "libcufile.so.", "cusparseLt": "libcusparseLt.so."}
Section = TypeVar("Section")
Symbols = dict[str, tuple[str, str]]  # name: type, version


def section_of(elf: ELFFile, name: str, kind: type[Section]) -> Section:
    """A section that every shared object has."""
    found = elf.get_section_by_name(name)
    if not isinstance(found, kind):
        raise SystemExit(f"no section {name}")
    return found


def needed_of(elf: ELFFile) -> list[str]:
    """The libraries that an object names."""
    return [tag.needed for tag in section_of(elf, ".dynamic", DynamicSection).iter_tags("DT_NEEDED")]


def versions_of(elf: ELFFile) -> dict[int, tuple[str, str]]:
    """Version index: library, version's name."""
    section = elf.get_section_by_name(".gnu.version_r")
    if not isinstance(section, GNUVerNeedSection):
        return {}
    return {
        auxiliary["vna_other"]: (library.name, auxiliary.name)
        for library, auxiliaries in section.iter_versions()
        for auxiliary in auxiliaries
    }


def wanted(torch: Path, there: set[str]) -> dict[str, Symbols]:
    """Of each library that is not there: the symbols that torch's objects refer to."""
    found: dict[str, Symbols] = defaultdict(dict)
    for path in sorted(torch.glob("lib/*.so*")):
        with path.open("rb") as file:
            elf = ELFFile(file)
            missing = [
                name for name in needed_of(elf) if name not in there and name.startswith(("libcu", "libnv", "libnccl"))
            ]
            for name in missing:
                found[name] |= {}
            versions = versions_of(elf)
            numbers = section_of(elf, ".gnu.version", GNUVerSymSection)
            for i, symbol in enumerate(section_of(elf, ".dynsym", SymbolTableSection).iter_symbols()):
                if symbol["st_shndx"] != "SHN_UNDEF":
                    continue
                index = numbers.get_symbol(i)["ndx"]
                library, version = versions.get(index if isinstance(index, int) else -1, ("", ""))
                if not library:
                    library = next((n for p, n in UNVERSIONED.items() if symbol.name.startswith(p)), "")
                    library = next((name for name in missing if library and name.startswith(library)), "")
                if library in missing:
                    found[library][symbol.name] = (symbol["st_info"]["type"], version)
    return found


def build(out: Path, symbols: Symbols, folder: str) -> None:
    """One hollow library; ``folder`` is for the compiler."""
    lines = ["void abort(void);"]
    for name, (kind, _) in sorted(symbols.items()):
        lines.append(f"int {name};" if kind == "STT_OBJECT" else f"void {name}(void) {{ abort(); }}")
    version = next(iter({version for _, version in symbols.values()} - {""}), "HOLLOW")
    source, script = Path(folder, "hollow.c"), Path(folder, "hollow.map")
    source.write_text("\n".join(lines) + "\n")
    script.write_text(f"{version} {{ global: *; }};\n")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.28"]
    command += ["-shared", "-fPIC", "-w", "-Os", "-s"]
    command += [f"-Wl,-soname,{out.name}", f"-Wl,--version-script={script}", "-o", str(out), str(source)]
    subprocess.run(  # noqa: S603  # the compiler, on a file of ours
        command, check=True, env={"ZIG_GLOBAL_CACHE_DIR": folder, "PATH": "/usr/bin:/bin"}
    )


def main() -> None:
    """Write what is missing beside the real ones."""
    site = Path(sys.argv[1])
    folder = site / "nvidia/cu13/lib"
    there = {path.name for path in folder.iterdir()}
    there |= {"libcuda.so.1"}  # the driver's: loaded when it is there
    with tempfile.TemporaryDirectory() as scratch:
        for name, symbols in sorted(wanted(site / "torch", there).items()):
            if name.startswith(REAL):
                raise SystemExit(f"{name}: the real one is needed, and not in {folder}")
            build(folder / name, symbols, scratch)
            sys.stdout.write(f"{name}: {len(symbols)} symbols\n")


main()
