"""The interface between an open file description and the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from .call import Call


@mypyc_attr(allow_interpreted_subclasses=True)
class Handle:
    """State of one open file description.

    fhs: file handle numbers of the server; file_kind: which command table applies, a number for the channel;
    is_copied: the client reads copies, which must be up to date before an answer returns a pool offset.
    group: handles of the same number may see each other's ends by their commands, 0: none of them; end_can_wait:
    nobody else can.
    """

    __slots__ = ("end_can_wait", "fhs", "file_kind", "group", "is_copied")

    def __init__(self, file_kind: int = 0, group: int = 0) -> None:
        self.group = group
        self.end_can_wait = False
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
        """The current readiness, as POLL* bits."""
        raise NotImplementedError

    def release(self) -> None:
        """The last descriptor is closed."""
        raise NotImplementedError
