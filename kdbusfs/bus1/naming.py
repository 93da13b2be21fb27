"""Commands that name many ids, while others of the same peer may change what those stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..base.ports import Turn

ROUNDS: Final = 16
"""So often are ids looked up anew that siblings keep changing."""
_AT_ONCE: Final = 4096
_IDS_A_UNIT: Final = 16


class Naming:
    """A command under way.

    ids: all that it names; changed: whether one of them stands for something else than when it was looked up.
    """

    __slots__ = ("changed", "ids")

    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.changed = False

    def name(self, ids: list[int], turn: Turn) -> None:
        """It names these, too."""
        for first in range(0, len(ids), _AT_ONCE):
            self.ids.update(ids[first : first + _AT_ONCE])
            turn.spend(_AT_ONCE // _IDS_A_UNIT if len(ids) > _AT_ONCE else 1)

    def touched(self, id: int) -> None:
        """The peer has forgotten `id`, or has something by it that was not there."""
        if id in self.ids:
            self.changed = True
