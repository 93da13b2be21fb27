"""The name that a command is about."""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from ..abi import constants as c
from ..abi.names import is_valid_name
from ..base.errors import CommandError

if TYPE_CHECKING:
    from ..abi.values import Item


def only_name(items: list[Item]) -> bytes:
    """The one NAME item of a command, without NUL.  Raises CommandError(EINVAL): none, several, or invalid."""
    names = [item.text for item in items if item.kind == c.ITEM_NAME]
    if len(names) != 1 or not is_valid_name(names[0]):
        raise CommandError(EINVAL, "not one valid name")
    return names[0]
