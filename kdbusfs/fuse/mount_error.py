"""The error for a domain that cannot be mounted or served."""

from __future__ import annotations

import enum


class MountFailure(enum.Enum):
    """Where the reason lies."""

    USAGE = "wrong usage, or no privilege"
    SYSTEM = "the system lacks something"
    REFUSED = "the mount point is not suitable, or the kernel refuses to mount there"


class MountError(Exception):
    """A domain cannot be mounted or served.  The message is one line with reason and advice."""

    def __init__(self, failure: MountFailure, message: str) -> None:
        super().__init__(message)
        self.failure = failure
