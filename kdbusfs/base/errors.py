"""The error type for every failure that is the client's own."""

from __future__ import annotations

import errno as _errno


class CommandError(Exception):
    """A command failed because of its client: its ioctl returns `errno`.

    `reason` is for tests and traces; the client does not get it.
    """

    __slots__ = ("errno", "reason")

    def __init__(self, errno: int, reason: str = "") -> None:
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno, str(self.errno))
        return f"{name}: {self.reason}" if self.reason else name


class AbandonedError(CommandError):
    """The client was killed while its memory was accessed, and is answered: its command must change nothing more.

    Whoever swallows a CommandError passes this one on.  To others it is EFAULT, like a copy that a fatal signal ends.
    """

    __slots__ = ()

    def __init__(self, reason: str = "") -> None:
        super().__init__(_errno.EFAULT, reason)


class OnlyNegotiated(CommandError):  # noqa: N818 - a success
    """The command only asked for its valid flags, and has got them: it succeeds without effect (L-14)."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0, "negotiation")
