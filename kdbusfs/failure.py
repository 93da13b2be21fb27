"""The error for a domain that cannot be mounted or served, and the exit codes for mount(8) and scripts."""

from __future__ import annotations

EXIT_OK = 0
EXIT_USAGE = 1
EXIT_SYSTEM = 2
EXIT_INTERNAL = 4
EXIT_MOUNT = 32


class MountError(Exception):
    """A domain cannot be mounted or served.  The message is one line with reason and advice."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
