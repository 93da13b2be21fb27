"""Descriptors that come with a message: the caller gets all of them, or the message stays (B1-RECV-9, B1-FUSE-4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base.call import Installation

if TYPE_CHECKING:
    from ..base.call import Call
    from ..base.ports import Memory
    from .message import Message
    from .receiving import Receiving


class Installing(Installation):
    """The descriptors of a RECV that is answered when they are there."""

    __slots__ = ("_receiving",)

    def __init__(self, receiving: Receiving, message: Message, memory: Memory, offset: int) -> None:
        entries = [(file, memory, offset + 4 * index) for index, file in enumerate(message.files)]
        super().__init__(entries, message.retain(), 0, 0, is_all_or_none=True)
        self._receiving: Receiving | None = receiving

    def refuse(self, call: Call, errno: int) -> None:
        """Install nothing: the message stays, and the command fails with `errno`."""
        self.conclude(errno)

    def conclude(self, errno: int) -> None:
        """The caller has all of them if `errno` is 0, else none, and its RECV fails with it.  Idempotent."""
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            if errno:
                receiving.stop()
            else:
                receiving.succeed()
        self.done()
