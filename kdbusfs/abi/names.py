"""The syntax of well-known names (NAME-1, NAME-2)."""

from __future__ import annotations

from re import ASCII
from re import compile as compile_pattern
from typing import Final

from .limits import NAME_MAX_LEN

_ELEMENT: Final = rb"[A-Za-z_-][A-Za-z0-9_-]*"
_NAME: Final = compile_pattern(_ELEMENT + rb"(?:\." + _ELEMENT + rb")+", ASCII)
_WILDCARD: Final = compile_pattern(_ELEMENT + rb"(?:\." + _ELEMENT + rb")*\.\*", ASCII)


def is_valid_name(name: bytes, *, wildcard: bool = False) -> bool:
    """Whether `name` (without NUL) is a well-known name (NAME-1), or with `wildcard` also one like a.b.* (NAME-2)."""
    if len(name) > NAME_MAX_LEN:
        return False
    return bool(_NAME.fullmatch(name) or (wildcard and _WILDCARD.fullmatch(name)))
