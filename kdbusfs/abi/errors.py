"""The one error type that a client's fault is reported with."""

from __future__ import annotations

import errno as _errno


class KdbusError(Exception):
    """A command failed because of what the client asked for: `errno` is what its ioctl returns.

    `reason` is for a reader of tests and traces; nothing of it reaches the client.
    """

    __slots__ = ("errno", "reason")

    def __init__(self, errno: int, reason: str = "") -> None:
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno, str(self.errno))
        return f"{name}: {self.reason}" if self.reason else name
