"""What a reader fills while others may own the core is its own: no buffer of a module (fuse/ownership.py)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbusfs.host import proc
from kdbusfs.native._native import ffi

SOURCES = Path(proc.__file__).resolve().parents[1]
FUNCTION = re.compile(r"^(?:static )?[\w ]+[ *](\w+)\([^;]*?\)\n\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)


def accessing() -> set[str]:
    """The C functions in which a reader can lose the core, by what they call."""
    bodies: dict[str, str] = {}
    for file in SOURCES.glob("native/*.c"):
        if not file.name.startswith("_"):
            for name, body in FUNCTION.findall(file.read_text()):
                bodies[name] = bodies.get(name, "") + body
    found = {"kfs_access_begin", "kfs_access_end"}
    while True:
        more = {name for name, body in bodies.items() if found & set(re.findall(r"\w+(?=\()", body))}
        if more <= found:
            return found
        found |= more


def module_buffers(tree: ast.Module) -> set[str]:
    """Names of a module that stand for C memory."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Attribute) and called.attr in ("new", "from_buffer"):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def uses(tree: ast.Module, functions: set[str], buffers: set[str]) -> Iterator[str]:
    aliases = {
        target.id: node.value.attr
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Attribute)
        for target in [node.target]
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if aliases.get(name, name) in functions:
            for argument in ast.walk(node):
                if isinstance(argument, ast.Name) and argument.id in buffers:
                    yield f"{aliases.get(name, name)} gets {argument.id}"


def test_the_functions_that_access_memory_of_clients_are_found() -> None:
    found = accessing()
    assert {"kfs_client_write", "kfs_client_payload", "kfs_proc_read", "kfs_channel_step"} <= found
    assert "kfs_thread_ids" not in found


def test_no_buffer_of_a_module_is_filled_during_an_access() -> None:
    functions = accessing()
    found = []
    for file in [*SOURCES.glob("host/*.py"), *SOURCES.glob("fuse/*.py"), *SOURCES.glob("core/*.py")]:
        tree = ast.parse(file.read_text())
        found += [f"{file.name}: {use}" for use in uses(tree, functions, module_buffers(tree))]
    assert found == []


def test_the_search_finds_a_shared_buffer() -> None:
    tree = ast.parse('_buffer: Any = ffi.new("char[]", 9)\ndef read(): lib.kfs_proc_read(1, b"", _buffer, 9)\n')
    assert list(uses(tree, accessing(), module_buffers(tree))) == ["kfs_proc_read gets _buffer"]


class SlowLib:
    """Reads of thread 1 take so long that thread 2 is read meanwhile, by another reader."""

    def __init__(self) -> None:
        self.meanwhile = b""

    def kfs_proc_read(self, tid: int, name: bytes, buffer: Any, size: int) -> int:
        text = b"text of %d: " % tid + name
        ffi.memmove(buffer, text, len(text))
        if tid == 1:
            self.meanwhile = proc.read(2, b"status", 4096)
        return len(text)

    def kfs_proc_link(self, tid: int, name: bytes, buffer: Any, size: int) -> int:
        return self.kfs_proc_read(tid, name, buffer, size)


def test_the_text_of_one_client_is_not_taken_for_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """META-11: while one client holds up its cmdline, another's status is read."""
    lib = SlowLib()
    monkeypatch.setattr(proc, "lib", lib)
    assert proc.read(1, b"cmdline", 4096) == b"text of 1: cmdline"
    assert lib.meanwhile == b"text of 2: status"
    assert proc.link(1, b"exe") == b"text of 1: exe"
