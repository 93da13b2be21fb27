"""The families that a mount serves, and which of them a file speaks that has not been pinned to one yet."""

from __future__ import annotations

from typing import Final

from .family import Family
from .v3.family import V3

FAMILIES: Final[tuple[Family, ...]] = (V3(),)


def find(number: int) -> Family | None:
    """The family whose request `number` is, on a file that speaks none yet."""
    for family in FAMILIES:
        if family.find(number) >= 0:
            return family
    return None
