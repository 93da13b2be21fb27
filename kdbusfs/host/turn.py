"""ports.Turn: the turn of the thread that owns the core (fuse.ownership)."""

from __future__ import annotations

from typing import Any, Final

from kdbusfs.base import ports

from ..native import _native as _untyped

lib: Final[Any] = _untyped.lib


class LinuxTurn(ports.Turn):
    """The turn of the calling thread.  Does nothing in a thread that never owns the core, like the tree's."""

    __slots__ = ()

    def pause(self) -> bool:
        """Yield the core if the turn has lasted KFS_TURN_US.  Returns whether others owned it meanwhile."""
        has_yielded: int = lib.kfs_yield()
        return has_yielded != 0
