"""Imports go one way between the layers of the package (docs/design.md), and each layer knows only what it may."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdbusfs

PACKAGE = Path(kdbusfs.__file__).parent

ALLOWED = {
    "base": set(),
    "abi": {"base"},
    "core": {"abi", "base"},
    "bus1": {"base"},
    "native": set(),
    "host": {"abi", "base", "native"},
    "fuse": {"abi", "base", "bus1", "core", "host", "native"},
    "client": {"abi", "base"},
    "ctl": {"abi", "base", "client"},
}
FORBIDDEN_OUTSIDE = {
    "base": {"os", "sys", "socket", "trio", "pyfuse3", "cffi", "ctypes", "logging", "mmap", "fcntl", "time"},
    "abi": {"os", "sys", "socket", "trio", "pyfuse3", "cffi", "ctypes", "logging", "mmap", "fcntl"},
    "core": {"os", "sys", "socket", "trio", "pyfuse3", "cffi", "ctypes", "logging", "mmap", "fcntl", "time"},
    "bus1": {"os", "sys", "socket", "trio", "pyfuse3", "cffi", "ctypes", "logging", "mmap", "fcntl", "time"},
}


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, in functions and under TYPE_CHECKING too."""
    parts = ("kdbusfs", *path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files(layer: str) -> list[Path]:
    found = sorted((PACKAGE / layer).rglob("*.py"))
    assert found, f"layer {layer} has no files"
    return found


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_layer_imports_only_from_below(layer: str) -> None:
    for path in files(layer):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "kdbusfs" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
                assert parts[1] == layer or parts[1] in ALLOWED[layer], f"{path.name} imports {name}"


@pytest.mark.parametrize("layer", sorted(FORBIDDEN_OUTSIDE))
def test_pure_layers_know_nothing_of_the_system(layer: str) -> None:
    for path in files(layer):
        reached = {name.split(".")[0] for name in imports(path)} & FORBIDDEN_OUTSIDE[layer]
        assert not reached, f"{path.name} imports {reached}"


def test_host_knows_nothing_of_the_core_but_its_vocabulary() -> None:
    for path in files("host"):
        for name in imports(path):
            assert not name.startswith("kdbusfs.core"), f"{path.name}: {name}"


def test_the_core_knows_no_abi_by_name() -> None:
    """A family is chosen by `abi.families`; the core sees decoded values."""
    for path in files("core"):
        for name in imports(path):
            assert not name.startswith("kdbusfs.abi.v3"), f"{path.name}: {name}"
