"""An open file description, as whoever serves it sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from .call import Call


@mypyc_attr(allow_interpreted_subclasses=True)
class Handle:
    """What the core keeps for an open file description.

    fhs: the numbers that whoever serves it knows it by; file_kind: which commands its file takes, a number for the
    channel; is_copied: its client reads copies, which have to be up to date when it is told where something is.
    """

    __slots__ = ("fhs", "file_kind", "is_copied")

    def __init__(self, file_kind: int = 0) -> None:
        self.fhs: list[int] = []
        self.file_kind = file_kind
        self.is_copied = False

    def ioctl(self, call: Call) -> int:
        """Carry out a command: 0, -errno, or PENDING where the answer comes later."""
        raise NotImplementedError

    def freed(self, offset: int) -> None:
        """The slice at `offset` of its pool was given back by a FREE that is answered already.

        Raises CommandError for a pool that is gone.
        """

    def poll(self) -> int:
        """Its readiness now, as POLL* bits."""
        raise NotImplementedError

    def release(self) -> None:
        """Its last descriptor is gone."""
        raise NotImplementedError
