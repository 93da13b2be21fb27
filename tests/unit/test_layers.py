"""Imports go one way between the layers and modules of the package (docs/design.md); imports for types count, too."""

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
    "client": {"abi", "base", "bus1"},
    "ctl": {"abi", "base", "client"},
}
TOP: dict[str, set[str]] = {
    "__main__": {"cli"},
    "arguments": {"failure"},
    "check": {"cli", "diagnosis", "failure", "fuse", "host", "options", "starter", "surroundings"},
    "cli": {
        "arguments",
        "check",
        "daemon",
        "diagnosis",
        "failure",
        "fuse",
        "host",
        "keeper",
        "kept",
        "native",
        "options",
        "rehearsal",
        "service",
        "starter",
        "surroundings",
    },
    "daemon": {
        "bus1",
        "core",
        "diagnosis",
        "failure",
        "fuse",
        "host",
        "options",
        "rehearsal",
        "surroundings",
        "trial",
    },
    "diagnosis": {"fuse", "host", "rehearsal"},
    "failure": {"fuse"},
    "keeper": set(),
    "kept": {"failure", "fuse", "host", "keeper"},
    "options": set(),
    "patience": set(),
    "rehearsal": {"abi", "patience"},
    "service": set(),
    "starter": {"failure", "fuse", "patience"},
    "surroundings": {"base"},
    "sysview": {"failure", "fuse", "host"},
    "trial": {"core", "diagnosis", "fuse", "host", "rehearsal"},
}
"""What each module of the top level may import: its neighbours, and layers."""

CIRCLES: tuple[set[str], ...] = (
    # Objects that refer to each other.  What works on them stands in modules that these do not import.
    {
        f"core.{name}"
        for name in (
            "bus",
            "connection",
            "deadlines",
            "delivery",
            "domain_state",
            "endpoint",
            "match",
            "match_index",
            "name_table",
            "notifications",
            "queue",
            "reply",
        )
    },
    # A call has a caller, a caller's descriptor may be a handle, and a handle takes calls.
    {"base.call", "base.handle", "base.ports"},
    # The daemon checks itself, and the check runs the daemon.
    {"check", "cli"},
    # What is known of a caller is gathered by a part of its own.
    {"host.caller", "host.metadata"},
    # As in the core: peers, their nodes and queues, what is queued, and what all share refer to each other.
    {f"bus1.{name}" for name in ("message", "nodes", "peer", "queue", "world_state")},
)
"""The modules that import each other in a circle (docs/design.md says why).  There may be less, but no other."""

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
            assert parts[0] != "kdbusfs" or len(parts) < 2 or parts[1] not in TOP, f"{path.name} imports {name}"


def test_every_layer_and_every_module_of_the_top_level_is_known() -> None:
    """Nothing is left out of the measurement."""
    with_code = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert with_code == set(ALLOWED)
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(TOP)


@pytest.mark.parametrize("module", sorted(TOP))
def test_the_top_level_imports_only_what_it_may(module: str) -> None:
    reached = {name.split(".")[1] for name in known_modules(PACKAGE / f"{module}.py") if "." in name}
    assert reached <= TOP[module], f"{module} imports {reached - TOP[module]}"


def known_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, and not what it takes from them."""
    found = set()
    for name in imports(path):
        while name.startswith("kdbusfs."):
            place = PACKAGE.joinpath(*name.split(".")[1:])
            if place.with_suffix(".py").exists() or (place / "__init__.py").exists():
                found.add(name)
                break
            name = name.rpartition(".")[0]
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected parts of more than one module: whoever reaches each other."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in graph[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        return seen

    reached = {name: reachable(name) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        circle = {other for other in reached[name] if name in reached[other]}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}) == [{"b", "c"}]


def test_modules_form_no_circle_but_those_that_are_explained() -> None:
    """Imports for types count: a reader follows them, too.  The package's own __init__ files are no part of it."""
    paths = {path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths}
    graph = {
        name: {found.removeprefix("kdbusfs.") for found in known_modules(path)} & set(names.values()) - {name}
        for path, name in names.items()
    }
    for circle in circles(graph):
        assert any(circle <= known for known in CIRCLES), f"a new circle: {sorted(circle)}"


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


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("libc.mount", "host/mounting.py"),
        ("libc.umount2", "host/mounting.py"),
        ("libc.unshare", "host/mounting.py"),
        ("\\\\134", "base/mountinfo.py"),
        ("[A-Za-z_-][A-Za-z0-9_-]*", "abi/names.py"),
    ],
    ids=["mount", "umount2", "unshare", "mountinfo", "names"],
)
def test_one_place_only(text: str, place: str) -> None:
    """mount(2) and its like are called, mount tables are parsed, and names are defined once."""
    assert [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if text in path.read_text()] == [place]


@pytest.mark.parametrize("layer", ["fuse", "native"])
def test_the_seam_is_typed(layer: str) -> None:
    """No signature of the server says Any."""
    for path in [*files(layer), *(PACKAGE / layer).glob("*.pyi")]:
        assert "typing.Any" not in set(imports(path)), path.name
