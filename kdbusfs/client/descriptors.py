"""Descriptors that are closed with their owner, and sealed memfds."""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

from .raw import Buffer


class Descriptor:
    """A descriptor that is closed with its owner, unless `take` was called.

    If a received descriptor was not installed, `fd` is negative: -1 after PEEK, else -errno.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def installed(self) -> bool:
        """Whether `fd` is open here: it was installed, and neither closed nor taken."""
        return self.fd >= 0

    def fileno(self) -> int:
        """The number.  Raises ValueError if it is not installed, or was closed or taken."""
        if self.fd < 0:
            raise ValueError(f"no descriptor ({self.fd})")
        return self.fd

    def take(self) -> int:
        """The number, which the caller has to close from now on.  Raises ValueError as `fileno`."""
        fd = self.fileno()
        self.fd = -1
        return fd

    def close(self) -> None:
        """Close it; no effect if it is not installed, or was closed or taken."""
        if self.fd >= 0:
            os.close(self.take())

    def __enter__(self) -> Descriptor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Descriptor({self.fd})"


SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""The seals that a memfd needs to be sent as payload."""


def sealed_memfd(data: Buffer, name: str = "kdbus-payload") -> Descriptor:
    """A memfd that contains `data`, with all seals that messages require.  Raises OSError."""
    memfd = Descriptor(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(memfd.fd, rest) :]
        fcntl.fcntl(memfd.fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        memfd.close()
        raise
    return memfd
