"""The types that Python sees of the C module (native/_native.pyi) against the module itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kdbusfs.native import _native

STUB = Path(_native.__file__).with_name("_native.pyi")
CLASSES = {node.name: node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)}
NO_STRUCTS = {"CData", "CBuffer", "CField", "CType", "Pointers", "_Ffi", "_Lib"}


def members(name: str) -> list[str]:
    return [
        node.target.id
        for node in CLASSES[name].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def functions(name: str) -> list[ast.FunctionDef]:
    return [node for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("function", functions("_Lib"), ids=lambda node: node.name)
def test_functions_have_the_arguments_and_results_of_c(function: ast.FunctionDef) -> None:
    found = _native.ffi.typeof(getattr(_native.lib, function.name))
    given = [ast.unparse(each.annotation) for each in function.args.posonlyargs[1:] if each.annotation is not None]
    assert len(given) == len(found.args)
    for text, c_type in zip(given, found.args, strict=True):
        assert (text == "int") == (c_type.kind == "primitive"), c_type
    assert function.returns is not None
    result = ast.unparse(function.returns)
    assert result == {"void": "None", "primitive": "int"}.get(found.result.kind, result)
    assert (result == "int") == (found.result.kind == "primitive")


def test_constants_are_numbers() -> None:
    assert members("_Lib")
    for name in members("_Lib"):
        assert isinstance(getattr(_native.lib, name), int)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - NO_STRUCTS))
def test_members_are_those_of_c(name: str) -> None:
    docstring = ast.get_docstring(CLASSES[name])
    assert docstring is not None
    struct = docstring.removesuffix(" *")
    found = {member: field.type.kind for member, field in _native.ffi.typeof(struct).fields}
    assert members(name)
    for node in CLASSES[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert (ast.unparse(node.annotation) == "int") == (found[node.target.id] == "primitive")
