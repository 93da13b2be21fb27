"""Commands that name many ids, while others of the same peer may change what those stand for."""

from __future__ import annotations

from typing import Final

ROUNDS: Final = 16
"""So often are ids looked up anew that siblings keep changing."""


class Naming:
    """A command under way.

    ids: all that it names; changed: whether one of them stands for something else than when it was looked up.
    """

    __slots__ = ("changed", "ids")

    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.changed = False

    def touched(self, id: int) -> None:
        """The peer has forgotten `id`, or has something by it that was not there."""
        if id in self.ids:
            self.changed = True
