"""What a well-known name may look like (NAME-1, NAME-2)."""

from __future__ import annotations

from errno import EINVAL
from re import ASCII
from re import compile as compile_pattern
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.limits import NAME_MAX_LEN
from ..base.errors import CommandError

if TYPE_CHECKING:
    from ..abi.values import Item

_ELEMENT: Final = rb"[A-Za-z_-][A-Za-z0-9_-]*"
_NAME: Final = compile_pattern(_ELEMENT + rb"(?:\." + _ELEMENT + rb")+", ASCII)
_WILDCARD: Final = compile_pattern(_ELEMENT + rb"(?:\." + _ELEMENT + rb")*\.\*", ASCII)


def is_valid_name(name: bytes, *, wildcard: bool = False) -> bool:
    """Whether `name` (without NUL) is a well-known name (NAME-1), or with `wildcard` also one like a.b.* (NAME-2)."""
    if len(name) > NAME_MAX_LEN:
        return False
    return bool(_NAME.fullmatch(name) or (wildcard and _WILDCARD.fullmatch(name)))


def only_name(items: list[Item]) -> bytes:
    """The one NAME item of a command, without NUL.  Raises CommandError(EINVAL): none, several, or invalid."""
    names = [item.text for item in items if item.kind == c.ITEM_NAME]
    if len(names) != 1 or not is_valid_name(names[0]):
        raise CommandError(EINVAL, "not one valid name")
    return names[0]
